"""Seeded samples of each kind of personal data and secret, made or approved by other people's code; knows nothing of the detector.

Needs python-stdnum, phonenumbers, schwifty and Faker. Where no library makes a kind (credentials, wallets) the sample follows
the issuer's published form, and the wallets are approved by python-stdnum where it knows the chain.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib
import ipaddress
import json
import random
import string
from collections.abc import Callable, Iterator

import phonenumbers
import rstr
import schwifty
import stdnum.bitcoin
import stdnum.luhn
import stdnum.us.itin
import stdnum.us.ssn
from faker import Faker

ALNUM = string.ascii_letters + string.digits
URL64 = ALNUM + "-_"
LOWER_HEX = "0123456789abcdef"

NATIONAL = {
    "ar.cuit": (r"2[0347]-\d{8}-\d", "CUIT"),
    "be.nn": (r"\d{2}\.(0[1-9]|1[0-2])\.(0[1-9]|1\d|2[0-8])-\d{3}\.\d{2}", "rijksregisternummer"),
    "br.cpf": (r"\d{3}\.\d{3}\.\d{3}-\d{2}", "CPF"),
    "ca.sin": (r"[1-79]\d{2} \d{3} \d{3}", "SIN"),
    "ch.ssn": (r"756\.\d{4}\.\d{4}\.\d{2}", "AHV-Nummer"),
    "cl.rut": (r"\d{2}\.\d{3}\.\d{3}-[\dK]", "RUT"),
    "cn.ric": (r"110101(19|20)\d{2}(0[1-9]|1[0-2])(0[1-9]|1\d|2[0-8])\d{3}[\dX]", "身份证号"),
    "cz.rc": (r"\d{2}(0[1-9]|1[0-2]|5[1-9]|6[0-2])(0[1-9]|1\d|2[0-8])/\d{4}", "rodné číslo"),
    "de.idnr": (r"\d{11}", "Steuer-ID"),
    "es.dni": (r"\d{8}[A-Z]", "DNI"),
    "es.nie": (r"[XYZ]\d{7}[A-Z]", "NIE"),
    "fi.hetu": (r"(0[1-9]|1\d|2[0-8])(0[1-9]|1[0-2])\d{2}-\d{3}[0-9A-Y]", "henkilötunnus"),
    "fr.nir": (r"[12]\d{2}(0[1-9]|1[0-2])(0[1-9]|[1-8]\d)\d{8}", "numéro de sécurité sociale"),
    "gb.nhs": (r"\d{3} \d{3} \d{4}", "NHS number"),
    "gr.amka": (r"(0[1-9]|1\d|2[0-8])(0[1-9]|1[0-2])\d{7}", "AMKA"),
    "hr.oib": (r"\d{11}", "OIB"),
    "il.idnr": (r"\d{9}", "Teudat Zehut"),
    "in_.aadhaar": (r"[2-9]\d{3} \d{4} \d{4}", "Aadhaar"),
    "in_.pan": (r"[A-Z]{3}P[A-Z]\d{4}[A-Z]", "PAN"),
    "it.codicefiscale": (r"[A-Z]{6}\d{2}[A-EHLMPRST](0[1-9]|1\d|2[0-8])[A-Z]\d{3}[A-Z]", "codice fiscale"),
    "jp.in_": (r"\d{4} \d{4} \d{4}", "My Number"),
    "kr.rrn": (r"\d{2}(0[1-9]|1[0-2])(0[1-9]|1\d|2[0-8])-[1-4]\d{6}", "resident registration number"),
    "mx.curp": (r"[B-DF-HJ-NP-TV-Z][AEIOU][B-Z]{2}\d{2}(0[1-9]|1[0-2])(0[1-9]|1\d|2[0-8])[HM]DF[BCDFG]{3}[0-9]\d", "CURP"),
    "nl.bsn": (r"\d{9}", "BSN"),
    "no.fodselsnummer": (r"(0[1-9]|1\d|2[0-8])(0[1-9]|1[0-2])\d{7}", "fødselsnummer"),
    "pl.pesel": (r"\d{2}(0[1-9]|1[0-2])(0[1-9]|1\d|2[0-8])\d{5}", "PESEL"),
    "pt.nif": (r"[12]\d{8}", "NIF"),
    "ro.cnp": (r"[12]\d{2}(0[1-9]|1[0-2])(0[1-9]|1\d|2[0-8])(0[1-9]|[1-3]\d)\d{4}", "CNP"),
    "ru.inn": (r"\d{12}", "ИНН"),
    "se.personnummer": (r"\d{2}(0[1-9]|1[0-2])(0[1-9]|1\d|2[0-8])-\d{4}", "personnummer"),
    "th.pin": (r"[1-8]-\d{4}-\d{5}-\d{2}-\d", "Thai ID"),
    "tr.tckimlik": (r"[1-9]\d{10}", "TCKN"),
    "za.idnr": (r"\d{2}(0[1-9]|1[0-2])(0[1-9]|1\d|2[0-8])\d{4}[01]\d{2}", "South African ID"),
}
"""Module of python-stdnum: how the number is written, and what it is called."""


def pick(draw: random.Random, letters: str, n: int) -> str:
    """That many letters."""
    return "".join(draw.choices(letters, k=n))


def cards(draw: random.Random) -> Iterator[str]:
    """Faker's card numbers, solid and in fours."""
    fake = Faker()
    fake.seed_instance(draw.random())
    while True:
        number = fake.credit_card_number()
        stdnum.luhn.validate(number)
        yield number
        if len(number) == 16:
            yield draw.choice(" -").join(number[i : i + 4] for i in range(0, 16, 4))


