"""A validation file, and what a run's effect of now makes of it: of examples, or of pairs. Tells nobody."""

from collections.abc import Callable, Iterator

from core.base.load import OpenBase
from core.data.batches import Corpus
from core.model import RoutedModel
from core.preferences import Pairs
from core.run import Run
from core.score import Score
from core.specs.assignment import Sample
from core.trainer import evaluate, evaluate_pairs
from worker.quiz import Quiz


class Validation:
    """Of one file. Of pairs the preferred answers are those that samples are held against."""

    def __init__(self, corpus: Corpus | Pairs, base: OpenBase) -> None:
        self.corpus = corpus
        self._quiz = Quiz(corpus.chosen, base)

    def scores(self, model: RoutedModel, run: Run) -> Iterator[Score]:
        """Of all rows so far, after each micro-batch; the last is the whole file's."""
        method, tokens_per_batch = run.method, run.spec.tokens_per_batch
        if isinstance(self.corpus, Pairs):
            assert run.preference is not None
            return evaluate_pairs(model, method, self.corpus, run.preference, tokens_per_batch)
        return evaluate(model, method, self.corpus, tokens_per_batch)

    def found(
        self, model: RoutedModel, run: Run, score: Score, heed: Callable[[], object]
    ) -> tuple[dict[str, float], tuple[Sample, ...]]:
        """By the names of a run's metrics, and some answers. score: of the whole file. heed: called at each answer."""
        answered = self._quiz.ask(model, run, heed)
        if isinstance(self.corpus, Pairs):
            rewards = {"valid_reward_margin": score.reward_margin, "valid_reward_accuracy": score.accuracy}
            return {"valid_loss": score.loss, **rewards, **answered.metrics(None)}, answered.samples
        said = {"valid_loss": score.loss, "valid_mean_token_accuracy": score.accuracy}
        return {**said, **answered.metrics(score.exact_match)}, answered.samples
