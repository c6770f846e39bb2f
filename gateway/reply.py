"""The one answer type: status, headers, pieces of bytes, wherever they come from. Closing it closes upstream and Ledger.

Relay: an upstream's bytes as they come. Replay: events built from a stored or whole answer. The shape that a client asked
for (streamed or whole) is given to it whatever shape the source had.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from gateway import sse, stream, wire
from gateway.cache import Entry, Hit
from gateway.catalog import cost_usd
from gateway.dispatch import Opened, client_error
from gateway.errors import UpstreamFailed
from gateway.ledger import Ending, Ledger, Usage

Headers = list[tuple[str, str]]

JSON: tuple[str, str] = ("content-type", "application/json")
SSE: tuple[str, str] = ("content-type", "text/event-stream; charset=utf-8")


CHARS_PER_TOKEN = 4.0
"""For the Record of an answer whose upstream counted nothing; such a usage is marked as an estimate."""


class Keeper(Protocol):
    """Takes answers that may be stored."""

    @property
    def room(self) -> int:
        """Most bytes worth keeping; 0: none."""
        ...

    def keep(self, entry: Entry) -> None:
        """Store this complete answer; returns at once."""
        ...


class Reply:
    """An answer on its way to the client. Whoever holds it must close it, read or not: that makes the request's Record."""

    def __init__(self, ledger: Ledger, *, status: int, headers: Headers, done: Ending, body: bytes | None) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        """The whole answer; None when it streams."""
        self._ledger = ledger
        self._done = done
        self._ending: Ending = "never_read"
        self._error = ""

    async def pieces(self) -> AsyncIterator[bytes]:
        """The answer's bytes; when the last one has been taken, the answer counts as delivered."""
        self._ending = "cancelled"
        if self.body is not None:
            yield self.body
        self._ending = self._done

    async def aclose(self, *, gone: bool = False) -> None:
        """Close what it came from and make the Record. `gone`: the client left before it had everything."""
        if gone and self._ending in {"never_read", "cancelled"}:
            self._ending = "client_gone"
        self._ledger.close(self._ending, status=self.status, error=self._error)


class Replayed(Reply):
    """Events of an answer that is complete already, one turn of the loop each, so that a departed client is noticed."""

    def __init__(self, ledger: Ledger, *, headers: Headers, done: Ending, datas: Sequence[bytes], usage: Usage | None, log: bool) -> None:
        """`usage` goes out as an extra chunk when it is given. `log`: these events have not been logged yet."""
        super().__init__(ledger, status=200, headers=[*headers, SSE], done=done, body=None)
        self._datas = datas
        self._usage = usage
        self._log = log

    async def pieces(self) -> AsyncIterator[bytes]:
        """See `Reply.pieces`."""
        self._ending = "cancelled"
        for data in self._datas:
            if self._log:
                _log_chunk(self._ledger, data)
            yield sse.event_of(stream.with_null_usage(data) if self._usage else data)
            await asyncio.sleep(0)
        if self._usage and self._datas:
            yield sse.event_of(stream.usage_chunk(self._datas[-1], self._usage))
        yield sse.DONE
        self._ending = self._done


def _log_chunk(ledger: Ledger, data: bytes) -> None:
    chunk = stream.read_chunk(data)
    for choice in (chunk.choices if chunk else None) or ():
        text = stream.text_of(choice)
        if text:
            ledger.content(text, 0, choice=choice.index)


