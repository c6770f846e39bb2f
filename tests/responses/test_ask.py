"""Responses requests as chat bodies: what is translated is a chat request that OpenAI describes, the rest is refused by name."""

import json

import conformance
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.responses.ask import TABLE, chat_body, ignored, input_items, parameters_table, references

TOOL = {"type": "function", "name": "weather", "description": "d", "parameters": {"type": "object"}, "strict": True}
CALL = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "weather", "arguments": "{}", "status": "completed"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "rain"}
PIXEL = "data:image/png;base64,AAAA"


def body_of(earlier=(), referenced=(), **request):
    body = chat_body({"model": "m", "input": "Hi", **request}, earlier=list(earlier), referenced=referenced)
    conformance.check(body, "CreateChatCompletionRequest")
    return body


def messages_of(*items, **request):
    return body_of(input=list(items), **request)["messages"]


def refused(earlier=(), **request):
    """The error of a request that is refused, its param and code beside it."""
    with pytest.raises(InvalidRequest) as raised:
        chat_body({"model": "m", "input": "Hi", **request}, earlier=list(earlier))
    return raised.value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("background", True), ("background_options", {}), ("image", {}), ("access_programs", {}), ("conversation", "conv_1"), ("prompt", {"id": "p"}), ("truncation", "auto"), ("max_tool_calls", 3),
        ("context_management", [{"type": "compaction"}]), ("moderation", {"model": "m"}),
    ],
)  # fmt: skip
def test_what_chat_cannot_do_is_refused_by_name(name, value):
    """A parameter without a counterpart in chat is refused under its own name."""
    error = refused(**{name: value})
    assert (error.param, error.code) == (name, "unsupported_parameter")
    assert f"'{name}'" in error.message


@pytest.mark.parametrize("name", [row.name for row in TABLE if row.does == "refused"])
def test_values_that_ask_for_nothing_are_accepted(name):
    """Null and the default of a refused parameter change nothing."""
    row = next(row for row in TABLE if row.name == name)
    for value in (None, *row.neutral):
        assert body_of(**{name: value}) == body_of()


@pytest.mark.parametrize(
    ("request_", "param", "code"),
    [
        ({"modell": "m"}, "modell", "unknown_parameter"),
        ({"model": None}, "model", "missing_required_parameter"),
        ({"input": None}, "input", "missing_required_parameter"),
        ({"input": [{"type": "reasoning", "id": "rs_1", "summary": []}], "instructions": "i"}, "input", "missing_required_parameter"),
        ({"input": 5}, "input", "invalid_type"),
        ({"input": [5]}, "input[0]", "invalid_type"),
        ({"input": [{"role": "robot", "content": "a"}]}, "input[0].role", "invalid_value"),
        ({"input": [{"role": "user", "content": "a", "name": "n"}]}, "input[0].name", "unknown_parameter"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "a", "lang": "en"}]}]}, "input[0].content[0].lang", "unknown_parameter"),
        ({"background": 0}, "background", "unsupported_parameter"),
        ({"input": [{"role": "user", "content": []}]}, "input[0].content", "empty_array"),
        ({"input": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "input[0].content[0]", "unsupported_value"),
        ({"input": [{"role": "system", "content": [{"type": "input_image", "image_url": PIXEL}]}]}, "input[0].content[0]", "unsupported_value"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, "input[0].content[0].file_id", "unsupported_parameter"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "u"}]}]}, "input[0].content[0].file_url", "unsupported_parameter"),
        ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input[0].type", "unsupported_value"),
        ({"input": [OUTPUT]}, "input[0].call_id", None),
        ({"input": [CALL]}, "input", None),
        ({"input": [{"type": "item_reference", "id": "msg_9"}]}, "input[0].id", None),
        ({"include": ["web_search_call.results"]}, "include[0]", "unsupported_value"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_value"),
        ({"tools": [{**TOOL, "defer_loading": True}]}, "tools[0].defer_loading", "unknown_parameter"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].function", "unknown_parameter"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice", "unsupported_value"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type", "invalid_value"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema", "invalid_type"),
        ({"text": {"tone": "warm"}}, "text.tone", "unknown_parameter"),
        ({"reasoning": {"mode": "pro"}}, "reasoning.mode", "unsupported_parameter"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"max_output_tokens": True}, "max_output_tokens", "invalid_type"),
        ({"metadata": {"a": 1}}, "metadata", "invalid_type"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options", None),
        ({"stream": True, "stream_options": {"include_usage": True}}, "stream_options", None),
    ],
)  # fmt: skip
def test_a_bad_request_is_refused_at_its_place(request_, param, code):
    """What is malformed or unsupported inside a request is refused with the place where it stands."""
    error = refused(**request_)
    assert (error.param, error.code) == (param, code)


