import hashlib
import io
import zipfile

import pytest
from serving import BASE
from sqlalchemy import select

from core.records.tables import AuditEntry


@pytest.fixture
def made(service):
    """A finished job, and its adapter as the API shows it."""
    job = service.adapter("support")
    return job, service.http.get("/v1/adapters").json()["data"][0]


def test_bases_adapters_and_checkpoints_are_models(service, made):
    job, adapter = made
    name = job["fine_tuned_model"]
    listed = service.http.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"][:2]] == [BASE, f"{BASE}@nf4"]
    assert {model["id"] for model in listed["data"][2:]} == {name, f"{name}:ckpt-step-1"}
    base = service.http.get(f"/v1/models/{BASE}").json()
    assert (base["object"], base["owned_by"], base["parent"]) == ("model", "graft", None)
    own = service.http.get(f"/v1/models/{name}").json()
    assert own == {
        "id": name,
        "object": "model",
        "created": own["created"],
        "owned_by": service.account.organization_id,
        "shutdown_date": None,
        "parent": BASE,
        "peft_type": "LORA",
        "base_precision": "bf16",
        "adapter_id": adapter["id"],
        "version": "support@v1",
        "fine_tuning_job_id": job["id"],
    }


def test_names_with_slashes_are_names(service):
    for path in ("/v1/models/a/b", "/v1/models/a%2Fb"):
        answer = service.http.get(path)
        assert answer.status_code == 404
        assert answer.json()["error"]["message"].startswith("The model 'a/b' does not exist")
        assert answer.json()["error"]["code"] == "model_not_found"


def test_a_deleted_model_is_gone_with_its_checkpoints_and_a_base_model_stays(service, made):
    job, _ = made
    name = job["fine_tuned_model"]
    assert service.http.delete(f"/v1/models/{name}").json() == {"id": name, "object": "model", "deleted": True}
    assert service.http.delete(f"/v1/models/{name}").status_code == 404
    assert [model["id"] for model in service.http.get("/v1/models").json()["data"]] == [BASE, f"{BASE}@nf4"]
    assert service.http.get("/v1/adapters").json()["data"] == []
    refused = service.http.delete(f"/v1/models/{BASE}")
    assert (refused.status_code, refused.json()["error"]["type"]) == (403, "permission_error")
    with service.database.session() as session:
        actions = session.scalars(select(AuditEntry.target).where(AuditEntry.action == "model.deleted")).all()
    assert actions == [name]


def test_an_adapter_is_downloaded_by_id_name_and_checkpoint(service, made):
    job, adapter = made
    name = job["fine_tuned_model"]
    assert service.http.get(f"/v1/adapters/{name}").json() == adapter
    for one in (adapter["id"], name, f"{name}:ckpt-step-1"):
        answer = service.http.get(f"/v1/adapters/{one}/download")
        assert answer.status_code == 200
        assert hashlib.sha256(answer.content).hexdigest() == adapter["sha256"]
        assert answer.headers["etag"] == f'"{adapter["sha256"]}"'
        assert int(answer.headers["content-length"]) == adapter["bytes"] == len(answer.content)
        assert answer.headers["content-type"] == "application/zip"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-disposition"].startswith('attachment; filename="')
        assert "adapter_config.json" in zipfile.ZipFile(io.BytesIO(answer.content)).namelist()


def test_a_part_of_an_adapter_is_a_part(service, made):
    path = f"/v1/adapters/{made[1]['id']}/download"
    whole = service.http.get(path)
    size, etag = len(whole.content), whole.headers["etag"]

    def part(**headers):
        answer = service.http.get(path, headers={key.replace("_", "-"): text for key, text in headers.items()})
        return answer.status_code, answer.content, answer.headers.get("content-range")

    assert part(range="bytes=0-9") == (206, whole.content[:10], f"bytes 0-9/{size}")
    assert part(range="bytes=10-") == (206, whole.content[10:], f"bytes 10-{size - 1}/{size}")
    assert part(range="bytes=-5") == (206, whole.content[-5:], f"bytes {size - 5}-{size - 1}/{size}")
    assert part(range=f"bytes=5-{size * 9}") == (206, whole.content[5:], f"bytes 5-{size - 1}/{size}")
    assert part(range=f"bytes=0-{size}") == (200, whole.content, None)
    assert part(range="bytes=0-9", if_range=etag)[0] == 206
    assert part(range="bytes=0-9", if_range='"other"') == (200, whole.content, None)
    for many in (
        "bytes=0-1,2-3",
        ",".join(["bytes=0-0"] * 1000),
        "bytes=x-y",
        "items=0-1",
        "bytes=-",
        "bytes=" + "9" * 30 + "-",
    ):
        assert part(range=many) == (200, whole.content, None)
    for beyond in (f"bytes={size}-", "bytes=9-3", "bytes=-0"):
        status, content, unsatisfied = part(range=beyond)
        assert (status, unsatisfied) == (416, f"bytes */{size}")
        assert b"invalid_range" in content
    assert part(if_none_match=etag)[:2] == (304, b"")


def test_what_is_no_adapter_is_a_404(service):
    for name in ("nothing", BASE, "../../graft.db", "ft:a:b:c:d"):
        for path in (f"/v1/adapters/{name}", f"/v1/adapters/{name}/download"):
            assert service.http.get(path).status_code == 404
