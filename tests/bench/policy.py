"""How long one decision takes for 50 limits and routes over 20 upstreams, beside floors of the same run.

Run: python -m tests.bench.policy. The ratios are what to compare between machines and commits, not the microseconds.
"""

import statistics
import time

import msgspec

from gateway.facts import Facts
from gateway.policy.decide import decide
from gateway.policy.decision import Health, Option
from gateway.policy.generation import Catalogue, Generation

N_UPSTREAMS = 20
N_LIMITS = 35
N_ROUTES = 15
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
    routes = [
        f'[[route]]\nname = "r{index}"\n{WHENS[index % 6].replace("3000", "30000")}\norder_by = "cost"\n'
        for index in range(N_ROUTES - 1)
    ]
    last = '[[route]]\nname = "rest"\norder_by = "latency"\nwithin = 1.2\n'
    text = 'policy = "p"\n' + "".join(limits) + "".join(routes) + last
    catalogue = Catalogue(upstreams=tuple(one.upstream for one in options), models={"auto": options}, substitutable=("auto",))
    return Generation({"p.toml": text}, catalogue)


def main() -> None:
    """Print medians and tails of a decision, and its ratio to two floors that ran between its rounds."""
    generation = make_generation()
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
        "decide, 50 rules x 20 upstreams": lambda: decide(generation, "p", facts, health),
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
    first = next(iter(contenders))
    for name, values in times.items():
        p99 = statistics.quantiles(values, n=100)[98]
        print(f"{name:<34} p50 {p50[name]:8.2f} us   p99 {p99:8.2f} us   decide is {p50[first] / p50[name]:6.1f}x")
    decision = decide(generation, "p", facts, health)
    print(f"{len(decision.limits)} limits applied, {len(decision.candidates)} candidates left, {len(decision.removed)} removed")


if __name__ == "__main__":
    main()
