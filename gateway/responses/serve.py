"""A Responses request served on top of chat: what it goes on from, the chat request, and the answer as the client asked for it.

Knows no policy and no upstream: what is judged, allowed and sent is the pipeline's business.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar, cast

from msgspec import Struct
from msgspec.structs import replace

from gateway import sse, wire
from gateway.affinity import Made
from gateway.config import Class
from gateway.errors import ApiError, BadUpstream, InternalError, InvalidRequest, Relayed
from gateway.facts import Facts, texts
from gateway.ledger import Ending, Ledger, Usage
from gateway.policy.decision import Option
from gateway.privacy import highest
from gateway.reply import JSON, LOOP_BYTES, SSE, Headers, Reply
from gateway.responses import MAX_CHAIN_BYTES, Item, Store, ask, compact
from gateway.responses.answer import Events
from gateway.responses.seal import Opened, Seal
from gateway.tokens import size_estimate

CHAT = "chat/completions"
SPEAKS = "responses"
"""The capability of an option that gets the request as it came."""
ENDPOINTS = frozenset({"responses", "responses/compact", "responses/input_tokens"})
"""What can be served through chat."""

_NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "verbosity": "text.verbosity",
}
"""What `ask` has made of a parameter, and what it was."""


class Before(Struct, frozen=True, kw_only=True):
    """What a request goes on from: a response that an upstream keeps, items that we keep, or nothing."""

    made: Made | None = None
    ours: bool = False
    """Whether any of what follows is there: then no upstream knows what the request means."""
    earlier: tuple[Item, ...] = ()
    """The items of the turns before this one."""
    referenced: tuple[Item, ...] = ()
    opened: Mapping[str, str] = MappingProxyType({})
    """Summaries of earlier turns that the request, or one before it, carried sealed: text by seal."""
    class_: Class = "public"
    """The request is of this class at least."""
    model: str = ""
    """Of the response before this one, as its client named it."""

    @property
    def most_bytes(self) -> int:
        """How long all of it may be, as JSON. Seals travel in the request itself."""
        return MAX_CHAIN_BYTES if self.ours else 0


NOTHING = Before()


class Translation(Struct, frozen=True, kw_only=True):
    """A Responses request as chat can serve it."""

    data: dict[str, Any]
    """The request itself, its model named."""
    plain: dict[str, Any]
    """The same, with nothing sealed: to a detector of secrets a seal looks like one."""
    referenced: tuple[Item, ...]
    chat: wire.Request
    """What is asked of the upstream; its bytes are made by `body`."""
    compacts: bool = False
    """Whether the upstream is asked for a summary, and the client for its seal."""
    said: tuple[Item, ...] = ()
    """To compact: the messages of users, which stay as they are."""

    def body(self, model: str, *, with_usage: bool) -> bytes:
        """The chat request's bytes. `model` is the upstream's own name; `with_usage`: it knows `stream_options`."""
        left_out = () if with_usage else ("stream_options",)
        told = {name: value for name, value in self.chat.data.items() if name not in left_out}
        return json.dumps({**told, "model": model}, separators=(",", ":")).encode()


class Ways(Struct, frozen=True, kw_only=True):
    """How a request may be served: by an upstream that speaks its endpoint, through chat, or either."""

    native: bool = True
    chat: Translation | None = None
    refusal: InvalidRequest | None = None
    """Why it cannot be translated to chat."""

    def through_chat(self, option: Option) -> Translation | None:
        """The translation, where this option gets it; None where it gets the request as it came."""
        return self.chat if not self.native or SPEAKS not in option.capabilities else None

    def judged(self, request: wire.Request) -> wire.Request:
        """What is to be scanned and measured: everything that any upstream may be sent, and all that may be stored."""
        if self.chat is None:
            return request
        request = replace(request, max_output=self.chat.chat.max_output)
        if self.native:
            return request
        # Names that `facts.texts` does not measure, for what stands in the chat request already.
        return replace(request, data={**self.chat.chat.data, "asked": self.chat.plain}, needs=self.chat.chat.needs, stores=False)

    def renamed(self, error: InvalidRequest) -> InvalidRequest:
        """What an upstream of ours refuses in a chat request, by the name that the client has given it."""
        name = (error.param or "").partition("[")[0]
        if self.chat is None or name not in _NAMES:
            return error
        asked, code = _NAMES[name], error.code
        return InvalidRequest(error.message.replace(f"'{name}", f"'{asked}"), param=asked, code=code)

    @property
    def via_chat(self) -> tuple[str, ...]:
        """See `Facts.via_chat`."""
        return self.chat.chat.needs if self.native and self.chat is not None else ()


NATIVE = Ways()


def ways(request: wire.Request, before: Before) -> Ways:
    """How this request may be served. Takes time with its length. Raises InvalidRequest when it can be in no way."""
    if request.endpoint not in ENDPOINTS or before.made is not None:
        return NATIVE
    try:
        return Ways(native=not before.ours, chat=_translation(request, before))
    except InvalidRequest as refusal:
        if before.ours:
            raise
        return Ways(refusal=refusal)


def _translation(request: wire.Request, before: Before) -> Translation:
    if request.stream and request.endpoint != "responses":
        raise InvalidRequest("This endpoint does not stream; leave out 'stream'.", param="stream", code="unsupported_parameter")
    data = {**request.data, "model": request.model}
    earlier, referenced = _unsealed(before.earlier, before), _unsealed(before.referenced, before)
    given = data.get("input")
    asked = {**data, "input": _unsealed(given, before)} if isinstance(given, list) and before.opened else data
    if request.endpoint != "responses/compact":
        body = ask.chat_body(asked, earlier=earlier, referenced=referenced)
        return Translation(data=data, plain=asked, referenced=before.referenced, chat=wire.of(CHAT, body))
    body = compact.chat_body(asked, earlier=earlier, referenced=referenced)
    said = compact.said([*before.earlier, *ask.items_of(data, before.referenced)])
    return Translation(data=data, plain=asked, referenced=before.referenced, chat=wire.of(CHAT, body), compacts=True, said=said)


def _unsealed(items: Sequence[Any], before: Before) -> list[Any]:
    """The items, with what is sealed as what it says."""
    return [
        compact.message(item, text) if (text := before.opened.get(compact.seal_of(item))) is not None else item for item in items
    ]


class Responses:
    """Responses on top of chat, for one front worker."""

    def __init__(self, store: Store, seal: Seal) -> None:
        self.store = store
        self._seal = seal

    async def before(self, request: wire.Request, tenant: str) -> Before:
        """What of ours the request goes on from. Raises InvalidRequest for an earlier response that this tenant does not have."""
        ids = ask.references(request.data)
        given = request.data.get("input")
        items = given if isinstance(given, list) else []
        if not request.previous and not ids and not any(map(compact.seal_of, items)):
            return NOTHING
        turns = await self.store.chain(request.previous, tenant) if request.previous else None
        found = await self.store.items(ids, tenant) if ids else None
        kept = [*(turns.items if turns else ()), *(found.items if found else ())]
        opened = await self._opened([*kept, *items], tenant)
        if turns is None and not kept and not opened:
            return NOTHING
        model = (await self.store.head(request.previous, tenant)).model if turns and not request.model else ""
        classes = [part.class_ for part in (turns, found, *opened.values()) if part is not None]
        return Before(
            ours=True,
            earlier=tuple(turns.items) if turns else (),
            referenced=tuple(found.items) if found else (),
            opened={sealed: one.text for sealed, one in opened.items()},
            class_=cast("Class", highest(*classes)),
            model=model,
        )

    async def _opened(self, items: Sequence[Any], tenant: str) -> dict[str, Opened]:
        """What is sealed in these items. Raises InvalidRequest for a seal that is not this tenant's, or was changed."""
        found = {}
        for sealed in filter(None, map(compact.seal_of, items)):
            opened = await asyncio.to_thread(self._seal.open, sealed, tenant=tenant)
            if opened is None:
                said = "A 'compaction' item cannot be opened: it was changed, or made for another key or by another gateway."
                raise InvalidRequest(said, param="input", code="invalid_encrypted_content")
            found[sealed] = opened
        return found

    async def write(self, inner: Reply, asked: Translation, ledger: Ledger, facts: Facts, *, stores: bool, done: Ending) -> Reply:
        """The chat answer `inner` as a Response, streamed or whole. Raises BadUpstream for one that is no whole answer.

        `stores`: it is to be found again under its id. `done` is the ending of `inner`.
        """
        if asked.compacts:
            return await self._compaction(inner, asked, ledger, facts, done=done)
        data = asked.data if stores else {**asked.data, "store": False}
        events = Events(data, "resp_" + secrets.token_hex(24), int(ledger.opened_at), asked.data["model"])
        keep = partial(self._keep, asked, ledger, facts) if stores else None
        if inner.body is None:
            return Streamed(ledger, inner, events, keep)
        if asked.chat.stream:
            raise BadUpstream("The upstream did not stream its answer, and it cannot be made a stream.")
        await _aside(inner.body, _read_whole, inner.body, events, _usage_of(ledger))
        if keep is not None:
            await keep(events.response)
        body = await _aside(inner.body, _dump, events.response)
        return Reply(ledger, status=inner.status, headers=_headers(inner, JSON), done=done, body=body)

    async def aclose(self) -> None:
        """Close the store; called once."""
        await self.store.aclose()

    def count(self, asked: Translation, ledger: Ledger, headers: Headers) -> Reply:
        """How many tokens the chat request is, without asking anybody: an estimate."""
        ledger.sent()
        tokens = size_estimate(texts(asked.chat)).tokens
        body = _dump({"object": "response.input_tokens", "input_tokens": tokens})
        return Reply(ledger, status=200, headers=[*headers, JSON], done="complete", body=body)

    async def _compaction(self, inner: Reply, asked: Translation, ledger: Ledger, facts: Facts, *, done: Ending) -> Reply:
        """The summary that `inner` holds, sealed, after what users have said."""
        completion = json.loads(inner.body or b"{}")
        summary = compact.summary_of(completion)
        sealed = await asyncio.to_thread(self._seal.close, summary, tenant=facts.tenant, class_=facts.class_)
        told = compact.answer(completion, sealed, asked.said, created_at=int(ledger.opened_at), usage=_usage_of(ledger))
        return Reply(ledger, status=200, headers=_headers(inner, JSON), done=done, body=_dump(told))

    async def _keep(self, asked: Translation, ledger: Ledger, facts: Facts, response: dict[str, Any]) -> None:
        """Store a final response. One that could not be stored is an answer all the same: it says `store: false`."""
        if response["status"] == "failed":
            return
        items = ask.input_items(asked.data, response["id"], asked.referenced)
        try:
            await self.store.put(response, input_items=items, tenant=facts.tenant, class_=facts.class_)
        except ApiError as error:
            response["store"] = False
            ledger.event("response.unstored", reason=error.code or error.type)


