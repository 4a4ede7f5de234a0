import gzip
import io
import json

import pyarrow as pa
import pytest
from pyarrow import parquet
from serving import serving

GOOD = [
    json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": f"a{n}"}]})
    for n in range(4)
]


def error_of(answer):
    assert set(answer.json()) == {"error"}
    return answer.json()["error"]


def test_an_uploaded_dataset_is_checked_kept_and_given_back(service):
    content = "\n".join(GOOD).encode()
    answer = service.upload(content, name="../../etc/plain name.jsonl")
    assert answer.status_code == 200, answer.text
    file = answer.json()
    assert file | {"id": "", "created_at": 0} == {
        "id": "",
        "object": "file",
        "bytes": len(content),
        "created_at": 0,
        "expires_at": None,
        "filename": "plain name.jsonl",
        "purpose": "fine-tune",
        "status": "processed",
        "status_details": None,
        "validation": {
            "valid": True,
            "format": "chat",
            "container": "jsonl",
            "n_examples": 4,
            "errors": [],
            "n_warnings": 0,
            "warnings": [],
        },
    }
    assert service.http.get(f"/v1/files/{file['id']}").json() == file
    download = service.http.get(f"/v1/files/{file['id']}/content")
    assert download.content == content
    assert download.headers["content-length"] == str(len(content))
    deleted = service.http.delete(f"/v1/files/{file['id']}")
    assert deleted.json() == {"id": file["id"], "object": "file", "deleted": True}
    gone = service.http.get(f"/v1/files/{file['id']}")
    assert gone.status_code == 404
    assert error_of(gone)["message"] == f"No such File object: {file['id']}"
    assert service.http.delete(f"/v1/files/{file['id']}").status_code == 404


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty_file"),
        (b"not json\n", "invalid_json"),
        (b'{"messages": [{"role": "bot", "content": "x"}]}\n', "wrong_role"),
        (b'{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}]}\n', "empty_content"),
        (b'{"prompt": "\xff", "completion": "x"}\n', "invalid_utf8"),
        (b'[{"messages": []}]', "not_json_lines"),
        (b"PK\x03\x04", "not_json_lines"),
    ],
)
def test_a_faulty_dataset_is_refused_with_its_lines_and_nothing_is_kept(service, content, code):
    answer = service.upload(content)
    error = error_of(answer)
    assert answer.status_code == 400
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "file", "invalid_training_file")
    assert error["details"][0]["line"] == 1
    assert code in [detail["code"] for detail in error["details"]]
    assert {"line", "field", "code", "message"} == set(error["details"][0])
    assert service.http.get("/v1/files").json()["data"] == []
    assert list(service.settings.data_dir.glob("uploads/*")) == []
    assert list((service.settings.data_dir / "blobs" / "blobs").glob("*/*")) == []


def test_what_is_odd_about_a_dataset_is_told_and_it_is_kept(service):
    file = service.upload("\n".join([*GOOD, GOOD[1]])).json()
    [warning] = file["validation"]["warnings"]
    assert (file["status"], file["validation"]["n_warnings"]) == ("processed", 1)
    assert warning == {
        "line": 5,
        "field": "",
        "code": "duplicate",
        "message": "the example is the same as that of line 2",
    }


def test_tables_and_archives_are_taken_by_their_content_whatever_they_are_called(service):
    content = io.BytesIO()
    parquet.write_table(pa.table({"text": ["lost", "late"], "label": ["a", "b"]}), content)
    for body, container in (
        (b"text,label\nlost,a\nlate,b\n", "csv"),
        (gzip.compress(b"text,label\nlost,a\nlate,b\n", mtime=0), "csv"),
        (content.getvalue(), "parquet"),
    ):
        validation = service.upload(body).json()["validation"]
        assert (validation["format"], validation["container"], validation["n_examples"]) == (
            "classification",
            container,
            2,
        )


def test_an_archive_that_unfolds_to_too_much_is_refused(settings):
    with serving(settings.model_copy(update={"max_unpacked_bytes": 4096})) as service:
        error = error_of(service.upload(gzip.compress(("\n".join(GOOD) + "\n" + " " * 5000).encode())))
        assert (error["code"], error["details"][-1]["code"]) == ("invalid_training_file", "unpacked_too_large")
        assert service.upload(gzip.compress("\n".join(GOOD).encode())).status_code == 200


def test_every_fault_is_counted_and_the_first_hundred_are_named(service):
    lines = [GOOD[0] if n % 2 else "broken" for n in range(300)]
    error = error_of(service.upload("\n".join(lines)))
    assert error["n_errors"] == 150
    assert [detail["line"] for detail in error["details"]] == list(range(1, 200, 2))


