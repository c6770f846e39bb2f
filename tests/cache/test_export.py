"""The export of an embedder."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from gateway.cache import embed
from gateway.cache.export import _put_in_place, export_embedder
from gateway.errors import ConfigError


def source(directory, pooling):
    """The descriptions of a sentence-transformers directory, without weights."""
    (directory / "1_Pooling").mkdir(parents=True)
    (directory / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Normalize"}]))
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (directory / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64}))
    (directory / "tokenizer.json").write_text("{}")
    return directory


def test_a_directory_that_is_no_model_is_refused(tmp_path):
    """An empty directory is refused by name, and nothing appears at the target."""
    with pytest.raises(ConfigError, match="not a sentence-transformers directory"):
        export_embedder(tmp_path, tmp_path / "target", lambda step: None)
    assert not (tmp_path / "target").exists()


def test_another_pooling_is_refused_with_the_way_out(tmp_path):
    """A model that does not pool by the mean is not exported wrongly: the message says what works instead."""
    made = source(tmp_path / "source", {"pooling_mode_cls_token": True})
    with pytest.raises(ConfigError, match="only mean pooling is exported; use the directory itself"):
        export_embedder(made, tmp_path / "target", lambda step: None)


def test_a_foreign_target_is_left_alone(tmp_path):
    """A directory that holds something else is never replaced; an older export is."""
    made, target = tmp_path / "made", tmp_path / "target"
    made.mkdir()
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="choose another"):
        _put_in_place(made, target)
    assert (target / "thesis.txt").exists()
    (target / "embedder.json").write_text("{}")
    _put_in_place(made, target)
    assert not list(target.iterdir())


@pytest.mark.weights
def test_an_export_runs_and_meets_its_original(tmp_path):
    """A real, small BERT is exported, checked against torch, loaded, and gives vectors of the right size; steps are told."""
    from transformers import BertConfig, BertModel  # noqa: PLC0415 - brings torch in, which the fast tests do without

    made = source(tmp_path / "source", {"pooling_mode_mean_tokens": True})
    words = {word: at for at, word in enumerate(["[UNK]", "how", "do", "i", "reset", "my", "who", "wrote", "dune", "?"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(made / "tokenizer.json"))
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 128}
    BertModel(BertConfig(**shape, max_position_embeddings=64)).save_pretrained(made)
    steps = []
    export_embedder(made, tmp_path / "target", steps.append)
    vectors, n_tokens = embed.load(tmp_path / "target").embed(["who wrote dune ?"])
    assert vectors.shape == (1, 64)
    assert n_tokens == 4
    assert steps[-1].startswith("done: cosine to the original is")
