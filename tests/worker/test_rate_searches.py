"""Jobs whose learning rate is searched: found by the loss, the same whoever stops them, used from step 1."""

import json

import pytest
from tiny_job import Killed, attempt, make_assignment, members, of_kind, sha256

from core.base.load import open_base
from core.data.batches import Corpus
from core.methods import METHODS
from core.model import RoutedModel
from core.rate_search import Search, _parts
from core.reading import with_reading
from core.run import Run
from core.specs.assignment import DRAINED, FINISHED, NOT_FINITE, RateReport, StepReport
from core.specs.rate_search import RateSearch, search_around
from worker import attempt as attempts_room
from worker import failpoints
from worker.reading import corpus_of

AROUND = search_around(0.02, steps=8, batch_size=3)
HOW = {"rate_search": AROUND, "learning_rate": 0.02}
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def searched(tmp_path_factory, tiny_entry):
    """The reports of a job whose search and training nothing interrupted."""
    code, reports = attempt(make_assignment(tmp_path_factory.mktemp("searched") / "job", tiny_entry, **HOW))
    assert code == FINISHED, reports[-1]
    return reports


def found_in(reports):
    (report,) = of_kind(reports, RateReport)
    return report.found


def test_the_rate_of_the_lowest_loss_is_taken_and_the_worse_half_goes_at_each_rung(searched):
    found = found_in(searched)
    tried = {candidate.rate: candidate.losses for candidate in found.candidates}
    assert list(tried) == list(AROUND.rates)
    assert sorted(len(losses) for losses in tried.values()) == [1, 1, 1, 2, 2, 3, 3]
    last = {rate: losses[-1] for rate, losses in tried.items() if len(losses) == 3}
    assert found.rate == min(last, key=last.get)
    first = sorted((losses[0], rate) for rate, losses in tried.items())
    assert {rate for _, rate in first[:4]} == {rate for rate, losses in tried.items() if len(losses) > 1}
    assert (found.judged_on, found.judged_rows) == ("validation_file", 5)


def test_the_job_then_trains_from_the_start_with_that_rate_as_if_it_had_been_named(tmp_path, tiny_entry, searched):
    rate = found_in(searched).rate
    code, plain = attempt(make_assignment(tmp_path / "plain", tiny_entry, learning_rate=rate))
    assert code == FINISHED
    assert members(plain[-1].adapter)[WEIGHTS] == members(searched[-1].adapter)[WEIGHTS]
    told = json.loads(members(searched[-1].adapter)["graft.json"])["spec"]
    assert (told["learning_rate"], told["rate_search"]["found"]["rate"]) == (rate, rate)
    # The control: another rate makes another adapter.
    _, other = attempt(make_assignment(tmp_path / "other", tiny_entry, learning_rate=rate / 2))
    assert members(other[-1].adapter)[WEIGHTS] != members(searched[-1].adapter)[WEIGHTS]


def killed_at(monkeypatch, point):
    """From now on whatever comes to that point dies there."""

    def reached(name, _):
        if name == point:
            raise Killed

    monkeypatch.setattr(failpoints, "reached", reached)


@pytest.mark.parametrize("number", [1, 9, 30])
def test_a_kill_within_the_search_changes_no_byte(tmp_path, tiny_entry, searched, monkeypatch, number):
    with monkeypatch.context() as first:
        killed_at(first, f"search:{number}")
        code, reports = attempt(make_assignment(tmp_path / "job", tiny_entry, **HOW))
    assert code is None
    assert not of_kind(reports, RateReport)
    code, reports = attempt(make_assignment(tmp_path / "job", tiny_entry, lease_epoch=2, **HOW))
    assert code == FINISHED
    assert found_in(reports) == found_in(searched)
    assert sha256(reports[-1].adapter) == sha256(searched[-1].adapter)


def test_a_kill_after_it_does_not_search_again_though_nobody_wrote_the_rate_down(
    tmp_path, tiny_entry, searched, monkeypatch
):
    with monkeypatch.context() as first:
        killed_at(first, "step:5")
        attempt(make_assignment(tmp_path / "job", tiny_entry, **HOW))
    code, reports = attempt(make_assignment(tmp_path / "job", tiny_entry, lease_epoch=2, **HOW))
    assert (code, of_kind(reports, RateReport)) == (FINISHED, [])
    assert of_kind(reports, StepReport)[0].step == 5
    assert sha256(reports[-1].adapter) == sha256(searched[-1].adapter)


