"""Six methods by REST on one NF4 base, by real processes: trained, served in one batch, loaded by stock PEFT."""

import io
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from one_machine import colours, finish, upload
from peft import PeftModel
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.journey
METHODS = {
    "lora": {"type": "lora", "r": 4},
    "qlora": {"type": "qlora", "r": 2},
    "adalora": {"type": "adalora", "init_r": 4, "target_r": 2},
    "prefix": {"type": "prefix_tuning", "num_virtual_tokens": 4, "encoder_hidden_size": 16},
    "prompt": {"type": "prompt_tuning", "num_virtual_tokens": 5, "prompt_tuning_init": "random"},
    "ensemble": {"type": "prompt_tuning", "num_virtual_tokens": 3, "ensemble_size": 3},
    "p-tuning": {"type": "p_tuning", "template": "{v:2} which {input}{v:3}{target}"},
}


@pytest.fixture(scope="module")
def client(make_service):
    service = make_service(GRAFT_ENGINE_PRECISIONS='["nf4"]')
    service.start()
    return service.client()


@pytest.fixture(scope="module")
def jobs(client):
    """A finished job of each method, all on the NF4 base."""
    file = upload(client, colours())
    made = {
        name: client.fine_tuning.jobs.create(
            model="tiny",
            training_file=file,
            suffix=name,
            seed=7,
            hyperparameters={"n_epochs": 2, "batch_size": 8},
            extra_body={"peft": {"base_precision": "nf4", **peft}, "training": {"learning_rate": 0.05}},
        )
        for name, peft in METHODS.items()
    }
    return {name: finish(client, job.id) for name, job in made.items()}


def test_a_job_of_every_method_succeeds(jobs):
    assert {name: (job.status, job.error) for name, job in jobs.items()} == {
        name: ("succeeded", job.error) for name, job in jobs.items()
    }
    assert {job.model_extra["peft"]["base_precision"] for job in jobs.values()} == {"nf4"}


def test_eight_rows_of_all_methods_and_the_base_say_together_what_each_says_alone(client, jobs):
    models = ["tiny@nf4", *(job.fine_tuned_model for job in jobs.values())]
    assert len(models) == 8

    def answer(model):
        messages = [{"role": "user", "content": "item 5"}]
        told = client.chat.completions.create(model=model, messages=messages, max_tokens=12, temperature=0)
        return told.choices[0].message.content

    alone = [answer(model) for model in models]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(answer, models)) == alone
    assert alone[0] not in alone[1:]


def test_adalora_tells_its_ranks_as_they_fall(client, jobs):
    events = client.fine_tuning.jobs.list_events(jobs["adalora"].id, limit=100).data  # newest first
    told = [sum(e.data["ranks"].values()) for e in events if e.type == "metrics" and (e.data or {}).get("ranks")]
    assert told[0] < told[-1]


def test_stock_peft_loads_every_download(client, jobs, tiny_base, tmp_path):
    kinds = {}
    for name, job in jobs.items():
        download = client.get(f"/adapters/{job.fine_tuned_model}/download", cast_to=httpx.Response)
        with zipfile.ZipFile(io.BytesIO(download.content)) as archive:
            archive.extractall(tmp_path / name)
        manifest = json.loads((tmp_path / name / "graft.json").read_text())
        assert (manifest["base_precision"], manifest["base_quantisation"]["type"]) == ("nf4", "nf4")
        folder = tmp_path / name / "member-0" if name == "ensemble" else tmp_path / name
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), folder)
        kinds[name] = str(model.peft_config["default"].peft_type.value)
    assert kinds == {
        "lora": "LORA",
        "qlora": "LORA",
        "adalora": "LORA",
        "prefix": "PREFIX_TUNING",
        "prompt": "PROMPT_TUNING",
        "ensemble": "PROMPT_TUNING",
        "p-tuning": "TRAINABLE_TOKENS",
    }
