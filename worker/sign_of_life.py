"""Says of long work, every few seconds, that it is going on: a supervisor takes who is silent for hung.

It also hears a wish to stop.
"""

import time
from collections.abc import Callable
from typing import NoReturn

from core.specs.assignment import Phase, PhaseReport, Report
from worker.reasons import Drained
from worker.wish import Wish

SIGN_OF_LIFE_S = 10.0


def _drained() -> NoReturn:
    """Where nothing of the work can be kept."""
    raise Drained


class SignOfLife:
    """Of work of one phase, which calls it after every small part of it."""

    def __init__(
        self,
        say: Callable[[Report], None],
        phase: Phase,
        *,
        is_said: bool = False,
        wish: Wish | None = None,
        stop: Callable[[], NoReturn] = _drained,
    ) -> None:
        """is_said: the phase was just said, so that the first call need not. wish: on which it calls stop."""
        self._say, self._phase, self._wish, self._stop = say, phase, wish, stop
        self._due_at = time.monotonic() + (SIGN_OF_LIFE_S if is_said else 0.0)

    def __call__(self) -> None:
        """That a part is done."""
        if time.monotonic() >= self._due_at:
            self._say(PhaseReport(phase=self._phase))
            self._due_at = time.monotonic() + SIGN_OF_LIFE_S
        if self._wish is not None and self._wish.is_set():
            self._stop()
