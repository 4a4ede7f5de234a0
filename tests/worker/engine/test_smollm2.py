"""The engine on the real base model."""

from pathlib import Path

import pytest
import torch

from core import peft_files
from core.base.catalogue import entry
from core.base.load import open_base
from core.methods.lora import Lora
from core.model import RoutedModel
from core.settings import EMBEDDED_BASE_MODELS
from core.specs.generation import AdapterRef, ChatMessage, GenerateSpec, SamplingSpec
from core.specs.method import LoraSpec
from tests.worker.engine.conftest import Answer
from worker.engine.engine import Engine
from worker.engine.intake import Intake
from worker.engine.residency import loader

BASE = "smollm2-135m-instruct"
pytestmark = [pytest.mark.smollm2, pytest.mark.xdist_group("smollm2")]


@pytest.fixture(scope="module")
def base():
    """Converted once for all runs of the tests."""
    return open_base(entry(EMBEDDED_BASE_MODELS, BASE), cache_dir=Path(".cache/tests"), device="cpu", precision="fp32")


class Store:
    """Adapters made on the spot, each named by a digest that says its rank."""

    def __init__(self, facts):
        self.facts = facts

    def fetch(self, sha256, target):
        rank = int(sha256, 16)
        lora = Lora(LoraSpec(r=rank), self.facts, generator=torch.Generator().manual_seed(rank))
        with torch.no_grad():
            for b in lora.b:
                b.normal_(0, 0.02, generator=torch.Generator().manual_seed(rank))
        folder = target.parent / f"rank-{rank}"
        peft_files.write(lora, folder, BASE)
        peft_files.pack(folder, target)
        return target


def test_eight_rows_of_base_and_adapters_of_rank_4_8_16_say_together_what_each_says_alone(base, tmp_path):
    model = RoutedModel(base.model)
    engine = Engine(
        model,
        loader(Store(base.facts), tmp_path, model.resident),
        rows=8,
        context=256,
        adapter_memory_bytes=1 << 30,
    )
    intake = Intake(
        base.tokenizer, base_model=BASE, context=256, vocabulary=base.facts.vocabulary, stop_ids=frozenset()
    )

    def ask(i):
        rank = (0, 4, 8, 16)[i % 4]
        spec = GenerateSpec(
            request_id=f"r{i}",
            base_model=BASE,
            adapter=AdapterRef(id=f"rank-{rank}", sha256=f"{rank:064x}") if rank else None,
            messages=(ChatMessage(role="user", content=f"Tell me {i + 1} things about {'trees, ' * i}rivers."),),
            sampling=SamplingSpec(temperature=0, max_tokens=12),
        )
        answer = Answer()
        engine.submit(intake.sequence(spec, answer.frames.append))
        return answer

    def run():
        while not engine.is_idle:
            if not engine.step():
                engine._sleep()

    alone = []
    for i in range(8):
        alone.append(ask(i))
        run()
    together = [ask(i) for i in range(8)]
    run()
    assert [a.ids for a in together] == [a.ids for a in alone]
    assert all(len(a.ids) == 12 for a in alone)
    assert alone[0].text
