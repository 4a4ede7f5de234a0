"""A job's files to what its trainer takes: a base model, token rows, all or none, and the prompt that it starts from.

Whatever a line is refused for is found before training starts.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from core.adapter_files import read_zip
from core.base.load import OpenBase, open_base
from core.data.amounts import measure
from core.data.batches import Corpus
from core.data.faults import Fault
from core.data.formats import check, read
from core.data.pairs import encode_pairs
from core.data.tokens import TooLongError, encode_all
from core.effects import Effect, Ensemble, SoftPrompt, members_of
from core.model import RoutedModel
from core.preferences import Pairs
from core.settings import Settings
from core.specs.assignment import Assignment
from core.specs.dataset import Example, misfit
from core.specs.training import TrainSpec

FAULTS_KEPT = 100


class UnusableFileError(ValueError):
    """A file that cannot be trained on; the message is for the customer. param: which of the job's files it is."""

    def __init__(self, param: str, faults: Iterable[Fault], n_faults: int) -> None:
        self.param, self.code = param, f"invalid_{param}"
        self.details = tuple(asdict(fault) for fault in faults)[:FAULTS_KEPT]
        first = self.details[0]
        more = f" ({n_faults - 1} more)" if n_faults > 1 else ""
        super().__init__(f"line {first['line']}: {first['message']}{more}")


def base_of(assignment: Assignment, settings: Settings) -> OpenBase:
    """The base model, in the precision that the method asks for, to compute the same on every run."""
    base = open_base(
        assignment.base,
        cache_dir=assignment.cache_dir,
        device=settings.device,
        precision=settings.precision,
        base_precision=assignment.spec.method.base_precision,
    )
    if base.device.type == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)  # noqa: FBT003 - torch's own signature
    return base


def _nothing() -> None:
    return None


def corpus_of(
    path: Path,
    tokenizer: PreTrainedTokenizerFast,
    spec: TrainSpec,
    *,
    context: int,
    param: str,
    heed: Callable[[], object] = _nothing,
) -> Corpus | Pairs:
    """The file's rows as this base model sees them, in its method's template; of a DPO job, its pairs of rows.

    context: tokens the base model can attend to; a prefix takes its places of them. heed: called for every line, each
    of the three times that the file is gone through; what it raises ends the reading.

    Raises:
        UnusableFileError: with the first hundred faults.

    """
    report = check(path, heed=heed)
    if report.n_faults:
        raise UnusableFileError(param, report.faults, report.n_faults)
    if unfit := misfit(str(report.format), is_dpo=spec.dpo is not None):
        raise UnusableFileError(param, [Fault(1, "", "unsupported_format", unfit)], 1)
    template = spec.method.row_template
    room = min(spec.max_seq_length, context - spec.method.prefix_length)
    found = measure(path, tokenizer, room, train_on=spec.train_on, template=template, heed=heed)
    faults = [*found.faults, *(TooLongError(*row, room).fault for row in found.too_long)]
    if faults:
        faults.sort(key=lambda fault: fault.line)
        raise UnusableFileError(param, faults, len(found.faults) + found.n_too_long)
    examples = _heeded(read(path), heed)
    if spec.dpo is not None:
        return Pairs.of(encode_pairs(examples, tokenizer, max_tokens=room, template=template))
    rows = encode_all(examples, tokenizer, train_on=spec.train_on, max_tokens=room, template=template)
    return Corpus.of(rows)


def _heeded(examples: Iterable[tuple[int, Example]], heed: Callable[[], object]) -> Iterator[tuple[int, Example]]:
    for example in examples:
        heed()
        yield example


def start_of(path: Path | None) -> dict[str, SoftPrompt]:
    """What a method is given to start from: the prompt of an adapter's zip, or nothing.

    Raises:
        ValueError: it is no single prompt.

    """
    if path is None:
        return {}
    effect = read_zip(path)
    if not isinstance(effect, SoftPrompt):
        raise ValueError(f"init_adapter is a {type(effect).__name__}; a prompt is expected to start from")  # noqa: TRY004
    return {"start": effect}


def reference_of(effect: Effect | Ensemble | None, spec: TrainSpec, model: RoutedModel) -> Effect | Ensemble | None:
    """What a DPO run is held to: the adapter that it goes on from, or None, the bare base model.

    Raises:
        ValueError: the adapter is not of this base model.

    """
    if effect is None or spec.dpo is None:
        return None
    held = tuple(model.resident(member) for member in members_of(effect))
    return Ensemble(held) if isinstance(effect, Ensemble) else held[0]
