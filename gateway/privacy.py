"""Find personal data and secrets in the text of a request, and say how sensitive that makes it.

Knows the shape of JSON and the order of classes; knows neither upstreams nor policy files, and never keeps or reports the
text it saw. Names are not detected here but by `names`, where one is set up. What is searched for stands in `recognisers.py`.

    scan(body)    kinds found in a parsed JSON body, remembered for what a conversation sends again
    locate(text)  findings in one text with their places in it, for redaction
"""

from __future__ import annotations

import hmac
import re
import secrets
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import accumulate, chain, pairwise, repeat
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar

from msgspec import Struct

from gateway.recognisers import (
    CONTEXT_BYTES,
    FAMILIES,
    GROUP,
    GROUPS,
    ID_WORDS,
    KINDS,
    LONG_TOKEN,
    NAMED,
    NAMED_ID,
    NAMED_WORDS,
    NEEDY,
    NO_DIGITS,
    RUN,
    SEPARATOR,
    SHAPE_BYTES,
    Family,
    Kind,
    named_id,
)
from gateway.terms import Terms

try:
    import re2
except ImportError:
    re2 = None

__all__ = [
    "CLASSES",
    "DETECTOR",
    "KINDS",
    "Detector",
    "Finder",
    "Finding",
    "Kind",
    "Scan",
    "classify",
    "find",
    "highest",
    "locate",
    "normalise",
    "scan",
    "suspects",
    "with_terms",
]  # fmt: skip

T = TypeVar("T")

CLASSES = ("public", "internal", "confidential", "restricted")
"""From the least to the most sensitive."""

UNSCANNABLE = "unscannable"
MIN_NUMBER = 10**8
"""JSON numbers of nine digits and more are read as text: an SSN or a card number need not be quoted."""
_SEAM_CHARS = 64
BLOB_CHARS = 4096
"""A longer string without a space, under a key that holds files, is a file and not text."""


class Finding(Struct, frozen=True):
    """One finding by kind and place, in characters; never the text itself.

    `find` counts in the *normalised* text, `locate` in the text as it was given.
    """

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
_FOLDED_BY_CODE = MappingProxyType({ord(letter): plain for letter, plain in _FOLDED.items()})
_FIRST_PLANE = "".join(re.escape(letter) for letter in _FOLDED if letter < "\U00010000")
_FOLDABLE = re.compile("[" + _FIRST_PLANE + "\U00010000-\U0001f2ff\U0001fb00-\U0001ffff\U000e0000-\U000e01ef]")
"""`re` looks characters of the first plane up in a bitmap but walks a list of others, so those are few ranges: all but emoji."""
_ASCII = bytes(range(0x80))
_FEW = 16
"""So many different characters are replaced one by one, each in a pass at the speed of memory."""

_BEHIND_SLASHES = re.compile(r"u([0-9A-Fa-f]{4})|([\"'/])|[nrt]")
_UNICODE_ESCAPE = re.compile(r"((?<!\\)\\+u[0-9A-Fa-f]{4}(?:(?<=u[dD][89abAB]..)\\+u[dD][c-fC-F][0-9A-Fa-f]{2})?)")
"""A character, or the two halves of one."""
_ESCAPED = re.compile(rf"{_UNICODE_ESCAPE.pattern}|(?<!\\)\\+(?:([\"'/])|[nrt])")
_BREAKS = re.compile(r"(?<!\\)\\+[nrt]")
_QUOTES = tuple((f"\\{mark}", re.compile(rf"(?<!\\)\\+{mark}"), mark) for mark in "\"'/")
_SINGLE = (*((f"\\{letter}", "\n") for letter in "nrt"), *((f"\\{mark}", mark) for mark in "\"'/"))
"""Where no backslash follows another, all these are replaced at the speed of memory."""


def _fold(match: re.Match[str]) -> str:
    return _FOLDED.get(match[0], match[0])


def _unescape(match: re.Match[str]) -> str:
    return _character_of(match[1]) if match[1] else match[2] or "\n"


def _character_of(escape: str) -> str:
    """What an escape written as a number stands for, folded; the escape itself where that is a control or half a character."""
    _, *codes = escape.split("u")
    plain = _character(*(code.rstrip("\\") for code in codes))
    return escape if plain is None else plain


def _character(code: str, half: str = "") -> str | None:
    number = int(code, 16)
    if half:
        number = 0x10000 + (number - 0xD800 << 10) + int(half, 16) - 0xDC00
    letter = chr(number)
    return None if unicodedata.category(letter) in {"Cc", "Cs"} else _FOLDED.get(letter, letter)


def normalise(text: str) -> str:
    r"""The text as it is searched: look-alikes of ASCII folded, invisible characters dropped, inner JSON escapes read.

    This is NFKC (UAX 15) character by character, as far as it leads to ASCII, with the decimal digits of every script.
    Whole-string NFKC also reorders and composes accents, which no pattern reads and which takes quadratic time on a long run
    of them in CPython. `\n`, `\"`, `\u0034` and `\uff14` are read because tool arguments are JSON inside a JSON string.
    """
    return _decode(_normalised(text))