def ibans(draw: random.Random) -> Iterator[str]:
    """Of all countries that schwifty makes them for."""
    countries = [
        "DE",
        "FR",
        "GB",
        "ES",
        "IT",
        "NL",
        "BE",
        "AT",
        "CH",
        "PL",
        "SE",
        "NO",
        "DK",
        "FI",
        "PT",
        "CZ",
        "GR",
        "TR",
        "AE",
        "SA",
    ]
    while True:
        made = schwifty.IBAN.random(country_code=draw.choice(countries), random=draw)
        yield draw.choice([made.compact, made.formatted])


def ssns(draw: random.Random) -> Iterator[str]:
    """What python-stdnum takes for a social security or taxpayer number."""
    while True:
        number = f"{draw.randint(1, 999):03d}-{draw.randint(0, 99):02d}-{draw.randint(0, 9999):04d}"
        if stdnum.us.ssn.is_valid(number) or stdnum.us.itin.is_valid(number):
            yield number


def phones(draw: random.Random) -> Iterator[str]:
    """Numbers that phonenumbers holds for valid, of every region, in its international and E.164 writing."""
    regions = sorted(phonenumbers.SUPPORTED_REGIONS)
    while True:
        region = draw.choice(regions)
        kind = draw.choice([phonenumbers.PhoneNumberType.MOBILE, phonenumbers.PhoneNumberType.FIXED_LINE])
        example = phonenumbers.example_number_for_type(region, kind)
        if example is None:
            continue
        digits = str(example.national_number)
        changed = phonenumbers.PhoneNumber(example.country_code, int(digits[:-2] + pick(draw, string.digits, 2)))
        if phonenumbers.is_valid_number(changed):
            form = draw.choice([phonenumbers.PhoneNumberFormat.INTERNATIONAL, phonenumbers.PhoneNumberFormat.E164])
            yield phonenumbers.format_number(changed, form)


def emails(draw: random.Random) -> Iterator[str]:
    """Faker's addresses in several languages."""
    fake = Faker(["en_US", "de_DE", "fr_FR", "ja_JP"])
    fake.seed_instance(draw.random())
    while True:
        yield fake.email()


def ips(draw: random.Random) -> Iterator[str]:
    """Public and private addresses of both versions."""
    while True:
        four = ipaddress.IPv4Address(draw.getrandbits(32))
        if not (four.is_loopback or four.is_multicast or four.is_unspecified or int(four) >> 24 in {0, 255}):
            yield str(four)
        yield str(ipaddress.IPv6Address(0x2 << 124 | draw.getrandbits(125)))


def macs(draw: random.Random) -> Iterator[str]:
    """In the three usual writings."""
    while True:
        digits = f"{draw.getrandbits(48):012x}"
        pairs = [digits[i : i + 2] for i in range(0, 12, 2)]
        yield draw.choice([":".join(pairs), "-".join(pairs).upper(), ".".join((digits[:4], digits[4:8], digits[8:]))])


