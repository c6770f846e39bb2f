"""The short way of a hot request: from uvicorn's parser straight to the Edge, past ASGI and the router.

A connection is uvicorn's own protocol. A POST to a path that holds no id is carried by a Lane; everything else (other methods,
other paths, HTTP/1.0, upgrades, web pages of other origins) goes the way of any ASGI application. Knows uvicorn 0.54's insides;
docs/decisions/011 says what that saves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.errors import InvalidRequest
from gateway.http import paths
from gateway.http.inference import request_id
from gateway.patience import Queue

if TYPE_CHECKING:
    from uvicorn import Config
    from uvicorn.server import ServerState

    from gateway.http.inference import Edge
    from gateway.reply import Headers

_STATUS_LINES = {
    status: f"HTTP/1.1 {status} {HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ''}\r\n"
    for status in range(200, 600)
}


_MALFORMED = InvalidRequest("The HTTP request cannot be read: a line, a header or the framing of its body is malformed.")


class Connections:
    """Makes the protocol of each connection of one server, and closes those that lie idle."""

    def __init__(self, edge: Edge, *, idle_s: float, cors: bool) -> None:
        """`idle_s`: how long a connection may wait for its next request. `cors`: whether pages of other origins are served."""
        self.edge = edge
        self.cors = cors
        self.idle = Queue(idle_s)

    def __call__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], **more: Any) -> Connection:
        """As uvicorn makes a protocol."""
        return Connection(self, config, server_state, app_state, **more)


class Connection(HttpToolsProtocol):
    """One connection of a client."""

    def __init__(self, owner: Connections, config: Config, state: ServerState, app_state: dict[str, Any], **more: Any) -> None:
        super().__init__(config, state, app_state, **more)
        self._owner = owner
        self._is_idle = False

    def data_received(self, data: bytes) -> None:
        """Some bytes of requests."""
        if self._is_idle:
            self._unset_keepalive_if_required()
        super().data_received(data)

    def _unset_keepalive_if_required(self) -> None:
        if self._is_idle:
            self._is_idle = False
            self._owner.idle.discard(self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, or has been left."""
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
        self.let_go()

    def let_go(self) -> None:
        """Forget an exchange that is over on a connection that is: they hold each other, until garbage is collected."""
        cycle: Any = self.cycle
        if type(cycle) is Lane and cycle.over:
            self.cycle = cast("Any", None)

    # What the parser says.

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's words, without a mend
        """What is no HTTP gets an error as any other request does. Behind one that is being served it ends the connection."""
        cycle: Any = self.cycle
        if cycle is not None and not cycle.response_complete and (cycle.response_started or not cycle.more_body):
            cycle.keep_alive = False
            self.flow.pause_reading()
            return
        body = _MALFORMED.body()
        own = (
            f"x-request-id: {request_id()}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close"
        )
        self.transport.write(f"{_STATUS_LINES[400]}{own}\r\n\r\n".encode() + body)
        self.transport.close()

    def on_message_begin(self) -> None:
        """A first line begins."""
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        """A head has come; who serves it is known now."""
        url, _, query = self.url.partition(b"?")
        target = _TARGETS.get(url)
        parser = self.parser
        if (
            target is None
            or parser.get_method() != b"POST"
            or parser.get_http_version() != "1.1"
            or parser.should_upgrade()
            or self.limit_concurrency is not None
            or (self._owner.cors and any(name == b"origin" for name, _ in self.headers))
        ):
            self._begin_scope()
            super().on_headers_complete()
            return
        scope = {"type": "http", "method": "POST", "path": target, "query_string": query, "headers": self.headers}
        before = self.cycle
        lane = Lane(self, scope, keep_alive=parser.should_keep_alive(), asks_first=self.expect_100_continue)
        self.cycle = cast("Any", lane)
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def _begin_scope(self) -> None:
        self.scope = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": "1.1",
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme or "http",
            "root_path": self.root_path,
            "headers": self.headers,
            "state": self.app_state.copy(),
        }  # type: ignore[typeddict-item]  # as uvicorn itself begins it

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if type(cycle) is not Lane:
            super()._start_asgi_task(cycle, app)
            return
        task = self.loop.create_task(cycle.run(self._owner.edge))
        cycle.task = task
        self.tasks.add(task)

    def on_body(self, body: bytes) -> None:
        """Some of a request's body."""
        cycle: Any = self.cycle
        if type(cycle) is Lane:
            cycle.feed(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The end of a request."""
        cycle: Any = self.cycle
        if type(cycle) is Lane:
            cycle.feed_end()
        else:
            super().on_message_complete()

    # What happens around it.

    def on_response_complete(self) -> None:
        """An answer is out: the next request, or a while of waiting for one."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif not self._is_idle:
            self._is_idle = True
            self._owner.idle.add(self.timeout_keep_alive_handler)


_TARGETS = {path.encode(): path for path in (*paths.PLAIN, *(f"{path}/" for path in paths.PLAIN))}


class Lane:
    """One exchange on a Connection: see `exchange.Wire`. To uvicorn it looks like a cycle of its own."""

    __slots__ = (
        "_asks_first", "_chunked", "_connection", "_flow", "_gone", "_head", "_left", "_parts", "_scope", "_size", "_transport",
        "_waiter", "disconnected", "keep_alive", "more_body", "over", "response_complete", "response_started", "task",
    )  # fmt: skip

    def __init__(self, connection: Connection, scope: dict[str, Any], *, keep_alive: bool, asks_first: bool) -> None:
        self.keep_alive = keep_alive
        self.response_complete = False
        self.disconnected = False
        self.over = False
        """Whether nobody works on it any more."""
        self.task: asyncio.Task[None] | None = None
        self.response_started = False
        self._connection = connection
        self._transport = connection.transport
        self._flow = connection.flow
        self._scope = scope
        self._asks_first = asks_first
        self._parts: list[bytes] = []
        self._size = 0
        self.more_body = True
        self._waiter: asyncio.Future[None] | None = None
        self._gone: Callable[[], None] | None = None
        self._head = b""
        """What has not left yet, for it leaves with what follows."""
        self._chunked = False
        self._left = 0
        """Bytes that the answer still owes, by its content-length."""

    async def run(self, edge: Edge) -> None:
        """Serve the request. An answer that nobody ends is cut off, so that it cannot pass for a whole one."""
        try:
            await edge.serve(self._scope, self)
        finally:
            connection = self._connection
            if self.task is not None:
                connection.tasks.discard(self.task)
                self.task = None
            if not self.response_complete and not self.disconnected:
                if self._head:
                    self._transport.write(self._head)
                self._transport.close()
            self.over = True
            if self.disconnected or self._transport.is_closing():
                connection.let_go()

    # What the connection says.

    @property
    def message_event(self) -> Lane:
        """What uvicorn sets when the connection is lost."""
        return self

    def feed(self, data: bytes) -> None:
        """Some of the body has come."""
        if self.response_complete:
            return
        self._parts.append(data)
        self._size += len(data)
        if self._size > HIGH_WATER_LIMIT:
            self._flow.pause_reading()
        if self._waiter is not None:
            self._wake()

    def feed_end(self) -> None:
        """The body is complete."""
        self.more_body = False
        if self._waiter is not None:
            self._wake()

    def set(self) -> None:
        """The connection is lost."""
        if self._waiter is not None:
            self._wake()
        if self._gone is not None and self.disconnected:
            gone, self._gone = self._gone, None
            gone()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # What the exchange asks for.

    def ready(self) -> tuple[bytes, bool] | None:
        """See `Wire.ready`."""
        if self.disconnected or self._asks_first or not (self._parts or not self.more_body):
            return None
        return self._taken()

    def _taken(self) -> tuple[bytes, bool]:
        parts, self._parts, self._size = self._parts, [], 0
        if self.more_body:
            self._flow.resume_reading()
        return parts[0] if len(parts) == 1 else b"".join(parts), self.more_body

    async def receive(self) -> tuple[bytes, bool] | None:
        """See `Wire.receive`."""
        if self._asks_first:
            self._asks_first = False
            if not self._transport.is_closing() and not self.response_started:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not self._parts and self.more_body and not self.disconnected:
            self._flow.resume_reading()
            self._waiter = self._connection.loop.create_future()
            await self._waiter
        return None if self.disconnected else self._taken()

    async def start(self, status: int, headers: Headers) -> None:
        """See `Wire.start`."""
        lines = [f"{name}: {value}\r\n" for name, value in headers]
        text = "".join(lines)
        if text.count("\n") != len(lines) or text.count("\r") != len(lines) or "\0" in text:
            raise ValueError("a header holds a line break")
        self.response_started = True
        self._asks_first = False
        self._chunked = True
        closes = not self.keep_alive
        for name, value in headers:
            if name == "content-length":
                self._chunked, self._left = False, int(value)
            elif name == "connection":
                self.keep_alive = closes = False
        if self._chunked:
            text += "transfer-encoding: chunked\r\n"
        if closes:
            text += "connection: close\r\n"
        self._head = f"{_STATUS_LINES[status]}{text}\r\n".encode("latin-1", "replace")

    async def write(self, data: bytes) -> None:
        """See `Wire.write`."""
        flow = self._flow
        if flow.write_paused and not self.disconnected:
            await flow.drain()
        if self.disconnected:
            return
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        else:
            self._left -= len(data)
        if self._head:
            data, self._head = self._head + data, b""
        self._transport.write(data)

    async def end(self, data: bytes) -> None:
        """See `Wire.end`. An answer that is not as long as its head says is cut off."""
        flow = self._flow
        if flow.write_paused and not self.disconnected:
            await flow.drain()
        if self.disconnected:
            return
        transport = self._transport
        if self._chunked:
            data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n"
        else:
            self._left -= len(data)
            if self._left:
                transport.abort()
                return
        if self._head:
            data, self._head = self._head + data, b""
        if data:
            transport.write(data)
        self.response_complete = True
        self._gone = None
        if not self.keep_alive:
            transport.close()
        self._connection.on_response_complete()

    def watch(self, gone: Callable[[], None], *, now: bool) -> None:  # noqa: ARG002 - it costs nothing to know at once
        """See `Wire.watch`."""
        self._gone = gone
        if self.disconnected:
            self._connection.loop.call_soon(self.set)

    def unwatch(self) -> None:
        """See `Wire.unwatch`."""
        self._gone = None
