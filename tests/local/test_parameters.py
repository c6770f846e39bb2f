"""What a local model accepts, and how it refuses the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.local.parameters import CHAT, COMPLETIONS, TABLE, parameters_table, read_embeddings, read_text

USER = {"role": "user", "content": "hi"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from([row.name for row in TABLE]) | st.text(max_size=8)


def chat(**fields):
    return read_text(CHAT, {"model": "m", "messages": [USER]} | fields)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"temperature": 2.1}, "temperature", "decimal_above_max_value"),
        ({"temperature": -0.1}, "temperature", "decimal_below_min_value"),
        ({"temperature": float("nan")}, "temperature", "decimal_below_min_value"),
        ({"temperature": True}, "temperature", "invalid_type"),
        ({"top_p": 1.5}, "top_p", "decimal_above_max_value"),
        ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
        ({"max_completion_tokens": "9"}, "max_completion_tokens", "invalid_type"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", None),
        ({"seed": 2**63}, "seed", "integer_above_max_value"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "array_above_max_length"),
        ({"stop": ""}, "stop", "empty_string"),
        ({"stream_options": {}}, "stream_options", None),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter"),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        ({"logprobs": True}, "logprobs", "unsupported_parameter"),
        ({"n": 2}, "n", "unsupported_parameter"),
        ({"presence_penalty": 0.1}, "presence_penalty", "unsupported_parameter"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_parameter"),
        ({"store": True}, "store", "unsupported_parameter"),
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"messages": None}, "messages", "missing_required_parameter"),
        ({"messages": []}, "messages", "empty_array"),
        ({"messages": [USER, {"role": "robot", "content": "x"}]}, "messages[1].role", "invalid_value"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]", "unsupported_value"),
        (
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]},
            "messages[0].tool_calls",
            "unsupported_parameter",
        ),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content", "invalid_value"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(fields, param, code):
    """Every refusal is a 400 that names the parameter, with OpenAI's code."""
    with pytest.raises(InvalidRequest) as caught:
        chat(**fields)
    assert (caught.value.param, caught.value.code) == (param, code)


def test_a_misspelt_parameter_is_told_its_neighbour():
    """`temprature` is a typing mistake, and the message says so."""
    with pytest.raises(InvalidRequest, match='did you mean "temperature"'):
        chat(temprature=1)


@pytest.mark.parametrize("row", [row for row in TABLE if row.does == "refused"], ids=lambda row: row.name)
def test_values_that_ask_for_nothing_are_accepted(row):
    """SDKs send neutral values of parameters that are refused otherwise."""
    for value in (None, *row.neutral):
        endpoint = CHAT if CHAT in row.endpoints else COMPLETIONS
        given = {"messages": [USER]} if endpoint == CHAT else {"prompt": "x"}
        assert read_text(endpoint, {"model": "m", row.name: value} | given).generate.seed is None


def test_everything_implemented_arrives_in_the_frame():
    """What the client asked for is what the worker is asked for; `developer` is `system`, text parts are one text."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    asked = chat(
        messages=[{"role": "developer", "content": "s"}, {"role": "user", "content": parts}],
        max_completion_tokens=7,
        temperature=0,
        top_p=0.5,
        stop="x",
        seed=-1,
        stream=True,
        stream_options={"include_usage": True},
    )
    made = asked.generate
    assert made.messages == [{"role": "system", "content": "s"}, {"role": "user", "content": "a\nb"}]
    assert (made.max_tokens, made.temperature, made.top_p, made.stop, made.seed) == (7, 0.0, 0.5, ("x",), -1)
    assert asked.include_usage
    assert not asked.include_obfuscation


def test_completions_take_one_prompt_and_sixteen_tokens():
    """Left out, max_tokens is what OpenAI's endpoint takes; several prompts and token ids are refused."""
    assert read_text(COMPLETIONS, {"model": "m", "prompt": ["x"]}).generate.max_tokens == 16
    for prompt in (["a", "b"], [1, 2], [[1]], None):
        with pytest.raises(InvalidRequest) as caught:
            read_text(COMPLETIONS, {"model": "m", "prompt": prompt})
        assert caught.value.param == "prompt"


@pytest.mark.parametrize("given", [None, [], "", ["a", ""], [1, 2], [[1]], [None], 5, ["x"] * 2049])
def test_inputs_that_are_no_texts_are_refused(given):
    """Embeddings take one text or a list of them."""
    with pytest.raises(InvalidRequest) as caught:
        read_embeddings({"model": "m", "input": given})
    assert caught.value.param.startswith("input")


@given(
    fields=st.dictionaries(NAMES, JSON, max_size=4),
    messages=JSON | st.lists(st.dictionaries(st.sampled_from(["role", "content"]), JSON)),
)
def test_no_body_is_more_than_a_refusal(fields, messages):
    """Whatever JSON arrives, it is read or refused with a name; nothing else is raised."""
    for read in (lambda data: read_text(CHAT, data), lambda data: read_text(COMPLETIONS, data), read_embeddings):
        try:
            read({"messages": messages} | fields)
        except InvalidRequest as error:
            refused = error.body()
            json.loads(refused.decode("ascii"))


def test_the_documentation_shows_the_table():
    """docs/local-model.md holds exactly the table that decides."""
    assert parameters_table() in Path("docs/local-model.md").read_text()
