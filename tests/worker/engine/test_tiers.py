"""Adapters between store, disk, host memory and the model's memory: many through little, and gone when deleted."""

import gc
import resource
import threading
import time
import weakref
from collections import Counter

import pytest
import torch

from core.blobs import FolderStore
from core.effects import Ensemble, LowRank, SoftPrompt
from core.records import accounts
from core.records.database import Database
from core.records.tables import Adapter
from core.routing import tensors_of
from core.settings import Settings
from worker.engine.host_memory import HostMemory
from worker.engine.residency import loader, prune
from worker.engine.tiers import Tiers, forget_deleted

CPU = torch.device("cpu")


def size_of(kitchen, adapter):
    load = loader(kitchen.store, kitchen.cache / "cache", kitchen.model.resident)
    return sum(t.numel() * t.element_size() for t in tensors_of(load(adapter.sha256)))


def test_forty_adapters_pass_through_memory_for_four_and_every_request_succeeds(new_kitchen):
    roomy = new_kitchen()
    adapters = [roomy.publish(seed=seed, r=4, lora_alpha=32.0) for seed in range(40)]
    room = 4 * size_of(roomy, adapters[0])
    kitchen = new_kitchen(adapter_memory_bytes=room, max_waiting=100)
    wanted = [roomy.tell(prompt="many", adapter=adapter, max_tokens=4).ids for adapter in adapters]
    for _ in range(2):
        answers = [kitchen.ask(prompt="many", adapter=adapter, max_tokens=4) for adapter in adapters]
        while not kitchen.engine.is_idle:
            if not kitchen.engine.step():
                kitchen.engine._sleep()
            assert kitchen.engine.status()["adapters"]["bytes"] <= room
        assert [answer.ids for answer in answers] == wanted
    assert len(set(map(tuple, wanted))) > 30
    assert kitchen.engine.status()["adapter_loads"] >= 2 * 36


