"""What an engine's answer comes to: frames, its refusals in the client's terms, or the loss of it."""

from collections.abc import AsyncIterator

import httpx
from pydantic import ValidationError

from api import errors
from core.specs.generation import Frame, FrameError

MAX_FRAME_BYTES = 4 << 20
LONGEST_WAIT_S = 60  # that clients are ever told


class EngineLostError(Exception):
    """The connection broke, or what came over it was no answer. The request may go on elsewhere.

    reason is for the log; error is what the engine itself said, if anything.
    """

    def __init__(self, reason: str, error: FrameError | None = None) -> None:
        super().__init__(reason)
        self.error = error


class EngineAwayError(Exception):
    """It could not even be reached, so it has nothing of the request."""


class EngineBusyError(Exception):
    """It takes no more requests now. wait_s: when it might, as it says itself."""

    def __init__(self, wait_s: int = 2) -> None:
        super().__init__(f"after {wait_s} s perhaps")
        self.wait_s = wait_s


async def lines_of(answer: httpx.Response) -> AsyncIterator[bytes]:
    """Whole lines; what stands behind the last line break was cut off and is dropped."""
    rest = b""
    async for chunk in answer.aiter_bytes():
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) > MAX_FRAME_BYTES:
            raise EngineLostError("a frame without end")
        for line in whole:
            if line.strip():
                yield line


def frame_of(line: bytes, expected: int) -> Frame:
    """The frame of one line, the one that is due. Raises one of the errors above, or the ClientError of a refusal."""
    try:
        frame = Frame.model_validate_json(line)
    except ValidationError as error:
        raise EngineLostError("a line that is no frame") from error
    if frame.seq != expected:
        raise EngineLostError(f"frame {frame.seq} where {expected} was due")
    if frame.error and frame.error.code == "engine_overloaded":
        raise EngineBusyError
    if frame.error and frame.error.retryable:
        raise EngineLostError(frame.error.code, frame.error)
    if frame.error:
        raise refused(frame.error)
    return frame


def refused(error: FrameError, status: int = 400) -> errors.ClientError:
    """An engine's no, in the client's terms: about a field where it names one, else our failure."""
    if error.code == "deadline_exceeded":
        return errors.too_late(error.message)
    if error.param is not None or error.code == "context_length_exceeded":
        return errors.bad_request(error.message, param=error.param, code=error.code)
    if 400 <= status < 500 and error.code == "invalid_request":  # noqa: PLR2004
        return errors.bad_request(error.message, code=error.code)
    return errors.server_error(error.message, code=error.code)


def refusal_of(status: int, body: bytes, retry_after: str | None = None) -> Exception:
    """What an answer that is not 200 comes to."""
    if status == httpx.codes.SERVICE_UNAVAILABLE:
        return EngineBusyError(min(LONGEST_WAIT_S, int(retry_after)) if retry_after and retry_after.isdecimal() else 2)
    if status >= 500 or status in (401, 404):  # noqa: PLR2004
        return EngineLostError(f"status {status}")
    try:
        content = httpx.Response(status, content=body).json()["error"]
        known = {name: content.get(name) for name in ("code", "message", "param") if content.get(name) is not None}
        return refused(FrameError.model_validate(known), status)
    except (ValueError, KeyError, TypeError, AttributeError):
        return EngineLostError(f"status {status} without a reason")
