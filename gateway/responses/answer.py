"""A chat answer as a Responses answer: events while it streams, and the final Response object. Knows no stores or upstreams.

Source: OpenAI's API description (Response, ResponseStreamEvent). One chat choice becomes at most one reasoning item, one
message (text, refusal) and a function call for each tool call, in the order in which they begin. All stay open until the end,
since fragments of parallel calls may interleave.
"""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import msgspec

from gateway.errors import ApiError, BadUpstream, InvalidRequest, RateLimited
from gateway.ledger import Usage
from gateway.responses.ask import item_id, wants_logprobs

Status = Literal["completed", "incomplete"]

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Chat's finish reasons after which a response is not complete, and what Responses calls them."""

_PARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "output_text": ("text", {"annotations": [], "logprobs": []}),
    "refusal": ("refusal", {}),
    "reasoning_text": ("text", {}),
}
"""By the type of a content part: the key of its text, and what else it holds. Its events are `response.TYPE.delta` and `done`."""

_UNLIKELY = -9999.0
"""What OpenAI gives for a token whose log probability is too low to tell."""

_TIERS = frozenset({"auto", "default", "flex", "scale", "priority", "fast", "ultrafast"})
"""Service tiers of OpenAI's description; an upstream's own are not told."""

_OBFUSCATION = 32
"""With obfuscation, what an event carries is padded to a multiple of this many characters."""