class Relayed(Reply):
    """An upstream's stream, whole events as they come, while a tap reads a copy. Never ends cleanly when it was cut."""

    def __init__(
        self,
        ledger: Ledger,
        opened: Opened,
        request: wire.Request,
        headers: Headers,
        *,
        prompt_tokens: int,
        keeper: Keeper,
        done: Ending,
    ) -> None:
        super().__init__(ledger, status=opened.status, headers=headers, done=done, body=None)
        self._opened = opened
        self._request = request
        self._prompt_tokens = prompt_tokens
        self._keeper = keeper
        self._splitter = sse.Splitter()
        self._tap = stream.Tap(strip_usage=not request.include_usage, keep_bytes=keeper.room)

    async def pieces(self) -> AsyncIterator[bytes]:
        """See `Reply.pieces`. After the first event an upstream's failure is an error event, then the end mark."""
        self._ending = "cancelled"
        try:
            async for piece in self._opened.pieces():
                if piece.text:
                    self._ledger.content(piece.text, piece.n_tokens)
                out = b"".join([self._see(raw, log=piece.text is None) for raw in self._split(piece.data)])
                if out:
                    yield out
            if self._splitter.rest:
                yield self._see(self._last(), log=True)
            if not self._tap.whole and not self._error:
                raise UpstreamFailed("cut", "ended before the answer did")
        except UpstreamFailed as failure:
            self._error = failure.kind
            self._ledger.event("upstream.failed", upstream=self._opened.option.name, kind=failure.kind, message=str(failure))
            error = client_error(self._opened.option, failure)
            self._finish("broken")
            yield sse.event_of(error.body()) + sse.DONE
            return
        self._finish("broken" if self._error else self._done)

    async def whole(self) -> bytes:
        """The stream as one answer, for a client that did not ask to stream. Raises the ApiError of a cut."""
        try:
            async for piece in self._opened.pieces():
                if piece.text:
                    self._ledger.content(piece.text, piece.n_tokens)
                for raw in self._split(piece.data):
                    self._see(raw, log=piece.text is None)
            if not self._tap.whole or self._tap.kept is None:
                raise UpstreamFailed("cut", "ended before the answer did")
        except UpstreamFailed as failure:
            raise client_error(self._opened.option, failure) from None
        return stream.collect(self._tap.kept, self._tap.usage)

    def _split(self, data: bytes) -> list[bytes]:
        try:
            return self._splitter.feed(data)
        except ValueError as error:
            raise UpstreamFailed("protocol", str(error)) from None

    def _last(self) -> bytes:
        """What stands after the last blank line: an event whose sender spared the blank line, or half of one."""
        rest = self._splitter.rest
        data = sse.data_of(rest)
        if data is not None and data != b"[DONE]" and stream.read_chunk(data) is None:
            raise UpstreamFailed("cut", "broke off inside an event")
        return rest

    def _see(self, raw: bytes, *, log: bool) -> bytes:
        seen = self._tap.event(raw)
        if log:
            for choice, text in seen.texts:
                self._ledger.content(text, 0, choice=choice)
        if seen.error is not None:
            self._error = "in_band"
        return seen.out

    def _finish(self, ending: Ending) -> None:
        self._ending = ending
        usage = settle(self._ledger, self._opened, self._tap.usage, self._prompt_tokens)
        reasons = set(self._tap.finish_reasons.values())
        self._ledger.note(finish_reason=",".join(sorted(reasons)))
        if ending != "broken" and self._tap.kept and reasons == {"stop"}:
            self._keeper.keep(entry_of(self._opened, self._request, usage, events=self._tap.kept))

    async def aclose(self, *, gone: bool = False) -> None:
        """See `Reply.aclose`."""
        if self._ending in {"never_read", "cancelled"}:
            settle(self._ledger, self._opened, self._tap.usage, self._prompt_tokens)
        try:
            await self._opened.aclose()
        finally:
            await super().aclose(gone=gone)


def settle(ledger: Ledger, opened: Opened, usage: Usage | None, prompt_tokens: int) -> Usage:
    """Usage and cost for the Record: the upstream's own count, else an estimate that is marked as one."""
    if usage is None:
        usage = Usage(prompt_tokens, round(ledger.chars_out / CHARS_PER_TOKEN), estimated=True)
    ledger.note(usage=usage, cost_usd=cost_usd(opened.option, usage))
    return usage


def entry_of(opened: Opened, request: wire.Request, usage: Usage, *, body: bytes = b"", events: list[bytes] | None = None) -> Entry:
    """What the cache keeps of a complete answer."""
    return Entry(
        kind="json" if events is None else "events",
        status=opened.status,
        body=body,
        events=tuple(events or ()),
        usage=usage,
        model=request.model,
        upstream=opened.option.name,
        cost_usd=cost_usd(opened.option, usage),
    )


