"""Recorded decode steps: which form serves, what voids one, and that an engine says by them what it says without."""

import pytest

from worker.engine import forward
from worker.engine.graphs import Form, Graphs, form_of
from worker.engine.still import StillSteps


def test_a_batch_takes_the_least_form_that_holds_it():
    sizes = [form_of(rows, 40, is_bare=True).rows for rows in (1, 2, 3, 5, 8, 9, 17, 40)]
    assert sizes == [1, 2, 4, 8, 8, 16, 24, 40]
    assert form_of(6, 7, is_bare=False) == Form(7, is_bare=False)
    with pytest.raises(ValueError, match="1 to 7 rows, not 8"):
        form_of(8, 7, is_bare=True)


def test_a_step_is_recorded_when_its_form_comes_a_second_time_and_then_repeated():
    made = []
    graphs = Graphs(lambda form: made.append(form) or len(made))
    form = Form(4, is_bare=False)
    assert [graphs.find(form, "stamp") for _ in range(4)] == [None, 1, 1, 1]
    assert [graphs.find(Form(4, is_bare=True), "stamp") for _ in range(2)] == [None, 2]
    assert made == [form, Form(4, is_bare=True)]


def test_a_step_whose_tensors_moved_is_void_for_good():
    graphs = Graphs(lambda _: object())
    form = Form(4, is_bare=False)
    first = [graphs.find(form, "before") for _ in range(2)][1]
    assert graphs.find(form, "after") is None
    again = [graphs.find(form, "before") for _ in range(2)]
    assert again[0] is None
    assert again[1] is not first
    assert graphs.recorded == 2


class Tape:
    """Stands for a graph: what it repeats is the step itself, on the tensors that it had when it was recorded."""

    def __init__(self, step):
        self.step, self.replays = step, 0
        step()
        self.short = step.__self__._short

    def replay(self):
        self.replays += 1
        assert self.step.__self__._short is self.short, "a void step was repeated: its tensors are others now"
        return self.step()


@pytest.fixture
def tapes(monkeypatch):
    """Engines made in this test repeat their decode steps. All tapes that they make."""
    made = []

    def record(step):
        made.append(Tape(step))
        return made[-1]

    monkeypatch.setattr(forward, "still_steps", lambda model, cache: StillSteps(model, cache, record))
    return made


def answers(kitchen):
    """Rows of the base and of two adapters, of different lengths, some of them arriving late."""
    worn = [None, kitchen.publish(seed=4, r=4, lora_alpha=8.0), kitchen.publish(seed=40, r=40, lora_alpha=40.0)]
    told = [kitchen.ask(prompt="a" * (n + 2), adapter=worn[n % 2], max_tokens=6 + 5 * n) for n in range(3)]
    while kitchen.engine.tokens < 12:
        kitchen.engine.step() or kitchen.engine._sleep()
    told += [kitchen.ask(prompt="late", adapter=adapter, max_tokens=9) for adapter in worn]
    kitchen.run()
    assert not any(answer.error for answer in told)
    return [answer.ids for answer in told]


def test_an_engine_that_repeats_steps_says_what_one_that_does_not_says(new_kitchen, tapes):
    here = answers(new_kitchen())
    assert sum(tape.replays for tape in tapes) > 5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "still_steps", lambda *_: None)
        assert answers(new_kitchen()) == here


def test_rows_go_on_without_when_recording_fails(new_kitchen, monkeypatch):
    def fails(_):
        raise RuntimeError("no graphs here")

    monkeypatch.setattr(forward, "still_steps", lambda model, cache: StillSteps(model, cache, fails))
    kitchen = new_kitchen()
    here = answers(kitchen)
    assert kitchen.engine._forward._still is None
    monkeypatch.setattr(forward, "still_steps", lambda *_: None)
    assert answers(new_kitchen()) == here


@pytest.mark.usefixtures("tapes")
def test_a_row_that_is_repeated_wrongly_shows(new_kitchen, monkeypatch):
    expected = answers(new_kitchen())
    monkeypatch.setattr(Tape, "replay", lambda self: self.step().roll(1, 0))
    assert answers(new_kitchen()) != expected
