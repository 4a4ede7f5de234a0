"""What engines are told of who asks: enough to be fair, nothing that names anybody."""

import dataclasses

import anyio
import pytest
from asking import ask, events_of
from serving import client

from api.engine_answers import EngineBusyError, refusal_of
from api.engine_client import _Progress
from api.tenant import queue_of
from core.records import accounts
from core.settings import Settings
from core.specs.generation import GenerateSpec, QueueSpec, SamplingSpec


def test_an_engine_learns_a_key_that_tells_projects_apart_and_names_none(service, engine):
    with service.stranger() as stranger:
        mine = [ask(service) for _ in range(2)]
        other = stranger.post("/v1/chat/completions", json={"model": mine[0].json()["model"], "messages": [HI]})
    assert other.status_code == 200
    first, again, hers = (spec.queue.tenant for spec in engine.requests)
    assert first == again != hers
    for key in (first, hers):
        assert len(key) == 64
        for secret in (service.account.project_id, service.key, service.settings.engine_token):
            assert secret not in key


HI = {"role": "user", "content": "hi"}


def test_the_key_depends_on_the_secret_and_the_project_alone(service, tmp_path):
    account, settings = service.account, service.settings
    same = dataclasses.replace(account, key_id="another", is_admin=False)
    assert queue_of(account, settings) == queue_of(same, settings)
    assert queue_of(account, settings).tenant != queue_of(account, Settings(data_dir=tmp_path / "other")).tenant


def test_weights_deadlines_and_flex_reach_the_engine(service, engine):
    ask(service, service_tier="flex")
    ask(service, service_tier="auto")
    ask(service)
    assert [spec.queue.priority for spec in engine.requests] == [-1, 0, 0]
    assert all(0 < service.settings.answer_s - spec.queue.deadline_s < 5 for spec in engine.requests)
    weighed = service.settings.model_copy(update={"tenant_weights": {service.account.project_id: 3.0}})
    assert queue_of(service.account, weighed).weight == 3.0
    assert queue_of(service.account, service.settings).weight == 1.0


@pytest.mark.parametrize(("asked", "told"), [("flex", "flex"), ("priority", "default"), ("auto", "default")])
@pytest.mark.usefixtures("engine")
def test_an_answer_tells_the_tier_that_it_was_served_at(asked, told, service):
    assert ask(service, service_tier=asked).json()["service_tier"] == told
    first, *_ = events_of(ask(service, service_tier=asked, stream=True).text)
    assert first["service_tier"] == told


def test_nobody_can_choose_to_go_before_others(service, engine):
    assert ask(service, service_tier="priority").status_code == 200
    assert engine.requests[0].queue.priority == 0
    assert ask(service, queue={"tenant": "x"}).status_code == 400
    assert len(engine.requests) == 1


def test_keys_of_one_project_are_one_tenant(service, engine):
    with service.database.writing() as session:
        _, second = accounts.create_key(session, service.account, name="second", environment="local")
    with client(service.url, second) as http:
        http.post("/v1/chat/completions", json={"model": ask(service).json()["model"], "messages": [HI]})
    assert len({spec.queue.tenant for spec in engine.requests}) == 1


def test_a_request_that_goes_on_elsewhere_has_only_the_time_that_is_left():
    spec = GenerateSpec(
        request_id="r", base_model="b", prompt="p", sampling=SamplingSpec(), queue=QueueSpec(deadline_s=10.0)
    )

    async def run():
        now = anyio.current_time()
        left = [_Progress(now - spent).resumed(spec).queue.deadline_s for spent in (4.0, 40.0)]
        assert 5.9 < left[0] <= 6.0
        assert 0 < left[1] < 0.01

    anyio.run(run)


def test_a_deadline_that_is_past_is_504_and_not_tried_again(service, engine):
    engine.script = [{"fail_at": 0, "error": {"code": "deadline_exceeded", "message": "late"}}]
    answer = ask(service)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert answer.headers["x-should-retry"] == "false"
    assert len(engine.requests) == 1


def test_a_busy_engines_own_wait_is_what_the_client_is_told(service, engine):
    found = [refusal_of(503, b"", said) for said in ("17", "100000", None, "soon")]
    assert [type(error) for error in found] == [EngineBusyError] * 4
    assert [error.wait_s for error in found] == [17, 60, 2, 2]
    engine.script = [{"status": 503}]
    assert ask(service).headers["retry-after"] == "1"  # as the fake engine says
