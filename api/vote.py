"""An ensemble's vote: the answer most of its members gave. Pure: knows no engine and no request.

Lester et al. 2021, arXiv:2104.08691, section 6: a plain majority. Ties go to the likeliest answer, which is our rule.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ballot:
    """One member's answer. mean_logprob: of the tokens it drew."""

    text: str
    mean_logprob: float


def winner(ballots: Sequence[Ballot]) -> int:
    """Whose answer is given: of those that said what most said, the one who was surest of it; the first of equals.

    Answers are the same where they differ in nothing but blanks about them. ballots: at least one.
    """
    said = [ballot.text.strip() for ballot in ballots]
    counts = Counter(said)
    most = max(counts.values())
    chosen = [number for number, text in enumerate(said) if counts[text] == most]
    return max(chosen, key=lambda number: ballots[number].mean_logprob)  # max() keeps the first of equals
