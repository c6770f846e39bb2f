"""The dialects that answers and errors are spoken in: OpenAI's chat, OpenAI's typed events (Responses), Anthropic's messages.

Each says how its events are looked at, what a whole answer says, and how an error looks as a body and inside a stream. Knows
bytes only: nothing of requests, policies, upstreams or HTTP servers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

from msgspec import Struct
from msgspec.structs import replace

from gateway import sse, stream
from gateway.errors import ApiError
from gateway.ledger import Usage
from gateway.stream import Burst, Seen

Texts = tuple[tuple[int, str], ...]


class Whole(Struct, frozen=True, kw_only=True):
    """What an answer that did not stream says."""

    texts: Texts = ()
    """(choice, text) of each choice that says something."""
    usage: Usage | None = None
    reasons: frozenset[str] = frozenset()
    """Finish reasons."""
    error: Any = None
    """The error that a 200 carried."""
    storable: bool = False
    """Whether the cache could replay it."""
    streamable: bool = False
    """Whether `stream.chunks_of` can make a stream of it."""
    id: str = ""
    """Under which the upstream may keep it."""


class Opening(Struct, frozen=True):
    """What an event says about the beginning of a stream."""

    begins: bool = False
    """False for what only keeps the connection up."""
    error: Any = None


class Tap(Protocol):
    """Reads a copy of every event of one stream. `stream.Tap` is the chat's."""

    usage: Usage | None
    finish_reasons: dict[int, str]
    done: bool
    """Whether the end mark has come."""
    error: Any
    """The last in-band error object."""
    kept: list[bytes] | None
    """What the cache may keep."""
    id: str
    """Under which the upstream may keep the answer; empty while not known."""

    @property
    def finished(self) -> bool:
        """Whether every choice has its finish reason."""
        ...

    @property
    def whole(self) -> bool:
        """Whether the answer came to its end."""
        ...

    def event(self, raw: bytes) -> Seen:
        """Look at one whole event."""
        ...

    def burst(self, events: bytes) -> Burst | None:
        """Look at whole events that came together; None, and nothing is noted, where each needs a look of its own."""
        ...

    def end_with(self, error: ApiError | None) -> bytes:
        """The events that end a broken stream; None: the upstream has told its error itself."""
        ...


class Dialect(Protocol):
    """How the answers of some endpoints are spoken. Stateless; one instance serves all requests."""

    @property
    def converts(self) -> bool:
        """Whether its streams can be made one answer and back; only such answers are cached."""
        ...

    @property
    def raw(self) -> bool:
        """Whether a whole answer is bytes that nobody looks into."""
        ...

    @property
    def forwarded(self) -> tuple[str, ...]:
        """Client headers that travel, besides those that always do."""
        ...

    @property
    def forwards_query(self) -> bool:
        """Whether the URL's query travels."""
        ...

    @property
    def id_header(self) -> str:
        """The header under which its own clients look for the request's id."""
        ...

    def opening(self, data: bytes) -> Opening:
        """Judge the data of an event before the answer has begun."""
        ...

    def tap(self, *, strip_usage: bool, room: stream.Room | None, choices: int) -> Tap:
        """A reader for one stream; see `stream.Tap`."""
        ...

    def whole(self, body: bytes) -> Whole | None:
        """What a whole answer says; None when it is not a JSON object. Takes time with its length."""
        ...

    def error_body(self, error: ApiError) -> bytes:
        """An error as the body of an answer."""
        ...


class Chat:
    """chat/completions, completions, embeddings: unnamed events with choices, then `[DONE]`."""

    converts = True
    raw = False
    forwarded: tuple[str, ...] = ()
    forwards_query = False
    id_header = "x-request-id"

    def __init__(self, *, has_choices: bool = True) -> None:
        self._has_choices = has_choices

    def opening(self, data: bytes) -> Opening:
        """See `Dialect.opening`."""
        chunk = stream.read_chunk(data)
        return Opening() if chunk is None else Opening(begins=True, error=chunk.error or None)

    def tap(self, *, strip_usage: bool, room: stream.Room | None, choices: int) -> stream.Tap:
        """See `Dialect.tap`."""
        return stream.Tap(strip_usage=strip_usage, room=room, choices=choices)

    def whole(self, body: bytes) -> Whole | None:
        """See `Dialect.whole`."""
        chunk = stream.read_chunk(body)
        if chunk is None:
            return None
        choices = chunk.choices or []
        plain = not isinstance(chunk, stream.OddChunk)
        return Whole(
            texts=stream.texts_of(chunk),
            usage=stream.usage_of(chunk),
            reasons=frozenset(choice.finish_reason or "" for choice in choices),
            error=chunk.error,
            storable=plain and (bool(choices) or not self._has_choices),
            streamable=plain and bool(choices),
        )

    def error_body(self, error: ApiError) -> bytes:
        """See `Dialect.error_body`."""
        return error.body()


