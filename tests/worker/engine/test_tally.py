"""What is counted, of whom, and that labels stay few."""

import pytest

from worker.engine import tally as module
from worker.engine.tally import BASE, OTHER, SHOWN, Histogram, Tally


def test_a_histogram_counts_up_to_each_bound():
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.see(value)
    assert histogram.told() == {"bounds": (1.0, 2.0), "counts": [2, 3, 4], "sum": 12.0}


def test_the_busiest_adapters_are_shown_and_all_others_are_one(monkeypatch):
    monkeypatch.setattr(module, "REMEMBERED", SHOWN + 5)
    tally = Tally()
    for i in range(3 * SHOWN):
        tally.asked(f"a{i}", is_hit=bool(i % 2))
        tally.loaded(f"a{i}")
        for _ in range(i):
            tally.drew(f"a{i}", 0.5, is_first=False)
    told = tally.by_adapter()
    assert set(told) == {OTHER, *(f"a{i}" for i in range(2 * SHOWN, 3 * SHOWN))}
    for name in ("requests", "loads"):
        assert sum(counts[name] for counts in told.values()) == 3 * SHOWN
    assert sum(counts["hits"] for counts in told.values()) == 3 * SHOWN // 2
    assert sum(counts["tokens"] for counts in told.values()) == sum(range(3 * SHOWN))
    assert sum(counts["nexts_s"] for counts in told.values()) == pytest.approx(sum(range(3 * SHOWN)) / 2)


def test_an_engine_counts_requests_hits_loads_and_tokens_of_each_adapter(kitchen):
    a, b = (kitchen.publish(seed=seed) for seed in (1, 2))
    for adapter in (a, a, None, b, a):
        kitchen.tell(prompt="count", adapter=adapter, max_tokens=4)
    told = kitchen.engine.status()["by_adapter"]
    seen = {name: [told[name][k] for k in ("requests", "hits", "loads", "tokens", "firsts", "nexts")] for name in told}
    assert seen == {
        a.sha256: [3, 2, 1, 12, 3, 9],
        b.sha256: [1, 0, 1, 4, 1, 3],
        BASE: [1, 1, 0, 4, 1, 3],
        OTHER: [0] * 6,
    }
    assert told[a.sha256]["prompt_tokens"] == 3 * len("count")
    assert told[a.sha256]["tier"] == "device"


def test_an_engine_counts_its_steps_and_how_full_they_were(new_kitchen):
    now = [0.0]

    def clock():
        now[0] += 0.25
        return now[0]

    kitchen = new_kitchen(clock=clock)
    for prompt in "ab":
        kitchen.ask(prompt=prompt, max_tokens=3)
    kitchen.run()
    status = kitchen.engine.status()
    assert (status["steps"], status["rows_run"], status["step_s"]["counts"][-1]) == (3, 6, 3)
    assert status["first_token_s"]["counts"][-1] == 2
    assert status["next_token_s"]["counts"][-1] == 4
    assert status["step_s"]["sum"] == pytest.approx(3 * 0.25)
