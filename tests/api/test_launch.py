"""How one machine's service is brought up: what it refuses, what it says, how it is asked to stop."""

import http.server
import io
import json
import os
import signal
import socket
import threading
from types import SimpleNamespace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from api import cli, launch
from core.settings import Settings


def answering(status, body):
    """A server that answers every GET like this; yields its port."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):  # http.server's name
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    return http.server.HTTPServer(("127.0.0.1", 0), Answer)


@pytest.fixture
def serve():
    servers = []

    def start(status, body):
        servers.append(answering(status, body))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return Settings(port=servers[-1].server_address[1])

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def requests():
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield launch.StopRequests()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_readiness_is_what_the_front_end_says(serve):
    assert launch.missing_parts(serve(200, b"{}")) == []
    body = json.dumps({"checks": {"api": True, "engine": False, "trainer": False}}).encode()
    assert launch.missing_parts(serve(503, body)) == ["engine", "trainer"]


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b'{"checks": 3}', b'{"checks": {}}'])
def test_a_front_end_that_says_nothing_of_use_is_itself_what_is_missing(serve, body):
    assert launch.missing_parts(serve(503, body)) == ["api"]


def test_a_front_end_that_does_not_answer_is_what_is_missing():
    with socket.socket() as taken:  # bound, yet not listening
        taken.bind(("127.0.0.1", 0))
        assert launch.missing_parts(Settings(port=taken.getsockname()[1])) == ["api"]


def test_one_request_to_stop_may_arrive_twice_and_counts_once(requests, monkeypatch):
    now = 100.0
    monkeypatch.setattr(launch, "time", SimpleNamespace(monotonic=lambda: now))
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    assert (requests.is_asked(), requests.is_urgent()) == (True, False)
    now += launch.SAME_SIGNAL_S
    os.kill(os.getpid(), signal.SIGINT)
    assert requests.is_urgent()


def test_a_data_folder_serves_one_service_at_a_time(tmp_path):
    with launch.only_here(tmp_path / "data"):
        assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
        with pytest.raises(launch.Refusal, match=f"process {os.getpid()}"), launch.only_here(tmp_path / "data"):
            pass
    with launch.only_here(tmp_path / "data"):
        assert (tmp_path / "data" / "up.lock").read_text() == str(os.getpid())


def test_a_data_folder_that_cannot_be_made_is_refused_with_its_setting(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(launch.Refusal, match="GRAFT_DATA_DIR"), launch.only_here(tmp_path / "file" / "data"):
        pass


def test_a_port_in_use_is_refused_with_its_setting(monkeypatch):
    monkeypatch.setattr(launch, "PORT_FREE_WITHIN_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(launch.Refusal, match="GRAFT_PORT"):
        launch.await_free_port(Settings(port=taken.getsockname()[1]))


def test_a_port_that_becomes_free_is_waited_for(monkeypatch):
    monkeypatch.setattr(launch, "PORT_FREE_WITHIN_S", 60.0)
    taken = socket.create_server(("127.0.0.1", 0))
    threading.Timer(0.3, taken.close).start()
    launch.await_free_port(Settings(port=taken.getsockname()[1]))
    assert taken.fileno() == -1


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "http://127.0.0.1:8000"), ("0.0.0.0", "http://127.0.0.1:8000"), ("::", "http://[::1]:8000")],
)
def test_the_front_end_is_reached_where_this_machine_reaches_it(host, address):
    assert launch.address(Settings(host=host)) == address


def test_the_welcome_can_be_pasted_into_a_shell(tmp_path):
    text = launch.welcome(Settings(data_dir=tmp_path), 3.0, "http://127.0.0.1:8000/admin")
    question = text[text.index("-d '") + 4 : text.rindex("'")]
    assert json.loads(question)["model"] == "smollm2-135m-instruct"
    assert f"cat {tmp_path / 'admin.key'}" in text


def test_the_first_key_is_shown_once(tmp_path):
    settings, shown = Settings(data_dir=tmp_path), io.StringIO()
    for _ in range(2):
        launch.prepare(settings, Console(file=shown))
    key = (tmp_path / "admin.key").read_text().strip()
    assert shown.getvalue().count(key) == 1


def test_a_terminal_that_went_away_stops_nothing():
    class Gone(io.StringIO):
        def write(self, _text):
            raise OSError(5, "Input/output error")

    launch.say(Console(file=Gone()), "anyone there?")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("GRAFT_PORT", "99999", "GRAFT_PORT: Input should be less than or equal to 65535"),
        ("GRAFT_LEASE_S", "3", "a lease must outlive two missed heartbeats"),
        ("GRAFT_BASE_MODELS", "{", 'field "base_models"'),
        ("GRAFT_DEFAULT_BASE_MODEL", "gpt-7", "is not one of GRAFT_BASE_MODELS"),
    ],
)
def test_settings_that_do_not_hold_together_are_refused_by_name(name, value, says, monkeypatch):
    monkeypatch.setenv(name, value)
    done = CliRunner().invoke(cli.app, ["up"])
    assert done.exit_code == 78
    assert says in done.stderr


def test_a_database_that_cannot_be_used_is_refused_without_its_password(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFT_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("GRAFT_DATABASE_URL", "postgresql://me:sesame@127.0.0.1:1/graft")
    done = CliRunner().invoke(cli.app, ["migrate"])
    assert done.exit_code == 1
    assert "GRAFT_DATABASE_URL" in done.stderr
    assert "sesame" not in done.stderr