def test_a_hosted_tool_is_named():
    """The message names the hosted tool that was asked for, but never a type that nobody knows."""
    assert "'web_search'" in refused(tools=[{"type": "web_search"}]).message
    assert "my secret" not in refused(tools=[{"type": "my secret"}]).message
    assert "my secret" not in refused(input=[{"type": "my secret"}]).message


def test_options_have_their_names_in_chat():
    """Parameters with another name or place in chat get it; the others stay as they are."""
    body = body_of(
        instructions="Be brief.", max_output_tokens=16, temperature=0, top_p=0.5, reasoning={"effort": "low"}, stream=True,
        top_logprobs=2, include=["message.output_text.logprobs"], user="u", service_tier="flex", store=True, metadata={"a": "b"},
        text={"verbosity": "low", "format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}},
        safety_identifier="s", prompt_cache_key="k", previous_response_id=None, truncation="disabled",
    )  # fmt: skip
    assert body == {
        "model": "m", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "max_completion_tokens": 16, "temperature": 0, "top_p": 0.5, "reasoning_effort": "low", "stream": True,
        "stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 2, "user": "u", "service_tier": "flex",
        "verbosity": "low", "safety_identifier": "s", "prompt_cache_key": "k",
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True}},
    }  # fmt: skip


def test_tools_are_nested_as_chat_has_them():
    """Function tools, the choice of one, and the choice among some are chat's."""
    function = {name: value for name, value in TOOL.items() if name != "type"}
    assert body_of(tools=[TOOL])["tools"] == [{"type": "function", "function": function}]
    named = {"type": "function", "function": {"name": "weather"}}
    assert body_of(tools=[TOOL], tool_choice={"type": "function", "name": "weather"})["tool_choice"] == named
    some = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]}
    wanted = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}
    assert body_of(tools=[TOOL], tool_choice=some, parallel_tool_calls=False)["tool_choice"] == wanted
    assert body_of(parallel_tool_calls=True, tool_choice="auto", tools=[]) == body_of()


def test_parts_of_a_user_message():
    """Texts, images and files become chat's parts; one text alone becomes a plain string."""
    text = {"type": "input_text", "text": "What is this?"}
    image = {"type": "input_image", "image_url": PIXEL, "detail": "low"}
    file = {"type": "input_file", "file_data": "data:,x", "filename": "a.txt"}
    assert messages_of({"role": "user", "content": [text]}) == [{"role": "user", "content": "What is this?"}]
    assert messages_of({"type": "message", "role": "user", "content": [text, image, file]})[0]["content"] == [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
        {"type": "file", "file": {"file_data": "data:,x", "filename": "a.txt"}},
    ]


def test_one_turn_of_the_model_is_one_message():
    """A message and the calls beside it become one assistant message, the outputs tool messages after it."""
    said = {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "Let me see.", "annotations": [], "logprobs": []}],
    }
    second = {**CALL, "call_id": "c2"}
    messages = messages_of({"role": "user", "content": "Rain?"}, said, CALL, second, OUTPUT, {**OUTPUT, "call_id": "c2"})
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool"]
    assert messages[1]["content"] == "Let me see."
    assert [call["id"] for call in messages[1]["tool_calls"]] == ["c1", "c2"]
    assert messages_of({"role": "user", "content": "Rain?"}, CALL, said, OUTPUT)[1] == {
        **messages[1],
        "tool_calls": messages[1]["tool_calls"][:1],
    }


