"""What is wrong with a file, line by line, in words for its owner."""

from dataclasses import dataclass

MAX_FAULTS_KEPT = 100


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a file, or odd about it. line counts from 1; field is a JSON pointer, "" for the whole line.

    Of a CSV file it is the line where a record begins, of a Parquet file the row.
    """

    line: int
    field: str
    code: str
    message: str


class FaultyLineError(ValueError):
    """A line was met that formats.check would have reported."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(f"line {fault.line}: {fault.field + ': ' if fault.field else ''}{fault.message}")
        self.fault = fault


class Faults:
    """How many there are, and the first MAX_FAULTS_KEPT of them."""

    def __init__(self) -> None:
        self.count = 0
        self.kept: list[Fault] = []

    def add(self, *found: Fault) -> None:
        """Keeps them while there is room."""
        self.count += len(found)
        self.kept.extend(found[: MAX_FAULTS_KEPT - len(self.kept)])
