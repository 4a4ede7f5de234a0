"""What a user of OpenAI's service does, by the stock client of the version on the path. Run by test_conformance.py.

Arguments: the base URL, the key, the version expected, a model that is fine-tuned already, and its job.
"""

import json
import sys

import httpx
import openai

URL, KEY, VERSION, MODEL, JOB = sys.argv[1:]
BASE = "smollm2-135m-instruct"
LINE = (
    json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}).encode() + b"\n"
)
PAIR = {
    "input": {"messages": [{"role": "user", "content": "q"}]},
    "preferred_output": [{"role": "assistant", "content": "a"}],
    "non_preferred_output": [{"role": "assistant", "content": "b"}],
}
HELLO = [{"role": "user", "content": "hello"}]

assert openai.__version__ == VERSION, openai.__version__
client = openai.OpenAI(api_key=KEY, base_url=f"{URL}/v1")


def refusal(kind, act):
    try:
        act()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was due")


def files():
    file = client.files.create(file=("t.jsonl", LINE * 3), purpose="fine-tune")
    assert (file.object, file.status, file.bytes, file.filename) == ("file", "processed", len(LINE) * 3, "t.jsonl")
    assert file.validation["n_examples"] == 3
    assert client.files.wait_for_processing(file.id).id == file.id
    assert client.files.retrieve(file.id).created_at == file.created_at
    assert client.files.content(file.id).read() == LINE * 3
    for _ in range(4):
        client.files.create(file=("n.txt", b"notes"), purpose="user_data")
    ids = [one.id for one in client.files.list(limit=2)]
    assert len(ids) == len(set(ids))
    assert len(ids) >= 5
    assert {one.purpose for one in client.files.list(purpose="user_data")} == {"user_data"}
    spare = client.files.create(file=b"bytes without a name", purpose="user_data")
    assert client.files.delete(spare.id).deleted is True
    gone = refusal(openai.NotFoundError, lambda: client.files.retrieve(spare.id))
    assert gone.request_id.startswith("req_")
    bad = refusal(openai.BadRequestError, lambda: client.files.create(file=("t", LINE + b"x\n"), purpose="fine-tune"))
    assert (bad.param, bad.code) == ("file", "invalid_training_file")
    assert bad.body["details"][0]["line"] == 2
    return file.id


def jobs(file_id):
    create = client.fine_tuning.jobs.create
    job = create(
        model=BASE,
        training_file=file_id,
        validation_file=file_id,
        suffix="sfx",
        seed=1,
        metadata={"k": VERSION},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": "auto"}}},
        extra_body={"peft": {"type": "lora", "r": 4}, "training": {"learning_rate": 1e-3}},
        extra_headers={"Idempotency-Key": f"order-{VERSION}"},
    )
    assert (job.object, job.status, job.model, job.seed) == ("fine_tuning.job", "queued", BASE, 1)
    assert (job.method.type, job.method.supervised.hyperparameters.n_epochs) == ("supervised", 3)
    assert (job.hyperparameters.n_epochs, job.hyperparameters.batch_size) == (3, 8)
    assert (job.peft["r"], job.training["learning_rate"], job.metadata) == (4, 1e-3, {"k": VERSION})
    assert (job.fine_tuned_model, job.error, job.integrations, job.result_files) == (None, None, [], [])
    lenient = create(model=BASE, training_file=file_id, method={"type": "lora", "lora": {"r": 8}})
    assert (lenient.method.type, lenient.peft["r"]) == ("supervised", 8)
    old = create(model=BASE, training_file=file_id, hyperparameters={"n_epochs": 2})
    assert old.hyperparameters.n_epochs == 2
    pairs = client.files.create(file=("p.jsonl", json.dumps(PAIR).encode() + b"\n"), purpose="fine-tune")
    asked = {"n_epochs": 2, "beta": 0.2}
    told = create(model=BASE, training_file=pairs.id, method={"type": "dpo", "dpo": {"hyperparameters": asked}}).method
    assert (told.type, told.dpo.hyperparameters.n_epochs, told.dpo.hyperparameters.beta) == ("dpo", 2, 0.2)
    ids = [one.id for one in client.fine_tuning.jobs.list(limit=1)]
    assert {job.id, lenient.id, old.id, JOB} <= set(ids)
    assert len(ids) == len(set(ids))
    mine = client.fine_tuning.jobs.list(extra_query={"metadata[k]": VERSION})
    assert [one.id for one in mine] == [job.id]
    assert client.fine_tuning.jobs.pause(job.id).status == "paused"
    assert client.fine_tuning.jobs.resume(job.id).status == "queued"
    idle = refusal(openai.ConflictError, lambda: client.fine_tuning.jobs.resume(job.id))
    assert (idle.code, idle.type) == ("job_not_resumable", "conflict_error")
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    again = refusal(openai.ConflictError, lambda: client.fine_tuning.jobs.cancel(job.id))
    assert (again.code, again.type) == ("job_not_cancellable", "conflict_error")
    bad = refusal(openai.BadRequestError, lambda: create(model=BASE, training_file="file-no"))
    assert (bad.param, bad.code, bad.type) == ("training_file", "file_not_found", "invalid_request_error")
    bad = refusal(
        openai.BadRequestError, lambda: create(model=BASE, training_file=file_id, extra_body={"peft": {"r": 0}})
    )
    assert bad.param == "peft.r"
    missing = refusal(openai.NotFoundError, lambda: client.fine_tuning.jobs.retrieve("ftjob-no"))
    assert missing.code == "fine_tune_not_found"


