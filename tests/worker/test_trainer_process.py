"""The trainer child as its supervisor sees it: a process, two pipes, signals, an exit code."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tiny_job import make_assignment, numbers, sha256

from core.specs.assignment import (
    DRAINED,
    FINISHED,
    ORPHANED,
    TOLD,
    CheckpointReport,
    Said,
    StepReport,
)

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "OMP_NUM_THREADS": "1",
    "GRAFT_THREADS": "1",
    "GRAFT_DEVICE": "cpu",
    "GRAFT_PRECISION": "fp32",
    "GRAFT_CHECKPOINT_STEPS": "2",
}


class Process:
    """A child at work. Its end of file, like its supervisor's death, is close()."""

    def __init__(self, assignment, **environment):
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "worker.trainer_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
            env=ENVIRONMENT | environment,
        )
        self.popen.stdin.write(assignment.model_dump_json().encode() + b"\n")
        self.popen.stdin.flush()

    def hear_until(self, kind):
        """Reports up to the first of this kind; all there are with None."""
        heard = []
        for line in self.popen.stdout:
            told = TOLD.validate_json(line)
            if not isinstance(told, Said):
                continue
            heard.append(told.report)
            if kind is not None and isinstance(heard[-1], kind):
                break
        return heard

    def end(self):
        """(exit code, what it still said)."""
        said = self.hear_until(None)
        return self.popen.wait(timeout=60), said

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.popen.kill()
        self.popen.wait()
        self.popen.stdin.close()
        self.popen.stdout.close()


def test_a_child_says_reports_and_nothing_else_and_leaves_the_adapter(tmp_path, tiny_entry, whole):
    reports, adapter = whole
    with Process(make_assignment(tmp_path / "job", tiny_entry)) as child:
        code, said = child.end()
    assert code == FINISHED
    assert numbers(said) == numbers(reports)
    assert sha256(said[-1].adapter) == adapter


def test_a_child_killed_at_a_step_and_at_a_checkpoint_ends_with_the_same_bytes(tmp_path, tiny_entry, whole):
    said, codes = [], []
    for lease_epoch in (1, 2, 3):
        assignment = make_assignment(tmp_path / "job", tiny_entry, lease_epoch=lease_epoch)
        with Process(assignment, GRAFT_TEST="1", GRAFT_CRASH_AT="step:3,checkpoint:6@2") as child:
            code, reports = child.end()
        codes.append(code)
        said += reports
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, FINISHED]
    reports, adapter = whole
    assert sha256(said[-1].adapter) == adapter
    assert numbers(said) == numbers(reports)


def test_sigterm_means_finish_the_step_write_a_checkpoint_and_leave(tmp_path, tiny_entry):
    with Process(
        make_assignment(tmp_path / "job", tiny_entry, n_epochs=1000), GRAFT_CHECKPOINT_STEPS="100000"
    ) as child:
        child.hear_until(StepReport)
        child.popen.send_signal(signal.SIGTERM)
        code, said = child.end()
    assert code == DRAINED
    assert isinstance(said[-1], CheckpointReport)
    last_step = max(report.step for report in said if isinstance(report, StepReport | CheckpointReport))
    assert said[-1].step == last_step
    assert said[-1].path.name == f"ck-{last_step:08d}-e1"


def test_the_end_of_standard_input_is_the_end_of_the_child(tmp_path, tiny_entry):
    with Process(make_assignment(tmp_path / "job", tiny_entry, n_epochs=1000)) as child:
        child.hear_until(StepReport)
        child.popen.stdin.close()
        code, _ = child.end()
    assert code == ORPHANED


def test_a_supervisor_that_no_longer_listens_is_the_end_of_the_child(tmp_path, tiny_entry):
    with Process(make_assignment(tmp_path / "job", tiny_entry, n_epochs=1000)) as child:
        child.hear_until(StepReport)
        child.popen.stdout.close()
        assert child.popen.wait(timeout=60) == ORPHANED


def run_python(code):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False, stdin=subprocess.DEVNULL
    )


def test_without_an_assignment_a_child_leaves():
    assert run_python("from worker.trainer_process import main; main()").returncode == ORPHANED


def test_what_is_printed_astray_goes_to_the_log():
    done = run_python(
        "import os; from worker import trainer_process as child; reports = child._Reports();"
        "from core.specs.assignment import Ended; print('astray', flush=True); os.system('echo a grandchild');"
        "reports.tell(Ended(job_id='a', code=0))"
    )
    assert done.stdout == b'{"kind":"ended","job_id":"a","code":0}\n'
    assert done.stderr.split(b"\n")[:2] == [b"astray", b"a grandchild"]


def test_nothing_heavy_is_imported_before_the_leash_is_on():
    done = run_python(
        "import sys, worker.trainer_process; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    assert done.stdout == b"[]\n"


def test_failpoints_do_nothing_outside_tests():
    reach = "from worker.failpoints import reached; reached('step:1', {epoch}); print('alive')"
    asked = "import os; os.environ['GRAFT_CRASH_AT'] = '{points}'; os.environ['GRAFT_TEST'] = '{test}'; " + reach
    for points, test, epoch, code in (
        ("step:1", "", 1, 0),
        ("step:1", "1", 1, -signal.SIGKILL),
        ("step:1", "1", 2, 0),
        ("step:2,step:1@2", "1", 2, -signal.SIGKILL),
        ("step:1@*", "1", 5, -signal.SIGKILL),
        ("step:10", "1", 1, 0),
    ):
        assert run_python(asked.format(points=points, test=test, epoch=epoch)).returncode == code
