"""The three hot routes as raw ASGI: chat completions, completions, embeddings. Reads the body, answers, closes; decides nothing.

Raw handlers get every method and a trailing slash from Litestar, so 405 is said here. The client's departure is watched from
the moment its body has been read; what serves it is cancelled then, in whichever phase.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from litestar.types import HTTPScope, Receive, Send

from gateway.auth import Keys, bearer
from gateway.errors import (
    ApiError,
    InternalError,
    MethodNotAllowed,
    TooLarge,
    Unavailable,
    UnsupportedMedia,
)
from gateway.ledger import Ending, Ledger
from gateway.pipeline import Incoming, Pipeline
from gateway.reply import JSON, Headers, Reply

DRAIN_S = 5.0
"""How long the rest of a refused upload is read and thrown away, so that its sender sees the answer."""


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


class Gone(Exception):  # noqa: N818 - an event, not a fault
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
        max_body_bytes: int,
    ) -> None:
        self._keys = keys
        self._pipeline = pipeline
        self._ledgers = ledgers
        self._log_problem = log_problem
        self._max_body_bytes = max_body_bytes
        self.in_flight = 0

    async def handle(self, endpoint: str, scope: HTTPScope, receive: Receive, send: Send) -> None:
        """One request from its head to its Record."""
        ledger = self._ledgers(request_id(), endpoint)
        self.in_flight += 1
        ending: Ending = "cancelled"
        status, error = 499, ""
        try:
            await self._serve(endpoint, scope, receive, send, ledger)
        except Gone:
            ending = "client_gone"
        except ApiError as refusal:
            tried = bool(ledger.fields.get("tried"))
            ending, status, error = ("failed" if tried else "refused"), refusal.status, refusal.code or refusal.type
            await _send_error(send, refusal, ledger)
        except Exception as fault:
            # The outermost boundary: recorded by type and place, never by its text, which may quote the request.
            place = _place(fault)
            ledger.event("request.crashed", fault=type(fault).__name__, place=place)
            ending, status, error = "failed", 500, type(fault).__name__
            said = f"The gateway failed on this request; its log has the details under {ledger.request_id}."
            with suppress(Exception):
                await _send_error(send, InternalError(said), ledger)
        finally:
            self.in_flight -= 1
            ledger.close(ending, status=status, error=error)

    async def _serve(self, endpoint: str, scope: HTTPScope, receive: Receive, send: Send, ledger: Ledger) -> None:
        headers = header_map(scope)
        ledger.note(client_request_id=_printable(headers.get("x-client-request-id", "")))
        if scope["method"] != "POST":
            raise MethodNotAllowed(f"Use POST for /v1/{endpoint}, not {ascii(scope['method'])[1:-1]}.")
        principal = self._keys.principal(bearer(headers))
        ledger.note(key_label=principal.label, tenant=principal.tenant)
        principal.require("chat")
        if (problem := self._log_problem()) is not None:
            raise Unavailable(f"Requests cannot be logged, so none is served: {problem}", code="log_unavailable", retry_after_s=5.0)
        _check_media(headers)
        body = await self._read(headers, receive)
        ledger.event("request.opened", endpoint=endpoint, key_label=principal.label, tenant=principal.tenant, bytes=len(body))
        incoming = Incoming(endpoint=endpoint, body=body, headers=headers, principal=principal)
        async with _Departure(receive) as departure:
            reply = await self._pipeline.answer(incoming, ledger)
            try:
                await _send_reply(send, reply, ledger)
            finally:
                await asyncio.shield(reply.aclose(gone=departure.gone))

    async def _read(self, headers: Mapping[str, str], receive: Receive) -> bytes:
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self._max_body_bytes:
            await _drain(receive)
            raise self._too_large()
        parts: list[bytes] = []
        size = 0
        while True:
            message: Any = await receive()
            if message["type"] == "http.disconnect":
                raise Gone
            part = message.get("body", b"")
            size += len(part)
            if size > self._max_body_bytes:
                parts.clear()
                await _drain(receive)
                raise self._too_large()
            parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    def _too_large(self) -> TooLarge:
        return TooLarge(f"The body is larger than {self._max_body_bytes} bytes (server.max_body_bytes).")


class _Departure:
    """Cancels the task inside when the client disconnects; turns that cancellation into Gone."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.gone = False

    async def __aenter__(self) -> _Departure:
        self._task = asyncio.current_task()
        self._watch = asyncio.create_task(self._until_gone())
        return self

    async def _until_gone(self) -> None:
        while True:
            message: Any = await self._receive()
            if message["type"] == "http.disconnect":
                break
        self.gone = True
        if self._task is not None:
            self._task.cancel()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._watch.cancel()
        if self.gone and self._task is not None and kind is asyncio.CancelledError:
            self._task.uncancel()
            raise Gone from None


def _check_media(headers: Mapping[str, str]) -> None:
    encoding = headers.get("content-encoding", "identity").lower()
    if encoding not in {"", "identity"}:
        raise UnsupportedMedia(f"Bodies with content-encoding {ascii(encoding[:32])} are not read here; send it unencoded.")
    media = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media != "application/json" and not media.endswith("+json"):
        raise UnsupportedMedia(f"Send the body as `content-type: application/json`, not {ascii(media[:64])}.")


async def _drain(receive: Receive) -> None:
    """Throw away what is still coming, for a while."""
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_S):
            while True:
                message: Any = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return


def _encode(headers: Headers, ledger: Ledger) -> list[tuple[bytes, bytes]]:
    names = {name for name, _ in headers}
    own = [("x-request-id", ledger.request_id)]
    if "openai-processing-ms" not in names:
        own.append(("openai-processing-ms", str(round(ledger.elapsed_ms()))))
    return [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in (*headers, *own)]


async def _send_reply(send: Send, reply: Reply, ledger: Ledger) -> None:
    headers = list(reply.headers)
    if reply.body is not None:
        headers.append(("content-length", str(len(reply.body))))
    else:
        headers += [("cache-control", "no-cache"), ("x-accel-buffering", "no")]
    await send({"type": "http.response.start", "status": reply.status, "headers": _encode(headers, ledger)})
    async for piece in reply.pieces():
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_error(send: Send, error: ApiError, ledger: Ledger) -> None:
    body = error.body()
    headers = [*error.headers(), JSON, ("content-length", str(len(body)))]
    if policy := ledger.fields.get("policy"):
        headers.append(("x-gateway-policy", str(policy)))
    await send({"type": "http.response.start", "status": error.status, "headers": _encode(headers, ledger)})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _place(fault: BaseException) -> str:
    """`file:line` where a fault was raised."""
    trace = fault.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename.rpartition('/gateway/')[2]}:{trace.tb_lineno}" if trace else ""


def _printable(text: str) -> str:
    return text[:512] if text.isascii() and text.isprintable() else ""

