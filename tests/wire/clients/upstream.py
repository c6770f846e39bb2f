"""A small OpenAI-compatible server for what the echo upstream cannot serve: tool calls, and vectors as base64. Never a model.

With tools it calls the first one, with the last user text as its arguments; after the tool's result it answers with that.
"""

from __future__ import annotations

import base64
import json
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HEAD = {"id": "chatcmpl-1", "created": 1, "model": "scripted"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
VECTOR = (0.25, -1.5, 3.0, 1e-3)


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content or ())


def _said(body: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The answer's message, and its finish reason."""
    last = body["messages"][-1]
    if not body.get("tools") or last["role"] == "tool":
        return {"role": "assistant", "content": _text(last), "refusal": None}, "stop"
    asked = next(message for message in reversed(body["messages"]) if message["role"] == "user")
    function = {"name": body["tools"][0]["function"]["name"], "arguments": _text(asked)}
    calls = [{"id": "call_1", "type": "function", "function": function}]
    return {"role": "assistant", "content": None, "refusal": None, "tool_calls": calls}, "tool_calls"


def _deltas(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Fragments as OpenAI sends them: id and name once, then arguments in pieces that carry the index only."""
    yield {"role": "assistant", "content": None if "tool_calls" in message else ""}
    for index, call in enumerate(message.get("tool_calls", ())):
        function = call["function"]
        yield {"tool_calls": [{"index": index, **call, "function": {"name": function["name"], "arguments": ""}}]}
        for piece in _thirds(function["arguments"]):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}
    for piece in _thirds(message["content"] or ""):
        yield {"content": piece}


def _thirds(text: str) -> Iterator[str]:
    step = max(1, len(text) // 3)
    return (text[at : at + step] for at in range(0, len(text), step))


def _events(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    message, finish = _said(body)
    head = {**HEAD, "object": "chat.completion.chunk"}
    for delta in _deltas(message):
        yield {**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}]}
    yield {**head, "choices": [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": finish}]}
    if (body.get("stream_options") or {}).get("include_usage"):
        yield {**head, "choices": [], "usage": USAGE}


def _embeddings(body: dict[str, Any]) -> dict[str, Any]:
    packed = base64.b64encode(struct.pack(f"<{len(VECTOR)}f", *VECTOR)).decode()
    vector: Any = packed if body.get("encoding_format") == "base64" else list(VECTOR)
    count = len(body["input"]) if isinstance(body["input"], list) and isinstance(body["input"][0], str) else 1
    rows = [{"object": "embedding", "index": index, "embedding": vector} for index in range(count)]
    return {"object": "list", "data": rows, "model": "scripted", "usage": {"prompt_tokens": 3, "total_tokens": 3}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answer one request; streams end with the connection."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path.endswith("/embeddings"):
            self._whole(_embeddings(body))
        elif body.get("stream"):
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("connection", "close")
            self.end_headers()
            for event in _events(body):
                self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            self.wfile.write(b"data: [DONE]\n\n")
            self.close_connection = True
        else:
            message, finish = _said(body)
            choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
            self._whole({**HEAD, "object": "chat.completion", "choices": [choice], "usage": USAGE})

    def _whole(self, answer: dict[str, Any]) -> None:
        said = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def scripted() -> Iterator[str]:
    """The server on a port of its own; gives its base URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
