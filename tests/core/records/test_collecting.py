"""Blobs that no row names are set aside, then removed; none that a row names, however the race went."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import update

from core.blob import MissingBlob, blob_of, place
from core.blobs import FolderStore
from core.records import adapters, datasets, jobs
from core.records.collecting import MANY, Collected, collect, collecting, unnamed
from core.records.tables import Adapter, Checkpoint, File, Table

HOUR, DAY = 3600.0, 86_400.0


@pytest.fixture
def store(tmp_path):
    return FolderStore(tmp_path / "store")


class House:
    """Blobs and rows of one installation, and the ages that tests give to blobs."""

    def __init__(self, db, store, account):
        self.db, self.store, self.account = db, store, account

    def put(self, content, age_s=2 * DAY):
        blob = self.store.put_bytes(content)
        self.age(blob, age_s)
        return blob

    def age(self, blob, age_s, *, is_aside=False):
        then = time.time() - age_s
        os.utime(self.store.root / place(blob.sha256, is_aside=is_aside), (then, then))

    def file(self, blob, **more):
        with self.db.writing() as session:
            return datasets.add(session, self.account, filename="t", purpose="fine-tune", blob=blob, **more)

    def delete_file(self, file):
        with self.db.writing() as session:
            assert datasets.delete(session, self.account, file.id)

    def job(self, spec, file, **changes):
        with self.db.writing() as session:
            return jobs.create(
                session,
                self.account,
                spec=spec.model_copy(update=changes),
                request={},
                training_file_id=file.id,
            ).id

    def collect(self):
        return collect(self.db, self.store, kept_s=DAY)

    def content(self, blob):
        return b"".join(self.store.read(blob.sha256))

    def aside(self):
        return {one.sha256 for one in self.store.listed(is_aside=True)}

    def here(self):
        return {one.sha256 for one in self.store.listed()}


@pytest.fixture
def house(db, store, account):
    return House(db, store, account)


def test_where_every_blob_has_a_row_nothing_is_done(house):
    house.file(house.put(b"a"))
    assert house.collect() == Collected()


def test_the_bytes_of_a_deleted_file_are_set_aside_and_a_day_later_removed(house):
    blob = house.put(b"rows")
    house.delete_file(house.file(blob))
    assert house.collect() == Collected(aside=1, aside_bytes=4)
    house.age(blob, DAY - HOUR, is_aside=True)
    assert house.collect() == Collected()
    house.age(blob, DAY + HOUR, is_aside=True)
    assert house.collect() == Collected(removed=1, removed_bytes=4)
    with pytest.raises(MissingBlob):
        house.content(blob)


def test_a_young_blob_without_a_row_is_left_alone(house):
    blob = house.put(b"being published", age_s=HOUR / 2)
    assert house.collect() == Collected()
    assert house.here() == {blob.sha256}
    assert list(unnamed(house.db, house.store)) == []


def test_two_rows_of_one_content_share_it_until_the_last_is_deleted(house):
    blob = house.put(b"shared")
    first, second = house.file(blob), house.file(blob)
    house.delete_file(first)
    assert house.collect() == Collected()
    house.delete_file(second)
    assert house.collect().aside == 1


def test_an_expired_file_is_as_a_deleted_one(house):
    blob = house.put(b"fleeting")
    file = house.file(blob, expires_after_s=3600)
    assert house.collect() == Collected()
    with house.db.writing() as session:
        session.execute(update(File).where(File.id == file.id).values(expires_at=1.0))
    assert house.collect().aside == 1


def test_what_an_unended_job_is_yet_to_read_stays_whatever_became_of_its_row(house, spec, machine):
    data, prompt, source = (house.put(content) for content in (b"data", b"prompt", b"source"))
    file = house.file(data)
    starts = {"init_adapter_sha256": prompt.sha256, "continue_from_sha256": source.sha256}
    job_id = house.job(spec, file, **starts)
    house.delete_file(file)
    assert house.collect() == Collected()
    machine.cancel(job_id)
    assert house.collect().aside == 3


def test_the_bytes_of_a_deleted_adapter_and_its_checkpoints_go(house, machine, make_job):
    job_id = make_job()
    held = machine.claim(job_id)
    state, kept, final = (house.put(content) for content in (b"state", b"step", b"final"))
    jobs.record_checkpoint(house.db, held, step=3, metrics={}, state=state, adapter=kept)
    said = {"peft_type": "LORA", "details": {}, "step": 9, "trained_tokens": 90}
    row = jobs.succeed(house.db, held, adapter=final, **said)
    assert house.collect() == Collected()
    with house.db.writing() as session:
        assert adapters.delete(session, house.account, row.name)
    assert house.collect().aside == 3


def test_every_column_that_may_name_a_blob_is_asked():
    """A column of a digest that is added to a table has to be added to records/named.py too."""
    found = {
        f"{table.name}.{column.name}"
        for table in Table.metadata.tables.values()
        for column in table.columns
        if column.name.endswith("_sha256")
    }
    secrets = {"api_keys.key_sha256", "sessions.token_sha256", "sign_in_codes.code_sha256"}
    repeated = {"idempotency.key_sha256", "idempotency.request_sha256"}
    blobs = {"files.blob_sha256", "adapters.blob_sha256", "checkpoints.state_sha256", "checkpoints.adapter_sha256"}
    assert found == secrets | repeated | blobs


class Meddled(FolderStore):
    """A store in which something happens between a collector's look at the rows and its act."""

    between = None

    def set_aside(self, sha256):
        if self.between:
            self.between()
        super().set_aside(sha256)


