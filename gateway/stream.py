"""Answers in motion: looking inside a copy of what passes, and turning a stream into one object and back.

Knows OpenAI's answer shapes; knows nothing of where an answer came from or goes. Two modes: relay (bytes go as they came)
and rewrite, which may touch one thing only: the usage that we asked for and the client did not (see `Tap`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from gateway import sse
from gateway.ledger import Usage


class _ToolDelta(Struct):
    function: dict[str, Any] | None = None


class _Delta(Struct):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_ToolDelta] | None = None


class _Choice(Struct):
    index: int = 0
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _PromptDetails(Struct):
    cached_tokens: int | None = None


class _Usage(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None


class Chunk(Struct):
    """What we read of a streamed event; the rest of it is never touched."""

    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


class _Message(Struct):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_ToolDelta] | None = None


class _FullChoice(Struct):
    index: int = 0
    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None


class Completion(Struct):
    """What we read of a whole answer."""

    choices: list[_FullChoice] | None = None
    usage: _Usage | None = None
    error: Any = None


_chunk_decoder = msgspec.json.Decoder(Chunk)
_completion_decoder = msgspec.json.Decoder(Completion)


def _decode(decoder: msgspec.json.Decoder[Any], data: bytes) -> Any:
    """A typed view, or None for what does not have the shape. msgspec refuses lone surrogates, which json accepts."""
    try:
        return decoder.decode(data)
    except msgspec.ValidationError:
        return None
    except msgspec.DecodeError:
        try:
            return msgspec.convert(json.loads(data), decoder.type)
        except (ValueError, RecursionError, msgspec.ValidationError):
            return None


def read_chunk(data: bytes) -> Chunk | None:
    """The typed view of one event's data; None when it is not a chunk."""
    chunk: Chunk | None = _decode(_chunk_decoder, data)
    return chunk


def read_completion(body: bytes) -> Completion | None:
    """The typed view of a whole answer; None when it is not one."""
    completion: Completion | None = _decode(_completion_decoder, body)
    return completion


def usage_of(usage: _Usage | None) -> Usage | None:
    """Our Usage from the wire's."""
    if usage is None:
        return None
    details = usage.prompt_tokens_details
    return Usage(usage.prompt_tokens, usage.completion_tokens, (details.cached_tokens if details else None) or 0)


def _delta_text(part: _Delta | _Message) -> str:
    """Everything a delta says, in one string: answer, refusal, reasoning, tool arguments."""
    said = [part.content, part.refusal, part.reasoning_content, getattr(part, "reasoning", None)]
    for call in part.tool_calls or ():
        arguments = (call.function or {}).get("arguments")
        said.append(arguments if isinstance(arguments, str) else None)
    return "".join(text for text in said if text)


def text_of(choice: _Choice) -> str:
    """Everything one choice of a chunk says."""
    return choice.text or (_delta_text(choice.delta) if choice.delta else "")


def texts_of(completion: Completion) -> list[tuple[int, str]]:
    """(choice, text) for every choice that says something."""
    found = []
    for choice in completion.choices or ():
        text = choice.text or (_delta_text(choice.message) if choice.message else "")
        if text:
            found.append((choice.index, text))
    return found


_NULL_USAGE = re.compile(rb',\s*"usage"\s*:\s*null|"usage"\s*:\s*null\s*,\s*')


def without_null_usage(data: bytes) -> bytes:
    """A chunk's data without a top-level `"usage":null`; unchanged when the name also stands elsewhere."""
    matches = list(_NULL_USAGE.finditer(data))
    if len(matches) != 1:
        return data
    edited = data[: matches[0].start()] + data[matches[0].end() :]
    try:
        before = json.loads(data)
        if before.get("usage", 0) is None:
            del before["usage"]
            if json.loads(edited) == before:
                return edited
    except ValueError:
        pass
    return data


class Seen(Struct, frozen=True):
    """What one whole event was, and what of it goes to the client."""

    out: bytes
    """b"" when the event is ours alone (a usage chunk that the client did not ask for)."""
    texts: tuple[tuple[int, str], ...] = ()
    """(choice, text) of each choice that says something."""
    error: Any = None
    """An in-band error object."""
    done: bool = False
    """The `[DONE]` mark."""


