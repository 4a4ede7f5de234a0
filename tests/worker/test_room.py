"""How many jobs train in step: as many as were asked for, or as memory allows."""

import pytest

from core.settings import Settings
from worker import room


@pytest.mark.parametrize(("gib", "jobs"), [(0, 1), (2, 1), (6, 1), (7.5, 1), (8, 2), (12, 6), (14, 8), (512, 8)])
def test_auto_is_one_where_memory_is_scarce_and_eight_where_it_is_not(gib, jobs):
    assert room.that_fit(int(gib * room.GIB)) == jobs


def test_a_number_is_obeyed(tmp_path):
    assert room.jobs_in_step(Settings(data_dir=tmp_path, jobs_in_step=5)) == 5


@pytest.mark.parametrize("wrong", ["0", "65", "many"])
def test_another_word_or_number_is_refused(tmp_path, monkeypatch, wrong):
    monkeypatch.setenv("GRAFT_JOBS_IN_STEP", wrong)
    with pytest.raises(ValueError, match="jobs_in_step"):
        Settings(data_dir=tmp_path)


def test_the_scarcer_of_gpu_and_host_decides(tmp_path, monkeypatch):
    settings = Settings(data_dir=tmp_path)
    for host, gpu, jobs in ((16, 80, 8), (7, 80, 1), (64, 9, 3), (9, None, 3)):
        monkeypatch.setattr(room, "host_bytes", lambda host=host: host * room.GIB)
        monkeypatch.setattr(room, "gpu_bytes", lambda gpu=gpu: gpu and gpu * room.GIB)
        assert room.jobs_in_step(settings) == jobs


def test_on_a_cpu_no_gpu_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "gpu_bytes", lambda: 1 / 0)
    assert room.jobs_in_step(Settings(data_dir=tmp_path, device="cpu")) >= 1


def test_a_control_group_bounds_what_the_machine_has(tmp_path, monkeypatch):
    whole = room.host_bytes()
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(room, "CGROUP", limit)
    for said, bound in (("max", None), (str(room.GIB), room.GIB)):
        limit.write_text(said + "\n")
        assert room.host_bytes() <= (bound or 1 << 60)
    assert whole > 0


def test_a_driver_says_what_is_free(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert room.gpu_bytes() is None
    tool.write_text("#!/bin/sh\necho 1000\necho 2000\n")
    tool.chmod(0o755)
    assert room.gpu_bytes() == 1000 << 20
