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


class OutputScan:
    """The scan of one answer. Feed it every delta in order, then `finish`: the texts joined are the whole answer, masked."""

    def __init__(self) -> None:
        self._held = ""
        self._before = ""
        self._to_the_end = False
        self._key_left = 0

    def feed(self, delta: str) -> Masked:
        """What is sure after this delta: perhaps nothing, perhaps also what was held back before."""
        return self._release(self._held + delta, last=False)

    def finish(self) -> Masked:
        """What was still held back."""
        return self._release(self._held, last=True)

    def _release(self, text: str, *, last: bool) -> Masked:
        out: list[str] = []
        place = n_found = 0
        while place < len(text):
            match = _WORD.match(text, place)
            if match is None:
                out.append(self._blank(text[place]))
                place += 1
                continue
            if match.end() == len(text) and len(match[0]) < HOLD_CHARS and not last:
                break
            shown, n_masked = self._word(match[0])
            out.append(shown)
            n_found += n_masked
            place = match.end()
        self._held = text[place:]
        return Masked("".join(out), n_found)

    def _blank(self, sign: str) -> str:
        self._to_the_end = False
        self._note(sign)
        if not self._key_left:
            return sign
        self._key_left -= 1
        return ""

    def _word(self, word: str) -> tuple[str, int]:
        """A word as it may be shown, and how many credentials begin in it."""
        before = self._before
        self._note(word)
        if self._key_left:
            ended = _KEY_ENDS.search(before + word, max(0, len(before) - 64))
            self._key_left = 0 if ended else max(0, self._key_left - len(word))
            return "", 0
        if self._to_the_end:
            return "", 0
        if len(word) < _LEAST_CHARS:
            return word, 0
        begins = _KEY_BEGINS.search(before + word, max(0, len(before) - 64))
        if begins and begins.end() > len(before) and not _KEY_ENDS.search(before + word, begins.end()):
            self._key_left = _KEY_CHARS
            return word[: max(0, begins.start() - len(before))] + MASK, 1
        return self._masked(before, word)

    def _masked(self, before: str, word: str) -> tuple[str, int]:
        out: list[str] = []
        place = n_found = 0
        for finding in locate(before + word):
            start, end = max(finding.start - len(before), place), finding.end - len(before)
            if finding.kind == "secret" and end > place:
                out += word[place:start], MASK
                rest = _REST.match(word, end)
                place, n_found = rest.end() if rest else end, n_found + 1
        self._to_the_end = place == len(word) == HOLD_CHARS
        return "".join(out) + word[place:], n_found

    def _note(self, text: str) -> None:
        self._before = (self._before + text)[-_CONTEXT_CHARS:]
