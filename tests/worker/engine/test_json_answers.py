"""A random model held to schemas: every answer validates, whoever its neighbours are and wherever it is replayed."""

import json

import jsonschema
import pytest

from tests.worker.engine.test_lexicon import JSON_CHARACTERS, PERSON, TREE
from worker.engine.intake import Refused

VERDICT = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
SCHEMAS = [PERSON, None, VERDICT, TREE, {"enum": ["yes", "no"]}, None]
PENALTIES = {"frequency_penalty": 0.4, "presence_penalty": 0.2, "repetition_penalty": 1.2, "logit_bias": ((9, 2.0),)}


@pytest.fixture
def writer(new_kitchen):
    """Tokens for JSON, and room for a whole answer."""
    return new_kitchen(more=JSON_CHARACTERS, context=400, token_budget=48)


def asked_for(schema, seed, **more):
    held = {} if schema is None else {"json_schema": json.dumps(schema)}
    return {"prompt": "Say:", "temperature": 1.0, "seed": seed, "max_tokens": 320, **held, **more}


def test_rows_of_several_schemas_and_of_none_in_one_batch_say_what_each_says_alone(writer):
    worn = [None, writer.publish(r=4), writer.publish(seed=9, r=8)]
    asked = [asked_for(schema, seed, adapter=worn[seed % 3]) for seed, schema in enumerate(SCHEMAS)]
    alone = [writer.tell(**one) for one in asked]
    together = [writer.ask(**one) for one in asked]
    writer.run()
    assert [a.ids for a in together] == [a.ids for a in alone]
    for answer, schema in zip(together, SCHEMAS, strict=True):
        if schema is None:
            # Negative control: a row that nothing holds does not write JSON.
            with pytest.raises(ValueError, match=r"Expecting|Extra|Invalid"):
                json.loads(answer.text)
        elif answer.fin == "stop":
            jsonschema.validate(json.loads(answer.text), schema)
    assert {a.fin for a, schema in zip(together, SCHEMAS, strict=True) if schema} == {"stop"}


@pytest.mark.parametrize(
    "sampling", [{"temperature": 0.0}, {"temperature": 2.0}, {"top_k": 1}, {"top_p": 0.1}, PENALTIES]
)
def test_every_way_of_sampling_is_held(writer, sampling):
    answers = [writer.ask(**asked_for(VERDICT, seed) | sampling) for seed in range(8)]
    writer.run()
    for answer in answers:
        assert answer.fin == "stop"
        jsonschema.validate(json.loads(answer.text), VERDICT)


def test_an_answer_cut_short_says_so(writer):
    cut = writer.tell(**asked_for(PERSON, 3) | {"max_tokens": 5})
    assert (cut.fin, len(cut.ids)) == ("length", 5)
    whole = writer.tell(**asked_for(PERSON, 3))
    assert whole.text.startswith(cut.text)


@pytest.mark.parametrize("more", [{}, PENALTIES])
def test_a_replay_cut_anywhere_is_held_to_the_rest_of_the_schema(writer, more):
    asked = asked_for(VERDICT, 5, **more)
    whole = writer.tell(**asked)
    prompt_ids = whole.frames[0].prompt_ids
    for cut in range(1, len(whole.ids) + 1):
        emitted = tuple(whole.ids[:cut])
        rest = writer.tell(**asked | {"prompt": prompt_ids + emitted, "offset": cut})
        assert (rest.ids, rest.fin) == (whole.ids[cut:], whole.fin)
    # Negative control: what was drawn is part of what decides.
    with pytest.raises(Refused, match="does not follow"):
        writer.ask(**asked | {"prompt": (*prompt_ids, 5, 5), "offset": 2})


def test_penalties_are_felt_and_a_replay_counts_what_was_drawn_before(writer):
    asked = {"prompt": "aaaa", "temperature": 1.0, "seed": 2, "max_tokens": 30} | PENALTIES
    whole = writer.tell(**asked)
    assert whole.ids != writer.tell(prompt="aaaa", temperature=1.0, seed=2, max_tokens=30).ids
    ids = whole.frames[0].prompt_ids + tuple(whole.ids[:11])
    assert writer.tell(**asked | {"prompt": ids, "offset": 11}).ids == whole.ids[11:]


def test_a_faulty_schema_is_refused_before_it_takes_a_place(writer):
    bad = {"type": "object", "properties": {"a": {"type": "strin"}}}
    with pytest.raises(Refused) as found:
        writer.ask(**asked_for(bad, 0))
    assert found.value.status == 400
    assert (found.value.code, found.value.param) == (
        "invalid_json_schema",
        "response_format.json_schema.schema.properties.a",
    )
    assert writer.engine.is_idle


def test_frames_say_how_likely_the_model_held_their_tokens(writer):
    asked = {"prompt": "hello", "temperature": 0.7, "seed": 4, "max_tokens": 9}
    told = writer.tell(**asked, top_logprobs=3)
    assert told.ids == writer.tell(**asked).ids
    likelihoods = [one for frame in told.frames for one in frame.likelihoods or ()]
    assert [one.id for one in likelihoods] == [i for i in told.ids if i != 4]
    for one in likelihoods:
        assert [c.logprob for c in one.top] == sorted((c.logprob for c in one.top), reverse=True)
        assert len(one.top) == 3
        assert one.logprob <= one.top[0].logprob <= 0
        assert one.logprob == pytest.approx({c.id: c.logprob for c in one.top}.get(one.id, one.logprob))
    assert b"".join(bytes(one.bytes) for one in likelihoods if one.id < 85).decode() == told.text
    # They are read again where the same ids are given: generation and reading agree.
    ids = told.frames[0].prompt_ids + tuple(told.ids)
    read = writer.tell(prompt=ids, offset=len(told.ids), read={"what": "likelihood"})
    again = [one.logprob for one in read.frames[0].likelihoods]
    assert again[: len(likelihoods)] == pytest.approx([one.logprob for one in likelihoods], abs=1e-4)
