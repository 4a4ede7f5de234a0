"""Jobs in step inside one trainer: each says, saves and makes what it would alone, whoever joins, leaves or fails."""

import threading
import time

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load
from tiny_job import STEPS, Killed, make_assignment, members, numbers, of_kind

from core import learning
from core.methods import METHODS, Lora
from core.settings import Settings
from core.specs.assignment import (
    CRASHED,
    DRAINED,
    FINISHED,
    NOT_FINITE,
    OUT_OF_MEMORY,
    USER_ERROR,
    Ended,
    FinishedReport,
    Leave,
    PhaseReport,
    Said,
    StepReport,
    ValidationReport,
    WarningReport,
)
from core.specs.method import MethodSpec
from worker import sign_of_life
from worker.company import Company
from worker.progress import warning_event

SPECS = TypeAdapter(MethodSpec)
METHOD_OF = {
    "lora": {"type": "lora", "r": 4, "lora_dropout": 0.1},
    "adalora": {"type": "adalora", "init_r": 4, "target_r": 2},
    "prefix": {"type": "prefix_tuning", "num_virtual_tokens": 3},
    "prompt": {"type": "prompt_tuning", "num_virtual_tokens": 4},
    "p": {"type": "p_tuning", "template": "{v:3}{input}{v:2}{target}"},
    "rs": {"type": "lora", "r": 2, "use_rslora": True},
    "kv": {"type": "prefix_tuning", "num_virtual_tokens": 2, "parametrization": "kv"},
    "text": {"type": "prompt_tuning", "num_virtual_tokens": 6},
}


@pytest.fixture(autouse=True)
def _as_in_a_test(monkeypatch):
    often = {"CHECKPOINT_STEPS": "2", "CHECKPOINT_S": "300", "THREADS": "1", "DEVICE": "cpu", "PRECISION": "fp32"}
    for name, value in often.items():
        monkeypatch.setenv(f"GRAFT_{name}", value)


class Watch:
    """Listens to a company. Others join after a said report of the first, and are waited for; nothing is left to time.

    on: (job id, kind of report, its number among those, act) - what to do as that is said.
    """

    def __init__(self, *on):
        self.said, self.codes, self.order, self.on = {}, {}, [], list(on)
        self.drain = threading.Event()
        self.company = Company(Settings(), self.tell, self.drain)
        self.counts = {}

    def tell(self, told):
        if isinstance(told, Ended):
            self.codes[told.job_id] = told.code
            self.order.append((told.job_id, "ended"))
            return
        assert isinstance(told, Said)
        key = (told.job_id, type(told.report))
        self.counts[key] = self.counts.get(key, 0) + 1
        for job_id, kind, number, act in self.on:
            if (job_id, kind) == key and number == self.counts[key]:
                act(self)
        self.said.setdefault(told.job_id, []).append(told.report)
        if isinstance(told.report, StepReport):
            self.order.append((told.job_id, told.report.step))

    def join(self, *assignments):
        """They are admitted before the next turn."""
        for assignment in assignments:
            before = self.company._arrivals.qsize()
            self.company.take(assignment)
            while self.company._arrivals.qsize() == before:
                time.sleep(0.001)


def job(folder, base, name, *, lease_epoch=1, **changes):
    made = make_assignment(folder / name, base, lease_epoch=lease_epoch, **changes)
    spec = made.spec.model_copy(update={"method": SPECS.validate_python(METHOD_OF[name.partition("-")[0]])})
    return made.model_copy(update={"job_id": name, "spec": spec})


def in_step(jobs, *on):
    """A company of all these from the first turn on."""
    first, *others = jobs
    watch = Watch((first.job_id, PhaseReport, 3, lambda w: w.join(*others)), *on)
    code = watch.company.go(first)
    return code, watch


def alone(folder, base, name, **changes):
    watch = Watch()
    assert watch.company.go(job(folder / "alone", base, name, **changes)) == FINISHED
    return watch.said[name]


def adapter_of(reports):
    (finished,) = of_kind(reports, FinishedReport)
    return load(members(finished.adapter)["adapter_model.safetensors"])


