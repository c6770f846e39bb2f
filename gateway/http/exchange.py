"""One HTTP exchange on the server's side: its body read, its answer written, its client's departure noticed.

Knows no endpoint and decides nothing. What carries it is a Wire: `Asgi` here, or a lane straight out of the parser.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from typing import Any, Protocol, Self

from litestar.types import Receive, Send

from gateway.dialects import Dialect
from gateway.errors import ApiError, RequestTimeout, TooLarge
from gateway.ledger import Ledger
from gateway.patience import Patience, Waits
from gateway.reply import JSON, Headers, Reply

DRAIN_S = 5.0
"""How long the rest of a refused body is read and thrown away, so that its sender sees the answer."""

WATCH_AFTER_S = 0.02
"""Over ASGI a client's departure is watched for from here on: most answers of a cache, and all refusals, are out by then."""


class Gone(Exception):
    """The client left while its body was being read."""


class Wire(Protocol):
    """Carries one exchange."""

    def ready(self) -> tuple[bytes, bool] | None:
        """What `receive` would give without waiting; None: it would wait, or nobody knows."""
        ...

    async def receive(self) -> tuple[bytes, bool] | None:
        """Some of the body, and whether more comes; None when the client has gone. Not called again after the last part."""
        ...

    async def start(self, status: int, headers: Headers) -> None:
        """The answer's head. It may leave with what follows."""
        ...

    async def write(self, data: bytes) -> None:
        """Some of the answer's body. Waits while the client reads too slowly."""
        ...

    async def end(self, data: bytes) -> None:
        """The last of it."""
        ...

    def watch(self, gone: Callable[[], None], *, now: bool) -> None:
        """Call `gone` when the client leaves before its answer has ended; `now`: at once, else a moment later will do.

        Only once the body has been read.
        """
        ...

    def unwatch(self) -> None:
        """Nobody needs to know any more."""
        ...


