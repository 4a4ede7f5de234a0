"""Who may see and do what: signing in, staying, leaving, and what other sites' pages cannot do."""

import re

import httpx
import pytest
from fastapi.routing import iter_route_contexts
from serving import serving
from sqlalchemy import select, update
from visiting import settings_in, sitting

from api.admin.door import Porch
from api.main import create_app
from core.records import accounts, audit, sessions
from core.records.tables import BrowserSession, SignInCode

HTML = "text/html; charset=utf-8"


def token_on(page) -> str:
    return re.search(r'<meta name="csrf" content="(\w+)">', page.text)[1]


def alter(service, statement):
    with service.database.writing() as session:
        session.execute(statement)


def actions(service):
    with service.database.session() as session:
        return [entry.action for entry in audit.listed(session, service.account).rows]


def test_a_key_signs_a_browser_in_and_both_ends_are_audited(service):
    with sitting(service) as client:
        assert client.get("/admin").status_code == 200
        left = client.post("/admin/sign-out", data={"csrf": token_on(client.get("/admin"))})
    assert left.headers["location"] == "/admin/sign-in"
    assert {"session.opened", "session.closed"} <= set(actions(service))


def test_the_cookie_is_kept_from_scripts_and_from_other_sites(service):
    answer = httpx.post(
        f"{service.url}/admin/sign-in", data={"credential": service.key}, headers={"origin": service.url}
    )
    cookie = answer.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/", "Max-Age=43200"} <= set(cookie.split("; "))
    assert "Secure" not in cookie
    assert service.key not in cookie


def test_behind_tls_the_cookie_never_travels_without_it(tmp_path, empty_database):
    settings = settings_in(tmp_path, empty_database, public_url="https://graft.example")
    with serving(settings) as service:
        headers = {"origin": "https://graft.example", "host": "graft.example"}
        answer = httpx.post(f"{service.url}/admin/sign-in", data={"credential": service.key}, headers=headers)
    assert answer.headers["set-cookie"].startswith("__Host-graft=")
    assert "Secure" in answer.headers["set-cookie"].split("; ")


def test_a_code_from_the_terminal_signs_in_once(service):
    code = sessions.offer_code(service.database)
    with sitting(service, code) as client:
        assert client.get("/admin").status_code == 200
    again = httpx.post(f"{service.url}/admin/sign-in", data={"credential": code}, headers={"origin": service.url})
    assert again.status_code == 401


def test_a_code_is_good_for_an_hour(service):
    code = sessions.offer_code(service.database)
    alter(service, update(SignInCode).values(expires_at=SignInCode.expires_at - sessions.CODE_S))
    late = httpx.post(f"{service.url}/admin/sign-in", data={"credential": code}, headers={"origin": service.url})
    assert late.status_code == 401


def test_without_an_administrator_s_key_there_is_no_code(service):
    with service.database.writing() as session:
        accounts.revoke_key(session, service.account, service.account.key_id)
    assert sessions.offer_code(service.database) is None


def test_after_ten_failures_an_address_has_to_wait_even_with_the_key(service):
    headers = {"origin": service.url}
    attempts = [
        httpx.post(f"{service.url}/admin/sign-in", data={"credential": f"graft_local_{n}"}, headers=headers)
        for n in range(10)
    ]
    assert {answer.status_code for answer in attempts} == {401}
    assert len({re.sub(r'value="\w*"', "", answer.text) for answer in attempts}) == 1
    late = httpx.post(f"{service.url}/admin/sign-in", data={"credential": service.key}, headers=headers)
    assert late.status_code == 429


def test_signing_in_rightly_costs_no_attempt(service):
    for _ in range(12):
        with sitting(service):
            pass


def test_who_is_not_signed_in_is_led_to_the_sign_in_and_back(service):
    answer = httpx.get(f"{service.url}/admin/jobs?after=x")
    assert (answer.status_code, answer.headers["location"]) == (303, "/admin/sign-in?next=/admin/jobs%3Fafter%3Dx")
    part = httpx.get(f"{service.url}/admin/jobs", headers={"hx-request": "true"})
    assert (part.status_code, part.headers["hx-redirect"]) == (401, "/admin/sign-in")


def test_no_page_but_the_porch_opens_without_a_session(service, settings):
    open_to_all = {"/admin/sign-in", "/admin/preferences", "/admin/static/{name}"}
    contexts = iter_route_contexts(create_app(settings).routes)
    doors = [one.original_route for one in contexts if one.original_route.path.startswith("/admin")]
    closed = [door for door in doors if door.path not in open_to_all]
    assert {isinstance(door, Porch) for door in closed} == {False}
    assert len(closed) > 15
    for door in closed:
        path = re.sub(r"\{[^}]+\}", "x", door.path)
        for method in door.methods:
            answer = httpx.request(method, service.url + path, headers={"origin": service.url})
            assert (answer.status_code, answer.headers["location"]) == (303, f"/admin/sign-in?next={path}")


