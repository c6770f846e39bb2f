"""What Prometheus scrapes: sums over closed records and the state of upstreams and log. Sees no request, only its Record.

Every label comes from a bounded set: a route or upstream that is not configured counts as `other`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol, TypeVar

from msgspec import Struct, field
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from gateway.ledger import Record

OTHER = "other"

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


class _Histogram:
    """Counts per bucket, the last for what is above all bounds, and the sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative, as Prometheus wants them."""
        found, seen = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            seen += count
            found.append((bound, float(seen)))
        return found


class _Route(Struct):
    """Sums of one route."""

    duration: _Histogram = field(default_factory=lambda: _Histogram(SECONDS))
    ttft: _Histogram = field(default_factory=lambda: _Histogram(SECONDS))
    cost_usd: float = 0.0
    saved_usd: float = 0.0


class Metrics:
    """The one sink call per closed request is `observe`: additions to plain numbers, turned into Prometheus' words by `render`.

    For one thread, the event loop's. `routes` and `upstreams` are the configured names; `log` is asked when rendering.
    """

    def __init__(self, *, routes: Iterable[str], upstreams: Iterable[str], log: LogState) -> None:
        self._log = log
        self._requests: Counter[tuple[str, str, str, str]] = Counter()
        self._errors: Counter[str] = Counter()
        self._cache: Counter[str] = Counter()
        self._tokens: Counter[tuple[str, str, str]] = Counter()
        self._routes: dict[str, _Route] = {}
        self._overhead = _Histogram(OVERHEAD_SECONDS)
        self._up: dict[str, bool] = {}
        self._endpoints: set[str] = set()
        self._in_flight = 0
        self._registry = CollectorRegistry(auto_describe=False)
        self.configured(routes=routes, upstreams=upstreams)
        self._registry.register(_Families(self._families))

    def configured(self, *, routes: Iterable[str], upstreams: Iterable[str]) -> None:
        """Take the names of a new config generation; sums of routes that are gone stay, states of upstreams do not."""
        self._known_routes = {"", "cache", *routes}
        self._up = {name: self._up.get(name, True) for name in upstreams}

    def opened(self) -> None:
        """A request was taken on; `observe` closes it."""
        self._in_flight += 1

    def observe(self, record: Record) -> None:
        """Add one closed request. Called once for each; about 3 us."""
        self._in_flight = max(0, self._in_flight - 1)
        route = (record.route or "none") if record.route in self._known_routes else OTHER
        sums = self._routes.get(route)
        if sums is None:
            sums = self._routes[route] = _Route()
        endpoint = _bounded(record.endpoint, self._endpoints)
        self._endpoints.add(endpoint)
        self._requests[endpoint, route, str(record.status), record.ending] += 1
        self._cache[record.cache] += 1
        if record.error:
            self._errors[_bounded(record.error, self._errors.keys())] += 1
        self._tokens["prompt", route, record.source] += record.usage.prompt_tokens
        self._tokens["completion", route, record.source] += record.usage.completion_tokens
        sums.duration.add(record.duration_ms / 1000)
        if record.ttft_ms is not None:
            sums.ttft.add(record.ttft_ms / 1000)
        self._overhead.add(record.overhead_ms / 1000)
        sums.cost_usd += record.cost_usd or 0.0
        sums.saved_usd += record.saved_usd or 0.0

    def upstream_state(self, name: str, up: bool) -> None:  # noqa: FBT001 -- the state itself, not a mode
        """Note whether an upstream is tried at the moment; one that is not configured is not shown."""
        if name in self._up:
            self._up[name] = up

    def render(self) -> tuple[bytes, str]:
        """The page of metrics and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def _families(self) -> Iterator[Metric]:
        yield _counter("gateway_requests", "Closed requests.", ("endpoint", "route", "status", "ending"), self._requests)
        yield _counter("gateway_errors", "Closed requests that failed, by kind.", ("kind",), _single(self._errors))
        yield _counter("gateway_cache", "Closed requests by what the cache did.", ("outcome",), _single(self._cache))
        yield _counter("gateway_tokens", "Tokens of closed requests.", ("direction", "route", "source"), self._tokens)
        cost = {(route,): sums.cost_usd for route, sums in self._routes.items()}
        yield _counter("gateway_cost_usd", "Known cost in US dollars.", ("route",), cost)
        saved = {(route,): sums.saved_usd for route, sums in self._routes.items()}
        yield _counter("gateway_saved_usd", "What cache hits had cost at first, in US dollars.", ("route",), saved)
        yield _counter("gateway_log_dropped", "Log lines lost because the queue was full.", (), {(): self._log.dropped})
        duration = {(route,): sums.duration for route, sums in self._routes.items()}
        yield _histogram("gateway_request_duration_seconds", "From opening to closing.", ("route",), duration)
        ttft = {(route,): sums.ttft for route, sums in self._routes.items()}
        yield _histogram("gateway_time_to_first_token_seconds", "From opening to the first content.", ("route",), ttft)
        overhead = {(): self._overhead}
        yield _histogram("gateway_overhead_seconds", "Spent in the gateway before the first attempt left.", (), overhead)
        up = {(name,): float(up) for name, up in self._up.items()}
        yield _gauge("gateway_upstream_up", "1 when the upstream is tried, 0 when not.", ("upstream",), up)
        yield _gauge("gateway_in_flight", "Requests that are open.", (), {(): self._in_flight})
        yield _gauge("gateway_log_queue", "Log lines that wait to be written.", (), {(): self._log.queued})


def merge(pages: Sequence[str]) -> bytes:
    """One page out of the pages of several workers: everything is summed, but an upstream is up when any worker tries it."""
    found: dict[str, Metric] = {}
    for page in pages:
        for family in text_string_to_metric_families(page):
            into = found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            into.samples.extend(family.samples)
    for family in found.values():
        sums: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        for sample in family.samples:
            key = (sample.name, tuple(sample.labels.items()))
            seen = sums.get(key, 0.0)
            sums[key] = max(seen, sample.value) if family.name == "gateway_upstream_up" else seen + sample.value
        family.samples = []
        for (name, labels), value in sums.items():
            family.add_sample(name, dict(labels), value)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(lambda: iter(found.values())))
    return generate_latest(registry)


class _Families(Collector):
    """Hands a registry what a function yields at the moment of scraping."""

    def __init__(self, families: Callable[[], Iterator[Metric]]) -> None:
        self._yields = families

    def collect(self) -> Iterator[Metric]:
        return self._yields()


def _bounded(word: str, known: AbstractSet[str]) -> str:
    """`word` while it is known or the known ones are few, else `other`."""
    return word if word in known or len(known) < _MAX_WORDS else OTHER


def _single(counts: Mapping[str, int]) -> dict[tuple[str, ...], float]:
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


def _histogram(name: str, words: str, labels: Sequence[str], values: Mapping[Labels, _Histogram]) -> Metric:
    family = HistogramMetricFamily(name, words, labels=labels)
    for label_values, histogram in values.items():
        family.add_metric(label_values, histogram.buckets(), histogram.total)
    return family
