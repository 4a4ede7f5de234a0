"""What operators do in the dashboard: drain, try again, make keys that expire, search the audit, count tokens."""

import csv
import re

import pytest
from serving import BASE
from sqlalchemy import update
from visiting import sitting

from core.records import accounts, presences, usage
from core.records.database import now_s
from core.records.tables import Job


@pytest.fixture
def trainer(service):
    """A trainer that speaks now."""
    details = {"owner": "host:1", "device": {"kind": "cpu", "memory_bytes": 8_000_000_000}}
    presences.beat(service.database, "trainer-1", role="trainer", is_ready=True, details=details, base_model=BASE)
    return "trainer-1"


def given_up(service):
    job_id = service.job(suffix="lost").json()["id"]
    ended = {"state": "failed", "error_code": "poison", "error_message": "It died.", "finished_at": now_s()}
    with service.database.writing() as session:
        session.execute(update(Job).where(Job.id == job_id).values(**ended))
    return job_id


def test_a_worker_is_drained_only_once_it_is_meant(service, page, trainer):
    page.goto(f"{service.url}/admin/workers")
    button = page.get_by_role("button", name="Drain")
    button.click()
    page.get_by_role("button", name="Keep it as it is").click()
    assert service.http.get("/v1/workers").json()["data"][0]["drain_requested_at"] is None
    button.click()
    page.locator("#confirm-yes").click()
    page.get_by_text("It takes no more work.").wait_for()
    entries = service.http.get("/v1/audit", params={"action": "worker.drained"}).json()["data"]
    assert [entry["target"] for entry in entries] == [trainer]


@pytest.mark.usefixtures("trainer")
def test_only_administrators_are_offered_to_drain(service, visitor):
    with service.database.writing() as session:
        _, text = accounts.create_key(session, service.account, name="plain", environment="local")
    assert "/drain" in visitor.get("/admin/workers").text
    with sitting(service, text) as member:
        page = member.get("/admin/workers").text
    assert "cpu" in page
    assert "/drain" not in page
    assert "host:1" not in page


def test_what_was_given_up_is_tried_again_from_where_it_is_seen(service, page):
    lost = given_up(service)
    page.goto(f"{service.url}/admin/workers")
    page.get_by_role("button", name="Try again: lost").click()
    page.wait_for_url("**/admin/jobs/ftjob-*")
    again = page.url.rsplit("/", 1)[1]
    assert service.http.get(f"/v1/fine_tuning/jobs/{again}").json()["retry_of"] == lost
    page.goto(f"{service.url}/admin/workers")
    assert page.get_by_role("link", name="tried again").get_attribute("href") == f"/admin/jobs/{again}"
    assert page.get_by_role("cell", name="1", exact=True).first.is_visible()  # its place in the queue


def test_a_failure_needs_a_look_until_it_is_tried_again(service, visitor):
    lost = given_up(service)
    assert "It died." in visitor.get("/admin").text
    service.http.post(f"/v1/fine_tuning/jobs/{lost}/retry")
    assert "It died." not in visitor.get("/admin").text


def test_a_key_may_be_made_for_a_while(service, visitor):
    token = re.search(r'csrf" content="(\w+)"', visitor.get("/admin").text)[1]
    assert visitor.post("/admin/keys", data={"name": "ci", "days": "30"}).status_code == 403  # without the token
    assert visitor.post("/admin/keys", data={"csrf": token, "name": "ci", "days": "31"}).status_code == 400
    assert visitor.post("/admin/keys", data={"csrf": token, "name": "ci", "days": "30"}).status_code == 200
    made = service.http.get("/v1/keys").json()["data"][0]
    assert made["expires_at"] - made["created_at"] == 30 * 86_400


def test_the_audit_is_filtered_and_pages_keep_the_filter(service, visitor):
    for _ in range(51):
        service.http.delete(f"/v1/files/{service.upload().json()['id']}")
    found = visitor.get("/admin/audit", params={"action": "file.deleted"}).text
    assert found.count('class="mono nowrap">file.deleted') == 50
    assert 'mono nowrap">key.created' not in found
    older = re.search(r'href="(/admin/audit\?after=[^"]+)"', found)[1].replace("&amp;", "&")
    assert visitor.get(older).text.count('class="mono nowrap">file.deleted') == 1
    assert "Nothing of the kind" in visitor.get("/admin/audit", params={"until": "2001-01-01"}).text
    assert visitor.get("/admin/audit", params={"since": "2001-01-01"}).text.count('class="mono nowrap">') == 50
    assert visitor.get("/admin/audit", params={"since": "2001-13-41"}).status_code == 400
    assert visitor.get("/admin/audit", params={"since": "yesterday"}).status_code == 404


def test_usage_is_charted_and_given_as_a_table(service, visitor):
    name = service.adapter()["fine_tuned_model"]
    with service.database.writing() as session:
        counts = {"prompt_tokens": 7, "completion_tokens": 3}
        usage.record(session, service.account, request_id="r", model=name, **counts)
    page = visitor.get("/admin/usage", params={"days": "7"}).text
    assert page.count("<rect") == 3  # served, trained, and the model's own
    answer = visitor.get("/admin/usage/csv", params={"days": "7"})
    assert answer.headers["content-type"].startswith("text/csv")
    (row,) = csv.DictReader(answer.text.splitlines())
    del row["day"]
    counted = {"requests": "1", "prompt_tokens": "7", "completion_tokens": "3", "trained_tokens": "42"}
    assert row == {"model": name, **counted}
