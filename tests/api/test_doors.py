"""Who may come in, how often, and what strangers find: nothing."""

import json
import re
import socket

import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute, iter_route_contexts
from serving import BASE, client
from sqlalchemy import select, update

from api.main import PUBLIC, create_app, refuse_open_doors
from core.records import accounts
from core.records.database import now_s
from core.records.tables import ApiKey, AuditEntry, File, Job


def routes(app):
    """(method, path) of all, with a made-up id in every place for one."""
    found = []
    for context in iter_route_contexts(app.routes):
        route = context.original_route
        path = re.sub(r"\{[^}]+\}", "x", route.path)
        found += [(method, path) for method in sorted(route.methods)]
    return found


def raw(service, request: bytes) -> tuple[int, bytes]:
    """The status and the rest of the answer to bytes as they are."""
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return (int(answer.split(b" ", 2)[1]) if answer else 0), answer


def test_every_route_that_is_not_public_wants_a_key(service, settings):
    # The dashboard's doors are tried in tests/admin/test_admin_sign_in.py.
    doors = [door for door in routes(create_app(settings)) if not door[1].startswith("/admin")]
    assert ("POST", "/v1/chat/completions") in doors
    assert ("GET", "/v1/adapters/x/download") in doors
    assert {path for _, path in doors if not path.startswith(("/v1/", "/admin"))} == PUBLIC
    unknown = client(service.url, "graft_local_nobody")
    unknown.headers.pop("authorization")
    for method, path in doors:
        if path in PUBLIC or path.startswith("/admin"):
            continue
        for headers in (
            {},
            {"authorization": "Bearer"},
            {"authorization": "Bearer graft_local_" + "x" * 28 + "_00000000"},
            {"authorization": "Bearer " + "x" * 5000},
            {"authorization": f"Basic {service.key}"},
            {"authorization": f"Bearer {service.key}x"},
            {"authorization": b"Bearer k\xff\xfe"},
        ):
            answer = unknown.request(method, path, headers=headers, content=b"\xff{")
            assert answer.status_code == 401, (method, path, headers)
            error = answer.json()["error"]
            assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")


PORCHES = {
    ("GET", "/admin/sign-in"),
    ("POST", "/admin/sign-in"),
    ("POST", "/admin/preferences"),
    ("GET", "/admin/static/x"),
}


def test_every_page_but_the_sign_in_leads_a_stranger_to_it(service, settings):
    pages = [door for door in routes(create_app(settings)) if door[1].startswith("/admin")]
    stranger = client(service.url, "graft_local_nobody")
    led = set()
    for method, path in pages:
        answer = stranger.request(method, path, follow_redirects=False)
        if answer.status_code == 303 and answer.headers["location"].startswith("/admin/sign-in?next="):
            led.add((method, path))
    assert ("GET", "/admin/keys") in led
    assert set(pages) - led == PORCHES


def test_an_open_door_keeps_the_front_end_from_starting(settings):
    app = create_app(settings)
    careless = APIRouter()
    careless.get("/v1/secrets")(lambda: {"all": "of them"})
    app.include_router(careless)
    with pytest.raises(ValueError, match="would answer without a key"):
        refuse_open_doors(app)


def test_a_revoked_and_an_expired_key_open_nothing(service):
    for column in ("revoked_at", "expires_at"):
        with service.database.writing() as session:
            key, text = accounts.create_key(session, service.account, name="k", environment="local")
        own = client(service.url, text)
        assert own.get("/v1/files").status_code == 200
        with service.database.writing() as session:
            session.execute(update(ApiKey).where(ApiKey.id == key.id).values({column: now_s() - 1}))
        assert own.get("/v1/files").status_code == 401


def test_the_use_of_a_key_is_written_down(service):
    service.http.get("/v1/files")
    with service.database.session() as session:
        assert session.get_one(ApiKey, service.account.key_id).last_used_at is not None


