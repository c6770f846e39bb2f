"""The string literals of a JSON document, and an edit of some of them: everything else stays byte for byte. Knows no shapes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

Path = tuple[str | int, ...]
"""The keys and positions that lead to a value; to a key of an object, with the key itself at the end."""

_MARK = re.compile(rb'["{}\[\],]')
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_QUOTE, _COMMA, _BRACE, _OPEN = *b'",{', frozenset(b"{[")
_decode = json.JSONDecoder(strict=False).decode


class Literal(NamedTuple):
    """One string of a document."""

    start: int
    end: int
    """Of its bytes, quotes included."""
    path: Path
    text: str
    is_key: bool


def strings(document: bytes) -> Iterator[Literal]:
    """Every string of a valid JSON document, in its order."""
    way: list[str | int] = []
    key_next: list[bool | None] = []
    """By open container: None for an array, else whether the next string is a key."""
    end = 0
    while token := _MARK.search(document, end):
        start, end = token.span()
        first = document[start]
        if first == _QUOTE:
            end = _end_of(document, start)
            text = _text_of(document[start:end])
            if key_next and key_next[-1]:
                way[-1], key_next[-1] = text, False
                yield Literal(start, end, tuple(way), text, True)
            else:
                yield Literal(start, end, tuple(way), text, False)
        elif first == _COMMA:
            if key_next[-1] is None:
                way[-1] = int(way[-1]) + 1
            else:
                key_next[-1] = True
        elif first in _OPEN:
            way.append(0)
            key_next.append(True if first == _BRACE else None)
        else:
            way.pop()
            key_next.pop()


def replaced(document: bytes, changes: Iterable[tuple[Literal, str]]) -> bytes:
    """The document with other texts in some of its strings, which are given in its order."""
    out: list[bytes] = []
    done = 0
    for literal, text in changes:
        if text != literal.text:
            raw = document[literal.start : literal.end]
            out += (document[done : literal.start], _literal(text, ascii_only=raw.isascii()))
            done = literal.end
    return b"".join((*out, document[done:])) if done else document


def edited(document: bytes, edit: Callable[[Literal], str]) -> bytes:
    """The document with every string as `edit` gives it, which is called in its order. A string that stays keeps its bytes."""
    return replaced(document, [(literal, edit(literal)) for literal in strings(document)])


def _end_of(document: bytes, start: int) -> int:
    """Where the string that begins here ends; one without escapes is passed over at the speed of memory."""
    end = document.find(b'"', start + 1)
    if end >= 0 and document.find(b"\\", start, end) < 0:
        return end + 1
    string = _STRING.match(document, start)
    return string.end() if string else len(document)


def _text_of(raw: bytes) -> str:
    text = raw.decode("utf-8", "surrogatepass")
    return str(_decode(text)) if "\\" in text else text[1:-1]


def _literal(text: str, *, ascii_only: bool) -> bytes:
    """The text as a literal, escaped as its document does; half a surrogate pair has no other form than an escape."""
    if not ascii_only:
        try:
            return json.dumps(text, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            pass
    return json.dumps(text).encode()
