"""Clients that measure, and meters of another process. Knows HTTP and the clock; nothing of the gateway.

Times are microseconds. CPU and memory come out of /proc and are None on systems without it.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import httptools
from msgspec import Struct

from gateway.errors import GatewayError

ANSWER_S = 30.0
"""Longest wait for one answer; longer is a failure of what is measured."""
STAMP = re.compile(rb'"content":"(\d{9,20})"')
"""The time that each chunk of a paced stream carries, nanoseconds of the monotonic clock."""


class BenchError(GatewayError):
    """Nothing can be measured; the message says why and names the mend."""


class Target(Struct, frozen=True):
    """Where requests go."""

    url: str
    """Up to and including the path."""
    headers: tuple[tuple[str, str], ...] = ()

    def address(self) -> tuple[str, int, ssl.SSLContext | None]:
        """Host, port, and the TLS context for https. Raises BenchError for a URL that names no host."""
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise BenchError(f"{self.url!a} is no URL of a gateway; give http://HOST:PORT/v1")
        tls = ssl.create_default_context() if parts.scheme == "https" else None
        return parts.hostname, parts.port or (443 if tls else 80), tls

    def request(self, body: bytes = b"") -> bytes:
        """The bytes of one request: POST with a body, GET without."""
        parts = urlsplit(self.url)
        named = [("host", parts.netloc), ("content-type", "application/json"), *self.headers]
        lines = [f"{'POST' if body else 'GET'} {parts.path} HTTP/1.1", *(f"{name}: {value}" for name, value in named)]
        return "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode("latin-1") + body


def chat(model: str, text: str, **fields: object) -> bytes:
    """The body of a chat request."""
    return json.dumps({"model": model, "messages": [{"role": "user", "content": text}], **fields}).encode()


class Took(Struct):
    """One answer on a connection of its own asking."""

    status: int = 0
    first_us: float = 0.0
    """Until the answer's first byte."""
    total_us: float = 0.0
    events_us: list[float] = []
    """When each event of a stream came."""
    headers: dict[str, str] = {}
    body: bytes = b""


class Connection:
    """One blocking keep-alive connection: asks, waits, asks again."""

    def __init__(self, target: Target) -> None:
        host, port, tls = target.address()
        try:
            self._socket = socket.create_connection((host, port), ANSWER_S)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                self._socket = tls.wrap_socket(self._socket, server_hostname=host)
        except OSError as error:
            raise BenchError(f"nothing answers at {host}:{port} ({error.strerror or error}); is the gateway running?") from None

    def ask(self, request: bytes) -> Took:
        """Send one request and read its answer to the end. Raises BenchError when the connection breaks."""
        self._took, self._complete = Took(), False
        parser = httptools.HttpResponseParser(self)
        began = time.perf_counter_ns()
        try:
            self._socket.sendall(request)
            while not self._complete:
                data = self._socket.recv(262_144)
                self._us = (time.perf_counter_ns() - began) / 1000
                if not data:
                    raise BenchError("the connection was closed in the middle of an answer; see the gateway's log")
                self._took.first_us = self._took.first_us or self._us
                parser.feed_data(data)
        except (OSError, httptools.HttpParserError) as error:
            raise BenchError(f"an answer broke off ({type(error).__name__}); see the gateway's log") from None
        self._took.total_us = self._us
        self._took.status = parser.get_status_code()
        return self._took

    def on_header(self, name: bytes, value: bytes) -> None:
        """The parser saw a header."""
        self._took.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        """The parser saw a part of the body."""
        self._took.events_us += [self._us] * body.count(b"data: {")
        self._took.body += body

    def on_message_complete(self) -> None:
        """The parser saw the end."""
        self._complete = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


class Tally(Struct):
    """What came of a load."""

    answers: int = 0
    errors: int = 0
    seconds: float = 0.0
    first_us: list[float] = []
    """Of paced streams: from the request to the first token."""
    delay_us: list[float] = []
    """Of paced streams: from the upstream's write of each token to its arrival."""


