"""What is read back is what was saved, or it is not read at all."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from core import checkpoint
from core.checkpoint import newest, save

TENSORS = {
    "weights": torch.randn(3, 4),
    "half": torch.randn(5).to(torch.bfloat16),
    "random_state": torch.arange(9, dtype=torch.uint8),
    "count": torch.tensor(7.0),
    "turned": torch.randn(4, 3).T,
}
FACTS = {"spec": {"seed": 3, "name": "ß"}, "losses": [0.1, 1e-30]}


def saved(folder, *steps, lease_epoch=1):
    return [save(folder, step=step, lease_epoch=lease_epoch, tensors=TENSORS, facts=FACTS) for step in steps]


def flip(path):
    content = bytearray((path / "state.safetensors").read_bytes())
    content[-8] ^= 1
    (path / "state.safetensors").write_bytes(content)


def empty(path):
    shutil.rmtree(path)
    path.mkdir()


DAMAGES = {
    "a bit is flipped": flip,
    "the tensors are cut short": lambda path: os.truncate(path / "state.safetensors", 100),
    "the facts are changed": lambda path: (path / "state.json").write_text('{"step": 9}'),
    "the facts are gone": lambda path: (path / "state.json").unlink(),
    "the manifest is gone": lambda path: (path / "manifest.json").unlink(),
    "the manifest is empty": lambda path: (path / "manifest.json").write_text(""),
    "the manifest is a list": lambda path: (path / "manifest.json").write_text("[1]"),
    "the manifest names no files": lambda path: (path / "manifest.json").write_text('{"step": 2, "lease_epoch": 1}'),
    "the manifest is of another lease epoch": lambda path: path.rename(path.with_name("ck-00000002-e7")),
    "the folder is empty": empty,
}


def test_what_was_saved_is_read_back_bit_for_bit(tmp_path):
    (path,) = saved(tmp_path / "new" / "folder", 5)
    found = newest(tmp_path / "new" / "folder").found
    assert (found.step, found.path, found.path.name) == (5, path, "ck-00000005-e1")
    assert found.facts == FACTS | {"step": 5}
    assert found.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)


def test_a_folder_that_is_not_there_holds_no_checkpoint(tmp_path):
    assert newest(tmp_path / "nowhere") == checkpoint.Search(None, ())


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_taken(tmp_path, damage):
    older, newer = saved(tmp_path, 1, 2)
    damage(newer)
    search = newest(tmp_path)
    assert search.found.path == older
    (damaged,) = search.damaged
    assert damaged.reason
    assert damaged.path.name.startswith("corrupt-ck-00000002-e")
    assert damaged.path.is_dir()
    assert newest(tmp_path).damaged == ()


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_step_whose_checkpoint_was_damaged_can_be_saved_again(tmp_path, damage):
    (path,) = saved(tmp_path, 2)
    damage(path)
    newest(tmp_path)
    saved(tmp_path, 2)
    assert newest(tmp_path).found.step == 2


def test_when_all_are_damaged_there_is_none(tmp_path):
    for path in saved(tmp_path, 1, 2):
        flip(path)
    search = newest(tmp_path)
    assert search.found is None
    assert len(search.damaged) == 2


def test_a_folder_in_the_way_is_set_aside_and_not_renamed_onto(tmp_path):
    first, second = saved(tmp_path, 3, 3)
    assert first == second
    assert newest(tmp_path).found.step == 3
    assert [path.name[:19] for path in tmp_path.glob("corrupt-*")] == ["corrupt-ck-00000003"]


def test_a_plain_rename_onto_a_checkpoint_would_fail_for_ever(tmp_path):
    """The negative control: this is what the quarantine is for."""
    (path,) = saved(tmp_path, 3)
    (fresh := tmp_path / "fresh").mkdir()
    with pytest.raises(OSError, match="not empty"):
        fresh.rename(path)


def test_the_last_two_are_kept_the_further_step_and_the_later_attempt_first(tmp_path):
    saved(tmp_path, 8, 9)
    saved(tmp_path, 9, 10, lease_epoch=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ck-00000009-e2", "ck-00000010-e2"]


def test_who_dies_while_an_old_one_is_removed_leaves_no_checkpoint_of_which_half_is_gone(tmp_path, monkeypatch):
    saved(tmp_path, 8, 9)

    def die(path, **_):
        (path / "state.safetensors").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("core.checkpoint.shutil.rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            saved(tmp_path, 10)
    assert sorted(path.name for path in tmp_path.glob("ck-*")) == ["ck-00000009-e1", "ck-00000010-e1"]
    assert all((path / "state.safetensors").exists() for path in tmp_path.glob("ck-*"))
    assert newest(tmp_path).damaged == ()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ck-00000009-e1", "ck-00000010-e1"]


def test_steps_are_compared_as_numbers(tmp_path):
    saved(tmp_path, 99_999_999, 100_000_000)
    assert newest(tmp_path).found.step == 100_000_000


def test_what_was_never_finished_is_never_taken_and_is_cleared(tmp_path):
    (path,) = saved(tmp_path, 4)
    shutil.copytree(path, tmp_path / "tmp-0123")
    assert newest(tmp_path).found.path == path
    assert [path.name for path in tmp_path.iterdir()] == ["ck-00000004-e1"]


def test_a_full_disk_leaves_the_older_checkpoint_whole(tmp_path, monkeypatch):
    (older,) = saved(tmp_path, 1)

    def refuse(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        saved(tmp_path, 2)
    assert newest(tmp_path).found.path == older


def test_everything_is_on_disk_before_the_name_appears(tmp_path, monkeypatch):
    """Files, then their folder, then the name, then the folder that holds the name."""
    calls = []
    sync, rename = os.fsync, checkpoint.Path.rename

    def synced(descriptor):
        calls.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink().name.partition("-")[0]))
        sync(descriptor)

    def renamed(path, target):
        calls.append(("rename", target.name))
        return rename(path, target)

    monkeypatch.setattr(checkpoint.os, "fsync", synced)
    monkeypatch.setattr(checkpoint.Path, "rename", renamed)
    saved(tmp_path / "folder", 6)
    files = [("sync", name) for name in ("state.safetensors", "state.json", "manifest.json", "tmp")]
    assert calls == [*files, ("rename", "ck-00000006-e1"), ("sync", "folder")]


def test_a_checkpoint_is_safetensors_and_json_and_nothing_else(tmp_path):
    (path,) = saved(tmp_path, 1)
    assert sorted(file.name for file in path.iterdir()) == ["manifest.json", "state.json", "state.safetensors"]
    load_file(path / "state.safetensors")
    assert all(isinstance(json.loads((path / name).read_text()), dict) for name in ("manifest.json", "state.json"))


def test_facts_that_json_cannot_hold_are_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        save(tmp_path, step=1, lease_epoch=1, tensors=TENSORS, facts={"loss": float("nan")})
