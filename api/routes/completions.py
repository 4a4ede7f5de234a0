"""POST /v1/completions, plain and streaming."""

import time
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.answers import Emit, EventStream, WatchedJSON
from api.deps import target_of
from api.generation_request import CompletionRequest
from api.guard import Guarded
from api.inference import Inference, Row
from core.records.tables import new_id

router = APIRouter(prefix="/v1/completions", route_class=Guarded)


@router.post("", response_model=None)
async def create(request: Request, body: CompletionRequest) -> Response:
    """Continues texts, as they stand: no chat template is put around them."""
    target = await target_of(request, body)
    completion = _Completion(Inference(request, target, body, body.prompts()), body)
    return EventStream(completion.stream) if body.stream else WatchedJSON(completion.complete)


class _Completion:
    def __init__(self, inference: Inference, body: CompletionRequest) -> None:
        self._inference = inference
        self._body = body
        self._head = {
            "id": new_id("cmpl-"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": inference.target.name,
            "system_fingerprint": None,
        }

    async def complete(self) -> Mapping[str, Any]:
        await self._inference.run()
        choices = [_choice(row, row.text) for row in self._inference.rows]
        return {**self._head, "choices": choices, "usage": self._inference.counts()}

    async def stream(self, emit: Emit) -> None:
        async def on_text(row: Row, text: str) -> None:
            if text or row.finish:
                nothing_yet = {"usage": None} if self._body.wants_usage else {}
                await emit({**self._head, "choices": [_choice(row, text)], **nothing_yet})

        await self._inference.run(on_text)
        if self._body.wants_usage:
            await emit({**self._head, "choices": [], "usage": self._inference.counts()})


def _choice(row: Row, text: str) -> dict[str, object]:
    return {"index": row.index, "text": text, "logprobs": None, "finish_reason": row.finish}
