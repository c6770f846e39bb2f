"""National identity, tax and insurance numbers: how each is written and which check digits make it valid.

Knows one number at a time, without separators; knows neither where it stands nor what else the text holds. The US numbers,
which have no check digit, are rules of `recognisers.py`.
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Callable, Sequence
from typing import NamedTuple

Check = Callable[[str], bool]


class Scheme(NamedTuple):
    """One kind of number. `compact` is its form without separators, in upper case."""

    name: str
    """Country (ISO 3166) and number."""
    compact: re.Pattern[str]
    lengths: tuple[int, ...]
    """How many signs the compact form has."""
    valid: Check
    words: str
    """Regular expression of what people call it, read as bytes: without classes of letters that ASCII lacks."""
    written: str = ""
    """Form, as a regular expression, that no other number has and that therefore needs no word beside it."""

    @property
    def short(self) -> bool:
        """Nine signs or fewer: too common to be taken for one beside a word that may mean any number."""
        return any(self.compact.fullmatch(shape) for shape in ("123456789", "12345678Z", "AA123456A", "1234567W"))


def date_valid(year: int, month: int, day: int) -> bool:
    """Whether the calendar has this day."""
    return 1 <= month <= 12 and 1 <= day <= monthrange(year or 4, month)[1]


def weighted(digits: str, weights: Sequence[int]) -> int:
    """The sum of digits times weights, from the left."""
    return sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=False))


def luhn_valid(digits: str) -> bool:
    """Whether the last digit is the Luhn check digit of the others (US patent 2,950,048)."""
    return sum(digits[-1::-2].encode() + digits[-2::-2].translate(_DOUBLED).encode()) % 10 == 48 * len(digits) % 10


_DOUBLED = str.maketrans("0123456789", "0246813579")


def _yymmdd(digits: str) -> bool:
    return date_valid(2000 + int(digits[:2]), int(digits[2:4]), int(digits[4:6])) or digits[:6] == "000229"


def _ddmmyy(digits: str) -> bool:
    return _yymmdd(digits[4:6] + digits[2:4] + digits[:2])


def verhoeff_valid(digits: str) -> bool:
    """Verhoeff's check (1969) by the dihedral group of order ten."""
    state = 0
    for place, digit in enumerate(reversed(digits)):
        state = _DIHEDRAL[state][_PERMUTED[place % 8][int(digit)]]
    return state == 0


_DIHEDRAL = tuple(tuple((i + j) % 5 + 5 * (j > 4) if i < 5 else (i - j) % 5 + 5 * (j < 5) for j in range(10)) for i in range(10))
_BASE = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)


def _permuted() -> tuple[tuple[int, ...], ...]:
    rows = [tuple(range(10))]
    for _ in range(7):
        rows.append(tuple(rows[-1][digit] for digit in _BASE))
    return tuple(rows)


_PERMUTED = _permuted()


def iso7064_mod11_10_valid(digits: str) -> bool:
    """The hybrid check of ISO 7064 with moduli 11 and 10."""
    product = 10
    for digit in digits[:-1]:
        product = ((int(digit) + product) % 10 or 10) * 2 % 11
    return (product + int(digits[-1])) % 10 == 1


def _cpf(n: str) -> bool:
    first = weighted(n, range(10, 1, -1)) * 10 % 11 % 10
    second = weighted(n, range(11, 1, -1)) * 10 % 11 % 10
    return len(set(n)) > 1 and n[9:] == f"{first}{second}"


def _dni(n: str) -> bool:
    return n[8] == "TRWAGMYFPDXBNJZSQVHLCKE"[int(n[:8]) % 23]


def _nie(n: str) -> bool:
    return _dni(str("XYZ".index(n[0])) + n[1:])


def _nir(n: str) -> bool:
    number = n[:13].replace("2A", "19").replace("2B", "18")
    return number.isdigit() and 97 - int(number) % 97 == int(n[13:])


_ODD = dict(zip("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", (
    1, 0, 5, 7, 9, 13, 15, 17, 19, 21,
    1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23,
), strict=True))  # fmt: skip


def _codice_fiscale(n: str) -> bool:
    even = sum(int(letter) if letter.isdigit() else ord(letter) - 65 for letter in n[1:15:2])
    return n[15] == chr(65 + (even + sum(_ODD[letter] for letter in n[0:15:2])) % 26)


