"""POST /v1/chat/completions, plain and streaming."""

import time
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.answers import Emit, EventStream, WatchedJSON
from api.deps import target_of
from api.generation_request import ChatRequest
from api.guard import Guarded
from api.inference import Inference, Row
from core.records.tables import new_id

router = APIRouter(prefix="/v1/chat/completions", route_class=Guarded)


@router.post("", response_model=None)
async def create(request: Request, body: ChatRequest) -> Response:
    """Continues a conversation."""
    target = await target_of(request, body)
    messages = tuple(message.message() for message in body.messages)
    chat = _Chat(Inference(request, target, body, [messages]), body)
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
            "choices": [_choice(row) for row in self._inference.rows],
            "usage": self._inference.counts(),
            "service_tier": "default",
            "system_fingerprint": None,
        }

    async def stream(self, emit: Emit) -> None:
        begun: set[int] = set()

        async def begin(row: Row) -> None:
            if row.index not in begun:
                begun.add(row.index)
                await emit(self._chunk(row, {"role": "assistant", "content": "", "refusal": None}))

        async def on_text(row: Row, text: str) -> None:
            await begin(row)
            if text:
                await emit(self._chunk(row, {"content": text}))
            if row.finish:
                await emit(self._chunk(row, {}, row.finish))

        await self._inference.run(on_text)
        if self._body.wants_usage:
            await emit({**self._chunk_head(), "choices": [], "usage": self._inference.counts()})

    def _chunk(self, row: Row, delta: Mapping[str, object], finish: str | None = None) -> dict[str, object]:
        choice = {"index": row.index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**self._chunk_head(), "choices": [choice], **({"usage": None} if self._body.wants_usage else {})}

    def _chunk_head(self) -> dict[str, object]:
        return {**self._head, "object": "chat.completion.chunk", "service_tier": "default", "system_fingerprint": None}


def _choice(row: Row) -> dict[str, object]:
    message: dict[str, object] = {"role": "assistant", "content": row.text, "refusal": None, "annotations": []}
    return {"index": row.index, "message": message, "logprobs": None, "finish_reason": row.finish}
