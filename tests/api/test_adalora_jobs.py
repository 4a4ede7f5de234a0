"""Jobs of AdaLoRA: a schedule that cannot be kept is refused before anything is trained."""


def test_a_schedule_without_a_step_to_prune_in_is_refused_with_the_steps_there_are(service):
    answer = service.job(peft={"type": "adalora", "tinit": 5, "tfinal": 5}, hyperparameters={"n_epochs": 2})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "peft.tinit")
    assert "leave none of the" in error["message"]


def test_a_schedule_that_fits_is_taken(service):
    answer = service.job(peft={"type": "adalora", "tinit": 0, "tfinal": 0}, hyperparameters={"n_epochs": 2})
    assert answer.status_code == 200, answer.text
