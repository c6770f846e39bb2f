"""Measure the detector on labelled and on benign text, and its time by size: `python -m tests.bench.privacy --data DIR`.

Reads the gzip'd JSON Lines named in `LABELLED` and `BENIGN` from DIR; knows nothing of where they come from. Seeded samples
of each kind come from `privacy_oracles.py`, code from the Python installation.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import math
import random
import re
import sysconfig
import time
import timeit
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from gateway.privacy import Detector, find, locate, normalise, scan
from tests.bench.privacy_oracles import SAMPLES

LABELLED = ("pii_presidio_synth_v2", "pii_presidio_generated_large")
UNPLACED = "pii_nano_en"
BENIGN = ("routellm_mmlu", "routellm_gsm8k", "routellm_mtbench")
KIND_OF = {
    "CREDIT_CARD": "card",
    "IBAN_CODE": "iban",
    "IBAN": "iban",
    "US_SSN": "ssn",
    "SSN": "ssn",
    "EMAIL_ADDRESS": "email",
    "EMAIL": "email",
    "PHONE_NUMBER": "phone",
    "PHONE": "phone",
    "IP_ADDRESS": "ip",
    "PASSWORD": "secret",
}


N_SAMPLES = 1_000
"""Of each kind."""
N_BENIGN = 5_000
"""Texts of each sort that is made here."""
SENTENCES = (
    "Please note {} for later.",
    "{}",
    "We got: {}.",
    "see ({}), thank you",
    '{{"value": "{}", "n": 1}}',
    "Data: {}\nnext line",
)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    z, p = 1.96, hits / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def share(hits: int, n: int) -> dict:
    """A proportion with its sample size and interval; `rate` is None for no sample."""
    low, high = wilson(hits, n)
    rate = round(hits / n, 4) if n else None
    return {"hits": hits, "n": n, "rate": rate, "low": round(max(0.0, low), 4), "high": round(high, 4)}


def rows(folder: Path, name: str) -> list[dict]:
    """One data file, parsed."""
    with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def measure_labelled(data: list[dict], *, show: bool) -> dict:
    """Per kind: spans found, findings that are right; per request: flagged where it should be, and right when flagged."""
    gold, hit, said, right = Counter(), Counter(), Counter(), Counter()
    positive = caught = flagged = true = 0
    for row in data:
        text, found = row["text"], find(row["text"])
        place = [
            (len(normalise(text[: s["start"]])), len(normalise(text[: s["end"]])), KIND_OF.get(s["type"])) for s in row["spans"]
        ]
        wanted = [(start, end, kind) for start, end, kind in place if kind]
        for start, end, kind in wanted:
            gold[kind] += 1
            ok = any(f.kind == kind and f.start < end and start < f.end for f in found)
            hit[kind] += ok
            if show and not ok:
                print("missed", kind, row["id"], repr(text[max(0, start - 60) : end + 30]))
        for f in found:
            said[f.kind] += 1
            ok = any(kind == f.kind and f.start < end and start < f.end for start, end, kind in wanted)
            right[f.kind] += ok
            if show and not ok:
                print("false", f.kind, row["id"], repr(normalise(text)[max(0, f.start - 60) : f.end + 30]))
        positive, caught = positive + bool(wanted), caught + bool(wanted and found)
        flagged, true = flagged + bool(found), true + bool(wanted and found)
    kinds = {
        kind: {"recall": share(hit[kind], gold[kind]), "precision": share(right[kind], said[kind])}
        for kind in sorted(gold | said)
    }
    return {"rows": len(data), "kinds": kinds, "request": {"recall": share(caught, positive), "precision": share(true, flagged)}}


def measure_unplaced(data: list[dict], *, show: bool) -> dict:
    """The same per request where labels have no offsets and are known to be noisy."""
    positive = caught = flagged = true = 0
    for row in data:
        wanted, found = any(entity["type"] in KIND_OF for entity in row["entities"]), find(row["text"])
        positive, caught = positive + wanted, caught + bool(wanted and found)
        flagged, true = flagged + bool(found), true + bool(wanted and found)
        if show and wanted != bool(found):
            print("missed" if wanted else "false", row["id"], [f.kind for f in found], repr(row["text"]))
    return {"rows": len(data), "request": {"recall": share(caught, positive), "precision": share(true, flagged)}}


def measure_benign(data: list[dict], *, show: bool) -> dict:
    """Prompts without personal data that raise an alarm."""
    false = 0
    for row in data:
        found = find(row["prompt"])
        false += bool(found)
        for f in found if show else ():
            print("false", f.kind, row["id"], repr(normalise(row["prompt"])[max(0, f.start - 60) : f.end + 30]))
    return {"false_alarms": share(false, len(data))}


def measure_seeded(kind: str, disguise: Callable[[random.Random, str], str] | None = None) -> dict:
    """Recall of one kind on samples that other code made, plain or in disguise, in several sentences."""
    draw, hits = random.Random(7), 0
    for place, sample in enumerate(itertools.islice(SAMPLES[kind](random.Random(kind)), N_SAMPLES)):
        shown = disguise(draw, sample) if disguise else sample
        hits += kind in {f.kind for f in find(SENTENCES[place % len(SENTENCES)].format(shown))}
    return {"recall": share(hits, N_SAMPLES)}


def wide(draw: random.Random, text: str) -> str:
    """Full-width forms."""
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


def zero_width(draw: random.Random, text: str) -> str:
    """Invisible characters between the others."""
    return "".join(c + draw.choice(("", "\u200b", "\u200d", "\u00ad", "\ufeff")) for c in text)


def other_digits(draw: random.Random, text: str) -> str:
    """Arabic-Indic, Devanagari or mathematical digits."""
    zero = draw.choice((0x660, 0x966, 0x1D7CE))
    return "".join(chr(zero + int(c)) if c in "0123456789" else c for c in text)


def other_blanks(draw: random.Random, text: str) -> str:
    """Unusual spaces and hyphens where usual ones stand."""
    return text.replace(" ", draw.choice("\u00a0\u2003\u3000\u202f")).replace("-", draw.choice("\u2010\u2011\u2013\u2212"))


def escaped(draw: random.Random, text: str) -> str:
    """As it stands in a JSON string of an ASCII encoder."""
    return "".join(f"\\u{ord(c):04x}" if draw.random() < 0.5 and c.isascii() else c for c in text)


def wide_escaped(draw: random.Random, text: str) -> str:
    """Full-width forms, as they stand in tool arguments of an ASCII encoder."""
    return json.dumps(wide(draw, text))[1:-1]


DISGUISES = {
    "full width": wide,
    "zero width": zero_width,
    "other digits": other_digits,
    "other blanks and hyphens": other_blanks,
    "json escapes": escaped,
    "full width in json escapes": wide_escaped,
}


def measure_separated() -> dict:
    """Recall for cards, IBANs and telephone numbers with a separator between groups or digits that nobody wrote there."""
    hits = n = 0
    for kind, word in (("card", "card"), ("iban", "iban"), ("ssn", "ssn")):
        draw = random.Random(3)
        for sample in itertools.islice(SAMPLES[kind](draw), N_SAMPLES):
            solid = sample.replace(" ", "").replace("-", "")
            sep = draw.choice(" .-_" if kind != "ssn" else " .-")
            size = draw.choice((1, 2, 4)) if kind == "card" else 4 if kind == "iban" else draw.choice((1, 3))
            shown = sep.join(solid[i : i + size] for i in range(0, len(solid), size))
            hits += kind in {f.kind for f in find(f"my {word}: {shown} thanks")}
            n += 1
    return {"recall": share(hits, n)}


def measure_split() -> dict:
    """Recall where the halves of a number stand in two text parts of one message: not promised, and shown for what it is."""
    hits = 0
    for sample in itertools.islice(SAMPLES["card"](random.Random(4)), N_SAMPLES):
        half = len(sample) // 2
        parts = [{"type": "text", "text": f"my card is {sample[:half]}"}, {"type": "text", "text": f"{sample[half:]} ok"}]
        hits += "card" in scan({"messages": [{"role": "user", "content": parts}]}, max_chars=10**6).kinds
    return {"recall": share(hits, N_SAMPLES)}


_TRUE_ALARM = re.compile(r"[\w.+-]@[\w-]+\.\w|\d+\.\d+\.\d+\.\d+|2001:|fe80|ff0[0-9]:|ffff:")
"""Read by eye before it was written down: authors' addresses and network addresses in documentation."""


