"""README.md of an adapter's zip: what it is, code that loads it with stock PEFT, and how Graft serves it."""

import json
from collections.abc import Mapping
from typing import Any

_IMPORTS = "import torch\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer"
_ASK = """\
messages = [{"role": "user", "content": "Hello"}]
prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
with torch.no_grad():
    answer = model.generate(**inputs, max_new_tokens=64, do_sample=False)
print(tokenizer.decode(answer[0], skip_special_tokens=True))"""
_DTYPES = {"bf16": "torch.bfloat16", "fp32": "torch.float32"}
_IN_FRONT = (
    "The virtual tokens stand in front of the row. Ask rows one at a time: stock PEFT puts the padding of a batch "
    "between them and the text."
)
_NOTES = {
    "PREFIX_TUNING": "The keys and values are stored ready to use: no network has to be run to get them.",
    "PROMPT_TUNING": _IN_FRONT,
    "P_TUNING": _IN_FRONT,
    "TRAINABLE_TOKENS": "The virtual tokens are the reserved ids `token_indices` of `adapter_config.json`, in this "
    "order. Stock PEFT does not place them: the row that you give it must hold these ids where the template has its "
    "virtual tokens, and none of them may be generated.",
    "ADALORA": "Layers that lost all their rank are left out; nothing is added there.",
}


def card_of_run(facts: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Of an adapter trained here. facts: its manifest; config: its adapter_config.json."""
    spec = facts["spec"]
    rows = {
        "method": f"`{json.dumps(spec['method'], sort_keys=True)}`",
        "step": f"{facts['step']} ({spec['n_epochs']} epochs in all, {spec['batch_size']} rows a step)",
        **{metric.replace("_", " "): f"{value:.4f}" for metric, value in sorted(facts["metrics"].items())},
    }
    template = spec["method"].get("template")
    return _card(facts, config, rows, template=template)


def card_of_import(facts: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Of an adapter that others made."""
    imported = facts["imported"]
    rows = {"imported": f"from a {imported['format']} file of sha256 `{imported['sha256']}`"}
    for number, warning in enumerate(facts["warnings"], start=1):
        rows[f"warning {number}"] = warning.replace("|", "\\|")
    return _card(facts, config, rows)


def _card(
    facts: Mapping[str, Any], config: Mapping[str, Any], rows: Mapping[str, str], *, template: str | None = None
) -> str:
    kind, base, count = str(facts["peft_type"]), str(facts["base_model"]), int(facts.get("members", 1))
    table = {
        "base model": f"`{base}` (weights sha256 `{facts['base_revision_sha256']}`)",
        "base precision": f"{facts['base_precision']}, computed in {facts['computed_in']}",
        "trained parameters": f"{facts['parameters']:,}",
        **({"members": f"{count}, which answer by majority vote"} if count > 1 else {}),
        **rows,
        "chat template": f"sha256 `{facts['chat_template_sha256']}`",
    }
    notes = [_NOTES[kind]] if kind in _NOTES else []
    if template:
        notes.append(f"The template, in Graft's notation: `{template}`.")
    if config.get("use_dora"):
        notes.append("It is a DoRA: `lora_magnitude_vector` holds the length of each output's weight.")
    paragraphs = "".join(f"\n{note}\n" for note in notes)
    return (
        f"---\nbase_model: {json.dumps(base)}\nlibrary_name: peft\npipeline_tag: text-generation\n---\n\n"
        f"# A {kind} adapter of {base}\n\n| | |\n|---|---|\n"
        + "".join(f"| {label} | {value} |\n" for label, value in table.items())
        + f"\n## With Hugging Face PEFT\n\n```python\n{_code(facts)}\n```\n{paragraphs}"
        + f"\n## With Graft\n\n```sh\n{_curl(facts)}\n```\n\n"
        "The answer's `name` is the model to ask for. All that is known of the adapter stands in `graft.json`.\n"
    )


def _code(facts: Mapping[str, Any]) -> str:
    dtype = _DTYPES[facts["computed_in"]]
    imports, options = _IMPORTS, f"dtype={dtype}"
    if facts["base_precision"] == "nf4":
        imports = imports.replace("AutoTokenizer", "AutoTokenizer, BitsAndBytesConfig")
        options = (
            f"\n    {options},\n    quantization_config=BitsAndBytesConfig(\n        load_in_4bit=True,\n"
            '        bnb_4bit_quant_type="nf4",\n        bnb_4bit_use_double_quant=True,\n'
            f"        bnb_4bit_compute_dtype={dtype},\n    ),\n"
        )
    folder, of_member = ("member-0", ", and in it one member") if facts.get("members", 1) > 1 else (".", "")
    return (
        f"{imports}\n\nBASE = {json.dumps(facts['base_model'])}  # a folder or a hub id that holds this base model\n"
        f'ADAPTER = "{folder}"  # the folder that this zip was unpacked into{of_member}\n\n'
        "tokenizer = AutoTokenizer.from_pretrained(BASE)\n"
        f"base = AutoModelForCausalLM.from_pretrained(BASE, {options})\n"
        f"model = PeftModel.from_pretrained(base, ADAPTER).eval()\n\n{_ASK}"
    )


def _curl(facts: Mapping[str, Any]) -> str:
    return (
        'curl http://127.0.0.1:8000/v1/adapters/import -H "Authorization: Bearer $KEY" \\\n'
        f"  -F file=@adapter.zip -F model={facts['base_model']} -F base_precision={facts['base_precision']}"
    )