def test_memory_is_flat_however_often_adapters_come_and_go(new_kitchen):
    roomy = new_kitchen()
    adapters = [roomy.publish(seed=seed, r=4) for seed in range(12)]
    kitchen = new_kitchen(adapter_memory_bytes=2 * size_of(roomy, adapters[0]), rows=2)

    def live():
        gc.collect()
        return sum(type(o) is LowRank for o in gc.get_objects())

    def around():
        for adapter in adapters:
            assert kitchen.tell(adapter=adapter, max_tokens=2).fin

    around()
    before, peak = live(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(4):
        around()
    assert live() <= before
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 20_000  # KiB


@pytest.mark.parametrize("ranks", [(1, 3, 64, 2, 128, 17)])
def test_adapters_of_any_rank_come_without_a_restart(kitchen, ranks):
    published = [kitchen.publish(seed=rank, r=rank, lora_alpha=2.0 * rank) for rank in ranks]
    alone = [kitchen.tell(prompt="rank", adapter=adapter).ids for adapter in published]
    together = [kitchen.ask(prompt="rank", adapter=adapter) for adapter in published]
    kitchen.run()
    assert [answer.ids for answer in together] == alone


def test_a_deleted_adapter_leaves_memory_once_its_last_row_has_ended(kitchen):
    adapter = kitchen.publish()
    row = kitchen.ask(adapter=adapter, max_tokens=9)
    while len(row.frames) < 2:
        kitchen.engine.step() or kitchen.engine._sleep()
    held = weakref.ref(kitchen.engine._residency._residents[adapter.sha256].effect)
    kitchen.engine.forget([adapter.sha256])
    assert kitchen.engine.adapters() == [adapter.sha256]  # worn
    kitchen.run()
    assert (row.fin, kitchen.engine.adapters(), kitchen.engine.status()["adapters"]["bytes"]) == ("length", [], 0)
    gc.collect()
    assert held() is None
    assert kitchen.tell(adapter=adapter, max_tokens=9).ids == row.ids  # whoever asks again has it fetched again


def test_without_forgetting_a_deleted_adapter_would_stay(kitchen):
    """Negative control of the law above."""
    adapter = kitchen.publish()
    kitchen.tell(adapter=adapter)
    gc.collect()
    assert kitchen.engine.adapters() == [adapter.sha256]


def test_rows_go_on_while_an_adapter_is_on_its_way(kitchen, monkeypatch):
    gate, plain = threading.Event(), kitchen.engine._residency._load
    monkeypatch.setattr(kitchen.engine._residency, "_load", lambda digest: gate.wait(10) and plain(digest))
    talker = kitchen.ask(prompt="talk", max_tokens=20)
    cold = kitchen.ask(adapter=kitchen.publish(), max_tokens=2)
    began = time.monotonic()
    for _ in range(22):
        kitchen.engine.step()
    assert (talker.fin, cold.frames) == ("length", [])
    assert time.monotonic() - began < 10  # a step that waited for it would have come so far too, but late
    gate.set()
    kitchen.run()
    assert cold.fin == "length"


def test_the_next_rows_adapters_are_fetched_while_rows_before_them_run(new_kitchen):
    kitchen = new_kitchen(rows=1)
    adapters = [kitchen.publish(seed=seed) for seed in (1, 2)]
    kitchen.tell(adapter=adapters[0], max_tokens=1)
    first, second = (kitchen.ask(adapter=adapter, max_tokens=9) for adapter in adapters)
    kitchen.engine.step()
    kitchen.engine.step()
    for future in list(kitchen.engine._residency._loading.values()):
        future.exception(timeout=60)
    kitchen.engine.step()
    assert adapters[1].sha256 in kitchen.engine.adapters()
    assert (len(first.frames), second.frames) == (3, [])
    kitchen.run()
    assert (first.fin, second.fin) == ("length", "length")


def low_rank(fill, dtype=torch.bfloat16):
    return LowRank({"x": torch.full((2, 8), fill, dtype=dtype)}, {"x": torch.ones(8, 2, dtype=dtype)}, {"x": 1.0})


SIZE = 2 * 2 * 16


def test_what_host_memory_holds_is_copied_and_not_loaded_again():
    calls = Counter()

    def load(digest):
        calls[digest] += 1
        prompt = SoftPrompt(torch.full((1, 32), float(len(digest))))
        return Ensemble((prompt, low_rank(2.0))) if digest == "both" else low_rank(float(ord(digest)))

    host = HostMemory(load, device=CPU, memory_bytes=3 * SIZE)
    first, again = host("a"), host("a")
    assert calls == {"a": 1}
    assert first is not again
    assert torch.equal(first.a["x"], again.a["x"])
    assert again.a["x"].dtype == torch.bfloat16
    assert again.scale == {"x": 1.0}
    host("b"), host("a"), host("c"), host("d")  # the oldest, b, leaves
    assert (host.names(), host.size_bytes) == (["a", "c", "d"], 3 * SIZE)
    host("b")
    assert calls == {"a": 1, "b": 2, "c": 1, "d": 1}
    host.forget(["c", "unknown"])
    assert (host.has("c"), host.size_bytes) == (False, 2 * SIZE)
    host("both")
    assert [type(member) for member in host("both").members] == [SoftPrompt, LowRank]
    assert calls["both"] == 1


def test_what_is_larger_than_host_memory_is_served_and_not_held():
    host = HostMemory(lambda _: low_rank(1.0), device=CPU, memory_bytes=SIZE - 1)
    assert host("a").a["x"].shape == (2, 8)
    assert host.names() == []


def test_the_disk_is_bounded_and_the_zip_opened_longest_ago_goes_first(kitchen, tmp_path):
    adapters = [kitchen.publish(seed=seed) for seed in range(4)]
    folder = tmp_path / "disk"
    size = kitchen.store.size(adapters[0].sha256)
    load = loader(kitchen.store, folder, kitchen.model.resident, disk_bytes=3 * size + size // 2)
    for at in (0, 1, 2, 0, 3):
        load(adapters[at].sha256)
    assert {path.stem for path in folder.glob("*.zip")} == {adapters[at].sha256 for at in (0, 2, 3)}
    assert isinstance(load(adapters[1].sha256), LowRank)  # from the store again
    prune(folder, 0, keep=folder / f"{adapters[1].sha256}.zip")
    assert [path.stem for path in folder.glob("*.zip")] == [adapters[1].sha256]


@pytest.fixture
def records(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/graft.db")
    database.migrate()
    yield database
    database.close()


def note(database, adapter, name, *, is_deleted):
    account, _ = accounts.create_project(database, slug=name, name=name, environment="local")
    with database.writing() as session:
        session.add(
            Adapter(
                id=name,
                name=f"ft:tiny:x:{name}",
                organization_id=account.organization_id,
                project_id=account.project_id,
                base_model="tiny",
                peft_type="LORA",
                blob_sha256=adapter.sha256,
                size_bytes=1,
                details={},
                created_at=1.0,
                deleted_at=2.0 if is_deleted else None,
            )
        )


def test_what_the_records_say_is_deleted_leaves_every_tier_and_nothing_else_does(kitchen, records, tmp_path):
    settings = Settings(data_dir=tmp_path / "data")
    tiers = Tiers(settings, kitchen.store, kitchen.model)
    kitchen.engine._residency._load, kitchen.engine._tier = tiers.load, tiers.tier
    gone, living, shared, unknown = (kitchen.publish(seed=seed, r=seed + 1) for seed in range(4))
    note(records, gone, "gone", is_deleted=True)
    note(records, living, "living", is_deleted=False)
    note(records, shared, "hers", is_deleted=True)  # of equal content, one of two is deleted
    note(records, shared, "his", is_deleted=False)
    for adapter in (gone, living, shared, unknown):
        kitchen.tell(adapter=adapter)
    assert tiers.names() == {a.sha256 for a in (gone, living, shared, unknown)}
    assert tiers.tier(gone.sha256) == "disk"
    assert forget_deleted(records, kitchen.engine, tiers) == [gone.sha256]
    kept = {a.sha256 for a in (living, shared, unknown)}
    assert set(kitchen.engine.adapters()) == tiers.names() == kept
    assert tiers.tier(gone.sha256) == "store"
    assert kitchen.engine.status()["by_adapter"][gone.sha256]["tier"] == "store"
    assert forget_deleted(records, kitchen.engine, tiers) == []


def test_a_device_of_its_own_gets_a_host_tier_and_a_cpu_none(kitchen, tmp_path, monkeypatch):
    settings = Settings(data_dir=tmp_path / "data")
    adapter = kitchen.publish()
    assert Tiers(settings, FolderStore(tmp_path / "none"), kitchen.model)._host is None
    monkeypatch.setattr(kitchen.model.__class__, "device", torch.device("meta"))
    monkeypatch.setattr(kitchen.model, "resident", lambda effect: effect)
    tiers = Tiers(settings, kitchen.store, kitchen.model)
    tiers.load(adapter.sha256)
    assert tiers.tier(adapter.sha256) == "host"
    assert all(t.is_meta for t in tensors_of(tiers.load(adapter.sha256)))
    tiers.forget([adapter.sha256])
    assert tiers.tier(adapter.sha256) == "store"
