import os
import zipfile

import pytest

from worker.packing import pack, unpack


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "ck-000005-e1"
    (made / "deep").mkdir(parents=True)
    (made / "manifest.json").write_text("{}")
    (made / "deep" / "state.bin").write_bytes(b"\x00\x01" * 1000)
    return made


def test_a_folder_comes_back_as_it_was(folder, tmp_path):
    back = unpack(pack(folder, tmp_path / "packed.zip", "job 1"), tmp_path / "elsewhere")
    assert back == tmp_path / "elsewhere" / folder.name
    assert (back / "deep" / "state.bin").read_bytes() == (folder / "deep" / "state.bin").read_bytes()
    assert sorted(path.name for path in back.iterdir()) == ["deep", "manifest.json"]
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == [folder.name]


def test_the_same_content_is_the_same_file_whenever_it_was_written(folder, tmp_path):
    first = pack(folder, tmp_path / "a.zip", "job 1").read_bytes()
    os.utime(folder / "manifest.json", (1, 1))
    assert pack(folder, tmp_path / "b.zip", "job 1").read_bytes() == first
    (folder / "manifest.json").write_text("{ }")
    assert pack(folder, tmp_path / "c.zip", "job 1").read_bytes() != first


def test_two_jobs_never_share_a_packed_checkpoint(folder, tmp_path):
    assert (
        pack(folder, tmp_path / "a.zip", "job 1").read_bytes() != pack(folder, tmp_path / "b.zip", "job 2").read_bytes()
    )


@pytest.mark.parametrize(
    "names", [["../out/file"], ["/etc/file"], ["a/file", "b/file"], ["alone"], [], ["a/../../file"]], ids=str
)
def test_what_pack_never_writes_is_refused_and_leaves_nothing(names, tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    with pytest.raises(ValueError, match="a packed checkpoint holds"):
        unpack(tmp_path / "bad.zip", tmp_path / "into")
    assert list((tmp_path / "into").iterdir()) == []


def test_a_torn_file_is_refused(folder, tmp_path):
    whole = pack(folder, tmp_path / "whole.zip", "job 1").read_bytes()
    (tmp_path / "torn.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a packed checkpoint"):
        unpack(tmp_path / "torn.zip", tmp_path / "into")
