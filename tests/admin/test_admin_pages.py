"""Pages as HTML: their terms, what an empty project sees, what only administrators do, and how forms come to be."""

import re

import pytest
from pydantic import Field as SpecField
from visiting import sitting

from api.admin import data
from api.admin.schema_form import fields_of
from core.records import accounts
from core.specs.method import SPECS, LoraSpec
from core.specs.training import HyperparametersRequest, TrainingRequest

PLACES = [
    "/admin", "/admin/data", "/admin/jobs", "/admin/jobs/new", "/admin/adapters", "/admin/playground",
    "/admin/playground/rows", "/admin/workers", "/admin/keys", "/admin/usage", "/admin/audit", "/admin/settings",
    "/admin/sign-in",
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_a_page_runs_and_loads_nothing_that_is_not_ours(visitor, place):
    answer = visitor.get(place)
    assert answer.status_code == 200
    policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert policy["script-src"] == policy["style-src"] == policy["form-action"] == "'self'"
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert answer.headers["cache-control"] == "no-store"
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=|javascript:|<style", answer.text)
    assert not re.search(r'(?:src|href|action)="(?:https?:)?//', answer.text)


def test_a_file_that_pages_load_may_be_kept_for_a_year_and_is_named_by_its_content(visitor):
    address = re.search(r'href="(/admin/static/graft.css\?v=\w{12})"', visitor.get("/admin").text)[1]
    answer = visitor.get(address)
    assert answer.headers["content-type"].startswith("text/css")
    assert "immutable" in answer.headers["cache-control"]
    assert visitor.get("/admin/static/..%2fdoor.py").status_code == 404


def test_an_address_without_a_page_is_answered_with_one(visitor):
    for place in ("/admin/jobs/ftjob-none", "/admin/data/file-none", "/admin/adapters/none", "/admin/jobs?after=none"):
        answer = visitor.get(place)
        assert answer.status_code in {400, 404}
        assert "<main" in answer.text


def test_what_a_customer_wrote_is_text_on_every_page(service, visitor):
    evil = "<img src=x onerror=alert(1)>.jsonl"
    file_id = service.upload(name=evil).json()["id"]
    for place in ("/admin/data", f"/admin/data/{file_id}", "/admin/jobs/new"):
        assert "<img src=x" not in visitor.get(place).text
        assert "&lt;img src=x" in visitor.get(place).text


def test_a_language_is_the_browser_s_until_one_is_chosen(visitor):
    assert "总览" in visitor.get("/admin", headers={"accept-language": "zh-CN,zh;q=0.9"}).text
    token = re.search(r'csrf" content="(\w+)"', visitor.get("/admin").text)[1]
    visitor.post("/admin/preferences", data={"csrf": token, "language": "zh", "theme": "dark", "next": "/admin/jobs"})
    page = visitor.get("/admin", headers={"accept-language": "en"}).text
    assert "总览" in page
    assert 'data-theme="dark"' in page


def test_only_an_administrator_makes_and_revokes_keys_and_sees_settings(service, visitor):
    with service.database.writing() as session:
        key, text = accounts.create_key(session, service.account, name="plain", environment="local")
    token = re.search(r'csrf" content="(\w+)"', visitor.get("/admin").text)[1]
    made = visitor.post("/admin/keys", data={"csrf": token, "name": "laptop"})
    fresh = re.search(r"graft_local_\w+", made.text)[0]
    assert fresh not in visitor.get("/admin/keys").text
    with sitting(service, fresh) as member:
        its_own = re.search(r'csrf" content="(\w+)"', member.get("/admin").text)[1]
        assert member.post("/admin/keys", data={"csrf": its_own, "name": "more"}).status_code == 403
        assert member.post(f"/admin/keys/{key.id}/revoke", data={"csrf": its_own}).status_code == 403
        assert member.get("/admin/settings").status_code == 403
    assert visitor.post(f"/admin/keys/{key.id}/revoke", data={"csrf": token}).status_code == 200
    assert accounts.account_of(service.database.session().__enter__(), text) is None
    assert visitor.post(f"/admin/keys/{service.account.key_id}/revoke", data={"csrf": token}).status_code == 409


def test_settings_show_no_secret(visitor, settings):
    assert settings.engine_token not in visitor.get("/admin/settings").text
    assert "GRAFT_INTERNAL_TOKEN" in visitor.get("/admin/settings").text


def test_every_parameter_of_every_method_is_in_the_form(service, visitor):
    service.upload()
    page = visitor.get("/admin/jobs/new").text
    for spec in (*SPECS, HyperparametersRequest, TrainingRequest):
        for name, field in spec.model_fields.items():
            is_fixed = name in {"type", "early_stopping"} or (spec.__name__ == "QLoraSpec" and name == "base_precision")
            assert is_fixed or f'data-name="{name}"' in page, field


def test_a_field_that_is_added_to_a_method_is_in_its_form():
    class Wider(LoraSpec):
        dash: int = SpecField(3, ge=1, le=9, description="How much of it.")

    field = {one.name: one for one in fields_of(Wider)}["dash"]
    assert (field.kind, field.shown, field.minimum, field.maximum) == ("number", "3", 1, 9)


def test_a_histogram_counts_every_length_once():
    bars = data.histogram([5, 5, 6, 100, 52])
    assert sum(bar.count for bar in bars) == 5
    assert (bars[0].low, bars[0].count, bars[0].height) == (5, 3, 1.0)
    assert bars[-1].low <= 100 < bars[-1].high
    assert data.histogram([7]) == [data.Bar(7, 8, 1, 1.0)]
    assert data.histogram([]) == []
