"""What happened to one request. A Ledger is written while the request lives and closes into exactly one Record."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from msgspec import Struct, field, to_builtins

Ending = Literal["complete", "hit", "fallback", "refused", "broken", "failed", "client_gone", "cancelled", "never_read"]
"""How a request ended. `fallback` is complete by another upstream than the first; `broken` was cut after its first event;
`failed` found no upstream; `refused` never tried one; `cancelled` was stopped by us; `never_read` had an answer nobody took."""

Source = Literal["local", "external", "cache", "none"]


class Usage(Struct, frozen=True):
    """Tokens of one answer. `estimated` when the upstream did not count them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    estimated: bool = False


class TokenEvent(NamedTuple):
    """One event that carried content, as it passed. A tuple, because one is made for every token on the event loop."""

    time_ns: int
    """Wall clock, nanoseconds since the epoch."""
    request_id: str
    index: int  # type: ignore[assignment]  # shadows tuple.index, which nobody calls on an event
    """Of the event within its answer, from 0."""
    ms: float
    """Since the request was opened."""
    n_tokens: int
    """0: not known here; the log writer counts or estimates."""
    text: str
    """Searched for credentials on the log's thread, and written only when `shown`."""
    shown: bool
    """Whether class and policy allow the text in the log; where not, its length stands alone."""
    upstream: str
    source: str
    choice: int


class Tokens(NamedTuple):
    """TokenEvents of one request in columns, so that what is done with each of them is done in C."""

    request_id: str
    upstream: str
    source: str
    shown: bool
    time_ns: Sequence[int]
    index: Sequence[int]  # type: ignore[assignment]  # as above
    ms: Sequence[float]
    n_tokens: Sequence[int]
    text: Sequence[str]
    chars: Sequence[int]
    """Of the texts as they came: a mask may be shorter."""
    choice: Sequence[int]

    @classmethod
    def of(cls, events: Sequence[TokenEvent]) -> Tokens:
        """Events of one request; texts are shown where all of them may be."""
        times, ids, indexes, ms, counts, texts, shown, upstreams, sources, choices = zip(*events, strict=True)
        chars = tuple(map(len, texts))
        columns = (ids[0], upstreams[0], sources[0], False not in shown, times, indexes, ms, counts, texts, chars, choices)
        return _new_tuple(cls, columns)

    def between(self, begin: int, end: int) -> Tokens:
        """Some of them, by place."""
        common: tuple[Any, ...] = self[:_COLUMNS]
        columns: tuple[Any, ...] = self[_COLUMNS:]
        return Tokens(*common, *[column[begin:end] for column in columns])


_COLUMNS = Tokens._fields.index("time_ns")


class Later(NamedTuple):
    """An event of the request path as it is handed to the log: what its fields are made of, and how.

    Four of them for each request went through structlog at 5 µs apiece; as a tuple one costs 0.5.
    """

    time_ns: int
    name: str
    request_id: str
    fields: Callable[..., Mapping[str, object]]
    """Makes them, on the log's thread: pure, of values that nobody changes. No field may be named like a secret."""
    of: tuple[Any, ...]


_new_tuple = tuple.__new__


class Record(Struct, frozen=True, kw_only=True):
    """One closed request, as the audit log, the metrics and the budgets see it. Holds no text of it."""

    request_id: str
    opened_at: float
    """Unix seconds."""
    endpoint: str
    ending: Ending
    status: int
    stream: bool
    key_label: str = ""
    tenant: str = ""
    model: str = ""
    """As the client named it."""
    route: str = ""
    """`upstream/model` that answered, `cache`, or empty."""
    source: Source = "none"
    cache: str = "off"
    """`hit-exact`, `hit-semantic`, `miss`, `bypass` or `off`."""
    policy: str = ""
    """NAME@HASH in force when the request was decided."""
    route_rule: str = ""
    class_: str = field(name="class", default="public")
    found: tuple[str, ...] = ()
    unread: str = ""
    """Why the text could not be searched, and so counted as restricted."""
    tried: tuple[str, ...] = ()
    error: str = ""
    """The `code` or kind of failure; empty when there was none."""
    usage: Usage = Usage()
    cost_usd: float | None = None
    """None: the price is not known."""
    saved_usd: float | None = None
    """On a hit: what the stored answer had cost."""
    finish_reason: str = ""
    redacted: dict[str, int] = {}
    """Different values that were masked before the request left, by kind."""
    altered: int = 0
    """Placeholders that came back altered, and so were not restored."""
    ttft_ms: float | None = None
    duration_ms: float = 0.0
    overhead_ms: float = 0.0
    """Time spent in the gateway itself before the first attempt left: parse, scan, decide, look up."""
    events: int = 0
    secrets_out: int = 0
    """Credentials in the answer; known to the log alone, which reads what was said after it went out."""
    cosine: float | None = None
    client_request_id: str = ""


