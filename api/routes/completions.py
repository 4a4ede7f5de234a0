"""POST /v1/completions, plain and streaming."""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.answers import Emit, EventStream, WatchedJSON
from api.deps import target_of
from api.generation_request import CompletionRequest
from api.guard import Guarded
from api.inference import Inference, OnPiece, Piece, Row, Target
from api.logprobs import Offsets
from api.reading import Reading, ReadRow, only_one_prompt
from core.records.tables import new_id
from core.specs.generation import Frame, Likelihood, ReadSpec

router = APIRouter(prefix="/v1/completions", route_class=Guarded)


@router.post("", response_model=None)
async def create(request: Request, body: CompletionRequest) -> Response:
    """Continues texts, as they stand: no chat template is put around them."""
    target = await target_of(request, body.model, body.base_precision)
    completion = _Completion(request, target, body)
    return EventStream(completion.stream) if body.stream else WatchedJSON(completion.complete)


class _Completion:
    def __init__(self, request: Request, target: Target, body: CompletionRequest) -> None:
        self._inference = Inference(request, target, body, body.prompts())
        self._echo = _Echo(request, target, body) if body.echo else None
        self._body = body
        self._offsets: defaultdict[int, Offsets] = defaultdict(Offsets)
        self._head = {
            "id": new_id("cmpl-"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": target.name,
            "system_fingerprint": None,
        }

    async def complete(self) -> Mapping[str, Any]:
        prompts = await self._prompts()
        await self._generate()
        choices = [
            self._choice(row, prompts[row.prompt].text + row.text, prompts[row.prompt].likelihoods, row.likelihoods)
            for row in self._inference.rows
        ]
        return {**self._head, "choices": choices, "usage": self._counts()}

    async def stream(self, emit: Emit) -> None:
        async def on_piece(row: Row, piece: Piece) -> None:
            if piece.text or piece.likelihoods or row.finish:
                choice = self._choice(row, piece.text, piece.likelihoods)
                nothing_yet = {"usage": None} if self._body.wants_usage else {}
                await emit({**self._head, "choices": [choice], **nothing_yet})

        if self._echo:
            prompts = await self._prompts()
            for row in self._inference.rows:
                await on_piece(row, prompts[row.prompt])
        await self._generate(on_piece)
        if self._body.wants_usage:
            await emit({**self._head, "choices": [], "usage": self._counts()})

    async def _prompts(self) -> Sequence[Piece]:
        """What stands before each answer: its prompt, where that is to be echoed."""
        return await self._echo.prompts() if self._echo else [Piece("")] * len(self._body.prompts())

    async def _generate(self, on_piece: OnPiece | None = None) -> None:
        if self._body.max_tokens != 0:
            await self._inference.run(on_piece)
            return
        for row in self._inference.rows:
            row.finish = "length"
            if on_piece:
                await on_piece(row, Piece(""))

    def _counts(self) -> dict[str, int]:
        if self._body.max_tokens != 0 or self._echo is None:
            return self._inference.counts()
        return {**self._echo.reading.counts(), "completion_tokens": 0}

    def _choice(self, row: Row, text: str, *likelihoods: Sequence[Likelihood]) -> dict[str, object]:
        logprobs = None
        if self._body.logprobs is not None:
            logprobs = self._offsets[row.index].of_completion(one for some in likelihoods for one in some)
        return {"index": row.index, "text": text, "logprobs": logprobs, "finish_reason": row.finish}


class _Echo:
    """The prompts of a request, to be said before their answers: read by an engine where it alone can tell."""

    def __init__(self, request: Request, target: Target, body: CompletionRequest) -> None:
        """Raises ClientError 400."""
        self._body = body
        read = ReadSpec(what="likelihood")
        rows = [ReadRow(number, prompt, read) for number, prompt in enumerate(body.prompts())]
        self.reading = Reading(request, target, rows, field="prompt", top_logprobs=body.logprobs or 0)
        self._is_read = body.logprobs is not None or body.max_tokens == 0 or not isinstance(body.prompts()[0], str)
        if self._is_read:
            only_one_prompt(target, "likelihood of a prompt")

    async def prompts(self) -> list[Piece]:
        """The text of each, and how likely its tokens were where that is asked for."""
        if not self._is_read:
            return [Piece(str(prompt)) for prompt in self._body.prompts()]
        is_all = self._body.max_tokens == 0
        frames = await (self.reading.run() if is_all else self.reading.run_unmetered())
        return [self._piece(*each) for each in zip(self._body.prompts(), frames, strict=True)]

    def _piece(self, prompt: object, frame: Frame) -> Piece:
        likelihoods = frame.likelihoods or ()
        written = b"".join(bytes(one.bytes) for one in likelihoods).decode(errors="replace")
        return Piece(prompt if isinstance(prompt, str) else written, likelihoods)
