import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from core.settings import Settings
from core.specs.assignment import (
    DRAINED,
    FINISHED,
    USER_ERROR,
    Assignment,
    FailedReport,
    FinishedReport,
    Said,
    StepReport,
)
from core.specs.method import LoraSpec
from core.specs.training import TrainSpec
from worker.child import Child, environment

FAKE = (sys.executable, str(Path(__file__).parents[1] / "faults" / "fake_trainer.py"))


def spec(steps=5, step_s=0.001, **changes):
    defaults = {
        "base_model": "tiny",
        "method": LoraSpec(),
        "n_epochs": steps,
        "batch_size": 1,
        "learning_rate": step_s,
        "lr_scheduler": "constant",
        "warmup_ratio": 0,
        "weight_decay": 0,
        "max_grad_norm": 1,
        "max_seq_length": 64,
        "tokens_per_batch": 2048,
        "train_on": "assistant",
        "eval_steps": None,
        "n_checkpoints": 3,
        "seed": 0,
    }
    return TrainSpec.model_validate({**defaults, **changes})


@pytest.fixture
def start(tmp_path):
    children = []

    def start_child(command=FAKE, faults="{}", env=None, **changes):
        (tmp_path / "data.jsonl").write_text(faults + "\n")
        assignment = Assignment(
            job_id="ftjob-1",
            lease_epoch=1,
            spec=spec(**changes),
            base={"id": "tiny", "source": "folder"},
            training_file=tmp_path / "data.jsonl",
            work_dir=tmp_path,
            cache_dir=tmp_path,
        )
        settings = Settings(data_dir=tmp_path, checkpoint_steps=1000)
        env = environment(settings, {"PATH": os.environ["PATH"], **(env or {})}) | {"PYTHONPATH": str(Path.cwd())}
        children.append(Child(command, [assignment], env=env, log_file=tmp_path / "trainer.log"))
        return children[-1]

    yield start_child
    for child in children:
        child.kill()
        child.reap()


def hear(child, until=60.0):
    deadline = time.monotonic() + until
    reports = []
    while not child.has_ended:
        assert time.monotonic() < deadline, "the child goes on"
        if isinstance(told := child.next(0.05), Said):
            reports.append(told.report)
    return reports


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(holds, within=60.0):
    deadline = time.monotonic() + within
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_every_report_arrives_in_order_and_the_exit_code_last(start):
    child = start(steps=200, step_s=0.0001)
    reports = hear(child)
    assert [report.step for report in reports if isinstance(report, StepReport)] == list(range(1, 201))
    assert isinstance(reports[-1], FinishedReport)
    assert child.reap() == FINISHED


def test_a_users_error_is_reported_before_its_exit_code(start):
    child = start(faults='{"user_error": true}')
    assert isinstance(hear(child)[-1], FailedReport)
    assert child.reap() == USER_ERROR


def test_asked_to_stop_it_writes_a_checkpoint_and_exits_with_14(start):
    child = start(steps=100_000, step_s=0.001)
    while not isinstance(getattr(child.next(60), "report", None), StepReport):
        pass
    child.terminate()
    assert hear(child)[-1].kind == "checkpoint"
    assert child.reap() == DRAINED


def test_killed_it_leaves_nothing_of_its_session_behind(start, tmp_path):
    script = (
        "import subprocess,sys,time\n"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(other.pid) + '.')\n"
        "time.sleep(600)"
    )
    child = start(command=(sys.executable, "-c", script))
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().endswith("."))
    other = int((tmp_path / "pid").read_text().rstrip("."))
    child.kill()
    assert hear(child) == []
    assert child.reap() == -signal.SIGKILL
    wait_until(lambda: not is_running(other))


def test_a_crash_that_leaves_the_pipe_open_is_noticed_all_the_same(start):
    sleeper = "[sys.executable, '-c', 'import time; time.sleep(600)']"
    script = f"import os, subprocess, sys; subprocess.Popen({sleeper}); os._exit(3)"
    child = start(command=(sys.executable, "-c", script))
    assert hear(child) == []
    assert child.reap() == 3


def test_it_knows_no_secret_of_its_supervisor(start):
    script = "import os,sys; sys.stderr.write(' '.join(sorted(os.environ)))"
    secrets = {"GRAFT_DATABASE_URL": "x", "GRAFT_REDIS_URL": "x", "GRAFT_S3_SECRET_ACCESS_KEY": "x", "AWS_SECRET": "x"}
    child = start(command=(sys.executable, "-c", script), env={**secrets, "HF_TOKEN": "x", "OMP_NUM_THREADS": "1"})
    hear(child)
    child.reap()
    names = set(child.tail().split())
    assert names.isdisjoint({*secrets, "HF_TOKEN"})
    assert {"OMP_NUM_THREADS", "GRAFT_CHECKPOINT_STEPS", "OMP_WAIT_POLICY", "GRAFT_DEVICE"} <= names


def test_a_line_that_is_no_report_is_passed_over(start):
    child = start(
        command=(
            sys.executable,
            "-c",
            'print(\'hello\'); print(\'{"kind":"said","job_id":"a","report":{"kind":"phase","phase":"training"}}\')',
        )
    )
    assert [report.kind for report in hear(child)] == ["phase"]


def test_a_talkative_child_fills_no_disk(start, tmp_path):
    child = start(command=(sys.executable, "-c", "import sys\nfor _ in range(80): sys.stderr.write('x' * 65536)"))
    hear(child)
    child.reap()
    assert sum(path.stat().st_size for path in tmp_path.glob("trainer*log")) <= 3 << 20


def test_it_dies_with_the_thread_that_supervises_it(start):
    started = []

    def supervise_until_it_speaks():
        started.append(start(steps=100_000))
        assert started[0].next(60)

    thread = threading.Thread(target=supervise_until_it_speaks)
    thread.start()
    thread.join()
    hear(started[0])
    assert started[0].reap() == -signal.SIGKILL


@pytest.mark.parametrize("is_leashed", [True, False], ids=["leashed", "not leashed"])
def test_the_leash_is_what_kills_it(is_leashed):
    """The negative control: a child that ignores the end of its input lives on without the leash."""
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    leash = [sys.executable, "-I", "-S", "worker/leash.py"]
    script = (
        "import os, subprocess, sys, time\n"
        f"command = {leash!r} + [str(os.getpid())] + {sleeper!r} if {is_leashed} else {sleeper!r}\n"
        "child = subprocess.Popen(command, start_new_session=True)\n"
        "time.sleep(0.5)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as supervisor:
        pid = int(supervisor.stdout.readline())
        supervisor.kill()
    if is_leashed:
        wait_until(lambda: not is_running(pid))
    else:
        time.sleep(0.3)
        assert is_running(pid)
        os.kill(pid, signal.SIGKILL)
