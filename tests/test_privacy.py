"""What the privacy detector promises. Every card, account, token and key here is generated from a seed at run time."""

from __future__ import annotations

import base64
import itertools
import json
import random
import string
import time
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import privacy
from gateway.national_ids import SCHEMES
from gateway.privacy import CLASSES, KINDS, Detector, Scan, classify, find, highest, normalise, re2, scan
from gateway.recognisers import FAMILIES, ID_WORDS, NEEDY, SEPARATOR, github_checksum
from tests.bench.privacy import LOOKALIKES, lookalikes

ALNUM = string.ascii_letters + string.digits
BASE64URL = ALNUM + "-_"
CLASS_OF = {kind.name: "confidential" for kind in KINDS}


def pick(draw: random.Random, letters: str, n: int) -> str:
    return "".join(draw.choices(letters, k=n))


def card(draw: random.Random, prefix: str, length: int) -> str:
    """Digits whose last one makes the sum of the Luhn rule, worked out by trial."""
    body = prefix + pick(draw, string.digits, length - len(prefix) - 1)
    weights = [int(digit) * (2 if place % 2 == 0 else 1) for place, digit in enumerate(reversed(body))]
    return body + str(-sum(weight - 9 * (weight > 9) for weight in weights) % 10)


def iban(draw: random.Random, country: str, length: int) -> str:
    body = pick(draw, string.digits + string.ascii_uppercase, length - 4)
    number = "".join(str(int(letter, 36)) for letter in body + country + "00")
    return f"{country}{98 - int(number) % 97:02d}{body}"


def ssn(draw: random.Random, sep: str = "-") -> str:
    area = draw.choice([n for n in range(1, 900) if n != 666])
    return sep.join((f"{area:03d}", f"{draw.randint(1, 99):02d}", f"{draw.randint(1, 9999):04d}"))


def email(draw: random.Random) -> str:
    local, host = pick(draw, ALNUM, draw.randint(1, 30)), pick(draw, string.ascii_lowercase, draw.randint(1, 20))
    return f"{local}@{host}.{draw.choice(['com', 'de', 'museum'])}"


def fours(digits: str, sep: str) -> str:
    return sep.join(digits[i : i + 4] for i in range(0, len(digits), 4))


def kinds(text: str) -> set[str]:
    return {finding.kind for finding in find(text)}


def wrong_last_digit(number: str) -> str:
    return number[:-1] + str((int(number[-1]) + 1) % 10)


def uuid(draw: random.Random) -> str:
    return "-".join(pick(draw, "0123456789abcdef", n) for n in (8, 4, 4, 4, 12))


def tokens(draw: random.Random) -> dict[str, str]:
    """One credential of each shape."""
    body = pick(draw, ALNUM, 30)
    part = base64.urlsafe_b64encode(json.dumps({"typ": "JWT", "alg": "HS256"}).encode()).decode().rstrip("=")
    return {
        "aws": "AK" + "IA" + pick(draw, string.ascii_uppercase + "234567", 16),
        "github": "gh" + "p_" + body + github_checksum(body),
        "github_fine": "github_" + "pat_" + pick(draw, ALNUM, 22) + "_" + pick(draw, ALNUM, 59),
        "slack": "xo" + "xb-" + pick(draw, string.digits, 12) + "-" + pick(draw, ALNUM, 24),
        "stripe": "sk_" + "live_" + pick(draw, ALNUM, 24),
        "openai": "sk-" + "proj-" + pick(draw, BASE64URL, 60),
        "anthropic": "sk-" + "ant-api03-" + pick(draw, BASE64URL, 80),
        "google": "AI" + "za" + pick(draw, ALNUM, 35),
        "own": "gw" + "-" + pick(draw, BASE64URL, 43),
        "jwt": ".".join((part, pick(draw, BASE64URL, 40), pick(draw, BASE64URL, 43))),
        "pem": "-----BEGIN " + "RSA PRIVATE KEY-----\n" + pick(draw, ALNUM, 64),
        "database": "postgresql://app:" + pick(draw, ALNUM, 14) + "@db.internal:5432/main",
        "bearer": "Authorization: Bearer " + pick(draw, ALNUM, 40),
        "assigned": 'api_key = "' + pick(draw, ALNUM, 32) + '"',
        "password": "password: " + pick(draw, string.ascii_letters, 6) + "7!q",
        "password with signs": '{"password": "' + pick(draw, string.ascii_letters, 5) + "7$q!(" + '"}',
        "basic": "Authorization: Basic " + base64.b64encode(f"app:{pick(draw, ALNUM, 9)}".encode()).decode(),
        "django": "SECRET_KEY = 'django-insecure-" + pick(draw, ALNUM + "!@#$%^*", 40) + "7a'",
        "alibaba": "LT" + "AI" + pick(draw, ALNUM, 20),
        "artifactory": "AK" + "Cp" + pick(draw, ALNUM, 69),
        "airtable": "pa" + "t" + pick(draw, ALNUM, 14) + "." + pick(draw, "0123456789abcdef", 64),
        "hubspot": "pa" + "t-na1-" + uuid(draw),
        "launchdarkly": "sd" + "k-" + uuid(draw),
        "sonar": "sq" + "u_" + pick(draw, "0123456789abcdef", 40),
        "sourcegraph": "sg" + "p_" + pick(draw, "0123456789abcdef", 40),
        "brevo": "xkey" + "sib-" + pick(draw, "0123456789abcdef", 64) + "-" + pick(draw, ALNUM, 16),
        "shippo": "ship" + "po_live_" + pick(draw, "0123456789abcdef", 40),
        "notion": "secre" + "t_" + pick(draw, ALNUM, 43),
        "openshift": "sha" + "256~" + pick(draw, BASE64URL, 42) + "a",
        "facebook": "EA" + "AC" + pick(draw, ALNUM, 100),
        "dropbox": "s" + "l." + pick(draw, BASE64URL, 134) + "a",
        "fly": "Fly" + "V1 fm2_" + pick(draw, ALNUM + "+/", 150),
        "octopus": "AP" + "I-" + pick(draw, string.ascii_uppercase + string.digits, 26),
        "typeform": "tf" + "p_" + pick(draw, BASE64URL, 58) + "a",
        "azure": pick(draw, ALNUM, 3) + "8Q" + "~" + pick(draw, ALNUM, 34),
        "mailgun": pick(draw, "0123456789abcdef", 32)
        + "-"
        + pick(draw, "0123456789abcdef", 8)
        + "-"
        + pick(draw, "0123456789abcdef", 8),
        "storage": "Account" + "Key=" + pick(draw, ALNUM + "+/", 85) + "7==",
        "discord": "https://discord.com/api/" + f"webhooks/{draw.randrange(10**17, 10**18)}/" + pick(draw, BASE64URL, 67) + "a",
    }


