"""Measure the semantic tier on labelled pairs and streams: `python -m tests.bench.semantic_cache --data DIR --embedder DIR`.

Reads the gzip'd JSON Lines named below from DIR; knows nothing of where they come from. A hit is wrong when the pair's label,
or the stored text's class, says that the answers differ.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from gateway.cache import embed, verify
from gateway.cache.index import Index, Record
from gateway.cache.key import cacheable

PAIRS = ("contrast_pairs", "pairs_qqp_paws")
STREAMS = ("stream_banking77", "stream_clinc150", "stream_pararel_facts")
SCOPE = b"s" * 32


def rows(data, name):
    with gzip.open(data / f"{name}.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]


def interval(wrong, hits):
    """Wilson's 95 % interval of a share, as text."""
    if hits == 0:
        return "-"
    z, share = 1.96, wrong / hits
    middle, spread = share + z * z / (2 * hits), z * (share * (1 - share) / hits + z * z / (4 * hits * hits)) ** 0.5
    low, high = (middle - spread) / (1 + z * z / hits), (middle + spread) / (1 + z * z / hits)
    return f"{share:6.1%} [{max(0, low):.1%}, {high:.1%}]"


class Vectors:
    """Each text embedded once."""

    def __init__(self, embedder):
        self._embedder, self._known = embedder, {}

    def __getitem__(self, text):
        if text not in self._known:
            words = text
            while len(self._embedder.tokens(words)) > self._embedder.max_tokens:
                words = words[: len(words) * 3 // 4]
            self._known[text] = self._embedder.embed([words])[0][0]
        return self._known[text]


def pairs(data, vectors, threshold):
    print(f"pairs at cosine >= {threshold}: hits are pairs that would be served")
    print(f"{'set':10} {'pairs':>6} {'rule':9} {'hits':>5}  {'wrong share of hits':24} recall")
    by_set = {}
    for name in PAIRS:
        for row in rows(data, name):
            by_set.setdefault(row.get("src", "contrast"), []).append(row)
    for name, found in sorted(by_set.items()):
        near = [row for row in found if float(vectors[row["a"]] @ vectors[row["b"]]) >= threshold]
        verdicts = [verify.veto(row["a"], row["b"]) for row in near]
        served = [row for row, verdict in zip(near, verdicts, strict=True) if verdict is None]
        same = sum(row["label"] for row in found)
        for rule, hits in (("cosine", near), ("guarded", served)):
            right = sum(row["label"] for row in hits)
            wrong_share = interval(len(hits) - right, len(hits))
            print(f"{name:10} {len(found):6} {rule:9} {len(hits):5}  {wrong_share:24} {right / same:.3f}")
        spared, spoilt = Counter(), Counter()
        for row, verdict in zip(near, verdicts, strict=True):
            (spoilt if row["label"] else spared)[verdict] += 1
        named = [f"{guard} {spared[guard]}/{spoilt[guard]}" for guard in {**spared, **spoilt} if guard is not None]
        print(f"{'':10} wrong hits spared / right hits spoilt: {', '.join(named)}")


def streams(data, vectors, threshold, most):
    print(f"streams through an empty cache, first {most} requests, cosine >= {threshold}")
    print(f"{'stream':22} {'rule':9} {'hit rate':>8} {'wrong/requests':>15}  {'wrong share of hits':24} kept out")
    for name in STREAMS:
        found = rows(data, name)[:most]
        for guarded in (False, True):
            hits, wrong, barred = play(found, vectors, threshold, guarded=guarded)
            rule, total = ("guarded" if guarded else "cosine"), len(found)
            print(f"{name:22} {rule:9} {hits / total:8.3f} {wrong / total:15.2%}  {interval(wrong, hits):24} {barred}")


def play(found, vectors, threshold, *, guarded):
    hits = wrong = barred = 0
    classes = {}
    with tempfile.TemporaryDirectory() as directory:
        index = Index(Path(directory), max_bytes=2**32)
        index.use_embedder("bench", len(vectors["x"]))
        for at, row in enumerate(found):
            text, vector = row["text"], vectors[row["text"]]
            if guarded and cacheable({"messages": [{"role": "user", "content": text}]}):
                barred += 1
                continue
            near = [candidate for candidate in index.search(SCOPE, vector) if candidate.cosine >= threshold]
            served = next((c for c in near if not guarded or verify.veto(text, c.text) is None), None)
            if served is not None:
                hits += 1
                wrong += classes[served.key] != row["cls"]
                continue
            key = b"%d" % at
            classes[key] = row["cls"]
            index.store(Record(SCOPE, key, text, b"a", "t", "m", "public", 1e12), vector)
        index.close()
    return hits, wrong, barred


def costs(data, embedder, most):
    """CPU time of one look-up's parts, in ms; medians over short texts."""
    texts = [row["text"] for row in rows(data, STREAMS[0])[:most]]
    vectors = [embedder.embed([text])[0][0] for text in texts[:200]]

    def median_ms(work, arguments):
        times = []
        for argument in arguments:
            start = time.process_time()
            work(argument)
            times.append((time.process_time() - start) * 1e3)
        return statistics.median(times)

    print(f"embed one short text: {median_ms(lambda text: embedder.embed([text]), texts[:200]):.2f} ms CPU")
    print(f"veto one pair: {median_ms(lambda at: verify.veto(texts[at], texts[at + 1]), range(200)):.3f} ms CPU")
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as directory:
        index = Index(Path(directory), max_bytes=2**40)
        index.use_embedder("bench", embedder.dimensions)
        for size in (1_000, 10_000, 40_000):
            while index.entries < size:
                near = vectors[index.entries % 200] + generator.normal(size=embedder.dimensions).astype(np.float32) * 0.03
                near /= np.linalg.norm(near)
                index.store(Record(SCOPE, b"%d" % index.entries, "x", b"a", "t", "m", "public", 1e12), near)
            index.has(SCOPE)
            if (training := index.training()) is not None:
                training.build()
                index.adopt(training)
            print(f"search among {size}: {median_ms(lambda vector: index.search(SCOPE, vector), vectors):.2f} ms CPU")
        index.close()


def main():
    parser = argparse.ArgumentParser(description="Measure the semantic tier.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--embedder", type=Path, required=True)
    parser.add_argument("--threshold", type=float, default=0.92)
    parser.add_argument("--rows", type=int, default=4_000, help="requests of each stream")
    given = parser.parse_args()
    embedder = embed.load(given.embedder)
    vectors = Vectors(embedder)
    pairs(given.data, vectors, given.threshold)
    streams(given.data, vectors, given.threshold, given.rows)
    costs(given.data, embedder, given.rows)


if __name__ == "__main__":
    main()
