"""POST /v1/embeddings: what a model makes of a text, as one vector."""

import base64
import struct
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.answers import WatchedJSON
from api.deps import target_of
from api.guard import Guarded
from api.reading import Reading, ReadRow, only_one_prompt
from api.reading_request import EmbeddingsRequest
from core.specs.generation import ReadSpec

router = APIRouter(prefix="/v1/embeddings", route_class=Guarded)

READ = ReadSpec(what="embedding")


@router.post("", response_model=None)
async def create(request: Request, body: EmbeddingsRequest) -> Response:
    """The mean of each text's hidden states, of length 1."""
    target = await target_of(request, body.model, body.base_precision)
    only_one_prompt(target, "embedding")
    rows = [ReadRow(number, text, READ) for number, text in enumerate(body.inputs())]
    reading = Reading(request, target, rows, field="input")

    async def work() -> Mapping[str, Any]:
        vectors = [frame.embedding or "" for frame in await reading.run()]
        items = [
            {"object": "embedding", "index": index, "embedding": vector if body.is_base64 else numbers_of(vector)}
            for index, vector in enumerate(vectors)
        ]
        return {"object": "list", "data": items, "model": target.name, "usage": reading.counts()}

    return WatchedJSON(work)


def numbers_of(vector: str) -> list[float]:
    """Base64 of float32, little-endian, as numbers."""
    content = base64.b64decode(vector)
    return list(struct.unpack(f"<{len(content) // 4}f", content))
