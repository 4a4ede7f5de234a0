"""One contract for both stores: whatever holds of a folder holds of a bucket."""

import hashlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import obstore
import pytest
from moto.server import ThreadedMotoServer
from obstore.store import S3Store

from core import bucket
from core.blob import CHUNK, place
from core.blobs import Blob, CorruptBlob, FolderStore, MissingBlob, S3Blobs, open_store
from core.settings import Settings

CONTENT = b"grafted " * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ABSENT = "0" * 64
KEYS = {"access_key_id": "test", "secret_access_key": "test"}


@pytest.fixture(scope="session")
def s3_server():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_settings(s3_server, request, monkeypatch, tmp_path):
    """Settings that name a bucket of this test's own."""
    bucket = f"b{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]}"
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    make_bucket(s3_server, bucket)
    return Settings(
        data_dir=tmp_path / "data",
        blob_url=f"s3://{bucket}/some/prefix",
        s3_endpoint=s3_server,
        s3_access_key_id="test",
        s3_secret_access_key="test",
    )


def make_bucket(server, name):
    httpx.put(f"{server}/{name}").raise_for_status()


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path):
    if request.param == "folder":
        return open_store(Settings(data_dir=tmp_path / "data"))
    return open_store(request.getfixturevalue("s3_settings"))


def overwrite(store, sha256, content):
    """As a broken disk or a stranger with access would."""
    if isinstance(store, FolderStore):
        (store.root / place(sha256)).write_bytes(content)
    else:
        obstore.put(store.store, place(sha256), content)


def test_what_is_put_is_what_is_read(store, tmp_path):
    (tmp_path / "file").write_bytes(CONTENT)
    assert store.put(tmp_path / "file") == Blob(SHA256, len(CONTENT))
    assert b"".join(store.read(SHA256)) == CONTENT
    assert store.size(SHA256) == len(CONTENT)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_bytes_and_files_of_equal_content_are_one_blob(store, tmp_path):
    (tmp_path / "file").write_bytes(CONTENT)
    assert store.put_bytes(CONTENT) == store.put(tmp_path / "file") == store.put_bytes(CONTENT)


def test_an_empty_blob_is_a_blob(store, tmp_path):
    blob = store.put_bytes(b"")
    assert (blob.size_bytes, list(store.read(blob.sha256)), store.size(blob.sha256)) == (0, [], 0)
    assert store.fetch(blob.sha256, tmp_path / "empty").read_bytes() == b""


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, None), (0, 5), (3, 11), (7999, None), (7990, 99999), (8000, None), (9000, None), (5, 5), (9, 4)],
)
def test_a_part_is_read_as_a_slice_is(store, start, end):
    store.put_bytes(CONTENT)
    assert b"".join(store.read(SHA256, start, end)) == CONTENT[start:end]


def test_a_large_blob_comes_in_pieces(store):
    content = os.urandom(3 * CHUNK + 17)
    blob = store.put_bytes(content)
    pieces = list(store.read(blob.sha256))
    assert b"".join(pieces) == content
    assert len(pieces) >= 3


def test_what_is_not_there_is_missing_before_the_first_piece(store, tmp_path):
    for ask in (store.read, store.size, lambda sha256: store.fetch(sha256, tmp_path / "target")):
        with pytest.raises(MissingBlob):
            ask(ABSENT)
    assert not (tmp_path / "target").exists()


def test_what_is_deleted_is_gone_and_deleting_again_is_nothing(store):
    store.put_bytes(CONTENT)
    store.delete(SHA256)
    with pytest.raises(MissingBlob):
        store.size(SHA256)
    store.delete(SHA256)
    store.put_bytes(CONTENT)
    assert store.size(SHA256) == len(CONTENT)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../../etc/passwd",
        "a" * 63,
        "a" * 65,
        "A" * 64,
        "g" * 64,
        "a" * 64 + "\n",
        "a" * 62 + "/x",
        "é" * 64,
        "٣" * 64,
    ],
)
def test_only_a_sha256_is_a_name(store, tmp_path, name):
    for ask in (
        store.read,
        store.size,
        store.delete,
        store.set_aside,
        store.bring_back,
        store.drop,
        lambda sha256: store.fetch(sha256, tmp_path / "target"),
    ):
        with pytest.raises(ValueError, match="is not a sha256"):
            ask(name)


