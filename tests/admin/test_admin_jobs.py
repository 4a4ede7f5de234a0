"""Pages of jobs and data in Chromium: moves, comparison, templates, copied commands, and that nothing jumps."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import showcase
from browser import axe_faults
from serving import running
from visiting import signed_in

from api.admin.jobs import moves_of
from core.records import jobs
from core.specs import template as templates

ROOT = Path(__file__).parents[2]
SHIFTS = """() => new Promise((resolve) => {
  let sum = 0;
  const watch = new PerformanceObserver((list) => {
    for (const one of list.getEntries()) if (!one.hadRecentInput) sum += one.value;
  });
  watch.observe({type: "layout-shift", buffered: true});
  setTimeout(() => resolve(sum), 300);
})"""
FIRST_PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"
PLACES = [
    *("/admin", "/admin/data", "/admin/data/{file}", "/admin/jobs", "/admin/jobs/new", "/admin/jobs/{running}"),
    *("/admin/jobs/{done}", "/admin/jobs/compare?job={done}&job={running}", "/admin/adapters", "/admin/playground"),
    *("/admin/adapters/{adapter}", "/admin/workers", "/admin/keys", "/admin/usage", "/admin/audit", "/admin/settings"),
]
# The aim is 200 ms on a calm machine. This one may be anything but: there, so many times the barest page of all.
PAINTED_MS = 500
BUSY = 6
STILL = 0.004  # a line of text that came or went above the charts would be 0.008


@pytest.fixture
def live(service):
    """A job that trains, its holder, and a way to let it make steps."""
    job_id = service.job(suffix="live", peft={"type": "adalora"}, **both(service)).json()["id"]
    held = showcase.advance(service, job_id, steps=20, of=300)

    def advance(first, last):
        chance = showcase.random.Random(first)
        told = []
        for step in range(first, last + 1):
            data = showcase.figures(step, 300, chance, 1.0)
            told.append(jobs.Event("step", f"Step {step}/300", type="metrics", step=step, data=data))
            if step % 10 == 0:
                told += [showcase.validation(step, 300, 1.0), showcase.samples(step)]
        jobs.record(service.database, held, told)
        jobs.beat(
            service.database, held, lease_s=600, step=last, total_steps=300, phase="training", trained_tokens=last * 437
        )

    return job_id, advance


def both(service):
    lines = (showcase.SAMPLES / "tickets.heldout.jsonl").read_bytes()
    return {name: service.upload(lines).json()["id"] for name in ("training_file", "validation_file")}


@pytest.mark.parametrize("scroll", [0, 900, 5000], ids=["at the top", "in the middle", "at the end"])
def test_nothing_jumps_while_a_job_is_watched(service, chromium, live, scroll):
    job_id, advance = live
    page = signed_in(chromium, service)
    page.goto(f"{service.url}/admin/jobs/{job_id}")
    page.evaluate(f"scrollTo(0, {scroll})")
    page.wait_for_selector("#feed[data-points='20']")
    for first in range(21, 101, 20):
        advance(first, first + 19)
        page.wait_for_selector(f"#feed[data-points='{first + 19}']")
        page.wait_for_timeout(900)
    page.wait_for_timeout(3000)  # the tiles ask for themselves
    assert page.evaluate(SHIFTS) < STILL
    assert page.faults == []
    page.context.close()


def test_the_measure_of_jumping_sees_a_page_that_jumps(service, chromium, live):
    page = signed_in(chromium, service)
    page.goto(f"{service.url}/admin/jobs/{live[0]}")
    page.wait_for_timeout(300)
    page.evaluate("""() => {
      const tall = document.createElement("div");
      tall.className = "chart";
      document.querySelector("main").prepend(tall);
    }""")
    page.wait_for_timeout(200)
    assert page.evaluate(SHIFTS) > STILL
    page.context.close()


def first_paint_ms(page, address, visits=3):
    """Of the quickest visit: the others tell of what else the machine did."""
    found = []
    for _ in range(visits):
        page.goto(address)
        while (painted_ms := page.evaluate(FIRST_PAINT)) is None:
            page.wait_for_timeout(20)
        found.append(round(painted_ms))
    return min(found)


def test_every_page_paints_soon(chromium, shown):
    service, ids = shown
    page = signed_in(chromium, service)
    bound_ms = max(PAINTED_MS, BUSY * first_paint_ms(page, f"{service.url}/admin/jobs/ftjob-none"))
    took = {place: first_paint_ms(page, service.url + place.format(**ids)) for place in PLACES}
    assert {place: ms for place, ms in took.items() if ms > bound_ms} == {}, took
    page.context.close()


def test_a_job_is_paused_resumed_and_run_again_from_its_page(service, page, live):
    job_id, _ = live
    page.goto(f"{service.url}/admin/jobs/{job_id}")
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Do not pause").click()
    page.get_by_role("button", name="Pause").wait_for()
    waiting = service.job().json()["id"]
    page.goto(f"{service.url}/admin/jobs/{waiting}")
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Resume").wait_for()
    assert service.http.get(f"/v1/fine_tuning/jobs/{waiting}").json()["status"] == "paused"
    page.get_by_role("button", name="Cancel the job").click()
    page.locator("#confirm-yes").click()
    page.get_by_role("button", name="Run it again").click()
    for _ in range(600):
        if not page.url.endswith(waiting):
            break
        page.wait_for_timeout(50)
    again = service.http.get(f"/v1/fine_tuning/jobs/{page.url.rpartition('/')[2]}").json()
    assert again["retry_of"] == waiting
    assert axe_faults(page) == []


def test_the_moves_on_a_page_are_those_that_the_api_allows(service):
    def state(job_id):
        with service.database.session() as session:
            return jobs.find(session, service.account, job_id)

    def allowed(job_id, move):
        return service.http.post(f"/v1/fine_tuning/jobs/{job_id}/{move}").status_code == 200

    def made(*moves):
        job_id = service.job().json()["id"]
        for move in moves:
            assert allowed(job_id, move)
        return job_id

    for path in ([], ["pause"], ["cancel"]):
        for move in ("pause", "resume", "retry", "cancel"):
            job_id = made(*path)
            is_repeat = path == [move]
            assert is_repeat or (move in moves_of(state(job_id))) == allowed(job_id, move), (path, move)


def test_an_adapter_is_promoted_from_its_job(service, page):
    job = service.adapter()
    page.goto(f"{service.url}/admin/jobs/{job['id']}")
    page.locator("#alias").fill("stable")
    page.get_by_role("button", name="Promote", exact=True).click()
    page.get_by_text("@stable").wait_for()
    assert service.http.get("/v1/adapters/support@stable").json()["name"] == job["fine_tuned_model"]
    assert page.locator("svg.lineage a", has_text="adapter").locator("title").text_content() == job["fine_tuned_model"]


def test_marked_jobs_stay_marked_while_the_list_lives_and_are_compared(service, page):
    ids = [
        service.job(suffix=name, peft={"type": "lora", "r": r}, seed=3).json()["id"] for name, r in (("a", 4), ("b", 8))
    ]
    service.job(suffix="c")
    page.goto(f"{service.url}/admin/jobs")
    for job_id in ids:
        page.locator(f"#mark-{job_id}").check()
    page.wait_for_timeout(4600)  # the list has asked for itself
    assert [page.locator(f"#mark-{job_id}").is_checked() for job_id in ids] == [True, True]
    page.get_by_role("button", name="Compare").click()
    page.wait_for_selector("#overlay[data-drawn='2']")
    differing = page.locator(".differing tbody tr").all_inner_texts()
    assert next(row.split() for row in differing if "peft.r" in row) == ["peft.r", "8", "4"]  # newest first
    assert "seed" not in "".join(row.split()[0] for row in differing)
    assert axe_faults(page) == []


def test_too_few_or_strangers_jobs_are_not_compared(service, visitor):
    job_id = service.job().json()["id"]
    assert visitor.get(f"/admin/jobs/compare?job={job_id}&job={job_id}").status_code == 400
    assert visitor.get(f"/admin/jobs/compare?job={job_id}&job=ftjob-none").status_code == 404


TEMPLATES = [
    "{v:20}{input}{target}",
    "{v:3}Review: {input}{v:2} It was {target}",
    "{{x}} {v:1} {input}{target} ",
    "a😀{v:0}{input}{target}",
    *("", "{input}{target}", "{v:1}{target}{input}", "{v:1}{input}", "{v:1}{input}{target}!"),
    *("{v:1}{inut}{target}", "}{v:1}{input}", "{v:1}{input}{input}{target}", "{v:600}{input}{target}"),
    *("{v:12345}{input}{target}", "{v:1}{input}{target"),
]


def test_the_editor_reads_a_template_as_the_service_does(service, page):
    service.upload()
    page.goto(f"{service.url}/admin/jobs/new")
    for text in TEMPLATES:
        found = page.evaluate("(text) => Graft.template.parse(text)", text)
        try:
            expected = templates.parse(text)
        except ValueError as error:
            place = str(error).partition("character ")[2].partition(":")[0]
            assert "fault" in found, text
            assert not place or f"Character {place}:" in found["fault"], text
        else:
            assert found.get("n") == expected.num_virtual_tokens, text


def test_a_template_is_drawn_as_it_is_typed(service, page):
    service.upload()
    with running(service):
        page.goto(f"{service.url}/admin/jobs/new")
        page.get_by_role("radio", name="P-tuning").check()
        page.locator("#p_tuning-template").fill("{v:2}Ask: {input}{v:1}{target}")
        page.wait_for_function("document.querySelector('#template-row .input')?.textContent === 'oak'")
        assert page.locator("#template-row .virtual").all_inner_texts() == ["v1", "v2", "v3"]
        assert page.locator("#template-row .learned").inner_text() == "elmash"
        page.locator("#p_tuning-template").fill("{v:2}{inpt}{target}")
        assert page.locator("#template-fault").inner_text() == "Character 6: {inpt} is not understood."
        assert axe_faults(page) == []


def test_what_is_copied_makes_the_job(service, page):
    service.upload()
    page.goto(f"{service.url}/admin/jobs/new")
    page.locator("#suffix").fill("it s 7")
    page.locator("#lora-r").fill("4")
    page.locator("summary", has_text="Everything else").click()
    page.locator("#training-learning_rate").fill("0.0003")
    for language in ("curl", "Python", "CLI"):
        page.get_by_role("button", name=language, exact=True).click()
        run(language, page.locator("#script").inner_text(), service)
    with service.database.session() as session:
        made = jobs.listed(session, service.account).rows
    assert len(made) == 3
    for job in made:
        assert (job.suffix, job.spec["method"]["r"], job.spec["learning_rate"]) == ("it s 7", 4, 3e-4)


def run(language, text, service):
    """As a person at a terminal would."""
    given = os.environ | {"GRAFT_KEY": service.key}
    command = [sys.executable, "-c", text]
    if language != "Python":
        command = ["bash", "-c", text.replace(".venv/bin/python", sys.executable)]
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_lengths_are_in_tokens_once_an_engine_counts_them(service, page):
    file_id = service.upload().json()["id"]
    page.goto(f"{service.url}/admin/data/{file_id}")
    page.get_by_role("heading", name="Lengths of examples, in characters").wait_for()
    page.wait_for_timeout(1500)
    page.faults.clear()  # Chromium itself reports the preview that no engine gave
    page.get_by_role("heading", name="Lengths of examples, in characters").wait_for()
    with running(service):
        page.goto(f"{service.url}/admin/data/{file_id}")
        page.get_by_role("heading", name="Lengths of examples, in tokens").wait_for()
        assert "the longest has 40" in page.locator("#lengths").inner_text()
        assert axe_faults(page) == []
