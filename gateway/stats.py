"""Reads the log back: sums over a span of time, all lines of one request, and the end of the log as it grows.

Knows the line format and nothing else of the gateway. Files are read as streams; a damaged or half-written line is skipped and
counted.
"""

from __future__ import annotations

import heapq
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from msgspec import Struct, field
from rich.console import Group
from rich.table import Table

from gateway.ledger import Ending, Usage
from gateway.sinks import segment_files

POLL_S = 0.2
"""Between two looks at the folder while following."""

_CLOSED = b'"event":"request.closed"'
_FAILED_ENDINGS = ("broken", "failed")


class _Closed(Struct):
    """What is summed of a `request.closed` line."""

    time: datetime
    event: str
    request_id: str
    ending: Ending
    status: int
    route: str = ""
    cache: str = "off"
    usage: Usage = field(default_factory=Usage)
    cost_usd: float | None = None
    saved_usd: float | None = None
    ttft_ms: float | None = None
    duration_ms: float = 0.0
    overhead_ms: float = 0.0
    redacted: dict[str, int] = field(default_factory=dict)
    altered: int = 0


class _Head(Struct):
    """What a line is found by."""

    time: str
    event: str
    request_id: str = ""


class Spread(Struct, frozen=True):
    """Percentiles in milliseconds, by nearest rank; None without a value."""

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


class Sums(Struct, frozen=True, kw_only=True):
    """Closed requests of one route, or of all."""

    requests: int
    failed: int
    """Ended broken or failed, or answered with a status of 500 or above."""
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    cost_unknown: int
    """Requests that used tokens but have no known price; they are not in `cost_usd`."""
    saved_usd: float
    duration_ms: Spread
    ttft_ms: Spread

    @property
    def error_rate(self) -> float:
        """Failed by all, from 0 to 1."""
        return self.failed / self.requests if self.requests else 0.0


class Summary(Struct, frozen=True, kw_only=True):
    """What the log says of the last `since_s` seconds."""

    since_s: float
    damaged: int
    """Lines that could not be read."""
    total: Sums
    routes: dict[str, Sums]
    """By `upstream/model`, `cache`, or `none` where nothing answered."""
    cache: dict[str, int]
    """Requests by what the cache did."""
    hit_rate: dict[str, float]
    """Per kind of hit, among the requests for which the cache was asked."""
    overhead_ms: Spread
    redacted: dict[str, int]
    """Values that were masked before a request left, by kind."""
    altered: int
    """Placeholders that models gave back altered, and that were not restored."""


class _Running:
    """Sums while lines are read: eight bytes a request and measure."""

    def __init__(self) -> None:
        self.count = self.failed = self.prompt = self.completion = self.unpriced = 0
        self.cost = self.saved = 0.0
        self.duration: array[float] = array("d")
        self.ttft: array[float] = array("d")

    def add(self, line: _Closed) -> None:
        self.count += 1
        self.failed += line.ending in _FAILED_ENDINGS or line.status >= 500
        self.prompt += line.usage.prompt_tokens
        self.completion += line.usage.completion_tokens
        self.unpriced += line.cost_usd is None and line.usage.prompt_tokens + line.usage.completion_tokens > 0
        self.cost += line.cost_usd or 0.0
        self.saved += line.saved_usd or 0.0
        self.duration.append(line.duration_ms)
        if line.ttft_ms is not None:
            self.ttft.append(line.ttft_ms)

    def sums(self) -> Sums:
        return Sums(
            requests=self.count,
            failed=self.failed,
            prompt_tokens=self.prompt,
            completion_tokens=self.completion,
            cost_usd=self.cost,
            cost_unknown=self.unpriced,
            saved_usd=self.saved,
            duration_ms=_spread(self.duration),
            ttft_ms=_spread(self.ttft),
        )


