"""A job's metrics over HTTP."""

from core.records import jobs


def test_a_run_s_metrics_are_series_of_points(service):
    job = service.adapter()
    answer = service.http.get(f"/v1/fine_tuning/jobs/{job['id']}/metrics").json()
    newest = service.http.get(f"/v1/fine_tuning/jobs/{job['id']}/events").json()["data"][2]
    one = {"steps": [1], "values": [1.5], "lows": [1.5], "highs": [1.5]}
    assert answer == {
        "object": "fine_tuning.job.metrics",
        "fine_tuning_job_id": job["id"],
        "first_step": 1,
        "last_step": 1,
        "total_steps": None,
        "steps_per_point": 1,
        "last_event_id": newest["id"],
        "series": {
            "train_loss": one,
            "train_mean_token_accuracy": one | {"values": [0.5], "lows": [0.5], "highs": [0.5]},
        },
        "ranks": {"steps": [], "modules": [], "values": []},
    }


def test_a_long_run_comes_in_as_many_points_as_asked_for(service):
    job_id = service.job().json()["id"]
    held = jobs.claim(service.database, owner="test", lease_s=60, job_id=job_id)
    told = [
        jobs.Event("step", "s", type="metrics", step=n, data={"step": n, "train_loss": 1 / n}) for n in range(1, 2001)
    ]
    jobs.record(service.database, held, told)
    path = f"/v1/fine_tuning/jobs/{job_id}/metrics"
    assert len(service.http.get(path).json()["series"]["train_loss"]["values"]) == 500
    few = service.http.get(path, params={"from_step": 11, "to_step": 50, "resolution": 4}).json()
    assert few["series"]["train_loss"]["steps"] == [20, 30, 40, 50]


def test_bad_ranges_are_refused_and_a_stranger_finds_nothing(service):
    path = f"/v1/fine_tuning/jobs/{service.job().json()['id']}/metrics"
    bad = [({"from_step": 0}, "from_step"), ({"from_step": 5, "to_step": 4}, "to_step")]
    bad += [({"resolution": 0}, "resolution"), ({"resolution": 5001}, "resolution"), ({"to_step": "x"}, "to_step")]
    for query, param in bad:
        answer = service.http.get(path, params=query)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    assert service.stranger().get(path).status_code == 404
