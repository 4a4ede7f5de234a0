"""The dashboard in a real Chromium: whatever happens, the console stays silent and nothing is asked of others."""

import json

import pytest
from browser import axe_faults
from fake_engine import Served, words_of
from serving import running, serving
from visiting import signed_in

from api.main import create_app
from core.records import jobs
from core.records.database import Database
from core.records.tables import BrowserSession

WHOLE = "/admin /admin/data /admin/jobs /admin/jobs/new /admin/adapters /admin/playground /admin/workers /admin/keys"
PLACES = [
    *WHOLE.split(),
    *("/admin/usage", "/admin/audit", "/admin/settings", "/admin/playground/rows"),
    *(
        f"/admin/{place}"
        for place in ("data/{file}", "jobs/{done}", "jobs/{failed}", "jobs/{running}", "jobs/{waiting}")
    ),
    "/admin/adapters/{adapter}",
    "/admin/jobs/compare?job={done}&job={prompt}&job={running}&job={beside}",
]
LOOKS = {
    "desktop": {},
    "dark": {"scheme": "dark"},
    "phone": {"width": 360, "height": 740},
    "Chinese phone, dark": {"width": 360, "height": 740, "scheme": "dark", "locale": "zh-CN"},
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_every_page_is_accessible_fits_its_screen_and_says_nothing_to_the_console(chromium, shown, look):
    service, ids = shown
    page = signed_in(chromium, service, **look)
    for place in PLACES:
        page.goto(service.url + place.format(**ids))
        page.wait_for_timeout(400)
        for summary in page.locator("details > summary").all():
            if summary.is_visible():
                summary.click()
        assert (place, axe_faults(page)) == (place, [])
        assert page.evaluate("document.documentElement.scrollWidth") <= look.get("width", 1440), place
    assert page.faults == []
    page.context.close()


SHIFTS = """
new Promise((done) => {
  let sum = 0;
  const see = (list) => list.getEntries().forEach((one) => (sum += one.value));
  new PerformanceObserver(see).observe({ type: "layout-shift" });
  setTimeout(() => done(sum), 5000);
})
"""


@pytest.mark.parametrize("place", ["/admin", "/admin/workers"])
def test_a_page_that_renews_itself_does_not_move_under_its_reader(chromium, shown, place):
    page = signed_in(chromium, shown[0], width=360, height=740)
    page.goto(shown[0].url + place)
    page.wait_for_timeout(500)
    with page.expect_response(lambda answer: answer.request.headers.get("hx-request") == "true", timeout=9000):
        assert page.evaluate(SHIFTS) < 0.01
    # Negative control: the measure sees what moves.
    page.evaluate("setTimeout(() => { document.querySelector('main').style.paddingTop = '300px'; }, 500)")
    assert page.evaluate(SHIFTS) > 0.01
    page.context.close()


def test_what_a_reader_has_opened_stays_open_while_the_page_renews_itself(chromium, shown):
    page = signed_in(chromium, shown[0])
    page.goto(shown[0].url + "/admin/workers")
    page.get_by_text("All that it says").first.click()
    for _ in range(2):
        page.wait_for_event("response", lambda answer: answer.request.headers.get("hx-request") == "true")
        page.wait_for_timeout(200)
        assert page.locator("#live details[open]").count() == 1
    page.context.close()


def test_axe_finds_what_is_wrong(chromium, shown):
    page = signed_in(chromium, shown[0])
    page.evaluate("document.querySelector('main').append(document.createElement('button'))")
    assert [fault for fault in axe_faults(page) if fault.startswith("button-name")] != []
    page.context.close()


def test_the_watch_sees_what_is_said_to_the_console_and_asked_of_others(chromium, shown):
    page = signed_in(chromium, shown[0])
    page.evaluate("fetch('http://127.0.0.1:9/').catch(() => {})")
    page.evaluate("void (location.href = 'http://127.0.0.1:9/')")
    page.wait_for_timeout(300)
    assert any(fault.startswith("asked") for fault in page.faults)
    assert any("Content Security Policy" in fault for fault in page.faults)
    page.context.close()


def test_a_newcomer_is_led_from_sample_data_to_a_job(service, page):
    with running(service):
        page.get_by_role("link", name="To the data").click()
        page.get_by_role("button", name="tickets").click()
        page.wait_for_url("**/admin/data/file-*")
        page.locator("#preview-rows .learned").first.wait_for()
        page.get_by_role("link", name="Train with it").click()
        page.get_by_label("Name").fill("first try")
        page.get_by_role("radio", name="AdaLoRA").check()
        page.locator("#adalora-target_r").fill("4")
        assert '"target_r": 4' in page.locator("#script").inner_text()
        page.get_by_role("button", name="Python").click()
        assert 'extra_body={"peft": {"type": "adalora", "target_r": 4}}' in page.locator("#script").inner_text()
        page.get_by_role("button", name="Start the job").click()
        page.wait_for_url("**/admin/jobs/ftjob-*")
    with service.database.session() as session:
        job = jobs.listed(session, service.account).rows[0]
    assert (job.suffix, job.spec["method"]["target_r"]) == ("first try", 4)


def test_a_file_with_faults_is_refused_with_each_line(page):
    lines = ['{"prompt": "a", "completion": "b"}', '{"prompt": 3}', "not json"]
    page.goto(page.url + "/data")
    page.set_input_files("#file", {"name": "odd.jsonl", "mimeType": "text/plain", "buffer": "\n".join(lines).encode()})
    page.wait_for_selector("#faults table")
    assert {row.locator("td").first.inner_text() for row in page.locator("#faults tbody tr").all()} == {"2", "3"}
    assert axe_faults(page) == []
    page.faults.clear()  # Chromium itself reports the 400


def test_a_refused_field_is_shown_where_it_was_written(service, page):
    service.upload()
    page.goto(page.url + "/jobs/new")
    page.get_by_role("radio", name="AdaLoRA").check()
    page.locator("#hyper-n_epochs").fill("99")
    page.get_by_role("button", name="Start the job").click()
    page.wait_for_selector("#hyper-n_epochs[aria-invalid=true]")
    assert page.evaluate("document.activeElement.id") == "hyper-n_epochs"
    page.faults.clear()


def test_one_prompt_is_answered_by_several_models_side_by_side(service, page):
    name = service.adapter()["fine_tuned_model"]
    with running(service) as engine:
        page.goto(f"{service.url}/admin/playground?model={name}")
        page.get_by_label("Prompt").fill("hello")
        page.get_by_text("Instruction and sampling").click()
        page.get_by_label("Most tokens").fill("12")
        page.get_by_label("Mark what differs").check()
        page.get_by_role("button", name="Ask them").click()
        page.wait_for_selector("#stop", state="hidden")
        answers = [one.inner_text() for one in page.locator("#answers .answer").all()]
    asked = sorted(engine.requests, key=lambda one: one.adapter is not None)
    assert [one.adapter is not None for one in asked] == [False, True]
    assert answers == [words_of(one, 12) for one in asked]
    assert (page.locator("#answers mark").count() > 0) == (answers[0] != answers[1])
    assert axe_faults(page) == []


def test_a_job_is_cancelled_only_once_it_is_meant(service, page):
    job_id = service.job().json()["id"]
    page.goto(f"{service.url}/admin/jobs/{job_id}")
    page.get_by_role("button", name="Cancel the job").click()
    page.get_by_role("button", name="Keep it as it is").click()
    assert service.http.get(f"/v1/fine_tuning/jobs/{job_id}").json()["status"] == "queued"
    page.get_by_role("button", name="Cancel the job").click()
    page.locator("#confirm-yes").click()
    page.get_by_role("button", name="Run it again").wait_for()
    assert service.http.get(f"/v1/fine_tuning/jobs/{job_id}").json()["status"] == "cancelled"
    page.faults.clear()


def test_a_stream_that_breaks_goes_on_without_losing_or_doubling_a_point(settings, chromium):
    with serving(settings) as first:
        job_id = first.job(suffix="live").json()["id"]
        held = jobs.claim(first.database, owner="test", lease_s=600, job_id=job_id)
        jobs.record(first.database, held, [step_event(step) for step in range(1, 11)])
        page = signed_in(chromium, first)
        page.goto(f"{first.url}/admin/jobs/{job_id}")
        page.wait_for_selector("#feed[data-points='10']")
        port = int(first.url.rpartition(":")[2])
        account = first.account
    with Served(create_app(settings), port):  # the API has died and come again
        jobs.record(Database(settings.database), held, [step_event(step) for step in range(11, 21)])
        page.wait_for_selector("#feed[data-points='20']", timeout=15_000)
        told = page.locator("#log li").count()
        assert told == len([one for one in told_of(settings, account, job_id) if one.kind != "step"])
    page.context.close()


def told_of(settings, account, job_id):
    with Database(settings.database).session() as session:
        return jobs.events_behind(session, account, job_id, 0, limit=1000)


def step_event(step):
    data = {"step": step, "total_steps": 20, "train_loss": 1 / step, "learning_rate": 1e-4}
    return jobs.Event("step", f"Step {step}/20", type="metrics", step=step, data=data)


def test_whoever_is_signed_out_meanwhile_is_led_to_the_sign_in(service, page):
    with service.database.writing() as session:
        session.query(BrowserSession).update({"closed_at": 1.0})
    page.wait_for_url("**/admin/sign-in*", timeout=15_000)  # the overview asks by itself
    page.faults.clear()


def test_colours_and_language_are_remembered(page):
    page.get_by_role("button", name="中文").click()
    page.get_by_role("button", name="深色").click()
    page.goto(page.url)
    assert page.evaluate("[document.documentElement.lang, document.documentElement.dataset.theme]") == [
        "zh-Hans",
        "dark",
    ]


def test_a_page_can_be_used_by_keyboard_alone(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Tab")
    shown = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert shown == "solid"
    assert json.loads(page.evaluate("JSON.stringify(document.activeElement.matches('a, button'))"))
