"""An engine without a model: it speaks core/specs/generation.py over real HTTP and draws tokens by arithmetic.

Token t of a row is a function of the prompt's ids, the adapter, the seed and t alone, as with a real engine. So a
replay at another fake engine continues the same text. `script` says what goes wrong with the requests to come.
"""

import asyncio
import base64
import json
import socket
import struct
import threading
from dataclasses import dataclass, field

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from core.specs.generation import GenerateSpec, MeasureSpec
from core.specs.inspection import Inspected, InspectSpec
from core.specs.preview import Preview, PreviewRow, PreviewSpec, PreviewToken

WORDS = ("oak", "elm", "ash", "fir", "yew", "box", "bay", "fig", "é", "日本", "😀", "teak")


def prompt_ids_of(spec: GenerateSpec) -> tuple[int, ...]:
    if spec.prompt_ids is not None:
        return spec.prompt_ids
    text = spec.prompt if spec.prompt is not None else "".join(f"<{m.role}>{m.content}" for m in spec.messages)
    return tuple(text.encode())


def token(spec: GenerateSpec, prompt_ids: tuple[int, ...], t: int) -> int:
    wearing = sum(spec.adapter.sha256.encode()) if spec.adapter else 0
    return (sum(prompt_ids) + wearing + 31 * spec.sampling.seed + 7 * t * t) % len(WORDS)


def words_of(spec: GenerateSpec, n: int) -> str:
    """The text that a request for n tokens gets."""
    ids = prompt_ids_of(spec)
    return "".join(f" {WORDS[token(spec, ids, t)]}" for t in range(n))


def top_of(n: int) -> list[dict]:
    return [{"id": i, "bytes": list(f" {WORDS[i]}".encode()), "logprob": -0.5 - i} for i in range(n)]


def likelihood(token: int, n: int) -> dict:
    return {"id": token, "bytes": list(f" {WORDS[token]}".encode()), "logprob": -0.5 - token, "top": top_of(n)}


