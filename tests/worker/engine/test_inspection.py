"""A stranger's adapter, from its file to a row of the engine: served as stock peft computes it."""

import io
import json
import re
import zipfile

import pytest
import torch
from peft import (
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load, save

from core import peft_files
from core.blobs import MissingBlob
from core.effects import SoftPrompt
from core.imports import MAX_RANK
from core.model import Rows
from core.peft_files import CONFIG, WEIGHTS
from core.routing import Routing
from core.specs.generation import AdapterRef
from core.specs.inspection import InspectSpec
from tests.worker.engine.conftest import BASE
from worker.engine.inspection import Inspector
from worker.engine.intake import Refused

WORDS = [5, 17, 80, 3, 42, 9, 61, 33, 12, 7, 28]
ABOUT = {
    "base_model": BASE,
    "base_precision": "bf16",
    "base_revision_sha256": "1" * 64,
    "chat_template_sha256": "2" * 64,
    "computed_in": "fp32",
}
CONFIGS = {
    "LORA": lambda _: LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM"),
    "LORA, patterns": lambda _: LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=True,
        target_modules=["q_proj", "v_proj", "down_proj"],
        layers_to_transform=[1],
        rank_pattern={"v_proj": 7},
        alpha_pattern={"q_proj": 3},
        task_type="CAUSAL_LM",
    ),
    "PROMPT_TUNING": lambda _: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "P_TUNING": lambda _: PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=8),
    "PREFIX_TUNING": lambda _: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
}


def stock(new_base, kind):
    """A model that stock peft has wrapped, in which everything that is learned tells."""
    torch.manual_seed(3)
    wrapped = get_peft_model(new_base(), CONFIGS[kind](None)).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name or "prompt_encoder" in name:
                parameter.normal_(0, 0.3)
    return wrapped


def folder_of(wrapped, folder):
    wrapped.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def zipped(files, prefix=""):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, body in files.items():
            archive.writestr(prefix + name, body)
    return content.getvalue()


QUANTISED = {"base_precision": "nf4", "base_quantisation": {"type": "nf4", "block": 64, "double_quant": True}}


@pytest.fixture
def inspected(kitchen, tmp_path, request):
    """inspected(content, **InspectSpec fields): as POST /inspect answers it; of a base in NF4, if so parametrised."""
    about = ABOUT | getattr(request, "param", {})
    inspector = Inspector(kitchen.store, tmp_path / "cache", kitchen.model, about)

    def ask(content, **fields):
        blob = kitchen.store.put_bytes(content)
        return inspector.inspect(InspectSpec(base_model=BASE, file_sha256=blob.sha256, **fields))

    return ask