def _steuer_id(n: str) -> bool:
    """Of the first ten digits one stands twice or thrice, and no other more than once."""
    repeated = [n[:10].count(digit) for digit in set(n[:10]) if n[:10].count(digit) > 1]
    return n[0] != "0" and len(repeated) == 1 and repeated[0] <= 3 and iso7064_mod11_10_valid(n)


def _baltic(n: str) -> bool:
    """Estonian and Lithuanian: a second row of weights where the first leaves ten."""
    check = weighted(n, (1, 2, 3, 4, 5, 6, 7, 8, 9, 1)) % 11
    if check == 10:
        check = weighted(n, (3, 4, 5, 6, 7, 8, 9, 1, 2, 3)) % 11 % 10
    return _yymmdd(n[1:]) and check == int(n[10])


def _nhs(n: str) -> bool:
    return (11 - weighted(n, range(10, 1, -1)) % 11) % 11 == int(n[9])


def _bsn(n: str) -> bool:
    return int(n) > 0 and (weighted(n, range(9, 1, -1)) - int(n[8])) % 11 == 0


def _belgian(n: str) -> bool:
    """A day above 31 or of zero means that the birth date is not known."""
    return int(n[2:4]) % 20 <= 12 and int(n[9:]) in {97 - int(n[:9]) % 97, 97 - int("2" + n[:9]) % 97}


def _pesel(n: str) -> bool:
    dated = date_valid(1900 + int(n[:2]), int(n[2:4]) % 20, int(n[4:6])) or n[:6] == "002229"
    return dated and -weighted(n, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3)) % 10 == int(n[10])


def _nif(n: str) -> bool:
    return n[0] != "0" and (11 - weighted(n, range(9, 1, -1)) % 11) % 11 % 10 == int(n[8])


def _personnummer(n: str) -> bool:
    short = n[-10:]
    day = int(short[4:6])
    return _yymmdd(short[:4] + f"{day - 60 if day > 60 else day:02d}") and luhn_valid(short)


def _fodselsnummer(n: str) -> bool:
    first = -weighted(n, (3, 7, 6, 1, 8, 9, 4, 5, 2)) % 11
    second = -weighted(n, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2)) % 11
    day, month = int(n[:2]), int(n[2:4])
    dated = 1 <= (day - 40 if day > 40 else day) <= 31 and 1 <= (month - 40 if month > 40 else month) <= 12
    return dated and n[9:] == f"{first}{second}"


def _hetu(n: str) -> bool:
    return _ddmmyy(n[:6]) and n[10] == "0123456789ABCDEFHJKLMNPRSTUVWXY"[int(n[:6] + n[7:10]) % 31]


def _ean(n: str) -> bool:
    return weighted(n, (1, 3) * 7) % 10 == 0


def _svnr(n: str) -> bool:
    return n[0] != "0" and weighted(n, (3, 7, 9, 0, 5, 8, 4, 2, 1, 6)) % 11 == int(n[3])


def _rodne_cislo(n: str) -> bool:
    dated = date_valid(1900 + int(n[:2]), int(n[2:4]) % 50 % 20, int(n[4:6]))
    return dated and int(n[:9]) % 11 % 10 == int(n[9])


def _cnp(n: str) -> bool:
    check = "01234567891"[weighted(n, (2, 7, 9, 1, 4, 6, 3, 5, 8, 2, 7, 9)) % 11]
    return n[0] != "0" and _yymmdd(n[1:7]) and check == n[12]


def _egn(n: str) -> bool:
    month = int(n[2:4])
    dated = month < 53 and date_valid(2000 + int(n[:2]), month % 20, int(n[4:6]))
    return dated and weighted(n, (2, 4, 8, 5, 10, 9, 7, 3, 6)) % 11 % 10 == int(n[9])


def _amka(n: str) -> bool:
    return _ddmmyy(n) and luhn_valid(n)


def _tckn(n: str) -> bool:
    tenth = (7 * sum(map(int, n[0:9:2])) - sum(map(int, n[1:8:2]))) % 10
    return n[0] != "0" and int(n[9]) == tenth and sum(map(int, n[:10])) % 10 == int(n[10])


