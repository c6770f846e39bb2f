"""Decide logged requests again under other policies, from the log alone. Sees no text, reads no clock, calls nobody.

A decision hangs on facts, health and seed, all of which stand in its `route.decided` line; so it is made again exactly. What
the log cannot know (a zone that nobody measured, a class that was never worked out) is counted as not replayable, with its
reason, and never guessed.
"""

from __future__ import annotations

import gzip
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import msgspec
from msgspec import UNSET, Struct, UnsetType, defstruct, field
from msgspec.structs import astuple, fields, replace
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gateway import catalog, tasks
from gateway.config import CLASSES, Class
from gateway.errors import ConfigError
from gateway.facts import Facts, detector_version
from gateway.ledger import Usage
from gateway.logs import MASK
from gateway.policy.decide import decide, expected_cost_usd, expected_ttft_ms, pin
from gateway.policy.decision import Decision, Health, Option
from gateway.policy.generation import RANK, USUAL_OUTPUT_TOKENS, Generation
from gateway.privacy import highest

HEAD_BYTES = 96
"""Within its first bytes every line names its event."""
WAITING_LINES = 100_000
"""Decided requests that wait for their `request.closed` line, which tells their tokens; beyond, they are estimated."""
PROGRESS_LINES = 4096
"""Progress is told every so many lines."""
SHOWN_IDS = 3
"""Request ids that are kept of each new flow, for `gateway explain`."""
NOBODY = "nobody"
"""Zone of what is refused."""

_DECIDED = b'"event":"route.decided"'
_CLOSED = b'"event":"request.closed"'
_MASKED = f'"{MASK}"'.encode()


F = TypeVar("F", bound=Facts)


class _Decided(Struct, Generic[F]):
    """What is read of a `route.decided` line."""

    request_id: str
    facts: F
    health: dict[str, Health]
    policy: str
    rule: str
    order: tuple[str, ...]
    cache: str
    limits: tuple[str, ...]
    refusal: str | None
    detector: str = ""
    classifier: str = ""
    pinned: str | None = None
    redact: bool = False


def _logged(asked: Collection[str]) -> type[Facts]:
    """Facts of which those that are asked for, by their names in the log, are UNSET where a line lacks them."""
    lacking = [
        (one.name, one.type | UnsetType, field(default=UNSET, name=one.encode_name))
        for one in fields(Facts)
        if one.encode_name in asked and not one.required
    ]
    return cast("type[Facts]", defstruct("Facts", lacking, bases=(Facts,), frozen=True, kw_only=True))


class _Closed(Struct):
    """What is read of a `request.closed` line."""

    request_id: str
    usage: Usage = field(default_factory=Usage)
    cache: str = "off"


class Side(Struct, kw_only=True):
    """What goes along one flow under one of the two policies."""

    requests: int = 0
    """First choice of so many requests."""
    tokens: int = 0
    """Prompt and answer of these."""
    cost_usd: float = 0.0
    """What they cost; a request without a known price on either side is in neither."""
    may_reach: int = 0
    """Requests with a candidate there, be it the last to be tried."""


class Flow(Struct, kw_only=True):
    """Requests of one class, as it was when they were sent, to one zone."""

    class_: str = field(name="class")
    zone: str
    """`nobody`: refused."""
    before: Side = field(default_factory=Side)
    after: Side = field(default_factory=Side)
    opened: int = 0
    """Requests that could not reach the zone before and can now."""
    examples: list[str] = []
    """Ids of some of these."""

    @property
    def is_new(self) -> bool:
        """Whether no request of this class could reach the zone before, and some can now."""
        return self.zone != NOBODY and self.after.may_reach > 0 and self.before.may_reach == 0


class Spread(Struct, frozen=True):
    """Predicted time to first token of the first choices, in milliseconds, by nearest rank."""

    p50: float | None = None
    p95: float | None = None
    unmeasured: int = 0
    """First choices of which nothing was measured."""


