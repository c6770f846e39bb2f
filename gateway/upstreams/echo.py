"""An upstream that answers with the last user text, word by word: deterministic, local, for tests. Never a model.

Of an upload it says how many bytes came.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import struct
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from msgspec.structs import replace

from gateway import sse
from gateway.config import EchoUpstream
from gateway.errors import UpstreamFailed
from gateway.upstreams import Call, Piece

_WORDS = re.compile(r"\S+\s*|\s+")


class Echo:
    """Answers what it was asked; fails the way its config says."""

    def __init__(self, name: str, config: EchoUpstream) -> None:
        self.name = name
        self._config = config
        self.open = 0
        """Answers handed out and not yet closed."""
        self.calls: list[Call] = []
        """The last hundred calls, newest last."""

    def unavailable(self, model: str | None = None) -> None:
        """See `Upstream.unavailable`."""

    async def send(self, call: Call) -> EchoAnswer:
        """See `Upstream.send`."""
        self.calls = [*self.calls[-99:], call]
        fail = self._config.fail
        if fail == "connect":
            raise UpstreamFailed("connect", "refuses on purpose")
        if fail == "hang":
            await asyncio.Event().wait()
        if call.upload is not None:
            async with aclosing(call.upload.parts()) as parts:
                call = replace(call, body=json.dumps({"prompt": f"{sum([len(part) async for part in parts])} bytes"}).encode())
        return EchoAnswer(self, call, self._config)

    async def aclose(self) -> None:
        """See `Upstream.aclose`."""


class EchoAnswer:
    """One answer, made as it is read."""

    def __init__(self, upstream: Echo, call: Call, config: EchoUpstream) -> None:
        self._upstream = upstream
        self._call = call
        self._config = config
        self._closed = False
        upstream.open += 1
        self.status = 500 if config.fail == "status" else 200
        streams = call.stream and self.status == 200
        self.headers = [("content-type", "text/event-stream; charset=utf-8" if streams else "application/json")]

    async def __aiter__(self) -> AsyncIterator[Piece]:
        body = json.loads(self._call.body)
        if self.status != 200:
            error = {"message": "echo fails on purpose", "type": "server_error", "param": None, "code": None}
            yield Piece(json.dumps({"error": error}).encode())
        elif self._call.endpoint == "embeddings":
            yield Piece(_dump(_embeddings(body)))
        elif self._call.stream:
            async for piece in self._stream(body):
                yield piece
        else:
            words = _words(body)
            for _ in words:
                await asyncio.sleep(self._config.ms_per_token / 1000)
            if self._config.fail in {"first", "midway"}:
                raise UpstreamFailed("cut", "cut on purpose")
            yield Piece(_dump(self._whole(body, words)))

    async def _stream(self, body: dict[str, Any]) -> AsyncIterator[Piece]:
        if self._config.fail == "first":
            yield Piece(
                sse.event_of(b'{"error":{"message":"echo fails on purpose","type":"server_error","param":null,"code":null}}')
            )
            return
        is_chat = self._call.endpoint == "chat/completions"
        include_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        words = _words(body)
        parts: list[dict[str, Any]] = [{"delta": {"role": "assistant", "content": ""}}] if is_chat else []
        parts += [{"delta": {"content": word}} if is_chat else {"text": word} for word in words]
        parts.append({"delta": {}} if is_chat else {"text": ""})
        for index, part in enumerate(parts):
            if self._config.fail == "midway" and index == min(2, len(parts) - 1):
                raise UpstreamFailed("cut", "cut on purpose")
            finish = _finish_reason(body) if index == len(parts) - 1 else None
            choice = {"index": 0, **part, "logprobs": None, "finish_reason": finish}
            null_usage = {"usage": None} if include_usage else {}
            yield Piece(sse.event_of(_dump({**self._head(stream=True), "choices": [choice], **null_usage})))
            await asyncio.sleep(self._config.ms_per_token / 1000)
        if include_usage:
            yield Piece(sse.event_of(_dump({**self._head(stream=True), "choices": [], "usage": _usage(body, words)})))
        yield Piece(sse.DONE)

    def _head(self, *, stream: bool) -> dict[str, Any]:
        chat = self._call.endpoint == "chat/completions"
        kind = ("chat.completion.chunk" if stream else "chat.completion") if chat else "text_completion"
        return {"id": f"echo-{self._call.request_id}", "object": kind, "created": 0, "model": self._call.model}

    def _whole(self, body: dict[str, Any], words: list[str]) -> dict[str, Any]:
        text = "".join(words)
        is_chat = self._call.endpoint == "chat/completions"
        said = {"message": {"role": "assistant", "content": text, "refusal": None}} if is_chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": _finish_reason(body)}
        return {**self._head(stream=False), "choices": [choice], "usage": _usage(body, words)}

    async def aclose(self) -> None:
        """See `Answer.aclose`."""
        if not self._closed:
            self._closed = True
            self._upstream.open -= 1


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _asked(body: dict[str, Any]) -> str:
    if "prompt" in body:
        return body["prompt"] if isinstance(body["prompt"], str) else json.dumps(body["prompt"])
    users = [message for message in body.get("messages", ()) if message.get("role") == "user"]
    content = users[-1].get("content") if users else ""
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def _words(body: dict[str, Any]) -> list[str]:
    words = _WORDS.findall(_asked(body)) or ["(empty)"]
    return words[: _limit(body)]


def _limit(body: dict[str, Any]) -> int | None:
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    return max(0, limit) if limit else None


def _finish_reason(body: dict[str, Any]) -> str:
    limit = _limit(body)
    return "length" if limit is not None and len(_WORDS.findall(_asked(body))) > limit else "stop"


def _usage(body: dict[str, Any], words: list[str]) -> dict[str, int]:
    asked = len(_WORDS.findall(_asked(body)))
    return {"prompt_tokens": asked, "completion_tokens": len(words), "total_tokens": asked + len(words)}


def _embeddings(body: dict[str, Any]) -> dict[str, Any]:
    texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
    vectors = [(float(len(str(text))), 1.0) for text in texts]
    packed = body.get("encoding_format") == "base64"
    rows = [
        {"object": "embedding", "index": index, "embedding": _base64(vector) if packed else vector}
        for index, vector in enumerate(vectors)
    ]
    return {
        "object": "list",
        "data": rows,
        "model": body.get("model"),
        "usage": {"prompt_tokens": len(texts), "total_tokens": len(texts)},
    }


def _base64(vector: tuple[float, ...]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
