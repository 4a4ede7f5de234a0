"""What we write stock peft computes, what stock peft writes we compute, and what we cannot do we refuse."""

import json
import zipfile

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from core import peft_files
from core.effects import KVPrefix, LowRank, SoftPrompt
from core.model import RoutedModel, Rows
from core.routing import Routing

WORDS = [5, 17, 80, 3, 42, 9, 61, 33, 12, 7, 28]


def ours(model, effect):
    words = [-1 - i for i in range(len(effect.prompt))] + WORDS if isinstance(effect, SoftPrompt) else WORDS
    routing = Routing.of_rows([effect])
    with torch.no_grad(), model.wearing(routing):
        rows = Rows.of([words], first_positions=routing.first_positions())
        return model.logits(model(rows))[-len(WORDS) :]


def theirs(model):
    with torch.no_grad():
        return model(torch.tensor([WORDS])).logits[0, -len(WORDS) :]


@pytest.mark.parametrize(
    "spec",
    [{}, {"r": 3, "use_rslora": True, "lora_alpha": 5.0}, {"target_modules": None}],
    ids=["plain", "rslora", "one site"],
)
def test_stock_peft_computes_what_we_wrote(family, spec, tmp_path, *, new_base, new_facts, new_lora):
    facts = new_facts(family)
    if "target_modules" in spec:
        spec = {"target_modules": (facts.sites[-1].name,)}
    lora = new_lora(facts, **spec)
    peft_files.write(lora, tmp_path, "a-base")
    model = RoutedModel(new_base(family))
    here, bare = ours(model, lora.effect()), ours(model, None)
    stock = PeftModel.from_pretrained(new_base(family), tmp_path)
    assert (theirs(stock) - here).abs().max() < 1e-5
    assert (theirs(stock) - bare).abs().max() > 1e-3


@pytest.mark.parametrize("is_patterned", [False, True])
def test_what_stock_peft_wrote_we_compute(family, is_patterned, tmp_path, new_base, new_facts):
    patterns = {}
    if is_patterned:
        name = new_facts(family).sites[1].name
        patterns = {"rank_pattern": {name: 7}, "alpha_pattern": {name.rpartition(".")[2]: 3, name: 11}}
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM", use_rslora=is_patterned, **patterns
    )
    torch.manual_seed(1)
    stock = get_peft_model(new_base(family), config)
    with torch.no_grad():
        for name, parameter in stock.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)  # zeros would make every reader right
    stock.save_pretrained(tmp_path)
    # Loaded again: saving sorts alpha_pattern, whose first match counts, so peft may disagree with itself.
    stock = PeftModel.from_pretrained(new_base(family), tmp_path)
    model = RoutedModel(new_base(family))
    effect = peft_files.read(tmp_path)
    model.check(effect)
    assert (theirs(stock) - ours(model, effect)).abs().max() < 1e-5
    assert (theirs(stock) - ours(model, None)).abs().max() > 1e-2


def test_what_stock_peft_wrote_in_bf16_is_read_into_fp32(tmp_path, new_base):
    stock = get_peft_model(new_base(), LoraConfig(r=4, target_modules=["q_proj"]))
    stock.save_pretrained(tmp_path)
    weights = tmp_path / peft_files.WEIGHTS
    save_file({k: t.bfloat16() for k, t in load_file(weights).items()}, weights)
    assert {t.dtype for t in peft_files.read(tmp_path).a.values()} == {torch.float32}


@pytest.mark.parametrize(("kind", "config"), [("prompt", PromptTuningConfig), ("prefix", PrefixTuningConfig)])
def test_virtual_tokens_that_stock_peft_wrote_we_compute(kind, config, tmp_path, new_base):
    stock = get_peft_model(new_base(), config(task_type="CAUSAL_LM", num_virtual_tokens=4)).eval()
    with torch.no_grad():
        for name, parameter in stock.named_parameters():
            if "prompt_encoder" in name:
                parameter.normal_(0, 0.5)
    stock.save_pretrained(tmp_path)
    effect = peft_files.read(tmp_path)
    assert isinstance(effect, SoftPrompt if kind == "prompt" else KVPrefix)
    model = RoutedModel(new_base())
    model.check(effect)
    assert (theirs(stock) - ours(model, effect)).abs().max() < 1e-5
    assert (theirs(stock) - ours(model, None)).abs().max() > 1e-2


class Fixed:
    """A method that has learned one effect."""

    base_precision = "bf16"

    def __init__(self, effect, config):
        self._effect, self._config = effect, config

    def effect(self):
        return self._effect

    def peft_config(self):
        return self._config