class Streamed(Reply):
    """A chat stream, told as a Response's events while it comes. What becomes of it, `inner` knows and records."""

    def __init__(
        self, ledger: Ledger, inner: Reply, events: Events, keep: Callable[[dict[str, Any]], Awaitable[None]] | None
    ) -> None:
        super().__init__(ledger, status=inner.status, headers=_headers(inner, SSE), done="complete", body=None)
        self._inner = inner
        self._events = events
        self._keep = keep
        self._splitter = sse.Splitter()
        self._failure: ApiError | None = None
        self._owes_end = False
        """Whether the chat answer has ended well, and the client does not have our last event."""
        self._cut = False
        """Whether it had no end that a Response could have."""

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """See `Reply.pieces`. The last event goes out when the response is stored, so that it can be continued at once."""
        async with aclosing(self._inner.pieces()) as pieces:
            async for piece in pieces:
                if out := self._read(self._splitter.feed(piece)):
                    yield out
        out = self._read([self._splitter.rest])
        usage = _usage_of(self._ledger)
        if self._failure is not None:
            yield out + self._events.fail(self._failure, usage)
            return
        self._owes_end = True
        yield out + self._events.settle(usage)
        if self._events.response["status"] == "failed":
            self._cut = True
            return
        if self._keep is not None:
            await self._keep(self._events.response)
        yield self._events.close()
        self._owes_end = False

    def _read(self, raws: list[bytes]) -> bytes:
        """The events that these chat events make."""
        out = []
        for raw in raws:
            data = sse.data_of(raw)
            chunk = _object(data) if data is not None else None
            if chunk is None:
                continue
            if chunk.get("error"):
                self._failure = _failure_of(chunk["error"])
            else:
                out.append(self._events.feed(chunk))
        return b"".join(out)

    def crashed(self, fault: str) -> bytes:
        """See `Reply.crashed`."""
        self._owes_end = False
        self._inner.crashed(fault)
        return super().crashed(fault)

    def _end_with(self, error: InternalError) -> bytes:
        return self._events.fail(error, _usage_of(self._ledger))

    @property
    def holds(self) -> bool:
        """See `Reply.holds`."""
        return self._inner.holds

    async def aclose(self, *, gone: bool = False) -> None:
        """See `Reply.aclose`."""
        self._note_owed(gone=gone)
        await self._inner.aclose(gone=gone)

    def close(self, *, gone: bool = False) -> None:
        """See `Reply.close`."""
        self._note_owed(gone=gone)
        self._inner.close(gone=gone)

    def _note_owed(self, *, gone: bool) -> None:
        """`inner` believes that all is well; where it is not, the Record must say so."""
        if self._cut:
            self._ledger.close("broken", status=self.status, error="cut")
        elif self._owes_end:
            self._ledger.close("client_gone" if gone else "cancelled", status=self.status)


P = ParamSpec("P")
T = TypeVar("T")


async def _aside(body: bytes, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do work whose time grows with the answer: here when it is small, on a thread when the loop would notice."""
    if len(body) <= LOOP_BYTES:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)


def _read_whole(body: bytes, events: Events, usage: Usage | None) -> None:
    events.whole(json.loads(body), usage)


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _failure_of(error: Any) -> ApiError:
    """The error that a chat stream holds, with the message and the code that it came with."""
    told = error if isinstance(error, dict) else {"message": error}
    message = told.get("message")
    code = told["code"] if isinstance(told.get("code"), str) else None
    message = message if isinstance(message, str) and message else "The upstream's stream held an error."
    return Relayed(502, _dump({"error": {**told, "message": message}}), (), code=code)


def _usage_of(ledger: Ledger) -> Usage | None:
    usage = ledger.fields.get("usage")
    return usage if isinstance(usage, Usage) else None


def _headers(inner: Reply, media: tuple[str, str]) -> Headers:
    return [*(pair for pair in inner.headers if pair[0] != "content-type"), media]
