"""Responses that several gateways share through Redis: one value for each, and one for each item's id. Knows no policy.

Redis forgets what has expired, and keeps as much as its own settings say; what it has lost is not found.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct
from redis import asyncio as aioredis
from redis.exceptions import RedisError

from gateway.privacy import highest
from gateway.responses import (
    MAX_CHAIN_BYTES,
    MAX_TURNS,
    TTL_S,
    Head,
    Item,
    Turns,
    after_unknown,
    chain_too_long,
    check_clearance,
    check_page,
    deleted,
    not_found,
    page_of,
    previous_not_found,
    references_too_long,
    too_large,
    unusable,
)

T = TypeVar("T")

MAX_RESPONSE_BYTES = 32 * 2**20
_SCAN_COUNT = 1_000
_FAULTS = (RedisError, OSError, TimeoutError)


class _Item(Struct, frozen=True, array_like=True):
    id: str
    output: bool
    body: bytes
    """JSON."""


class _Kept(Struct, frozen=True, array_like=True):
    """A response in Redis."""

    class_: str
    model: str
    previous: str | None
    expires_at: float
    body: bytes
    """JSON."""
    items: list[_Item]
    """The input's, then the output's."""

    def loaded(self) -> list[Item]:
        """All items, as they were stored."""
        return [json.loads(item.body) for item in self.items]


_decoder = msgspec.msgpack.Decoder(_Kept)


class SharedStore:
    """A `responses.Store`."""

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "gateway:responses:1",
        timeout_s: float = 5.0,
        ttl_s: float = TTL_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` gives Unix seconds. Connects when it is first used."""
        self._redis: Any = aioredis.Redis.from_url(url, protocol=2, socket_connect_timeout=1.0, socket_timeout=timeout_s)
        self._prefix = prefix
        self._timeout_s = timeout_s
        self._ttl_s = ttl_s
        self._clock = clock

    async def put(
        self,
        response: dict[str, Any],
        *,
        input_items: Sequence[Item],
        tenant: str,
        class_: str,
        expires_at: float | None = None,
    ) -> None:
        """See `Store.put`. Too large is what takes more than MAX_RESPONSE_BYTES."""
        check_clearance(class_)
        until = self._clock() + self._ttl_s if expires_at is None else expires_at
        kept = await asyncio.to_thread(_kept_of, response, input_items, class_, until)
        value = msgspec.msgpack.encode(kept)
        if len(value) > MAX_RESPONSE_BYTES:
            raise too_large()
        life_ms = max(1, int((until - self._clock()) * 1000))
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(self._name("r", tenant, response["id"]), value, px=life_ms)
            for item in kept.items:
                pipe.set(self._name("i", tenant, item.id), response["id"], px=life_ms)
            await self._done(pipe.execute())

    async def get(self, id_: str, tenant: str) -> dict[str, Any]:
        """See `Store.get`."""
        kept = await self._found(id_, tenant)
        response: dict[str, Any] = await asyncio.to_thread(json.loads, kept.body)
        return response

    async def head(self, id_: str, tenant: str) -> Head:
        """See `Store.head`."""
        kept = await self._found(id_, tenant)
        return Head(kept.class_, kept.model)

    async def delete(self, id_: str, tenant: str) -> dict[str, Any]:
        """See `Store.delete`."""
        kept = await self._found(id_, tenant)
        await self._forget(tenant, id_, kept)
        return deleted(id_)

    async def input_items(
        self, id_: str, tenant: str, *, limit: int = 20, after: str | None = None, order: Literal["asc", "desc"] = "desc"
    ) -> dict[str, Any]:
        """See `Store.input_items`."""
        check_page(limit, order)
        kept = await self._found(id_, tenant)
        asked = [item for item in kept.items if not item.output]
        if order == "desc":
            asked.reverse()
        if after is not None:
            at = next((at for at, item in enumerate(asked) if item.id == after), None)
            if at is None:
                raise after_unknown()
            asked = asked[at + 1 :]
        return page_of([json.loads(item.body) for item in asked[: limit + 1]], limit)

    async def chain(self, id_: str, tenant: str) -> Turns:
        """See `Store.chain`."""
        turns: list[_Kept] = []
        size = 0
        previous: str | None = id_
        while previous is not None:
            kept = await self._look(previous, tenant)
            if kept is None:
                raise previous_not_found()
            size += sum(len(item.body) for item in kept.items)
            if len(turns) >= MAX_TURNS or size > MAX_CHAIN_BYTES:
                raise chain_too_long()
            turns.append(kept)
            previous = kept.previous
        items = await asyncio.to_thread(lambda: [item for kept in reversed(turns) for item in kept.loaded()])
        return Turns(items, highest(*(kept.class_ for kept in turns)))

    async def items(self, ids: Sequence[str], tenant: str) -> Turns:
        """See `Store.items`."""
        found, classes, size = [], [], 0
        for id_ in dict.fromkeys(ids):
            owner = await self._done(self._redis.get(self._name("i", tenant, id_)))
            kept = await self._look(owner.decode(), tenant) if owner is not None else None
            item = next((item for item in kept.items if item.id == id_), None) if kept is not None else None
            if kept is None or item is None:
                continue
            size += len(item.body)
            if size > MAX_CHAIN_BYTES:
                raise references_too_long()
            found.append(json.loads(item.body))
            classes.append(kept.class_)
        return Turns(found, highest(*classes))

    async def purge(
        self,
        *,
        tenant: str | None = None,
        class_: str | None = None,
        subject: Callable[[bytes], bool] | None = None,
        dry_run: bool = False,
    ) -> int:
        """See `Store.purge`. Walks all keys."""
        count = 0
        whose = "*" if tenant is None else _short(tenant)
        whole = class_ is None and subject is None
        try:
            async for name in self._names(f"{self._prefix}:r:{whose}:*"):
                if not whole and not await self._is_meant(name, class_, subject):
                    continue
                count += 1 if dry_run else await self._redis.unlink(name)
            # An item's key leads nowhere without its response; those that are left expire.
            if whole and not dry_run:
                async for name in self._names(f"{self._prefix}:i:{whose}:*"):
                    await self._redis.unlink(name)
        except _FAULTS as error:
            raise unusable(error, " (Redis)") from None
        return count

    async def _is_meant(self, name: bytes, class_: str | None, subject: Callable[[bytes], bool] | None) -> bool:
        """Whether the response under this key is of the class and about the subject. One that cannot be read is."""
        kept = _read(await self._redis.get(name))
        if kept is None:
            return True
        if class_ is not None and kept.class_ != class_:
            return False
        if subject is None:
            return True
        bodies = [kept.body, *(item.body for item in kept.items)]
        return await asyncio.to_thread(lambda: any(map(subject, bodies)))

    async def aclose(self) -> None:
        """See `Store.aclose`."""
        with suppress(*_FAULTS):
            await self._redis.aclose()

    def _names(self, pattern: str) -> AsyncIterator[bytes]:
        names: AsyncIterator[bytes] = self._redis.scan_iter(match=pattern, count=_SCAN_COUNT)
        return names

    def _name(self, kind: Literal["r", "i"], tenant: str, id_: str) -> str:
        return f"{self._prefix}:{kind}:{_short(tenant)}:{_short(id_)}"

    async def _look(self, id_: str, tenant: str) -> _Kept | None:
        kept = _read(await self._done(self._redis.get(self._name("r", tenant, id_))))
        return kept if kept is not None and kept.expires_at > self._clock() else None

    async def _found(self, id_: str, tenant: str) -> _Kept:
        kept = await self._look(id_, tenant)
        if kept is None:
            raise not_found()
        return kept

    async def _forget(self, tenant: str, id_: str, kept: _Kept) -> None:
        await self._done(
            self._redis.unlink(self._name("r", tenant, id_), *(self._name("i", tenant, item.id) for item in kept.items))
        )

    async def _done(self, asked: Awaitable[T]) -> T:
        """What Redis says. Raises Unavailable when it does not."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asked
        except _FAULTS as error:
            raise unusable(error, " (Redis)") from None


def _read(value: bytes | None) -> _Kept | None:
    """A stored value; None for what another version has left."""
    try:
        return None if value is None else _decoder.decode(value)
    except msgspec.DecodeError:
        return None


def _kept_of(response: dict[str, Any], input_items: Sequence[Item], class_: str, expires_at: float) -> _Kept:
    rows = [(False, item) for item in input_items] + [(True, item) for item in response["output"]]
    items = [_Item(item["id"], output, json.dumps(item).encode()) for output, item in rows]
    model, previous = str(response.get("model", "")), response.get("previous_response_id")
    return _Kept(class_, model, previous, expires_at, json.dumps(response).encode(), items)


def _short(word: str) -> str:
    """A word as part of a key: fixed length, no separators, no wildcards."""
    return hashlib.sha256(word.encode("utf-8", "surrogatepass")).hexdigest()[:32]
