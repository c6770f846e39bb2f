"""Reading a request's body and the two edits made to it."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import wire
from gateway.errors import InvalidRequest

CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def encoded(value):
    return json.dumps(value).encode()


NOT_A_BODY = {
    "nothing": b"",
    "only blanks": b" \n",
    "cut": b'{"model": "m"',
    "an array": b"[]",
    "null": b"null",
    "a byte order mark": b"\xef\xbb\xbf{}",
    "utf-16": '{"model": "m"}'.encode("utf-16"),
    "utf-32": '{"model": "m"}'.encode("utf-32"),
    "half a character": b'{"model": "\xc3"}',
    "a surrogate in utf-8": b'{"model": "\xed\xa0\x80"}',
    "NaN": b'{"model": NaN}',
    "infinity": b'{"model": -Infinity}',
    "brackets": b"[" * 20_000,
    "deep objects": b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
    "just too deep": b'{"a":' * 201 + b"1" + b"}" * 201,
    "too many digits": b'{"n": ' + b"1" * 5_000 + b"}",
    "a key twice": b'{"model": "a", "model": "b"}',
    "a key twice, once escaped": b'{"model": "a", "mod\\u0065l": "b"}',
    "a key twice inside": b'{"a": [{"b": {"c": 1, "c": 1}}]}',
}


@pytest.mark.parametrize("body", NOT_A_BODY.values(), ids=NOT_A_BODY)
def test_what_two_readers_could_read_differently_is_refused(body):
    """Duplicate keys, other encodings, numbers that are none, and depth without end are the client's mistake, never a crash."""
    with pytest.raises(InvalidRequest):
        wire.parse(body)


@given(st.binary(max_size=200) | st.text(alphabet='{}[]",:\\ue0dN1-e. \n', max_size=80).map(str.encode))
def test_no_bytes_crash_the_parser(body):
    """Whatever arrives is an object or an InvalidRequest."""
    with suppress(InvalidRequest):
        assert isinstance(wire.parse(body), dict)


def test_a_second_key_is_named_by_its_place_and_not_by_its_text():
    """Keys are the client's text: the message says where, in characters, and nothing of what."""
    with pytest.raises(InvalidRequest) as caught:
        wire.parse('{"a": {"ü": 1,\n "gehéim": "]", "geh\\u00e9im": 2}}'.encode())
    assert "line 2, column 17" in caught.value.message
    assert "geh" not in caught.value.message


def test_depth_that_python_bears_is_accepted():
    """Two hundred levels pass; brackets inside strings do not count."""
    deep = b'{"a":' * 200 + b"1" + b"}" * 200
    assert wire.parse(deep)
    assert wire.parse(encoded({"a": "[" * 1_000}))


WRONG = {
    "model": {"model": 5},
    "model ": {"model": ""},
    "messages": {"messages": None},
    "messages ": {"messages": []},
    "messages  ": {"messages": "hi"},
    "messages[0]": {"messages": [None]},
    "messages[0].content[1].type": {"messages": [{"content": ["x", {"type": []}]}]},
    "stream": {"stream": 1},
    "stream_options": {"stream_options": "x"},
    "max_tokens": {"max_tokens": 1.5},
    "max_completion_tokens": {"max_completion_tokens": True},
    "n": {"n": "2"},
    "response_format": {"response_format": []},
    "modalities": {"modalities": 5},
    "modalities[0]": {"modalities": [{}]},
}


@pytest.mark.parametrize(("param", "fields"), WRONG.items(), ids=WRONG)
def test_a_field_we_act_on_has_its_type(param, fields):
    """The refusal names the field."""
    with pytest.raises(InvalidRequest) as caught:
        wire.read("chat/completions", encoded({**CHAT, **fields}))
    assert caught.value.param == param.strip()


@pytest.mark.parametrize("value", [None, 5, {}, [{}], [None], [1.5]])
@pytest.mark.parametrize(("endpoint", "name"), [("embeddings", "input"), ("completions", "prompt")])
def test_a_prompt_is_text_or_tokens(endpoint, name, value):
    """Anything else is refused before a part of ours trips over it."""
    with pytest.raises(InvalidRequest) as caught:
        wire.read(endpoint, encoded({"model": "m", name: value}))
    assert caught.value.param.startswith(name)


