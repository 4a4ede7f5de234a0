"""How an attempt ends: an exit code, and where it failed for good, a report that the customer may read."""

import threading
import traceback
from collections.abc import Callable

import torch

from core.base.catalogue import UnusableBaseModel
from core.settings import Settings
from core.specs.assignment import (
    DRAINED,
    NOT_FINITE,
    OUT_OF_MEMORY,
    USER_ERROR,
    Assignment,
    FailedReport,
    Report,
)
from worker.attempt import Attempt, Diverged, Drained, UnusableMethodError
from worker.reading import UnusableFileError


def outcome(assignment: Assignment, *, say: Callable[[Report], None], drain: threading.Event) -> int:
    """Runs the assignment to its end or to the wish to stop, and returns the exit code. What it raises is a crash."""
    try:
        return Attempt(assignment, Settings(), say, drain).go()
    except Drained:
        return DRAINED
    except Diverged as error:
        say(FailedReport(code="diverged", message=str(error)))
        return NOT_FINITE
    except (UnusableFileError, UnusableMethodError, UnusableBaseModel) as error:
        say(_refusal(error, assignment))
        return USER_ERROR
    except (MemoryError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        traceback.print_exc()
        return OUT_OF_MEMORY


def _refusal(
    error: UnusableFileError | UnusableMethodError | UnusableBaseModel, assignment: Assignment
) -> FailedReport:
    match error:
        case UnusableFileError():
            return FailedReport(code=error.code, message=str(error), param=error.param, details=error.details)
        case UnusableMethodError():
            return FailedReport(code="invalid_method", message=str(error), param="method")
        case UnusableBaseModel():
            traceback.print_exception(error)  # names paths, which are the administrator's business alone
            message = f"the base model {assignment.base.id} cannot be opened on this machine"
            return FailedReport(code="base_model_unusable", message=message, param="model")


def _is_lack_of_memory(error: Exception) -> bool:
    # On a CPU torch raises a plain RuntimeError, told from others by its words alone.
    is_refused_on_cpu = "DefaultCPUAllocator: can't allocate" in str(error)
    return is_refused_on_cpu or isinstance(error, MemoryError | torch.OutOfMemoryError)