CARDS = [
    ("4", 16),
    ("4", 13),
    ("55", 16),
    ("2300", 16),
    ("34", 15),
    ("3056", 14),
    ("6011", 16),
    ("3530", 16),
    ("1800", 15),
    ("6304", 12),
    ("6763", 19),
]


@pytest.mark.parametrize(("prefix", "length"), CARDS)
def test_a_card_needs_its_check_digit(prefix, length):
    """A number with an issuer's prefix is a card only with the right check digit."""
    number = card(random.Random(length), prefix, length)
    assert "card" not in kinds(f"my card {wrong_last_digit(number)} please")
    assert "card" in kinds(f"order {number} please")


@pytest.mark.parametrize("sep", [" ", "-", ".", "_", "/", " - ", "\u00a0", "\u2011", "\u2003"])
def test_separators_do_not_hide_a_card(sep):
    """Groups of four are found whatever stands between them."""
    number = card(random.Random(5), "4", 16)
    assert "card" not in kinds(fours(wrong_last_digit(number), sep))
    assert kinds(fours(number, sep)) == {"card"}


def test_odd_groups_need_a_word():
    """Digits in unusual groups are a card only beside a word that says so."""
    spread = " ".join(card(random.Random(6), "4", 16))
    assert "card" not in kinds(f"the sequence {spread}")
    assert "card" in kinds(f"credit card {spread}")
    assert "card" in kinds(f"credit card {' '.join(card(random.Random(6), '2255', 16))}")


def test_neighbouring_numbers_do_not_hide_a_card():
    """A card is found between other groups of digits, and not inside a longer number or a decimal fraction."""
    number = card(random.Random(7), "51", 16)
    assert not kinds(f"7{number}") | kinds(f"a{number}") | kinds(f"0.{number}")
    assert "card" in kinds(f"1234 {fours(number, ' ')} 9999 12")


def each_digit(text: str, zero: int) -> str:
    return "".join(chr(zero + int(c)) if c.isdigit() else c for c in text)


DISGUISES = {
    "full width": lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
    "arabic digits": lambda text: each_digit(text, 0x660),
    "mathematical digits": lambda text: each_digit(text, 0x1D7CE),
    "zero width": "\u200b".join,
    "soft hyphen": "\u00ad".join,
    "tags": "\U000e0041".join,
    "struck through": "\u0336".join,
    "keycaps": lambda text: "".join(c + "\ufe0f\u20e3" if c.isdigit() else c for c in text),
    "inner json escapes": lambda text: "".join(f"\\u{ord(c):04x}" for c in text),
    "full width in inner json": lambda text: json.dumps(DISGUISES["full width"](text))[1:-1],
    "mathematical digits in inner json": lambda text: json.dumps(DISGUISES["mathematical digits"](text))[1:-1],
    "invisible in inner json, upper case": lambda text: "".join(f"{c}\\u{0x200B:04X}" for c in text),
    "full width in json in json": lambda text: json.dumps(json.dumps(DISGUISES["full width"](text))[1:-1])[1:-1],
}


@pytest.mark.parametrize("disguise", DISGUISES)
def test_disguised_letters_are_read(disguise):
    """Look-alikes of digits and invisible characters hide nothing."""
    draw = random.Random(disguise)
    for kind, plain in {
        "card": card(draw, "4", 16),
        "iban": iban(draw, "DE", 22),
        "ssn": ssn(draw),
        "email": email(draw),
    }.items():
        assert kinds(DISGUISES[disguise](plain)) == {kind}


def test_an_iban_needs_length_and_check_digits():
    """An IBAN is found solid, in groups and in lower case; not with a wrong check digit or for an unknown country."""
    number = iban(random.Random(8), "GB", 22)
    wrong = number[:2] + f"{(int(number[2:4]) + 1) % 100:02d}" + number[4:]
    uuid = f"{'BA09CCB6-4DA9-43D9-A3A8'.lower()}-d8ffbf3e54a2"
    assert "iban" not in kinds(f"pay to {uuid}") | kinds(f"pay to {number[:8]}-{number[8:12]}-{number[12:16]}-{number[16:]}")
    assert "iban" not in kinds(f"pay to {wrong}") | kinds(f"pay to ZZ{number[2:]}") | kinds(f"x{number}")
    for shown in (number, number.lower(), fours(number, " "), fours(number, "-"), f"AB12 {number}", f"{number} was flagged"):
        assert "iban" in kinds(f"pay to {shown}")


@pytest.mark.parametrize(
    "number", ["000-12-3456", "666-12-3456", "123-00-4567", "123-45-0000", "900-12-3456", "1-123-45-6789", "123-45-67890"]
)
def test_what_was_never_issued_is_no_ssn(number):
    """Numbers outside the published ranges are not reported."""
    assert "ssn" not in kinds(f"ref {number}")


