"""A learning rate that is to be found: asked for in the form, its cost beside it, and told on the job's page."""

import json

from browser import axe_faults
from serving import running
from test_admin_jobs import run
from test_estimate_route import MEASURED

from core.records import jobs
from core.records.tables import Job
from core.specs.rate_search import FoundRate
from core.specs.training import TrainSpec

FOUND = FoundRate(
    rate=1e-3, judged_on="held_out_rows", judged_rows=12, candidates=(), tokens=100, judged_tokens=30, share=0.5
)


def test_a_search_is_chosen_with_its_cost_beside_it_and_copied_with_the_rest(service, page):
    service.upload()
    with running(service) as engine:
        engine.measured = MEASURED
        page.goto(f"{service.url}/admin/jobs/new")
        page.locator("summary", has_text="Everything else").click()
        rate = page.locator("#training-learning_rate")
        rate.fill("0.0003")
        assert '"learning_rate": 0.0003' in page.locator("#script").inner_text()
        page.get_by_label("find it by a search").check()
        assert rate.is_disabled()
        page.locator("#training-learning_rate-search-says", has_text="7 rates are tried first").wait_for()
        assert axe_faults(page) == []
        for language in ("curl", "Python", "CLI"):
            page.get_by_role("button", name=language, exact=True).click()
            run(language, page.locator("#script").inner_text(), service)
        page.get_by_role("button", name="Start the job").click()
        page.wait_for_url("**/admin/jobs/ftjob-*")
    with service.database.session() as session:
        made = jobs.listed(session, service.account).rows
    assert [job.request["training"]["learning_rate"] for job in made] == ["search"] * 4
    assert all(TrainSpec.model_validate(job.spec).is_searching for job in made)


def test_a_number_that_was_written_is_there_again_once_no_search_is_wished(service, page):
    service.upload()
    page.goto(f"{service.url}/admin/jobs/new")
    page.locator("summary", has_text="Everything else").click()
    page.locator("#training-learning_rate").fill("0.0003")
    page.get_by_label("find it by a search").check()
    script = page.locator("#script")
    body = script.inner_text()
    assert json.loads(body[body.index("'{") + 1 : body.rindex("}'") + 1])["training"] == {"learning_rate": "search"}
    page.get_by_text("no engine counts the data now").wait_for()
    page.get_by_label("find it by a search").uncheck()
    assert '"learning_rate": 0.0003' in script.inner_text()


def test_a_job_tells_what_it_searches_and_what_it_found(service, page):
    job_id = service.job(training={"learning_rate": "search"}).json()["id"]
    page.goto(f"{service.url}/admin/jobs/{job_id}")
    assert "the best of 7, from 6.25e-05 to 0.004" in page.locator("#rate").inner_text()
    with service.database.writing() as session:
        row = session.get_one(Job, job_id)
        row.spec = TrainSpec.model_validate(row.spec).with_rate(FOUND).model_dump(mode="json")
    page.get_by_text("0.001 is the best of 7, judged on 12 rows").wait_for()  # the page asks for itself
    page.reload()
    (said,) = [row.inner_text() for row in page.locator(".values tr", has_text="training.learning_rate").all()]
    assert said.split() == ["training.learning_rate", "0.001", "search"]