def _inn(n: str) -> bool:
    first = weighted(n, (7, 2, 4, 10, 3, 5, 9, 4, 6, 8)) % 11 % 10
    return n[10:] == f"{first}{weighted(n, (3, 7, 2, 4, 10, 3, 5, 9, 4, 6, 8)) % 11 % 10}"


def _snils(n: str) -> bool:
    return int(n[:9]) > 1_001_998 and weighted(n, range(9, 0, -1)) % 101 % 100 == int(n[9:])


def _resident(n: str) -> bool:
    """GB 11643-1999: a birth date and the check of ISO 7064 mod 11-2."""
    check = (12 - sum(int(digit) * 2 ** (17 - place) for place, digit in enumerate(n[:17])) % 11) % 11
    year = int(n[6:10])
    return 1850 < year < 2100 and date_valid(year, int(n[10:12]), int(n[12:14])) and n[17] == "0123456789X"[check]


def _my_number(n: str) -> bool:
    return weighted(n, (6, 5, 4, 3, 2, 7, 6, 5, 4, 3, 2)) * -1 % 11 % 10 == int(n[11])


def _rrn(n: str) -> bool:
    return _yymmdd(n) and (11 - weighted(n, (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)) % 11) % 10 == int(n[12])


def _taiwan(n: str) -> bool:
    code = 10 + "ABCDEFGHJKLMNPQRSTUVXYWZIO".index(n[0])
    return (code // 10 + code % 10 * 9 + weighted(n[1:], range(8, 0, -1)) + int(n[9])) % 10 == 0


def _thai(n: str) -> bool:
    return (11 - weighted(n, range(13, 1, -1)) % 11) % 10 == int(n[12])


def _south_african(n: str) -> bool:
    return _yymmdd(n) and n[10] in "01" and luhn_valid(n)


_CURP = "0123456789ABCDEFGHIJKLMNÑOPQRSTUVWXYZ"


def _curp(n: str) -> bool:
    return _yymmdd(n[4:10]) and -sum((18 - i) * _CURP.index(letter) for i, letter in enumerate(n[:17])) % 10 == int(n[17])


def _rut(n: str) -> bool:
    digits = n[:-1].rjust(8, "0")
    return n[-1] == "0123456789K0"[(11 - weighted(digits, (3, 2, 7, 6, 5, 4, 3, 2)) % 11)]


def _cuit(n: str) -> bool:
    return n[10] == "012345678990"[11 - weighted(n, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2)) % 11]


def _tfn(n: str) -> bool:
    return int(n) > 0 and weighted(n, (1, 4, 3, 7, 5, 8, 6, 9, 10)) % 11 == 0


def _pps(n: str) -> bool:
    extra = 9 * (ord(n[8]) - 64) if n[8:] and n[8] != "W" else 0
    return n[7] == "WABCDEFGHIJKLMNOPQRSTUV"[(weighted(n, range(8, 1, -1)) + extra) % 23]


def _israeli(n: str) -> bool:
    return int(n) > 0 and luhn_valid(n)


def _oib(n: str) -> bool:
    return iso7064_mod11_10_valid(n)


def _always(n: str) -> bool:
    return bool(n)


def _luhn(n: str) -> bool:
    return n[0] not in "08" and luhn_valid(n)


def _is(shape: str) -> re.Pattern[str]:
    return re.compile(shape, re.ASCII)


_MONTH = "(?:0[1-9]|1[0-2])"
_DAY = "(?:0[1-9]|[12][0-9]|3[01])"

