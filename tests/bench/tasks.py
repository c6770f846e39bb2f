"""How often the fact `task` is right, on prompts that its model never saw, and how long it takes: `python -m tests.bench.tasks`.

    python -m tests.bench.tasks                 # the hand-written prompts of task_prompts.toml, unseen code, time
    python -m tests.bench.tasks --data DIR      # also the public sets named in SETS, gzip'd JSON Lines in DIR or below it
    python -m tests.bench.tasks --train --data DIR   # make gateway/tasks.bin anew (scikit-learn), then judge it

Trained on the frames of `task_texts.py`, on MMLU subjects and CLINC intents of one half, and on code of one half of the standard
library; judged on everything else. The texts stay where they are: only weights enter the product.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import timeit
import tomllib
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from gateway import tasks
from tests.bench import task_texts

PER_TASK = 2000
"""Prompts of each task that frames give."""
PUBLIC_ROWS = 1200
"""Most rows of one task that a public set gives to the training, so that it does not drown the frames."""
SEED = 5
CUE_FACTOR = 4.0
"""A cue is worth so many words before the fit."""
MARGIN = 0.1
"""In units of the log odds of the fitted vectors: below it the answer is `other`."""

MATH_SUBJECTS = {
    "elementary_mathematics",
    "high_school_mathematics",
    "abstract_algebra",
    "college_mathematics",
    "high_school_statistics",
}
MT_TASKS = {
    "writing": "writing",
    "roleplay": "chat",
    "math": "math",
    "coding": "code",
    "extraction": "extraction",
    "stem": "question",
    "humanities": "question",
}
"""MT-bench's categories; its `reasoning` has no counterpart and is left out."""
CLINC_TASKS = {
    "translate": "translation",
    "definition": "question",
    "fun_fact": "question",
    "spelling": "question",
    "nutrition_info": "question",
    "distance": "question",
    "measurement_conversion": "math",
}
"""Intents that are not plain requests to an assistant (`chat`)."""


def seen(name: str) -> bool:
    """Whether a subject, intent or file of code belongs to the half that is trained on."""
    return zlib.crc32(name.encode()) % 2 == 0


def rows(folder: Path, name: str) -> Iterator[dict]:
    found = sorted(folder.rglob(f"{name}.jsonl.gz"))
    if not found:
        raise SystemExit(f"{folder} has no {name}.jsonl.gz")
    with gzip.open(found[0], "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def mmlu(folder: Path, *, half: bool) -> Iterator[tuple[str, str]]:
    for row in rows(folder, "routellm_mmlu"):
        if seen(row["subject"]) == half and row["subject"] != "college_computer_science":
            yield ("math" if row["subject"] in MATH_SUBJECTS else "question"), row["prompt"]


def clinc(folder: Path, *, half: bool) -> Iterator[tuple[str, str]]:
    for row in rows(folder, "stream_clinc150"):
        if row["cls"].islower() and "|" not in row["cls"] and not row["cls"].startswith("oos") and seen(row["cls"]) == half:
            yield CLINC_TASKS.get(row["cls"], "chat"), row["text"]


SETS = {
    "MT-bench, first turns": lambda folder: ((MT_TASKS[row["subject"]], row["prompt"]) for row in rows(folder, "routellm_mtbench") if row["subject"] in MT_TASKS),
    "GSM8K": lambda folder: (("math", row["prompt"]) for row in rows(folder, "routellm_gsm8k")),
    "MMLU, unseen subjects": lambda folder: mmlu(folder, half=False),
    "CLINC150, unseen intents": lambda folder: clinc(folder, half=False),
    "Banking77": lambda folder: (("chat", row["text"]) for row in rows(folder, "stream_banking77")),
}  # fmt: skip
"""Public prompts with the task that their set stands for; none of these rows is trained on."""


def written(table: str) -> list[tuple[str, str]]:
    """The prompts that were written to judge."""
    held = tomllib.loads(Path(__file__).with_name("task_prompts.toml").read_text(encoding="utf-8"))
    return [(task, text) for task, texts in held[table].items() for text in texts]


def unseen_code(count: int = 300) -> list[tuple[str, str]]:
    """Functions of files that the training did not open, as they are pasted: bare."""
    found = task_texts.functions(lambda stem: not seen(stem))
    return [("code", text) for text in random.Random(SEED).sample(found, min(count, len(found)))]


def training(folder: Path | None) -> list[tuple[str, str, str]]:
    public = [*mmlu(folder, half=True), *clinc(folder, half=True)] if folder is not None else []
    random.Random(SEED).shuffle(public)
    task_texts.Passages.extra = [text.partition("\nA. ")[0] for _, text in public if len(text) < 600]
    found = list(task_texts.prompts(PER_TASK, seed=SEED, code_from=seen))
    taken: Counter[str] = Counter()
    for task, text in public:
        if taken[task] < PUBLIC_ROWS:
            taken[task] += 1
            found.append((task, text if taken[task] % 2 else text.partition("\nA. ")[0], ""))
    return found


def thinned(rng: random.Random, vector: list[int], keep: float) -> list[int]:
    """With only some of the words, but with all cues: so that the model does not hang on single words of our frames."""
    return [one for one in vector if one >= tasks.HASHED or rng.random() < keep]


def train(folder: Path | None) -> bytes:
    """Fit, round to 8 bits, and pack. Always the same for the same code, data and Python version."""
    import numpy as np  # noqa: PLC0415 -- only for training
    from scipy.sparse import csr_matrix  # noqa: PLC0415
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415

    names = tuple(name for name in tasks.TASKS if name != "other")
    prompts = training(folder)
    whole = [sorted(tasks.features(text, system)) for _, text, system in prompts]
    rng = random.Random(SEED)
    vectors = [*whole, *(thinned(rng, vector, keep) for keep in (0.7, 0.1) for vector in whole)]
    ends = np.cumsum([0, *map(len, vectors)])
    columns = np.concatenate(vectors).astype(np.int32)
    lengths = np.array([max(1, len(vector)) for vector in vectors])
    factors = np.where(np.arange(tasks.BUCKETS) >= tasks.HASHED, CUE_FACTOR, 1.0)
    values = np.repeat(1 / np.sqrt(lengths), np.diff(ends)) * factors[columns]
    matrix = csr_matrix((values, columns, ends), shape=(len(vectors), tasks.BUCKETS))
    model = LogisticRegression(C=1.0, max_iter=200, tol=1e-3)
    model.fit(matrix, [names.index(task) for task, *_ in prompts] * 3)
    fitted = model.coef_ * factors
    # Rounding to steps of the largest cue drops most single words. That is meant: with finer steps the frames' own words weigh,
    # and sets that were never seen lose (GSM8K 77 -> 48 %, the tuned hand-written prompts 74 -> 68 %).
    scale = 127 / np.abs(fitted).max()
    weights = np.rint(fitted * scale).astype(int) + 128
    bias = tuple(round(float(one) * scale) for one in model.intercept_)
    return tasks.packed(names, weights.T.astype(np.uint8).tobytes(), bias, round(MARGIN * scale))


def interval(right: int, of: int) -> str:
    """A share with its 95 % interval (Wilson)."""
    if not of:
        return "      -"
    share, z = right / of, 1.96
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of)) / (1 + z * z / of)
    return f"{share:6.1%} ({max(0.0, middle - half):.0%} to {min(1.0, middle + half):.0%})"


