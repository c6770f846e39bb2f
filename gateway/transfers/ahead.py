"""A body that is read on while nobody takes it, so that its sender's departure is noticed; what is read on waits on the disk.

TCP tells of an end only behind the bytes before it: who stops reading does not hear of it. Knows neither forms nor upstreams.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path

from gateway.transfers.spool import PART_BYTES, Spool

STALL_S = 0.1
"""How long a part waits to be taken before those behind it are put on the disk."""


class Ahead:
    """One body, taken once. Memory holds one part of it, and the one that is coming in."""

    def __init__(self, source: Callable[[], AsyncGenerator[bytes, None]], folder: Path, *, stall_s: float = STALL_S) -> None:
        """`source` gives the body's parts, none of them empty; `folder` is where they wait."""
        self.reads_on = False
        """Set as soon as the body is to be read while nobody takes it; nothing unsets it."""
        self._source = source
        self._folder = folder
        self._stall_s = stall_s
        self._part = b""
        """The next, while it waits in memory; what is on the disk is behind it."""
        self._spool: Spool | None = None
        self._at = self._end = 0
        """What waits on the disk, from its first byte to the one after its last."""
        self._over = False
        self._failure: Exception | None = None
        self._some, self._taken = asyncio.Event(), asyncio.Event()

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """The same bytes. Raises what the source does, Unavailable when the disk takes none, BodyStopped when it gives none."""
        async with aclosing(self._source()) as source:
            async for data in source:
                yield data
                if self.reads_on:
                    break
            else:
                return
            reading = asyncio.create_task(self._read(source))
            try:
                while data := await self._next():
                    yield data
            finally:
                reading.cancel()
                await asyncio.wait((reading,))
                self._failure = None
                if self._spool is not None:
                    self._spool.close()

    async def _read(self, source: AsyncGenerator[bytes, None]) -> None:
        try:
            async for data in source:
                if self._at == self._end and await self._has_room():
                    self._part = data
                else:
                    await self._put(data)
                self._some.set()
        except Exception as error:  # noqa: BLE001 - raised again by whoever takes the parts
            self._failure = error
        finally:
            self._over = True
            self._some.set()

    async def _has_room(self) -> bool:
        """Whether the part before has been taken, now or in a moment."""
        if self._part:
            self._taken.clear()
            try:
                async with asyncio.timeout(self._stall_s):
                    await self._taken.wait()
            except TimeoutError:
                return False
        return True

    async def _put(self, data: bytes) -> None:
        self._spool = self._spool or Spool(self._folder)
        await self._spool.write(data)
        await self._spool.flush()
        self._end = self._spool.length

    async def _next(self) -> bytes:
        """The part that comes now; empty at the end."""
        while True:
            if self._part:
                part, self._part = self._part, b""
                self._taken.set()
                return part
            if self._spool is not None and self._at < self._end:
                end = min(self._end, self._at + PART_BYTES)
                part = b"".join([data async for data in self._spool.read(self._at, end)])
                self._at = end
                return part
            if self._over:
                self._raise()
                return b""
            self._some.clear()
            await self._some.wait()

    def _raise(self) -> None:
        # Kept nowhere: its traceback holds this body.
        failure, self._failure = self._failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure
