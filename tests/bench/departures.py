"""How soon an upstream is left after its client has gone, by the phase the request was in, and what stays behind.

    .venv/bin/python -m tests.bench.departures            # 100 departures in each of five phases, about 20 s
    .venv/bin/python -m tests.bench.departures --each 20

A real gateway process; the upstream and the clients are sockets of this one. Times are from the client's close to the moment the
upstream sees its own connection closed; in the queue, which never reaches an upstream, to the end of the request's record.
Leaks: answers that the upstream still has open, records that are missing or say something else, descriptors of the gateway.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from tests.e2e.gateways import ECHO_POLICY, Gateway

SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
EVENT = (
    b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}\n\n'
)
BEFORE_HANGING = {
    "before the head": b"",
    "before the first token": SSE + b": wait\n\n",
    "in mid-stream": SSE + EVENT * 3,
    "not streamed": b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 999\r\n\r\n{",
}
"""What the upstream says before it says nothing more."""
PHASES = ("in the queue", *BEFORE_HANGING)
CONFIG = """
[upstreams.{name}]
kind = "openai"
base_url = "{url}"
zone = "local"
takes_up_to = "restricted"
retries = 0
max_connections = {connections}
connect_timeout_s = 60.0
[models.{name}]
candidates = [{{ upstream = "{name}" }}]
"""
AT_ONCE = 10
SETTLE_S = 0.1
"""How long a request has to get into its phase: nothing that another process shows says that it waits."""

Found = TypeVar("Found")


class Upstream:
    """Says what the phase wants, then nothing; sees when it is left."""

    def __init__(self) -> None:
        self.left: dict[str, float] = {}
        """Unix seconds, by the body's `user`."""
        self.reached: set[str] = set()
        self.open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            body = json.loads(await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0])))
            self.open += 1
            self.reached.add(body["user"])
            writer.write(BEFORE_HANGING.get(body["metadata"]["phase"], b""))
            await reader.read()
            self.left[body["user"]] = time.time()
            self.open -= 1
        writer.close()


class Caller:
    """A client that asks, and leaves."""

    def __init__(self, gateway: Gateway, model: str, phase: str, name: str) -> None:
        stream = phase != "not streamed"
        fields = {"model": model, "messages": [{"role": "user", "content": "x"}], "stream": stream, "user": name}
        self.body = json.dumps({**fields, "metadata": {"phase": phase}}).encode()
        self.gateway, self.name = gateway, name

    async def ask(self) -> None:
        """Send the request; nothing is read."""
        _, self.writer = await asyncio.open_connection("127.0.0.1", self.gateway.port)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {self.gateway.key}\r\n"
        head += f"content-type: application/json\r\nx-client-request-id: {self.name}\r\ncontent-length: {len(self.body)}\r\n\r\n"
        self.writer.write(head.encode() + self.body)
        await self.writer.drain()

    def leave(self) -> float:
        """Close the connection; Unix seconds."""
        self.writer.close()
        return time.time()


async def depart(gateway: Gateway, upstream: Upstream, phase: str, each: int) -> dict[str, float]:
    """When each of `each` clients left in this phase, by name, in groups."""
    gone: dict[str, float] = {}
    queues = phase == "in the queue"
    holder = Caller(gateway, "narrow", phase, "holder")
    if queues:
        await holder.ask()
        await until(lambda: "holder" in upstream.reached, "the narrow upstream's one connection is in use")
    for first in range(0, each, AT_ONCE):
        names = [f"{phase.replace(' ', '-')}-{number}" for number in range(first, min(first + AT_ONCE, each))]
        callers = [Caller(gateway, "narrow" if queues else "wide", phase, name) for name in names]
        await asyncio.gather(*(caller.ask() for caller in callers))
        if not queues:
            await until(lambda wanted=set(names): wanted <= upstream.reached, "every request reached the upstream")
        await asyncio.sleep(SETTLE_S)
        gone |= {caller.name: caller.leave() for caller in callers}
        if not queues:
            await until(lambda wanted=set(names): wanted <= set(upstream.left), "every upstream was left")
    if queues:
        holder.leave()
    return gone


async def until(ready: Callable[[], Found], what: str, deadline_s: float = 20) -> Found:
    """The first truthy value of `ready`; another process gives no other sign."""
    ends = time.monotonic() + deadline_s
    while not (found := ready()):
        if time.monotonic() > ends:
            raise SystemExit(f"not within {deadline_s:g} s: {what}")
        await asyncio.sleep(0.005)
    return found


def descriptors(gateway: Gateway) -> int:
    """Open files and sockets of the front worker."""
    return sum(1 for _ in Path(f"/proc/{gateway.pid_of('gateway.app')}/fd").iterdir())


def line(phase: str, took_ms: list[float]) -> str:
    """One row of the table."""
    ranked = sorted(took_ms)
    high = ranked[min(len(ranked) - 1, int(len(ranked) * 0.99))]
    return f"{phase:24s} {len(ranked):5d} {statistics.median(ranked):9.1f} {high:9.1f} {ranked[-1]:9.1f}"


async def measure(each: int) -> int:
    """Print the table; 1 when something stayed behind."""
    upstream = Upstream()
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, backlog=256)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    config = "".join(CONFIG.format(name=name, url=url, connections=most) for name, most in (("wide", 512), ("narrow", 1)))
    with tempfile.TemporaryDirectory() as folder:
        gateway = Gateway(
            Path(folder), config + "[cache]\nenabled = false\nsemantic = false\n", policies={"all.toml": ECHO_POLICY}
        )
        await asyncio.to_thread(gateway.start)
        before = descriptors(gateway)
        gone = {phase: await depart(gateway, upstream, phase, each) for phase in PHASES}
        count = each * len(PHASES) + 1
        records = await until(lambda: found if len(found := gateway.records()) >= count else None, f"{count} records")
        closed = {one["client_request_id"]: one["opened_at"] + one["duration_ms"] / 1000 for one in records}
        await until(lambda: upstream.open == 0, "no answer is open")
        with suppress(SystemExit):
            await until(lambda: descriptors(gateway) <= before, "no descriptor is left", 5)
        after = descriptors(gateway)
        await asyncio.to_thread(gateway.stop)
    print(f"{'client left':24s} {'n':>5s} {'median ms':>9s} {'p99 ms':>9s} {'max ms':>9s}")
    for phase, names in gone.items():
        ends = closed if phase == "in the queue" else upstream.left
        print(line(phase, [(ends[name] - left) * 1000 for name, left in names.items()]))
    wrong = sum(one["ending"] != "client_gone" for one in records)
    queued = sum(name in upstream.reached for name in gone["in the queue"])
    print(f"left open: {upstream.open} answers, {max(0, after - before)} descriptors; queued requests that still went: {queued}")
    print(f"records: {len(records)} of {count}, with another ending: {wrong}")
    return 1 if upstream.open or after > before or queued or wrong or len(records) != count else 0


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=100, help="departures in each phase")
    sys.exit(asyncio.run(measure(parser.parse_args().each)))


if __name__ == "__main__":
    main()
