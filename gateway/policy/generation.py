"""One generation: every policy of a folder and the catalogue of options, compiled. Knows no request, no health and no clock."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import Struct

from gateway import tasks
from gateway.config import CLASSES, Class, Config
from gateway.errors import ConfigError, Problem, did_you_mean
from gateway.facts import Facts
from gateway.policy.conditions import Matcher, parse
from gateway.policy.decision import CacheMode, Option, Removed
from gateway.policy.document import (
    KIND_NAMES,
    NAMED_KINDS,
    Document,
    LimitBlock,
    RouteBlock,
    Shape,
    TestBlock,
    Vocabulary,
    folder_faults,
    listed,
    read,
    terms_names,
)
from gateway.privacy import Detector, Finder, with_terms

HASH_DIGITS = 12

USUAL_OUTPUT_TOKENS = 512
"""Answer length that the expected cost reckons with when the client set no lower bound."""

RANK: Mapping[str, int] = MappingProxyType({class_: rank for rank, class_ in enumerate(CLASSES)})
"""How sensitive a class is, 0 for the least."""


LONG_OUTPUT_TOKENS = 4096
"""Answer length that a cost cap reckons with when the client does not bound it, and too few answers were seen to know better."""


class Binding(Struct, frozen=True):
    """A place in config.toml that names a policy, which must therefore exist and have routes."""

    place: str
    cause: str
    policy: str


class Catalogue(Struct, frozen=True, kw_only=True):
    """What config.toml offers: by public model name, the options that may serve it; and which policies it counts on."""

    upstreams: tuple[str, ...]
    models: dict[str, tuple[Option, ...]]
    substitutable: tuple[str, ...]
    """Public names that stand for anything the policy allows."""
    bindings: tuple[Binding, ...] = ()
    knows_names: bool = True
    """Whether a model is set up that finds the NAMED_KINDS. What was archived without a word of it was checked then."""

    @classmethod
    def of(cls, config: Config) -> Catalogue:
        """The catalogue of a config."""
        return cls(
            upstreams=tuple(config.upstreams),
            models={name: tuple(_options(config, name)) for name in config.models},
            substitutable=tuple(name for name, model in config.models.items() if model.substitutable),
            bindings=tuple(_bindings(config)),
            knows_names=config.names is not None,
        )

    def options(self) -> tuple[Option, ...]:
        """Every option once, in the order of config.toml."""
        return tuple({option.name: option for options in self.models.values() for option in options}.values())


def _bindings(config: Config) -> Iterator[Binding]:
    yield Binding(config.path, "[policies] default", config.policies.default)
    for key in config.keys:
        for policy in (key.policy, *key.policies):
            if policy:
                yield Binding(config.path, f'the key "{key.label}"', policy)


def _options(config: Config, name: str) -> Iterator[Option]:
    for candidate in config.candidates(name):
        upstream = config.upstreams[candidate.upstream]
        yield Option(
            upstream=candidate.upstream,
            model=candidate.model,
            zone=upstream.zone,
            retention=upstream.retention,
            trains=upstream.trains,
            takes_up_to=upstream.takes_up_to,
            capabilities=candidate.capabilities,
            context=candidate.context,
            max_output=candidate.max_output,
            input_usd_per_mtok=candidate.input_usd_per_mtok,
            output_usd_per_mtok=candidate.output_usd_per_mtok,
            cached_input_usd_per_mtok=candidate.cached_input_usd_per_mtok,
        )


class Row(NamedTuple):
    """An option with what `decide` would otherwise work out again on every request."""

    option: Option
    name: str
    bit: int
    """One bit of its own among all options of the catalogue: sets of options are whole numbers."""
    capabilities: frozenset[str]
    rank: int
    """Of the highest class it takes."""
    input_usd: float | None
    """For a million tokens."""
    output_usd: float | None
    long_output: int
    """As `long_output`."""
    usual_output: int
    """Most tokens of answer that its expected cost reckons with."""


def long_output(option: Option) -> int:
    """Tokens of answer that a cap reckons with where the client gives no bound and no figure was learned."""
    return min(option.max_output or LONG_OUTPUT_TOKENS, LONG_OUTPUT_TOKENS)


class Limit(Struct, frozen=True, kw_only=True):
    """A `[[limit]]` ready for use."""

    name: str
    policy: str
    place: str
    """`file:line`."""
    when: dict[str, Any]
    """Empty: it applies to every request."""
    removes: dict[str, Removed]
    """By `upstream/model`: the options that `only` and `never` take away."""
    taken_bits: int
    """The same as a set of `Row.bit`."""
    max_cost: float | None
    cache: CacheMode | None
    hides_text: bool
    redacts: bool
    """Whether it masks what leaves to a zone other than `local`."""
    bit: int
    """One of its own among all limits."""
    whole_classes: tuple[Class, ...]
    """Classes of which it applies to every request, whatever else that is."""
    cause: str
    """How reasons name it."""
    too_dear: str
    """How they name its `max_cost`."""


class Route(Struct, frozen=True, kw_only=True):
    """A `[[route]]` ready for use."""

    name: str
    place: str
    when: dict[str, Any]
    order: Literal["cost", "latency", "listed", "nothing"]
    """How what is not in `use` is ordered; `nothing`: it is not tried."""
    use: tuple[frozenset[str], ...] = ()
    """One set of `upstream/model` for each entry, in the order of the file."""
    places: dict[str, int] = {}
    """By `upstream/model`: the first entry of `use` that means it."""
    within: float | None = None
    deadline_ms: int | None = None


class Policy(Struct, frozen=True, kw_only=True):
    """The routes of one file. Its limits are not here: those of every file apply to every request."""

    name: str
    file: str
    routes: tuple[Route, ...]
    matcher: Matcher
    """Of the limits of all files, and after them of these routes."""
    tests: tuple[tuple[str, TestBlock], ...]
    """With `file:line`."""


class Source(Struct, frozen=True, kw_only=True):
    """A generation as it is archived and handed to other processes."""

    format: Literal[1] = 1
    hash: str
    folder: str
    files: dict[str, str]
    catalogue: Catalogue


Beside = Callable[[Detector, frozenset[str]], Finder]
"""Makes one of what goes by patterns and of a model that knows names of these kinds."""


class Generation:
    """All policies and the catalogue, compiled once and never changed. Raises ConfigError where they do not fit together."""

    def __init__(
        self, files: Mapping[str, str], catalogue: Catalogue, *, folder: str = "policies", beside: Beside | None = None
    ) -> None:
        """`beside` adds names to what is found by patterns, for whoever has a model that knows them."""
        self.files = dict(files)
        self.catalogue = catalogue
        self.folder = folder
        documents = _documents(files, catalogue, folder)
        self.terms = _terms(documents, files)
        """By kind: the customer's words. Never logged, and shown to nobody."""
        self.hash = _hash(documents, catalogue, files)
        self.classes: dict[str, Class] = _classes(documents)
        self.patterns = with_terms(self.terms)
        """What finds sensitive text by patterns and words while these policies are in force."""
        self.named = frozenset(kind for kind in NAMED_KINDS if kind in self.classes)
        """Kinds of names that these policies ask for."""
        self.detector: Finder = beside(self.patterns, self.named) if beside is not None and self.named else self.patterns
        """What finds sensitive text: patterns, and names where they are asked for."""
        self.log_text_up_to: Class | None = _log_text_up_to(documents)
        self.asked = frozenset(_asked(documents))
        """Facts that a decision may hang on, by their names in the log."""
        self.asks_task = "task" in self.asked
        if self.asks_task:
            tasks.load()
        self.limits = tuple(_limits(documents, catalogue))
        self.policies = {document.shape.policy: _policy(document, catalogue, self.limits) for document in documents}
        self.limit_bits = (1 << len(self.limits)) - 1
        self._labels = {name: f"{name}@{self.hash}" for name in self.policies}
        bits = _bits(catalogue)
        self._rows = {name: tuple(_row(option, bits) for option in options) for name, options in catalogue.models.items()}
        self._every = tuple(_row(option, bits) for option in catalogue.options())
        self.local_rows = tuple(row for row in self._every if row.option.zone == "local")
        self.size_steps = sorted(_size_steps(self.limits))
        """Sizes of prompts at which some limit begins or ceases to hold."""
        caps = [limit.max_cost for limit in self.limits if limit.max_cost is not None]
        self.lowest_cap = min(caps, default=None)
        """Of all limits on costs, whether or not they hold."""
        self._contexts = {
            name: sorted({row.option.context for row in (*rows, *self.local_rows) if row.option.context is not None})
            for name, rows in self._rows.items()
        }
        self._pairs: dict[str, tuple[tuple[str, str], ...]] = {}
        contexts = [row.option.context for row in self._every if row.option.context is not None]
        self.shortest_context: float = min(contexts, default=math.inf)
        """What is no longer than this, in tokens, fits every option."""
        self.known: dict[Any, Any] = {}
        """What `decide` has worked out before for requests of the same kind; follows from all else and may be cleared."""
        self.notes = tuple(_notes(documents, catalogue, self.limits))
        """What is worth a look, though it may be meant; shown by `gateway check`."""

    def options_for(self, model: str) -> tuple[Option, ...]:
        """Who may serve a public model name; nobody for an unknown one."""
        return self.catalogue.models.get(model, ())

    def rows_for(self, model: str) -> tuple[Row, ...]:
        """As `options_for`, in the form `decide` works on."""
        return self._rows.get(model, ())

    def contexts(self, model: str) -> list[int]:
        """The context lengths of a model's options and of the local ones, ascending."""
        return self._contexts.get(model, [])

    def pairs(self, model: str) -> tuple[tuple[str, str], ...]:
        """(upstream, model) of every option that a request for this model may come to: its own and the local ones."""
        found = self._pairs.get(model)
        if found is None:
            rows = dict.fromkeys((*self.rows_for(model), *self.local_rows))
            found = tuple((row.option.upstream, row.option.model) for row in rows)
            if model in self._rows:
                self._pairs[model] = found
        return found

    def reach(self, class_: Class) -> tuple[Option, ...]:
        """Who may ever see a request of this class: what its upstream takes, without what limits on the class alone take away."""
        taken = sum(row.bit for row in self._every if RANK[class_] > row.rank)
        for limit in self.limits:
            if class_ in limit.whole_classes:
                taken |= limit.taken_bits
        return tuple(row.option for row in self._every if not row.bit & taken)

    def label(self, policy_name: str) -> str:
        """`NAME@HASH`, as headers and logs write it."""
        return self._labels[policy_name]

    def source(self) -> bytes:
        """Everything the generation is made of, as one JSON document."""
        parts = Source(hash=self.hash, folder=self.folder, files=self.files, catalogue=self.catalogue)
        return msgspec.json.encode(parts, order="deterministic")

    @classmethod
    def from_source(cls, document: bytes, *, beside: Beside | None = None) -> Generation:
        """Open what `source` wrote. Raises ConfigError when it is damaged or was made by an incompatible version."""
        try:
            parts = msgspec.json.decode(document, type=Source)
        except msgspec.MsgspecError as error:
            raise ConfigError([Problem("archived policies", f"damaged: {error}")]) from None
        generation = cls(parts.files, parts.catalogue, folder=parts.folder, beside=beside)
        if generation.hash != parts.hash:
            message = (
                f"the content is {generation.hash}, not {parts.hash} as it says: it was changed, or written by another version"
            )
            raise ConfigError([Problem("archived policies", message)])
        return generation

    def with_catalogue(self, catalogue: Catalogue) -> Generation:
        """The same policies over another catalogue. Raises ConfigError where they name what it does not have."""
        return Generation(self.files, catalogue, folder=self.folder)


