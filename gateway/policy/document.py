"""One policy file as frozen Structs, read strictly. Knows the shape of the file and its words, not how a decision is made."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from gateway.config import CLASSES, Class
from gateway.errors import ConfigError, Problem, did_you_mean
from gateway.facts import Facts
from gateway.policy.conditions import FIXED_WORDS, BadConditionError, Condition, Known, covering, parse
from gateway.policy.decision import CacheMode, Option
from gateway.privacy import normalise
from gateway.recognisers import KINDS, NAMES
from gateway.terms import LEAST_SIGNS, MOST_CHARS
from gateway.tomlfile import KeyPath, TomlFile

Words = str | tuple[str, ...]
"""One word, or any of several."""

Ranking = Literal["cost", "latency", "listed"]

NAMED_KINDS = tuple(kind.name for kind in NAMES)
KIND_NAMES = (*(kind.name for kind in KINDS), *NAMED_KINDS)
EFFECTS = ("only", "never", "max_cost", "cache", "log", "redact")
"""What a limit can do; it needs one at least."""


class Target(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which upstreams are meant: those for which every key that is given matches."""

    zone: Words | None = None
    """Where it stands."""
    retention: Words | None = None
    """How long it keeps what it is sent."""
    upstream: Words | None = None
    """Its name in config.toml."""
    model: Words | None = None
    """The upstream's own name of the model."""
    trains: bool | None = None
    """Whether it may learn from what it is sent."""

    def matches(self, option: Option) -> bool:
        """Whether this option is meant."""
        return all(getattr(option, name) in values for name, values in self.given())

    def given(self) -> list[tuple[str, tuple[Any, ...]]]:
        """The keys that the file gives, each with its accepted values."""
        pairs = [(name, getattr(self, name)) for name in self.__struct_fields__]
        return [(name, value if isinstance(value, tuple) else (value,)) for name, value in pairs if value is not None]


