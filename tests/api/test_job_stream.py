"""The events of a job as they happen, over a real connection."""

import json

from core.records import jobs


def told(answer):
    """The events of a stream that has ended, each (id, content)."""
    blocks = [block.split("\n") for block in answer.text.split("\n\n") if block.startswith("id: ")]
    return [(block[0].removeprefix("id: "), json.loads(block[1].removeprefix("data: "))) for block in blocks]


def test_a_finished_job_is_told_from_its_beginning_to_its_end(service):
    job = service.adapter()
    answer = service.http.get(f"/v1/fine_tuning/jobs/{job['id']}/stream")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.startswith("retry: ")
    assert answer.text.endswith("event: end\ndata: [DONE]\n\n")
    listed = service.http.get(f"/v1/fine_tuning/jobs/{job['id']}/events", params={"limit": 100}).json()["data"]
    assert [event for _, event in told(answer)] == listed[::-1]
    assert [name for name, _ in told(answer)] == [event["id"] for event in listed[::-1]]


def test_whoever_comes_back_is_told_what_came_after_and_nothing_twice(service):
    path = f"/v1/fine_tuning/jobs/{service.adapter()['id']}/stream"
    everything = told(service.http.get(path))
    third = everything[2][0]
    assert told(service.http.get(path, headers={"last-event-id": third})) == everything[3:]
    assert told(service.http.get(path, params={"after": third})) == everything[3:]
    assert told(service.http.get(path, headers={"last-event-id": everything[-1][0]})) == []


def test_what_happens_meanwhile_is_told_and_the_stream_ends_with_the_job(service):
    job_id = service.job().json()["id"]
    with service.http.stream("GET", f"/v1/fine_tuning/jobs/{job_id}/stream") as answer:
        lines = answer.iter_lines()
        assert next(line for line in lines if line.startswith("data: "))
        with service.database.writing() as session:
            jobs.cancel(session, service.account, job_id)
        rest = list(lines)
    assert '"kind":"cancelled"' in next(line for line in rest if line.startswith("data: "))
    assert rest[-2:] == ["data: [DONE]", ""]


def test_a_stranger_s_job_is_not_there_and_a_false_id_is_refused(service):
    job_id = service.job().json()["id"]
    assert service.stranger().get(f"/v1/fine_tuning/jobs/{job_id}/stream").status_code == 404
    refused = service.http.get(f"/v1/fine_tuning/jobs/{job_id}/stream", params={"after": "nonsense"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "after")
