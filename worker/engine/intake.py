"""What a request must be before it may enter: whole, of this base model, its ids in the vocabulary, not too long.

Whatever passes here cannot hurt the step loop. Knows tokenisers, no torch.
"""

import copy
import itertools
import threading
from collections.abc import Callable
from collections.abc import Sequence as Ids

from transformers import PreTrainedTokenizerFast

from core.data.tokens import encode_prompt
from core.specs.generation import Frame, GenerateSpec
from core.specs.method import BasePrecision
from worker.engine.sequences import Sequence
from worker.engine.text import TextStream


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
        self._keys = itertools.count()

    def sequence(self, spec: GenerateSpec, emit: Callable[[Frame], None]) -> Sequence:
        """A sequence ready to be submitted. Takes milliseconds: call it off the event loop. Raises Refused."""
        check_base_model(spec.base_model, self._base_model)
        if spec.base_precision != self._base_precision:
            message = f"this engine serves {self._base_model} in {self._base_precision}, not in {spec.base_precision}"
            raise Refused(404, "precision_unavailable", message, "base_precision")
        ids = self._prompt(spec)
        room = self._context - len(ids)
        if room < 1:
            raise Refused(
                400,
                "context_length_exceeded",
                f"the prompt has {len(ids)} tokens; this model has room for {self._context - 1} and one new token",
                "messages" if spec.messages is not None else "prompt",
            )
        n_asked = len(ids) - spec.offset
        text = TextStream(self._decode, stop=spec.sampling.stop, context=ids[:n_asked])
        for token in ids[n_asked:]:
            if token not in self._stop_ids:
                text.add(token)
        return Sequence(
            key=next(self._keys),
            prompt_ids=ids,
            offset=spec.offset,
            sampling=spec.sampling,
            adapter=spec.adapter,
            stop_ids=self._stop_ids,
            text=text,
            limit=min(spec.sampling.max_tokens, spec.offset + room),
            emit=emit,
            queue=spec.queue,
            wants_logprob=spec.with_logprob,
        )

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


def check_base_model(asked: str, served: str) -> None:
    """Raises Refused (404) unless this engine serves the base model asked for."""
    if asked != served:
        raise Refused(404, "model_not_found", f"this engine serves {served}, not {asked}", "model")
