"""Adapters in the dashboard: versions together, an alias moved only once it is meant, and where each comes from."""

import json
from itertools import combinations

from browser import axe_faults

from api.admin.lineage_drawing import HEIGHT, WIDTH, drawn
from core.records import audit
from core.records.lineage import Edge, Lineage, Node


def graph(*edges):
    """kind-number to kind-number."""
    names = dict.fromkeys(name for edge in edges for name in edge)
    nodes = {name: Node(name, name.partition("-")[0], name, n) for n, name in enumerate(names)}
    return Lineage(nodes, [Edge(source, target, "made") for source, target in edges])


CHAIN = graph(
    ("file-1", "job-1"),
    ("file-2", "job-1"),
    ("job-1", "adapter-1"),
    ("adapter-1", "job-2"),
    ("file-1", "job-2"),
    ("job-2", "adapter-2"),
    ("job-1", "job-3"),
)


def overlapping(boxes):
    return [
        (one.node.id, other.node.id)
        for one, other in combinations(boxes, 2)
        if abs(one.x - other.x) < WIDTH and abs(one.y - other.y) < HEIGHT
    ]


def test_what_came_before_stands_left_and_nothing_lies_upon_another():
    drawing = drawn(CHAIN)
    places = {box.node.id: box.x for box in drawing.boxes}
    assert all(places[edge.source] < places[edge.target] for edge in CHAIN.edges if edge.source != "file-1")
    assert overlapping(drawing.boxes) == []
    assert len(drawing.lines) == len(CHAIN.edges)
    assert all(0 <= box.x <= drawing.width - WIDTH and 0 <= box.y <= drawing.height - HEIGHT for box in drawing.boxes)
    # Negative control: the measure sees two boxes in one place.
    assert overlapping([drawing.boxes[0], drawing.boxes[0]]) != []


def test_a_dataset_stands_before_each_job_that_used_it():
    boxes = drawn(CHAIN).boxes
    jobs = {box.node.id: box.x for box in boxes if box.node.kind == "job"}
    step = min(jobs.values()) - min(box.x for box in boxes)
    assert sorted(box.x for box in boxes if box.node.id == "file-1") == sorted(
        jobs[job] - step for job in ("job-1", "job-2")
    )


def test_an_adapter_without_a_past_is_drawn_alone():
    drawing = drawn(Lineage({"adapter-1": Node("adapter-1", "adapter", "ft:tiny:acme:bot:x1")}))
    assert [(box.label, box.href) for box in drawing.boxes] == [("bot:x1", "/admin/adapters/adapter-1")]


def test_versions_of_a_suffix_stand_together_with_their_aliases(service, visitor):
    for _ in range(2):
        service.adapter("support")
    service.adapter("other")
    service.http.post("/v1/adapters/support@v1/aliases/production")
    page = visitor.get("/admin/adapters").text
    assert page.count("<h2 id=") == 3  # two families, and the import
    assert page.count("@production") == 2  # a badge and its title
    one = service.http.get("/v1/adapters/support@v2").json()
    detail = visitor.get(f"/admin/adapters/{one['id']}").text
    assert "support@production" in detail
    assert one["sha256"] in detail
    assert "The job support made " in detail  # its lineage in words
    assert visitor.get("/admin/adapters/other@v1").status_code == 200


def test_an_alias_of_a_checkpoint_is_seen_wherever_its_version_is_listed(service, visitor):
    job = service.adapter("support")
    service.adapter("support")
    service.http.post(f"/v1/adapters/{job['fine_tuned_model']}:ckpt-step-1/aliases/canary")
    service.http.post("/v1/adapters/support@v1/aliases/production")
    one, two = (service.http.get(f"/v1/adapters/support@v{n}").json()["id"] for n in (1, 2))
    badge = '<span class="badge step" title="support@canary">@canary · step 1</span>'
    for place, times in (("", 1), (f"/{one}", 2), (f"/{two}", 1)):  # its own page says it in the heading too
        page = visitor.get(f"/admin/adapters{place}").text
        rows = {row.partition("</a>")[0][-2:]: row for row in page.split("<tr")}
        assert page.count(badge) == times, place
        assert badge not in rows.get("v2", ""), place
    job_page = visitor.get(f"/admin/jobs/{job['id']}").text
    assert '<span class="chip" title="support@canary">@canary</span>' in job_page
    service.http.post("/v1/adapters/support@v1/aliases/canary")  # the version itself now
    assert "badge step" not in visitor.get("/admin/adapters").text


