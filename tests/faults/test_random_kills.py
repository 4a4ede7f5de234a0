"""A sample of benchmarks/kills.py: trainer children killed where it falls end with an undisturbed run's bytes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import kills

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("method", ["adalora", "p_tuning"])
def test_a_run_killed_at_random_moments_ends_with_the_same_bytes_and_no_torn_checkpoint(tmp_path, method):
    command = [sys.executable, "-m", "benchmarks.kills", "--kills", "3", "--methods", method]
    kept = tmp_path / "kills.json"
    done = subprocess.run([*command, "--into", str(kept)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(kept.read_text())
    assert (found["kills"], found["differing"], found["torn"]) == (3, 0, 0)


def checkpoint(folder, content):
    path = folder / "ck-00000003-e1"
    path.mkdir(parents=True)
    (path / "state.json").write_bytes(content)
    told = {"state.json": {"sha256": kills.hashlib.sha256(content).hexdigest(), "bytes": len(content)}}
    (path / "manifest.json").write_text(json.dumps({"files": told}))
    return path


def test_a_checkpoint_that_is_not_what_its_manifest_says_is_counted_as_torn(tmp_path):
    """The negative control of the count."""
    path = checkpoint(tmp_path, b"whole")
    assert kills.torn(tmp_path) == []
    (path / "state.json").write_bytes(b"who")
    assert kills.torn(tmp_path) == [path.name]
    (path / "manifest.json").unlink()
    assert kills.torn(tmp_path) == [path.name]
