"""Send a call masked, and put the originals back into its answer, whole or streamed. Knows in which shapes texts come in pieces.

An event or body without a placeholder stays byte for byte; of another, only the strings change that hold one. Of a text that
comes in pieces, an end that may still become a placeholder waits for the next piece; where the text ends before that, it goes
out in an event of its own, before the event that ends the text.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote_plus

from msgspec.structs import replace

from gateway import literals, privacy, sse, wire
from gateway.errors import Forbidden, UpstreamFailed
from gateway.ledger import Ledger
from gateway.redact import ARGUMENTS, Channel, Redactor, Unmaskable, Vault
from gateway.upstreams import Answer, Call, Piece

LOOP_BYTES = 2 * 1024
"""Longer bodies are masked and restored on a thread, so that the loop stays free."""
MAX_ANSWER_BYTES = 256 * 1024 * 1024
"""A whole answer above this is refused."""

Key = tuple[Any, ...]
"""What a channel is known by within its stream."""


async def masked(
    call: Call, redactor: Redactor, *, upstream: str, tenant: str, max_chars: int, detector: privacy.Finder, ledger: Ledger
) -> Call:
    """The call with nothing in it that the detector finds, and its Vault.

    Raises Forbidden where that cannot be had, whatever the cause: then nothing may leave for this upstream.
    """

    def mask() -> Call:
        asked = privacy.scan(unquote_plus(call.path), max_chars=max_chars, detector=detector)
        if asked.kinds or asked.failed or asked.oversize:
            raise Unmaskable("the query of its URL cannot be masked")
        body, vault = redactor.mask(call.body, tenant=tenant, max_chars=max_chars, detector=detector)
        return replace(call, body=body, vault=vault)

    try:
        aside = detector.waits or len(call.body) > LOOP_BYTES
        made = await asyncio.to_thread(mask) if aside else mask()
    except Exception as error:  # noqa: BLE001 - the promise is to fail closed, whatever happened; only our own words are told
        why = str(error) if isinstance(error, Unmaskable) else f"masking it failed ({type(error).__name__})"
        ledger.event("redaction.failed", upstream=upstream, reason=why)
        said = f'The policy lets this request leave for "{upstream}" only masked, and that cannot be done: {why}.'
        raise Forbidden(said, code="redaction_failed") from None
    if made.vault:
        ledger.note(redacted=dict(made.vault.counts))
        made.vault.on_altered = lambda count: ledger.note(altered=count)
    return made


class Restored:
    """An answer to a masked call, with the originals in it."""

    def __init__(self, answer: Answer, endpoint: str, vault: Vault) -> None:
        self.status = answer.status
        self.headers = [pair for pair in answer.headers if pair[0] != "content-length"]
        self._answer = answer
        self._endpoint = endpoint
        self._vault = vault

    def __aiter__(self) -> AsyncGenerator[Piece, None]:
        """See `Answer.__aiter__`."""
        media = dict(self.headers).get("content-type", "")
        return self._streamed() if media.lower().startswith("text/event-stream") else self._whole()

    async def _whole(self) -> AsyncGenerator[Piece, None]:
        body = bytearray()
        async with _reading(self._answer) as pieces:
            async for piece in pieces:
                body += piece.data
                if len(body) > MAX_ANSWER_BYTES:
                    raise UpstreamFailed("protocol", f"its answer is longer than {MAX_ANSWER_BYTES} bytes")
        said = bytes(body)
        if len(said) <= LOOP_BYTES:
            said = whole(said, self._vault)
        else:
            said = await asyncio.to_thread(whole, said, self._vault)
        self._vault.tell()
        yield Piece(said)

    async def _streamed(self) -> AsyncGenerator[Piece, None]:
        events = Events(self._endpoint, self._vault)
        try:
            async with _reading(self._answer) as pieces:
                async for piece in pieces:
                    out = events.feed(piece.data)
                    self._vault.tell()
                    if out:
                        yield Piece(out)
        except UpstreamFailed:
            out = events.end()
            self._vault.tell()
            if out:
                yield Piece(out)
            raise
        except ValueError:
            # In our own words, for this is logged: another's may quote what was just put back.
            raise UpstreamFailed("protocol", "sent an event that is too long, or that cannot be read") from None
        out = events.end()
        self._vault.tell()
        if out:
            yield Piece(out)

    async def aclose(self) -> None:
        """See `Answer.aclose`."""
        await self._answer.aclose()


class _reading:  # noqa: N801 -- used as a function
    """The pieces of an answer, ended with the block that reads them."""

    def __init__(self, answer: Answer) -> None:
        self._pieces = aiter(answer)

    async def __aenter__(self) -> Any:
        return self._pieces

    async def __aexit__(self, *_: object) -> None:
        if isinstance(self._pieces, AsyncGenerator):
            # One whose answer was closed by another task may be running still, and ends there.
            with suppress(RuntimeError):
                await self._pieces.aclose()


def whole(body: bytes, vault: Vault) -> bytes:
    """A whole answer with the originals in it; what is not JSON stays as it is."""
    if _object(body) is None:
        return body
    return literals.edited(body, lambda literal: _restored(literal, vault))


def _restored(literal: literals.Literal, vault: Vault) -> str:
    return vault.restore(literal.text, quoted=not literal.is_key and _is_json(literal.path, vault))


_ANSWER_KEYS = frozenset({"content", "text", "delta"})
"""Keys of strings that are the answer itself: JSON, where the client has asked for JSON."""


def _is_json(path: literals.Path, vault: Vault) -> bool:
    """Whether the string that stands here is JSON itself, so that what is put back into it must be escaped."""
    return path[-1] in ARGUMENTS or (vault.json_answer and path[-1] in _ANSWER_KEYS)


class _Read(NamedTuple):
    """What an event means for the texts of its stream."""

    pieces: Mapping[literals.Path, Key] = MappingProxyType({})
    """Where pieces of texts stand in it."""
    closes: Sequence[Key] = ()
    """Texts that were over before it."""
    ends: frozenset[Key] = frozenset()
    """Texts that are over with it."""


class _Dialect(Protocol):
    """Reads the events of one stream."""

    def read(self, event: dict[str, Any], open_: Iterable[Key]) -> _Read:
        """What an event means; `open_` are the texts of which something is held."""
        ...

    def tail(self, key: Key, text: str) -> dict[str, Any]:
        """The event that brings the last piece of a text."""
        ...


class Events:
    """One stream with the originals in it. Takes bytes as they come, gives whole events."""

    def __init__(self, endpoint: str, vault: Vault) -> None:
        self._vault = vault
        self._dialect: _Dialect = _DIALECTS.get(endpoint, _Chat)()
        self._numbered = endpoint == "responses"
        self._splitter = sse.Splitter()
        self._channels: dict[Key, Channel] = {}
        self._next = self._added = 0
        """Number of the upstream's next event, where they are numbered; how many of ours stand before it."""

    def feed(self, data: bytes) -> bytes:
        """The events that these bytes complete. Raises ValueError for one that is too long."""
        return b"".join([self._event(raw) for raw in self._splitter.feed(data)])

    def end(self) -> bytes:
        """What is left when nothing more comes."""
        rest = self._splitter.rest
        data = sse.data_of(rest) if rest else None
        if data is None or _object(data) is None:
            return self._tails(self._open()) + rest
        last = self._event(rest)
        tails = self._tails(self._open())
        # An event whose sender spared the blank line must not run into one of ours.
        return last + b"\n\n" + tails if tails else last

    def _open(self) -> list[Key]:
        return [key for key, channel in self._channels.items() if channel.held]

    def _event(self, raw: bytes) -> bytes:
        data = sse.data_of(raw)
        if data is None:
            return raw
        event = _object(data)
        if event is None:
            # The end mark, or what nobody understands.
            return self._tails(self._open()) + raw
        read = self._dialect.read(event, self._open())
        number = event.get("sequence_number")
        if isinstance(number, int):
            self._next = number
        before = self._tails(read.closes)

        said, same = {}, not self._vault.may_be_in(data)
        for path, key in read.pieces.items():
            text = _at(event, path)
            channel = self._channel(key, path)
            said[path] = channel.feed(text) + (channel.flush() if key in read.ends else "")
            same = same and said[path] == text
        edited = data if same else literals.edited(data, lambda literal: self._edit(literal, said))
        if isinstance(number, int):
            self._next = number + 1
            if self._added and self._numbered:
                start, end = wire.span(edited, "sequence_number")
                edited = edited[:start] + b"%d" % (number + self._added) + edited[end:]
        return before + (raw if edited == data else _with_data(raw, data, edited))

    def _edit(self, literal: literals.Literal, said: Mapping[literals.Path, str]) -> str:
        text = None if literal.is_key else said.get(literal.path)
        return _restored(literal, self._vault) if text is None else text

    def _channel(self, key: Key, path: literals.Path) -> Channel:
        channel = self._channels.get(key)
        if channel is None:
            quoted = key[-1] in ARGUMENTS or "arguments" in str(key[0]) or _is_json(path, self._vault)
            channel = self._channels[key] = Channel(self._vault, quoted=quoted)
        return channel

    def _tails(self, keys: Iterable[Key]) -> bytes:
        """The events that bring what was held of these texts."""
        out = []
        for key in keys:
            if text := self._channels[key].flush():
                event = self._dialect.tail(key, text)
                if self._numbered:
                    event["sequence_number"] = self._next + self._added
                    self._added += 1
                name = event.get("type")
                head = f"event: {name}\n".encode() if isinstance(name, str) else b""
                out.append(head + sse.event_of(json.dumps(event, separators=(",", ":")).encode()))
        return b"".join(out)


