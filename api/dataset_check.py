"""A dataset is read through before it is kept: what is said of a good one, and how a faulty one is refused."""

from dataclasses import asdict
from pathlib import Path

from api import errors, shapes
from core.data import formats


def validated(path: Path, max_unpacked_bytes: int) -> shapes.Shape:
    """The validation of a file object. Raises ClientError 400 with each fault's line. Blocking."""
    report = formats.check(path, max_unpacked_bytes=max_unpacked_bytes)
    if not report.n_faults:
        return {
            "valid": True,
            "format": report.format,
            "container": report.container,
            "n_examples": report.n_examples,
            "errors": [],
            "n_warnings": report.n_warnings,
            "warnings": [asdict(fault) for fault in report.warnings],
        }
    first, more = report.faults[0], report.n_faults - 1
    field = f", field {first.field}" if first.field else ""
    raise errors.bad_request(
        f"Line {first.line}{field}: {first.message}" + (f" (and {more} more)" if more else ""),
        param="file",
        code="invalid_training_file",
        details=[asdict(fault) for fault in report.faults],
        n_errors=report.n_faults,
    )
