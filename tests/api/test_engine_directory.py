from contextlib import ExitStack

import anyio
import pytest
from serving import BASE

from api.engine_directory import EngineDirectory
from core.records import presences


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def directory(service, clock):
    return EngineDirectory(service.database, clock)


@pytest.fixture
def beat(service):
    def beat(name, *, is_ready=True, base_model=BASE, **details):
        said = {"role": "engine", "details": details, "url": f"http://{name}", "base_model": base_model}
        presences.beat(service.database, name, is_ready=is_ready, **said)

    return beat


def choices(directory, adapter=None, **how):
    return [engine.id for engine in anyio.run(lambda: directory.choices(BASE, adapter, **how))]


def test_only_ready_engines_of_the_base_model_are_chosen(directory, beat):
    beat("a")
    beat("b", is_ready=False)
    beat("c", base_model="another")
    assert choices(directory) == ["a"]


def test_an_adapter_keeps_its_engine_when_another_leaves(service, directory, beat, clock):
    names = [f"engine-{n}" for n in range(5)]
    for name in names:
        beat(name)
    before = {f"adapter-{n}": choices(directory, f"adapter-{n}") for n in range(40)}
    assert len({order[0] for order in before.values()}) == 5
    presences.leave(service.database, names[2])
    clock.now += 2
    for adapter, order in before.items():
        assert choices(directory, adapter) == [name for name in order if name != names[2]]


def test_an_engine_that_failed_rests_longer_each_time_and_is_forgiven_once_it_answers(
    directory, beat, clock, monkeypatch
):
    monkeypatch.setattr("api.engine_directory.REST_S", (1.0, 3.0))
    beat("a")
    beat("b")
    first = anyio.run(lambda: directory.choices(BASE, None))[0]
    lengths = []
    for _ in range(4):
        directory.failed(first)
        assert choices(directory)[-1] == first.id
        assert first.id not in choices(directory, is_awake=True)
        began = clock.now
        while choices(directory)[0] != first.id:
            clock.now += 0.5
        lengths.append(clock.now - began)
    assert lengths == [1.0, 2.0, 3.0, 3.0]
    directory.failed(first)
    directory.answered(first)
    assert choices(directory)[0] == first.id


def test_a_full_engine_is_passed_by_while_another_has_places(directory, beat):
    for name in ("a", "b"):
        beat(name, rows=2)
    first, second = anyio.run(lambda: directory.choices(BASE, "adapter-1"))
    with ExitStack() as under_way:
        for _ in range(2):
            assert choices(directory, "adapter-1")[0] == first.id  # it has places
            under_way.enter_context(directory.asking(first))
        for _ in range(2):
            assert choices(directory, "adapter-1")[0] == second.id
            under_way.enter_context(directory.asking(second))
        # As full as one another: who wore the adapter before is first again, up to its part.
        assert choices(directory, "adapter-1")[0] == first.id
        under_way.enter_context(directory.asking(first))
        assert choices(directory, "adapter-1")[0] == first.id
        under_way.enter_context(directory.asking(first))
        assert choices(directory, "adapter-1")[0] == second.id
    assert choices(directory, "adapter-1") == [first.id, second.id]
    assert not directory._under_way


def test_an_engine_that_does_not_say_how_many_places_it_has_is_never_full(directory, beat):
    for name in ("a", "b"):
        beat(name)
    first = anyio.run(lambda: directory.choices(BASE, "adapter-1"))[0]
    with ExitStack() as under_way:
        for _ in range(50):
            under_way.enter_context(directory.asking(first))
        assert choices(directory, "adapter-1")[0] == first.id


def test_a_new_engine_is_found_at_once_where_there_was_none(directory, beat):
    assert choices(directory) == []
    beat("a")
    assert choices(directory) == ["a"]


def test_an_engine_answers_in_the_precision_of_its_base_alone(directory, beat):
    beat("old")
    beat("plain", base_precision="bf16")
    beat("small", base_precision="nf4")
    assert set(choices(directory)) == {"old", "plain"}
    assert choices(directory, precision="nf4") == ["small"]
    assert set(choices(directory, precision=None)) == {"old", "plain", "small"}
