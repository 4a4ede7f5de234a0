"""For tests of attempts and of trainer processes: a tiny base model, a job that nothing interrupted, and a worker."""

from pathlib import Path

import pytest
from job_bench import JobBench
from one_worker import Worker
from tiny_job import attempt, make_assignment, make_tiny_base, sha256

from core.specs.assignment import FINISHED


@pytest.fixture(scope="session")
def tiny_entry(tmp_path_factory):
    """The catalogue entry of a folder with a random Llama, its tokeniser and chat template."""
    return make_tiny_base(tmp_path_factory.mktemp("tiny-base"))


@pytest.fixture(scope="session")
def whole(tmp_path_factory, tiny_entry):
    """The reports of an attempt that nothing interrupted, and the sha256 of its adapter."""
    code, reports = attempt(make_assignment(tmp_path_factory.mktemp("whole") / "job", tiny_entry))
    assert code == FINISHED
    return reports, sha256(reports[-1].adapter)


@pytest.fixture
def make_worker(tmp_path, monkeypatch):
    """make_worker(**settings): a worker with its installation, which is sound at the end and has no work folder."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    made = []

    def make(**changes):
        made.append(Worker(JobBench(tmp_path, **changes)))
        return made[-1]

    yield make
    for worker in made:
        worker.bench.assert_sound()
        assert not list((tmp_path / "jobs").glob("*/e*")), "a work folder is left"
        worker.bench.close()


@pytest.fixture
def worker(make_worker):
    """A worker with the settings of every test."""
    return make_worker()
