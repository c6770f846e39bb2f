"""Try a decision's candidates in order until one yields its first event. Never leaves the decision's set.

Which failures are tried again, passed over or told to the client is one table, `FALLBACK` and `status_row`; docs repeat it.
Knows upstreams only by their protocol; knows nothing of caches, policies or HTTP servers.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from msgspec import Struct

from gateway import sse, stream
from gateway.config import UpstreamConfig
from gateway.errors import (
    ApiError,
    BadUpstream,
    InvalidRequest,
    RateLimited,
    Relayed,
    Unavailable,
    UpstreamFailed,
    UpstreamTimeout,
)
from gateway.health import HealthView
from gateway.ledger import Ledger
from gateway.policy.decision import Decision, Option
from gateway.upstreams import Answer, Call, Piece, Upstream

MAX_ANSWER_BYTES = 256 * 1024 * 1024
"""A whole (not streamed) answer above this is refused."""


class Row(Struct, frozen=True):
    """What follows one kind of failure."""

    retry: bool
    """Try the same upstream again, as often as its config says."""
    fall_back: bool
    """Try the next candidate."""
    counts: bool
    """It says something about the upstream's health."""
    meaning: str


FALLBACK: dict[str, Row] = {
    "connect": Row(True, True, True, "no connection; nothing was sent"),
    "no_answer": Row(True, True, True, "the connection closed before the answer's head"),
    "cut": Row(True, True, True, "the answer broke off before its first event"),
    "internal": Row(True, True, True, "the model worker failed on this request"),
    "timeout": Row(False, True, True, "no first event in time"),
    "in_band": Row(False, True, True, "the first event of the stream was an error"),
    "protocol": Row(False, True, True, "an answer that is not one: a redirect, an empty or endless body"),
    "overloaded": Row(False, True, False, "its queue or connection pool is full"),
}
"""By `UpstreamFailed.kind`. A failure after the first event is never retried: the client gets it as an error event."""


def status_row(status: int) -> Row:
    """What follows an HTTP status of 300 and above."""
    if status in {401, 403}:
        return Row(False, True, True, "the upstream refuses our key: 502, never the client's 401")
    if status == 404:
        return Row(False, True, False, "the upstream does not know the model")
    if status in {408, 425}:
        return Row(True, True, False, "the upstream asks to try again")
    if status == 429:
        return Row(False, True, False, "the upstream's rate limit; it is left alone for `retry-after`")
    if status >= 500:
        return Row(True, True, True, "the upstream failed")
    if status < 400:
        return FALLBACK["protocol"]
    return Row(False, False, False, "the request's own fault: relayed")