def _at(value: Any, path: literals.Path) -> str:
    for step in path:
        value = value[step]
    return str(value)


def _with_data(raw: bytes, data: bytes, edited: bytes) -> bytes:
    """The event with other data: what else stands in it stays, its data becomes one line."""
    if raw.count(data) == 1:
        return raw.replace(data, edited)
    kept = [line for line in raw.splitlines() if line and not line.startswith(b"data")]
    return b"\n".join([*kept, b"data: " + edited.replace(b"\n", b" ").replace(b"\r", b" ")]) + b"\n\n"


_MAX_DEPTH = 16
"""Where texts of a delta stand at most, in levels."""
_PIECES = frozenset({"content", "refusal", "reasoning", "reasoning_content", "text", "arguments", "input", "thinking"})
"""Keys of strings in a chat delta that grow piece by piece."""


class _Chat:
    """Chunks of chat and completions. A text is known by its choice and the keys that lead to it, a call by its index."""

    def __init__(self) -> None:
        self._shapes: dict[Key, tuple[dict[str, Any], literals.Path]] = {}
        self._calls: dict[Key, tuple[int, str]] = {}
        """By choice and index: how many calls have been told under it, and the id of the last."""
        self._last: dict[Any, int] = {}

    def read(self, event: dict[str, Any], open_: Iterable[Key]) -> _Read:
        """See `_Dialect.read`."""
        choices = event.get("choices")
        if not isinstance(choices, list) or not choices or event.get("error"):
            return _Read(closes=tuple(open_))
        pieces: dict[literals.Path, Key] = {}
        closes: list[Key] = []
        ends: set[Key] = set()
        for place, choice in enumerate(choices):
            if not isinstance(choice, dict):
                continue
            index = _name(choice.get("index", place))
            grown: set[Key] = set()
            for path, key, text in self._pieces(choice, ("choices", place), (index,)):
                pieces[path] = key
                self._shapes[key] = (event, path)
                if text:
                    grown.add(key)
            mine = [key for key in open_ if key[0] == index and key not in grown]
            if choice.get("finish_reason") is not None:
                ends |= grown
                closes += mine
            else:
                closes += [key for key in mine if self._is_over(key)]
        return _Read(pieces, tuple(closes), frozenset(ends))

    def _pieces(self, value: Any, path: literals.Path, key: Key) -> Iterator[tuple[literals.Path, Key, str]]:
        """Where pieces stand in a choice, and of which text each is."""
        if isinstance(value, list):
            for place, item in enumerate(value):
                yield from self._pieces(item, (*path, place), (*key, *self._call(item, path, key)))
        elif isinstance(value, dict):
            for name, item in value.items():
                if isinstance(item, str) and name in _PIECES:
                    yield (*path, name), (*key, name), item
                elif isinstance(item, dict | list) and name != "logprobs" and len(path) < _MAX_DEPTH:
                    yield from self._pieces(item, (*path, name), (*key, name))

    def _call(self, item: Any, path: literals.Path, key: Key) -> Key:
        """What tells a call from others: its index, and which of those under that index it is. Parts of a content have none."""
        if path[-1] != "tool_calls" or not isinstance(item, dict):
            return ()
        choice, index, id_ = key[0], item.get("index"), item.get("id") or ""
        if not isinstance(index, int):
            last = self._last.get(choice, -1)
            index = last + 1 if id_ or last < 0 else last
        self._last[choice] = max(index, self._last.get(choice, -1))
        count, known = self._calls.get((choice, index), (0, ""))
        if id_ and known and id_ != known:
            count += 1
        self._calls[choice, index] = (count, str(id_ or known))
        return (index, count)

    def _is_over(self, key: Key) -> bool:
        """Whether another call has begun under the index of this one."""
        if "tool_calls" not in key:
            return False
        place = key.index("tool_calls")
        return self._calls[key[0], key[place + 1]][0] > int(key[place + 2])

    def tail(self, key: Key, text: str) -> dict[str, Any]:
        """See `_Dialect.tail`: the last chunk in which this text grew, with nothing else in it."""
        event, path = self._shapes[key]
        return _pruned(event, path, text)


