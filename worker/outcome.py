"""How an attempt ends: an exit code, and where it failed for good, a report that the customer may read."""

import traceback
from collections.abc import Callable

from core.base.catalogue import UnusableBaseModel
from core.shortage import is_lack_of_memory
from core.specs.assignment import (
    CRASHED,
    DRAINED,
    NOT_FINITE,
    USER_ERROR,
    Assignment,
    FailedReport,
    Report,
)
from worker.reading import UnusableFileError
from worker.reasons import Diverged, Drained, UnusableMethodError


def code_of(act: Callable[[], int | None], assignment: Assignment, say: Callable[[Report], None]) -> int | None:
    """What a part of an attempt comes to: an exit code that ends it, or None. A lack of memory passes: it is shared."""
    try:
        return act()
    except Drained:
        return DRAINED
    except Diverged as error:
        say(FailedReport(code="diverged", message=str(error)))
        return NOT_FINITE
    except (UnusableFileError, UnusableMethodError, UnusableBaseModel) as error:
        say(_refusal(error, assignment))
        return USER_ERROR
    except Exception as error:
        if is_lack_of_memory(error):
            raise
        traceback.print_exc()
        return CRASHED


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
