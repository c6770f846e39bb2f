"""What happened to one request. A Ledger is written while the request lives and closes into exactly one Record."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count, repeat
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
    text: str | None
    """None where class or policy allow no text in the log; then `chars` stands alone."""
    chars: int
    upstream: str
    source: str
    choice: int
    said: str = ""
    """The text whatever may be logged: it is searched for credentials on the log's thread, and never written."""


class Tokens(NamedTuple):
    """Several of one answer that came together and that nobody counted: one object for the loop to hand over, and no loop."""

    time_ns: int
    request_id: str
    first: int
    """Index of the first."""
    ms: float
    words: list[str]
    choices: list[int]
    shown: bool
    """Whether the words may stand in the log."""
    upstream: str
    source: str

    def events(self) -> list[TokenEvent]:
        """One by one. All of it in C: a loop would cost 1 µs a token."""
        words, choices, n = self.words, self.choices, len(self.words)
        # What one choice says is searched as one text; the last of its events brings all of it.
        said = [*repeat("", n - 1), "".join(words)] if choices.count(choices[0]) == n else words
        columns = zip(
            repeat(self.time_ns, n), repeat(self.request_id), count(self.first), repeat(self.ms), repeat(0),
            words if self.shown else repeat(None), map(len, words), repeat(self.upstream), repeat(self.source), choices,
            repeat("") if self.shown else said,
        )  # fmt: skip
        return list(map(_new_tuple, repeat(TokenEvent), columns))


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


def _one_by_one(take: Callable[[TokenEvent], None], tokens: Tokens) -> None:
    for token in tokens.events():
        take(token)


class Ledger:
    """Written while one request lives. `close` makes its one Record; whatever happens, nothing closes it twice."""

    def __init__(
        self,
        request_id: str,
        endpoint: str,
        *,
        on_token: Callable[[TokenEvent], None],
        on_event: Callable[..., None],
        on_record: Callable[[Record], None],
        on_later: Callable[[Later], None] | None = None,
        on_tokens: Callable[[Tokens], None] | None = None,
    ) -> None:
        """`on_later` takes what `event_of` tells, else that goes to `on_event` at once; `on_tokens` takes many at a time."""
        self.request_id = request_id
        self.endpoint = endpoint
        self.opened_at = time.time()
        self._opened = time.perf_counter()
        self._on_token = on_token
        self._on_event = on_event
        self._on_record = on_record
        self._on_later = on_later
        self._on_tokens = on_tokens or partial(_one_by_one, on_token)
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
        chars = len(text)
        self.chars_out += chars
        shown = text if self.log_text else None
        # In the order of TokenEvent's fields: by name it would cost three times as much.
        event = (
            time.time_ns(), self.request_id, self._index, ms, n_tokens, shown, chars, self._upstream, self._source, choice,
            text,
        )  # fmt: skip
        self._on_token(_new_tuple(TokenEvent, event))
        self._index += 1

    def contents(self, texts: list[tuple[int, str]]) -> None:
        """As `content`, of (choice, text) that came together and nobody counted."""
        if not texts:
            return
        ms = (time.perf_counter() - self._opened) * 1000
        if self._first_ms is None:
            self._first_ms = ms
            self._upstream, self._source = str(self.fields.get("route", "")), str(self.fields.get("source", "none"))
        words = [text for _, text in texts]
        tokens = (
            time.time_ns(), self.request_id, self._index, ms, words, [choice for choice, _ in texts], self.log_text,
            self._upstream, self._source,
        )  # fmt: skip
        self._on_tokens(_new_tuple(Tokens, tokens))
        self._index += len(words)
        self.chars_out += sum(map(len, words))

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
