"""An engine packs its base where it is told to, or where memory is plentiful, and never else."""

import pytest

from core.model import RoutedModel
from core.packed_model import packed_bytes
from core.settings import Settings
from worker.engine import layout


def laid_out(new_base, **settings):
    """The model, and what lay_out said of it."""
    model = RoutedModel(new_base("llama"))
    told = layout.lay_out(model, Settings(device="cpu", **settings))
    assert told == all(site.packed is not None or site.siblings is not None for site in model.sites.values())
    return model, told


@pytest.mark.parametrize(("copies", "packs"), [(layout.SHARE, True), (layout.SHARE - 1, False)])
def test_auto_packs_where_four_copies_fit_into_free_memory(copies, packs, new_base, monkeypatch):
    needed = packed_bytes(RoutedModel(new_base("llama")))
    monkeypatch.setattr(layout, "host_bytes", lambda: copies * needed)
    assert laid_out(new_base)[1] == packs


@pytest.mark.parametrize("told", [True, False])
def test_a_setting_decides_whatever_memory_there_is(told, new_base, monkeypatch):
    monkeypatch.setattr(layout, "host_bytes", lambda: 0 if told else 1 << 60)
    assert laid_out(new_base, engine_packed=told)[1] == told


def test_a_base_that_cannot_be_packed_is_left_as_it_is(new_base):
    model = RoutedModel(new_base("llama").bfloat16())
    assert packed_bytes(model) == 0
    assert not layout.lay_out(model, Settings(device="cpu", engine_packed=True))


def test_packed_bytes_are_those_of_the_layers_and_the_head(new_base):
    model = RoutedModel(new_base("llama"))
    weights = [site.base.weight for site in model.sites.values()] + [model.head.weight]
    assert packed_bytes(model) == sum(4 * w.numel() for w in weights)
