import json
import random
import subprocess
import sys
import tracemalloc
from dataclasses import asdict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.data import shapes
from core.data.faults import FaultyLineError
from core.data.formats import check, read
from core.specs.dataset import ChatExample

GOOD_CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}


def found(report):
    return [(fault.line, fault.field, fault.code) for fault in report.faults]


def test_a_line_of_two_hundred_megabytes_needs_no_memory(tmp_path):
    path = tmp_path / "one-line.jsonl"
    with path.open("wb") as file:
        file.truncate(200 << 20)  # a hole: zeros that take no disk
    tracemalloc.start()
    report = check(path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found(report) == [(1, "", "line_too_long")]
    assert peak_bytes < 8 << 20


def test_memory_does_not_grow_with_the_file(tmp_path):
    def peak(n_lines):
        path = tmp_path / f"{n_lines}.jsonl"
        path.write_bytes(
            json.dumps(GOOD_CHAT).encode() * 1 + b"\n" + (json.dumps(GOOD_CHAT) + "\n{}\n").encode() * n_lines
        )
        tracemalloc.start()
        assert check(path).n_faults == n_lines
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak_bytes

    peak(200)  # caches fill
    assert peak(8000) < peak(400) + 100_000


def test_the_quick_yes_is_given_only_where_the_spec_says_yes():
    rng = random.Random(0)
    roles = ["system", "user", "assistant", "bot", None]
    texts = ["hi", "", " ", "\t\n", 3, None]
    quick = 0
    for _ in range(5000):
        turns = [
            {"role": rng.choice(roles[: rng.choice([3, 5])]), "content": rng.choice(texts[: rng.choice([1, 6])])}
            for _ in range(rng.randrange(5))
        ]
        value = {"messages": turns}
        if shapes.is_plain_chat(value):
            quick += 1
            ChatExample.model_validate(value)
    assert quick > 50


def test_a_quick_yes_that_looks_less_closely_is_caught(jsonl, monkeypatch):
    """Negative control of the law above: with a careless quick path, an empty answer passes."""
    monkeypatch.setattr(shapes, "is_plain_chat", lambda value: "messages" in value)
    empty = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}]}
    assert check(jsonl(empty)).n_faults == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["messages", "prompt", "completion", "role", "content", "weight", "x"]), inner
        )
    ),
    max_leaves=12,
)
LINES = st.one_of(
    st.binary(max_size=40),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.lists(
        st.fixed_dictionaries(
            {}, optional={"role": st.sampled_from(["user", "assistant", "bot"]), "content": JSON, "weight": JSON}
        ),
        max_size=3,
    ).map(lambda turns: json.dumps({"messages": turns}).encode()),
    st.sampled_from(
        [b"[" * 5000, b'{"a":' * 3000, b"\xef\xbb\xbf", b"NaN", b"1" * 5000, b'{"prompt":"\\ud83d"}', b"\x00"]
    ),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LINES, max_size=5), st.sampled_from([b"\n", b"\r\n", b""]))
def test_no_bytes_make_check_raise_and_read_agrees_with_it(tmp_path, lines, end):
    path = tmp_path / "any.jsonl"
    path.write_bytes(end.join(lines))

    report = check(path)

    json.dumps([asdict(fault) for fault in report.faults], allow_nan=False).encode()
    "".join(fault.message + fault.field for fault in report.faults).encode()  # no surrogates in what clients see
    assert report.n_faults > 0 or report.n_examples > 0
    if report.n_faults:
        with pytest.raises(FaultyLineError):
            list(read(path))
    else:
        assert len(list(read(path))) == report.n_examples


def test_checking_reaches_neither_torch_nor_transformers_and_loads_arrow_for_parquet_alone():
    program = (
        "import sys, core.data.formats; print({'torch', 'transformers', 'tokenizers', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
