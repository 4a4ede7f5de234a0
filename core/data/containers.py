"""An uploaded file to its records, whatever holds them: JSON Lines, CSV or Parquet, plain or in gzip. Knows no format.

Which it is its first bytes tell, never its name. Memory does not grow with the file.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

from core.data import csv_table, parquet_table
from core.data.faults import Fault
from core.data.json_lines import MAX_LINE_BYTES, MalformedLineError, lines, parse, pointer
from core.data.unpacking import GZIP, UnreadableError, opened, seekable

MAX_LINES = 5_000_000
Container = Literal["jsonl", "csv", "parquet"]
Content = bytes | dict[str, Any] | Fault  # a line of JSON, a row of a table, or why it cannot be read

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_HEADER_WORD: Final = re.compile(r"[A-Za-z_][\w .-]{0,63}")
# How files begin that are mistaken for datasets. All but the last two are binary.
_FOREIGN: Final = {
    b"PK\x03\x04": "a zip archive",
    GZIP: "a gzip archive within a gzip archive",
    b"ARROW1": "an Arrow file",
    b"%PDF": "a PDF document",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"[": "a JSON array",
    b"<": "HTML or XML",
}
_EXPECTED: Final = "JSON Lines has one JSON object a line; CSV and Parquet are taken too"


class Records:
    """A file's records, read once."""

    def __init__(
        self, path: Path, columns: frozenset[str], nested: frozenset[str], max_unpacked_bytes: int | None = None
    ) -> None:
        """columns: that a table may have, by which a CSV header is known. nested: those whose text cells are JSON."""
        self._path, self._columns, self._nested, self._max_bytes = path, columns, nested, max_unpacked_bytes
        self.container: Container | None = None

    def __iter__(self) -> Iterator[tuple[int, Content]]:
        """Every record that is not blank with its place, from 1. Raises OSError alone."""
        number = 0
        try:
            with opened(self._path, self._max_bytes) as file:
                for number, content in self._read(file):
                    if number > MAX_LINES:
                        yield number, Fault(number, "", "too_many_lines", f"a file holds at most {MAX_LINES} lines")
                        return
                    if content is not None:
                        yield number, content
        except UnreadableError as error:
            yield number + 1, error.fault(number + 1)

    def _read(self, file: BinaryIO) -> Iterator[tuple[int, Content | None]]:
        beginning: bytes = file.peek(1)  # type: ignore[attr-defined]  # every file of opened() is buffered
        if beginning.startswith(parquet_table.PARQUET):
            self.container = "parquet"
            with seekable(file, self._path.parent) as whole:
                yield from self._table(parquet_table.rows(whole, self._max_bytes))
            return
        first = beginning.split(b"\n", 1)[0]
        delimiter, columns = csv_table.header(first)
        if self._is_header(columns, first):
            self.container = "csv"
            if len(set(columns)) != len(columns):
                raise UnreadableError("duplicate_key", "the first line names a column twice")
            yield from self._table(csv_table.rows(file, delimiter, columns))
            return
        self.container = "jsonl"
        yield from _json_lines(file)

    def _is_header(self, columns: list[str], first: bytes) -> bool:
        """Whether a first line names columns: one that is known, or several that might be names."""
        if first.removeprefix(_BYTE_ORDER_MARK).lstrip()[:1] in (b"{", b"[", b"<", b""):
            return False
        is_known = bool(set(columns) & self._columns) and not first.startswith(b'"')
        return is_known or (len(columns) > 1 and all(_HEADER_WORD.fullmatch(column) for column in columns))

    def _table(self, rows: Iterator[tuple[int, dict[str, Any] | Fault]]) -> Iterator[tuple[int, Content]]:
        for number, row in rows:
            yield number, row if isinstance(row, Fault) else self._unfolded(number, row)

    def _unfolded(self, number: int, row: dict[str, Any]) -> dict[str, Any] | Fault:
        for column in self._nested & row.keys():
            text = row[column]
            if isinstance(text, str) and text.lstrip()[:1] in ("[", "{"):
                try:
                    row[column] = parse(text.encode())
                except MalformedLineError as error:
                    return Fault(number, pointer(column), error.code, error.message)
                except UnicodeEncodeError:
                    return Fault(number, pointer(column), "lone_surrogate", "the cell holds half of a surrogate pair")
        return row


def _json_lines(file: BinaryIO) -> Iterator[tuple[int, Content | None]]:
    """Every line, None for a blank one. Stops early where the rest would tell nothing more."""
    for number, line in lines(file):
        if number == 1 and line is not None:
            foreign = _foreign(line)
            if foreign:
                yield 1, foreign
                return
            if line.startswith(_BYTE_ORDER_MARK):
                yield 1, Fault(1, "", "byte_order_mark", "the file begins with a byte order mark: save it without")
                line = line[len(_BYTE_ORDER_MARK) :]  # noqa: PLW2901
        if line is None:
            message = f"the line is longer than {MAX_LINE_BYTES} bytes; one line must hold one example"
            yield number, Fault(number, "", "line_too_long", message)
        else:
            yield number, None if line.isspace() else line


def _foreign(first: bytes) -> Fault | None:
    for beginning, kind in _FOREIGN.items():
        if first.removeprefix(_BYTE_ORDER_MARK).lstrip(b" \t").startswith(beginning):
            return Fault(1, "", "not_json_lines", f"this is {kind}; {_EXPECTED}")
    if first.strip(_BYTE_ORDER_MARK + b" \t\r\n") == b"{":
        return Fault(1, "", "not_json_lines", f"this is one JSON value over several lines; {_EXPECTED}")
    return None
