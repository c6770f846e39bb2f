"""Everything that goes to an upstream, as raw ASGI: reads the body, answers, closes; decides nothing.

Raw handlers get every method and a trailing slash from Litestar, so 405 is said here. The client's departure is watched from
the moment its body has been read; what serves it is cancelled then, in whichever phase.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from typing import Any, Self

from litestar.types import HTTPScope, Receive, Send

from gateway import dialects
from gateway.auth import Keys, bearer
from gateway.dialects import Dialect
from gateway.dispatch import finished
from gateway.errors import (
    ApiError,
    InternalError,
    RequestTimeout,
    TooLarge,
    Unavailable,
    UnsupportedMedia,
)
from gateway.facts import loggable
from gateway.http import paths
from gateway.ledger import Ending, Ledger
from gateway.patience import Patience
from gateway.pipeline import Incoming, Pipeline
from gateway.reply import JSON, BrokenOff, Headers, Reply
from gateway.transfers.kept import Kept
from gateway.transfers.uploads import Uploads
from gateway.wire import ENDPOINTS, UPLOADS

DRAIN_S = 5.0
"""How long the rest of a refused body is read and thrown away, so that its sender sees the answer."""


WATCH_AFTER_S = 0.02
"""A client's departure is watched for from here on: most answers of a cache, and all refusals, are out by then."""


def request_id() -> str:
    """A new id for one request: 96 random bits."""
    return "req_" + secrets.token_hex(12)


