"""Kernels through Triton's interpreter, in a process of their own: it must be told before Triton is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.ops import choice

LAWS = Path(__file__).parent / "kernels"


def run(path, **variables):
    """Pytest on one file of laws: its exit status and what it said."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)]
    done = subprocess.run(
        command, env=os.environ | variables, cwd=LAWS.parents[2], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("laws", sorted(path.name for path in LAWS.glob("*_laws.py")))
def test_kernels_equal_their_plain_operations(laws):
    if not choice.has_triton():
        pytest.fail("Triton is not installed: `make test` installs requirements/triton.lock on Linux")
    status, said = run(LAWS / laws, TRITON_INTERPRET="0" if laws == "compiled_laws.py" else "1")
    assert status == 0, said
    assert " passed" in said
