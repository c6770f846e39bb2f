"""A real, tiny embedder on disk: a table of word vectors as an ONNX graph, with a word tokenizer. Equal bags of words meet."""

import hashlib
import json
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

DIMENSIONS = 32
MAX_TOKENS = 200
SENTENCE = """how do i can reset my password the a please what is capital of france germany convert 5 50 miles to km turn on off
light tell me about tea coffee green black water boil make cup with without sugar one two three four five six seven"""
WORDS = SENTENCE.split()


def build(directory: Path, *, seed: int = 7) -> Path:
    """Write model.onnx, tokenizer.json and embedder.json; words outside WORDS share one vector."""
    directory.mkdir(parents=True, exist_ok=True)
    table = np.random.default_rng(seed).normal(size=(len(WORDS) + 1, DIMENSIONS)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["gathered"]),
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
            helper.make_node("Mul", ["gathered", "wide"], ["last_hidden_state"]),
        ],
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["rows", "tokens"]) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["rows", "tokens", DIMENSIONS])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([2]), "last")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data = model.SerializeToString()
    (directory / "model.onnx").write_bytes(data)
    vocabulary = {"[UNK]": 0} | {word: at for at, word in enumerate(WORDS, 1)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))
    described = {
        "dimensions": DIMENSIONS,
        "max_tokens": MAX_TOKENS,
        "pooling": "mean",
        "normalise": True,
        "quantisation": "float32",
        "source": "tiny",
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    (directory / "embedder.json").write_text(json.dumps(described))
    return directory
