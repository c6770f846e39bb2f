"""What front workers and the names worker say to each other. One connection carries many calls, matched by `id`."""

from __future__ import annotations

import msgspec
from msgspec import Struct

Span = tuple[str, int, int]
"""Kind, start and end, in characters."""


class Read(Struct, frozen=True, tag="read"):
    """Front → worker: the names in some texts."""

    id: int
    texts: list[str]
    patience_s: float
    """For so long is the answer waited for; nobody wants it later."""


class Found(Struct, frozen=True, tag="found"):
    """Worker → front: the names in each text, in the order asked."""

    id: int
    spans: list[list[Span]]


class Failed(Struct, frozen=True, tag="failed"):
    """Worker → front: this call failed, the worker lives on. Never holds request text."""

    id: int
    error_type: str


FromWorker = Found | Failed


def to_worker_decoder() -> msgspec.msgpack.Decoder[Read]:
    """Reads what a front worker sends."""
    return msgspec.msgpack.Decoder(Read)


def from_worker_decoder() -> msgspec.msgpack.Decoder[FromWorker]:
    """Reads what the names worker sends."""
    return msgspec.msgpack.Decoder(FromWorker)