SCHEMES = (
    Scheme("ar cuit", _is(r"2[0347]\d{9}"), (11,), _cuit, r"\bcui[tl]\b", r"2[0347]-\d{8}-\d"),
    Scheme("at vnr", _is(r"\d{10}"), (10,), _svnr, r"\bsvnr|\bvsnr|sozialversicherung|versicherungsnummer"),
    Scheme("au tfn", _is(r"\d{9}"), (9,), _tfn, r"\btfn\b|tax file"),
    Scheme("be nn", _is(r"\d{11}"), (11,), _belgian,
           r"rijksregister|registre national|national(?:e)? number|\binsz\b|\bniss\b|\brrn\b",
           r"\d{2}\.\d{2}\.\d{2}-\d{3}\.\d{2}"),
    Scheme("bg egn", _is(r"\d{10}"), (10,), _egn, r"\begn\b|егн|ЕГН"),
    Scheme("br cpf", _is(r"\d{11}"), (11,), _cpf, r"\bcpf\b", r"\d{3}\.\d{3}\.\d{3}-\d{2}"),
    Scheme("ca sin", _is(r"\d{9}"), (9,), _luhn, r"\bsin\b|social insurance|\bnas\b|assurance sociale",
           r"[1-79]\d{2}-\d{3}-\d{3}"),
    Scheme("ch ahv", _is(r"756\d{10}"), (13,), _ean, r"\bahv|\bavs\b", r"756\.?\d{4}\.?\d{4}\.?\d{2}"),
    Scheme("cl rut", _is(r"\d{7,8}[\dK]"), (8, 9), _rut, r"\brut\b|\br\.u\.[nt]", r"\d{1,2}\.\d{3}\.\d{3}-[\dkK]"),
    Scheme("cn ric", _is(r"\d{17}[\dX]"), (18,), _resident, r"resident id|身份证",
           rf"[1-9]\d{{5}}(?:19|20)\d{{2}}{_MONTH}{_DAY}\d{{3}}[\dxX]"),
    Scheme("cz rc", _is(r"\d{10}"), (10,), _rodne_cislo, r"rodné|rodne|birth number", rf"\d{{2}}[0-8]\d{_DAY}/\d{{4}}"),
    Scheme("de idnr", _is(r"\d{11}"), (11,), _steuer_id, r"steuer|\bid-?nr\b|\btin\b"),
    Scheme("dk cpr", _is(r"\d{10}"), (10,), _ddmmyy, r"\bcpr\b"),
    Scheme("ee ik", _is(r"[1-8]\d{10}"), (11,), _baltic, r"isikukood|asmens kodas"),
    Scheme("es dni", _is(r"\d{8}[A-Z]"), (9,), _dni, r"\bdni\b|\bnif\b", r"\d{8}-?[A-HJ-NP-TV-Z]"),
    Scheme("es nie", _is(r"[XYZ]\d{7}[A-Z]"), (9,), _nie, r"\bnie\b", r"[XYZ]-?\d{7}-?[A-HJ-NP-TV-Z]"),
    Scheme("fi hetu", _is(r"\d{6}[-+A-FU-Y]\d{3}[0-9A-Y]"), (11,), _hetu, r"\bhetu\b|henkilötunnus",
           rf"{_DAY}{_MONTH}\d{{2}}[-+A-FU-Y]\d{{3}}[0-9A-FHJ-NPR-Y]"),
    Scheme("fr nir", _is(r"[1-478]\d{4}(?:\d{2}|2[AB])\d{8}"), (15,), _nir, r"\bnir\b|s(?:é|e)curit(?:é|e) sociale|\binsee\b",
           rf"[12478](?P<gap>[ .]?)\d{{2}}(?P=gap){_MONTH}(?P=gap)(?:\d{{2}}|2[AB])(?P=gap)\d{{3}}(?P=gap)\d{{3}}[ .]?\d{{2}}"),
    Scheme("gb nhs", _is(r"\d{10}"), (10,), _nhs, r"\bnhs\b"),
    Scheme("gb nino", _is(r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]\d{6}[A-D]"), (9,), _always, r"\bnino?\b|national insurance",
           r"(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z](?P<nino> ?)(?:\d{2}(?P=nino)){3}[A-D]"),
    Scheme("gr amka", _is(r"\d{11}"), (11,), _amka, r"\bamka\b|αμκα|" "\u0391\u039c\u039a\u0391"),
    Scheme("hr oib", _is(r"\d{11}"), (11,), _oib, r"\boib\b"),
    Scheme("ie pps", _is(r"\d{7}[A-W][A-IW]?"), (8, 9), _pps, r"\bpps"),
    Scheme("il idnr", _is(r"\d{9}"), (9,), _israeli, r"teudat|mispar zehut|israeli? id|\bidentity number|תעודת"),
    Scheme("in aadhaar", _is(r"[2-9]\d{11}"), (12,), verhoeff_valid, r"aad?haa?r|\buidai?\b|\bvid\b|आधार"),
    Scheme("in pan", _is(r"[A-Z]{3}[ABCFGHJLPT][A-Z]\d{4}[A-Z]"), (10,), _always, r"\bpan\b|permanent account"),
    Scheme("it cf", _is(r"[A-Z]{6}[0-9LMNP-V]{2}[A-EHLMPRST][0-9LMNP-V]{2}[A-Z][0-9LMNP-V]{3}[A-Z]"), (16,), _codice_fiscale,
           r"codice fiscale|fiscal code|\bc\.?f\.?\b",
           r"[A-Za-z]{6}\d{2}[A-EHLMPRSTa-ehlmprst]\d{2}[A-Za-z]\d{3}[A-Za-z]"
           r"|[A-Z]{3} [A-Z]{3} \d{2}[A-EHLMPRST]\d{2} [A-Z]\d{3}[A-Z]"),
    Scheme("jp my number", _is(r"\d{12}"), (12,), _my_number, r"my ?number|kojin bango|individual number|マイナンバー|個人番号"),
    Scheme("kr rrn", _is(r"\d{13}"), (13,), _rrn, r"\brrn\b|resident registration|주민", rf"\d{{2}}{_MONTH}{_DAY}-[0-9]\d{{6}}"),
    Scheme("mx curp", _is(r"[A-Z]{4}\d{6}[HMX][A-Z]{5}[0-9A-Z]\d"), (18,), _curp, r"\bcurp\b",
           r"[A-Za-z][AEIOUXaeioux][A-Za-z]{2}\d{6}[HMXhmx][A-Za-z]{5}[0-9A-Za-z]\d"),
    Scheme("nl bsn", _is(r"\d{9}"), (9,), _bsn, r"\bbsn\b|burgerservice|sofi"),
    Scheme("no fnr", _is(r"\d{11}"), (11,), _fodselsnummer, r"f(?:ø|o)dsels|personnummer|\bfnr\b", r"\d{6} \d{5}"),
    Scheme("pl pesel", _is(r"\d{11}"), (11,), _pesel, r"\bpesel\b"),
    Scheme("pt nif", _is(r"\d{9}"), (9,), _nif, r"\bnif\b|contribuinte|fiscal"),
    Scheme("ro cnp", _is(r"\d{13}"), (13,), _cnp, r"\bcnp\b|numeric personal"),
    Scheme("ru inn", _is(r"\d{12}"), (12,), _inn, r"\binn\b|инн|ИНН"),
    Scheme("ru snils", _is(r"\d{11}"), (11,), _snils, r"snils|снилс|СНИЛС", r"\d{3}-\d{3}-\d{3}[ -]\d{2}"),
    Scheme("se pnr", _is(r"(?:19|20)?\d{10}"), (10, 12), _personnummer, r"personnummer|\bpnr\b|samordnings",

           r"(?!20[0-3]\d{5}-[01]\d[0-5]\d)(?!20[0-3]\d{5}-2[0-3][0-5]\d)(?![0-3]\d{5}-[01]\d[0-5]\d)(?![0-3]\d{5}-2[0-3][0-5]\d)"
           r"(?:19|20)?\d{6}[-+]\d{4}"),
    Scheme("th pin", _is(r"\d{13}"), (13,), _thai, r"thai(?:land)? (?:national )?id|เลขประจำตัว", r"\d-\d{4}-\d{5}-\d{2}-\d"),
    Scheme("tr tckn", _is(r"\d{11}"), (11,), _tckn, r"\bt\.?c\.? |tckn|kimlik"),
    Scheme("tw id", _is(r"[A-Z][12]\d{8}"), (10,), _taiwan, r"taiwan|身分證|身份證"),
    Scheme("za id", _is(r"\d{13}"), (13,), _south_african, r"\bsa id\b|south african|\brsa\b"),
)  # fmt: skip
"""Numbers with check digits of the largest countries, and two (British, Indian) whose letters leave little doubt."""

GENERAL_WORDS = (
    r"national[ _-]?(?:id|identity|identification|insurance|tax)|identity (?:number|card|no\b)"
    r"|\bpersonal (?:id|number|code|identity)"
    r"|citizen (?:id|number)|\btax[ _]?(?:id|number|payer|identification)"
)
"""What any of these numbers may be called."""
