"""Server-sent events as the OpenAI clients read them: `data:` lines, ended by [DONE] or by an error object."""

import json
from collections.abc import Mapping

HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
MEDIA_TYPE = "text/event-stream"
DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"


def event(content: Mapping[str, object]) -> bytes:
    """One event. JSON holds no raw line break, so one data line is enough."""
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
