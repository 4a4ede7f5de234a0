"""Prompts, prefixes and templates on disk: stock peft computes what we wrote, and what is read is what was written."""

import json
import zipfile

import pytest
import torch
from peft import PeftModel, TrainableTokensConfig, get_peft_model
from safetensors.torch import load_file, save_file
from virtual_runs import TEMPLATE, WORDS, apart, encode, logits, make, opened, row_in

from core import peft_files
from core.effects import KVPrefix, SoftPrompt
from core.specs.template import Layout


def theirs(folder, base, ids):
    with torch.no_grad():
        return PeftModel.from_pretrained(base, folder)(torch.tensor([ids])).logits[0]


def written(method, folder):
    peft_files.write(method, folder, "a-base")
    return folder


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize(
    "kind", ["prefix kv", "prefix mlp", "prefix hidden", "prompt", pytest.param("p lstm", id="p lstm in front")]
)
def test_stock_peft_computes_what_we_wrote(kind, family, tmp_path, new_base):
    model, facts = opened(new_base(family))
    method = make(kind, facts, **({"template": "{v:4}{input}{target}"} if kind == "p lstm" else {}))
    with torch.no_grad():
        effect = method.effect()
    here = logits(model, [effect], [row_in(effect, WORDS)])[0][-len(WORDS) :]
    stock = theirs(written(method, tmp_path), new_base(family), WORDS)[-len(WORDS) :]
    assert apart(stock, here) < 1e-5
    assert apart(stock, logits(model, [None], [WORDS])[0]) > 1e-3


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("kind", ["p lstm", "p mlp"])
def test_a_template_written_with_reserved_ids_is_in_stock_peft_what_it_is_here(kind, family, tmp_path, new_base):
    model, facts = opened(new_base(family))
    method = make(kind, facts)
    with torch.no_grad():
        effect = method.effect()
    row = row_in(effect, WORDS)
    note = json.loads((written(method, tmp_path) / peft_files.TEMPLATE).read_text())
    reserved = note["token_indices"]
    ids = [reserved[-1 - i] if i < 0 else i for i in row]
    # Where head and table are tied, the reserved ids have other logits there: nobody is to choose them.
    kept = [i for i in range(facts.vocabulary) if i not in reserved]
    here = logits(model, [effect], [row])[0][:, kept]
    assert apart(theirs(tmp_path, new_base(family), ids)[:, kept], here) < 1e-5
    swapped = [reserved[i % 4] if i < 0 else i for i in row]  # the virtual tokens in another order
    assert apart(theirs(tmp_path, new_base(family), swapped)[:, kept], here) > 1e-3


@pytest.mark.parametrize("kind", ["prefix kv", "prompt", "p lstm"])
@pytest.mark.parametrize("is_zipped", [False, True])
def test_what_is_read_is_what_was_written(kind, is_zipped, tmp_path, new_base):
    model, facts = opened(new_base("gpt2"))
    method = make(kind, facts)
    with torch.no_grad():
        effect = method.effect()
    written(method, tmp_path / "folder")
    peft_files.pack(tmp_path / "folder", tmp_path / "a.zip")
    again = peft_files.read_zip(tmp_path / "a.zip") if is_zipped else peft_files.read(tmp_path / "folder")
    model.check(again)
    match again:
        case KVPrefix(keys, values):
            assert torch.equal(keys, effect.keys)
            assert torch.equal(values, effect.values)
        case SoftPrompt(prompt):
            assert torch.equal(prompt, effect.prompt)
            assert again.layout == effect.layout


def test_the_note_says_where_the_virtual_tokens_stand(tmp_path, new_base):
    _, facts = opened(new_base())
    written(make("p lstm", facts), tmp_path)
    assert json.loads((tmp_path / peft_files.TEMPLATE).read_text()) == {
        "before": [-1, -2, *encode("ab"), -3],
        "after": [*encode("c"), -4],
        "token_indices": [95, 96, 97, 98],
        "template": TEMPLATE,
        "table_scale": 1.0,
    }
    config = json.loads((tmp_path / peft_files.CONFIG).read_text())
    assert (config["peft_type"], config["token_indices"]) == ("TRAINABLE_TOKENS", [95, 96, 97, 98])
    assert config["target_modules"] == ["model.embed_tokens"]
    assert "graft_template" not in config
    assert load_file(tmp_path / peft_files.WEIGHTS).keys() == {
        "base_model.model.model.embed_tokens.trainable_tokens_delta"
    }


