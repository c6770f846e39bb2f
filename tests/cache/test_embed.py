"""Embedders."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.cache import embed
from gateway.errors import ConfigError


@pytest.fixture(scope="module")
def embedder(tiny):
    return embed.load(tiny)


def test_a_long_text_is_refused_with_both_numbers(embedder):
    """Nothing is cut silently: the message names the text's place, its tokens and the most that are read."""
    with pytest.raises(embed.TooLong, match=r"input\[1\] has 201 tokens; this embedder reads at most 200"):
        embedder.embed(["tea", "tea " * 201])


def test_a_changed_model_file_is_refused(tiny, tmp_path):
    """Weights that are not the ones described are not loaded, and the message says how to mend it."""
    for file in tiny.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with (tmp_path / "model.onnx").open("ab") as model:
        model.write(b"x")
    with pytest.raises(ConfigError, match=r"SHA-256 is not the one in embedder\.json; export it again"):
        embed.load(tmp_path)


def test_a_directory_without_a_model_is_refused(tmp_path):
    """A directory that holds no embedder is named in the refusal."""
    with pytest.raises(ConfigError, match="holds neither"):
        embed.load(tmp_path)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), min_size=1, max_size=6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_a_text_has_one_vector_whatever_stands_beside_it(embedder, texts):
    """A text's vector is bit for bit the same alone and among others, and has length 1 or, for an empty text, 0."""
    texts = [*texts, "tea"]
    together, n_tokens = embedder.embed(texts)
    alone = np.stack([embedder.embed([text])[0][0] for text in texts])
    assert together.tobytes() == alone.tobytes()
    assert n_tokens == sum(len(embedder.tokens(text)) for text in texts)
    assert all(np.isclose(length, 1, atol=1e-5) or length == 0 for length in np.linalg.norm(together, axis=1))


def test_the_worker_starts_without_torch():
    """Neither torch nor transformers nor Litestar is imported by the worker, nor FAISS or numpy by the front's modules."""
    worker = "import sys, gateway.cache.worker, onnxruntime; print({'torch', 'transformers', 'litestar'} & set(sys.modules))"
    front = (
        "import sys, gateway.cache.key, gateway.cache.tiers, gateway.cache.redis, gateway.cache.semantic, gateway.cache.off;"
        "print({'torch', 'faiss', 'numpy', 'onnxruntime', 'tokenizers'} & set(sys.modules))"
    )
    for code in (worker, front):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
        assert done.stdout.strip() == "set()"