class Replay(Struct, frozen=True, kw_only=True):
    """What the candidate policies would have made of the logged requests."""

    hash: str
    """Of the candidate generation."""
    lines: int
    damaged: int
    """Lines that could not be read."""
    decisions: int
    """`route.decided` lines."""
    replayed: int
    same: int
    """Same order, cache mode, masks and refusal."""
    changed: int
    """Same first choice, but another order behind it, cache mode, masks, or cause of refusal."""
    moved: int
    """Another first choice, or refused where it was not, or the other way round."""
    unmasked: int
    """Requests that could leave the house masked only, and could now leave it as they are."""
    not_replayable: dict[str, int]
    """By reason."""
    new_flows: list[Flow]
    """Class → zone where nothing of that class could go before."""
    flows: list[Flow]
    """All of them, the new ones too."""
    moves: list[tuple[str, str, int]]
    """From, to, requests; most first."""
    cost_before_usd: float
    cost_after_usd: float
    unpriced: int
    """Requests of which a price is not known on one side; they are in neither sum."""
    ttft_before_ms: Spread
    ttft_after_ms: Spread
    estimated: int
    """Requests without counted tokens, which were reckoned with the estimate."""
    from_cache: int
    """Requests that the cache answered; they are counted as if it had not."""
    assumed_up: int
    """Requests whose first choice now is an option that their model did not have then, and is taken to be up."""

    @property
    def moved_share(self) -> float:
        """Of the replayed, from 0 to 1."""
        return self.moved / self.replayed if self.replayed else 0.0


class _Past:
    """The generation that a line was decided under, with what is asked of it for every line."""

    def __init__(self, name: str, generation: Generation, now: Generation) -> None:
        self.name = name
        self.generation = generation
        self.options = {option.name: option for option in generation.catalogue.options()}
        self.zones = {name: option.zone for name, option in self.options.items()}
        self.same_classes = generation.classes == now.classes
        self.same_terms = generation.terms == now.terms
        self.same_rules = generation.hash == now.hash


class _Open(Struct):
    """A replayed request whose tokens are not known yet."""

    facts: Facts
    before: Option | None
    after: Option | None
    flow_before: Flow
    flow_after: Flow


