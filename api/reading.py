"""Rows of one request that engines only read: embeddings, and how likely a prompt or an answer to it is."""

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

import anyio
from anyio.to_thread import run_sync
from starlette.requests import Request

from api import errors
from api.inference import Prompt, Target, first_of, meter, spec_of
from api.resources import resources_of
from api.tenant import queue_of
from core.records.accounts import Account
from core.specs.generation import Frame, GenerateSpec, ReadSpec, SamplingSpec

AT_ONCE = 32  # rows of one request in the engines' hands; the others wait here


@dataclass(frozen=True)
class ReadRow:
    """One row. prompt: which of the request's prompts it belongs to, so that each is counted once."""

    prompt: int
    content: Prompt
    read: ReadSpec
    member: int | None = None  # of an ensemble


class Reading:
    """From the rows to what was found of each, and the usage record."""

    def __init__(
        self, request: Request, target: Target, rows: Sequence[ReadRow], *, field: str, top_logprobs: int | None = None
    ) -> None:
        """field: where the client wrote what is read, for engines' refusals."""
        self._request_id: str = request.state.request_id
        self._account: Account = request.state.account
        self._resources = resources_of(request)
        self._target, self._rows, self._field, self._top = target, rows, field, top_logprobs
        self._found: list[Frame | None] = [None] * len(rows)

    async def run(self) -> list[Frame]:
        """What is found of each row, in order. Raises ClientError. What was read is recorded, cancelled or not."""
        try:
            return await self.run_unmetered()
        finally:
            with anyio.CancelScope(shield=True):
                await run_sync(self._record)

    async def run_unmetered(self) -> list[Frame]:
        """The same, where another part of the request counts the prompt."""
        limiter = anyio.CapacityLimiter(AT_ONCE)
        try:
            async with anyio.create_task_group() as group:
                for number in range(len(self._rows)):
                    group.start_soon(self._read, number, limiter)
        except* errors.ClientError as problems:
            problem = first_of(problems)
            if problem.error["param"] in ("messages", "prompt"):
                problem.error["param"] = self._field
            raise problem from None
        return [frame for frame in self._found if frame is not None]

    @property
    def n_tokens(self) -> int:
        """Tokens read so far: of each prompt once, and of every answer."""
        prompts, answers = dict[int, int](), 0
        for row, frame in zip(self._rows, self._found, strict=True):
            if frame is not None:
                n_answer = n_tokens_of_answer(row, frame)
                prompts[row.prompt] = len(frame.prompt_ids or ()) - n_answer
                answers += n_answer
        return sum(prompts.values()) + answers

    def counts(self) -> dict[str, int]:
        """OpenAI's usage object of a request that writes nothing."""
        return {"prompt_tokens": self.n_tokens, "total_tokens": self.n_tokens}

    async def _read(self, number: int, limiter: anyio.CapacityLimiter) -> None:
        async with limiter, aclosing(self._resources.engines.generate(self._spec(number))) as frames:
            async for frame in frames:
                self._found[number] = frame

    def _spec(self, number: int) -> GenerateSpec:
        row = self._rows[number]
        spec = spec_of(
            self._target,
            row.content,
            queue_of(self._account, self._resources.settings),
            request_id=f"{self._request_id}-read-{number}",
            sampling=SamplingSpec(max_tokens=1),
            read=row.read,
            top_logprobs=self._top,
        )
        if spec.adapter is None or row.member is None:
            return spec
        return spec.model_copy(update={"adapter": spec.adapter.model_copy(update={"member": row.member})})

    def _record(self) -> None:
        meter(
            self._resources,
            self._account,
            request_id=self._request_id,
            model=self._target.name,
            read=self.n_tokens,
            written=0,
        )


def n_tokens_of_answer(row: ReadRow, frame: Frame) -> int:
    """Of a row that ends with an answer, how many tokens that has."""
    return 0 if row.read.answer is None else len(frame.likelihoods or ())


def only_one_prompt(target: Target, what: str) -> None:
    """Raises ClientError 400 for an ensemble, which has several prompts and so no single reading of a text."""
    if target.members > 1:
        message = f"This model is an ensemble of {target.members}, which answers by vote: it has no {what} of its own."
        raise errors.bad_request(message, param="model", code="ensemble_not_supported")
