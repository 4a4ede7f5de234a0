"""POST /v1/classify: which of some labels a model holds likeliest behind a prompt."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.answers import WatchedJSON
from api.deps import target_of
from api.guard import Guarded
from api.inference import Target
from api.reading import Reading, ReadRow
from api.reading_request import ClassifyRequest
from core.records.tables import new_id
from core.specs.generation import Frame, ReadSpec

router = APIRouter(prefix="/v1/classify", route_class=Guarded)


@router.post("", response_model=None)
async def create(request: Request, body: ClassifyRequest) -> Response:
    """Reads every label behind the prompt, all in one batch. An ensemble's members are asked each, and averaged."""
    target = await target_of(request, body.model, body.base_precision)
    rows = _rows(target, body)
    reading = Reading(request, target, rows, field="messages" if body.messages else "prompt")

    async def work() -> Mapping[str, Any]:
        scores = _scores(body, rows, await reading.run())
        return {
            "id": new_id("cls-"),
            "object": "classification",
            "model": target.name,
            "label": max(scores, key=lambda one: one["score"])["label"],
            "scores": scores,
            "usage": {**reading.counts(), "completion_tokens": 0},
        }

    return WatchedJSON(work)


def _rows(target: Target, body: ClassifyRequest) -> list[ReadRow]:
    members = range(target.members) if target.members > 1 else (None,)
    return [
        ReadRow(0, body.content(), ReadSpec(what="likelihood", answer=label), member)
        for label in body.labels
        for member in members
    ]


def _scores(body: ClassifyRequest, rows: Sequence[ReadRow], frames: Sequence[Frame]) -> list[dict[str, Any]]:
    """Of each label, in the client's order."""
    told = dict[str, list[float]]()
    tokens = dict[str, int]()
    for row, frame in zip(rows, frames, strict=True):
        label = row.read.answer or ""
        own = [one.logprob for one in frame.likelihoods or () if one.logprob is not None]
        told.setdefault(label, []).append(math.fsum(own))
        tokens[label] = len(own)
    logprobs = {label: math.fsum(some) / len(some) for label, some in told.items()}
    scores = {label: logprob / (tokens[label] if body.per_token else 1) for label, logprob in logprobs.items()}
    shares = _shares(list(scores.values()))
    return [
        {
            "label": label,
            "score": scores[label],
            "probability": share,
            "logprob": logprobs[label],
            "tokens": tokens[label],
        }
        for label, share in zip(scores, shares, strict=True)
    ]


def _shares(scores: Sequence[float]) -> list[float]:
    """Softmax."""
    weights = [math.exp(score - max(scores)) for score in scores]
    return [weight / math.fsum(weights) for weight in weights]
