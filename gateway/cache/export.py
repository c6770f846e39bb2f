"""Turn a sentence-transformers directory into what the cache worker runs: int8 ONNX, tokenizer, description.

Knows nothing of where weights come from or where results are kept. The only module here that imports torch; it runs once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from gateway.cache.embed import DESCRIPTION, MODEL, TOKENIZER, Description, OnnxEmbedder
from gateway.errors import ConfigError, Problem
from gateway.files import make_private

MIN_COSINE = 0.98
"""Every sentence of the check must come out at least this near to the torch original."""

_SENTENCES = (
    "How do I reset my password?",
    "The invoice of March was paid twice; please refund one of the payments.",
    "What is the boiling point of water at 2,000 metres above sea level?",
    "Schreibe eine kurze Zusammenfassung des Berichts.",
    "def mean(values): return sum(values) / len(values)",
    "Who wrote Dune?",
)


def export_embedder(source: Path, target: Path, progress: Callable[[str], None]) -> None:
    """Write `target` with model.onnx (int8 per channel), tokenizer.json and embedder.json made from `source`.

    `source` is a sentence-transformers directory with mean pooling; `progress` is told each step in a few words. `target`
    appears whole or not at all. Raises ConfigError when the directory is not one, or when the result differs from the
    original by more than `MIN_COSINE` allows.
    """
    max_tokens, normalise = _read_source(source)
    make_private(target.parent)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        progress("loading the original")
        network, dimensions = _load_network(source)
        progress("exporting to ONNX")
        _export(network, Path(scratch) / "float.onnx")
        progress("quantising to int8")
        _quantise(Path(scratch) / "float.onnx", made / MODEL)
        shutil.copyfile(source / TOKENIZER, made / TOKENIZER)
        described = Description(
            dimensions=dimensions,
            max_tokens=max_tokens,
            pooling="mean",
            normalise=normalise,
            quantisation="int8",
            source=source.name,
            sha256=hashlib.sha256((made / MODEL).read_bytes()).hexdigest(),
        )
        (made / DESCRIPTION).write_bytes(msgspec.json.format(msgspec.json.encode(described), indent=2) + b"\n")
        progress("comparing with the original")
        worst = _compare(network, made)
        if worst < MIN_COSINE:
            raise ConfigError([Problem(str(source), f"int8 export differs too much: cosine {worst:.3f}, {MIN_COSINE} is needed")])
        _put_in_place(made, target)
    progress(f"done: cosine to the original is {worst:.4f} or better")


def _read_source(source: Path) -> tuple[int, bool]:
    """The longest text in tokens, and whether the original normalises. Raises ConfigError for what we cannot export."""
    try:
        modules = json.loads((source / "modules.json").read_bytes())
        pooling = json.loads((source / "1_Pooling" / "config.json").read_bytes())
        max_tokens = json.loads((source / "sentence_bert_config.json").read_bytes())["max_seq_length"]
        (source / TOKENIZER).stat()
    except (OSError, ValueError, KeyError) as error:
        message = f"not a sentence-transformers directory that can be exported: {error}"
        raise ConfigError([Problem(str(source), message)]) from None
    if not pooling.get("pooling_mode_mean_tokens") and pooling.get("pooling_mode") != "mean":
        message = "only mean pooling is exported; use the directory itself, sentence-transformers will load it"
        raise ConfigError([Problem(str(source / "1_Pooling" / "config.json"), message)])
    return int(max_tokens), any(str(module.get("type", "")).endswith("Normalize") for module in modules)


def _load_network(source: Path) -> tuple[Any, int]:
    import torch  # noqa: PLC0415 - heavy, and only the export needs it
    from transformers import AutoModel  # noqa: PLC0415 - as above
    from transformers.utils.logging import disable_progress_bar  # noqa: PLC0415 - as above

    class LastHidden(torch.nn.Module):  # type: ignore[misc] # torch is not type-checked here
        """Token vectors of a BERT-like network, as a function of two tensors."""

        def __init__(self, network: Any) -> None:
            super().__init__()
            self.network = network

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.network(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    disable_progress_bar()
    network = AutoModel.from_pretrained(source, dtype=torch.float32, local_files_only=True).eval()
    return LastHidden(network).eval(), int(network.config.hidden_size)


def _export(network: Any, path: Path) -> None:
    import torch  # noqa: PLC0415 - heavy, and only the export needs it

    rows, tokens = torch.export.Dim("rows", min=1, max=4096), torch.export.Dim("tokens", min=2, max=512)
    ids = torch.randint(5, 100, (2, 7))
    with _quiet(), torch.no_grad():
        torch.onnx.export(
            network,
            (ids, torch.ones_like(ids)),
            str(path),
            dynamo=True,
            input_names=["input_ids", "attention_mask"],
            output_names=["last_hidden_state"],
            dynamic_shapes={"input_ids": {0: rows, 1: tokens}, "attention_mask": {0: rows, 1: tokens}},
            external_data=False,
            verbose=False,
        )


def _quantise(source: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415 - pulls in onnx; the worker has no use for it

    with _quiet():
        quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8)


def _compare(network: Any, made: Path) -> float:
    """The lowest cosine over the check's sentences, each alone, as a look-up would embed it."""
    import torch  # noqa: PLC0415 - heavy, and only the export needs it

    embedder = OnnxEmbedder(made)
    cosines = []
    for sentence in _SENTENCES:
        ids = torch.tensor([embedder.tokens(sentence)])
        with torch.no_grad():
            expected = network(ids, torch.ones_like(ids))[0].mean(0).numpy()
        got = embedder.embed([sentence])[0][0]
        cosines.append(float(expected @ got / (np.linalg.norm(expected) * np.linalg.norm(got))))
    return min(cosines)


def _put_in_place(made: Path, target: Path) -> None:
    """Rename into place; an older export of ours is replaced, any other directory is left alone."""
    if target.exists():
        if any(target.iterdir()) and not (target / DESCRIPTION).exists():
            message = "the target holds something that is not an exported embedder; choose another"
            raise ConfigError([Problem(str(target), message)])
        shutil.rmtree(target)
    os.replace(made, target)  # noqa: PTH105 - the same call, and the atomic one


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes on its own internals away from the operator; its errors still come."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