class Replayer:
    """Takes log lines in the order of the log, one by one, and sums what would have been different."""

    def __init__(self, now: Generation, past: Callable[[str], Generation]) -> None:
        """`past(hash)` opens an archived generation and raises ConfigError where it cannot."""
        self._now = now
        self._open_past = past
        self._pasts: dict[str, _Past | str] = {}
        self._options = {option.name: option for option in now.catalogue.options()}
        self._decided = msgspec.json.Decoder(_Decided[_logged(now.asked)])  # type: ignore[misc]  # made for these policies
        self._closed = msgspec.json.Decoder(_Closed)
        self._waiting: dict[str, _Open] = {}
        self._lost: Counter[str] = Counter()
        self._flows: dict[tuple[str, str], Flow] = {}
        self._moves: Counter[tuple[str, str]] = Counter()
        self._ttft: tuple[array[float], array[float]] = (array("d"), array("d"))
        self._unmeasured = [0, 0]
        self._cost = [0.0, 0.0]
        self._lines = self._damaged = self._decisions = self._same = self._changed = self._moved = self._unmasked = 0
        self._unpriced = self._estimated = self._from_cache = self._assumed_up = 0

    def feed(self, raw: bytes) -> None:
        """One line with its newline."""
        self._lines += 1
        if not raw.endswith(b"}\n"):
            self._damaged += 1
        elif raw.find(_DECIDED, 0, HEAD_BYTES) > 0:
            try:
                line = self._decided.decode(raw)
            except msgspec.MsgspecError:
                self._damaged += 1
                return
            self._decisions += 1
            self._again(line, raw)
        elif self._waiting and raw.find(_CLOSED, 0, HEAD_BYTES) > 0:
            try:
                closed = self._closed.decode(raw)
            except msgspec.MsgspecError:
                self._damaged += 1
                return
            if (known := self._waiting.pop(closed.request_id, None)) is not None:
                self._from_cache += closed.cache.startswith("hit")
                self._settle(known, closed.usage)

    def decide(self, line: _Decided[Facts], raw: bytes) -> Decision | str:
        """The decision that the candidate policies make of a line, or the reason why that cannot be known."""
        past = self._past(line.policy)
        if isinstance(past, str):
            return past
        if _MASKED in raw:
            return "a fact was masked in the log, because it looks like a key"
        values = astuple(line.facts)
        if UNSET in values:
            asked = line.facts.__struct_encode_fields__[values.index(UNSET)]
            return f'the policy asks for "{asked}", which was not logged yet'
        if line.detector != detector_version():
            return f"the detector has changed since ({line.detector or 'not logged'})"
        if not past.same_terms:
            return "the customer terms have changed since"
        if self._now.asks_task and line.classifier != tasks.version():
            return (
                "the task was not worked out then"
                if not line.classifier
                else f"the classifier has changed since ({line.classifier})"
            )
        facts = line.facts
        if not past.same_classes:
            class_ = _class_now(facts, past.generation, self._now, floor_logged=b'"class_floor":' in raw)
            if class_ is None:
                return "its class may be lower now, and by how much was not logged"
            facts = replace(facts, class_=class_)
        decision = decide(self._now, past.name, facts, line.health)
        return pin(decision, facts, line.pinned) if line.pinned else decision

    def _again(self, line: _Decided[Facts], raw: bytes) -> None:
        decision = self.decide(line, raw)
        past = self._pasts[line.policy]
        if isinstance(decision, str) or isinstance(past, str):
            self._lost[str(decision)] += 1
            return
        order = tuple([chosen.option.name for chosen in decision.candidates])
        first_before, first_after = line.order[0] if line.order else "", order[0] if order else ""
        refusal = decision.refusal.kind if decision.refusal else None
        same_rules = not past.same_rules or (line.rule == decision.rule and line.limits == decision.limits)
        then = (line.order, line.cache, line.redact, line.refusal)
        if first_before != first_after:
            self._moved += 1
            self._moves[first_before or f"refused: {line.refusal}", first_after or f"refused: {refusal}"] += 1
        elif same_rules and then == (order, decision.cache, decision.redact, refusal):
            self._same += 1
        else:
            self._changed += 1
        reaches = {chosen.option.zone for chosen in decision.candidates}
        self._unmasked += line.redact and not decision.redact and not reaches <= {"local"}
        before = past.options.get(first_before)
        after = decision.candidates[0].option if decision.candidates else None
        if after is not None and after.name not in line.health:
            self._assumed_up += (after.upstream, after.model) not in past.generation.pairs(line.facts.model)
        self._time(0, first_before, line.health)
        self._time(1, first_after, line.health)
        flow_before, flow_after = self._flow(line, past, before, after, reaches)
        self._waiting[line.request_id] = _Open(line.facts, before, after, flow_before, flow_after)
        if len(self._waiting) > WAITING_LINES:
            self._settle(self._waiting.pop(next(iter(self._waiting))), Usage())

    def _flow(
        self, line: _Decided[Facts], past: _Past, before: Option | None, after: Option | None, reaches: set[str]
    ) -> tuple[Flow, Flow]:
        """Count where the request went and goes, and could; the flows of its first choices."""
        class_, zones = line.facts.class_, past.zones
        reached = {zones[name] for name in line.order if name in zones}
        for zone in reached | reaches:
            flow = self._between(class_, zone)
            flow.before.may_reach += zone in reached
            if zone in reaches:
                flow.after.may_reach += 1
                if zone not in reached:
                    flow.opened += 1
                    if len(flow.examples) < SHOWN_IDS:
                        flow.examples.append(line.request_id)
        flow_before = self._between(class_, before.zone if before else NOBODY)
        flow_after = self._between(class_, after.zone if after else NOBODY)
        flow_before.before.requests += 1
        flow_after.after.requests += 1
        return flow_before, flow_after

    def _between(self, class_: str, zone: str) -> Flow:
        flow = self._flows.get((class_, zone))
        if flow is None:
            flow = self._flows[class_, zone] = Flow(class_=class_, zone=zone, examples=[])
        return flow

    def _time(self, side: int, first: str, health: Mapping[str, Health]) -> None:
        if first:
            state = health.get(first)
            ttft_ms = expected_ttft_ms(state) if state is not None else None
            if ttft_ms is None:
                self._unmeasured[side] += 1
            else:
                self._ttft[side].append(ttft_ms)

    def _settle(self, known: _Open, usage: Usage) -> None:
        """Add the tokens and costs of a request to its flows, once they are known or known to be missing."""
        tokens = usage.prompt_tokens + usage.completion_tokens
        facts = known.facts
        counted = tokens > 0
        if not counted:
            self._estimated += 1
            tokens = facts.prompt_tokens + min(facts.max_output or USUAL_OUTPUT_TOKENS, USUAL_OUTPUT_TOKENS)
        known.flow_before.before.tokens += tokens
        known.flow_after.after.tokens += tokens
        costs = [_cost_usd(option, facts, usage if counted else None) for option in (known.before, known.after)]
        if costs[0] is None or costs[1] is None:
            self._unpriced += 1
        else:
            self._cost[0] += costs[0]
            self._cost[1] += costs[1]
            known.flow_before.before.cost_usd += costs[0]
            known.flow_after.after.cost_usd += costs[1]

    def _past(self, label: str) -> _Past | str:
        found = self._pasts.get(label)
        if found is None:
            found = self._pasts[label] = self._find_past(label)
        return found

    def _find_past(self, label: str) -> _Past | str:
        name, _, hash_ = label.partition("@")
        policy = self._now.policies.get(name)
        if policy is None or not policy.routes:
            return f'the policy "{name}" is not among the candidate policies'
        if hash_ == self._now.hash:
            return _Past(name, self._now, self._now)
        try:
            return _Past(name, self._open_past(hash_), self._now)
        except ConfigError as error:
            return f"the generation @{hash_} cannot be opened: {error.problems[0].message}"

    def result(self) -> Replay:
        """The sums of all that was fed; requests that never closed are reckoned with their estimates."""
        for known in self._waiting.values():
            self._settle(known, Usage())
        self._waiting.clear()
        flows = sorted(self._flows.values(), key=lambda flow: (-RANK.get(flow.class_, 0), flow.zone))
        return Replay(
            hash=self._now.hash,
            lines=self._lines,
            damaged=self._damaged,
            decisions=self._decisions,
            replayed=self._same + self._changed + self._moved,
            same=self._same,
            changed=self._changed,
            moved=self._moved,
            unmasked=self._unmasked,
            not_replayable=dict(self._lost.most_common()),
            new_flows=[flow for flow in flows if flow.is_new],
            flows=flows,
            moves=[(*pair, count) for pair, count in self._moves.most_common()],
            cost_before_usd=self._cost[0],
            cost_after_usd=self._cost[1],
            unpriced=self._unpriced,
            ttft_before_ms=_spread(self._ttft[0], self._unmeasured[0]),
            ttft_after_ms=_spread(self._ttft[1], self._unmeasured[1]),
            estimated=self._estimated,
            from_cache=self._from_cache,
            assumed_up=self._assumed_up,
        )


