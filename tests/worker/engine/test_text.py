"""Ids to text, with a decoder whose tokens are single bytes: every border is a possible half character."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.engine.text import LONGEST_HALF, Characters, TextStream


def decode(ids):
    return bytes(ids).decode("utf-8", errors="replace")


def decode_with_byte_fallback(ids):
    """As sentencepiece vocabularies do: ASCII has tokens of its own; a run of byte tokens that is no text as a whole is
    all replacement marks, even where a part of it was text before."""
    return re.sub(rb"[\x80-\xff]+", lambda run: _run(run[0]).encode(), bytes(ids)).decode()


def _run(content):
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "\N{REPLACEMENT CHARACTER}" * len(content)


def given_out(stream, ids):
    texts = []
    for token in ids:
        texts.append(stream.add(token))
        if getattr(stream, "is_stopped", False):
            return texts
    return texts


texts = st.text(st.characters(codec="utf-8", exclude_characters="\N{REPLACEMENT CHARACTER}"), max_size=30)


@pytest.mark.parametrize("decoder", [decode, decode_with_byte_fallback])
@settings(max_examples=150, deadline=None)
@given(text=texts, context=texts)
def test_whole_characters_come_out_each_as_soon_as_it_is_complete(decoder, text, context):
    ids = list(text.encode())
    parts = given_out(Characters(decoder, list(context.encode())[-6:]), ids)
    assert "".join(parts) == text
    for at in range(len(ids)):
        assert "".join(parts[: at + 1]) == bytes(ids[: at + 1]).decode("utf-8", errors="ignore")


def test_the_law_of_whole_characters_fails_for_a_decoder_used_token_by_token():
    ids = list("é".encode())
    assert "".join(decode([i]) for i in ids) != "é"


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 255), max_size=80))
def test_bytes_that_are_no_text_neither_stall_nor_grow_the_window(ids):
    characters = Characters(decode, [])
    for token in ids:
        characters.add(token)
        assert len(characters._ids) <= 2 * (LONGEST_HALF + 1)


def cut(text, stops):
    """Semantics of stop strings: characters one by one; at the first that completes one, cut before the earliest."""
    for end in range(1, len(text) + 1):
        found = [at for s in stops if (at := text.find(s, 0, end)) >= 0]
        if found:
            return text[: min(found)], True
    return text, False


stops = st.lists(st.text("ab€ ", min_size=1, max_size=5), max_size=3)


@settings(max_examples=300, deadline=None)
@given(text=st.text("ab€ ", max_size=30), stop=stops)
def test_a_stop_string_cuts_the_text_wherever_token_borders_lie(text, stop):
    stream = TextStream(decode, stop=stop, context=[])
    shown = "".join(given_out(stream, text.encode()))
    if not stream.is_stopped:
        shown += stream.flush()
    assert (shown, stream.is_stopped) == cut(text, stop)


def test_text_that_may_become_a_stop_string_is_held_back_and_no_more_than_that():
    stream = TextStream(decode, stop=["END"], context=[])
    assert given_out(stream, b"xENE") == ["x", "", "", "EN"]
    assert given_out(stream, b"ND") == ["", ""]
    assert stream.is_stopped
    assert stream.flush() == ""


def test_what_was_held_back_is_given_at_the_end_without_the_half_character():
    stream = TextStream(decode, stop=["END"], context=[])
    given_out(stream, b"EN" + "é".encode()[:1])
    assert stream.flush() == "EN"


@settings(max_examples=150, deadline=None)
@given(text=st.text("ab€ ", max_size=25), stop=stops, at=st.integers(0, 60))
def test_a_stream_fed_with_emitted_ids_goes_on_as_if_never_cut(text, stop, at):
    ids = list(text.encode())
    uncut = TextStream(decode, stop=stop, context=b"prompt")
    whole = given_out(uncut, ids)
    at = min(at, len(whole))
    resumed = TextStream(decode, stop=stop, context=b"prompt")
    given_out(resumed, ids[:at])
    rest = [] if resumed.is_stopped else given_out(resumed, ids[at:])
    assert whole[at:] == rest
