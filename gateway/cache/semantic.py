"""The front worker's end of the cache worker: look-ups by meaning under a deadline, and embeddings.

Knows nothing of vectors: it sends text and gets answers. While the worker is away every look-up is a miss.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import msgspec

from gateway import cache
from gateway.cache import Entry, Hit, Miss, Scope
from gateway.cache.frames import (
    Done,
    Embed,
    Embedded,
    Failed,
    Found,
    Hello,
    Lookup,
    NotFound,
    Purge,
    Store,
    from_worker_decoder,
)
from gateway.errors import InvalidRequest, Unavailable, WorkerGone
from gateway.frames import Client

_MOST_CHARS = 4_000
"""No text above this is short enough for a look-up by meaning (128 tokens); it is not even sent."""
_STORE_S = 10.0
_PURGE_S = 60.0


class Semantic:
    """The semantic tier, and the gateway's local embedder."""

    def __init__(self, path: str, *, deadline_s: float = 0.25, clock: Callable[[], float] = time.time) -> None:
        self._client = Client(path, from_worker_decoder(), on_news=self._heard, on_lost=self._lost)
        self._deadline_s = deadline_s
        self._clock = clock
        self._hello: Hello | None = None
        self._changed = asyncio.Event()

    def _heard(self, frame: Hello) -> None:
        self._hello = frame
        self._changed.set()

    def _lost(self) -> None:
        self._hello = None
        self._changed.set()

    @property
    def hello(self) -> Hello | None:
        """What the worker last said of itself; None while it is away."""
        return self._hello

    async def until(self, holds: Callable[[Hello | None], bool]) -> None:
        """Return once `holds` is true of what the worker says of itself."""
        while not holds(self._hello):
            self._changed.clear()
            await self._changed.wait()

    def problem(self) -> str | None:
        """Why nothing is found by meaning, or embedded, now; None when all is well."""
        if self._hello is None:
            return "the cache worker is not running"
        return self._hello.problem or None

    async def run(self) -> None:
        """Keep the connection to the worker up until cancelled."""
        await self._client.run()

    async def aclose(self) -> None:
        """Nothing to close: the connection ends with `run`."""

    async def lookup(self, scope: Scope, *, class_: str) -> Hit | Miss:
        """An answer to a text that means the same, in the same scope; Miss("late") after the deadline."""
        if scope.text is None:
            return Miss(scope.exact_only)
        if len(scope.text) > _MOST_CHARS:
            return Miss("long")
        try:
            async with asyncio.timeout(self._deadline_s):
                answer = await self._client.ask(Lookup(self._client.next_id(), scope.digest, scope.text))
        except TimeoutError:
            return Miss("late")
        except WorkerGone:
            return Miss("no_worker")
        match answer:
            case Found():
                return self._hit(answer, class_)
            case NotFound():
                return Miss(answer.reason, answer.cosine)
            case _:
                return Miss("failed")

    def _hit(self, found: Found, class_: str) -> Hit | Miss:
        try:
            entry = cache.decode(found.answer)
        except msgspec.DecodeError:
            return Miss("undecodable")
        if entry.class_ != class_:
            return Miss("class", found.cosine)
        return Hit(entry, "semantic", found.cosine, max(0.0, self._clock() - found.stored_at))

    async def store(self, scope: Scope, entry: Entry, *, expires_at: float) -> bool:
        """Keep the entry under its text's meaning. False for a text without one, a long one, and while the worker is away."""
        if scope.text is None or len(scope.text) > _MOST_CHARS:
            return False
        frame = Store(
            self._client.next_id(),
            scope.digest,
            scope.key,
            scope.text,
            cache.encode(entry),
            scope.tenant,
            scope.model,
            entry.class_,
            expires_at,
        )
        try:
            async with asyncio.timeout(_STORE_S):
                answer = await self._client.ask(frame)
        except (TimeoutError, WorkerGone):
            return False
        return isinstance(answer, Done) and answer.count > 0

    async def purge(self, *, tenant: str | None, model: str | None, class_: str | None, dry_run: bool) -> int:
        """Forget what matches; its bytes leave the file too. Raises Unavailable when the worker did not say it is done."""
        frame = Purge(self._client.next_id(), tenant, model, class_, dry_run)
        try:
            async with asyncio.timeout(_PURGE_S):
                answer = await self._client.ask(frame)
        except (TimeoutError, WorkerGone):
            answer = None
        if not isinstance(answer, Done):
            raise Unavailable("the cache worker did not finish the purge; purge again when it is running")
        return answer.count

    async def embed(self, texts: Sequence[str]) -> Embedded:
        """One vector a text. Raises InvalidRequest for a text that is too long, Unavailable while there is no embedder."""
        if (problem := self.problem()) is not None:
            raise Unavailable(problem, code="embedder_unavailable")
        try:
            answer = await self._client.ask(Embed(self._client.next_id(), list(texts)))
        except WorkerGone as error:
            raise Unavailable(f"embedder: {error}", code="embedder_unavailable") from None
        except UnicodeEncodeError:
            raise InvalidRequest("input holds a lone surrogate, which is not text", param="input") from None
        match answer:
            case Embedded():
                return answer
            case Failed(message=message) if message.startswith("input["):
                raise InvalidRequest(message, param="input", code="context_length_exceeded")
            case Failed(message=message):
                raise Unavailable(message, code="embedder_unavailable")
            case _:
                raise Unavailable("the cache worker answered with something else", code="embedder_unavailable")
