"""Mask credentials in what a model says, as it comes in pieces. Knows neither tokens nor logs nor what to do about a finding.

No credential holds white space, so text is let go word by word: a word is held back until the white space behind it, or until
it is `HOLD_CHARS` long. Which words explain it (`password is`) is read again from what went before. Private keys are the
exception: from their first line on all is masked to their last. However the text is cut, what comes out joins to the same.
"""

from __future__ import annotations

import re

from msgspec import Struct

from gateway.privacy import locate

__all__ = ["HOLD_CHARS", "MASK", "Masked", "OutputScan"]

HOLD_CHARS = 4096
"""The longest text held back. A longer word is searched in parts of this size; once masked it is masked to its end."""
MASK = "[secret]"
"""What stands in the place of a credential, whatever its length."""

_CONTEXT_CHARS = 128
_LEAST_CHARS = 6
"""No credential is shorter."""
_KEY_CHARS = 16_384
"""A private key that has not ended by then is taken for ended."""
_WORD = re.compile(rf"[^ \t\r\n\f\v]{{1,{HOLD_CHARS}}}")
_REST = re.compile(r"[0-9A-Za-z_+/=\-]*")
"""Patterns end somewhere; what goes on in the same letters behind a credential is masked with it."""
_KEY_BEGINS = re.compile(r"-----BEGIN (?:[0-9A-Z]{2,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_KEY_ENDS = re.compile(r"-----END (?:[0-9A-Z]{2,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")


class Masked(Struct, frozen=True):
    """Text that may be shown, and how many credentials were masked in it."""

    text: str
    n_found: int = 0
    pieces: tuple[tuple[int, str], ...] = ()
    """The same in pieces, each with how many characters of the answer it stands for: as many as it has, unless it was masked."""


class OutputScan:
    """The scan of one answer. Feed it every delta in order, then `finish`: the texts joined are the whole answer, masked."""

    def __init__(self) -> None:
        self._held = ""
        self._before = ""
        self._to_the_end = False
        self._key_left = 0

    @property
    def masks(self) -> bool:
        """Whether what comes next belongs to a credential that has begun."""
        return self._to_the_end or self._key_left > 0

    @property
    def window(self) -> str:
        """What the next delta is read behind: text in which something may begin that it ends."""
        return self._before + self._held

    def feed(self, delta: str) -> Masked:
        """What is sure after this delta: perhaps nothing, perhaps also what was held back before."""
        return self._release(self._held + delta, last=False)

    def finish(self) -> Masked:
        """What was still held back."""
        return self._release(self._held, last=True)

    def passed(self, delta: str, *, last: bool = False) -> int:
        """As `feed` or `finish` where the caller knows that nothing `SUSPECT` stands in `window` and this; how much is sure."""
        text = self._held + delta
        place = len(text) if last else max(text.rfind(" "), text.rfind("\n")) + 1
        if len(text) - place >= HOLD_CHARS:
            place = len(text) - HOLD_CHARS + 1
        self._before = (self._before + text[:place])[-_CONTEXT_CHARS:]
        self._held = text[place:]
        return place

    def _release(self, text: str, *, last: bool) -> Masked:
        pieces: list[tuple[int, str]] = []
        place = n_found = 0
        while place < len(text):
            match = _WORD.match(text, place)
            if match is None:
                pieces.append((1, self._blank(text[place])))
                place += 1
                continue
            if match.end() == len(text) and len(match[0]) < HOLD_CHARS and not last:
                break
            n_found += self._word(match[0], pieces)
            place = match.end()
        self._held = text[place:]
        return Masked("".join([shown for _, shown in pieces]), n_found, tuple(pieces))

    def _blank(self, sign: str) -> str:
        self._to_the_end = False
        self._note(sign)
        if not self._key_left:
            return sign
        self._key_left -= 1
        return ""

    def _word(self, word: str, pieces: list[tuple[int, str]]) -> int:
        """Add a word as it may be shown; how many credentials begin in it."""
        before = self._before
        self._note(word)
        if self._key_left:
            ended = _KEY_ENDS.search(before + word, max(0, len(before) - 64))
            self._key_left = 0 if ended else max(0, self._key_left - len(word))
            pieces.append((len(word), ""))
            return 0
        if self._to_the_end:
            pieces.append((len(word), ""))
            return 0
        if len(word) < _LEAST_CHARS:
            pieces.append((len(word), word))
            return 0
        begins = _KEY_BEGINS.search(before + word, max(0, len(before) - 64))
        if begins and begins.end() > len(before) and not _KEY_ENDS.search(before + word, begins.end()):
            self._key_left = _KEY_CHARS
            start = max(0, begins.start() - len(before))
            pieces += (start, word[:start]), (len(word) - start, MASK)
            return 1
        return self._masked(before, word, pieces)

    def _masked(self, before: str, word: str, pieces: list[tuple[int, str]]) -> int:
        place = n_found = 0
        for finding in locate(before + word):
            start, end = max(finding.start - len(before), place), finding.end - len(before)
            if finding.kind == "secret" and end > place:
                pieces.append((start - place, word[place:start]))
                rest = _REST.match(word, end)
                place, n_found = rest.end() if rest else end, n_found + 1
                pieces.append((place - start, MASK))
        self._to_the_end = place == len(word) == HOLD_CHARS
        pieces.append((len(word) - place, word[place:]))
        return n_found

    def _note(self, text: str) -> None:
        self._before = (self._before + text)[-_CONTEXT_CHARS:]
