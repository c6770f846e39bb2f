"""How long one decision takes for 50 limits and routes over 20 upstreams, beside floors of the same run, and how long a replay.

Run: python -m tests.bench.policy [--lines N] [--json]. The ratios are what to compare between machines and commits, not the
microseconds. The exit status is 1 when the replay under the same policy does not come to the same decisions.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from gateway.config import CLASSES
from gateway.facts import Facts
from gateway.pipeline import decided
from gateway.policy.decide import decide
from gateway.policy.decision import Health, Option
from gateway.policy.generation import Catalogue, Generation
from gateway.replay import replay

N_UPSTREAMS = 20
N_LIMITS = 35
N_ROUTES = 15
DECIDE = "decide, 50 rules x 20 upstreams"
ROUNDS = 400
CALLS_PER_ROUND = 25

WHENS = (
    'when = { class = ">= confidential" }',
    'when = { found = ["card", "iban"], stream = false }',
    'when = { prompt_tokens = "> 3000" }',
    'when = { tenant = ["a", "b"], tools = true }',
    'when = { hour = ["< 6", ">= 22"] }',
    'when = { max_output = "> 8000", images = false }',
    "",
)
EFFECTS = (
    'only = { zone = ["local", "eu"] }',
    'never = { zone = "us", trains = true }',
    "max_cost = 0.02",
    'cache = "exact"',
    'log = "no text"',
)


def when_of_route(index: int) -> str:
    """The last six are general; those before are the same for one key alone, or they would never be reached."""
    when = WHENS[index % 6].replace("3000", "30000")
    return when if index >= N_ROUTES - 7 else when.replace("{ ", f'{{ key_label = "k{index}", ')


def make_generation() -> Generation:
    """20 upstreams in three zones, 35 limits, 15 routes."""
    options = tuple(
        Option(
            upstream=f"u{index}",
            model="m",
            zone=("local", "eu", "us")[index % 3],
            retention="none",
            trains=index % 3 == 2,
            takes_up_to="restricted",
            capabilities=("chat", "tools"),
            context=32_000,
            max_output=4_000,
            input_usd_per_mtok=0.1 * index,
            output_usd_per_mtok=0.4 * index,
        )
        for index in range(N_UPSTREAMS)
    )
    limits = [
        f'[[limit]]\nname = "l{index}"\n{WHENS[index % len(WHENS)]}\n{EFFECTS[index % len(EFFECTS)]}\n'
        for index in range(N_LIMITS)
    ]
    routes = [f'[[route]]\nname = "r{index}"\n{when_of_route(index)}\norder_by = "cost"\n' for index in range(N_ROUTES - 1)]
    last = '[[route]]\nname = "rest"\norder_by = "latency"\nwithin = 1.2\n'
    text = 'policy = "p"\n' + "".join(limits) + "".join(routes) + last
    catalogue = Catalogue(upstreams=tuple(one.upstream for one in options), models={"auto": options}, substitutable=("auto",))
    return Generation({"p.toml": text}, catalogue)


def time_decide(generation: Generation) -> dict[str, dict[str, float]]:
    """Microseconds of a decision and of two floors that run between its rounds: `p50`, `p99` and how much longer the first takes."""
    facts = Facts(
        endpoint="chat/completions",
        model="auto",
        tenant="t",
        needs=("chat",),
        prompt_tokens=300,
        prompt_tokens_high=330,
        hour=12,
        seed="req-1",
    )
    health = {one.name: Health(ttft_ms=100.0 + index, in_flight=1) for index, one in enumerate(generation.options_for("auto"))}
    body = msgspec.json.encode({"model": "auto", "stream": True, "messages": [{"role": "user", "content": "x" * 950}]})
    decode = msgspec.json.Decoder().decode

    contenders = {
        DECIDE: lambda: decide(generation, "p", facts, health),
        "floor: empty call": lambda: None,
        "floor: decode 1 KB of JSON": lambda: decode(body),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, call in contenders.items():
            start = time.perf_counter()
            for _ in range(CALLS_PER_ROUND):
                call()
            times[name].append((time.perf_counter() - start) / CALLS_PER_ROUND * 1e6)
    p50 = {name: statistics.median(values) for name, values in times.items()}
    return {
        name: {"p50_us": p50[name], "p99_us": statistics.quantiles(values, n=100)[98], "ratio": p50[DECIDE] / p50[name]}
        for name, values in times.items()
    }


def replay_lines(generation: Generation, count: int) -> Iterator[bytes]:
    """Log lines as requests make them: of every two, one decision (each with facts, health and seed of its own) and its record."""
    rng = random.Random(7)
    options = generation.options_for("auto")
    for number in range(count // 2):
        facts = Facts(
            endpoint="chat/completions",
            model="auto",
            class_=rng.choice(CLASSES),
            tenant=rng.choice("abc"),
            stream=rng.random() < 0.5,
            needs=("chat",),
            prompt_tokens=(size := rng.randrange(4000)),
            prompt_tokens_high=size + size // 10,
            hour=rng.randrange(24),
            seed=f"req_{number:024d}",
        )
        health = {one.name: Health(ttft_ms=rng.uniform(50, 500), in_flight=rng.randrange(9)) for one in options}
        fields = decided(facts, decide(generation, "p", facts, health), health)
        head = {"time": "2026-11-23T06:38:35.074197Z", "event": "route.decided", "request_id": facts.seed}
        yield msgspec.json.encode(head | fields) + b"\n"
        usage = {"prompt_tokens": size, "completion_tokens": rng.randrange(900)}
        yield msgspec.json.encode(head | {"event": "request.closed", "usage": usage}) + b"\n"


def time_replay(generation: Generation, count: int) -> dict[str, float]:
    """Write a log, and replay it under the same policy."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        with path.open("wb") as file:
            file.writelines(replay_lines(generation, count))
        start = time.process_time()
        found = replay([path], generation, lambda _: generation)
        took_s = time.process_time() - start
        size_mb = path.stat().st_size / 1e6
    return {"lines": found.lines, "mb": size_mb, "decisions": found.decisions, "same": found.same, "cpu_s": took_s}


def main() -> int:
    """Both, as text or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=1_000_000, metavar="N", help="of the replayed log; without: a million")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    generation = make_generation()
    times = time_decide(generation)
    again = time_replay(generation, options.lines)
    if options.json:
        print(json.dumps({"decide": times, "replay": again}))
    else:
        for name, one in times.items():
            print(f"{name:<34} p50 {one['p50_us']:8.2f} us   p99 {one['p99_us']:8.2f} us   decide is {one['ratio']:6.1f}x")
        print(f"replay of {again['lines']:,} lines ({again['mb']:.0f} MB): {again['cpu_s']:.1f} s of CPU")
        print(f"under the same policy the same: {again['same']:,} of {again['decisions']:,} (must be all, in 60 s for 1M lines)")
    return again["same"] != again["decisions"]


if __name__ == "__main__":
    sys.exit(main())