def code_texts() -> Iterator[str]:
    """Pieces of fifty lines of the standard library, without those that do hold a mail address or four numbers with dots."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if {"test", "tests", "site-packages", "idlelib"} & set(path.parts):
            continue
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        pieces = ("\n".join(lines[at : at + 50]) for at in range(0, len(lines), 50))
        yield from (piece for piece in pieces if not _TRUE_ALARM.search(piece))


def log_texts() -> Iterator[str]:
    """Lines of servers' logs: times, levels, request ids, sizes, versions, hashes, loopback."""
    draw = random.Random(11)
    while True:
        stamp = f"2026-{draw.randint(1, 12):02d}-{draw.randint(1, 28):02d}T{draw.randint(0, 23):02d}:{draw.randint(0, 59):02d}:{draw.randint(0, 59):02d}.{draw.randint(0, 999999):06d}Z"
        uid = f"{draw.getrandbits(32):08x}-{draw.getrandbits(16):04x}-4{draw.getrandbits(12):03x}-a{draw.getrandbits(12):03x}-{draw.getrandbits(48):012x}"
        yield "\n".join(
            (
                f"{stamp} INFO gateway[{draw.randint(100, 99999)}] request={uid} status={draw.choice([200, 404, 503])} bytes={draw.randint(1, 10**9)} ms={draw.random() * 900:.3f}",
                f"{stamp} DEBUG worker-{draw.randint(1, 64)} commit {draw.getrandbits(160):040x} epoch={draw.randint(1_600_000_000_000, 1_799_999_999_999)} seq={draw.randint(1, 10**12)}",
                f'127.0.0.1 - - [{draw.randint(1, 28)}/Nov/2026:10:{draw.randint(10, 59)}:07 +0000] "GET /v{draw.randint(1, 3)}/items/{draw.randint(1, 10**7)} HTTP/1.1" 200 {draw.randint(10, 10**6)}',
                f"{stamp} WARN pool: {draw.randint(1, 9999)}/{draw.randint(1, 9999)} slots, trace_id={draw.getrandbits(128):032x} span={draw.getrandbits(64):016x} sha256:{draw.getrandbits(256):064x}",
            )
        )