def judge(name: str, pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str, str]]:
    """(meant, guessed, text) of each prompt; prints how many are right."""
    found = [(task, tasks.classify(text), text) for task, text in pairs]
    right = sum(meant == guessed for meant, guessed, _ in found)
    wrong = Counter(f"{meant}->{guessed}" for meant, guessed, _ in found if meant != guessed)
    shown = ", ".join(f"{pair} {count}" for pair, count in wrong.most_common(4))
    print(f"{name:<28} {len(found):>6} {interval(right, len(found)):<24} {shown}")
    return found


def confusion(found: list[tuple[str, str, str]]) -> None:
    names = list(tasks.TASKS)
    counts = Counter((meant, guessed) for meant, guessed, _ in found)
    print(f"\n{'meant':<12}" + "".join(f"{name[:7]:>8}" for name in names) + "   recall                  precision")
    for meant in names[:-1]:
        row = [counts[meant, guessed] for guessed in names]
        said = sum(counts[one, meant] for one in names)
        right = counts[meant, meant]
        print(
            f"{meant:<12}"
            + "".join(f"{count:>8}" for count in row)
            + f"  {interval(right, sum(row)):<22}  {interval(right, said)}"
        )


def times() -> None:
    """CPU of one call by size, least of many."""
    rng = random.Random(1)
    sizes = {
        "a question of 40 characters": "why is the sky blue in the early evening",
        "a prompt of 300": task_texts.passage(rng, 4)[:300],
        "of 1,000 and more": task_texts.passage(rng, 60),
        "of 1,000 in Chinese": "会议推迟到下周一上午十点。" * 100,
    }
    for name, text in sizes.items():
        data = {"messages": [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": text}]}
        took = min(timeit.repeat(lambda data=data: tasks.task_of(data), number=1, repeat=1000))
        print(f"{name:<28} {took * 1e6:8.1f} us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--train", action="store_true", help="write gateway/tasks.bin anew")
    parser.add_argument("--wrong", action="store_true", help="show the hand-written and MT-bench prompts that are mistaken")
    options = parser.parse_args()
    if options.train:
        tasks.FILE.write_bytes(train(options.data))
        print(f"{tasks.FILE.name}: {tasks.FILE.stat().st_size:,} bytes")
    print(f"model {tasks.version()}\n\n{'set':<28} {'rows':>6} right                    most often mistaken")
    judge("hand-written, tuned on", written("looked_at"))
    found = judge("hand-written, fresh", written("fresh"))
    judge("code of unseen files", unseen_code())
    if options.data:
        for name, read in SETS.items():
            pairs = judge(name, read(options.data))
            found += pairs if name.startswith("MT") else []
    confusion(found)
    print()
    times()
    if options.wrong:
        for meant, guessed, text in found:
            if meant != guessed:
                print(f"{meant} -> {guessed}: {text[:150]!r}")


if __name__ == "__main__":
    main()
