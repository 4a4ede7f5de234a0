"""Ranks are told when they have moved."""

import subprocess
import sys

import pytest

from core.methods import Lora
from core.specs.assignment import StepReport
from core.specs.method import LoraSpec
from tests.conftest import make_facts
from worker.meters import Ranks
from worker.progress import step_event


class Moving:
    def __init__(self, ranks):
        self._ranks = ranks

    def ranks(self):
        return dict(self._ranks)


def test_ranks_are_told_at_first_and_whenever_they_move():
    ranks, method = Ranks(), Moving({"q": 6, "v": 6})
    assert ranks.news(method) == {"q": 6, "v": 6}
    assert ranks.news(method) is None
    method._ranks["v"] = 2
    assert ranks.news(method) == {"q": 6, "v": 2}
    assert ranks.news(method) is None


def test_a_method_whose_ranks_stand_says_nothing():
    assert Ranks().news(Lora(LoraSpec(), make_facts())) is None


def report(**changes):
    numbers = dict.fromkeys(
        ("epoch", "train_loss", "train_mean_token_accuracy", "learning_rate", "grad_norm", "tokens_per_s"), 1.0
    )
    return StepReport(step=3, total_steps=9, tokens=5, trained_tokens=15, memory_bytes=7, **numbers, **changes)


def test_a_steps_event_holds_the_ranks_that_it_moved():
    assert step_event(report(ranks={"q": 4})).data["ranks"] == {"q": 4}
    assert "ranks" not in step_event(report()).data


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells the two apart")
def test_memory_is_what_this_process_used_and_not_what_its_parent_had():
    """ru_maxrss, the negative control, begins with the parent's: a child of a large process would look large."""
    ask = (
        "import resource, torch; from worker.meters import memory_bytes;"
        "print(memory_bytes(torch.device('cpu')), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    held = b"x" * (3 << 29)
    said = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    mine, inherited = map(int, said.stdout.split())
    assert mine < len(held) <= inherited
