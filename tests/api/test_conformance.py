"""A user changes base_url and keeps the code: three generations of the stock openai client."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from serving import running

ROOT = Path(__file__).parents[2]
CLIENTS = {"1.109.1": ROOT / ".cache/openai/1", "2.54.0": ROOT / ".cache/openai/2", "3.54.0": None}


@pytest.mark.parametrize("version", CLIENTS)
def test_the_stock_client_works_unchanged(service, version):
    folder = CLIENTS[version]
    assert folder is None or folder.is_dir(), f"openai {version} is not at {folder}: run `make test`, which installs it"
    job = service.adapter("support")
    with running(service) as engine:
        engine.poison = 666
        arguments = [service.url, service.key, version, job["fine_tuned_model"], job["id"]]
        done = subprocess.run(
            [sys.executable, Path(__file__).with_name("conformance.py"), *arguments],
            env={**os.environ, "PYTHONPATH": str(folder or "")},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"conforms {version}\n"
