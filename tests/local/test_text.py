"""Whole characters and stop strings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from gateway.local.text import UNFINISHED, Detokenizer, StopFilter

TEXTS = st.text(st.characters(exclude_characters=UNFINISHED, exclude_categories=["Cs"]), max_size=40) | st.text(
    "€漢字ü🙂the ", max_size=40
)


@pytest.fixture(scope="module")
def fallback_tokenizer():
    """Bytes as single tokens, decoded the way SentencePiece models with byte fallback are."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def pushed(decode, tokens):
    detokenizer = Detokenizer(decode)
    return [*(detokenizer.push(token) for token in tokens), detokenizer.finish()]


@given(text=TEXTS, cut=st.integers(0, 200))
def test_no_half_character_is_shown_wherever_an_answer_ends(byte_tokenizer, text, cut):
    """However a text is cut into tokens and wherever it ends, only whole characters of it come out."""
    tokens = byte_tokenizer.encode(text).ids
    shown = pushed(byte_tokenizer.decode, tokens[:cut])
    assert UNFINISHED not in "".join(shown)
    assert text.startswith("".join(shown))
    assert cut < len(tokens) or "".join(shown) == text


@given(text=TEXTS)
def test_byte_fallback_tokens_make_whole_characters(fallback_tokenizer, text):
    """Tokenizers that spell rare characters in bytes show them whole, too."""
    shown = pushed(fallback_tokenizer.decode, list(text.encode()))
    assert "".join(shown) == text


@given(tokens=st.lists(st.integers(0, 319), max_size=120))
def test_any_tokens_give_what_decoding_them_at_once_gives(byte_tokenizer, tokens):
    """Whatever a model produces, the pieces are the text of the whole, but for unfinished characters at the end."""
    whole = byte_tokenizer.decode(tokens)
    assert "".join(pushed(byte_tokenizer.decode, tokens)).rstrip(UNFINISHED) == whole.rstrip(UNFINISHED)


def test_a_token_costs_the_same_late_as_early(byte_tokenizer):
    """Only a few tokens are decoded for each new one, however long the answer is and whatever it is made of."""
    seen = []
    straddling = byte_tokenizer.encode("€" * 300).ids
    invalid = [byte_tokenizer.token_to_id("Ģ")] * 300
    silent = [2] * 300
    for tokens in (straddling, invalid, silent):
        pushed(lambda ids: seen.append(len(ids)) or byte_tokenizer.decode(ids), tokens)
    assert max(seen) <= 34


def first_stop(text, stops):
    """What stands before the first stop string that becomes complete, reading one character at a time."""
    for end in range(1, len(text) + 1):
        sizes = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if sizes:
            return text[: end - max(sizes)], True
    return text, False


@given(
    pieces=st.lists(st.text("abc", max_size=4), max_size=12), stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=4)
)
def test_stop_strings_end_the_text_however_it_arrives(pieces, stops):
    """The text ends before the first stop string to be complete, wherever the pieces are cut."""
    matcher, shown, stopped = StopFilter(stops), "", False
    for piece in pieces:
        text, stopped = matcher.push(piece)
        shown += text
        if stopped:
            break
    assert (shown if stopped else shown + matcher.finish(), stopped) == first_stop("".join(pieces), stops)


def test_only_what_may_become_a_stop_string_waits():
    """Text that cannot begin a stop string passes at once."""
    matcher = StopFilter(["\nUser:"])
    assert matcher.push("Hello\n") == ("Hello", False)
    assert matcher.push("there") == ("\nthere", False)
