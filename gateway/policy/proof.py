"""Run the `[[test]]`s of the policy files, offline. Decides as the gateway does, over facts that the files give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import msgspec
from msgspec import Struct

from gateway.facts import Facts
from gateway.policy.decide import decide
from gateway.policy.decision import Decision, Health, Option
from gateway.policy.document import ExpectBlock, TestBlock
from gateway.policy.generation import Generation
from gateway.privacy import classify, highest, scan

MAX_TEXT_CHARS = 1_000_000
"""A `text` above this is not scanned and makes its test `restricted`."""

_FLAG_NEEDS: Mapping[str, str] = MappingProxyType({"tools": "tools", "images": "images", "json_mode": "json"})


class Result(Struct, frozen=True, kw_only=True):
    """How one test ended."""

    policy: str
    name: str
    place: str
    """`file:line`."""
    problems: tuple[str, ...]
    """What was expected and did not come; empty: passed."""
    decision: Decision

    @property
    def passed(self) -> bool:
        """Whether everything came as expected."""
        return not self.problems


def run_tests(generation: Generation) -> list[Result]:
    """Every test of every file. Everything is up and free unless the test says otherwise; keys and environment do not matter."""
    return [_run(generation, policy.name, place, test) for policy in generation.policies.values() for place, test in policy.tests]


def untouched(generation: Generation, results: Iterable[Result]) -> list[str]:
    """The limits that applied in no test and the routes that ranked in none, each with its place."""
    results = list(results)
    limits = {name for result in results for name in result.decision.limits}
    rules = {(result.policy, result.decision.rule) for result in results}
    found = [f'{limit.place}: limit "{limit.name}"' for limit in generation.limits if limit.name not in limits]
    for policy in generation.policies.values():
        found += [f'{route.place}: route "{route.name}"' for route in policy.routes if (policy.name, route.name) not in rules]
    return found


def _run(generation: Generation, policy: str, place: str, test: TestBlock) -> Result:
    facts = facts_of(generation, test.given)
    options = generation.options_for(facts.model)
    health = {option.name: _health(option, test.given) for option in options}
    decision = decide(generation, policy, facts, health)
    return Result(policy=policy, name=test.name, place=place, problems=tuple(_misses(test.expect, decision)), decision=decision)


def facts_of(generation: Generation, given: Mapping[str, Any]) -> Facts:
    """The facts that a test gives, the rest filled in as the gateway would.

    The model is the first substitutable one, `needs` follows from endpoint and flags, size bounds are the estimate itself,
    and the class is the highest of the one given, that of the kinds `found`, and that of the scanned `text`.
    """
    plain = {name: value for name, value in given.items() if name not in {"text", "down", "off"}}
    models = [*generation.catalogue.substitutable, *generation.catalogue.models]
    endpoint = plain.setdefault("endpoint", "chat/completions")
    plain.setdefault("model", models[0] if models else "")
    flags = [need for flag, need in _FLAG_NEEDS.items() if plain.get(flag)]
    plain.setdefault("needs", ["chat" if endpoint == "chat/completions" else endpoint, *flags])
    if endpoint == "responses":
        plain.setdefault("via_chat", ["chat", *flags])
    for bound in ("prompt_tokens_low", "prompt_tokens_high"):
        plain.setdefault(bound, plain.get("prompt_tokens", 0))
    scanned = scan({"content": given.get("text", "")}, max_chars=MAX_TEXT_CHARS, detector=generation.detector)
    found = {*plain.get("found", ()), *scanned.kinds}
    of_found = [generation.classes.get(kind, "restricted") for kind in found]
    plain["class"] = highest(plain.get("class", "public"), classify(scanned, generation.classes), *of_found)
    plain["found"] = sorted(found)
    return msgspec.convert(plain, Facts)


def _health(option: Option, given: Mapping[str, Any]) -> Health:
    def listed(key: str) -> bool:
        names = given.get(key, [])
        return not {option.upstream, option.name}.isdisjoint(names if isinstance(names, list) else [names])

    off = listed("off")
    return Health(up=not (off or listed("down")), off=off, reason="as the test says")


def _misses(expect: ExpectBlock, decision: Decision) -> Iterable[str]:
    first = decision.candidates[0].option if decision.candidates else None
    shown = first.name if first else "nobody: " + (decision.refusal.message if decision.refusal else "")
    names = {first.upstream, first.name} if first else set()
    if expect.first is not None and expect.first not in names:
        yield f"expected {expect.first} first, got {shown}"
    if expect.first_not is not None and expect.first_not in names:
        yield f"expected another than {expect.first_not} first"
    if expect.refused is not None and expect.refused != (first is None):
        yield f"expected {'a refusal' if expect.refused else 'an upstream'}, got {shown}"
    if expect.only_zone is not None:
        zones = expect.only_zone if isinstance(expect.only_zone, tuple) else (expect.only_zone,)
        outside = [chosen.option for chosen in decision.candidates if chosen.option.zone not in zones]
        yield from (f"expected only zone {', '.join(zones)}, got {option.name} in {option.zone}" for option in outside)
    if expect.cache is not None and expect.cache != decision.cache:
        yield f"expected cache {expect.cache}, got {decision.cache}"
    if expect.redact is not None and expect.redact != decision.redact:
        yield f"expected {'masks' if expect.redact else 'no masks'} on what leaves, got {'masks' if decision.redact else 'none'}"
    if expect.rule is not None and expect.rule != decision.rule:
        yield f'expected the route "{expect.rule}", got "{decision.rule}"'
