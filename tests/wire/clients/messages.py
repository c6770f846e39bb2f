"""What a server that speaks Anthropic's Messages says: a tool use, else the last user text again. Knows no sockets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.wire.clients.responses import called, thirds

Json = dict[str, Any]


def whole(body: Json) -> Json:
    """The answer in one piece."""
    block = _block(body)
    stop = "tool_use" if block["type"] == "tool_use" else "end_turn"
    usage = {"input_tokens": 3, "output_tokens": 4, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    return {
        "id": "msg_1", "type": "message", "role": "assistant", "model": body["model"], "content": [block], "stop_reason": stop,
        "stop_sequence": None, "usage": usage,
    }  # fmt: skip


def events(body: Json) -> Iterator[Json]:
    """The same as a stream: the block opens empty, grows by deltas and closes."""
    said = whole(body)
    (block,) = said["content"]
    opening = {**said, "content": [], "stop_reason": None, "usage": {**said["usage"], "output_tokens": 1}}
    yield {"type": "message_start", "message": opening}
    yield {"type": "ping"}
    if block["type"] == "text":
        empty, deltas = {**block, "text": ""}, [{"type": "text_delta", "text": piece} for piece in thirds(block["text"])]
    else:
        empty, written = {**block, "input": {}}, json.dumps(block["input"], ensure_ascii=False)
        deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in ("", *thirds(written))]
    yield {"type": "content_block_start", "index": 0, "content_block": empty}
    for delta in deltas:
        yield {"type": "content_block_delta", "index": 0, "delta": delta}
    yield {"type": "content_block_stop", "index": 0}
    yield {
        "type": "message_delta",
        "delta": {"stop_reason": said["stop_reason"], "stop_sequence": None},
        "usage": {"output_tokens": 4},
    }
    yield {"type": "message_stop"}


def _block(body: Json) -> Json:
    # Some put notes of role `system` behind what the user said.
    last = next(message for message in reversed(body["messages"]) if message["role"] == "user")
    parts = [{"type": "text", "text": last["content"]}] if isinstance(last["content"], str) else last["content"]
    for part in parts:
        if part["type"] == "tool_result":
            told = part["content"]
            return _text(told if isinstance(told, str) else "".join(one.get("text", "") for one in told))
    texts = [part["text"] for part in parts if part["type"] == "text"]
    asked = texts[-1] if texts else ""
    if call := called(asked, [tool["name"] for tool in body.get("tools") or ()]):
        return {"type": "tool_use", "id": "toolu_1", "name": call.name, "input": json.loads(call.arguments)}
    return _text(asked)


def _text(text: str) -> Json:
    return {"type": "text", "text": text}
