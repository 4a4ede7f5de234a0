"""Ensembles on disk: a folder for each member that stock PEFT loads, and an index; a zip may hold anything else."""

import json
import zipfile

import pytest
import torch
from peft import PeftModel

from core import adapter_files, peft_files
from core.effects import Ensemble, SoftPrompt
from core.model import RoutedModel, Rows
from core.routing import Routing

CONFIG = {
    "peft_type": "PROMPT_TUNING",
    "num_virtual_tokens": 3,
    "token_dim": 64,
    "num_transformer_submodules": 1,
    "prompt_tuning_init": "RANDOM",
}


class Learned:
    """A method that has learned this."""

    base_precision = "bf16"

    def __init__(self, effect):
        self._effect = effect

    def effect(self):
        return self._effect

    def peft_config(self):
        return CONFIG


@pytest.fixture
def ensemble():
    draw = torch.Generator().manual_seed(3)
    return Ensemble(tuple(SoftPrompt(torch.randn(3, 64, generator=draw) * 0.4) for _ in range(3)))


@pytest.fixture
def folder(ensemble, tmp_path):
    adapter_files.write(Learned(ensemble), tmp_path / "adapter", "a-base")
    return tmp_path / "adapter"


def packed(folder):
    path = folder.with_suffix(".zip")
    peft_files.pack(folder, path)
    return path


def same(left, right):
    return all(torch.equal(a.prompt, b.prompt) for a, b in zip(left.members, right.members, strict=True))


def test_what_is_written_is_what_is_read_in_the_members_order(folder, ensemble):
    assert same(adapter_files.read(folder), ensemble)
    assert same(adapter_files.read_zip(packed(folder)), ensemble)
    assert not same(Ensemble(ensemble.members[::-1]), ensemble)
    index = json.loads((folder / adapter_files.INDEX).read_text())
    assert index == {"format": 1, "members": 3, "vote": "majority", "tie": "mean_logprob"}
    assert adapter_files.first_folder(folder) == folder / "member-0"


def test_a_single_adapter_is_written_and_read_as_before(ensemble, tmp_path):
    one = Learned(ensemble.members[1])
    adapter_files.write(one, tmp_path / "here", "a-base")
    peft_files.write(one, tmp_path / "there", "a-base")
    assert packed(tmp_path / "here").read_bytes() == packed(tmp_path / "there").read_bytes()
    assert torch.equal(adapter_files.read(tmp_path / "here").prompt, ensemble.members[1].prompt)
    assert torch.equal(adapter_files.read_zip(tmp_path / "here.zip").prompt, ensemble.members[1].prompt)
    assert adapter_files.first_folder(tmp_path / "here") == tmp_path / "here"


def test_equal_ensembles_are_packed_into_equal_bytes(folder, ensemble, tmp_path):
    adapter_files.write(Learned(ensemble), tmp_path / "again", "a-base")
    assert packed(folder).read_bytes() == packed(tmp_path / "again").read_bytes()


def test_stock_peft_loads_each_member_and_says_what_we_say(folder, ensemble, new_base):
    model = RoutedModel(new_base())
    words = [5, 17, 33, 8]
    for number, member in enumerate(ensemble.members):
        stock = PeftModel.from_pretrained(new_base(), folder / f"member-{number}").eval()
        with torch.no_grad():
            theirs = stock(input_ids=torch.tensor([words])).logits[0, -len(words) :]
            with model.wearing(Routing.of_rows([member])):
                ours = model.logits(model(Rows.of([member.layout.around(words)])))[-len(words) :]
        assert (theirs - ours).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        (b"[]", "not understood"),
        (b"\xff", "not JSON"),
        (b"{" * 5000, "more than 4096 bytes"),
        ({"format": 2}, "not understood"),
        ({"vote": "mean"}, "not understood"),
        ({"folder": "../.."}, "not understood"),
        ({"members": 0}, "0 members"),
        ({"members": 17}, "17 members"),
        ({"members": True}, "True members"),
        ({"members": "3"}, "'3' members"),
        ({"members": 4}, r"adapter_config\.json"),
    ],
)
def test_an_index_that_says_something_else_is_refused(folder, index, reason):
    if isinstance(index, dict):
        index = json.dumps(json.loads((folder / adapter_files.INDEX).read_text()) | index).encode()
    (folder / adapter_files.INDEX).write_bytes(index)
    with pytest.raises(ValueError, match=reason):
        adapter_files.read(folder)
    with pytest.raises(ValueError, match=reason):
        adapter_files.read_zip(packed(folder))


def test_only_the_members_that_the_index_counts_are_looked_at(folder, ensemble, tmp_path):
    path = packed(folder)
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("member-3/adapter_config.json", "../../escaped", "/member-0/adapter_config.json", "x.bin"):
            archive.writestr(name, b"!")
    assert same(adapter_files.read_zip(path), ensemble)
    assert not list(tmp_path.parent.glob("**/escaped"))


def test_members_unfold_to_no_more_together_than_one_adapter_may(folder, monkeypatch):
    path = packed(folder)
    monkeypatch.setattr(peft_files, "LIMITS", {peft_files.CONFIG: 1000, peft_files.WEIGHTS: 1000})
    with pytest.raises(ValueError, match="the ensemble unfolds to"):
        adapter_files.read_zip(path)
    # Negative control: each member by itself is small enough.
    assert peft_files.read_zip(path, "member-0/").prompt.shape == (3, 64)
    monkeypatch.setitem(peft_files.LIMITS, peft_files.WEIGHTS, 100_000)
    adapter_files.read_zip(path)


def test_what_is_no_zip_is_refused(tmp_path):
    (tmp_path / "none.zip").write_bytes(b"not a zip")
    with pytest.raises(ValueError, match="not a readable zip"):
        adapter_files.read_zip(tmp_path / "none.zip")
