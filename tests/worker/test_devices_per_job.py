"""A job on several devices, as its supervisor sees it: one trainer child, which leads the others and dies with them."""

import io
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from job_bench import is_running, wait_until
from safetensors.torch import load
from test_trainer_process import ENVIRONMENT, ROOT, Process
from tiny_job import attempt, make_assignment, numbers, of_kind, sha256

from core.specs.assignment import CRASHED, DRAINED, FINISHED, TOLD, CheckpointReport, Said, StepReport, ValidationReport

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
PAIR = {"GRAFT_DEVICES_PER_JOB": "2"}


def losses(reports):
    """Of each step, as it was last told."""
    return [loss for _, loss in sorted({r.step: r.train_loss for r in of_kind(reports, StepReport)}.items())]


def weights(adapter):
    with zipfile.ZipFile(io.BytesIO(adapter.read_bytes())) as archive:
        return load(archive.read(next(n for n in archive.namelist() if n.endswith("adapter_model.safetensors"))))


def followers(child):
    """The processes that follow it, once they are there."""
    tasks = Path(f"/proc/{child.popen.pid}/task")
    there = lambda: [int(pid) for path in tasks.glob("*/children") for pid in path.read_text().split()]  # noqa: E731
    return wait_until(there, what="a follower")


def assert_gone(pids):
    wait_until(lambda: not any(map(is_running, pids)), what="the end of every process of the job")


@pytest.fixture(scope="module")
def pair(tmp_path_factory, tiny_entry):
    """The reports of a job that two processes trained and nothing interrupted, and its adapter."""
    with Process(make_assignment(tmp_path_factory.mktemp("pair") / "job", tiny_entry), **PAIR) as child:
        pids = followers(child)
        code, said = child.end()
    assert code == FINISHED
    assert_gone(pids)
    return said, said[-1].adapter


@pytest.fixture(scope="module")
def alone(tmp_path_factory, tiny_entry):
    """The same of one process."""
    code, said = attempt(make_assignment(tmp_path_factory.mktemp("alone") / "job", tiny_entry))
    assert code == FINISHED
    return said, said[-1].adapter


def test_two_processes_make_the_adapter_that_one_makes(pair, alone):
    (said, adapter), (expected, other) = pair, alone
    assert losses(said) == pytest.approx(losses(expected), abs=1e-5)
    assert numbers(said).keys() == numbers(expected).keys()
    mine, theirs = weights(adapter), weights(other)
    assert mine.keys() == theirs.keys()
    assert max(float((mine[name] - theirs[name]).abs().max()) for name in mine) < 1e-4


def test_a_base_divided_over_both_makes_the_adapter_that_a_whole_one_makes(tmp_path, tiny_entry, alone):
    """Validations and sample answers among it, for which the leader goes forward by itself."""
    with Process(make_assignment(tmp_path / "job", tiny_entry), **PAIR, GRAFT_DIVIDE_BASE="true") as child:
        code, said = child.end()
    assert code == FINISHED
    expected, other = alone
    assert losses(said) == pytest.approx(losses(expected), abs=1e-5)
    assert [r.valid_loss for r in of_kind(said, ValidationReport)] == pytest.approx(
        [r.valid_loss for r in of_kind(expected, ValidationReport)], abs=1e-5
    )
    mine, theirs = weights(said[-1].adapter), weights(other)
    assert max(float((mine[name] - theirs[name]).abs().max()) for name in mine) < 1e-4


def test_where_one_dies_all_do_and_the_job_resumes_bit_for_bit(tmp_path, tiny_entry, pair):
    said = []
    with Process(make_assignment(tmp_path / "job", tiny_entry), **PAIR) as child:
        said += child.hear_until(CheckpointReport)
        (follower,) = followers(child)
        os.kill(follower, signal.SIGKILL)
        code, rest = child.end()
    assert code == CRASHED
    assert_gone([follower])
    with Process(make_assignment(tmp_path / "job", tiny_entry, lease_epoch=2), **PAIR) as child:
        code, last = child.end()
    assert code == FINISHED
    expected, adapter = pair
    assert numbers([*said, *rest, *last]) == numbers(expected)
    assert sha256(last[-1].adapter) == sha256(adapter)


def test_the_leaders_death_is_everyones_and_one_process_goes_on_alone(tmp_path, tiny_entry, alone):
    with Process(make_assignment(tmp_path / "job", tiny_entry), **PAIR) as child:
        said = child.hear_until(CheckpointReport)
        pids = followers(child)
        child.popen.kill()
    assert_gone(pids)
    code, rest = attempt(make_assignment(tmp_path / "job", tiny_entry, lease_epoch=2))
    assert code == FINISHED
    assert losses([*said, *rest]) == pytest.approx(losses(alone[0]), abs=1e-5)
    assert rest[0].kind == "phase"
    assert min(report.step for report in of_kind(rest, StepReport)) > 1


def test_by_hand_under_torchrun_until_told_to_stop(tmp_path, tiny_entry):
    child = subprocess.Popen(
        [sys.executable, *TORCHRUN, "-m", "worker.trainer_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        env=ENVIRONMENT | {"GLOO_SOCKET_IFNAME": "lo", "GRAFT_CHECKPOINT_STEPS": "100000"},
    )
    assignment = make_assignment(tmp_path / "job", tiny_entry, n_epochs=1000)
    child.stdin.write(assignment.model_dump_json().encode() + b"\n")
    child.stdin.flush()
    try:
        said = []
        for line in child.stdout:
            told = TOLD.validate_json(line)
            if isinstance(told, Said):
                said.append(told.report)
                if isinstance(told.report, StepReport) and not child.poll():
                    child.send_signal(signal.SIGTERM)
            elif told.code == DRAINED:
                break
        assert isinstance(said[-1], CheckpointReport)
    finally:
        child.stdin.close()
        child.wait(60)
        child.stdout.close()
