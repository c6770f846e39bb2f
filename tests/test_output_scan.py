"""What the scan of a model's answer promises. Every credential here is generated from a seed at run time."""

from __future__ import annotations

import random
import string
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.output_scan import HOLD_CHARS, MASK, OutputScan

ALNUM = string.ascii_letters + string.digits


def token(seed: int) -> str:
    return "sk" + "-proj-" + "".join(random.Random(seed).choices(ALNUM, k=48))


def masked(*deltas: str) -> tuple[str, int]:
    scan = OutputScan()
    parts = [*(scan.feed(delta) for delta in deltas), scan.finish()]
    return "".join(part.text for part in parts), sum(part.n_found for part in parts)


def test_a_credential_is_masked_and_the_rest_is_not():
    """A key that a model repeats is replaced; harmless text comes out as it went in."""
    assert masked("nothing here, sk-folding is CSS\n") == ("nothing here, sk-folding is CSS\n", 0)
    assert masked(f"your key is {token(1)}, keep it") == (f"your key is {MASK}, keep it", 1)


def test_a_word_before_explains_a_value():
    """A password is masked by the word before it, also when both came in different deltas."""
    assert masked("the pass", "word is hun", "ter2!x", " ok")[0] == f"the password is {MASK} ok"


def test_a_private_key_is_masked_to_its_last_line():
    """Of a private key nothing between its first and its last line is shown."""
    body = "\n".join("".join(random.Random(2).choices(ALNUM, k=64)) for _ in range(9))
    text = f"here:\n-----BEGIN RSA PRIVATE KEY-----\n{body}\n-----END RSA PRIVATE KEY-----\nthat was it"
    shown, n_found = masked(text)
    assert (n_found, shown.endswith("that was it"), any(line in shown for line in body.split("\n"))) == (1, True, False)


def test_no_more_is_held_back_than_one_word():
    """Text behind white space is let go at once, and a word without end in bounded parts."""
    scan = OutputScan()
    assert scan.feed("a plain sentence of words ").text == "a plain sentence of words "
    assert len(scan.feed("x" * 10_000).text) >= 10_000 - HOLD_CHARS


def test_a_credential_longer_than_what_is_held_is_masked_whole():
    """Of a token longer than the window no part is shown."""
    long = "Bearer " + "".join(random.Random(3).choices(ALNUM, k=2 * HOLD_CHARS + 77))
    assert masked(long + " end")[0] == f"Bearer {MASK} end"


PIECES = st.sampled_from(["a b", " ", "\n", "password: ", "hunter2!x", token(4), "token=", "-----BEGIN PRIVATE KEY-----", "é\u200b",
                          "-----END PRIVATE KEY-----", "Bearer ", "x" * 50, "://u:p4ss@h/"])  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(pieces=st.lists(PIECES | st.text(max_size=9), max_size=25), cuts=st.lists(st.integers(0, 600), max_size=30))
def test_how_the_text_is_cut_does_not_matter(pieces, cuts):
    """Any chunking of an answer gives the same masked text and count as the whole at once."""
    text = "".join(pieces)
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    assert masked(*(text[a:b] for a, b in pairwise(places))) == masked(text)
