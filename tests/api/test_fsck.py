"""`graft fsck` as a shell runs it, beside a front end that is up."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from serving import CHAT_LINE

from core.blob import place

ROOT = Path(__file__).parents[2]


@pytest.fixture
def fsck(service):
    settings = service.settings

    def run(*words, status=0, **changes):
        given = {"GRAFT_DATA_DIR": str(settings.data_dir), "PYTHONPATH": str(ROOT), **changes}
        known = {name: value for name, value in os.environ.items() if not name.startswith("GRAFT_")}
        command = [sys.executable, "-m", "api.cli", "fsck", *words]
        done = subprocess.run(command, env=known | given, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == status, done.stdout + done.stderr
        return (done.stdout + done.stderr).strip().splitlines()

    return run


@pytest.fixture
def uploaded(service):
    """An uploaded file's id, and the path of its blob."""
    files = {"file": ("t.jsonl", CHAT_LINE * 3)}
    file = service.http.post("/v1/files", files=files, data={"purpose": "fine-tune"}).json()
    (path,) = [one for one in (service.settings.data_dir / "blobs" / "blobs").rglob("*") if one.is_file()]
    return file["id"], path


def test_what_agrees_is_said_to_and_exits_0(fsck, uploaded):
    assert uploaded
    assert fsck() == ["rows and blobs agree"]


def test_a_lost_blob_is_told_with_what_to_do_and_exits_1(fsck, uploaded):
    file_id, path = uploaded
    path.unlink()
    fault, advice, count = fsck(status=1)
    assert fault == f"missing: file {file_id}: blob {path.name} is not in the store"
    assert "backup" in advice
    assert count == "1 faults"
    assert fsck("--repair", status=1)[0] == fault


def test_waste_is_no_fault_and_is_set_aside_only_when_asked(service, fsck, uploaded):
    file_id, path = uploaded
    service.http.delete(f"/v1/files/{file_id}")
    os.utime(path, (1, 1))
    assert fsck()[0].startswith(f"1 blobs of {path.stat().st_size} bytes belong to no row")
    assert path.exists()
    assert fsck("--repair")[1:] == ["  1 of them are set aside now", "rows and blobs agree"]
    aside = service.settings.data_dir / "blobs" / place(path.name, is_aside=True)
    assert (path.exists(), aside.exists()) == (False, True)
    long_ago = time.time() - 25 * 3600
    os.utime(aside, (long_ago, long_ago))
    assert fsck("--repair")[0].endswith("bytes that had lain aside long enough were removed")
    assert not aside.exists()


def test_a_folder_without_a_service_is_refused_and_left_as_it_is(fsck, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "are GRAFT_ settings the service's?" in fsck(status=1, GRAFT_DATA_DIR=str(empty))[0]
    assert list(empty.iterdir()) == []


def test_the_settings_route_tells_how_long_things_are_kept(service):
    told = service.http.get("/v1/settings").json()
    assert told["retention"] == {"event_retention_days": 90, "deleted_retention_hours": 24}
    assert "graft_bytes_removed_total" in service.http.get("/metrics").text
