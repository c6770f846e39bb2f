r"""What personal data and secrets look like: a table of families, each a cheap gate and the strict rules behind it.

Knows bytes only: normalised text in UTF-8. It knows nothing of JSON, classes, policy, or of which engine runs the gates.

Gates and context words are in the syntax that RE2 and `re` share and read alike on bytes: no look-around, no anchors, no
`\s` (they differ on `\v`). A gate matches wherever a rule of its family could, and begins where the rule would begin, or,
`by_word`, with the border before it. Two matches of one gate never hide a third: what may hold another's start is its `rest`,
or each start of a word in it is tried. Rules are ordinary `re` patterns with borders, tried only at the places a gate names.
The stricter a gate, the less is left to rules, which cost far more: text made to match a gate is what makes a scan slow.

The text begins with a byte that is no letter and no digit, so that borders can be part of gates.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import ipaddress
import re
import zlib
from collections.abc import Callable
from typing import NamedTuple

from gateway.national_ids import GENERAL_WORDS, SCHEMES, Scheme, luhn_valid

Span = tuple[int, int]
Match = re.Match[bytes]
Pattern = re.Pattern[bytes]


class Kind(NamedTuple):
    """One kind of finding: the name policies use, and what it means in one line."""

    name: str
    about: str


KINDS = (
    Kind("card", "payment card number, 12 to 19 digits, by issuer prefix and Luhn check"),
    Kind("iban", "international bank account number, by country length and mod 97 check"),
    Kind("ssn", "US social security or taxpayer number (SSN, ITIN)"),
    Kind("email", "e-mail address"),
    Kind("phone", "telephone number: international, North American, or any national form beside a word that says so"),
    Kind("ip", "IPv4 or IPv6 address other than loopback, unspecified and netmasks"),
    Kind("mac", "hardware address of a network card"),
    Kind("national_id", "national identity, tax or insurance number other than the US ones, by check digits"),
    Kind("wallet", "crypto wallet address, by checksum where the chain has one"),
    Kind("secret", "credential: API key, token, private key, password in a URL or beside the word password"),
    Kind("unscannable", "inline image, audio or file: bytes that are not text and were not looked into"),
)
"""Every kind a scan can report; policy files may map each to a class."""

NAMES = (
    Kind("person", "name of a person"),
    Kind("location", "name of a place: country, city, region, building"),
    Kind("organization", "name of a company or an institution"),
)
"""Kinds that only a model knows: looked for where `[names]` of the config sets one up, and a policy file maps them to a class."""

SEPARATOR = "\x1e"
"""Stands between the strings of one body. No finding crosses it; a context word in a JSON key may look across."""

CONTEXT_BYTES = 48
"""How far before a number a context word counts: about eight English words, or a JSON key and its value."""


SHAPE_BYTES = 64
"""How far behind the start of what it stands for a shape may begin, at most."""

CALLED_BYTES = 80
"""Fifteen digits with three signs between each two, and an extension."""


class Rule(NamedTuple):
    """One strict pattern of one kind. Its pattern takes a bounded number of steps from each start."""

    kind: str
    pattern: Pattern
    check: Callable[[Match], Span | None] = re.Match.span
    """The finding's byte span, or None where digits, checksum or surroundings say no."""
    before: bytes | None = None
    """Context words: one must stand in the `CONTEXT_BYTES` before the gate's match (and its first byte), when given."""
    steps: int = 4
    """What the check costs: about a microsecond each."""


class Family(NamedTuple):
    """Rules that share a gate. They are tried where its match starts, or, `by_word`, where any word in or behind it does."""

    gate: bytes
    rules: tuple[Rule, ...]
    by_word: bool = False
    lead: int = 0
    """How many bytes of the gate's match stand before the rule's start. Where it has one, a rule is also tried at its end."""
    rest: bytes = b""
    """What must stand behind the gate's match, and may hold the start of another."""
    ahead: int = 256
    """How far a rule looks beyond the gate's match, in bytes, at most."""
    back: int = 0
    """How far before the gate's match the rule may start, in bytes, at most; then every word from there on is tried."""
    needs: tuple[bytes, ...] = ()
    """One of these stands in every match of the gate, in small letters: looked for first, as that costs next to nothing."""
    near: tuple[bytes, ...] = ()
    """One of these stands in the `SHAPE_BYTES` before what a rule finds, in small letters."""
    wordy: bool = False
    """The gate has so many alternatives that `re` is slow on it everywhere."""
    strict: Pattern | None = None
    """Serves instead of the gate where its matches crowd: a pattern for `re` alone, which can look around.

    It takes next to no time to say no, as only what it finds is counted."""


class Group(NamedTuple):
    """Families that are looked for only near a shape, which stands within `SHAPE_BYTES` of the start of each of their matches.

    A shape has few states in any text, so that it costs one pass at the speed of an automaton, whatever was read before.
    """

    shape: bytes
    families: tuple[Family, ...]


class Named(NamedTuple):
    """A rule for numbers of any form, tried at each group of digits in a run of them that begins behind a word."""

    words: bytes
    """One must stand in the `CONTEXT_BYTES` before the run, or end with its first byte."""
    rule: Rule
    digits: int
    """How many digits its match has at least, all within the run."""


