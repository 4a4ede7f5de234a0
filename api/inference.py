"""One request for text: a few rows in the engines at once, their text handed on, their tokens counted once.

Where the model is an ensemble each choice is put to a vote: every member answers in a row of its own, all of them at
once, and the row that wins (api/vote.py) is the choice, its text and its counts. Until then nothing can be said of it.
"""

import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import anyio
from anyio.to_thread import run_sync
from starlette.requests import Request

from api import errors
from api.generation_request import GenerationRequest
from api.resources import Resources, resources_of
from api.tenant import queue_of
from api.vote import Ballot, winner
from core.records import usage
from core.records.accounts import Account
from core.specs.generation import AdapterRef, ChatMessage, FinishReason, GenerateSpec, Likelihood, QueueSpec
from core.specs.method import BasePrecision

Prompt = str | tuple[int, ...] | tuple[ChatMessage, ...]
OnPiece = Callable[["Row", "Piece"], Awaitable[None]]

MAX_ROWS = 64  # of one request: what an engine's queue can be asked to hold


@dataclass(frozen=True)
class Target:
    """What a model's name stands for. name: as it is to be echoed. members: of an ensemble, more than one."""

    name: str
    base_model: str
    adapter: AdapterRef | None
    base_precision: BasePrecision = "bf16"
    members: int = 1


@dataclass(frozen=True)
class Piece:
    """What one frame adds to a row. likelihoods: of its tokens, where they are asked for."""

    text: str
    likelihoods: tuple[Likelihood, ...] = ()


@dataclass
class Row:
    """One choice of the answer as it grows."""

    index: int
    prompt: int  # which of the request's prompts it answers
    spec: GenerateSpec
    texts: list[str] = field(default_factory=list)
    n_prompt: int = 0
    n_new: int = 0
    likelihoods: list[Likelihood] = field(default_factory=list)
    logprob: float = 0.0  # of all its tokens, where it is to be known
    finish: FinishReason | None = None

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self.texts)

    @property
    def ballot(self) -> Ballot:
        """What it says in a vote, at its end."""
        return Ballot(self.text, self.logprob / max(self.n_new, 1))


