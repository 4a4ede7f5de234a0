"""What the front end writes down: one JSON object a line, events and ids.

Of an error it writes the kind and the place, never the message: that may quote a prompt or a key.
"""

import sys
import traceback

import structlog
from structlog.typing import EventDict


def configure() -> None:
    """For the whole process, once, at its start."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            without_words,
            structlog.processors.JSONRenderer(),
        ]
    )


def without_words(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Turns exc_info into the kinds of the error and of its causes, and the calls that led to it, innermost last."""
    given = event.pop("exc_info", None)
    error = given if isinstance(given, BaseException) else sys.exc_info()[1] if given else None
    if error is not None:
        event["error"] = kinds(error)
        frames = traceback.extract_tb(error.__traceback__)
        event["calls"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    return event


def kinds(error: BaseException) -> list[str]:
    """The names of an error's class and those of what it groups or was raised from."""
    found = [type(error).__name__]
    inner = [*error.exceptions] if isinstance(error, BaseExceptionGroup) else []
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    for one in [*inner, *([cause] if cause else [])]:
        found += kinds(one)
    return found
