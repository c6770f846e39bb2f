r"""What personal data and secrets look like: a table of families, each a cheap gate and the strict rules behind it.

Knows bytes only: normalised text in UTF-8. It knows nothing of JSON, classes, policy, or of which engine runs the gates.

Gates and context words are in the syntax that RE2 and `re` share and read alike on bytes: no look-around, no anchors, no
`\s` (they differ on `\v`). A gate matches wherever a rule of its family could, and begins where the rule would begin, or, for
numbers, covers the whole run of digits and separators. Two matches of one gate never hide a third: what precedes a rule's
start may not be part of a gate. Rules are ordinary `re` patterns with borders, tried only at the places a gate names.
"""

from __future__ import annotations

import base64
import ipaddress
import re
import zlib
from collections.abc import Callable
from typing import NamedTuple

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
    Kind("secret", "credential: API key, token, private key, password in a URL or beside the word password"),
    Kind("unscannable", "inline image, audio or file: bytes that are not text and were not looked into"),
)
"""Every kind a scan can report; policy files may map each to a class."""

SEPARATOR = "\x1e"
"""Stands between the strings of one body. No finding crosses it; a context word in a JSON key may look across."""

CONTEXT_BYTES = 48
"""How far before a number a context word counts: about eight English words, or a JSON key and its value."""


class Rule(NamedTuple):
    """One strict pattern of one kind. Its pattern takes a bounded number of steps from each start."""

    kind: str
    pattern: Pattern
    check: Callable[[Match], Span | None] = re.Match.span
    """The finding's byte span, or None where digits, checksum or surroundings say no."""
    before: bytes | None = None
    """Context words: one must stand in the `CONTEXT_BYTES` before the gate's match (and its first byte), when given."""
    after: Pattern | None = None
    """Context that serves instead of `before` when it matches right behind the finding."""


class Family(NamedTuple):
    """Rules that share a gate. They are tried at its match's start, or, `by_group`, at each group of digits in it."""

    gate: bytes
    rules: tuple[Rule, ...]
    by_group: bool = False


