"""What the supervisor and a front worker say to each other over their private socket pair."""

from __future__ import annotations

import msgspec
from msgspec import Struct


class Start(Struct, frozen=True, tag="start"):
    """Supervisor → front, first: everything the worker works with."""

    config: bytes
    """The Config as JSON."""
    sockets: dict[str, str]
    """Unix sockets of the worker processes, by worker name (`cache`, `model:NAME`)."""
    segment: str
    """Name of this worker's log files."""
    admin_sha256: str
    """Digest of the key with which the command line of this machine asks for purges."""
    id: int = 0


class Activate(Struct, frozen=True, tag="activate"):
    """Supervisor → front: this policy generation is in force from now on."""

    number: int
    source: bytes
    """`Generation.source()`."""
    id: int = 0


class WorkerNews(Struct, frozen=True, tag="worker_news"):
    """Supervisor → front: how a worker process is. An empty `problem` means that it is ready."""

    worker: str
    problem: str
    id: int = 0


class Event(Struct, frozen=True, tag="event"):
    """Supervisor → front: a lifecycle event for the log, since the front worker owns the log files."""

    name: str
    fields: dict[str, str | int | float | list[str]]
    id: int = 0


class Serving(Struct, frozen=True, tag="serving"):
    """Front → supervisor: the worker answers requests."""

    id: int = 0


ToFront = Start | Activate | WorkerNews | Event
FromFront = Serving


def to_front_decoder() -> msgspec.msgpack.Decoder[ToFront]:
    """Reads what the supervisor sends."""
    return msgspec.msgpack.Decoder(ToFront)


def from_front_decoder() -> msgspec.msgpack.Decoder[FromFront]:
    """Reads what a front worker sends."""
    return msgspec.msgpack.Decoder(FromFront)
