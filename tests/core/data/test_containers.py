"""JSON Lines, CSV and Parquet, plain and in gzip: the same examples, the same faults, whatever holds them."""

import csv
import gzip
import io
import json
import random
import tracemalloc

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from core.data import unpacking
from core.data.faults import FaultyLineError
from core.data.formats import check, read
from core.data.json_lines import MAX_LINE_BYTES
from tests.core.data.test_shapes import GOOD

FLAT = ("prompt_completion", "instruction", "classification", "text")


def found(report):
    return [(fault.line, fault.field, fault.code) for fault in report.faults]


def as_jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_csv(rows, **manner):
    text = io.StringIO()
    columns = dict.fromkeys(key for row in rows for key in row)
    writer = csv.DictWriter(text, list(columns), **manner)
    writer.writeheader()
    writer.writerows({k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows)
    return text.getvalue().encode()


def as_parquet(rows, **manner):
    content = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), content, **manner)
    return content.getvalue()


WRITERS = {"jsonl": as_jsonl, "csv": as_csv, "parquet": as_parquet}


@pytest.fixture
def kept(tmp_path):
    def keep(content):
        path = tmp_path / "upload"
        path.write_bytes(content)
        return path

    return keep


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("is_packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("container", WRITERS)
def test_every_format_is_read_from_every_container(kept, name, container, is_packed):
    rows = [GOOD[name]] * 3
    if name == "preference":  # Parquet has no type for a list that is always empty
        rows = [GOOD[name] | {"input": {"messages": GOOD[name]["input"]["messages"]}}] * 3
    expected = [example for _, example in read(kept(as_jsonl(rows)))]
    content = WRITERS[container](rows)
    path = kept(gzip.compress(content) if is_packed else content)
    report = check(path)
    assert (report.format, report.container, report.n_examples, report.faults) == (name, container, 3, ())
    assert [example for _, example in read(path)] == expected


def test_fields_that_a_parquet_row_lacks_are_absent(kept):
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 1}]
    rows = [
        {"messages": turns},
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
    ]
    examples = [example for _, example in read(kept(as_parquet(rows)))]
    assert [turn.weight for example in examples for turn in example.messages] == [None, 1, None, None]
    path = kept(as_parquet([GOOD["instruction"], {"instruction": "Sing.", "input": None, "output": "la"}]))
    assert check(path).n_faults == 0


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_csv_file_says_its_delimiter_and_its_lines_are_told(kept, delimiter):
    rows = [
        {"prompt": "one\ntwo", "completion": 'a "b", c;\t'},
        {"prompt": "", "completion": "x"},
        GOOD["prompt_completion"],
    ]
    path = kept(as_csv(rows, delimiter=delimiter))
    report = check(path)
    assert (report.n_examples, found(report)) == (2, [(4, "/prompt", "missing_field")])
    assert next(read(path))[1].completion == 'a "b", c;\t'


def test_a_spreadsheets_byte_order_mark_is_read_over(kept):
    report = check(kept(b"\xef\xbb\xbf" + as_csv([GOOD["classification"]])))
    assert (report.container, report.n_examples, report.n_faults) == ("csv", 1, 0)


@pytest.mark.parametrize(
    ("lines", "faults"),
    [
        ([b"question,answer", b"a,b"], [(2, "", "unknown_format")]),
        ([b"prompt,prompt", b"a,b"], [(1, "", "duplicate_key")]),
        ([b"prompt,completion", b"a", b"a,b,c", b"a,b"], [(2, "", "wrong_cells"), (3, "", "wrong_cells")]),
        ([b"text,label", b"a,\xe9", b"b,c"], [(2, "/label", "invalid_utf8")]),
        ([b"text,label", b'"a"x,b', b"b,c"], [(2, "", "invalid_csv")]),
        ([b"text,label", b"", b"a," + b"x" * MAX_LINE_BYTES, b"b,c"], [(3, "", "line_too_long")]),
        ([b"text,label", b'a,"b', b"c," + b"d" * (MAX_LINE_BYTES - 4), b"e,f"], [(2, "", "unclosed_quote")]),
        (
            [b"messages", b'"[{""role"": 1}]"', b'"[1"'],
            [
                (2, "/messages/0/content", "missing_field"),
                (2, "/messages/0/role", "wrong_role"),
                (3, "/messages", "invalid_json"),
            ],
        ),
        ([b"prompt,completion"], [(1, "", "empty_file")]),
    ],
)
def test_faults_of_csv_are_named_by_line_and_column(kept, lines, faults):
    assert sorted(found(check(kept(b"\n".join(lines))))) == sorted(faults)


