"""POST /v1/chat/completions, plain and streaming."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.answers import Emit, EventStream, WatchedJSON
from api.deps import target_of
from api.generation_request import ChatRequest
from api.guard import Guarded
from api.inference import Inference, Piece, Row
from api.logprobs import of_chat
from core.records.tables import new_id
from core.specs.generation import Likelihood

router = APIRouter(prefix="/v1/chat/completions", route_class=Guarded)


@router.post("", response_model=None)
async def create(request: Request, body: ChatRequest) -> Response:
    """Continues a conversation."""
    target = await target_of(request, body.model, body.base_precision)
    chat = _Chat(Inference(request, target, body, [body.conversation()]), body)
    return EventStream(chat.stream) if body.stream else WatchedJSON(chat.complete)


class _Chat:
    def __init__(self, inference: Inference, body: ChatRequest) -> None:
        self._inference = inference
        self._body = body
        self._head = {"id": new_id("chatcmpl-"), "created": int(time.time()), "model": inference.target.name}

    async def complete(self) -> Mapping[str, Any]:
        await self._inference.run()
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [self._choice(row) for row in self._inference.rows],
            "usage": self._inference.counts(),
            "service_tier": self._body.honoured_tier,
            "system_fingerprint": None,
        }

    async def stream(self, emit: Emit) -> None:
        begun: set[int] = set()

        async def begin(row: Row) -> None:
            if row.index not in begun:
                begun.add(row.index)
                await emit(self._chunk(row, {"role": "assistant", "content": "", "refusal": None}))

        async def on_piece(row: Row, piece: Piece) -> None:
            await begin(row)
            if piece.text or piece.likelihoods:
                logprobs = self._logprobs(piece.likelihoods)
                await emit(self._chunk(row, {"content": piece.text}, logprobs=logprobs))
            if row.finish:
                await emit(self._chunk(row, {}, row.finish))

        await self._inference.run(on_piece)
        if self._body.wants_usage:
            await emit({**self._chunk_head(), "choices": [], "usage": self._inference.counts()})

    def _chunk(
        self, row: Row, delta: Mapping[str, object], finish: str | None = None, logprobs: object = None
    ) -> dict[str, object]:
        choice = {"index": row.index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**self._chunk_head(), "choices": [choice], **({"usage": None} if self._body.wants_usage else {})}

    def _chunk_head(self) -> dict[str, object]:
        told = {"service_tier": self._body.honoured_tier, "system_fingerprint": None}
        return {**self._head, "object": "chat.completion.chunk", **told}

    def _logprobs(self, likelihoods: Sequence[Likelihood]) -> object:
        return None if self._body.n_top_logprobs is None else of_chat(likelihoods)

    def _choice(self, row: Row) -> dict[str, object]:
        message: dict[str, object] = {"role": "assistant", "content": row.text, "refusal": None, "annotations": []}
        logprobs = self._logprobs(row.likelihoods)
        return {"index": row.index, "message": message, "logprobs": logprobs, "finish_reason": row.finish}
