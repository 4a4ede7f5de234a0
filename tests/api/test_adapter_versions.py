"""Versions, aliases, lineage, residency and deletion of adapters over HTTP."""

import pytest
from asking import ask, usage_rows
from serving import BASE

from core.blobs import open_store
from core.records import jobs, presences


def error_of(answer, status):
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    return answer.json()["error"]


@pytest.fixture
def two(service):
    """The models of two jobs with the suffix support."""
    return [service.adapter()["fine_tuned_model"] for _ in range(2)]


def promote(service, name, alias="production", http=None):
    return (http or service.http).post(f"/v1/adapters/{name}/aliases/{alias}")


@pytest.mark.usefixtures("engine")
def test_an_alias_is_moved_and_what_answers_moves_with_it(service, two):
    assert promote(service, "support@v1").json()["aliases"] == ["production"]
    answer = ask(service, model="support@production")
    assert (answer.status_code, answer.json()["model"]) == (200, two[0])
    promoted = promote(service, two[1]).json()
    assert (promoted["family"], promoted["version"], promoted["aliases"]) == ("support", 2, ["production"])
    assert ask(service, model="support@production").json()["model"] == two[1]
    assert promote(service, "support@production", "previous").json()["name"] == two[1]
    assert [model for model, _, _ in usage_rows(service)] == two
    assert service.http.get("/v1/models/support@v2").json()["version"] == "support@v2"
    assert service.http.get("/v1/adapters/support@v2/download").status_code == 200


def test_versions_are_listed_by_any_of_them_or_their_suffix(service, two):
    for name in ("support", "support@v1", two[1]):
        page = service.http.get(f"/v1/adapters/{name}/versions").json()
        assert [(row["name"], row["version"]) for row in page["data"]] == [(two[1], 2), (two[0], 1)]
    rest = service.http.get("/v1/adapters/support/versions", params={"after": 2}).json()
    assert [row["version"] for row in rest["data"]] == [1]
    assert error_of(service.http.get("/v1/adapters/nobody/versions"), 404)["code"] == "adapter_not_found"
    assert error_of(service.http.get("/v1/adapters/support/versions", params={"after": 9}), 400)["param"] == "after"


def test_bad_aliases_are_refused(service, two):
    for alias in ("v2", "Nf4", "nf4", "1st"):
        error = error_of(promote(service, two[0], alias), 400)
        assert (error["param"], error["code"]) == ("alias", "invalid_value")
    assert error_of(promote(service, "support@v9"), 404)["code"] == "adapter_not_found"
    assert error_of(service.http.delete("/v1/adapters/support/aliases/production"), 404)["code"] == "alias_not_found"


def test_what_an_alias_means_is_deleted_after_the_alias_alone(service, two):
    promote(service, two[0])
    for path in (f"/v1/adapters/{two[0]}", f"/v1/models/{two[0]}", "/v1/adapters/support@production"):
        assert error_of(service.http.delete(path), 409)["code"] == "model_has_alias"
    removed = service.http.delete("/v1/adapters/support@v1/aliases/production").json()
    assert removed == {"id": "support@production", "object": "adapter.alias", "deleted": True}
    deleted = service.http.delete("/v1/adapters/support@v1").json()
    assert (deleted["object"], deleted["deleted"]) == ("adapter", True)
    assert error_of(service.http.get(f"/v1/models/{two[0]}"), 404)["code"] == "model_not_found"
    assert error_of(service.http.delete(f"/v1/adapters/{two[0]}"), 404)["code"] == "adapter_not_found"


def test_an_adapter_says_where_it_is_resident_and_how_it_was_measured(service, two):
    sha256 = service.http.get(f"/v1/adapters/{two[0]}").json()["sha256"]
    told = {"status": {"by_adapter": {sha256: {"tier": "device", "requests": 3}, "base": {"requests": 9}}}}
    presences.beat(service.database, "engine-x", role="engine", is_ready=True, details=told, base_model=BASE)
    adapter = service.http.get(f"/v1/adapters/{two[0]}").json()
    assert adapter["resident"] == [{"worker": "engine-x", "tier": "device", "requests": 3}]
    assert adapter["evaluation"] is None, "this run told of no outcome"


def test_an_adapter_s_lineage_leads_to_its_dataset(service, two):
    found = service.http.get(f"/v1/adapters/{two[0]}/lineage").json()
    assert {node["kind"] for node in found["nodes"]} == {"adapter", "job", "file"}
    assert [edge["bond"] for edge in found["edges"]] == ["made", "trained_on"]
    assert (found["object"], found["is_cut"]) == ("adapter.lineage", False)


def test_a_stranger_finds_and_moves_nothing(service, two):
    promote(service, two[0])
    stranger = service.stranger()
    for name in (two[0], "support@v1", "support@production", "support"):
        for method, path in (
            ("GET", f"/v1/adapters/{name}/versions"),
            ("GET", f"/v1/adapters/{name}/lineage"),
            ("POST", f"/v1/adapters/{name}/aliases/production"),
            ("DELETE", f"/v1/adapters/{name}/aliases/production"),
            ("DELETE", f"/v1/adapters/{name}"),
            ("GET", f"/v1/models/{name}"),
        ):
            assert stranger.request(method, path).status_code == 404, (method, path)
    assert service.http.get("/v1/adapters/support@production").json()["name"] == two[0]


@pytest.mark.usefixtures("engine")
def test_an_alias_of_a_checkpoint_is_answered_downloaded_and_guarded_as_that(service, two):
    step = f"{two[1]}:ckpt-step-1"
    promoted = promote(service, step).json()
    assert (promoted["version"], promoted["aliases"], promoted["checkpoint_aliases"]) == (2, [], {"production": 1})
    assert ask(service, model="support@production").json()["model"] == step
    assert service.http.get("/v1/models/support@production").json()["id"] == step
    named, by_alias = (service.http.get(f"/v1/adapters/{name}/download") for name in (step, "support@production"))
    assert (by_alias.status_code, by_alias.headers["content-disposition"]) == (
        200,
        named.headers["content-disposition"],
    )
    assert promote(service, "support@production", "previous").json()["checkpoint_aliases"] == {
        "previous": 1,
        "production": 1,
    }
    for path in (f"/v1/models/{step}", f"/v1/models/{two[1]}", f"/v1/adapters/{two[1]}"):
        assert error_of(service.http.delete(path), 409)["code"] == "model_has_alias"
    assert promote(service, "support@v1").json()["aliases"] == ["production"]
    assert ask(service, model="support@production").json()["model"] == two[0]
    assert service.http.delete("/v1/adapters/support/aliases/previous").status_code == 200
    assert service.http.delete(f"/v1/models/{step}").status_code == 200
    assert error_of(promote(service, step), 404)["code"] == "adapter_not_found"


def test_a_checkpoint_of_a_job_that_has_made_nothing_yet_is_not_promoted(service):
    job_id = service.job(suffix="support").json()["id"]
    held = jobs.claim(service.database, owner="test", lease_s=60, job_id=job_id)
    blob = open_store(service.settings).put_bytes(b"zip")
    name = jobs.record_checkpoint(service.database, held, step=1, metrics={}, adapter=blob).model_name
    error = error_of(promote(service, name), 400)
    assert (error["code"], "has made no adapter yet" in error["message"]) == ("checkpoint_of_no_version", True)
    assert error_of(promote(service, name, http=service.stranger()), 404)["code"] == "adapter_not_found"
