"""What some rows cost and how many of them are right, summed over micro-batches."""

from dataclasses import dataclass, replace

from core.losses import NextTokenLoss, TokenLosses
from core.preferences import PreferenceLoss

Loss = NextTokenLoss | PreferenceLoss
SHORT = 64  # learned tokens: an answer that may be asked for to the letter


@dataclass(frozen=True)
class Score:
    """Learned tokens of some rows: the sum of their losses in nats, how many, and how many the model had right.

    Of pairs, the same of pairs: right is one with a positive reward margin.
    """

    total: float = 0.0
    count: int = 0
    correct: int = 0
    margin: float = 0.0  # of pairs: the sum of their reward margins
    short: int = 0  # rows of which at most SHORT tokens are learned, of an evaluation
    exact: int = 0  # of those, how many had all of them right

    @property
    def loss(self) -> float:
        """Nats for each learned token."""
        return self.total / self.count

    @property
    def accuracy(self) -> float:
        """Share of learned tokens that were the most likely ones."""
        return self.correct / self.count

    @property
    def reward_margin(self) -> float:
        """Of pairs: the mean of their reward margins."""
        return self.margin / self.count

    @property
    def exact_match(self) -> float | None:
        """Share of the short rows whose learned tokens were all the likeliest, given those before them.

        Of a row with one answer that is whether greedy decoding would say the answer, to its end. None without one.
        """
        return self.exact / self.short if self.short else None

    def plus(self, loss: Loss) -> "Score":
        """Its sum with one micro-batch more."""
        total, count, correct = self.total + float(loss.total.detach()), self.count + loss.count, loss.correct
        margin = self.margin + loss.margin
        return replace(self, total=total, count=count, correct=self.correct + correct, margin=margin)

    def joined(self, other: "Score") -> "Score":
        """Its sum with what other rows cost."""
        return Score(
            self.total + other.total,
            self.count + other.count,
            self.correct + other.correct,
            self.margin + other.margin,
            self.short + other.short,
            self.exact + other.exact,
        )

    def plus_rows(self, losses: TokenLosses, count: int) -> "Score":
        """As plus, of a micro-batch of so many rows, each judged as a whole too."""
        learned = losses.rows.bincount(minlength=count)
        right = losses.rows[losses.hits].bincount(minlength=count)
        is_short = (learned > 0) & (learned <= SHORT)
        exact = int((is_short & (learned == right)).sum())
        return replace(self.plus(losses.summed()), short=self.short + int(is_short.sum()), exact=self.exact + exact)