def _normalised(text: str) -> bytes:
    """The same in UTF-8."""
    data = _encode(text)
    if len(data) > len(text):
        data = _folded(text, data)
    return _encode(_unescaped(_decode(data))) if b"\\" in data else data


def _folded(text: str, data: bytes) -> bytes:
    """Several ways to the same end: for few foldable characters, few different ones, some, and many."""
    foreign = data.translate(None, _ASCII)
    if 4 * len(foreign) <= len(text) + 256:
        letters = [letter for letter in set(_decode(foreign)) if letter in _FOLDED]
        if len(letters) <= _FEW:
            for letter in letters:
                data = data.replace(_encode(letter), _encode(_FOLDED[letter]))
            return data
    return _encode(_folded_one_by_one(text))


def _folded_one_by_one(text: str) -> str:
    """Each kind of character as it is met; when they are too many, all in one pass."""
    place = 0
    for _ in range(_FEW):
        match = _FOLDABLE.search(text, place)
        if match is None:
            return text
        plain = _FOLDED.get(match[0])
        if plain is not None:
            text = text.replace(match[0], plain)
        place = match.end() if plain is None else match.start()
    most = len(text) // 32 + 1
    folded, n_folds = _FOLDABLE.subn(_fold, text, count=most)
    return folded if n_folds < most else text.translate(_FOLDED_BY_CODE)


def _unescaped(text: str) -> str:
    """Read what stands behind each run of backslashes; where there are many, in one pass for each escape that is there.

    Escapes written as numbers come last: what they stand for is not read again.
    """
    first, *pieces = text.split("\\")
    if 16 * len(pieces) < len(text) and "\\ud" not in text and "\\uD" not in text:
        return first + "".join(_read(pieces))
    if "\\\\" not in text:
        for mark, plain in _SINGLE:
            text = text.replace(mark, plain)
    elif "\\n" in text or "\\t" in text or "\\r" in text:
        text = _BREAKS.sub("\n", text)
    for mark, pattern, plain in _QUOTES:
        if mark in text:
            text = pattern.sub(plain, text)
    if "\\u" in text:
        parts = _UNICODE_ESCAPE.split(text)
        known = {escape: _character_of(escape) for escape in set(parts[1::2])}
        parts[1::2] = map(known.__getitem__, parts[1::2])
        text = "".join(parts)
    return text


def _read(pieces: Iterable[str]) -> Iterator[str]:
    """What stands behind each backslash, with what the run of backslashes before it makes of it."""
    n_slashes = 0
    for piece in pieces:
        n_slashes += 1
        if piece:
            match = _BEHIND_SLASHES.match(piece)
            plain = None if match is None else _character(match[1]) if match[1] else match[2] or "\n"
            yield "\\" * n_slashes + piece if match is None or plain is None else plain + piece[match.end() :]
            n_slashes = 0
    yield "\\" * n_slashes


class _Origin:
    """Where each character of a normalised text stood. Built only for texts in which something was found."""

    def __init__(self, text: str) -> None:
        plain = text.isascii()
        self._folds = _Steps(iter(()) if plain else _FOLDABLE.finditer(text), _fold)
        folded = text if plain else _FOLDABLE.sub(_fold, text)
        self._escapes = _Steps(_ESCAPED.finditer(folded) if "\\" in folded else iter(()), _unescape)

    def span(self, start: int, end: int) -> tuple[int, int]:
        """The shortest span of the original text that becomes these characters; whole escapes and characters."""
        first, last = self._escapes.origin(start), self._escapes.origin(end - 1)
        return self._folds.origin(first[0])[0], self._folds.origin(last[1] - 1)[1]


class _Steps:
    """The replacements of one pass, and the way back over them."""

    def __init__(self, matches: Iterator[re.Match[str]], plain: Callable[[re.Match[str]], str]) -> None:
        self._after: list[int] = []
        self._pieces: list[tuple[int, int, int]] = []
        shift = 0
        for match in matches:
            start, end = match.span()
            becomes = plain(match)
            if becomes == match[0]:
                continue
            length = len(becomes)
            self._after.append(start + shift)
            self._pieces.append((start, end, length))
            shift += length - (end - start)

    def origin(self, place: int) -> tuple[int, int]:
        """What became the character at this place after the pass, as a span before it."""
        at = bisect_right(self._after, place) - 1
        while at >= 0 and self._pieces[at][2] == 0 and self._after[at] > place:
            at -= 1
        if at < 0:
            return place, place + 1
        start, end, length = self._pieces[at]
        behind = place - self._after[at]
        if behind < length:
            return start, end
        return end + behind - length, end + behind - length + 1


# Search


_Found = tuple[str, int, int]
"""Kind and byte span."""


class Gate(Protocol):
    """A compiled gate or context: what `re` and RE2 patterns have in common."""

    def finditer(self, text: bytes, pos: int, endpos: int, /) -> Iterator[Any]:
        """Matches in order, without overlap."""
        ...

    def search(self, text: bytes, pos: int, endpos: int, /) -> Any:
        """The first match, or None."""
        ...