def test_a_job_told_to_stop_within_the_search_leaves_and_finds_the_same_later(
    tmp_path, tiny_entry, searched, monkeypatch
):
    seen = []

    class Wish(attempts_room.Wish):
        def is_set(self):
            seen.append(1)
            return len(seen) > 6 or super().is_set()

    with monkeypatch.context() as first:
        first.setattr("worker.company.Wish", Wish)
        code, reports = attempt(make_assignment(tmp_path / "job", tiny_entry, **HOW))
    assert (code, of_kind(reports, RateReport), of_kind(reports, StepReport)) == (DRAINED, [], [])
    code, reports = attempt(make_assignment(tmp_path / "job", tiny_entry, lease_epoch=2, **HOW))
    assert code == FINISHED
    assert sha256(reports[-1].adapter) == sha256(searched[-1].adapter)


def of_rates(*rates):
    return {"rate_search": RateSearch(rates=rates, rungs=(2, 4), judged_rows=5), "learning_rate": 0.02}


def test_a_rate_whose_loss_is_not_finite_is_a_loser_and_no_failure(tmp_path, tiny_entry):
    code, reports = attempt(make_assignment(tmp_path / "job", tiny_entry, **of_rates(0.02, 1e38)))
    assert code == FINISHED
    tried = {candidate.rate: candidate.losses for candidate in found_in(reports).candidates}
    assert found_in(reports).rate == 0.02
    assert tried[1e38] == (None,)


def test_where_no_loss_is_finite_the_job_fails_and_says_so(tmp_path, tiny_entry):
    code, reports = attempt(make_assignment(tmp_path / "job", tiny_entry, **of_rates(1e38, 2e38)))
    assert (code, reports[-1].code) == (NOT_FINITE, "diverged")
    assert "no learning rate from 1e+38 to 2e+38 gave a finite loss" in reports[-1].message


def test_rows_held_out_of_the_training_file_are_learned_by_no_candidate(tmp_path, tiny_entry):
    assignment = make_assignment(tmp_path / "job", tiny_entry, rows=40, **HOW)
    base = open_base(tiny_entry, cache_dir=tmp_path / "cache", device="cpu", precision="fp32")
    corpus = corpus_of(assignment.training_file, base.tokenizer, assignment.spec, context=512, param="training_file")
    learned, judged = _parts(corpus, None, assignment.spec, AROUND)
    assert len(judged) == 10
    assert len(learned) == 24  # 8 steps of 3 rows: more are never seen
    assert not set(learned.lines.tolist()) & set(judged.lines.tolist())
    other = assignment.spec.model_copy(update={"seed": 8})
    assert _parts(corpus, None, other, AROUND)[1].lines.tolist() != judged.lines.tolist()


def test_a_search_of_another_seed_finds_other_losses(tmp_path, tiny_entry, searched):
    """The negative control of all that compares searches: they are not equal whatever one does."""
    _, reports = attempt(make_assignment(tmp_path / "job", tiny_entry, seed=8, **HOW))
    assert found_in(reports).candidates != found_in(searched).candidates


@pytest.mark.parametrize(
    "method",
    [
        {"type": "adalora", "init_r": 4, "target_r": 2, "tinit": 100, "tfinal": 200},
        {"type": "prefix_tuning", "num_virtual_tokens": 3, "encoder_hidden_size": 16},
        {"type": "prompt_tuning", "num_virtual_tokens": 4, "prompt_tuning_init": "random", "ensemble_size": 2},
        {"type": "p_tuning", "template": "{v:3}{input}{v:2}{target}"},
    ],
    ids=lambda method: method["type"],
)
def test_every_method_can_be_searched_and_only_its_candidates_move(tmp_path, tiny_entry, method):
    """AdaLoRA's phases, here longer than any search, take their shares of it."""
    assignment = make_assignment(tmp_path / "job", tiny_entry, **HOW)
    chosen = type(assignment.spec).model_validate({**assignment.spec.model_dump(), "method": method})
    base = open_base(tiny_entry, cache_dir=tmp_path / "cache", device="cpu", precision="fp32")
    corpus = corpus_of(assignment.training_file, base.tokenizer, chosen, context=512, param="training_file")
    assert isinstance(corpus, Corpus)
    model = RoutedModel(base.model)
    facts = with_reading(base.facts, model)
    before = [p.detach().clone() for p in base.model.parameters()]

    def candidate(spec, rows):
        return Run(spec, METHODS[spec.method.type](spec.method, facts), rows)

    search = Search(model, chosen, candidate, corpus, None)
    for _ in search.run():
        pass
    assert search.found.rate in AROUND.rates
    assert search.found.judged_on == "held_out_rows"
    assert all((p == old).all() for p, old in zip(base.model.parameters(), before, strict=True))
