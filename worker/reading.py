"""A job's files to token rows, all of them or none: whatever a line is refused for is found before training starts."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from core.data.batches import Corpus
from core.data.formats import Fault, check, read
from core.data.tokens import TooLongError, encode_all, measure
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


def corpus_of(path: Path, tokenizer: PreTrainedTokenizerFast, spec: TrainSpec, *, context: int, param: str) -> Corpus:
    """The file's rows as this base model sees them, in its method's template.

    context: tokens the base model can attend to; a prefix takes its places of them.

    Raises:
        UnusableFileError: with the first hundred faults.

    """
    report = check(path)
    if report.n_faults:
        raise UnusableFileError(param, report.faults, report.n_faults)
    template = spec.method.row_template
    room = min(spec.max_seq_length, context - spec.method.prefix_length)
    found = measure(path, tokenizer, room, train_on=spec.train_on, template=template)
    faults = [*found.faults, *(TooLongError(*row, room).fault for row in found.too_long)]
    if faults:
        faults.sort(key=lambda fault: fault.line)
        raise UnusableFileError(param, faults, len(found.faults) + found.n_too_long)
    rows = encode_all(read(path), tokenizer, train_on=spec.train_on, max_tokens=room, template=template)
    return Corpus.of(rows)
