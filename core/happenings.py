"""What a trainer tells of each run after each turn: plain values, for whoever listens."""

from dataclasses import dataclass

from core.run import Run


@dataclass(frozen=True, eq=False)
class Step:
    """One optimiser step of one run, done. number counts from 1 up to of."""

    run: Run
    number: int
    of: int
    loss: float  # nats for each learned token; of DPO, for each pair
    accuracy: float  # share of learned tokens that were the most likely ones; of DPO, of pairs with a positive margin
    learning_rate: float
    grad_norm: float  # before clipping
    tokens: int  # learned and unlearned
    seconds: float  # of all its turns, whole
    reward_margin: float | None = None  # of DPO: the mean of its pairs


@dataclass(frozen=True, eq=False)
class Skipped:
    """One step of one run whose loss or gradient was not finite: nothing was learned, the run goes on."""

    run: Run
    number: int
    in_a_row: int


@dataclass(frozen=True, eq=False)
class Failed:
    """One run's own end: it takes no further turn, the others go on."""

    run: Run
    error: Exception


@dataclass(frozen=True, eq=False)
class Cramped:
    """Memory was not enough for a turn, which begins anew in smaller parts. What a step learns stays the same."""

    run: Run
    number: int  # steps done
    tokens_per_batch: int  # of its spec from now on


Event = Step | Skipped | Failed | Cramped
