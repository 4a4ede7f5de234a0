"""How often a project may ask: a bucket of requests that refills at an even pace. Knows no HTTP.

One process counts for itself; with several API processes a project may ask that many times as often.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

MAX_BUCKETS = 10_000


@dataclass(frozen=True)
class Allowance:
    """What is left after one request. wait_s is 0 where it may go ahead; reset_s until the bucket is full again."""

    limit: int
    remaining: int
    reset_s: float
    wait_s: float

    def headers(self) -> dict[str, str]:
        """As OpenAI names them, and as the IETF's draft does."""
        return {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": f"{self.reset_s:.3f}s",
            "ratelimit-policy": f'"requests";q={self.limit};w=60',
            "ratelimit": f'"requests";r={self.remaining};t={round(self.reset_s)}',
        }


class RateLimiter:
    """Token buckets, one a project. The least lately used are forgotten, which only gives their owners a full one.

    per_minute: or in whatever other window_s is given.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic, *, window_s: float = 60) -> None:
        self.per_minute = per_minute
        self._window_s = window_s
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # owner -> (tokens, when counted)

    def take(self, owner: str) -> Allowance:
        """Takes one request out of the owner's bucket, if one is there."""
        pace = self.per_minute / self._window_s  # tokens a second
        now = self._clock()
        tokens, counted_at = self._buckets.pop(owner, (float(self.per_minute), now))
        tokens = min(self.per_minute, tokens + (now - counted_at) * pace)
        may_go = tokens >= 1
        tokens -= may_go
        self._buckets[owner] = (tokens, now)
        if len(self._buckets) > MAX_BUCKETS:
            self._buckets.popitem(last=False)
        return Allowance(
            limit=self.per_minute,
            remaining=int(tokens),
            reset_s=(self.per_minute - tokens) / pace,
            wait_s=0.0 if may_go else (1 - tokens) / pace,
        )

    def give_back(self, owner: str) -> None:
        """One request of the owner's is not to count."""
        if owner in self._buckets:
            tokens, counted_at = self._buckets[owner]
            self._buckets[owner] = (min(self.per_minute, tokens + 1), counted_at)