def test_faults_of_parquet_are_named_by_row_and_column(kept):
    rows = [GOOD["prompt_completion"], {"prompt": "a", "completion": None}, {"prompt": "", "completion": "c"}]
    assert found(check(kept(as_parquet(rows)))) == [
        (2, "/completion", "missing_field"),
        (3, "/prompt", "empty_content"),
    ]
    raw = pa.array([b"ok", b"\xff"], pa.binary()).view(pa.string())
    content = io.BytesIO()
    parquet.write_table(pa.table({"text": raw}), content)
    assert found(check(kept(content.getvalue()))) == [(2, "/text", "invalid_utf8")]
    twice = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    content = io.BytesIO()
    parquet.write_table(twice, content)
    assert found(check(kept(content.getvalue()))) == [(1, "", "duplicate_key")]
    assert found(check(kept(as_parquet([{"text": "a", "label": 1.5}])))) == [(1, "/label", "wrong_type")]


@pytest.mark.parametrize(
    "content", [b"PAR1", b"PAR1\x15\x04", as_parquet([GOOD["text"]])[:-9], b"PAR1" + b"\0" * 999 + b"PAR1"]
)
def test_damaged_parquet_is_one_fault(kept, content):
    assert found(check(kept(content))) == [(1, "", "damaged_parquet")]


@pytest.mark.parametrize("cut", [3, 12, 60, -9, -1])
def test_a_damaged_gzip_archive_is_told_behind_the_lines_that_were_read(kept, cut):
    whole = gzip.compress(as_jsonl([{"text": random.Random(n).randbytes(99).hex()} for n in range(2000)]))
    report = check(kept(whole[:cut]))
    assert [code for _, _, code in found(report)][-1] == "damaged_gzip"
    with pytest.raises(FaultyLineError, match="gzip archive is damaged"):
        list(read(kept(whole[:cut])))


@pytest.mark.parametrize("container", WRITERS)
def test_an_archive_that_unfolds_to_too_much_is_refused_at_the_bound(kept, container):
    content = WRITERS[container]([{"text": "x" * 5000 + str(n)} for n in range(200)])
    size = len(content)
    packed = kept(gzip.compress(content))
    assert check(packed, max_unpacked_bytes=max(size, 1_100_000)).n_faults == 0
    report = check(packed, max_unpacked_bytes=size // 2)
    assert [code for _, _, code in found(report)] == ["unpacked_too_large"]
    assert check(packed).n_faults == 0  # bytes that were checked before are trusted


def test_a_bomb_is_refused_in_flat_memory(kept):
    """256 MB of blanks in less than a megabyte of gzip, and 300 MB of letters in as little Parquet."""
    bomb = io.BytesIO()
    with gzip.GzipFile(fileobj=bomb, mode="wb", compresslevel=9) as file:
        for _ in range(256):
            file.write(b" " * (1 << 20))
    path = kept(bomb.getvalue())
    assert path.stat().st_size < 1 << 20
    tracemalloc.start()
    report = check(path, max_unpacked_bytes=64 << 20)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [code for _, _, code in found(report)] == ["unpacked_too_large"]
    assert peak_bytes < 16 << 20
    swollen = kept(as_parquet([{"text": "x" * (1 << 20)}] * 300, compression="zstd", use_dictionary=False))
    assert swollen.stat().st_size < 1 << 20
    assert found(check(swollen, max_unpacked_bytes=64 << 20)) == [(1, "", "unpacked_too_large")]


def test_without_its_bound_the_bomb_would_be_unfolded(kept, monkeypatch):
    """Negative control of the law above."""
    monkeypatch.setattr(unpacking, "_Unpacked", Unbounded)
    path = kept(gzip.compress(as_jsonl([{"text": "x" * 5000}] * 200)))
    assert check(path, max_unpacked_bytes=1000).n_faults == 0


class Unbounded(unpacking._Unpacked):
    def __init__(self, packed, _):
        super().__init__(packed, None)


CRUMBS = [b"text", b"label", b",", b";", b'"', b"\n", b"\r", b"\t", b"\xff", b"x", b"prompt"]
SOUP = st.one_of(
    st.binary(max_size=60),
    st.lists(st.sampled_from(CRUMBS), max_size=30).map(b"".join),
    st.binary(max_size=60).map(lambda some: b"PAR1" + some + b"PAR1"),
    st.tuples(st.integers(0, 700), st.integers(0, 255)).map(lambda one: _flipped(*one)),
)


def _flipped(place, byte):
    """A small Parquet file with one byte that is not its own."""
    content = bytearray(as_parquet([GOOD["text"], GOOD["text"]]))
    content[place % len(content)] = byte
    return bytes(content)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SOUP, st.booleans())
def test_no_bytes_in_any_container_make_check_raise_and_read_agrees(kept, content, is_packed):
    path = kept(gzip.compress(content) if is_packed else content)
    report = check(path, max_unpacked_bytes=1 << 20)
    assert report.n_faults > 0 or report.n_examples > 0
    if report.n_faults == 0:
        assert len(list(read(path))) == report.n_examples
