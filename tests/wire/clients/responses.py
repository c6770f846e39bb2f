"""What a server that speaks OpenAI's Responses says: a function call, else the last user text again. Knows no sockets.

After the API's description: every field is there, events are numbered, and phases come back where they were sent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

Json = dict[str, Any]

USAGE = {
    "input_tokens": 3, "output_tokens": 4, "total_tokens": 7,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0},
}  # fmt: skip
_DEFAULTS: Json = {
    "instructions": None, "tools": [], "tool_choice": "auto", "truncation": "disabled", "parallel_tool_calls": True,
    "text": {"format": {"type": "text"}}, "top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "top_logprobs": 0,
    "temperature": 1.0, "max_output_tokens": None, "max_tool_calls": None, "store": True, "background": False, "metadata": {},
    "safety_identifier": None, "prompt_cache_key": None, "previous_response_id": None,
}  # fmt: skip
"""What a response repeats of its request, and what it says where that said nothing."""


def refusal(path: str, body: Json) -> Json | None:
    """The error of a request that cannot be answered: a model is required everywhere."""
    if body.get("model"):
        return None
    said = f"Missing required parameter: 'model' ({path})."
    return {"error": {"message": said, "type": "invalid_request_error", "param": "model", "code": "missing_required_parameter"}}


def whole(body: Json) -> Json:
    """The Response object."""
    return _response(body, _output(body))


def events(body: Json) -> Iterator[Json]:
    """The same as a stream, without sequence numbers."""
    opening = _response(body, [], "in_progress")
    yield {"type": "response.created", "response": opening}
    yield {"type": "response.in_progress", "response": opening}
    output = _output(body)
    for index, item in enumerate(output):
        yield from _call_events(index, item) if item["type"] == "function_call" else _message_events(index, item)
    yield {"type": "response.completed", "response": _response(body, output)}


def compacted(body: Json) -> Json:
    """The conversation with one opaque item in place of its answers."""
    kept = [_message(index, item["role"], _texts(item)) for index, item in enumerate(_items(body)) if item.get("role") == "user"]
    opaque = {"id": "cmp_1", "type": "compaction", "encrypted_content": "b3BhcXVl"}
    return {"id": "resp_2", "object": "response.compaction", "created_at": 1, "output": [*kept, opaque], "usage": USAGE}


def _items(body: Json) -> list[Json]:
    said = body["input"]
    return [{"type": "message", "role": "user", "content": said}] if isinstance(said, str) else list(said)


def _texts(item: Json) -> str:
    content = item.get("content", "")
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _output(body: Json) -> list[Json]:
    items = _items(body)
    asked = next((_texts(item) for item in reversed(items) if item.get("role") == "user"), "")
    tools = [tool for tool in body.get("tools") or () if tool.get("type") == "function"]
    last = items[-1]
    if last.get("type") == "function_call_output":
        told = last["output"] if isinstance(last["output"], str) else _texts({"content": last["output"]})
        return [_message(0, "assistant", told)]
    if call := called(asked, [tool["name"] for tool in tools]):
        return [{"id": "fc_0", "type": "function_call", "call_id": "call_1", "status": "completed", **call._asdict()}]
    phases = [item["phase"] for item in items if item.get("phase")]
    return [_message(index, "assistant", asked, phase) for index, phase in enumerate(phases or [None])]


def _message(index: int, role: str, text: str, phase: str | None = None) -> Json:
    part: Json = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    if role == "user":
        part = {"type": "input_text", "text": text}
    made = {"id": f"msg_{index}", "type": "message", "role": role, "status": "completed", "content": [part]}
    return {**made, "phase": phase} if phase else made


def _response(body: Json, output: list[Json], status: str = "completed") -> Json:
    done = status == "completed"
    repeated = {name: value if body.get(name) is None else body[name] for name, value in _DEFAULTS.items()}
    repeated["tools"] = [{"strict": False, **tool} for tool in repeated["tools"]]
    return {
        "id": "resp_1", "object": "response", "created_at": 1, "completed_at": 2 if done else None, "status": status,
        "model": body["model"], "output": output, "usage": USAGE if done else None, "error": None, "incomplete_details": None,
        "service_tier": "default", "reasoning": {"effort": None, "summary": None}, **repeated,
    }  # fmt: skip


def _message_events(index: int, item: Json) -> Iterator[Json]:
    part = item["content"][0]
    at = {"item_id": item["id"], "output_index": index, "content_index": 0}
    yield {"type": "response.output_item.added", "output_index": index, "item": {**item, "status": "in_progress", "content": []}}
    yield {"type": "response.content_part.added", **at, "part": {**part, "text": ""}}
    for piece in thirds(part["text"]):
        yield {"type": "response.output_text.delta", **at, "delta": piece, "logprobs": []}
    yield {"type": "response.output_text.done", **at, "text": part["text"], "logprobs": []}
    yield {"type": "response.content_part.done", **at, "part": part}
    yield {"type": "response.output_item.done", "output_index": index, "item": item}


def _call_events(index: int, item: Json) -> Iterator[Json]:
    at = {"item_id": item["id"], "output_index": index}
    yield {
        "type": "response.output_item.added",
        "output_index": index,
        "item": {**item, "status": "in_progress", "arguments": ""},
    }
    for piece in thirds(item["arguments"]):
        yield {"type": "response.function_call_arguments.delta", **at, "delta": piece}
    yield {"type": "response.function_call_arguments.done", **at, "name": item["name"], "arguments": item["arguments"]}
    yield {"type": "response.output_item.done", "output_index": index, "item": item}


class Called(NamedTuple):
    """A tool's name, and its arguments as JSON."""

    name: str
    arguments: str


def called(asked: str, tools: Sequence[str]) -> Called | None:
    """`{"call": NAME, "arguments": {...}}` calls that tool, any other JSON object the first one with itself as arguments."""
    if not tools or not asked.startswith("{"):
        return None
    wanted = json.loads(asked)
    return Called(wanted.get("call", tools[0]), json.dumps(wanted.get("arguments", wanted), ensure_ascii=False))


def thirds(text: str) -> Iterator[str]:
    """A text in about three pieces."""
    step = max(1, len(text) // 3)
    return (text[at : at + step] for at in range(0, len(text), step))