def national_ids(draw: random.Random) -> Iterator[str]:
    """Numbers of many countries, drawn by shape until python-stdnum takes one, each behind its name."""
    make = rstr.Rstr(draw)
    modules = {name: importlib.import_module(f"stdnum.{name}") for name in NATIONAL}
    while True:
        for name, (shape, word) in NATIONAL.items():
            number = make.xeger(shape)
            while not _valid(modules[name].is_valid, number):
                number = make.xeger(shape)
            yield f"{word}: {number}"


def _valid(check: Callable[[str], bool], number: str) -> bool:
    try:
        return check(number)
    except KeyError:  # a Chinese county that its table lacks
        return False


def base58check(payload: bytes) -> str:
    """Bitcoin's encoding, worked out anew."""
    data = payload + hashlib.sha256(hashlib.sha256(payload).digest()).digest()[:4]
    number, letters = int.from_bytes(data, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        letters = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"[digit] + letters
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + letters


def wallets(draw: random.Random) -> Iterator[str]:
    """Bitcoin, Litecoin, Dogecoin, Tron and Ethereum addresses."""
    while True:
        for version in (0x00, 0x05):
            address = base58check(bytes((version,)) + draw.randbytes(20))
            stdnum.bitcoin.validate(address)
            yield address
        yield base58check(bytes((draw.choice([0x30, 0x1E, 0x41]),)) + draw.randbytes(20))
        yield "0x" + draw.randbytes(20).hex()


def jwt(draw: random.Random) -> str:
    """A signed token."""
    parts = (
        json.dumps({"alg": "HS256", "typ": "JWT"}).encode(),
        json.dumps({"sub": draw.randint(1, 10**9)}).encode(),
        draw.randbytes(32),
    )
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


def secrets_(draw: random.Random) -> Iterator[str]:
    """One credential of each issuer and shape in turn. Prefixes are put together here, so that no scanner takes them for real."""
    some = functools.partial(pick, draw)
    while True:
        yield "AK" + "IA" + some(string.ascii_uppercase + "234567", 16)
        yield "github" + "_pat_" + some(ALNUM, 22) + "_" + some(ALNUM, 59)
        yield "gl" + "pat-" + some(URL64, 20)
        yield "xo" + "xb-" + some(string.digits, 12) + "-" + some(ALNUM, 24)
        yield "sk" + "_live_" + some(ALNUM, 24)
        yield "rk" + "_live_" + some(ALNUM, 24)
        yield "sk" + "-proj-" + some(ALNUM, 48)
        yield "sk" + "-ant-api03-" + some(URL64, 92) + "A"
        yield "sk" + "-or-v1-" + some(LOWER_HEX, 64)
        yield "gs" + "k_" + some(ALNUM, 52)
        yield "xa" + "i-" + some(ALNUM, 80)
        yield "pp" + "lx-" + some(ALNUM, 48)
        yield "h" + "f_" + some(string.ascii_letters, 34)
        yield "AI" + "za" + some(URL64, 34) + "a"
        yield "np" + "m_" + some(ALNUM, 36)
        yield "do" + "p_v1_" + some(LOWER_HEX, 64)
        yield "shp" + "at_" + some(LOWER_HEX, 32)
        yield "hv" + "s." + some(ALNUM, 90)
        yield "da" + "pi" + some(LOWER_HEX, 32)
        yield "SG" + "." + some(ALNUM, 22) + "." + some(ALNUM, 43)
        yield "nv" + "api-" + some(ALNUM, 64)
        yield some("123456789", 10) + ":" + "AA" + some(ALNUM, 33)
        yield "-----BEGIN " + "PRIVATE KEY-----\n" + some(ALNUM + "+/", 64) + "\n-----END " + "PRIVATE KEY-----"
        yield f"postgresql://app:{some(ALNUM, 16)}@db.internal:5432/orders"
        yield f"mongodb+srv://svc:{some(ALNUM, 20)}@cluster0.example.net/x"
        yield jwt(draw)


SAMPLES: dict[str, Callable[[random.Random], Iterator[str]]] = {
    "card": cards,
    "iban": ibans,
    "ssn": ssns,
    "phone": phones,
    "email": emails,
    "ip": ips,
    "mac": macs,
    "national_id": national_ids,
    "wallet": wallets,
    "secret": secrets_,
}