@pytest.mark.parametrize("kind", ["rank 4", "prompt", "prefix"])
def test_what_is_written_is_what_is_read(kind, tmp_path, new_facts, new_effects):
    effect = new_effects(new_facts())[kind]
    config = {
        "rank 4": {"peft_type": "LORA", "r": 4, "lora_alpha": 8.0},
        "prompt": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4},
        "prefix": {"peft_type": "PREFIX_TUNING", "num_layers": 2, "num_attention_heads": 2, "token_dim": 32},
    }[kind]
    peft_files.write(Fixed(effect, config), tmp_path / "adapter", "a-base")
    peft_files.pack(tmp_path / "adapter", tmp_path / "adapter.zip")
    for again in (peft_files.read(tmp_path / "adapter"), peft_files.read_zip(tmp_path / "adapter.zip")):
        assert type(again) is type(effect)
        for field, value in vars(effect).items():
            here = getattr(again, field)
            if isinstance(value, torch.Tensor):
                assert torch.equal(here, value)
            elif field in {"a", "b"}:
                assert here.keys() == value.keys()
                assert all(torch.equal(here[site], value[site]) for site in value)
            else:
                assert here == value


def test_a_layer_of_rank_0_is_left_out(tmp_path):
    effect = LowRank(
        {"x.q": torch.ones(2, 5), "x.v": torch.ones(0, 5)},
        {"x.q": torch.ones(7, 2), "x.v": torch.ones(7, 0)},
        {"x.q": 1.0, "x.v": 1.0},
    )
    peft_files.write(Fixed(effect, {"peft_type": "LORA", "r": 2, "lora_alpha": 2}), tmp_path, "a-base")
    assert peft_files.read(tmp_path).a.keys() == {"x.q"}


@pytest.fixture
def adapter(tmp_path, new_facts, new_lora):
    """A good adapter's folder."""
    folder = tmp_path / "adapter"
    peft_files.write(new_lora(new_facts()), folder, "a-base")
    return folder


def test_the_folder_holds_a_config_weights_and_a_card(adapter):
    assert sorted(p.name for p in adapter.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((adapter / peft_files.CONFIG).read_text())
    assert (config["peft_type"], config["task_type"]) == ("LORA", "CAUSAL_LM")
    assert (config["base_model_name_or_path"], config["inference_mode"]) == ("a-base", True)
    assert peft.PeftConfig.from_pretrained(adapter).lora_alpha == 8.0
    assert 'base_model: "a-base"' in (adapter / "README.md").read_text()


def test_equal_adapters_are_packed_into_equal_bytes(adapter, tmp_path, new_facts, new_lora):
    again = tmp_path / "again"
    peft_files.write(new_lora(new_facts()), again, "a-base")
    zips = tmp_path / "1.zip", tmp_path / "2.zip"
    peft_files.pack(adapter, zips[0])
    (again / "README.md").touch()
    peft_files.pack(again, zips[1])
    assert zips[0].read_bytes() == zips[1].read_bytes()
    with zipfile.ZipFile(zips[0]) as archive:
        assert {m.compress_type for m in archive.infolist()} == {zipfile.ZIP_STORED}
        archive.extractall(tmp_path / "out")
    assert peft_files.read(tmp_path / "out").a.keys() == peft_files.read(adapter).a.keys()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"peft_type": "IA3"}, "'IA3' cannot be worn"),
        ({"peft_type": ["LORA"]}, "cannot be worn"),
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "all"}, "bias 'all'"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"megatron_config": {"a": 1}}, "megatron_config"),
        ({"use_qalora": True}, "use_qalora"),
        ({"a_variant_of_tomorrow": True}, "a_variant_of_tomorrow"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"modules_to_save": ["lm_head"]}, "lm_head"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'"),
        ({"lora_alpha": True}, "lora_alpha is True"),
        ({"lora_dropout": 1}, "lora_dropout 1.0"),
        ({"alpha_pattern": {"(a+)+": 3}}, "more than a layer's name"),
        ({"alpha_pattern": [1]}, "alpha_pattern is a list"),
    ],
)
def test_a_config_that_means_more_than_an_effect_is_refused(change, reason, adapter):
    path = adapter / peft_files.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=reason.replace("(", r"\(")):
        peft_files.read(adapter)


