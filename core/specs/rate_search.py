"""A learning rate that is found and not guessed: which are tried, for how long, and what was found.

Successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943): all candidates learn from the same rows; after each
rung the worse half goes.
"""

from typing import Literal

from pydantic import Field

from core.specs.spec import Spec

RATE_BOUNDS = (1e-7, 10.0)
AROUND = range(-3, 4)  # powers of two about the method's own rate: an eighth of it to eight times
SHARE = 5  # the last candidates learn for one in so many of the run's steps,
FEWEST_STEPS, MOST_STEPS = 8, 64  # within these
FEWEST_JUDGED, MOST_JUDGED = 8, 64


class Candidate(Spec):
    """One rate, and its loss after each rung that it came to; None where it was not finite, and its last then."""

    rate: float
    losses: tuple[float | None, ...]


class FoundRate(Spec):
    """What a search came to. It is a function of the job's values and files: no time is in it."""

    rate: float
    judged_on: Literal["validation_file", "held_out_rows"]
    judged_rows: int
    candidates: tuple[Candidate, ...]
    tokens: int = Field(description="That the candidates learned from, all together.")
    judged_tokens: int = Field(description="That went forward alone, to judge them.")
    share: float = Field(description="Of the run's own work; a token that only goes forward is a third of one learned.")


class RateSearch(Spec):
    """Of a job that asked for one."""

    rates: tuple[float, ...] = Field(min_length=1, max_length=16, description="Tried, the lowest first.")
    rungs: tuple[int, ...] = Field(min_length=1, description="Steps after which the worse half goes.")
    judged_rows: int = Field(ge=1, description="At most: of the validation file, or held out of the training file.")
    found: FoundRate | None = Field(None, description="None until it was found.")

    @property
    def turns(self) -> tuple[tuple[int, int], ...]:
        """For each rung: how many candidates come to it, and the steps that each makes on the way."""
        standing, reached, turns = len(self.rates), 0, []
        for rung in self.rungs:
            turns.append((standing, rung - reached))
            standing, reached = kept(standing), rung
        return tuple(turns)

    @property
    def steps(self) -> int:
        """Of all candidates together."""
        return sum(standing * steps for standing, steps in self.turns)

    @property
    def judgements(self) -> int:
        """How often the judged rows go forward."""
        return sum(standing for standing, _ in self.turns)


def kept(standing: int) -> int:
    """How many of so many candidates go on."""
    return -(-standing // 2)


def work(learned: int, judged: int) -> float:
    """In tokens that are learned: one that goes forward alone is about a third of one."""
    return learned + judged / 3


def search_around(rate: float, *, steps: int, batch_size: int) -> RateSearch:
    """What is tried for a run of so many steps at about this rate."""
    low, high = RATE_BOUNDS
    rates = sorted({min(high, max(low, rate * 2.0**power)) for power in AROUND})
    last = min(MOST_STEPS, max(FEWEST_STEPS, -(-steps // SHARE)))
    judged = min(MOST_JUDGED, max(FEWEST_JUDGED, last * batch_size // 2))
    return RateSearch(rates=tuple(rates), rungs=(last // 4, last // 2, last), judged_rows=judged)
