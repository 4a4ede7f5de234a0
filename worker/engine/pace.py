"""How fast rows end, and so how long one more might wait. Knows no clock: the time is told to it."""

SHORTEST_S, LONGEST_S = 1.0, 30.0  # of a wait that is worth saying
MEMORY = 0.9  # of what was seen before, when one more row ends


class Pace:
    """The seconds between the ends of rows while there is work, the latest weighing most."""

    def __init__(self) -> None:
        self._between_s: float | None = None
        self._ended_at: float | None = None

    def ended(self, now: float) -> None:
        """A row ended now."""
        if self._ended_at is not None:
            since = now - self._ended_at
            known = self._between_s
            self._between_s = since if known is None else MEMORY * known + (1 - MEMORY) * since
        self._ended_at = now

    def rest(self) -> None:
        """There is no work: the time to the next end says nothing."""
        self._ended_at = None

    def wait_s(self, waiting: int) -> float:
        """How long so many rows take to find places, within SHORTEST_S and LONGEST_S."""
        return min(LONGEST_S, max(SHORTEST_S, (waiting + 1) * (self._between_s or 0.0)))