def _pruned(event: dict[str, Any], path: literals.Path, text: str) -> dict[str, Any]:
    """The chunk with one piece in it, `text`; of lists only the items that lead there."""
    head = {name: value for name, value in event.items() if name not in {"choices", "obfuscation"}}
    if head.get("usage") is not None:
        del head["usage"]
    choice = event["choices"][path[1]]
    rest = {"logprobs": None} if "logprobs" in choice else {}
    own = {"index": choice.get("index", path[1])}
    return {**head, "choices": [{**own, **_alone(choice, path[2:], text), **rest, "finish_reason": None}]}


def _alone(value: Any, path: literals.Path, text: str) -> dict[str, Any]:
    name, *rest = path
    if not rest:
        return {str(name): text}
    inner = value[name]
    if isinstance(rest[0], int):
        item = inner[rest[0]]
        kept = {key: item[key] for key in ("index", "type") if key in item}
        return {str(name): [{**kept, **_alone(item, tuple(rest[1:]), text)}]}
    return {str(name): _alone(inner, tuple(rest), text)}


_PLACE = ("item_id", "output_index", "content_index", "summary_index")
_LAST = frozenset(
    {"response.completed", "response.incomplete", "response.failed", "response.cancelled", "error"}
)  # fmt: skip


class _Responses:
    """Events of a Response. A text is known by the type of its deltas and by its place in the answer."""

    def __init__(self) -> None:
        self._shapes: dict[Key, dict[str, Any]] = {}

    def read(self, event: dict[str, Any], open_: Iterable[Key]) -> _Read:
        """See `_Dialect.read`."""
        kind = event.get("type")
        if not isinstance(kind, str) or kind in _LAST:
            return _Read(closes=tuple(open_))
        if kind.endswith(".delta") and isinstance(event.get("delta"), str):
            key = self._key(kind, event)
            self._shapes[key] = {name: event[name] for name in ("type", *_PLACE) if name in event}
            if "logprobs" in event:
                self._shapes[key]["logprobs"] = []
            return _Read({("delta",): key})
        if kind == "response.output_item.done":
            index = event.get("output_index")
            return _Read(closes=tuple(key for key in open_ if self._shapes[key].get("output_index") == index))
        if kind.endswith(".done"):
            key = self._key(kind.removesuffix(".done") + ".delta", event)
            return _Read(closes=(key,) if key in open_ else ())
        return _Read()

    def _key(self, kind: str, event: dict[str, Any]) -> Key:
        return (kind, *(_name(event.get(name)) for name in _PLACE))

    def tail(self, key: Key, text: str) -> dict[str, Any]:
        """See `_Dialect.tail`."""
        return {**self._shapes[key], "delta": text}


