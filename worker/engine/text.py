"""Token ids to text that may be shown at once: never half a character, never a part of a stop string.

What it gives is a function of the ids alone, taken one by one: a replica that is fed the ids another one emitted holds
back exactly what that one held back. Knows no model.
"""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

HALF = "\N{REPLACEMENT CHARACTER}"  # what a decoder writes for bytes that are no character, or not yet one
LEFT_CONTEXT = 6  # tokens of the prompt before the first new one: decoders differ at the start of a text
LONGEST_HALF = 16  # tokens; no character has more than 4 bytes, so a longer run of halves is no character at all


class Characters:
    """Ids in, whole characters out."""

    def __init__(self, decode: Decode, context: Sequence[int]) -> None:
        self._decode = decode
        self._ids = self._window(context)  # what decides the next characters
        self._read = len(self._ids)  # ids of the window that have been given out whole
        self._given = len(decode(self._ids))  # characters of the window that have been given out

    def add(self, token: int) -> str:
        """The characters that this token completes."""
        self._ids.append(token)
        text = self._decode(self._ids)
        is_stuck = len(self._ids) - self._read > LONGEST_HALF
        whole = len(text) if is_stuck else len(text.rstrip(HALF))
        new = text[self._given : whole]
        self._given = max(self._given, whole)
        if whole == len(text):
            self._slide()
        return new

    def _window(self, context: Sequence[int]) -> list[int]:
        """The last ids of the prompt, but not so many that they begin inside a character."""
        last = [i for i in context if i >= 0][-LEFT_CONTEXT:]
        while last and self._decode(last).endswith(HALF):
            del last[0]
        return last

    def _slide(self) -> None:
        """Forget all but the ids since the last border: decoding stays short however long the text grows."""
        self._ids = self._ids[self._read :]
        self._read = len(self._ids)
        self._given = len(self._decode(self._ids))


class TextStream:
    """Characters, less what may yet become a stop string."""

    def __init__(self, decode: Decode, *, stop: Sequence[str], context: Sequence[int]) -> None:
        self._characters = Characters(decode, context)
        self._stop = tuple(stop)
        self._held = ""
        self.is_stopped = False

    def add(self, token: int) -> str:
        """The text that may be shown now. is_stopped after a stop string: what stood before it has been given."""
        self._held += self._characters.add(token)
        found = [at for s in self._stop if (at := self._held.find(s)) >= 0]
        if found:
            self.is_stopped = True
            given, self._held = self._held[: min(found)], ""
            return given
        keep = self._longest_beginning()
        given, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return given

    def flush(self) -> str:
        """What was held back for a stop string that did not come. Half a character is dropped."""
        given, self._held = self._held, ""
        return given

    def _longest_beginning(self) -> int:
        """Characters at the end of the held text that begin a stop string."""
        longest = min(len(self._held), max((len(s) for s in self._stop), default=1) - 1)
        for n in range(longest, 0, -1):
            tail = self._held[-n:]
            if any(s.startswith(tail) for s in self._stop):
                return n
        return 0