def load(config: Config, folder: Path) -> Generation:
    """Read every policy file of a folder. Raises ConfigError with every problem found, each with place and mend."""
    return Generation(read_folder(folder), Catalogue.of(config), folder=folder.name)


def policy_files(folder: Path) -> list[Path]:
    """The policies and word lists of a folder, by name; hidden ones (an editor's locks and copies) are not among them."""
    return sorted(path for end in ("*.toml", "*.txt") for path in folder.glob(end) if not path.name.startswith("."))


def read_folder(folder: Path) -> dict[str, str]:
    """File name → text. Raises ConfigError when there is nothing to read, or something cannot be read."""
    if not folder.is_dir():
        raise ConfigError([Problem(str(folder), "is not a folder; [policies] folder in config.toml names it")])
    found: dict[str, str] = {}
    problems = []
    for path in policy_files(folder):
        try:
            found[path.name] = path.read_text(encoding="utf-8")
        except OSError as error:
            problems.append(Problem(f"{folder.name}/{path.name}", f"cannot be read: {error.strerror}"))
        except UnicodeDecodeError:
            problems.append(Problem(f"{folder.name}/{path.name}", "is not UTF-8 text"))
    if not problems and not any(name.endswith(".toml") for name in found):
        problems.append(Problem(str(folder), "holds no policy (*.toml); put at least one with a [[route]] there"))
    if problems:
        raise ConfigError(problems)
    return found


