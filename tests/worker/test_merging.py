"""A downloaded adapter becomes part of its base: what the merged folder says is what base and adapter say."""

import pytest
import torch
from tiny_job import attempt, make_assignment
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.adapter_files import read_zip
from core.base.load import open_base
from core.model import RoutedModel, Rows
from core.routing import Routing
from core.settings import Settings
from worker.merging import merge_adapter

IDS = [5, 9, 17, 30, 8]


def said_by(entry, cache, precision, effect):
    base = open_base(entry, cache_dir=cache, device="cpu", precision="fp32", base_precision=precision)
    model = RoutedModel(base.model)
    with torch.inference_mode(), model.wearing(Routing.of_rows([effect])):
        return model.logits(model(Rows.of([IDS])))


@pytest.mark.parametrize("precision", ["bf16", "nf4"])
def test_the_merged_model_says_what_base_and_adapter_say(precision, tiny_entry, tmp_path):
    assignment = make_assignment(tmp_path / "job", tiny_entry, method={"base_precision": precision})
    adapter = attempt(assignment)[1][-1].adapter
    settings = Settings(
        data_dir=tmp_path, base_models={tiny_entry.id: tiny_entry.source}, default_base_model=tiny_entry.id
    )
    merge_adapter(settings, tiny_entry.id, adapter, tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.no_grad():
        merged = model(torch.tensor([IDS])).logits[0]
    effect = read_zip(adapter)
    expected = said_by(tiny_entry, settings.cache_dir, precision, effect)
    # Weights of up to 1, rounded once to bf16.
    assert (merged - expected).abs().max() < 5e-2
    assert (merged - said_by(tiny_entry, settings.cache_dir, precision, None)).abs().max() > 0.1
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template


def test_what_has_no_weights_to_merge_and_a_folder_that_is_there_are_refused(tiny_entry, tmp_path):
    settings = Settings(
        data_dir=tmp_path, base_models={tiny_entry.id: tiny_entry.source}, default_base_model=tiny_entry.id
    )
    with pytest.raises(ValueError, match="is there already"):
        merge_adapter(settings, tiny_entry.id, tmp_path / "a.zip", tmp_path)
    (tmp_path / "a.zip").write_bytes(b"no zip")
    with pytest.raises(ValueError, match="not a readable zip"):
        merge_adapter(settings, tiny_entry.id, tmp_path / "a.zip", tmp_path / "merged")
