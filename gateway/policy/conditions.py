"""What a `when` may ask: a closed list of facts, each compiled to one closure. Knows neither limits nor routes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from functools import reduce
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Literal

from msgspec import Struct

from gateway.config import CAPABILITIES, CLASSES
from gateway.errors import did_you_mean
from gateway.facts import Facts
from gateway.wire import ENDPOINTS, UPLOADS

Holds = Callable[[Facts], bool]
"""Whether a condition holds for one request. Called on every request: pure, and no slower than a few comparisons."""

Known = Mapping[str, Collection[str]]
"""By fact: the words that can occur. A fact that is missing here takes any word."""


class Fact(Struct, frozen=True):
    """One thing a condition may look at."""

    kind: Literal["class", "flag", "number", "word", "words"]
    """How it is compared: by rank, with true or false, as a number, as one word, as a set of words."""
    meaning: str


FACTS: Mapping[str, Fact] = MappingProxyType(
    {
        "class": Fact("class", "how sensitive the request is"),
        "found": Fact("words", "kinds of sensitive text that the detector found"),
        "endpoint": Fact("word", "which API was called"),
        "model": Fact("word", "the model as the client named it"),
        "tenant": Fact("word", "whose key it is"),
        "key_label": Fact("word", "the key's label"),
        "tags": Fact("words", "words from the x-gateway-tags header"),
        "needs": Fact("words", "capabilities that the model must have"),
        "stream": Fact("flag", "whether the answer is streamed"),
        "tools": Fact("flag", "whether tools are offered"),
        "images": Fact("flag", "whether images are sent"),
        "json_mode": Fact("flag", "whether the answer must be JSON"),
        "prompt_tokens": Fact("number", "size of the prompt: a limit sees its upper bound, a route the estimate"),
        "max_output": Fact("number", "most tokens the client takes; none given counts as more than any number"),
        "deadline_ms": Fact("number", "longest the client waits; none given counts as more than any number"),
        "hour": Fact("number", "hour of the day in UTC, 0 to 23"),
    }
)

FIXED_WORDS: Known = MappingProxyType(
    {"endpoint": (*dict.fromkeys((*ENDPOINTS, *UPLOADS)), "batches"), "needs": CAPABILITIES},
)

UNAVAILABLE_FACTS = ("budget_left", "task", "quality", "language", "rollout")
"""Facts that other gateways or later versions have; refused by name, so that nobody believes them to be in force."""

_COMPARISON = re.compile(r"(<=|>=|<|>)\s*(\S+)")
_ENDLESS = math.inf


class BadConditionError(ValueError):
    """A condition that cannot be compiled; `str()` says what is wrong and how to mend it."""


def compile_when(when: Mapping[str, Any], known: Known, *, upper: bool) -> Holds | None:
    """One closure for a whole `when`: every fact in it must hold. None for an empty one, which always holds.

    `upper` compares sizes by the upper end of their error band, as limits must. Raises BadConditionError.
    """
    parts = [compile_fact(name, value, known, upper=upper) for name, value in when.items()]
    return reduce(_both, parts) if parts else None


def _both(first: Holds, second: Holds) -> Holds:
    return lambda facts: first(facts) and second(facts)


def _either(first: Holds, second: Holds) -> Holds:
    return lambda facts: first(facts) or second(facts)


def compile_fact(name: str, value: Any, known: Known, *, upper: bool) -> Holds:
    """One closure for one fact; a list holds when any of its items does. Raises BadConditionError."""
    if name in UNAVAILABLE_FACTS:
        raise BadConditionError(f'the fact "{name}" is not available in this version; remove the condition')
    if name not in FACTS:
        raise BadConditionError(f'unknown fact "{name}"{did_you_mean(name, FACTS)}')
    items = value if isinstance(value, list) else [value]
    if not items:
        raise BadConditionError(f'"{name}" has an empty list, which never holds; list values or remove it')
    words = known.get(name, FIXED_WORDS.get(name))
    match FACTS[name].kind:
        case "class":
            return _one_of("class_", frozenset().union(*(_classes(item) for item in items)))
        case "flag":
            return _one_of(name, frozenset(_flag(name, item) for item in items))
        case "number":
            attribute = "prompt_tokens_high" if upper and name == "prompt_tokens" else name
            return reduce(_either, [_within(attribute, *_range(name, item)) for item in items])
        case "word":
            return _one_of(name, frozenset(_word(name, item, words) for item in items))
        case "words":
            return _any_of(name, frozenset(_word(name, item, words) for item in items))


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


def _classes(item: Any) -> frozenset[str]:
    """The classes an item stands for: `"confidential"` one, `">= confidential"` two."""
    compared = _COMPARISON.fullmatch(item) if isinstance(item, str) else None
    word = compared[2] if compared else item
    if not isinstance(word, str) or word not in CLASSES:
        hint = did_you_mean(str(word), CLASSES)
        raise BadConditionError(f'"class" is compared with a class, not {_shown(word)}{hint}')
    rank = CLASSES.index(word)
    match compared[1] if compared else "=":
        case "<":
            found = CLASSES[:rank]
        case "<=":
            found = CLASSES[: rank + 1]
        case ">":
            found = CLASSES[rank + 1 :]
        case ">=":
            found = CLASSES[rank:]
        case _:
            found = (CLASSES[rank],)
    if not found:
        raise BadConditionError(f'"class" = "{item}" never holds; the classes are {", ".join(CLASSES)}')
    return frozenset(found)


def _flag(name: str, item: Any) -> bool:
    if not isinstance(item, bool):
        raise BadConditionError(f'"{name}" is true or false, not {_shown(item)}')
    return item


def _range(name: str, item: Any) -> tuple[float, float]:
    """The closed range of whole numbers that an item stands for."""
    if isinstance(item, int) and not isinstance(item, bool):
        return (item, item)
    compared = _COMPARISON.fullmatch(item) if isinstance(item, str) else None
    if compared is None or not compared[2].isdecimal():
        raise BadConditionError(f'"{name}" is compared with a whole number, such as 2000 or "< 2000", not {_shown(item)}')
    number = int(compared[2])
    match compared[1]:
        case "<":
            return (-_ENDLESS, number - 1)
        case "<=":
            return (-_ENDLESS, number)
        case ">":
            return (number + 1, _ENDLESS)
        case _:
            return (number, _ENDLESS)


def _word(name: str, item: Any, known: Collection[str] | None) -> str:
    if not isinstance(item, str):
        raise BadConditionError(f'"{name}" is compared with a word, not {_shown(item)}')
    if item.startswith(("<", ">", "=", "!")):
        raise BadConditionError(f'"{name}" has no order: write the word itself, or a list of words, not {_shown(item)}')
    if known is not None and item not in known:
        noun = {"found": "kind", "needs": "capability"}.get(name, name)
        raise BadConditionError(f'unknown {noun} "{item}"{did_you_mean(item, known)}')
    return item


def _shown(item: Any) -> str:
    if isinstance(item, bool):
        return "true" if item else "false"
    return f'"{item}"' if isinstance(item, str) else str(item)
