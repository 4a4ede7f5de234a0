"""The playground: conversations side by side, each model's its own, and answers that are kept for later."""

import json

from browser import axe_faults
from fake_engine import words_of
from serving import running


def open_at(service, page):
    name = service.adapter()["fine_tuned_model"]
    page.goto(f"{service.url}/admin/playground?model={name}")
    page.get_by_text("Instruction and sampling").click()
    page.get_by_label("Most tokens").fill("3")
    return name


def say(page, text):
    page.get_by_label("Prompt", exact=True).fill(text)
    page.get_by_role("button", name="Ask them").click()
    page.wait_for_selector("#stop", state="hidden")


def test_in_a_conversation_each_model_goes_on_from_its_own_answers(service, page):
    with running(service) as engine:
        open_at(service, page)
        page.get_by_role("button", name="Conversation").click()
        say(page, "hello")
        say(page, "and now?")
        first, second = engine.requests[:2], engine.requests[2:]
        assert len(second) == 2
        for spec in second:
            before = next(one for one in first if one.adapter == spec.adapter)
            turns = [(turn.role, turn.content) for turn in spec.messages]
            assert turns == [("user", "hello"), ("assistant", words_of(before, 3)), ("user", "and now?")]
        assert len({(spec.affinity, spec.sampling.seed) for spec in second}) == 1
        assert page.locator("#answers section").count() == 2
        assert page.locator("#answers .answer").count() == 4
        assert str(second[0].sampling.seed) in page.locator("#seed-says").inner_text()
        assert "tokens/s" in page.locator("#answers .foot").first.inner_text()
        assert page.get_by_role("checkbox", name="@nf4").is_disabled()
        assert axe_faults(page) == []
        page.get_by_role("button", name="Begin anew").click()
        assert page.locator("#answers section").count() == 0
        say(page, "hello")
    assert [len(spec.messages) for spec in engine.requests[4:]] == [1, 1]


def test_a_model_that_fails_one_turn_is_asked_the_next_without_it(service, page):
    broken = {"code": "model_output_invalid", "message": "not finite"}
    with running(service) as engine:
        open_at(service, page)
        page.get_by_role("button", name="Conversation").click()
        engine.script = [{"fail_at": 0, "error": broken}]
        say(page, "hello")
        assert page.locator("#answers .foot .problem").count() == 1
        say(page, "again")
    assert sorted(len(spec.messages) for spec in engine.requests[2:]) == [1, 3]


def test_a_right_answer_is_kept_and_becomes_a_file(service, page):
    with running(service):
        name = open_at(service, page)
        page.get_by_role("button", name="Conversation").click()
        say(page, "hello")
        say(page, "and now?")
        page.get_by_role("button", name=f"Keep: {name}").last.click()
        said = page.get_by_label("The right answer").input_value()
        assert axe_faults(page) == []
        page.get_by_role("button", name="Keep it", exact=True).click()
        page.get_by_text("Kept.").wait_for()
        page.get_by_role("button", name="Keep: smollm2-135m-instruct", exact=True).first.click()
        page.get_by_label("The right answer").fill("a better one")
        page.get_by_role("button", name="Keep it", exact=True).click()
        page.locator("#n-kept", has_text="2").wait_for()
        by_hand, taken = service.http.get("/v1/evaluation_rows").json()["data"]
        assert (taken["model"], taken["messages"][-1]) == (name, {"role": "assistant", "content": said})
        assert [turn.get("weight") for turn in taken["messages"]] == [None, 0, None, None]
        assert (by_hand["model"], by_hand["messages"][-1]["content"]) == (None, "a better one")
        page.get_by_role("link", name="Kept answers").click()
        page.get_by_text("a better one").wait_for()
        page.get_by_role("button", name="Make a validation file of them").click()
        page.wait_for_url("**/admin/data/file-*")
    file_id = page.url.rsplit("/", 1)[1]
    content = service.http.get(f"/v1/files/{file_id}/content").text
    assert [json.loads(line)["messages"][-1]["content"] for line in content.splitlines()] == [said, "a better one"]


def test_what_cannot_be_kept_is_said_where_it_was_written(service, page):
    with running(service):
        open_at(service, page)
        say(page, "hello")
        page.get_by_role("button", name="Keep: smollm2-135m-instruct", exact=True).click()
        page.get_by_label("The right answer").fill("   ")
        page.get_by_role("button", name="Keep it", exact=True).click()
        page.locator("#keep-problem .problem").wait_for()
        page.get_by_role("button", name="Cancel").click()
    assert service.http.get("/v1/evaluation_rows").json()["data"] == []
    page.faults.clear()  # the browser tells of the refused request
