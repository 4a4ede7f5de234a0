"""Finds a run's learning rate: candidates in step on the one frozen base, the worse half dropped after each rung.

All learn from the same rows, each as a run of rungs[-1] steps: its curve is the job's, drawn in so far, so that the
last candidates are judged at the end of it as the job itself will be. They are judged by the loss of rows that none of
them learns from: of the validation file where there is one, else held out of the training file. A function of the spec
and the rows alone: to stop, one stops asking, and whoever begins anew finds the same. Knows no job.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite

from core.data.batches import Corpus, order
from core.happenings import Event, Failed, Skipped, Step
from core.model import RoutedModel
from core.preferences import Pairs
from core.run import Run
from core.score import Score
from core.specs.rate_search import Candidate, FoundRate, RateSearch, kept, work
from core.specs.training import TrainSpec
from core.trainer import evaluate, evaluate_pairs, train

NewRun = Callable[[TrainSpec, Corpus | Pairs], Run]
DRAW = 1 << 31  # an epoch that no run comes to: its order is the draw of the search's rows
HELD_OUT = 4  # at most one row in so many


class NoFiniteRate(ValueError):
    """No candidate had a finite loss. The message is for the customer."""


@dataclass(frozen=True, eq=False)
class _Standing:
    """A candidate that is still in. losses: after each rung; None ends them."""

    rate: float
    run: Run
    losses: list[float | None]

    @property
    def is_out(self) -> bool:
        """Whether its loss was not finite."""
        return bool(self.losses) and self.losses[-1] is None

    @property
    def place(self) -> tuple[float, float]:
        """The lower the better: its last loss, of equals the lower rate."""
        last = self.losses[-1]
        assert last is not None
        return last, self.rate


class Search:
    """Of one run. Go through run() to its end; then found is there, and nothing of a candidate is left.

    new_run: makes a run of another spec on other rows, at step 0. validation: the file's rows, if there is one.
    """

    found: FoundRate

    def __init__(
        self,
        model: RoutedModel,
        spec: TrainSpec,
        new_run: NewRun,
        corpus: Corpus | Pairs,
        validation: Corpus | Pairs | None,
    ) -> None:
        assert spec.rate_search is not None
        self._model, self._spec, self._search, self._new_run = model, spec, spec.rate_search, new_run
        self._is_validated = validation is not None
        self._rows, self._judged = _parts(corpus, validation, spec, self._search)
        self._of_run = _tokens(corpus) * spec.n_epochs
        self._losses: dict[float, list[float | None]] = {rate: [] for rate in self._search.rates}
        self._learned_tokens = self._judged_tokens = 0

    def run(self) -> Iterator[Event | Score]:
        """Yields whatever was just done, so that somebody may look up. Raises NoFiniteRate, and what a run fails of."""
        standing = [_Standing(rate, self._candidate(rate), losses) for rate, losses in self._losses.items()]
        for rung in self._search.rungs:
            yield from self._climb(standing, rung)
            for one in [one for one in standing if not one.is_out]:
                yield from self._judge(one)
            # Whoever is not among these is gone, weights and moments.
            standing = sorted((one for one in standing if not one.is_out), key=lambda one: one.place)
            standing = standing[: kept(len(standing))]
        if not standing:
            low, high = self._search.rates[0], self._search.rates[-1]
            raise NoFiniteRate(
                f"no learning rate from {low:g} to {high:g} gave a finite loss: look at the data, or name a lower one"
            )
        self.found = self._outcome(standing[0].rate)

    def _candidate(self, rate: float) -> Run:
        last = self._search.rungs[-1]
        method, epochs = self._spec.method, -(-last // -(-len(self._rows) // self._spec.batch_size))
        try:
            method.must_fit(last)
        except ValueError:  # AdaLoRA's phases in steps of the whole run: here they take their shares
            method = method.model_copy(update={"tinit": "auto", "tfinal": "auto"})
        changes = {"learning_rate": rate, "n_epochs": epochs, "rate_search": None, "method": method}
        run = self._new_run(self._spec.model_copy(update=changes), self._rows)
        run.total_steps = last
        return run

    def _climb(self, standing: Sequence[_Standing], rung: int) -> Iterator[Event]:
        """Each learns up to the rung; who meets a loss or gradient that is not finite is out."""
        candidates = {one.run: one for one in standing}
        for run in candidates:
            run.is_stopped = False
        for event in train(self._model, list(candidates)):
            match event:
                case Failed(error=error):
                    raise error
                case Skipped(run=run):
                    candidates[run].losses.append(None)
                    run.is_stopped = True
                case Step(run=run):
                    self._learned_tokens += event.tokens
                    run.is_stopped = run.step >= rung
            yield event

    def _judge(self, one: _Standing) -> Iterator[Score]:
        score, run = Score(), one.run
        tokens = run.spec.tokens_per_batch
        if isinstance(self._judged, Pairs):
            assert run.preference is not None
            scores = evaluate_pairs(self._model, run.method, self._judged, run.preference, tokens)
        else:
            scores = evaluate(self._model, run.method, self._judged, tokens)
        for score in scores:
            yield score
        self._judged_tokens += _tokens(self._judged)
        one.losses.append(score.loss if isfinite(score.loss) else None)

    def _outcome(self, rate: float) -> FoundRate:
        return FoundRate(
            rate=rate,
            judged_on="validation_file" if self._is_validated else "held_out_rows",
            judged_rows=len(self._judged),
            candidates=tuple(Candidate(rate=rate, losses=tuple(losses)) for rate, losses in self._losses.items()),
            tokens=self._learned_tokens,
            judged_tokens=self._judged_tokens,
            share=work(self._learned_tokens, self._judged_tokens) / self._of_run,
        )


def _parts(
    corpus: Corpus | Pairs, validation: Corpus | Pairs | None, spec: TrainSpec, search: RateSearch
) -> tuple[Corpus | Pairs, Corpus | Pairs]:
    """The rows that candidates learn from, and those that they are judged by.

    A training file of one row, without a validation file, is judged by that row.
    """
    places = [int(place) for place in order(len(corpus), spec.seed, DRAW)]
    wanted = search.rungs[-1] * spec.batch_size
    if validation is not None:
        judged = [int(place) for place in order(len(validation), spec.seed, DRAW)][: search.judged_rows]
        return _taken(corpus, places[:wanted]), _taken(validation, judged)
    held = max(1, min(search.judged_rows, len(places) // HELD_OUT))
    learned = places[held:] or places
    return _taken(corpus, learned[:wanted]), _taken(corpus, places[:held])


def _taken(corpus: Corpus | Pairs, places: Sequence[int]) -> Corpus | Pairs:
    """These rows alone."""
    if isinstance(corpus, Pairs):
        sides = (Corpus.of(side[place] for place in places) for side in (corpus.chosen, corpus.rejected))
        return Pairs(*sides)
    return Corpus.of(corpus[place] for place in places)


def _tokens(corpus: Corpus | Pairs) -> int:
    """Of all rows, both of each pair."""
    if isinstance(corpus, Pairs):
        return len(corpus.chosen.ids) + len(corpus.rejected.ids)
    return len(corpus.ids)