def test_a_stranger_finds_nothing_and_changes_nothing(service, engine):
    job = service.adapter()
    file_id, name = job["training_file"], job["fine_tuned_model"]
    waiting = service.job().json()["id"]
    adapter = service.http.get("/v1/adapters").json()["data"][0]["id"]
    stranger = service.stranger()
    chat = {"messages": [{"role": "user", "content": "x"}]}
    for method, path, body in [
        ("GET", f"/v1/files/{file_id}", None),
        ("GET", f"/v1/files/{file_id}/content", None),
        ("DELETE", f"/v1/files/{file_id}", None),
        ("GET", f"/v1/fine_tuning/jobs/{waiting}", None),
        ("POST", f"/v1/fine_tuning/jobs/{waiting}/cancel", None),
        ("GET", f"/v1/fine_tuning/jobs/{job['id']}/events", None),
        ("GET", f"/v1/fine_tuning/jobs/{job['id']}/checkpoints", None),
        ("GET", f"/v1/models/{name}", None),
        ("DELETE", f"/v1/models/{name}", None),
        ("GET", f"/v1/models/{name}:ckpt-step-1", None),
        ("DELETE", f"/v1/models/{name}:ckpt-step-1", None),
        ("GET", f"/v1/adapters/{adapter}", None),
        ("GET", f"/v1/adapters/{adapter}/download", None),
        ("GET", f"/v1/adapters/{name}/download", None),
        ("POST", "/v1/chat/completions", chat | {"model": name}),
        ("POST", "/v1/chat/completions", chat | {"model": f"{name}:ckpt-step-1"}),
        ("POST", "/v1/completions", {"model": adapter, "prompt": "x"}),
    ]:
        answer = stranger.request(method, path, json=body)
        assert answer.status_code == 404, (method, path, answer.text)
        mine = service.http.request(method, path.replace("/cancel", ""), json=body) if method == "GET" else None
        assert mine is None or mine.status_code == 200, (path, mine.text)
    foreign = stranger.post("/v1/fine_tuning/jobs", json={"model": BASE, "training_file": file_id})
    assert (foreign.status_code, foreign.json()["error"]["param"]) == (400, "training_file")
    for path in ("/v1/files", "/v1/fine_tuning/jobs", "/v1/adapters"):
        assert stranger.get(path).json()["data"] == []
    for path, cursor in (("/v1/files", file_id), ("/v1/fine_tuning/jobs", waiting), ("/v1/adapters", adapter)):
        assert stranger.get(path, params={"after": cursor}).status_code == 400
    assert [model["id"] for model in stranger.get("/v1/models").json()["data"]] == [BASE, f"{BASE}@nf4"]
    with service.database.session() as session:
        assert session.get_one(File, file_id).deleted_at is None
        assert session.get_one(Job, waiting).state == "queued"
        actions = session.scalars(select(AuditEntry.action)).all()
    assert set(actions) == {"key.created"}
    assert engine.requests == []


def test_a_strangers_idempotency_key_is_another_key(service):
    body = {"model": BASE, "training_file": service.upload().json()["id"]}
    headers = {"idempotency-key": "same"}
    assert service.http.post("/v1/fine_tuning/jobs", json=body, headers=headers).status_code == 200
    answer = service.stranger().post("/v1/fine_tuning/jobs", json=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "training_file")


def test_strange_paths_and_hosts_open_nothing(service):
    key = f"authorization: Bearer {service.key}\r\n".encode()
    for path, host, auth in [
        (b"/v1/files", b"x/healthz?", b""),
        (b"/v1/files", b"a@b", b""),
        (b"/v1/files", b"x#", b""),
        (b"http://evil/v1/files", b"evil", b""),
        (b"//healthz", b"x", key),
        (b"/v1/../healthz/x", b"x", key),
        (b"/v1/files/%2e%2e/%2e%2e/etc/passwd", b"x", key),
        (b"/v1/files/..%2f..%2fetc%2fpasswd", b"x", key),
        (b"/v1/files;a=b", b"x", key),
        (b"/v1/files/%00", b"x", key),
        (b"/v1/adapters/..%2f..%2fgraft.db/download", b"x", key),
    ]:
        request = b"GET " + path + b" HTTP/1.1\r\nhost: " + host + b"\r\n" + auth + b"connection: close\r\n\r\n"
        status, answer = raw(service, request)
        assert status in {400, 401, 404}, (path, host, answer)


def test_malformed_http_is_turned_away(service):
    start = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    start += f"authorization: Bearer {service.key}\r\n".encode()
    for rest in (
        b"transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n",
        b"content-length: -1\r\n\r\n",
        b"content-length: x\r\n\r\n",
        b"x-long: " + b"a" * (1 << 17) + b"\r\n\r\n",
    ):
        try:
            status, _ = raw(service, start + rest)
        except ConnectionError:
            status = 0
        assert status in {0, 400, 431}


def test_a_clients_request_id_is_not_ours(service):
    answer = service.http.get("/v1/files", headers={"x-request-id": "victim"})
    assert re.fullmatch(r"req_[0-9a-z]{24}", answer.headers["x-request-id"])
    assert int(answer.headers["openai-processing-ms"]) >= 0
    assert answer.headers["x-content-type-options"] == "nosniff"
    refused = service.http.get("/v1/nothing")
    assert (refused.status_code, refused.json()["error"]["type"]) == (404, "not_found_error")
    assert refused.headers["x-request-id"] != answer.headers["x-request-id"]
    wrong = service.http.put("/v1/files")
    assert (wrong.status_code, set(wrong.json())) == (405, {"error"})


def test_a_failure_of_ours_tells_nothing_of_itself(service, monkeypatch, capfd):
    def fail(*_, **__):
        raise RuntimeError("canary: sqlite:///secret") from ValueError("canary")

    monkeypatch.setattr("core.records.datasets.listed", fail)
    answer = service.http.get("/v1/files")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "canary" not in answer.text
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    written = next(line for line in lines if line["event"] == "request.failed")
    assert written["request_id"] == answer.headers["x-request-id"]
    assert written["error"] == ["RuntimeError", "ValueError"]
    assert written["calls"][-1].endswith(" fail")
    assert "canary" not in json.dumps(written)


def test_the_public_routes_are_plain_and_guarded_ones_are_of_the_guarded_kind(settings):
    kinds = {
        context.original_route.path: type(context.original_route)
        for context in iter_route_contexts(create_app(settings).routes)
    }
    assert {path for path, kind in kinds.items() if kind is APIRoute} == PUBLIC
