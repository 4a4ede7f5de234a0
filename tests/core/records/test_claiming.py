"""Which job may join a trainer at work: its kin, the oldest first, and none that has to train alone."""

import pytest

from core.records import jobs
from core.records.jobs import Claim, Kin
from core.specs.method import LoraSpec, PrefixTuningSpec, QLoraSpec
from core.specs.rate_search import Candidate, FoundRate, search_around
from core.specs.training import TrainSpec

KIN, NF4 = Kin("tiny", "bf16"), Kin("tiny", "nf4")


@pytest.fixture
def queue(machine, make_job, spec):
    """Jobs in this order; changes are of their rows."""

    def make(*wanted):
        made = []
        for created_at, (method, changes) in enumerate(wanted):
            values = spec.model_copy(update={"method": method}).model_dump(mode="json")
            made.append(make_job())
            machine.set(made[-1], **({"spec": values, "created_at": float(created_at)} | changes))
        return made

    return make


def joining(machine, kin=KIN):
    held = jobs.claim_kin(machine.db, owner="worker", lease_s=60.0, kin=kin)
    return held and held.job_id


def test_kin_of_any_method_join_the_oldest_first(machine, queue):
    first, second = queue((LoraSpec(), {}), (PrefixTuningSpec(), {}))
    held = jobs.claim_kin(machine.db, owner="worker", lease_s=60.0, kin=KIN)
    assert held == Claim(first, lease_epoch=1, owner="worker", attempt=1)
    assert machine.kinds(first) == ["created", "claimed"]
    assert joining(machine) == second
    assert joining(machine) is None


def test_another_precision_or_base_model_is_no_kin(machine, queue):
    (job_id,) = queue((LoraSpec(), {}))
    assert joining(machine, NF4) is None
    assert joining(machine, Kin("other", "bf16")) is None
    assert joining(machine) == job_id
    job_id, other = queue((QLoraSpec(), {}), (LoraSpec(base_precision="nf4"), {}))
    assert joining(machine) is None
    assert [joining(machine, NF4), joining(machine, NF4)] == [job_id, other]


def test_a_row_from_before_there_was_a_choice_of_precision_is_of_16_bits(machine, queue, spec):
    (job_id,) = queue((LoraSpec(), {}))
    values = spec.model_dump(mode="json")
    del values["method"]["base_precision"]
    machine.set(job_id, spec=values)
    assert joining(machine, NF4) is None
    assert joining(machine) == job_id


def test_who_runs_its_layers_again_joins_only_those_who_do_so_too(machine, queue, spec):
    """One model serves a whole company, and it is checkpointed for all of its rows or for none."""
    kins = [Kin("tiny", "bf16", again, away) for again, away in ((False, False), (True, False), (True, True))]
    for mine in kins:
        (job_id,) = queue((LoraSpec(), {}))
        keeps = {name: getattr(mine, name) for name in ("activation_checkpointing", "activation_offload")}
        machine.set(job_id, spec=spec.model_copy(update=keeps).model_dump(mode="json"))
        assert [joining(machine, other) for other in kins if other != mine] == [None, None]
        assert joining(machine, mine) == job_id


def test_a_row_from_before_there_was_checkpointing_has_none(machine, queue, spec):
    (job_id,) = queue((LoraSpec(), {}))
    values = spec.model_dump(mode="json")
    del values["activation_checkpointing"], values["activation_offload"]
    machine.set(job_id, spec=values)
    assert joining(machine, Kin("tiny", "bf16", activation_checkpointing=True)) is None
    assert joining(machine) == job_id


def test_nobody_goes_before_an_older_job_that_cannot_join(machine, queue):
    """Or a crew that is joined again and again would never make room for it."""
    older, younger = queue((QLoraSpec(), {}), (LoraSpec(), {}))
    assert joining(machine) is None
    assert machine.claim(older).job_id == older
    assert joining(machine) == younger


def test_what_a_dead_worker_left_goes_before_what_waits(machine, queue):
    orphan, waiting = queue((LoraSpec(), {}), (LoraSpec(), {}))
    machine.beat(machine.claim(orphan), step=3)
    machine.expire(orphan)
    assert [joining(machine), joining(machine)] == [orphan, waiting]


@pytest.mark.parametrize(
    "changes",
    [{"attempt": 2}, {"barren_deaths": 1}, {"max_attempts": 1}, {"run_after": 2e12}],
    ids=["last attempt", "died without a step", "only attempt", "waits"],
)
def test_who_must_be_alone_or_wait_does_not_join(machine, queue, changes):
    queue((LoraSpec(), changes))
    assert joining(machine) is None


def test_an_orphan_that_had_made_no_step_does_not_join(machine, queue):
    orphan, _ = queue((LoraSpec(), {}), (LoraSpec(), {}))
    machine.claim(orphan)
    machine.expire(orphan)
    assert joining(machine) is None
    assert machine.claim().is_alone


@pytest.mark.parametrize(("attempt", "deaths", "is_alone"), [(0, 0, False), (1, 0, False), (2, 0, True), (1, 1, True)])
def test_a_claim_says_whether_it_is_to_be_alone(machine, queue, attempt, deaths, is_alone):
    (job_id,) = queue((LoraSpec(), {"attempt": attempt, "barren_deaths": deaths}))
    assert machine.claim(job_id).is_alone is is_alone


FOUND = FoundRate(
    rate=2e-4,
    judged_on="held_out_rows",
    judged_rows=4,
    candidates=(Candidate(rate=2e-4, losses=(1.5, 1.25)), Candidate(rate=9.0, losses=(None,))),
    tokens=100,
    judged_tokens=30,
    share=0.5,
)


def searching(machine, make_job, spec):
    search = search_around(5e-4, steps=40, batch_size=8)
    job_id = make_job()
    machine.set(job_id, spec=spec.model_copy(update={"rate_search": search}).model_dump(mode="json"))
    return job_id


def test_a_job_that_still_searches_its_learning_rate_joins_nobody_and_once_it_is_found_may(machine, make_job, spec):
    job_id = searching(machine, make_job, spec)
    assert joining(machine) is None
    held = machine.claim(job_id)
    jobs.settle_rate(machine.db, held, FOUND)
    jobs.drain(machine.db, held)
    assert joining(machine) == job_id


def test_a_rate_that_was_found_is_in_the_row_for_all_later_attempts(machine, make_job, spec):
    held = machine.claim(searching(machine, make_job, spec))
    jobs.settle_rate(machine.db, held, FOUND)
    kept = TrainSpec.model_validate(machine.job(held.job_id).spec)
    assert (kept.learning_rate, kept.rate_search.found, kept.is_searching) == (2e-4, FOUND, False)
    assert kept.model_copy(update={"learning_rate": spec.learning_rate, "rate_search": None}) == spec


def test_who_lost_the_lease_settles_no_rate(machine, make_job, spec):
    held = machine.claim(searching(machine, make_job, spec))
    machine.set(held.job_id, lease_epoch=held.lease_epoch + 1)
    with pytest.raises(jobs.Fenced):
        jobs.settle_rate(machine.db, held, FOUND)
    assert TrainSpec.model_validate(machine.job(held.job_id).spec).is_searching
