"""What a request must be before it may enter: whole, of this base model, its ids in the vocabulary, not too long.

Whatever passes here cannot hurt the step loop. Knows tokenisers, no torch.
"""

import copy
import itertools
import threading
from collections.abc import Callable
from collections.abc import Sequence as Ids

import structlog
from transformers import PreTrainedTokenizerFast

from core.data.tokens import encode_answer, encode_prompt
from core.specs.generation import Frame, GenerateSpec
from core.specs.method import BasePrecision
from worker.engine.lexicon import Guide, Lexicon, SchemaError
from worker.engine.reading import Reading
from worker.engine.sequences import Sequence
from worker.engine.text import TextStream

log = structlog.get_logger()


class Refused(Exception):
    """A request that gets no stream but an answer: status and {"error": {code, message, param}}."""

    def __init__(
        self, status: int, code: str, message: str, param: str | None = None, *, wait_s: float | None = None
    ) -> None:
        """wait_s: after so long it may be worth another try."""
        super().__init__(message)
        self.status, self.code, self.message, self.param, self.wait_s = status, code, message, param, wait_s


class Intake:
    """Turns specs into sequences. Each use of the tokeniser has a copy of its own: two threads cannot share one."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        *,
        base_model: str,
        base_precision: BasePrecision = "bf16",
        context: int,
        vocabulary: int,
        stop_ids: frozenset[int],
    ) -> None:
        """context: tokens of one row. vocabulary: ids the model embeds. stop_ids: those that end an answer."""
        self._encoder, self._guard = copy.deepcopy(tokenizer), threading.Lock()
        self._decoder = copy.deepcopy(tokenizer).backend_tokenizer
        self._base_model, self._base_precision = base_model, base_precision
        self._context, self._vocabulary = context, vocabulary
        self._stop_ids = stop_ids
        self._lexicon = _lexicon(tokenizer, vocabulary, stop_ids)
        self._keys = itertools.count()

    def sequence(self, spec: GenerateSpec, emit: Callable[[Frame], None]) -> Sequence:
        """A sequence ready to be submitted. Takes milliseconds: call it off the event loop. Raises Refused."""
        check_base_model(spec.base_model, self._base_model)
        if spec.base_precision != self._base_precision:
            message = f"this engine serves {self._base_model} in {self._base_precision}, not in {spec.base_precision}"
            raise Refused(404, "precision_unavailable", message, "base_precision")
        self._check_words(spec)
        self._check_biases(spec)
        ids, offset = self._prompt(spec), spec.offset
        if spec.read is not None and spec.read.answer is not None:
            answer = self._answer(spec.read.answer)
            ids, offset = ids + answer, len(answer)
        room = self._context - len(ids)
        if room < 1:
            raise Refused(
                400,
                "context_length_exceeded",
                f"the prompt has {len(ids)} tokens; this model has room for {self._context - 1} and one new token",
                "messages" if spec.messages is not None else "prompt",
            )
        n_asked = len(ids) - offset
        text = TextStream(self._decode, stop=spec.sampling.stop, context=ids[:n_asked])
        for token in ids[n_asked:]:
            if token not in self._stop_ids:
                text.add(token)
        return Sequence(
            key=next(self._keys),
            prompt_ids=ids,
            offset=offset,
            sampling=spec.sampling,
            adapter=spec.adapter,
            stop_ids=self._stop_ids,
            text=text,
            limit=min(spec.sampling.max_tokens, offset + room),
            emit=emit,
            queue=spec.queue,
            wants_logprob=spec.with_logprob,
            top_logprobs=spec.top_logprobs,
            lexicon=self._lexicon,
            guide=self._guide(spec, ids[n_asked:]),
            reading=Reading(spec.read.what, spec.top_logprobs or 0) if spec.read is not None else None,
        )

    def _check_words(self, spec: GenerateSpec) -> None:
        """Some tokenisers do not say which bytes their tokens write."""
        if self._lexicon is not None:
            return
        if spec.json_schema is not None:
            raise Refused(400, "unsupported_parameter", "this base model cannot be held to JSON", "response_format")
        if spec.top_logprobs is not None or (spec.read and spec.read.what == "likelihood"):
            raise Refused(400, "unsupported_parameter", "this base model's tokens have no bytes to tell of", "logprobs")

    def _check_biases(self, spec: GenerateSpec) -> None:
        """A bias of a token that is not there would be taken and do nothing."""
        outside = [token for token, _ in spec.sampling.logit_bias if token >= self._vocabulary]
        if outside:
            message = f"logit_bias names id {outside[0]}, which is not in 0…{self._vocabulary - 1} of this base model"
            raise Refused(400, "invalid_request", message, "logit_bias")

    def _guide(self, spec: GenerateSpec, drawn: Ids[int]) -> Guide | None:
        """What holds the answer to its schema, as it stands behind what was drawn earlier."""
        if spec.json_schema is None or spec.read is not None:
            return None
        assert self._lexicon is not None
        try:
            guide = self._lexicon.guide(spec.json_schema)
        except SchemaError as error:
            param = ".".join(("response_format.json_schema.schema", *error.path))
            raise Refused(400, "invalid_json_schema", f"the schema cannot be held to: {error}", param) from None
        try:
            for token in drawn:
                if token not in self._stop_ids:
                    guide.take(token)
        except SchemaError as error:
            raise Refused(400, "invalid_request", "what was drawn does not follow the schema", "prompt_ids") from error
        return guide

    def _answer(self, answer: str) -> tuple[int, ...]:
        with self._guard:
            ids = tuple(encode_answer(answer, self._encoder))
        if not ids:
            raise Refused(400, "invalid_request", "the answer has no token", "labels")
        return ids

    def _prompt(self, spec: GenerateSpec) -> tuple[int, ...]:
        asked = [name for name in ("messages", "prompt", "prompt_ids") if getattr(spec, name) is not None]
        if len(asked) != 1:
            raise Refused(400, "invalid_request", f"give one of messages, prompt and prompt_ids; found {asked}")
        if spec.prompt_ids is None and spec.offset:
            raise Refused(400, "invalid_request", "offset goes with prompt_ids only", "offset")
        ids = spec.prompt_ids if spec.prompt_ids is not None else self._encode(spec)
        if not ids or spec.offset >= len(ids):
            raise Refused(400, "invalid_request", "the prompt has no token", asked[0])
        outside = [i for i in ids if not 0 <= i < self._vocabulary]
        if outside:
            raise Refused(400, "invalid_request", f"id {outside[0]} is not in 0…{self._vocabulary - 1}", asked[0])
        return tuple(ids)

    def _encode(self, spec: GenerateSpec) -> tuple[int, ...]:
        prompt = spec.messages if spec.prompt is None else spec.prompt
        assert prompt is not None
        try:
            with self._guard:
                return tuple(encode_prompt(prompt, self._encoder))
        except ValueError as error:
            raise Refused(400, "invalid_request", str(error), "messages") from error

    def _decode(self, ids: Ids[int]) -> str:
        text: str = self._decoder.decode(list(ids), skip_special_tokens=True)
        return text


def _lexicon(tokenizer: PreTrainedTokenizerFast, vocabulary: int, stop_ids: frozenset[int]) -> Lexicon | None:
    try:
        return Lexicon(tokenizer, vocabulary=vocabulary, stop_ids=stop_ids)
    except ValueError as error:
        log.warning("engine.no_lexicon", reason=str(error))
        return None


def check_base_model(asked: str, served: str) -> None:
    """Raises Refused (404) unless this engine serves the base model asked for."""
    if asked != served:
        raise Refused(404, "model_not_found", f"this engine serves {served}, not {asked}", "model")