class Events:
    """One answer: parsed chat chunks in, Responses events out as SSE bytes. One instance an answer; nothing blocks.

    `request` is the parsed Responses request, `created_at` and `clock` are Unix seconds, `model` is the name shown to the client.
    """

    def __init__(
        self, request: dict[str, Any], response_id: str, created_at: int, model: str, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.response: dict[str, Any] = _opening(request, response_id, created_at, model)
        """The Response object as it stands; final after `finish` or `fail`. Read only."""
        self._clock = clock
        self._logprobs = wants_logprobs(request)
        self._wire = _Wire(obfuscate=(request.get("stream_options") or {}).get("include_obfuscation") is True)
        self._items: list[_Spoken | _Call] = []
        """Those that have begun, by output index."""
        self._spoken: dict[str, _Spoken] = {}
        self._calls: dict[int, _Call] = {}
        """By the tool call's index in the chat answer; one whose name is not known yet has not begun."""
        self._finish_reason = ""
        self._usage: Any = None

    def feed(self, chunk: dict[str, Any]) -> bytes:
        """The events that one parsed chat chunk makes; the first call opens the response. Other choices than 0 are not read."""
        self._open()
        self._usage = chunk.get("usage") or self._usage
        if _text(chunk.get("service_tier")) in _TIERS:
            self.response["service_tier"] = chunk["service_tier"]
        for choice in _objects(chunk.get("choices")):
            if choice.get("index", 0) == 0:
                self._read(_object(choice.get("delta")), _object(choice.get("logprobs")))
                self._finish_reason = _text(choice.get("finish_reason")) or self._finish_reason
        return self._wire.take()

    def finish(self, usage: Usage | None = None) -> bytes:
        """The events that end the answer. `usage` stands in when the chunks carried none.

        An answer without a finish reason was cut: it ends as `fail` does, whatever the caller thought.
        """
        return self.settle(usage) + self.close()

    def settle(self, usage: Usage | None = None) -> bytes:
        """The first part of `finish`: all events but the last, which `close` makes of `response`, final from now on."""
        self._open()
        if not self._finish_reason:
            return self.fail(BadUpstream("The upstream's answer broke off before its end."))
        for call in self._calls.values():
            self._begin_call(call)
        if not self._items:
            self._say("message", "output_text", "")
        reason = _INCOMPLETE.get(self._finish_reason)
        for item in self._items:
            item.end("incomplete" if reason and item is self._items[-1] else "completed")
        self.response |= {"output": [item.item for item in self._items], "usage": usage_of(self._usage, usage)}
        if reason:
            self.response |= {"status": "incomplete", "incomplete_details": {"reason": reason}}
        else:
            self.response |= {"status": "completed", "completed_at": int(self._clock())}
        return self._wire.take()

    def close(self) -> bytes:
        """The event that ends the answer; nothing when `fail` has ended it."""
        if self.response["status"] != "failed":
            self._wire.put(f"response.{self.response['status']}", response=self.response)
        return self._wire.take()

    def fail(self, error: ApiError, usage: Usage | None = None) -> bytes:
        """The events of an answer that could not be ended: `error` with the whole truth, then `response.failed`.

        The `error` event has its fields twice, flat as OpenAI's description says and under `error` as OpenAI sends them: the
        official SDKs raise on the second only. `response.failed` knows no codes but the description's.
        """
        self._open()
        told = error.envelope()["error"]
        message = told["message"] or error.message
        self._wire.put("error", code=told["code"], message=message, param=told["param"], error=told)
        code = "rate_limit_exceeded" if isinstance(error, RateLimited) else "server_error"
        if isinstance(error, InvalidRequest):
            code = "invalid_prompt"
        for item in self._items:
            item.settle("incomplete")
        self.response |= {
            "status": "failed",
            "error": {"code": code, "message": message},
            "usage": usage_of(self._usage, usage),
            "output": [item.item for item in self._items],
        }
        self._wire.put("response.failed", response=self.response)
        return self._wire.take()

    def whole(self, completion: dict[str, Any], usage: Usage | None = None) -> dict[str, Any]:
        """The Response object of a chat completion that did not stream. For a fresh instance.

        Raises BadUpstream for a completion without a finish reason: nobody can say whether it is whole.
        """
        choices = []
        for choice in _objects(completion.get("choices")):
            message = _object(choice.get("message"))
            calls = [{**call, "index": index} for index, call in enumerate(_objects(message.get("tool_calls")))]
            choices.append({**choice, "delta": {**message, "tool_calls": calls}})
        self.feed({**completion, "choices": choices})
        self.finish(usage)
        if self.response["status"] == "failed":
            raise BadUpstream("The upstream's answer has no finish reason, so it cannot be told whether it is whole.")
        return self.response

    def _open(self) -> None:
        if self._wire.sequence == 0:
            self._wire.open(self.response)

    def _read(self, delta: dict[str, Any], logprobs: dict[str, Any]) -> None:
        if thought := _text(delta.get("reasoning_content")) or _text(delta.get("reasoning")):
            self._say("reasoning", "reasoning_text", thought)
        listed = [_logprob(one) for one in _objects(logprobs.get("content"))] if self._logprobs else []
        text = _text(delta.get("content"))
        if text or listed:
            self._say("message", "output_text", text, listed)
        if refusal := _text(delta.get("refusal")):
            self._say("message", "refusal", refusal)
        for fragment in _objects(delta.get("tool_calls")):
            call = self._call(fragment)
            call.add(fragment)
            if call.name:
                self._begin_call(call)

    def _say(self, kind: str, part: str, text: str, logprobs: list[dict[str, Any]] | None = None) -> None:
        spoken = self._spoken.get(kind)
        if spoken is None:
            head: dict[str, Any] = {"role": "assistant"} if kind == "message" else {"summary": []}
            spoken = self._spoken[kind] = _Spoken(self._wire, len(self._items), self._head(kind) | head)
            self._items.append(spoken)
        spoken.say(part, text, logprobs or [])

    def _head(self, kind: str) -> dict[str, Any]:
        head = {"type": kind}
        return {"id": item_id(self.response["id"], f"output {len(self._items)}", head), **head}

    def _call(self, fragment: dict[str, Any]) -> _Call:
        """The call a fragment belongs to; without an index, the last one.

        Some upstreams send every call under index 0, or under none: another id begins another call.
        """
        index, id_ = fragment.get("index"), _text(fragment.get("id"))
        if not isinstance(index, int):
            index = max(self._calls, default=0)
        call = self._calls.get(index)
        if call is None or (id_ and call.id and id_ != call.id):
            if call is not None:
                self._begin_call(call)
            call = self._calls[index] = _Call(self._wire)
        return call

    def _begin_call(self, call: _Call) -> None:
        if call.item:
            return
        head = self._head("function_call")
        call.begin(len(self._items), head | {"call_id": call.id or head["id"].replace("fc_", "call_", 1), "name": call.name})
        self._items.append(call)


class _Wire:
    """Numbers events and keeps their bytes until they are taken."""

    def __init__(self, *, obfuscate: bool) -> None:
        self.sequence = 0
        self._obfuscate = obfuscate
        self._out: list[bytes] = []

    def open(self, response: dict[str, Any]) -> None:
        """The two events that open a response; it may repeat long instructions, and is encoded once."""
        fields = _dump({"response": response})
        self._add("response.created", fields)
        self._add("response.in_progress", fields)

    def put(self, type_: str, **fields: Any) -> None:
        if self._obfuscate and "delta" in fields:
            fields["obfuscation"] = secrets.token_urlsafe(_OBFUSCATION)[: _OBFUSCATION - len(fields["delta"]) % _OBFUSCATION]
        self._add(type_, _dump(fields))

    def _add(self, type_: str, fields: bytes) -> None:
        head = f'event: {type_}\ndata: {{"type":"{type_}","sequence_number":{self.sequence},'
        self._out.append(head.encode() + fields[1:] + b"\n\n")
        self.sequence += 1

    def take(self) -> bytes:
        out = b"".join(self._out)
        self._out.clear()
        return out


class _Spoken:
    """An item made of content parts: the message, or the reasoning before it."""

    def __init__(self, wire: _Wire, index: int, head: dict[str, Any]) -> None:
        self._wire = wire
        self._index = index
        self._texts: dict[str, list[str]] = {}
        self.item: dict[str, Any] = {**head, "status": "in_progress", "content": []}
        wire.put("response.output_item.added", output_index=index, item=self.item)

    def say(self, type_: str, text: str, logprobs: list[dict[str, Any]]) -> None:
        """Add to the part of this type, which begins with its first text."""
        if type_ not in self._texts:
            key, rest = _PARTS[type_]
            self._texts[type_] = []
            self.item["content"].append({"type": type_, key: "", **{name: list(value) for name, value in rest.items()}})
            self._emit("response.content_part.added", len(self.item["content"]) - 1, part=self.item["content"][-1])
        place = list(self._texts).index(type_)
        self._texts[type_].append(text)
        if type_ == "output_text":
            self.item["content"][place]["logprobs"] += logprobs
        if text or logprobs:
            fields = {"logprobs": logprobs} if type_ == "output_text" else {}
            self._emit(f"response.{type_}.delta", place, delta=text, **fields)

    def settle(self, status: Status) -> None:
        """Write into the item what was said."""
        for part in self.item["content"]:
            part[_PARTS[part["type"]][0]] = "".join(self._texts[part["type"]])
        self.item["status"] = status

    def end(self, status: Status) -> None:
        """Settle, and say that each part and the item are done."""
        self.settle(status)
        for place, part in enumerate(self.item["content"]):
            key = _PARTS[part["type"]][0]
            fields = {name: part[name] for name in (key, "logprobs") if name in part}
            self._emit(f"response.{part['type']}.done", place, **fields)
            self._emit("response.content_part.done", place, part=part)
        self._wire.put("response.output_item.done", output_index=self._index, item=self.item)

    def _emit(self, type_: str, content_index: int, **fields: Any) -> None:
        self._wire.put(type_, item_id=self.item["id"], output_index=self._index, content_index=content_index, **fields)


class _Call:
    """One function call. Gathers fragments before it begins, because it cannot be announced without its name."""

    def __init__(self, wire: _Wire) -> None:
        self._wire = wire
        self._index = -1
        self._arguments: list[str] = []
        self.id = ""
        self.name = ""
        self.item: dict[str, Any] = {}
        """Empty until it begins."""

    def add(self, fragment: dict[str, Any]) -> None:
        """Id and name come whole, a later one adds nothing; arguments grow."""
        function = _object(fragment.get("function"))
        self.id = self.id or _text(fragment.get("id"))
        self.name = self.name or _text(function.get("name"))
        arguments = _text(function.get("arguments"))
        if arguments:
            self._arguments.append(arguments)
            if self.item:
                self._delta(arguments)

    def begin(self, index: int, head: dict[str, Any]) -> None:
        """Announce the call, and say what came before its name."""
        self._index = index
        self.item = {**head, "arguments": "", "status": "in_progress"}
        self._wire.put("response.output_item.added", output_index=index, item=self.item)
        if self._arguments:
            self._delta("".join(self._arguments))

    def settle(self, status: Status) -> None:
        """Write into the item what came."""
        self.item |= {"arguments": "".join(self._arguments), "status": status}

    def end(self, status: Status) -> None:
        """Settle, and say that the arguments and the item are done."""
        self.settle(status)
        known = {name: self.item[name] for name in ("name", "arguments")}
        self._wire.put("response.function_call_arguments.done", item_id=self.item["id"], output_index=self._index, **known)
        self._wire.put("response.output_item.done", output_index=self._index, item=self.item)

    def _delta(self, arguments: str) -> None:
        fields = {"item_id": self.item["id"], "output_index": self._index, "delta": arguments}
        self._wire.put("response.function_call_arguments.delta", **fields)


def _opening(request: dict[str, Any], response_id: str, created_at: int, model: str) -> dict[str, Any]:
    """The Response object before anything was said: OpenAI's keys, with its defaults for what the client left out."""

    def asked(name: str, default: Any = None) -> Any:
        value = request.get(name)
        return default if value is None else value

    text, reasoning = asked("text", {}), asked("reasoning", {})
    response = {
        "id": response_id,
        "object": "response",
        "created_at": created_at,
        "status": "in_progress",
        "background": False,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": asked("instructions"),
        "max_output_tokens": asked("max_output_tokens"),
        "max_tool_calls": None,
        "model": model,
        "output": [],
        "parallel_tool_calls": asked("parallel_tool_calls", True),
        "previous_response_id": asked("previous_response_id"),
        "prompt_cache_key": asked("prompt_cache_key"),
        "prompt_cache_retention": asked("prompt_cache_retention"),
        "reasoning": {"effort": reasoning.get("effort"), "summary": None},
        "safety_identifier": asked("safety_identifier"),
        "service_tier": "default",
        "store": asked("store", True),
        "temperature": asked("temperature", 1.0),
        "text": {"format": _format(text.get("format")), "verbosity": text.get("verbosity") or "medium"},
        "tool_choice": asked("tool_choice", "auto"),
        "tools": [{"description": None, "parameters": None, "strict": None, **tool} for tool in asked("tools", [])],
        "top_logprobs": asked("top_logprobs", 0),
        "top_p": asked("top_p", 1.0),
        "presence_penalty": asked("presence_penalty", 0.0),
        "frequency_penalty": asked("frequency_penalty", 0.0),
        "truncation": "disabled",
        "usage": None,
        "metadata": asked("metadata", {}),
    }
    if request.get("user") is not None:
        response["user"] = request["user"]
    return response


def _format(form: dict[str, Any] | None) -> dict[str, Any]:
    kept = {name: value for name, value in (form or {"type": "text"}).items() if value is not None}
    return {"strict": False, **kept} if kept["type"] == "json_schema" else kept


def usage_of(counted: Any, known: Usage | None) -> dict[str, Any] | None:
    """Responses' usage from chat's, or from the gateway's own count."""
    if not isinstance(counted, dict):
        if known is None:
            return None
        details = {"cached_tokens": known.cached_tokens}
        counted = {"prompt_tokens": known.prompt_tokens, "completion_tokens": known.completion_tokens}
        counted["prompt_tokens_details"] = details
    asked, said = _object(counted.get("prompt_tokens_details")), _object(counted.get("completion_tokens_details"))
    in_, out = _count(counted, "prompt_tokens"), _count(counted, "completion_tokens")
    return {
        "input_tokens": in_,
        "input_tokens_details": {name: _count(asked, name) for name in ("cached_tokens", "cache_write_tokens")},
        "output_tokens": out,
        "output_tokens_details": {"reasoning_tokens": _count(said, "reasoning_tokens")},
        "total_tokens": _count(counted, "total_tokens") or in_ + out,
    }


def _count(counts: dict[str, Any], name: str) -> int:
    value = counts.get(name)
    return value if isinstance(value, int) else 0


def _logprob(given: dict[str, Any]) -> dict[str, Any]:
    """One token's entry; where chat has null for the bytes, those of the token's text."""

    def bytes_of(one: dict[str, Any]) -> dict[str, Any]:
        token = _text(one.get("token"))
        logprob, spelled = one.get("logprob"), one.get("bytes")
        known = isinstance(logprob, int | float) and math.isfinite(logprob)
        spelled = spelled if isinstance(spelled, list) else list(token.encode("utf-8", "surrogatepass"))
        return {"token": token, "logprob": logprob if known else _UNLIKELY, "bytes": spelled}

    return {**bytes_of(given), "top_logprobs": [bytes_of(one) for one in _objects(given.get("top_logprobs"))]}


def _dump(value: dict[str, Any]) -> bytes:
    """As JSON. msgspec is ten times as quick on long texts, and refuses half a surrogate pair, which json escapes."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    return (one for one in (value if isinstance(value, list) else ()) if isinstance(one, dict))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
