"""One request for text: a few rows in the engines at once, their text handed on, their tokens counted once."""

import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio.to_thread import run_sync
from starlette.requests import Request

from api import errors
from api.generation_request import GenerationRequest
from api.resources import Resources, resources_of
from core.records import usage
from core.records.accounts import Account
from core.specs.generation import AdapterRef, ChatMessage, FinishReason, GenerateSpec, SamplingSpec
from core.specs.method import BasePrecision

Prompt = str | tuple[int, ...] | tuple[ChatMessage, ...]
OnText = Callable[["Row", str], Awaitable[None]]


@dataclass(frozen=True)
class Target:
    """What a model's name stands for. name: as it is to be echoed."""

    name: str
    base_model: str
    adapter: AdapterRef | None
    base_precision: BasePrecision = "bf16"


@dataclass
class Row:
    """One choice of the answer as it grows."""

    index: int
    prompt: int  # which of the request's prompts it answers
    spec: GenerateSpec
    texts: list[str] = field(default_factory=list)
    n_prompt: int = 0
    n_new: int = 0
    finish: FinishReason | None = None

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self.texts)


class Inference:
    """The rows of one request, from the engines' first frame to the usage record."""

    def __init__(self, request: Request, target: Target, asked: GenerationRequest, prompts: Sequence[Prompt]) -> None:
        self.target = target
        self.request_id: str = request.state.request_id
        self._account: Account = request.state.account
        self._resources: Resources = resources_of(request)
        self.rows = self._rows(asked, prompts)

    async def run(self, on_text: OnText | None = None) -> None:
        """Generates every row to its end. Raises ClientError. Whatever was generated is recorded, cancelled or not."""
        try:
            try:
                async with anyio.create_task_group() as group:
                    for row in self.rows:
                        group.start_soon(self._generate, row, on_text)
            except* errors.ClientError as problems:
                raise self._in_client_terms(_first(problems)) from None
        finally:
            with anyio.CancelScope(shield=True):
                await run_sync(self._record)

    def counts(self) -> dict[str, int]:
        """OpenAI's usage object. Several answers to one prompt count the prompt once."""
        prompts = {row.prompt: row.n_prompt for row in self.rows}
        read, written = sum(prompts.values()), sum(row.n_new for row in self.rows)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    async def _generate(self, row: Row, on_text: OnText | None) -> None:
        async with aclosing(self._resources.engines.generate(row.spec)) as frames:
            async for frame in frames:
                if frame.prompt_ids is not None and not row.n_new:
                    row.n_prompt = len(frame.prompt_ids)
                row.n_new += len(frame.ids)
                row.texts.append(frame.text)
                row.finish = frame.fin
                if on_text:
                    await on_text(row, frame.text)

    def _in_client_terms(self, problem: errors.ClientError) -> errors.ClientError:
        """Engines call what is to be continued messages, whichever field it came in."""
        if problem.error["param"] == "messages" and self.rows[0].spec.messages is None:
            problem.error["param"] = "prompt"
        return problem

    def _rows(self, asked: GenerationRequest, prompts: Sequence[Prompt]) -> list[Row]:
        first_seed = secrets.randbelow(2**62) if asked.seed is None else asked.seed
        rows = list[Row]()
        for number, prompt in enumerate(prompts):
            for n in range(asked.n or 1):
                # Each answer draws with a seed of its own; the first with the client's, so that n=1 is one of n=4.
                sampling = asked.sampling((first_seed + n) % 2**63)
                rows.append(Row(len(rows), number, self._spec(len(rows), prompt, sampling)))
        return rows

    def _spec(self, index: int, prompt: Prompt, sampling: SamplingSpec) -> GenerateSpec:
        return GenerateSpec(
            request_id=f"{self.request_id}-{index}",
            base_model=self.target.base_model,
            base_precision=self.target.base_precision,
            adapter=self.target.adapter,
            sampling=sampling,
            **_continued(prompt),
        )

    def _record(self) -> None:
        counts = self.counts()
        if not counts["total_tokens"]:
            return
        tokens = self._resources.metrics.tokens
        tokens.labels("read").inc(counts["prompt_tokens"])
        tokens.labels("written").inc(counts["completion_tokens"])
        with self._resources.database.writing() as session:
            usage.record(
                session,
                self._account,
                request_id=self.request_id,
                model=self.target.name,
                prompt_tokens=counts["prompt_tokens"],
                completion_tokens=counts["completion_tokens"],
            )


def _continued(prompt: Prompt) -> dict[str, Any]:
    """The field of a GenerateSpec that says what to continue."""
    if isinstance(prompt, str):
        return {"prompt": prompt}
    if isinstance(prompt[0], ChatMessage):
        return {"messages": prompt}
    return {"prompt_ids": prompt}


def _first(problems: ExceptionGroup[errors.ClientError]) -> errors.ClientError:
    first = problems.exceptions[0]
    return _first(first) if isinstance(first, ExceptionGroup) else first