@pytest.mark.parametrize("text", ["{} it is", "SSN:{}.", "({})", "itin 912-71-1234", "912 71 1234"])
def test_ssn_and_itin_are_found(text):
    """An SSN or ITIN in its usual writing needs no word beside it."""
    assert kinds(text.format(ssn(random.Random(9)))) == {"ssn"}


def test_nine_bare_digits_need_a_word():
    """Nine digits are an SSN only beside a word, also when that word is a JSON key."""
    bare = ssn(random.Random(10), "")
    assert "ssn" not in kinds(f"part {bare}")
    assert kinds(f"social security number {bare}") == {"ssn"}
    assert scan({"ssn": int("2" + bare[1:])}, max_chars=100).kinds == {"ssn"}


@pytest.mark.parametrize(("prefix", "length"), [("4", 13), ("34", 15), ("3056", 14), ("5016", 16), ("6771", 16)])
def test_groups_of_four_are_a_card_of_any_length(prefix, length):
    """Also where a group of one to three digits is left, and of Maestro's sixteen digits."""
    number = card(random.Random(length), prefix, length)
    assert kinds(f"pay {fours(number, ' ')} now") == kinds(f"pay {fours(number, '-')} now") == {"card"}


def test_a_table_of_numbers_is_no_card():
    """A row of nine numbers and more that happen to pass the check, and hexadecimal ones, are none; a row of cards is."""
    number, other = fours(card(random.Random(5), "4", 16), "  "), fours(card(random.Random(6), "51", 16), "  ")
    assert not kinds(f"19  674  {number}  361  847  3990  5") | kinds(f"5ff2  {number}  9012")
    assert kinds(f"{number}  {other}  {number}") == {"card"}


@pytest.mark.parametrize(
    "text",
    ["please add {} thanks", "Ada {} Ed", "fee {} a bad one", "id {}", "2026-11-28 {} ok", "12 {} 123 12/27", "pin 1234 {}",
     "7b2 150.64.43.176 {}", "1 2 3 {} 4 5 6", "{} 1227 0123 9410"],
)  # fmt: skip
def test_words_and_numbers_beside_a_card_do_not_hide_it(text):
    """Words that could be hexadecimal, a date, a PIN or a post code beside a card make no table of it."""
    assert "card" in kinds(text.format(fours(card(random.Random(4), "4", 16), " ")))


@pytest.mark.parametrize("text", ["user_id={}", '{{"id": {}}}', "customer id {}"])
def test_a_card_kept_as_an_id_is_one(text):
    """Sixteen digits that pass the check are a card whatever they are called by."""
    assert "card" in kinds(text.format(card(random.Random(4), "4", 16)))


@pytest.mark.parametrize("text", ["EAN {}", "GTIN: {}", '"order_id": {}', "(id {})"])
def test_what_is_called_something_else_is_no_card(text):
    """A number of goods or of a record is no card, though it passes the check."""
    assert "card" not in kinds(text.format(card(random.Random(4), "4", 13)))


def test_twelve_digits_of_an_account_are_no_card():
    """In the middle of a path or of a resource's name, or between commas, twelve digits are a counter or an account."""
    number = card(random.Random(4), "57", 12)
    assert kinds(f"pay {number}") == {"card"}
    for text in ("arn:aws:iam::{}:role", "amazonaws.com/{}/queue", "node,{},7", '"account_id": "{}"'):
        assert "card" not in kinds(text.format(number))


@pytest.mark.parametrize(
    "text",
    [
        "icon@2x.png",
        "git@github.com:a/b",
        "Started user@1000.service.",
        "getty@tty1.service",
        "y = x@w.dot(z)",
        "numpy@1.2.3",
        "@property",
        "a @ b.com",
        "a@b",
    ],
)
def test_what_is_no_email(text):
    """Image names, remotes, operators and versions are not addresses."""
    assert "email" not in kinds(text)


@pytest.mark.parametrize(
    "text",
    [
        "a@b.de",
        "x.y+z@sub.example.museum",
        "mail=bob%40x.com&a",
        "<a>bob&#64;x.com</a>",
        "bob.smith&#x40;x.com",
        "jürgen@müller.de",
        "邮箱是bob@x.com谢谢",
        "<a@b.io>",
        "a@b.com(work)",
    ],
)
def test_emails_are_found(text):
    """An address is found in URLs, other scripts and brackets."""
    assert kinds(text) == {"email"}


@pytest.mark.parametrize(
    "text",
    [
        "in 2019-2020 and 2021",
        "phone launch 2024-05-17",
        "about 3.14159265",
        "order 78651450",
        "call for $1234567 now",
        "1000000 + 12",
        "tell him 78651450",
        "(most recent call last): expected 50331648 bytes",
        "Decimal(+35236450.6)",
        "roots +4.0614962j and +31.03278837j",
        "latitude +90.000000",
        "max +2147483647",
        "snapshot (1:10~+20191229111838+6991d5728f1-1)",
        "splats(+1.4249322787E-1f)",
        "more is available at CVE-2021-44532",
        "(Closes: #1091517) on a smartphone, see #1091518",
        "one cell.\n\n20040508\n",
        "DFARS 252.227-7014",
        "phone verify 11656572-17b3-422c-ac5e-8e17174a84e1",
        "index of phone.py 7048440..71da221",
        "phone?page=1&ts=1738800222810",
        "POST /phones/13449960",
        "the phone I bought (order no. 13449960)",
        "call me back: invoice INV-2026-138713 and ticket #13871312",
        "my mobile contract, contract 7828-358149-60",
        "my mobile runs firmware 4.0.3.7995",
    ],
)
def test_what_is_no_phone_number(text):
    """Dates, years, amounts and fractions are not telephone numbers, and bare digits need a word."""
    assert "phone" not in kinds(text)