async def relayed(
    ledger: Ledger,
    opened: Opened,
    request: wire.Request,
    headers: Headers,
    *,
    prompt_tokens: int,
    keeper: Keeper,
    done: Ending,
) -> Reply:
    """An upstream's answer in the shape the client asked for. Closes the upstream unless it goes on streaming."""
    headers = [*headers, *(pair for pair in opened.headers if pair[0] != "content-type")]
    if opened.streams and request.stream:
        kept = [*headers, *(pair for pair in opened.headers if pair[0] == "content-type")]
        return Relayed(ledger, opened, request, kept, prompt_tokens=prompt_tokens, keeper=keeper, done=done)
    try:
        if opened.streams:
            spool = _Spool()
            opened.body = await Relayed(
                ledger, opened, request, headers, prompt_tokens=prompt_tokens, keeper=spool, done=done
            ).whole()
        return _from_whole(ledger, opened, request, headers, prompt_tokens=prompt_tokens, keeper=keeper, done=done)
    finally:
        await opened.aclose()


class _Spool:
    """Keeps nothing, but makes the tap hold the events of a stream that is to be collected."""

    room = 64 * 1024 * 1024

    def keep(self, entry: Entry) -> None:
        """The collected answer is kept by its own path."""


def _from_whole(
    ledger: Ledger,
    opened: Opened,
    request: wire.Request,
    headers: Headers,
    *,
    prompt_tokens: int,
    keeper: Keeper,
    done: Ending,
) -> Reply:
    body = opened.body
    completion = stream.read_completion(body)
    reasons: set[str] = set()
    if completion is not None:
        _log_whole(ledger, opened, completion)
        reasons = {choice.finish_reason or "" for choice in completion.choices or ()}
        usage = settle(ledger, opened, stream.usage_of(completion.usage), prompt_tokens)
        ledger.note(finish_reason=",".join(sorted(reasons)))
        ended = reasons == {"stop"} or request.endpoint == "embeddings"
        if ended and completion.error is None and len(body) <= keeper.room:
            keeper.keep(entry_of(opened, request, usage, body=body))
        if request.stream and completion.choices:
            shown = usage if request.include_usage else None
            return Replayed(ledger, headers=headers, done=done, datas=stream.chunks_of(body), usage=shown, log=False)
    return Reply(ledger, status=opened.status, headers=[*headers, JSON], done=done, body=body)


def _log_whole(ledger: Ledger, opened: Opened, completion: stream.Completion) -> None:
    """Token lines of a whole answer: one a token where the source knew them, else one a choice."""
    if opened.tokens:
        for piece in opened.tokens:
            if piece.text:
                ledger.content(piece.text, piece.n_tokens)
        return
    texts = stream.texts_of(completion)
    counted = completion.usage.completion_tokens if completion.usage and len(texts) == 1 else 0
    for choice, text in texts:
        ledger.content(text, counted, choice=choice)


def stored(ledger: Ledger, hit: Hit, request: wire.Request, headers: Headers) -> Reply:
    """A cached answer in the shape this client asked for, whichever shape it was stored in."""
    entry = hit.entry
    usage = entry.usage or Usage()
    ledger.note(usage=usage, cost_usd=0.0)
    if request.stream:
        datas: Sequence[bytes] = entry.events if entry.kind == "events" else stream.chunks_of(entry.body)
        shown = usage if request.include_usage else None
        return Replayed(ledger, headers=headers, done="hit", datas=datas, usage=shown, log=True)
    body = entry.body if entry.kind == "json" else stream.collect(entry.events, usage)
    completion = stream.read_completion(body)
    if completion is not None:
        texts = stream.texts_of(completion)
        for choice, text in texts:
            ledger.content(text, usage.completion_tokens if len(texts) == 1 else 0, choice=choice)
    return Reply(ledger, status=200, headers=[*headers, JSON], done="hit", body=body)

