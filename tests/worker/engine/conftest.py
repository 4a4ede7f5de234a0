"""A tiny engine in this process: random model, real adapters in a real store, a real tokeniser."""

import itertools
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import structlog
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from core import peft_files
from core.blobs import FolderStore
from core.model import RoutedModel
from core.specs.generation import AdapterRef, Frame, GenerateSpec, QueueSpec, SamplingSpec
from worker.engine.engine import Engine
from worker.engine.intake import Intake
from worker.engine.process import configure_logs
from worker.engine.residency import loader

BASE = "tiny"
CONTEXT = 64
STOP_ID = 4
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(autouse=True)
def _plain_logs():
    configure_logs()
    yield
    structlog.reset_defaults()


def make_tokenizer(more: str = "") -> PreTrainedTokenizerFast:
    """One token for each of 76 characters, and of those in `more`; ids past those embed but say nothing."""
    special = ["<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>"]
    characters = string.ascii_letters + string.digits + "ĠĊ.,:?!'-_/" + more
    vocabulary = {token: i for i, token in enumerate([*special, *characters])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<pad>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = CHATML
    return tokenizer


@dataclass
class Kitchen:
    """Everything an engine needs, and ways to ask it."""

    model: RoutedModel
    store: FolderStore
    cache: Path
    intake: Intake
    engine: Engine
    new_lora: Callable
    facts: object
    counter: itertools.count = field(default_factory=itertools.count)

    def publish(self, *, damage: Callable[[bytes], bytes] = lambda b: b, **lora: object) -> AdapterRef:
        """A LoRA trained elsewhere, put into the store as a job would."""
        folder = self.cache / f"made-{next(self.counter)}"
        peft_files.write(self.new_lora(self.facts, **lora), folder, BASE)
        peft_files.pack(folder, folder.with_suffix(".zip"))
        blob = self.store.put_bytes(damage(folder.with_suffix(".zip").read_bytes()))
        return AdapterRef(id=f"adapter-{blob.sha256[:6]}", sha256=blob.sha256)

    def ask(self, *, prompt="hello", adapter=None, emit=None, **sampling):
        """Submits; the answer collects its frames."""
        ids = prompt if isinstance(prompt, tuple) else None
        others = ("offset", "with_logprob", "top_logprobs", "json_schema", "read")
        asked = {name: sampling.pop(name) for name in others if name in sampling}
        queue = sampling.pop("queue", QueueSpec(tenant="t"))
        sampling = {"temperature": 0.0, "max_tokens": 12} | sampling
        spec = GenerateSpec(
            request_id=f"r-{next(self.counter)}",
            base_model=BASE,
            adapter=adapter,
            prompt=None if ids else prompt,
            prompt_ids=ids,
            queue=queue,
            sampling=SamplingSpec(**sampling),
            **asked,
        )
        answer = Answer()
        sequence = self.intake.sequence(spec, emit or answer.frames.append)
        answer.key = sequence.key
        self.engine.submit(sequence)
        return answer

    def run(self):
        """Steps until no row is left; loads happen in threads, so idle turns sleep."""
        while not self.engine.is_idle:
            if not self.engine.step():
                self.engine._sleep()

    def tell(self, **asked):
        """One request, alone, to its end."""
        answer = self.ask(**asked)
        self.run()
        return answer


@dataclass
class Answer:
    """What a reader received."""

    frames: list[Frame] = field(default_factory=list)
    key: int = -1

    @property
    def ids(self):
        return [i for f in self.frames for i in f.ids]

    @property
    def text(self):
        return "".join(f.text for f in self.frames)

    @property
    def fin(self):
        return self.frames[-1].fin

    @property
    def error(self):
        return self.frames[-1].error


def make_kitchen(new_base, new_lora, new_facts, folder, *, family="llama", more="", **engine):
    model = RoutedModel(new_base(family))
    store = FolderStore(folder / "blobs")
    context = engine.setdefault("context", CONTEXT)
    stop_ids = frozenset([STOP_ID])
    intake = Intake(make_tokenizer(more), base_model=BASE, context=context, vocabulary=99, stop_ids=stop_ids)
    load = loader(store, folder / "cache", model.resident)
    settings = {"rows": 8, "adapter_memory_bytes": 1 << 30, "token_budget": 16} | engine
    return Kitchen(model, store, folder, intake, Engine(model, load, **settings), new_lora, new_facts(family))


@pytest.fixture
def new_kitchen(new_base, new_lora, new_facts, tmp_path):
    """new_kitchen(family="llama", more="", **Engine arguments)."""
    return lambda **asked: make_kitchen(new_base, new_lora, new_facts, tmp_path, **asked)


@pytest.fixture
def kitchen(new_kitchen):
    """A tiny Llama, eight rows, prompts of sixteen tokens a step."""
    return new_kitchen()
