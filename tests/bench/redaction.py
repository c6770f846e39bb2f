"""The redaction round trip: random chunkings that come back equal, and the time it adds to the first token.

Run: python -m tests.bench.redaction [N] [--json], 10,000 chunkings unless said. The answer gives the placeholders back unchanged, in every
dialect, cut at random, its bytes cut at random again. Beside each time stands that of the same work without masks.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from parrot import STREAMED, heard

from gateway import privacy
from gateway.redact import Masked, Redactor
from gateway.restore import Events

ROUNDS = 200
WORDS = [
    "please",
    "write",
    "a",
    "short",
    "letter",
    "about",
    "the",
    "order",
    "of",
    "last",
    "week",
    "and",
    "thank",
    "them",
    "for",
    "the",
    "quick",
    "delivery",
    "to",
    "our",
    "house",
]
VALUES = (
    "ada@example.org", "bob.smith@example.com", "4111 1111 1111 1111", "+1 202 555 0143", "192.0.2.44", "52:54:00:ab:cd:ef",
    "GB29 NWBK 6016 1331 9268 19", "[EMAIL_BCDF_1]", "[", "[EMAIL", "\\", '"quoted"', "é", "\u200b", "😀", "\n",
)  # fmt: skip


def text_of(draw: random.Random, words: int) -> str:
    """Plain words with values among them."""
    return " ".join(draw.choice(VALUES) if draw.random() < 0.2 else draw.choice(WORDS) for _ in range(words))


def body_of(text: str) -> bytes:
    """A chat request."""
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode()


def comes_back(redactor: Redactor, draw: random.Random) -> bool:
    """Whether one random text, sent and given back in one random way, is what it was."""
    text = text_of(draw, draw.randint(1, 30))
    masked = redactor.mask(body_of(text), tenant="t", max_chars=1 << 20)
    endpoint = draw.choice(sorted(STREAMED))
    said = json.loads(masked.body)["messages"][0]["content"]
    sent = b"".join(STREAMED[endpoint](said, draw.random(), {"n": draw.randint(1, 2)}))
    events, out, place = Events(endpoint, masked.vault), b"", 0
    while place < len(sent):
        size = draw.choice((1, 7, 60, 300, 1500, 16384))
        out += events.feed(sent[place : place + size])
        place += size
    texts = set(heard(endpoint, out + events.end(), stream=True).values())
    gone = not privacy.scan(json.loads(masked.body), max_chars=1 << 20).kinds
    return texts == {text} and gone and masked.vault.altered == 0


def median_ms(work: Callable[[], Any]) -> float:
    """Of many rounds, in milliseconds of this process."""
    spent = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        spent.append((time.perf_counter() - began) * 1000)
    return statistics.median(spent)


def event_ms(masked: Masked, text: str) -> float:
    """One chunk of an answer that begins so, restored."""
    first, *_ = STREAMED["completions"](text, 1, {})
    return median_ms(lambda: Events("completions", masked.vault).feed(first))


def timings(redactor: Redactor) -> dict[str, dict[str, float]]:
    """By length of the prompt: what comes before the first token, beside a scan, which every request has."""
    draw, found = random.Random(1), {}
    for n_words, n_values in ((20, 1), (160, 3), (1600, 10)):
        words = [draw.choice(WORDS) for _ in range(n_words)]
        for value in (VALUES[:6] * 2)[:n_values]:
            words[draw.randrange(n_words)] = value
        body = body_of(" ".join(words))
        data, masked = json.loads(body), redactor.mask(body, tenant="t", max_chars=1 << 20)
        found[f"{len(body)} bytes, {sum(masked.vault.counts.values())} values"] = {
            "scan_ms": median_ms(lambda data=data: privacy.scan(data, max_chars=1 << 20)),
            "mask_ms": median_ms(lambda body=body: redactor.mask(body, tenant="t", max_chars=1 << 20)),
            "first_event_ms": event_ms(masked, "[EMAIL"),
            "plain_event_ms": event_ms(masked, " word"),
        }
    return found


def main() -> int:
    """Print the figures; the status is 1 when a single chunking did not come back equal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("n", nargs="?", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        redactor = Redactor(Path(folder) / "redaction.key")
        equal = sum(comes_back(redactor, draw) for _ in range(asked.n))
        times = timings(redactor)
    if asked.json:
        print(json.dumps({"chunkings": asked.n, "equal": equal, "added": times}))
    else:
        print(f"{equal:,} of {asked.n:,} chunkings came back equal")
        for size, row in times.items():
            added = row["mask_ms"] + row["first_event_ms"]
            parts = (
                f"masking {row['mask_ms']:.3f}, first event {row['first_event_ms']:.3f}, beside a scan of {row['scan_ms']:.3f}"
                f"; {row['plain_event_ms']:.3f} for an event without a placeholder"
            )
            print(f"{size}: {added:.3f} ms added to the first token ({parts})")
    return 0 if equal == asked.n else 1


if __name__ == "__main__":
    sys.exit(main())
