"""Local models as an upstream: OpenAI's requests in, the model worker's frames out, OpenAI's answers back.

Knows the wire's answer shapes and the workers' frames; nothing of torch, policy or HTTP.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import struct
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import suppress
from typing import Any, Protocol

import msgspec

from gateway import sse, wire
from gateway.cache.frames import Embedded
from gateway.errors import ApiError, GatewayError, InvalidRequest, UpstreamFailed, WorkerGone
from gateway.frames import Client
from gateway.local.frames import Cancel, Delta, Failed, Finished, Hello, Started
from gateway.local.parameters import CHAT, COMPLETIONS, EMBEDDINGS, Asked, Texts, parameters_table, read_embeddings, read_text
from gateway.upstreams import Answer, Call, Piece

__all__ = ["Embedder", "LocalUpstream", "parameters_table"]

_OVERLOADED_RETRY_S = 1.0
"""A row is free again within a few answers; nobody knows better."""

_THREAD_TEXTS = 4
"""Above this many texts the vectors are written as JSON in a thread: each costs the loop about a tenth of a millisecond."""

_OBFUSCATION = 32
"""With obfuscation, what an event carries is padded to a multiple of this many characters."""

_encode = msgspec.json.encode


class Embedder(Protocol):
    """Something that turns texts into vectors, in practice the cache worker."""

    async def embed(self, texts: list[str]) -> Embedded:
        """Vectors in the order of the texts. Raises WorkerGone, UpstreamFailed or ApiError."""
        ...


class LocalUpstream:
    """The models of this machine, each behind its worker's socket, and optionally an embedder."""

    def __init__(self, name: str, models: dict[str, Client], embedder: Embedder | None = None) -> None:
        self.name = name
        self._models = models
        self._embedder = embedder
        self._hellos: dict[str, Hello] = {}
        self._problems: dict[str, str] = {}

    def set_hello(self, model: str, hello: Hello) -> None:
        """A worker has connected and said what it holds; wire this to its client's `on_news`."""
        self._hellos[model] = hello
        self._problems.pop(model, None)

    def set_problem(self, model: str, text: str) -> None:
        """Why the worker of `model` is not there, in an operator's words; shown until it connects. Empty: nothing known."""
        self._problems[model] = text

    def unavailable(self, model: str | None = None) -> str | None:
        """Why nothing can be sent now (to `model`, when it is named), or None."""
        if model in self._models:
            return self._why(model)
        if self._embedder is not None:
            return None
        reasons = [self._why(name) for name in self._models]
        if None in reasons:
            return None
        return "; ".join(reason for reason in reasons if reason) or f"{self.name} has no local models"

    def _why(self, model: str) -> str | None:
        if self._models[model].connected:
            return None
        return f"model worker of {model} is not ready: {self._problems.get(model) or 'not connected'}"

    async def send(self, call: Call) -> Answer:
        """Start the answer; returns when its first token is on its way. Raises InvalidRequest or UpstreamFailed."""
        data = wire.parse(call.body)
        if call.endpoint == EMBEDDINGS:
            return await self._embed(call, read_embeddings(data))
        if call.endpoint not in (CHAT, COMPLETIONS):
            raise InvalidRequest(f"Local models do not serve {call.endpoint}.", code="unsupported_endpoint")
        asked = read_text(call.endpoint, data)
        client = self._models.get(call.model)
        if client is None:
            known = ", ".join(sorted(self._models)) or "none"
            raise UpstreamFailed("connect", f"{self.name} has no local model {call.model!r}; it has: {known}")
        reason = self._why(call.model)
        if reason is not None:
            raise UpstreamFailed("connect", reason)
        shape = _Shape(call, asked, self._fingerprint(call.model))
        return await _start(client, asked, shape, stream=call.stream)

    async def aclose(self) -> None:
        """Nothing of its own to close: whoever runs the clients stops them."""

    def _fingerprint(self, model: str) -> str:
        hello = self._hellos.get(model)
        return f"fp_{model}_{hello.quantization}_{hello.device}" if hello else f"fp_{model}"

    async def _embed(self, call: Call, asked: Texts) -> Answer:
        if self._embedder is None:
            raise UpstreamFailed("connect", f"{self.name} has no embedder; set one in the configuration")
        try:
            found = await self._embedder.embed(asked.texts)
        except (ApiError, UpstreamFailed):
            raise
        except WorkerGone as error:
            raise UpstreamFailed("connect", f"the cache worker is not ready: {error}") from None
        except GatewayError as error:
            raise UpstreamFailed("internal", str(error)) from None
        if asked.dimensions not in (None, found.dimensions):
            said = f"This model's embeddings have {found.dimensions} dimensions; leave 'dimensions' out."
            raise InvalidRequest(said, param="dimensions", code="unsupported_value")
        if len(asked.texts) > _THREAD_TEXTS:
            return _Whole(await asyncio.to_thread(_embeddings_body, call.model, asked, found))
        return _Whole(_embeddings_body(call.model, asked, found))


