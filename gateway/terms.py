"""Find a customer's own words in text: any number of lists, in one pass. Knows bytes; neither files nor classes.

A text is cut into runs of ASCII's letters and digits, and other signs, and only where one of these begins a word is more looked
at: thousands of words cost what ten do. Like everywhere in the detector, a word is found whole: neither a letter nor a digit of
ASCII stands beside it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping

from gateway.recognisers import stands_alone

__all__ = ["LEAST_SIGNS", "MOST_CHARS", "Terms"]

LEAST_SIGNS = 2
"""Letters and digits of the shortest word: a single one would be found in nearly every request."""
MOST_CHARS = 128
"""Of a word; a longer one is a sentence, of which the part that tells will do."""

_BLANK = re.compile(rb"[ \t\r\n_\-]{1,3}")
_RUN = re.compile(rb"[0-9a-z]+")
_RUN_OR_SIGN = re.compile(rb"[0-9a-z]+|[\xc0-\xff][\x80-\xbf]*|[^0-9a-z \t\r\n_\-]")
_BETWEEN = re.compile(r"[\s_\-]+")


class Terms:
    """The words of all lists, ready to be found."""

    def __init__(self, lists: Mapping[str, Iterable[str]]) -> None:
        """`lists` maps kinds to their words, normalised as the text is. About 10 µs a word."""
        self._kinds: dict[bytes, list[str]] = {}
        for kind, words in lists.items():
            for form in {form for word in words for form in _forms(word)}:
                self._kinds.setdefault(form, []).append(kind)
        self._forms: dict[bytes, list[bytes]] = {}
        """By their first part."""
        for form in self._kinds:
            self._forms.setdefault(_RUN_OR_SIGN.findall(form)[0], []).append(form)
        # Most lists have no word that begins with another sign; then half of a text need not be looked at.
        self._part = _RUN if all(map(_RUN.match, self._forms)) else _RUN_OR_SIGN
        self._patterns: dict[bytes, re.Pattern[bytes]] = {}

    def find(self, data: bytes) -> Iterator[tuple[str, int, int]]:
        """Every word in text of normalised UTF-8, as its list's kind and its place in bytes. They may overlap."""
        low = data.lower()
        begun = self._forms.keys() & set(self._part.findall(low))
        for part in self._part.finditer(low) if begun else ():
            start = part.start()
            if part[0] in begun and (start == 0 or stands_alone(low, start - 1)):
                yield from self._at(low, start, part[0])

    def _at(self, low: bytes, start: int, part: bytes) -> Iterator[tuple[str, int, int]]:
        """The longest whole word that begins here."""
        found, end = b"", start
        for form in self._forms[part]:
            stop = start + len(form)
            if b" " in form:
                match = self._pattern(form).match(low, start)
                stop = match.end() if match else -1
            elif not low.startswith(form, start):
                continue
            if stop > end and stands_alone(low, stop):
                found, end = form, stop
        for kind in self._kinds.get(found, ()):
            yield kind, start, end

    def _pattern(self, form: bytes) -> re.Pattern[bytes]:
        """Finds a word of several parts, whatever stands for its blanks; made when its first part was met."""
        pattern = self._patterns.get(form)
        if pattern is None:
            pattern = self._patterns[form] = re.compile(_BLANK.pattern.join(map(re.escape, form.split(b" "))))
        return pattern


def _forms(word: str) -> Iterator[bytes]:
    """A word as it may be written: letters other than ASCII's small, large, as given or without accents; one blank between."""
    plain = _BETWEEN.sub(" ", word).strip()
    bare = "".join(sign for sign in unicodedata.normalize("NFD", plain) if not unicodedata.combining(sign))
    for form in (plain, bare):
        for cased in (form, form.lower(), form.upper(), form.title()):
            yield cased.encode("utf-8", "surrogatepass").lower()
