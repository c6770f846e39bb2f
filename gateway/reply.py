"""The one answer type: status, headers, pieces of bytes, wherever they come from. Closing it closes upstream and Ledger.

Relay: an upstream's bytes as they come. Replay: events built from a stored or whole answer. The shape that a client asked
for (streamed or whole) is given to it whatever shape the source had.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from typing import Protocol

from gateway import dialects, sse, stream, wire
from gateway.cache import Entry, Hit
from gateway.catalog import cost_usd
from gateway.dispatch import Opened, client_error, in_band
from gateway.errors import InternalError, UpstreamFailed
from gateway.ledger import Ending, Ledger, Usage
from gateway.upstreams import Piece

Headers = list[tuple[str, str]]

JSON: tuple[str, str] = ("content-type", "application/json")
SSE: tuple[str, str] = ("content-type", "text/event-stream; charset=utf-8")

LOOP_BYTES = 64 * 1024
"""Stored events above this are joined into one answer on a thread: each costs about four microseconds."""
SPOOL_BYTES = 64 * 1024 * 1024
"""Most of a stream that is held to make one answer of it, for a client that did not ask to stream."""
_BURST_BYTES = 1024
"""Less than this is an event or two, which are read sooner one by one."""
CHARS_PER_TOKEN = 4.0
"""For the Record of an answer whose upstream counted nothing; such a usage is marked as an estimate."""


class Keeper(Protocol):
    """Takes answers that may be stored."""

    def room(self) -> stream.Room | None:
        """Where an answer may be held until it is whole; None: none is kept. Whoever held something must give it back."""
        ...

    def keep(self, entry: Entry, *, exact_only: bool) -> None:
        """Store this complete answer; returns at once. `exact_only`: only for a request equal to this one."""
        ...

    def made(self, id_: str, opened: Opened) -> None:
        """The upstream may keep this answer under this id; returns at once. Called before the client learns of it."""
        ...


class Nobody:
    """A Keeper that keeps nothing."""

    def room(self) -> stream.Room | None:
        """See `Keeper`."""
        return None

    def keep(self, entry: Entry, *, exact_only: bool) -> None:
        """See `Keeper`."""

    def made(self, id_: str, opened: Opened) -> None:
        """See `Keeper`."""


class BrokenOff(Exception):
    """An answer of plain bytes was cut: no byte may end it, so whoever sends it closes the connection."""


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

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The answer's bytes; when the last one has been taken, the answer counts as delivered."""
        self.leaving()
        if self.body is not None:
            yield self.body
        self.delivered()

    def leaving(self) -> None:
        """The client gets it from now on."""
        self._ending = "cancelled"

    def delivered(self) -> None:
        """The client has got it whole."""
        self._ending = self._done

    def crashed(self, fault: str) -> bytes:
        """A fault of ours stopped `pieces`: note it, and say in the client's dialect that this is no clean end."""
        self._ending, self._error = "broken", fault
        if self.body is not None:
            return b""
        said = f"The gateway failed in the middle of this answer; its log has the details under {self._ledger.request_id}."
        return self._end_with(InternalError(said))

    def _end_with(self, error: InternalError) -> bytes:
        """The events that end a stream of this answer's dialect."""
        return sse.event_of(error.body()) + sse.DONE

    @property
    def holds(self) -> bool:
        """Whether something that it came from is still open."""
        return False

    async def aclose(self, *, gone: bool = False) -> None:
        """Close what it came from and make the Record. `gone`: the client left before it had everything."""
        try:
            await self._release()
        finally:
            self.close(gone=gone)

    async def _release(self) -> None:
        """Close what it came from."""

    def close(self, *, gone: bool = False) -> None:
        """Make the Record; enough where nothing `holds`."""
        if gone and self._ending in {"never_read", "cancelled"}:
            self._ending = "client_gone"
        self._ledger.close(self._ending, status=self.status, error=self._error)


class Replayed(Reply):
    """Events of an answer that is complete already, one turn of the loop each, so that a departed client is noticed."""

    def __init__(
        self, ledger: Ledger, *, headers: Headers, done: Ending, datas: Iterable[bytes], include_usage: bool, log: bool
    ) -> None:
        """`include_usage`: whether the client asked for the usage chunk. `log`: these events have not been logged yet."""
        super().__init__(ledger, status=200, headers=[*headers, SSE], done=done, body=None)
        self._datas = datas
        self._include_usage = include_usage
        self._log = log

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """See `Reply.pieces`."""
        self._ending = "cancelled"
        for data in self._datas:
            if self._log:
                _log_chunk(self._ledger, data)
            if not stream.is_usage(data):
                yield sse.event_of(stream.with_null_usage(data) if self._include_usage else data)
            elif self._include_usage:
                yield sse.event_of(data)
            await asyncio.sleep(0)
        yield sse.DONE
        self._ending = self._done