def lost(old: Generation, new: Generation) -> list[str]:
    """What a change from `old` to `new` loses, in words.

    Files, limits, terms, classes that are lowered, names that are not looked for, text that may now be logged.
    """
    files = {name: policy.file for name, policy in old.policies.items() if name not in new.policies}
    found = [f'the policy "{name}" ({file})' for name, file in files.items()]
    kept = {limit.name for limit in new.limits}
    found += [f"the {limit.cause}" for limit in old.limits if limit.name not in kept]
    for kind, words in old.terms.items():
        gone = len(set(words) - set(new.terms.get(kind, ())))
        if kind not in new.terms:
            found.append(f'the terms "{kind}"')
        elif gone:
            found.append(f'{gone} of the words of the terms "{kind}"')
    for kind in sorted(old.classes.keys() & new.classes.keys()):
        before, after = (RANK[generation.classes.get(kind, "restricted")] for generation in (old, new))
        if after < before:
            found.append(f'the class of "{kind}": {CLASSES[before]}, lowered to {CLASSES[after]}')
    found += [f'the search for "{kind}" by a model' for kind in sorted(old.named - new.named)]
    if _text_rank(new) > _text_rank(old):
        found.append(f"text out of the log: text_up_to was {old.log_text_up_to or 'nothing'}, raised to {new.log_text_up_to}")
    return found


