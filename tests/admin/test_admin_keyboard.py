"""Whole paths through the dashboard by Tab, Enter, Space and arrows, the focus seen at every stop."""

import keyboard
import pytest
from keyboard import begin, has_focus, reach, step
from serving import running
from test_admin_browser import PLACES
from visiting import signed_in

from core.records import jobs


def made(service):
    with service.database.session() as session:
        return jobs.listed(session, service.account).rows


# The pages with the most that can be pressed. On a phone, those whose parts change their places there.
WALKED = {
    "desktop": ({}, [place for place in PLACES if "{failed}" not in place and "{waiting}" not in place]),
    "phone": (
        {"width": 360, "height": 740},
        ["/admin/jobs/new", "/admin/playground", "/admin/adapters", "/admin/keys"],
    ),
}


@pytest.mark.timeout(600)  # some 500 stops
@pytest.mark.parametrize(("look", "places"), WALKED.values(), ids=WALKED)
def test_the_focus_is_seen_at_every_stop_of_a_page(chromium, shown, look, places):
    service, ids = shown
    page = signed_in(chromium, service, **look)
    found = {"/admin": keyboard.walk(page)}  # the navigation, too
    for place in places:
        begin(page, service.url + place.format(**ids))
        found[place] = keyboard.walk(page)
    assert {place: wrong for place, wrong in found.items() if wrong} == {}
    page.context.close()


@pytest.mark.parametrize(
    "rules",
    [
        ["button:focus-visible { outline: none !important; }"],
        [".preference { overflow: hidden; }", ".preference :focus-visible { outline-offset: 8px !important; }"],
    ],
    ids=["taken away", "cut off"],
)
def test_a_focus_that_is_not_seen_is_missed(chromium, shown, rules):
    page = signed_in(chromium, shown[0])
    begin(page, shown[0].url + "/admin/settings")
    page.evaluate("(rules) => rules.forEach((rule) => document.styleSheets[0].insertRule(rule))", rules)
    assert keyboard.walk(page) != []
    page.context.close()


def test_a_method_is_chosen_and_filled_in_and_its_job_started(service, page):
    service.upload()
    begin(page, f"{service.url}/admin/jobs/new")
    reach(page, page.get_by_role("radio", name="LoRA", exact=False).first)
    step(page, "ArrowDown")
    step(page, "ArrowDown")
    adalora = page.get_by_role("radio", name="AdaLoRA")
    assert has_focus(adalora)  # the form changed below, and the focus stayed
    assert adalora.is_checked()
    assert page.locator(".of-method:visible").get_attribute("id") == "method-adalora"
    step(page)
    assert page.evaluate("!!document.activeElement.closest('#method-adalora')")
    summary = page.locator("#method-adalora summary")
    reach(page, summary)
    page.keyboard.press("Space")
    reach(page, page.locator("#adalora-tinit"))
    page.keyboard.type("300")
    reach(page, page.locator("#method-adalora [data-name]").first, "Shift+Tab")
    reach(page, adalora, "Shift+Tab")
    reach(page, page.get_by_role("button", name="CLI"))
    page.keyboard.press("Enter")
    assert "peft.type=adalora" in page.locator("#script").inner_text()
    assert "peft.tinit=300" in page.locator("#script").inner_text()
    reach(page, page.locator("#create"), "Shift+Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#refusal .problem")  # it has fewer steps than that
    assert page.evaluate("document.activeElement.id") == "adalora-tinit"
    assert keyboard.fault(page) is None
    page.keyboard.press("ControlOrMeta+A")
    page.keyboard.press("Delete")
    page.faults.clear()  # Chromium itself reports the refusal
    page.keyboard.press("Enter")
    page.wait_for_url("**/admin/jobs/ftjob-*")
    assert made(service)[0].spec["method"]["type"] == "adalora"


def test_virtual_tokens_are_put_into_a_template_and_what_stood_there_is_kept(service, page):
    service.upload()
    with running(service):
        begin(page, f"{service.url}/admin/jobs/new")
        reach(page, page.get_by_role("radio", name="LoRA", exact=False).first)
        step(page, "ArrowUp")  # from the first to the last
        assert page.get_by_role("radio", name="P-tuning").is_checked()
        editor, block = page.locator("#p_tuning-template"), page.get_by_role("button", name="+ {v:4}")
        before = editor.input_value()
        reach(page, editor)  # a browser marks all of a field that is come to by Tab
        reach(page, block)
        page.keyboard.press("Enter")
        assert (editor.input_value(), has_focus(editor)) == ("{v:4}" + before, True)
        page.keyboard.press("End")
        for _ in "{target}":
            page.keyboard.press("ArrowLeft")
        reach(page, block)
        page.keyboard.press("Space")
        assert has_focus(editor)
        assert editor.input_value() == "{v:4}" + before.removesuffix("{target}") + "{v:4}{target}"
        page.keyboard.type(" so: ")
        assert editor.input_value().endswith("{v:4} so: {target}")
        assert page.locator("#template-fault").is_hidden()
        reach(page, page.get_by_role("button", name="+ {target}"))
        step(page)
        assert page.evaluate("!document.activeElement.closest('.template')"), "there is a way on"
        reach(page, page.locator("#create"))
        page.keyboard.press("Enter")
        page.wait_for_url("**/admin/jobs/ftjob-*")
    assert made(service)[0].spec["method"]["template"].endswith("{v:4} so: {target}")


