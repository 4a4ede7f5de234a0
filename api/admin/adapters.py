"""/admin/adapters: what was made, the versions of one suffix together; and one of them looked into."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from api import errors
from api.adapter_answers import shapes_of
from api.admin.door import Page
from api.admin.lineage_drawing import drawn
from api.admin.render import render
from api.deps import AccountDep, After, Id, ResourcesDep
from core.records import adapters, aliases, families, jobs
from core.records.lineage import lineage
from core.records.pages import Page as Rows

router = APIRouter(prefix="/admin", route_class=Page, include_in_schema=False)

CHECKPOINTS = 10
VERSIONS = 50


@router.get("/adapters", response_model=None)
def show(request: Request, account: AccountDep, resources: ResourcesDep, after: After = None) -> Response:
    """The project's adapters by family, the newest first."""
    with resources.database.session() as session, errors.unknown_cursor():
        heads = families.listed(session, account, after=after)
        found = families.of_heads(session, account, heads.rows)
        rows = [row for family in found for row in family.versions]
        shapes = {shape["id"]: shape for shape in shapes_of(session, account, Rows(rows, has_more=False))["data"]}
    bases = list(resources.settings.base_models)
    return render(
        request, "adapters.html", page=heads, families=found, shapes=shapes, base_models=bases, is_first=not after
    )


@router.get("/adapters/{adapter_id}", response_model=None)
def one(request: Request, adapter_id: Id, account: AccountDep, resources: ResourcesDep) -> Response:
    """One adapter: its file, its versions and aliases, its origin, how good it is, and where it is resident."""
    with resources.database.session() as session:
        adapter = adapters.find(session, account, adapter_id)
        if adapter is None:
            raise errors.adapter_not_found(adapter_id)
        job = jobs.find(session, account, adapter.job_id) if adapter.job_id else None
        checkpoints = jobs.checkpoints(session, account, job.id, limit=CHECKPOINTS).rows if job else []
        family = adapter.family
        kin = aliases.versions(session, account, family, limit=VERSIONS) if family else Rows([adapter], has_more=False)
        shapes = {shape["id"]: shape for shape in shapes_of(session, account, kin)["data"]}
        shapes |= {adapter.id: shapes_of(session, account, Rows([adapter], has_more=False))["data"][0]}
        named = aliases.of_family(session, account, family) if family else {}
        drawing = drawn(lineage(session, account, adapter))
    return render(
        request,
        "adapter.html",
        adapter=adapter,
        shape=shapes[adapter.id],
        job=job,
        checkpoints=checkpoints,
        kin=kin.rows,
        shapes=shapes,
        named=named,
        drawing=drawing,
    )
