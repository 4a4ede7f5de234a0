"""A running service as a terminal asks it, over /v1 with a key: upload, make a job, list jobs, download an adapter."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

LOCAL = "http://127.0.0.1:8000"
# A job is answered only once an engine has measured its files.
TIMEOUT = httpx.Timeout(300.0, connect=5.0)


class Refused(Exception):
    """What was asked cannot be had. The message is for the person at the terminal."""


class Remote:
    """One service, as long as the block of connected() lasts."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def upload(self, path: Path) -> dict[str, Any]:
        """The file object of a dataset. Raises Refused."""
        try:
            with path.open("rb") as content:
                files = {"file": (path.name, content)}
                return self._asked("POST", "files", files=files, data={"purpose": "fine-tune"})
        except OSError as error:
            raise Refused(f"{path}: {error.strerror}") from None

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        """The new job's object. Raises Refused."""
        return self._asked("POST", "fine_tuning/jobs", json=body)

    def jobs(self, limit: int) -> list[dict[str, Any]]:
        """Objects of the newest jobs. Raises Refused."""
        found: list[dict[str, Any]] = self._asked("GET", "fine_tuning/jobs", params={"limit": limit})["data"]
        return found

    def download(self, name: str, to: Path) -> int:
        """An adapter's or a checkpoint's zip into a file, whole or not at all; its bytes. Raises Refused."""
        part = to.with_name(f"{to.name}.part")
        try:
            with self._told(), self._http.stream("GET", f"adapters/{quote(name, safe='')}/download") as answer:
                if answer.is_error:
                    answer.read()
                    raise _refused(answer)
                with part.open("wb") as file:
                    size = sum(file.write(piece) for piece in answer.iter_bytes())
            part.replace(to)
        except OSError as error:
            raise Refused(f"{to}: {error.strerror}") from None
        finally:
            part.unlink(missing_ok=True)
        return size

    def _asked(self, method: str, path: str, **said: Any) -> dict[str, Any]:  # noqa: ANN401  # httpx's own
        with self._told():
            answer = self._http.request(method, path, **said)
        if answer.is_error:
            raise _refused(answer)
        found: dict[str, Any] = answer.json()
        return found

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            what = type(error).__name__
            raise Refused(f"{self._http.base_url}: no answer ({what}); is the service up, and --url right?") from None


@contextmanager
def connected(url: str) -> Iterator[Remote]:
    """The service at an address, asked with the key in GRAFT_KEY. Raises Refused without one."""
    key = os.environ.get("GRAFT_KEY", "")
    if not key:
        raise Refused("GRAFT_KEY: expected an API key in this environment variable; the first is in .graft/admin.key")
    headers = {"authorization": f"Bearer {key}"}
    try:
        http = httpx.Client(base_url=f"{url.rstrip('/')}/v1/", headers=headers, timeout=TIMEOUT)
    except httpx.InvalidURL:
        raise Refused(f"{url}: expected an address such as {LOCAL}") from None
    with http:
        yield Remote(http)


def body_of(words: Iterable[str]) -> dict[str, Any]:
    """NAME=VALUE words as a job's body: a.b=1 is {"a": {"b": 1}}; what is no JSON is text. Raises Refused."""
    body: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not all(name.split(".")):
            raise Refused(f"{word}: expected NAME=VALUE, such as peft.type=lora")
        *sections, last = name.split(".")
        place = body
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise Refused(f"{name}: {section} has a value already, so nothing can be set in it")
        if last in place:
            raise Refused(f"{name}: expected once, found twice")
        place[last] = _value(text)
    return body


def _value(text: str) -> Any:  # noqa: ANN401  # whatever JSON there is
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _refused(answer: httpx.Response) -> Refused:
    try:
        return Refused(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return Refused(f"{answer.request.url}: answered {answer.status_code}, not as this service does")