class Asking(asyncio.Protocol):
    """One connection that asks until `next_request` gives None."""

    def __init__(self, next_request: Callable[[], bytes | None], tally: Tally, *, reads: bool = False) -> None:
        """`reads`: look into bodies for the times that a paced stream carries."""
        self._next = next_request
        self._tally = tally
        if reads:
            self.on_body = self._on_stamps
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the first time."""
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]  # a stream client gets no other
        self._send()

    def _send(self) -> None:
        request = self._next()
        if request is None:
            self._transport.close()
            return
        self._parser = httptools.HttpResponseParser(self)
        self._waiting, self._first = True, True
        self._sent_ns = time.monotonic_ns()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Bytes of an answer."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def _on_stamps(self, body: bytes) -> None:
        now = time.monotonic_ns()
        for found in STAMP.finditer(body):
            if self._first:
                self._tally.first_us.append((now - self._sent_ns) / 1000)
                self._first = False
            self._tally.delay_us.append((now - int(found.group(1))) / 1000)

    def on_message_complete(self) -> None:
        """An answer is whole: ask again."""
        self._waiting = False
        if self._parser.get_status_code() == 200:
            self._tally.answers += 1
        else:
            self._tally.errors += 1
        if self._parser.should_keep_alive():
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, _error: Exception | None) -> None:
        """Closed by either side; in the middle of an answer that is an error."""
        self._tally.errors += self._waiting
        if not self.over.done():
            self.over.set_result(None)


async def saturate(target: Target, bodies: Iterable[bytes], *, connections: int, seconds: float) -> Tally:
    """Ask on each connection as soon as it is answered, for so long; `bodies` must not end before that."""
    tally, ends, each = Tally(), time.monotonic() + seconds, iter(bodies)
    await _ask(target, lambda: target.request(next(each)) if time.monotonic() < ends else None, tally, connections=connections)
    return tally


async def streams(target: Target, bodies: Iterable[bytes], *, connections: int, apart_s: float = 0.003) -> Tally:
    """As many paced streams at once as `connections`, one each, begun `apart_s` after one another."""
    tally, requests = Tally(), [target.request(body) for _, body in zip(range(connections), bodies, strict=False)]
    await _ask(target, lambda: requests.pop() if requests else None, tally, connections=connections, reads=True, apart_s=apart_s)
    return tally


async def _ask(
    target: Target,
    next_request: Callable[[], bytes | None],
    tally: Tally,
    *,
    connections: int,
    reads: bool = False,
    apart_s: float = 0.0,
) -> None:
    host, port, tls = target.address()
    loop, began, made = asyncio.get_running_loop(), time.monotonic(), []
    try:
        for _ in range(connections):
            _, protocol = await loop.create_connection(lambda: Asking(next_request, tally, reads=reads), host, port, ssl=tls)
            made.append(protocol)
            await asyncio.sleep(apart_s)
        await asyncio.gather(*(protocol.over for protocol in made))
    except OSError as error:
        raise BenchError(f"nothing answers at {host}:{port} ({error.strerror or error}); is the gateway running?") from None
    tally.seconds = time.monotonic() - began


def tree(pid: int) -> list[int]:
    """A process and all below it; empty when it is gone."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found, todo = [], [pid] if Path(f"/proc/{pid}").exists() else []
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def cpu_us(pid: int) -> float | None:
    """CPU time that a process and all below it have used so far; None where /proc does not say."""
    if not Path("/proc/self/schedstat").exists():
        return None
    total = 0
    for process in tree(pid):
        for task in Path(f"/proc/{process}/task").glob("*/schedstat"):
            try:
                total += int(task.read_text().split()[0])
            except OSError:
                continue
    return total / 1000


def pss_mib(pids: Iterable[int]) -> float | None:
    """Memory of processes with shared pages counted once; None where /proc does not say."""
    total, known = 0, False
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        known = True
    return total / 1024 if known else None


def front_of(pid: int) -> int | None:
    """The front worker below a supervisor."""
    for process in tree(pid):
        try:
            words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"gateway.app" in words:
            return process
    return None
