"""Find personal data and secrets in the text of a request, and say how sensitive that makes it.

Knows the shape of JSON and the order of classes; knows neither upstreams nor policy files, and never keeps or reports the
text it saw. Names and postal addresses are not detected. What is searched for stands in `recognisers.py`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Protocol

from msgspec import Struct

from gateway.recognisers import CONTEXT_BYTES, FAMILIES, GROUP, KINDS, SEPARATOR, Family, Kind

try:
    import re2
except ImportError:
    re2 = None

__all__ = ["CLASSES", "KINDS", "Detector", "Finding", "Kind", "Scan", "classify", "find", "highest", "normalise", "scan"]

CLASSES = ("public", "internal", "confidential", "restricted")
"""From the least to the most sensitive."""

UNSCANNABLE = "unscannable"
MIN_NUMBER = 10**8
"""JSON numbers of nine digits and more are read as text: an SSN or a card number need not be quoted."""
BLOB_CHARS = 4096
"""A longer string without a space, under a key that holds files, is a file and not text."""


class Finding(Struct, frozen=True):
    """One finding by kind and place: character offsets into the *normalised* text; never the text itself."""

    kind: str
    start: int
    end: int


class Scan(Struct, frozen=True):
    """What a body holds, without any of its text."""

    kinds: frozenset[str]
    n_chars: int
    """Characters of all strings met, before normalisation."""
    oversize: bool
    """The body has more than `max_chars`; then nothing was searched."""
    failed: str = ""
    """Type name of the exception that ended the scan, never its text."""


def highest(*classes: str) -> str:
    """The most sensitive of these classes; `public` for none, `restricted` when one is not known."""
    return CLASSES[max((CLASSES.index(name) if name in CLASSES else len(CLASSES) - 1 for name in classes), default=0)]


def classify(scan: Scan, classes: Mapping[str, str]) -> str:
    """The class of a scanned body; `classes` maps kinds to classes. What is unmapped, too large or failed is `restricted`."""
    if scan.failed or scan.oversize:
        return CLASSES[-1]
    return highest(*(classes.get(kind, CLASSES[-1]) for kind in scan.kinds))


# Normalisation


def _plain_form(letter: str) -> str | None:
    """What a character stands for in ASCII; empty when it is invisible; None when it stands for itself."""
    category = unicodedata.category(letter)
    if (
        category in {"Cf", "Me"}
        or letter in "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"
        or 0xFE00 <= ord(letter) <= 0xFE0F
        or 0x300 <= ord(letter) < 0x370
    ):
        return ""
    if category == "Nd":
        return str(unicodedata.decimal(letter))
    if category == "Pd" or letter == "\u2212":
        return "-"
    if category in {"Zs", "Zl", "Zp"} or letter == "\u2800":
        return " "
    folded = unicodedata.normalize("NFKC", letter)
    return folded if folded.isascii() else None


def _fold_table() -> Mapping[str, str]:
    """All characters that have a plain form. The planes above the second hold ideographs and, at the end, tags."""
    letters = [*range(0x80, 0x3400), *range(0xA000, 0xAC00), *range(0xF900, 0x20000), *range(0xE0000, 0xE01F0)]
    found = {chr(code): "" if code >= 0xE0000 else _plain_form(chr(code)) for code in letters}
    return MappingProxyType({letter: plain for letter, plain in found.items() if plain is not None})


_FOLDED = _fold_table()
_FIRST_PLANE = "".join(re.escape(letter) for letter in _FOLDED if letter < "\U00010000")
_FOLDABLE = re.compile("[" + _FIRST_PLANE + "\U00010000-\U0001ffff\U000e0000-\U000e01ef]")
"""`re` looks characters of the first plane up in a bitmap but walks a list of all others, so those are two ranges."""
_ESCAPED = re.compile(r"(?<!\\)\\+(?:u00([2-7][0-9A-Fa-f])|([\"'/])|[nrt])")


def _unescape(match: re.Match[str]) -> str:
    return chr(int(match[1], 16)) if match[1] else match[2] or "\n"


def normalise(text: str) -> str:
    r"""The text as it is searched: look-alikes of ASCII folded, invisible characters dropped, inner JSON escapes read.

    This is NFKC (UAX 15) character by character, as far as it leads to ASCII, with the decimal digits of every script.
    Whole-string NFKC also reorders and composes accents, which no pattern reads and which takes quadratic time on a long run
    of them in CPython. `\n`, `\"` and `\u0034` are read because tool arguments are JSON inside a JSON string.
    """
    if not text.isascii():
        text = _FOLDABLE.sub(lambda match: _FOLDED.get(match[0], match[0]), text)
    return _ESCAPED.sub(_unescape, text) if "\\" in text else text


# Search


class Gate(Protocol):
    """A compiled gate or context: what `re` and RE2 patterns have in common."""

    def finditer(self, text: bytes, pos: int, endpos: int, /) -> Iterator[Any]:
        """Matches in order, without overlap."""
        ...

    def search(self, text: bytes, /) -> object | None:
        """The first match, or None."""
        ...


def compile_with_re2(pattern: bytes) -> Gate:
    """A gate that runs in linear time and outside the interpreter."""
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.log_errors = False
    gate: Gate = re2.compile(pattern, options)
    return gate


def compile_with_re(pattern: bytes) -> Gate:
    """A gate where google-re2 is not installed: the same matches, far slower."""
    return re.compile(pattern)


class Detector:
    """The table of recognisers with its gates compiled by one engine. Immutable, so all requests share one."""

    def __init__(self, *, with_re2: bool = re2 is not None) -> None:
        compiled = compile_with_re2 if with_re2 else compile_with_re
        self._any = compiled(b"|".join(b"(?:" + family.gate + b")" for family in FAMILIES))
        self._families = tuple((compiled(family.gate), family) for family in FAMILIES)
        self._contexts = {rule.before: compiled(rule.before) for family in FAMILIES for rule in family.rules if rule.before}

    def find(self, text: str) -> list[Finding]:
        """Every finding in the text, by place. Only findings of different kinds overlap."""
        data = _encode(normalise(text))
        spans: list[tuple[str, int, int]] = []
        for kind, start, end in sorted(set(self._search(data, set()))):
            if spans and spans[-1][0] == kind and start < spans[-1][2]:
                spans[-1] = (kind, spans[-1][1], max(end, spans[-1][2]))
            else:
                spans.append((kind, start, end))
        findings = [Finding(kind, _chars(data, start), _chars(data, end)) for kind, start, end in spans]
        return sorted(findings, key=lambda finding: (finding.start, finding.end))

    def kinds(self, text: str) -> frozenset[str]:
        """The kinds found in the text. Once a kind is found, it is not looked for again."""
        done: set[str] = set()
        for kind, _, _ in self._search(_encode(normalise(text)), done):
            done.add(kind)
        return frozenset(done)

    def _search(self, data: bytes, done: set[str]) -> Iterator[tuple[str, int, int]]:
        """Findings as kind and byte span, without those whose kind is in `done` when their turn comes.

        One pass of all gates together finds the few places worth a look; only there each gate is run by itself, because the
        match of one may cover the beginning of another's.
        """
        hot = self._hot(data)
        for gate, family in self._families if hot else ():
            for begin, stop in hot:
                if all(rule.kind in done for rule in family.rules):
                    break
                for match in gate.finditer(data, begin, stop):
                    yield from self._judge(family, data, match.span(), done)

    def _hot(self, data: bytes) -> list[tuple[int, int]]:
        """Where any gate can match. Each match of the joined gates is widened by `_REACH`, and merged with the next."""
        hot: list[tuple[int, int]] = []
        for match in self._any.finditer(data, 0, len(data)):
            start, end = match.span()
            end = min(len(data), end + _REACH)
            if hot and start <= hot[-1][1]:
                hot[-1] = (hot[-1][0], end)
            else:
                hot.append((start, end))
        return hot

    def _judge(self, family: Family, data: bytes, span: tuple[int, int], done: set[str]) -> Iterator[tuple[str, int, int]]:
        """What the rules of a family say about one match of its gate."""
        begin, stop = span
        starts = [group.start() for group in GROUP.finditer(data, begin, stop)] if family.by_group else [begin]
        for rule in family.rules:
            named = rule.before is None or self._contexts[rule.before].search(data[max(0, begin - CONTEXT_BYTES) : begin + 1])
            if not named and rule.after is None:
                continue
            for start in starts:
                if rule.kind in done:
                    break
                match = rule.pattern.match(data, start)
                found = rule.check(match) if match else None
                if found and (named or (rule.after and rule.after.match(data, found[1]))):
                    yield rule.kind, *found


_REACH = 128
"""Longer than any gate's match but a run of digits, and what another match has left of such a run is a match again."""