def test_a_refusal_of_the_model_goes_back_as_one():
    """An assistant's refusal is chat's `refusal`, not text."""
    said = {"role": "assistant", "content": [{"type": "refusal", "refusal": "I won't."}]}
    assert messages_of({"role": "user", "content": "x"}, said)[1] == {"role": "assistant", "content": None, "refusal": "I won't."}


def test_earlier_turns_come_first():
    """Stored items stand before the new input and after the instructions; a call may be answered in the next turn."""
    body = body_of([{"role": "user", "content": "Rain?"}, CALL], input=[OUTPUT], instructions="Now.")
    assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "tool"]
    assert body_of([{"role": "user", "content": "Rain?"}], input=None)["messages"] == [{"role": "user", "content": "Rain?"}]
    assert refused([{"type": "mcp_call"}]).param == "previous_response_id.type"


def test_a_reference_is_replaced_by_its_item():
    """The input may name stored items; what they say is in the body."""
    request = {"input": [{"type": "item_reference", "id": "msg_1"}, {"id": "msg_2"}, {"role": "user", "content": "b"}]}
    assert references({"model": "m", **request}) == ["msg_1", "msg_2"]
    known = [{"type": "message", "id": f"msg_{n}", "role": "user", "content": f"a{n}"} for n in (2, 1)]
    assert [message["content"] for message in body_of(referenced=known, **request)["messages"]] == ["a1", "a2", "b"]


def test_what_has_no_effect_is_listed():
    """Reasoning items, phases and what asks for summaries are left out of the chat body, and the client can be told."""
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "secret"}]}
    request = {
        "model": "m",
        "input": [reasoning, {"role": "user", "content": "a", "phase": "commentary"}],
        "reasoning": {"summary": "auto"},
        "include": ["reasoning.encrypted_content"],
    }
    assert len(chat_body(request, earlier=[reasoning])["messages"]) == 1
    said = ignored(request, earlier=[reasoning])
    assert [line.partition(":")[0] for line in said] == [
        "an earlier turn",
        "input[0]",
        "input[1].phase",
        "reasoning.summary",
        "include",
    ]
    assert "secret" not in "".join(said)


def test_input_is_kept_as_items_with_ids():
    """What is stored of the input is what the API lists: typed items, each with an id that is the same each time."""
    image = {"type": "input_image", "image_url": PIXEL, "detail": "auto"}
    request = {
        "model": "m",
        "input": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": [image]},
            CALL,
            OUTPUT,
        ],
    }
    items = input_items(request, "resp_1")
    listed = {"object": "list", "data": items, "first_id": items[0]["id"], "last_id": items[-1]["id"], "has_more": False}
    conformance.check(listed, "ResponseItemList")
    assert items == input_items(request, "resp_1")
    assert items[3]["id"] == "fc_1"
    assert len({item["id"] for item in items}) == 5
    assert chat_body(request, earlier=[])["messages"] == chat_body({**request, "input": items}, earlier=[])["messages"]


def test_every_parameter_of_the_description_is_known():
    """The table has a row for each parameter that OpenAI describes, and the docs show it."""
    rows = {row.name for row in TABLE}
    described = conformance.properties("CreateResponse") | conformance.sdk_parameters()
    assert described - rows == set()
    assert rows - described == {"presence_penalty", "frequency_penalty", "client_metadata"}
    assert parameters_table() in conformance.page("docs/responses.md")


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "role", "content", "id", "call_id", "output", "format", "name", "tools", "mode"]), inner | st.sampled_from(["message", "user", "input_text", "function", "function_call_output", "item_reference", "json_schema", "allowed_tools"]), max_size=4),
    max_leaves=8,
)  # fmt: skip


@given(request=st.fixed_dictionaries({"model": st.just("m")}, optional={row.name: JUNK for row in TABLE if row.name != "model"}))
def test_any_request_is_translated_or_refused(request):
    """Whatever JSON stands in the known parameters, the answer is a chat body or a refusal with its place, never another error."""
    error = None
    try:
        body = chat_body(request, earlier=[])
        json.dumps([body, input_items(request, "resp_1"), ignored(request)])
    except InvalidRequest as found:
        error = found
    assert error is None or error.param