def test_a_fetched_blob_is_whole_and_leaves_nothing_beside_it(store, tmp_path):
    store.put_bytes(CONTENT)
    target = tmp_path / "new" / "folder" / "adapter.zip"
    assert store.fetch(SHA256, target) == target
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["adapter.zip"]


@pytest.mark.parametrize("damage", [CONTENT[:-1], CONTENT + b"x", b"X" + CONTENT[1:], b""])
def test_a_damaged_blob_is_never_delivered(store, tmp_path, damage):
    store.put_bytes(CONTENT)
    overwrite(store, SHA256, damage)
    target = tmp_path / "target"
    target.write_bytes(b"what was there")
    with pytest.raises(CorruptBlob, match=SHA256):
        store.fetch(SHA256, target)
    assert target.read_bytes() == b"what was there"
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_putting_again_heals_a_blob_that_was_cut_short(store, tmp_path):
    store.put_bytes(CONTENT)
    overwrite(store, SHA256, CONTENT[:10])
    store.put_bytes(CONTENT)
    assert store.fetch(SHA256, tmp_path / "target").read_bytes() == CONTENT


def test_many_that_put_the_same_at_once_all_succeed(store):
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: store.put_bytes(CONTENT), range(16))) == {Blob(SHA256, len(CONTENT))}
    assert b"".join(store.read(SHA256)) == CONTENT


def test_a_blob_beyond_one_put_is_uploaded_in_parts(store, tmp_path, monkeypatch):
    monkeypatch.setattr(bucket, "SINGLE_PUT_BYTES", 1 << 20)
    content = os.urandom(18 << 20)  # parts of 16 MiB
    (tmp_path / "large").write_bytes(content)
    blob = store.put(tmp_path / "large")
    assert store.put(tmp_path / "large") == blob
    assert store.fetch(blob.sha256, tmp_path / "copy").read_bytes() == content


def test_a_put_that_fails_halfway_leaves_nothing(tmp_path, monkeypatch):
    store = FolderStore(tmp_path / "store")

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        store.put_bytes(CONTENT)
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


def test_nobody_sees_half_a_blob_while_it_is_written(tmp_path):
    store = FolderStore(tmp_path)
    halfway, go_on = threading.Event(), threading.Event()

    def slowly():
        yield CONTENT[:4000]
        halfway.set()
        go_on.wait(60)
        yield CONTENT[4000:]

    writer = threading.Thread(target=store._publish, args=[slowly()])
    writer.start()
    assert halfway.wait(60)
    with pytest.raises(MissingBlob):
        store.size(SHA256)
    go_on.set()
    writer.join()
    assert store.size(SHA256) == len(CONTENT)


