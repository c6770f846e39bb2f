"""The price of each step of a request: the gateway's own functions, called in a quiet process of their own. Asks no network.

`python -m gateway.bench.stages CONFIG` prints `Price`s as JSON: CPU microseconds, the median of many short runs.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from msgspec import Struct, to_builtins

from gateway import config, facts, logs, wire
from gateway.bench.load import chat
from gateway.cache.exact import Exact
from gateway.cache.key import scope
from gateway.facts import Facts
from gateway.ledger import Record, TokenEvent
from gateway.logs import LogWriter
from gateway.policy.decide import decide
from gateway.policy.decision import Health
from gateway.policy.generation import Generation
from gateway.policy.generation import load as load_policies
from gateway.tokens import Counter

RUNS = 40
CALLS = 50
TEXT = "Explain in a few words how an old harbour wall of stone and lime was built by hand. " * 11
"""What every request of the bench asks: about 900 characters, a body of about 1 KB, and nothing that bars it from the cache."""


class Price(Struct, frozen=True):
    """What one step costs."""

    stage: str
    us: float
    what: str


def price_us(work: Callable[[], object]) -> float:
    """CPU microseconds of this thread for one call."""
    found = []
    for _ in range(RUNS):
        began = time.thread_time_ns()
        for _ in range(CALLS):
            work()
        found.append((time.thread_time_ns() - began) / CALLS / 1000)
    return statistics.median(found)


def prices(config_path: Path) -> Iterator[Price]:
    """Every step of one JSON request that a gateway with this config does by itself."""
    settings = config.load(config_path)
    generation = load_policies(settings, settings.policies_folder)
    name = next(iter(settings.models))
    body = chat(name, TEXT, temperature=0.2, max_tokens=64)
    request = wire.read("chat/completions", body)

    def judge() -> Facts:
        return facts.judge(
            request,
            classes=generation.classes,
            detector=generation.detector,
            max_scan_chars=settings.server.max_scan_chars,
            tenant="default",
            key_label="bench",
            class_floor="public",
            headers={"content-type": "application/json"},
            seed="req_0123456789",
            now=time.time(),
        )

    known, exact = judge(), Exact(settings.cache.exact_max_bytes)
    health = {option.name: Health() for option in generation.catalogue.options()}

    def look_up() -> object:
        made = scope(
            request.data,
            tenant="default",
            endpoint=request.endpoint,
            model=request.model,
            policy_scope=generation.hash,
            embedder=settings.cache.embedder,
        )
        if made is None:
            raise AssertionError("the bench asks what may be cached")
        return exact.lookup(made, class_=known.class_, now=0.0)

    yield Price("parse", price_us(lambda: wire.read("chat/completions", body)), f"read and check a body of {len(body)} bytes")
    yield Price("scan", price_us(judge), "every string for personal data and secrets; size; facts")
    yield Price(
        "decide", price_us(lambda: decide(generation, settings.policies.default, known, health)), "limits and routes of policy"
    )
    yield Price("cache", price_us(look_up), "key of the request, look-up in the exact tier")
    yield Price("edit", price_us(lambda: wire.with_model(request, "another")), "the upstream's model name into the body")
    yield from _log_prices(generation, settings.policies.default, known, health)


def _log_prices(generation: Generation, policy: str, known: Facts, health: dict[str, Health]) -> Iterator[Price]:
    """The log as a front worker has it: what the event loop pays, and what the writer's thread pays beside it."""
    decision = decide(generation, policy, known, health)
    with tempfile.TemporaryDirectory() as folder:
        writer = LogWriter(
            Path(folder),
            segment="bench",
            stdout=False,
            rotate_bytes=1 << 30,
            keep_files=2,
            on_full="drop",
            queue_limit=1_000_000,
            count_tokens=Counter(None).count,
        )
        emit = logs.configure(writer, "info")
        record = Record(
            request_id="req_0123456789", opened_at=0.0, endpoint="chat/completions", ending="complete", status=200, stream=False
        )
        fields = {
            "request_id": "req_0123456789",
            "facts": to_builtins(known),
            "health": to_builtins(health),
            "policy": decision.policy,
            "rule": decision.rule,
            "order": [chosen.option.name for chosen in decision.candidates],
            "removed": [],
            "cache": decision.cache,
            "limits": decision.limits,
            "refusal": None,
        }

        def request_lines() -> None:
            emit("request.opened", request_id="req_0123456789", endpoint="chat/completions", bytes=1000)
            emit("route.decided", **fields)
            emit("cache.miss", request_id="req_0123456789", reason="unseen", cosine=0.0)
            writer.closed(record)

        def token_line() -> None:
            writer.token(TokenEvent(time.time_ns(), "req_0123456789", 0, 12.3, 1, " token", False, "a/model", "external", 0))

        for lines, suffix, what in (
            (request_lines, "", "four lines of a request"),
            (token_line, " a token", "the line of a chunk"),
        ):
            began = time.process_time_ns()
            loop_us = price_us(lines)
            while writer.queued:
                time.sleep(0.005)
            thread_us = (time.process_time_ns() - began) / RUNS / CALLS / 1000 - loop_us
            yield Price(f"log{suffix}", loop_us, f"{what}, handed to the writer's thread")
            yield Price(f"log, thread{suffix}", thread_us, "encoding and writing them, beside the event loop")
        writer.close()


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(list(prices(Path(sys.argv[1])))))