class _Said(Struct, frozen=True, kw_only=True):
    """What one typed event says."""

    texts: Texts = ()
    usage: Mapping[str, Any] = MappingProxyType({})
    """Counts as the wire names them; later ones replace earlier ones."""
    reason: str = ""
    error: Any = None
    ends: bool = False
    """Whether the answer is complete with it."""
    id: str = ""


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _one(place: Any, text: str) -> Texts:
    return ((_count(place), text),) if text else ()


def _framed(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\n".encode() + sse.event_of(json.dumps(data, separators=(",", ":")).encode())


def _error_of(event: dict[str, Any]) -> Any:
    """The error object of an event that is one: in `error`, or the event itself."""
    return event.get("error") or {name: event.get(name) for name in ("message", "type", "param", "code")}


class _TypedTap:
    """What both dialects of typed events share; what an event says is theirs."""

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.finish_reasons: dict[int, str] = {}
        self.done = False
        self.error: Any = None
        self.kept: list[bytes] | None = None
        self.id = ""
        self._counts: dict[str, Any] = {}

    @property
    def finished(self) -> bool:
        """See `Tap.finished`."""
        return self.done

    @property
    def whole(self) -> bool:
        """See `Tap.whole`."""
        return self.done

    def event(self, raw: bytes) -> Seen:
        """See `Tap.event`."""
        data = sse.data_of(raw)
        event = _object(data) if data is not None else None
        if event is None:
            return Seen(raw)
        said = self.read(event)
        self.id = self.id or said.id
        if said.usage:
            self._counts.update({name: value for name, value in said.usage.items() if value is not None})
            self.usage = self.count(self._counts)
        if said.reason:
            self.finish_reasons[0] = said.reason
        if said.error:
            self.error = said.error
        self.done = self.done or said.ends
        return Seen(raw, said.texts, said.error, said.ends)

    def burst(self, events: bytes) -> None:
        """See `Tap.burst`."""

    def read(self, event: dict[str, Any]) -> _Said:
        """What one event says."""
        raise NotImplementedError

    def count(self, counts: Mapping[str, Any]) -> Usage:
        """Our Usage from the wire's."""
        raise NotImplementedError


def _typed_usage(counts: Mapping[str, Any]) -> Usage:
    cached = _count(_dict(counts.get("input_tokens_details")).get("cached_tokens"))
    return Usage(_count(counts.get("input_tokens")), _count(counts.get("output_tokens")), cached)


def _output_texts(output: Any) -> Texts:
    """(output index, text) of every item of a whole response that says something."""
    found = []
    for index, item in enumerate(output if isinstance(output, list) else ()):
        parts = [part for name in ("content", "summary") for part in _list(_dict(item).get(name))]
        texts = [_text(_dict(part).get(name)) for part in parts for name in ("text", "refusal")]
        texts += [_text(_dict(item).get(name)) for name in ("arguments", "input")]
        if text := "".join(texts):
            found.append((index, text))
    return tuple(found)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _reason_of(response: dict[str, Any]) -> str:
    return _text(_dict(response.get("incomplete_details")).get("reason")) or _text(response.get("status"))


class Typed:
    """OpenAI's answers beside chat: Responses, images, speech, moderations. Events carry their `type`; there is no `[DONE]`.

    `ends` are the types of events that complete a stream. `bills` is false where an answer was paid for before: its text and
    usage are then not counted again. `last` says whether nothing can follow such an event.
    """

    converts = False
    forwarded: tuple[str, ...] = ()
    forwards_query = False
    id_header = "x-request-id"

    def __init__(self, *ends: str, raw: bool = False, bills: bool = True, last: bool = True) -> None:
        self.ends = frozenset(ends)
        self.raw = raw
        self.bills = bills
        self.last = last

    def opening(self, data: bytes) -> Opening:
        """See `Dialect.opening`."""
        event = _object(data)
        return Opening() if event is None else Opening(begins=True, error=_typed_error(event))

    def tap(self, *, strip_usage: bool, room: stream.Room | None, choices: int) -> ResponsesTap:  # noqa: ARG002 - nothing to strip or keep
        """See `Dialect.tap`."""
        return ResponsesTap(self)

    def whole(self, body: bytes) -> Whole | None:
        """See `Dialect.whole`. A response that failed is an answer: it carries its own status and error."""
        answer = _object(body)
        if answer is None:
            return None
        is_response = answer.get("object") == "response"
        usage = answer.get("usage")
        return Whole(
            texts=_output_texts(answer.get("output")) if self.bills else (),
            usage=_typed_usage(usage) if self.bills and isinstance(usage, dict) else None,
            reasons=frozenset({_reason_of(answer)} if is_response else ()),
            error=None if is_response else answer.get("error"),
            id=_text(answer.get("id")) if is_response else "",
        )

    def error_body(self, error: ApiError) -> bytes:
        """See `Dialect.error_body`."""
        return error.body()


class Transcript(Typed):
    """What was said in a recording: a JSON object with `text`, or the text itself (`response_format` text, srt, vtt)."""

    def whole(self, body: bytes) -> Whole | None:
        """See `Dialect.whole`. A page of HTML is no transcript."""
        answer = _object(body)
        if answer is not None:
            found = super().whole(body)
            return replace(found, texts=_one(0, _text(answer.get("text")))) if found is not None else None
        text = body.decode("utf-8", "replace")
        return None if not text.strip() or text.lstrip().startswith("<") else Whole(texts=_one(0, text))


def _typed_error(event: dict[str, Any]) -> Any:
    """The error of a typed event, or None. An API that only half speaks the dialect may send the chat's error shape."""
    match event.get("type"):
        case "error":
            return _error_of(event)
        case "response.failed":
            return _dict(event.get("response")).get("error") or {"message": "the response failed"}
        case _:
            return event.get("error") or None


class ResponsesTap(_TypedTap):
    """Reads the events of one typed stream, and can go on with the number that its next event must have."""

    def __init__(self, dialect: Typed) -> None:
        super().__init__()
        self._dialect = dialect
        self._finished = False
        self._sequence = -1
        self._response: dict[str, Any] = {}

    @property
    def whole(self) -> bool:
        """See `Tap.whole`."""
        return self._finished

    def read(self, event: dict[str, Any]) -> _Said:
        """What one event says."""
        self._sequence = max(self._sequence, _count(event.get("sequence_number")))
        kind, bills = _text(event.get("type")), self._dialect.bills
        if isinstance(response := event.get("response"), dict):
            self._response = response
        ends = kind in self._dialect.ends
        self._finished = self._finished or ends
        # Sound travels as base64 in deltas of the same form.
        says = bills and kind.endswith(".delta") and "audio.delta" not in kind
        usage = self._response.get("usage") if response else event.get("usage")
        return _Said(
            texts=_one(event.get("output_index"), _text(event.get("delta"))) if says else (),
            usage=_dict(usage) if bills else {},
            reason=_reason_of(self._response) if ends else "",
            error=_typed_error(event),
            ends=ends and self._dialect.last,
            id=_text(self._response.get("id")),
        )

    def count(self, counts: Mapping[str, Any]) -> Usage:
        """Our Usage from the wire's."""
        return _typed_usage(counts)

    def end_with(self, error: ApiError | None) -> bytes:
        """See `Tap.end_with`: an `error` event, and `response.failed` where a response had begun, numbered on.

        The error stands in the event itself, as OpenAI's API description has it, and again under `error`, which is where the
        official SDKs look before they raise.
        """
        if error is None:
            return b""
        told = error.envelope()["error"]
        number = self._sequence + 1
        flat = {name: told[name] for name in ("code", "message", "param")}
        out = _framed("error", {"type": "error", **flat, "sequence_number": number, "error": told})
        if self._response:
            failed = {"status": "failed", "error": {"code": "server_error", "message": told["message"]}}
            event = {"type": "response.failed", "sequence_number": number + 1, "response": {**self._response, **failed}}
            out += _framed("response.failed", event)
        return out


_ANTHROPIC_TYPES: Mapping[int, str] = MappingProxyType(
    {
        400: "invalid_request_error",
        401: "authentication_error",
        402: "billing_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        504: "timeout_error",
        529: "overloaded_error",
    }
)
"""Anthropic's error types by status; any other is `invalid_request_error` below 500 and `api_error` from there on."""


def _anthropic_error(error: ApiError) -> dict[str, Any]:
    usual = "invalid_request_error" if error.status < 500 else "api_error"
    kind = _ANTHROPIC_TYPES.get(error.status, usual)
    return {"type": "error", "error": {"type": kind, "message": error.envelope()["error"]["message"] or ""}}


def _anthropic_usage(counts: Mapping[str, Any]) -> Usage:
    """Anthropic counts cached prompt tokens beside the others, OpenAI (and we) among them."""
    cached = _count(counts.get("cache_read_input_tokens"))
    prompt = _count(counts.get("input_tokens")) + cached + _count(counts.get("cache_creation_input_tokens"))
    return Usage(prompt, _count(counts.get("output_tokens")), cached)


def _block_text(block: Any) -> str:
    found = _dict(block)
    said = "".join(_text(found.get(name)) for name in ("text", "thinking", "partial_json"))
    return said + (json.dumps(found["input"]) if found.get("type") == "tool_use" and found.get("input") else "")


class Messages:
    """Anthropic's messages: named events that end with `message_stop`, and an error shape of their own."""

    converts = False
    raw = False
    forwarded = ("anthropic-version", "anthropic-beta")
    forwards_query = True
    id_header = "request-id"

    def opening(self, data: bytes) -> Opening:
        """See `Dialect.opening`. A `ping` says nothing yet."""
        event = _object(data)
        if event is None or event.get("type") == "ping":
            return Opening()
        return Opening(begins=True, error=_message_error(event))

    def tap(self, *, strip_usage: bool, room: stream.Room | None, choices: int) -> MessagesTap:  # noqa: ARG002 - nothing to strip or keep
        """See `Dialect.tap`."""
        return MessagesTap()

    def whole(self, body: bytes) -> Whole | None:
        """See `Dialect.whole`."""
        answer = _object(body)
        if answer is None:
            return None
        usage, reason = answer.get("usage"), _text(answer.get("stop_reason"))
        texts = [(index, text) for index, block in enumerate(_list(answer.get("content"))) if (text := _block_text(block))]
        return Whole(
            texts=tuple(texts),
            usage=_anthropic_usage(usage) if isinstance(usage, dict) else None,
            reasons=frozenset({reason} if reason else ()),
            error=_message_error(answer),
        )

    def error_body(self, error: ApiError) -> bytes:
        """See `Dialect.error_body`. An upstream's own error that is in this shape already stays as it came."""
        body = error.body()
        told = _object(body) or {}
        return body if told.get("type") == "error" else json.dumps(_anthropic_error(error)).encode()


def _message_error(event: dict[str, Any]) -> Any:
    return _error_of(event) if event.get("type") == "error" else event.get("error") or None


class MessagesTap(_TypedTap):
    """Reads the events of one message."""

    def read(self, event: dict[str, Any]) -> _Said:
        """What one event says."""
        match event.get("type"):
            case "message_start":
                return _Said(usage=_dict(_dict(event.get("message")).get("usage")), error=_message_error(event))
            case "content_block_delta":
                return _Said(texts=_one(event.get("index"), _block_text(event.get("delta"))))
            case "message_delta":
                reason = _text(_dict(event.get("delta")).get("stop_reason"))
                return _Said(usage=_dict(event.get("usage")), reason=reason)
            case "message_stop":
                return _Said(ends=True)
            case _:
                return _Said(error=_message_error(event))

    def count(self, counts: Mapping[str, Any]) -> Usage:
        """Our Usage from the wire's."""
        return _anthropic_usage(counts)

    def end_with(self, error: ApiError | None) -> bytes:
        """See `Tap.end_with`."""
        return b"" if error is None else _framed("error", _anthropic_error(error))


_RESPONSE_ENDS = ("response.completed", "response.incomplete", "response.failed", "response.cancelled")
_CHAT, _MESSAGES, _PLAIN = Chat(), Messages(), Typed()

_DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {
        "chat/completions": _CHAT,
        "completions": _CHAT,
        "embeddings": Chat(has_choices=False),
        "responses": Typed(*_RESPONSE_ENDS),
        "responses/retrieve": Typed(*_RESPONSE_ENDS, bills=False),
        "messages": _MESSAGES,
        "messages/count_tokens": _MESSAGES,
        "images/generations": Typed("image_generation.completed", last=False),
        "images/edits": Typed("image_edit.completed", last=False),
        "audio/speech": Typed("speech.audio.done", raw=True),
        "audio/transcriptions": Transcript("transcript.text.done"),
        "audio/translations": Transcript("transcript.text.done"),
        "files/content": Typed(raw=True, bills=False),
        **dict.fromkeys(("batches", "batches/retrieve", "batches/cancel"), Typed(bills=False)),
    }
)


def of(endpoint: str) -> Dialect:
    """The dialect of an endpoint; plain JSON with OpenAI's errors for one that has no streams."""
    return _DIALECTS.get(endpoint, _PLAIN)
