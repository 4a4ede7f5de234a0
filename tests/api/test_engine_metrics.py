"""/metrics tells of the engines that live, in few labels and in nobody's name."""

import httpx
from prometheus_client.parser import text_string_to_metric_families
from serving import BASE

from api.engine_metrics import families
from core.records import presences

STATUS = {
    "rows": 16,
    "running": 3,
    "waiting": 5,
    "steps": 10,
    "rows_run": 25,
    "prefix_cache": {"hits": 512, "misses": 30, "evictions": 2, "bytes": 4096, "memory_bytes": 9999},
    "step_s": {"bounds": [0.1, 1.0], "counts": [4, 9, 10], "sum": 7.5},
    "first_token_s": {"bounds": [0.1], "counts": [1, 2], "sum": 1.5},
    "next_token_s": {"bounds": [0.1], "counts": [8, 8], "sum": 0.5},
    "by_adapter": {
        name: {
            "requests": 4,
            "hits": 3,
            "loads": 1,
            "prompt_tokens": 40,
            "tokens": 9,
            "firsts": 4,
            "firsts_s": 2.0,
            "nexts": 5,
            "nexts_s": 0.5,
        }
        | ({} if name == "other" else {"tier": "device"})
        for name in ("base", "ab" * 32, "other")
    },
}


def say(service, engine_id, status):
    details = {"base_precision": "bf16"} | ({} if status is None else {"status": status})
    said = {"role": "engine", "details": details, "url": "http://127.0.0.1:9", "base_model": BASE}
    presences.beat(service.database, engine_id, is_ready=True, **said)


def scraped(service):
    text = httpx.get(f"{service.url}/metrics").text
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_engine_that_lives_is_told_of(service):
    say(service, "engine-1", STATUS)
    say(service, "engine-2", STATUS | {"running": 7})
    say(service, "engine-old", None)
    say(service, "engine-other", {"steps": 3})
    found = scraped(service)

    def value(name, engine="engine-1", **labels):
        return found[(name, *sorted({"engine": engine, **labels}.items()))]

    assert value("graft_engine_running_rows") == 3
    assert value("graft_engine_running_rows", "engine-2") == 7
    assert value("graft_engine_step_rows_total") / value("graft_engine_steps_total") == 2.5
    assert value("graft_engine_steps_total", "engine-other") == 3
    assert value("graft_engine_step_seconds_bucket", le="0.1") == 4
    assert value("graft_engine_step_seconds_count") == 10
    assert value("graft_engine_first_token_seconds_sum") == 1.5
    assert value("graft_prefix_cache_hit_tokens_total") == 512
    assert value("graft_prefix_cache_evictions_total") == 2
    assert value("graft_prefix_cache_bytes") == 4096
    assert value("graft_adapter_tokens_total", adapter="abababababab") == 9
    assert value("graft_adapter_first_token_seconds_sum", adapter="other") == 2.0
    assert value("graft_adapter_tier", adapter="abababababab", tier="device") == 1
    assert not any("engine-old" in str(key) for key in found)


def test_no_label_holds_a_whole_digest_or_more_adapters_than_engines_show(service):
    say(service, "engine-1", STATUS)
    text = httpx.get(f"{service.url}/metrics").text
    assert "ab" * 7 not in text
    labels = {dict(key[1:])["adapter"] for key in scraped(service) if "adapter" in dict(key[1:])}
    assert labels == {"base", "other", "abababababab"}


def test_without_engines_there_are_families_and_no_samples():
    assert [family.samples for family in families({})] == [[]] * len(families({}))
