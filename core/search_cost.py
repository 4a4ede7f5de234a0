"""What the search of a learning rate adds to a run, before either begins: tokens, and the memory of its candidates.

A candidate's rows are taken to be as long as the training file's are on average.
"""

import math

from core.specs.estimate import Amount, SearchCost
from core.specs.rate_search import work
from core.specs.training import TrainSpec


def runs_at_once(spec: TrainSpec) -> int:
    """How many adapters with their gradients and moments are in memory at the peak."""
    return len(spec.rate_search.rates) if spec.rate_search is not None and spec.is_searching else 1


def cost_of(spec: TrainSpec, amount: Amount, run_s: float) -> SearchCost | None:
    """None where nothing is searched. run_s: seconds of the run's own learning."""
    search = spec.rate_search
    if search is None or not spec.is_searching:
        return None
    per_row = amount.tokens / max(amount.n_examples, 1)
    learned = round(search.steps * spec.batch_size * per_row)
    judged = round(search.judgements * min(search.judged_rows, amount.n_examples) * per_row)
    share = work(learned, judged) / max(amount.tokens * spec.n_epochs, 1)
    return SearchCost(
        candidates=len(search.rates),
        steps=search.steps,
        tokens=learned,
        judged_tokens=judged,
        share=share,
        seconds=round(share * run_s, 1),
    )


def with_candidates(spec: TrainSpec, amount: Amount) -> Amount:
    """The largest micro-batch where all candidates' rows of a step go forward together, as many as a forward takes."""
    largest = amount.largest
    budget = spec.tokens_per_batch / spec.method.members / (2 if spec.dpo else 1)
    times = min(runs_at_once(spec), max(1.0, budget / max(largest.tokens, 1)))
    grown = {name: math.ceil(times * getattr(largest, name)) for name in ("tokens", "learned", "squares")}
    return amount.model_copy(update={"largest": largest.model_copy(update=grown)})