_CONTINUATION = bytes(range(0x80, 0xC0))
"""The bytes of UTF-8 that begin no character."""

_DETECTOR = Detector()


def _encode(text: str) -> bytes:
    """UTF-8 that also carries lone surrogates, which JSON may hold and no pattern reads."""
    return text.encode("utf-8", "surrogatepass")


def _chars(data: bytes, n_bytes: int) -> int:
    """How many characters begin in the first `n_bytes`; a rule may cut one that has several bytes."""
    return len(data[:n_bytes].translate(None, _CONTINUATION))


def find(text: str) -> list[Finding]:
    """Every finding in the text, by place; offsets are into `normalise(text)`."""
    return _DETECTOR.find(text)


# Bodies

_FILE_KEYS = frozenset({"url", "image_url", "data", "b64_json", "file_data"})
_DATA_URL = re.compile(r"data:[\w.+\-]+/[\w.+\-]+(?:;[\w.+\-]+=[\w.+\-]+)*;base64,\S*\Z", re.ASCII | re.IGNORECASE)


def scan(body: object, *, max_chars: int) -> Scan:
    """Search every string of a parsed JSON value: values, object keys and long numbers, however deep.

    Never raises: an exception inside, also for what JSON cannot hold, becomes `failed`. Time is linear in the body.
    """
    try:
        texts, n_chars, blobs = _texts(body, max_chars)
        if n_chars > max_chars:
            return Scan(frozenset(), n_chars, oversize=True)
        kinds = _DETECTOR.kinds(SEPARATOR.join(texts))
        return Scan(kinds | {UNSCANNABLE} if blobs else kinds, n_chars, oversize=False)
    except Exception as error:  # noqa: BLE001 - the promise is to fail closed, whatever happened; the type name is recorded
        return Scan(frozenset(), 0, oversize=False, failed=type(error).__name__)


def _texts(body: object, max_chars: int) -> tuple[list[str], int, bool]:
    """The strings in document order, how many characters, and whether files were among them. Stops above `max_chars`."""
    texts: list[str] = []
    n_chars, blobs = 0, False
    todo: list[tuple[str, object]] = [("", body)]
    while todo:
        key, value = todo.pop()
        if isinstance(value, str):
            n_chars += len(value)
            if key in _FILE_KEYS and _is_file(value):
                blobs = True
            else:
                texts.append(value)
        elif isinstance(value, dict):
            for name, inner in reversed(value.items()):
                todo += ((name, inner), ("", name))
        elif isinstance(value, (list, tuple)):
            todo += [(key, inner) for inner in reversed(value)]
        elif isinstance(value, (int, float)):
            if abs(value) >= MIN_NUMBER:
                texts.append(_number(value))
        elif value is not None:
            raise TypeError(type(value).__name__)
        if n_chars > max_chars:
            break
    return texts, n_chars, blobs


def _is_file(value: str) -> bool:
    return (len(value) > BLOB_CHARS and " " not in value) or _DATA_URL.match(value) is not None


def _number(value: float) -> str:
    """The digits as they were most likely written: 4e15 as 4000000000000000."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