@pytest.mark.parametrize(
    "text",
    [
        "+44 20 7946 0958",
        "(555) 123-4567",
        "555-123-4567x89",
        "1-800-555-0199",
        "+46 (0)8 928 571 38",
        "call me at 78 651 450",
        "Tel: 0490 75 40 81",
        "467 3395 office",
        "Call 467 3395",
        "467 3395 is my number",
        "+1.8005550123",
        "mobil: +4915112345678",
        "Handy: 0171 2345678",
        "tél. 06 12 34 56 78",
        "Gsm: 0470 12 34 56",
        "Tlf. 40 61 23 45",
        "T: 020 7946 0958",
        "Ph: 9345 3456",
        "тел. 8 912 345-67-89",
        "Телефон: 8 (912) 345-67-89",
        "電話: 03-1234-5678",
        "手机 138 0013 8000",
        "전화 02-312-3456",
        "celular 11 91234-5678",
        "emergency contact 078 8098 1119",
        "the best number to reach me is 083 564 9312",
        "TEL-467 3395",
        "phone=467 3395",
        "phone #4673395",
    ],
)
def test_phone_numbers_are_found(text):
    """International and North American forms stand alone; any national form counts beside a word."""
    assert kinds(text) == {"phone"}


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1",
        "0.0.0.0",
        "255.255.255.0",
        "version 10.20.30.40",
        "see 1.2.3.4",
        "1.2.3.4.5",
        "v10.2.3.4",
        "300.1.1.1",
        "::1",
        "a::b",
        "std::abc::dead",
        "12:30:45",
        "00:1b:44:11:3a:b7",
        "template<c10::Half",
        "deinterleave2<c10::\n",
        "// 20.7.1.3 unique_ptr for arrays",
        "path 2.12 3.51.98.32 2.03.5 3.11.5",
        "x11-common (2.39.90.1-1) unstable",
        "dpkg (1.15.7.1) unstable; urgency=low",
        "// From linux-2.6.35.4/arch",
        "Bump to 1.2.99.3",
        'ObjectIdentifier("2.5.4.42")',
        "__version__ = '3.24.17.4'",
    ],
)
def test_what_is_no_ip_address(text):
    """Loopback, netmasks, versions, sections, scopes in code, times and hardware addresses are not reported."""
    assert "ip" not in kinds(text)


@pytest.mark.parametrize(
    "text",
    [
        "86.121.97.248",
        "host 1.2.3.4",
        "http://10.1.2.3/x",
        "|10.1.2.3|",
        "10.0.0.0/8",
        "fe80::1",
        "2001:db8::8a2e:370:7334",
        "[2001:db8::1]:80",
        "1:2:3:4:5:6:7:8",
        "2001:db8::",
        "fd20::/20",
        "2001:db8:0:0:0:8a2e:370:7334: timeout",
        "0.003 86.121.97.248 ok",
        "86.121.97.248-86.121.97.252",
    ],
)
def test_ip_addresses_are_found(text):
    """Both versions are found, with ports, masks and brackets."""
    assert kinds(text) == {"ip"}


@pytest.mark.parametrize("shape", tokens(random.Random(0)))
def test_credentials_are_found(shape):
    """Each shape of credential is found beside text and in an inner JSON string, for many seeds."""
    for seed in range(20):
        token = tokens(random.Random(seed))[shape]
        assert "secret" in kinds(f"use {token} now")
        assert "secret" in kinds(json.dumps({"run": f"line\n{token}\n"}))


@pytest.mark.parametrize("before", ["3bearer ", "xBearer "])
def test_a_word_that_is_none_hides_no_credential(before):
    """What looks like the beginning of another credential does not hide the one that follows."""
    assert find(f"{before}plain words") == []
    assert kinds(before + tokens(random.Random(1))["google"]) == {"secret"}


def test_a_github_token_needs_its_checksum():
    """A GitHub token with a wrong checksum is no secret."""
    token = tokens(random.Random(1))["github"]
    assert "secret" not in kinds(token[:-1] + ("a" if token[-1] != "a" else "b"))


NO_CREDENTIALS = (
    "sk-" + "x" * 30,
    "class sk-folding-cube-animation-delay",
    "password is required",
    "password = os.environ['DB_1']",
    "postgres://user:password@localhost/x",
    "max_tokens: 4096",
    "eos_token = SpecialTokens.eos.value",
    "the key is to be kind to strangers",
    "token: <your-token-here-1234>",
    "eyJ" + "a" * 20 + ".bbbbbbbbb.c",
    "-----BEGIN PUBLIC KEY-----",
    "http://localhost:8080/a@b",
    "http://a:b@example.com",
    "sk_X509_NAME_ENTRY_value(sk, 1)",
    "sk_ASN1_UTF8STRING_insert(sk, ptr, idx)",
    "basic introduction/to/programming1",
    "password = get_password1(user)",
    "SRP_user_pwd *SRP_VBASE_get1_by_user(SRP_VBASE *vb)",
    "$newpwd = Win32::GetFullPathName($newdir);",
    "username, password = base64_decode(params).split(':', 1)",
    "KeywordToken = module$contents$google3$third_party$tokens",
    "password: $PASSWORD1",
    "#define sk_CMS_RevocationInfoChoice_new_reserve(cmp, n)",
    "sha256=gw-" + "JKckLhBHPXZLLp1qMrVsqNP9PJ-kcgtBvfCajk-g,1310",
    "token = oauth2.id_token.fetch_id_token2x(request)",
    "'secret': 'V1SecretProjection'",
    "access_key=layer1.aws_secret_access_key",
    "client_secret=projects/my-project/secrets/my-secret/versions/2",
    "('-----BEGIN RSA " + "PRIVATE KEY-----', '-----END RSA PRIVATE KEY-----')",
    "passwd\t1:4.13+dfsg1-1+deb12u1",
    "/etc/passwd:eli:x:2098:1000:Eli",
    "man/passwd.1.xml: removed",
    "ulid=01JFJV5251YFHSOSKZRTJIJPWD duration=2.78s",
)


