"""POST /v1/compare: several models side by side in one batch, on one conversation or each on its own."""

import time
from collections.abc import Mapping
from typing import Any

import anyio
from fastapi import APIRouter, Request
from starlette.responses import Response

from api import errors
from api.answers import Emit, EventStream, WatchedJSON
from api.deps import target_of
from api.generation_request import CompareRequest
from api.guard import Guarded
from api.inference import Inference, OnPiece, Piece, Row, draw_seed
from core.records.tables import new_id

router = APIRouter(prefix="/v1/compare", route_class=Guarded)


@router.post("", response_model=None)
async def create(request: Request, body: CompareRequest) -> Response:
    """Asks every model with the same seed. One that fails does not end the others."""
    targets = [await target_of(request, name, body.base_precision) for name in body.models]
    asked = body.model_copy(update={"seed": draw_seed(body)})
    columns = [
        _Column(index, Inference(request, target, asked, [messages], part=str(index)))
        for index, (target, messages) in enumerate(zip(targets, body.asked(), strict=True))
    ]
    comparison = _Comparison(columns, asked)
    return EventStream(comparison.stream) if body.stream else WatchedJSON(comparison.complete)


class _Column:
    """One model's answer, and how long it took."""

    def __init__(self, index: int, inference: Inference) -> None:
        self.index, self._inference = index, inference
        self.name = inference.target.name
        self._first_ms: float | None = None
        self._total_ms: float | None = None
        self.problem: errors.ClientError | None = None

    @property
    def row(self) -> Row:
        """The only one."""
        return self._inference.rows[0]

    async def run(self, on_piece: OnPiece | None = None) -> None:
        """To its end, or to its problem."""
        started = time.perf_counter()

        async def watched(row: Row, piece: Piece) -> None:
            if self._first_ms is None:
                self._first_ms = _since_ms(started)
            if on_piece:
                await on_piece(row, piece)

        try:
            await self._inference.run(watched)
        except errors.ClientError as problem:
            self.problem = problem
        self._total_ms = _since_ms(started)

    def end(self) -> dict[str, object]:
        """What is known once it has ended."""
        return {
            "finish_reason": self.row.finish,
            "usage": self._inference.counts(),
            "latency": {"first_token_ms": self._first_ms, "total_ms": self._total_ms},
            "error": self.problem.error if self.problem else None,
        }


class _Comparison:
    def __init__(self, columns: list[_Column], asked: CompareRequest) -> None:
        self._columns = columns
        self._head = {"id": new_id("cmp-"), "created": int(time.time()), "seed": asked.seed}

    async def complete(self) -> Mapping[str, Any]:
        async with anyio.create_task_group() as group:
            for column in self._columns:
                group.start_soon(column.run)
        self._raise_if_all_failed()
        return {
            **self._head,
            "object": "comparison",
            "results": [
                {
                    "index": column.index,
                    "model": column.name,
                    "message": {"role": "assistant", "content": column.row.text},
                    **column.end(),
                }
                for column in self._columns
            ],
        }

    async def stream(self, emit: Emit) -> None:
        async with anyio.create_task_group() as group:
            for column in self._columns:
                group.start_soon(self._stream_one, column, emit)
        self._raise_if_all_failed()
        for column in self._columns:
            if column.problem is not None:
                await emit({**self._chunk_head(column), "delta": {}, **column.end()})

    async def _stream_one(self, column: _Column, emit: Emit) -> None:
        head = self._chunk_head(column)

        async def on_piece(_: Row, piece: Piece) -> None:
            if piece.text:
                await emit({**head, "delta": {"content": piece.text}, "finish_reason": None})

        await column.run(on_piece)
        if column.problem is None:
            await emit({**head, "delta": {}, **column.end()})

    def _chunk_head(self, column: _Column) -> dict[str, object]:
        return {**self._head, "object": "comparison.chunk", "index": column.index, "model": column.name}

    def _raise_if_all_failed(self) -> None:
        """A request that no model could answer is answered as one model's would be."""
        problems = [column.problem for column in self._columns]
        if problems[0] is not None and all(problems):
            raise problems[0]


def _since_ms(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)