def by_request(batch: Sequence[Any]) -> list[Any]:
    """What was handed to the log, with the TokenEvents of each request together as Tokens where the first of them stood.

    What else there is of a request keeps its place among them.
    """
    found: list[Any] = []
    runs: dict[str, list[TokenEvent]] = {}
    for item in batch:
        if type(item) is TokenEvent:
            run = runs.get(item[1])
            if run is None:
                run = runs[item[1]] = []
                found.append(run)
            run.append(item)
        else:
            if runs:
                runs.pop(request_of(item), None)
            found.append(item)
    return [Tokens.of(item) if type(item) is list else item for item in found]


def request_of(thing: Any) -> str:
    """The request that something handed to the log is about; empty where it is about none."""
    return str(thing.get("request_id", "")) if isinstance(thing, dict) else thing.request_id


class Ledger:
    """Written while one request lives. `close` makes its one Record; whatever happens, nothing closes it twice."""

    def __init__(
        self,
        request_id: str,
        endpoint: str,
        *,
        on_token: Callable[[Any], None],
        on_event: Callable[..., None],
        on_record: Callable[[Record], None],
        on_later: Callable[[Later], None] | None = None,
        on_tokens: Callable[[Tokens], None] | None = None,
    ) -> None:
        """`on_later` takes what `event_of` tells, else that goes to `on_event` at once.

        `on_tokens` takes those that came together, else `on_token` does.
        """
        self.request_id = request_id
        self.endpoint = endpoint
        self.opened_at = time.time()
        self._opened = time.perf_counter()
        self._on_token = on_token
        self._on_event = on_event
        self._on_record = on_record
        self._on_later = on_later
        self._on_tokens = on_tokens or on_token
        self._first_ms: float | None = None
        self._sent_ms: float | None = None
        self._index = 0
        self._upstream, self._source = "", "none"
        self._closed = False
        self.log_text = False
        self.chars_out = 0
        self.why = ""
        """The reason of the decision as a header tells it, where the client asked for that."""
        self.fields: dict[str, object] = {}
        """Record fields known so far; `note` adds to them."""

    @property
    def closed(self) -> bool:
        """Whether the Record was made."""
        return self._closed

    def note(self, **fields: object) -> None:
        """Record fields as they become known."""
        self.fields.update(fields)

    def event(self, name: str, **fields: object) -> None:
        """A request event for the log, with this request's id."""
        self._on_event(name, request_id=self.request_id, **fields)

    def event_of(self, name: str, fields: Callable[..., Mapping[str, object]], *of: Any) -> None:
        """As `event`, its fields made of `of` when the log is written; see `Later`."""
        if self._on_later is not None:
            self._on_later(_new_tuple(Later, (time.time_ns(), name, self.request_id, fields, of)))
        else:
            self.event(name, **to_builtins(fields(*of)))

    def elapsed_ms(self) -> float:
        """Since the request was opened."""
        return (time.perf_counter() - self._opened) * 1000

    def sent(self) -> None:
        """The first attempt leaves now, or a stored answer was found: the gateway's own work before it is done."""
        if self._sent_ms is None:
            self._sent_ms = self.elapsed_ms()

    def content(self, text: str, n_tokens: int, *, choice: int = 0) -> None:
        """One event that carried content passed; `n_tokens` 0 when nobody counted."""
        ms = (time.perf_counter() - self._opened) * 1000
        if self._first_ms is None:
            self._first_ms = ms
            self._upstream, self._source = str(self.fields.get("route", "")), str(self.fields.get("source", "none"))
        # In the order of TokenEvent's fields: by name it would cost three times as much.
        event = (
            time.time_ns(), self.request_id, self._index, ms, n_tokens, text, self.log_text, self._upstream, self._source, choice,
        )  # fmt: skip
        self._on_token(_new_tuple(TokenEvent, event))
        self._index += 1
        self.chars_out += len(text)

    def contents(self, texts: list[tuple[int, str]]) -> None:
        """As `content`, of (choice, text) that came together and nobody counted."""
        if not texts:
            return
        ms = (time.perf_counter() - self._opened) * 1000
        if self._first_ms is None:
            self._first_ms = ms
            self._upstream, self._source = str(self.fields.get("route", "")), str(self.fields.get("source", "none"))
        choices, words = zip(*texts, strict=True)
        n, first, chars = len(words), self._index, tuple(map(len, words))
        tokens = Tokens(
            self.request_id, self._upstream, self._source, self.log_text,
            (time.time_ns(),) * n, range(first, first + n), (ms,) * n, (0,) * n, words, chars, choices,
        )  # fmt: skip
        self._on_tokens(tokens)
        self._index += n
        self.chars_out += sum(chars)

    def close(self, ending: Ending, *, status: int, error: str = "") -> None:
        """Make the Record and hand it to the sinks; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        if error:
            self.fields["error"] = error
        duration = self.elapsed_ms()
        record = Record(
            request_id=self.request_id,
            opened_at=self.opened_at,
            endpoint=self.endpoint,
            ending=ending,
            status=status,
            ttft_ms=self._first_ms,
            duration_ms=duration,
            overhead_ms=duration if self._sent_ms is None else self._sent_ms,
            events=self._index,
            **{"stream": False, **self.fields},  # type: ignore[arg-type]  # `note` is called with Record's own fields
        )
        self._on_record(record)