class Inference:
    """The rows of one request, from the engines' first frame to the usage record."""

    def __init__(
        self,
        request: Request,
        target: Target,
        asked: GenerationRequest,
        prompts: Sequence[Prompt],
        part: str | None = None,
    ) -> None:
        """part: which of several inferences of one request it is; they go to one engine where they can.

        Raises:
            ClientError: 400 where it would take too many rows.

        """
        self.target = target
        self._affinity: str | None = None if part is None else request.state.request_id
        self.request_id: str = request.state.request_id + ("" if part is None else f"-{part}")
        self._account: Account = request.state.account
        self._resources: Resources = resources_of(request)
        self._queue = queue_of(self._account, self._resources.settings, priority=asked.priority)
        self.rows = self._rows(asked, prompts)
        if len(self.rows) * target.members > MAX_ROWS:
            most = MAX_ROWS // target.members
            message = f"This model answers with {target.members} rows a choice, so it gives {most} choices at most."
            raise errors.bad_request(message, param="n", code="too_many_choices")

    async def run(self, on_piece: OnPiece | None = None) -> None:
        """Generates every row to its end. Raises ClientError. Whatever was generated is recorded, cancelled or not."""
        try:
            try:
                async with anyio.create_task_group() as group:
                    answer = self._vote if self.target.members > 1 else self._generate
                    for row in self.rows:
                        group.start_soon(answer, row, on_piece)
            except* errors.ClientError as problems:
                raise self._in_client_terms(first_of(problems)) from None
        finally:
            with anyio.CancelScope(shield=True):
                await run_sync(self._record)

    def counts(self) -> dict[str, int]:
        """OpenAI's usage object. Several answers to one prompt count the prompt once, and so do an ensemble's members.

        Of an ensemble the tokens of the answer that won are counted, none of the others'.
        """
        prompts = {row.prompt: row.n_prompt for row in self.rows}
        read, written = sum(prompts.values()), sum(row.n_new for row in self.rows)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    async def _generate(self, row: Row, on_piece: OnPiece | None) -> None:
        async with aclosing(self._resources.engines.generate(row.spec)) as frames:
            async for frame in frames:
                if frame.prompt_ids is not None and not row.n_new:
                    row.n_prompt = len(frame.prompt_ids)
                row.n_new += len(frame.ids)
                row.texts.append(frame.text)
                row.likelihoods += frame.likelihoods or ()
                row.logprob += frame.logprob or 0.0
                row.finish = frame.fin
                if on_piece:
                    await on_piece(row, Piece(frame.text, frame.likelihoods or ()))

    async def _vote(self, row: Row, on_piece: OnPiece | None) -> None:
        """The row becomes that of the member that wins. All draw with one seed: they differ by their prompts alone."""
        members = range(self.target.members)
        voters = [replace(row, spec=_of_member(row.spec, m), texts=[], likelihoods=[]) for m in members]
        try:
            async with anyio.create_task_group() as group:
                for voter in voters:
                    group.start_soon(self._generate, voter, None)
        finally:
            row.n_prompt = max(voter.n_prompt for voter in voters)  # it was read, whether or not there is an answer
        won = voters[winner([voter.ballot for voter in voters])]
        row.texts, row.n_new, row.logprob, row.finish = won.texts, won.n_new, won.logprob, won.finish
        row.likelihoods = won.likelihoods
        if on_piece:
            await on_piece(row, Piece(row.text, tuple(row.likelihoods)))

    def _in_client_terms(self, problem: errors.ClientError) -> errors.ClientError:
        """Engines call what is to be continued messages, whichever field it came in."""
        if problem.error["param"] == "messages" and self.rows[0].spec.messages is None:
            problem.error["param"] = "prompt"
        return problem

    def _rows(self, asked: GenerationRequest, prompts: Sequence[Prompt]) -> list[Row]:
        first_seed = draw_seed(asked)
        rows = list[Row]()
        for number, prompt in enumerate(prompts):
            for n in range(asked.n or 1):
                # Each answer draws with a seed of its own; the first with the client's, so that n=1 is one of n=4.
                sampling = asked.sampling((first_seed + n) % 2**63)
                spec = spec_of(
                    self.target,
                    prompt,
                    self._queue,
                    request_id=f"{self.request_id}-{len(rows)}",
                    sampling=sampling,
                    json_schema=asked.json_schema,
                    top_logprobs=asked.n_top_logprobs,
                    affinity=self._affinity,
                )
                rows.append(Row(len(rows), number, spec))
        return rows

    def _record(self) -> None:
        counts = self.counts()
        meter(
            self._resources,
            self._account,
            request_id=self.request_id,
            model=self.target.name,
            read=counts["prompt_tokens"],
            written=counts["completion_tokens"],
        )


def draw_seed(asked: GenerationRequest) -> int:
    """The client's seed, or a new one that JSON can carry back."""
    return secrets.randbelow(2**53) if asked.seed is None else asked.seed


def meter(resources: Resources, account: Account, *, request_id: str, model: str, read: int, written: int) -> None:
    """Write down the tokens that a request took. Blocking."""
    if not read + written:
        return
    resources.metrics.tokens.labels("read").inc(read)
    resources.metrics.tokens.labels("written").inc(written)
    with resources.database.writing() as session:
        usage.record(
            session, account, request_id=request_id, model=model, prompt_tokens=read, completion_tokens=written
        )


def spec_of(
    target: Target,
    prompt: Prompt,
    queue: QueueSpec,
    **asked: Any,  # noqa: ANN401 - GenerateSpec checks them
) -> GenerateSpec:
    """What an engine is asked for a model and a prompt. queue: whose request it is, which no row may leave unsaid."""
    return GenerateSpec(
        queue=queue,
        base_model=target.base_model,
        base_precision=target.base_precision,
        adapter=target.adapter,
        **_continued(prompt),
        **asked,
    )


def _of_member(spec: GenerateSpec, member: int) -> GenerateSpec:
    """The same request of one member of an ensemble."""
    assert spec.adapter is not None
    adapter = spec.adapter.model_copy(update={"member": member})
    return spec.model_copy(
        update={"request_id": f"{spec.request_id}-{member}", "adapter": adapter, "with_logprob": True}
    )


def _continued(prompt: Prompt) -> dict[str, Any]:
    """The field of a GenerateSpec that says what to continue."""
    if isinstance(prompt, str):
        return {"prompt": prompt}
    if isinstance(prompt[0], ChatMessage):
        return {"messages": prompt}
    return {"prompt_ids": prompt}


def first_of(problems: ExceptionGroup[errors.ClientError]) -> errors.ClientError:
    """The first problem of a group, however deep it lies."""
    first = problems.exceptions[0]
    return first_of(first) if isinstance(first, ExceptionGroup) else first