def assert_same(reports, expected):
    """But for rounding."""
    for step, other in zip(of_kind(reports, StepReport), of_kind(expected, StepReport), strict=True):
        assert step.train_loss == pytest.approx(other.train_loss, rel=1e-5)
        assert (step.step, step.tokens, step.learning_rate) == (other.step, other.tokens, other.learning_rate)
    weights, others = adapter_of(reports), adapter_of(expected)
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        assert float((tensor - others[name]).norm()) <= 1e-4 * float(others[name].norm()) + 1e-6, name


@pytest.mark.parametrize("names", [("lora", "prefix"), tuple(METHOD_OF)], ids=["two", "eight"])
def test_jobs_in_step_say_and_make_what_each_does_alone(tmp_path, tiny_entry, names):
    code, watch = in_step([job(tmp_path, tiny_entry, name) for name in names])
    assert code == FINISHED
    assert watch.codes == dict.fromkeys(names, FINISHED)
    assert [entry for entry in watch.order if entry[1] == 1] == [(name, 1) for name in names]
    for name in names:
        expected = alone(tmp_path, tiny_entry, name)
        assert numbers(watch.said[name]).keys() == numbers(expected).keys()
        assert_same(watch.said[name], expected)


def test_another_jobs_adapter_is_not_taken_for_the_same(tmp_path, tiny_entry):
    """The negative control of that comparison: the same job from another seed."""
    one, other = alone(tmp_path, tiny_entry, "lora"), alone(tmp_path / "x", tiny_entry, "lora", seed=8)
    with pytest.raises(AssertionError):
        assert_same(one, other)


def test_a_job_alone_has_the_bytes_it_has_among_none(tmp_path, tiny_entry, whole):
    """What it says is to the bit what the law of test_outcome holds."""
    watch = Watch()
    watch.company.go(make_assignment(tmp_path, tiny_entry))
    assert numbers(watch.said["ftjob-test"]) == numbers(whole[0])


def test_a_job_that_joins_late_and_a_small_one_beside_a_huge_one(tmp_path, tiny_entry):
    huge = job(tmp_path, tiny_entry, "lora", n_epochs=10)
    small = job(tmp_path, tiny_entry, "prompt", n_epochs=1)
    watch = Watch(("lora", StepReport, 5, lambda w: w.join(small)))
    assert watch.company.go(huge) == FINISHED
    assert watch.order.index(("prompt", 1)) == watch.order.index(("lora", 6)) + 1
    assert watch.order.index(("prompt", "ended")) < watch.order.index(("lora", 11))
    for name, changes in (("lora", {"n_epochs": 10}), ("prompt", {"n_epochs": 1})):
        assert_same(watch.said[name], alone(tmp_path, tiny_entry, name, **changes))


@pytest.mark.parametrize("is_long", [True, False])
def test_a_long_turn_says_that_it_is_going_on(tmp_path, tiny_entry, monkeypatch, is_long):
    """Else its supervisor takes the process for hung: a step of many rows may take longer than GRAFT_STALL_S."""
    monkeypatch.setattr(sign_of_life, "SIGN_OF_LIFE_S", 0.0 if is_long else 3600.0)
    reports = alone(tmp_path, tiny_entry, "rs", n_epochs=1, batch_size=12, tokens_per_batch=64)
    before_the_step = reports[: reports.index(of_kind(reports, StepReport)[0])]
    said = [report for report in of_kind(before_the_step, PhaseReport) if report.phase == "training"]
    assert (len(said) > 3) is is_long


def test_one_is_let_go_with_a_checkpoint_and_the_others_do_not_notice(tmp_path, tiny_entry):
    jobs = [job(tmp_path, tiny_entry, name) for name in ("lora", "prefix", "prompt")]
    leave = ("prefix", StepReport, 3, lambda w: w.company.take(Leave(job_id="prefix")))
    code, watch = in_step(jobs, leave)
    assert (code, watch.codes) == (FINISHED, {"lora": FINISHED, "prefix": DRAINED, "prompt": FINISHED})
    assert [step.step for step in of_kind(watch.said["prefix"], StepReport)] == [1, 2, 3]
    assert watch.said["prefix"][-1].path.name == "ck-00000003-e1"
    for name in ("lora", "prompt"):
        assert_same(watch.said[name], alone(tmp_path, tiny_entry, name))
    again = Watch()
    assert again.company.go(job(tmp_path, tiny_entry, "prefix", lease_epoch=2)) == FINISHED
    assert [step.step for step in of_kind(again.said["prefix"], StepReport)] == list(range(4, STEPS + 1))


