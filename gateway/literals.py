"""The string literals of a JSON document, and an edit of some of them: everything else stays byte for byte. Knows no shapes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

Path = tuple[str | int, ...]
"""The keys and positions that lead to a value; to a key of an object, with the key itself at the end."""

Edit = Callable[[Path, str, bool], str]
"""Takes where a string stands, the string, and whether it is a key; gives what is to stand there. Called in document order."""

_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\],]', re.DOTALL)
_QUOTE, _COMMA, _OPEN = ord('"'), ord(","), frozenset(b"{[")
_decode = json.JSONDecoder(strict=False).decode


def edited(document: bytes, edit: Edit) -> bytes:
    """The document with every string as `edit` gives it. The document is valid JSON; a string that stays keeps its bytes."""
    out: list[bytes] = []
    done = 0
    way: list[str | int] = []
    key_next: list[bool | None] = []
    """By open container: None for an array, else whether the next string is a key."""
    for token in _TOKEN.finditer(document):
        first = document[token.start()]
        if first == _QUOTE:
            raw = token[0]
            text = _text_of(raw)
            is_key = bool(key_next and key_next[-1])
            if is_key:
                way[-1], key_next[-1] = text, False
            new = edit(tuple(way), text, is_key)
            if new != text:
                out += (document[done : token.start()], _literal(new, ascii_only=raw.isascii()))
                done = token.end()
        elif first == _COMMA:
            if key_next[-1] is None:
                way[-1] = int(way[-1]) + 1
            else:
                key_next[-1] = True
        elif first in _OPEN:
            way.append(0)
            key_next.append(True if first == ord("{") else None)
        else:
            way.pop()
            key_next.pop()
    return b"".join((*out, document[done:])) if done else document


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
