"""A tiny base model on disk, and a job that nothing interrupted: for tests of attempts and of trainer processes."""

import pytest
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