def test_a_row_that_comes_in_between_look_and_act_keeps_its_bytes(db, account, tmp_path):
    house = House(db, Meddled(tmp_path / "store"), account)
    blob = house.put(b"late")
    house.store.between = lambda: house.file(blob)
    assert house.collect() == Collected(aside=1, aside_bytes=4, brought_back=1)
    assert house.here() == {blob.sha256}
    assert house.collect() == Collected()


def test_bytes_written_again_in_between_are_there_for_the_row_that_follows(db, account, tmp_path):
    """The upload finds its blob, the collector takes it, and only then the upload's row comes in."""
    house = House(db, Meddled(tmp_path / "store"), account)
    blob = house.put(b"again")
    house.store.between = lambda: house.store.put_bytes(b"again")
    assert house.collect().aside == 1
    house.file(blob)
    assert house.content(blob) == b"again"
    assert house.collect() == Collected()


def test_a_row_of_what_lies_aside_counts_for_more_than_its_age(house):
    blob = house.put(b"old")
    house.collect()
    house.age(blob, 10 * DAY, is_aside=True)
    house.file(blob)
    assert house.collect() == Collected(brought_back=1)
    assert house.content(blob) == b"old"


def test_were_blobs_deleted_instead_of_set_aside_the_race_would_lose_one(db, account, tmp_path):
    """The negative control: what the two tests above rest on."""

    class Deleting(Meddled):
        def set_aside(self, sha256):
            self.between()
            self.delete(sha256)

    house = House(db, Deleting(tmp_path / "store"), account)
    blob = house.put(b"again")
    house.store.between = lambda: house.store.put_bytes(b"again")
    house.collect()
    house.file(blob)
    with pytest.raises(MissingBlob):
        house.content(blob)


def test_collectors_that_spare_nothing_lose_no_blob_that_is_being_published(house):
    """Two collectors without any pause for the young, beside writers of few contents: every row's bytes are there."""
    contents, is_over = [b"a" * 10, b"b" * 20, b"c" * 30], threading.Event()

    def published(number):
        blob = house.store.put_bytes(contents[number % 3])
        file = house.file(blob)
        assert house.content(blob) == contents[number % 3]
        if number % 4:
            house.delete_file(file)
        return file

    def collected():
        rounds = 0
        while not is_over.is_set() or rounds < 2:
            collect(house.db, house.store, kept_s=DAY, settled_s=-5.0)
            rounds += 1
        return rounds

    with ThreadPoolExecutor(5) as pool:
        collectors = [pool.submit(collected) for _ in range(2)]
        files = list(pool.map(published, range(48)))
        is_over.set()
        assert all(one.result() >= 2 for one in collectors)
    for file in files[::4]:
        assert len(b"".join(house.store.read(file.blob_sha256))) == file.size_bytes


def test_a_caller_may_stop_between_batches(house):
    for number in range(MANY + 1):
        (house.store.root / "blobs" / "ab").mkdir(exist_ok=True)
        path = house.store.root / "blobs" / "ab" / f"ab{number:062x}"
        path.touch()
        os.utime(path, (1, 1))
    assert next(collecting(house.db, house.store, kept_s=DAY)).aside == MANY
    assert (len(house.here()), len(house.aside())) == (1, MANY)


def test_what_a_cut_off_writer_left_goes_with_the_rest(house):
    (house.store.root / "tmp" / "half").write_bytes(b"half")
    os.utime(house.store.root / "tmp" / "half", (1, 1))
    assert house.collect() == Collected(unfinished_bytes=4)


def test_adapters_and_checkpoints_that_live_are_named(house, machine, make_job, tmp_path):
    (tmp_path / "f").write_bytes(b"adapter")
    assert blob_of(tmp_path / "f") == house.put(b"adapter")
    held = machine.claim(make_job())
    jobs.record_checkpoint(house.db, held, step=1, metrics={}, state=house.put(b"state"))
    jobs.succeed(
        house.db, held, adapter=blob_of(tmp_path / "f"), peft_type="LORA", details={}, step=1, trained_tokens=1
    )
    assert house.collect() == Collected()
    with house.db.session() as session:
        assert session.query(Adapter).count() == session.query(Checkpoint).count() == 1