def _log_chunk(ledger: Ledger, data: bytes) -> None:
    chunk = stream.read_chunk(data)
    for choice, text in stream.texts_of(chunk) if chunk else ():
        ledger.content(text, 0, choice=choice)


class _Reader:
    """Reads an upstream's stream event by event through a tap, logs what passes, and says how it ended."""

    def __init__(
        self,
        ledger: Ledger,
        opened: Opened,
        request: wire.Request,
        keeper: Keeper,
        *,
        strip_usage: bool,
        room: stream.Room | None,
    ) -> None:
        self.tap = opened.dialect.tap(strip_usage=strip_usage, room=room, choices=request.choices)
        self._keeper = keeper
        self._id = ""
        self._ledger = ledger
        self._opened = opened
        self._splitter = sse.Splitter()

    def read(self, piece: Piece) -> bytes:
        """What of a piece goes to the client now: whole events. Raises UpstreamFailed for what is no stream of events."""
        if piece.text or piece.n_tokens:
            self._ledger.content(piece.text or "", piece.n_tokens)
            return b"".join([self._see(raw, log=False) for raw in self._split(piece.data)])
        together = piece.text is None and len(piece.data) >= _BURST_BYTES
        whole = self._splitter.through(piece.data) if together else None
        if whole is None:
            log = piece.text is None
            return b"".join([self._see(raw, log=log) for raw in self._split(piece.data)])
        return self._read_whole(whole) if whole else b""

    def _read_whole(self, events: bytes) -> bytes:
        """What of whole events goes to the client."""
        burst = self.tap.burst(events)
        if burst is None:
            return b"".join([self._see(event + b"\n\n", log=True) for event in events[:-2].split(b"\n\n")])
        self._ledger.contents(burst.texts)
        return b"".join([burst.out, *[self._see(event, log=True) for event in burst.rest]])

    def end(self, failure: UpstreamFailed | None) -> bytes:
        """What still goes to the client when nothing more comes. Raises UpstreamFailed for an answer that is not whole."""
        # How a connection goes down after the end mark says nothing of the answer.
        if failure is not None and not self.tap.done:
            raise failure
        rest = self._splitter.rest
        # What says nothing yet, after an answer that did not come to its end, is the beginning of an event that was cut.
        if not rest or not (self.tap.whole or sse.data_of(rest) is not None):
            return b""
        out = self._see(_whole_event(rest), log=True)
        # Our error event must not run into a last event whose sender spared the blank line.
        return out if self.tap.whole and not self.tap.error else out + b"\n\n"

    def check(self) -> None:
        """Raises UpstreamFailed for an answer that stopped before its end."""
        if not self.tap.whole and not self.tap.error:
            raise UpstreamFailed("cut", "ended before the answer did")

    def _split(self, data: bytes) -> list[bytes]:
        try:
            return self._splitter.feed(data)
        except ValueError as error:
            raise UpstreamFailed("protocol", str(error)) from None

    def _see(self, raw: bytes, *, log: bool) -> bytes:
        seen = self.tap.event(raw)
        if log:
            for choice, text in seen.texts:
                self._ledger.content(text, 0, choice=choice)
        if seen.done:
            self._opened.hurry()
        if self.tap.id != self._id:
            self._id = self.tap.id
            self._keeper.made(self._id, self._opened)
        return seen.out


def _whole_event(rest: bytes) -> bytes:
    """What stands after the last blank line, if it is an event whose sender spared the blank line. Raises for half of one."""
    data = sse.data_of(rest)
    if data is not None and not data.startswith(b"[DONE]") and stream.read_chunk(data) is None:
        raise UpstreamFailed("cut", "broke off inside an event")
    return rest


class _Live(Reply):
    """An answer whose upstream goes on speaking."""

    def __init__(self, ledger: Ledger, opened: Opened, headers: Headers, *, prompt_tokens: int, done: Ending) -> None:
        super().__init__(ledger, status=opened.status, headers=headers, done=done, body=None)
        self._opened = opened
        self._prompt_tokens = prompt_tokens

    @property
    def holds(self) -> bool:
        """See `Reply.holds`."""
        return not self._opened.closed

    async def _release(self) -> None:
        await self._opened.aclose()