def header_map(scope: Mapping[str, Any]) -> dict[str, str]:
    """Request headers by lower-case name; repeated ones joined by a comma."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1"), value.decode("latin-1")
        found[key] = f"{found[key]},{text}" if key in found else text
    return found


class Gone(Exception):
    """The client left while its body was being read."""


class Edge:
    """What every hot route shares: keys, limits, the pipeline, and the one place where a request ends."""

    def __init__(
        self,
        *,
        keys: Keys,
        pipeline: Pipeline,
        ledgers: Callable[[str, str], Ledger],
        log_problem: Callable[[], str | None],
        uploads: Uploads,
        kept: Kept,
        max_body_bytes: int,
        max_file_bytes: int,
        body_timeout_s: float,
    ) -> None:
        self._keys = keys
        self._pipeline = pipeline
        self._ledgers = ledgers
        self._log_problem = log_problem
        self._uploads = uploads
        self._kept = kept
        self._max_body_bytes = max_body_bytes
        self._max_file_bytes = max_file_bytes
        self._body_timeout_s = body_timeout_s
        self.in_flight = 0

    async def __call__(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        """One request from its head to its Record."""
        target = paths.find(scope["path"])
        name = target.name if target else "unknown"
        ledger = self._ledgers(request_id(), name)
        exchange = _Exchange(receive, send, ledger, dialects.of(name), self._body_timeout_s)
        self.in_flight += 1
        try:
            await self._serve(target, scope, exchange, ledger)
        except Gone:
            ledger.close("client_gone", status=499)
        except ApiError as refusal:
            ending: Ending = "failed" if ledger.fields.get("tried") else "refused"
            ledger.close(ending, status=refusal.status, error=refusal.code or refusal.type)
            await exchange.refuse(refusal, self._pipeline.error_headers(ledger))
        except Exception as fault:  # noqa: BLE001 - the outermost boundary: what nobody foresaw is recorded and answered
            _log_crash(ledger, fault)
            ledger.close("failed", status=500, error=type(fault).__name__)
            if not exchange.started:
                said = f"The gateway failed on this request; its log has the details under {ledger.request_id}."
                await exchange.refuse(InternalError(said), [])
        finally:
            self.in_flight -= 1
            ledger.close("cancelled", status=499)

    async def _serve(self, target: paths.Target | None, scope: HTTPScope, exchange: _Exchange, ledger: Ledger) -> None:
        headers = header_map(scope)
        detector = self._pipeline.detector
        ledger.note(client_request_id=loggable(_printable(headers.get("x-client-request-id", "")), detector))
        if target is None:
            raise paths.unknown(scope["method"], scope["path"])
        endpoint = ledger.endpoint = target.endpoint(scope["method"])
        principal = self._keys.principal(bearer(headers))
        ledger.note(key_label=principal.label, tenant=principal.tenant)
        principal.require("chat")
        if (problem := self._log_problem()) is not None:
            raise Unavailable(
                f"Requests cannot be logged, so none is served: {problem}", code="log_unavailable", retry_after_s=5.0
            )
        uploads = endpoint in UPLOADS and (endpoint not in ENDPOINTS or _media(headers) != "application/json")
        if uploads:
            _check_encoding(headers)
            body, size = b"", exchange.stream(headers, self._max_file_bytes)
        else:
            if not target.id and scope["method"] == "POST":
                _check_media(headers)
            body = await exchange.body(_declared_bytes(headers), self._max_body_bytes)
            size = len(body)
        ledger.event("request.opened", endpoint=endpoint, key_label=principal.label, tenant=principal.tenant, bytes=size)
        incoming = Incoming(
            endpoint=endpoint,
            body=body,
            headers=headers,
            principal=principal,
            deployment=target.deployment,
            query=scope.get("query_string", b"").decode("latin-1"),
            id=target.id,
            method=scope["method"],
            detector=detector,
        )
        async with _Departure(exchange) as departure:
            if uploads:
                async with self._uploads.answer(incoming, exchange, ledger) as reply:
                    await self._hand_over(reply, exchange, departure, ledger)
                return
            if endpoint.startswith(("files/", "batches")):
                reply = await self._kept.answer(incoming, ledger)
            else:
                reply = await (self._pipeline.recall if target.id else self._pipeline.answer)(incoming, ledger)
            await self._hand_over(reply, exchange, departure, ledger)

    async def _hand_over(self, reply: Reply, exchange: _Exchange, departure: _Departure, ledger: Ledger) -> None:
        if reply.body is None:
            departure.watch()
        try:
            await self._deliver(reply, exchange, ledger)
        finally:
            # From here on a departure changes nothing, and the server reports the end of the answer as one.
            departure.over()
            if reply.holds:
                await finished(reply.aclose(gone=departure.gone))
            else:
                reply.close(gone=departure.gone)

    async def _deliver(self, reply: Reply, exchange: _Exchange, ledger: Ledger) -> None:
        # An answer that broke off without a way to say so is never ended: the server then closes the connection.
        with suppress(BrokenOff):
            try:
                await exchange.deliver(reply)
            except BrokenOff:
                raise
            except Exception as fault:  # noqa: BLE001 - a fault of ours after the head can only be told in the stream itself
                _log_crash(ledger, fault)
                await exchange.end(reply.crashed(type(fault).__name__))


class _Exchange:
    """The two directions of one HTTP exchange, and how far each has come."""

    def __init__(self, receive: Receive, send: Send, ledger: Ledger, dialect: Dialect, body_timeout_s: float) -> None:
        self.receive = receive
        self.declared: int | None = None
        """See `uploads.Source`."""
        self.body_over = asyncio.Event()
        """Set when nobody reads the body any more."""
        self._max_bytes = 0
        said = f"No byte of the body came for {body_timeout_s:.3g} s (server.body_timeout_s)."
        self._patience = Patience(body_timeout_s, said)
        self._send = send
        self._ledger = ledger
        self._dialect = dialect
        self._expects_body = True
        self.started = False
        """Whether the answer's head is out."""

    async def body(self, declared_bytes: int, max_bytes: int) -> bytes:
        """The whole request body. Raises TooLarge as soon as it is known to be, Gone when the client leaves."""
        if declared_bytes > max_bytes:
            raise _too_large(max_bytes)
        parts: list[bytes] = []
        size = 0
        while self._expects_body:
            part = await self._next_part()
            size += len(part)
            if size > max_bytes:
                # The rest is read and thrown away for a while; what came so far need not wait for that.
                parts.clear()
                raise _too_large(max_bytes)
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def stream(self, headers: Mapping[str, str], max_bytes: int) -> int:
        """Let the body be taken by `parts`; gives its declared size. Raises TooLarge for one that says it is."""
        self._max_bytes = max_bytes
        size = _declared_bytes(headers)
        if size > max_bytes:
            raise _too_large_file(max_bytes)
        self.declared = size if "content-length" in headers else None
        return size

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """See `uploads.Source`. Raises TooLarge, RequestTimeout and Gone."""
        size = 0
        while self._expects_body:
            try:
                part = await self._next_part()
            except Gone:
                # Whoever takes the parts may be waiting for an upstream that does not read: the watch ends that.
                self.body_over.set()
                raise
            size += len(part)
            if size > self._max_bytes:
                raise _too_large_file(self._max_bytes)
            if part:
                yield part

    async def _next_part(self) -> bytes:
        try:
            with self._patience:
                message: Any = await self.receive()
        except TimeoutError as late:
            self._expects_body = False
            raise RequestTimeout(str(late)) from None
        if message["type"] == "http.disconnect":
            raise Gone
        self._expects_body = bool(message.get("more_body", False))
        if not self._expects_body:
            self._patience.end()
            self.body_over.set()
        part: bytes = message.get("body", b"")
        return part

    async def _start(self, status: int, headers: Headers) -> None:
        self.started = True
        encoded = _encode(headers, self._ledger, self._dialect)
        await self._send({"type": "http.response.start", "status": status, "headers": encoded})

    async def deliver(self, reply: Reply) -> None:
        """Send a reply, whole or piece by piece."""
        body = reply.body
        if body is not None:
            await self._start(reply.status, [*reply.headers, ("content-length", str(len(body)))])
            reply.leaving()
            await self.end(body)
            reply.delivered()
            return
        await self._start(reply.status, [*reply.headers, ("cache-control", "no-cache"), ("x-accel-buffering", "no")])
        async with aclosing(reply.pieces()) as pieces:
            async for piece in pieces:
                await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        await self.end(b"")

    async def end(self, body: bytes) -> None:
        """The last bytes of the answer."""
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def refuse(self, error: ApiError, own: Headers) -> None:
        """Send an error. A sender that is still busy with its body sees it at once; the rest is thrown away for a while."""
        body = self._dialect.error_body(error)
        headers = [*error.headers(), *own, ("content-length", str(len(body)))]
        if not any(name == "content-type" for name, _ in headers):
            headers.append(JSON)
        await self._start(error.status, headers)
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
        # Closing a connection with unread bytes resets it, and the answer with it: a sender that has not ended is drained.
        with suppress(Gone, TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while self._expects_body:
                    await self._next_part()
        self._patience.end()
        await self.end(b"")


class _Departure:
    """Cancels the task inside when the client disconnects; turns that cancellation into Gone.

    The watch begins a moment late, or with a stream: what is over by then costs no task of its own.
    """

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange
        self._watch: asyncio.Task[None] | None = None
        self.gone = False

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self.watch)
        return self

    def watch(self) -> None:
        """Begin now."""
        if self._watch is None:
            self._watch = asyncio.create_task(self._until_gone())

    async def _until_gone(self) -> None:
        # Before that, whoever reads the body is told.
        await self._exchange.body_over.wait()
        while True:
            message: Any = await self._exchange.receive()
            if message["type"] == "http.disconnect":
                break
        self.gone = True
        if self._task is not None:
            self._task.cancel()

    def over(self) -> None:
        """Watch no longer."""
        self._timer.cancel()
        if self._watch is not None:
            # Let go of, since what it raises at its end would hold it, and so all of this request, until garbage is collected.
            self._watch.cancel()
            self._watch = None

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.over()
        if self.gone and self._task is not None and self._task.cancelling():
            self._task.uncancel()
            if kind is asyncio.CancelledError:
                raise Gone from None


