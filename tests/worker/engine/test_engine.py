"""The engine on tiny random models: company, chunks, replay, cancellation, and one row's ruin."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.specs.generation import AdapterRef
from tests.worker.engine.conftest import make_tokenizer
from worker.engine import engine as engine_module
from worker.engine.engine import Draining
from worker.engine.scheduler import Overloaded


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_eight_rows_of_base_and_three_adapters_say_in_company_what_each_says_alone(new_kitchen, family):
    kitchen = new_kitchen(family=family)
    worn = [None, *(kitchen.publish(seed=r, r=r, lora_alpha=2.0 * r) for r in (4, 8, 16))]
    asked = [
        {"prompt": text, "adapter": worn[i % 4], "max_tokens": 10 + i}
        for i, text in enumerate(
            ["a", "Good morning", "hello there, how are you today?", "b", "cc", "?", "12", "3 x 4"]
        )
    ]
    alone = [kitchen.tell(**a) for a in asked]
    together = [kitchen.ask(**a) for a in asked]
    kitchen.run()
    assert [a.ids for a in together] == [a.ids for a in alone]
    assert [a.text for a in together] == [a.text for a in alone]
    # Negative control: the adapters are not idle, so a row routed wrongly would show.
    assert len({tuple(kitchen.tell(prompt="same", adapter=a).ids) for a in worn}) == 4


def test_rows_that_join_late_and_leave_early_change_nothing_for_those_that_stay(kitchen):
    adapter = kitchen.publish(r=8)
    alone = kitchen.tell(prompt="steady", adapter=adapter, max_tokens=30)
    steady = kitchen.ask(prompt="steady", adapter=adapter, max_tokens=30)
    guests = []
    while not kitchen.engine.is_idle:
        if not kitchen.engine.step():
            kitchen.engine._sleep()
        if len(guests) < 12:
            guests.append(kitchen.ask(prompt="guest " * (len(guests) % 4 + 1), adapter=None, max_tokens=3))
    assert steady.ids == alone.ids
    assert len(guests) == 12
    assert all(g.fin for g in guests)


def test_a_prompt_run_in_chunks_says_what_it_says_run_whole(new_kitchen):
    prompt = "a prompt that is longer than one chunk of four"
    whole = new_kitchen(token_budget=64, rows=2).tell(prompt=prompt)
    chunked = new_kitchen(token_budget=4, rows=2).tell(prompt=prompt)
    assert chunked.ids == whole.ids
    assert len(whole.ids) > 1


def test_the_first_frame_alone_carries_the_prompt_and_frames_count_without_gaps(kitchen):
    answer = kitchen.tell(prompt="hello")
    assert answer.frames[0].prompt_ids == tuple(make_tokenizer().encode("hello"))
    assert all(f.prompt_ids is None for f in answer.frames[1:])
    assert [f.seq for f in answer.frames] == list(range(len(answer.frames)))
    assert [f.fin for f in answer.frames[:-1]] == [None] * (len(answer.frames) - 1)


SAMPLED = {"temperature": 1.0, "top_p": 0.95, "seed": 77, "max_tokens": 24}


@pytest.mark.parametrize("sampling", [{"max_tokens": 24}, SAMPLED, SAMPLED | {"stop": ("e", "Zq")}])
def test_a_replay_cut_anywhere_continues_ids_text_and_end(kitchen, sampling):
    adapter = kitchen.publish(r=4)
    whole = kitchen.tell(prompt="replay", adapter=adapter, **sampling)
    prompt_ids = whole.frames[0].prompt_ids
    for cut in range(1, len(whole.frames)):
        emitted = tuple(i for f in whole.frames[:cut] for i in f.ids)
        rest = kitchen.tell(prompt=prompt_ids + emitted, offset=len(emitted), adapter=adapter, **sampling)
        assert rest.ids == whole.ids[cut:]
        assert rest.text == "".join(f.text for f in whole.frames[cut:])
        assert rest.fin == whole.fin


def test_a_replay_with_another_seed_or_without_its_offset_goes_elsewhere(kitchen):
    whole = kitchen.tell(prompt="replay", **SAMPLED)
    ids = whole.frames[0].prompt_ids + tuple(whole.ids[:8])
    assert kitchen.tell(prompt=ids, offset=8, **SAMPLED | {"seed": 78}).ids != whole.ids[8:]
    assert kitchen.tell(prompt=ids, **SAMPLED).ids[: len(whole.ids) - 8] != whole.ids[8:]


def test_a_replay_of_an_answer_that_had_ended_ends_at_once(kitchen):
    whole = kitchen.tell(prompt="over", max_tokens=5)
    rest = kitchen.tell(prompt=whole.frames[0].prompt_ids + tuple(whole.ids), offset=len(whole.ids), max_tokens=5)
    assert (rest.ids, rest.text, rest.fin) == ([], "", whole.fin)
    assert kitchen.engine.is_idle


def test_a_stop_string_ends_the_text_before_it(kitchen):
    free = kitchen.tell(prompt="count", temperature=1.0, seed=3, max_tokens=40)
    middle = len(free.text) // 2
    stop = free.text[middle : middle + 3]
    stopped = kitchen.tell(prompt="count", temperature=1.0, seed=3, max_tokens=40, stop=(stop,))
    assert stopped.text == free.text[: free.text.index(stop)]
    assert stopped.fin == "stop"
    assert stopped.ids == free.ids[: len(stopped.ids)]


def test_a_stop_id_ends_a_row_and_has_no_text(new_kitchen):
    kitchen = new_kitchen()
    free = kitchen.tell(prompt="stop id", max_tokens=8)
    kitchen.intake._stop_ids = frozenset([free.ids[3]])
    stopped = kitchen.tell(prompt="stop id", max_tokens=8)
    first = free.ids.index(free.ids[3])
    assert stopped.ids == free.ids[: first + 1]
    assert stopped.text == "".join(f.text for f in free.frames[:first])
    assert stopped.fin == "stop"


def test_an_answer_ends_where_the_context_ends(kitchen):
    answer = kitchen.tell(prompt="x" * 60, max_tokens=50)
    assert (len(answer.ids), answer.fin) == (4, "length")


def test_a_cancelled_row_takes_part_in_no_further_step(kitchen):
    adapter = kitchen.publish()
    gone, stays = (kitchen.ask(prompt=p, adapter=adapter, max_tokens=20) for p in ("gone", "stays"))
    while len(gone.frames) < 3:
        kitchen.engine.step() or kitchen.engine._sleep()
    kitchen.engine.cancel(gone.key)
    kitchen.engine.step()
    assert len(gone.frames) == 3
    assert kitchen.engine.status()["running"] == 1
    kitchen.run()
    assert stays.fin == "length"
    assert kitchen.engine._cache._taken == [False] * 8
    assert [r.pins for r in kitchen.engine._residency._residents.values()] == [0]


def test_a_row_cancelled_while_it_waits_never_runs(new_kitchen):
    kitchen = new_kitchen(rows=1)
    first, second = kitchen.ask(max_tokens=3), kitchen.ask(max_tokens=3)
    kitchen.engine.cancel(second.key)
    kitchen.run()
    assert first.fin == "length"
    assert second.frames == []


def test_more_waiting_rows_than_may_are_refused(new_kitchen):
    kitchen = new_kitchen(rows=1, max_waiting=2)
    answers = [kitchen.ask(max_tokens=2), kitchen.ask(max_tokens=2)]
    with pytest.raises(Overloaded):
        kitchen.ask(max_tokens=2)
    kitchen.run()
    assert [a.fin for a in answers] == ["length", "length"]
    kitchen.tell(max_tokens=2)


def test_a_row_that_waits_too_long_is_told_to_try_elsewhere(new_kitchen):
    now = [0.0]
    kitchen = new_kitchen(rows=1, clock=lambda: now[0])
    first, second = kitchen.ask(max_tokens=9), kitchen.ask(max_tokens=9)
    kitchen.engine.step()
    now[0] = engine_module.QUEUE_S + 1
    kitchen.run()
    assert first.fin == "length"
    assert (second.error.code, second.error.retryable) == ("engine_overloaded", True)


def test_an_adapter_published_after_the_start_is_served(kitchen):
    base = kitchen.tell(prompt="new")
    adapter = kitchen.publish(seed=5, r=16)
    assert kitchen.tell(prompt="new", adapter=adapter).ids != base.ids


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda b: b[:-40], "adapter_corrupt"),
        (lambda _: b"not a zip", "adapter_corrupt"),
        (None, "adapter_unavailable"),
    ],
)
def test_an_adapter_that_cannot_be_served_ends_its_own_rows_only(kitchen, damage, code):
    good = kitchen.publish()
    bad = kitchen.publish(seed=9, damage=damage) if damage else AdapterRef(id="gone", sha256="0" * 64)
    alone = kitchen.tell(prompt="fine", adapter=good)
    answers = [kitchen.ask(prompt="fine", adapter=a) for a in (good, bad, None, bad, good)]
    kitchen.run()
    assert [a.error and (a.error.code, a.error.param) for a in answers] == [
        None,
        (code, "model"),
        None,
        (code, "model"),
        None,
    ]
    assert answers[0].ids == answers[4].ids == alone.ids


def test_an_adapter_of_another_base_model_is_corrupt_here(new_kitchen):
    foreign = new_kitchen(family="gpt2").publish()
    answer = new_kitchen().tell(adapter=foreign)
    assert answer.error.code == "adapter_corrupt"


def test_a_row_whose_numbers_are_no_numbers_ends_alone_and_leaves_no_trace(kitchen, monkeypatch):
    alone = kitchen.tell(prompt="neighbour", max_tokens=20)
    plain, poisoned = kitchen.model.__class__.forward, []

    def spoil(model, rows, cache=None):
        hidden = plain(model, rows, cache)
        for i, slot in enumerate(rows.slots):
            if slot == 1 and not poisoned:
                cache.keys[:, slot, :, : cache.lengths[slot]] = float("nan")
                cache.values[:, slot, :, : cache.lengths[slot]] = float("nan")
                hidden[rows.starts[i] : rows.starts[i + 1]] = float("nan")
                poisoned.append(slot)
        return hidden

    monkeypatch.setattr(kitchen.model.__class__, "forward", spoil)
    neighbour, victim = (kitchen.ask(prompt=p, max_tokens=20) for p in ("neighbour", "victim"))
    kitchen.run()
    assert poisoned
    assert victim.error.code == "model_output_invalid"
    assert neighbour.ids == alone.ids
    kitchen.ask(prompt="a longer row in slot zero, which makes the step reach far", max_tokens=4)
    assert kitchen.tell(prompt="neighbour", max_tokens=20).ids == alone.ids  # now in slot 1


def test_a_slot_that_is_not_wiped_would_spoil_its_next_row(kitchen):
    """Negative control of the law above: NaN weighed with zero is NaN, as soon as a longer row is beside it."""
    kitchen.engine._cache.values[:, 1] = float("nan")
    long, short = kitchen.ask(prompt="a longer row"), kitchen.ask(prompt="short")
    kitchen.run()
    assert long.fin == "length"
    assert short.error.code == "model_output_invalid"


def test_a_row_that_breaks_the_whole_batch_is_found_and_ends_alone(kitchen, monkeypatch):
    alone = kitchen.tell(prompt="neighbour", max_tokens=10)
    plain = kitchen.model.__class__.forward

    def breaks(model, rows, cache=None):
        hidden = plain(model, rows, cache)
        if 1 in rows.slots:
            raise RuntimeError("a kernel that cannot do this row")
        return hidden

    monkeypatch.setattr(kitchen.model.__class__, "forward", breaks)
    neighbour, guilty = (kitchen.ask(prompt=p, max_tokens=10) for p in ("neighbour", "guilty"))
    kitchen.run()
    assert (guilty.error.code, guilty.error.retryable) == ("internal_error", False)
    assert neighbour.ids == alone.ids


def test_memory_that_runs_out_for_one_row_is_worth_another_try_elsewhere(kitchen, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(kitchen.model.__class__, "forward", full)
    assert kitchen.tell().error.retryable


def test_a_reader_that_fails_ends_its_own_row_only(kitchen):
    def gone(_):
        raise RuntimeError("the event loop is closed")

    alone = kitchen.tell(prompt="other")
    other = kitchen.ask(prompt="other")
    kitchen.ask(prompt="broken", emit=gone)
    kitchen.run()
    assert other.ids == alone.ids


def test_an_engine_that_drains_takes_nothing_new_and_finishes_what_it_has(kitchen):
    answer = kitchen.ask()
    assert kitchen.engine.drain(0.0) is False
    with pytest.raises(Draining):
        kitchen.ask()
    kitchen.run()
    assert answer.fin == "length"
    assert kitchen.engine.drain(0.0) is True


def test_a_loop_that_stops_sends_its_rows_elsewhere(kitchen):
    stopped = kitchen.ask()
    kitchen.engine.stop()
    kitchen.engine.run()
    assert (stopped.error.code, stopped.error.retryable) == ("migrate", True)


def test_an_exception_out_of_a_step_ends_rows_retryably_and_is_not_hidden(kitchen, monkeypatch):
    answer = kitchen.ask()
    monkeypatch.setattr(kitchen.engine._forward, "outcomes", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        kitchen.engine.run()
    assert answer.error.code == "migrate"


def test_an_engine_is_alive_while_it_turns_or_has_nothing_to_do(new_kitchen):
    now = [0.0]
    kitchen = new_kitchen(clock=lambda: now[0])
    now[0] = 100.0
    assert kitchen.engine.is_alive
    kitchen.ask()
    assert not kitchen.engine.is_alive


def test_virtual_tokens_and_prefixes_take_their_share_of_the_context(kitchen, new_effects, monkeypatch):
    effects = new_effects(kitchen.facts)
    for name, virtual in (("prompt", 4), ("prefix", 3)):
        effect = effects[name]
        monkeypatch.setattr(kitchen.engine._residency, "_load", lambda _, e=effect: kitchen.model.resident(e))
        adapter = AdapterRef(id=name, sha256=f"{virtual:064x}")
        answer = kitchen.tell(prompt="x" * 50, adapter=adapter, max_tokens=60)
        assert (len(answer.ids), answer.fin) == (64 - 50 - virtual, "length")
        too_long = kitchen.tell(prompt="x" * (64 - virtual), adapter=adapter)
        assert too_long.error.code == "context_length_exceeded"


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(traffic=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 12), st.integers(1, 8)), min_size=1, max_size=14))
def test_any_traffic_says_what_its_rows_say_alone(kitchen, traffic):
    worn = [None, *(kitchen.publish(seed=r, r=r) for r in (2, 4, 8))]
    asked = [{"prompt": "ab" * n, "adapter": worn[a], "max_tokens": m, "seed": n} for a, n, m in traffic]
    together = [kitchen.ask(temperature=0.7, **a) for a in asked]
    kitchen.run()
    assert [a.ids for a in together] == [kitchen.tell(temperature=0.7, **a).ids for a in asked]
