"""What a `when` may ask: a closed list of facts, and which of many hold for a request. Knows neither limits nor routes."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import reduce
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Literal

from msgspec import Struct

from gateway.config import CAPABILITIES, CLASSES
from gateway.errors import did_you_mean
from gateway.facts import Facts
from gateway.tasks import TASKS
from gateway.wire import ENDPOINTS, UPLOADS

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
        "task": Fact("word", "what is asked for, as a small model guesses from the wording"),
    }
)

FIXED_WORDS: Known = MappingProxyType(
    {"endpoint": (*dict.fromkeys((*ENDPOINTS, *UPLOADS)), "batches"), "needs": CAPABILITIES, "task": tuple(TASKS)},
)

UNAVAILABLE_FACTS: Mapping[str, str] = MappingProxyType(
    {
        "budget_left": "nothing is counted over requests; cap single ones by a limit with max_cost",
        "quality": "answers are not graded; ask for task, prompt_tokens or tags",
        "language": "the language of a text is not told; let clients say it by x-gateway-tags, and ask for tags",
        "rollout": "the change would reach every request at once; ask for tenant or key_label",
    }
)
"""Facts that other gateways or later versions have; refused by name, so that nobody believes them to be in force."""

_COMPARISON = re.compile(r"(<=|>=|<|>)\s*(\S+)")
_ENDLESS = math.inf


class BadConditionError(ValueError):
    """A condition that cannot be compiled; `str()` says what is wrong and how to mend it."""


class Condition(Struct, frozen=True):
    """What one fact must be for a `when` to hold."""

    attribute: str
    """Of Facts."""
    many: bool = False
    """Whether the fact is a set of words, of which any may be among `words`."""
    words: frozenset[Any] = frozenset()
    """Accepted values; for a number, none."""
    ranges: tuple[tuple[float, float], ...] = ()
    """Accepted numbers: closed ranges of whole numbers, ascending and apart."""

    def covers(self, other: Condition) -> bool:
        """Whether this holds wherever the other, on the same fact, does."""
        return self.words >= other.words and all(
            any(low <= inner[0] and inner[1] <= high for low, high in self.ranges) for inner in other.ranges
        )

    def touches(self, other: Condition) -> bool:
        """Whether both accept some value."""
        overlap = any(low <= high_ and low_ <= high for low, high in self.ranges for low_, high_ in other.ranges)
        return overlap or not self.words.isdisjoint(other.words)

    def or_(self, other: Condition) -> Condition:
        """What holds where either does."""
        return Condition(self.attribute, self.many, self.words | other.words, _joined((*self.ranges, *other.ranges)))


_BOUNDS: Mapping[str, tuple[float, float]] = MappingProxyType({"hour": (0, 23), "deadline_ms": (1, math.inf)})
"""Smallest and largest value of a number; of one that is missing here, nothing and endless."""


def anything(name: str) -> Condition | None:
    """The condition on this fact that always holds; None where the values that it can have are not a closed list."""
    match FACTS[name].kind:
        case "class":
            return Condition("class_", words=frozenset(CLASSES))
        case "flag":
            return Condition(name, words=frozenset((True, False)))
        case "number":
            return Condition(name, ranges=(_BOUNDS.get(name, (0, _ENDLESS)),))
        case _:
            return None


def parse(name: str, value: Any, known: Known = MappingProxyType({})) -> Condition:
    """One fact of a `when`; a list holds when any of its items does. Raises BadConditionError."""
    if name in UNAVAILABLE_FACTS:
        raise BadConditionError(f'the fact "{name}" is not available in this version: {UNAVAILABLE_FACTS[name]}')
    if name not in FACTS:
        raise BadConditionError(f'unknown fact "{name}"{did_you_mean(name, FACTS)}')
    items = value if isinstance(value, list) else [value]
    if not items:
        raise BadConditionError(f'"{name}" has an empty list, which never holds; list values or remove it')
    words = known.get(name, FIXED_WORDS.get(name))
    match FACTS[name].kind:
        case "class":
            return Condition("class_", words=frozenset().union(*(_classes(item) for item in items)))
        case "flag":
            return Condition(name, words=frozenset(_flag(name, item) for item in items))
        case "number":
            return Condition(name, ranges=_joined(_range(name, item) for item in items))
        case "word":
            return Condition(name, words=frozenset(_word(name, item, words) for item in items))
        case "words":
            return Condition(name, many=True, words=frozenset(_word(name, item, words) for item in items))


def _joined(ranges: Iterable[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    found: list[tuple[float, float]] = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(high, found[-1][1]))
        else:
            found.append((low, high))
    return tuple(found)


def covering(conditions: Mapping[str, Condition], earlier: Sequence[Mapping[str, Condition]]) -> list[int]:
    """Which of the earlier `when`s together hold wherever this one does; none where that is not certain.

    Sound, not complete: found are one that covers this alone, and several that do so over the values of one fact, each with no
    other condition that this one has not.
    """
    for place, before in enumerate(earlier):
        if all(_covered(name, conditions, condition) for name, condition in before.items()):
            return [place]
    for name in dict.fromkeys(name for before in earlier for name in before):
        wanted = conditions.get(name) or anything(name)
        parts = [
            place
            for place, before in enumerate(earlier)
            if name in before and all(_covered(other, conditions, before[other]) for other in before if other != name)
        ]
        if wanted is not None and len(parts) > 1:
            together = reduce(Condition.or_, [earlier[place][name] for place in parts])
            if together.covers(wanted):
                return [place for place in parts if earlier[place][name].touches(wanted)]
    return []


def _covered(name: str, conditions: Mapping[str, Condition], by: Condition) -> bool:
    own = conditions.get(name) or anything(name)
    return own is not None and by.covers(own)


class Matcher:
    """Which of many `when`s hold for a request: one look-up for each fact that any of them asks, however many they are."""

    def __init__(self, limits: Sequence[Mapping[str, Any]], routes: Sequence[Mapping[str, Any]] = ()) -> None:
        """Limits compare sizes by the upper end of their error band, routes by the estimate. Raises BadConditionError."""
        self.all = (1 << len(limits) + len(routes)) - 1
        """A bit for each `when`, that of the first limit the lowest, routes after limits."""
        asked: dict[tuple[str, str], list[tuple[int, Condition]]] = {}
        for place, when in enumerate((*limits, *routes)):
            for name, value in when.items():
                condition = parse(name, value)
                upper = name == "prompt_tokens" and place < len(limits)
                attribute = "prompt_tokens_high" if upper else condition.attribute
                asked.setdefault((name, attribute), []).append((1 << place, condition))
        self._words: list[tuple[Callable[[Facts], Any], dict[Any, int], int]] = []
        self._sets: list[tuple[Callable[[Facts], Any], dict[Any, int], int]] = []
        self._numbers: list[tuple[Callable[[Facts], Any], list[float], list[int]]] = []
        for (name, attribute), conditions in asked.items():
            free = self.all & ~sum(bit for bit, _ in conditions)
            get = attrgetter(attribute)
            if FACTS[name].kind == "number":
                self._numbers.append((get, *_steps(conditions, free)))
            else:
                kept = self._sets if FACTS[name].kind == "words" else self._words
                kept.append((get, _by_word(conditions, free), free))

    def held(self, facts: Facts) -> int:
        """The bits of those that hold. Called on every request."""
        held = self.all
        for get, masks, free in self._words:
            held &= masks.get(get(facts), free)
        for get, masks, free in self._sets:
            found = free
            for word in get(facts):
                found |= masks.get(word, 0)
            held &= found
        for get, steps, between in self._numbers:
            value = get(facts)
            held &= between[bisect_right(steps, _ENDLESS if value is None else value)]
        return held


def _by_word(conditions: Iterable[tuple[int, Condition]], free: int) -> dict[Any, int]:
    masks: dict[Any, int] = {}
    for bit, condition in conditions:
        for word in condition.words:
            masks[word] = masks.get(word, free) | bit
    return masks


def _steps(conditions: Sequence[tuple[int, Condition]], free: int) -> tuple[list[float], list[int]]:
    """Where what holds changes, ascending, and what holds before the first, between them and after the last."""
    ranges = [(bit, low, high) for bit, condition in conditions for low, high in condition.ranges]
    steps = sorted({edge for _, low, high in ranges for edge in (low, high + 1)} - {_ENDLESS})
    between = [free]
    for step in steps:
        between.append(free | sum({bit for bit, low, high in ranges if low <= step <= high}))
    return steps, between


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
    """The closed range of whole numbers that an item stands for, of those that the fact can be."""
    low, high = _written_range(name, item)
    least, most = _BOUNDS.get(name, (0, _ENDLESS))
    if low > most or high < least:
        whole = f"from {least} to {most}" if most < _ENDLESS else f"from {least} upwards"
        raise BadConditionError(f'"{name}" = {_shown(item)} never holds: it runs {whole}; widen or remove it')
    return (max(low, least), min(high, most))


def _written_range(name: str, item: Any) -> tuple[float, float]:
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
