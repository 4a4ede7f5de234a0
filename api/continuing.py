"""A job that goes on from a model of the project: which one, and by which method."""

from pydantic import TypeAdapter

from api import errors
from api.job_request import JobRequest
from api.resources import Resources
from core.records import adapters
from core.records.accounts import Account
from core.records.adapters import Model
from core.records.tables import Job
from core.specs.continuing import continued, kind_left_by, must_continue
from core.specs.method import MethodSpec

METHOD: TypeAdapter[MethodSpec] = TypeAdapter(MethodSpec)


def source_of(resources: Resources, account: Account, base_model: str, name: str) -> Model:
    """The adapter or checkpoint of this name or id. Raises ClientError 400. Blocking."""
    with resources.database.session() as session:
        found = adapters.resolve(session, account, name, base_models=())
    if found is None:
        raise _refusal("there is no fine-tuned model or checkpoint of this name or id", "model_not_found")
    if found.base_model != base_model:
        raise _refusal(f"it is of {found.base_model}, and this job's model is {base_model}", "other_base_model")
    return found


def method_of(resources: Resources, asked: JobRequest, source: Model) -> MethodSpec:
    """The method that the job says, or, where it says none, the one that made the source. Raises ClientError 400."""
    method = asked.chosen_method() if asked.says_method else _method_that_made(resources, source)
    try:
        must_continue(method, kind_of(resources, source))
    except ValueError as error:
        raise _refusal(str(error), "cannot_continue") from None
    if method.base_precision != source.base_precision:
        raise _refusal(
            f"it was trained on a base in {source.base_precision}, and this job's is in {method.base_precision}: "
            "set base_precision to match",
            "other_base_precision",
        )
    return continued(method)


def kind_of(resources: Resources, source: Model) -> str:
    """The peft_type of an adapter or of a checkpoint. Blocking."""
    return source.peft_type or kind_left_by(_method_that_made(resources, source))


def _method_that_made(resources: Resources, source: Model) -> MethodSpec:
    with resources.database.session() as session:
        job = session.get(Job, source.job_id) if source.job_id else None
    if job is None:
        raise _refusal("no job of ours made it, so its method is not known: say it in peft", "method_unknown")
    return METHOD.validate_python(job.spec["method"])


def _refusal(message: str, code: str) -> errors.ClientError:
    return errors.bad_request(f"continue_from: {message}", param="continue_from", code=code)