@dataclass
class FakeEngine:
    token_text: str
    context: int = 512
    script: list[dict] = field(default_factory=list)
    requests: list[GenerateSpec] = field(default_factory=list)
    measures: list[MeasureSpec] = field(default_factory=list)
    too_long: list[dict] = field(default_factory=list)
    measured: dict = field(default_factory=dict)  # what it says of a dataset beside its tokens
    previews: list[PreviewSpec] = field(default_factory=list)
    previewed: tuple[int, dict] | None = None  # status and body of the next previews, if not the usual answer
    inspections: list[InspectSpec] = field(default_factory=list)
    finding: tuple[int, dict] | None = None  # status and body of the next inspections, if not the usual answer
    cancelled: list[str] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    pause_s: float = 0.0
    poison: int | None = None  # a seed whose rows fail after two tokens
    members: dict[int, tuple[str, float]] = field(default_factory=dict)  # of an ensemble: text of one token, logprob
    url: str = ""

    async def generate(self, request: Request):
        if request.headers.get("authorization") != f"Bearer {self.token_text}":
            return JSONResponse({"error": {"code": "unauthorized", "message": "no"}}, 401)
        spec = GenerateSpec.model_validate_json(await request.body())
        self.requests.append(spec)
        act = self.script.pop(0) if self.script else {}
        if status := act.get("status"):
            return JSONResponse(act.get("body", {}), status, headers={"retry-after": "1"})
        return StreamingResponse(self._frames(spec, act), media_type="application/x-ndjson")

    async def _frames(self, spec: GenerateSpec, act: dict):
        self.running.add(spec.request_id)
        try:
            for seq, frame in enumerate(self._plan(spec, act)):
                if act.get("die_after") == seq:
                    raise ConnectionResetError
                if act.get("end_after") == seq:
                    return
                if act.get("hang_after") == seq:
                    await asyncio.Event().wait()
                await asyncio.sleep(self.pause_s)
                yield json.dumps({"seq": seq + (seq == act.get("gap_at")), **frame}).encode() + b"\n"
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.append(spec.request_id)
            raise
        finally:
            self.running.discard(spec.request_id)

    def _plan(self, spec: GenerateSpec, act: dict):
        ids = prompt_ids_of(spec)
        if fault := act.get("refuse"):
            yield {"prompt_ids": ids, "error": fault}
            return
        if spec.read:
            yield self._read(spec, ids)
            return
        own = ids[: len(ids) - spec.offset]
        if len(own) > self.context:
            message = f"the prompt has {len(own)} tokens; at most {self.context} fit"
            error = {"code": "context_length_exceeded", "message": message, "param": "messages"}
            yield {"prompt_ids": ids, "error": error}
            return
        if spec.adapter and spec.adapter.member in self.members:
            text, logprob = self.members[spec.adapter.member]
            said = {"logprob": logprob} if spec.with_logprob else {}
            yield {"ids": [1], "text": text, "fin": "stop", "prompt_ids": ids, **said}
            return
        for number, t in enumerate(range(spec.offset, spec.sampling.max_tokens)):
            if act.get("fail_at") == number:
                yield {"error": act["error"]}
                return
            if spec.sampling.seed == self.poison and number == 2:
                yield {"error": {"code": "model_output_invalid", "message": "not finite"}}
                return
            new = token(spec, own, t)
            fin = "length" if t == spec.sampling.max_tokens - 1 else None
            first = {"prompt_ids": ids} if number == 0 else {}
            told = {} if spec.top_logprobs is None else {"likelihoods": [likelihood(new, spec.top_logprobs)]}
            yield {"ids": [new], "text": f" {WORDS[new]}", "fin": fin, **first, **told}

    def _read(self, spec: GenerateSpec, ids: tuple[int, ...]) -> dict:
        """A vector of the prompt's length and sum; a token for each byte, the less likely the larger it is."""
        if spec.read.what == "embedding":
            vector = base64.b64encode(struct.pack("<2f", len(ids), sum(ids))).decode()
            return {"prompt_ids": ids, "fin": "stop", "embedding": vector}
        answer = tuple((spec.read.answer or "").encode())
        said = [
            {"id": i, "bytes": [i], "logprob": -i / 256, "top": top_of(spec.top_logprobs or 0)} for i in answer or ids
        ]
        if not answer:
            said[0] |= {"logprob": None, "top": []}
        return {"prompt_ids": ids + answer, "fin": "stop", "likelihoods": said}

    async def measure(self, request: Request):
        spec = MeasureSpec.model_validate_json(await request.body())
        self.measures.append(spec)
        counted = {"tokens": 10, "learned_tokens": 5, "context": self.context, "too_long": self.too_long}
        lengths = {} if spec.first is None else {"lengths": [9, 12, 12, 40]}
        return JSONResponse(counted | lengths | self.measured)

    async def preview(self, request: Request):
        """One row of three tokens, whatever is asked, or what previewed says."""
        spec = PreviewSpec.model_validate_json(await request.body())
        self.previews.append(spec)
        if self.previewed:
            status, body = self.previewed
            return JSONResponse(body, status)
        tokens = [PreviewToken(id=n, text=WORDS[n], label=n or -100) for n in range(3)]
        row = {"line": 1, "n_tokens": 3, "n_learned": 2, "truncated": False, "trained_spans": [(1, 3)]}
        counts = {"n_examined": 1, "n_errors": 0, "errors": (), "n_warnings": 0, "warnings": ()}
        about = {"format": "chat", "container": "jsonl", "context": self.context, "max_seq_length": spec.max_tokens}
        found = Preview(**about, **counts, rows=(PreviewRow(**row, tokens=tuple(tokens)),))
        return JSONResponse(found.model_dump(mode="json"))

    async def inspect(self, request: Request):
        """Everything is a sound LORA that needs no rewriting."""
        if request.headers.get("authorization") != f"Bearer {self.token_text}":
            return JSONResponse({"error": {"code": "unauthorized", "message": "no"}}, 401)
        spec = InspectSpec.model_validate_json(await request.body())
        self.inspections.append(spec)
        if self.finding:
            status, body = self.finding
            return JSONResponse(body, status)
        details = {"origin": "import", "base_precision": spec.base_precision, "parameters": 9, "warnings": ["odd"]}
        kept = {"sha256": spec.file_sha256, "size_bytes": 5, "peft_type": "LORA", "parameters": 9}
        return JSONResponse(Inspected(**kept, warnings=("odd",), details=details).model_dump(mode="json"))

    def app(self) -> Starlette:
        answers = {
            "/generate": self.generate,
            "/measure": self.measure,
            "/preview": self.preview,
            "/inspect": self.inspect,
        }
        return Starlette(routes=[Route(path, answer, methods=["POST"]) for path, answer in answers.items()])


class Served:
    """An ASGI application on a free port of this machine, in a thread."""

    def __init__(self, app, port: int = 0) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(("127.0.0.1", port))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._server.install_signal_handlers = lambda: None
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self.socket]}, daemon=True)

    def __enter__(self):
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise RuntimeError("the server did not start")
            threading.Event().wait(0.005)
        return self

    def __exit__(self, *_):
        self._server.should_exit = True
        self._thread.join(10)
        self.socket.close()
