"""The last thing that every answer passes: it gets an id and a time if it has none, and ends as HTTP/1.0 can understand.

Knows nothing of what is served. Stands outermost, directly below uvicorn, whose `send` it needs to see.
"""

from __future__ import annotations

import socket
import struct
import time
from typing import Any, cast

from litestar.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from gateway.http import paths
from gateway.http.inference import request_id

ID, TOOK = b"x-request-id", b"openai-processing-ms"
_HOT = frozenset(paths.EXACT)
_NO_LINGER = struct.pack("ii", 1, 0)
"""With this a socket's close is a reset."""


class Door:
    """An ASGI application around another. The hot paths name their answers themselves and are not wrapped."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request through the application inside."""
        if str(scope["type"]) != "http":
            await self._app(scope, receive, send)
            return
        http: Any = scope
        old = http.get("http_version") == "1.0" and http["method"] != "HEAD"
        closing = _Closing(send) if old else None
        out = cast("Send", closing.send) if closing else send
        try:
            await self._app(scope, receive, out if http["path"] in _HOT else _named(out))
        finally:
            if closing:
                closing.over()


def _named(send: Send) -> Send:
    """A `send` that adds the two headers where they are missing."""
    began = time.perf_counter()

    async def named(message: Any) -> None:
        if message["type"] == "http.response.start":
            own = {ID: request_id().encode(), TOOK: b"%d" % round((time.perf_counter() - began) * 1000)}
            for name, _ in message["headers"]:
                own.pop(name.lower(), None)
            message = {**message, "headers": [*message["headers"], *own.items()]}
        await send(message)

    return named


class _Closing:
    """Ends an answer of unknown length by closing the connection: an HTTP/1.0 client does not know chunks (RFC 9112, 6.1).

    uvicorn (0.54) chunks whatever has no content-length, and has no setting for it; so its cycle is told that the length is
    known, and that each piece is as long as it should be. It closes the connection itself after every HTTP/1.0 answer.
    """

    def __init__(self, send: Send) -> None:
        cycle = getattr(send, "__self__", None)
        self._cycle = cycle if isinstance(cycle, RequestResponseCycle) else None
        self._send = send
        self._open = False

    async def send(self, message: Any) -> None:
        """Pass a message on."""
        if self._cycle and message["type"] == "http.response.start":
            self._open = message["status"] not in {204, 304} and not any(
                name.lower() == b"content-length" for name, _ in message["headers"]
            )
            if self._open:
                self._cycle.chunked_encoding = False
        elif self._cycle and self._open:
            self._cycle.expected_content_length = len(message.get("body", b""))
            self._open = message.get("more_body", False)
        await self._send(message)

    def over(self) -> None:
        """The application is done. An answer that it did not end must not look like a whole one: reset, not closed."""
        if self._cycle and self._open:
            self._cycle.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            self._cycle.transport.abort()
