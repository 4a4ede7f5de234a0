"""Jobs that trained in step, looked at as one: one curve, one row of figures."""

import itertools

import pytest
from visiting import signed_in

from api.admin.compare import Group
from api.admin.render import NOTHING
from core.records import jobs
from core.records.tables import Job

# What uPlot is given: its arguments are kept, and it draws as ever.
KEEP_LINES = """() => {
  window.drawn = {};
  const drawn = Graft.charts.overlay;
  Graft.charts.overlay = (holder, lines, look) => {
    window.drawn[holder.id] = lines;
    return drawn(holder, lines, look);
  };
}"""


@pytest.fixture
def pair(service):
    """Two jobs of one trainer: six steps of 100 tokens, four of 300; and one that trains alone."""

    def trained(name, steps, tokens, trainer, loss):
        job_id = service.job(suffix=name, peft={"type": "lora", "r": 4}).json()["id"]
        held = jobs.claim(service.database, owner=trainer, lease_s=600, job_id=job_id)
        jobs.record(
            service.database, held, [told(step, loss + step, memory=1e9 + steps) for step in range(1, steps + 1)]
        )
        progress = {"step": steps, "total_steps": 9, "phase": "training", "trained_tokens": steps * tokens}
        jobs.beat(service.database, held, lease_s=600, **progress)
        return job_id

    return (
        trained("a", 6, 100, "together", 1.0),
        trained("b", 4, 300, "together", 5.0),
        trained("c", 5, 10, "alone", 2.0),
    )


@pytest.fixture
def long_pair(service):
    """Two jobs of one trainer that are too long to be told step by step: 1300 steps at a loss of 1, 700 at 3."""

    def trained(name, steps, loss):
        job_id = service.job(suffix=name, peft={"type": "lora", "r": 4}).json()["id"]
        held = jobs.claim(service.database, owner="together", lease_s=600, job_id=job_id)
        jobs.record(service.database, held, [told(step, loss, memory=1e9) for step in range(1, steps + 1)])
        progress = {"step": steps, "total_steps": steps, "phase": "training", "trained_tokens": steps * 10}
        jobs.beat(service.database, held, lease_s=600, **progress)
        return job_id

    return trained("a", 1300, 1.0), trained("b", 700, 3.0)


def told(step, loss, memory):
    is_judged = step % 2 == 0
    data = {"step": step, "total_steps": 9, "train_loss": loss, "gpu_mem_bytes": memory}
    return jobs.Event(
        "step",
        f"Step {step}",
        type="metrics",
        step=step,
        data=data | ({"full_valid_loss": loss + 1} if is_judged else {}),
    )


def lines(page, chart):
    """Each line's name, steps and values, and whether it is dashed."""
    shown = "({label, steps, values, isDashed}) => [label, steps, values, isDashed ?? false]"
    return page.evaluate(f"window.drawn['{chart}'].map({shown})")


def test_jobs_in_step_are_one_curve_that_goes_on_dashed_with_those_that_go_on(service, chromium, pair):
    page = signed_in(chromium, service)
    page.goto(f"{service.url}/admin/jobs/compare?" + "&".join(f"job={job_id}" for job_id in pair))
    page.wait_for_selector("#overlay[data-drawn='3']")
    page.evaluate(KEEP_LINES)
    page.locator("#smooth").uncheck()
    page.locator("#raw").check()
    assert [is_dashed for *_, is_dashed in lines(page, "chart-train")] == [False] * 3
    page.get_by_label("groups as one").check()
    page.wait_for_selector("#overlay[data-drawn='2']")
    (name, steps, values, is_dashed), rest, (alone, *_) = lines(page, "chart-train")
    assert (name, alone.split()[0]) == ("a + b · in step", "c")
    assert (steps, is_dashed) == ([1, 2, 3, 4], False)
    # a counts for 100 tokens a step and b for 300, so that each loss is 1/4 a's and 3/4 b's.
    assert values == pytest.approx([(1.0 + step) / 4 + (5.0 + step) * 3 / 4 for step in steps])
    # From the last step of both a goes on alone.
    assert rest == [name, [4, 5, 6], [values[-1], 6.0, 7.0], True]
    both, a_alone, *_ = lines(page, "chart-valid")
    assert both[1:] == [[2, 4], pytest.approx([7.0, 9.0]), False]
    assert a_alone[1:] == [[4, 6], [pytest.approx(9.0), 8.0], True]
    assert page.locator("[data-reach]").inner_text() == "all 2 to step 4 · 1 of them to step 6, dashed"
    assert "dashed from where not all of them go on" in page.locator("#as-one-says").inner_text()
    assert "each job weighed by the tokens" in page.locator("#as-one-says").inner_text()
    page.locator("[data-group]").uncheck()
    assert [line[0].split()[0] for line in lines(page, "chart-train")] == ["c"]
    page.get_by_label("groups as one").uncheck()
    page.wait_for_selector("#overlay[data-drawn='3']")
    assert page.faults == []
    page.context.close()


