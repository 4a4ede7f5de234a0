"""CSV to rows of named cells, for files that strangers wrote: total, in flat memory. Knows no dataset format.

The first line names the columns; comma, semicolon or tab parts them. A record may run over several lines where it is
quoted, and holds as much as a line of JSON may.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from core.data.faults import Fault
from core.data.json_lines import MAX_LINE_BYTES, lines, name, pointer
from core.data.unpacking import UnreadableError

DELIMITERS = ",;\t"
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # how surrogateescape writes such bytes
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

csv.field_size_limit(MAX_LINE_BYTES)  # of the process; nothing else here reads CSV


def header(first: bytes) -> tuple[str, list[str]]:
    """The delimiter of a first line and the columns that it names; one column where nothing parts them."""
    text = first.removeprefix(_BYTE_ORDER_MARK).decode(errors="replace").strip("\r\n")
    found = [(delimiter, _cells(text, delimiter)) for delimiter in DELIMITERS]
    return max(found, key=lambda one: len(one[1]))


def rows(file: BinaryIO, delimiter: str, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str] | Fault]]:
    """Each record's first line and its cells, those that are not empty, or why there are none. Skips the header."""
    text = _Text(file)
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    is_header = True
    while True:
        text.begin()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield text.first, Fault(text.first, "", "invalid_csv", f"not a CSV record: {error}")
            cells = []
        except UnreadableError as error:
            yield text.first, error.fault(text.first)
            return
        for number in text.too_long:
            message = f"the line is longer than {MAX_LINE_BYTES} bytes; one record must hold one example"
            yield number, Fault(number, "", "line_too_long", message)
        if cells is None:
            return
        if cells and not is_header and not text.too_long:
            yield text.first, _row(text.first, cells, columns)
        is_header = False


class _Text:
    """Lines as csv takes them, of which the first since begin() and the length since then are known."""

    def __init__(self, file: BinaryIO) -> None:
        self._lines = lines(file)
        self._number = 0
        self.begin()

    def begin(self) -> None:
        """Another record is to be read."""
        self.first, self._bytes, self.too_long = self._number + 1, 0, list[int]()

    def __iter__(self) -> "_Text":
        return self

    def __next__(self) -> str:
        self._number, line = next(self._lines)
        if line is None:
            self.too_long.append(self._number)
            return "\n"
        self._bytes += len(line)
        if self._bytes > MAX_LINE_BYTES + 2:
            message = f"a quotation mark is not closed within {MAX_LINE_BYTES} bytes: the rest cannot be told apart"
            raise UnreadableError("unclosed_quote", message)
        # What is not UTF-8 becomes halves of surrogate pairs, which no UTF-8 holds: _row() finds them again.
        return (line.removeprefix(_BYTE_ORDER_MARK) if self._number == 1 else line).decode(errors="surrogateescape")


def _row(number: int, cells: Sequence[str], columns: Sequence[str]) -> dict[str, str] | Fault:
    if len(cells) != len(columns):
        message = f"the record has {len(cells)} cells, the first line names {len(columns)} columns"
        return Fault(number, "", "wrong_cells", message)
    for column, cell in zip(columns, cells, strict=True):
        if found := _NOT_UTF8.search(cell):
            byte = ord(found[0]) - 0xDC00
            message = f"character {found.start() + 1} of the cell (byte 0x{byte:02x}) is not UTF-8"
            return Fault(number, pointer(column), "invalid_utf8", message)
    return {column: cell for column, cell in zip(columns, cells, strict=True) if cell}


def _cells(text: str, delimiter: str) -> list[str]:
    try:
        return [name(cell.strip()) for cell in next(csv.reader([text], delimiter=delimiter, strict=True), [])]
    except csv.Error:
        return []
