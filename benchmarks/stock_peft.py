"""What stock transformers and PEFT make of a base model and an adapter folder. Knows nothing of Graft.

Run in an environment of its own: python stock_peft.py BASE_FOLDER REQUEST.json ANSWER.json. The request names adapter
folders (null is the bare base) and prompts as token ids; the answer holds, for each, the logits after the prompt and
the tokens that greedy decoding goes on with. One unpadded row at a time, fp32, each step from the start: slow, plain.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


def main(base_folder: str, request: str, answer: str) -> None:
    """Reads the request, writes the answer."""
    torch.set_num_threads(2)
    rows = json.loads(Path(request).read_text())
    Path(answer).write_text(json.dumps([row_of(base_folder, row) for row in rows]))


def row_of(base_folder: str, row: dict[str, Any]) -> dict[str, Any]:
    """One adapter, one prompt."""
    model: Any = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32, local_files_only=True)
    model.train(mode=False)
    ids, stops = list(row["ids"]), set(row["stop_ids"])
    if row["adapter"]:
        ids = templated(Path(row["adapter"]), ids)
        model = PeftModel.from_pretrained(model, row["adapter"])
        model.train(mode=False)
    logits: torch.Tensor | None = None
    new: list[int] = []
    with torch.inference_mode():
        while len(new) < row["max_tokens"] and not (new and new[-1] in stops):
            last = model(input_ids=torch.tensor([ids + new])).logits[0, -1].float()
            logits = last if logits is None else logits
            if row["reserved"] and row["adapter"]:
                last = last.clone()
                last[row["reserved"]] = float("-inf")
            new.append(int(last.argmax()))
    assert logits is not None
    return {"logits": logits.tolist(), "ids": new}


def templated(folder: Path, ids: list[int]) -> list[int]:
    """A prompt as its adapter's template wants it: virtual token i is the i-th of the reserved ids."""
    path = folder / "graft_template.json"
    if not path.exists() or json.loads((folder / "adapter_config.json").read_text())["peft_type"] != "TRAINABLE_TOKENS":
        return ids
    template = json.loads(path.read_text())
    reserved = template["token_indices"]
    before, after = ([i if i >= 0 else reserved[-1 - i] for i in template[side]] for side in ("before", "after"))
    return [*before, *ids, *after]


if __name__ == "__main__":
    main(*sys.argv[1:])
