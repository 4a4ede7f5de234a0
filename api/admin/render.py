"""Templates to pages, in the reader's language and colours; and the files that pages load, held in memory."""

import hashlib
import json
import mimetypes
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from api import visits

ROOM = Path(__file__).parent
LANGUAGES = {"en": "English", "zh": "中文"}
THEMES = ("auto", "light", "dark")
NAVIGATION = (
    ("/admin", "Overview"),
    ("/admin/data", "Data"),
    ("/admin/jobs", "Jobs"),
    ("/admin/adapters", "Adapters"),
    ("/admin/playground", "Playground"),
    ("/admin/workers", "Workers"),
    ("/admin/keys", "Keys"),
    ("/admin/usage", "Usage"),
    ("/admin/audit", "Audit"),
    ("/admin/settings", "Settings"),
)
NOTHING = "\N{EN DASH}"
UNITS = ("B", "KB", "MB", "GB", "TB")
THOUSAND = 1000


def render(request: Request, template: str, *, status: int = 200, **context: Any) -> HTMLResponse:  # noqa: ANN401
    """A page. Blocking, but not for long."""
    language = language_of(request)
    theme = request.cookies.get("graft_theme", "auto")
    words = Words(language)
    page = _templates().get_template(template)
    text = page.render(
        t=words,
        ago=words.ago,
        language=language,
        theme=theme if theme in THEMES else "auto",
        preferences=[
            ("language", words("Language"), list(LANGUAGES.items())),
            ("theme", words("Colours"), [(name, words(name)) for name in THEMES]),
        ],
        navigation=NAVIGATION,
        here=request.url.path,
        visitor=request.state.visitor,
        csrf=visits.csrf_of(request),
        words_of_scripts=json.dumps({text: words(text) for text in _script_words()}, ensure_ascii=False),
        **context,
    )
    return HTMLResponse(text, status, headers={"vary": "cookie, accept-language", "content-language": language})


def language_of(request: Request) -> str:
    """The one that was chosen, or the first of ours that the browser names."""
    chosen = request.cookies.get("graft_language")
    if chosen in LANGUAGES:
        return chosen
    for wish in request.headers.get("accept-language", "").split(","):
        name = wish.partition(";")[0].strip().lower().partition("-")[0]
        if name in LANGUAGES:
            return name
    return "en"


class Words:
    """A message by its English text, as the reader's language says it."""

    def __init__(self, language: str) -> None:
        self._catalogue: Mapping[str, str] = catalogue(language)

    def __call__(self, message: str, /, **values: object) -> str:
        """The message with its {names} filled in."""
        said = self._catalogue.get(message, message)
        return said.format(**values) if values else said

    def ago(self, at_s: float | None) -> str:
        """How long ago a moment was."""
        if at_s is None:
            return NOTHING
        seconds = max(0, int(time.time() - at_s))
        for unit, size in (("{n} d ago", 86_400), ("{n} h ago", 3600), ("{n} min ago", 60), ("{n} s ago", 1)):
            if seconds >= size:
                return self(unit, n=seconds // size)
        return self("just now")


@cache
def catalogue(language: str) -> Mapping[str, str]:
    """English text, or the key of a name, to what a language says. In English text says itself."""
    found: dict[str, str] = json.loads((ROOM / f"words.{language}.json").read_text(encoding="utf-8"))
    return found


@cache
def _script_words() -> tuple[str, ...]:
    """What scripts say to people: a line each, in English."""
    return tuple((ROOM / "script_words.txt").read_text(encoding="utf-8").splitlines())


@cache
def assets() -> Mapping[str, tuple[bytes, str, str]]:
    """The files that pages load: content, media type and a name for this very content."""
    found = {}
    for path in sorted((ROOM / "static").iterdir()):
        if path.suffix in {".js", ".css", ".svg"}:
            content = path.read_bytes()
            kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
            found[path.name] = content, kind, hashlib.sha256(content).hexdigest()[:12]
    return found


def asset(name: str) -> str:
    """The address of a file that pages load; another one whenever the file is another."""
    return f"/admin/static/{name}?v={assets()[name][2]}"


def shown_bytes(size: float | None) -> str:
    """A size as people read it: 1.5 MB."""
    if size is None:
        return NOTHING
    for unit in UNITS:
        if size < THOUSAND or unit == UNITS[-1]:
            return f"{size:.0f} {unit}" if unit == "B" or size >= THOUSAND / 10 else f"{size:.1f} {unit}"
        size /= THOUSAND
    raise AssertionError


def shown_number(number: float | None) -> str:
    """1 234 567, in groups of three."""
    return NOTHING if number is None else f"{number:,.0f}".replace(",", "\u202f")


def middle(text: str, most: int) -> str:
    """A name of at most so many characters: of a longer one beginning and end."""
    if len(text) <= most:
        return text
    tail = most // 2 - 1
    return f"{text[: most - tail - 1]}…{text[-tail:]}"


def shown_value(value: object) -> str:
    """A value of a job as people read it."""
    if value is None:
        return NOTHING
    if isinstance(value, bool | dict | list):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:g}" if isinstance(value, float) else f"{value}"


def stamp(at_s: float | None) -> str:
    """A moment as machines read it, in UTC."""
    return "" if at_s is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_s))


@cache
def _templates() -> Environment:
    templates = Environment(
        loader=FileSystemLoader(ROOM / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals.update(asset=asset)
    templates.filters.update(bytes=shown_bytes, number=shown_number, stamp=stamp, middle=middle, value=shown_value)
    return templates