class _Whole:
    """An answer that is already complete."""

    status = 200
    headers: Sequence[tuple[str, str]] = (("content-type", "application/json"),)

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[Piece]:
        yield Piece(self._body, "", 0)

    async def aclose(self) -> None:
        """Nothing is held."""


class _Shape:
    """Writes one answer's JSON. Heads and tails of its chunks are encoded once, because a chunk is made for every token."""

    def __init__(self, call: Call, asked: Asked, fingerprint: str) -> None:
        self.chat = call.endpoint == CHAT
        self.include_usage = asked.include_usage
        self._obfuscate = asked.include_obfuscation
        self._base: dict[str, Any] = {
            "id": ("chatcmpl-" if self.chat else "cmpl-") + secrets.token_hex(14),
            "object": "text_completion",
            "created": int(time.time()),
            "model": call.model,
            "system_fingerprint": fingerprint,
        }
        before, after = ('"delta":{"content":', "}") if self.chat else ('"text":', "")
        self._head = _encode(self._chunk_base())[:-1] + b',"choices":[{"index":0,' + before.encode()
        self._tail = (
            after.encode() + b',"logprobs":null,"finish_reason":null}]' + (b',"usage":null' if self.include_usage else b"")
        )

    def opening(self) -> bytes:
        """The first event: who speaks. Plain completions have none."""
        if not self.chat:
            return b""
        return self._event({"delta": {"role": "assistant", "content": "", "refusal": None}}, None)

    def delta(self, text: str) -> bytes:
        """One event of text."""
        body = self._head + _encode(text) + self._tail
        if self._obfuscate:
            padding = secrets.token_urlsafe(_OBFUSCATION)[: _OBFUSCATION - len(text) % _OBFUSCATION]
            body += b',"obfuscation":"' + padding.encode() + b'"'
        return sse.event_of(body + b"}")

    def closing(self, reason: str) -> bytes:
        """The event that ends the text."""
        return self._event({"delta": {}} if self.chat else {"text": ""}, reason)

    def usage(self, finished: Finished) -> bytes:
        """The extra event that was asked for by `include_usage`."""
        return sse.event_of(_encode(self._chunk_base() | {"choices": [], "usage": _usage(finished)}))

    def whole(self, text: str, finished: Finished) -> bytes:
        """The complete answer of a request that does not stream."""
        said: dict[str, Any] = (
            {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
        )
        choice = {"index": 0} | said | {"logprobs": None, "finish_reason": finished.finish_reason}
        head = self._base | ({"object": "chat.completion"} if self.chat else {})
        return _encode(head | {"choices": [choice], "usage": _usage(finished)})

    def _chunk_base(self) -> dict[str, Any]:
        return self._base | ({"object": "chat.completion.chunk"} if self.chat else {})

    def _event(self, said: dict[str, Any], reason: str | None) -> bytes:
        choice = {"index": 0} | said | {"logprobs": None, "finish_reason": reason}
        usage = {"usage": None} if self.include_usage else {}
        return sse.event_of(_encode(self._chunk_base() | {"choices": [choice]} | usage))


async def _start(client: Client, asked: Asked, shape: _Shape, *, stream: bool) -> Answer:
    """Send the call and wait for Started. However the wait ends otherwise, the worker's row is given back."""
    number = client.next_id()
    frames = client.stream(msgspec.structs.replace(asked.generate, id=number))
    answer = _Generated(client, number, frames, shape, stream=stream)
    try:
        first = await anext(frames)
    except WorkerGone as error:
        await answer.aclose()
        raise UpstreamFailed("cut", f"the model worker left before the answer began: {error}") from None
    except BaseException:
        await answer.aclose()
        raise
    if isinstance(first, Started):
        return answer
    await answer.aclose()
    raise _refusal(first)


class _Generated:
    """An answer that the worker is making. Read by one task; any task may close it."""

    status = 200

    def __init__(self, client: Client, number: int, frames: AsyncGenerator[Any, None], shape: _Shape, *, stream: bool) -> None:
        kind = "text/event-stream; charset=utf-8" if stream else "application/json"
        self.headers: Sequence[tuple[str, str]] = (("content-type", kind),)
        self._client = client
        self._number = number
        self._frames = frames
        self._shape = shape
        self._stream = stream
        self._ended = False

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self._streamed() if self._stream else self._collected()

    async def aclose(self) -> None:
        """Tell the worker to stop, unless it has; a task that still reads sees the end of the answer."""
        if not self._ended:
            self._ended = True
            with suppress(WorkerGone):
                self._client.send(Cancel(self._number))
        self._client.hang_up(self._number)
        # While a task still reads, the generator cannot be closed; hang_up has just ended that task's wait.
        with suppress(RuntimeError):
            await self._frames.aclose()

    async def _streamed(self) -> AsyncIterator[Piece]:
        shape = self._shape
        if shape.chat:
            yield Piece(shape.opening(), "", 0)
        async for frame in self._read():
            if isinstance(frame, Delta):
                yield Piece(shape.delta(frame.text), frame.text, frame.n_tokens)
                continue
            yield Piece(shape.closing(frame.finish_reason), "", frame.tail_tokens)
            if shape.include_usage:
                yield Piece(shape.usage(frame), "", 0)
            yield Piece(sse.DONE, "", 0)

    async def _collected(self) -> AsyncIterator[Piece]:
        texts: list[str] = []
        async for frame in self._read():
            if isinstance(frame, Delta):
                texts.append(frame.text)
                yield Piece(b"", frame.text, frame.n_tokens)
                continue
            if frame.tail_tokens:
                yield Piece(b"", "", frame.tail_tokens)
            yield Piece(self._shape.whole("".join(texts), frame), "", 0)

    async def _read(self) -> AsyncIterator[Delta | Finished]:
        """Deltas, then Finished. Raises UpstreamFailed when the worker fails or leaves; ends early when we were closed."""
        try:
            async for frame in self._frames:
                if isinstance(frame, Delta):
                    yield frame
                    continue
                self._ended = True
                if isinstance(frame, Finished):
                    yield frame
                    return
                raise _refusal(frame)
        except WorkerGone as error:
            if self._ended:
                return
            self._ended = True
            raise UpstreamFailed("cut", f"the model worker left in the middle of the answer: {error}") from None


def _refusal(frame: Any) -> InvalidRequest | UpstreamFailed:
    """What a Failed frame means to the pipeline."""
    if not isinstance(frame, Failed):
        return UpstreamFailed("internal", f"the model worker sent {type(frame).__name__} where an answer should begin")
    match frame.kind:
        case "invalid":
            return InvalidRequest(frame.message, param=frame.param)
        case "context_length":
            return InvalidRequest(frame.message, param=frame.param, code="context_length_exceeded")
        case "overloaded":
            return UpstreamFailed("overloaded", frame.message, retry_after_s=_OVERLOADED_RETRY_S)
        case "internal":
            return UpstreamFailed("internal", frame.message)


def _usage(finished: Finished) -> dict[str, int]:
    return {
        "prompt_tokens": finished.prompt_tokens,
        "completion_tokens": finished.completion_tokens,
        "total_tokens": finished.prompt_tokens + finished.completion_tokens,
    }


def _embeddings_body(model: str, asked: Texts, found: Embedded) -> bytes:
    size = found.dimensions * 4
    rows = [found.vectors[start : start + size] for start in range(0, len(found.vectors), size)]
    data = [
        {"object": "embedding", "index": index, "embedding": _vector(row, as_base64=asked.base64)}
        for index, row in enumerate(rows)
    ]
    usage = {"prompt_tokens": found.n_tokens, "total_tokens": found.n_tokens}
    return _encode({"object": "list", "data": data, "model": model, "usage": usage})


def _vector(row: bytes, *, as_base64: bool) -> str | tuple[float, ...]:
    return base64.b64encode(row).decode() if as_base64 else struct.unpack(f"<{len(row) // 4}f", row)