_ALNUM = frozenset(b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_OPEN = rb"(?<![0-9A-Za-z])"
_SHUT = rb"(?![0-9A-Za-z])"
NO_DIGITS = bytes(byte for byte in range(256) if not 48 <= byte <= 57)
"""All other bytes."""
GROUP = re.compile(rb"[0-9]+")
"""A group of digits."""
RUN = rb"[0-9](?:[ \t().\-/_]{0,3}[0-9]){6,}"
"""A run of groups: where rules for named numbers look."""
_LEAD = rb"[^0-9A-Za-z]"
_NO_DECIMAL = rb"(?:[^0-9A-Za-z.]|[^0-9]\.)"
_NO_TAIL = rb"(?:[^0-9A-Za-z.\-]|[^0-9][.\-])"
"""What the gates of numbers begin with: no letter or digit, and no digit before a sign that would join them."""


def _words(*patterns: str) -> bytes:
    """Context words in any case, as one pattern over UTF-8."""
    return ("(?i:" + "|".join(patterns) + ")").encode()


def _digits(text: bytes) -> str:
    return text.translate(None, NO_DIGITS).decode()


def stands_alone(text: bytes, end: int) -> bool:
    """Whether no ASCII letter or digit follows. Scripts written without spaces make their letters borders."""
    return end >= len(text) or text[end] not in _ALNUM


# Cards: issuer prefixes by ISO/IEC 7812 as the schemes publish them, check digit by Luhn (US patent 2,950,048).

_BRANDS: tuple[tuple[re.Pattern[str], frozenset[int]], ...] = (
    (re.compile("4"), frozenset({13, 16, 19})),
    (re.compile("5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720|220[0-4]"), frozenset({16})),
    (re.compile("5[678]"), frozenset({12, 16})),
    (re.compile("50|6[137]"), frozenset({16})),
    (re.compile("3[47]|2131|1800"), frozenset({15})),
    (re.compile("30[0-59]|3[689]"), frozenset({14, 16, 19})),
    (re.compile("35|60|6[45]|62|81|508|9792"), frozenset({16, 17, 18, 19})),
    (re.compile("50(?:18|20|38)|5[68]93|6304|6390|67(?:59|6[1-7])|0604"), frozenset(range(12, 20))),
)
_MAESTRO = re.compile("50|5[6-9]|6")
"""Maestro may use any of these at any length: too wide without a word that says card."""
_CARD_SHAPES = frozenset(
    tuple(map(int, shape.split("-")))
    for shape in (
        "4-4-4-1",
        "4-4-4-2",
        "4-4-4-3",
        "4-4-4-4",
        "4-4-4-4-1",
        "4-4-4-4-2",
        "4-4-4-4-3",
        "4-6-5",
        "4-6-4",
        "4-4-5",
        "4-3-3-3",
        "6-13",
        "8-8",
    )
)
"""How many digits stand in each group when a card is printed or typed."""


def _issued(digits: str, *, named: bool) -> bool:
    if named and 12 <= len(digits) <= 19 and _MAESTRO.match(digits):
        return True
    return any(len(digits) in lengths and prefix.match(digits) for prefix, lengths in _BRANDS)


def luhn_card(digits: str) -> bool:
    """Whether these digits are a card number without any word beside them."""
    return luhn_valid(digits) and _issued(digits, named=False)


_LEAST = {b"+": 16, b"=": 13, b"#": 13, b"/": 13}
"""How many digits a card has at least behind a sign of a telephone number, a counter or an account."""


def _card_span(match: Match, *, named: bool) -> Span | None:
    """The longest run of whole digit groups from here that is a card number; `named` when a word says that it is one.

    What E.164 allows behind a `+` is a telephone number, and twelve digits behind `=`, `#` or `/` or between colons are
    a counter or an account; what is called an EAN is one. A table of numbers with four digits is no list of cards.
    """
    text, start, found = match.string, match.start(), None
    stop = match.end(1)
    least = 12 if named else _LEAST.get(text[start - 1 : start], 12)
    if least == 12 and not named and text[start - 1 : start] + text[stop : stop + 1] in {b"::", b",,"}:
        least = 13
    groups = GROUP.findall(text, start, stop)
    if not named and len(groups[0]) >= 12 and _is_no_card(text, start, len(groups[0])):
        return None
    # Only the last group can be cut in the middle.
    whole = len(groups) if stands_alone(text, stop) else len(groups) - 1
    shape = tuple(map(len, groups))
    digits = ""
    for n, group in enumerate(groups, 1):
        digits += group.decode()
        if n > whole or len(digits) > 19:
            break
        usual = len(digits) >= least and (named or n == 1 or shape[:n] in _CARD_SHAPES)
        if usual and luhn_valid(digits) and _issued(digits, named=named):
            found = start, [one.end() for one in GROUP.finditer(text, start, stop)][n - 1]
    return None if found and not named and len(shape) > 1 and _in_table(text, start) else found


_GOODS = re.compile(
    rb"(?i)\b(?:(?:ean|gtin|upc|isbn|tracking)[ \-]?(?:number|code|no|nr)?\.?|seq|offset|bytes|numberlong)"
    rb"[\"']?[ :#=(]{0,3}[\"']?\Z"
)
_RECORD = re.compile(rb"(?i)\b(?:(?:owner|account|project)_number|(?!card)(?:[a-z]+_)?id)[\"']?[ :#=(]{0,3}[\"']?\Z")
_CELLS = {
    cell: (
        re.compile(rb"(?<![0-9A-Za-z])(?:" + cell + rb"[ \t./_\-]{1,3})+\Z"),
        re.compile(cell + rb"(?:([ \t./_\-]{1,3})" + cell + rb"(?:\1" + cell + rb")*)?(?![0-9A-Za-z])"),
    )
    for cell in (rb"[0-9A-Fa-f]{4}", rb"[0-9A-Fa-f]{1,8}")
}
"""A row of cells up to here, and from here on."""
_COLUMNS = re.compile(rb"[0-9]+(?:[ \t]{2,3}|\t)")


def _is_no_card(text: bytes, start: int, n_digits: int) -> bool:
    """Whether what is called so is an article, a counter, or, with fewer or more digits than most cards, a record's id."""
    before = text[max(0, start - 24) : start]
    return bool(_GOODS.search(before)) or (n_digits not in {15, 16} and bool(_RECORD.search(before)))


def _in_table(text: bytes, start: int) -> bool:
    """Whether nine numbers and more stand in a row, or some in hexadecimal, and they are not all cards.

    Numbers of any length only where more than a space is between them: people write other numbers right beside a card's.
    """
    before, row = _CELLS[rb"[0-9A-Fa-f]{1,8}" if _COLUMNS.match(text, start) else rb"[0-9A-Fa-f]{4}"]
    first = before.search(text, max(0, start - 64), start)
    run = row.match(text, first.start() if first else start, start + 160)
    cells = re.split(rb"[ \t./_\-]+", run[0]) if run else []
    dump = any(not cell.isdigit() and GROUP.search(cell) for cell in cells)
    if len(cells) < 9 and not dump:
        return False
    quads = [b"".join(cells[at : at + 4]).decode() for at in range(0, len(cells), 4)]
    return not all(quad.isdigit() and luhn_card(quad) for quad in quads)


def _card(match: Match) -> Span | None:
    return _card_span(match, named=False)


def _named_card(match: Match) -> Span | None:
    return None if _called_otherwise(match.string, match.start()) else _card_span(match, named=True)


_CARD_START = _OPEN + rb"(?<![0-9]\.)(?=[3-6]|2[0-7]|81|1800|9792|0604)"
_CARD_SOLID = rb"[0-9]{12,19}(?![0-9])"
_CARD_GROUPED = rb"[0-9]{4,8}([ \t./_\-]{1,3})[0-9]{3,13}(?:\2[0-9]{3,5}(?:\2[0-9]{1,4}(?:\2[0-9]{1,3})?)?)?"
_CARD_PRINTED = (
    rb"[0-9]{4}_[0-9]{4}_[0-9]{4}_[0-9]|[0-9]{4}_[0-9]{6}_[0-9]{4}|[0-9]{4}_[0-9]{4}_[0-9]{5}|[0-9]{4}_[0-9]{3}_[0-9]{3}_[0-9]{3}"
    rb"|[0-9]{6}_[0-9]{13}|[0-9]{8}_[0-9]{8}"
)
"""The shapes in which cards are printed; the separator is the same throughout, of which a gate knows only the first sign."""
_CARD_GATE = (
    _NO_DECIMAL
    + rb"(?:(?:4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})|[56][0-9]{11,18}|3[0-9]{13,18}|2[0-7][0-9]{14}|(?:2131|1800)[0-9]{11}"
    rb"|81[0-9]{14,17}|9792[0-9]{12,15}|0604[0-9]{8,15})[^0-9A-Za-z]|"
    + b"|".join(
        _CARD_PRINTED.replace(b"_", rb"[%s][ \t./_\-]{0,2}" % re.escape(sign)) for sign in (b" ", b"\t", b".", b"/", b"_", b"-")
    )
    + rb")"
)
"""A length that a card has behind its prefix, or a shape."""
_CARD_STRICT = re.compile(
    _LEAD
    + rb"(?<![0-9]\.)(?=[3-6]|2[0-7]|81|1800|9792|0604)(?=[0-9]{12,19}(?![0-9A-Za-z])"
    rb"|[0-9]{4}(?P<s>_)(?:[0-9]{4}(?P=s)(?:[0-9]{4}(?P=s)[0-9]|[0-9]{5})|[0-9]{6}(?P=s)[0-9]{4}|[0-9]{3}(?P=s)[0-9]{3}(?P=s)[0-9]{3})"
    rb"|[0-9]{6}_[0-9]{13}|[0-9]{8}_[0-9]{8})".replace(b"_", rb"[ \t./_\-]{1,3}")
)
_CARD_RULES = (
    Rule("card", re.compile(_CARD_START + rb"(?=(" + _CARD_SOLID + rb"))"), _card),
    Rule("card", re.compile(_CARD_START + rb"(?=(" + _CARD_GROUPED + rb"))"), _card, steps=12),
)
_CARD_NAMED = Named(
    _words(
        "card", r"\bcc\b", "credit", "debit", "visa", "maestro", "amex", "american express", "diners", r"\bjcb\b",
        "karte", "carte", "tarjeta", "cartão",
    ),
    Rule("card", re.compile(_OPEN + rb"(?<![0-9]\.)(?=([0-689](?:[ \t./_\-]{0,3}[0-9]){11,18}))"), _named_card, steps=10),
    digits=12,
)  # fmt: skip


# Bank accounts: lengths from the SWIFT IBAN registry, check by ISO 7064 mod 97-10.

_IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FK FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK", 21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
        29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip
_IBAN_BODY = {
    length: re.compile(rb"[0-9A-Za-z](?:[ \t._\-]{0,2}[0-9A-Za-z]){%d}" % (length - 1)) for length in set(_IBAN_LENGTHS.values())
}


def iban_valid(compact: str) -> bool:
    """Whether an IBAN without separators has its country's length and the right check digits."""
    if _IBAN_LENGTHS.get(compact[:2]) != len(compact):
        return False
    return int((compact[4:] + compact[:4]).translate(_IBAN_DIGITS)) % 97 == 1


_IBAN_DIGITS = str.maketrans({letter: str(value) for value, letter in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZ", 10)})


_DASHED = re.compile(rb"[0-9A-Za-z]{4}(?:-[0-9A-Za-z]{4})*(?:-[0-9A-Za-z]{1,4})?|[0-9A-Za-z](?:-[0-9A-Za-z]{1,2}){11,}")


def _iban(match: Match) -> Span | None:
    """Walk to the country's length, whatever follows, then check. Dashes stand between fours, or it may be part of a UUID."""
    length = _IBAN_LENGTHS.get(match[1].decode().upper())
    if length is None:
        return None
    body = _IBAN_BODY[length].match(match.string, match.start())
    if body is None or not stands_alone(body.string, body.end()):
        return None
    if b"-" in body[0] and not _DASHED.fullmatch(body[0]):
        return None
    return body.span() if iban_valid(body[0].translate(None, b" \t._-").decode().upper()) else None


_COUNTRY = rb"(?i:" + b"|".join(sorted(map(str.encode, _IBAN_LENGTHS))) + rb")"
_IBAN_GATE = _LEAD + _COUNTRY + rb"[0-9]{2}"
_IBAN_REST = rb"(?:[ \t._\-]{0,2}[0-9A-Za-z]){11}"
"""As long as the shortest: lengths that differ by country are more than an automaton can hold where many numbers overlap."""
_IBAN_STRICT = re.compile(_LEAD + rb"(?=[A-Za-z]{2}[0-9]{2}" + _IBAN_REST + rb")")
_IBAN_RULES = (Rule("iban", re.compile(_OPEN + rb"([A-Za-z]{2})[0-9]{2}"), _iban),)


# US social security and individual taxpayer numbers: ranges as the SSA (since 2011) and the IRS publish them.


def _ssn_span(match: Match, *, named: bool) -> Span | None:
    digits = _digits(match[0])
    area, group, serial = int(digits[:3]), int(digits[3:5]), int(digits[5:])
    if area in {0, 666} or group == 0 or serial == 0:
        return None
    itin = 50 <= group <= 65 or 70 <= group <= 88 or 90 <= group <= 92 or 94 <= group <= 99
    return match.span() if area < 900 or itin or named else None


def _ssn(match: Match) -> Span | None:
    return _ssn_span(match, named=False)


def _named_ssn(match: Match) -> Span | None:
    return _ssn_span(match, named=True)


_SSN_GATE = _NO_TAIL + rb"[0-9]{3}(?:[ .\-]| - )[0-9]{2}(?:[ .\-]| - )[0-9]{4}"
_SSN_RULES = (Rule("ssn", re.compile(_OPEN + rb"(?<![0-9][.\-])[0-9]{3}([ .\-]| - )[0-9]{2}\1[0-9]{4}(?!-[0-9])" + _SHUT), _ssn),)
_SSN_NAMED = Named(
    _words(r"\bssn", "social[ _-]?sec", r"\bss ?(?:#|no|number)", r"\bitin\b", "tax(?:payer)?[ _-]?(?:id|no|number)"),
    Rule("ssn", re.compile(_OPEN + rb"(?<![0-9]\.)[0-9](?:[ ._/\-]{0,3}[0-9]){8}(?!\.[0-9])" + _SHUT), _named_ssn),
    digits=9,
)


# Telephone numbers: E.164 (at most 15 digits), the North American plan's 3-3-4, and others only beside a word.

_EXTENSION = rb"(?:[ \t]?(?:x|ext\.?)[ \t]?[0-9]{1,6})?"
_DATE = re.compile(
    rb"(?:19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])\Z"
    rb"|(?:1[89]|20)[0-9]{2}([.\-/ ])[01]?[0-9]\1[0-3]?[0-9]|[0-3]?[0-9]([.\-/ ])[01]?[0-9]\2(?:1[89]|20)[0-9]{2}"
)
_DECIMAL = re.compile(rb"(?![17]\.[0-9]{10}\Z|[0-9]{2,3}\.[0-9]{7,}\Z)[0-9]+\.[0-9]+|2147483647|4294967295")
_RELEASE = re.compile(rb"(?!1\.[0-9]{3}\.[0-9]{3}\.)[1-9][0-9]?\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,5}")
_HASH_NUMBER = re.compile(rb"(?i)(?:phone|tel|mobile|cell|fax|number|call)\W{0,2}#\Z")
_YEARS = re.compile(rb"(?:(?:1[5-9]|20)[0-9]{2}[ ,/.\-]*){2,}")


def _phone(match: Match) -> Span | None:
    """A number of 7 to 15 digits, with the `+` or `(` before it.

    One dot is decimal unless a country code stands before it and a number behind; the largest integers are none, either.
    """
    start, number = match.start(), match["number"]
    if not 7 <= len(_digits(number)) <= 15 or _DECIMAL.fullmatch(number):
        return None
    return start - (match.string[start - 1 : start] in {b"+", b"("}), match.end()


def _named_phone(match: Match) -> Span | None:
    """As `_phone`, and neither a date, a list of years, a decimal fraction, a release, nor by itself a card number.

    What is called otherwise is none: an issue (`#1234567`), a value behind another key (`ts=`), an invoice.
    """
    number = match["number"]
    start = match.start()
    if match.string[start - 1 : start] == b"#" and not _HASH_NUMBER.search(match.string, max(0, start - 12), start):
        return None
    key = _OTHER_KEY.search(match.string, max(0, start - _OTHER_BYTES), start)
    if _called_otherwise(match.string, start) or _RELEASE.fullmatch(number) or (key and not _PHONE_NAME.search(key[0])):
        return None
    fraction = number.count(b".") == 1 and not any(mark in number for mark in (b" ", b"-", b"/", b"(", b")"))
    if fraction or _DATE.match(number) or _YEARS.fullmatch(number) or luhn_card(_digits(number)):
        return None
    return _phone(match)


_PHONE_WORD = _words(
    "phone", r"\btel(?:efo|éfo|epon|\b)", r"\bt(?:é|É)l(?:\b|(?:é|É)phone)", r"\btlf\b", "mobi(?:l|el)", r"\bm(?:ó|Ó)vil",
    r"\bcell?(?:ular|\b)", r"\bgsm\b", r"\bhandy(?:nr|nummer|:|[ ]?[(0])", r"\bfax", "whatsapp", r"\bsms\b",
    "hotline", "voicemail",
    r"\b(?:call|text|ring|reach|contact|dial|message)(?:ed|ing)? (?:\w+ ){0,3}(?:at|on|under|via)\b",
    r"\b(?:call|dial|ring|text)(?:ing)?[ :]{1,3}[(+]{0,2}[0-9]", r"\bcall (?:me|us|him|her|them|back)\b",
    r"\b(?:answering|available|reachable) (?:at|on)\b", r"\b(?:my|her|his|their|our|your|new) number\b",
    r"\bnumber (?:for\b|to (?:reach|call))", r"\b(?:home|work|office)(?: number)?: ?[(0-9]", r"\bph[.:]",
    r"\b(?-i:[TMFP]): ?[(0]",
    r"\bcontact(?: number| no\b| info|:)", "emergency contact", "puhelin", "điện thoại", "τηλ",
    "(?:т|\u0422)ел(?:\\.|:|ефон)", "\u03a4ηλ",
    "電話", "电话", "手机", "手機", "携帯", "전화", "휴대폰", "핸드폰", "โทร", "เบอร์",
    "טלפון", "נייד", "هاتف", "جوال", "फोन", "फ़ोन", "मोबाइल",
)  # fmt: skip
_NUMBER = (
    rb"(?<![0-9A-Za-z$.])(?<![0-9A-KM-WYZ]-)(?<![a-z]/)(?P<number>[0-9](?:[ \t().\-/]{0,3}[0-9]){6,14})"
    rb"(?![0-9%]|-[0-9a-f]{4}-|\.\.)" + _EXTENSION + _SHUT
)
"""Not behind a word's hyphen as in `CVE-` (but `TEL-`, `FAX-`), nor in a path or a UUID."""
_OTHER_NUMBER = re.compile(
    rb"(?i)\b(?:order|invoice|ticket|tracking|serial|s/n|isbn|ean|gtin|upc|imei|sku|model|reference|ref|contract|policy|batch|rma"
    rb"|booking|transaction|firmware|version|build|issue|bug|zip|vat|uuid|[pug]?id|bestell\w*|rechnung\w*|auftrag\w*|vertrag\w*"
    rb"|kunden\w*|(?<!in )case|article|(?:part|item|lot|customer|account|owner|project|po|postal)(?=[ _]?(?:[#:]|n[ou]|id|code)))"
    rb"[ _\-]?(?:number|num|no|nr|id|code|key)?\.?[\"']?[ \t:#=(\x1e]{0,4}[\"']?\Z"
)
_OTHER_KEY = re.compile(rb"\b[\w.\-]{1,30}=[\"']?\Z")
_OTHER_BYTES = 40


def _called_otherwise(text: bytes, start: int) -> bool:
    """Whether what stands right before a number says that it is one of goods, papers or accounts, as `invoice no.` does."""
    return _OTHER_NUMBER.search(text, max(0, start - _OTHER_BYTES), start) is not None


_PHONE_NAME = re.compile(rb"(?i)phone|tel|mobil|cell|fax|contact|sms|gsm|whatsapp|number=")
_BEHIND_NUMBER = rb"[ \t,:(\-]{0,3}(?i:phone|tel|mobile|cell|fax|office|home|work|(?:is )?(?:my|your|his|her|our) number)"
_PLUS_GATE = rb"\+[1-9](?:[ ().\-/]{0,3}[0-9]){7}"
_PLUS_RULES = (
    Rule(
        "phone",
        re.compile(
            rb"(?<=\+)(?<![0-9A-Za-z+~]\+)(?P<number>[1-9](?:[ ().\-/]{0,3}[0-9]){7,14})(?![0-9jJ]|[eE][\-+0-9])" + _EXTENSION
        ),
        _phone,
    ),
)
_NORTH_AMERICAN_GATE = _NO_TAIL + rb"(?:(?:1|001)[ .\-])?(?:\(?[0-9]{3}\) ?|[0-9]{3}[.\-])[0-9]{3}[.\-][0-9]{4}"
_NORTH_AMERICAN_RULES = (
    Rule(
        "phone",
        re.compile(
            _OPEN + rb"(?<![0-9][.\-])(?P<number>(?:(?:1|001)[ .\-])?(?:\(?[0-9]{3}\) ?[0-9]{3}[.\-]"
            rb"|[0-9]{3}(?P<s>[.\-])[0-9]{3}(?P=s))[0-9]{4})"
            rb"(?![0-9]|-[0-9])" + _EXTENSION
        ),
        _phone,
    ),
)
_THREES_STRICT = re.compile(
    _LEAD + rb"(?<![0-9][.\-])(?=[0-9]{3}(?:[ .\-]| - )[0-9]{2}(?:[ .\-]| - )[0-9]{4}"
    rb"|(?:(?:1|001)[ .\-])?(?:\(?[0-9]{3}\) ?|[0-9]{3}[.\-])[0-9]{3}[.\-][0-9]{4})"
)
"""As the gates of SSN and North American numbers, from one sign: `re` is quick where it has one set of signs to look for."""
_CALLED_GATE = rb"[0-9]" + _BEHIND_NUMBER
"""Only the end of the number: how many ways there are to write what stands before is left to the rule."""
_CALLED_STRICT = re.compile(rb"[0-9](?=[ \t,:(\-]{0,3}[PTMCFOHWIYptmcfohwiy])(?=" + _BEHIND_NUMBER + rb")")
_CALLED_NEEDS = (b"phone", b"tel", b"mobile", b"cell", b"fax", b"office", b"home", b"work", b"number")
_CALLED_RULES = (Rule("phone", re.compile(_NUMBER + rb"(?=" + _BEHIND_NUMBER + rb"\b)"), _named_phone),)
_PHONE_NAMED = Named(_PHONE_WORD, Rule("phone", re.compile(_NUMBER), _named_phone), digits=7)


# Addresses on networks.

_VERSION_WORD = re.compile(
    rb"(?i)(?:version|\bver|release|build|firmware|driver|upgrad|updat|bump|python|node|chrome|linux-|\bv8\b|\boid|objectidentifier"
    rb"|[=<>~^]=|\bsections?|chapter|figure|rfc)"
    rb"[\W_]{0,6}(?:\w{1,12} )?$"
)
_VERSION_BYTES = 28
"""Longer than such a word with what may stand behind it."""
_IP_WORD = re.compile(rb"\bip|\bdns|addr|host|server|ping|subnet|router|gateway|client|://")
_NOBODY_V4 = re.compile(rb"0\.|127\.|255\.")
_HEX_WITH_DIGIT = re.compile(rb"(?i)(?=[a-f]*[0-9])[0-9a-f]{3,4}")


_SECTION = re.compile(rb"(?:// (?:c\+\+[0-9]{2} )?\[?|/\* ?|\xa7 ?)\Z")
_OBJECT_IDS = (b"2.5.4.", b"2.5.29.")
"""Attributes and extensions of certificates (ITU-T X.520, X.509), which nobody writes for addresses."""
_FRACTION_BEFORE = re.compile(rb"(?<![0-9.])[0-9]*\.[0-9]+[ ,]?-?\Z")
_FRACTION_BEHIND = re.compile(rb"[ ,]?-?[0-9]*\.[0-9]+(?:\.[0-9]+)?(?![0-9.])")
_VERSION_BEHIND = re.compile(rb"-(?:[0-9](?![0-9])|[A-Za-z])|\) [a-z\-]+; urgency=")


def _in_path(match: Match, before: bytes) -> bool:
    """Whether fractions stand on both sides, as in the paths of a drawing, or the suffix of a version behind."""
    text, end = match.string, match.end()
    if _VERSION_BEHIND.match(text, end):
        return True
    return bool(_FRACTION_BEHIND.match(text, end)) and bool(_FRACTION_BEFORE.search(before[-16:]))


def _ipv4(match: Match) -> Span | None:
    """Neither nobody's address (loopback, netmask) nor a version or section number.

    Four single digits, as in 1.2.3.4, and what begins a comment are an address only beside a word that says so.
    """
    if _NOBODY_V4.match(match[0]):
        return None
    before = match.string[max(0, match.start() - CONTEXT_BYTES) : match.start()].lower()
    if before.endswith(b"section-"):
        return None
    alone = len(match[0]) > 7 and not match[0].startswith(_OBJECT_IDS) and not _SECTION.search(before[-12:])
    if alone and not _VERSION_WORD.search(before[-_VERSION_BYTES:]) and not _in_path(match, before):
        return match.span()
    return match.span() if _IP_WORD.search(before) else None


def _ipv6(match: Match) -> Span | None:
    """What `ipaddress` accepts; a compressed form needs a group such as `fe80`, so that `a::b` and `c10::` are none."""
    text = match[0][:-1] if match[0].endswith(b":") and not match[0].endswith(b"::") else match[0]
    groups = [group for group in text.split(b":") if _HEX_WITH_DIGIT.fullmatch(group)]
    if b"::" in text and (not groups or (len(groups[0]) < 4 and groups[0] == text.strip(b":"))):
        return None
    try:
        address = ipaddress.IPv6Address(text.decode())
    except ValueError:
        return None
    return None if address.is_loopback or address.is_unspecified else (match.start(), match.start() + len(text))


_OCTET = rb"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4_GATE = rb"[^0-9A-Za-z.]" + _OCTET + rb"(?:\." + _OCTET + rb"){3}(?:[^0-9A-Za-z.]|\.[^0-9])"
_IPV4_RULES = (
    Rule("ip", re.compile(rb"(?<![0-9A-Za-z.])" + _OCTET + rb"(?:\." + _OCTET + rb"){3}(?![0-9A-Za-z]|\.[0-9])"), _ipv4, steps=5),
)
_IPV6_RULES = (
    Rule(
        "ip",
        re.compile(rb"(?<![0-9A-Za-z:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,8}(?![0-9A-Za-z]|:[0-9A-Fa-f:])"),
        _ipv6,
        steps=8,
    ),
)

_HEX2 = rb"[0-9A-Fa-f]{2}"
_MAC_SHAPE = (
    _HEX2 + rb"(?::" + _HEX2 + rb"){5}|" + _HEX2 + rb"(?:-" + _HEX2 + rb"){5}|[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}"
)
_MAC_NEAR = (b"mac", b"ether", b"hw", b"hardware", b"nic", b"bssid", b"wi-fi", b"wifi", b"interface")
_MAC_WORD = re.compile(rb"(?i)\bmac\b|ether|hw ?addr|hardware|\bnic\b|bssid|wi-?fi|interface")


def _mac(match: Match) -> Span | None:
    """Neither nobody's address (all bytes alike) nor, without a word, decimal numbers between dashes or dots."""
    digits = match[0].translate(None, b":.-")
    if digits == digits[:2] * 6:
        return None
    if b":" in match[0] or not digits.isdigit():
        return match.span()
    before = match.string[max(0, match.start() - CONTEXT_BYTES) : match.start()]
    return match.span() if _MAC_WORD.search(before) else None


_HEX_LETTER = rb"[A-Fa-f]"
_MAC_LETTERED = b"|".join(
    (
        _HEX2 + rb"(?::" + _HEX2 + rb"){5}",
        *(
            rb"[0-9]{2}-" * n + rb"(?:" + _HEX_LETTER + rb"[0-9A-Fa-f]|[0-9]" + _HEX_LETTER + rb")" + (rb"-" + _HEX2) * (5 - n)
            for n in range(6)
        ),
        *(
            rb"[0-9]{4}\." * (n // 4) + rb"[0-9]" * (n % 4) + _HEX_LETTER + rb"[0-9A-Fa-f]" * (3 - n % 4)
            + rb"\.[0-9A-Fa-f]{4}" * (2 - n // 4)
            for n in range(12)
        ),
    )
)  # fmt: skip
"""Between dashes and dots with a letter."""
_MAC_DECIMAL = rb"[0-9]{2}(?:-[0-9]{2}){5}|[0-9]{4}\.[0-9]{4}\.[0-9]{4}"
_MAC_GATE = rb"(?:[^0-9A-Za-z:.\-]|[^0-9A-Fa-f][:.\-])(?:%s)(?:[^0-9A-Za-z:.\-]|[:.\-][^0-9A-Fa-f])"


def _mac_strict(shape: bytes) -> Pattern:
    return re.compile(_LEAD + rb"(?<![0-9A-Fa-f][:.\-])(?=(?:%s)(?![0-9A-Za-z]|[:.\-][0-9A-Fa-f]))" % shape)


_MAC_RULES = (
    Rule(
        "mac",
        re.compile(
            rb"(?<![0-9A-Za-z])(?<![0-9A-Fa-f][:.\-])(?<!\[[.*])(?:" + _MAC_SHAPE + rb")(?![0-9A-Za-z]|[:.\-][0-9A-Fa-f])"
        ),
        _mac,
    ),
)


# National numbers: what each looks like and how it is checked stands in `national_ids.py`.

_WRITTEN = b"|".join(scheme.written.encode() for scheme in SCHEMES if scheme.written)
_WRITTEN_FORMS = tuple((re.compile(scheme.written), scheme) for scheme in SCHEMES if scheme.written)
_SCHEME_WORDS = tuple((re.compile(scheme.words, re.IGNORECASE), scheme) for scheme in SCHEMES)
_GENERAL_WORD = re.compile(GENERAL_WORDS, re.IGNORECASE)
_ANY_ID_WORD = ("(?i:" + "|".join((GENERAL_WORDS, *(scheme.words for scheme in SCHEMES))) + ")").encode()
_ID_TOKEN = re.compile(rb"(?<![0-9A-Za-z])(?:[A-Z]{2} )?[A-Za-z]{0,6}[0-9][0-9A-Za-z]{0,17}(?:[ .\-/+]{1,2}[0-9A-Z]{1,9}){0,7}")
_GAP = re.compile(r"[ .\-/]")


def _compact(scheme: Scheme, text: str) -> str:
    """The signs of what may be such a number, or none; in Finland the sign between date and number is part of it."""
    compact = text if scheme.compact.fullmatch(text) else _GAP.sub("", text).upper()
    return compact if scheme.compact.fullmatch(compact) else ""


def _is_number_of(scheme: Scheme, text: str) -> bool:
    compact = _compact(scheme, text)
    return bool(compact) and scheme.valid(compact)


def _written_id(match: Match) -> Span | None:
    """A number in the writing that one country alone uses."""
    if _called_otherwise(match.string, match.start()):
        return None
    text = match[0].decode()
    return match.span() if any(form.fullmatch(text) and _is_number_of(scheme, text) for form, scheme in _WRITTEN_FORMS) else None


@functools.lru_cache(maxsize=512)
def _called(word: bytes) -> tuple[dict[int, list[Scheme]], int]:
    """The schemes that are called so, by how many signs their numbers have, and how many they have at least.

    Words are those of the table. Where the word is general, all schemes with ten signs and more.
    """
    text = word.decode("utf-8", "replace")
    general = _GENERAL_WORD.search(text)
    named = tuple(scheme for pattern, scheme in _SCHEME_WORDS if pattern.search(text) or (general and not scheme.short))
    by_length: dict[int, list[Scheme]] = {}
    for scheme in named:
        for length in scheme.lengths:
            by_length.setdefault(length, []).append(scheme)
    return by_length, 8 if any(scheme.short for scheme in named) else 10


_LONG_ID = {least: re.compile(rb"(?<![0-9A-Za-z])[0-9A-Za-z](?:[ .\-/+]{0,2}[0-9A-Za-z]){%d}" % (least - 1)) for least in (8, 10)}
"""As many signs as a number has at least: wider than `_ID_TOKEN`, and quicker to say no."""


def named_id(text: bytes, start: int, end: int) -> tuple[Span | None, int]:
    """The number behind the word that stands here, among the next three groups of digits, and what the search cost in steps."""
    stop = end + CONTEXT_BYTES
    named, least = _called(text[start:end])
    place, steps = end, 3
    if _LONG_ID[least].search(text, end, stop + 24) is None:
        return None, steps
    for _ in range(3):
        token = _ID_TOKEN.search(text, place, stop + 24)
        steps += 3
        if token is None or token.start() > stop:
            break
        found = token[0]
        if len(found.translate(None, b" .-/+")) >= least:
            last, tried = _id_end(token, named)
            steps += tried
            if last:
                return (token.start(), last), steps
        group = GROUP.search(found)
        # `Steuer-ID 12...`: what looks like the letters of a number may be the end of its name.
        place = token.start() + (3 if found[2:3] == b" " and found[:2].isalpha() else group.end() if group else 1)
    return None, steps


def _id_end(token: Match, named: dict[int, list[Scheme]]) -> tuple[int | None, int]:
    """Where the longest number that begins with this token ends, and what it cost to know."""
    text = token[0].decode()
    steps = 2
    for end in range(len(text), 7, -1):
        if text[end - 1].isalnum() and not text[end : end + 1].isalnum() and stands_alone(token.string, token.start() + end):
            steps += 2
            for length in {end, len(_GAP.sub("", text[:end]))}:
                for scheme in named.get(length, ()):
                    compact = _compact(scheme, text[:end])
                    steps += 12 if compact else 1
                    if compact and scheme.valid(compact):
                        return token.start() + end, steps
    return None, steps


def _without_looks(pattern: bytes) -> bytes:
    """The pattern as RE2 reads it: wider, where something had to be the same twice or may not stand there."""
    named = {match[1]: match[2] for match in re.finditer(rb"\(\?P<(\w+)>([^()]*)\)", pattern)}
    plain = re.sub(rb"\(\?P<\w+>", rb"(?:", re.sub(rb"\(\?!.*?\)", b"", pattern))
    plain = re.sub(rb"\(\?P=(\w+)\)", lambda match: named[match[1]], plain)
    return plain.replace(rb"\d", rb"[0-9]").replace(rb"[[0-9]", rb"[0-9")


_WRITTEN_GATE = rb"(?:[^0-9A-Za-z.\-/]|[^0-9][.\-/])(?:" + _without_looks(_WRITTEN) + rb")(?:[^0-9A-Za-z.\-/]|[.\-/][^0-9])"
_WRITTEN_STRICT = re.compile(_LEAD + rb"(?<![0-9][.\-/])(?=(?:" + _without_looks(_WRITTEN) + rb")(?![0-9A-Za-z]|[.\-/][0-9]))")
_WRITTEN_ID = Rule(
    "national_id",
    re.compile(rb"(?<![0-9A-Za-z])(?<![0-9][.\-/])(?:" + _WRITTEN + rb")(?![0-9A-Za-z]|[.\-/][0-9])"),
    _written_id,
    steps=12,
)
ID_WORDS = _ANY_ID_WORD
"""What national numbers are called."""
LONG_TOKEN = (
    rb"[0-9][0-9A-Za-z]{0,17}[ .\-/+]{1,2}[0-9A-Z]|"
    + b"|".join(rb"[A-Za-z]{%d}[0-9][0-9A-Za-z]{%d}" % (letters, 7 - letters) for letters in range(7))
    + rb"|[A-Z]{2} [A-Za-z]{0,6}[0-9]"
)
"""Stands where a number begins that is long enough for a national number behind a word."""
NAMED_ID = "national_id"
"""The kind of `named_id`."""


# Wallets: addresses in base 58 with a double SHA-256 (Bitcoin and its kin), in bech32 (BIP 173, 350), and by shape.

_BASE58 = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BASE58_VALUES = bytes.maketrans(_BASE58, bytes(range(58)))
_RIPPLE = bytes.maketrans(b"rpshnaf39wBUDNEGHJKLM4PQRST7VWXYZ2bcdeCg65jkm8oFqi1tuvAxyz", _BASE58)
_BECH32_VALUES = bytes.maketrans(b"qpzry9x8gf2tvdw0s3jn54khce6mua7l", bytes(range(32)))
_BECH32_MASKS = tuple(
    functools.reduce(
        int.__xor__,
        (mask for bit, mask in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)) if top >> bit & 1),
        0,
    )
    for top in range(32)
)


def _base58_bytes(text: bytes) -> bytes:
    number = 0
    for value in text.translate(_BASE58_VALUES):
        number = number * 58 + value
    return bytes(len(text) - len(text.lstrip(b"1"))) + number.to_bytes((number.bit_length() + 7) // 8, "big")


def base58check_valid(text: bytes) -> bool:
    """Whether the last four bytes are the double SHA-256 of the others; 21 bytes (Zcash: 22) make an address, more a key."""
    data = _base58_bytes(text)
    digest = hashlib.sha256(hashlib.sha256(data[:-4]).digest()).digest()
    return len(data) in {25, 26, 37, 38, 82} and data[-4:] == digest[:4]


def bech32_valid(text: str) -> bool:
    """Whether the checksum is that of bech32 or bech32m."""
    prefix, _, data = text.lower().rpartition("1")
    values = [ord(letter) >> 5 for letter in prefix] + [0] + [ord(letter) & 31 for letter in prefix]
    check = 1
    for value in (*values, *data.encode().translate(_BECH32_VALUES)):
        check = (check & 0x1FFFFFF) << 5 ^ value ^ _BECH32_MASKS[check >> 25]
    return check in {1, 0x2BC830A3}


def _wallet(match: Match) -> Span | None:
    text = match[0]
    ripple = text.startswith(b"r") and base58check_valid(text.translate(_RIPPLE))
    return match.span() if ripple or base58check_valid(text) else None


def _wallet_key(match: Match) -> Span | None:
    return match.span() if base58check_valid(match[0]) else None


def _various(match: Match) -> Span | None:
    """Not a constant such as forty zeros."""
    return match.span() if len(set(match[0].lower())) >= 8 else None


def _bech32(match: Match) -> Span | None:
    return match.span() if bech32_valid(match[0].decode()) else None


def _solana(match: Match) -> Span | None:
    return match.span() if len(_base58_bytes(match[0])) == 32 else None


_B58 = rb"[1-9A-HJ-NP-Za-km-z]"
_BECH32_SHAPE = rb"(?:bc|tb|ltc|addr|stake|cosmos|osmo)1[02-9ac-hj-np-z]{%d,%d}|(?:BC|TB|LTC)1[02-9AC-HJ-NP-Z]{%d,%d}"
_WALLET_RULES = (
    Rule("wallet", re.compile(_OPEN + rb"0x[0-9A-Fa-f]{40}" + _SHUT), _various, steps=3),
    Rule("wallet", re.compile(_OPEN + rb"(?:(?:111|rrr)" + _B58 + rb"{22,32}|" + _B58 + rb"{33,35})" + _SHUT), _wallet, steps=16),
    Rule("wallet", re.compile(_OPEN + rb"[48][0-9AB]" + _B58 + rb"{93}" + _SHUT), _various),
    Rule("wallet", re.compile(_OPEN + rb"(?:" + _BECH32_SHAPE % (38, 110, 38, 110) + rb")" + _SHUT), _bech32, steps=30),
    Rule(
        "wallet",
        re.compile(_OPEN + _B58 + rb"{43,44}" + _SHUT),
        _solana,
        before=_words("solana", r"\bsol\b", "phantom", "wallet"),
        steps=8,
    ),
    Rule(
        "secret",
        re.compile(_OPEN + rb"(?:[5KLc9]" + _B58 + rb"{50,51}|[xyztuv]prv" + _B58 + rb"{107,108})" + _SHUT),
        _wallet_key,
        steps=20,
    ),
)
_WALLET_GATE = (
    _LEAD
    + rb"(?:0x[0-9A-Fa-f]{40}|(?:111|rrr)"
    + _B58
    + rb"{22,32}|"
    + _B58
    + rb"{33,35}|"
    + _B58
    + rb"{43,44}|[5KLc9]"
    + _B58
    + rb"{50,51}|[48][0-9AB]"
    + _B58
    + rb"{93}|[xyztuv]prv"
    + _B58
    + rb"{107,108}|"
    + _BECH32_SHAPE % (38, 110, 38, 110)
    + rb")"
    + _LEAD
)


_LOCAL = rb"0-9A-Za-z_.+'&%\-\x80-\xff"
_LOCAL_BYTES = b"".join(re.findall(rb"[" + _LOCAL + rb"]", bytes(range(256))))
_FILE_ENDS = frozenset(b"png jpg jpeg gif svg webp ico bmp css js ts service socket timer slice".split())
_COMMON_ENDS = frozenset({b"com", b"net", b"org", b"edu", b"gov", b"info", b"dev", b"app"})
_URL_USER = re.compile(rb"://[^\s/@\x1e]{0,64}:\Z")


def _email(match: Match) -> Span | None:
    """Not an image (`icon@2x.png`), a unit (`user@1000.service`), a git remote, a call (`x@w.dot(`) or the password of a URL."""
    text, at, end = match.string, match.start(), match["end"].lower()
    if end in _FILE_ENDS or (text[match.end() : match.end() + 1] == b"(" and len(end) > 2 and end not in _COMMON_ENDS):
        return None
    before = text[max(0, at - 64) : at]
    local = before[len(before.rstrip(_LOCAL_BYTES)) :]
    start = at - len(local)
    if not local or local == b"git" or _URL_USER.search(text, max(0, start - 80), start):
        return None
    return start, match.end()


_LABEL = rb"[0-9A-Za-z_\x80-\xff][0-9A-Za-z_\-\x80-\xff]{0,62}"
_DOMAIN = rb"(?:" + _LABEL + rb"\.){1,12}(?P<end>[A-Za-z\x80-\xff][0-9A-Za-z\-\x80-\xff]{1,62})"
_AT = rb"(?:@|%40|&#64;|&#x40;)"
"""Also as it stands in a URL and in HTML."""
_EMAIL_RULES = (Rule("email", re.compile(rb"(?<=[0-9A-Za-z_+'&\-\x80-\xff])" + _AT + _DOMAIN), _email),)
_EMAIL_STRICT = re.compile(
    b"|".join(
        rb"%s(?<=[0-9A-Za-z_+'&\-\x80-\xff]%s)(?<![^" % (sign, sign) + _LOCAL + rb"]git%s)(?=[0-9A-Za-z_\x80-\xff])" % sign
        for sign in (b"@", b"%40", b"&#64;", b"&#x40;")
    )
)
"""Git remotes crowd in texts that nobody made for it."""


def _end_but(words: frozenset[bytes], depth: int = 0) -> bytes:
    """Two signs and more of a domain's last label, to its border, that are none of these words in any case."""
    heads = {word[:1] for word in words if word}
    named = b"".join(head + head.upper() for head in sorted(heads))
    signs = bytes(byte for byte in range(256) if byte >= 128 or byte in _ALNUM or (depth and byte == 45))
    if not depth:
        signs = signs.translate(None, b"0123456789")
    others = b"".join(b"\\x%02x" % byte for byte in signs.translate(None, named))
    ways = [rb"[%s]%s" % (others, _END_SIGN + (b"+" if not depth else b"*") + _END_BORDER)]
    for head in sorted(heads):
        rest = frozenset(word[1:] for word in words if word[:1] == head)
        ways.append(b"[%s]%s" % (head + head.upper(), _end_but(rest, depth + 1)))
    if depth > 1 and b"" not in words:
        ways.append(_END_BORDER)
    return b"(?:" + b"|".join(ways) + b")"


_END_SIGN = rb"[0-9A-Za-z\-\x80-\xff]"
_END_BORDER = rb"(?:[^0-9A-Za-z\-.\x80-\xff]|\.(?:[^A-Za-z\x80-\xff]|[A-Za-z\x80-\xff][^0-9A-Za-z\-\x80-\xff]))"
_ANY_LABEL = rb"[0-9A-Za-z_\x80-\xff][0-9A-Za-z_\-\x80-\xff]*"
_EMAIL_REST = (
    rb"(?:(?:" + _ANY_LABEL + rb"\.)+" + _end_but(_FILE_ENDS) + rb"|(?:" + _ANY_LABEL + rb"\.)*" + _ANY_LABEL[:-1] + rb"{62}"
    rb"|(?:" + _ANY_LABEL + rb"\.){13})"
)
"""A domain that does not end like an image or a script; or one that is longer than any."""


# Credentials: the prefixes their issuers document, so that leaked ones can be found.


_WORDS = re.compile(
    rb"(?:(?:[A-Za-z]*[0-9]{0,4}|[A-Z]+[0-9]{1,4}[A-Z]+[0-9]?)[._/$\-])+[A-Za-z]*[0-9]{0,4}"
    rb"|(?:[A-Z][0-9]{0,2})?(?>[A-Z]?[a-z]{4,}+[0-9]{0,2}+|[A-Z]{2,5}[0-9]{1,2}(?=[A-Z])|Key)++"
)
"""A name in code: words with signs between them, digits only at their ends, or in `CamelCase`.

Nothing is taken back: a run of small letters can be cut into words in more ways than there is time for."""
_IN_HASH = re.compile(rb"(?:sha[0-9]{3}[=\-]|[0-9A-Za-z][\-_])\Z")


def _random(match: Match) -> Span | None:
    """Not a placeholder, a CSS class or a name in code: many different characters, among them a digit or both cases."""
    token = match["token"]
    if (token.islower() or token.isupper()) and not GROUP.search(token):
        return None
    return None if len(set(token)) < 8 or _WORDS.fullmatch(token) else match.span()


def _issued_token(match: Match) -> Span | None:
    """Not a placeholder: eight characters and more are different."""
    return match.span() if len(set(match[0])) >= 8 else None


def _prefixed(match: Match) -> Span | None:
    """As `_random`, and no part of a hash, which may hold so short a prefix."""
    start = match.start()
    return None if _IN_HASH.search(match.string[max(0, start - 8) : start]) else _random(match)


def _random_value(match: Match) -> Span | None:
    """As `_random`, and with a digit, since names in code have both cases; what is called is code."""
    called = match.string[match.end() : match.end() + 1] in {b"(", b"["}
    return _random(match) if GROUP.search(match["token"]) and not called else None


def github_checksum(body: str) -> str:
    """The six characters that end a GitHub token: CRC32 of the thirty before them, in base 62."""
    rest, letters = zlib.crc32(body.encode()), ""
    while rest:
        rest, digit = divmod(rest, 62)
        letters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"[digit] + letters
    return letters.rjust(6, "0")


def _github(match: Match) -> Span | None:
    token = match["token"].decode()
    return match.span() if len(token) != 36 or github_checksum(token[:30]) == token[30:] else None


def _jwt(match: Match) -> Span | None:
    """A token whose first part is a JSON object that names an algorithm."""
    head = match["head"]
    try:
        claims = base64.urlsafe_b64decode(head + b"=" * (-len(head) % 4))
    except ValueError:
        return None
    return match.span() if claims.startswith(b"{") and b'"alg"' in claims else None


_PAIR = re.compile(rb"[!-9;-~]+:[!-~]{4,}")


def _basic(match: Match) -> Span | None:
    """Name and password in base 64 (RFC 7617)."""
    token = match["token"].rstrip(b"=")
    try:
        pair = base64.urlsafe_b64decode(token.translate(_URL_BASE64) + b"=" * (-len(token) % 4))
    except ValueError:
        return None
    return match.span() if _PAIR.fullmatch(pair) else None


_URL_BASE64 = bytes.maketrans(b"+/", b"-_")
_PEM_MARKER = re.compile(rb"[^-]*-----BEGIN [0-9A-Z ]*-----(?:[\"'`<)]|\.{3})(?![^-]{0,60}[0-9A-Za-z+/]{40})")


def _pem(match: Match) -> Span | None:
    """The header of a key with the key, not by itself as a string in code."""
    return None if _PEM_MARKER.match(match.string, match.start(), match.start() + 200) else match.span()


_PLACEHOLDER = re.compile(
    rb"(?i)[<{]|%[({]|%[sdr]$|\*\*|\[[a-z<]|\.{3}|x{3}|your|example|changeme|placeholder|redacted|(?:(?:user)?pass(?:word|wd)?|pwd|secret)$"
)
_VERSION = re.compile(rb"[0-9]+[.:][0-9]")
_IN_CODE = re.compile(
    rb"^[*&]?[A-Za-z_][\w:.]*[(\[](?:.*[)\](\[])?$|[a-z]{4}\w*\(|^\$\(\w+\)|\$\{|[{}<>\\]|\|\||^[*.]+$"
    rb"|^\$(?:[A-Z][A-Z0-9_]*|[a-z]+(?:_[a-z]+|[A-Z][a-z]+)*[0-9]?)$"
)


def _password_in_url(match: Match) -> Span | None:
    """Neither a placeholder nor a letter or three, as in `://a:b@host`."""
    return None if len(match["password"]) < 4 or _PLACEHOLDER.match(match["password"]) else match.span()


def _password(match: Match) -> Span | None:
    """A value after the word: a digit beside a letter or only digits, and no piece of code or placeholder.

    The package `passwd` and its version, and lines of `/etc/passwd`, are none.
    """
    value = match["value"].rstrip(b".!?:")
    if match.string[max(0, match.start() - 5) : match.start()] == b"/etc/":
        return None
    start, end = match.span("word")
    joined = match.string[start - 1 : start].isalnum() or match.start("value") == end
    if not match["sign"] and (joined or _VERSION.match(value)):
        return None
    if len(value) < 6 or _IN_CODE.search(value) or _PLACEHOLDER.match(value) or not GROUP.search(value):
        return None
    mixed = value.isdigit() or re.search(rb"[A-Za-z]", value)
    return match.span() if mixed and (match["sign"] or re.search(rb"[^0-9A-Za-z_]", value)) else None


_END = rb"(?![0-9A-Za-z_\-])"
_HEX = rb"[0-9a-f]"
_URL64 = rb"[0-9A-Za-z_\-]"
_UUID = _HEX + rb"{8}(?:-" + _HEX + rb"{4}){3}-" + _HEX + rb"{12}"
_ISSUED_TOKENS = (
    # clouds and hosting
    rb"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}",
    rb"ABSK[0-9A-Za-z+/]{80,200}={0,2}",
    rb"AIza" + _URL64 + rb"{35}",
    rb"GOCSPX-" + _URL64 + rb"{28}",
    rb"ya29\." + _URL64 + rb"{20,500}",
    rb"do[oprt]_v1_" + _HEX + rb"{64}",
    rb"HRKU-" + _URL64 + rb"{36,80}",
    rb"hv[sb]\." + _URL64 + rb"{24,300}",
    rb"dapi" + _HEX + rb"{32}(?:-[0-9])?",
    rb"pul-" + _HEX + rb"{40}",
    rb"nfp_[0-9A-Za-z]{36}",
    rb"sbp_" + _HEX + rb"{40}",
    rb"sb_secret_" + _URL64 + rb"{22,50}",
    rb"pscale_(?:tkn|pw|oauth)_" + _URL64 + rb"{32,64}",
    rb"fo1_" + _URL64 + rb"{43}",
    rb"dp\.(?:pt|st|ct|sa|scim|audit)\.(?:[0-9a-z_\-]{2,35}\.)?[0-9A-Za-z]{40,44}",
    # code and packages
    rb"github_pat_[0-9A-Za-z]{22}_[0-9A-Za-z]{59}",
    rb"gl(?:pat|dt|rt|cbt|ptt|ft|imt|agent|soat|oas)-" + _URL64 + rb"{20,64}",
    rb"AT(?:ATT3|BB|CTT3)[0-9A-Za-z_\-=.]{24,250}",
    rb"npm_[0-9A-Za-z]{36}",
    rb"pypi-AgE" + _URL64 + rb"{50,500}",
    rb"rubygems_" + _HEX + rb"{48}",
    rb"dckr_[po]at_" + _URL64 + rb"{27,36}",
    rb"oy2[a-z0-9]{43}",
    # mail, messages, monitoring, desks
    rb"xox[abeoprs]-[0-9A-Za-z\-]{10,250}",
    rb"xapp-[0-9]-[0-9A-Za-z\-]{10,250}",
    rb"SG\." + _URL64 + rb"{22}\." + _URL64 + rb"{43}",
    rb"SK" + _HEX + rb"{32}",
    rb"key-" + _HEX + rb"{32}",
    rb"[MNO][DQTjz][0-9A-Za-z_\-]{22,26}\." + _URL64 + rb"{6}\." + _URL64 + rb"{27,40}",
    rb"gl(?:sa_[0-9A-Za-z]{32}_[0-9A-Fa-f]{8}|c_[0-9A-Za-z+/]{32,400}={0,2})",
    rb"NRAK-[0-9A-Z]{27}",
    rb"sntr(?:ys|yu)_[0-9A-Za-z+/=_]{40,250}",
    rb"dt0[a-z][0-9]{2}\.[0-9A-Z]{24}\.[0-9A-Z]{64}",
    rb"PMAK-" + _HEX + rb"{24}-" + _HEX + rb"{34}",
    rb"lin_api_[0-9A-Za-z]{40}",
    rb"ntn_[0-9A-Za-z]{40,50}",
    rb"fig[dopu]_" + _URL64 + rb"{40,60}",
    # payment
    rb"[sr]k_(?:live|test)_[0-9A-Za-z]{16,250}",
    rb"whsec_[0-9A-Za-z+/=]{24,100}",
    rb"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}",
    rb"sq0(?:atp|csp)-" + _URL64 + rb"{22,43}",
    rb"access_token\$(?:production|sandbox)\$[0-9a-z]{16}\$" + _HEX + rb"{32}",
    rb"EZ[AT]K[0-9A-Za-z]{54}",
    rb"FLWSECK(?:_TEST)?-[0-9A-Za-z\-]{32,50}",
    rb"access-(?:production|sandbox|development)-" + _HEX + rb"{8}(?:-" + _HEX + rb"{4}){3}-" + _HEX + rb"{12}",
    # language models
    rb"hf_[0-9A-Za-z]{34}",
    rb"pplx-[0-9A-Za-z]{40,56}",
    rb"tgp_v1_" + _URL64 + rb"{40,50}",
    rb"lsv2_[ps][tk]_" + _HEX + rb"{32}_" + _HEX + rb"{10}",
    rb"pcsk_[0-9A-Za-z_]{50,80}",
    rb"tvly-[0-9A-Za-z\-]{20,60}",
    rb"nvapi-" + _URL64 + rb"{60,70}",
    rb"jina_" + _URL64 + rb"{50,70}",
    # further clouds, packages, desks and tools
    rb"LTAI[0-9A-Za-z]{20}",
    rb"AKCp[0-9A-Za-z]{69}",
    rb"v1\.0-" + _HEX + rb"{24}-" + _HEX + rb"{146}",
    rb"AQVN" + _URL64 + rb"{35,38}",
    rb"sha256~" + _URL64 + rb"{43}",
    rb"FlyV1 fm[12]_[0-9A-Za-z+/=,_\-]{100,1000}",
    rb"sl\.(?:u\.)?" + _URL64 + rb"{130,152}",
    rb"EAA[MC][0-9A-Za-z]{60,300}",
    rb"EAAA" + _URL64 + rb"{60}",
    rb"GR1348941" + _URL64 + rb"{20}",
    rb"CLOJARS_[0-9a-z]{60}",
    rb"pat[0-9A-Za-z]{14}\." + _HEX + rb"{64}",
    rb"pat\." + _URL64 + rb"{22}\." + _HEX + rb"{24}\.[0-9A-Za-z]{20}",
    rb"pat-(?:na|eu|ap)[0-9]-" + _UUID,
    rb"sdk-" + _UUID,
    rb"sq[uap]_" + _HEX + rb"{40}",
    rb"sgp_(?:" + _HEX + rb"{16}_|local_)?" + _HEX + rb"{40}",
    rb"xkeysib-" + _HEX + rb"{64}-[0-9A-Za-z]{16}",
    rb"shippo_(?:live|test)_" + _HEX + rb"{40}",
    rb"duffel_(?:live|test)_" + _URL64 + rb"{43}",
    rb"secret_[0-9A-Za-z]{43}",
    rb"api_org_[0-9A-Za-z]{34}",
    rb"tfp_" + _URL64 + rb"{40,60}",
    rb"NR(?:II-" + _URL64 + rb"{32}|JS-" + _HEX + rb"{19})",
    rb"API-[0-9A-Z]{26}",
    rb"dnkey-[0-9A-Z_\-]{26}-[0-9A-Z_\-]{52}",
    rb"fio-u-" + _URL64 + rb"{64}",
    rb"ico-[0-9A-Za-z]{32}",
    rb"p8e-[0-9a-z]{32}",
    rb"pnu_[0-9A-Za-z]{36}",
    rb"rdme_[0-9a-z]{70}",
    rb"tk-us-" + _URL64 + rb"{48}",
    rb"sk\.eyJ1[0-9A-Za-z_\-]{40,200}\." + _URL64 + rb"{22}",
    rb"eyJrIjoi[0-9A-Za-z]{70,400}={0,3}",
    # encryption
    rb"AGE-SECRET-KEY-1[02-9AC-HJ-NP-Z]{58}",
)
_PEM = rb"-----BEGIN (?:[0-9A-Z]{2,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----"
_TOKEN_RULES = (
    Rule("secret", re.compile(_OPEN + rb"(?:" + rb"|".join(_ISSUED_TOKENS) + rb")" + _END), _issued_token),
    Rule("secret", re.compile(_OPEN + rb"(?:sk|gw|gsk|xai|r8|csk|fw)[_\-](?P<token>[0-9A-Za-z_\-]{20,250})"), _prefixed),
    Rule("secret", re.compile(_OPEN + rb"gh[pousr]_(?P<token>[0-9A-Za-z]{36,250})" + _SHUT), _github, steps=8),
    Rule("secret", re.compile(_OPEN + rb"(?P<head>eyJ[0-9A-Za-z_\-]{8,1000})\.[0-9A-Za-z_\-]{8,}(?:\.[0-9A-Za-z_\-]+)?"), _jwt),
)
_INNER_TOKEN_RULES = (
    Rule("secret", re.compile(rb"(?<=[0-9A-Za-z]{14})\.atlasv1\." + _URL64 + rb"{60,70}" + _END)),
    Rule("secret", re.compile(rb"(?<=[0-9]{8}):AA" + _URL64 + rb"{33}" + _END)),
    Rule("secret", re.compile(rb"(?<=[0-9a-f]{32})-us[0-9]{1,2}" + _SHUT), lambda match: (match.start() - 32, match.end())),
    Rule(
        "secret",
        re.compile(rb"(?<=[0-9a-f]{32})-[0-9a-f]{8}-[0-9a-f]{8}" + _END),
        lambda match: (match.start() - 32, match.end()),
    ),
    Rule(
        "secret",
        re.compile(rb"(?<=[0-9A-Za-z_~.]{3})8Q~[0-9A-Za-z_~.\-]{31,34}" + _END),
        lambda match: (match.start() - 3, match.end()),
    ),
    Rule("secret", re.compile(rb"hooks\.slack\.com/(?:services|workflows)/[0-9A-Za-z/_]{20,200}")),
    Rule("secret", re.compile(rb"discord(?:app)?\.com/api/webhooks/[0-9]{15,20}/[0-9A-Za-z_\-]{40,100}")),
    Rule("secret", re.compile(rb"\.webhook\.office\.com/webhookb2/[0-9A-Za-z/@\-]{60,250}")),
)
_INNER_TOKEN_GATE = (
    rb"\.atlasv1\.|:AA[0-9A-Za-z_\-]{8}|-us[0-9]|-[0-9a-f]{8}-[0-9a-f]{8}[^0-9A-Za-z_\-]|8Q~[0-9A-Za-z_~.\-]{31}"
    rb"|hooks\.slack\.com/(?:services|workflows)/[0-9A-Za-z/_]|discord(?:app)?\.com/api/webhooks/[0-9]|\.webhook\.office\.com/w"
)
"""Those that begin in the middle of a word."""
_BEARER_RULES = (
    Rule("secret", re.compile(rb"(?i)(?<![0-9A-Za-z])bearer[ \t]{1,3}(?P<token>[0-9A-Za-z._~+/=\-]{20,4000})"), _random, steps=8),
)
_BASIC_RULES = (
    Rule("secret", re.compile(rb"(?i)(?<![0-9A-Za-z])basic[ \t]{1,3}(?P<token>[0-9A-Za-z+/_\-]{12,4000}={0,2})"), _basic),
)
_PEM_RULES = (Rule("secret", re.compile(_PEM + rb"(?:[^\x1e\-]{0,20000}-----END [0-9A-Z ]{0,50}-----)?"), _pem),)
_URL_RULES = (
    Rule(
        "secret",
        re.compile(rb"(?<=[0-9A-Za-z])://[^\s:/@\x1e]{0,64}:(?P<password>[^\s/@\x1e]{1,128})@[0-9A-Za-z_\[\x80-\xff]"),
        _password_in_url,
    ),
)
_SIGN = rb"[\"'`*]{0,3}[ \t]{0,3}(?P<sign>=>|:=|=|:|\x1e|(?i:is|was)\b)"
_QUOTE = rb"[ \t]{0,3}[\"'`*]{0,3}"
_PASSWORD_VALUE = rb"(?P<value>[^\s\"'`,;\x1e]{6,128})"
_PASSWORD_WORD = rb"(?i:password|passwd|pwd|passphrase|passcode)"
_PASSWORD_NEEDS = (b"password", b"passwd", b"pwd", b"passphrase", b"passcode")
_KEY_WORD = (
    rb"(?i:(?:api|access|account|private)[ _\-]?key|(?:access|auth|api|refresh|session)[ _\-]?token"
    rb"|secret(?:[ _\-]?(?:key|id))?|token)"
)
_VALUE = rb"[^ \t\r\n\f\v\"'`,;\x1e]"
_PASSWORD_REST = rb"(?:" + _SIGN.replace(b"?P<sign>", b"?:") + rb")?" + _QUOTE + _VALUE + rb"{6}"
_PASSWORD_STRICT = re.compile(rb"[Pp](?i:assword|asswd|wd|assphrase|asscode)(?=" + _PASSWORD_REST + rb")")
"""One letter to look for: `re` is slow where a pattern may begin in many ways."""
_KEY_VALUE = rb"[0-9A-Za-z_+/=.~\-][0-9A-Za-z_+/=.~!@#$%%^*\-]{15%s}"
_KEY_REST = _SIGN.replace(b"?P<sign>", b"?:") + _QUOTE + _KEY_VALUE % b""
_ASSIGNMENT_RULES = (
    Rule("secret", re.compile(rb"(?P<word>" + _PASSWORD_WORD + rb")" + _SIGN + rb"?" + _QUOTE + _PASSWORD_VALUE), _password),
    Rule("secret", re.compile(_KEY_WORD + _SIGN + _QUOTE + rb"(?P<token>" + _KEY_VALUE % b",511" + rb")"), _random_value),
)

_TOKEN_GATE = (
    _LEAD + rb"(?:(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{4}|gh[pousr]_[0-9A-Za-z]{8}|(?:sk|gw|gsk|xai|r8|csk|fw)[_\-][0-9A-Za-z_\-]{20}"
    rb"|xox[abeoprs]-[0-9A-Za-z\-]{10}|xapp-[0-9]-|[sr]k_(?:live|test)_|whsec_|AIza[0-9A-Za-z_\-]{8}|GOCSPX-|ya29\.|hf_[0-9A-Za-z]{8}"
    rb"|npm_[0-9A-Za-z]{8}|pypi-AgE|SG\.[0-9A-Za-z_\-]{22}\.|eyJ[0-9A-Za-z_\-]{8}"
    rb"|ABSK[0-9A-Za-z+/]{8}"
    rb"|do[oprt]_v1_|HRKU-|hv[sb]\.[0-9A-Za-z_\-]{8}|dapi[0-9a-f]{32}|pul-[0-9a-f]{8}|nfp_[0-9A-Za-z]{8}"
    rb"|sbp_[0-9a-f]{8}|sb_secret_|pscale_|fo1_[0-9A-Za-z_\-]{8}|dp\.(?:pt|st|ct|sa|scim|audit)\.|github_pat_[0-9A-Za-z]{8}"
    rb"|gl(?:pat|dt|rt|cbt|ptt|ft|imt|agent|soat|oas)-[0-9A-Za-z_\-]{8}|AT(?:ATT3|BB|CTT3)[0-9A-Za-z_\-=.]{8}|rubygems_[0-9a-f]{8}"
    rb"|dckr_[po]at_|oy2[a-z0-9]{43}|SK[0-9a-f]{32}|key-[0-9a-f]{32}"
    rb"|[MNO][DQTjz][0-9A-Za-z_\-]{22,26}\.|glsa_|glc_|NRAK-|sntry[su]_|dt0[a-z][0-9]{2}\.|PMAK-|lin_api_"
    rb"|ntn_[0-9A-Za-z]{8}|fig[dopu]_[0-9A-Za-z_\-]{8}|shp(?:at|ca|pa|ss)_|sq0(?:atp|csp)-|access_token\$|EZ[AT]K[0-9A-Za-z]{8}"
    rb"|LTAI[0-9A-Za-z]{20}|AKCp[0-9A-Za-z]{8}|v1\.0-[0-9a-f]{24}-|AQVN[0-9A-Za-z_\-]{35}|sha256~|FlyV1 fm"
    rb"|sl\.[0-9A-Za-z_\-.]{100}|EAA[MC][0-9A-Za-z]{60}|EAAA[0-9A-Za-z_\-]{60}|GR1348941|CLOJARS_|pat[0-9A-Za-z]{14}\.[0-9a-f]{8}|pat\.[0-9A-Za-z_\-]{22}\."
    rb"|pat-(?:na|eu|ap)[0-9]-|sdk-[0-9a-f]{8}-|sq[uap]_[0-9a-f]{8}|sgp_|xkeysib-|shippo_(?:live|test)_|duffel_(?:live|test)_"
    rb"|secret_[0-9A-Za-z]{43}|api_org_|tfp_[0-9A-Za-z_\-]{8}|NR(?:II|JS)-|API-[0-9A-Z]{26}|dnkey-|fio-u-|ico-[0-9A-Za-z]{32}"
    rb"|p8e-[0-9a-z]{8}|pnu_[0-9A-Za-z]{8}|rdme_|tk-us-|sk\.eyJ1"
    rb"|FLWSECK|access-(?:production|sandbox|development)-|pplx-|tgp_v1_|lsv2_|pcsk_|tvly-|nvapi-|jina_|AGE-SECRET-KEY-1)"
)
_HEX4 = rb"[0-9A-Fa-f]{1,4}"
_HEX_GROUP = rb"(?:[0-9][0-9A-Fa-f]{2}|[0-9A-Fa-f][0-9][0-9A-Fa-f]|[0-9A-Fa-f]{2}[0-9]|[A-Fa-f]{3}[0-9])[0-9A-Fa-f]?"
"""Three or four signs with a digit: a compressed address has one."""
_IPV6_END = rb"(?:[^0-9A-Za-z:]|:[^0-9A-Fa-f:])"
_IPV6_GATE = (
    rb"[^0-9A-Za-z:.](?:(?:" + _HEX4 + rb":){7}" + _HEX4
    + rb"|::(?:" + _HEX4 + rb":){0,6}" + _HEX_GROUP + rb"(?::" + _HEX4 + rb"){0,6}"
    + rb"|(?:" + _HEX4 + rb":){0,6}" + _HEX_GROUP + rb":(?:" + _HEX4 + rb":){0,6}:(?:" + _HEX4 + rb"(?::" + _HEX4 + rb"){0,6})?"
    + rb"|(?:" + _HEX4 + rb":){1,7}:(?:" + _HEX4 + rb":){0,6}" + _HEX_GROUP + rb"(?::" + _HEX4 + rb"){0,6})"
    + _IPV6_END
)  # fmt: skip

_DIGITS = rb"[0-9](?:[ \t().\-/_]{0,3}[0-9]){6}|[0-9]{6}[+A-FU-Y][0-9]{3}|[A-Z] ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D]"
_DIGITS += rb"|[0-9]{2}[A-Za-z][0-9]{2} ?[A-Za-z][0-9]{3}[A-Za-z]|[A-Za-z][0-9]{6}[HMXhmx][A-Za-z]{5}"
_OCTETS = rb"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]"
_COLONS = rb"::[0-9A-Fa-f]|[0-9A-Fa-f]::|(?::" + _HEX4 + rb"){6}:"

GROUPS = (
    Group(
        _DIGITS,
        (
            Family(_CARD_GATE, _CARD_RULES, by_word=True, strict=_CARD_STRICT),
            Family(
                _SSN_GATE + b"|" + _NORTH_AMERICAN_GATE,
                (*_SSN_RULES, *_NORTH_AMERICAN_RULES),
                by_word=True,
                strict=_THREES_STRICT,
            ),
            Family(_CALLED_GATE, _CALLED_RULES, by_word=True, back=CALLED_BYTES, needs=_CALLED_NEEDS, strict=_CALLED_STRICT),
            Family(_WRITTEN_GATE, (_WRITTEN_ID,), by_word=True, strict=_WRITTEN_STRICT),
        ),
    ),
    Group(
        rb"|".join((_OCTETS, _COLONS, _MAC_SHAPE, _IBAN_GATE)),
        (
            Family(_IPV4_GATE, _IPV4_RULES, lead=1, needs=(b".",)),
            Family(_IPV6_GATE, _IPV6_RULES, lead=1, needs=(b":",)),
            Family(_MAC_GATE % _MAC_LETTERED, _MAC_RULES, by_word=True, strict=_mac_strict(_MAC_LETTERED)),
            Family(_MAC_GATE % _MAC_DECIMAL, _MAC_RULES, by_word=True, near=_MAC_NEAR, strict=_mac_strict(_MAC_DECIMAL)),
            Family(_IBAN_GATE, _IBAN_RULES, lead=1, rest=_IBAN_REST, strict=_IBAN_STRICT),
        ),
    ),
    Group(_WALLET_GATE, (Family(_WALLET_GATE, _WALLET_RULES, lead=1),)),
    Group(
        _TOKEN_GATE + rb"|" + _INNER_TOKEN_GATE,
        (
            Family(_TOKEN_GATE, _TOKEN_RULES, lead=1, ahead=1100, wordy=True),
            Family(_INNER_TOKEN_GATE, _INNER_TOKEN_RULES),
        ),
    ),
)
"""Families that are looked for near the shape of their group."""

NEEDY = (
    Family(_PLUS_GATE, _PLUS_RULES, by_word=True, needs=(b"+",)),
    Family(_AT, _EMAIL_RULES, rest=_EMAIL_REST, ahead=1024, needs=(b"@", b"%40", b"&#"), strict=_EMAIL_STRICT),
    Family(rb"(?i:bearer)[ \t]{1,3}[0-9A-Za-z._~+/=\-]{20}", _BEARER_RULES, ahead=4000, needs=(b"bearer",)),
    Family(rb"(?i:basic)[ \t]{1,3}[0-9A-Za-z+/_\-]{12}", _BASIC_RULES, ahead=4000, needs=(b"basic",)),
    Family(rb"-----BEGIN [0-9A-Z ]{0,40}PRIVATE KEY", _PEM_RULES, ahead=21_000, needs=(b"-----begin",)),
    Family(rb"://[^ \t\r\n\f\v:/@\x1e]*:[^ \t\r\n\f\v/@\x1e]+@", _URL_RULES, needs=(b"://",)),
    Family(_PASSWORD_WORD, _ASSIGNMENT_RULES[:1], rest=_PASSWORD_REST, needs=_PASSWORD_NEEDS, strict=_PASSWORD_STRICT),
    Family(_KEY_WORD, _ASSIGNMENT_RULES[1:], rest=_KEY_REST, ahead=1024, needs=(b"key", b"token", b"secret"), wordy=True),
)
"""Families that are looked for behind what they need."""

FAMILIES = (*(family for group in GROUPS for family in group.families), *NEEDY)
"""Rules that find by shape, in no order that matters."""

NAMED = (_CARD_NAMED, _SSN_NAMED, _PHONE_NAMED)
"""Rules that find numbers by a word before them. Those of national numbers beside a word are `NAMED_ID`."""
NAMED_WORDS = b"|".join(b"(?:" + named.words + b")" for named in NAMED)
"""Where none of them stands, no rule of `NAMED` finds anything."""
