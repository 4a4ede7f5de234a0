from concurrent.futures import ThreadPoolExecutor

from serving import BASE
from sqlalchemy import update

from core.records.database import now_s
from core.records.tables import Idempotency


def error_of(answer, status=400):
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    return answer.json()["error"]


def n_jobs(service):
    return len(service.http.get("/v1/fine_tuning/jobs").json()["data"])


def create(service, body, **headers):
    return service.http.post("/v1/fine_tuning/jobs", json=body, headers=headers)


def test_a_named_write_is_done_once(service):
    body = {"model": BASE, "training_file": service.upload().json()["id"]}
    first = create(service, body, **{"idempotency-key": "order-1"})
    again = create(service, body, **{"idempotency-key": "order-1"})
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.json() == first.json()
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    other = create(service, body | {"seed": 1}, **{"idempotency-key": "order-1"})
    assert error_of(other, 422)["code"] == "idempotency_mismatch"
    assert error_of(create(service, body, **{"idempotency-key": "x" * 256}))["param"] == "Idempotency-Key"
    assert n_jobs(service) == 1


def test_a_refused_write_is_not_kept(service):
    key = {"idempotency-key": "order-2"}
    assert create(service, {"model": BASE}, **key).status_code == 400
    body = {"model": BASE, "training_file": service.upload().json()["id"]}
    assert create(service, body, **key).status_code == 200


def test_the_same_write_at_once_makes_one_job(service):
    body = {"model": BASE, "training_file": service.upload().json()["id"]}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: create(service, body, **{"idempotency-key": "race"}), range(16)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert n_jobs(service) == 1


def test_the_stock_clients_own_repetition_makes_no_second_job(service):
    body = {"model": BASE, "training_file": service.upload().json()["id"]}
    first = create(service, body, **{"x-stainless-retry-count": "0"}).json()["id"]
    repeated = create(service, body, **{"x-stainless-retry-count": "1"}).json()["id"]
    assert repeated == first
    meant = create(service, body, **{"x-stainless-retry-count": "0"}).json()["id"]
    assert meant != first
    assert create(service, body, **{"x-stainless-retry-count": "2"}).json()["id"] == meant
    assert create(service, body | {"seed": 3}, **{"x-stainless-retry-count": "1"}).json()["id"] not in {first, meant}
    assert n_jobs(service) == 3


def test_an_answer_is_forgotten_after_its_time(service):
    body = {"model": BASE, "training_file": service.upload().json()["id"]}
    first = create(service, body, **{"x-stainless-retry-count": "0"}).json()["id"]
    with service.database.writing() as session:
        session.execute(update(Idempotency).values(expires_at=now_s() - 1))
    assert create(service, body, **{"x-stainless-retry-count": "1"}).json()["id"] != first