def replay(
    files: Iterable[Path],
    now: Generation,
    past: Callable[[str], Generation],
    *,
    progress: Callable[[int], object] = lambda _: None,
) -> Replay:
    """Replay log files (`.jsonl`, or `.gz` of one), in the order given. `progress` gets the bytes read since its last call.

    Raises OSError for a file that cannot be read.
    """
    replayer = Replayer(now, past)
    for path in files:
        for raw in _lines(path, progress):
            replayer.feed(raw)
    return replayer.result()


def _lines(path: Path, progress: Callable[[int], object]) -> Iterator[bytes]:
    with path.open("rb") as file:
        lines: Iterable[bytes] = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
        told = 0
        try:
            for number, raw in enumerate(lines):
                yield raw
                if number % PROGRESS_LINES == 0:
                    progress(file.tell() - told)
                    told = file.tell()
        except EOFError:
            yield b""  # a packed file that was cut off: its end is one damaged line
        progress(file.tell() - told)


def _class_now(facts: Facts, past: Generation, now: Generation, *, floor_logged: bool) -> Class | None:
    """The class under the `[classes]` of now; None when the log does not hold enough to know it."""
    of_found_then = highest(*[past.classes.get(kind, CLASSES[-1]) for kind in facts.found])
    of_found_now = highest(*[now.classes.get(kind, CLASSES[-1]) for kind in facts.found])
    if RANK[facts.class_] > RANK[of_found_then]:
        return _higher(facts.class_, of_found_now)
    if floor_logged:
        return _higher(facts.class_floor, of_found_now)
    return _higher(facts.class_, of_found_now) if RANK[of_found_now] >= RANK[facts.class_] else None


def _higher(first: str, second: str) -> Class:
    return CLASSES[max(RANK[first], RANK[second])]


def _cost_usd(option: Option | None, facts: Facts, usage: Usage | None) -> float | None:
    if option is None:
        return 0.0
    return expected_cost_usd(option, facts) if usage is None else catalog.cost_usd(option, usage)


