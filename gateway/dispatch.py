"""Try a decision's candidates in order until one yields its first event. Never leaves the decision's set.

Which failures are tried again, passed over or told to the client is one table, `FALLBACK` and `status_row`; docs repeat it.
Knows upstreams only by their protocol; knows nothing of caches, policies or HTTP servers.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import AsyncGeneratorType
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from gateway import dialects, sse
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
from gateway.patience import Patience, Waits
from gateway.policy.decision import Decision, Option
from gateway.restore import Restored
from gateway.upstreams import Answer, Call, Piece, Upload, Upstream

MAX_ANSWER_BYTES = 256 * 1024 * 1024
"""A whole (not streamed) answer above this is refused."""
MAX_ERROR_BYTES = 1024 * 1024
"""An error's body above this is refused."""
LOOP_BYTES = 256 * 1024
"""A whole answer above this is read on a thread, so that the loop stays free."""
END_GRACE_S = 1.0
"""How long an upstream may take to close its stream after the end mark; then it is closed for it."""
FIRST_BACKOFF_S = 0.2
LONGEST_BACKOFF_S = 5.0
LONGEST_RETRY_AFTER_S = 86_400.0
"""An upstream that asks for more is taken to have asked for this."""


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
    "in_band": Row(False, True, True, "a 200 whose first event, or whole body, was an error"),
    "protocol": Row(False, True, True, "an answer that is not one: a redirect, HTML, an empty or endless body"),
    "overloaded": Row(False, True, False, "its queue or connection pool is full"),
    "probed": Row(False, True, False, "its breaker was open, and another request finds out now whether it is back"),
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
        return Row(False, True, True, "a redirect: never followed")
    return Row(False, False, False, "the request's own fault: relayed")