def finished_job():
    job = client.fine_tuning.jobs.retrieve(JOB)
    assert (job.status, job.fine_tuned_model, job.trained_tokens) == ("succeeded", MODEL, 42)
    events = list(client.fine_tuning.jobs.list_events(JOB, limit=2))
    assert events[0].message.startswith("The job has succeeded")
    metrics = next(event for event in events if event.type == "metrics")
    assert metrics.data["train_loss"] == 1.5
    checkpoint = next(iter(client.fine_tuning.jobs.checkpoints.list(JOB)))
    assert (checkpoint.step_number, checkpoint.metrics.train_loss) == (1, 1.5)
    return checkpoint.fine_tuned_model_checkpoint


def models(checkpoint):
    assert {BASE, MODEL, checkpoint} <= {model.id for model in client.models.list()}
    model = client.models.retrieve(MODEL)
    assert (model.object, model.parent, model.peft_type) == ("model", BASE, "LORA")
    missing = refusal(openai.NotFoundError, lambda: client.models.retrieve("some/model"))
    assert missing.code == "model_not_found"
    assert "'some/model'" in missing.message
    refusal(openai.PermissionDeniedError, lambda: client.models.delete(BASE))
    zipped = client.get(f"/adapters/{MODEL}/download", cast_to=bytes, options={"headers": {"range": "bytes=0-1"}})
    assert zipped in {b"PK", "PK"}


def chats(checkpoint):
    create = client.chat.completions.create
    for model in (BASE, MODEL, checkpoint):
        answer = create(model=model, messages=HELLO, max_tokens=5, seed=3)
        assert (answer.object, answer.model) == ("chat.completion", model)
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + 5
        assert answer._request_id.startswith("req_")
        stream = create(
            model=model,
            messages=HELLO,
            max_completion_tokens=5,
            seed=3,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == answer.choices[0].message.content
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-1].usage == answer.usage
    assert len(create(model=BASE, messages=HELLO, n=2, max_tokens=2).choices) == 2
    with client.chat.completions.with_streaming_response.create(model=BASE, messages=HELLO) as answer:
        assert answer.headers["x-ratelimit-limit-requests"]
    raw = client.chat.completions.with_raw_response.create(model=BASE, messages=HELLO, max_tokens=1)
    assert raw.headers["openai-processing-ms"].isdigit()
    bad = refusal(openai.BadRequestError, lambda: create(model=BASE, messages=HELLO, temperature=3))
    assert bad.param == "temperature"
    missing = refusal(openai.NotFoundError, lambda: create(model="gpt-4o-mini", messages=HELLO))
    assert missing.code == "model_not_found"
    # Closed by hand: version 1 leaves a stream that broke to the garbage collector, which httpcore may not survive.
    with create(model=BASE, messages=HELLO, seed=666, stream=True) as stream:
        broken = refusal(openai.APIError, lambda: list(stream))
    assert (broken.code, broken.type) == ("model_output_invalid", "server_error")


