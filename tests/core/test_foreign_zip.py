"""A stranger's zip is read in memory or refused: it neither unfolds without end nor leaves anything on the disk."""

import io
import stat
import struct
import tracemalloc
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core import foreign_zip
from core.foreign_zip import MAX_MEMBERS, read

WANTED = {"a.json": 100, "b.bytes": 1 << 30}
GOOD = [("a.json", b"{}"), ("b.bytes", b"tensors")]


def zipped(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def with_attributes(name, mode):
    member = zipfile.ZipInfo(name)
    member.create_system, member.external_attr = 3, mode << 16
    return member


@pytest.mark.parametrize("folder", ["", "checkpoint-9/", "déjà vu/"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_lie_at_the_top_or_in_one_folder(folder, compression, tmp_path):
    others = [("README.md", b"#"), ("__MACOSX/._a.json", b"?"), ("deep/er/a.json", b"!"), ("../../evil", b"!")]
    members = [*others, *((folder + name, content) for name, content in GOOD)]
    assert read(zipped(tmp_path / "x.zip", members, compression), WANTED) == dict(GOOD)
    assert [p.name for p in tmp_path.iterdir()] == ["x.zip"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([], r"no a\.json"),
        (GOOD[:1], r"no b\.bytes beside a\.json"),
        ([("one/" + n, c) for n, c in GOOD] + [("two/" + n, c) for n, c in GOOD], r"more than one a\.json"),
        ([("one/two/" + n, c) for n, c in GOOD], r"no a\.json"),
        ([("../../a.json", b"{}"), ("../../b.bytes", b"")], r"no a\.json"),
        ([*GOOD, GOOD[0]], r"two members named a\.json"),
        ([*GOOD, ("A.JSON", b"{}")], r"two members named A\.JSON"),
        ([*GOOD, ("adapter_model.bin", b"x")], r"save_pretrained"),
        ([*GOOD, ("training_args.bin", b"x")], "leave it out of the zip"),
        ([("archive/data.pkl", b"x"), ("archive/data/0", b"x")], "file of torch.save"),
        ([*GOOD, *((f"{n}", b"") for n in range(MAX_MEMBERS))], "66 members; at most 64"),
        ([(with_attributes("a.json", stat.S_IFLNK | 0o777), b"/etc/passwd"), GOOD[1]], "is a link"),
        ([("a.json", b" " * 101), GOOD[1]], "unfolds to 101 bytes; at most 100"),
    ],
)
def test_a_zip_that_could_not_be_meant_well_is_refused(members, reason, tmp_path):
    with pytest.raises(ValueError, match=reason):
        read(zipped(tmp_path / "x.zip", members), WANTED)


def test_a_bomb_is_refused_before_it_unfolds(tmp_path):
    path = zipped(tmp_path / "x.zip", [GOOD[0], ("b.bytes", bytes(100 << 20))])
    assert path.stat().st_size < 1 << 20
    tracemalloc.start()
    with pytest.raises(ValueError, match="more than 50 times"):
        read(path, WANTED)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_without_the_bound_of_the_ratio_the_bomb_unfolds(tmp_path, monkeypatch):
    monkeypatch.setattr(foreign_zip, "MAX_RATIO", 10**9)
    assert (
        len(read(zipped(tmp_path / "x.zip", [GOOD[0], ("b.bytes", bytes(100 << 20))]), WANTED)["b.bytes"]) == 100 << 20
    )


def patched(path, at, value):
    signature, offset, form = at
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, content.rfind(signature) + offset, value)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [
        ((b"PK\x01\x02", 24, "<L"), 3, "another size|cannot be read"),  # the directory says less than there is
        ((b"PK\x01\x02", 8, "<H"), 1, "encrypted"),
        ((b"PK\x01\x02", 10, "<H"), 12, "unusual way"),
        ((b"PK\x01\x02", 16, "<L"), 7, "cannot be read"),  # the checksum
        ((b"PK\x03\x04", 30, "<B"), ord("z"), "cannot be read"),  # the local name differs
        ((b"PK\x05\x06", 8, "<L"), 0xFFFFFFFF, "at most 64"),
        ((b"PK\x05\x06", 12, "<L"), 0xFFFFFFFF, "at most 64"),
        ((b"PK\x05\x06", 4, "<H"), 1, "part of several"),
        ((b"PK\x05\x06", 0, "<L"), 0, "not a zip"),
    ],
)
def test_a_zip_whose_parts_disagree_is_refused(at, value, reason, tmp_path):
    path = zipped(tmp_path / "x.zip", GOOD)
    with pytest.raises(ValueError, match=reason):
        read(patched(path, at, value), WANTED)


def whole():
    buffer = io.BytesIO()
    zipped(buffer, GOOD)
    return buffer.getvalue()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, len(whole()) - 1), value=st.integers(0, 255), cut=st.integers(0, len(whole())))
def test_any_damage_is_refused_with_words_or_harmless(at, value, cut, tmp_path):
    content = bytearray(whole())
    content[at] = value
    path = tmp_path / "x.zip"
    path.write_bytes(content[: len(content) - cut % 40])
    try:
        assert read(path, WANTED) == dict(GOOD)
    except ValueError as error:
        assert str(error)  # noqa: PT017 - either end is right
