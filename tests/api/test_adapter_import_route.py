"""POST /v1/adapters/import: a model that can be called at once, or words that name the fault and no row."""

import pytest
from serving import BASE, running

from core.records import adapters, audit


def bring(service, content=b"bytes", http=None, **fields):
    form = {"model": BASE, **fields}
    return (http or service.http).post("/v1/adapters/import", files={"file": ("a.zip", content)}, data=form)


def nothing_was_kept(service):
    with service.database.session() as session:
        assert adapters.listed(session, service.account).rows == []
        assert [e for e in audit.listed(session, service.account).rows if e.action == "adapter.imported"] == []
    assert list(service.settings.data_dir.glob("uploads/*")) == []
    return True


@pytest.fixture
def nf4_engine(service):
    with running(service, precision="nf4") as fake:
        yield fake


def test_an_import_is_a_model_at_once(service, nf4_engine):
    engine = nf4_engine
    answer = bring(service, suffix="From Elsewhere", base_precision="nf4")
    assert answer.status_code == 200, answer.text
    adapter = answer.json()
    assert adapter["name"].startswith(f"ft:{BASE}:acme:from-elsewhere:")
    facts = {
        name: adapter[name] for name in ("origin", "peft_type", "base_precision", "parameters", "warnings", "bytes")
    }
    assert facts == {
        "origin": "import",
        "peft_type": "LORA",
        "base_precision": "nf4",
        "parameters": 9,
        "warnings": ["odd"],
        "bytes": 5,
    }
    assert (adapter["fine_tuning_job_id"], adapter["base_model"]) == (None, BASE)
    assert service.http.get(f"/v1/adapters/{adapter['id']}").json() == adapter
    assert service.http.get(f"/v1/models/{adapter['name']}").json()["adapter_id"] == adapter["id"]
    assert service.http.get(f"/v1/adapters/{adapter['name']}/download").content == b"bytes"
    said = service.http.post(
        "/v1/chat/completions",
        json={"model": adapter["name"], "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
    )
    assert said.status_code == 200
    assert engine.requests[-1].adapter.sha256 == adapter["sha256"]
    with service.database.session() as session:
        entry = audit.listed(session, service.account).rows[0]
    assert (entry.action, entry.target) == ("adapter.imported", adapter["name"])


def test_imports_are_as_many_as_one_likes_and_one_deletes_them_one_by_one(service, engine):
    names = [bring(service).json()["name"] for _ in range(3)]
    assert len(set(names)) == 3
    assert service.http.delete(f"/v1/models/{names[1]}").status_code == 200
    assert {a["name"] for a in service.http.get("/v1/adapters").json()["data"]} == {names[0], names[2]}
    assert len(engine.inspections) == 3


def test_an_import_is_the_projects_own(service, engine):
    adapter = bring(service).json()
    with service.stranger() as stranger:
        for path in (adapter["id"], adapter["name"], f"{adapter['id']}/download"):
            assert stranger.get(f"/v1/adapters/{path}").status_code == 404
        assert stranger.get("/v1/adapters").json()["data"] == []
    assert len(engine.inspections) == 1


def test_a_file_of_microsofts_lora_brings_its_numbers(service, engine):
    assert bring(service, format="loralib", r="4", alpha="32", enable="v, q").status_code == 200
    assert engine.inspections[-1].merged_linear.model_dump() == {"r": 4, "alpha": 32.0, "enable": ("q", "v")}
    assert bring(service, format="loralib", r="4", alpha="32").status_code == 200
    assert engine.inspections[-1].merged_linear.enable == ("q", "v")


def test_what_the_engine_refuses_is_a_400_that_names_the_fault(service, engine):
    message = "The zip has no adapter_config.json"
    engine.finding = (400, {"error": {"code": "invalid_adapter", "message": message, "param": "file"}})
    answer = bring(service)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_adapter", "file")
    assert error["message"] == message
    assert nothing_was_kept(service)


@pytest.mark.parametrize(
    "finding",
    [(500, {}), (503, {"error": {"code": "engine_unavailable", "message": "away"}}), (200, {"sha256": "../x"})],
)
def test_an_engine_that_fails_is_a_503_and_no_row(finding, service, engine):
    engine.finding = finding
    answer = bring(service)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
    assert answer.headers["retry-after"]
    assert nothing_was_kept(service)


def test_without_an_engine_it_is_a_503(service):
    assert bring(service).status_code == 503
    assert nothing_was_kept(service)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"suffix": "ü" * 70}, "suffix"),
        ({"base_precision": "int3"}, "base_precision"),
        ({"format": "gguf"}, "format"),
        ({"format": "loralib"}, None),
        ({"format": "loralib", "r": "four", "alpha": "1"}, "r"),
        ({"format": "loralib", "r": "4", "alpha": "nan"}, "alpha"),
        ({"format": "loralib", "r": "4", "alpha": "8", "enable": "q,o"}, "enable"),
        ({"r": "4"}, None),
        ({"odd": "1"}, "odd"),
    ],
)
def test_a_form_with_a_fault_names_its_field(fields, param, service, engine):
    form = {key: value for key, value in ({"model": BASE} | fields).items() if value is not None}
    answer = service.http.post("/v1/adapters/import", files={"file": ("a.zip", b"x")}, data=form)
    assert answer.status_code == 400, answer.text
    assert (answer.json()["error"]["param"] or "").partition(".")[0] == (param or "")
    assert engine.inspections == []
    assert nothing_was_kept(service)


def test_an_unknown_base_model_is_a_404(service, engine):
    answer = bring(service, model="../../etc")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert engine.inspections == []


def test_a_file_over_the_limit_is_a_413(service, engine):
    answer = bring(service, content=b"x" * (service.settings.max_upload_bytes + 1))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert engine.inspections == []
    assert nothing_was_kept(service)


def test_a_trained_adapter_says_so_too(service):
    made = service.adapter()
    adapter = service.http.get(f"/v1/adapters/{made['fine_tuned_model']}").json()
    assert (adapter["origin"], adapter["parameters"], adapter["warnings"]) == ("training", 9, [])