class Opened:
    """An answer whose first event (stream) or whole body has been seen, and that is not an error."""

    def __init__(self, option: Option, answer: Answer, call: Call, patience: Patience, health: HealthView) -> None:
        self.option = option
        self.status = answer.status
        self.headers = list(answer.headers)
        self.dialect = dialects.of(call.endpoint)
        self.streams = answer.status < 300 and _is_sse(answer)
        self.raw = answer.status < 300 and not self.streams and self.dialect.raw
        """Whether the answer is bytes that go as they come, unread."""
        self.usage_added = call.usage_added
        """Whether the stream brings usage that the client did not ask for."""
        self.body = b""
        """The whole body when the answer does not stream."""
        self.whole: dialects.Whole | None = None
        """What `body` says, unless it is an error's."""
        self.tokens: list[Piece] = []
        """Of a whole body: the pieces whose text and tokens its source knew."""
        self.first: deque[Piece] = deque()
        """Of a stream: what has been read to see the first event; it goes to the client first."""
        self._wants_stream = call.stream
        self._answer = answer
        self._pieces = aiter(answer)
        self._patience = patience
        self._health = health
        self._closed = False

    async def prime(self) -> None:
        """Read up to the first event that can be understood, or the whole body. Raises UpstreamFailed."""
        if self.raw:
            await self._read_some()
            return
        if not self.streams:
            await self._read_whole()
        if self.status < 300 and self.streams != self._wants_stream and not self.dialect.converts:
            raise UpstreamFailed("protocol", "streams what was to come whole" if self.streams else "does not stream its answer")
        if not self.streams:
            return
        splitter = sse.Splitter()
        async for piece in self._pieces:
            self.first.append(piece)
            if piece.text is not None or (len(self.first) == 1 and self._begins_plainly(piece.data)):
                return
            for event in _split(splitter, piece.data):
                data = sse.data_of(event)
                if data is not None and self._begins(data):
                    return
        raise UpstreamFailed("cut", "closed the stream before its first event")

    def _begins_plainly(self, data: bytes) -> bool:
        """Whether the first event is usual and stands whole in the first piece: then the others are not looked for here."""
        end = data.find(b"\n\n")
        return end > 0 and data.startswith(b"data: {") and b"\r" not in data[:end] and self._begins(data[6:end])

    def _begins(self, data: bytes) -> bool:
        """Whether this event begins the answer; what does not goes with the next one. Raises UpstreamFailed."""
        if data.startswith(b"[DONE]"):
            raise UpstreamFailed("protocol", "its stream holds nothing but the end mark")
        opening = self.dialect.opening(data)
        if opening.error:
            raise in_band(opening.error, "its stream began with an error")
        return opening.begins

    async def _read_some(self) -> None:
        async for piece in self._pieces:
            self.first.append(piece)
            if piece.data:
                return
        raise UpstreamFailed("protocol", "its answer is empty")

    async def _read_whole(self) -> None:
        limit = MAX_ANSWER_BYTES if self.status < 300 else MAX_ERROR_BYTES
        parts, size = [], 0
        async for piece in self._pieces:
            if piece.text is not None and not piece.data:
                self.tokens.append(piece)
            size += len(piece.data)
            if size > limit:
                raise UpstreamFailed("protocol", f"its answer is longer than {limit} bytes")
            parts.append(piece.data)
        self.body = b"".join(parts)
        if self.status >= 300:
            return
        if size <= LOOP_BYTES:
            self.whole = self.dialect.whole(self.body)
        else:
            self.whole = await asyncio.to_thread(self.dialect.whole, self.body)
        if self.whole is None:
            raise UpstreamFailed("protocol", "its answer is not a JSON object" if self.body else "its answer is empty")
        if self.whole.error:
            raise in_band(self.whole.error, "answered 200 with an error")
        self._health.answered(self.option.name)

    def __aiter__(self) -> Opened:
        """The stream from its very first byte. Raises UpstreamFailed when it is cut, silent or endless."""
        return self

    async def __anext__(self) -> Piece:
        if self.first:
            return self.first.popleft()
        try:
            with self._patience:
                return await anext(self._pieces)
        except TimeoutError as late:
            raise UpstreamFailed("timeout", str(late)) from None

    def hurry(self) -> None:
        """The end mark has come: what follows is the end of the connection's message, or not worth waiting for."""
        self._patience.hurry(END_GRACE_S)

    def ended(self, failure: UpstreamFailed | None) -> None:
        """The stream came to its end, good or bad: what whoever read it tells of the upstream's health."""
        if failure is None:
            self._health.answered(self.option.name)
        else:
            self._health.failed(self.option.name, str(failure))

    def wrote(self, tokens: int) -> None:
        """It came to its good end after so many tokens, and its client had set no bound: for caps on costs."""
        self._health.wrote(self.option.name, tokens)

    @property
    def closed(self) -> bool:
        """Whether nothing of it is open any more."""
        return self._closed

    async def aclose(self) -> None:
        """Close the upstream's answer; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._patience.end()
        try:
            await self._answer.aclose()
            if isinstance(self._pieces, AsyncGeneratorType):
                # One that another task is still reading ends there: its source has just been closed.
                with suppress(RuntimeError):
                    await self._pieces.aclose()
        finally:
            self._health.ended(self.option.name)


def _split(splitter: sse.Splitter, data: bytes) -> list[bytes]:
    try:
        return splitter.feed(data)
    except ValueError as error:
        raise UpstreamFailed("protocol", str(error)) from None


def in_band(error: Any, message: str) -> UpstreamFailed:
    """The failure of an upstream that said 200 and then sent an error object."""
    return UpstreamFailed("in_band", message, body=json.dumps({"error": error}).encode())


class Dispatch:
    """The upstreams of one front worker, tried as a decision says."""

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        configs: Mapping[str, UpstreamConfig],
        health: HealthView,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """`sleep` takes seconds; `draw` gives a number from 0 up to 1, for the back-off."""
        self._upstreams = upstreams
        self._configs = configs
        self._health = health
        self._sleep = sleep
        self._draw = draw
        self._waits = Waits()

    async def open(self, decision: Decision, prepare: Callable[[Option], Awaitable[Call]], ledger: Ledger) -> Opened:
        """The first candidate's answer that begins well. Raises the ApiError of the last failure when none does."""
        allowed = {chosen.option.name for chosen in decision.candidates}
        deadline = time.monotonic() + decision.deadline_ms / 1000 if decision.deadline_ms else None
        last: ApiError | None = None
        for chosen in decision.candidates:
            option = chosen.option
            for attempt in range(1 + self._configs[option.upstream].retries):
                if option.name not in allowed:
                    raise AssertionError("an upstream outside the decision's set")
                if attempt and not await self._backed_off(attempt, deadline):
                    break
                ledger.sent()
                ledger.note(tried=(*_tried(ledger), option.name))
                spent = False
                try:
                    call = await prepare(option)
                    if decision.redact and option.zone != "local" and call.vault is None:
                        raise AssertionError("a request that was to be masked was not")
                    try:
                        opened = await self._attempt(option, call, deadline)
                    finally:
                        # A body of which a part has left cannot be sent again, to nobody.
                        spent = call.upload is not None and call.upload.spent
                except ApiError as error:
                    # This upstream cannot do what the body asks; another candidate may.
                    kind = "unsupported" if isinstance(error, InvalidRequest) else "unavailable"
                    ledger.event("upstream.failed", upstream=option.name, kind=kind, attempt=attempt, param=error.param)
                    if spent:
                        raise
                    last = error.with_traceback(None)
                    break
                except UpstreamFailed as failure:
                    row = self._learn(option, failure)
                    ledger.event("upstream.failed", upstream=option.name, kind=failure.kind, status=failure.status,
                                 attempt=attempt, message=str(failure))  # fmt: skip
                    if not row.fall_back or spent:
                        raise client_error(option, failure) from None
                    last = client_error(option, failure)
                    if not row.retry or failure.retry_after_s is not None:
                        break
                else:
                    ledger.note(route=option.name, source="local" if option.zone == "local" else "external")
                    return opened
            if deadline is not None and time.monotonic() >= deadline:
                break
        try:
            raise last or Unavailable("No upstream could be tried.", should_retry=False)
        finally:
            # Else its traceback and this frame would hold each other, and the request's body, until a full collection.
            del last

    async def _backed_off(self, attempt: int, deadline: float | None) -> bool:
        """Wait before an upstream is tried again; False at once when the deadline would pass meanwhile.

        Full jitter (Brooker, "Exponential Backoff And Jitter", 2015): what failed together does not come again together.
        """
        wait_s = self._draw() * min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (attempt - 1))
        if deadline is not None and time.monotonic() + wait_s >= deadline:
            return False
        await self._sleep(wait_s)
        return True

    def _learn(self, option: Option, failure: UpstreamFailed) -> Row:
        row = status_row(failure.status) if failure.status is not None else FALLBACK[failure.kind]
        if row.counts:
            self._health.failed(option.name, str(failure))
        if failure.status is not None and failure.retry_after_s is not None:
            self._health.asked_to_wait(option.name, str(failure), failure.retry_after_s)
        return row

    async def _attempt(self, option: Option, call: Call, deadline: float | None) -> Opened:
        """One call to one upstream, up to its first event. Leaves nothing open when it fails or is cancelled."""
        config = self._configs[option.upstream]
        wait_s = config.first_token_timeout_s if call.stream else config.total_timeout_s
        if deadline is not None:
            wait_s = min(wait_s, max(0.001, deadline - time.monotonic()))
        if not self._health.admit(option.name):
            raise UpstreamFailed("probed", "is being tried again after failures in a row")
        probes, vault = self._health.started(option.name), call.vault
        opened: Opened | None = None
        began = time.monotonic()
        patience = Patience(self._waits, wait_s, f"no first event within {wait_s:.3g} s")
        try:
            with patience:
                if call.upload is not None:
                    call = replace(call, upload=_Watched(call.upload, patience))
                answer = await self._upstreams[option.upstream].send(call if vault is None else replace(call, vault=None))
                if vault:
                    answer = Restored(answer, call.endpoint, vault)
                opened = Opened(option, answer, call, patience, self._health)
                await opened.prime()
            _check_status(opened)
        except BaseException as error:
            patience.end()
            if probes:
                self._health.withdrawn(option.name)
            if opened is not None:
                await finished(opened.aclose())
            else:
                self._health.ended(option.name)
            if isinstance(error, TimeoutError):
                raise UpstreamFailed("timeout", str(error)) from None
            raise
        if opened.streams or opened.raw:
            said = f"sent nothing for {config.idle_timeout_s:.3g} s"
            patience.change(config.idle_timeout_s, said, total_s=config.total_timeout_s)
        if call.upload is None:
            self._health.began(option.name, (time.monotonic() - began) * 1000)
        return opened