class Asgi:
    """An exchange as ASGI carries it, where a departure is something to be received."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._timer: asyncio.TimerHandle | None = None
        self._watching: asyncio.Task[None] | None = None

    def ready(self) -> None:
        """See `Wire.ready`."""

    async def receive(self) -> tuple[bytes, bool] | None:
        """See `Wire.receive`."""
        message: Any = await self._receive()
        if message["type"] == "http.disconnect":
            return None
        return message.get("body", b""), bool(message.get("more_body", False))

    async def start(self, status: int, headers: Headers) -> None:
        """See `Wire.start`."""
        encoded = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers]
        await self._send({"type": "http.response.start", "status": status, "headers": encoded})

    async def write(self, data: bytes) -> None:
        """See `Wire.write`."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes) -> None:
        """See `Wire.end`."""
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    def watch(self, gone: Callable[[], None], *, now: bool) -> None:
        """See `Wire.watch`. What is over by the time that the watch begins costs no task of its own."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if now:
            self._begin(gone)
        else:
            self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._begin, gone)

    def _begin(self, gone: Callable[[], None]) -> None:
        if self._watching is None:
            self._watching = asyncio.create_task(self._until_gone(gone))

    async def _until_gone(self, gone: Callable[[], None]) -> None:
        while await self.receive() is not None:
            pass
        gone()

    def unwatch(self) -> None:
        """See `Wire.unwatch`."""
        if self._timer is not None:
            self._timer.cancel()
        if self._watching is not None:
            # Let go of, since what it raises at its end would hold it, and so all of this request, until garbage is collected.
            self._watching.cancel()
            self._watching = None


class Exchange:
    """The two directions of one HTTP exchange, and how far each has come."""

    def __init__(self, wire: Wire, ledger: Ledger, dialect: Dialect, *, body_timeout_s: float, waits: Waits) -> None:
        self.wire = wire
        self.declared: int | None = None
        """See `uploads.Source`."""
        self.expects_body = True
        self.started = False
        """Whether the answer's head is out."""
        self.on_body_over: Callable[[], None] | None = None
        """Called once nobody reads the body any more."""
        self._max_bytes = 0
        self._body_timeout_s = body_timeout_s
        self._waits = waits
        self._patience: Patience | None = None
        self._ledger = ledger
        self._dialect = dialect

    async def body(self, declared_bytes: int, max_bytes: int) -> bytes:
        """The whole request body. Raises TooLarge as soon as it is known to be, Gone when the client leaves."""
        if declared_bytes > max_bytes:
            raise _too_large(max_bytes)
        part = await self._next_part()
        if not self.expects_body and len(part) <= max_bytes:
            return part
        parts, size = [part], len(part)
        while size <= max_bytes and self.expects_body:
            part = await self._next_part()
            size += len(part)
            parts.append(part)
        if size > max_bytes:
            # The rest is read and thrown away for a while; what came so far need not wait for that.
            parts.clear()
            del part
            raise _too_large(max_bytes)
        return b"".join(parts)

    def stream(self, headers: Mapping[str, str], max_bytes: int) -> int:
        """Let the body be taken by `parts`; gives its declared size. Raises TooLarge for one that says it is."""
        self._max_bytes = max_bytes
        size = declared_bytes(headers)
        if size > max_bytes:
            raise _too_large_file(max_bytes)
        self.declared = size if "content-length" in headers else None
        return size

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """See `uploads.Source`. Raises TooLarge, RequestTimeout and Gone."""
        size = 0
        while self.expects_body:
            try:
                part = await self._next_part()
            except Gone:
                # Whoever takes the parts may be waiting for an upstream that does not read: the watch ends that.
                self._body_over()
                raise
            size += len(part)
            if size > self._max_bytes:
                raise _too_large_file(self._max_bytes)
            if part:
                yield part

    async def _next_part(self) -> bytes:
        got = self.wire.ready() or await self._received()
        if got is None:
            raise Gone
        part, self.expects_body = got
        if not self.expects_body:
            if self._patience is not None:
                self._patience.end()
            self._body_over()
        return part

    async def _received(self) -> tuple[bytes, bool] | None:
        if self._patience is None:
            said = f"No byte of the body came for {self._body_timeout_s:.3g} s (server.body_timeout_s)."
            self._patience = Patience(self._waits, self._body_timeout_s, said)
        try:
            with self._patience:
                return await self.wire.receive()
        except TimeoutError as late:
            self.expects_body = False
            raise RequestTimeout(str(late)) from None

    def _body_over(self) -> None:
        if (call := self.on_body_over) is not None:
            self.on_body_over = None
            call()

    async def _start(self, status: int, headers: Headers) -> None:
        self.started = True
        ledger = self._ledger
        id_header = self._dialect.id_header
        headers.append(("x-request-id", ledger.request_id))
        if id_header != "x-request-id":
            headers.append((id_header, ledger.request_id))
        for name, _ in headers:
            if name == "openai-processing-ms":
                break
        else:
            headers.append(("openai-processing-ms", str(round(ledger.elapsed_ms()))))
        await self.wire.start(status, headers)

    async def deliver(self, reply: Reply) -> None:
        """Send a reply, whole or piece by piece."""
        body = reply.body
        if body is not None:
            await self._start(reply.status, [*reply.headers, ("content-length", str(len(body)))])
            reply.leaving()
            await self.wire.end(body)
            reply.delivered()
            return
        await self._start(reply.status, [*reply.headers, ("cache-control", "no-cache"), ("x-accel-buffering", "no")])
        write = self.wire.write
        async with aclosing(reply.pieces()) as pieces:
            async for piece in pieces:
                await write(piece)
        await self.wire.end(b"")

    async def refuse(self, error: ApiError, own: Headers) -> None:
        """Send an error. A sender that is still busy with its body sees it at once; the rest is thrown away for a while."""
        body = self._dialect.error_body(error)
        headers = [*error.headers(), *own, ("content-length", str(len(body)))]
        if not any(name == "content-type" for name, _ in headers):
            headers.append(JSON)
        await self._start(error.status, headers)
        if not self.expects_body:
            await self.wire.end(body)
            return
        await self.wire.write(body)
        # Closing a connection with unread bytes resets it, and the answer with it: a sender that has not ended is drained.
        with suppress(Gone, TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while self.expects_body:
                    await self._next_part()
        if self._patience is not None:
            self._patience.end()
        await self.wire.end(b"")


class Departure:
    """Cancels the task inside when the client disconnects; turns that cancellation into Gone."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._task: asyncio.Task[Any] | None = None
        self.gone = False

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        if self._exchange.expects_body:
            # Until then, whoever reads the body is told.
            self._exchange.on_body_over = self.watch
        else:
            self._exchange.wire.watch(self._left, now=False)
        return self

    def watch(self) -> None:
        """Look closely from now on."""
        if not self._exchange.expects_body or self._exchange.on_body_over is None:
            self._exchange.wire.watch(self._left, now=True)

    def _left(self) -> None:
        self.gone = True
        if self._task is not None:
            self._task.cancel()

    def over(self) -> None:
        """Watch no longer."""
        self._exchange.on_body_over = None
        self._exchange.wire.unwatch()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.over()
        if self.gone and self._task is not None and self._task.cancelling():
            self._task.uncancel()
            if kind is asyncio.CancelledError:
                raise Gone from None


def _too_large(max_bytes: int) -> TooLarge:
    # Made where it is raised: in a variable beside the body, it would hold the body by its traceback until a full collection.
    return TooLarge(f"The body is larger than {max_bytes} bytes (server.max_body_bytes).")


def _too_large_file(max_bytes: int) -> TooLarge:
    return TooLarge(f"The body is larger than {max_bytes} bytes (server.max_file_bytes).")


def declared_bytes(headers: Mapping[str, str]) -> int:
    """The request's content-length; 0 when it names none that can be read."""
    declared = headers.get("content-length", "")
    return int(declared) if declared.isascii() and declared.isdecimal() and len(declared) < 20 else 0