def summarise(folder: Path, since_s: float, *, now_s: float | None = None) -> Summary:
    """Sum the requests that closed in the last `since_s` seconds before `now_s` (Unix seconds; the clock's when None).

    Raises OSError when the folder cannot be read.
    """
    cutoff_s = (time.time() if now_s is None else now_s) - since_s
    decoder = msgspec.json.Decoder(_Closed)
    total, routes, cache, redacted = _Running(), dict[str, _Running](), Counter[str](), Counter[str]()
    overhead: array[float] = array("d")
    damaged = altered = 0
    for path in segment_files(folder):
        for raw in _lines_since(path, cutoff_s):
            if not raw.endswith(b"}\n"):
                damaged += 1
            elif _CLOSED in raw:
                try:
                    line = decoder.decode(raw)
                except msgspec.MsgspecError:
                    damaged += 1
                    continue
                if line.event == "request.closed" and line.time.timestamp() >= cutoff_s:
                    total.add(line)
                    routes.setdefault(line.route or "none", _Running()).add(line)
                    cache[line.cache] += 1
                    overhead.append(line.overhead_ms)
                    redacted.update(line.redacted)
                    altered += line.altered
    asked = sum(count for kind, count in cache.items() if kind == "miss" or kind.startswith("hit"))
    return Summary(
        since_s=since_s,
        damaged=damaged,
        total=total.sums(),
        routes={name: routes[name].sums() for name in sorted(routes)},
        cache=dict(cache),
        hit_rate={kind: count / asked for kind, count in sorted(cache.items()) if kind.startswith("hit")},
        overhead_ms=_spread(overhead),
        redacted=dict(redacted),
        altered=altered,
    )


def as_json(summary: Summary) -> bytes:
    """The summary for programs: its fields as JSON."""
    return msgspec.json.encode(summary)


def render(summary: Summary) -> Group:
    """The summary for people: a table by route, and lines on cache and overhead, for a rich console."""
    table = Table(title=f"last {summary.since_s:g} s")
    table.add_column("route", overflow="fold")
    for name in ("requests", "errors", "ms p50", "p95", "p99", "first token p50", "p95", "p99", "in", "out", "cost $", "saved $"):
        table.add_column(name, justify="right")
    for name, sums in summary.routes.items():
        table.add_row(name, *_cells(sums))
    table.add_section()
    table.add_row("all", *_cells(summary.total))
    rates = ", ".join(f"{kind} {rate:.1%}" for kind, rate in summary.hit_rate.items()) or "no hits"
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(summary.cache.items())) or "no requests"
    lines = [f"cache: {rates} ({kinds})", f"own overhead, ms: {' / '.join(_cell(summary.overhead_ms))} (p50 / p95 / p99)"]
    if summary.redacted or summary.altered:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(summary.redacted.items()))
        lines.append(f"masked: {kinds or 'nothing'}; placeholders that came back altered: {summary.altered}")
    if summary.total.cost_unknown:
        lines.append(f"price not known for {summary.total.cost_unknown} requests; their cost is not in the sums")
    if summary.damaged:
        lines.append(f"{summary.damaged} damaged lines were skipped")
    return Group(table, *lines)


def show(folder: Path, request_id: str) -> tuple[list[dict[str, Any]], int]:
    """All lines of one request in the order they were written, from every file, and how many damaged ones were skipped.

    Raises OSError when the folder cannot be read.
    """
    wanted = _Filter(request_id=request_id)
    found = [msgspec.json.decode(raw) for path in segment_files(folder) for raw in _lines(path) if wanted.takes(raw)]
    return found, wanted.damaged


def pause() -> bool:
    """Wait a moment before the next look at the folder."""
    time.sleep(POLL_S)
    return True


def tail(
    folder: Path,
    *,
    out: Callable[[bytes], object],
    follow: bool,
    event: str = "",
    request_id: str = "",
    last: int = 20,
    wait: Callable[[], bool] = pause,
) -> int:
    """Hand the last lines of the log to `out`, each with its newline; with `follow` then every new one, across rotation.

    `event` takes lines of that name (`cache` takes `cache.hit` and `cache.miss`), `request_id` those of one request. Following
    ends when `wait`, called between two looks at the folder, returns False. Returns how many damaged lines were skipped; a
    half-written end of a segment is not one of them, it may still grow.
    Raises OSError when the folder cannot be read.
    """
    wanted = _Filter(event=event, request_id=request_id)
    segments = _segments(folder)
    seen = {path for files in segments.values() for path in files}
    growing = [_Reader(files[-1]) for files in segments.values()]
    streams = [_last(files, reader, wanted, last) for files, reader in zip(segments.values(), growing, strict=True)]
    try:
        for raw in list(heapq.merge(*streams, key=_time_of))[-last:] if last else []:
            out(raw)
        while follow and wait():
            segments = _segments(folder)
            growing += [_Reader(path) for files in segments.values() for path in files if path not in seen]
            seen.update(path for files in segments.values() for path in files)
            for raw in heapq.merge(*[filter(wanted.takes, reader.more()) for reader in growing], key=_time_of):
                out(raw)
            newest = {files[-1] for files in segments.values()}
            for reader in growing:
                if reader.path not in newest:
                    reader.close()
            growing = [reader for reader in growing if reader.path in newest]
    finally:
        for reader in growing:
            reader.close()
    return wanted.damaged


class _Filter:
    """Takes whole lines of one event or request, looking at the bytes before it parses; counts the damaged."""

    def __init__(self, *, event: str = "", request_id: str = "") -> None:
        self.damaged = 0
        self._event = event
        self._request_id = request_id
        self._needle = msgspec.json.encode(request_id)[1:-1] if request_id else event.encode()
        self._decoder = msgspec.json.Decoder(_Head)

    def takes(self, raw: bytes) -> bool:
        if not raw.endswith(b"}\n"):
            self.damaged += 1
            return False
        if self._needle not in raw:
            return False
        try:
            head = self._decoder.decode(raw)
        except msgspec.MsgspecError:
            self.damaged += 1
            return False
        named = head.event == self._event or head.event.startswith(self._event + ".")
        return (not self._event or named) and self._request_id in ("", head.request_id)


class _Reader:
    """One growing file: whole lines only; what is half-written waits for its rest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        self._rest = b""

    def more(self) -> Iterator[bytes]:
        """The lines that were completed since the last call; none when rotation removed the file before it was opened."""
        if self._file is None:
            try:
                self._file = self.path.open("rb")
            except FileNotFoundError:
                return
        for raw in self._file:
            line = self._rest + raw
            if line.endswith(b"\n"):
                self._rest = b""
                yield line
            else:
                self._rest = line

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _segments(folder: Path) -> dict[str, list[Path]]:
    """The log files of a folder by segment, each segment's oldest first; only the last of each still grows."""
    found: dict[str, list[Path]] = {}
    for path in segment_files(folder):
        found.setdefault(path.name.rsplit("-", 2)[0], []).append(path)
    return found


def _last(files: list[Path], newest: _Reader, wanted: _Filter, last: int) -> Iterator[bytes]:
    """The last matching lines of one segment, read from its newest file back, which is read to its end in any case."""
    kept = deque(filter(wanted.takes, newest.more()), maxlen=last)
    for path in reversed(files[:-1]):
        if len(kept) >= last:
            break
        kept.extendleft(reversed(deque(filter(wanted.takes, _lines(path)), maxlen=last - len(kept))))
    return iter(kept)


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except FileNotFoundError:
        return  # rotation removed it between listing and opening


def _lines_since(path: Path, cutoff_s: float) -> Iterator[bytes]:
    try:
        if path.stat().st_mtime < cutoff_s:
            return
    except FileNotFoundError:
        return
    yield from _lines(path)


def _time_of(raw: bytes) -> bytes:
    """The time of a line as it is written; every line begins with it."""
    return raw[9:36]


def _spread(values: array[float]) -> Spread:
    if not values:
        return Spread()
    ranked = sorted(values)
    return Spread(*[ranked[max(0, -(-len(ranked) * percent // 100) - 1)] for percent in (50, 95, 99)])


def _cell(spread: Spread) -> list[str]:
    return ["-" if value is None else f"{value:,.1f}" for value in (spread.p50, spread.p95, spread.p99)]


def _cells(sums: Sums) -> list[str]:
    return [
        f"{sums.requests:,}",
        f"{sums.error_rate:.1%}",
        *_cell(sums.duration_ms),
        *_cell(sums.ttft_ms),
        f"{sums.prompt_tokens:,}",
        f"{sums.completion_tokens:,}",
        f"{sums.cost_usd:,.4f}",
        f"{sums.saved_usd:,.4f}",
    ]
