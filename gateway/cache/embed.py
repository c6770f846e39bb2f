"""Embedders: texts in, L2-normalised vectors out. Knows nothing of caches, scopes or sockets.

An exported directory runs on onnxruntime and tokenizers alone; any other sentence-transformers directory is the fallback.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from gateway.errors import ConfigError, GatewayError, Problem

MODEL = "model.onnx"
TOKENIZER = "tokenizer.json"
DESCRIPTION = "embedder.json"

Vectors = npt.NDArray[np.float32]
"""Shape (n, dimensions), one row a text, each of length 1; a text without any token is all zeros."""


class Description(Struct, frozen=True):
    """What `embedder.json` says about the model beside it."""

    dimensions: int
    max_tokens: int
    """With the special tokens."""
    pooling: Literal["mean"]
    normalise: bool
    """Whether the original's vectors have length 1; ours always have."""
    quantisation: str
    source: str
    sha256: str
    """Of model.onnx; checked when it is loaded, and part of the embedder's identity."""


class TooLong(GatewayError):
    """A text has more tokens than the embedder reads. The message names the text's place and both numbers."""

    def __init__(self, index: int, n_tokens: int, max_tokens: int) -> None:
        super().__init__(f"input[{index}] has {n_tokens} tokens; this embedder reads at most {max_tokens}")
        self.n_tokens = n_tokens
        self.max_tokens = max_tokens


class Embedder(Protocol):
    """A loaded model. Used from one thread; a call takes milliseconds for each text."""

    dimensions: int
    max_tokens: int
    identity: str
    """Changes whenever vectors of before and after cannot be compared."""

    def tokens(self, text: str) -> list[int]:
        """Token ids, special ones included, never cut."""
        ...

    def embed(self, texts: Sequence[str]) -> tuple[Vectors, int]:
        """One vector a text, in order, and the tokens of all texts together. Raises TooLong; nothing is cut silently."""
        ...


def load(directory: Path) -> Embedder:
    """The embedder in `directory`. Raises ConfigError when there is none that can be used."""
    if (directory / MODEL).exists():
        return OnnxEmbedder(directory)
    if (directory / "modules.json").exists():
        return TorchEmbedder(directory)
    raise ConfigError([Problem(str(directory), f"holds neither {MODEL} nor a sentence-transformers model")])


class OnnxEmbedder:
    """An exported embedder on onnxruntime, one thread."""

    def __init__(self, directory: Path) -> None:
        import onnxruntime  # noqa: PLC0415 - heavy; the other embedder must not need it
        from tokenizers import Tokenizer  # noqa: PLC0415 - as above

        described = _read_description(directory)
        self.dimensions = described.dimensions
        self.max_tokens = described.max_tokens
        self.identity = f"{described.sha256}/{described.quantisation}/{described.dimensions}"
        self._tokenizer: Any = Tokenizer.from_file(str(directory / TOKENIZER))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(directory / MODEL), options, providers=["CPUExecutionProvider"])

    def tokens(self, text: str) -> list[int]:
        """Token ids, special ones included, never cut."""
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def embed(self, texts: Sequence[str]) -> tuple[Vectors, int]:
        """One vector a text, in order, and the tokens of all texts together. Raises TooLong."""
        rows = [self.tokens(text) for text in texts]
        _refuse_long(rows, self.max_tokens)
        vectors = np.empty((len(rows), self.dimensions), dtype=np.float32)
        # One text a run. int8 activations are scaled over the whole batch, so beside others a text's vector changes (cosine
        # down to .983), and padding makes 16 short texts together a half slower than one by one (docs/cache.md).
        for at, ids in enumerate(rows):
            vectors[at] = self._embed_one(ids)
        return vectors, sum(map(len, rows))

    def _embed_one(self, ids: list[int]) -> Vectors:
        if not ids:
            return np.zeros(self.dimensions, dtype=np.float32)
        feed = {"input_ids": np.array([ids], dtype=np.int64), "attention_mask": np.ones((1, len(ids)), dtype=np.int64)}
        hidden = self._session.run(["last_hidden_state"], feed)[0][0]
        mean: Vectors = hidden.mean(axis=0)
        return mean / max(float(np.linalg.norm(mean)), 1e-12)


class TorchEmbedder:
    """Any sentence-transformers directory, in torch: slower, and it needs `sentence-transformers` in the worker."""

    def __init__(self, directory: Path) -> None:
        import torch  # noqa: PLC0415 - only this fallback loads torch
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - as above

        torch.set_num_threads(1)
        self._model: Any = SentenceTransformer(str(directory), device="cpu", local_files_only=True)
        self.dimensions = int(self._model.get_embedding_dimension())
        self.max_tokens = int(self._model.max_seq_length)
        self.identity = f"{_digest_of_weights(directory)}/float32/{self.dimensions}"

    def tokens(self, text: str) -> list[int]:
        """Token ids, special ones included, never cut."""
        ids: list[int] = self._model.tokenizer(text, truncation=False, verbose=False)["input_ids"]
        return ids

    def embed(self, texts: Sequence[str]) -> tuple[Vectors, int]:
        """One vector a text, in order, and the tokens of all texts together. Raises TooLong."""
        rows = [self.tokens(text) for text in texts]
        _refuse_long(rows, self.max_tokens)
        vectors: Vectors = self._model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        return vectors.astype(np.float32, copy=False).reshape(len(texts), self.dimensions), sum(map(len, rows))


def _read_description(directory: Path) -> Description:
    """The description, once it is sure that model.onnx is the one described."""
    path = directory / DESCRIPTION
    try:
        described = msgspec.json.decode(path.read_bytes(), type=Description)
        found = hashlib.sha256((directory / MODEL).read_bytes()).hexdigest()
        (directory / TOKENIZER).stat()
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError([Problem(str(path), f"not an exported embedder: {error}; export it again")]) from None
    if found != described.sha256:
        raise ConfigError([Problem(str(directory / MODEL), f"SHA-256 is not the one in {DESCRIPTION}; export it again")])
    return described


def _refuse_long(rows: Sequence[Sequence[int]], max_tokens: int) -> None:
    for index, ids in enumerate(rows):
        if len(ids) > max_tokens:
            raise TooLong(index, len(ids), max_tokens)


def _digest_of_weights(directory: Path) -> str:
    """SHA-256 over every weight file below the directory, in name order."""
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        if path.suffix in {".safetensors", ".bin"}:
            digest.update(path.read_bytes())
    return digest.hexdigest()
