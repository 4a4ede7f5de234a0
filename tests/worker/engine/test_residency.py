"""Adapters in bounded memory: who stays, who goes, who waits, and what never comes."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.blobs import FolderStore, MissingBlob
from core.effects import LowRank
from worker.engine.residency import CorruptAdapterError, Residency, loader
from worker.engine.scheduler import Readiness

UNIT = 400  # bytes of one unit of adapter


def effect(units=1):
    return LowRank({"x": torch.ones(units, 50)}, {"x": torch.ones(50, units)}, {"x": 1.0})


class House:
    """A residency whose loads have ended whenever settle() returns."""

    def __init__(self, load, units):
        self.arrivals = threading.Semaphore(0)
        self.residency = Residency(load, memory_bytes=units * UNIT, arrived=self.arrivals.release)

    def settle(self, *wishes):
        """Turns until nothing changes."""
        for _ in range(2 * len(wishes) + 2):
            self.residency.turn(wishes)
            for future in list(self.residency._loading.values()):
                future.exception(timeout=60)
        return {w: self.residency.readiness(w) for w in wishes}


@pytest.fixture
def new_house():
    houses = []

    def new(load=lambda _: effect(), units=2):
        houses.append(House(load, units))
        return houses[-1]

    yield new
    for house in houses:
        house.residency.close()


READY, LOADING, BLOCKED = Readiness.READY, Readiness.LOADING, Readiness.BLOCKED


def test_an_adapter_is_loading_then_ready_and_loaded_once(new_house):
    calls = []
    house = new_house(lambda d: calls.append(d) or effect())
    house.residency.turn(["a"])
    assert house.residency.readiness("a") is LOADING
    assert house.settle("a") == {"a": READY}
    house.settle("a")
    assert calls == ["a"]
    assert house.arrivals.acquire(timeout=60)


def test_the_least_recently_wished_for_leaves_first(new_house):
    house = new_house()
    for wish in ("a", "b", "a", "c"):
        house.settle(wish)
    assert house.residency.names()[0] == ["a", "c"]


def test_what_is_pinned_stays_and_the_newcomer_waits_without_memory_until_it_is_let_go(new_house):
    house = new_house()
    house.settle("a", "b")
    worn = [house.residency.pin(d) for d in ("a", "b")]
    assert all(isinstance(e, LowRank) for e in worn)
    assert house.settle("c") == {"c": BLOCKED}
    house.residency.unpin("b")
    assert house.settle("c") == {"c": READY}
    assert house.residency.names()[0] == ["a", "c"]


def test_the_first_wish_takes_the_room_of_later_ones_never_the_reverse(new_house):
    house = new_house(units=1)
    house.settle("later")
    assert house.settle("first", "later") == {"first": READY, "later": BLOCKED}
    assert house.settle("first", "later") == {"first": READY, "later": BLOCKED}


def test_what_was_worn_until_now_stays_longer_than_what_was_wished_for_before(new_house):
    house = new_house()
    house.settle("worn")
    house.residency.pin("worn")
    house.settle("wished")
    house.residency.unpin("worn")
    house.settle("new")
    assert house.residency.names()[0] == ["worn", "new"]


def test_what_waits_without_memory_and_is_no_longer_wished_for_is_let_go(new_house):
    house = new_house(units=1)
    house.settle("a")
    house.residency.pin("a")
    house.settle("b")
    house.settle()
    assert house.residency.names() == (["a"], [])


def test_an_adapter_larger_than_all_memory_never_comes(new_house):
    house = new_house(lambda _: effect(3), units=2)
    house.settle("huge")
    assert house.residency.fault("huge").code == "adapter_corrupt"


def test_corrupt_content_is_remembered_and_a_failed_fetch_is_tried_again(new_house):
    calls = []

    def load(digest):
        calls.append(digest)
        raise {"corrupt": CorruptAdapterError("no"), "missing": MissingBlob("no"), "flaky": OSError("no")}[digest]

    house = new_house(load)
    faults = {}
    for digest in ("corrupt", "missing", "flaky"):
        house.residency.turn([digest])
        house.residency._loading[digest].exception(timeout=60)
        house.residency.turn([digest])
        faults[digest] = house.residency.fault(digest)
        house.settle(digest)
    assert {d: (f.code, f.param, f.retryable) for d, f in faults.items()} == {
        "corrupt": ("adapter_corrupt", "model", False),
        "missing": ("adapter_unavailable", "model", False),
        "flaky": ("adapter_unavailable", "model", True),
    }
    assert calls.count("corrupt") == 1
    assert calls.count("missing") > 1
    assert calls.count("flaky") > 1


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 3), min_size=2, max_size=5),
    turns=st.lists(st.lists(st.integers(0, 4), max_size=4), min_size=1, max_size=8),
)
def test_memory_is_never_exceeded_and_the_first_wish_is_always_granted(sizes, turns):
    digests = [f"d{i}" for i in range(len(sizes))]
    house = House(lambda d: effect(sizes[digests.index(d)]), units=3)
    try:
        for turn in turns:
            wishes = [digests[i] for i in turn if i < len(digests)]
            states = house.settle(*wishes)
            assert house.residency.size_bytes <= 3 * UNIT
            assert not wishes or states[wishes[0]] is READY
    finally:
        house.residency.close()


@pytest.fixture
def kept(kitchen, tmp_path):
    return kitchen.publish(), loader(kitchen.store, tmp_path / "kept", kitchen.model.resident), tmp_path / "kept"


def test_a_zip_damaged_in_the_cache_is_fetched_again(kept):
    adapter, load, folder = kept
    load(adapter.sha256)
    path = folder / f"{adapter.sha256}.zip"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    assert isinstance(load(adapter.sha256), LowRank)
    assert path.read_bytes() == whole


def test_a_zip_in_the_cache_needs_no_store(kept):
    adapter, load, folder = kept
    load(adapter.sha256)
    offline = loader(FolderStore(folder.parent / "empty"), folder, lambda e: e)
    assert isinstance(offline(adapter.sha256), LowRank)


def test_a_blob_damaged_in_the_store_is_corrupt_until_the_store_heals(kitchen):
    adapter = kitchen.publish()
    path = kitchen.store.root / "blobs" / adapter.sha256[:2] / adapter.sha256
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"?")
    assert kitchen.tell(adapter=adapter).error.code == "adapter_corrupt"
    path.write_bytes(whole)
    assert kitchen.tell(adapter=adapter).fin


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), 1e30])
def test_weights_that_could_reach_neighbours_are_refused(kitchen, tmp_path, weight):
    def poisoned(facts, **asked):
        lora = new_lora(facts, **asked)
        with torch.no_grad():
            lora.a[0][0, 0] = weight
        return lora

    new_lora, kitchen.new_lora = kitchen.new_lora, poisoned
    adapter = kitchen.publish()
    with pytest.raises(CorruptAdapterError):
        loader(kitchen.store, tmp_path / "kept", kitchen.model.resident)(adapter.sha256)
