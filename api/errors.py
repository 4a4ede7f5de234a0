"""Every error a client can meet, in one JSON shape: {"error": {"message", "type", "param", "code", …}}.

Messages say what was expected. Of what was sent they repeat only names and ids, short and printable: never a prompt.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request

from core.data.json_lines import name
from core.records.adapters import Aliased
from core.records.pages import UnknownCursor

log = structlog.get_logger()

MAX_DETAILS = 20
_NO_RETRY = {"x-should-retry": "false"}
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 409: "conflict_error"}


class ClientError(HTTPException):
    """An answer that is not the one asked for. extra stands beside the four fields of the error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.error = {"message": message, "type": kind, "param": param, "code": code, **(extra or {})}

    def response(self) -> JSONResponse:
        """What goes over the wire."""
        return JSONResponse({"error": self.error}, self.status_code, self.headers)


def bad_request(message: str, *, param: str | None = None, code: str | None = None, **extra: object) -> ClientError:
    """400: the request as it stands can never succeed."""
    return ClientError(400, message, param=param, code=code, extra=extra)


def unauthorized(message: str) -> ClientError:
    """401, the same words for a key that never was, was revoked or has expired."""
    return ClientError(
        401,
        message,
        kind="authentication_error",
        code="invalid_api_key",
        headers={"www-authenticate": "Bearer"},
    )


def not_found(message: str, *, param: str | None = None, code: str | None = None) -> ClientError:
    """404, for what does not exist and for what belongs to others alike."""
    return ClientError(404, message, param=param, code=code)


def model_not_found(model: str) -> ClientError:
    """404 for a model's name, in OpenAI's words."""
    message = f"The model '{name(model)}' does not exist or you do not have access to it."
    return not_found(message, param="model", code="model_not_found")


def adapter_not_found(adapter: str) -> ClientError:
    """404 for an adapter's id or name."""
    return not_found(f"No such adapter: {name(adapter)}", param="id", code="adapter_not_found")


def forbidden(message: str, *, param: str | None = None) -> ClientError:
    """403: known, and yet not allowed to this key, or to any."""
    return ClientError(403, message, kind="permission_error", param=param, code="forbidden")


def job_not_found(job_id: str) -> ClientError:
    """404 for a job's id, in OpenAI's words."""
    return not_found(f"Could not find fine tune: {name(job_id)}", param="fine_tune_id", code="fine_tune_not_found")


def file_not_found(file_id: str) -> ClientError:
    """404 for a file's id, in OpenAI's words."""
    return not_found(f"No such File object: {name(file_id)}", param="id", code="file_not_found")


@contextmanager
def aliased() -> Iterator[None]:
    """Within it, deleting what an alias means becomes a 409."""
    try:
        yield
    except Aliased as error:
        raise conflict(str(error), code="model_has_alias") from None


@contextmanager
def unknown_cursor() -> Iterator[None]:
    """Within it, a page that is to begin behind a row which is not there becomes a 400."""
    try:
        yield
    except UnknownCursor:
        raise bad_request("after: there is nothing of that id here", param="after", code="invalid_value") from None


def conflict(message: str, *, code: str) -> ClientError:
    """409 that a retry cannot mend: the stock client is told not to try."""
    return ClientError(409, message, kind="conflict_error", code=code, headers=_NO_RETRY)


def idempotency_mismatch() -> ClientError:
    """422: one name for two different writes."""
    return ClientError(
        422,
        "This Idempotency-Key was used for another request: take a new one.",
        param="Idempotency-Key",
        code="idempotency_mismatch",
        headers=_NO_RETRY,
    )


def too_large(limit_bytes: int) -> ClientError:
    """413, as soon as one byte too many has come."""
    return ClientError(
        413,
        f"The request's body exceeds {limit_bytes} bytes.",
        code="request_too_large",
        headers={**_NO_RETRY, "connection": "close"},
    )


def rate_limited(wait_s: float) -> ClientError:
    """429: the same request will do after wait_s seconds."""
    return ClientError(
        429,
        f"Too many requests: try again in {wait_s:.1f} s.",
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        headers={"retry-after": str(max(1, round(wait_s)))},
    )