@pytest.mark.parametrize("text", NO_CREDENTIALS)
def test_placeholders_and_code_are_no_credentials(text):
    """Examples, CSS classes and code that reads a credential are not one."""
    assert "secret" not in kinds(text)


# Properties

SURROUNDING = st.text(st.characters(exclude_categories=()), max_size=60)
BORDERS = (" ", "\n", "\t", ", ", "; ", " (", ") ", '"', "'", " | ", "<", ">", "!", ". ")
PLACES = st.tuples(SURROUNDING, st.sampled_from(BORDERS), st.sampled_from(BORDERS), SURROUNDING)
SEEDS = st.integers(0, 2**32).map(random.Random)
GENERATED = {
    "card": lambda draw: card(draw, *draw.choice(CARDS)),
    "iban": lambda draw: iban(draw, *draw.choice([("GB", 22), ("NO", 15), ("FR", 27), ("MT", 31)])),
    "ssn": lambda draw: ssn(draw, draw.choice(["-", " "])),
    "email": email,
}


@pytest.mark.parametrize("kind", GENERATED)
@settings(max_examples=150, deadline=None)
@given(place=PLACES, draw=SEEDS)
def test_valid_data_is_found_in_any_surroundings(kind, place, draw):
    """A valid card, IBAN, SSN or address between spaces or punctuation is found, whatever else the text holds."""
    before, left, right, after = place
    assert kind in kinds(before + left + GENERATED[kind](draw) + right + after)


PIECES = st.sampled_from(
    [" ", "\n", "@", "a@b.com", "1", "12", "4111", "1.2", ".3.4", ":", "::", "fe80", "GB82", "WEST", "card ", "call me at ", "+",
     "(", ")", "-", "sk-", "://u:", "token: ", "is", SEPARATOR, "é", "\v", "_"]
)  # fmt: skip
VALID = SEEDS.map(lambda draw: GENERATED[draw.choice(list(GENERATED))](draw))
MESSY = st.lists(PIECES | st.text(max_size=5) | VALID, max_size=40).map("".join)


@pytest.mark.skipif(re2 is None, reason="google-re2 is not installed")
@settings(max_examples=300, deadline=None)
@given(text=MESSY)
def test_both_engines_find_the_same(text):
    """Without google-re2 the findings are the same."""
    assert SLOW.find(text) == find(text)


class Exhaustive(Detector):
    """Runs every gate over the whole text."""

    def _hot(self, shape, data):
        return [(0, len(data))]


SLOW, EXHAUSTIVE = Detector(with_re2=False), Exhaustive()


@settings(max_examples=300, deadline=None)
@given(text=MESSY)
def test_the_first_pass_loses_nothing(text):
    """Looking only near the matches of all gates together finds what looking everywhere finds."""
    assert EXHAUSTIVE.find(text) == find(text)


@settings(max_examples=200, deadline=None)
@given(text=MESSY)
def test_scan_agrees_with_find_and_offsets_are_in_the_normalised_text(text):
    """`scan` reports the kinds of `find`, and every offset lies inside the normalised text."""
    findings = find(text)
    assert scan([text], max_chars=10**6).kinds == {finding.kind for finding in findings}
    assert all(0 <= finding.start < finding.end <= len(normalise(text)) for finding in findings)
    assert len({(finding.kind, finding.start) for finding in findings}) == len(findings)


@settings(max_examples=100, deadline=None)
@given(
    units=st.lists(st.tuples(PIECES | VALID | st.sampled_from(["GB12 ", "pwd ", "000-12-3456 ", "ab@x.js ", "aa:bb:", "sk-"]),
                             st.sampled_from([1, 2, 9, 70])), max_size=12),
    block=st.sampled_from([16, 100, 256]),
)  # fmt: skip
def test_crowded_text_is_read_like_any_other(units, block):
    """Blocks that are alike are judged once, and each finding is still told at each of its places."""
    text = "".join(unit * times for unit, times in units)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(privacy, "_MANY", 10**9)
        plain = find(text)
        patch.undo()
        patch.setattr(privacy, "_BLOCK", block)
        patch.setattr(privacy, "_MANY", 4)
        assert find(text) == plain


def test_a_text_full_of_what_is_no_finding_is_restricted_like_one_that_is_too_long():
    """What is tried in vain is counted, and never timed: the same text always comes to the same."""
    rows = [f"token={a}{b}{c}aaaaaaaaaaaaa " for a, b, c in itertools.product("bcdefghijklmno", repeat=3)]
    assert not scan(["".join(rows[:100])], max_chars=10**7).failed
    many = "".join(rows)
    seen = [scan([many], max_chars=10**7) for _ in range(2)]
    assert seen[0] == seen[1]
    assert seen[0].failed == "TooManyCandidates"
    assert classify(seen[0], {kind.name: "public" for kind in KINDS}) == "restricted"


class Counting(privacy._Hunt):
    """Keeps what was spent."""

    biggest = 0
    hunts: ClassVar[list[Counting]] = []

    def __init__(self, data, left):
        super().__init__(data, left)
        self.hunts.append(self)

    def spend(self, steps):
        self.biggest = max(self.biggest, steps)
        super().spend(steps)


@pytest.mark.parametrize("shape", LOOKALIKES)
def test_a_text_made_to_be_slow_ends_within_its_steps(shape, monkeypatch):
    """Whatever it looks like, a text costs no more than it may and one try, and a try is short."""
    monkeypatch.setattr(privacy, "_Hunt", Counting)
    monkeypatch.setattr(Counting, "hunts", [])
    text = lookalikes(shape, random.Random(shape))
    failed = scan([text], max_chars=10**7).failed
    (hunt,) = Counting.hunts
    assert failed in {"", "TooManyCandidates"}
    assert (hunt.left < 0) == bool(failed)
    assert hunt.left >= -hunt.biggest
    assert hunt.biggest <= len(text) // 64 + 8