def test_jobs_are_marked_compared_and_looked_at(service, page):
    for name in ("a", "b"):
        service.job(suffix=name, peft={"type": "lora", "r": 4})
    begin(page, f"{service.url}/admin/jobs")
    for name in ("b", "a"):  # newest first
        reach(page, page.get_by_role("checkbox", name=f"Compare {name}"))
        page.keyboard.press("Space")
    last = page.get_by_role("checkbox", name="Compare a")
    page.wait_for_event("response", lambda answer: answer.request.headers.get("hx-request") == "true")
    page.wait_for_timeout(300)
    assert has_focus(last)  # the list has asked for itself meanwhile
    assert last.is_checked()
    reach(page, page.locator("#compare-now"), "Shift+Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#overlay[data-drawn='2']")
    step(page)
    page.keyboard.press("Enter")
    reach(page, page.locator("#raw"))
    page.keyboard.press("Space")
    assert page.locator("#raw").is_checked()
    reach(page, page.locator("[data-job]").nth(1))
    page.keyboard.press("Space")
    page.wait_for_selector("#overlay[data-drawn='1']")


def test_models_are_chosen_asked_read_and_stopped(service, page):
    adapter = service.adapter()["fine_tuned_model"]
    name = f"{adapter}:ckpt-step-1"
    with running(service) as engine:
        begin(page, f"{service.url}/admin/playground?model={adapter}")
        box = page.locator(f'[name="model"][value="{name}"]')
        reach(page, box)
        page.keyboard.press("Space")
        assert box.is_checked()
        reach(page, page.get_by_label("Prompt", exact=True))
        page.keyboard.type("hello")
        reach(page, page.locator("#go"))
        page.keyboard.press("Enter")
        page.locator("#stop").wait_for(state="hidden")
        page.wait_for_selector("#answers .foot button")
        assert has_focus(page.get_by_label("Prompt", exact=True))  # to go on from
        assert page.locator("#answers section").count() == 3
        keep = page.get_by_role("button", name=f"Keep: {name}")
        reach(page, keep)
        page.keyboard.press("Enter")
        page.locator("#keep[open]").wait_for()
        assert has_focus(page.get_by_label("The right answer"))
        page.keyboard.press("Escape")
        assert has_focus(keep)
        engine.script = [{"hang_after": 2}, {"hang_after": 2}]
        reach(page, page.locator("#go"), "Shift+Tab")
        page.keyboard.press("Enter")
        page.locator("#stop").wait_for()
        assert has_focus(page.locator("#stop"))  # where the button that was pressed can be pressed no more
        assert keyboard.fault(page) is None
        page.keyboard.press("Enter")
        page.locator("#stop").wait_for(state="hidden")
        assert has_focus(page.get_by_label("Prompt", exact=True))
        assert "stopped" in page.locator("#answers .foot").first.inner_text()


def test_an_alias_is_promoted_once_it_is_meant_and_what_opened_the_question_has_the_focus_again(service, page):
    for _ in range(2):
        service.adapter("support")
    service.http.post("/v1/adapters/support@v1/aliases/production")
    second = service.http.get("/v1/adapters/support@v2").json()["id"]
    begin(page, f"{service.url}/admin/adapters/{second}")
    reach(page, page.locator("#alias"))
    page.keyboard.type("production")
    promote = page.get_by_role("button", name="Promote", exact=True)
    reach(page, promote)
    page.keyboard.press("Enter")
    page.locator("#confirm[open]").wait_for()
    assert page.evaluate("!!document.activeElement.closest('dialog')")
    assert keyboard.fault(page) is None
    page.keyboard.press("Escape")
    assert has_focus(promote)
    assert service.http.get("/v1/adapters/support@production").json()["version"] == 1
    page.keyboard.press("Enter")
    page.locator("#confirm[open]").wait_for()
    reach(page, page.locator("#confirm-yes"), most=3)
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="@production").wait_for()
    assert service.http.get("/v1/adapters/support@production").json()["version"] == 2


def test_a_key_is_made_copied_while_it_is_shown_and_revoked_once_it_is_meant(service, page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    begin(page, f"{service.url}/admin/keys")
    reach(page, page.get_by_label("Name", exact=True))
    page.keyboard.type("laptop")
    reach(page, page.get_by_label("Lasts"))
    page.keyboard.press("ArrowDown")
    reach(page, page.get_by_role("button", name="Make it"))
    page.keyboard.press("Enter")
    text = page.locator("#fresh-key").inner_text()
    step(page)
    page.keyboard.press("Enter")
    reach(page, page.get_by_role("button", name="Copy"))
    page.keyboard.press("Enter")
    page.get_by_text("Copied.").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == text
    begin(page, f"{service.url}/admin/keys")
    assert text not in page.content()
    revoke = page.get_by_role("button", name="Revoke: laptop")
    reach(page, revoke)
    page.keyboard.press("Enter")
    page.locator("#confirm[open]").wait_for()
    page.keyboard.press("Escape")
    assert has_focus(revoke)
    assert service.http.get("/v1/models", headers={"authorization": f"Bearer {text}"}).status_code == 200
    page.keyboard.press("Enter")
    page.locator("#confirm[open]").wait_for()
    reach(page, page.locator("#confirm-yes"), most=3)
    page.keyboard.press("Enter")
    page.get_by_text("revoked", exact=True).wait_for()
    assert service.http.get("/v1/models", headers={"authorization": f"Bearer {text}"}).status_code == 401
