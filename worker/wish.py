"""A wish that an attempt stop, heard by the attempt itself whenever it can. Knows no signal and no pipe."""

import threading
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Wish:
    """That an attempt stop: a wish for every one of its process, or for this one alone. Any thread may utter it."""

    for_all: threading.Event
    for_one: threading.Event = field(default_factory=threading.Event)

    def is_set(self) -> bool:
        """Whether it was uttered."""
        return self.for_all.is_set() or self.for_one.is_set()
