"""From token ids to text that may be shown: whole characters only, and nothing of a stop string. Knows no model and no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNFINISHED = "\ufffd"
"""What a decoder writes for bytes that are no character, or not yet."""

_CHARACTER_TOKENS = 4
"""A UTF-8 character has at most four bytes, so at most four tokens can be needed to finish one."""

_MOST_KEPT = 32
"""Tokens kept when they show no text at all."""


class Detokenizer:
    """Decode one answer token by token. Only the last few tokens are ever decoded again, so a token's cost is constant.

    `decode` turns ids into text and must not tidy spaces, or earlier text would change under later tokens.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._text = ""
        """The window's text."""
        self._shown = 0
        """Characters of it that are already out."""
        self._pending = 0
        """Tokens since the last one that ended a character."""

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        self._window.append(token)
        self._pending += 1
        text = self._decode(self._window)
        if text == self._text and not self._decode([token]):
            # A mark without text, perhaps in the middle of a character: as if it had not come.
            self._window.pop()
            self._pending -= 1
            return ""
        self._text = text
        new = text[self._shown :]
        if not new:
            if len(self._window) > _MOST_KEPT:
                self._rebase(_CHARACTER_TOKENS, held=0)
            return ""
        if not new.endswith(UNFINISHED):
            self._rebase(self._pending, held=0)
            self._pending = 0
            return new
        if self._pending <= _CHARACTER_TOKENS:
            return ""
        # Every one of these tokens ends inside a character: only the last character can still be unfinished.
        self._rebase(_CHARACTER_TOKENS, held=1)
        return new[:-1]

    def finish(self) -> str:
        """What is still held, without the unfinished character at its end."""
        return self._text[self._shown :].rstrip(UNFINISHED)

    def _rebase(self, keep: int, *, held: int) -> None:
        """Forget all but the last `keep` tokens, of whose text `held` characters are not out yet."""
        self._window = self._window[-keep:]
        self._text = self._decode(self._window)
        self._shown = max(0, len(self._text) - held)


class StopFilter:
    """Let text through up to the first stop string, holding back what might become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that may be shown now, and whether a stop string was met; after that nothing more may be pushed."""
        text = self._held + text
        # The first to be complete wins, so that the result does not depend on where the text was cut into pieces.
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)[1]], True
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def finish(self) -> str:
        """What was held back and never became a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop` but not all of it."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
