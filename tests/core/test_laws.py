"""What must hold whatever a row wears, on every family of base model. Each law has a control that breaks it."""

import pytest
import torch
from torch import Tensor

from core.cache import KVCache
from core.effects import Effect, KVPrefix, LowRank, SoftPrompt
from core.losses import next_token_loss
from core.model import RoutedModel, Rows
from core.routing import Routing, dropout_key, tensors_of

# Of logits of up to 4, where a step of bf16 is 0.016 to 0.031: products are rounded otherwise in a batch of another
# shape, by up to 0.055 as seen so far.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8e-2}
PRECISIONS = pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp32", "bf16"])
WEARS = (None, "rank 4", "rank 7, few sites", "prompt", "prefix", "rank 2, rslora", None, "rank 4")


def text(length, seed):
    return torch.randint(3, 90, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def row_for(effect: Effect | None, words: list[int]) -> list[int]:
    """A row of these words as its effect wants it: its virtual tokens in front."""
    if isinstance(effect, SoftPrompt):
        return [-1 - i for i in range(len(effect.prompt))] + words
    return words


def logits(model: RoutedModel, effects, rows, **rows_of) -> list[Tensor]:
    """Logits [T, V] of each row, all in one call."""
    routing = Routing.of_rows(effects)
    rows_of.setdefault("first_positions", routing.first_positions())
    batch = Rows.of(rows, **rows_of)
    with torch.no_grad(), model.wearing(routing):
        every = model.logits(model(batch)).float()
    return [every[a:b] for a, b in zip(batch.starts, batch.starts[1:], strict=False)]


def apart(left, right) -> float:
    return (left - right).abs().max().item()


@pytest.fixture
def company(family, dtype, new_base, new_facts, new_effects):
    """(model, effects, rows): eight rows that wear everything there is."""
    model = RoutedModel(new_base(family, dtype))
    effects = new_effects(new_facts(family))
    worn = [None if name is None else effects[name] for name in WEARS]
    rows = [row_for(e, text(5 + 3 * i, i)) for i, e in enumerate(worn)]
    return model, worn, rows


@PRECISIONS
def test_a_row_is_the_same_in_company_as_alone(company, dtype):
    model, worn, rows = company
    together = logits(model, worn, rows)
    for effect, row, here in zip(worn, rows, together, strict=True):
        assert apart(here, logits(model, [effect], [row])[0]) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32])
def test_a_row_that_wears_its_neighbours_effect_is_another(company):
    model, worn, rows = company
    mine = logits(model, worn[1:3], rows[1:3])
    swapped = logits(model, worn[2:0:-1], rows[1:3])
    assert min(apart(a, b) for a, b in zip(mine, swapped, strict=True)) > 1e-2


@PRECISIONS
def test_rows_of_another_order_give_their_answers_in_that_order(company, dtype):
    model, worn, rows = company
    order = [5, 0, 7, 2, 1, 6, 4, 3]
    together = logits(model, worn, rows)
    permuted = logits(model, [worn[i] for i in order], [rows[i] for i in order])
    assert all(apart(permuted[at], together[i]) < TOLERANCE[dtype] for at, i in enumerate(order))


@PRECISIONS
def test_a_bare_row_is_the_plain_base_model(company, dtype, family, new_base):
    model, worn, rows = company
    here = logits(model, worn, rows)[6]
    with torch.no_grad():
        plain = new_base(family, dtype)(torch.tensor([rows[6]])).logits[0].float()
    assert apart(here, plain) < TOLERANCE[dtype]


@PRECISIONS
def test_a_bare_row_is_bitwise_what_it_is_among_bare_rows(company):
    model, worn, rows = company
    low_rank = [None if e is None or not isinstance(e, LowRank) else e for e in worn]
    words = [[abs(i) for i in row] for row in rows]
    among_adapters, among_bare = logits(model, low_rank, words), logits(model, [None] * len(words), words)
    assert torch.equal(among_adapters[0], among_bare[0])
    assert torch.equal(among_adapters[6], among_bare[6])
    assert not torch.equal(among_adapters[1], among_bare[1])


@PRECISIONS
def test_decoding_token_by_token_equals_reading_the_whole_row(company, dtype):
    model, worn, rows = company
    whole = logits(model, worn, rows)
    for row, here in zip(decoded(model, worn, rows), whole, strict=True):
        assert apart(row, here[-len(row) :]) < TOLERANCE[dtype]


def test_decoding_from_wrong_positions_gives_something_else(llama):
    rows = [text(9, 1)]
    assert apart(decoded(llama, [None], rows, shift=3)[0], logits(llama, [None], rows)[0][-4:]) > 1e-2


