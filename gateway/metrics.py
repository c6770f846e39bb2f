"""What Prometheus scrapes: sums over closed records and the state of upstreams and log. Sees no request, only its Record.

Counting is additions to plain numbers; `add_up` joins what several workers have counted, `render` makes the page of it.
Every label comes from a bounded set: a route or upstream that is not configured counts as `other`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import reduce
from itertools import accumulate
from typing import Any, Protocol, TypeVar

from msgspec import Struct, field
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.ledger import Record

OTHER = "other"

Key = TypeVar("Key")
Labels = TypeVar("Labels", bound=tuple[str, ...])

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
OVERHEAD_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)

_MAX_WORDS = 100
"""Distinct error kinds or endpoints before the rest is `other`: an upstream may invent codes."""


class LogState(Protocol):
    """What a log writer tells about itself."""

    dropped: int

    @property
    def queued(self) -> int:
        """Lines that wait."""
        ...


class Histogram(Struct, array_like=True):
    """How many values fell under each bound and above its predecessor, the last count for what is above all; and their sum."""

    counts: list[int]
    total: float = 0.0

    def add(self, value: float, bounds: tuple[float, ...]) -> None:
        """Count one value."""
        self.counts[bisect_left(bounds, value)] += 1
        self.total += value

    def buckets(self, bounds: tuple[float, ...]) -> list[tuple[str, float]]:
        """Cumulative, as Prometheus wants them."""
        names = (*map(str, bounds), "+Inf")
        return [(name, float(seen)) for name, seen in zip(names, accumulate(self.counts), strict=True)]


def _of_seconds() -> Histogram:
    return Histogram([0] * (len(SECONDS) + 1))


class Route(Struct, array_like=True):
    """Sums of one route."""

    duration: Histogram = field(default_factory=_of_seconds)
    ttft: Histogram = field(default_factory=_of_seconds)
    cost_usd: float = 0.0
    saved_usd: float = 0.0


class Sums(Struct, array_like=True):
    """What only grows, by label values."""

    requests: dict[tuple[str, str, str, str], int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    cache: dict[str, int] = field(default_factory=dict)
    tokens: dict[tuple[str, str, str], int] = field(default_factory=dict)
    routes: dict[str, Route] = field(default_factory=dict)
    overhead: Histogram = field(default_factory=lambda: Histogram([0] * (len(OVERHEAD_SECONDS) + 1)))
    log_dropped: int = 0
    output_secrets: int = 0
    redacted: dict[str, int] = field(default_factory=dict)
    altered: int = 0


class State(Struct, array_like=True):
    """What goes up and down, and ends with its worker."""

    up: dict[str, bool] = field(default_factory=dict)
    """Whether an upstream is tried."""
    in_flight: int = 0
    log_queued: int = 0


class Counts(Struct, array_like=True):
    """Everything that one front worker, or several, can say of themselves; travels between processes."""

    sums: Sums = field(default_factory=Sums)
    state: State = field(default_factory=State)


def add_up(parts: Iterable[Counts]) -> Counts:
    """The counts of several workers as if one had counted all; an upstream is up when any worker tries it."""
    return reduce(_joined, parts, Counts())


def _joined(left: Any, right: Any) -> Any:
    """Numbers are added, a state is true when either is, and what holds them is joined part by part into a new one."""
    match left:
        case bool():
            return left or right
        case int() | float():
            return left + right
        case list():
            return [_joined(one, other) for one, other in zip(left, right, strict=True)]
        case dict():
            return left | {key: _joined(left[key], value) if key in left else value for key, value in right.items()}
    return type(left)(*(_joined(getattr(left, name), getattr(right, name)) for name in left.__struct_fields__))


class Metrics:
    """One front worker's counting: `observe` is the one call per closed request and only adds to plain numbers.

    For one thread, the event loop's. `routes` and `upstreams` are the configured names; `log` is asked when counting ends.
    """

    def __init__(
        self,
        *,
        routes: Iterable[str],
        upstreams: Iterable[str],
        log: LogState,
        output_secrets: Callable[[], int] = lambda: 0,
    ) -> None:
        self._log = log
        self._output_secrets = output_secrets
        self._counts = Counts()
        self._endpoints: set[str] = set()
        self.configured(routes=routes, upstreams=upstreams)

    def configured(self, *, routes: Iterable[str], upstreams: Iterable[str]) -> None:
        """Take the names of a new config generation; sums of routes that are gone stay, states of upstreams do not."""
        self._known_routes = {"", "cache", *routes}
        state = self._counts.state
        state.up = {name: state.up.get(name, True) for name in upstreams}

    def opened(self) -> None:
        """A request was taken on; `observe` closes it."""
        self._counts.state.in_flight += 1

    def observe(self, record: Record) -> None:
        """Add one closed request. Called once for each; about 3 us."""
        sums, state = self._counts.sums, self._counts.state
        state.in_flight = max(0, state.in_flight - 1)
        route = (record.route or "none") if record.route in self._known_routes else OTHER
        of_route = sums.routes.get(route)
        if of_route is None:
            of_route = sums.routes[route] = Route()
        endpoint = _bounded(record.endpoint, self._endpoints)
        self._endpoints.add(endpoint)
        _count(sums.requests, (endpoint, route, str(record.status), record.ending), 1)
        _count(sums.cache, record.cache, 1)
        if record.error:
            _count(sums.errors, _bounded(record.error, sums.errors.keys()), 1)
        _count(sums.tokens, ("prompt", route, record.source), record.usage.prompt_tokens)
        _count(sums.tokens, ("completion", route, record.source), record.usage.completion_tokens)
        of_route.duration.add(record.duration_ms / 1000, SECONDS)
        if record.ttft_ms is not None:
            of_route.ttft.add(record.ttft_ms / 1000, SECONDS)
        sums.overhead.add(record.overhead_ms / 1000, OVERHEAD_SECONDS)
        for kind, count in record.redacted.items():
            _count(sums.redacted, kind, count)
        sums.altered += record.altered
        of_route.cost_usd += record.cost_usd or 0.0
        of_route.saved_usd += record.saved_usd or 0.0

    def upstream_state(self, name: str, up: bool) -> None:  # noqa: FBT001 -- the state itself, not a mode
        """Note whether an upstream is tried at the moment; one that is not configured is not shown."""
        if name in self._counts.state.up:
            self._counts.state.up[name] = up

    def counts(self) -> Counts:
        """All that was counted so far. Not a copy: encode it, or add it up, before anything else is counted."""
        self._counts.sums.log_dropped = self._log.dropped
        self._counts.sums.output_secrets = self._output_secrets()
        self._counts.state.log_queued = self._log.queued
        return self._counts


def render(counts: Counts) -> tuple[bytes, str]:
    """The page of metrics in Prometheus' words, and its content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(lambda: _families(counts)))
    return generate_latest(registry), CONTENT_TYPE_LATEST


