"""Where log lines go: files of one worker, begun anew as they grow, or standard output. Knows bytes, not what they say."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import select
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

RETRY_S = 0.1
"""Between two attempts to write to a sink that failed."""

_PIPE_ATOM = 4096
"""Linux: a pipe that polls as writable takes this much without blocking, and takes it in one piece."""

_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Sink(Protocol):
    """Takes blocks of whole lines, as far as it can."""

    place: str

    def write(self, block: bytes, at: int) -> int:
        """Write some of `block` from `at` on; returns how far the block is written now.

        That may be before `at` when the beginning of a line was lost with its file. Raises OSError; nothing is written then.
        """
        ...

    def close(self) -> None:
        """Give up what it holds."""
        ...


class Files:
    """A segment: files SEGMENT-YYYYmmddTHHMMSS-N.jsonl in one folder, the next one begun between two lines."""

    def __init__(self, folder: Path, *, segment: str, rotate_bytes: int, keep_files: int) -> None:
        self.place = f"log folder {folder}"
        self._folder = folder
        self._segment = segment
        self._rotate_bytes = rotate_bytes
        self._keep_files = keep_files
        self._stamp = ""
        self._number = 0
        self._fd = -1
        self._size = 0

    def write(self, block: bytes, at: int) -> int:
        """See `Sink`."""
        # A purge takes a file away under the same lock: what is written is in the file that it read, or in the next one.
        if not self._held():
            at = block.rfind(b"\n", 0, at) + 1
            self._begin()
        try:
            return self._write(block, at)
        finally:
            self._let_go()

    def _write(self, block: bytes, at: int) -> int:
        end = self._room(block, at)
        if end == at:
            self._begin()
            end = self._room(block, at)
        try:
            wrote = os.write(self._fd, memoryview(block)[at:end])
        except OSError as error:
            # A full disk may heal in the middle of a line; any other fault may be the file's own, unless it is a fresh one.
            if error.errno not in _DISK_FULL and self._size:
                self.close()
            raise
        self._size += wrote
        return at + wrote

    def _held(self) -> bool:
        """Lock the file that is open; False when there is none, or it was deleted."""
        if self._fd < 0:
            return False
        self._lock()
        return os.fstat(self._fd).st_nlink > 0

    def _lock(self) -> None:
        with suppress(OSError):  # a file system without locks has no purge of a running log either
            fcntl.flock(self._fd, fcntl.LOCK_EX)

    def _let_go(self) -> None:
        if self._fd >= 0:
            with suppress(OSError):
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _room(self, block: bytes, at: int) -> int:
        """Where in `block` this file must end: at the last line that fits, or after the one line that is begun or too long."""
        room = self._rotate_bytes - self._size
        if at + room >= len(block):
            return len(block)
        begun = at > 0 and block[at - 1] != 0x0A
        end = block.rfind(b"\n", at, at + room) + 1 if room > 0 else 0
        if end > at:
            return end
        return block.index(b"\n", at) + 1 if begun or not self._size else at

    def open(self) -> None:
        """Begin the next file, readable by its owner alone, and remove the oldest above `keep_files`. Raises OSError."""
        self._begin()
        self._let_go()

    def _begin(self) -> None:
        """As `open`, and keep it locked."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Never an older stamp or a smaller number than before: the name says which file is the oldest.
        self._stamp = max(self._stamp, time.strftime("%Y%m%dT%H%M%S", time.gmtime()))
        while True:
            path = self._folder / f"{self._segment}-{self._stamp}-{self._number}.jsonl"
            self._number += 1
            try:
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
                break
            except FileExistsError:
                continue
        self.close()
        self._fd, self._size = fd, 0
        self._lock()
        self._prune(path)

    def _prune(self, current: Path) -> None:
        if not self._keep_files:
            return
        old = [path for path in segment_files(self._folder, self._segment) if path != current]
        for path in old[: max(0, len(old) + 1 - self._keep_files)]:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """See `Sink`."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


class Stdout:
    """Standard output. Never blocks for long: a reader that does not read is a failing sink."""

    place = "standard output"

    def write(self, block: bytes, at: int) -> int:
        """See `Sink`."""
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        if not poll.poll(RETRY_S * 1000):
            raise BlockingIOError(errno.EAGAIN, "nobody reads it")
        end = len(block) if len(block) - at <= _PIPE_ATOM else block.rfind(b"\n", at, at + _PIPE_ATOM) + 1
        return at + os.write(sys.stdout.fileno(), memoryview(block)[at : end if end > at else at + _PIPE_ATOM])

    def close(self) -> None:
        """Standard output is not ours to close."""


def segment_files(folder: Path, segment: str = "") -> list[Path]:
    """The log files in a folder, oldest first by the time in their names; of one segment when it is named. Raises OSError."""
    name = re.compile(rf"({re.escape(segment) if segment else '.+'})-(\d{{8}}T\d{{6}})-(\d+)\.jsonl")
    found = [(match, path) for path in folder.iterdir() if (match := name.fullmatch(path.name))]
    found.sort(key=lambda pair: (pair[0][2], int(pair[0][3]), pair[0][1]))
    return [path for _, path in found]
