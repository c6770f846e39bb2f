"""Conditions as one closure for each fact: what `Matcher` must come to, only slower with every rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import reduce
from operator import attrgetter
from typing import Any

from gateway.facts import Facts
from gateway.policy.conditions import FACTS, _classes, _written_range

Holds = Callable[[Facts], bool]
_ENDLESS = math.inf


def compile_when(when: Mapping[str, Any], *, upper: bool) -> Holds | None:
    """One closure for a whole `when`: every fact in it must hold. None for an empty one, which always holds.

    `upper` compares sizes by the upper end of their error band, as limits must.
    """
    parts = [compile_fact(name, value, upper=upper) for name, value in when.items()]
    return reduce(_both, parts) if parts else None


def _both(first: Holds, second: Holds) -> Holds:
    return lambda facts: first(facts) and second(facts)


def _either(first: Holds, second: Holds) -> Holds:
    return lambda facts: first(facts) or second(facts)


def compile_fact(name: str, value: Any, *, upper: bool) -> Holds:
    """One closure for one fact; a list holds when any of its items does."""
    items = value if isinstance(value, list) else [value]
    match FACTS[name].kind:
        case "class":
            return _one_of("class_", frozenset().union(*(_classes(item) for item in items)))
        case "flag":
            return _one_of(name, frozenset(items))
        case "number":
            attribute = "prompt_tokens_high" if upper and name == "prompt_tokens" else name
            return reduce(_either, [_within(attribute, *_written_range(name, item)) for item in items])
        case "word":
            return _one_of(name, frozenset(items))
        case "words":
            return _any_of(name, frozenset(items))


def _one_of(attribute: str, accepted: frozenset[Any]) -> Holds:
    get = attrgetter(attribute)
    return lambda facts: get(facts) in accepted


def _any_of(attribute: str, accepted: frozenset[Any]) -> Holds:
    get = attrgetter(attribute)
    return lambda facts: not accepted.isdisjoint(get(facts))


def _within(attribute: str, low: float, high: float) -> Holds:
    get = attrgetter(attribute)

    def holds(facts: Facts) -> bool:
        value = get(facts)
        return low <= (_ENDLESS if value is None else value) <= high

    return holds