def mail_texts() -> Iterator[str]:
    """Letters to a help desk with order, ticket, serial and tracking numbers, dates, amounts and versions, and nothing else."""
    draw = random.Random(12)
    while True:
        order, ticket = draw.randint(10**6, 10**10), draw.randint(10_000, 99_999)
        yield (
            f"Hello, my order {order} from {draw.randint(1, 28)}.{draw.randint(1, 12)}.2026 has not arrived. The invoice INV-2026-{ticket} over "
            f"{draw.randint(5, 4999)},{draw.randint(10, 99)} EUR was paid. Tracking {draw.choice(['1Z', 'JD', 'RR'])}{draw.randint(10**11, 10**16)}, "
            f"serial no. SN{draw.randint(10**7, 10**9)}-{draw.choice('ABCDEFG')}. I run version {draw.randint(1, 20)}.{draw.randint(0, 9)}.{draw.randint(0, 99)}.{draw.randint(0, 999)} "
            f"and get error 0x{draw.getrandbits(32):08X} after {draw.randint(2, 59)} minutes. Room {draw.randint(100, 999)}, {draw.randint(9, 17)}:30-18:00. Ticket #{ticket}. Thanks!"
        )


MADE = {"code": code_texts, "logs": log_texts, "support mail": mail_texts}


def measure_made(texts: Iterator[str], *, show: bool) -> dict:
    """Texts without personal data that raise an alarm; `--show` prints them."""
    n, false = 0, Counter()
    for text in itertools.islice(texts, N_BENIGN):
        n += 1
        found = find(text)
        false.update({f.kind for f in found})
        false["any"] += bool(found)
        for f in found if show else ():
            print("alarm", f.kind, repr(normalise(text)[max(0, f.start - 60) : f.end + 30]))
    return {"false_alarms": share(false["any"], n), "by_kind": dict(false)}


def measure_engines(texts: list[str]) -> dict:
    """Texts in which the fallback engine, the remembered verdict or the place in the original differ from the first finding."""
    slow, remembering, differ = Detector(with_re2=False), Detector(), 0
    for text in texts:
        found, plain = find(text), normalise(text)
        twice = {remembering.kinds_of_all([text, text]) for _ in range(2)}
        placed = [(f.kind, normalise(text[f.start : f.end])) for f in locate(text)]
        same = slow.find(text) == found and twice == {frozenset(f.kind for f in found)}
        differ += not (same and placed == [(f.kind, plain[f.start : f.end]) for f in found])
    return {"differ": share(differ, len(texts))}


def pooled(report: dict) -> dict:
    """Both labelled sets as one sample."""
    parts = [report[name]["request"] for name in LABELLED]
    return {
        "request": {
            name: share(sum(p[name]["hits"] for p in parts), sum(p[name]["n"] for p in parts)) for name in ("recall", "precision")
        }
    }