_ALNUM = frozenset(b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_OPEN = rb"(?<![0-9A-Za-z])"
_SHUT = rb"(?![0-9A-Za-z])"
GROUP = re.compile(rb"[0-9]+")
"""A group of digits."""


def _words(*patterns: str) -> bytes:
    """Context words in any case, as one pattern over UTF-8."""
    return ("(?i)" + "|".join(patterns)).encode()


def _digits(text: bytes) -> str:
    return "".join(chr(byte) for byte in text if 48 <= byte <= 57)


def _stands_alone(text: bytes, end: int) -> bool:
    """Whether no ASCII letter or digit follows. Scripts written without spaces make their letters borders."""
    return end >= len(text) or text[end] not in _ALNUM


# Cards: issuer prefixes by ISO/IEC 7812 as the schemes publish them, check digit by Luhn (US patent 2,950,048).

_BRANDS: tuple[tuple[re.Pattern[str], frozenset[int]], ...] = (
    (re.compile("4"), frozenset({13, 16, 19})),
    (re.compile("5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720|220[0-4]"), frozenset({16})),
    (re.compile("3[47]|2131|1800"), frozenset({15})),
    (re.compile("30[0-59]|3[689]"), frozenset({14, 16, 19})),
    (re.compile("35|60|6[45]|62|81|508|9792"), frozenset({16, 17, 18, 19})),
    (re.compile("50(?:18|20|38)|5[68]93|6304|6390|67(?:59|6[1-7])|0604"), frozenset(range(12, 20))),
)
_MAESTRO = re.compile("50|5[6-9]|6")
"""Maestro may use any of these at any length: too wide without a word that says card."""
_CARD_SHAPES = frozenset(
    tuple(map(int, shape.split("-")))
    for shape in ("4-4-4-4", "4-4-4-4-1", "4-4-4-4-2", "4-4-4-4-3", "4-6-5", "4-6-4", "4-4-5", "4-3-3-3", "6-13", "8-8")
)
"""How many digits stand in each group when a card is printed or typed."""


def luhn_valid(digits: str) -> bool:
    """Whether the last digit is the Luhn check digit of the others."""
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


def _issued(digits: str, *, named: bool) -> bool:
    if named and 12 <= len(digits) <= 19 and _MAESTRO.match(digits):
        return True
    return any(len(digits) in lengths and prefix.match(digits) for prefix, lengths in _BRANDS)


def luhn_card(digits: str) -> bool:
    """Whether these digits are a card number without any word beside them."""
    return _issued(digits, named=False) and luhn_valid(digits)


def _card_span(match: Match, *, named: bool) -> Span | None:
    """The longest run of whole digit groups from here that is a card number; `named` when a word says that it is one.

    What E.164 allows behind a `+` is a telephone number.
    """
    text, found = match.string, None
    dialled = text[match.start() - 1 : match.start()] == b"+"
    digits = ""
    shape: tuple[int, ...] = ()
    for group in GROUP.finditer(text, match.start(), match.end(1)):
        digits += group[0].decode()
        shape += (len(group[0]),)
        if len(digits) > 19:
            break
        usual = len(digits) >= (16 if dialled else 12) and (named or len(shape) == 1 or shape in _CARD_SHAPES)
        if usual and _stands_alone(text, group.end()) and _issued(digits, named=named) and luhn_valid(digits):
            found = match.start(), group.end()
    return found


def _card(match: Match) -> Span | None:
    return _card_span(match, named=False)


def _named_card(match: Match) -> Span | None:
    return _card_span(match, named=True)


_CARD_START = _OPEN + rb"(?<![0-9]\.)(?=[3-6]|2[0-7]|81|1800|9792|0604)"
_CARD_SOLID = rb"[0-9]{12,19}(?![0-9])"
_CARD_GROUPED = rb"[0-9]{4,8}([ \t./_\-]{1,3})[0-9]{3,13}(?:\2[0-9]{3,5}(?:\2[0-9]{3,4}(?:\2[0-9]{1,3})?)?)?"
_CARD_RULES = (
    Rule("card", re.compile(_CARD_START + rb"(?=(" + _CARD_SOLID + rb"|" + _CARD_GROUPED + rb"))"), _card),
    Rule(
        "card",
        re.compile(_CARD_START + rb"(?=([0-9](?:[ \t./_\-]{0,3}[0-9]){11,18}))"),
        _named_card,
        before=_words(
            "card", r"\bcc\b", "credit", "debit", "visa", "maestro", "amex", "american express", "diners", r"\bjcb\b",
            "karte", "carte", "tarjeta", "cartão",
        ),
    ),
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
    return int("".join(str(int(letter, 36)) for letter in compact[4:] + compact[:4])) % 97 == 1


def _iban(match: Match) -> Span | None:
    """Walk to the country's length, whatever follows, then check."""
    length = _IBAN_LENGTHS.get(match[1].decode().upper())
    if length is None:
        return None
    body = _IBAN_BODY[length].match(match.string, match.start())
    if body is None or not _stands_alone(body.string, body.end()):
        return None
    return body.span() if iban_valid(re.sub(rb"[^0-9A-Za-z]", b"", body[0]).decode().upper()) else None


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


_SSN_RULES = (
    Rule(
        "ssn",
        re.compile(_OPEN + rb"(?<![0-9][.\-])[0-9]{3}([ .\-]| - )[0-9]{2}\1[0-9]{4}(?!-[0-9])" + _SHUT),
        _ssn,
    ),
    Rule(
        "ssn",
        re.compile(_OPEN + rb"(?<![0-9]\.)[0-9](?:[ ._/\-]{0,3}[0-9]){8}(?!\.[0-9])" + _SHUT),
        _named_ssn,
        before=_words(r"\bssn", "social[ _-]?sec", r"\bss ?(?:#|no|number)", r"\bitin\b", "tax(?:payer)?[ _-]?(?:id|no|number)"),
    ),
)


# Telephone numbers: E.164 (at most 15 digits), the North American plan's 3-3-4, and others only beside a word.

_EXTENSION = rb"(?:[ \t]?(?:x|ext\.?)[ \t]?[0-9]{1,6})?"
_DATE = re.compile(rb"(?:1[89]|20)[0-9]{2}([.\-/ ])[01]?[0-9]\1[0-3]?[0-9]|[0-3]?[0-9]([.\-/ ])[01]?[0-9]\2(?:1[89]|20)[0-9]{2}")
_DECIMAL = re.compile(rb"[0-9]{4,}\.[0-9]+")
_YEARS = re.compile(rb"(?:(?:1[5-9]|20)[0-9]{2}[ ,/.\-]*){2,}")


def _phone(match: Match) -> Span | None:
    """A number of 7 to 15 digits, with the `+` or `(` before it. A dot behind more digits than a country code is decimal."""
    start, number = match.start(), match["number"]
    if not 7 <= len(_digits(number)) <= 15 or _DECIMAL.fullmatch(number):
        return None
    return start - (match.string[start - 1 : start] in {b"+", b"("}), match.end()


def _named_phone(match: Match) -> Span | None:
    """As `_phone`, and neither a date, a list of years, a decimal fraction nor by itself a card number."""
    number = match["number"]
    fraction = number.count(b".") == 1 and not any(mark in number for mark in (b" ", b"-", b"/", b"(", b")"))
    if fraction or _DATE.match(number) or _YEARS.fullmatch(number) or luhn_card(_digits(number)):
        return None
    return _phone(match)


_PHONE_WORD = _words(
    "phone", r"\btel(?:efon|éfon|\b)", "mobile", r"\bmóvil", r"\bcell(?:ular)?\b", r"\bfax", "whatsapp", r"\bsms\b", "hotline",
    "voicemail", r"\b(?:call|text|ring|reach|contact|dial|message)(?:ed|ing)? (?:\w+ ){0,3}(?:at|on|under|via)\b",
    r"\b(?:call|dial|ring|text)(?:ing)?[ :]{1,3}[(+]{0,2}[0-9]", r"\bcall (?:me|us|him|her|them|back)\b",
    r"\b(?:answering|available|reachable) (?:at|on)\b", r"\b(?:my|her|his|their|our|your|new) number\b", r"\bnumber for\b",
    r"\bcontact(?: number| no\b| info|:)",
)  # fmt: skip
_PHONE_RULES = (
    Rule(
        "phone",
        re.compile(rb"(?<=\+)(?<![0-9A-Za-z+]\+)(?P<number>[1-9](?:[ ().\-/]{0,3}[0-9]){7,14})(?![0-9])" + _EXTENSION),
        _phone,
    ),
    Rule(
        "phone",
        re.compile(
            _OPEN + rb"(?<![0-9][.\-])(?P<number>(?:(?:1|001)[ .\-])?(?:\(?[0-9]{3}\) ?|[0-9]{3}[.\-])[0-9]{3}[.\-][0-9]{4})"
            rb"(?![0-9]|-[0-9])" + _EXTENSION
        ),
        _phone,
    ),
    Rule(
        "phone",
        re.compile(rb"(?<![0-9A-Za-z$.])(?P<number>[0-9](?:[ \t().\-/]{0,3}[0-9]){6,14})(?![0-9%])" + _EXTENSION),
        _named_phone,
        before=_PHONE_WORD,
        after=re.compile(
            rb"(?i)[ \t,:(\-]{0,3}(?:phone|tel|mobile|cell|fax|office|home|work|(?:is )?(?:my|your|his|her|our) number)\b"
        ),
    ),
)


# Addresses on networks.

_VERSION_WORD = re.compile(
    rb"(?i)(?:version|\bver|release|build|firmware|driver|upgrad|updat|python|node|chrome|[=<>~^]=|\bsections?|chapter|figure|rfc)"
    rb"\W{0,3}(?:\w{1,12} )?$"
)
_IP_WORD = re.compile(_words(r"\bip", "addr", "host", "server", "ping", r"\bdns", "subnet", "router", "gateway", "client", "://"))
_NOBODY_V4 = re.compile(rb"0\.|127\.|255\.")
_HEX_WITH_DIGIT = re.compile(rb"(?i)(?=[a-f]*[0-9])[0-9a-f]{3,4}")


def _ipv4(match: Match) -> Span | None:
    """Neither nobody's address (loopback, netmask) nor a version or section number.

    Four single digits, as in 1.2.3.4, are an address only beside a word that says so.
    """
    if _NOBODY_V4.match(match[0]):
        return None
    before = match.string[max(0, match.start() - CONTEXT_BYTES) : match.start()]
    if _IP_WORD.search(before):
        return match.span()
    return None if len(match[0]) == 7 or _VERSION_WORD.search(before) else match.span()


def _ipv6(match: Match) -> Span | None:
    """What `ipaddress` accepts; a compressed form needs a group such as `fe80`, so that `a::b` in code is not one."""
    try:
        address = ipaddress.IPv6Address(match[0].decode())
    except ValueError:
        return None
    if b"::" in match[0] and not any(map(_HEX_WITH_DIGIT.fullmatch, match[0].split(b":"))):
        return None
    return None if address.is_loopback or address.is_unspecified else match.span()


_OCTET = rb"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4_RULES = (
    Rule("ip", re.compile(rb"(?<![0-9A-Za-z.])" + _OCTET + rb"(?:\." + _OCTET + rb"){3}(?![0-9A-Za-z]|\.[0-9])"), _ipv4),
)
_IPV6_RULES = (
    Rule(
        "ip",
        re.compile(rb"(?<![0-9A-Za-z:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,8}(?![0-9A-Za-z]|:[0-9A-Fa-f:])"),
        _ipv6,
    ),
)

_LOCAL = rb"0-9A-Za-z_.+'&%\-\x80-\xff"
_LOCAL_END = re.compile(rb"[" + _LOCAL + rb"]{1,64}\Z")
_FILE_ENDS = frozenset({b"png", b"jpg", b"jpeg", b"gif", b"svg", b"webp", b"ico", b"bmp", b"css", b"js", b"ts"})
_COMMON_ENDS = frozenset({b"com", b"net", b"org", b"edu", b"gov", b"info", b"dev", b"app"})
_URL_USER = re.compile(rb"://[^\s/@\x1e]{0,64}:\Z")


def _email(match: Match) -> Span | None:
    """Not an image at double size (`icon@2x.png`), a git remote, a method call (`x@w.dot(`) or the password of a URL."""
    text, at, end = match.string, match.start(), match["end"].lower()
    local = _LOCAL_END.search(text, max(0, at - 64), at)
    called = text[match.end() : match.end() + 1] == b"(" and len(end) > 2 and end not in _COMMON_ENDS
    if local is None or local[0] == b"git" or end in _FILE_ENDS or called:
        return None
    if _URL_USER.search(text, max(0, local.start() - 80), local.start()):
        return None
    return local.start(), match.end()


_LABEL = rb"[0-9A-Za-z_\x80-\xff][0-9A-Za-z_\-\x80-\xff]{0,62}"
_DOMAIN = rb"(?:" + _LABEL + rb"\.){1,12}(?P<end>[A-Za-z\x80-\xff][0-9A-Za-z\-\x80-\xff]{1,62})"
_EMAIL_RULES = (Rule("email", re.compile(rb"(?<=[0-9A-Za-z_+'&\-\x80-\xff])(?:@|%40)" + _DOMAIN), _email),)


# Credentials: the prefixes their issuers document, so that leaked ones can be found.


def _random(match: Match) -> Span | None:
    """Not a placeholder or a CSS class: many different characters, among them a digit or both cases."""
    token = match["token"]
    mixed = GROUP.search(token) or not (token.islower() or token.isupper())
    return match.span() if mixed and len(set(token)) >= 8 else None


def _random_value(match: Match) -> Span | None:
    """As `_random`, and with a digit, since names in code have both cases."""
    return _random(match) if GROUP.search(match["token"]) else None


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


_PLACEHOLDER = re.compile(
    rb"(?i)[<${%*\[]|\.{3}|x{3}|your|example|changeme|placeholder|redacted|(?:(?:user)?pass(?:word|wd)?|pwd|secret)$"
)
_IN_CODE = re.compile(rb"[()\[\]{}<>$|\\]|^[*.]+$")


def _password_in_url(match: Match) -> Span | None:
    return None if _PLACEHOLDER.match(match["password"]) else match.span()


def _password(match: Match) -> Span | None:
    """A value after the word: a digit beside a letter or only digits, and no piece of code or placeholder."""
    value = match["value"].rstrip(b".!?:")
    if len(value) < 6 or _IN_CODE.search(value) or _PLACEHOLDER.match(value) or not GROUP.search(value):
        return None
    mixed = value.isdigit() or re.search(rb"[A-Za-z]", value)
    return match.span() if mixed and (match["sign"] or re.search(rb"[^0-9A-Za-z_]", value)) else None


_END = rb"(?![0-9A-Za-z_\-])"
_ISSUED_TOKENS = (
    rb"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}",
    rb"github_pat_[0-9A-Za-z]{22}_[0-9A-Za-z]{59}",
    rb"glpat-[0-9A-Za-z_\-]{20,64}",
    rb"xox[abeoprs]-[0-9A-Za-z\-]{10,250}",
    rb"xapp-[0-9]-[0-9A-Za-z\-]{10,250}",
    rb"[sr]k_(?:live|test)_[0-9A-Za-z]{16,250}",
    rb"whsec_[0-9A-Za-z+/=]{24,100}",
    rb"AIza[0-9A-Za-z_\-]{35}",
    rb"GOCSPX-[0-9A-Za-z_\-]{28}",
    rb"ya29\.[0-9A-Za-z_\-]{20,500}",
    rb"hf_[0-9A-Za-z]{34}",
    rb"npm_[0-9A-Za-z]{36}",
    rb"pypi-AgEI[0-9A-Za-z_\-]{50,500}",
    rb"SG\.[0-9A-Za-z_\-]{22}\.[0-9A-Za-z_\-]{43}",
    rb"(?:sk|gw|gsk|xai|r8)[_\-](?P<token>[0-9A-Za-z_\-]{20,250})",
)
_TOKEN_RULES = (
    Rule("secret", re.compile(_OPEN + rb"(?:" + rb"|".join(_ISSUED_TOKENS[:-1]) + rb")" + _END)),
    Rule("secret", re.compile(_OPEN + _ISSUED_TOKENS[-1]), _random),
    Rule("secret", re.compile(_OPEN + rb"gh[pousr]_(?P<token>[0-9A-Za-z]{36,250})" + _SHUT), _github),
    Rule("secret", re.compile(_OPEN + rb"(?P<head>eyJ[0-9A-Za-z_\-]{8,1000})\.[0-9A-Za-z_\-]{8,}"), _jwt),
    Rule("secret", re.compile(rb"-----BEGIN (?:[0-9A-Z]{2,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")),
    Rule("secret", re.compile(rb"hooks\.slack\.com/(?:services|workflows)/[0-9A-Za-z/_]{20,200}")),
    Rule("secret", re.compile(rb"(?i)(?<![0-9A-Za-z])bearer[ \t]{1,3}(?P<token>[0-9A-Za-z._~+/=\-]{20,4000})"), _random),
)
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
_KEY_WORD = (
    rb"(?i:(?:api|access|private)[ _\-]?key|(?:access|auth|api|refresh|session)[ _\-]?token|secret(?:[ _\-]?(?:key|id))?|token)"
)
_ASSIGNMENT_RULES = (
    Rule("secret", re.compile(_PASSWORD_WORD + _SIGN + rb"?" + _QUOTE + _PASSWORD_VALUE), _password),
    Rule("secret", re.compile(_KEY_WORD + _SIGN + _QUOTE + rb"(?P<token>[0-9A-Za-z_+/=.~\-]{16,512})"), _random_value),
)

_TOKEN_HEAD = (
    rb"A[KSB]IA|ACCA|g(?:h[pousr]|ithub_pat)_|glpat-|xox[abeoprs]-|xapp-|[sr]k_(?:live|test)_|whsec_|AIza|GOCSPX-|ya29\.|hf_|npm_"
    rb"|pypi-AgEI|SG\.|(?:sk|gw|gsk|xai|r8)[_\-]|eyJ|-----BEGIN |hooks\.slack|(?i:bearer)[ \t]"
)

FAMILIES = (
    Family(rb"[0-9](?:[ \t().\-/_]{0,3}[0-9]){6,}", (*_CARD_RULES, *_SSN_RULES, *_PHONE_RULES), by_group=True),
    Family(rb"[A-Za-z]{2}[0-9]{2}", _IBAN_RULES),
    Family(rb"(?:@|%40)[0-9A-Za-z_\x80-\xff]", _EMAIL_RULES),
    Family(rb"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]", _IPV4_RULES),
    Family(rb"[0-9A-Fa-f]{0,4}:[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]", _IPV6_RULES),
    Family(_TOKEN_HEAD, _TOKEN_RULES),
    Family(rb"://[^ \t\r\n\f\v:/@\x1e]{0,64}:", _URL_RULES),
    Family(_PASSWORD_WORD + rb"|" + _KEY_WORD + rb"[\"'`*]{0,3}[ \t]{0,3}(?:[=:\x1e]|(?i:is|was))", _ASSIGNMENT_RULES),
)
"""Every rule there is, in no order that matters."""
