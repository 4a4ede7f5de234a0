"""Bytes of an uploaded file to examples; every fault names its line and field. Knows no tokeniser.

A file is JSON Lines, CSV or Parquet, plain or in gzip (core/data/containers.py), all of one format: that of the first
good record (core/data/shapes.py). A line holds at most MAX_LINE_BYTES, a file at most MAX_LINES lines. Memory does not
grow with the file, and no bytes make check() raise.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.data.containers import Container, Records
from core.data.doctor import Doctor
from core.data.faults import Fault, Faults, FaultyLineError
from core.data.shapes import COLUMNS, NESTED, SPECS, judge
from core.specs.dataset import DatasetFormat, Example, meaning

_EMPTY = Fault(1, "", "empty_file", "the file holds no example")


@dataclass(frozen=True)
class DatasetReport:
    """What check() found. n_examples counts good lines, n_faults and n_warnings all; the first 100 are kept."""

    format: DatasetFormat | None
    n_examples: int
    n_faults: int
    faults: tuple[Fault, ...]
    container: Container | None = None
    n_warnings: int = 0
    warnings: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class Line:
    """One record that is not blank: what is wrong with it or, if nothing is, what it says."""

    number: int
    faults: tuple[Fault, ...] = ()
    format: DatasetFormat | None = None
    value: Any = None

    def example(self) -> Example:
        """Of a record without faults."""
        assert self.format is not None
        return meaning(SPECS[self.format].model_validate(self.value))


class Reading:
    """A file's lines, read once, and what is known of the file by then."""

    def __init__(self, path: Path, max_unpacked_bytes: int | None = None) -> None:
        self.format: DatasetFormat | None = None
        self._records = Records(path, COLUMNS, NESTED, max_unpacked_bytes)

    @property
    def container(self) -> Container | None:
        """Known with the first line."""
        return self._records.container

    def __iter__(self) -> Iterator[Line]:
        """Every line; one that says that there is none. Raises OSError alone."""
        number = 0
        for number, content in self._records:
            if isinstance(content, Fault):
                yield Line(number, (content,))
                continue
            faults, line_format, value = judge(number, content, self.format)
            if faults:
                yield Line(number, tuple(faults))
                continue
            self.format = line_format
            yield Line(number, (), line_format, value)
        if number == 0:
            yield Line(1, (_EMPTY,))


def _nothing() -> None:
    return None


def check(path: Path, *, max_unpacked_bytes: int | None = None, heed: Callable[[], object] = _nothing) -> DatasetReport:
    """Reads the whole file and reports every fault. Raises OSError, and what heed does, alone.

    max_unpacked_bytes: that a gzip archive or a Parquet file may unfold to; None trusts bytes that were checked before.
    heed: called after every line, for a file may be long.
    """
    reading, faults, doctor = Reading(path, max_unpacked_bytes), Faults(), Doctor()
    n_examples = 0
    for line in reading:
        heed()
        faults.add(*line.faults)
        if line.format is not None:
            n_examples += 1
            doctor.look(line.number, line.value, line.format)
    warnings = doctor.warnings
    return DatasetReport(
        format=reading.format,
        n_examples=n_examples,
        n_faults=faults.count,
        faults=tuple(faults.kept),
        container=reading.container,
        n_warnings=warnings.count,
        warnings=tuple(warnings.kept),
    )


def read(path: Path) -> Iterator[tuple[int, Example]]:
    """Each example with its line's number, one at a time.

    Raises:
        FaultyLineError: at the first line that check() reports.

    """
    for line in Reading(path):
        if line.faults:
            raise FaultyLineError(line.faults[0])
        yield line.number, line.example()
