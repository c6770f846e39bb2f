"""What the search for a customer's own words promises."""

from __future__ import annotations

import random
import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.privacy import DETECTOR, Detector, scan, with_terms
from gateway.recognisers import SEPARATOR

LISTS = {"project": ["Blue Heron", "Heron Nest", "Zürich-7", "Élan"], "client": ["Acme", "Acme Labs", "東京計画"]}
TERMS = with_terms(LISTS)


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("about BLUE  heron?", {"project"}),
        ("blue_heron.txt and Blue-Heron", {"project"}),
        ("\uff22\uff4c\uff55\uff45\nHe\u200bron", {"project"}),
        ("in zürich 7.", {"project"}),
        ("ÉLAN", {"project"}),
        ("E\u0301lan", {"project"}),
        ("acme laboratory", {"client"}),
        ("昨日東京計画を", {"client"}),
        ("lightblue heron nest", {"project"}),
        ("blue herons, Zürich-77, acmeist", set()),
        (SEPARATOR.join(("blue", "heron")), set()),
    ],
)
def test_a_word_is_found_whole_in_any_case_and_disguise(text, kinds):
    """A term is found as the detector reads text: folded, whatever its case and blanks, and never as a part of a word."""
    assert TERMS.kinds(text) == kinds


def test_a_term_is_located_where_it_stands():
    """The place of a term is told in the text as it was given, the longest where one begins with another."""
    text = "ask \uff21cme  Labs, or acme."
    assert [(one.kind, text[one.start : one.end]) for one in TERMS.locate(text)] == [
        ("client", "\uff21cme  Labs"),
        ("client", "acme"),
    ]


def test_terms_come_beside_the_detectors_own_kinds():
    """Other kinds are found as ever; without terms it is the very detector that everybody shares."""
    assert TERMS.kinds("Acme: ada@example.org") == {"client", "email"}
    assert with_terms({}) is DETECTOR
    assert DETECTOR.kinds("Acme: ada@example.org") == {"email"}


def test_what_was_read_without_a_term_is_read_again_with_it():
    """A verdict remembered under other terms is not used."""
    body = {"content": "and so on, Acme " * 300}
    assert scan(body, max_chars=10**6).kinds == frozenset()
    assert scan(body, max_chars=10**6, detector=TERMS).kinds == {"client"}


WORDS = st.lists(st.text("abAB 1-é", min_size=2, max_size=8).filter(lambda word: sum(map(str.isalnum, word)) > 1), max_size=4)


@given(WORDS, st.text("abAB 1-é.", max_size=30))
def test_both_engines_find_the_same(words, text):
    """The findings do not hang on whether google-re2 is installed."""
    assert Detector(terms={"t": words}).find(text) == Detector(terms={"t": words}, with_re2=False).find(text)


def test_thousands_of_words_cost_what_ten_do():
    """The scan is one pass whatever the number of words: twenty thousand take no more than a few times as long as ten."""
    drawn = random.Random(5)
    words = ["".join(drawn.choices(string.ascii_lowercase, k=9)) + " " + str(n) for n in range(20_000)]
    text = "".join(drawn.choices(string.ascii_lowercase + "  ", k=100_000))

    def cpu_s(detector):
        detector.kinds(text)
        times = []
        for _ in range(9):
            began = time.thread_time()
            detector.kinds(text)
            times.append(time.thread_time() - began)
        return min(times)

    assert cpu_s(with_terms({"t": words})) < 10 * cpu_s(with_terms({"t": words[:10]}))


def test_the_first_scan_costs_what_later_ones_do():
    """Nothing is put off to the first text that is read with new words, where a client would wait for it."""
    drawn = random.Random(7)
    words = ["".join(drawn.choices(string.ascii_lowercase, k=7)) for _ in range(20_000)]
    text = "".join(drawn.choices(string.ascii_lowercase + "  ", k=100_000))
    rounds = []
    for _ in range(3):
        detector, times = with_terms({"t": words}), []
        for _ in range(2):
            began = time.thread_time()
            detector.kinds(text)
            times.append(time.thread_time() - began)
        rounds.append(times)
    assert min(first for first, _ in rounds) < 10 * min(later for _, later in rounds)