class Tap:
    """Reads a copy of every event of one stream: text for the log, usage, finish reasons, and the events for the cache.

    With `strip_usage` (rewrite mode) the usage chunk and the `"usage":null` of other chunks stay here.
    """

    def __init__(self, *, strip_usage: bool, keep_bytes: int) -> None:
        self._strip = strip_usage
        self._room = keep_bytes
        self.usage: Usage | None = None
        self.finish_reasons: dict[int, str] = {}
        self.choices: set[int] = set()
        self.done = False
        self.kept: list[bytes] | None = [] if keep_bytes else None
        """The data of each chunk but usage and [DONE], for the cache; None once it is too large."""

    @property
    def whole(self) -> bool:
        """Whether the answer came to its end: every choice seen has its finish reason, or the end mark came."""
        return self.done or (bool(self.choices) and self.choices == set(self.finish_reasons))

    def event(self, raw: bytes) -> Seen:
        """Look at one whole event."""
        data = sse.data_of(raw)
        if data is None:
            return Seen(raw)
        if data == b"[DONE]":
            self.done = True
            return Seen(raw, done=True)
        chunk = read_chunk(data)
        if chunk is None:
            self._keep(data)
            return Seen(raw)
        if chunk.error is not None:
            return Seen(raw, error=chunk.error)
        if chunk.usage is not None:
            self.usage = usage_of(chunk.usage)
        if not chunk.choices:
            if chunk.usage is not None:
                return Seen(b"" if self._strip else raw)
            self._keep(data)
            return Seen(raw)
        texts = self._choices(chunk.choices)
        self._keep(data)
        if self._strip and b'"usage"' in data:
            edited = without_null_usage(data)
            return Seen(raw if edited is data else sse.event_of(edited), texts)
        return Seen(raw, texts)

    def _choices(self, choices: list[_Choice]) -> tuple[tuple[int, str], ...]:
        texts = []
        for choice in choices:
            self.choices.add(choice.index)
            if choice.finish_reason is not None:
                self.finish_reasons[choice.index] = choice.finish_reason
            text = text_of(choice)
            if text:
                texts.append((choice.index, text))
        return tuple(texts)

    def _keep(self, data: bytes) -> None:
        if self.kept is None:
            return
        self._room -= len(data)
        if self._room < 0:
            self.kept = None
        else:
            self.kept.append(without_null_usage(data) if b'"usage"' in data else data)


def usage_object(usage: Usage) -> dict[str, Any]:
    """Our Usage in the wire's shape."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def collect(datas: Sequence[bytes], usage: Usage | None) -> bytes:
    """One whole answer from the data of a stream's chunks: the shape a client gets that did not ask to stream."""
    head: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for data in datas:
        chunk = json.loads(data)
        if not isinstance(chunk, dict):
            continue
        head |= {name: value for name, value in chunk.items() if name not in {"choices", "usage", "obfuscation"}}
        for choice in chunk.get("choices") or ():
            _merge_choice(choices.setdefault(choice.get("index", 0), {"index": choice.get("index", 0)}), choice)
    is_chat = head.get("object") != "text_completion"
    if is_chat:
        head["object"] = "chat.completion"
    whole = {**head, "choices": [_whole_choice(choices[index], is_chat=is_chat) for index in sorted(choices)]}
    if usage is not None:
        whole["usage"] = usage_object(usage)
    return json.dumps(whole, ensure_ascii=True, separators=(",", ":")).encode()


def _whole_choice(choice: dict[str, Any], *, is_chat: bool) -> dict[str, Any]:
    choice.setdefault("logprobs", None)
    choice.setdefault("finish_reason", None)
    if is_chat:
        message = choice.setdefault("message", {})
        choice["message"] = {"role": "assistant", "content": None, "refusal": None} | message
        for call in message.get("tool_calls", ()):
            call.pop("index", None)
    return choice


def _merge_choice(into: dict[str, Any], choice: dict[str, Any]) -> None:
    for name, value in choice.items():
        if name == "delta" and isinstance(value, dict):
            _merge(into.setdefault("message", {}), value)
        elif name == "text":
            into["text"] = into.get("text", "") + (value or "")
        elif name == "logprobs" and isinstance(value, dict):
            if into.get("logprobs") is None:
                into["logprobs"] = {}
            _merge(into["logprobs"], value)
        elif value is not None or name not in into:
            into[name] = value


