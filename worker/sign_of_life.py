"""Says of long work, every few seconds, that it is going on: a supervisor takes who is silent for hung.

Where nothing of the work can be kept, it also hears a wish to stop.
"""

import time
from collections.abc import Callable

from core.specs.assignment import Phase, PhaseReport, Report
from worker.reasons import Drained
from worker.wish import Wish

SIGN_OF_LIFE_S = 10.0


class SignOfLife:
    """Of work of one phase, which calls it after every small part of it."""

    def __init__(
        self, say: Callable[[Report], None], phase: Phase, *, is_said: bool = False, wish: Wish | None = None
    ) -> None:
        """is_said: the phase was just said, so that the first call need not. wish: that ends the work."""
        self._say, self._phase, self._wish = say, phase, wish
        self._due_at = time.monotonic() + (SIGN_OF_LIFE_S if is_said else 0.0)

    def __call__(self) -> None:
        """That a part is done. Raises Drained where the work is to end."""
        if self._wish is not None and self._wish.is_set():
            raise Drained
        if time.monotonic() >= self._due_at:
            self._say(PhaseReport(phase=self._phase))
            self._due_at = time.monotonic() + SIGN_OF_LIFE_S