def completions():
    text = client.completions.create(model=MODEL, prompt="abc", max_tokens=3, seed=1)
    assert (text.object, text.choices[0].finish_reason, text.usage.prompt_tokens) == ("text_completion", "length", 3)
    stream = client.completions.create(model=MODEL, prompt="abc", max_tokens=3, seed=1, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == text.choices[0].text


def forms():
    """JSON, likelihoods and penalties, by the names that the client knows."""
    create = client.chat.completions.create
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    held = {"type": "json_schema", "json_schema": {"name": "found", "strict": True, "schema": schema}}
    for form in (held, {"type": "json_object"}, {"type": "text"}):
        assert create(model=BASE, messages=HELLO, max_tokens=2, response_format=form).choices
    bad = {"type": "json_schema", "json_schema": {"name": "found", "schema": 5}}
    fault = refusal(openai.BadRequestError, lambda: create(model=BASE, messages=HELLO, response_format=bad))
    assert fault.param == "response_format.json_schema.schema"
    asked = {"logprobs": True, "top_logprobs": 2, "logit_bias": {"5": 1.5}, "presence_penalty": 0.5, "seed": 3}
    told = create(model=MODEL, messages=HELLO, max_tokens=3, frequency_penalty=-0.5, **asked).choices[0]
    assert "".join(one.token for one in told.logprobs.content) == told.message.content
    assert [len(one.top_logprobs) for one in told.logprobs.content] == [2, 2, 2]
    chunks = create(model=MODEL, messages=HELLO, max_tokens=3, frequency_penalty=-0.5, stream=True, **asked)
    streamed = [one for chunk in chunks if (said := chunk.choices[0].logprobs) for one in said.content]
    assert [one.token for one in streamed] == [one.token for one in told.logprobs.content]
    echoed = client.completions.create(model=BASE, prompt="abc", max_tokens=2, logprobs=1, echo=True).choices[0]
    assert echoed.text.startswith("abc")
    assert echoed.logprobs.token_logprobs[0] is None
    assert "".join(echoed.logprobs.tokens) == echoed.text


def embeddings():
    """The client asks for base64 by itself, and reads it."""
    found = client.embeddings.create(model=MODEL, input=["abc", "de"])
    assert [list(one.embedding) for one in found.data] == [[3.0, 294.0], [2.0, 201.0]]
    assert (found.object, found.model, found.usage.prompt_tokens) == ("list", MODEL, 5)
    floats = client.embeddings.create(model=BASE, input="abc", encoding_format="float")
    assert list(floats.data[0].embedding) == [3.0, 294.0]
    bad = refusal(openai.BadRequestError, lambda: client.embeddings.create(model=BASE, input=""))
    assert bad.param.startswith("input")


def ours():
    """Routes that the client has no name for are asked by its post()."""
    labels = {"model": MODEL, "messages": HELLO, "labels": ["a", "bb"]}
    assert client.post("/classify", cast_to=object, body=labels)["label"] == "a"
    models = {"models": [BASE, MODEL], "messages": HELLO, "max_tokens": 2}
    assert len(client.post("/compare", cast_to=object, body=models)["results"]) == 2


def keys():
    stranger = openai.OpenAI(api_key="graft_local_wrong", base_url=f"{URL}/v1")
    wrong = refusal(openai.AuthenticationError, stranger.models.list)
    assert wrong.code == "invalid_api_key"


def retries():
    """Only what may succeed later is asked again: a conflict says so, and is asked once."""
    before = requests_so_far()
    refusal(openai.ConflictError, lambda: client.fine_tuning.jobs.cancel(JOB))
    assert requests_so_far() == before + 1


def requests_so_far():
    lines = httpx.get(f"{URL}/metrics").text.splitlines()
    counted = [line for line in lines if "requests_total{" in line and "/cancel" in line]
    return sum(float(line.rpartition(" ")[2]) for line in counted)


def everything():
    file_id = files()
    jobs(file_id)
    checkpoint = finished_job()
    models(checkpoint)
    chats(checkpoint)
    completions()
    forms()
    embeddings()
    ours()
    keys()
    retries()


everything()
sys.stdout.write(f"conforms {openai.__version__}\n")
