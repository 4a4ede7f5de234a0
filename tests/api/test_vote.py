"""What an ensemble answers: by hand, and through the front end."""

import pytest
from asking import ask, events_of, usage_rows

from api.vote import Ballot, winner


def ballots(*said):
    return [Ballot(text, logprob) for text, logprob in said]


def test_the_answer_of_most_wins_however_unsure_they_are():
    assert winner(ballots(("no", -0.1), ("yes", -5.0), ("yes", -6.0))) == 1


def test_blanks_about_an_answer_do_not_make_it_another():
    assert winner(ballots(("no", -0.1), (" yes", -5.0), ("yes\n", -4.0))) == 2
    # Negative control: within it they do.
    assert winner(ballots(("no", -0.1), ("y es", -5.0), ("yes", -4.0))) == 0


def test_a_tie_goes_to_the_likeliest_answer():
    said = [("no", -2.0), ("yes", -1.0), ("yes", -3.0), ("no", -0.5), ("maybe", -0.1)]
    assert winner(ballots(*said)) == 3
    # Negative control: without the likelihoods the first of the tied would win.
    assert winner(ballots(*((text, 0.0) for text, _ in said))) == 0


def test_of_equals_the_first_wins():
    assert winner(ballots(("yes", -1.0))) == 0
    assert winner(ballots(("yes", -1.0), ("yes", -1.0), ("yes", -1.0))) == 0


MEMBERS = {
    "peft": {"type": "prompt_tuning", "ensemble_size": 3},
    "details": {"members": 3, "peft_type": "PROMPT_TUNING"},
}


@pytest.fixture
def model(service, engine):
    engine.members = {0: ("no", -0.1), 1: (" yes", -2.0), 2: ("yes", -1.0)}
    return service.adapter(**MEMBERS)["fine_tuned_model"]


def test_a_choice_is_the_row_that_wins_and_the_prompt_counts_once(service, engine, model):
    body = ask(service, model=model).json()
    choice = body["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("yes", "stop")
    assert body["usage"] == {"prompt_tokens": 11, "completion_tokens": 1, "total_tokens": 12}
    assert usage_rows(service) == [(model, 11, 1)]
    asked = sorted(engine.requests, key=lambda spec: spec.adapter.member)
    assert [spec.adapter.member for spec in asked] == [0, 1, 2]
    assert all(spec.with_logprob for spec in asked)
    assert len({spec.sampling for spec in asked}) == 1
    assert len({spec.request_id for spec in asked}) == 3


def test_each_choice_has_a_vote_of_its_own(service, engine, model):
    body = ask(service, model=model, n=2).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    assert body["usage"]["completion_tokens"] == 2
    assert sorted((spec.sampling.seed, spec.adapter.member) for spec in engine.requests) == [
        (seed, member) for seed in (5, 6) for member in range(3)
    ]


@pytest.mark.usefixtures("engine")
def test_a_stream_says_the_winner_in_one_chunk(service, model):
    *chunks, done = events_of(ask(service, model=model, stream=True).text)
    assert done == "[DONE]"
    said = [chunk["choices"][0]["delta"].get("content") for chunk in chunks]
    assert [text for text in said if text] == ["yes"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_tie_is_broken_by_what_the_engine_says_of_its_tokens(service, engine, model):
    engine.members = {0: ("no", -2.0), 1: ("yes", -1.0), 2: ("maybe", -3.0)}
    assert ask(service, model=model).json()["choices"][0]["message"]["content"] == "yes"
    engine.members = {0: ("no", -0.5), 1: ("yes", -1.0), 2: ("maybe", -3.0)}
    assert ask(service, model=model).json()["choices"][0]["message"]["content"] == "no"


def test_members_that_are_alike_answer_as_one_alone(service, engine, model):
    engine.members = {}
    alone = service.adapter()["fine_tuned_model"]  # the same bytes, so that the engine draws the same
    single, voted = (ask(service, model=name, n=2).json() for name in (alone, model))
    assert voted["choices"] == single["choices"]
    assert voted["usage"] == single["usage"]
    assert len(engine.requests) == 2 + 2 * 3


def test_a_checkpoint_of_an_ensemble_votes_too(service, model):
    assert ask(service, model=f"{model}:ckpt-step-1").json()["choices"][0]["message"]["content"] == "yes"


def test_a_member_that_fails_fails_the_answer_and_what_was_read_is_counted(service, engine, model):
    engine.members = {}
    engine.poison = 5
    assert ask(service, model=model).status_code == 500
    assert usage_rows(service) == [(model, 11, 0)]


@pytest.mark.usefixtures("engine")
def test_more_rows_than_a_queue_can_hold_are_refused(service, model):
    fields = {"model": model, "n": 4, "prompt": ["a"] * 6, "messages": ...}
    answer = ask(service, "/v1/completions", **fields)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "too_many_choices")
    assert "21 choices at most" in answer.json()["error"]["message"]
    assert ask(service, "/v1/completions", **fields | {"n": 3}).status_code == 200
