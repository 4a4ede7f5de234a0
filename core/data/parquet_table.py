"""Parquet to rows of named values, for files that strangers wrote: a few rows at a time. Knows no dataset format.

Apache Arrow reads it. What a file says of its own size is held against the bound before anything is decoded, and what
is decoded is counted; a single value is as large as its page.
"""

from collections.abc import Iterator
from typing import Any, BinaryIO

from core.data.faults import Fault
from core.data.json_lines import pointer
from core.data.unpacking import UnreadableError

PARQUET = b"PAR1"
_ROWS_AT_ONCE = 64
_BUFFER_BYTES = 1 << 20


def rows(file: BinaryIO, max_unpacked_bytes: int | None) -> Iterator[tuple[int, dict[str, Any] | Fault]]:
    """Each row's number, from 1, and its values, those that are not null, or why there are none."""
    # Loaded here, since it takes a tenth of a second and tens of megabytes, and few files need it.
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    number, decoded_bytes = 0, 0
    try:
        table = pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        _refuse_large(_said_bytes(table.metadata), max_unpacked_bytes)
        _refuse_repeated(table.schema_arrow.names)
        for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE, use_threads=False):
            decoded_bytes += batch.nbytes
            _refuse_large(decoded_bytes, max_unpacked_bytes)
            for place in range(batch.num_rows):
                number += 1
                yield number, _row(number, batch, place)
    except UnreadableError as error:
        yield number + 1, error.fault(number + 1)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        fault = Fault(number + 1, "", "damaged_parquet", f"not a Parquet file that can be read: {_words(error)}")
        yield number + 1, fault


def _row(number: int, batch: Any, place: int) -> dict[str, Any] | Fault:  # noqa: ANN401 - pyarrow has no types
    found: dict[str, Any] = {}
    for index, column in enumerate(batch.schema.names):
        try:
            value = batch.column(index)[place].as_py()
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            message = f"byte {error.start + 1} of the value (0x{byte:02x}) is not UTF-8"
            return Fault(number, pointer(column), "invalid_utf8", message)
        except (ValueError, OverflowError):
            return Fault(number, pointer(column), "wrong_type", "the value has no meaning in a dataset")
        if value is not None:
            found[column] = _without_nulls(value)
    return found


def _without_nulls(value: Any) -> Any:  # noqa: ANN401 - any value
    """A struct's fields that are null are those that its row does not have."""
    match value:
        case dict():
            return {key: _without_nulls(item) for key, item in value.items() if item is not None}
        case list():
            return [_without_nulls(item) for item in value]
    return value


def _said_bytes(metadata: Any) -> int:  # noqa: ANN401 - pyarrow has no types
    return sum(metadata.row_group(place).total_byte_size for place in range(metadata.num_row_groups))


def _refuse_repeated(columns: list[str]) -> None:
    if len(set(columns)) != len(columns):
        raise UnreadableError("duplicate_key", "two columns have the same name")


def _refuse_large(size_bytes: int, max_unpacked_bytes: int | None) -> None:
    if max_unpacked_bytes is not None and size_bytes > max_unpacked_bytes:
        message = f"the Parquet file unfolds to more than {max_unpacked_bytes} bytes; at most so many are allowed"
        raise UnreadableError("unpacked_too_large", message)


def _words(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:200]
