"""Everything that goes to an upstream: reads the body, answers, closes; decides nothing.

Raw handlers get every method and a trailing slash from Litestar, so 405 is said here. The client's departure is watched from
the moment its body has been read; what serves it is cancelled then, in whichever phase.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from litestar.types import HTTPScope, Receive, Send

from gateway import dialects
from gateway.auth import Keys, Principal, bearer
from gateway.dispatch import finished
from gateway.errors import (
    ApiError,
    InternalError,
    Unavailable,
    UnsupportedMedia,
)
from gateway.facts import loggable
from gateway.http import paths
from gateway.http.exchange import Asgi, Departure, Exchange, Gone, Wire, declared_bytes
from gateway.ledger import Ending, Ledger
from gateway.patience import Waits
from gateway.pipeline import Incoming, Pipeline
from gateway.reply import BrokenOff, Reply
from gateway.transfers.kept import Kept
from gateway.transfers.uploads import Uploads
from gateway.wire import ENDPOINTS, UPLOADS


class _Ids:
    """Makes ids for requests, drawn by the hundred: each draw is a system call. For one thread."""

    def __init__(self) -> None:
        self._drawn = ""
        self._at = 0

    def __call__(self) -> str:
        at = self._at
        if at >= len(self._drawn):
            self._drawn, at = secrets.token_hex(12 * 256), 0
        self._at = at + 24
        return f"req_{self._drawn[at : at + 24]}"


request_id = _Ids()
"""A new id for one request: 96 random bits."""


def header_map(scope: Mapping[str, Any]) -> dict[str, str]:
    """Request headers by lower-case name; repeated ones joined by a comma."""
    raw = scope["headers"]
    found = {name.decode("latin-1"): value.decode("latin-1") for name, value in raw}
    if len(found) != len(raw):
        found.clear()
        for name, value in raw:
            key, text = name.decode("latin-1"), value.decode("latin-1")
            found[key] = f"{found[key]},{text}" if key in found else text
    return found


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
        self._waits = Waits()
        self.in_flight = 0

    async def __call__(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        """As an ASGI application."""
        await self.serve(scope, Asgi(receive, send))

    async def serve(self, scope: Mapping[str, Any], wire: Wire) -> None:
        """One request from its head to its Record. Of the ASGI scope: path, method, headers and query."""
        target = paths.find(scope["path"])
        name = target.name if target else "unknown"
        ledger = self._ledgers(request_id(), name)
        exchange = Exchange(wire, ledger, dialects.of(name), body_timeout_s=self._body_timeout_s, waits=self._waits)
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

    async def _serve(self, target: paths.Target | None, scope: Mapping[str, Any], exchange: Exchange, ledger: Ledger) -> None:
        headers = header_map(scope)
        detector = self._pipeline.detector
        if "x-client-request-id" in headers:
            ledger.note(client_request_id=loggable(_printable(headers["x-client-request-id"]), detector))
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
            body = await exchange.body(declared_bytes(headers), self._max_body_bytes)
            size = len(body)
        ledger.event_of("request.opened", _opened, endpoint, principal, size)
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
        async with Departure(exchange) as departure:
            if uploads:
                async with self._uploads.answer(incoming, exchange, ledger) as reply:
                    await self._hand_over(reply, exchange, departure, ledger)
                return
            if endpoint.startswith(("files/", "batches")):
                reply = await self._kept.answer(incoming, ledger)
            else:
                reply = await (self._pipeline.recall if target.id else self._pipeline.answer)(incoming, ledger)
            await self._hand_over(reply, exchange, departure, ledger)

    async def _hand_over(self, reply: Reply, exchange: Exchange, departure: Departure, ledger: Ledger) -> None:
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

    async def _deliver(self, reply: Reply, exchange: Exchange, ledger: Ledger) -> None:
        # An answer that broke off without a way to say so is never ended: the server then closes the connection.
        with suppress(BrokenOff):
            try:
                await exchange.deliver(reply)
            except BrokenOff:
                raise
            except Exception as fault:  # noqa: BLE001 - a fault of ours after the head can only be told in the stream itself
                _log_crash(ledger, fault)
                await exchange.wire.end(reply.crashed(type(fault).__name__))


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


def _opened(endpoint: str, principal: Principal, n_bytes: int) -> dict[str, object]:
    return {"endpoint": endpoint, "key_label": principal.label, "tenant": principal.tenant, "bytes": n_bytes}


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