def members(kitchen, found):
    with zipfile.ZipFile(io.BytesIO(b"".join(kitchen.store.read(found.sha256)))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def fetched(kitchen, found, path):
    return peft_files.read_zip(kitchen.store.fetch(found.sha256, path))


def ours(model, effect):
    words = [-1 - i for i in range(len(effect.prompt))] + WORDS if isinstance(effect, SoftPrompt) else WORDS
    routing = Routing.of_rows([effect])
    with torch.no_grad(), model.wearing(routing):
        rows = Rows.of([words], first_positions=routing.first_positions())
        return model.logits(model(rows))[-len(WORDS) :]


def theirs(model):
    with torch.no_grad():
        return model(torch.tensor([WORDS])).logits[0, -len(WORDS) :]


@pytest.mark.parametrize("prefix", ["", "my-adapter/"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_what_stock_peft_wrote_is_served_as_stock_peft_computes(
    kind, prefix, *, kitchen, inspected, new_base, tmp_path
):
    files = folder_of(stock(new_base, kind), tmp_path / "theirs")
    reference = theirs(PeftModel.from_pretrained(new_base(), tmp_path / "theirs").eval())
    found = inspected(zipped(files, prefix))
    effect = fetched(kitchen, found, tmp_path / "normal.zip")
    here = ours(kitchen.model, kitchen.model.resident(effect))
    assert (here - reference).abs().max() < 1e-5
    assert (ours(kitchen.model, None) - reference).abs().max() > 1e-2
    worn = AdapterRef(id="adapter-x", sha256=found.sha256)
    prompt = (5, 17, 80, 3)
    dressed, bare = kitchen.tell(prompt=prompt, adapter=worn), kitchen.tell(prompt=prompt)
    assert dressed.fin
    assert dressed.error is None
    assert dressed.ids != bare.ids
    assert (found.peft_type, found.parameters) == (
        kind.partition(",")[0],
        sum(t.numel() for t in load(files[WEIGHTS]).values()),
    )


@pytest.mark.parametrize("kind", CONFIGS)
def test_stock_peft_loads_what_an_import_became(kind, *, kitchen, inspected, new_base, tmp_path):
    files = folder_of(stock(new_base, kind), tmp_path / "theirs")
    before = theirs(PeftModel.from_pretrained(new_base(), tmp_path / "theirs").eval())
    again = tmp_path / "again"
    again.mkdir()
    for name, content in members(kitchen, inspected(zipped(files))).items():
        (again / name).write_bytes(content)
    assert (theirs(PeftModel.from_pretrained(new_base(), again).eval()) - before).abs().max() < 1e-6


@pytest.mark.parametrize("inspected", [QUANTISED], indirect=True)
def test_the_same_upload_becomes_the_same_bytes_and_a_whole_manifest(kitchen, inspected, new_base, tmp_path):
    files = folder_of(stock(new_base, "LORA"), tmp_path / "theirs")
    found = inspected(zipped(files), base_precision="nf4")
    assert inspected(zipped(files), base_precision="nf4") == found
    kept = members(kitchen, found)
    assert sorted(kept) == ["README.md", CONFIG, WEIGHTS, "graft.json"]
    manifest = json.loads(kept["graft.json"])
    assert set(manifest["files"]) == {"README.md", CONFIG, WEIGHTS}
    for name, facts in manifest["files"].items():
        assert facts == {"sha256": kitchen.store.put_bytes(kept[name]).sha256, "size_bytes": len(kept[name])}
    assert manifest["origin"] == found.details["origin"] == "import"
    assert manifest["base_model"] == BASE
    assert manifest["base_quantisation"]["type"] == "nf4"
    assert manifest["imported"]["format"] == "peft"
    assert "BitsAndBytesConfig" in kept["README.md"].decode()
    config = json.loads(kept[CONFIG])
    assert (config["base_model_name_or_path"], config["inference_mode"]) == (BASE, True)


@pytest.fixture
def lora(new_base, tmp_path):
    """The files of a good LORA folder: (config, tensors)."""
    files = folder_of(stock(new_base, "LORA"), tmp_path / "theirs")
    return json.loads(files[CONFIG]), load(files[WEIGHTS])


def remade(config, tensors):
    return zipped({CONFIG: json.dumps(config), WEIGHTS: save(tensors)})


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("config", "tensors", "reason"),
    [
        ({}, {f"{Q}.lora_A.weight": torch.ones(4, 63)}, "do not fit a layer of 64 inputs"),
        ({}, {f"{Q}.lora_A.weight": None}, "lora_A or lora_B is missing of"),
        ({}, {f"{Q}.lora_A.weight": torch.full((4, 64), float("nan"))}, "NaN or infinity"),
        ({}, {f"{Q}.lora_A.weight": torch.full((4, 64), 1e5)}, "a weight of size 100000"),
        ({}, {f"{Q}.lora_A.weight": torch.ones(MAX_RANK + 1, 64)}, f"rank {MAX_RANK + 1}; at most"),
        ({}, {f"{Q}.base_layer.weight": torch.ones(2, 2)}, "not understood: .*base_layer"),
        ({}, {"base_model.model.score.weight": torch.ones(2, 64)}, "not understood: .*score"),
        ({}, {f"{Q}.lora_A.weight": torch.ones(4, 64, dtype=torch.float64)}, "dtype F64"),
        ({}, {Q.replace("layers.0", "layers.7") + f".lora_{s}.weight": torch.ones(64, 64) for s in "AB"}, "no layer"),
        ({"peft_type": "IA3"}, {}, "'IA3' cannot be worn"),
        ({"peft_type": None}, {}, "peft_type None cannot be worn"),
        ({"modules_to_save": ["lm_head"]}, {}, "modules_to_save"),
        ({"layer_replication": [[0, 1]]}, {}, "layer_replication"),
        ({"bias": "all"}, {}, "bias"),
        ({"alpha_pattern": {"(a+)+$": 3}}, {}, "more than a layer's name"),
        ({"a_variant_of_tomorrow": True}, {}, "a_variant_of_tomorrow"),
        ({"peft_type": "PROMPT_TUNING"}, {}, "holds prompt_embeddings alone"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_and_nothing_is_kept(
    config, tensors, reason, *, kitchen, inspected, lora
):
    changed = {name: t for name, t in (lora[1] | tensors).items() if t is not None}
    content = remade(lora[0] | config, changed)
    kitchen.store.put_bytes(content)
    before = sorted((kitchen.store.root / "blobs").glob("*/*"))
    with pytest.raises(Refused, match=reason) as refusal:
        inspected(content)
    assert (refusal.value.status, refusal.value.code, refusal.value.param) == (400, "invalid_adapter", "file")
    assert sorted((kitchen.store.root / "blobs").glob("*/*")) == before
    assert inspected(remade(*lora)).peft_type == "LORA"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a zip: zip adapter_config.json and"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "is a pickle"),
        (save({"a": torch.ones(1)}), "zip adapter_config.json and"),
        (zipped({"archive/data.pkl": b"", "archive/version": b"3"}), "torch.load"),
        (zipped({CONFIG: b"{}", WEIGHTS: b"\x80\x02"}), "has 2 bytes"),
        (zipped({CONFIG: b"[]", WEIGHTS: save({"a": torch.ones(1)})}), "an object is expected"),
        (zipped({CONFIG: b'{"r": 1, "r": 2}', WEIGHTS: save({"a": torch.ones(1)})}), "stands twice"),
        (zipped({CONFIG: b"[" * 100_000, WEIGHTS: save({"a": torch.ones(1)})}), "nested deeper"),
    ],
    ids=range(8),
)
def test_what_is_no_peft_zip_is_refused(content, reason, inspected):
    with pytest.raises(Refused, match=reason):
        inspected(content)


def test_a_file_that_is_not_in_the_store_is_refused(kitchen, tmp_path):
    inspector = Inspector(kitchen.store, tmp_path / "cache", kitchen.model, ABOUT)
    with pytest.raises(Refused, match="not in the store") as refusal:
        inspector.inspect(InspectSpec(base_model=BASE, file_sha256="0" * 64))
    assert isinstance(refusal.value.__cause__, MissingBlob)
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_config_and_tensors_disagree_about_is_read_off_the_tensors(kitchen, inspected, lora, tmp_path):
    config, tensors = lora
    lies = {"base_model_name_or_path": "evil/other-base", "target_modules": "(a+)+$", "r": 9, "task_type": "SEQ_CLS"}
    found = inspected(remade(config | lies, tensors))
    assert len(found.warnings) == 2
    assert "evil/other-base" in found.warnings[0]
    kept = json.loads(members(kitchen, found)[CONFIG])
    assert kept["r"] == 4
    assert kept["target_modules"] == sorted(
        {m[1] for n in tensors if (m := re.match(r"base_model\.model\.(.+)\.l", n))}
    )
    assert fetched(kitchen, found, tmp_path / "x.zip").a.keys() == set(kept["target_modules"])
    same = inspected(remade(config | {"base_model_name_or_path": f"Someone/{BASE.upper()}"}, tensors))
    assert same.warnings == ()


def test_a_file_of_microsofts_lora_is_served_as_its_grouped_product(new_kitchen, tmp_path):
    kitchen = new_kitchen(family="gpt2")
    inspector = Inspector(kitchen.store, tmp_path / "cache", kitchen.model, ABOUT)
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for layer in range(2):
        tensors[f"h.{layer}.attn.c_attn.lora_A"] = torch.randn(4, 64, generator=generator)
        tensors[f"h.{layer}.attn.c_attn.lora_B"] = torch.randn(128, 2, generator=generator) * 0.1
    blob = kitchen.store.put_bytes(save(tensors))
    merged = {"r": 2, "alpha": 3, "enable": ("q", "v")}
    found = inspector.inspect(
        InspectSpec(base_model=BASE, file_sha256=blob.sha256, format="loralib", merged_linear=merged)
    )
    effect = fetched(kitchen, found, tmp_path / "x.zip")
    x = torch.randn(5, 64, generator=generator)
    a, b = (tensors[f"h.1.attn.c_attn.lora_{side}"] for side in "AB")
    grouped = torch.nn.functional.conv1d((x @ a.T).T[None], b[..., None], groups=2)[0].T
    q, v = grouped.split(64, 1)
    wanted = torch.cat([q, torch.zeros_like(q), v], 1) * 3 / 2
    site = "transformer.h.1.attn.c_attn"
    here = x @ effect.a[site].T @ effect.b[site].T * effect.scale[site]
    assert (here - wanted).abs().max() < 1e-5
    worn = AdapterRef(id="adapter-x", sha256=found.sha256)
    assert kitchen.tell(prompt=(5, 17, 80), adapter=worn).ids != kitchen.tell(prompt=(5, 17, 80)).ids
    pickled = io.BytesIO()
    torch.save({"model_state_dict": tensors}, pickled)
    pickle = kitchen.store.put_bytes(pickled.getvalue())
    with pytest.raises(Refused, match="model_state_dict"):
        inspector.inspect(
            InspectSpec(base_model=BASE, file_sha256=pickle.sha256, format="loralib", merged_linear=merged)
        )
