"""How likely tokens were, in OpenAI's two shapes: one for chats, one for plain completions. Pure."""

import codecs
from collections.abc import Iterable, Sequence

from core.specs.generation import Choice, Likelihood

Shape = dict[str, object]


def of_chat(likelihoods: Sequence[Likelihood]) -> Shape:
    """choices[].logprobs of a chat completion, or of a chunk of one."""
    content = [{**_said(one), "top_logprobs": [_said(choice) for choice in one.top]} for one in likelihoods]
    return {"content": content, "refusal": None}


class Offsets:
    """choices[].logprobs of a plain completion, piece by piece: each token with where in the text it begins."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._n_characters = 0

    def of_completion(self, likelihoods: Iterable[Likelihood]) -> Shape:
        """Of the tokens that come next. The first of a text has no likelihood, and none beside it."""
        tokens, logprobs, top, offsets = list[str](), list[float | None](), list[dict[str, float] | None](), list[int]()
        for one in likelihoods:
            tokens.append(written(one.bytes))
            logprobs.append(one.logprob)
            top.append(None if one.logprob is None else {written(choice.bytes): choice.logprob for choice in one.top})
            offsets.append(self._n_characters)
            self._n_characters += len(self._decoder.decode(bytes(one.bytes)))
        return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": top, "text_offset": offsets}


def written(content: Sequence[int]) -> str:
    """A token as text; one that is no whole characters as OpenAI writes it: its bytes by name."""
    try:
        return bytes(content).decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


def _said(one: Likelihood | Choice) -> Shape:
    text = bytes(one.bytes).decode(errors="replace")
    return {"token": text, "logprob": one.logprob, "bytes": list(one.bytes)}