class Opened:
    """An answer whose first event (stream) or whole body has been seen, and that is not an error."""

    def __init__(self, option: Option, answer: Answer, config: UpstreamConfig, *, on_close: Callable[[], None]) -> None:
        self.option = option
        self.status = answer.status
        self.headers = list(answer.headers)
        self.streams = answer.status < 300 and _is_sse(answer)
        self.body = b""
        """The whole body when the answer does not stream."""
        self.tokens: list[Piece] = []
        """Of a whole body: the pieces whose text and tokens its source knew."""
        self.first: list[Piece] = []
        """Of a stream: what has been read to see the first event; it goes to the client first."""
        self._answer = answer
        self._pieces = aiter(answer)
        self._idle_timeout_s = config.idle_timeout_s
        self._ends_at = time.monotonic() + config.total_timeout_s
        self._on_close = on_close
        self._closed = False

    async def prime(self) -> None:
        """Read up to the first event that carries data, or the whole body. Raises UpstreamFailed."""
        if not self.streams:
            await self._read_whole()
            return
        splitter = sse.Splitter()
        async for piece in self._pieces:
            self.first.append(piece)
            if piece.text is not None:
                return
            for event in _split(splitter, piece.data):
                data = sse.data_of(event)
                if data is not None:
                    _raise_in_band(data)
                    return
        raise UpstreamFailed("cut", "closed the stream before its first event")

    async def _read_whole(self) -> None:
        parts, size = [], 0
        async for piece in self._pieces:
            if piece.text is not None and not piece.data:
                self.tokens.append(piece)
            size += len(piece.data)
            if size > MAX_ANSWER_BYTES:
                raise UpstreamFailed("protocol", f"its answer is longer than {MAX_ANSWER_BYTES} bytes")
            parts.append(piece.data)
        self.body = b"".join(parts)
        if not self.body and self.status == 200:
            raise UpstreamFailed("protocol", "its answer is empty")

    async def pieces(self) -> AsyncIterator[Piece]:
        """The stream from its very first byte. Raises UpstreamFailed when it is cut, silent or endless."""
        for piece in self.first:
            yield piece
        while True:
            wait_s = min(self._idle_timeout_s, self._ends_at - time.monotonic())
            try:
                async with asyncio.timeout(max(wait_s, 0.001)):
                    piece = await anext(self._pieces)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise UpstreamFailed("timeout", f"sent nothing for {wait_s:.3g} s, or took too long in all") from None
            yield piece

    async def aclose(self) -> None:
        """Close the upstream's answer; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            await self._answer.aclose()
        finally:
            self._on_close()


def _split(splitter: sse.Splitter, data: bytes) -> list[bytes]:
    try:
        return splitter.feed(data)
    except ValueError as error:
        raise UpstreamFailed("protocol", str(error)) from None


def _raise_in_band(data: bytes) -> None:
    chunk = stream.read_chunk(data)
    if chunk is not None and chunk.error is not None:
        raise UpstreamFailed("in_band", "its stream began with an error", body=json.dumps({"error": chunk.error}).encode())


class Dispatch:
    """The upstreams of one front worker, tried as a decision says."""

    def __init__(self, upstreams: Mapping[str, Upstream], configs: Mapping[str, UpstreamConfig], health: HealthView) -> None:
        self._upstreams = upstreams
        self._configs = configs
        self._health = health

    async def open(self, decision: Decision, prepare: Callable[[Option], Call], ledger: Ledger) -> Opened:
        """The first candidate's answer that begins well. Raises the ApiError of the last failure when none does."""
        allowed = {chosen.option.name for chosen in decision.candidates}
        deadline = time.monotonic() + decision.deadline_ms / 1000 if decision.deadline_ms else None
        last: ApiError = Unavailable("No upstream could be tried.", should_retry=False)
        for chosen in decision.candidates:
            option = chosen.option
            for attempt in range(1 + self._configs[option.upstream].retries):
                if option.name not in allowed:
                    raise AssertionError("an upstream outside the decision's set")
                ledger.sent()
                ledger.note(tried=(*_tried(ledger), option.name), route=option.name, source=_source(option))
                try:
                    return await self._attempt(option, prepare(option), deadline)
                except InvalidRequest as error:
                    # This upstream cannot do what the body asks; another candidate may.
                    ledger.event("upstream.failed", upstream=option.name, kind="unsupported", attempt=attempt, param=error.param)
                    last = error
                    break
                except UpstreamFailed as failure:
                    row = self._learn(option, failure)
                    ledger.event("upstream.failed", upstream=option.name, kind=failure.kind, status=failure.status,
                                 attempt=attempt, message=str(failure))  # fmt: skip
                    last = client_error(option, failure)
                    if not row.fall_back:
                        raise last from None
                    if not row.retry:
                        break
        raise last

    def _learn(self, option: Option, failure: UpstreamFailed) -> Row:
        row = status_row(failure.status) if failure.status is not None else FALLBACK[failure.kind]
        if row.counts or failure.retry_after_s is not None:
            self._health.failed(option.name, str(failure), retry_after_s=failure.retry_after_s)
        return row

    async def _attempt(self, option: Option, call: Call, deadline: float | None) -> Opened:
        """One call to one upstream, up to its first event. Leaves nothing open when it fails or is cancelled."""
        config = self._configs[option.upstream]
        wait_s = config.first_token_timeout_s if call.stream else config.total_timeout_s
        if deadline is not None:
            wait_s = min(wait_s, max(0.001, deadline - time.monotonic()))
        self._health.started(option.name)
        opened: Opened | None = None
        began = time.monotonic()
        try:
            async with asyncio.timeout(wait_s):
                answer = await self._upstreams[option.upstream].send(call)
                opened = Opened(option, answer, config, on_close=lambda: self._health.ended(option.name))
                await opened.prime()
            if opened.status >= 300:
                raise _status_failure(opened)
        except BaseException as error:
            if opened is not None:
                await opened.aclose()
            else:
                self._health.ended(option.name)
            if isinstance(error, TimeoutError):
                raise UpstreamFailed("timeout", f"no first event within {wait_s:.3g} s") from None
            raise
        self._health.answered(option.name, (time.monotonic() - began) * 1000)
        return opened


