"""The cache as the pipeline sees it: exact, then shared, then semantic; one set of rules before all of them.

Knows nothing of requests or policy beyond a Scope, a class and a mode. What may not be cached is neither looked up nor kept
here, whatever the caller says: an unknown class, a failed answer, a truncated one.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable

import msgspec

from gateway.cache import CACHEABLE_CLASSES, Entry, Hit, Miss, Mode, Scope, Tier
from gateway.cache.exact import Exact
from gateway.errors import Unavailable

_PENDING = 1_000
"""Stores under way in the slower tiers; above it new ones are kept in the exact tier only."""
_RETRY_S = 1.0
_UNFINISHED = frozenset({"content_filter", "tool_calls", "function_call", "error"})


class Cache:
    """Three tiers in order. One instance a front worker; `run` keeps their connections."""

    def __init__(
        self,
        *,
        exact: Exact,
        shared: Tier,
        semantic: Tier,
        ttl_s: float = 3_600.0,
        clock: Callable[[], float] = time.time,
        on_settled: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`on_settled` is awaited when every purge that was heard of is done in every tier."""
        self._exact = exact
        self._shared = shared
        self._semantic = semantic
        self._ttl_s = ttl_s
        self._clock = clock
        self._on_settled = on_settled
        self._pending: set[asyncio.Task[bool]] = set()
        self._owed: deque[tuple[str | None, str | None, str | None]] = deque()
        self._owes = asyncio.Event()
        self.dropped = 0
        """Stores that did not reach the slower tiers because too many were under way."""

    async def lookup(self, scope: Scope | None, mode: Mode, *, class_: str, no_cache: bool = False) -> Hit | Miss:
        """The stored answer to this request, or why there is none. `class_` is the request's class as judged now.

        `scope` None (see `key.cacheable`), mode `off`, the client's `no_cache` and a class above internal all miss unseen.
        """
        if (reason := _barred(scope, mode, class_)) is not None:
            return Miss(reason)
        if no_cache:
            return Miss("no_cache")
        assert scope is not None  # noqa: S101 - for the type checker; a missing scope is barred
        found = self._exact.lookup(scope, class_=class_, now=self._clock())
        if isinstance(found, Hit):
            return found
        for tier in self._slower(mode):
            answer = await tier.lookup(scope, class_=class_)
            if isinstance(answer, Hit):
                return answer
            found = found if answer.reason == "off" else answer
        return found

    def at_once(self, scope: Scope, *, class_: str) -> Hit | None:
        """What the exact tier has, without a wait; nothing for a class that may not be cached."""
        if class_ not in CACHEABLE_CLASSES:
            return None
        found = self._exact.lookup(scope, class_=class_, now=self._clock())
        return found if isinstance(found, Hit) else None

    def _slower(self, mode: Mode) -> tuple[Tier, ...]:
        return (self._shared, self._semantic) if mode == "semantic" else (self._shared,)

    def store(self, scope: Scope | None, entry: Entry, mode: Mode, *, class_: str, no_store: bool = False) -> str | None:
        """Keep a complete answer, in the exact tier at once and in the others soon; why it was refused, or None.

        The caller vouches that the answer came to its end and was not redacted. Must run on the event loop; does not wait.
        """
        reason = _barred(scope, mode, class_) or ("no_store" if no_store else _unfit(entry, mode))
        if reason is not None:
            return reason
        assert scope is not None  # noqa: S101 - for the type checker; a missing scope is barred
        now = self._clock()
        expires_at = now + self._ttl_s
        entry = msgspec.structs.replace(entry, class_=class_)
        self._exact.store(scope, entry, now=now, expires_at=expires_at)
        for tier in self._slower(mode):
            self._later(tier, scope, entry, expires_at)
        return None

    def _later(self, tier: Tier, scope: Scope, entry: Entry, expires_at: float) -> None:
        if len(self._pending) >= _PENDING:
            self.dropped += 1
            return
        task = asyncio.get_running_loop().create_task(tier.store(scope, entry, expires_at=expires_at))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def settled(self) -> None:
        """Return when every store begun so far has reached its tier or failed to."""
        await asyncio.gather(*self._pending, return_exceptions=True)

    async def purge(
        self, tenant: str | None = None, model: str | None = None, class_: str | None = None, *, dry_run: bool = False
    ) -> int:
        """Forget, in every tier, what matches all that is given; nothing given matches everything. Returns copies, not answers.

        `model` is the name clients use. Raises Unavailable when a tier could not promise it; the others have forgotten by
        then. An answer still on its way from an upstream is stored after the purge: purge again when it has ended.
        """
        await self.settled()
        count = self._exact.purge(tenant=tenant, model=model, class_=class_, dry_run=dry_run)
        tiers = (self._shared, self._semantic)
        purges = (tier.purge(tenant=tenant, model=model, class_=class_, dry_run=dry_run) for tier in tiers)
        results = await asyncio.gather(*purges, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
            count += result
        return count

    async def forget(self, tenant: str | None, model: str | None, class_: str | None) -> None:
        """Another process has purged: forget the same here. The shared tier's `on_purged`.

        Another machine has another cache worker; a purge that ours cannot do now is owed until it can.
        """
        self._exact.purge(tenant=tenant, model=model, class_=class_, dry_run=False)
        self._owed.append((tenant, model, class_))
        self._owes.set()

    async def _pay(self) -> None:
        """Pass the purges of other processes on to the cache worker, in order."""
        while True:
            await self._owes.wait()
            tenant, model, class_ = self._owed[0]
            try:
                await self._semantic.purge(tenant=tenant, model=model, class_=class_, dry_run=False)
            except Unavailable:
                await asyncio.sleep(_RETRY_S)
                continue
            self._owed.popleft()
            if not self._owed:
                self._owes.clear()
                if self._on_settled is not None:
                    await self._on_settled()

    def problems(self) -> tuple[str, ...]:
        """What keeps a tier from answering now; empty when all is well."""
        return tuple(problem for tier in (self._shared, self._semantic) if (problem := tier.problem()) is not None)

    async def run(self) -> None:
        """Keep the tiers' connections up until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._shared.run())
            tasks.create_task(self._semantic.run())
            tasks.create_task(self._pay())

    async def aclose(self) -> None:
        """Let the stores under way end, then close the tiers."""
        await self.settled()
        await self._shared.aclose()
        await self._semantic.aclose()


def _barred(scope: Scope | None, mode: Mode, class_: str) -> str | None:
    """Why the cache must not be touched for this request."""
    if mode == "off":
        return "off"
    if class_ not in CACHEABLE_CLASSES:
        return "class"
    return "uncacheable" if scope is None else None


def _unfit(entry: Entry, mode: Mode) -> str | None:
    """Why this answer must not be given again: it failed, it was cut, or it is empty.

    One that ended at the client's own `max_tokens` answers that same request, but not one that only means the same.
    """
    if not 200 <= entry.status < 300:
        return "status"
    if entry.finish_reason in _UNFINISHED or (entry.finish_reason == "length" and mode == "semantic"):
        return "unfinished"
    return None if entry.body or entry.events else "empty"
