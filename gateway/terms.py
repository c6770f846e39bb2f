"""Find a customer's own words in text: any number of lists, in one pass. Knows bytes; neither files nor classes.

The gate is one alternation of all words over text in small ASCII letters, so it costs the same for ten words and for
thousands. Like everywhere in the detector, a word is found whole: neither a letter nor a digit of ASCII stands beside it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from gateway.recognisers import stands_alone

__all__ = ["LEAST_SIGNS", "MOST_CHARS", "Terms"]

LEAST_SIGNS = 2
"""Letters and digits of the shortest word: a single one would be found in nearly every request."""
MOST_CHARS = 128
"""Of a word; a longer one is a sentence, of which the part that tells will do."""

_BLANK = re.compile(rb"[ \t\r\n_\-]{1,3}")
_BLANK_SHAPE = rb"[ \t\r\n_\-]{1,3}"
_CUT = re.compile(rb"[^0-9a-z]")
"""Where a word may end within a longer one and still stand alone."""
_BETWEEN = re.compile(r"[\s_\-]+")

Search = Callable[[bytes, int, int], Any]


class Terms:
    """The words of all lists, compiled once."""

    def __init__(self, lists: Mapping[str, Iterable[str]], compile_gate: Callable[[bytes], Any]) -> None:
        """`lists` maps kinds to their words, normalised as the text is; `compile_gate` makes a pattern for bytes."""
        self._kinds: dict[bytes, list[str]] = {}
        for kind, words in lists.items():
            for form in {form for word in words for form in _forms(word)}:
                self._kinds.setdefault(form, []).append(kind)
        # Longest first, or a word would hide a longer one that begins with it.
        gate = b"|".join(_shape(form) for form in sorted(self._kinds, key=len, reverse=True))
        self._search: Search | None = compile_gate(gate).search if gate else None

    def find(self, data: bytes) -> Iterator[tuple[str, int, int]]:
        """Every word in text of normalised UTF-8, as its list's kind and its place in bytes. They may overlap."""
        if self._search is None:
            return
        low = data.lower()
        place, size = 0, len(low)
        while match := self._search(low, place, size):
            start = match.start()
            if start == 0 or stands_alone(low, start - 1):
                yield from self._at(low, start, match.end())
            place = start + 1

    def _at(self, low: bytes, start: int, end: int) -> Iterator[tuple[str, int, int]]:
        """The longest whole word that begins here; no word that begins here ends behind `end`."""
        cuts = [cut.start() for cut in _CUT.finditer(low, start + 1, end)]
        for stop in (end, *reversed(cuts)):
            kinds = self._kinds.get(_BLANK.sub(b" ", low[start:stop])) if stands_alone(low, stop) else None
            if kinds is not None:
                for kind in kinds:
                    yield kind, start, stop
                return


def _forms(word: str) -> Iterator[bytes]:
    """A word as it may be written: letters other than ASCII's small, large, as given or without accents; one blank between."""
    plain = _BETWEEN.sub(" ", word).strip()
    bare = "".join(sign for sign in unicodedata.normalize("NFD", plain) if not unicodedata.combining(sign))
    for form in (plain, bare):
        for cased in (form, form.lower(), form.upper(), form.title()):
            yield cased.encode("utf-8", "surrogatepass").lower()


def _shape(form: bytes) -> bytes:
    """The form as a pattern that RE2 and `re` read alike."""
    signs = (bytes((byte,)) for byte in form)
    return b"".join(sign if sign.isalnum() else _BLANK_SHAPE if sign == b" " else b"\\x%02x" % sign[0] for sign in signs)