def _text_rank(generation: Generation) -> int:
    return RANK[generation.log_text_up_to] if generation.log_text_up_to else -1


def _documents(files: Mapping[str, str], catalogue: Catalogue, folder: str) -> list[Document]:
    policies = sorted((name, text) for name, text in files.items() if not name.endswith(".txt"))
    lists = {name: text for name, text in files.items() if name.endswith(".txt")}
    names = tuple(name for _, text in policies for name in terms_names(text))
    vocabulary = Vocabulary(tuple(catalogue.models), catalogue.upstreams, catalogue.options(), names, lists)
    documents = []
    problems: list[Problem] = []
    for name, text in policies:
        try:
            documents.append(read(f"{folder}/{name}", text, vocabulary))
        except ConfigError as error:
            problems.extend(error.problems)
    problems.extend(folder_faults(documents))
    if not problems:
        problems.extend(_binding_faults(documents, catalogue, folder))
        problems.extend(_name_faults(documents, catalogue))
        problems.extend(_closed_classes(documents, catalogue))
    if problems:
        raise ConfigError(problems)
    return documents


def _binding_faults(documents: Iterable[Document], catalogue: Catalogue, folder: str) -> Iterator[Problem]:
    files = {document.shape.policy: document for document in documents}
    routed = [name for name, document in files.items() if document.shape.route]
    for binding in catalogue.bindings:
        names = f'{binding.cause} names the policy "{binding.policy}"'
        if binding.policy not in files:
            yield Problem(binding.place, f"{names}, which no file in {folder}/ has{did_you_mean(binding.policy, routed)}")
        elif binding.policy not in routed:
            file = files[binding.policy].file.name
            yield Problem(binding.place, f"{names}, but {file} has no [[route]]; add one, or name another policy")


def _name_faults(documents: Collection[Document], catalogue: Catalogue) -> Iterator[Problem]:
    """Kinds of names that nobody would look for, wherever a file counts on them."""
    mapped = {kind for document in documents for kinds in document.shape.classes.values() for kind in kinds}
    for document in documents:
        shape = document.shape
        for class_, kinds in shape.classes.items():
            for index, kind in enumerate(kinds):
                if kind in NAMED_KINDS and not catalogue.knows_names:
                    mend = "set one up as [names] in config.toml (docs/privacy.md), or leave the kind out"
                    yield document.file.problem(
                        ("classes", class_, index), f'"{kind}" is found by a model only, and none is set up; {mend}'
                    )
        rules = [("limit", index, block.when) for index, block in enumerate(shape.limit)]
        rules += [("route", index, block.when) for index, block in enumerate(shape.route)]
        for block, index, when in rules:
            asked = when.get("found", ())
            for kind in [asked] if isinstance(asked, str) else asked:
                if kind in NAMED_KINDS and kind not in mapped:
                    message = f'"{kind}" is looked for only where a file maps it to a class; add it to a list under [classes]'
                    yield document.file.problem((block, index, "when", "found"), message)