def compile_with_re2(pattern: bytes) -> Gate:
    """A gate that runs in linear time and outside the interpreter."""
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.log_errors = False
    options.max_mem = 256 << 20
    compiled = re2.compile(pattern, options)
    match, anchor = getattr(getattr(compiled, "_regexp", None), "Match", None), getattr(re2, "_Anchor", None)
    gate: Gate = compiled if match is None or anchor is None else _Direct(match, anchor.UNANCHORED)
    return gate


class _Direct:
    """A pattern without the wrapper around it, which costs three times what a search in a short stretch does."""

    def __init__(self, match: Callable[..., Any], anchor: Any) -> None:
        self._match = match
        self._anchor = anchor

    def search(self, text: bytes, pos: int, endpos: int, /) -> _Place | None:
        """See `Gate`."""
        place = self._match(self._anchor, text, pos, min(endpos, len(text)))[0] if pos <= len(text) else _NOWHERE
        return _Place(place) if place[0] >= 0 else None

    def finditer(self, text: bytes, pos: int, endpos: int, /) -> Iterator[_Place]:
        """See `Gate`."""
        while place := self.search(text, pos, endpos):
            yield place
            pos = max(place[1], pos + 1)


class _Place(tuple[int, int]):
    """A span that can be asked like a match."""

    __slots__ = ()

    def span(self) -> tuple[int, int]:
        """Both."""
        return self

    def start(self) -> int:
        """The first."""
        return self[0]

    def end(self) -> int:
        """The last."""
        return self[1]


_NOWHERE = (-1, -1)


def compile_with_re(pattern: bytes) -> Gate:
    """A gate where google-re2 is not installed: the same matches, far slower."""
    return re.compile(pattern)


def _one_of(gates: Iterable[bytes]) -> bytes:
    return b"|".join(b"(?:" + gate + b")" for gate in gates)


class _Gates:
    """The table of recognisers, compiled by one engine."""

    def __init__(self, compiled: Callable[[bytes], Gate]) -> None:
        def prepared(families: Iterable[Family]) -> list[tuple[Gate, Family, set[str]]]:
            return [(compiled(family.gate + family.rest), family, {rule.kind for rule in family.rules}) for family in families]

        self.groups = [(compiled(group.shape), prepared(group.families)) for group in GROUPS]
        """Each shape is a pass of its own: joined, patterns that count signs have more states than can be built in time."""
        self.digits = self.groups[0][0]
        """The shape that all runs of digits have."""
        self.needy = prepared(NEEDY)
        signs = {sign: family.needs for family in NEEDY for sign in family.needs}
        self.bytes = {sign: needs for sign, needs in signs.items() if len(sign) == 1}
        self.signs = {sign: needs for sign, needs in signs.items() if len(sign) > 1}
        """What families need. Single bytes are found at the speed of memory, the others in one pass with words."""
        needs = b"(?i:" + b"|".join(map(re.escape, self.signs)) + b")"
        self.words_and_signs = compiled(_one_of((ID_WORDS, needs)))
        shapes = [group.shape for group in GROUPS]
        self.numbers = compiled(_one_of((*shapes[:_NUMBERS], RUN)))
        """One pass for several: where it does not match, neither does a shape of numbers nor a run of digits."""
        self.tokens = compiled(_one_of(shapes[_NUMBERS:]))
        """As `numbers`, of all other shapes; it has too many states for a long text that was made to have them."""
        self.anything = compiled(_one_of((*shapes, needs, *map(re.escape, self.bytes), RUN, ID_WORDS)))
        """All in one, for short texts alone."""
        many = {marks for family in FAMILIES if len(marks := family.needs or family.near) > 1 and marks[0].isalpha()}
        self.marks = {marks: compiled(_one_of(marks)) for marks in many}
        """One pass for several words: each by itself may take as long."""
        self.plain = {family.gate: _look_ahead(family) for family in FAMILIES if not family.wordy}
        words = {rule.before for family in FAMILIES for rule in family.rules} | {named.words for named in NAMED}
        self.words = {pattern: compiled(pattern) for pattern in words if pattern}
        self.number_words = compiled(NAMED_WORDS)
        self.id_words = compiled(ID_WORDS)
        self.run = compiled(RUN)
        self.long_token = compiled(LONG_TOKEN)


def _look_ahead(family: Family) -> re.Pattern[bytes]:
    if family.strict:
        return family.strict
    return re.compile(family.gate + (b"(?=" + family.rest + b")" if family.rest else b""))


_compiled_gates = cache(_Gates)


class Finder(Protocol):
    """Whatever finds sensitive text: the Detector by itself, or beside it a model that knows names."""

    @property
    def waits(self) -> bool:
        """Whether it asks another process, and so belongs on a thread."""
        ...

    @property
    def patterns(self) -> Detector:
        """The part of it that goes by patterns and words alone: quick, and sure of what it says."""
        ...

    def kinds_of_all(self, texts: list[str]) -> frozenset[str]:
        """The kinds found in the strings of one body, in their order."""
        ...

    def locate(self, text: str, *, before: str = "") -> list[Finding]:
        """Every finding by its place in the text; `before` is what stands before it in the same body."""
        ...


