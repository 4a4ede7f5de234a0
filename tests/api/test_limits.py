import dataclasses

import httpx
import pytest
from fake_engine import Served
from serving import client

from api.limits import MAX_BUCKETS, RateLimiter
from api.main import create_app


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_a_bucket_empties_and_refills_at_an_even_pace():
    clock = Clock()
    limiter = RateLimiter(60, clock)
    taken = [limiter.take("a") for _ in range(61)]
    assert [one.remaining for one in taken] == [*range(59, -1, -1), 0]
    assert [one.wait_s for one in taken[:60]] == [0.0] * 60
    assert taken[60].wait_s == pytest.approx(1.0)
    clock.now += 1.0
    assert limiter.take("a").wait_s == 0
    assert limiter.take("a").wait_s > 0
    clock.now += 3600
    assert limiter.take("a").remaining == 59


def test_one_owners_bucket_is_not_anothers():
    limiter = RateLimiter(1, Clock())
    assert limiter.take("a").wait_s == 0
    assert limiter.take("a").wait_s > 0
    assert limiter.take("b").wait_s == 0


def test_buckets_are_bounded():
    limiter = RateLimiter(1, Clock())
    for n in range(MAX_BUCKETS + 10):
        limiter.take(str(n))
    assert len(limiter._buckets) == MAX_BUCKETS


def test_a_client_is_told_what_is_left_and_when_to_come_again(service):
    slow = service.settings.model_copy(update={"requests_per_minute": 2})
    with Served(create_app(slow)) as served, client(served.url, service.key) as http:
        answers = [http.get("/v1/files") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0", "0"]
        assert answers[0].headers["x-ratelimit-limit-requests"] == "2"
        error = answers[2].json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        assert 1 <= int(answers[2].headers["retry-after"]) <= 30
        other = dataclasses.replace(service, url=served.url).stranger()
        assert other.get("/v1/files").status_code == 200
        assert httpx.get(f"{served.url}/healthz").status_code == 200
