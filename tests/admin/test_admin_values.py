"""Where a job's values come from, and by what differs between jobs."""

import pytest

from api.admin.values import differences, in_force
from core.records import jobs


@pytest.fixture
def made(service):
    def make(**asked):
        job_id = service.job(**asked).json()["id"]
        with service.database.session() as session:
            return jobs.find(session, service.account, job_id)

    return make


def test_a_value_is_chosen_resolved_or_left_as_it_is(made):
    job = made(
        seed=7,
        peft={"type": "lora", "r": 4},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": "auto"}}},
        training={"eval_samples": 0},
    )
    found = {one.name: (one.value, one.origin) for one in in_force(job)}
    assert found["hyperparameters.n_epochs"] == (2, "chosen")
    assert found["hyperparameters.batch_size"][1] == "auto"
    assert isinstance(found["hyperparameters.batch_size"][0], int)
    assert found["peft.r"] == (4, "chosen")
    assert found["peft.lora_dropout"] == (0.0, "default")
    assert found["training.learning_rate"] == (5e-4, "auto")
    assert found["training.eval_samples"] == (0, "chosen")
    assert found["seed"] == (7, "chosen")


def test_adalora_s_phases_are_numbers_once_its_steps_are_counted(made):
    job = made(peft={"type": "adalora"})
    assert {one.name: one.value for one in in_force(job)}["peft.tinit"] == "auto"
    job.total_steps = 100
    found = {one.name: (one.value, one.origin) for one in in_force(job)}
    assert (found["peft.tinit"], found["peft.tfinal"]) == ((10, "auto"), (30, "auto"))


def test_only_what_differs_is_a_difference(made):
    same = {"seed": 3, "peft": {"type": "lora", "r": 4}}
    assert differences([made(**same), made(**same)]) == []
    other = made(seed=3, peft={"type": "lora", "r": 4, "lora_dropout": 0.1})
    assert [name for name, _ in differences([made(**same), other])] == ["peft.lora_dropout"]
    unlike = dict(differences([made(**same), made(seed=3, peft={"type": "prompt_tuning"})]))
    assert unlike["peft.r"][1] is None
    assert unlike["peft.num_virtual_tokens"][0] is None