def _families(counts: Counts) -> Iterator[Metric]:
    sums, state = counts.sums, counts.state
    yield _counter("gateway_requests", "Closed requests.", ("endpoint", "route", "status", "ending"), sums.requests)
    yield _counter("gateway_errors", "Closed requests that failed, by kind.", ("kind",), _single(sums.errors))
    yield _counter("gateway_cache", "Closed requests by what the cache did.", ("outcome",), _single(sums.cache))
    yield _counter("gateway_tokens", "Tokens of closed requests.", ("direction", "route", "source"), sums.tokens)
    cost = {(name,): route.cost_usd for name, route in sums.routes.items()}
    yield _counter("gateway_cost_usd", "Known cost in US dollars.", ("route",), cost)
    saved = {(name,): route.saved_usd for name, route in sums.routes.items()}
    yield _counter("gateway_saved_usd", "What cache hits had cost at first, in US dollars.", ("route",), saved)
    masked = "Different values that were masked before a request left, by kind."
    yield _counter("gateway_redacted", masked, ("kind",), _single(sums.redacted))
    altered = "Placeholders that models gave back altered, and that were not restored."
    yield _counter("gateway_placeholders_altered", altered, (), {(): sums.altered})
    yield _counter("gateway_log_dropped", "Log lines lost because the queue was full.", (), {(): sums.log_dropped})
    secrets = {(): sums.output_secrets}
    yield _counter("gateway_output_secrets", "Credentials in what models said, masked in the log.", (), secrets)
    duration = {(name,): route.duration for name, route in sums.routes.items()}
    yield _histogram("gateway_request_duration_seconds", "From opening to closing.", ("route",), SECONDS, duration)
    ttft = {(name,): route.ttft for name, route in sums.routes.items()}
    yield _histogram("gateway_time_to_first_token_seconds", "From opening to the first content.", ("route",), SECONDS, ttft)
    before = "Spent in the gateway before the first attempt left."
    yield _histogram("gateway_overhead_seconds", before, (), OVERHEAD_SECONDS, {(): sums.overhead})
    yield _gauge("gateway_upstream_up", "1 when the upstream is tried, 0 when not.", ("upstream",), _single(state.up))
    yield _gauge("gateway_in_flight", "Requests that are open.", (), {(): state.in_flight})
    yield _gauge("gateway_log_queue", "Log lines that wait to be written.", (), {(): state.log_queued})


class _Families(Collector):
    """Hands a registry what a function yields at the moment of scraping."""

    def __init__(self, families: Callable[[], Iterator[Metric]]) -> None:
        self._yields = families

    def collect(self) -> Iterator[Metric]:
        return self._yields()


def _bounded(word: str, known: AbstractSet[str]) -> str:
    """`word` while it is known or the known ones are few, else `other`."""
    return word if word in known or len(known) < _MAX_WORDS else OTHER


def _count(counts: dict[Key, int], key: Key, more: int) -> None:
    counts[key] = counts.get(key, 0) + more


def _single(counts: Mapping[str, float]) -> dict[tuple[str, ...], float]:
    return {(word,): count for word, count in counts.items()}


def _counter(name: str, words: str, labels: Sequence[str], values: Mapping[Labels, float]) -> Metric:
    family = CounterMetricFamily(name, words, labels=labels)
    for label_values, value in values.items():
        family.add_metric(label_values, value)
    return family


def _gauge(name: str, words: str, labels: Sequence[str], values: Mapping[Labels, float]) -> Metric:
    family = GaugeMetricFamily(name, words, labels=labels)
    for label_values, value in values.items():
        family.add_metric(label_values, value)
    return family


def _histogram(
    name: str, words: str, labels: Sequence[str], bounds: tuple[float, ...], values: Mapping[Labels, Histogram]
) -> Metric:
    family = HistogramMetricFamily(name, words, labels=labels)
    for label_values, histogram in values.items():
        family.add_metric(label_values, histogram.buckets(bounds), histogram.total)
    return family
