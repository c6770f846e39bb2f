"""What every worker process owes its supervisor: say its state on stdout, stop on SIGTERM or when the supervisor is gone.

Knows nothing of what the workers do. A state is one JSON line: {"state": "loading" | "ready" | "failed", "message": ...}.
"""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from typing import Literal

import msgspec
from msgspec import Struct

EXIT_UNUSABLE = 78
"""Exit status of a worker that cannot work until an operator acts (weights missing, say); it is not restarted in a loop."""


class Status(Struct, frozen=True):
    """One line of a worker's standard output."""

    state: Literal["loading", "ready", "failed"]
    message: str = ""


def report(state: Literal["loading", "ready", "failed"], message: str = "") -> None:
    """Tell the supervisor; a broken pipe is not an error here, `until_stopped` will see it."""
    line = msgspec.json.encode(Status(state, message)) + b"\n"
    try:
        os.write(sys.stdout.fileno(), line)
    except OSError:
        return


async def until_stopped() -> None:
    """Return at SIGTERM or SIGINT, or when standard input, if it is a pipe, ends: its other end was the supervisor's."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    if stat.S_ISFIFO(os.fstat(sys.stdin.fileno()).st_mode):
        reader = asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        ended = asyncio.create_task(reader.read())
        ended.add_done_callback(lambda _: stopped.set())
        await stopped.wait()
        ended.cancel()
        transport.close()
        return
    await stopped.wait()