@pytest.mark.parametrize(
    "place",
    ["https://evil.example", "//evil.example", "/admin//evil.example", "/adminx", "/admin/\\evil", "javascript:1", ""],
)
def test_signing_in_leads_nowhere_else(service, place):
    form = {"credential": service.key, "next": place}
    answer = httpx.post(f"{service.url}/admin/sign-in", data=form, headers={"origin": service.url})
    assert answer.headers["location"] == "/admin"


@pytest.mark.parametrize(
    "end",
    [
        update(BrowserSession).values(expires_at=0.0),
        update(BrowserSession).values(seen_at=0.0),
        update(BrowserSession).values(closed_at=1.0),
    ],
    ids=["over", "idle", "closed"],
)
def test_a_session_that_has_ended_opens_neither_pages_nor_routes(service, visitor, end):
    assert visitor.get("/v1/files").status_code == 200
    alter(service, end)
    assert visitor.get("/admin").status_code == 303
    assert visitor.get("/v1/files").status_code == 401


def test_a_session_ends_with_its_key(service, visitor):
    with service.database.writing() as session:
        accounts.revoke_key(session, service.account, service.account.key_id)
    assert visitor.get("/admin").status_code == 303
    assert visitor.get("/v1/files").status_code == 401


def test_signing_out_ends_the_session_at_the_server_too(service, visitor):
    kept = dict(visitor.cookies)
    visitor.post("/admin/sign-out", data={"csrf": token_on(visitor.get("/admin"))})
    assert httpx.get(f"{service.url}/admin", cookies=kept).status_code == 303


FORGERIES = {
    "no origin": {"origin": None},
    "null origin": {"origin": "null"},
    "other site": {"origin": "http://evil.example"},
    "other port": {"origin": "http://127.0.0.1:1"},
    "no address": {"origin": "http://[evil"},
    "same site only": {"sec-fetch-site": "same-site"},
    "no token": {"x-csrf-token": None},
    "false token": {"x-csrf-token": "0" * 64},
}


@pytest.mark.parametrize("changed", FORGERIES.values(), ids=FORGERIES)
def test_a_forged_request_changes_nothing(service, visitor, changed):
    file_id = service.upload().json()["id"]
    token = token_on(visitor.get("/admin"))
    sent = {"origin": service.url, "x-csrf-token": token, "sec-fetch-site": "same-origin"}
    forged = {name: text for name, text in {**sent, **changed}.items() if text is not None}
    with httpx.Client(base_url=service.url, cookies=visitor.cookies) as client:
        assert client.delete(f"/v1/files/{file_id}", headers=forged).status_code == 403
        form = {"csrf": forged.pop("x-csrf-token", ""), "name": "mine"}
        assert client.post("/admin/keys", data=form, headers=forged).status_code == 403
        # The same request as our own page sends it does what it says.
        assert client.delete(f"/v1/files/{file_id}", headers=sent).status_code == 200


def test_the_token_of_one_session_is_none_of_another(service, visitor):
    with sitting(service) as other:
        stolen = token_on(other.get("/admin"))
    answer = visitor.post("/admin/keys", data={"csrf": stolen, "name": "mine"})
    assert answer.status_code == 403


def test_a_key_that_is_shown_counts_before_a_cookie_and_needs_no_token(service, visitor):
    file_id = service.upload().json()["id"]
    bearer = {"authorization": f"Bearer {service.key}"}
    assert visitor.delete(f"/v1/files/{file_id}", headers=bearer).status_code == 200
    assert visitor.get("/v1/files", headers={"authorization": "Bearer false"}).status_code == 401


def test_a_name_that_may_be_anybody_s_is_not_answered_to(visitor):
    for host in ("evil.example", "localhost.evil.example", "[evil]"):
        assert visitor.get("/admin", headers={"host": host}).status_code == 400
        assert visitor.get("/v1/files", headers={"host": host}).status_code == 400
    assert visitor.get("/admin", headers={"host": "localhost:1"}).status_code == 200


def test_only_hashes_of_cookies_and_codes_are_kept(service, visitor):
    code = sessions.offer_code(service.database)
    with service.database.session() as session:
        kept = [*session.scalars(select(BrowserSession.token_sha256)), *session.scalars(select(SignInCode.code_sha256))]
    assert {code, *visitor.cookies.values()} & set(kept) == set()


def test_another_project_s_rows_are_not_there(service, visitor):
    _, key = accounts.create_project(service.database, slug="strangers", name="Strangers", environment="local")
    file_id, job_id = service.upload().json()["id"], service.job().json()["id"]
    with sitting(service, key) as stranger:
        for place in (f"/admin/data/{file_id}", f"/admin/jobs/{job_id}"):
            assert visitor.get(place).status_code == 200
            assert stranger.get(place).status_code == 404
        assert file_id not in stranger.get("/admin/data").text
