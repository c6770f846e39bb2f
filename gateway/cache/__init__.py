"""What a cache keeps and what it answers: Entry, Scope, Hit, Miss, and the protocol of a tier. Imports nothing heavy.

Where each kind lives: `exact.py` in this process, `redis.py` shared between processes, `semantic.py` in the cache worker,
`off.py` nowhere; `tiers.py` asks them in that order. `key.py` makes the Scope.
"""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec
from msgspec import Struct

from gateway.ledger import Usage

Mode = Literal["off", "exact", "semantic"]
"""How far a policy lets a request be answered from stored answers; each mode includes the one before."""

CACHEABLE_CLASSES = frozenset({"public", "internal"})
"""Classes whose answers may be kept at all. Any other word, known or not, means: neither stored nor served."""


class Entry(Struct, frozen=True, kw_only=True):
    """One stored answer, as the pipeline replays it. Holds nothing of the request but the model it named."""

    kind: Literal["json", "events"]
    """`json`: `body` is the whole answer. `events`: `events` are the stream's events in order, as bytes."""
    status: int = 200
    content_type: str = "application/json"
    body: bytes = b""
    events: tuple[bytes, ...] = ()
    usage: Usage = Usage()
    model: str = ""
    """As the upstream named it in its answer."""
    upstream: str = ""
    cost_usd: float | None = None
    """What the answer had cost, hence what a hit saves; None when the price was not known."""
    finish_reason: str = ""
    class_: str = ""
    """Set by `Cache.store`: the class of the request it answered. Served only to requests of the same class."""

    def size_bytes(self) -> int:
        """What it weighs, with a round sum for everything but the answer itself."""
        return 512 + len(self.body) + sum(len(event) + 40 for event in self.events)


class Scope(Struct, frozen=True, kw_only=True):
    """The identity of one request, for every tier. Made by `key.scope`."""

    digest: bytes
    """Of the whole request but for its last user text: only answers with the same digest are ever compared by meaning."""
    key: bytes
    """Of the whole request: equal keys are equal requests."""
    text: str | None
    """The last user text; None where only the exact tiers may answer, for the reason in `exact_only`."""
    exact_only: str
    tenant: str
    model: str


class Hit(Struct, frozen=True):
    """A stored answer that may be served."""

    entry: Entry
    tier: Literal["exact", "shared", "semantic"]
    cosine: float
    """Between the texts; 1.0 in the exact tiers."""
    age_s: float


class Miss(Struct, frozen=True):
    """Nothing that may be served. `reason` is one word for log and metrics, of the last tier that was asked."""

    reason: str
    cosine: float = 0.0
    """Of the nearest stored text, where one was compared."""


class Tier(Protocol):
    """One place that keeps answers. A tier that is down answers Miss: it never fails a request."""

    async def lookup(self, scope: Scope, *, class_: str) -> Hit | Miss:
        """The answer stored for this scope and class. Bounded by the tier's own short deadline; raises nothing."""
        ...

    async def store(self, scope: Scope, entry: Entry, *, expires_at: float) -> bool:
        """Keep the entry until `expires_at` (Unix seconds). False when it was not kept; raises nothing."""
        ...

    async def purge(self, *, tenant: str | None, model: str | None, class_: str | None, dry_run: bool) -> int:
        """Forget what matches all that is given, and count it. Raises Unavailable when that cannot be promised."""
        ...

    def problem(self) -> str | None:
        """Why this tier does not answer now, in words an operator can act on, or None. Must not block."""
        ...

    async def run(self) -> None:
        """Keep the tier's connections up until cancelled."""
        ...

    async def aclose(self) -> None:
        """Close connections; called once."""
        ...


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Entry)


def encode(entry: Entry) -> bytes:
    """The entry as it lies in a store."""
    return _encoder.encode(entry)


def decode(data: bytes) -> Entry:
    """The entry from its stored form. Raises msgspec.DecodeError for what another version or a damaged store left."""
    return _decoder.decode(data)