class LimitBlock(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One `[[limit]]`: what it takes away from the requests it applies to."""

    name: str
    """Unique over all files; shown in refusals, logs and `gateway explain`."""
    when: dict[str, Any] = {}
    """Facts that must all hold; none: it applies to every request."""
    only: Target | None = None
    """No other upstream may serve."""
    never: Target | None = None
    """These upstreams may not serve."""
    max_cost: Annotated[float, Meta(ge=0)] | None = None
    """Most US dollars that one request may cost in the worst case; an unknown price is above every cap."""
    cache: CacheMode | None = None
    """The most the cache may do: `off`, `exact`, `semantic`."""
    log: Literal["no text"] | None = None
    """`no text`: neither the prompt nor the answer is written to the log."""
    redact: Literal["outside"] | None = None
    """`outside`: what the detector finds is masked in what leaves to a zone other than `local`, and put back into the answer."""


class RouteBlock(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One `[[route]]`: in which order the upstreams that are left are tried. The first that holds is used."""

    name: str
    """Unique in its file."""
    when: dict[str, Any] = {}
    """Facts that must all hold; the last route has none."""
    order_by: Ranking | None = None
    """`cost`, `latency`, or `listed` as in config.toml."""
    use: tuple[str, ...] = ()
    """Upstreams, or `upstream/model`, that come first, in this order."""
    then: Literal["cheapest", "fastest", "listed", "nothing"] | None = None
    """How the rest follows after `use`; without it: `cheapest`."""
    within: Annotated[float, Meta(ge=1)] | None = None
    """Share the load by lot among all whose rank is within this factor of the best."""
    deadline_ms: Annotated[int, Meta(ge=1)] | None = None
    """Longest wait for the first token, over all attempts, in milliseconds."""


class ExpectBlock(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a `[[test]]` demands of the decision."""

    first: str | None = None
    """The upstream, or `upstream/model`, that is tried first."""
    first_not: str | None = None
    """One that is not tried first."""
    refused: bool | None = None
    """Whether nothing may or can serve."""
    only_zone: Words | None = None
    """Every candidate stands in one of these zones; there may be none."""
    cache: CacheMode | None = None
    """What the cache may do."""
    redact: bool | None = None
    """Whether what is found is masked in what leaves."""
    rule: str | None = None
    """Name of the route that ranked."""


class TestBlock(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One `[[test]]`: facts in, demands on the decision out."""

    name: str
    given: dict[str, Any]
    """Facts by name; `text` to be scanned; `down` and `off`: upstreams, or `upstream/model`, that cannot be used."""
    expect: ExpectBlock


class LogBlock(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[log]`: how much text the log may hold."""

    text_up_to: Class | None = None
    """Highest class whose text may be logged. The lowest over all files wins; when no file says so, no text is logged."""


class TermsBlock(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One `[[terms]]`: your own words, found in every request whatever policy routes it."""

    name: str
    """The kind they are found as: letters, digits, `-` and `_`; unique over all files, and no kind of the detector's own."""
    class_: Class = msgspec.field(name="class")
    """Class of a request that holds one of them; it can only raise a request's class."""
    words: tuple[str, ...] = ()
    """Words and phrases, found whole and in any case of letters."""
    file: str | None = None
    """A text file in the policy folder, `*.txt`, with one word or phrase a line; lines that begin with `#` are left out."""


class Shape(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file."""

    policy: str
    """Its name: letters, digits, `-` and `_`; unique over the folder."""
    classes: dict[Class, tuple[str, ...]] = {}
    """By class: the kinds of finding that put a request into it. A kind that no file names is `restricted`."""
    log: LogBlock = LogBlock()
    terms: tuple[TermsBlock, ...] = ()
    limit: tuple[LimitBlock, ...] = ()
    route: tuple[RouteBlock, ...] = ()
    test: tuple[TestBlock, ...] = ()


class Document(Struct, frozen=True):
    """One file, checked by itself."""

    file: TomlFile
    shape: Shape

    def line(self, block: Literal["limit", "route", "test"], index: int) -> str:
        """`file:line` of a block."""
        return self.file.place((block, index)).rpartition(":")[0]


class Vocabulary(Struct, frozen=True):
    """What a policy may mention: the names that config.toml defines, and what stands beside it in the folder."""

    models: tuple[str, ...]
    """Public names."""
    upstreams: tuple[str, ...]
    options: tuple[Option, ...]
    terms: tuple[str, ...] = ()
    """Names of the `[[terms]]` of all files."""
    lists: Mapping[str, str] = MappingProxyType({})
    """The text files beside the policies, by name."""

    def places(self) -> list[str]:
        """What a route may `use`: upstreams, and upstream/model."""
        return [*self.upstreams, *(option.name for option in self.options)]

    def facts(self) -> Known:
        """The words that can occur in a fact."""
        return {**FIXED_WORDS, "model": self.models, "found": (*KIND_NAMES, *self.terms)}


_ABSENT: Mapping[str, str] = MappingProxyType(
    {
        "hedge": "no second copy would be sent; use `within` to share the load",
        "rollout": "the change would reach every request at once; bind a few keys to another policy in config.toml",
        "budget": "nothing would be counted; use max_cost to cap single requests",
        "budgets": "nothing would be counted; use max_cost to cap single requests",
        "probes": "nothing would be probed; use [[test]]",
        "quality": "answers are not graded; order by cost, latency or listed",
        "tenant": 'answers are always kept apart by tenant; use cache = "exact"',
    }
)
"""Words of the format that are not built yet, and what leaving them in would pretend."""

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_TEST_ONLY = ("text", "down", "off")


def read(name: str, text: str, vocabulary: Vocabulary) -> Document:
    """One policy file, strictly. Raises ConfigError with every fault that the file has by itself."""
    file = TomlFile(name, text)
    problems = [*_absent(file), *_when_faults(file, vocabulary.facts())]
    try:
        shape = file.convert(file.data, Shape, ())
    except ConfigError as error:
        told = {problem.place for problem in problems}
        problems += [problem for problem in error.problems if problem.place not in told]
        raise ConfigError(sorted(problems, key=_line_and_column)) from None
    problems += _name_faults(file, shape)
    problems += _class_faults(file, shape)
    problems += _terms_faults(file, shape, vocabulary)
    problems += _limit_faults(file, shape, vocabulary)
    if not problems:
        problems += _unreachable(file, shape)
    problems += _route_faults(file, shape, vocabulary)
    problems += _test_faults(file, shape, vocabulary)
    if problems:
        raise ConfigError(sorted(problems, key=_line_and_column))
    return Document(file, shape)


def _line_and_column(problem: Problem) -> list[int]:
    return [int(part) for part in problem.place.split(":")[-2:]]


def _tables(file: TomlFile) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
    """The limits and routes as they stand in the file, whether or not they are right."""
    for block in ("limit", "route"):
        tables = file.data.get(block)
        for index, table in enumerate(tables if isinstance(tables, list) else ()):
            if isinstance(table, dict):
                yield (block, index), table


def _absent(file: TomlFile) -> Iterator[Problem]:
    """Refuse by name what this version cannot do, before the strict reading calls it merely unknown."""

    def refuse(path: KeyPath, word: str) -> Problem:
        return file.problem(path, f'"{word}" is not available in this version: {_ABSENT[word]}')

    for name in file.data:
        if name in _ABSENT:
            yield refuse((name,), name)
    for path, table in _tables(file):
        for key, value in table.items():
            if key in _ABSENT:
                yield refuse((*path, key), key)
            elif key in {"cache", "order_by"} and isinstance(value, str) and value in _ABSENT:
                yield refuse((*path, key), value)


def _name_faults(file: TomlFile, shape: Shape) -> Iterator[Problem]:
    if not _NAME.fullmatch(shape.policy):
        yield file.problem(
            ("policy",), f'a policy\'s name is made of letters, digits, - and _; write policy = "{_plain_name(shape.policy)}"'
        )
    names = {
        "limit": [limit.name for limit in shape.limit],
        "route": [route.name for route in shape.route],
        "test": [test.name for test in shape.test],
    }
    for block, given in names.items():
        seen: dict[str, str] = {}
        for index, name in enumerate(given):
            here = (block, index, "name")
            if not name.strip():
                yield file.problem(
                    here, f"the {block} needs a name; say in a few words what it is for, since logs and refusals speak by it"
                )
            elif name in seen:
                yield file.problem(here, f'the {block} "{name}" stands at {seen[name]} already; rename one')
            seen.setdefault(name, file.place(here))


def _plain_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "default"


def _class_faults(file: TomlFile, shape: Shape) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for class_, kinds in shape.classes.items():
        for index, kind in enumerate(kinds):
            here = ("classes", class_, index)
            if kind not in KIND_NAMES:
                yield file.problem(here, f'unknown kind "{kind}"{did_you_mean(kind, KIND_NAMES)}')
            elif kind in seen:
                yield file.problem(here, f'the kind "{kind}" is {seen[kind]} already; keep one of the two')
            seen.setdefault(kind, class_)


def _terms_faults(file: TomlFile, shape: Shape, vocabulary: Vocabulary) -> Iterator[Problem]:
    """Names every fault by its place, never by the word: messages are logged."""
    for index, block in enumerate(shape.terms):
        here: KeyPath = ("terms", index)
        if not _NAME.fullmatch(block.name):
            yield file.problem((*here, "name"), "the name of terms is made of letters, digits, - and _")
        elif block.name in KIND_NAMES:
            yield file.problem((*here, "name"), f'"{block.name}" is a kind that the detector finds by itself; take another name')
        if block.file is not None and block.file not in vocabulary.lists:
            hint = did_you_mean(block.file, vocabulary.lists)
            yield file.problem((*here, "file"), f'no list "{block.file}" stands in the policy folder{hint}; it must end in .txt')
        elif not block.words and not listed(vocabulary.lists.get(block.file or "", "")):
            yield file.problem(here, f'the terms "{block.name}" name nothing; give words, or a file that has some')
        for item, word in enumerate(block.words):
            if (fault := _word_fault(word)) is not None:
                yield file.problem((*here, "words", item), fault)
        if block.file is not None:
            folder = file.name.rpartition("/")[0]
            for line, word in listed(vocabulary.lists.get(block.file, "")):
                if (fault := _word_fault(word)) is not None:
                    yield Problem(f"{folder}/{block.file}:{line}:1", fault)


def terms_names(text: str) -> list[str]:
    """The names that a file gives its `[[terms]]`, whether or not the rest of it is right."""
    try:
        blocks = tomllib.loads(text).get("terms")
    except tomllib.TOMLDecodeError:
        return []
    names = [block.get("name") for block in blocks if isinstance(block, dict)] if isinstance(blocks, list) else []
    return [name for name in names if isinstance(name, str)]


def listed(text: str) -> list[tuple[int, str]]:
    """The words of a list file, each with its line."""
    lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    return [(number, line) for number, line in lines if line and not line.startswith("#")]


def _word_fault(word: str) -> str | None:
    if sum(sign.isalnum() for sign in normalise(word)) < LEAST_SIGNS:
        return f"a term has at least {LEAST_SIGNS} letters or digits; this would be found in nearly every request"
    if len(word) > MOST_CHARS:
        return f"a term has at most {MOST_CHARS} characters; take the part that tells"
    return None


def _limit_faults(file: TomlFile, shape: Shape, vocabulary: Vocabulary) -> Iterator[Problem]:
    for index, limit in enumerate(shape.limit):
        here: KeyPath = ("limit", index)
        if all(getattr(limit, effect) is None for effect in EFFECTS):
            yield file.problem(here, f'the limit "{limit.name}" limits nothing; give {", ".join(EFFECTS[:-1])} or {EFFECTS[-1]}')
        for key, target in (("only", limit.only), ("never", limit.never)):
            if target is not None:
                yield from _target_faults(file, (*here, key), target, vocabulary)


def _target_faults(file: TomlFile, path: KeyPath, target: Target, vocabulary: Vocabulary) -> Iterator[Problem]:
    """Zones and retentions are free words, so only a likely slip of the pen is a fault there; names must exist."""
    if not target.given():
        yield file.problem(path, f'"{path[-1]}" names nothing; give one or more of {", ".join(target.__struct_fields__)}')
    strict = {"upstream": vocabulary.upstreams, "model": {option.model for option in vocabulary.options}}
    for key, values in target.given():
        if not values:
            yield file.problem((*path, key), f'"{key}" is an empty list, which matches nothing; list values or remove it')
        for value in values:
            if key in strict and value not in strict[key]:
                yield file.problem((*path, key), f'unknown {key} "{value}"{did_you_mean(value, strict[key])}')
            elif key in {"zone", "retention"}:
                used = {getattr(option, key) for option in vocabulary.options} | {"local" if key == "zone" else "none"}
                hint = did_you_mean(value, used)
                if value not in used and "did you mean" in hint:
                    yield file.problem((*path, key), f'no upstream has {key} "{value}"{hint}')


def _route_faults(file: TomlFile, shape: Shape, vocabulary: Vocabulary) -> Iterator[Problem]:
    places = vocabulary.places()
    final = next((index for index, route in enumerate(shape.route) if not route.when), None)
    for index, route in enumerate(shape.route):
        here: KeyPath = ("route", index)
        if final is not None and index > final:
            name = shape.route[final].name
            message = f'never reached: the route "{name}" above has no `when` and takes every request; move that one to the end'
            yield file.problem(here, message)
        for item, place in enumerate(route.use):
            if place not in places:
                yield file.problem((*here, "use", item), f'unknown upstream "{place}"{did_you_mean(place, places)}')
        yield from _ranking_faults(file, here, route)
    if shape.route and final is None:
        message = (
            'the last route needs to be one without `when`, so that every request has an order; add one with order_by = "cost"'
        )
        yield file.problem(("route", len(shape.route) - 1), message)


def _unreachable(file: TomlFile, shape: Shape) -> Iterator[Problem]:
    """Routes with a `when` that others above hold wherever it does."""
    whens: list[Mapping[str, Condition]] = []
    for index, route in enumerate(shape.route):
        when = {name: parse(name, value) for name, value in route.when.items()}
        if not when:
            break  # the last one, which every file has, so that every request has an order
        if covers := covering(when, whens):
            names = [f'"{shape.route[place].name}" ({_line(file, place)})' for place in covers]
            them = (
                f"the route {names[0]} above takes"
                if len(names) == 1
                else f"the routes {' and '.join(names)} above take together"
            )
            mend = "move it up, narrow what stands above, or remove it"
            yield file.problem(("route", index), f'never reached: {them} every request that "{route.name}" would; {mend}')
        whens.append(when)


def _line(file: TomlFile, index: int) -> str:
    return "line " + file.place(("route", index)).split(":")[-2]


def _ranking_faults(file: TomlFile, here: KeyPath, route: RouteBlock) -> Iterator[Problem]:
    if not route.use and route.order_by is None:
        yield file.problem(here, f'the route "{route.name}" gives no order; give order_by or use')
    if route.use and route.order_by is not None:
        yield file.problem((*here, "order_by"), '"order_by" has no place beside `use`; say in `then` how the rest is ordered')
    if not route.use and route.then is not None:
        yield file.problem((*here, "then"), '"then" orders what comes after `use`, which is not given; use order_by')
    if route.within is not None and route.order_by not in {"cost", "latency"}:
        yield file.problem((*here, "within"), '"within" compares costs or latencies; it needs order_by = "cost" or "latency"')


def _test_faults(file: TomlFile, shape: Shape, vocabulary: Vocabulary) -> Iterator[Problem]:
    places = vocabulary.places()
    for index, test in enumerate(shape.test):
        here: KeyPath = ("test", index)
        yield from _given_faults(file, (*here, "given"), test.given, vocabulary)
        for key in ("first", "first_not"):
            place = getattr(test.expect, key)
            if place is not None and place not in places:
                yield file.problem((*here, "expect", key), f'unknown upstream "{place}"{did_you_mean(place, places)}')
        rules = [route.name for route in shape.route]
        if test.expect.rule is not None and test.expect.rule not in rules:
            hint = did_you_mean(test.expect.rule, rules)
            yield file.problem((*here, "expect", "rule"), f'no route "{test.expect.rule}" in this file{hint}')
        if test.expect == ExpectBlock():
            yield file.problem((*here, "expect"), f"the test demands nothing; give {', '.join(ExpectBlock.__struct_fields__)}")


def _given_faults(file: TomlFile, path: KeyPath, given: Mapping[str, Any], vocabulary: Vocabulary) -> Iterator[Problem]:
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(Facts)}
    for name, value in given.items():
        here = (*path, name)
        if name in {"down", "off"}:
            for place in value if isinstance(value, list) else [value]:
                if place not in vocabulary.places():
                    hint = did_you_mean(str(place), vocabulary.places())
                    yield file.problem(here, f'unknown upstream "{place}"{hint}')
        elif name == "text":
            if not isinstance(value, str):
                yield file.problem(here, '"text" is text to be scanned, in quotes')
        elif name not in fields:
            yield file.problem(here, f'unknown fact "{name}"{did_you_mean(name, [*fields, *_TEST_ONLY])}')
        elif (slip := _slip(name, value, vocabulary)) is not None:
            yield file.problem(here, slip)
        else:
            try:
                file.convert(value, fields[name], here)
            except ConfigError as error:
                yield from error.problems


def _slip(name: str, value: Any, vocabulary: Vocabulary) -> str | None:
    """What is wrong with a word in `given` that must be one of a few."""
    known = vocabulary.facts().get(name, CLASSES if name == "class" else None)
    for word in value if isinstance(value, list) else [value]:
        if known is not None and word not in known:
            return f'unknown {name} "{word}"{did_you_mean(str(word), known)}'
    return None


def _when_faults(file: TomlFile, known: Known) -> Iterator[Problem]:
    for path, table in _tables(file):
        when = table.get("when")
        for name, value in when.items() if isinstance(when, dict) else ():
            try:
                parse(name, value, known)
            except BadConditionError as error:
                yield file.problem((*path, "when", name), str(error))


def folder_faults(documents: Iterable[Document]) -> Iterator[Problem]:
    """What is wrong between files that are right by themselves: names that must be unique over the folder."""
    policies: dict[str, str] = {}
    limits: dict[str, str] = {}
    terms: dict[str, str] = {}
    for document in documents:
        file, shape = document.file, document.shape
        if shape.policy in policies:
            yield file.problem(("policy",), f'the policy "{shape.policy}" is {policies[shape.policy]} already; rename one')
        policies.setdefault(shape.policy, file.place(("policy",)))
        for index, limit in enumerate(shape.limit):
            here = ("limit", index, "name")
            if limit.name in limits:
                yield file.problem(here, f'the limit "{limit.name}" stands at {limits[limit.name]} already; rename one')
            limits.setdefault(limit.name, file.place(here))
        for index, block in enumerate(shape.terms):
            here = ("terms", index, "name")
            if block.name in terms:
                yield file.problem(here, f'the terms "{block.name}" stand at {terms[block.name]} already; rename one')
            terms.setdefault(block.name, file.place(here))