def _merge(into: dict[str, Any], delta: dict[str, Any]) -> None:
    """Add one delta to what came before: strings and lists grow, tool calls are joined by their index."""
    for name, value in delta.items():
        if name == "tool_calls" and isinstance(value, list):
            _merge_tool_calls(into.setdefault("tool_calls", []), value)
        elif value is None:
            into.setdefault(name, None)
        elif isinstance(value, str) and isinstance(into.get(name), str) and name not in {"role", "id", "type", "name"}:
            into[name] += value
        elif isinstance(value, list) and isinstance(into.get(name), list):
            into[name] += value
        elif isinstance(value, dict) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = dict(value) if isinstance(value, dict) else list(value) if isinstance(value, list) else value


def _merge_tool_calls(calls: list[dict[str, Any]], deltas: list[dict[str, Any]]) -> None:
    for delta in deltas:
        index = delta.get("index", len(calls))
        known = next((call for call in calls if call.get("index") == index), None)
        if known is None:
            known = {"index": index}
            calls.append(known)
        _merge(known, delta)


_WORDS = re.compile(r"\S*\s*|\s+", re.DOTALL)


def chunks_of(body: bytes) -> list[bytes]:
    """The data of the chunks that a whole answer makes when its client asked to stream; without usage and [DONE]."""
    whole = json.loads(body)
    is_chat = whole.get("object") != "text_completion"
    head = {name: value for name, value in whole.items() if name not in {"choices", "usage"}}
    if is_chat:
        head["object"] = "chat.completion.chunk"
    found: list[bytes] = []
    for choice in whole.get("choices") or ():
        for part in _chat_parts(choice) if is_chat else _text_parts(choice):
            found.append(_dump({**head, "choices": [{"index": choice.get("index", 0), **part}]}))
    return found


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode()


def _chat_parts(choice: dict[str, Any]) -> Iterator[dict[str, Any]]:
    message = dict(choice.get("message") or {})
    content = message.pop("content", None)
    first: dict[str, Any] = {"role": message.pop("role", "assistant"), "content": "" if content else None}
    calls = message.pop("tool_calls", None)
    logprobs = choice.get("logprobs")
    yield {"delta": first, "logprobs": None, "finish_reason": None}
    rest = {name: value for name, value in message.items() if value is not None}
    if rest:
        yield {"delta": rest, "logprobs": None, "finish_reason": None}
    if logprobs:
        # Token texts and the words below need not align: with logprobs the content travels in one piece.
        yield {"delta": {"content": content}, "logprobs": logprobs, "finish_reason": None}
    elif content:
        for word in _words(content):
            yield {"delta": {"content": word}, "logprobs": None, "finish_reason": None}
    for index, call in enumerate(calls or ()):
        yield {"delta": {"tool_calls": [{"index": index, **call}]}, "logprobs": None, "finish_reason": None}
    yield {"delta": {}, "logprobs": None, "finish_reason": choice.get("finish_reason")}


def _text_parts(choice: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if choice.get("logprobs"):
        yield {"text": choice.get("text", ""), "logprobs": choice["logprobs"], "finish_reason": None}
    else:
        for word in _words(choice.get("text") or ""):
            yield {"text": word, "logprobs": None, "finish_reason": None}
    yield {"text": "", "logprobs": None, "finish_reason": choice.get("finish_reason")}


def _words(text: str) -> list[str]:
    return [word for word in _WORDS.findall(text) if word]


def usage_chunk(data: bytes, usage: Usage) -> bytes:
    """The extra chunk that closes a stream whose client asked for usage, made after the shape of its last chunk."""
    last = json.loads(data)
    head = {name: value for name, value in last.items() if name not in {"usage", "obfuscation"}}
    return _dump({**head, "choices": [], "usage": usage_object(usage)})


def with_null_usage(data: bytes) -> bytes:
    """A chunk as it goes to a client that asked for usage: `"usage":null` added when the key is not there."""
    return data if b'"usage"' in data else data[: data.rindex(b"}")] + b',"usage":null}'