def decoded(model, worn, rows, *, shift=0, last=4) -> list[Tensor]:
    """Logits of the last tokens of each row, decoded one by one; rows join one a turn, beside those that decode."""
    cache = KVCache.for_model(model, slots=len(rows) + 2, length=48)
    cache.take()  # the batch need not start at slot 0
    done = [0] * len(rows)
    found: list[list[Tensor]] = [[] for _ in rows]
    slots = [cache.take() for _ in rows]
    leads = Routing.of_rows(worn).first_positions()
    for effect, slot in zip(worn, slots, strict=True):
        if isinstance(effect, KVPrefix):
            cache.put_prefix(slot, effect)
    for turn in range(len(rows) + last):
        here = [r for r in range(min(turn + 1, len(rows))) if done[r] < len(rows[r])]
        counts = [1 if done[r] else len(rows[r]) - last for r in here]
        batch = Rows.of(
            [rows[r][done[r] : done[r] + n] for r, n in zip(here, counts, strict=True)],
            slots=[slots[r] for r in here],
            first_positions=[leads[r] + done[r] + (shift if done[r] else 0) for r in here],
        )
        with torch.inference_mode(), model.wearing(Routing.of_rows([worn[r] for r in here])):
            hidden = model(batch, cache)
        for r, n, stop in zip(here, counts, batch.starts[1:], strict=True):
            if done[r]:
                found[r].append(model.logits(hidden[stop - 1 : stop]).float())
            done[r] += n
    return [torch.cat(one) for one in found]


def test_an_untrained_low_rank_adapter_changes_nothing(model, family, new_facts, new_lora):
    lora = new_lora(new_facts(family))
    with torch.no_grad():
        for b in lora.b:
            b.zero_()
    row = text(12, 1)
    assert torch.equal(logits(model, [lora.effect()], [row])[0], logits(model, [None], [row])[0])


def gradients(model, methods, rows):
    """Of each method's parameters, when all rows are trained in one batch; a row each."""
    effects = [m.effect() for m in methods]
    batch = Rows.of(rows)
    learned = torch.ones(len(batch.ids), dtype=torch.bool)
    learned[list(batch.starts[:-1])] = False
    for method in methods:
        method.zero_grad(set_to_none=True)
    with model.wearing(Routing.of_rows(effects)):
        next_token_loss(model, model(batch), batch.ids, learned, batch.starts).total.backward()
    return [[p.grad for p in m.parameters()] for m in methods]


def test_two_adapters_trained_in_one_batch_get_the_gradients_they_would_get_alone(model, family, new_facts, new_lora):
    methods = [new_lora(new_facts(family), seed=1), new_lora(new_facts(family), seed=2, r=3)]
    rows = [text(14, 1), text(9, 2)]
    together = gradients(model, methods, rows)
    for method, row, here in zip(methods, rows, together, strict=True):
        alone = gradients(model, [method], [row])[0]
        for a, b in zip(here, alone, strict=True):
            assert apart(a, b) <= 1e-5 * b.abs().max().item() + 1e-6
    other = gradients(model, methods[:1], rows[1:])[0]
    assert max(apart(a, b) for a, b in zip(together[0], other, strict=True)) > 1e-2


def test_gradients_are_those_that_finite_differences_find(llama, new_facts, new_lora):
    lora, row = new_lora(new_facts()), text(10, 3)
    grad = gradients(llama, [lora], [row])[0]

    def loss_at(parameter, nudge):
        with torch.no_grad():
            parameter += nudge
            here = logits(llama, [lora.effect()], [row])[0][:-1].double()
            parameter -= nudge
        return torch.nn.functional.cross_entropy(here, torch.tensor(row[1:]), reduction="sum").item()

    for parameter, g in list(zip(lora.parameters(), grad, strict=True))[:: len(grad) // 5]:
        nudge = 1e-2 * g / g.norm()
        slope = (loss_at(parameter, nudge) - loss_at(parameter, -nudge)) / 2e-2
        assert slope == pytest.approx(g.norm().item(), rel=2e-2)


def test_training_leaves_the_base_model_bitwise_as_it_was(model, family, new_facts, new_lora):
    before = {name: p.clone() for name, p in model.base.named_parameters()}
    lora = new_lora(new_facts(family))
    gradients(model, [lora], [text(14, 1)])
    torch.optim.SGD(lora.parameters(), lr=1.0).step()
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.base.named_parameters())