def test_jobs_that_are_thinned_are_one_curve_of_points_that_stand_for_the_same_steps(service, chromium, long_pair):
    page = signed_in(chromium, service)
    page.goto(f"{service.url}/admin/jobs/compare?" + "&".join(f"job={job_id}" for job_id in long_pair))
    page.wait_for_selector("#overlay[data-drawn='2']")
    page.evaluate(KEEP_LINES)
    page.locator("#smooth").uncheck()
    page.locator("#raw").check()
    page.get_by_label("groups as one").check()
    page.wait_for_selector("#overlay[data-drawn='1']")
    (_, both, mean, _), (_, rest, alone, _) = lines(page, "chart-train")
    assert (both[-1], rest[0], rest[-1], set(mean), set(alone[1:])) == (700, 700, 1300, {2.0}, {1.0})
    # All points are of as many steps, which two answers that were thinned apart would not be.
    assert {after - before for run in (both[:-1], rest[:-1]) for before, after in itertools.pairwise(run)} <= {3, 2}
    assert len(both) + len(rest) - 1 <= 601
    page.context.close()


def test_the_heading_of_a_group_tells_its_figures_together(service, chromium, pair):
    page = signed_in(chromium, service)
    page.goto(f"{service.url}/admin/jobs/compare?" + "&".join(f"job={job_id}" for job_id in pair))
    page.wait_for_selector("#overlay[data-drawn='3']")
    (row,) = page.locator("tr.group").all()
    said = [cell.inner_text() for cell in row.locator("td").all()]
    # Steps; training loss, smoothed over four steps and six; the least validation loss of each; accuracy; tokens.
    assert said[0] == f"4 {NOTHING} 6"
    assert said[2:5] == [f"4.00 {NOTHING} 8.00", NOTHING, "1\u202f800"]
    assert (said[6], row.locator("[data-memory]").get_attribute("data-memory")) == ("1.0 GB", "")
    page.context.close()


def test_jobs_that_trained_alone_have_no_box_for_groups(service, chromium, pair):
    page = signed_in(chromium, service)
    page.goto(f"{service.url}/admin/jobs/compare?job={pair[0]}&job={pair[2]}")
    page.wait_for_selector("#overlay[data-drawn='2']")
    assert (page.locator("#as-one").count(), page.locator("tr.group").count()) == (0, 0)
    page.context.close()


def test_a_group_is_timed_from_its_first_start_to_its_last_end_and_its_memory_is_not_a_sum():
    first = Job(started_at=10.0, finished_at=50.0, step=5, trained_tokens=500, measured={"memory_bytes": 7})
    second = Job(started_at=20.0, finished_at=90.0, step=2, trained_tokens=60, measured={"memory_bytes": 9})
    group = Group([first, second], at_s=1000.0)
    assert (group.seconds, group.memory_bytes, group.steps, group.tokens) == (80.0, 9, (2, 5), 560)
    assert [group.weight(job) for job in group.jobs] == [100.0, 30.0]
    second.finished_at = second.measured = None
    assert (group.seconds, group.memory_bytes) == (990.0, 7)
    second.step = None
    assert [group.weight(job) for job in group.jobs] == [1.0, 1.0]
