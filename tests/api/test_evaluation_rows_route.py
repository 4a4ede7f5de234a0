"""Rows by HTTP: kept, listed, read as a dataset, made a file that a job is validated with."""

import json

import pytest

ASKED = [{"role": "user", "content": "Where is my parcel?"}]
ROW = {"messages": [*ASKED, {"role": "assistant", "content": "delivery"}]}


def test_rows_become_a_file_that_a_job_is_validated_with(service):
    kept = service.http.post("/v1/evaluation_rows", json=ROW | {"model": "ft:x"}).json()
    assert (kept["object"], kept["messages"], kept["model"]) == ("evaluation_row", ROW["messages"], "ft:x")
    history = [*ASKED, {"role": "assistant", "content": "What?", "weight": 0}, *ROW["messages"]]
    service.http.post("/v1/evaluation_rows", json={"messages": history})
    assert [row["messages"] for row in service.http.get("/v1/evaluation_rows").json()["data"]] == [
        history,
        ROW["messages"],
    ]
    content = service.http.get("/v1/evaluation_rows/content")
    assert [json.loads(line) for line in content.text.splitlines()] == [ROW, {"messages": history}]
    assert "attachment" in content.headers["content-disposition"]
    file = service.http.post("/v1/evaluation_rows/file", json={"filename": "judged.jsonl"}).json()
    assert (file["filename"], file["validation"]["format"], file["validation"]["n_examples"]) == (
        "judged.jsonl",
        "chat",
        2,
    )
    assert service.http.get(f"/v1/files/{file['id']}/content").text == content.text
    assert service.job(validation_file=file["id"]).json()["validation_file"] == file["id"]
    assert service.http.delete(f"/v1/evaluation_rows/{kept['id']}").json()["deleted"]
    assert len(service.http.get("/v1/evaluation_rows").json()["data"]) == 1


@pytest.mark.parametrize(
    "body",
    [
        {"messages": []},
        {"messages": ASKED},
        {"messages": [*ASKED, {"role": "assistant", "content": "  "}]},
        {"messages": [*ASKED, {"role": "assistant", "content": "x", "weight": 0}]},
        ROW | {"model": ""},
        ROW | {"verdict": "good"},
    ],
)
def test_what_no_dataset_would_take_is_no_row(service, body):
    answer = service.http.post("/v1/evaluation_rows", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]
    assert service.http.get("/v1/evaluation_rows").json()["data"] == []


def test_without_rows_there_is_no_file(service):
    answer = service.http.post("/v1/evaluation_rows/file", json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "no_rows")
    assert service.http.get("/v1/files").json()["data"] == []


def test_a_stranger_finds_and_deletes_nothing(service):
    kept = service.http.post("/v1/evaluation_rows", json=ROW).json()["id"]
    stranger = service.stranger()
    assert stranger.get("/v1/evaluation_rows").json()["data"] == []
    assert stranger.get("/v1/evaluation_rows/content").text == ""
    assert stranger.get("/v1/evaluation_rows", params={"after": kept}).status_code == 400
    assert stranger.delete(f"/v1/evaluation_rows/{kept}").status_code == 404
    assert len(service.http.get("/v1/evaluation_rows").json()["data"]) == 1
