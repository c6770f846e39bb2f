"""The upstream that the gateway is measured against: fixed answers, as cheap as they can be made. Judges no request.

`python -m gateway.bench.upstream` prints its port and answers until its standard input ends. The first part of the path says
how: `/json/...` a whole answer, `/burst/...` 64 chunks in one write, `/paced/...` a chunk every 5 ms that carries its own time;
`/paced-20-500/...` has 500 chunks, one every 20 ms.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

import httptools
import uvloop

from gateway.process import until_stopped

CHUNKS = 64
INTERVAL_S = 0.005
"""Between two chunks of a paced stream."""

_USAGE = {"prompt_tokens": 230, "completion_tokens": CHUNKS, "total_tokens": 230 + CHUNKS}
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n"
_CHUNKED = _HEAD % b"text/event-stream" + b"transfer-encoding: chunked\r\n\r\n"


def _event(choices: list[dict[str, object]], usage: dict[str, int] | None = None) -> bytes:
    fields = {"id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 1_760_000_000, "model": "bench"}
    return b"data: " + json.dumps({**fields, "choices": choices, "usage": usage}, separators=(",", ":")).encode() + b"\n\n"


def _content(text: str) -> bytes:
    return _event([{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}])


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _whole() -> bytes:
    message = {"role": "assistant", "content": "A short answer of a fixed length. " * 8, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    fields = {"id": "chatcmpl-bench", "object": "chat.completion", "created": 1_760_000_000, "model": "bench"}
    body = json.dumps({**fields, "choices": [choice], "usage": _USAGE}, separators=(",", ":")).encode()
    return _HEAD % b"application/json" + b"content-length: %d\r\n\r\n%b" % (len(body), body)


_LAST = _event([{"index": 0, "delta": {}, "finish_reason": "stop"}]) + _event([], _USAGE) + b"data: [DONE]\n\n"
_END = _chunk(_LAST) + b"0\r\n\r\n"
_BEFORE, _, _AFTER = _content("@").partition(b"@")
FIXED: Mapping[str, bytes] = MappingProxyType(
    {
        "json": _whole(),
        "burst": _CHUNKED + b"".join(_chunk(_content(f" word{index}")) for index in range(CHUNKS)) + _END,
    }
)
"""Answers that do not depend on time, head and all."""


class Answering(asyncio.Protocol):
    """One connection. Reads requests only as far as finding their ends demands."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client came."""
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]  # a stream server gets no other
        self._parser = httptools.HttpRequestParser(self)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._kind = ""

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def on_url(self, url: bytes) -> None:
        """The parser saw the path."""
        self._kind, *pace = url.split(b"/", 2)[1].decode("latin-1").split("-")
        self._interval_s, self._chunks = (int(pace[0]) / 1000, int(pace[1])) if pace else (INTERVAL_S, CHUNKS)

    def on_message_complete(self) -> None:
        """The request is whole: answer it."""
        if self._kind == "paced":
            self._transport.write(_CHUNKED)
            self._pace(self._loop.time(), 0)
            return
        self._transport.write(FIXED.get(self._kind, b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"))

    def _pace(self, began: float, index: int) -> None:
        if index == self._chunks:
            self._timer = None
            self._transport.write(_END)
            return
        self._transport.write(_chunk(_BEFORE + b"%d" % time.monotonic_ns() + _AFTER))
        self._timer = self._loop.call_at(began + (index + 1) * self._interval_s, self._pace, began, index + 1)

    def connection_lost(self, _error: Exception | None) -> None:
        """The client is gone."""
        if self._timer is not None:
            self._timer.cancel()


async def serve(protocol: Callable[[], asyncio.Protocol] = Answering, context: ssl.SSLContext | None = None) -> None:
    """Print the port on a line of its own, then answer until stopped; over TLS with a context."""
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0, backlog=2048, ssl=context)
    async with server:
        sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
        sys.stdout.flush()
        await until_stopped()


if __name__ == "__main__":
    uvloop.run(serve())
