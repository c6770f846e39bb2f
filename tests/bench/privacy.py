"""Measure the detector on labelled and on benign text, and its time by size: `python -m tests.bench.privacy --data DIR`.

Reads the gzip'd JSON Lines named in `LABELLED` and `BENIGN` from DIR; knows nothing of where they come from.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import timeit
from collections import Counter
from pathlib import Path

from gateway.privacy import find, normalise, scan

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


def measure_time(prompts: list[str], labelled: list[str]) -> dict:
    """Best of several runs, milliseconds, of `scan` on one message of about that many characters."""
    draw = random.Random(1)
    benign, dense = (" ".join(draw.sample(texts, len(texts))) for texts in (prompts, labelled))
    while len(dense) < 300_000:
        dense += " " + dense
    digits = "".join(draw.choices("0123456789", k=131_072))
    fours = " ".join(digits[i : i + 4] for i in range(0, 100_000, 4))
    cases = {f"benign_{n}": benign[9_000 : 9_000 + n] for n in (100, 1_000, 8_000, 32_000, 128_000, 256_000)}
    cases |= {f"dense_{n}": dense[:n] for n in (100, 1_000, 8_000, 32_000, 128_000)}
    cases |= {f"cyrillic_{n}": ("Съешь же ещё этих мягких французских булок. " * n)[:n] for n in (8_000, 32_000)}
    cases |= {"digits_128k": digits, "digit_groups_128k": fours, "at_signs_128k": "a@b" * 43_690, "colons_128k": "a:b:" * 32_768}
    cases |= {"keys_128k": "key: eyJa" * 14_563, "accents_128k": "e" + "\u0301\u0323" * 65_536}
    return {name: round(best_ms(text), 4) for name, text in cases.items()}


def best_ms(text: str) -> float:
    """Milliseconds of the fastest of up to 15 rounds."""
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    number = max(1, 20_000 // max(1, len(text)))
    return min(timeit.repeat(lambda: scan(body, max_chars=10**7), number=number, repeat=15)) / number * 1000


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
    report |= {name: measure_benign(rows(chosen.data, name), show=chosen.show) for name in BENIGN}
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
        if "false_alarms" in part:
            print(line(f"{name} false alarms", part["false_alarms"]))
    for name, figure in report.get("scan_ms", {}).items():
        print(f"{name:<44} {figure} ms")


if __name__ == "__main__":
    main()