def _too_large(max_bytes: int) -> TooLarge:
    # Made where it is raised: in a variable beside the body, it would hold the body by its traceback until a full collection.
    return TooLarge(f"The body is larger than {max_bytes} bytes (server.max_body_bytes).")


def _declared_bytes(headers: Mapping[str, str]) -> int:
    declared = headers.get("content-length", "")
    return int(declared) if declared.isascii() and declared.isdecimal() and len(declared) < 20 else 0


def _too_large_file(max_bytes: int) -> TooLarge:
    return TooLarge(f"The body is larger than {max_bytes} bytes (server.max_file_bytes).")


def _check_encoding(headers: Mapping[str, str]) -> None:
    encoding = headers.get("content-encoding", "identity").lower()
    if encoding not in {"", "identity"}:
        raise UnsupportedMedia(f"Bodies with content-encoding {encoding[:32]!a} are not read here; send it unencoded.")


def _media(headers: Mapping[str, str]) -> str:
    return headers.get("content-type", "application/json").partition(";")[0].strip().lower()


def _check_media(headers: Mapping[str, str]) -> None:
    _check_encoding(headers)
    media = _media(headers)
    if media != "application/json" and not media.endswith("+json"):
        raise UnsupportedMedia(f"Send the body as `content-type: application/json`, not {media[:64]!a}.")


def _encode(headers: Headers, ledger: Ledger, dialect: Dialect) -> list[tuple[bytes, bytes]]:
    names = {name for name, _ in headers}
    own = [(name, ledger.request_id) for name in dict.fromkeys(("x-request-id", dialect.id_header))]
    if "openai-processing-ms" not in names:
        own.append(("openai-processing-ms", str(round(ledger.elapsed_ms()))))
    return [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in (*headers, *own)]


def _log_crash(ledger: Ledger, fault: Exception) -> None:
    """Type and place of a fault, never its text: that may quote the request."""
    ledger.event("request.crashed", fault=type(fault).__name__, place=_place(fault))


def _place(fault: BaseException) -> str:
    """`file:line` where a fault was raised."""
    trace = fault.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename.rpartition('/gateway/')[2]}:{trace.tb_lineno}" if trace else ""


def _printable(text: str) -> str:
    return text[:512] if text.isascii() and text.isprintable() else ""