class _Watched:
    """An upload whose every part puts off the limit on the answer: how long a body takes is its sender's affair."""

    def __init__(self, upload: Upload, patience: Patience) -> None:
        self.length = upload.length
        self._upload = upload
        self._patience = patience

    @property
    def spent(self) -> bool:
        """See `Upload.spent`."""
        return self._upload.spent

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """See `Upload.parts`."""
        async with aclosing(self._upload.parts()) as parts:
            async for part in parts:
                yield part
                self._patience.renew()


async def finished(closing: Coroutine[Any, Any, None]) -> None:
    """Wait for a clean-up to its end, also while being cancelled; the cancellation goes on afterwards."""
    task = asyncio.ensure_future(closing)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise


def _tried(ledger: Ledger) -> tuple[str, ...]:
    tried = ledger.fields.get("tried", ())
    return tried if isinstance(tried, tuple) else ()


def _is_sse(answer: Answer) -> bool:
    return any(name == "content-type" and value.lower().startswith("text/event-stream") for name, value in answer.headers)


def _check_status(opened: Opened) -> None:
    if opened.status < 300:
        return
    headers = dict(opened.headers)
    raise UpstreamFailed(
        "status",
        f"answered {opened.status}",
        status=opened.status,
        body=opened.body,
        headers=opened.headers,
        retry_after_s=_retry_after(headers) if opened.status in {429, 503} else None,
    )


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, from `retry-after-ms` or from `retry-after` in either of its forms (RFC 9110, section 10.2.3)."""
    for name, scale in (("retry-after-ms", 1000), ("retry-after", 1)):
        with suppress(KeyError, ValueError):
            return min(max(0.0, float(headers[name]) / scale), LONGEST_RETRY_AFTER_S)
    with suppress(KeyError, ValueError, TypeError):
        seconds = (parsedate_to_datetime(headers["retry-after"]) - datetime.now(UTC)).total_seconds()
        return min(max(0.0, seconds), LONGEST_RETRY_AFTER_S)
    return None


def client_error(option: Option, failure: UpstreamFailed) -> ApiError:
    """What the client is told when this failure was the last: the upstream's own envelope, or our words with its name."""
    name = option.upstream
    if failure.kind == "status" and failure.status is not None:
        return _status_error(name, failure)
    if failure.kind == "in_band":
        error = json.loads(failure.body)["error"]
        if not _is_envelope(error):
            return BadUpstream(f'"{name}" {failure}.')
        return Relayed(502, _complete(failure.body, error, 502), (), code=_code(error))
    if failure.kind == "overloaded":
        return RateLimited(f'"{name}" is busy: {failure}.', retry_after_s=failure.retry_after_s or 1.0)
    if failure.kind == "timeout":
        return UpstreamTimeout(f'"{name}" did not answer in time: {failure}.')
    if failure.kind == "connect":
        return Unavailable(f'"{name}" {failure}.')
    if failure.kind == "probed":
        return Unavailable(f'"{name}" {failure}.', should_retry=True, retry_after_s=1.0)
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
    if _is_envelope(error) and 400 <= status < 600:
        return Relayed(status, _complete(failure.body, error, status), failure.headers, code=_code(error))
    if status == 429:
        return RateLimited(f'"{name}" answered 429.', retry_after_s=failure.retry_after_s or 1.0)
    if status == 503:
        return Unavailable(f'"{name}" answered 503.', retry_after_s=failure.retry_after_s)
    if status == 504:
        return UpstreamTimeout(f'"{name}" answered 504.')
    return BadUpstream(f'"{name}" answered {status} with a body that is not an OpenAI error.')


def _is_envelope(error: Any) -> bool:
    return isinstance(error, dict) and isinstance(error.get("message"), str)


def _complete(body: bytes, error: dict[str, Any], status: int) -> bytes:
    """The upstream's error body as it came, unless keys that OpenAI's SDKs read are missing or of another type.

    Anthropic's errors have a shape of their own and stay as they are.
    """
    said = json.loads(body)
    words = [error.get(name) for name in ("param", "code")]
    whole = {"message", "type", "param", "code"} <= set(error) and isinstance(error["type"], str)
    if said.get("type") == "error" or (whole and all(word is None or isinstance(word, str) for word in words)):
        return body
    kind = error.get("type")
    error["type"] = kind if isinstance(kind, str) else "invalid_request_error" if status < 500 else "server_error"
    for name, word in zip(("param", "code"), words, strict=True):
        error[name] = str(word) if isinstance(word, str | int) and not isinstance(word, bool) else None
    return json.dumps({**said, "error": error}).encode()


def _code(error: dict[str, Any]) -> str | None:
    code = error.get("code")
    return code if isinstance(code, str) else None
