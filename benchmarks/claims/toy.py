"""A language model small enough to be pre-trained here, which knows eight tasks and does them when it is told to.

A Llama of 2 layers, width 64, 4 heads on 2, and 80 words: 24 of content, 16 labels (two for each task), 24 of
instruction (three for each task), one separator. A task maps each content word to 0 or 1; a row is five content words,
the separator, and the label of the majority. Pre-training puts before them either the task's instruction or its two
labels in any order. Without either the model cannot know the task: an adapter must tell it (a *seen* task), or teach
it a map under the labels of another (a *new* task).
"""

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from core.base.facts import BaseFacts, facts_of
from core.data.batches import Corpus
from core.data.tokens import TokenRow
from core.model import RoutedModel
from core.reading import with_reading
from core.specs.template import Layout, Template

TASKS, CONTENT, WORDS = 8, 24, 80
FIRST_LABEL, FIRST_INSTRUCTION, SEPARATOR = 24, 40, 64
LENGTH = 5  # content words of a row
STEPS, WARMUP, BATCH, RATE = 1800, 100, 64, 2e-3


@dataclass(frozen=True)
class Task:
    """One of the eight maps, answered with the labels of one of the eight tasks."""

    map: int
    labels: int

    @classmethod
    def seen(cls, task: int) -> "Task":
        """As pre-training had it."""
        return cls(task, task)

    @classmethod
    def new(cls, task: int) -> "Task":
        """A map under labels that it never stood with."""
        return cls(task, (task + 3) % TASKS)

    @property
    def label_words(self) -> list[int]:
        """Its two answers."""
        return [FIRST_LABEL + 2 * self.labels, FIRST_LABEL + 2 * self.labels + 1]

    @property
    def instruction(self) -> list[int]:
        """The three words that name its map."""
        return [FIRST_INSTRUCTION + 3 * self.map + place for place in range(3)]


@dataclass(frozen=True, eq=False)
class Toy:
    """The pre-trained model, frozen."""

    model: RoutedModel
    facts: BaseFacts


def opened(cache: Path) -> Toy:
    """Pre-trained once, then read from cache."""
    return worn(pretrained(cache))


def worn(base: LlamaForCausalLM) -> Toy:
    """A base as methods see it."""
    facts = dataclasses.replace(facts_of(base), encode=read_words)
    model = RoutedModel(base)
    return Toy(model, with_reading(facts, model))


def pretrained(cache: Path) -> LlamaForCausalLM:
    """The model itself. What is cached belongs to this file as it stands."""
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    path = cache / f"toy-{version}.safetensors"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        save_file({name: t.contiguous() for name, t in _pretrain().state_dict().items()}, path)
    base = _untrained()
    base.load_state_dict(load_file(path))
    base.train(mode=False)
    return base


def corpus(task: Task, count: int, seed: int, template: Template | None = None) -> Corpus:
    """Rows of content, separator, answer, within a template; the answer alone is learned. No instruction."""
    generator = torch.Generator().manual_seed(seed)
    content, answers = _draw(torch.full((count,), task.map), torch.full((count,), task.labels), generator)
    questions = torch.cat([content, torch.full((count, 1), SEPARATOR)], 1).tolist()
    layout = Layout((), ()) if template is None else template.layout(read_words)
    rows = [[*layout.around(q), a] for q, a in zip(questions, answers.tolist(), strict=True)]
    learned = np.arange(len(rows[0])) == len(rows[0]) - 1
    return Corpus.of(TokenRow(line, np.array(row, np.int32), learned) for line, row in enumerate(rows))


def read_words(text: str) -> list[int]:
    """The toy's tokeniser: its words are numbers."""
    return [int(word) for word in text.split()]


def _maps() -> Tensor:
    """[8, 24] of 0 and 1: each task's, half of its words of either class."""
    generator = torch.Generator().manual_seed(0)
    return torch.stack([(torch.randperm(CONTENT, generator=generator) < CONTENT // 2).long() for _ in range(TASKS)])


def _draw(maps: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Content [n, 5] and answers [n] of rows with these maps [n] and labels [n]."""
    content = torch.randint(CONTENT, (len(maps), LENGTH), generator=generator)
    ones = _maps()[maps[:, None], content].sum(1)
    return content, FIRST_LABEL + 2 * labels + (2 * ones > LENGTH).long()


def _texts(count: int, head: str, generator: torch.Generator) -> Tensor:
    """[count, T] rows of all tasks behind an 'instruction', the two 'labels', or 'none'."""
    tasks = torch.randint(TASKS, (count,), generator=generator)
    content, answers = _draw(tasks, tasks, generator)
    flip = torch.randint(2, (count, 1), generator=generator)
    heads = {
        "instruction": FIRST_INSTRUCTION + 3 * tasks[:, None] + torch.arange(3),
        "labels": FIRST_LABEL + 2 * tasks[:, None] + torch.cat([flip, 1 - flip], 1),
        "none": torch.empty(count, 0, dtype=torch.long),
    }
    return torch.cat([heads[head], content, torch.full((count, 1), SEPARATOR), answers[:, None]], 1)


def _untrained() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=WORDS,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
        )
    )


def _pretrain() -> LlamaForCausalLM:
    """Next-word loss on whole texts, half of either head; a rise to the peak rate, then a straight line down."""
    model, generator = _untrained(), torch.Generator().manual_seed(1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    for step in range(1, STEPS + 1):
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(step / WARMUP, (STEPS + 1 - step) / (STEPS - WARMUP))
        for head in ("instruction", "labels"):
            ids = _texts(BATCH // 2, head, generator)
            logits = model(ids).logits
            loss = cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()) / 2
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimiser.step()
        optimiser.zero_grad()
    return model


def untrained_facts() -> BaseFacts:
    """The shape alone."""
    return facts_of(_untrained())


def accuracy(base: LlamaForCausalLM, *, head: str) -> float:
    """Of the answers of 1,000 texts. The base must not be worn yet."""
    texts = _texts(1000, head, torch.Generator().manual_seed(2))
    with torch.no_grad():
        guessed = base(texts[:, :-1]).logits[:, -1].argmax(-1)
    return float((guessed == texts[:, -1]).float().mean())