def _terms(documents: Iterable[Document], files: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    found = {}
    for document in documents:
        for block in document.shape.terms:
            words = {*block.words, *(word for _, word in listed(files.get(block.file or "", "")))}
            found[block.name] = tuple(sorted(words))
    return found


def _hash(documents: Iterable[Document], catalogue: Catalogue, files: Mapping[str, str]) -> str:
    """SHA-256 over what decides: the parsed files without comments and tests, the words of lists, and the catalogue."""
    used = {block.file for document in documents for block in document.shape.terms if block.file is not None}
    lists = {name: sorted({word for _, word in listed(files[name])}) for name in used}
    policies = sorted(
        ({key: value for key, value in document.file.data.items() if key != "test"} for document in documents),
        key=lambda data: str(data["policy"]),
    )
    canonical = json.dumps(
        [policies, catalogue.upstreams, msgspec.to_builtins(catalogue.models), *([lists] if lists else [])],
        sort_keys=True,
        separators=(",", ":"),
    )
    return hashlib.sha256(canonical.encode()).hexdigest()[:HASH_DIGITS]


def _classes(documents: Iterable[Document]) -> dict[str, Class]:
    """Kind → class; the highest wins where files differ, and what nobody names is restricted. Names are looked for on demand."""
    ranks: dict[str, int] = {}
    for document in documents:
        for class_, kinds in document.shape.classes.items():
            for kind in kinds:
                ranks[kind] = max(ranks.get(kind, 0), RANK[class_])
    searched = [kind for kind in KIND_NAMES if kind not in NAMED_KINDS or kind in ranks]
    found: dict[str, Class] = {kind: CLASSES[ranks.get(kind, RANK["restricted"])] for kind in searched}
    return found | {block.name: block.class_ for document in documents for block in document.shape.terms}


def _log_text_up_to(documents: Iterable[Document]) -> Class | None:
    said = [document.shape.log.text_up_to for document in documents]
    return min((class_ for class_ in said if class_ is not None), key=RANK.__getitem__, default=None)


def _limits(documents: Iterable[Document], catalogue: Catalogue) -> Iterator[Limit]:
    bits = _bits(catalogue)
    own_bits = (1 << number for number in count())
    for document in documents:
        for index, block in enumerate(document.shape.limit):
            place = document.line("limit", index)
            removes = _removes(block, place, catalogue.options())
            yield Limit(
                name=block.name,
                policy=document.shape.policy,
                place=place,
                when=block.when,
                removes=removes,
                taken_bits=sum(bits[name] for name in removes),
                max_cost=block.max_cost,
                cache=block.cache,
                hides_text=block.log is not None,
                redacts=block.redact is not None,
                bit=next(own_bits),
                whole_classes=tuple(class_ for class_ in CLASSES if _covers(block, class_)),
                cause=f'limit "{block.name}" ({place})',
                too_dear="" if block.max_cost is None else f'limit "{block.name}" ({place}): the cap is ${block.max_cost:.6g}',
            )


def _removes(block: LimitBlock, place: str, options: Iterable[Option]) -> dict[str, Removed]:
    reason = f'limit "{block.name}" ({place})'
    return {
        option.name: Removed(option=option.name, by="limit", reason=reason) for option in options if not _keeps(block, option)
    }


def _keeps(block: LimitBlock, option: Option) -> bool:
    if block.only is not None and not block.only.matches(option):
        return False
    return block.never is None or not block.never.matches(option)


def _policy(document: Document, catalogue: Catalogue, limits: Iterable[Limit]) -> Policy:
    routes = enumerate(document.shape.route)
    made = tuple(_route(block, document.line("route", index), catalogue) for index, block in routes)
    tests = enumerate(document.shape.test)
    return Policy(
        name=document.shape.policy,
        file=document.file.name,
        routes=made,
        matcher=Matcher([limit.when for limit in limits], [route.when for route in made]),
        tests=tuple((document.line("test", index), block) for index, block in tests),
    )


def _route(block: RouteBlock, place: str, catalogue: Catalogue) -> Route:
    options = catalogue.options()
    uses = tuple(frozenset(option.name for option in options if use in {option.upstream, option.name}) for use in block.use)
    return Route(
        name=block.name,
        place=place,
        when=block.when,
        order=block.order_by or _order_after(block),
        use=uses,
        places={name: place for place, names in reversed(list(enumerate(uses))) for name in names},
        within=block.within,
        deadline_ms=block.deadline_ms,
    )


def _order_after(block: RouteBlock) -> Literal["cost", "latency", "listed", "nothing"]:
    match block.then:
        case "fastest":
            return "latency"
        case "listed" | "nothing":
            return block.then
        case _:
            return "cost"


_ALWAYS_ASKED = (
    *(
        "class",
        "endpoint",
        "model",
        "needs",
        "prompt_tokens",
        "prompt_tokens_high",
        "max_output",
        "deadline_ms",
        "seed",
        "stores",
        "via_chat",
    ),
)
"""Facts that every decision looks at, whatever the files ask."""


def _asked(documents: Collection[Document]) -> Iterator[str]:
    yield from _ALWAYS_ASKED
    for document in documents:
        for limit in document.shape.limit:
            yield from limit.when
        for route in document.shape.route:
            yield from route.when
    if any(_weighs_cost(document.shape) for document in documents):
        yield "choices"


def _weighs_cost(shape: Shape) -> bool:
    """Whether a price can change a decision: by a cap, or by an order."""
    by_cost = any(route.order_by == "cost" or (route.use and _order_after(route) == "cost") for route in shape.route)
    return by_cost or any(limit.max_cost is not None for limit in shape.limit)


def _size_steps(limits: Iterable[Limit]) -> Iterator[float]:
    for limit in limits:
        if "prompt_tokens" in limit.when:
            for low, high in parse("prompt_tokens", limit.when["prompt_tokens"]).ranges:
                yield from (low, high + 1)


def _bits(catalogue: Catalogue) -> dict[str, int]:
    return {option.name: 1 << index for index, option in enumerate(catalogue.options())}


def _row(option: Option, bits: Mapping[str, int]) -> Row:
    return Row(
        option,
        option.name,
        bits[option.name],
        frozenset(option.capabilities),
        RANK[option.takes_up_to],
        option.input_usd_per_mtok,
        option.output_usd_per_mtok,
        long_output(option),
        option.max_output or USUAL_OUTPUT_TOKENS,
    )


def _closed_classes(documents: list[Document], catalogue: Catalogue) -> Iterator[Problem]:
    """Classes that an upstream takes while limits leave nobody for them: config and policy contradict each other."""
    closed: dict[tuple[str, int], list[str]] = {}
    for class_ in CLASSES:
        left = [option for option in catalogue.options() if RANK[option.takes_up_to] >= RANK[class_]]
        for document in documents:
            for index, block in enumerate(document.shape.limit):
                if left and _covers(block, class_):
                    left = [option for option in left if _keeps(block, option)]
                    if not left:
                        closed.setdefault((document.shape.policy, index), []).append(class_)
    for document in documents:
        for index, block in enumerate(document.shape.limit):
            if classes := closed.get((document.shape.policy, index)):
                message = (
                    f'the limit "{block.name}" leaves no upstream for requests of class {", ".join(classes)}, though one takes '
                    "them: widen the limit, or lower takes_up_to in config.toml when they are to be refused"
                )
                yield document.file.problem(("limit", index), message)


def _covers(block: LimitBlock, class_: Class) -> bool:
    """Whether a limit applies to every request of the class, whatever else the request is."""
    if set(block.when) - {"class"}:
        return False
    return bool(Matcher([block.when]).held(Facts(endpoint="", model="", class_=class_)))


def _notes(documents: Iterable[Document], catalogue: Catalogue, limits: Iterable[Limit]) -> Iterator[Problem]:
    options = catalogue.options()
    for rank, class_ in enumerate(CLASSES):
        if options and all(RANK[option.takes_up_to] < rank for option in options):
            yield Problem("config.toml", f"no upstream takes the class {class_}: such requests are refused")
    for limit in limits:
        for option in options:
            if limit.max_cost is not None and option.name not in limit.removes and _price_missing(option):
                yield Problem(limit.place, f'{option.name} has no price, so it is never eligible under the limit "{limit.name}"')
    for document in documents:
        for index, block in enumerate(document.shape.limit):
            for key, target in (("only", block.only), ("never", block.never)):
                yield from _unmatched(document, ("limit", index, key), target, options)


def _price_missing(option: Option) -> bool:
    if option.input_usd_per_mtok is None:
        return True
    return option.output_usd_per_mtok is None and option.capabilities != ("embeddings",)


def _unmatched(document: Document, path: tuple[str | int, ...], target: Any, options: Iterable[Option]) -> Iterator[Problem]:
    if target is not None and not any(target.matches(option) for option in options):
        yield document.file.problem(path, f'no upstream is meant by this "{path[-1]}" today')