def test_the_strings_of_a_body_share_its_steps():
    """A text cut into many strings may cost no more than in one, and what was read before counts as when it was read."""
    text = lookalikes("token=<l16> ", random.Random(1))
    pieces = [text[at : at + 2_400] for at in range(0, len(text), 2_400)]
    detector = Detector()
    assert not any(scan([piece], max_chars=10**7, detector=detector).failed for piece in pieces[:9])
    first = scan(pieces, max_chars=10**7, detector=detector)
    again = scan(pieces, max_chars=10**7, detector=detector)
    assert first == again == scan(pieces, max_chars=10**7, detector=Detector())
    assert first.failed == "TooManyCandidates"


@pytest.mark.parametrize(
    "row",
    [
        "{n8},10.0.{b}.{b},2026-11-{d} 10:{d}:{d},{b}.{d},ok",
        "{n8};2026-11-{d}T10:{d}:{d}Z;{b}.{d};{b}",
        "17{n8}123;{n8}{n8};{b}",
        "1.{d}.{d}.{d} Title of a section",
        "2026-11-{d} client version {d}.{d}.{b}.{b} connected after {b} ms",
        "git@github.com:team/repository{n8}.git",
        "Icon{b}@2x.png",
        '{{"id":{n8}1,"t":{b}}}',
        "  std::map<ab::cd> value = db::get(fe::x{n8});",
        "{n8}{n8}{n8}{n8}  file-{b}.txt",
    ],
)  # fmt: skip
def test_a_long_table_is_no_text_made_to_match(row):
    """6,000 rows of logs, tables and code are read to the end."""
    draw = random.Random(row)
    rows = (row.format(n8=draw.randrange(10**7, 10**8), b=draw.randrange(256), d=draw.randrange(10, 29)) for _ in range(6_000))
    assert not scan(["\n".join(rows)], max_chars=10**7).failed


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_a_national_number_has_one_of_its_lengths(scheme):
    """Numbers of other lengths are not tried, so the lengths must be those of the form."""

    @settings(max_examples=30, deadline=None)
    @given(number=st.from_regex(scheme.compact, fullmatch=True))
    def holds(number):
        assert len(number) in scheme.lengths

    holds()


def test_every_character_with_a_plain_form_is_looked_for():
    """The pattern leaves out the planes and blocks in which none stands, such as emoji."""
    assert all(privacy._FOLDABLE.fullmatch(letter) for letter in privacy._FOLDED)


@settings(max_examples=300, deadline=None)
@given(word=st.from_regex(ID_WORDS, fullmatch=True))
def test_no_word_for_a_national_number_begins_like_a_sign(word):
    """Where both are looked for in one pass, what begins like a sign is taken for one."""
    assert not any(word.lower().startswith(sign) for family in NEEDY for sign in family.needs if len(sign) > 1)


@pytest.mark.parametrize("text", ["// [23.2.2.3] modifiers", "// C++14 20.8.2.3", 'KEY_USAGE "2.5.29.15"', "OID 2.5.4.10"])
def test_sections_and_object_ids_are_no_addresses(text):
    """In code they stand where an address could; beside a word such as `host` they are one."""
    assert not kinds(text)
    assert kinds("host 2.5.29.15") == {"ip"}


CROWD = "the key to a token is no secret: pwd, passcode. " * 12


@pytest.mark.parametrize("ending", ["", CROWD, "@ + :// "])
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("email", "ada%40example.org"),
        ("email", "ada@example.org"),
        ("phone", "+44 20 7946 0018"),
        ("secret", "password: Tr0ub4dor&3"),
        ("secret", "api_key=a8Dk2Lq0Zx81Mv77Pq"),
        ("secret", "Bearer a8Dk2Lq0Zx81Mv77PqRt"),
        ("secret", "postgres://ada:Tr0ub4dor@db.example.org/x"),
        ("national_id", "CPF 529.982.247-25"),
        ("national_id", "national id 52998224725"),
    ],
)
def test_what_stands_behind_a_crowd_of_words_is_found(kind, text, ending):
    """A text with more words and signs than are looked at one by one is searched to its end for each."""
    assert kind in {finding.kind for finding in find(f"{CROWD}{text} {ending}")}


@pytest.mark.parametrize("before", ["x" * 250, "x " * 120 + "555 0100 99 " * 3, ""])
def test_a_run_of_digits_is_read_whole_wherever_it_begins(before):
    """A number beside a word may reach over the end of the stretch that is looked at."""
    number = " ".join("4111111111111111")
    for shift in range(0, 300, 7):
        text = f"{before}{'y' * shift} card: {number} and no more"
        assert "card" in {finding.kind for finding in find(text)}, shift


