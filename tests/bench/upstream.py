"""What a request to an upstream costs over each HTTP client: CPU of the calling process, both in one run. Prints figures.

    .venv/bin/python -m tests.bench.upstream            # about 15 s
    .venv/bin/python -m tests.bench.upstream --rounds 9 --requests 4000

The upstream is a raw server on the loopback in a process of its own, whose CPU is not counted; it answers any request with 530
bytes of JSON, or with a stream of 64 chunks in one burst. Requests of 1 KB, 16 at a time, on uvloop; the clients take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time

import httptools
import httpx
import uvloop

from gateway.config import OpenAIUpstream
from gateway.upstreams import Call, Upstream
from gateway.upstreams.openai import connect

CLIENTS = ("http1", "httpx")
AT_ONCE = 16
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 950}]}).encode()

WHOLE = json.dumps({"id": "c1", "object": "chat.completion", "choices": [{"message": {"content": "y" * 450}}]}).encode()
EVENT = b'data: {"id":"c1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":" token"}}]}\n\n'
ANSWERS = {
    "json": b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(WHOLE), WHOLE),
    "stream": b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in [*[EVENT] * 64, b"data: [DONE]\n\n", b""]),
}


class Raw(asyncio.Protocol):
    """Answers each request by its `accept` header."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.kind = "json"

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"accept":
            self.kind = "stream" if value == b"text/event-stream" else "json"

    def on_message_complete(self) -> None:
        self.transport.write(ANSWERS[self.kind])


async def serve() -> None:
    """Print the port, then answer until killed."""
    server = await asyncio.get_running_loop().create_server(Raw, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def ask(upstream: Upstream, call: Call, times: int) -> None:
    for _ in range(times):
        answer = await upstream.send(call)
        try:
            async for _ in answer:
                pass
        finally:
            await answer.aclose()


async def cost_us(upstream: Upstream, kind: str, requests: int) -> float:
    """CPU microseconds of this process for one request."""
    call = Call(request_id="r", endpoint="chat/completions", model="m", body=BODY, stream=kind == "stream")
    begin = time.process_time_ns()
    await asyncio.gather(*(ask(upstream, call, requests // AT_ONCE) for _ in range(AT_ONCE)))
    return (time.process_time_ns() - begin) / 1000 / (requests // AT_ONCE * AT_ONCE)


async def measure(port: int, rounds: int, requests: int) -> None:
    """Both clients in turn, and the ratio of their medians."""
    for kind in ANSWERS:
        found: dict[str, list[float]] = {client: [] for client in CLIENTS}
        for _ in range(rounds):
            for client in CLIENTS:
                upstream = connect("up", OpenAIUpstream(base_url=f"http://127.0.0.1:{port}/v1", client=client), key="k")
                await cost_us(upstream, kind, AT_ONCE * 4)
                found[client].append(await cost_us(upstream, kind, requests))
                await upstream.aclose()
        for client, values in found.items():
            print(f"{kind:7s} {client:6s} {statistics.median(values):8.1f} us  [{min(values):.1f}..{max(values):.1f}]")
        print(f"{kind:7s} ratio  {statistics.median(found['httpx']) / statistics.median(found['http1']):8.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=1600)
    options = parser.parse_args()
    if options.serve:
        uvloop.run(serve())
    versions = f"Python {sys.version.split()[0]}, httpx {httpx.__version__}, httptools {httptools.__version__}, uvloop {uvloop.__version__}"
    print(
        f"{versions}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; median of {options.rounds} rounds of {options.requests}"
    )
    with subprocess.Popen([sys.executable, "-m", "tests.bench.upstream", "--serve"], stdout=subprocess.PIPE) as server:
        try:
            uvloop.run(measure(int(server.stdout.readline()), options.rounds, options.requests))
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
