import pytest

from core.schedule import learning_rate
from core.specs.method import LoraSpec
from core.specs.training import TrainSpec


def spec(**changes):
    plain = {"lr_scheduler": "cosine", "warmup_ratio": 0.1, "learning_rate": 2.0} | changes
    rest = {"n_epochs": 1, "batch_size": 1, "weight_decay": 0.0, "max_grad_norm": 1.0, "max_seq_length": 64}
    more = {"tokens_per_batch": 64, "train_on": "assistant", "eval_steps": None, "n_checkpoints": 1, "seed": 0}
    return TrainSpec(base_model="tiny", method=LoraSpec(), **plain, **rest, **more)


def test_the_rate_rises_to_its_peak_in_equal_parts_and_then_falls():
    rates = [learning_rate(spec(), step, 20) for step in range(1, 21)]
    assert rates[:3] == [1.0, 2.0, 2.0]
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert len(set(rates[2:])) == 18


@pytest.mark.parametrize(("scheduler", "expected"), [("cosine", 1.0), ("linear", 1.0), ("constant", 2.0)])
def test_half_way_down_the_rate_is_what_its_curve_says(scheduler, expected):
    assert learning_rate(spec(lr_scheduler=scheduler, warmup_ratio=0.0), 11, 20) == pytest.approx(expected)


def test_a_quarter_down_a_cosine_has_lost_less_than_a_line():
    at = [learning_rate(spec(lr_scheduler=curve, warmup_ratio=0.0), 6, 20) for curve in ("cosine", "linear")]
    assert at == pytest.approx([1 + 0.5**0.5, 1.5])


@pytest.mark.parametrize("scheduler", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.03, 0.5])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 100])
def test_every_step_learns_and_none_above_the_peak(scheduler, warmup_ratio, steps):
    rates = [
        learning_rate(spec(lr_scheduler=scheduler, warmup_ratio=warmup_ratio), step, steps)
        for step in range(1, steps + 1)
    ]
    assert all(0 < rate <= 2.0 for rate in rates)
    assert max(rates) == 2.0