@pytest.mark.parametrize(
    "content", [b"\xff", b"{", b"[]", b'{"peft_type": "LORA", "lora_alpha": NaN}', b"[" * 100_000], ids=range(5)
)
def test_a_config_that_is_not_a_json_object_is_refused(content, adapter):
    (adapter / peft_files.CONFIG).write_bytes(content)
    with pytest.raises(ValueError, match=peft_files.CONFIG):
        peft_files.read(adapter)


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({f"{Q}.lora_A.weight": None}, "missing of .*q_proj"),
        ({f"{Q}.lora_B.weight": torch.zeros(64, 9)}, "share no rank"),
        ({f"{Q}.lora_A.weight": torch.full((4, 64), float("inf"))}, "NaN or infinity"),
        ({f"{Q}.lora_A.weight": torch.zeros(4, 64, dtype=torch.int8)}, "a matrix of floats"),
        ({f"{Q}.lora_A.weight": torch.zeros(4)}, "a matrix of floats"),
        ({f"{Q}.lora_magnitude_vector": torch.zeros(1, 64)}, "a vector of floats"),
        ({f"{Q}.lora_magnitude_vector": torch.zeros(64)}, "without it none; not so .*q_proj"),
        ({"base_model.model.lm_head.weight": torch.zeros(99, 64)}, "not understood: .*lm_head"),
        ({"base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(4, 99)}, "missing of .*embed_tokens"),
        ({"base_model.model.model.embed_tokens.lora_embedding_C": torch.zeros(4, 99)}, "not understood"),
    ],
)
def test_tensors_that_are_not_a_low_rank_adapter_are_refused(change, reason, adapter):
    path = adapter / peft_files.WEIGHTS
    tensors = {name: t for name, t in (load_file(path) | change).items() if t is not None}
    save_file(tensors, path)
    with pytest.raises(ValueError, match=reason):
        peft_files.read(adapter)


def test_weights_that_are_no_safetensors_are_refused(adapter):
    (adapter / peft_files.WEIGHTS).write_bytes(b"PK\x03\x04 not a tensor in sight")
    with pytest.raises(ValueError, match="not a safetensors file"):
        peft_files.read(adapter)


def test_a_pickle_is_never_read(adapter):
    (adapter / peft_files.WEIGHTS).rename(adapter / "adapter_model.bin")
    with pytest.raises(ValueError, match="pickle"):
        peft_files.read(adapter)


def test_a_folder_that_lacks_a_file_is_refused(adapter):
    (adapter / peft_files.CONFIG).unlink()
    with pytest.raises(ValueError, match=r"no adapter_config\.json"):
        peft_files.read(adapter)


def test_a_prefix_of_another_shape_than_it_says_is_refused(tmp_path, new_facts, new_effects):
    config = {"peft_type": "PREFIX_TUNING", "num_layers": 3, "num_attention_heads": 2, "token_dim": 32}
    peft_files.write(Fixed(new_effects(new_facts())["prefix"], config), tmp_path, "a-base")
    with pytest.raises(ValueError, match="128 wide"):
        peft_files.read(tmp_path)


def zipped(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def test_a_zip_is_read_in_memory_and_its_other_members_are_not_looked_at(adapter, tmp_path):
    members = [(p.name, p.read_bytes()) for p in adapter.iterdir()]
    path = zipped(tmp_path / "a.zip", [*members, ("../../escaped", b"!"), ("adapter_model.bin", b"pickle")])
    assert peft_files.read_zip(path).a.keys() == peft_files.read(adapter).a.keys()
    assert not list(tmp_path.parent.glob("**/escaped"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_that_is_none_lacks_a_member_has_it_twice_or_is_a_bomb_is_refused(adapter, tmp_path, monkeypatch):
    config, weights = ((name, (adapter / name).read_bytes()) for name in (peft_files.CONFIG, peft_files.WEIGHTS))
    (tmp_path / "none.zip").write_bytes(b"not a zip")
    with pytest.raises(ValueError, match="not a readable zip"):
        peft_files.read_zip(tmp_path / "none.zip")
    with pytest.raises(ValueError, match=r"0 members named adapter_model\.safetensors"):
        peft_files.read_zip(zipped(tmp_path / "lacks.zip", [config]))
    with pytest.raises(ValueError, match=r"2 members named adapter_config\.json"):
        peft_files.read_zip(zipped(tmp_path / "twice.zip", [config, config, weights]))
    monkeypatch.setitem(peft_files.LIMITS, peft_files.WEIGHTS, 1000)
    with pytest.raises(ValueError, match="unfolds to more than 1000 bytes"):
        peft_files.read_zip(zipped(tmp_path / "bomb.zip", [config, weights]))
