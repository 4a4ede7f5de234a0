"""Asking for text, and reading what comes back."""

import json
import time

from serving import BASE

from core.records.tables import Usage

HELLO = [{"role": "user", "content": "hello"}]


def ask(service, path="/v1/chat/completions", **fields):
    body = {"model": BASE, "messages": HELLO, "max_tokens": 6, "seed": 5, **fields}
    return service.http.post(path, json={key: value for key, value in body.items() if value is not ...})


def events_of(text):
    assert text.endswith("\n\n")
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line and not line.startswith(":")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def usage_rows(service):
    with service.database.session() as session:
        return [(row.model, row.prompt_tokens, row.completion_tokens) for row in session.query(Usage)]


def eventually(condition, within_s=60.0):
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
