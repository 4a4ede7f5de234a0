"""What a safetensors header may claim: nothing that the library would believe and a machine would pay for."""

import json
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from core import safetensors_header
from core.safetensors_header import MAX_HEADER_BYTES, MAX_TENSORS, check


def raw(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def f32(shape, start, end):
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


GOOD = {"a": f32([2, 1], 0, 8), "b": f32([1], 8, 12)}
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def test_what_the_library_writes_passes():
    tensors = {f"x.{i}": torch.ones(2, 3, dtype=dtype) for i, dtype in enumerate(FLOATS)}
    found = check(save(tensors, metadata={"format": "pt"}))
    assert {e.name: e.shape for e in found} == dict.fromkeys(tensors, (2, 3))
    assert [e.start for e in found] == [0, *(e.end for e in found[:-1])]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it has 0 bytes"),
        ((2**63).to_bytes(8, "little") + b"{}", "claims 9223372036854775808"),
        ((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b" " * (MAX_HEADER_BYTES + 1), "claims 1048577"),
        ((9).to_bytes(8, "little") + b"{}", "claims 9"),
        (raw(b"[" * 100_000), "nested deeper"),
        (raw(b'{"a":' * 50_000), "header is not JSON"),
        (raw(b"\xff"), "not UTF-8"),
        (raw(b"[]"), "not a JSON object"),
        (raw({}), "names 0 tensors"),
        (raw(b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}', b"0000"), "must be finite"),
        (raw(b'{"a": 1, "a": 2}'), "'a' stands twice"),
        (raw({"a": 1}), "dtype, shape and data_offsets"),
        (raw({"a": f32([1], 0, 4) | {"more": 1}}, b"0000"), "and nothing else"),
        (raw({"../../etc/passwd": f32([1], 0, 4)}, b"0000"), "letters, digits"),
        (raw({"a": f32([1], 0, 4) | {"dtype": "I64"}}, b"0000"), "dtype I64"),
        (raw({"a": f32([1], 0, 4) | {"dtype": ["F32"]}}, b"0000"), "one of F32"),
        (raw({"a": f32([0, 2**60], 0, 0)}), "between -2"),
        (raw({"a": f32([0, 2**40], 0, 0)}), "whole numbers from 1"),
        (raw({"a": f32([2**31, 2**31], 0, 4)}, b"0000"), "whole numbers from 1"),
        (raw({"a": f32([True], 0, 4)}, b"0000"), "whole numbers from 1"),
        (raw({"a": f32([1] * 5, 0, 4)}, b"0000"), "whole numbers from 1"),
        (raw({"a": f32([1], 4, 0)}, b"0000"), "not a start and an end"),
        (raw({"a": f32([1], -4, 0)}, b"0000"), "not a start and an end"),
        (raw({"a": f32([2], 0, 4)}, b"0000"), "has 4 bytes; F32 of shape"),
        (raw(GOOD | {"c": f32([1], 4, 8)}, b"0" * 12), "overlaps"),
        (raw({"a": f32([1], 4, 8)}, b"0" * 8), "leaves bytes before it unnamed"),
        (raw(GOOD, b"0" * 11), "take 12 bytes, the file has 11"),
        (raw(GOOD, b"0" * 13), "take 12 bytes, the file has 13"),
        (raw(GOOD | {"__metadata__": {"a": 1}}, b"0" * 12), "object of strings"),
        (raw(GOOD | {"__metadata__": {"a": "x" * 20_000}}, b"0" * 12), "more than 16384 characters"),
    ],
)
def test_a_header_that_lies_is_refused(content, reason):
    with pytest.raises(ValueError, match=reason):
        check(content)


def test_half_a_million_empty_tensors_are_refused_at_once():
    header = {f"t{n}": f32([0], 0, 0) for n in range(500_000)}
    content, start = raw(header), time.perf_counter()
    with pytest.raises(ValueError, match="the header claims"):
        check(content)
    assert time.perf_counter() - start < 0.5


def test_one_tensor_too_many_is_refused():
    fits = {f"t{n}": f32([1], 4 * n, 4 * n + 4) for n in range(MAX_TENSORS)}
    assert len(check(raw(fits, b"0" * 4 * MAX_TENSORS))) == MAX_TENSORS
    more = fits | {"one": f32([1], 4 * MAX_TENSORS, 4 * MAX_TENSORS + 4)}
    with pytest.raises(ValueError, match=f"names {MAX_TENSORS + 1} tensors"):
        check(raw(more, b"0" * 4 * (MAX_TENSORS + 1)))


numbers = st.one_of(st.integers(-2, 40), st.integers(), st.booleans(), st.floats(), st.none(), st.text(max_size=3))
entries = st.one_of(
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F16", "BF16", "I8", "F64"]),
            "shape": st.lists(numbers, max_size=4),
            "data_offsets": st.lists(numbers, max_size=3),
        }
    ),
    st.recursive(numbers, lambda inner: st.lists(inner, max_size=3), max_leaves=6),
)
headers = st.dictionaries(st.one_of(st.sampled_from(["a", "b", "__metadata__"]), st.text(max_size=8)), entries)


@given(header=headers, body=st.binary(max_size=64))
def test_any_header_is_accepted_or_refused_with_words(header, body):
    try:
        check(raw(header, body))
    except ValueError as error:
        assert 0 < len(str(error)) < 500  # noqa: PT017 - either end is right


@given(content=st.binary(max_size=200))
def test_any_bytes_are_accepted_or_refused_with_words(content):
    try:
        check(content)
    except ValueError as error:
        assert str(error)  # noqa: PT017 - either end is right


@given(
    shapes=st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=1, max_size=4),
    cut=st.integers(-20, 20),
    flip=st.tuples(st.integers(0, 400), st.integers(0, 255)),
)
def test_what_passes_the_library_reads_the_same(shapes, cut, flip):
    content = bytearray(save({f"t{n}": torch.zeros(shape) for n, shape in enumerate(shapes)}))
    content = content[:cut] if cut < 0 else content + b"\0" * cut
    if flip[0] < len(content):
        content[flip[0]] = flip[1]
    try:
        found = check(bytes(content))
    except ValueError:
        return
    loaded = load(bytes(content))
    assert {e.name: e.shape for e in found} == {name: tuple(t.shape) for name, t in loaded.items()}


def test_without_the_check_of_names_the_library_would_take_a_path(monkeypatch):
    content = raw({"../../x": f32([1], 0, 4)}, b"0000")
    with pytest.raises(ValueError, match="letters, digits"):
        check(content)
    monkeypatch.setattr(safetensors_header, "_NAME", safetensors_header.re.compile(r".+"))
    assert [e.name for e in check(content)] == list(load(content)) == ["../../x"]