@pytest.mark.parametrize("family", [family for family in FAMILIES if family.needs], ids=lambda family: str(family.needs[0]))
def test_no_gate_matches_without_what_its_family_needs(family):
    """A family is passed over where none of its needs stands, so each match of its gate holds one."""

    @settings(max_examples=100, deadline=None)
    @given(match=st.from_regex(family.gate + family.rest, fullmatch=True))
    def holds(match):
        assert any(need in match.lower() for need in family.needs)

    holds()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | SURROUNDING,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(SURROUNDING, inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(body=JSON)
def test_scan_never_fails_on_json(body):
    """Any JSON value, with lone surrogates and NaN, is scanned without failure."""
    result = scan(body, max_chars=10**6)
    assert (result.failed, result.oversize) == ("", False)


# Bodies


def test_offsets_count_characters_of_the_normalised_text():
    """An offset cuts out the finding also behind characters of several bytes and a lone surrogate."""
    text = "née \ud800 \U0001f600 \uff34o a@b.com!"
    (finding,) = find(text)
    assert normalise(text)[finding.start : finding.end] == "a@b.com"


def test_every_string_and_long_number_is_read():
    """Values, object keys and numbers count, at any depth; short numbers do not."""
    number = card(random.Random(3), "4", 16)
    assert scan({"n": [int(number) % 10**8, 1.5, True, None]}, max_chars=99).kinds == frozenset()
    for body in ({number: 1}, [{"a": {"b": [number]}}], {"n": int(number)}, {"n": float(number)}, {"n": -int(number)}):
        assert scan(body, max_chars=99).kinds == {"card"}


def test_deep_nesting_is_fine():
    """A value nested deeper than the recursion limit is scanned to its end."""
    body: object = "a@b.com"
    for _ in range(50_000):
        body = [body]
    assert scan(body, max_chars=99) == Scan(frozenset({"email"}), 7, oversize=False)


def test_findings_do_not_cross_strings():
    """Two halves of a number in two strings are not joined; a word in one string may explain the next."""
    number = card(random.Random(4), "4", 16)
    assert scan([number[:8], number[8:]], max_chars=99).kinds == frozenset()
    assert scan([fours(number, " ")[:10], fours(number, " ")[10:]], max_chars=99).kinds == frozenset()


def test_files_are_unscannable_and_text_is_not_a_file():
    """Inline files count as unscannable and are not searched; what only looks like one is."""
    blob = base64.b64encode(random.Random(2).randbytes(4000)).decode()
    for body in ({"image_url": {"url": "data:image/png;base64,iVBORw0K"}}, {"input_audio": {"data": blob}}, {"file_data": blob}):
        assert scan(body, max_chars=10**5).kinds == {"unscannable"}
    for text in ("data: a@b.com", "data:text/plain;base64,x a@b.com"):
        assert scan({"url": text, "content": text}, max_chars=99).kinds == {"email"}
    assert "unscannable" not in scan({"content": blob}, max_chars=10**5).kinds


def test_above_the_limit_nothing_is_read_and_the_class_is_restricted():
    """A body of one character too many is oversize; at the limit it is scanned."""
    assert scan(["abc", "de"], max_chars=5) == Scan(frozenset(), 5, oversize=False)
    assert classify(scan(["abc", "def"], max_chars=5), CLASS_OF) == "restricted"


def test_what_is_not_json_fails_closed_without_its_text():
    """An unknown type or an exception inside gives the type's name only, and the highest class."""
    for body, name in (({"a": b"a@b.com"}, "TypeError"), ([10**5000], "ValueError"), ({1: {"x": object()}}, "TypeError")):
        result = scan(body, max_chars=99)
        assert (result.failed, classify(result, CLASS_OF)) == (name, "restricted")


def test_any_exception_inside_is_contained(monkeypatch):
    """Whatever breaks inside the detector, `scan` answers."""
    monkeypatch.setattr(privacy, "_texts", lambda body, limit: 1 / 0)
    assert scan("x", max_chars=9).failed == "ZeroDivisionError"


NAMES = st.frozensets(st.sampled_from([kind.name for kind in KINDS] + ["later"]))


@given(few=NAMES, more=NAMES, classes=st.dictionaries(st.sampled_from([kind.name for kind in KINDS]), st.sampled_from(CLASSES)))
def test_classify_is_monotone(few, more, classes):
    """More kinds never lower the class; an unmapped kind and a failure raise it to the highest."""
    some, all_ = (classify(Scan(found, 1, oversize=False), classes) for found in (few, few | more))
    assert CLASSES.index(some) <= CLASSES.index(all_)
    assert few <= classes.keys() or some == "restricted"
    assert classify(Scan(few, 1, oversize=False, failed="OSError"), classes) == "restricted"


def test_highest_orders_classes_and_distrusts_unknown_ones():
    """The most sensitive class wins, none is public, an unknown name counts as restricted."""
    assert (highest(), highest("internal", "public"), highest("confidential", "internal")) == (
        "public",
        "internal",
        "confidential",
    )
    assert highest("secretish") == "restricted"


@pytest.mark.parametrize(
    "unit", ["1", "1234 5678 9", "a@b", "a:b:", "key: eyJ", "e\u0301\u0323", "AB12", "1.2.3.4", "://a:", "pwd ", "\\"]
)
def test_no_text_takes_quadratic_time(unit):
    """Text made to match a gate again and again is searched in time that grows with its length, not with its square."""
    start = time.process_time()
    scan(unit * (60_000 // len(unit)), max_chars=10**6)
    assert time.process_time() - start < 2


def test_every_kind_is_documented():
    """The page on privacy has a row for each kind, and begins with what is not detected."""
    page = (Path(__file__).parents[1] / "docs" / "privacy.md").read_text(encoding="utf-8")
    assert "not detected" in page.split("\n\n")[1]
    assert all(f"| `{kind.name}` | {kind.about.split(':')[0].split(',')[0]}" in page for kind in KINDS)


# Places in the original text

TWISTED = st.lists(
    MESSY
    | st.sampled_from(
        [
            "…",
            "\u200b",
            "\uff11\uff12",
            "\\n",
            "\\u0034",
            '\\"',
            "\u0301",
            "ⅷ",
            "㎏",
            "\\\\",
            "\U0001d7d0",
            "\\uff11",
            "\\uFF21",
            "\\ud835\\udfd0",
            "\\ud835",
            "\\u4f60",
            "\\u200b",
            "\\u005c",
            "\\ud83d\\ude00",
        ]
    ),
    max_size=12,
).map("".join)


@settings(max_examples=400, deadline=None)
@given(text=TWISTED)
def test_located_spans_cut_out_exactly_what_was_found(text):
    """Each place in the original text, cut out, reads as what was found; and no finding is lost or added."""
    plain, found, located = normalise(text), find(text), privacy.locate(text)
    assert [one.kind for one in located] == [one.kind for one in found]
    for place, one in zip(located, found, strict=True):
        read, wanted = normalise(text[place.start : place.end]), plain[one.start : one.end]
        assert wanted in read
        assert len(read) <= len(wanted) + 2 * len("...")  # a character that stands for several is cut out whole
    assert all(0 <= one.start < one.end <= len(text) for one in located)


@settings(max_examples=400, deadline=None)
@given(text=TWISTED, blanks=st.sampled_from([0, 400]))
def test_escapes_are_read_alike_however_many_there_are(text, blanks):
    """A text is taken apart in one of several ways, and each does what reading it from left to right does."""
    plain = normalise(text)
    folded = "".join(privacy._FOLDED.get(letter, letter) for letter in text)
    assert plain == privacy._ESCAPED.sub(privacy._unescape, folded)
    assert normalise(text + " " * blanks) == plain + " " * blanks


def test_a_place_covers_disguised_letters_whole():
    """A span begins and ends at the original characters, escapes and invisible ones inside included."""
    number = card(random.Random(12), "4", 16)
    shown = "\u200b".join(number[:8]) + DISGUISES["inner json escapes"](number[8:])
    (one,) = privacy.locate(f"… ﬁne: {shown} ok")
    assert f"… ﬁne: {shown} ok"[one.start : one.end] == shown


def test_text_before_explains_a_number_and_is_not_located():
    """The string before may name what a number is; places count from the text itself."""
    bare = ssn(random.Random(10), "")
    assert privacy.locate(bare) == []
    assert privacy.locate(bare, before="ssn") == [privacy.Finding("ssn", 0, 9)]
    assert privacy.locate("x", before="a@b.com") == []


# What was read before

REMEMBERING = Detector()


@settings(max_examples=150, deadline=None)
@given(
    texts=st.lists(MESSY | st.sampled_from(["x" * 2048, "my ssn " + "y " * 1100 + "ssn:", "password", "123456789"]), max_size=12)
)
def test_pieces_and_verdicts_find_what_the_whole_holds(texts):
    """Cut into pieces, read for the first or the second time, a body has the kinds that it has when read in one."""
    detector = REMEMBERING
    detector.forget()
    whole = detector.kinds(SEPARATOR.join(texts))
    assert detector.kinds_of_all(texts) == whole == detector.kinds_of_all(texts)


def test_a_verdict_hangs_on_what_stands_before():
    """The same piece is judged anew behind other words."""
    detector, piece = Detector(), "123456789 " + "and so on " * 300
    assert detector.kinds_of_all(["y" * 2048, piece]) == frozenset()
    assert detector.kinds_of_all(["y" * 2048 + " my ssn", piece]) == {"ssn"}


def test_verdicts_are_bounded_and_hold_no_text():
    """What is remembered is digests and kinds, at most two generations of them."""
    detector = Detector()
    for n in range(3):
        detector.kinds_of_all([f"{n} a@b.com " * 300])
    memory = detector._verdicts
    assert {kinds for kinds, _ in memory._young.values()} == {frozenset({"email"})}
    assert all(len(mark) <= 32 and b"a@b" not in mark for mark in memory._young)
    for n in range(20_000):
        memory.put(n.to_bytes(4, "big"), (frozenset(), 0))
    assert len(memory._young) + len(memory._old) <= 2 * privacy._REMEMBERED


# More kinds


def test_text_parts_are_read_as_one():
    """A number split over the text parts of one message is found where they meet."""
    number = card(random.Random(4), "4", 16)
    parts = [{"type": "text", "text": f"it is {number[:7]}"}, {"type": "text", "text": number[7:] + " ok"}]
    assert scan({"content": parts}, max_chars=999).kinds == {"card"}


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("mac", "00:1b:44:11:3a:b7"),
        ("mac", "00-1B-44-11-3A-B7"),
        ("mac", "001b.4411.3ab7"),
        ("national_id", "CPF 529.982.247-25"),
        ("national_id", "the number 529.982.247-25"),
        ("national_id", "my NHS number is 943 476 5919"),
        ("national_id", "DNI: 12345678Z"),
        ("national_id", "756.9217.0769.85"),
        ("national_id", "RSS MRA 85T10 A562S"),
        ("national_id", "Steuer-ID 21063058976"),
        ("national_id", "South African ID 9912240381118"),
        ("wallet", "1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2"),
        ("wallet", "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"),
    ],
)
def test_more_kinds_are_found(kind, text):
    """Published examples of hardware addresses, national numbers and wallets are found."""
    assert kinds(text) == {kind}


@pytest.mark.parametrize(
    "text",
    ["ff:ff:ff:ff:ff:ff", "aa:bb:cc:dd:ee:ff:00", "[.1FEB.0021.0008] # LATIN", "batch 19990305-2574", "at 20211221-1202", "12-10-20-30-40-50", "529.982.247-26", "NHS 943 476 5918", "12345678A",
     "1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN3", "0x" + "0" * 40, "tax id 1234567"],
)  # fmt: skip
def test_what_only_looks_like_them_is_not(text):
    """Broadcast addresses, fingerprints, wrong check digits and constants are not reported."""
    assert not kinds(text) & {"mac", "national_id", "wallet"}


def test_the_span_of_a_private_key_is_the_whole_key():
    """What is located of a key block ends with its last line, so that redaction leaves nothing of it."""
    text = "-----BEGIN " + "PRIVATE KEY-----\nQUJD\nREVG\n-----END " + "PRIVATE KEY-----\nbye"
    assert [text[one.start : one.end][-5:] for one in privacy.locate(text)] == ["-----"]
