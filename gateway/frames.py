"""Length-prefixed msgpack frames over a Unix socket, and the client that shares one connection among many calls.

Knows nothing of what the frames mean: each worker's own `frames.py` lists its messages as tagged Structs with an `id`.
"""

from __future__ import annotations

import asyncio
import itertools
import struct
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any, TypeVar

import msgspec

from gateway.errors import WorkerGone

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""A frame above this is a fault of the peer, not a large answer."""

T = TypeVar("T")

_LENGTH = struct.Struct(">I")
_encoder = msgspec.msgpack.Encoder()


def encode(frame: msgspec.Struct) -> bytes:
    """One frame as bytes: four bytes of length (big endian), then msgpack."""
    body = _encoder.encode(frame)
    return _LENGTH.pack(len(body)) + body


async def read(reader: asyncio.StreamReader, decoder: msgspec.msgpack.Decoder[T]) -> T | None:
    """The next frame, or None when the peer closed between frames.

    Raises WorkerGone when it closed inside one or sent what cannot be decoded.
    """
    try:
        head = await reader.readexactly(_LENGTH.size)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise WorkerGone("connection closed inside a frame") from None
        return None
    except OSError as error:
        raise WorkerGone(f"connection lost: {error}") from None
    (length,) = _LENGTH.unpack(head)
    if length > MAX_FRAME_BYTES:
        raise WorkerGone(f"frame of {length} bytes refused")
    try:
        return decoder.decode(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, OSError, msgspec.DecodeError) as error:
        raise WorkerGone(f"bad frame: {type(error).__name__}") from None


class Client:
    """One connection to a worker's Unix socket, shared by many calls; answers are matched to calls by `id`.

    `run` keeps the connection up until it is cancelled. Frames with id 0 are the worker's own news and go to `on_news`.
    """

    def __init__(
        self,
        path: str,
        decoder: msgspec.msgpack.Decoder[Any],
        *,
        on_news: Callable[[Any], None] = lambda frame: None,
        on_lost: Callable[[], None] = lambda: None,
        retry_s: float = 0.25,
    ) -> None:
        self._path = path
        self._decoder = decoder
        self._on_news = on_news
        self._on_lost = on_lost
        self._retry_s = retry_s
        self._writer: asyncio.StreamWriter | None = None
        self._calls: dict[int, asyncio.Queue[Any]] = {}
        self._ids = itertools.count(1)

    @property
    def connected(self) -> bool:
        """Whether a call made now can reach the worker."""
        return self._writer is not None

    def next_id(self) -> int:
        """A fresh call id for a frame that is about to be sent."""
        return next(self._ids)

    async def run(self) -> None:
        """Connect, read until the connection ends, connect again; for ever."""
        while True:
            with suppress(OSError, WorkerGone):
                reader, self._writer = await asyncio.open_unix_connection(self._path)
                try:
                    await self._read_all(reader)
                finally:
                    self._drop()
            await asyncio.sleep(self._retry_s)

    async def _read_all(self, reader: asyncio.StreamReader) -> None:
        while (frame := await read(reader, self._decoder)) is not None:
            if frame.id == 0:
                self._on_news(frame)
            elif (queue := self._calls.get(frame.id)) is not None:
                queue.put_nowait(frame)

    def _drop(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
        for queue in self._calls.values():
            queue.put_nowait(None)
        self._on_lost()

    def send(self, frame: Any) -> None:
        """Send a frame that expects no answer. Raises WorkerGone when there is no connection."""
        if self._writer is None:
            raise WorkerGone("worker is not connected")
        self._writer.write(encode(frame))

    async def ask(self, frame: Any) -> Any:
        """Send one frame and await its one answer. Raises WorkerGone."""
        async with aclosing(self.stream(frame)) as answers:
            async for answer in answers:
                return answer
        raise WorkerGone("worker closed the call without an answer")

    def hang_up(self, call_id: int) -> None:
        """End one call from this side: a task that waits for its next answer gets WorkerGone. The worker is told nothing."""
        if (queue := self._calls.get(call_id)) is not None:
            queue.put_nowait(None)

    async def stream(self, frame: Any) -> AsyncGenerator[Any, None]:
        """Send one frame and yield its answers until the caller stops. Raises WorkerGone when the worker leaves."""
        queue: asyncio.Queue[Any] = asyncio.Queue()
        self._calls[frame.id] = queue
        try:
            self.send(frame)
            while True:
                answer = await queue.get()
                if answer is None:
                    raise WorkerGone("worker left in the middle of a call")
                yield answer
        finally:
            del self._calls[frame.id]
