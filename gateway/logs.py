"""The log: tokens, request events and lifecycle events as JSON lines, written by a thread of its own.

The event loop only appends; encoding, counting, masking and the disk happen on the thread. Knows nothing of what the events
mean; events.py lists them.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from functools import lru_cache
from itertools import repeat
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any, Literal, Protocol

import msgspec
import structlog
from msgspec import UNSET, Struct, UnsetType

from gateway.errors import ConfigError, GatewayError, Problem
from gateway.events import EVENTS
from gateway.ledger import Later, Record, TokenEvent, Tokens, by_request
from gateway.sinks import RETRY_S, Files, Sink, Stdout

WAKE_S = 0.02
"""The thread looks at the queue this often; what a killed process loses is what came since."""

BATCH_LINES = 128
"""Lines encoded in one go: a quarter of a millisecond. The thread holds the interpreter lock meanwhile, which holds up the loop.
But each change between the two costs both: with 64 lines the thread takes a fifth more CPU."""
MOST_BATCH_LINES = 512
"""The same when many wait: about a millisecond. A thread may wait for the lock longer than it then works, and must keep up."""

_YIELD_S = 0.0001
"""Between two batches. A write is over too soon for a waiting event loop to get the interpreter lock; a nap is not."""

_SHORT_CHARS = 24
"""Texts up to this length, most of which come again and again, are counted once."""

_NAMED_SECRET = re.compile(
    r"(?i)(proxy-)?authorization|(set-)?cookie|(.*[-_])?(api[-_]?)?key|(.*[-_])?(secret|password|access_token)"
)
_SHAPED_SECRET = re.compile(r"(?<![A-Za-z0-9])(?:gw|sk)-[A-Za-z0-9_-]{8,}")
_PLAIN_EVENTS = frozenset({"request.opened", "route.decided", "route.explained", "cache.hit", "cache.miss", "upstream.failed"})
"""Those of the request path: no field of theirs is named like a secret, and every value has a word in JSON."""
MASK = "[masked]"

_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

_TRUSTED_LOGGERS = frozenset({"uvicorn.error"})
"""Standard-library loggers whose messages never carry text of a request; of all others only name and place are kept."""


_WORDS = {
    name: b',"event":"%b","level":"%b","request_id":' % (name.encode(), kind.level.encode()) for name, kind in EVENTS.items()
}
"""What stands in each line of an event between its time and its request."""


class _Token(Struct, omit_defaults=True):
    """The line of one TokenEvent."""

    time: str
    event: str
    request_id: str
    index: int
    ms: float
    n_tokens: int
    upstream: str
    source: str
    choice: int
    chars: int
    text: str | UnsetType = UNSET
    tokens_est: bool = False


class _Clock:
    """Nanoseconds since the epoch as RFC 3339 in UTC with microseconds; remembers the last second it formatted."""

    def __init__(self) -> None:
        self._second = -1
        self._head = ""

    def __call__(self, time_ns: int) -> str:
        second, rest = divmod(time_ns, 1_000_000_000)
        return f"{self.head(second)}.{rest // 1000:06d}Z"

    def all(self, times_ns: Sequence[int]) -> Iterable[str]:
        """Of one or more times; those of a batch are mostly of one second, and those of a burst the same."""
        earliest, latest = min(times_ns), max(times_ns)
        if earliest == latest:
            return repeat(self(earliest))
        second = earliest // 1_000_000_000
        if second != latest // 1_000_000_000:
            return map(self, times_ns)
        head, base_ns = self.head(second), (second - 1) * 1_000_000_000
        # Between one and two million microseconds have six digits behind the first one.
        return [f"{head}.{str((time_ns - base_ns) // 1000)[1:]}Z" for time_ns in times_ns]

    def head(self, second: int) -> str:
        """What the times of this second begin with."""
        if second != self._second:
            self._second = second
            self._head = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return self._head


class Between(Protocol):
    """Looks at what is to be written; for the log's thread.

    It is given what was handed to the LogWriter, TokenEvents as Tokens, and gives such things back.
    """

    @property
    def waiting(self) -> int:
        """Lines it holds back."""
        ...

    def through(self, batch: Sequence[Any]) -> Sequence[Any]:
        """What may be written now of what was held back and of this batch."""
        ...

    def rest(self) -> Sequence[Any]:
        """All that was held back: nothing more comes."""
        ...


class _Straight:
    """Nothing between."""

    waiting = 0

    def through(self, batch: Sequence[Any]) -> Sequence[Any]:
        return batch

    def rest(self) -> Sequence[Any]:
        return ()


class LogWriter:
    """A thread that writes log lines; `token`, `event` and `closed` append for it and cost the caller no encoding.

    Lines come out in the order they were handed over. `folder` and `stdout` are the sinks; a line counts as written when every
    sink has it. While a sink fails, its lines wait in memory and are tried again, without loss or duplicate; what comes
    when `queue_limit` lines wait is dropped and counted in `dropped`. `on_full="refuse"` makes `healthy` say so early enough
    that new requests can be refused and the running ones still find room; `"drop"` serves on.
    `count_tokens(text, upstream)` gives (tokens, estimated) for events whose source did not count; it runs on the thread.
    `keep_files=0` keeps every file. `between` may hold lines back, of one request in their order.

    Raises ConfigError when a folder is given that cannot be written and `on_full` is "refuse".
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        segment: str,
        stdout: bool,
        rotate_bytes: int,
        keep_files: int,
        on_full: Literal["refuse", "drop"],
        queue_limit: int,
        count_tokens: Callable[[str, str], tuple[int, bool]],
        between: Between | None = None,
    ) -> None:
        self.dropped = 0
        self._between = between or _Straight()
        self._on_full = on_full
        self._queue_limit = queue_limit
        self._count_tokens = count_tokens
        self._count_again = lru_cache(maxsize=8192)(count_tokens)
        self._sinks: list[Sink] = [Stdout()] if stdout else []
        if folder is not None:
            files = Files(folder, segment=segment, rotate_bytes=rotate_bytes, keep_files=keep_files)
            self._sinks.append(files)
            if on_full == "refuse":
                _open_or_refuse(files, folder)
        self._queue: list[Any] = []
        self._block = b""
        self._written = [0] * len(self._sinks)
        self._fault: str | None = None
        self._failing_since = 0.0
        self._told_dropped = 0
        self._clock = _Clock()
        self._more_handed = self._more_taken = 0
        """Lines beyond one for each thing that was put into the queue, or taken out of it."""
        self._encoder = msgspec.json.Encoder()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stop_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def token(self, event: TokenEvent) -> None:
        """Hand over one token event. Called for every token on the event loop."""
        queue = self._queue
        if len(queue) + self._more_handed - self._more_taken < self._queue_limit:
            queue.append(event)
        else:
            self._drop()

    def tokens(self, tokens: Tokens) -> None:
        """As `token`, of many that came together."""
        n_lines, n_free = len(tokens.text), self._queue_limit - self.queued
        if n_lines > n_free:
            self._drop(n_lines - max(0, n_free))
            if n_free <= 0:
                return
            tokens, n_lines = tokens.between(0, n_free), n_free
        self._more_handed += n_lines - 1
        self._queue.append(tokens)

    def event(self, event: MutableMapping[str, Any]) -> None:
        """Hand over one event with at least `event`; the mapping is the writer's from here on. `time_ns` is set when missing."""
        event.setdefault("time_ns", time.time_ns())
        if self.queued < self._queue_limit:
            self._queue.append(event)
        else:
            self._drop()

    def later(self, event: Later) -> None:
        """Hand over an event of the request path whose fields are put together on the thread."""
        if self.queued < self._queue_limit:
            self._queue.append(event)
        else:
            self._drop()

    def closed(self, record: Record) -> None:
        """Hand over the record of a closed request; it becomes its `request.closed` line."""
        if self.queued < self._queue_limit:
            self._queue.append(record)
        else:
            self._drop()

    def healthy(self) -> str | None:
        """Why a new request must be refused, in words an operator can act on, or None. Called on every request.

        Always None for `on_full="drop"`.
        """
        if self._on_full == "drop":
            return None
        if self._fault is None and self.queued * 2 >= self._queue_limit:
            return f"log queue: {self.queued} lines wait; the disk or standard output is too slow for this load"
        return self._fault

    @property
    def fault(self) -> str | None:
        """What is wrong with a sink now, whatever `on_full` says, or None."""
        return self._fault

    @property
    def queued(self) -> int:
        """Lines that wait for the thread."""
        return len(self._queue) + self._more_handed - self._more_taken

    def close(self, timeout_s: float = 5.0) -> int:
        """Write everything that waits, for at most `timeout_s`, and end the thread. Returns how many lines were lost."""
        self._stop_at = time.monotonic() + timeout_s
        self._wake.set()
        self._thread.join(timeout_s + 2 * RETRY_S)
        self._fault = "the log is closed"
        return self.queued + self._between.waiting + self._block.count(b"\n", min(self._written, default=0))

    def _drop(self, n_lines: int = 1) -> None:
        with self._lock:
            self.dropped += n_lines

    def _run(self) -> None:
        while self._stop_at is None or (
            (self._block or self._queue or self._between.waiting) and time.monotonic() < self._stop_at
        ):
            if self._stop_at is None:
                self._wake.wait(WAKE_S)
                self._wake.clear()
            try:
                self._drain()
            except Exception as error:  # noqa: BLE001 -- the outermost boundary of the thread; without it logging ends unseen
                self._failed("log writer", f"{type(error).__name__} at {_place(error.__traceback__)}")
        for sink in self._sinks:
            sink.close()

    def _drain(self) -> None:
        while self._block or self._queue or (self._stop_at is not None and self._between.waiting):
            if not self._block:
                batch = self._taken(min(max(BATCH_LINES, self.queued // 8), MOST_BATCH_LINES))
                self._written = [0] * len(self._sinks)
                self._block = self._encode(self._between.through(by_request(batch)) if batch else self._between.rest())
            for number, sink in enumerate(self._sinks):
                try:
                    while self._written[number] < len(self._block):
                        self._written[number] = sink.write(self._block, self._written[number])
                except OSError as error:
                    self._failed(sink.place, error.strerror or type(error).__name__)
                    return
            self._block = b""
            self._healed()
            if self._queue:
                time.sleep(_YIELD_S)

    def _taken(self, most_lines: int) -> list[Any]:
        """The first of what waits, about so many lines."""
        batch = self._queue[:most_lines]
        n_lines = len(batch)
        if self._more_handed != self._more_taken:
            n_lines = 0
            for place, thing in enumerate(batch):
                n_lines += len(thing.text) if type(thing) is Tokens else 1
                if n_lines >= most_lines:
                    del batch[place + 1 :]  # and so the loop ends
        del self._queue[: len(batch)]
        self._more_taken += n_lines - len(batch)
        return batch

    def _failed(self, place: str, why: str) -> None:
        reason = f"{place}: {why}; logging goes on by itself once that is mended"
        if self._fault is None:
            self._failing_since = time.monotonic()
            line = {"time_ns": time.time_ns(), "event": "log.failed", "level": "error", "reason": reason}
            _tell_stderr(self._encode([line]))
        self._fault = reason
        time.sleep(RETRY_S)

    def _healed(self) -> None:
        if self._fault is not None:
            failed_s = round(time.monotonic() - self._failing_since, 3)
            self._queue.append({"time_ns": time.time_ns(), "event": "log.healed", "level": "warning", "failed_s": failed_s})
            self._fault = None
        with self._lock:
            count, self._told_dropped = self.dropped - self._told_dropped, self.dropped
        if count:
            self._queue.append({"time_ns": time.time_ns(), "event": "log.dropped", "level": "error", "count": count})

    def _encode(self, batch: Sequence[Any]) -> bytes:
        lines: list[bytes] = []
        encode = self._encoder.encode
        for item in batch:
            if type(item) is Tokens:
                lines.append(self._token_lines(item))
                continue
            try:
                line = self._later_bytes(item) if type(item) is Later else None
                lines.append(encode(self._line(item)) + b"\n" if line is None else line)
            except (ValueError, TypeError, RecursionError, msgspec.MsgspecError):
                lines.append(self._encode_one(self._line(item)))
        return b"".join(lines)

    def _encode_one(self, line: Any) -> bytes:
        """A line msgspec refuses, most often for a lone surrogate, which becomes `?`."""
        try:
            plain = msgspec.to_builtins(line)
            return (
                json.dumps(plain, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"
            )
        except (ValueError, TypeError, RecursionError, msgspec.MsgspecError) as error:
            return self._encoder.encode(self._unencodable(line, error)) + b"\n"

    def _line(self, item: Any) -> Any:
        try:
            if type(item) is Record:
                return self._record_line(item)
            if type(item) is Later:
                return self._later_line(item)
            return self._event_line(item)
        except Exception as error:  # noqa: BLE001 -- one bad line must not take its batch along; it is told in its place
            return self._unencodable(item, error)

    def _token_lines(self, tokens: Tokens) -> bytes:
        """A line for each."""
        request_id, upstream, source, shown, times_ns, indexes, ms, counts, texts, chars, choices = tokens
        estimated: Iterable[bool] = repeat(False)
        if 0 in counts:
            counts, estimated = self._counted(tokens)
        lines = list(
            map(
                _Token,
                self._clock.all(times_ns),
                repeat("token"),
                repeat(request_id),
                indexes,
                [int(1000 * at + 0.5) / 1000 for at in ms],
                counts,
                repeat(upstream),
                repeat(source),
                choices,
                chars,
                texts if shown else repeat(UNSET),
                estimated,
            )
        )
        try:
            return self._encoder.encode_lines(lines)
        except (ValueError, TypeError, msgspec.MsgspecError):
            return b"".join(map(self._encode_one, lines))

    def _counted(self, tokens: Tokens) -> tuple[Sequence[int], Sequence[bool]]:
        """How many tokens each text has where nobody counted, and whether that is an estimate."""
        again, once, upstream = self._count_again, self._count_tokens, tokens.upstream
        if not tokens.shown:
            known = zip(tokens.n_tokens, tokens.chars, strict=True)
            found = [(n, False) if n or not chars else (-(-chars // 4), True) for n, chars in known]
        else:
            found = [
                (n, False) if n or not chars else again(text, upstream) if chars <= _SHORT_CHARS else once(text, upstream)
                for n, text, chars in zip(tokens.n_tokens, tokens.text, tokens.chars, strict=True)
            ]
        counts, estimated = zip(*found, strict=True)
        return counts, estimated

    def _record_line(self, record: Record) -> msgspec.Raw | dict[str, Any]:
        """A record closes at its opening plus its duration."""
        closed_ns = int((record.opened_at + record.duration_ms / 1000) * 1e9)
        level = "warning" if record.ending in ("broken", "failed") else "info"
        head = {"time": self._clock(closed_ns), "event": "request.closed", "level": level}
        return self._joined(head, record) or {**head, **msgspec.to_builtins(record)}

    def _later_line(self, item: Later) -> dict[str, Any]:
        level = EVENTS[item.name].level
        head = {"time": self._clock(item.time_ns), "event": item.name, "level": level, "request_id": item.request_id}
        return {**head, **masked(msgspec.to_builtins(item.fields(*item.of)))}

    def _later_bytes(self, item: Later) -> bytes | None:
        """As `_later_line`, encoded; None where that fails, or a secret may stand in it."""
        time_ns, name, request_id, fields, of = item
        try:
            more = self._encoder.encode(fields(*of))[1:]
            words = _WORDS[name] + self._encoder.encode(request_id)
        except Exception:  # noqa: BLE001 -- `_line` meets the same, and tells it
            return None
        comma = b"," if len(more) > 1 else b""
        line = b'{"time":"%b"%b%b%b\n' % (self._clock(time_ns).encode(), words, comma, more)
        return None if b"gw-" in line or b"sk-" in line else line

    def _event_line(self, item: MutableMapping[str, Any]) -> msgspec.Raw | dict[str, Any]:
        head = {"time": self._clock(item.pop("time_ns")), "event": item.pop("event"), "level": item.pop("level", "info")}
        if "request_id" in item:
            head["request_id"] = item.pop("request_id")
        line = self._joined(head, item) if head["event"] in _PLAIN_EVENTS else None
        return line or {**head, **masked(item)}

    def _joined(self, head: dict[str, str], rest: Any) -> msgspec.Raw | None:
        """A line out of its head and of an object as it is, where neither secrets nor odd characters stand in the way."""
        try:
            more = self._encoder.encode(rest)[1:]
            line = self._encoder.encode(head)[:-1] + (b"," + more if len(more) > 1 else more)
        except (ValueError, TypeError, RecursionError, msgspec.MsgspecError):
            return None
        return None if b"gw-" in line or b"sk-" in line else msgspec.Raw(line)

    def _unencodable(self, item: Any, error: Exception) -> dict[str, Any]:
        of = item.get("event", "event") if isinstance(item, Mapping) else getattr(item, "name", type(item).__name__)
        return {
            "time": self._clock(time.time_ns()),
            "event": "log.unencodable",
            "level": "error",
            "of": of if isinstance(of, str) and of in EVENTS else "event",
            "error_type": type(error).__name__,
        }


def masked(value: Any, name: str = "") -> Any:
    """`value` as plain JSON without secrets: whatever stands under a key named like one, and every `gw-` or `sk-` string in it.

    A value JSON has no word for becomes its type's name, since its text may be anything.
    """
    if name and _NAMED_SECRET.fullmatch(name):
        return MASK
    if isinstance(value, str):
        return _SHAPED_SECRET.sub(MASK, value) if "gw-" in value or "sk-" in value else value
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Struct):
        return masked(msgspec.structs.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): masked(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [masked(item) for item in value]
    return masked(str(value)) if isinstance(value, PurePath) else f"<{type(value).__name__}>"


def configure(writer: LogWriter, level: str) -> Callable[..., None]:
    """Send structlog's events, and what libraries log through `logging` from WARNING up, to this writer.

    `level` is `debug`, `info`, `warning` or `error`. Once per process, at its start. Returns `emit(name, **fields)`, which logs
    one event at the level EVENTS gives it, in about 3 us.
    """

    def hand_over(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        writer.event(event)
        raise structlog.DropEvent

    structlog.configure(
        processors=[structlog.processors.add_log_level, describe_exception, hand_over],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_LibraryLogs(writer)], level=max(logging.WARNING, getattr(logging, level.upper())), force=True)
    logger = structlog.get_logger().bind()
    levels = {name: _LEVELS[kind.level] for name, kind in EVENTS.items()}

    def emit(name: str, **fields: Any) -> None:
        logger.log(levels.get(name, logging.INFO), name, **fields)

    return emit


def describe_exception(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Put an exception's type and place in the stead of its text, which may be text of a request.

    A GatewayError in a lifecycle event also keeps its message: that one speaks of files, processes and upstreams.
    """
    given = event.pop("exc_info", None)
    error = given if isinstance(given, BaseException) else sys.exc_info()[1] if given else None
    if error is not None:
        event["error_type"] = type(error).__name__
        event["error_place"] = _place(error.__traceback__)
        kind = EVENTS.get(event.get("event", ""))
        if isinstance(error, GatewayError) and kind is not None and kind.lifecycle and "request_id" not in event:
            event["error_message"] = str(error)
    return event


class _LibraryLogs(logging.Handler):
    """Turns a library's log record into a `library.logged` line: who and where, but not its text."""

    def __init__(self, writer: LogWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        event: dict[str, Any] = {
            "event": "library.logged",
            "level": record.levelname.lower(),
            "logger": record.name,
            "place": f"{record.module}:{record.lineno}",
        }
        if record.exc_info and record.exc_info[1] is not None:
            event["error_type"] = type(record.exc_info[1]).__name__
            event["error_place"] = _place(record.exc_info[2])
        elif record.name in _TRUSTED_LOGGERS:
            event["message"] = record.getMessage()
        self._writer.event(event)


def _open_or_refuse(files: Files, folder: Path) -> None:
    try:
        files.open()
    except OSError as error:
        why = f"{error.strerror}; name a folder this user can write, or set on_full to drop"
        raise ConfigError([Problem(place=f"log folder {folder}", message=why)]) from error


def place_of(error: BaseException) -> str:
    """`module:line` where an exception was raised: all that the log may say of one beside its type."""
    return _place(error.__traceback__)


def _place(traceback: TracebackType | None) -> str:
    """`module:line` of the innermost frame in this package, or of the innermost at all."""
    places = []
    while traceback is not None:
        places.append(f"{traceback.tb_frame.f_globals.get('__name__', '?')}:{traceback.tb_lineno}")
        traceback = traceback.tb_next
    ours = [place for place in places if place.startswith("gateway.")]
    return (ours or places or ["unknown"])[-1]


def _tell_stderr(line: bytes) -> None:
    try:
        os.write(2, line)
    except OSError:
        return