def test_one_that_is_let_go_in_the_midst_of_a_huge_step_goes_at_once(tmp_path, tiny_entry, monkeypatch):
    """Its step would take six turns of the other; the checkpoint is of its last step, judged once."""
    monkeypatch.setattr("core.strides.FAIR", 1)
    how = {"n_epochs": 3, "batch_size": 12, "tokens_per_batch": 64, "eval_steps": 1}
    huge = job(tmp_path, tiny_entry, "kv", **how)
    small = job(tmp_path, tiny_entry, "lora", batch_size=1, tokens_per_batch=64)
    watch = Watch(
        ("kv", StepReport, 1, lambda w: w.join(small)),
        ("lora", StepReport, 3, lambda w: w.company.take(Leave(job_id="kv"))),
    )
    assert watch.company.go(huge) == FINISHED
    assert watch.codes == {"kv": DRAINED, "lora": FINISHED}
    assert watch.order.index(("kv", "ended")) == watch.order.index(("lora", 3)) + 1
    assert [step.step for step in of_kind(watch.said["kv"], StepReport)] == [1]
    again = Watch()
    assert again.company.go(job(tmp_path, tiny_entry, "kv", lease_epoch=2, **how)) == FINISHED
    assert_same(watch.said["kv"] + again.said["kv"], alone(tmp_path, tiny_entry, "kv", **how))
    validated = [report.step for report in of_kind(watch.said["kv"] + again.said["kv"], ValidationReport)]
    assert validated == [1, 2, 3]


class Sick(Lora):
    """Its numbers are lost at every step, or it breaks, or there is no memory; the rank says which."""

    def after_step(self, step: int, of: int) -> None:
        assert step <= of
        with torch.no_grad():
            self.b[0].fill_(float("nan"))


class Broken(Lora):
    def after_step(self, step: int, of: int) -> None:
        if step == 3:
            raise ValueError(f"a bug at step {step} of {of}")


class Greedy(Lora):
    def after_step(self, step: int, of: int) -> None:
        raise MemoryError(f"at step {step} of {of}")


@pytest.mark.parametrize("failing", [(Sick, NOT_FINITE), (Broken, CRASHED)], ids=["sick", "broken"])
@pytest.mark.parametrize("is_first", [True, False])
def test_one_that_fails_fails_alone(tmp_path, tiny_entry, monkeypatch, failing, is_first):
    kind, code = failing
    monkeypatch.setitem(METHODS, "lora", kind)
    names = ("lora", "prefix", "kv") if is_first else ("prefix", "kv", "lora")
    _, watch = in_step([job(tmp_path, tiny_entry, name) for name in names])
    assert watch.codes == {"lora": code, "prefix": FINISHED, "kv": FINISHED}
    for name in ("prefix", "kv"):
        assert_same(watch.said[name], alone(tmp_path, tiny_entry, name))


def test_a_lack_of_memory_is_everybodys(tmp_path, tiny_entry, monkeypatch):
    monkeypatch.setitem(METHODS, "lora", Greedy)
    code, watch = in_step([job(tmp_path, tiny_entry, name) for name in ("prefix", "lora")])
    assert (code, watch.codes) == (OUT_OF_MEMORY, {})


