"""Both sides of a worker process: what it owes its supervisor, and how that one keeps it running.

A worker says its state on stdout, one JSON line each ({"state": "loading" | "ready" | "failed", "message": ...}), and stops on
SIGTERM or when its supervisor is gone. Knows nothing of what the workers do.
"""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from gateway.errors import GatewayError

EXIT_UNUSABLE = 78
"""Exit status of a worker that cannot work until an operator acts (weights missing, say); it is not restarted in a loop."""

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 30.0
STEADY_S = 60.0
"""A process that lived this long starts again with the shortest pause."""
BLOCKED_S = 2.0
"""Between two looks at what keeps a worker from being started."""
STOP_S = 5.0
"""A worker that has not ended this long after SIGTERM is killed."""
NICE = 5
"""Added to the niceness of a worker with a model: its answer may come a little later, the front workers' may not."""


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


def run(work: Callable[[], Coroutine[Any, Any, None]], path: str) -> int:
    """Work behind front workers on the socket at `path` until told to stop, then leave at once; the exit status.

    A GatewayError of the work is why it cannot be done until an operator acts.
    """
    os.nice(NICE)
    try:
        asyncio.run(_work_until_stopped(work, path))
    except GatewayError as error:
        report("failed", str(error))
        return EXIT_UNUSABLE
    return 0


async def _work_until_stopped(work: Callable[[], Coroutine[Any, Any, None]], path: str) -> None:
    stopped = asyncio.create_task(until_stopped())
    working = asyncio.create_task(work())
    done, _ = await asyncio.wait({stopped, working}, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    Path(path).unlink(missing_ok=True)  # noqa: ASYNC240 - the loop has nothing left to do
    # A thread may be in the middle of a load, a step or a text; waiting for it would only delay the end.
    sys.stderr.flush()
    os._exit(0)


async def listen(serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any], path: str) -> asyncio.Server:
    """Listen on a Unix socket, for this user alone. Raises GatewayError with the mend."""
    os.umask(0o077)
    try:
        return await asyncio.start_unix_server(serve, path)
    except OSError as error:
        raise GatewayError(f"cannot listen on {path}: {error}; choose a shorter or writable folder for sockets") from error


Started = tuple[asyncio.subprocess.Process, Awaitable[str]]
"""A process, and what follows it while it lives: awaited to its end, it gives the reason the process itself named, or nothing."""


class Child:
    """The supervisor's side: one process that is kept running. `blocked` names what must be mended before a start makes sense.

    `tell(name, problem)` hears why it does not run.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[], Awaitable[Started]],
        *,
        tell: Callable[[str, str], None],
        blocked: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.name = name
        self._start = start
        self._tell = tell
        self._blocked = blocked
        self._stopping = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None

    async def keep(self) -> None:
        """Start, wait, start again with a growing pause; returns after `stop`."""
        pause_s = FIRST_PAUSE_S
        while not self._stopping.is_set():
            if (reason := self._blocked()) is not None:
                self._tell(self.name, reason)
                await self._sleep(BLOCKED_S)
                continue
            began = time.monotonic()
            code, named = await self._live()
            if self._stopping.is_set():
                return
            if time.monotonic() - began > STEADY_S:
                pause_s = FIRST_PAUSE_S
            if code == EXIT_UNUSABLE:
                pause_s = LONGEST_PAUSE_S
            ended = f"killed by signal {-code}" if code < 0 else f"exited with status {code}"
            self._tell(self.name, named or f"{ended}; starting again in {pause_s:g} s")
            await self._sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    async def _live(self) -> tuple[int, str]:
        """One life: its exit status, and the reason for its end if it named one."""
        try:
            self._process, following = await self._start()
        except OSError as error:
            return EXIT_UNUSABLE, f"cannot be started: {error.strerror or type(error).__name__}"
        if self._stopping.is_set():
            self._signal(signal.SIGTERM)
        named = await following
        return await self._process.wait(), named

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def stop(self, grace_s: float = STOP_S) -> None:
        """SIGTERM, then SIGKILL after `grace_s`."""
        self._stopping.set()
        self._signal(signal.SIGTERM)
        if self._process is None:
            return
        try:
            await asyncio.wait_for(self._process.wait(), grace_s)
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)


async def states(output: asyncio.StreamReader, tell: Callable[[str, str], None]) -> str:
    """Read a worker's states until its output ends; the message of a last `failed`. `tell(problem, remark)` hears each."""
    failed = ""
    while line := await output.readline():
        try:
            status = msgspec.json.decode(line, type=Status)
        except msgspec.MsgspecError:
            continue
        failed = status.message if status.state == "failed" else ""
        ready = status.state == "ready"
        tell("" if ready else status.message or status.state, status.message if ready else "")
    return failed