def test_an_alias_moves_only_once_it_is_meant_and_says_from_where(service, page):
    for _ in range(2):
        service.adapter("support")
    service.http.post("/v1/adapters/support@v1/aliases/production")
    second = service.http.get("/v1/adapters/support@v2").json()["id"]
    page.goto(f"{service.url}/admin/adapters/{second}")
    page.get_by_label("Let an alias mean v2").fill("production")
    page.get_by_role("button", name="Promote", exact=True).click()
    assert "Move support@production from v1 to v2?" in page.locator("#confirm-question").inner_text()
    page.get_by_role("button", name="Keep it as it is").click()
    assert service.http.get("/v1/adapters/support@production").json()["version"] == 1
    page.get_by_role("button", name="Promote", exact=True).click()
    page.locator("#confirm-yes").click()
    page.get_by_role("heading", name="@production").wait_for()
    assert service.http.get("/v1/adapters/support@production").json()["version"] == 2
    with service.database.session() as session:
        moved = audit.listed(session, service.account, action="alias.moved").rows[0]
    assert (moved.target, moved.key_id) == ("support@production from v1 to v2", service.account.key_id)
    page.get_by_label("Let an alias mean v2").fill("v7")
    page.get_by_role("button", name="Promote", exact=True).click()
    page.locator("#confirm-yes").click()
    page.locator("#promote-problem .problem").wait_for()
    page.faults.clear()  # the browser tells of the refused request


def test_a_checkpoint_is_promoted_from_its_row_by_keyboard_once_it_is_meant(service, page):
    job = service.adapter("support")
    service.http.post("/v1/adapters/support@v1/aliases/production")
    page.goto(f"{service.url}/admin/jobs/{job['id']}")
    button = page.get_by_role("button", name="Promote step 1")
    button.focus()
    page.keyboard.press("Enter")
    assert "Move support@production from v1 to v1 step 1?" in page.locator("#promote-says").inner_text()
    assert axe_faults(page) == []
    for _ in range(6):  # the dialog keeps the focus, but for the browser's own bars
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement === document.body || !!document.activeElement.closest('dialog')")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.dataset.promote") == f"{job['fine_tuned_model']}:ckpt-step-1"
    assert service.http.get("/v1/adapters/support@v1").json()["checkpoint_aliases"] == {}
    page.keyboard.press("Enter")
    page.keyboard.type("canary")  # what stood there is marked, so that it is written over
    assert "Let support@canary mean v1 step 1?" in page.locator("#promote-says").inner_text()
    page.keyboard.press("Enter")
    page.locator(".chip", has_text="@canary").wait_for()
    told = service.http.get("/v1/adapters/support@v1").json()
    assert (told["aliases"], told["checkpoint_aliases"]) == (["production"], {"canary": 1})
    page.goto(f"{service.url}/admin/adapters/{told['id']}")
    assert "v1 step 1" in page.locator("li", has_text="support@canary").inner_text()
    page.get_by_role("button", name="Move to v1: @canary").click()
    assert "Move support@canary from v1 step 1 to v1?" in page.locator("#confirm-question").inner_text()


def test_the_drawing_is_read_and_walked_without_a_pointer(service, page):
    service.adapter("support")
    adapter = service.http.get("/v1/adapters/support@v1").json()["id"]
    page.goto(f"{service.url}/admin/adapters/{adapter}")
    links = page.locator("svg.lineage a")
    assert [one.get_attribute("href").rsplit("/", 1)[0] for one in links.all()] == ["/admin/data", "/admin/jobs"]
    links.first.focus()
    assert json.loads(page.evaluate("JSON.stringify(document.activeElement.matches('svg.lineage a'))"))
    page.keyboard.press("Enter")
    page.wait_for_url("**/admin/data/file-*")