def overloaded(message: str, *, code: str = "engine_overloaded", wait_s: int = 2) -> ClientError:
    """503: nothing is wrong with the request."""
    return ClientError(503, message, kind="server_error", code=code, headers={"retry-after": str(wait_s)})


def too_late(message: str) -> ClientError:
    """504: the answer was not whole within the time that an answer may take."""
    return ClientError(504, message, kind="server_error", code="deadline_exceeded", headers=_NO_RETRY)


def engine_failed(message: str | None, code: str | None) -> ClientError:
    """502: engines took the request, and all of them failed at it."""
    return ClientError(
        502,
        message or "The engines failed at this request.",
        kind="server_error",
        code=code or "engine_failed",
        headers=_NO_RETRY,
    )


def server_error(message: str, *, code: str = "internal_error", is_final: bool = True) -> ClientError:
    """500; is_final where the same request would fail again."""
    return ClientError(500, message, kind="server_error", code=code, headers=_NO_RETRY if is_final else {})


def of_validation(problems: Sequence[Any], body: object) -> ClientError:
    """What pydantic found, as one 400: param is the dotted path of the first faulty field, details hold them all."""
    found: dict[str | None, str] = {}
    codes: dict[str | None, str] = {}
    for problem in problems:
        param = _param(problem, body)
        words = _words(problem)
        if param in found and words not in found[param]:
            words = f"{found[param]}; or: {words}"
        found[param] = words
        codes.setdefault(param, _code(problem))
    details = [
        {"param": param, "message": words, "code": codes[param]}
        for param, words in found.items()
        # Of a union's members the one that came further was meant.
        if not any(other and other.startswith(f"{param}.") for other in found)
    ]
    first = details[0]
    where = f"{first['param']}: " if first["param"] else ""
    return bad_request(
        f"{where}{first['message']}", param=first["param"], code=first["code"], details=details[:MAX_DETAILS]
    )


def install(app: FastAPI) -> None:
    """Replaces the framework's own handlers, which echo what was sent."""
    app.add_exception_handler(ClientError, _client_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(RequestValidationError, _validation_error)


async def _client_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ClientError)
    return error.response()


async def _http_exception(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    status = error.status_code
    messages = {404: "There is no such path here.", 405: "This path does not take that method."}
    message = messages.get(status, "The request could not be read.")
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")  # noqa: PLR2004
    return ClientError(status, message, kind=kind, headers=error.headers).response()


async def _validation_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return of_validation(error.errors(), error.body).response()


def _param(problem: Mapping[str, Any], body: object) -> str | None:
    """The path of a faulty field as the client wrote it: the names of a union's members are no part of it."""
    if problem["type"] == "unsupported_parameter":
        return str(problem["ctx"]["field"])
    source, *steps = problem["loc"]
    if source != "body":
        return name(str(steps[0] if steps else source))
    here, path = body, list[str]()
    for step in steps:
        if (isinstance(here, dict) and step in here) or (isinstance(here, list) and step in range(len(here))):
            here = here[step]
        elif not (problem["type"] == "missing" and step is steps[-1]):
            continue
        path.append(name(str(step)))
    if problem["type"] == "union_tag_invalid":
        path.append(str(problem["ctx"]["discriminator"]).strip("'"))
    return ".".join(path) or None


def _words(problem: Mapping[str, Any]) -> str:
    context = problem.get("ctx", {})
    match problem["type"]:
        case "union_tag_invalid":
            return f"must be one of {context['expected_tags']}"
        case "missing":
            return "this field is required"
        case "extra_forbidden":
            return "this field is not known here"
        case "value_error":
            return str(context.get("error", problem["msg"]))
        case "model_attributes_type" | "model_type" | "dict_type":
            return "must be a JSON object"
    words: str = problem["msg"]
    return words.replace("Input should be", "must be").replace("String should", "must").replace("Tuple should", "must")


def _code(problem: Mapping[str, Any]) -> str:
    codes = {
        "missing": "missing_required_parameter",
        "extra_forbidden": "unknown_parameter",
        "unsupported_parameter": "unsupported_parameter",
    }
    return codes.get(problem["type"], "invalid_value")