def test_the_bytes_are_on_the_disk_before_their_name_is(tmp_path, monkeypatch):
    """fsync of the file, rename, fsync of the folder: in another order a power cut could leave an empty blob."""
    done = []
    fsync, replace = os.fsync, Path.replace

    def told_fsync(descriptor):
        done.append(("fsync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))
        fsync(descriptor)

    def told_replace(path, target):
        done.append(("rename", str(target)))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", told_fsync)
    monkeypatch.setattr(Path, "replace", told_replace)
    FolderStore(tmp_path).put_bytes(CONTENT)
    final = tmp_path / place(SHA256)
    assert done[0][0] == "fsync"
    assert done[0][1].startswith(str(tmp_path / "tmp"))
    assert done[1:3] == [("rename", str(final)), ("fsync", str(final.parent))]


def test_a_bucket_is_asked_not_to_write_twice(s3_settings):
    """The server itself refuses: two writers cannot both think that they were first."""
    store = open_store(s3_settings)
    store.put_bytes(CONTENT)
    with pytest.raises(obstore.exceptions.AlreadyExistsError):
        obstore.put(store.store, place(SHA256), CONTENT, mode="create", use_multipart=False)


def test_blobs_lie_under_the_prefix_that_was_given(s3_settings, s3_server):
    open_store(s3_settings).put_bytes(CONTENT)
    bucket = s3_settings.blob_url.split("/")[2]
    options = {"allow_http": True}
    root = S3Store(bucket, endpoint=s3_server, region="us-east-1", client_options=options, **KEYS)
    assert [item["path"] for batch in obstore.list(root) for item in batch] == [
        f"some/prefix/blobs/{SHA256[:2]}/{SHA256}"
    ]


def test_the_setting_chooses_the_store(tmp_path, s3_settings):
    assert isinstance(open_store(s3_settings), S3Blobs)
    folder = open_store(Settings(blob_url=f"file://{tmp_path / 'with space%20'}"))
    assert isinstance(folder, FolderStore)
    assert folder.root == tmp_path / "with space%20"
    for url in ("ftp://host/x", "s3://", "/a/path"):
        with pytest.raises(ValueError, match="neither file:///folder nor s3://bucket/prefix"):
            open_store(Settings(blob_url=url))


def names(store, **where):
    return [stored.sha256 for stored in store.listed(**where)]


def test_what_is_put_is_listed_with_its_size_and_when(store):
    store.put_bytes(CONTENT)
    empty = store.put_bytes(b"")
    found = {stored.sha256: stored for stored in store.listed()}
    assert {sha256: stored.size_bytes for sha256, stored in found.items()} == {SHA256: len(CONTENT), empty.sha256: 0}
    assert all(abs(stored.changed_at - time.time()) < 60 for stored in found.values())
    assert names(store, is_aside=True) == []


def test_what_is_set_aside_is_out_of_its_place_and_reading_brings_it_back(store, tmp_path):
    asked = (
        lambda: b"".join(store.read(SHA256)) == CONTENT,
        lambda: store.size(SHA256) == len(CONTENT),
        lambda: store.fetch(SHA256, tmp_path / "target").read_bytes() == CONTENT,
        lambda: store.bring_back(SHA256),
    )
    for ask in asked:
        store.put_bytes(CONTENT)
        store.set_aside(SHA256)
        assert (names(store), names(store, is_aside=True)) == ([], [SHA256])
        assert ask()
        assert names(store) == [SHA256]
        store.drop(SHA256)
        assert b"".join(store.read(SHA256)) == CONTENT


def test_what_was_set_aside_is_young_again(tmp_path):
    store = FolderStore(tmp_path)
    store.put_bytes(CONTENT)
    os.utime(tmp_path / place(SHA256), (1, 1))
    assert next(store.listed()).changed_at == 1
    store.set_aside(SHA256)
    assert next(store.listed(is_aside=True)).changed_at > 1


def test_what_was_set_aside_and_dropped_is_missing(store):
    store.put_bytes(CONTENT)
    store.set_aside(SHA256)
    store.drop(SHA256)
    with pytest.raises(MissingBlob):
        store.size(SHA256)
    assert not store.bring_back(SHA256)
    for act in (store.set_aside, store.drop):
        act(SHA256)  # twice is nothing


def test_deleting_reaches_what_was_set_aside(store):
    store.put_bytes(CONTENT)
    store.set_aside(SHA256)
    store.delete(SHA256)
    with pytest.raises(MissingBlob):
        store.size(SHA256)


def test_a_reader_whose_blob_is_set_aside_before_the_first_piece_still_gets_it(store):
    store.put_bytes(CONTENT)
    pieces = store.read(SHA256)
    store.set_aside(SHA256)
    assert b"".join(pieces) == CONTENT


def test_readers_and_one_who_sets_aside_never_meet_a_missing_blob(store):
    """All of them at once, many times: each reader gets the bytes, whoever was faster."""
    store.put_bytes(CONTENT)
    with ThreadPoolExecutor(4) as pool:
        aside = [pool.submit(store.set_aside, SHA256) for _ in range(20)]
        read = [pool.submit(lambda: b"".join(store.read(SHA256))) for _ in range(60)]
        assert [reading.result() for reading in read] == [CONTENT] * 60
        assert all(done.result() is None for done in aside)


def test_what_a_writer_left_half_done_is_removed_once_it_is_old(tmp_path):
    store = FolderStore(tmp_path)
    old, young = tmp_path / "tmp" / "old", tmp_path / "tmp" / "young"
    old.write_bytes(b"half")
    young.write_bytes(b"half")
    os.utime(old, (1, 1))
    assert store.drop_unfinished(before=time.time() - 60) == 4
    assert [path.name for path in (tmp_path / "tmp").iterdir()] == ["young"]
