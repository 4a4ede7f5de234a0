"""Greedy answers: what a plain loop without a cache says, for every kind of effect, alone as in company."""

import pytest
import torch
from methods_in_full import WEARABLE, effects_of, new_method, row_for

from core.answering import Question, answers
from core.data.batches import Corpus
from core.model import RoutedModel, Rows
from core.routing import Routing
from core.trainer import evaluate
from tests.core.token_rows import facts_of_routed, new_run, random_corpus

ENDS = frozenset({2, 41})
WORDS = ([5, 17, 80], [3, 42, 9, 61, 33, 12], [7])


def slowly(model, effect, question):
    """The same, the whole row anew for each token."""
    ids, said = list(question.ids), []
    while len(said) < question.limit and not (said and said[-1] in question.ends):
        routing = Routing.of_rows([effect])
        rows = Rows.of([ids + said], first_positions=routing.first_positions())
        with torch.no_grad(), model.wearing(routing):
            said.append(int(model.logits(model(rows))[-1].argmax()))
    return said


@pytest.mark.parametrize("name", [name for name in WEARABLE if name != "ensemble"])
def test_answers_are_those_of_a_plain_loop_without_a_cache(name, new_base, new_facts):
    model = RoutedModel(new_base())
    (effect,) = effects_of(new_method(name, new_facts()))
    questions = [Question(row_for(effect, words), limit, ENDS) for words, limit in zip(WORDS, (9, 4, 0), strict=True)]
    found = list(answers(model, effect, questions * 6))  # more than go at once
    assert found == [slowly(model, effect, question) for question in questions] * 6
    assert found[2] == []


def test_an_answer_ends_with_the_first_end(llama):
    bare = effects_of(new_method("lora", facts_of_routed(llama), is_moved=False))[0]
    (free,) = answers(llama, bare, [Question([5, 17], 12, frozenset())])
    end = free[3]
    (cut,) = answers(llama, bare, [Question([5, 17], 12, frozenset({end}))])
    assert cut == free[: free.index(end) + 1]
    assert len(free) == 12


def test_exact_match_is_whether_greedy_decoding_says_the_answer(llama):
    """Half of the answers are what the model says, half are not."""
    run = new_run(llama)
    effect = run.method.effect()
    rows = []
    for place, row in enumerate(random_corpus(12)):
        prompt = row.ids[:-2].tolist() or [5]
        (said,) = answers(llama, effect, [Question(prompt, 3, frozenset())])
        said[2] = (said[2] + place % 2) % 99
        ids = torch.tensor(prompt + said, dtype=torch.int32).numpy()
        rows.append(type(row)(row.line, ids, torch.arange(len(ids)).ge(len(prompt)).numpy()))
    for tokens_per_batch in (1, 4096):
        *_, score = evaluate(llama, run.method, Corpus.of(rows), tokens_per_batch)
        assert (score.short, score.exact, score.exact_match) == (12, 6, 0.5)


def test_a_long_row_is_not_asked_for_to_the_letter(llama):
    run, row = new_run(llama), random_corpus(1)[0]
    ids = torch.arange(70, dtype=torch.int32).remainder(60).numpy()
    long = type(row)(1, ids, torch.arange(70).ge(1).numpy())
    *_, score = evaluate(llama, run.method, Corpus.of([long]), 4096)
    assert (score.short, score.exact_match) == (0, None)