def test_other_purposes_are_kept_as_they_are(service):
    answer = service.upload(b"\xff\x00 anything", purpose="user_data", name="notes.bin")
    assert answer.status_code == 200
    assert answer.json()["validation"] is None
    assert service.http.get(f"/v1/files/{answer.json()['id']}/content").content == b"\xff\x00 anything"


def test_files_are_listed_in_pages_and_by_purpose(service):
    ids = [service.upload(name=f"{n}").json()["id"] for n in range(5)]
    other = service.upload(purpose="batch").json()["id"]
    first = service.http.get("/v1/files", params={"limit": 2, "purpose": "fine-tune"}).json()
    assert [file["id"] for file in first["data"]] == [ids[4], ids[3]]
    assert (first["has_more"], first["first_id"], first["last_id"]) == (True, ids[4], ids[3])
    rest = service.http.get("/v1/files", params={"after": ids[3], "purpose": "fine-tune"}).json()
    assert [file["id"] for file in rest["data"]] == [ids[2], ids[1], ids[0]]
    assert rest["has_more"] is False
    ascending = service.http.get("/v1/files", params={"order": "asc"}).json()
    assert [file["id"] for file in ascending["data"]] == [*ids, other]
    unknown = service.http.get("/v1/files", params={"after": "file-nowhere"})
    assert (unknown.status_code, error_of(unknown)["param"]) == (400, "after")


@pytest.mark.parametrize(
    ("query", "param"), [("limit=0", "limit"), ("limit=10001", "limit"), ("limit=x", "limit"), ("order=up", "order")]
)
def test_a_bad_query_names_its_parameter(service, query, param):
    answer = service.http.get(f"/v1/files?{query}")
    assert (answer.status_code, error_of(answer)["param"]) == (400, param)


def test_an_upload_over_the_limit_stops_at_the_limit(service):
    taken = 0

    def endless():
        nonlocal taken
        yield b'--b\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\n'
        while taken < 64 << 20:
            taken += 1 << 16
            yield b"x" * (1 << 16)

    answer = service.http.post(
        "/v1/files", content=endless(), headers={"content-type": "multipart/form-data; boundary=b"}
    )
    assert answer.status_code == 413
    assert error_of(answer)["code"] == "request_too_large"
    assert taken < 16 << 20
    assert list(service.settings.data_dir.glob("uploads/*")) == []


@pytest.mark.parametrize(
    ("content_type", "body", "param"),
    [
        ("application/json", b"{}", None),
        ("multipart/form-data", b"", None),
        ("multipart/form-data; boundary=b", b"", None),
        ("multipart/form-data; boundary=b", b"garbage", None),
        ("multipart/form-data; boundary=b", b"--b--\r\n", "file"),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\nabc',
            None,
        ),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\nabc\r\n--b--\r\n',
            "purpose",
        ),
        (
            "multipart/form-data; boundary=b",
            (
                b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nevil\r\n'
                b'--b\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\nabc\r\n--b--\r\n'
            ),
            "purpose",
        ),
        ("multipart/form-data; boundary=b", b"--b\r\nx-long: " + b"a" * 9000 + b"\r\n\r\n", None),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\n' + b"a" * 9000 + b"\r\n--b--\r\n",
            None,
        ),
    ],
)
def test_a_form_that_is_none_is_a_400(service, content_type, body, param):
    answer = service.http.post("/v1/files", content=body, headers={"content-type": content_type})
    assert answer.status_code == 400, answer.text
    assert error_of(answer)["param"] == param


def test_a_file_name_cannot_carry_headers_or_paths(service):
    body = (
        b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
        b'--b\r\ncontent-disposition: form-data; name="file"; filename="a\\..\\b/\x01\x7fevil"\r\n\r\nabc\r\n--b--\r\n'
    )
    answer = service.http.post("/v1/files", content=body, headers={"content-type": "multipart/form-data; boundary=b"})
    assert (answer.status_code, answer.json()["filename"]) == (200, "evil")


def test_a_file_may_be_asked_to_expire(service):
    fields = {"purpose": "fine-tune", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    file = service.http.post("/v1/files", files={"file": ("a", GOOD[0].encode())}, data=fields).json()
    assert file["expires_at"] - file["created_at"] == 3600
    for wrong in (
        {"expires_after[seconds]": "1"},
        {"expires_after[anchor]": "now"},
        {"expires_after[seconds]": "9" * 50},
    ):
        answer = service.http.post("/v1/files", files={"file": ("a", GOOD[0].encode())}, data=fields | wrong)
        assert (answer.status_code, error_of(answer)["param"]) == (400, "expires_after")
