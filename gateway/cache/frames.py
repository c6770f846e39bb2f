"""What front workers and the cache worker say to each other. One connection carries many calls, matched by `id`."""

from __future__ import annotations

import msgspec
from msgspec import Struct


class Embed(Struct, frozen=True, tag="embed"):
    """Front → worker: vectors for some texts."""

    id: int
    texts: list[str]


class Embedded(Struct, frozen=True, tag="embedded"):
    """Worker → front: one row a text, little-endian float32, L2-normalised, in the order asked."""

    id: int
    dimensions: int
    vectors: bytes
    n_tokens: int
    """Tokens over all texts, as the embedder's own tokenizer counts them."""


class Lookup(Struct, frozen=True, tag="lookup"):
    """Front → worker: ask for the answer to a text that means the same, in this scope."""

    id: int
    scope: bytes
    """The hard partition (a digest); nothing outside it is ever compared."""
    text: str


class Found(Struct, frozen=True, tag="found"):
    """Worker → front: the stored answer, how near its text was, and when it was stored."""

    id: int
    key: bytes
    answer: bytes
    cosine: float
    stored_at: float
    """Unix seconds."""


class NotFound(Struct, frozen=True, tag="not_found"):
    """Worker → front: nothing near enough. `reason` names what decided, for the log (`empty`, `below`, `numbers`, ...)."""

    id: int
    reason: str
    cosine: float = 0.0
    """Of the nearest entry, when there was one."""


class Store(Struct, frozen=True, tag="store"):
    """Front → worker: keep this answer. Answered by Done."""

    id: int
    scope: bytes
    key: bytes
    """Exact key: storing the same key again replaces the entry."""
    text: str
    answer: bytes
    tenant: str
    model: str
    class_: str
    expires_at: float
    """Unix seconds."""


class Purge(Struct, frozen=True, tag="purge"):
    """Front or CLI → worker: forget every entry that matches all the given fields. Answered by Done with the count."""

    id: int
    tenant: str | None = None
    model: str | None = None
    class_: str | None = None
    dry_run: bool = False


class Done(Struct, frozen=True, tag="done"):
    """Worker → front: it is done; `count` entries were touched."""

    id: int
    count: int = 0


class Failed(Struct, frozen=True, tag="failed"):
    """Worker → front: this call failed, the worker lives on. Never holds request text."""

    id: int
    message: str


class Hello(Struct, frozen=True, tag="hello"):
    """Worker → front, first on every connection and whenever it changes (id 0): what it can do now."""

    embedder: str | None
    """Name of the loaded embedder; None while the weights are missing, with the reason in `problem`."""
    dimensions: int
    max_tokens: int
    """Longest text the embedder reads; `Embed` cuts nothing silently, it fails above this."""
    entries: int
    problem: str = ""
    id: int = 0


ToWorker = Embed | Lookup | Store | Purge
FromWorker = Embedded | Found | NotFound | Done | Failed | Hello


def to_worker_decoder() -> msgspec.msgpack.Decoder[ToWorker]:
    """Reads what a front worker sends."""
    return msgspec.msgpack.Decoder(ToWorker)


def from_worker_decoder() -> msgspec.msgpack.Decoder[FromWorker]:
    """Reads what the cache worker sends."""
    return msgspec.msgpack.Decoder(FromWorker)