def test_a_prompt_in_front_has_no_note(tmp_path, new_base):
    _, facts = opened(new_base())
    written(make("p lstm", facts, template="{v:4}{input}{target}"), tmp_path)
    assert not (tmp_path / peft_files.TEMPLATE).exists()
    assert json.loads((tmp_path / peft_files.CONFIG).read_text())["peft_type"] == "PROMPT_TUNING"


def test_rows_that_stock_peft_saved_of_tied_tables_are_read_with_our_note(tmp_path, new_base):
    _, facts = opened(new_base("gpt2"))
    written(make("p lstm", facts), tmp_path)
    stock = PeftModel.from_pretrained(new_base("gpt2"), tmp_path)
    stock.save_pretrained(tmp_path)
    assert len(load_file(tmp_path / peft_files.WEIGHTS)) == 2
    assert peft_files.read(tmp_path).prompt.shape == (4, 64)


def test_trainable_tokens_of_strangers_are_refused(tmp_path, new_base):
    config = TrainableTokensConfig(token_indices=[3], target_modules=["embed_tokens"], task_type="CAUSAL_LM")
    get_peft_model(new_base(), config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no graft_template\.json"):
        peft_files.read(tmp_path)


@pytest.fixture
def template(tmp_path, new_base):
    """A good template's folder."""
    _, facts = opened(new_base())
    return written(make("p lstm", facts), tmp_path / "template")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"before": [-1, -2, 7]}, "places virtual tokens"),
        ({"before": [-2, -1, 7, -3]}, "places virtual tokens"),
        ({"after": [-4, -5]}, "places virtual tokens"),
        ({"after": "c"}, "after is expected"),
        ({"before": None}, "before is expected"),
        ({"after": [True, -4]}, "after is expected"),
        ({"after": [1.0, -4]}, "after is expected"),
        ({"after": [2**40, -4]}, "after is expected"),
        ({"after": [5] * (2**16 + 1)}, "after is expected"),
        ({"token_indices": [95, 96, 97]}, "one id for each row"),
        ({"token_indices": [95, 96, 98, 97]}, "one id for each row"),
        ({"token_indices": None}, "token_indices is expected"),
    ],
)
def test_a_note_that_does_not_fit_its_rows_is_refused(change, reason, template):
    path = template / peft_files.TEMPLATE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=reason):
        peft_files.read(template)


@pytest.mark.parametrize("content", [b"\xff", b"{", b"[]", b"[" * 100_000], ids=range(4))
def test_a_note_that_is_not_a_json_object_is_refused(content, template):
    (template / peft_files.TEMPLATE).write_bytes(content)
    with pytest.raises(ValueError, match=peft_files.TEMPLATE):
        peft_files.read(template)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({}, "1 to 512 rows"),
        ({"base_model.model.wte.trainable_tokens_delta": torch.zeros(513, 64)}, "1 to 512 rows"),
        (
            {
                "base_model.model.wte.trainable_tokens_delta": torch.zeros(4, 64),
                "base_model.model.lm_head.trainable_tokens_delta": torch.ones(4, 64),
            },
            "the same for each layer",
        ),
        ({"prompt_embeddings": torch.zeros(4, 64)}, "not understood"),
    ],
)
def test_rows_that_are_not_a_prompt_are_refused(tensors, reason, template):
    save_file(tensors, template / peft_files.WEIGHTS)
    with pytest.raises(ValueError, match=reason):
        peft_files.read(template)


def test_a_template_of_ids_that_the_base_has_not_is_refused_by_the_model(new_base):
    model, _ = opened(new_base())
    with pytest.raises(ValueError, match="ids of -1 to 99, the base model 99 words"):
        model.check(SoftPrompt(torch.zeros(1, 64), Layout((-1, 99), ())))
    with pytest.raises(ValueError, match="ids of -2 to 5"):
        model.check(SoftPrompt(torch.zeros(1, 64), Layout((-1, 5), (-2,))))
    model.check(SoftPrompt(torch.zeros(1, 64), Layout((-1, 98), ())))


def test_a_note_that_unfolds_to_too_much_is_refused(template, tmp_path, monkeypatch):
    peft_files.pack(template, tmp_path / "a.zip")
    monkeypatch.setitem(peft_files.LIMITS, peft_files.TEMPLATE, 10)
    with pytest.raises(ValueError, match=r"graft_template\.json unfolds to more than 10 bytes"):
        peft_files.read_zip(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert peft_files.TEMPLATE in archive.namelist()


def test_a_template_cannot_be_written_as_a_prompt_in_front(tmp_path, new_base):
    _, facts = opened(new_base())
    method = make("p lstm", facts)
    method.peft_config = make("prompt", facts).peft_config
    with pytest.raises(ValueError, match="in front"):
        peft_files.write(method, tmp_path, "a-base")