@pytest.mark.parametrize(("prompt", "count"), [("x", 1), (["x"], 1), (["x", "y"], 2), ([1, 2, 3], 1), ([[1], [2]], 2), ([], 1)])
def test_the_number_of_choices_is_known(prompt, count):
    """`n` for each prompt; a list of tokens is one prompt."""
    assert wire.read("completions", encoded({"model": "m", "prompt": prompt, "n": 3})).choices == 3 * count
    assert wire.read("completions", encoded({"model": "m", "prompt": prompt})).choices == count


SCALAR = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(alphabet=st.characters(), max_size=8) | st.sampled_from(['"model":"x"', "a\\", "\\", "\ud800", "model", "{", "},"])
VALUE = st.recursive(
    SCALAR | TEXT, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)
BLANK = st.sampled_from([b"", b" ", b"\n\t", b"  \r\n"])
NAME = st.sampled_from([b'"model"', b'"mod\\u0065l"', b'"\\u006dodel"'])


@st.composite
def bodies(draw, name):
    """(bytes before the value of a top-level key, its value, bytes after) with everything else at random."""
    fields = draw(st.dictionaries(TEXT.filter(lambda key: key not in {"model", "stream_options"}), VALUE, max_size=4))
    dump = [json.dumps(key, ensure_ascii=_is_lone(key)).encode() + draw(BLANK) + b":" + draw(BLANK) + _dump(draw, value)
            for key, value in fields.items()]  # fmt: skip
    at = draw(st.integers(0, len(dump)))
    before = b"".join(part + draw(BLANK) + b"," + draw(BLANK) for part in dump[:at])
    after = b"".join(draw(BLANK) + b"," + draw(BLANK) + part for part in dump[at:])
    return draw(BLANK) + b"{" + before + draw(name) + draw(BLANK) + b":" + draw(BLANK), after + draw(BLANK) + b"}" + draw(BLANK)


def _is_lone(text):
    return any(0xD800 <= ord(letter) < 0xE000 for letter in text)


def _dump(draw, value):
    text = json.dumps(value, indent=draw(st.sampled_from([None, 1])))
    return draw(st.sampled_from([text, text.replace("null", "1.10").replace("true", "9007199254740993")])).encode()


@given(bodies(NAME), st.text(min_size=1, max_size=5), TEXT.filter(bool))
def test_the_model_is_all_that_changes(around, old, new):
    """Every byte of a random body but those of the top-level model's value is the client's own."""
    before, after = around
    body = before + encoded(old) + after
    try:
        data = wire.parse(body)
    except InvalidRequest:
        return
    request = wire.Request(endpoint="completions", body=body, data=data, model=old)
    assert wire.with_model(request, new) == (before + encoded(new) + after if new != old else body)


DECOYS = [
    b'{"metadata": {"model": "a"}, "mod\\u0065l": %s}',
    b'{"mod\\u0065l": %s, "metadata": {"model": "a"}}',
    b'{"x": "\\"model\\": \\"a\\"", "model" :\n %s}',
    b'{"x": [{"model": "a"}, "model", {"model": {"model": 1}}], "model": %s, "model2": "a"}',
]


@pytest.mark.parametrize("pattern", DECOYS)
def test_a_decoy_is_not_edited(pattern):
    """Other keys and texts that look like the top-level model stay as they are."""
    body = pattern % b'"a"'
    request = wire.Request(endpoint="completions", body=body, data=wire.parse(body), model="a")
    assert wire.with_model(request, "b") == pattern % b'"b"'


def test_the_same_model_is_the_same_object():
    """Nothing to edit, nothing copied."""
    request = wire.read("chat/completions", encoded(CHAT))
    assert wire.with_model(request, "m") is request.body


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"null", b'{"include_usage":true}'),
        (b"{}", b'{"include_usage":true}'),
        (b"{ }", b'{"include_usage":true}'),
        (b'{"x": 1.10}', b'{"include_usage":true,"x": 1.10}'),
        (
            b'{"x":{"include_usage":0}, "include_usage" : false ,"y":1}',
            b'{"x":{"include_usage":0}, "include_usage" : true ,"y":1}',
        ),
    ],
)
@given(around=bodies(st.just(b'"stream_options"')))
def test_include_usage_is_all_that_changes_in_stream_options(old, new, around):
    """Whatever stands beside it keeps its bytes."""
    before, after = around
    assert wire.with_usage(before + old + after) == before + new + after


