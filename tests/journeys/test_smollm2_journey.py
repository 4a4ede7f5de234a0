"""The default base model, real weights and all, as `make run` starts it: by a browser, and by the stock client."""

import re

import browser
import pytest
from one_machine import Service, colours, finish, upload

pytestmark = [pytest.mark.journey, pytest.mark.smollm2]
BASE = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    service = Service(tmp_path_factory.mktemp("smollm2") / "data")
    service.start()
    yield service
    service.end()


@pytest.fixture(scope="module")
def newcomer(service):
    """A page in a real Chromium, not yet signed in. Closed before the other tests, which may want an event loop."""
    if browser.executable() is None:
        pytest.skip("no Chromium here: apt-get install chromium, or name one by GRAFT_CHROMIUM")
    with browser.chromium() as one:
        yield browser.visitor(one, service.address)


@pytest.mark.timeout(900)
def test_a_newcomer_is_led_from_the_printed_link_to_answers_side_by_side(service, newcomer):
    page = newcomer
    page.goto(re.search(r"http\S+/admin/sign-in#\S+", service.output.read_text())[0])
    page.wait_for_url(f"{service.address}/admin")
    page.get_by_role("link", name="To the data").click()
    page.get_by_role("button", name="tickets").click()
    page.wait_for_url("**/admin/data/file-*")
    page.locator("#preview-rows .learned").first.wait_for()  # an engine tells which tokens are learned
    assert browser.axe_faults(page) == []

    page.get_by_role("link", name="Train with it").click()
    page.get_by_label("Name").fill("first try")
    page.locator("#hyper-n_epochs").fill("1")
    page.locator("#estimated dl.tiles").wait_for()
    page.get_by_role("button", name="Start the job").click()
    page.wait_for_url("**/admin/jobs/ftjob-*")
    page.wait_for_selector("#feed[data-points]:not([data-points='0'])", timeout=120_000)
    assert page.locator("#charts canvas").count() > 0
    page.get_by_role("link", name="Try it", exact=True).wait_for(timeout=600_000)
    assert browser.axe_faults(page) == []

    page.get_by_role("link", name="Try it", exact=True).click()
    page.get_by_label("Prompt").fill("My parcel has not arrived.")
    page.get_by_text("Instruction and sampling").click()
    page.get_by_label("Most tokens").fill("12")
    page.get_by_role("button", name="Ask them").click()
    page.locator("#stop").wait_for(state="visible")
    page.locator("#stop").wait_for(state="hidden", timeout=60_000)
    base, adapter = [one.inner_text() for one in page.locator("#answers .answer").all()]
    assert base
    assert adapter
    assert base != adapter
    assert browser.axe_faults(page) == []
    assert page.faults == []


def ask(client, model, question):
    messages = [{"role": "user", "content": question}]
    reply = client.chat.completions.create(model=model, messages=messages, max_tokens=16, temperature=0)
    return reply.choices[0].message.content


def test_the_base_speaks_and_an_adapter_learns_in_a_minute(service):
    client = service.client()
    assert "Paris" in ask(client, BASE, "What is the capital of France?")
    job = client.fine_tuning.jobs.create(
        model=BASE,
        training_file=upload(client, colours(16)),
        hyperparameters={"n_epochs": 6, "batch_size": 8},
        extra_body={"peft": {"type": "lora", "r": 8}, "training": {"learning_rate": 2e-3}},
    )
    done = finish(client, job.id, within_s=240.0)
    assert done.status == "succeeded", done.error
    assert ask(client, done.fine_tuned_model, "item 3") in {"red", "blue"}
    assert ask(client, BASE, "item 3") not in {"red", "blue"}
    service.stop()
