"""A file of 200 MB is read in the memory that a file of 2 MB takes, and all its faulty lines are counted."""

import csv
import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

N_ROWS, ROW_BYTES, FAULTY_EVERY = 20_000, 10_000, 100
ALLOWED_MB = 96  # beyond what a hundredth of the file takes; Parquet took 62 at 200 MB and 63 at 400, all else 2

PROGRAM = """
import json, re, sys
from pathlib import Path
from core.data.formats import check

def peak_mb():  # of this process alone: ru_maxrss would begin with what its parent took
    return int(re.search(r"VmHWM:\\s+([0-9]+) kB", Path("/proc/self/status").read_text())[1]) / 1024

small, large, is_careless = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "careless"
check(small)
before = peak_mb()
held = large.read_bytes() if is_careless else None
report = check(large)
lines = [fault.line for fault in report.faults]
print(json.dumps([report.n_examples, report.n_faults, lines, peak_mb() - before]))
"""


def rows(count):
    """Texts that no packer can make small; every hundredth row lacks its prompt."""
    rng = random.Random(0)
    letters = rng.randbytes(1 << 20).hex()
    for number in range(1, count + 1):
        start = rng.randrange(len(letters) - ROW_BYTES)
        text = letters[start : start + ROW_BYTES]
        yield {"prompt": "" if number % FAULTY_EVERY == 0 else text[:50], "completion": text[50:]}


def write_jsonl(path, count):
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows(count))


def write_gzip(path, count):
    with gzip.open(path, "wt", compresslevel=1) as file:
        file.writelines(json.dumps(row) + "\n" for row in rows(count))


def write_csv(path, count):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "completion"])
        writer.writeheader()
        writer.writerows(rows(count))


def write_parquet(path, count):
    schema = pa.schema([("prompt", pa.string()), ("completion", pa.string())])
    with parquet.ParquetWriter(path, schema) as writer:
        some = []
        for row in rows(count):
            some.append(row)
            if len(some) == 2500:
                writer.write_table(pa.Table.from_pylist(some, schema))
                some = []
        if some:
            writer.write_table(pa.Table.from_pylist(some, schema))


WRITERS = {"jsonl": write_jsonl, "gzip": write_gzip, "csv": write_csv, "parquet": write_parquet}


def measured(tmp_path, container, manner="careful"):
    small, large = tmp_path / "small", tmp_path / "large"
    WRITERS[container](small, N_ROWS // 100)
    WRITERS[container](large, N_ROWS)
    root = Path(__file__).parents[3]
    argv = [sys.executable, "-c", PROGRAM, str(small), str(large), manner]
    done = subprocess.run(argv, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    large.unlink()
    return json.loads(done.stdout)


@pytest.mark.parametrize("container", WRITERS)
def test_two_hundred_megabytes_are_checked_in_flat_memory_and_every_fault_is_counted(tmp_path, container):
    n_examples, n_faults, lines, grown_mb = measured(tmp_path, container)
    assert (n_examples, n_faults) == (N_ROWS - N_ROWS // FAULTY_EVERY, N_ROWS // FAULTY_EVERY)
    header = 1 if container == "csv" else 0
    assert lines == [FAULTY_EVERY * n + header for n in range(1, 101)]
    assert grown_mb < ALLOWED_MB


def test_a_reader_that_held_the_file_would_be_seen(tmp_path):
    """Negative control."""
    *_, grown_mb = measured(tmp_path, "jsonl", "careless")
    assert grown_mb > 150