LETTERS = {
    "d": "0123456789", "h": "0123456789abcdef", "b": "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz",
    "q": "023456789acdefghjklmnpqrstuvwxyz", "a": "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789",
    "l": "abcdefghijklmnopqrstuvwxyz", "e": "eE0", "s": "0123456789-. ", "m": "0123456789./-()+ \t_", "x": "0123456789abcdef:.- ",
}  # fmt: skip
LOOKALIKES = (
    "4<d15> ", "4<d3>-<d4>-<d4>-<d4> ", "2131_ ", "<d4>.<d4>.<d4> ", "<d2>-<d2>-<d2>-<d2>-<d2>-<d2> ", "<d3>-00-<d4> ",
    "<d3>-<d3>-<d4>-1 ", "+<d16>+ ", "<d2>/<d2>/<d4> phonex ", "<d36>fax ", "GB<d20> ", "NL80211_<l9>_<l5> ", "<d3>.<d3>.<d3>-<d2> ",
    "tel <d2>.01.19<d2> ", "tel 37/phone 48/ ", "card 4<d15> ", "ssn 000<d6> ", "call me at <d8>, ", "cpf <d11> ",
    "national id <d9> <d9> <d9> ", "vid: <d9> ", "personal number <d36>- ", "ghp_<a36> ", "eyJ<a12>.<a9> ", "sk-<l20> ", "<b34> ",
    "bc1<q39> ", "bc1<q100> ", "0x0<h2>0000000000000000000000000000000000000 ", "ab::c ", "<h2>:<h2>:<h2>:<h2>:<h2>:<h2>:<h2>:<h2>:<h2> ",
    "version 9<d1>.<d2>.<d2>.<d2> ", "password: password: ", "pwd=pwd=pwd=<l4> ", "password )", "token=<l16> ", "bearer <l20> ", "bearer <l400>~ ", "token=<l60>~1 ", "sk-<l120>_9Z ",
    "-----BEGIN <l3> PRIVATE KEY ", "://<l3>:a@ ", "git@<l3>.com ", "a@<l3>.dot( ", "://a:b@<l3>.dot ", "<e30> ", "<s1>", "<m1>", "<x1>",
    "<b1>", "<a1>-", "4<d15> version 9<d1>.<d2>.<d2>.<d2> tel <d2>.01.19<d2> <b34> <h2>::c api_key=<l16> +<d9> ",
)  # fmt: skip
"""What a search for slow texts came upon: `<d15>` is fifteen digits, drawn anew for each unit."""


def lookalikes(shape: str, draw: random.Random, n_chars: int = 131_072) -> str:
    """A shape again and again, each time with other signs."""
    pieces = re.split(r"<([a-z])([0-9]+)>", shape)
    units, length = [], 0
    while length < n_chars:
        unit = "".join(
            piece if place % 3 == 0 else "" if place % 3 == 1 else "".join(draw.choices(LETTERS[pieces[place - 1]], k=int(piece)))
            for place, piece in enumerate(pieces)
        )
        units.append(unit)
        length += len(unit)
    return "".join(units)[:n_chars]


def fresh_ms(shape: str) -> float:
    """As `scan_ms`, of nine texts that nothing like them but this shape was read before: automata are built while they are read."""
    detector, draw, spent = Detector(), random.Random(2), []
    for _ in range(9):
        detector.forget()
        body = {"model": "m", "messages": [{"role": "user", "content": lookalikes(shape, draw)}]}
        began = time.thread_time()
        scan(body, max_chars=10**7, detector=detector)
        spent.append((time.thread_time() - began) * 1000)
    return sorted(spent)[4]