def _tried(ledger: Ledger) -> tuple[str, ...]:
    tried = ledger.fields.get("tried", ())
    return tried if isinstance(tried, tuple) else ()


def _source(option: Option) -> str:
    return "local" if option.zone == "local" else "external"


def _is_sse(answer: Answer) -> bool:
    return any(name == "content-type" and value.startswith("text/event-stream") for name, value in answer.headers)


def _status_failure(opened: Opened) -> UpstreamFailed:
    headers = dict(opened.headers)
    return UpstreamFailed(
        "status",
        f"answered {opened.status}",
        status=opened.status,
        body=opened.body,
        headers=opened.headers,
        retry_after_s=_retry_after(headers) if opened.status in {429, 503} else None,
    )


def _retry_after(headers: Mapping[str, str]) -> float | None:
    for name, scale in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            return max(0.0, float(headers[name]) / scale)
        except (KeyError, ValueError):
            continue
    return None


def client_error(option: Option, failure: UpstreamFailed) -> ApiError:
    """What the client is told when this failure was the last. Names the upstream; never more of its text than its own envelope."""
    name = option.upstream
    if failure.kind == "status" and failure.status is not None:
        return _status_error(name, failure)
    if failure.kind == "in_band":
        error = json.loads(failure.body)["error"]
        return Relayed(502, failure.body, (), code=_code(error)) if _is_envelope(error) else BadUpstream(f'"{name}" {failure}.')
    if failure.kind == "overloaded":
        return RateLimited(f'"{name}" is busy: {failure}.', retry_after_s=failure.retry_after_s or 1.0)
    if failure.kind == "timeout":
        return UpstreamTimeout(f'"{name}" did not answer in time: {failure}.')
    if failure.kind == "connect":
        return Unavailable(f'"{name}" {failure}.')
    return BadUpstream(f'"{name}" failed: {failure}.')


def _status_error(name: str, failure: UpstreamFailed) -> ApiError:
    status = failure.status or 502
    if status in {401, 403}:
        said = f'"{name}" refuses the key that the gateway holds for it (status {status}); its operator must mend it.'
        return BadUpstream(said, code="upstream_auth_failed", should_retry=False)
    try:
        error = json.loads(failure.body).get("error")
    except (ValueError, AttributeError, RecursionError):
        error = None
    if _is_envelope(error) and status >= 400:
        return Relayed(status, failure.body, failure.headers, code=_code(error))
    if status == 429:
        return RateLimited(f'"{name}" answered 429.', retry_after_s=failure.retry_after_s or 1.0)
    return BadUpstream(f'"{name}" answered {status} with a body that is not an OpenAI error.')


def _is_envelope(error: Any) -> bool:
    return isinstance(error, dict) and isinstance(error.get("message"), str)


def _code(error: dict[str, Any]) -> str | None:
    code = error.get("code")
    return code if isinstance(code, str) else None
