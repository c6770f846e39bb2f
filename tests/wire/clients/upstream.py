"""A small server for what the echo upstream cannot serve: tool calls, base64 vectors, Responses and Messages. Never a model.

It answers with the last user text. When that is a JSON object and there are tools, it calls one (see `called`), and answers
with the tool's result.
"""

from __future__ import annotations

import base64
import json
import struct
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from tests.wire.clients import messages, responses
from tests.wire.clients.responses import called, thirds

HEAD = {"id": "chatcmpl-1", "created": 1, "model": "scripted"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
VECTOR = (0.25, -1.5, 3.0, 1e-3)
JSON, SSE = "application/json", "text/event-stream"
ORIGINAL = b"ada.lovelace@example.org"
"""A request that holds it should have been masked."""


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content or ())


def _said(body: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The answer's message, and its finish reason."""
    said = _text(body["messages"][-1])
    call = called(said, [tool["function"]["name"] for tool in body.get("tools") or ()])
    if call is None or body["messages"][-1]["role"] == "tool":
        return {"role": "assistant", "content": said, "refusal": None}, "stop"
    calls = [{"id": "call_1", "type": "function", "function": {"name": call.name, "arguments": call.arguments}}]
    return {"role": "assistant", "content": None, "refusal": None, "tool_calls": calls}, "tool_calls"


def _deltas(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Fragments as OpenAI sends them: id and name once, then arguments in pieces that carry the index only."""
    yield {"role": "assistant", "content": None if "tool_calls" in message else ""}
    for index, call in enumerate(message.get("tool_calls", ())):
        function = call["function"]
        yield {"tool_calls": [{"index": index, **call, "function": {"name": function["name"], "arguments": ""}}]}
        for piece in thirds(function["arguments"]):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}
    for piece in thirds(message["content"] or ""):
        yield {"content": piece}


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


class Exchange(NamedTuple):
    """One request as it arrived, and what it was answered with."""

    path: str
    body: bytes
    status: int
    answer: bytes


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answer one request; streams end with the connection."""
        sent = self.rfile.read(int(self.headers["content-length"]))
        path = self.path.partition("?")[0].removeprefix("/v1/")
        seen = {"error": {"message": "not masked", "type": "invalid_request_error", "param": None, "code": "not_masked"}}
        status, media, said = (400, JSON, _dump(seen)) if ORIGINAL in sent else _answer(path, json.loads(sent))
        self.server.exchanges.append(Exchange(self.path, sent, status, said))  # type: ignore[attr-defined]  # see `scripted`
        self.send_response(status)
        self.send_header("content-type", media)
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def _answer(path: str, body: dict[str, Any]) -> tuple[int, str, bytes]:
    """Status, media type and bytes."""
    streams = bool(body.get("stream"))
    if path.startswith("responses"):
        if (error := responses.refusal(path, body)) is not None:
            return 400, JSON, _dump(error)
        if path == "responses/compact":
            return 200, JSON, _dump(responses.compacted(body))
        if streams:
            return 200, SSE, _typed({**event, "sequence_number": number} for number, event in enumerate(responses.events(body)))
        return 200, JSON, _dump(responses.whole(body))
    if path == "messages/count_tokens":
        return 200, JSON, _dump({"input_tokens": 3})
    if path == "messages":
        return (200, SSE, _typed(messages.events(body))) if streams else (200, JSON, _dump(messages.whole(body)))
    if path == "embeddings":
        return 200, JSON, _dump(_embeddings(body))
    if streams:
        return 200, SSE, b"".join(b"data: " + data + b"\n\n" for data in (*map(_dump, _events(body)), b"[DONE]"))
    message, finish = _said(body)
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    return 200, JSON, _dump({**HEAD, "object": "chat.completion", "choices": [choice], "usage": USAGE})


def _typed(events: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(f"event: {event['type']}\n".encode() + b"data: " + _dump(event) + b"\n\n" for event in events)


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


class Scripted(NamedTuple):
    """A running server."""

    url: str
    """With `/v1`."""
    exchanges: list[Exchange]
    """All so far."""


@contextmanager
def scripted() -> Iterator[Scripted]:
    """The server on a port of its own."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.exchanges = []  # type: ignore[attr-defined]  # the handler knows nothing but its server
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield Scripted(f"http://127.0.0.1:{server.server_address[1]}/v1", server.exchanges)  # type: ignore[attr-defined]  # as above
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