def test_a_forward_too_large_for_memory_is_cut_and_said_and_the_job_learns_the_same(tmp_path, tiny_entry, monkeypatch):
    expected = alone(tmp_path, tiny_entry, "rs")
    plain = learning.token_losses

    def cramped(model, hidden, ids, *rest):
        if torch.is_grad_enabled() and len(ids) > 100:
            raise torch.OutOfMemoryError
        return plain(model, hidden, ids, *rest)

    monkeypatch.setattr(learning, "token_losses", cramped)
    reports = alone(tmp_path / "cramped", tiny_entry, "rs")
    said = [report for report in of_kind(reports, WarningReport) if report.code == "out_of_memory"]
    assert said
    assert 64 <= said[-1].tokens_per_batch < 256
    assert warning_event(said[-1]).data == {"tokens_per_batch": said[-1].tokens_per_batch}
    assert_same(reports, expected)
    (finished,) = of_kind(reports, FinishedReport)
    assert finished.memory_bytes > 1 << 20
    assert finished.tokens_per_s > 0


def test_one_may_be_let_go_as_all_hear_that_memory_is_short(tmp_path, tiny_entry, monkeypatch):
    plain, calls = learning.token_losses, []

    def cramped(*args):
        calls.append(1)
        if len(calls) == 5:
            raise torch.OutOfMemoryError
        return plain(*args)

    monkeypatch.setattr("core.shortage.FEWEST_TOKENS", 8)
    monkeypatch.setattr(learning, "token_losses", cramped)
    names = ("lora", "rs", "kv")
    jobs = [job(tmp_path, tiny_entry, name, eval_steps=100) for name in names]
    code, watch = in_step(jobs, ("lora", WarningReport, 1, lambda w: w.company.take(Leave(job_id="kv"))))
    assert (code, watch.codes) == (FINISHED, {"lora": FINISHED, "rs": FINISHED, "kv": DRAINED})


def test_a_file_that_cannot_be_used_ends_its_own_job_only(tmp_path, tiny_entry):
    bad = job(tmp_path, tiny_entry, "prompt")
    bad.training_file.write_text("not json\n")
    code, watch = in_step([job(tmp_path, tiny_entry, "lora"), bad])
    assert watch.codes == {"prompt": USER_ERROR, "lora": FINISHED}
    assert watch.said["prompt"][-1].param == "training_file"
    code, watch = in_step([bad])
    assert code == USER_ERROR


def test_drained_all_leave_with_a_checkpoint_and_lose_no_step(tmp_path, tiny_entry):
    names = ("lora", "adalora")
    code, watch = in_step(
        [job(tmp_path, tiny_entry, name) for name in names], ("lora", StepReport, 3, lambda w: w.drain.set())
    )
    assert (code, watch.codes) == (DRAINED, dict.fromkeys(names, DRAINED))
    code, again = in_step([job(tmp_path, tiny_entry, name, lease_epoch=2) for name in names])
    for name in names:
        assert_same(watch.said[name] + again.said[name], alone(tmp_path, tiny_entry, name))


def killed(_):
    raise Killed


@pytest.mark.parametrize(("at", "is_aligned"), [(("lora", 5), True), (("adalora", 7), True), (("adalora", 4), False)])
def test_killed_all_are_taken_up_again_from_their_own_checkpoints(tmp_path, tiny_entry, at, is_aligned):
    """Aligned: both had a checkpoint of the same step, so that every later turn has the rows it would have had, and
    all bytes are those of the run in step that nobody killed. Else one of them goes on some turns behind the other:
    the company of its rows is another, and the bytes are its own but for rounding."""
    names = ("lora", "adalora")
    _, uninterrupted = in_step([job(tmp_path / "whole", tiny_entry, name) for name in names])
    with pytest.raises(Killed):
        in_step([job(tmp_path, tiny_entry, name) for name in names], (at[0], StepReport, at[1], killed))
    _, watch = in_step([job(tmp_path, tiny_entry, name, lease_epoch=2) for name in names])
    assert watch.codes == dict.fromkeys(names, FINISHED)
    steps = [of_kind(watch.said[name], StepReport)[0].step for name in names]
    assert (steps[0] == steps[1]) is is_aligned
    for name in names:
        now, then = adapter_of(watch.said[name]), adapter_of(uninterrupted.said[name])
        if is_aligned:
            assert all(torch.equal(now[key], then[key]) for key in then)
        for key in then:
            assert float((now[key] - then[key]).norm()) <= 1e-4 * float(then[key].norm()) + 1e-6