_GROWING = ("text", "thinking", "partial_json")


class _Messages:
    """Events of a message. A text is known by its block, and by what grows in it."""

    def __init__(self) -> None:
        self._types: dict[Key, Any] = {}

    def read(self, event: dict[str, Any], open_: Iterable[Key]) -> _Read:
        """See `_Dialect.read`."""
        delta, index = event.get("delta"), _name(event.get("index"))
        match event.get("type"):
            case "content_block_delta" if isinstance(delta, dict):
                pieces: dict[literals.Path, Key] = {
                    ("delta", name): (index, name) for name in _GROWING if isinstance(delta.get(name), str)
                }
                self._types |= dict.fromkeys(pieces.values(), delta.get("type"))
                return _Read(pieces)
            case "content_block_stop":
                return _Read(closes=tuple(key for key in open_ if key[0] == index))
            case "message_delta" | "message_stop" | "error":
                return _Read(closes=tuple(open_))
            case _:
                return _Read()

    def tail(self, key: Key, text: str) -> dict[str, Any]:
        """See `_Dialect.tail`."""
        index, name = key
        return {"type": "content_block_delta", "index": index, "delta": {"type": self._types[key], name: text}}


_DIALECTS: Mapping[str, Callable[[], _Dialect]] = MappingProxyType({"responses": _Responses, "messages": _Messages})


def _name(value: Any) -> Any:
    """A value of an upstream's, as something that a text can be known by."""
    return value if value is None or isinstance(value, str | int) else repr(value)


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