def _spread(values: array[float], unmeasured: int) -> Spread:
    if not values:
        return Spread(unmeasured=unmeasured)
    ranked = sorted(values)
    p50, p95 = [ranked[max(0, -(-len(ranked) * percent // 100) - 1)] for percent in (50, 95)]
    return Spread(p50, p95, unmeasured)


def as_json(found: Replay) -> dict[str, Any]:
    """The replay for programs."""
    plain: dict[str, Any] = msgspec.to_builtins(found)
    return plain | {"moved_share": found.moved_share}


def render(found: Replay) -> RenderableType:
    """The replay for people: new flows first, then what moved, what it costs, and what could not be told."""
    parts: list[RenderableType] = []
    if found.new_flows:
        parts += [Text("NEW FLOWS: nothing of this class could go there before", style="bold red"), _new_table(found)]
    parts += [Text("\n".join(f"{name:<18}{value}" for name, value in _summary(found))), _flow_table(found)]
    if found.moves:
        parts.append(_move_table(found))
    if found.not_replayable:
        table = Table("not replayable", "requests", box=None, title_justify="left")
        for reason, count in found.not_replayable.items():
            table.add_row(Text(reason, overflow="fold"), f"{count:,}")
        parts.append(table)
    return Group(*[line for part in parts for line in (part, "")][:-1])


def _summary(found: Replay) -> Iterator[tuple[str, str]]:
    yield (
        "log",
        f"{found.lines:,} lines, {found.decisions:,} decisions"
        + (f", {found.damaged:,} damaged lines skipped" if found.damaged else ""),
    )
    yield "replayed", f"{found.replayed:,} under @{found.hash}; not replayable: {sum(found.not_replayable.values()):,}"
    yield "moved", f"{found.moved:,} ({found.moved_share:.1%}) to another first choice"
    yield "changed", f"{found.changed:,} behind the first choice (order, cache, masks, refusal); the same: {found.same:,}"
    if found.unmasked:
        yield "UNMASKED", f"{found.unmasked:,} requests that left masked may now leave as they are"
    yield (
        "cost",
        f"${found.cost_before_usd:,.4f} -> ${found.cost_after_usd:,.4f}"
        + (f"; without {found.unpriced:,} requests that have no price" if found.unpriced else ""),
    )
    before, after = found.ttft_before_ms, found.ttft_after_ms
    times = f"p50 {_ms(before.p50)} -> {_ms(after.p50)}, p95 {_ms(before.p95)} -> {_ms(after.p95)}"
    yield "first token", f"{times}: a PREDICTION from what was measured then, before the load that this policy makes"
    if after.unmeasured:
        yield "", f"{after.unmeasured:,} first choices were never measured"
    if found.estimated:
        yield "estimated", f"tokens of {found.estimated:,} requests were not counted; prompt and usual answer are reckoned"
    if found.from_cache:
        yield "from cache", f"{found.from_cache:,} answers came from the cache; both sides are counted as if they had not"
    if found.assumed_up:
        yield "assumed up", f"{found.assumed_up:,} requests now go first to an option that their model did not have then"


def _ms(value: float | None) -> str:
    return "?" if value is None else f"{value:,.0f} ms"


def _new_table(found: Replay) -> Table:
    table = Table("class", "zone", "may reach it", "first choice", "tokens", "see: gateway explain", box=None)
    for flow in found.new_flows:
        after = flow.after
        ids = Text(", ".join(flow.examples), overflow="fold")
        table.add_row(flow.class_, flow.zone, f"{after.may_reach:,}", f"{after.requests:,}", f"{after.tokens:,}", ids)
    return table


def _flow_table(found: Replay) -> Table:
    names = ("class", "zone", "first choice", "", "tokens", "", "cost", "", "may reach it", "", "newly opened")
    table = Table(*names, box=None)
    for flow in found.flows:
        pairs = [
            (f"{side.requests:,}", f"{side.tokens:,}", f"${side.cost_usd:,.4f}", f"{side.may_reach:,}")
            for side in (flow.before, flow.after)
        ]
        cells = [text for then, now in zip(*pairs, strict=True) for text in (then, f"-> {now}")]
        table.add_row(Text(flow.class_), Text(flow.zone), *cells, f"{flow.opened:,}", style="bold red" if flow.is_new else "")
    return table


def _move_table(found: Replay, most: int = 10) -> Table:
    table = Table("moved from", "to", "requests", box=None)
    for then, now, count in found.moves[:most]:
        table.add_row(Text(then), Text(now), f"{count:,}")
    if len(found.moves) > most:
        table.add_row("...", f"{len(found.moves) - most} more", f"{sum(count for *_, count in found.moves[most:]):,}")
    return table