def test_checkpointing_changes_no_gradient(family, new_base, new_facts, new_lora):
    methods = [new_lora(new_facts(family), seed=1), new_lora(new_facts(family), seed=2, r=3)]
    rows = [text(14, 1), text(9, 2)]
    plain = gradients(RoutedModel(new_base(family)), methods, rows)
    runs = []
    model = RoutedModel(new_base(family), checkpointing=True)
    next(iter(model.sites.values())).register_forward_pre_hook(lambda *_: runs.append(1))
    checkpointed = gradients(model, methods, rows)
    assert len(runs) == 2  # it did run again
    for a, b in zip(plain, checkpointed, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_checkpointing_changes_no_gradient_of_virtual_tokens(kind, new_base, new_facts, new_effects):
    def grads(model):
        effect = new_effects(new_facts())[kind]
        tensors = [t.requires_grad_() for t in tensors_of(effect)]
        routing = Routing.of_rows([effect])
        batch = Rows.of([row_for(effect, text(8, 1))], first_positions=routing.first_positions())
        with model.wearing(routing):
            model(batch).square().sum().backward()
        return [t.grad for t in tensors]

    plain, again = grads(RoutedModel(new_base())), grads(RoutedModel(new_base(), checkpointing=True))
    assert all(torch.equal(a, b) and a.abs().max() > 0 for a, b in zip(plain, again, strict=True))


def test_with_checkpointing_backward_outside_wearing_is_refused(new_base, new_facts, new_lora):
    model = RoutedModel(new_base(), checkpointing=True)
    with model.wearing(Routing.of_rows([new_lora(new_facts()).effect()])):
        hidden = model(Rows.of([text(5, 1)]))
    with pytest.raises(RuntimeError, match="backward"):
        hidden.sum().backward()


@PRECISIONS
def test_a_soft_prompt_of_a_texts_embeddings_is_that_text(family, dtype, new_base):
    model = RoutedModel(new_base(family, dtype))
    words, more = text(6, 1), text(5, 2)
    with torch.no_grad():
        prompt = SoftPrompt(model.base.get_input_embeddings()(torch.tensor(words)))
    # Virtual tokens may stand anywhere in a row.
    virtual = [more[0], *(-1 - i for i in range(6)), *more[1:]]
    here, plain = logits(model, [prompt, None], [virtual, [more[0], *words, *more[1:]]])
    assert apart(here, plain) < TOLERANCE[dtype]
    backwards = [more[0], *(-6 + i for i in range(6)), *more[1:]]
    assert apart(logits(model, [prompt], [backwards])[0][-1], plain[-1]) > 1e-2


@PRECISIONS
def test_a_prefix_of_real_words_is_prompting_with_them(family, dtype, new_base):
    model = RoutedModel(new_base(family, dtype))
    words, more = text(6, 1), text(9, 2)
    cache = KVCache.for_model(model, slots=1, length=6)
    with model.wearing(Routing.of_rows([None])):
        model(Rows.of([words], slots=[cache.take()]), cache)
    prefix = KVPrefix(*(t[:, 0].transpose(1, 2).clone() for t in (cache.keys, cache.values)))
    here = logits(model, [prefix], [more])[0]
    plain = logits(model, [None], [words + more])[0][6:]
    assert apart(here, plain) < TOLERANCE[dtype]
    assert apart(here, logits(model, [None], [more])[0]) > 1e-2


def test_a_shift_of_positions_changes_rows_with_a_prefix_and_no_others(llama, new_facts, new_effects):
    effects = new_effects(new_facts())
    worn = [None, effects["rank 4"], effects["prompt"], effects["prefix"]]
    rows = [row_for(e, text(8, i)) for i, e in enumerate(worn)]
    leads = Routing.of_rows(worn).first_positions()
    here = logits(llama, worn, rows)
    shifted = logits(llama, worn, rows, first_positions=[lead + 7 for lead in leads])
    assert all(apart(a, b) < 1e-5 for a, b in zip(here[:3], shifted[:3], strict=True))
    assert apart(here[3], shifted[3]) > 1e-3


def test_dropout_of_a_row_is_the_same_in_company_as_alone_and_another_at_the_next_step(llama, new_facts, new_lora):
    effect, other = (new_lora(new_facts(), seed=s, lora_dropout=0.5).effect() for s in (1, 2))
    rows = [text(7, 1), text(9, 2)]

    def run(effects, rows, keys):
        batch = Rows.of(rows)
        with llama.wearing(Routing.of_rows(effects, dropout_keys=keys)):
            return llama(batch).detach()[-len(rows[-1]) :]

    key, next_key = dropout_key(seed=5, step=3, row=11), dropout_key(seed=5, step=4, row=11)
    together = run([other, effect], rows, [dropout_key(seed=1, step=3, row=0), key])
    alone = run([effect], rows[1:], [key])
    assert apart(together, alone) < 1e-5
    assert apart(alone, run([effect], rows[1:], [next_key])) > 1e-2
    assert apart(alone, run([effect], rows[1:], None)) > 1e-2


def test_checkpointing_draws_the_same_dropout_again(new_base, new_facts, new_lora):
    def grads(model):
        lora = new_lora(new_facts(), lora_dropout=0.3)
        with model.wearing(Routing.of_rows([lora.effect()], dropout_keys=[9])):
            model(Rows.of([text(8, 1)])).square().sum().backward()
        return [p.grad for p in lora.parameters()]

    plain, again = grads(RoutedModel(new_base())), grads(RoutedModel(new_base(), checkpointing=True))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
