"""/admin/data: datasets, and one of them looked into. What pages change, their scripts ask of /v1."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api import errors
from api.admin.door import Page
from api.admin.render import render
from api.deps import AccountDep, After, OwnedFile, ResourcesDep
from api.resources import Resources
from core.data import formats
from core.records import datasets
from core.records.tables import File
from core.specs.generation import MeasureSpec

router = APIRouter(prefix="/admin/data", route_class=Page, include_in_schema=False)

SAMPLES = Path(formats.__file__).parent / "samples"
MEASURED = 5000  # examples whose length is drawn
BARS = 24
SPEAKERS = {"role", "from"}


@dataclass(frozen=True)
class Bar:
    """Of a histogram: how many examples are from low up to but without high long. height: 0 to 1."""

    low: int
    high: int
    count: int
    height: float


@dataclass(frozen=True)
class Lengths:
    """How long examples are. ordered: each one's length, shortest first. context: what fits into the model."""

    unit: Literal["characters", "tokens"]
    bars: list[Bar]
    ordered: list[int]
    context: int | None = None

    def up_to(self, share: float) -> int:
        """What so many of the examples have at most."""
        return self.ordered[max(0, math.ceil(share * len(self.ordered)) - 1)]


@router.get("", response_model=None)
def show(request: Request, account: AccountDep, resources: ResourcesDep, after: After = None) -> Response:
    """The project's datasets, newest first, and where to drop another."""
    with resources.database.session() as session, errors.unknown_cursor():
        page = datasets.listed(session, account, purpose="fine-tune", after=after)
    samples = sorted(path.name for path in SAMPLES.glob("*.train.jsonl"))
    return render(
        request,
        "data.html",
        page=page,
        samples=samples,
        max_bytes=resources.settings.max_upload_bytes,
        is_first=not after,
    )


@router.get("/samples/{name}", response_model=None)
def sample(name: str) -> Response:
    """A dataset that comes with the service, for a first try."""
    if name not in {path.name for path in SAMPLES.glob("*.jsonl")}:
        raise errors.not_found("There is no such sample.")
    return Response((SAMPLES / name).read_bytes(), media_type="application/x-ndjson")


@router.get("/{file_id}", response_model=None)
def one(request: Request, file: OwnedFile, resources: ResourcesDep) -> Response:
    """One dataset: what it is, how long its examples are, what its first rows become."""
    lengths = list(_lengths(resources, file)) if file.purpose == "fine-tune" else []
    return render(
        request,
        "file.html",
        file=file,
        lengths=Lengths("characters", histogram(lengths), sorted(lengths)),
        base_models=list(resources.settings.base_models),
    )


@router.get("/{file_id}/lengths", response_model=None)
async def lengths(
    request: Request, file: OwnedFile, resources: ResourcesDep, model: Annotated[str, Query(max_length=255)]
) -> Response:
    """The part of that page that only an engine knows: how long the examples are in tokens. 204 where none can tell."""
    if file.purpose != "fine-tune" or model not in resources.settings.base_models:
        raise errors.not_found("There is no such page.")
    found = await resources.engines.measure(MeasureSpec(base_model=model, file_sha256=file.blob_sha256, first=MEASURED))
    if not found or not found.get("lengths"):
        return Response(status_code=204)
    told = found["lengths"]
    drawn = Lengths("tokens", histogram(told), sorted(told), context=found.get("context"))
    return await run_sync(partial(render, request, "lengths.html", lengths=drawn))


def histogram(lengths: list[int]) -> list[Bar]:
    """At most BARS bars of one width from the shortest to the longest."""
    if not lengths:
        return []
    low, high = min(lengths), max(lengths) + 1
    width = max(1, -(-(high - low) // BARS))
    counts = [0] * -(-(high - low) // width)
    for length in lengths:
        counts[(length - low) // width] += 1
    most = max(counts)
    return [Bar(low + n * width, low + (n + 1) * width, count, count / most) for n, count in enumerate(counts)]


def _lengths(resources: Resources, file: File) -> Iterator[int]:
    """Characters of each of the first examples, all of its turns together."""
    resources.upload_dir.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=resources.upload_dir) as folder:
        path = resources.blobs.fetch(file.blob_sha256, Path(folder) / "dataset")
        for line in islice(formats.Reading(path), MEASURED):
            if line.format is not None:
                yield _characters(line.value)


def _characters(value: object) -> int:
    """Of what a record says; the names of who says it do not count."""
    match value:
        case str():
            return len(value)
        case list():
            return sum(_characters(part) for part in value)
        case dict():
            return sum(_characters(part) for name, part in value.items() if name not in SPEAKERS)
    return 0