class Relayed(_Live):
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
        super().__init__(ledger, opened, headers, prompt_tokens=prompt_tokens, done=done)
        self._request = request
        self._keeper = keeper
        self._room = keeper.room()
        self._reader = _Reader(ledger, opened, request, keeper, strip_usage=opened.usage_added, room=self._room)

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """See `Reply.pieces`. After the first event an upstream's failure is an error event, then the end mark."""
        self._ending = "cancelled"
        reader = self._reader
        tap = reader.tap
        failure: UpstreamFailed | None = None
        try:
            try:
                async for piece in self._opened:
                    if out := reader.read(piece):
                        yield out
                rest = reader.end(None)
            except UpstreamFailed as cut:
                rest = reader.end(cut)
            if rest:
                yield rest
            reader.check()
            if tap.error:
                failure = in_band(tap.error, "its stream held an error")
        except UpstreamFailed as found:
            failure = _bare(found)
        self._finish(failure)
        if failure is not None:
            # An error that the upstream sent itself has gone out as it came.
            yield tap.end_with(None if tap.error else client_error(self._opened.option, failure))
        await self._opened.aclose()

    def _end_with(self, error: InternalError) -> bytes:
        return self._reader.tap.end_with(error)

    def _finish(self, failure: UpstreamFailed | None) -> None:
        tap = self._reader.tap
        note_end(self._ledger, self._opened, failure)
        self._error = failure.kind if failure else ""
        self._ending = "broken" if failure else self._done
        usage = settle(self._ledger, self._opened, tap.usage, self._prompt_tokens)
        if failure is None:
            learn(self._opened, self._request, usage)
        reasons = set(tap.finish_reasons.values())
        self._ledger.note(finish_reason=",".join(sorted(reasons)))
        if failure is None and tap.finished and tap.kept:
            entry = entry_of(self._opened, self._request, usage, events=tap.kept)
            keep(self._keeper, entry, self._request, reasons)

    def close(self, *, gone: bool = False) -> None:
        """See `Reply.close`."""
        if self._room is not None:
            self._room.give_back()
        if self._ending in {"never_read", "cancelled"}:
            settle(self._ledger, self._opened, self._reader.tap.usage, self._prompt_tokens)
        super().close(gone=gone)


class Raw(_Live):
    """An upstream's bytes that nobody looks into (sound), as they come."""

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """See `Reply.pieces`. Raises BrokenOff when the upstream did not send it to its end."""
        self._ending = "cancelled"
        try:
            async for piece in self._opened:
                yield piece.data
        except UpstreamFailed as failure:
            note_end(self._ledger, self._opened, failure)
            self._ending, self._error = "broken", failure.kind
            raise BrokenOff from None
        note_end(self._ledger, self._opened, None)
        self._ending = self._done
        await self._opened.aclose()

    def _end_with(self, error: InternalError) -> bytes:  # noqa: ARG002 - there is no place for an error in sound
        raise BrokenOff

    def close(self, *, gone: bool = False) -> None:
        """See `Reply.close`."""
        settle(self._ledger, self._opened, None, self._prompt_tokens)
        super().close(gone=gone)


def _bare(failure: UpstreamFailed) -> UpstreamFailed:
    """The failure without the frames it came through: kept in one of them, it would keep the whole request from being freed."""
    failure.__context__ = None
    return failure.with_traceback(None)


def note_end(ledger: Ledger, opened: Opened, failure: UpstreamFailed | None) -> None:
    """Tell health and log what became of an answer that went out piece by piece."""
    opened.ended(failure)
    if failure is not None:
        ledger.event("upstream.failed", upstream=opened.option.name, kind=failure.kind, message=str(failure))


def keep(keeper: Keeper, entry: Entry, request: wire.Request, reasons: set[str]) -> None:
    """Store a complete answer, if its end lets us.

    One that met the limit which its client had set is the answer to that request (the limit is part of its key), but to no
    other that only means the same. Any other end (tools, a filter, a limit of the model's own) is not kept.
    """
    if reasons <= {"stop"}:
        keeper.keep(entry, exact_only=False)
    elif reasons <= {"stop", "length"} and request.max_output is not None:
        keeper.keep(entry, exact_only=True)


def settle(ledger: Ledger, opened: Opened, usage: Usage | None, prompt_tokens: int) -> Usage:
    """Usage and cost for the Record: the upstream's own count, else an estimate that is marked as one."""
    if usage is None:
        usage = Usage(prompt_tokens, round(ledger.chars_out / CHARS_PER_TOKEN), estimated=True)
    ledger.note(usage=usage, cost_usd=cost_usd(opened.option, usage))
    return usage


def learn(opened: Opened, request: wire.Request, usage: Usage) -> None:
    """Tell health how long an answer was. One that a client bounded, or nobody counted, does not say how long they become."""
    if request.max_output is None and request.choices == 1 and not usage.estimated and opened.status < 300:
        opened.wrote(usage.completion_tokens)


