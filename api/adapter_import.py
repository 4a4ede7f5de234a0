"""A stranger's adapter on its way in: uploaded, read by an engine of its base model, registered. No row before that."""

import secrets
from typing import Annotated, Literal, Self

from anyio.to_thread import run_sync
from pydantic import BeforeValidator, Field, ValidationError, model_validator
from starlette.requests import Request

from api import errors
from api.job_request import Suffix
from api.multipart import read_form
from api.resources import Resources
from core.blobs import Blob
from core.records import adapters
from core.records.scope import Account
from core.records.tables import Adapter
from core.specs.inspection import Inspected, InspectSpec, MergedLinearSpec, Part
from core.specs.method import Alpha, BasePrecision, Rank
from core.specs.spec import Spec

FORM_BYTES = 64 << 10  # what a form may weigh beside its file


def _parts(text: object) -> object:
    """The letters of "v, q", each once, as c_attn has them; what is none is left for the bounds to refuse."""
    letters = set(str(text).replace(" ", "").split(","))
    return tuple(sorted(letters, key=lambda letter: ("qkv".find(letter), letter)))


class ImportRequest(Spec):
    """The form's fields beside its file. r, alpha and enable are what a loralib file does not say of itself."""

    model: str = Field(max_length=64)
    suffix: Suffix | None = None
    base_precision: BasePrecision = "bf16"
    format: Literal["peft", "loralib"] = "peft"
    r: Rank | None = None
    alpha: Alpha | None = None
    enable: Annotated[tuple[Part, ...], BeforeValidator(_parts)] | None = None

    @model_validator(mode="after")
    def _told_what_is_needed(self) -> Self:
        if self.format == "peft" and (self.r, self.alpha, self.enable) != (None, None, None):
            raise ValueError("r, alpha and enable go with the format loralib: a peft adapter says them itself")
        if self.format == "loralib" and (self.r is None or self.alpha is None):
            raise ValueError("a loralib file does not say its r and alpha: give both, and enable unless it is q,v")
        return self

    @property
    def merged_linear(self) -> MergedLinearSpec | None:
        """Of a loralib file."""
        if self.r is None or self.alpha is None:
            return None
        return MergedLinearSpec(r=self.r, alpha=self.alpha, enable=self.enable or ("q", "v"))


async def imported(request: Request, account: Account, resources: Resources) -> Adapter:
    """The new adapter. Raises ClientError, with no row written, for whatever is wrong with form or file."""
    wanted, upload = await _uploaded(request, resources)
    spec = InspectSpec(
        base_model=wanted.model,
        file_sha256=upload.sha256,
        format=wanted.format,
        base_precision=wanted.base_precision,
        merged_linear=wanted.merged_linear,
    )
    found = await resources.engines.inspect(spec)
    return await run_sync(_registered, resources, account, wanted, found)


async def _uploaded(request: Request, resources: Resources) -> tuple[ImportRequest, Blob]:
    path, limit = resources.upload_dir / secrets.token_hex(16), resources.settings.max_upload_bytes
    await run_sync(lambda: path.parent.mkdir(parents=True, exist_ok=True))
    try:
        with await run_sync(path.open, "xb") as target:
            form = await read_form(request, target, max_bytes=limit + FORM_BYTES)
        if form.size_bytes > limit:
            raise errors.too_large(limit)
        try:
            wanted = ImportRequest.model_validate(form.fields)
        except ValidationError as error:
            raise _of_form(error, form.fields) from None
        if wanted.model not in resources.settings.base_models:
            raise errors.model_not_found(wanted.model)
        return wanted, await run_sync(resources.blobs.put, path)
    finally:
        await run_sync(lambda: path.unlink(missing_ok=True))


def _of_form(error: ValidationError, fields: object) -> errors.ClientError:
    problems = error.errors(include_url=False)
    return errors.of_validation([{**problem, "loc": ("body", *problem["loc"])} for problem in problems], fields)


def _registered(resources: Resources, account: Account, wanted: ImportRequest, found: Inspected) -> Adapter:
    with resources.database.writing() as session:
        return adapters.register(
            session,
            account,
            base_model=wanted.model,
            suffix=wanted.suffix,
            blob=Blob(found.sha256, found.size_bytes),
            peft_type=found.peft_type,
            details=found.details,
        )
