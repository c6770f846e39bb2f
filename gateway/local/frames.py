"""What front workers and a model worker say to each other. One connection carries many calls, matched by `id`."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import Struct


class Generate(Struct, frozen=True, tag="generate"):
    """Front → worker: start one answer."""

    id: int
    messages: list[dict[str, object]] | None = None
    """Chat: OpenAI messages whose contents are strings; the model's own chat template is applied."""
    prompt: str | None = None
    """Plain completion: the text to continue. Exactly one of `messages` and `prompt` is set."""
    max_tokens: int | None = None
    """None: as many as the context leaves room for."""
    temperature: float = 1.0
    """0 means greedy."""
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None


class Cancel(Struct, frozen=True, tag="cancel"):
    """Front → worker: the reader of this answer has gone. The row is free within one step; no frame answers this."""

    id: int


class Hello(Struct, frozen=True, tag="hello"):
    """Worker → front, first on every connection (id 0): what is loaded."""

    model: str
    quantization: str
    device: str
    context: int
    """Most tokens of prompt and answer together."""
    max_rows: int
    id: int = 0


class Started(Struct, frozen=True, tag="started"):
    """Worker → front: the prompt has been read and the first token is on its way."""

    id: int
    prompt_tokens: int


class Delta(Struct, frozen=True, tag="delta"):
    """Worker → front: more text. `n_tokens` may be above 1 when earlier tokens held back half a character or a stop prefix."""

    id: int
    text: str
    n_tokens: int


class Finished(Struct, frozen=True, tag="finished"):
    """Worker → front: the answer is whole. Deltas' `n_tokens` and `tail_tokens` sum to `completion_tokens`."""

    id: int
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    tail_tokens: int = 0
    """Tokens that produced no text: cut off by a stop string, or half a character at the end. The end mark is not counted."""


class Failed(Struct, frozen=True, tag="failed"):
    """Worker → front: this call ends without an answer; the worker lives on. The message never holds request text."""

    id: int
    kind: Literal["invalid", "context_length", "overloaded", "internal"]
    message: str
    param: str | None = None


ToWorker = Generate | Cancel
FromWorker = Hello | Started | Delta | Finished | Failed


def to_worker_decoder() -> msgspec.msgpack.Decoder[ToWorker]:
    """Reads what a front worker sends."""
    return msgspec.msgpack.Decoder(ToWorker)


def from_worker_decoder() -> msgspec.msgpack.Decoder[FromWorker]:
    """Reads what the model worker sends."""
    return msgspec.msgpack.Decoder(FromWorker)