class Detector:
    """Recognisers, and a customer's words. Shared by all requests: only what it remembers changes."""

    waits = False

    def __init__(self, *, with_re2: bool = re2 is not None, terms: Mapping[str, Iterable[str]] = MappingProxyType({})) -> None:
        """`terms` maps further kinds to words and phrases; reading them takes about 10 µs a word."""
        compiled = compile_with_re2 if with_re2 else compile_with_re
        gates = _compiled_gates(compiled)
        self._gates = gates
        self._terms = Terms({kind: map(normalise, words) for kind, words in terms.items()}) if terms else None
        self._verdicts: Verdicts[tuple[frozenset[str], int]] = Verdicts()

    @property
    def patterns(self) -> Detector:
        """See `Finder`."""
        return self

    def find(self, text: str) -> list[Finding]:
        """Every finding in the text, by place in the normalised text. Only findings of different kinds overlap."""
        return self._findings(_between_borders(b"", text), 1, allowed(len(text)))

    def locate(self, text: str, *, before: str = "") -> list[Finding]:
        """Every finding by its place in the text itself: what to cut out for redaction. Of different kinds they may overlap.

        `before` is what stands before this string in the same body, joined by SEPARATOR: a word there may explain a number.
        """
        context = _context(before)
        found = self._findings(_between_borders(context, text), len(context) + 1, allowed(len(text)))
        if not found or (text.isascii() and "\\" not in text):
            return found
        origin = _Origin(text)
        return [Finding(one.kind, *origin.span(one.start, one.end)) for one in found]

    def kinds(self, text: str) -> frozenset[str]:
        """The kinds found in the text. Once a kind is found, it is not looked for again."""
        return self._kinds(_between_borders(b"", text), 1, allowed(len(text)))[0]

    def kinds_of_all(self, texts: list[str]) -> frozenset[str]:
        """The kinds found in the strings of one body, in their order. Of what was read before, the verdict is kept.

        The steps of all count together, also of what was read before: the verdict on a body hangs on nothing but the body.
        Long lists are cut into pieces that begin where they began last time when only the end of a conversation is new. A
        verdict hangs on the piece and, as words before a number count, on the piece before it.
        """
        n_chars = sum(map(len, texts))
        if n_chars < _PIECE_CHARS:
            return self.kinds(SEPARATOR.join(texts))
        found, left = _NOTHING, allowed(n_chars)
        previous, mark = "", b""
        for piece, whole in _pieces(texts):
            verdict, digest = None, b""
            if whole:
                digest = self._verdicts.digest(piece)
                verdict = self._verdicts.get(mark + digest)
            if verdict is None:
                context = _context(previous)
                verdict = self._kinds(_between_borders(context, piece), len(context) + 1, left)
                if whole:
                    self._verdicts.put(mark + digest, verdict)
            kinds, steps = verdict
            found |= kinds
            left -= steps
            if left < 0:
                raise TooManyCandidates
            previous, mark = piece, digest
        return found

    def forget(self) -> None:
        """Drop all verdicts, so that the next scan reads everything anew."""
        self._verdicts = Verdicts()

    def _kinds(self, data: bytes, since: int, left: int) -> tuple[frozenset[str], int]:
        """The kinds of findings that end behind the first `since` bytes, and the steps that it cost to know."""
        hunt = _Hunt(data, left)
        for kind, _, _ in self._search(hunt, since):
            hunt.done.add(kind)
        for kind, _, end in self._terms.find(data) if self._terms is not None else ():
            if end > since:
                hunt.done.add(kind)
        return frozenset(hunt.done) if hunt.done else _NOTHING, left - hunt.left

    def _findings(self, data: bytes, since: int, left: int) -> list[Finding]:
        """Findings that end behind the first `since` bytes, which are context, by place in what follows them."""
        spans: list[tuple[str, int, int]] = []
        found = set(self._search(_Hunt(data, left), since))
        if self._terms is not None:
            found.update(one for one in self._terms.find(data) if one[2] > since)
        for kind, start, end in sorted(found):
            if spans and spans[-1][0] == kind and start < spans[-1][2]:
                spans[-1] = (kind, spans[-1][1], max(end, spans[-1][2]))
            else:
                spans.append((kind, max(start, since), end))
        places = _chars(data[since:], {place - since for _, start, end in spans for place in (start, end)})
        findings = [Finding(kind, places[start - since], places[end - since]) for kind, start, end in spans]
        return sorted(findings, key=lambda finding: (finding.start, finding.end))

    def _search(self, hunt: _Hunt, since: int) -> Iterator[_Found]:
        """Findings that end behind `since`, as kind and byte span, without those whose kind is done when their turn comes.

        One pass for each shape finds the few places worth a look by a group of families. Only there each gate is run by itself,
        because the match of one may cover the beginning of another's.
        """
        data, done, gates = hunt.data, hunt.done, self._gates
        size = len(data)
        if size <= _SMALL and not gates.anything.search(data, 0, size):
            return
        low, numbers = data.lower(), gates.numbers.search(data, 0, size)
        tokens = size > _SHORT or gates.tokens.search(data, 0, size)
        digits: list[tuple[int, int]] = []
        for shape, families in (*(gates.groups[:_NUMBERS] if numbers else ()), *(gates.groups[_NUMBERS:] if tokens else ())):
            hot = _stretches(shape, data, (0, size), back=SHAPE_BYTES)
            if shape is gates.digits:
                digits = hot
            hunt.spend(_SEARCH * len(hot))
            for gate, family, kinds in families if hot else ():
                marks = family.needs or family.near
                nowhere = marks and size > _SHORT and self._first(marks, low, 0, size) < 0
                for begin, stop in () if nowhere else hot:
                    if kinds <= done:
                        break
                    if marks and self._first(marks, low, begin, stop) < 0:
                        continue
                    for found in self._stretch(gate, family, hunt, (begin, stop)):
                        if found[2] > since:
                            yield found
                            if kinds <= done:
                                break
        needed, first_word = self._needs_and_word(data, low)
        for gate, family, kinds in gates.needy if needed else ():
            first = -1 if kinds <= done else needed.get(family.needs, -1)
            if first >= 0:
                for found in self._stretch(gate, family, hunt, (max(0, first - SHAPE_BYTES), size)):
                    if found[2] > since:
                        yield found
                        if kinds <= done:
                            break
        for found in chain(self._named_numbers(hunt, digits), self._named_ids(hunt, first_word)):
            if found[2] > since:
                yield found

    def _needs_and_word(self, data: bytes, low: bytes) -> tuple[dict[tuple[bytes, ...], int], int]:
        """Where the first of each family's needs stands, and a place before which no word for a national number does."""
        gates, size = self._gates, len(data)
        first = {needs: found for sign, needs in gates.bytes.items() if (found := data.find(sign)) >= 0}
        word, place = size, 0
        for _ in range(_FEW_PLACES):
            match = gates.words_and_signs.search(data, place, size)
            if match is None:
                return first, word
            place = match.start()
            needs = next((needs for sign, needs in gates.signs.items() if low.startswith(sign, place)), None)
            if needs is None:
                word = min(place, word)
            else:
                first[needs] = min(place, first.get(needs, place))
            place += 1
        for _, family, _ in gates.needy:
            if first.get(family.needs, size) > place and (found := self._first(family.needs, low, place, size)) >= 0:
                first[family.needs] = found
        return first, min(word, place)

    def _first(self, marks: tuple[bytes, ...], low: bytes, begin: int, stop: int) -> int:
        """Where one of these stands first, or -1."""
        if stop - begin > _SHORT and marks in self._gates.marks:
            first = self._gates.marks[marks].search(low, begin, stop)
            return first.start() if first else -1
        return min((place for mark in marks if (place := low.find(mark, begin, stop)) >= 0), default=-1)

    def _stretch(self, gate: Gate, family: Family, hunt: _Hunt, within: tuple[int, int]) -> Iterable[_Found]:
        """What one family finds in a stretch."""
        begin, stop = within
        hunt.spend(_SEARCH + (stop - begin) // _SEARCHED)
        first = gate.search(hunt.data, begin, stop)
        return self._from(first, gate, family, hunt, within) if first else ()

    def _from(self, match: Any, gate: Gate, family: Family, hunt: _Hunt, within: tuple[int, int]) -> Iterator[_Found]:
        """The same from the first match on. When matches crowd, the text counts as made to match."""
        since, stop = within
        n_matches = 0
        while match:
            hunt.spend(_MATCH)
            start, end = span = match.span()
            yield from self._judge(family, hunt, span)
            # What may hold the start of another match is sought from just behind its own.
            place = start + 1 if family.rest else max(end, start + 1)
            n_matches += 1
            if n_matches % _MANY == 0:
                if start - since < _MANY * _CLOSE:
                    # RE2 is quick between matches, `re` is quick at each.
                    yield from self._by_blocks(family, self._gates.plain.get(family.gate, gate).finditer, hunt, (place, stop))
                    return
                since = start
            match = gate.search(hunt.data, place, stop)

    def _by_blocks(
        self, family: Family, matches: Callable[[bytes, int, int], Iterator[Any]], hunt: _Hunt, within: tuple[int, int]
    ) -> Iterator[_Found]:
        """What the rules say of every match in a stretch, asked once for blocks that are alike with all that rules look at.

        A block goes from one match to another, so that a text of repeated units has few different ones, whatever the length of
        a unit.
        """
        data = hunt.data
        known: dict[bytes, tuple[int, list[_Found]]] = {}
        behind, ahead = _BEHIND, family.ahead
        size = max(_BLOCK, ahead // 8)
        start, stop = within
        going_on = True
        while going_on:
            around = data[max(0, start - behind) : start + size + _SPILL + ahead]
            length, findings = known.get(around, (0, []))
            hunt.spend(2)
            if length:
                yield from ((kind, start + one, start + other) for kind, one, other in findings)
                start += length
                continue
            going_on = False
            place = start
            for match in matches(data, start, stop):
                begin, end = match.span()
                hunt.spend((begin - place) // _SCANNED)
                place = begin
                if begin >= start + size:
                    seen = start - behind + len(around)
                    if start >= behind and end <= start + size + _SPILL and all(start + other < seen for _, _, other in findings):
                        known[around] = begin - start, findings
                    start, going_on = begin, True
                    break
                judged = self._judge(family, hunt, (begin, end))
                if not judged:
                    hunt.spend(2)
                for kind, one, other in judged:
                    findings.append((kind, one - start, other - start))
                    yield kind, one, other
            else:
                hunt.spend((stop - place) // _SCANNED)

    def _judge(self, family: Family, hunt: _Hunt, span: tuple[int, int]) -> list[_Found]:
        """What the rules of a family say about one match of its gate."""
        data, done = hunt.data, hunt.done
        begin, end = span
        places: Sequence[int] = (begin,)
        if family.by_word:
            places = [word.start() for word in _WORD_START.finditer(data, max(0, begin - family.back), end + 1)]
        elif family.lead:
            places = (begin + family.lead,) if family.rest else (begin + family.lead, end)
        judged: list[_Found] = []
        spent = 2 + family.back // 16
        for rule in family.rules:
            if rule.kind in done:
                continue
            spent += len(places)
            for place in places:
                match = rule.pattern.match(data, place)
                if match is None:
                    continue
                spent += rule.steps
                found = rule.check(match)
                if found and (rule.before is None or self._stands_before(rule.before, data, begin)):
                    judged.append((rule.kind, *found))
        if not judged:
            hunt.spend(spent)
        return judged

    def _named_numbers(self, hunt: _Hunt, hot: list[tuple[int, int]]) -> Iterator[_Found]:
        """What the rules find that need a word before a run of digits; all runs begin in the hot stretches."""
        data, size = hunt.data, len(hunt.data)
        for around in hot:
            hunt.spend(2 * _SEARCH + (around[1] - around[0]) // _SEARCHED)
            for begin, stop in _stretches(self._gates.number_words, data, around):
                hunt.spend(2 * _SEARCH + (stop - begin) // _SEARCHED)
                words = []
                for word in self._gates.number_words.finditer(data, max(0, begin - CONTEXT_BYTES), min(size, stop + 1)):
                    hunt.spend(_MATCH)
                    words.append(word.span())
                for run in self._gates.run.finditer(data, begin, min(size, stop + _REACH)):
                    start, end = run.span()
                    if start >= stop:
                        break
                    hunt.spend(_MATCH)
                    last = bisect_right(words, (start, size)) - 1
                    if last >= 0 and words[last][1] >= start - CONTEXT_BYTES:
                        whole = end if end < stop + _REACH else self._gates.run.search(data, start, size).end()
                        yield from self._named(hunt, (start, whole))

    def _named(self, hunt: _Hunt, run: tuple[int, int]) -> list[_Found]:
        """What the rules find at the groups of one run."""
        data, begin = hunt.data, run[0]
        n_digits = len(data[begin : run[1]].translate(None, NO_DIGITS))
        asked = [one for one in NAMED if n_digits >= one.digits and one.rule.kind not in hunt.done]
        hunt.spend(1 + 2 * len(asked))
        rules = [one for one in asked if self._stands_before(one.words, data, begin)]
        judged: list[_Found] = []
        for place, n_left in _groups(data, run, n_digits) if rules else ():
            spent = 1
            for named in rules:
                match = named.rule.pattern.match(data, place) if n_left >= named.digits else None
                found = None
                if match:
                    spent += named.rule.steps
                    found = named.rule.check(match)
                if found:
                    judged.append((named.rule.kind, *found))
            if not judged:
                hunt.spend(spent)
        return judged

    def _named_ids(self, hunt: _Hunt, first_word: int) -> Iterator[_Found]:
        """National numbers beside a word: only words are tried that something long enough follows."""
        data = hunt.data
        for around in _stretches(self._gates.id_words, data, (first_word, len(data))) if first_word < len(data) else ():
            hunt.spend(2 * _SEARCH + (around[1] - around[0]) // _SEARCHED)
            for begin, stop in _stretches(self._gates.long_token, data, around, back=3 * CONTEXT_BYTES):
                hunt.spend(2 * _SEARCH + (stop - begin) // _SEARCHED)
                for word in self._gates.id_words.finditer(data, begin, stop):
                    if NAMED_ID in hunt.done:
                        return
                    found, steps = named_id(data, word.start(), word.end())
                    if found:
                        yield NAMED_ID, *found
                    else:
                        hunt.spend(2 * _MATCH + steps)

    def _stands_before(self, words: bytes, data: bytes, begin: int) -> bool:
        context = data[max(0, begin - CONTEXT_BYTES) : begin + 1]
        return self._gates.words[words].search(context, 0, len(context)) is not None


def allowed(n_chars: int) -> int:
    """Steps that a text of so many characters may cost."""
    return _STEPS + n_chars // _CHARS_A_STEP


class TooManyCandidates(Exception):
    """A text holds more that looks like what is searched for, and is not, than any text that nobody made for it."""


class _Hunt:
    """One search through one text."""

    def __init__(self, data: bytes, left: int) -> None:
        self.data = data
        self.done: set[str] = set()
        """Kinds that need not be found again."""
        self.left = left
        """Steps that it may still cost."""

    def spend(self, steps: int) -> None:
        """Count what costs time, and never the time, so that the same text always comes to the same. Raises TooManyCandidates."""
        self.left -= steps
        if self.left < 0:
            raise TooManyCandidates


def _stretches(gate: Gate, data: bytes, within: tuple[int, int], *, back: int = 0) -> list[tuple[int, int]]:
    """Where a gate can match, and `back` bytes before: from each match two reaches on; one on, the next is sought.

    Whatever begins before that place ends within the stretch, and how many places there are is bounded by the length.
    The longer a stretch has become, the farther on the next is sought: too much is no harm.
    """
    hot: list[tuple[int, int]] = []
    least, size = within
    place = least
    while match := gate.search(data, place, size):
        start, place = max(least, match.start() - back), match.end() + _REACH
        if hot and start <= hot[-1][1]:
            place += min(start - hot[-1][0], _MOST_SKIPPED) // 2
            hot[-1] = (hot[-1][0], min(size, place + _REACH))
        else:
            hot.append((start, min(size, place + _REACH)))
        if place >= size:
            break
    return hot


def _groups(data: bytes, run: tuple[int, int], n_digits: int) -> Iterator[tuple[int, int]]:
    """Where each group of digits begins, and how many digits there are from there to the end of the run."""
    for group in GROUP.finditer(data, *run):
        start, end = group.span()
        yield start, n_digits
        n_digits -= end - start


class Verdicts(Generic[T]):
    """What was found in pieces of text read before, by a keyed digest: no text is held, and none can be guessed from outside.

    Bounded: when one generation is full, the one before it is dropped, with all that was not asked for since.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._young: dict[bytes, T] = {}
        self._old: dict[bytes, T] = {}

    def digest(self, text: str) -> bytes:
        """Sixteen bytes for a text."""
        return hmac.digest(self._key, _encode(text), "sha256")[:16]

    def get(self, mark: bytes) -> T | None:
        """The verdict, when it is known. Safe on any thread: each step is one operation on a dict."""
        verdict = self._young.get(mark)
        if verdict is None and (verdict := self._old.get(mark)) is not None:
            self.put(mark, verdict)
        return verdict

    def put(self, mark: bytes, verdict: T) -> None:
        """Remember a verdict."""
        if len(self._young) >= _REMEMBERED:
            self._young, self._old = {}, self._young
        self._young[mark] = verdict


def _pieces(texts: list[str]) -> Iterator[tuple[str, bool]]:
    """The strings joined to pieces of `_PIECE_CHARS` and more, each with whether it is that long: only the last may not be."""
    n_chars = begin = 0
    for end, text in enumerate(texts, 1):
        n_chars += len(text)
        if n_chars >= _PIECE_CHARS:
            yield SEPARATOR.join(texts[begin:end]), True
            n_chars, begin = 0, end
    if begin < len(texts):
        yield SEPARATOR.join(texts[begin:]), False


_NOTHING: frozenset[str] = frozenset()
_PIECE_CHARS = 2048
"""Shorter text is read anew: that takes no longer than its digest and the look-up."""
_REMEMBERED = 8192
"""Verdicts in one generation: about a megabyte."""
_CONTEXT = 64
"""Bytes of the piece before that count: context words, or the word password before the string that holds it."""
_REACH = 256
"""Longer than any gate's match but a run of digits, and what another match has left of such a run is a match again."""
_MOST_SKIPPED = 1 << 13
"""Bytes of a hot stretch after which no more of what follows is taken to be hot without a look."""
_MANY, _CLOSE = 16, 64
"""Matches of a gate, and bytes from one to the next on average, at which they crowd."""
_BLOCK = 256
"""Bytes of a block of crowded text; longer for families that look far ahead, as each block is kept with all that."""
_SPILL = 64
"""Bytes that the last match of a block may reach over its end, or the block is not kept."""
_BEHIND = 160
"""How far before a gate's match a rule looks at most, in bytes; `Family.ahead` says how far behind it."""
_STEPS, _CHARS_A_STEP = 2_000, 54
"""Steps of about a microsecond that a text may cost, whatever its length, and characters that allow one more."""
_SMALL = 1 << 11
"""Bytes up to which one pass looks for everything at once."""
_NUMBERS = 2
"""Groups whose shapes are numbers: the first ones."""
_FEW_PLACES = 8
"""Words and signs looked at one by one, which takes about as long as a search for each in 8 KB."""
_SHORT = 1 << 14
"""Bytes up to which words are looked for one by one, which is quick in most texts and slow in few."""
_MATCH, _SEARCH, _SEARCHED, _SCANNED = 3, 2, 512, 64
"""Steps of a gate's match, and of a search; bytes that a step of RE2, and of `re`, passes over."""
_BORDER = SEPARATOR.encode()
"""Stands before and behind every text, so that its first and its last word have one too."""
_WORD_START = re.compile(rb"(?<![0-9A-Za-z])[0-9A-Za-z]")

_CONTINUATION = bytes(range(0x80, 0xC0))
"""The bytes of UTF-8 that begin no character."""


def _encode(text: str) -> bytes:
    """UTF-8 that also carries lone surrogates, which JSON may hold and no pattern reads."""
    return text.encode("utf-8", "surrogatepass")


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _context(before: str) -> bytes:
    """The end of what stands before a text."""
    return _normalised(before)[-_CONTEXT:]


def _between_borders(context: bytes, text: str) -> bytes:
    """The text as it is searched."""
    return b"".join((context, _BORDER, _normalised(text), _BORDER))


def _chars(data: bytes, places: Iterable[int]) -> dict[int, int]:
    """How many characters begin before each place; a rule may cut one that has several bytes."""
    if data.isascii():
        return {place: place for place in places}
    chars, done, n_chars = {}, 0, 0
    for place in sorted(places):
        n_chars += len(data[done:place].translate(None, _CONTINUATION))
        chars[place], done = n_chars, place
    return chars


DETECTOR = Detector()
"""What finds the kinds of the table, and no customer's words."""


def with_terms(terms: Mapping[str, Iterable[str]]) -> Detector:
    """What also finds these words, by kind."""
    return Detector(terms=terms) if terms else DETECTOR


@cache
def _gate_of(kind: str) -> Gate:
    gates = [family.gate + family.rest for family in FAMILIES if any(rule.kind == kind for rule in family.rules)]
    compiled = compile_with_re if re2 is None else compile_with_re2
    return compiled(_one_of(gates))


def suspects(kind: str, texts: list[str]) -> set[int]:
    """Which of these texts are worth a search for this kind, by index: of all others it is sure that they hold none.

    One pass over all together, about a nanosecond for two bytes.
    """
    gate = _gate_of(kind)
    whole = SEPARATOR.join(["", *texts, ""])
    data = _normalised(whole)
    match = gate.search(data, 0, len(data))
    if match is None:
        return set()
    plain = len(data) == len(whole)
    ends = list(accumulate((len(text) if plain else len(_normalised(text))) + 1 for text in ["", *texts]))[1:]
    found = set()
    while match is not None:
        # A match may begin with the border before its text.
        index = min(bisect_right(ends, match.start() + 1), len(texts) - 1)
        found.add(index)
        match = gate.search(data, ends[index] - 1, len(data)) if ends[index] < len(data) else None
    return found


def find(text: str) -> list[Finding]:
    """Every finding in the text, by place; offsets are into `normalise(text)`."""
    return DETECTOR.find(text)


def locate(text: str, *, before: str = "") -> list[Finding]:
    """Every finding by its place in the text itself; see `Detector.locate`."""
    return DETECTOR.locate(text, before=before)


# Bodies

_FILE_KEYS = frozenset({"url", "image_url", "data", "b64_json", "file_data"})
_DATA_URL = re.compile(r"data:[\w.+\-]+/[\w.+\-]+(?:;[\w.+\-]+=[\w.+\-]+)*;base64,\S*\Z", re.ASCII | re.IGNORECASE)


def scan(body: object, *, max_chars: int, detector: Finder = DETECTOR) -> Scan:
    """Search every string of a parsed JSON value: values, object keys and long numbers, however deep.

    Never raises: an exception inside, also for what JSON cannot hold, becomes `failed`. Time is linear in the body, and short
    for what the detector has read before.
    """
    try:
        texts, n_chars, blobs = _texts(body, max_chars)
        if n_chars > max_chars:
            return Scan(frozenset(), n_chars, oversize=True)
        kinds = detector.kinds_of_all(texts)
        return Scan(kinds | {UNSCANNABLE} if blobs else kinds, n_chars, oversize=False)
    except Exception as error:  # noqa: BLE001 - the promise is to fail closed, whatever happened; the type name is recorded
        return Scan(frozenset(), 0, oversize=False, failed=type(error).__name__)


def _texts(body: object, max_chars: int) -> tuple[list[str], int, bool]:
    """The strings in document order, how many characters, and whether files were among them. Stops above `max_chars`."""
    texts: list[str] = []
    n_chars, blobs = 0, False
    entries: Iterator[tuple[str, object]] = iter((("", body),))
    keyed = False
    outer: list[tuple[Iterator[tuple[str, object]], bool]] = []
    while True:
        for key, value in entries:
            if keyed:
                n_chars += len(key)
                texts.append(key)
            if isinstance(value, str):
                n_chars += len(value)
                if key in _FILE_KEYS and _is_file(value):
                    blobs = True
                else:
                    texts.append(value)
            elif isinstance(value, dict):
                outer.append((entries, keyed))
                entries, keyed = iter(value.items()), True
                break
            elif isinstance(value, (list, tuple)):
                if len(value) > 1 and type(value[0]) is dict and "type" in value[0]:
                    texts += _seams(value)
                outer.append((entries, keyed))
                entries, keyed = zip(repeat(key), value, strict=False), False
                break
            elif isinstance(value, (int, float)):
                if abs(value) >= MIN_NUMBER:
                    texts.append(_number(value))
            elif value is not None:
                raise TypeError(type(value).__name__)
            if n_chars > max_chars:
                return texts, n_chars, blobs
        else:
            if not outer:
                return texts, n_chars, blobs
            entries, keyed = outer.pop()


def _seams(parts: list[object] | tuple[object, ...]) -> Iterator[str]:
    """Where one text part of a message meets the next: a model reads them as one text."""
    texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    for before, after in pairwise(texts):
        yield before[-_SEAM_CHARS:] + after[:_SEAM_CHARS]


def _is_file(value: str) -> bool:
    return (len(value) > BLOB_CHARS and " " not in value) or _DATA_URL.match(value) is not None


def _number(value: float) -> str:
    """The digits as they were most likely written: 4e15 as 4000000000000000."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
