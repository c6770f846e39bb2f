"""Bytes that wait on the disk: in a file without a name, which is gone with the process, whatever ends it."""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from collections.abc import AsyncGenerator
from pathlib import Path

from gateway.errors import BodyStopped, Unavailable
from gateway.files import make_private

PART_BYTES = 256 * 1024
"""Read and written at once."""


class Spool:
    """A temporary file of its owner alone. All work on the disk is done on threads; one writer, then any number of readers."""

    def __init__(self, folder: Path) -> None:
        """Raises Unavailable when no file can be made in `folder`."""
        try:
            make_private(folder)
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - `close` is called by whoever made it
        except OSError as error:
            raise _unusable(error) from None
        self._lock = threading.Lock()
        """Held while the file is used: what was closed meanwhile could be another file under the same number."""
        self.length = 0
        """Bytes written, or about to be."""
        self._waiting = bytearray()

    async def write(self, data: bytes) -> None:
        """Add bytes. Raises Unavailable when the disk does not take them."""
        self._waiting += data
        self.length += len(data)
        if len(self._waiting) >= PART_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Put on the disk what waits in memory. Raises Unavailable."""
        data, self._waiting = bytes(self._waiting), bytearray()
        try:
            await asyncio.to_thread(self._write, data)
        except OSError as error:
            raise _unusable(error) from None

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        with self._lock:
            while left:
                left = left[self._file.write(left) :]

    def _read(self, n_bytes: int, start: int) -> bytes:
        with self._lock:
            return os.pread(self._file.fileno(), n_bytes, start)

    async def read(self, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """The bytes from `start` up to `end`, in parts. Everything written must have been flushed. Raises BodyStopped."""
        while start < end:
            try:
                data = await asyncio.to_thread(self._read, min(PART_BYTES, end - start), start)
            except (OSError, ValueError) as error:
                raise BodyStopped("the spooled body cannot be read") from _unusable(error)
            if not data:
                raise BodyStopped("the spooled body is shorter than it was")
            start += len(data)
            yield data

    async def lines(self, start: int, end: int, *, longest: int) -> AsyncGenerator[bytes, None]:
        """The lines from `start` up to `end` with their ends; one longer than `longest` bytes comes cut after so many."""
        rest = b""
        async for data in self.read(start, end):
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                yield line + b"\n"
            if len(rest) > longest:
                yield rest[: longest + 1]
                return
        if rest:
            yield rest

    def close(self) -> None:
        """Free the disk. A second call does nothing."""
        with self._lock:
            self._file.close()


def _unusable(error: Exception) -> Unavailable:
    said = f"The gateway has no room on its disk for this upload ({type(error).__name__}); tell its operator."
    return Unavailable(said, code="state_unavailable", should_retry=True, retry_after_s=5.0)
