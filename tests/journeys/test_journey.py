"""From a dataset to answers, through every real process, with the stock client. The tests are one story, in order."""

import io
import json
import signal
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from one_machine import ROOT, clean_environment, colours, finish, upload
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.journey
QUESTION = [{"role": "user", "content": "item 5"}]


@pytest.fixture(scope="module")
def service(make_service):
    service = make_service()
    service.start()
    return service


@pytest.fixture(scope="module")
def client(service):
    return service.client()


@pytest.fixture(scope="module")
def job(client):
    """A finished job with LoRA."""
    file = upload(client, colours())
    assert client.files.retrieve(file).status == "processed"
    job = client.fine_tuning.jobs.create(
        model="tiny",
        training_file=file,
        suffix="colours",
        seed=7,
        hyperparameters={"n_epochs": 4, "batch_size": 8},
        extra_body={"peft": {"type": "lora", "r": 4, "lora_alpha": 8}, "training": {"learning_rate": 0.02}},
    )
    assert job.status in {"validating_files", "queued", "running"}
    return finish(client, job.id)


def answer(client, model, **options):
    options = {"max_tokens": 12, "temperature": 0, **options}
    return client.chat.completions.create(model=model, messages=QUESTION, **options).choices[0].message.content


def test_the_first_start_shows_the_key_once_and_keeps_it_for_its_owner_alone(service):
    assert service.output.read_text().count(service.key) == 1
    assert (service.data_dir / "admin.key").stat().st_mode & 0o777 == 0o600
    assert service.data_dir.stat().st_mode & 0o777 == 0o700


def test_without_the_key_nothing_is_answered(service):
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{service.address}/v1", api_key="graft_wrong", max_retries=0).models.list()


def test_a_job_succeeds_and_names_its_adapter(job):
    assert job.status == "succeeded", job.error
    assert job.fine_tuned_model.startswith("ft:tiny:")
    assert "colours" in job.fine_tuned_model
    assert job.trained_tokens > 0
    assert job.model_extra["peft"]["r"] == 4


def test_every_step_is_told_and_the_loss_falls(client, job):
    events = client.fine_tuning.jobs.list_events(job.id, limit=100).data
    metrics = sorted((e.data["step"], e.data["train_loss"]) for e in events if e.type == "metrics")
    assert [step for step, _ in metrics] == list(range(1, 13))
    assert metrics[-1][1] < metrics[0][1]


def test_checkpoints_are_models_of_their_own(client, job):
    checkpoints = client.fine_tuning.jobs.checkpoints.list(job.id).data
    assert checkpoints
    newest = max(checkpoints, key=lambda c: c.step_number)
    assert newest.fine_tuned_model_checkpoint == f"{job.fine_tuned_model}:ckpt-step-{newest.step_number}"
    assert answer(client, newest.fine_tuned_model_checkpoint) is not None


def test_the_adapter_is_listed_beside_its_base(client, job):
    models = {model.id: model for model in client.models.list().data}
    assert {"tiny", job.fine_tuned_model} <= models.keys()
    assert client.models.retrieve(job.fine_tuned_model).id == job.fine_tuned_model


def test_base_and_adapter_answer_together_as_they_answer_alone(client, job):
    names = ["tiny", job.fine_tuned_model]
    alone = {name: answer(client, name) for name in names}
    assert alone["tiny"] != alone[job.fine_tuned_model]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda name: (name, answer(client, name)), names * 4))
    assert together == [(name, alone[name]) for name in names * 4]


def test_a_stream_says_what_the_plain_answer_says(client, job):
    stream = client.chat.completions.create(
        model=job.fine_tuned_model, messages=QUESTION, max_tokens=12, temperature=0, stream=True
    )
    chunks = [choice for chunk in stream for choice in chunk.choices]
    assert "".join(choice.delta.content or "" for choice in chunks) == answer(client, job.fine_tuned_model)
    assert chunks[-1].finish_reason in {"stop", "length"}


def test_a_plain_completion_counts_its_tokens(client, job):
    told = client.completions.create(model=job.fine_tuned_model, prompt="item 5", max_tokens=6, temperature=0)
    assert told.usage.prompt_tokens == len("item 5")  # a byte is a token here
    assert 1 <= told.usage.completion_tokens <= 6


def test_a_model_never_seen_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as refusal:
        answer(client, "ft:tiny:nobody::abc")
    assert refusal.value.code == "model_not_found"


def test_a_bad_file_is_refused_line_by_line_and_leaves_nothing(client):
    before = {file.id for file in client.files.list().data}
    bad = b'{"messages": [{"role": "bot", "content": "x"}]}\nnot json\n'
    with pytest.raises(openai.BadRequestError) as refusal:
        client.files.create(file=("bad.jsonl", bad), purpose="fine-tune")
    assert {1, 2} <= {detail["line"] for detail in refusal.value.body["details"]}
    assert {file.id for file in client.files.list().data} == before


def test_the_download_is_an_adapter_that_stock_peft_serves_alike(client, service, job, tiny_base, tmp_path):
    head = {"Authorization": f"Bearer {service.key}"}
    listed = httpx.get(f"{service.address}/v1/adapters", headers=head).json()["data"]
    adapter = next(a for a in listed if job.fine_tuned_model in json.dumps(a))
    content = httpx.get(f"{service.address}/v1/adapters/{adapter['id']}/download", headers=head)
    assert content.status_code == 200
    with zipfile.ZipFile(io.BytesIO(content.content)) as files:
        assert {"adapter_config.json", "adapter_model.safetensors"} <= set(files.namelist())
        files.extractall(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), tmp_path).eval()
    ids = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    text = tokenizer.decode(made, skip_special_tokens=True).rstrip(
        "\ufffd"
    )  # a character cut off by max_tokens is held back
    assert text == answer(client, job.fine_tuned_model)


def test_a_second_service_on_the_same_data_is_refused(service):
    environment = clean_environment(**service._settings)
    second = subprocess.run(
        [sys.executable, "-m", "api.cli", "up"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert second.returncode == 1
    assert "up already" in second.stderr
    assert "GRAFT_DATA_DIR" in second.stderr


def test_started_again_it_has_kept_everything_and_ctrl_c_leaves_nothing(client, service, job):
    before = answer(client, job.fine_tuned_model)
    members = service.members()
    assert {"uvicorn", "celery", "worker.engine.main", "valkey-server"} <= {
        word
        for word in ("uvicorn", "celery", "worker.engine.main", "valkey-server")
        if any(word in command for command in members.values())
    }
    service.stop()
    assert service.start() < 60.0
    assert service.output.read_text().count(service.key) == 1
    assert answer(client, job.fine_tuned_model) == before
    assert client.fine_tuning.jobs.retrieve(job.id).status == "succeeded"
    service.stop(signal.SIGTERM)
