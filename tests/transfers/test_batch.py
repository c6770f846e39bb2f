"""Of a batch file's lines only the model is edited, and a line that cannot be read is named by its number."""

import json

from hypothesis import given
from hypothesis import strategies as st

from gateway.transfers import batch

NAMES = st.sampled_from(["a", "model", "é", 'say "model": "a"', "a\\"])
JSON = st.recursive(
    NAMES | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.dictionaries(NAMES, JSON, max_size=3)


def written(value, spaced, escaped):
    separators = (" ,\t", " :  ") if spaced else (",", ":")
    return json.dumps(value, separators=separators, ensure_ascii=escaped).encode()


@given(FIELDS, FIELDS, st.permutations(["model", "input", "other"]), st.sampled_from("ab"), st.booleans(), st.booleans())
def test_nothing_but_the_model_moves(rest, other, order, model, spaced, escaped):  # noqa: PLR0917 - drawn
    """Wherever else `model` stands, as a key or in a text, and however the line is spaced and escaped."""
    fields = {"model": "@1@", "input": "x", "other": other}
    body = {name: fields[name] for name in order}
    line = {"custom_id": "1", **rest, "method": "POST", "url": "/v1/embeddings", "body": body}
    before = written(line, spaced, escaped)
    raw = before.replace(b"@1@", model.encode()) + b"\n"
    wanted = before.replace(b"@1@", b"theirs-" + model.encode()) + b"\n"
    assert batch.edited([raw, b" \r\n", raw], {"a": "theirs-a", "b": "theirs-b"}) == wanted + b" \r\n" + wanted
    assert batch.edited([raw], {model: model}) == raw