@given(bodies(NAME))
def test_stream_options_come_last_when_there_are_none(around):
    """A body without them gets them at its end."""
    before, after = around
    end = after.rindex(b"}")
    added = b',"stream_options":{"include_usage":true}'
    assert wire.with_usage(before + b'"m"' + after) == before + b'"m"' + after[:end] + added + after[end:]


def test_a_large_body_is_edited_in_linear_time():
    """A string of many megabytes with many quotes inside costs no more than its length."""
    body = encoded({"metadata": {"model": "other"}, **CHAT, "text": '\\" {}[]' * 500_000})
    assert wire.with_model(wire.read("chat/completions", body), "new") == body.replace(b'"model": "m"', b'"model": "new"')


@pytest.mark.parametrize("given_", [b'{"messages":[{}],"x":1.10 }', b'{ "model" : null, "messages":[{}]}'])
def test_a_deployments_name_is_put_in_where_there_is_none(given_):
    """At the end, or in the place of null; nothing else moves."""
    edited = wire.with_model(wire.read("chat/completions", given_, deployment="m"), "up")
    assert json.loads(edited)["model"] == "up"
    assert edited in {given_[:-1] + b',"model":"up"}', given_.replace(b"null", b'"up"')}


def test_a_deployment_and_a_model_must_agree():
    """One of them would not be what was judged."""
    with pytest.raises(InvalidRequest) as caught:
        wire.read("chat/completions", encoded(CHAT), deployment="other")
    assert (caught.value.code, caught.value.param) == ("model_mismatch", "model")


def test_a_body_that_may_do_without_a_model_stays_without():
    """Moderations are the example."""
    request = wire.read("moderations", b'{"input":"x"}')
    assert (request.model, wire.with_model(request, "up")) == ("", b'{"input":"x"}')


@pytest.mark.parametrize("endpoint", sorted(wire.ENDPOINTS))
def test_what_the_cache_compares_has_its_type_everywhere(endpoint):
    """Modalities are words, also where the endpoint has no such field."""
    with pytest.raises(InvalidRequest) as caught:
        wire.read(endpoint, encoded({**CHAT, "input": "x", "prompt": "x", "modalities": [{}]}))
    assert caught.value.param == "modalities[0]"


NEEDS = [
    ("responses", {"input": [{"content": [{"type": "input_image"}, {"type": "input_file"}]}]}, ("responses", "images", "files")),
    ("responses", {"input": [{"type": "function_call_output", "output": [{"type": "input_image"}]}]}, ("responses", "images")),
    ("responses", {"input": "x", "tools": [{}], "text": {"format": {"type": "json_schema"}}}, ("responses", "tools", "json")),
    ("messages", {"messages": [{"content": [{"type": "tool_result", "content": [{"type": "image"}]}]}]}, ("messages", "images")),
    ("messages/count_tokens", {"messages": [{"content": "x"}], "tools": [{}]}, ("messages", "tools")),
    ("moderations", {"input": [{"type": "image_url"}]}, ("moderations",)),
]


@pytest.mark.parametrize(("endpoint", "fields", "needs"), NEEDS)
def test_what_a_request_needs_is_read_wherever_it_stands(endpoint, fields, needs):
    """The endpoint's own capability first, then those of parts and options."""
    assert wire.read(endpoint, encoded({"model": "m", **fields})).needs == needs


@pytest.mark.parametrize(
    ("fields", "stores"), [({}, True), ({"store": None}, True), ({"store": True}, True), ({"store": False}, False)]
)
def test_responses_are_stored_unless_told_otherwise(fields, stores):
    """Chat is the other way round, and what only counts or compacts stores nothing."""
    assert wire.read("responses", encoded({"model": "m", "input": "x", **fields})).stores is stores
    assert wire.read("chat/completions", encoded({**CHAT, **fields})).stores is (fields.get("store") is True)
    assert wire.read("responses/compact", encoded({"model": "m", "input": "x", **fields})).stores is False