def measure_time(prompts: list[str], labelled: list[str]) -> dict:
    """Median milliseconds of `scan` on one message of about that many characters, never seen before; and seen before."""
    draw = random.Random(1)
    benign, dense = (" ".join(draw.sample(texts, len(texts))) for texts in (prompts, labelled))
    while len(dense) < 300_000:
        dense += " " + dense
    digits = "".join(draw.choices("0123456789", k=131_072))
    cases = {f"benign_{n}": benign[9_000 : 9_000 + n] for n in (100, 1_000, 8_000, 32_000, 128_000, 256_000)}
    cases |= {f"dense_{n}": dense[:n] for n in (100, 1_000, 8_000, 32_000, 128_000)}
    cases |= {f"cyrillic_{n}": ("Съешь же ещё этих мягких французских булок. " * n)[:n] for n in (8_000, 32_000)}
    adversarial = {
        "digits": digits,
        "digit groups": " ".join(digits[i : i + 4] for i in range(0, 104_000, 4)),
        "accents": "e" + "\u0301\u0323" * 65_536,
    }
    units = (
        "a@b",
        "ab@x.js ",
        "a:b:",
        "aa:bb:",
        "key: eyJa",
        "4000 ",
        "GB12 ",
        "1.2.3.4 ",
        "pwd ",
        "://a:",
        "sk-",
        "tax id 12 ",
        "\\n",
        "000-12-3456 ",
    )
    adversarial |= {unit: unit * (131_072 // len(unit)) for unit in units}
    varied = ("GB%02d ", "ab%d@x.js ", "1.2.3.%d ", "pwd %d ", "tax id %d ", "%03d-12-3456 ")
    adversarial |= {shape: "".join(shape % draw.randrange(100) for _ in range(20_000))[:131_072] for shape in varied}
    report = {"reference": round(reference_ms(), 4)} | {name: round(scan_ms(text), 4) for name, text in cases.items()}
    report["again_32000"] = round(scan_ms(cases["benign_32000"], again=True), 4)
    report["again_256000"] = round(scan_ms(cases["benign_256000"], again=True), 4)
    report |= {f"adversarial_128k {name!r}": round(scan_ms(text), 4) for name, text in adversarial.items()}
    return report | {f"lookalikes_128k {shape!r}": round(fresh_ms(shape), 4) for shape in LOOKALIKES}


def reference_ms() -> float:
    """A fixed loop of a million steps, so that figures of different machines, and of a busy one, can be compared."""
    return min(timeit.repeat("for i in range(1_000_000): i & 7", number=1, repeat=9, timer=time.thread_time)) * 1000


def scan_ms(text: str, *, again: bool = False) -> float:
    """Milliseconds of this thread's CPU, the median of 9 rounds; each with a detector that has read nothing, unless `again`."""
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    detector = Detector()
    scan(body, max_chars=10**7, detector=detector)

    def once() -> None:
        if not again:
            detector.forget()
        scan(body, max_chars=10**7, detector=detector)

    number = max(1, 20_000 // max(1, len(text)))
    return sorted(timeit.repeat(once, number=number, repeat=9, timer=time.thread_time))[4] / number * 1000


def line(name: str, figure: dict) -> str:
    """One figure for people."""
    return f"{name:<44} {figure['hits']:>6}/{figure['n']:<6} {figure['rate']}  [{figure['low']}, {figure['high']}]"


def main() -> None:
    """Measure everything and print it."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--json", action="store_true")
    options.add_argument("--show", action="store_true", help="print each miss and false alarm, with its text")
    options.add_argument("--no-time", action="store_true")
    chosen = options.parse_args()
    report = {name: measure_labelled(rows(chosen.data, name), show=chosen.show) for name in LABELLED}
    report[UNPLACED] = measure_unplaced(rows(chosen.data, UNPLACED), show=chosen.show)
    report["both presidio-research sets"] = pooled(report)
    report |= {name: measure_benign(rows(chosen.data, name), show=chosen.show) for name in BENIGN}
    report |= {f"made: {name}": measure_made(texts(), show=chosen.show) for name, texts in MADE.items()}
    report |= {f"seeded: {kind}": measure_seeded(kind) for kind in SAMPLES}
    report |= {
        f"disguised: {kind}, {name}": measure_seeded(kind, disguise) for kind in SAMPLES for name, disguise in DISGUISES.items()
    }
    texts = [row["text"] for name in (*LABELLED, UNPLACED) for row in rows(chosen.data, name)]
    report["engines"] = measure_engines(texts + [row["prompt"] for row in rows(chosen.data, BENIGN[0])[:1_000]])
    report["disguised: separators"] = measure_separated()
    report["disguised: split over parts"] = measure_split()
    if not chosen.no_time:
        prompts = [row["prompt"] for name in BENIGN for row in rows(chosen.data, name)]
        report["scan_ms"] = measure_time(prompts, [row["text"] for name in LABELLED for row in rows(chosen.data, name)])
    if chosen.json:
        print(json.dumps(report, indent=2))
        return
    for name, part in report.items():
        for kind, figures in part.get("kinds", {}).items():
            print(line(f"{name} {kind} recall", figures["recall"]))
            print(line(f"{name} {kind} precision", figures["precision"]))
        for measure, figure in part.get("request", {}).items():
            print(line(f"{name} request {measure}", figure))
        if "recall" in part:
            print(line(f"{name} recall", part["recall"]))
        if "differ" in part:
            print(line("fallback, memory or places differ", part["differ"]))
        if "false_alarms" in part:
            print(line(f"{name} false alarms", part["false_alarms"]))
    for name, figure in report.get("scan_ms", {}).items():
        print(f"{name:<44} {figure} ms")


if __name__ == "__main__":
    main()
