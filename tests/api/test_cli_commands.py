"""`graft upload`, `create`, `jobs` and `download`: run as a shell runs them, against a real front end."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from serving import BASE, CHAT_LINE

from api.remote import Refused, body_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def graft(service, tmp_path):
    """Runs a command and gives what it printed; expects an exit status."""

    def run(*words, status=0, **environment):
        given = os.environ | {"GRAFT_KEY": service.key, "GRAFT_URL": service.url, "PYTHONPATH": str(ROOT)} | environment
        command = [sys.executable, "-m", "api.cli", *words]
        done = subprocess.run(command, cwd=tmp_path, env=given, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == status, done.stderr
        return (done.stdout if status == 0 else done.stderr).strip()

    return run


def test_from_a_file_to_a_job_in_the_list(service, graft, tmp_path):
    (tmp_path / "t.jsonl").write_text(CHAT_LINE * 3)
    file_id = graft("upload", "t.jsonl")
    words = ("suffix=my tickets", "seed=7", "peft.type=lora", "peft.r=4", "training.eval_samples=2")
    job_id = graft("create", f"model={BASE}", f"training_file={file_id}", *words)
    job = service.http.get(f"/v1/fine_tuning/jobs/{job_id}").json()
    assert (job["suffix"], job["seed"], job["peft"]["r"], job["training"]["eval_samples"]) == ("my tickets", 7, 4, 2)
    assert [row for row in graft("jobs").splitlines() if job_id in row and "queued" in row] != []


def test_an_adapter_is_downloaded_whole(service, graft, tmp_path):
    name = service.adapter()["fine_tuned_model"]
    assert graft("download", name, "--to", "mine.zip") == "mine.zip"
    assert "adapter_model.safetensors" in zipfile.ZipFile(tmp_path / "mine.zip").namelist()
    assert [path.name for path in tmp_path.glob("*.part")] == []


def test_what_is_refused_is_said_in_a_line(graft, tmp_path):
    assert "training_file" in graft("create", f"model={BASE}", "training_file=file-none", status=1)
    assert graft("upload", "gone.jsonl", status=1) == "graft: gone.jsonl: No such file or directory"
    assert "ft:none" in graft("download", "ft:none", status=1)
    assert not (tmp_path / "adapter.zip").exists()
    assert "GRAFT_KEY" in graft("jobs", status=1, GRAFT_KEY="")
    assert "--url" in graft("jobs", "--url", "http://127.0.0.1:9", status=1)


def test_words_become_a_body():
    words = [
        "model=base",
        "peft.r=8",
        "peft.target_modules=all-linear",
        'suffix="7"',
        "training.early_stopping.patience=2",
    ]
    assert body_of([*words, 'peft.target_modules_=["q"]', "a=x=y"]) == {
        "model": "base",
        "peft": {"r": 8, "target_modules": "all-linear", "target_modules_": ["q"]},
        "suffix": "7",
        "training": {"early_stopping": {"patience": 2}},
        "a": "x=y",
    }


@pytest.mark.parametrize("words", [["model"], ["=3"], ["a..b=1"], ["a=1", "a=2"], ["a=1", "a.b=2"]])
def test_words_that_are_no_body_are_refused(words):
    with pytest.raises(Refused, match=r"expected|already"):
        body_of(words)
