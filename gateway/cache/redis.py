"""Answers to equal requests, shared between processes through Redis: one GET a look-up, under a short deadline.

Holds answers and digests only, never text of a request. A Redis that is slow or gone costs a few look-ups their deadline,
then it is left alone for a second; it never fails a request.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from redis import asyncio as aioredis
from redis.exceptions import RedisError

from gateway.cache import Entry, Hit, Miss, Scope
from gateway.errors import Unavailable
from gateway.files import write_atomically

_SCAN_COUNT = 1_000
_RECONNECT_S = 1.0
_BLOCK_MS = 500
_PURGES_KEPT = 10_000
_CLOCKS_APART_S = 60.0
"""How far the clocks of Redis and of this machine may differ: a purge of that time before the start is heard again."""
_NOTHING_YET = b"0-0"
_ABSENT = "*"
_STREAM_ID = re.compile(rb"[0-9]{1,20}-[0-9]{1,20}")


class _Kept(Struct, frozen=True):
    """A value in Redis. Carries its key: an answer that came to the wrong call is seen and dropped."""

    key: bytes
    stored_at: float
    entry: Entry


class _Purged(Struct, frozen=True):
    """What one process tells the others to forget too."""

    sender: str
    tenant: str | None
    model: str | None
    class_: str | None


Purged = Callable[[str | None, str | None, str | None], Awaitable[None]]
"""Called with tenant, model and class when another process has purged."""

_FAULTS = (RedisError, OSError, TimeoutError)


class Shared:
    """The shared exact tier."""

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "gateway:cache:1",
        timeout_s: float = 0.05,
        pause_s: float = 1.0,
        on_purged: Purged | None = None,
        clock: Callable[[], float] = time.time,
        position: Path | None = None,
    ) -> None:
        """`position` is a file that outlives the process: up to which purge `settled` was told that all is forgotten."""
        self._redis: Any = aioredis.Redis.from_url(
            url, protocol=2, socket_connect_timeout=1.0, socket_timeout=max(2.0, timeout_s)
        )
        self._prefix = prefix
        self._timeout_s = timeout_s
        self._pause_s = pause_s
        self._on_purged = on_purged
        self._clock = clock
        self._sender = uuid.uuid4().hex
        self._position = position
        self._since_ms = int((clock() - _CLOCKS_APART_S) * 1000)
        self._heard = b""
        self._quiet_until = 0.0
        self._problem: str | None = None
        self._decoder = msgspec.msgpack.Decoder(_Kept)
        self.failures = 0
        """Look-ups and stores that Redis did not answer."""

    def on_purged(self, purged: Purged) -> None:
        """Say who is told when another process purges; set once, before `run`."""
        self._on_purged = purged

    async def lookup(self, scope: Scope, *, class_: str) -> Hit | Miss:
        """The answer to exactly this request. Misses with `down`, `late` or `failed` while Redis does not answer."""
        if time.monotonic() < self._quiet_until:
            return Miss("down")
        try:
            async with asyncio.timeout(self._timeout_s):
                data = await self._redis.get(self._name(scope, class_))
        except _FAULTS as error:
            return Miss(self._failed(error))
        self._problem = None
        if data is None:
            return Miss("unseen")
        try:
            kept = self._decoder.decode(data)
        except msgspec.DecodeError:
            return Miss("undecodable")
        if kept.key != scope.key or kept.entry.class_ != class_:
            return Miss("mismatch")
        return Hit(kept.entry, "shared", 1.0, max(0.0, self._clock() - kept.stored_at))

    async def store(self, scope: Scope, entry: Entry, *, expires_at: float) -> bool:
        """Keep the entry until `expires_at`; Redis itself forgets it then."""
        now = self._clock()
        life_ms = int((expires_at - now) * 1000)
        if life_ms <= 0 or time.monotonic() < self._quiet_until:
            return False
        value = msgspec.msgpack.encode(_Kept(scope.key, now, entry))
        try:
            async with asyncio.timeout(max(1.0, self._timeout_s)):
                await self._redis.set(self._name(scope, entry.class_), value, px=life_ms)
        except _FAULTS as error:
            self._failed(error)
            return False
        return True

    async def purge(self, *, tenant: str | None, model: str | None, class_: str | None, dry_run: bool) -> int:
        """Forget what matches, and tell every other process. Walks all keys. Raises Unavailable."""
        pattern = ":".join((self._prefix, _short(tenant), _short(model), class_ or _ABSENT, _ABSENT))
        count = 0
        try:
            names: list[bytes] = []
            async for name in self._redis.scan_iter(match=pattern, count=_SCAN_COUNT):
                names.append(name)
            for at in range(0, len(names), _SCAN_COUNT):
                some = names[at : at + _SCAN_COUNT]
                count += len(some) if dry_run else await self._redis.unlink(*some)
            if not dry_run:
                told = msgspec.json.encode(_Purged(self._sender, tenant, model, class_))
                await self._redis.xadd(self._stream, {"purged": told}, maxlen=_PURGES_KEPT)
        except _FAULTS as error:
            message = f"the shared cache did not finish the purge ({type(error).__name__}); purge again when Redis is back"
            raise Unavailable(message) from None
        return count

    def problem(self) -> str | None:
        """What Redis last failed with, until it answers again."""
        return self._problem

    async def run(self) -> None:
        """Follow the purges of other processes. They are kept in a stream: none is lost while we are cut off or not yet there."""
        last: bytes | None = None
        task = asyncio.current_task()
        # redis-py 8.1 can swallow a cancellation that arrives while it looks whether a connection is still good; so we ask.
        while task is None or not task.cancelling():
            try:
                last = await self._follow(last)
            except _FAULTS:
                await asyncio.sleep(_RECONNECT_S)
        raise asyncio.CancelledError

    async def _follow(self, last: bytes | None) -> bytes:
        """Hear what was purged after `last`, waiting a little; None: where the last process ended. Returns where to go on."""
        if last is None:
            return await self._begin()
        for _, messages in await self._redis.xread({self._stream: last}, block=_BLOCK_MS):
            for at, fields in messages:
                await self._hear(fields)
                last = self._heard = at
        return last

    async def _begin(self) -> bytes:
        """From where to hear purges. What was stored before this process began may be older than one made meanwhile.

        When Redis no longer knows of the purge that was heard last, others may be lost with it: then all is forgotten.
        """
        known = self._noted()
        if known is None:
            older = await self._redis.xrevrange(self._stream, max=f"{self._since_ms}-0", count=1)
            known = older[0][0] if older else _NOTHING_YET
        elif known != _NOTHING_YET and not await self._redis.xrevrange(self._stream, max=known, count=1):
            if self._on_purged is not None:
                await self._on_purged(None, None, None)
            known = _NOTHING_YET
        self._heard = known
        await self.settled()
        return known

    async def settled(self) -> None:
        """Everything that was heard so far is forgotten in every tier: a later process need not hear it again."""
        if self._position is not None and self._heard:
            with suppress(OSError):
                await asyncio.to_thread(write_atomically, self._position, self._heard)

    def _noted(self) -> bytes | None:
        try:
            noted = self._position.read_bytes() if self._position is not None else b""
        except OSError:
            return None
        return noted if _STREAM_ID.fullmatch(noted) else None

    async def _hear(self, fields: dict[bytes, bytes]) -> None:
        """Pass on one purge; one that cannot be read is taken for a purge of everything."""
        try:
            purged = msgspec.json.decode(fields.get(b"purged", b""), type=_Purged)
        except msgspec.DecodeError:
            purged = _Purged("", None, None, None)
        if purged.sender != self._sender and self._on_purged is not None:
            await self._on_purged(purged.tenant, purged.model, purged.class_)

    async def aclose(self) -> None:
        """Close all connections."""
        with suppress(*_FAULTS):
            await self._redis.aclose()

    @property
    def _stream(self) -> str:
        return f"{self._prefix}:purges"

    def _name(self, scope: Scope, class_: str) -> str:
        return ":".join((self._prefix, _short(scope.tenant), _short(scope.model), class_, scope.key.hex()))

    def _failed(self, error: Exception) -> str:
        """Count the failure, leave Redis alone for a while, and name what happened."""
        self.failures += 1
        self._quiet_until = time.monotonic() + self._pause_s
        late = isinstance(error, TimeoutError) and not isinstance(error, RedisError)
        fault = type(error).__name__
        self._problem = f"Redis does not answer the shared cache ({fault}); check the server and the URL of cache.redis_url_env"
        return "late" if late else "failed"


def _short(word: str | None) -> str:
    """A word as part of a key: fixed length, no separators, no wildcards. None matches every word."""
    return _ABSENT if word is None else hashlib.sha256(word.encode("utf-8", "surrogatepass")).hexdigest()[:16]