def entry_of(
    opened: Opened, request: wire.Request, usage: Usage, *, body: bytes = b"", events: list[bytes] | None = None
) -> Entry:
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
    """An upstream's answer in the shape the client asked for, `headers` before the upstream's own.

    Closes the upstream unless it goes on streaming. Raises the ApiError of a stream that broke while it was being collected.
    """
    if opened.streams and request.stream:
        headers = [*headers, *opened.headers]
        return Relayed(ledger, opened, request, headers, prompt_tokens=prompt_tokens, keeper=keeper, done=done)
    if opened.raw:
        return Raw(ledger, opened, [*headers, *opened.headers], prompt_tokens=prompt_tokens, done=done)
    try:
        if opened.streams:
            opened.body = await _collected(ledger, opened, request, keeper)
            opened.whole = opened.dialect.whole(opened.body)
            opened.headers = [*(pair for pair in opened.headers if pair[0] != "content-type"), JSON]
        else:
            _log_whole(ledger, opened)
        return _from_whole(ledger, opened, request, headers, prompt_tokens=prompt_tokens, keeper=keeper, done=done)
    finally:
        await opened.aclose()


async def _collected(ledger: Ledger, opened: Opened, request: wire.Request, keeper: Keeper) -> bytes:
    """The stream as one answer, for a client that did not ask to stream."""
    room = stream.Room(SPOOL_BYTES, stream.Pool(SPOOL_BYTES))
    reader = _Reader(ledger, opened, request, keeper, strip_usage=False, room=room)
    failure: UpstreamFailed | None = None
    try:
        try:
            async for piece in opened:
                reader.read(piece)
            reader.end(None)
        except UpstreamFailed as cut:
            reader.end(cut)
        reader.check()
        if reader.tap.error:
            failure = in_band(reader.tap.error, "its stream held an error")
        elif not reader.tap.kept:
            failure = UpstreamFailed("protocol", "its stream is too long, or not one of chunks, to be made into one answer")
    except UpstreamFailed as found:
        failure = _bare(found)
    note_end(ledger, opened, failure)
    if failure is not None:
        raise client_error(opened.option, failure)
    return await _join(reader.tap.kept or ())


async def _join(events: Iterable[bytes]) -> bytes:
    events = tuple(events)
    if sum(map(len, events)) <= LOOP_BYTES:
        return stream.collect(events)
    return await asyncio.to_thread(stream.collect, events)


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
    body, whole = opened.body, opened.whole or dialects.Whole()
    if whole.id:
        keeper.made(whole.id, opened)
    usage = settle(ledger, opened, whole.usage, prompt_tokens)
    learn(opened, request, usage)
    ledger.note(finish_reason=",".join(sorted(whole.reasons)))
    if whole.storable and (room := keeper.room()) is not None and len(body) <= room.left:
        keep(keeper, entry_of(opened, request, usage, body=body), request, set(whole.reasons))
    if request.stream and whole.streamable:
        headers = [*headers, *(pair for pair in opened.headers if pair[0] != "content-type")]
        datas = stream.chunks_of(body)
        return Replayed(ledger, headers=headers, done=done, datas=datas, include_usage=request.include_usage, log=False)
    return Reply(ledger, status=opened.status, headers=[*headers, *opened.headers], done=done, body=body)


def _log_whole(ledger: Ledger, opened: Opened) -> None:
    """Token lines of a whole answer: one a token where the source knew them, else one a choice."""
    for piece in opened.tokens:
        if piece.text or piece.n_tokens:
            ledger.content(piece.text or "", piece.n_tokens)
    if not opened.tokens and opened.whole is not None:
        _log_choices(ledger, opened.whole)


def _log_choices(ledger: Ledger, whole: dialects.Whole) -> None:
    for choice, text in whole.texts:
        counted = whole.usage.completion_tokens if whole.usage and len(whole.texts) == 1 else 0
        ledger.content(text, counted, choice=choice)


async def stored(ledger: Ledger, hit: Hit, request: wire.Request, headers: Headers) -> Reply:
    """A cached answer in the shape this client asked for, whichever shape it was stored in."""
    entry = hit.entry
    ledger.note(usage=entry.usage, cost_usd=0.0)
    if request.stream:
        datas: Iterable[bytes] = entry.events if entry.kind == "events" else stream.chunks_of(entry.body)
        return Replayed(ledger, headers=headers, done="hit", datas=datas, include_usage=request.include_usage, log=True)
    body = entry.body if entry.kind == "json" else await _join(entry.events)
    whole = dialects.of(request.endpoint).whole(body)
    if whole is not None:
        _log_choices(ledger, whole)
    return Reply(ledger, status=200, headers=[*headers, JSON], done="hit", body=body)
