"""Chat answers as Responses answers: every event and object is what OpenAI describes, and the SDK reads them."""

import json
import re
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import conformance
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import APIError, OpenAI, omit
from openai.lib.streaming.responses._responses import ResponseStreamState

from gateway import sse
from gateway.config import EchoUpstream
from gateway.errors import BadUpstream, InvalidRequest, RateLimited, Relayed
from gateway.ledger import Usage
from gateway.responses.answer import Events
from gateway.responses.ask import chat_body
from gateway.upstreams import Call
from gateway.upstreams.echo import Echo

TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}, "strict": False}
USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12, "prompt_tokens_details": {"cached_tokens": 2}}
LOGPROB = {"token": "Hi", "logprob": -0.5, "bytes": None, "top_logprobs": [{"token": "Hi", "logprob": -0.5, "bytes": [72, 105]}]}


def events_for(request=None):
    return Events({"model": "m", "input": "x", **(request or {})}, "resp_1", 100, "m", clock=lambda: 107.0)


def chunk(delta=None, finish=None, **choice):
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta or {}, "finish_reason": finish, **choice}]}


def call(index, id_=None, name=None, arguments=None):
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return {"index": index, "function": function, **({"id": id_, "type": "function"} if id_ else {})}


def texts(*words, finish="stop"):
    return [chunk({"role": "assistant", "content": ""}), *(chunk({"content": word}) for word in words), chunk(finish=finish)]


def parsed(out):
    """The events in some bytes; each has its name twice."""
    found = []
    for event in out.decode().split("\n\n")[:-1]:
        name, data = re.fullmatch(r"event: (.+)\ndata: (.+)", event).groups()
        found.append(json.loads(data))
        assert found[-1]["type"] == name
    return found


def streamed(chunks, request=None, usage=USAGE):
    """All events of a stream, each as OpenAI describes it and numbered without a gap, and the final response."""
    events = events_for(request)
    out = [events.feed(one) for one in chunks]
    out.append(events.feed({"choices": [], "usage": usage}))
    out.append(events.finish())
    return checked(parsed(b"".join(out))), events.response


def checked(found):
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    for event in found:
        conformance.check(event, "ResponseStreamEvent")
    return found


def types(found):
    return [event["type"].removeprefix("response.") for event in found]


def accumulated(found):
    """What the SDK's own accumulator makes of the events."""
    adapter = conformance.model("ResponseStreamEvent")
    state = ResponseStreamState(input_tools=[TOOL], text_format=omit)
    for event in found:
        state.handle_event(adapter.validate_python(event))
    return state._completed_response


def whole(message, finish="stop", request=None, **choice):
    completion = {"choices": [{"index": 0, "message": message, "finish_reason": finish, **choice}], "usage": USAGE}
    response = events_for(request).whole(completion)
    conformance.check(response, "Response")
    return response


def test_a_text_is_one_message():
    """A plain text has the events of one message with one part, in OpenAI's order."""
    found, response = streamed(texts("Hel", "lo"))
    assert types(found) == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert response["output"][0]["content"][0]["text"] == "Hello"
    assert response["usage"]["total_tokens"] == 12
    assert response["usage"]["input_tokens_details"] == {"cached_tokens": 2, "cache_write_tokens": 0}
    assert response["completed_at"] == 107


@pytest.mark.parametrize(
    ("chunks", "request_"),
    [
        (texts("Hel", "lo"), {}),
        (texts("{}"), {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}}}),
        (texts(), {}),
        ([chunk({"refusal": "I "}), chunk({"refusal": "won't"}), chunk(finish="stop")], {}),
        ([chunk({"content": "a"}), chunk({"refusal": "b"}), chunk(finish="stop")], {}),
        ([chunk({"tool_calls": [call(0, "c1", "weather", "{}")]}), chunk(finish="tool_calls")], {"tools": [TOOL]}),
        ([chunk({"reasoning_content": "hm"}), chunk({"content": "a"}), chunk(finish="stop")], {}),
    ],
    ids=["text", "json_schema", "empty", "refusal", "text and refusal", "call", "reasoning"],
)
def test_the_sdk_accumulates_what_we_say_is_final(chunks, request_):
    """The SDK's accumulator accepts the stream, and its final response is ours."""
    found, response = streamed(chunks, request_)
    theirs = accumulated(found).to_dict()
    assert [item["id"] for item in theirs["output"]] == [item["id"] for item in response["output"]]
    assert theirs["status"] == "completed"
    conformance.check(response, "Response")


def test_parallel_calls_are_told_apart_by_index():
    """Interleaved fragments of two calls reach their own items, whose ids stay the same through the stream."""
    chunks = [
        chunk({"role": "assistant", "content": None, "tool_calls": [call(0, "c1", "weather", "")]}),
        chunk({"tool_calls": [call(1, "c2", "time", "")]}),
        chunk({"tool_calls": [call(1, arguments='{"b"'), call(0, arguments='{"a"')]}),
        chunk({"tool_calls": [call(0, arguments=":1}"), call(1, arguments=":2}")]}),
        chunk(finish="tool_calls"),
    ]
    found, response = streamed(chunks, {"tools": [TOOL]})
    said = [(item["call_id"], item["name"], item["arguments"], item["status"]) for item in response["output"]]
    assert said == [("c1", "weather", '{"a":1}', "completed"), ("c2", "time", '{"b":2}', "completed")]
    by_item = {item["id"]: item["arguments"] for item in response["output"]}
    deltas = [event for event in found if event["type"] == "response.function_call_arguments.delta"]
    assert {id_: "".join(e["delta"] for e in deltas if e["item_id"] == id_) for id_ in by_item} == by_item
    assert accumulated(found).output[1].arguments == '{"b":2}'


@pytest.mark.parametrize("index", [{"index": 0}, {}], ids=["all under index 0", "no index"])
def test_calls_with_careless_indexes_are_told_apart_by_id(index):
    """Two whole calls under one index, or none, are two calls."""
    calls = [{**call(0, id_, "weather", "{}"), **index} for id_ in ("c1", "c2")]
    if not index:
        calls = [{name: value for name, value in one.items() if name != "index"} for one in calls]
    _, response = streamed([chunk({"tool_calls": calls[:1]}), chunk({"tool_calls": calls[1:]}), chunk(finish="tool_calls")])
    assert [item["call_id"] for item in response["output"]] == ["c1", "c2"]


def test_an_id_on_every_fragment_is_one_call():
    """A call whose id is repeated with each fragment, with an index or without, stays one call."""
    for index in ({"index": 0}, {}):
        fragments = [{**index, "id": "c1", "function": {"name": "f", "arguments": piece}} for piece in ("{", "}")]
        _, response = streamed([*(chunk({"tool_calls": [one]}) for one in fragments), chunk(finish="tool_calls")])
        assert [item["arguments"] for item in response["output"]] == ["{}"]


def test_an_empty_answer_is_an_empty_message():
    """An answer that says nothing is one message with an empty text, as the clients' code expects one."""
    for finish in ("stop", "length"):
        _, response = streamed(texts(finish=finish))
        assert [part["text"] for item in response["output"] for part in item["content"]] == [""]


def test_a_call_waits_for_its_name():
    """Arguments that come before the function's name are said once the name is known."""
    chunks = [
        chunk({"tool_calls": [call(0, "c1", arguments="{")]}),
        chunk({"tool_calls": [call(0, name="weather", arguments="}")]}),
    ]
    found, response = streamed([*chunks, chunk(finish="tool_calls")])
    assert response["output"][0]["arguments"] == "{}"
    assert found[2]["item"]["name"] == "weather"


def test_text_before_a_call_keeps_its_place():
    """A message and a call come out in the order in which they began."""
    _, response = streamed(
        [chunk({"content": "Let me see."}), chunk({"tool_calls": [call(0, "c1", "f", "{}")]}), chunk(finish="tool_calls")]
    )
    assert [item["type"] for item in response["output"]] == ["message", "function_call"]


@pytest.mark.parametrize(("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_a_stopped_answer_is_incomplete(finish, reason):
    """The token limit and the content filter end in `response.incomplete` with the reason, and no completion time."""
    found, response = streamed(texts("Hel", finish=finish))
    assert types(found)[-1] == "incomplete"
    assert response["incomplete_details"] == {"reason": reason}
    assert (response["status"], response["completed_at"]) == ("incomplete", None)
    assert response["output"][-1]["status"] == "incomplete"


def test_log_probabilities_are_given_when_asked():
    """Deltas and the final text carry the tokens' log probabilities, their bytes filled in, and only when asked for."""
    chunks = [chunk({"content": "Hi"}, logprobs={"content": [LOGPROB], "refusal": None}), chunk(finish="stop")]
    found, response = streamed(chunks, {"include": ["message.output_text.logprobs"], "top_logprobs": 1})
    wanted = [{**LOGPROB, "bytes": [72, 105]}]
    assert next(event for event in found if "delta" in event)["logprobs"] == wanted
    assert response["output"][0]["content"][0]["logprobs"] == wanted
    assert streamed(chunks)[1]["output"][0]["content"][0]["logprobs"] == []


def test_a_log_probability_that_is_no_number_is_told_as_unlikely():
    """Minus infinity, which JSON cannot say, becomes OpenAI's value for it."""
    entry = {**LOGPROB, "logprob": float("-inf")}
    _, response = streamed([chunk({"content": "Hi"}, logprobs={"content": [entry]}), chunk(finish="stop")], {"top_logprobs": 1})
    assert response["output"][0]["content"][0]["logprobs"][0]["logprob"] == -9999.0


async def test_answers_of_a_real_upstream():
    """The echo upstream's stream and its whole answer are the same response to what was asked."""
    request = {"model": "m", "input": [{"role": "user", "content": "over the hills"}]}
    upstream, made = Echo("echo", EchoUpstream()), []
    for stream in (True, False):
        body = json.dumps(chat_body({**request, "stream": stream}, earlier=[])).encode()
        answer = await upstream.send(Call("r", "chat/completions", "m", body, stream=stream))
        data = b"".join([piece.data async for piece in answer])
        await answer.aclose()
        events = events_for(request)
        chunks = [sse.data_of(event) for event in sse.Splitter().feed(data)] if stream else []
        for one in chunks[:-1]:
            events.feed(json.loads(one))
        made.append(events.response if stream and events.finish() else events.whole(json.loads(data)))
    assert made[0]["output"][0]["content"][0]["text"] == "over the hills"
    assert made[0] == made[1]


def test_obfuscation_only_when_asked():
    """Deltas are padded to equal lengths when the client asked, and never otherwise."""
    found, _ = streamed(texts("a", "bcd"), {"stream": True, "stream_options": {"include_obfuscation": True}})
    lengths = {len(event["delta"]) + len(event["obfuscation"]) for event in found if "delta" in event}
    assert lengths == {32}
    assert not any("obfuscation" in event for event in streamed(texts("a"))[0])


def test_failure_before_the_first_delta():
    """A failure of an answer that said nothing still opens it, then tells the whole error and fails the response."""
    events = events_for()
    found = checked(parsed(events.fail(RateLimited("Too many.", code="rate_limit_exceeded"))))
    assert types(found) == ["created", "in_progress", "error", "failed"]
    assert found[2]["code"] == "rate_limit_exceeded"
    assert found[3]["response"]["error"] == {"code": "rate_limit_exceeded", "message": "Too many."}


def test_failure_after_the_first_delta():
    """What was said before a failure stays in the failed response, marked incomplete, with the gateway's own code beside it."""
    events = events_for()
    found = parsed(events.feed(chunk({"content": "Hel"})) + events.fail(BadUpstream("It broke.")))
    assert types(checked(found))[-2:] == ["error", "failed"]
    assert (found[-2]["code"], found[-2]["message"]) == ("upstream_error", "It broke.")
    assert events.response["output"][0]["content"][0]["text"] == "Hel"
    assert (events.response["status"], events.response["output"][0]["status"]) == ("failed", "incomplete")


def test_an_upstreams_own_error_keeps_its_words():
    """A relayed error is told with the upstream's message and param, and with a code that is a string or null."""
    body = b'{"error":{"message":"Bad.","type":"invalid_request_error","param":"input","code":7}}'
    found = parsed(events_for().fail(Relayed(400, body, [], code=None)))
    assert found[2]["error"] == {"type": "invalid_request_error", "code": None, "message": "Bad.", "param": "input"}
    assert parsed(events_for().fail(InvalidRequest("No.")))[3]["response"]["error"]["code"] == "invalid_prompt"


def test_no_clean_end_without_a_finish_reason():
    """An answer whose chunks stopped without a finish reason fails, streamed or not."""
    events = events_for()
    events.feed(chunk({"content": "Hel"}))
    assert types(parsed(events.finish()))[-1] == "failed"
    with pytest.raises(BadUpstream):
        events_for().whole({"choices": [{"index": 0, "message": {"content": "Hel"}}]})


@pytest.fixture
def sdk():
    """Make an SDK client whose server answers these bytes: `sdk(out)`."""
    with ExitStack() as closing:

        def make(out):
            class Handler(BaseHTTPRequestHandler):
                def do_POST(self):
                    self.rfile.read(int(self.headers["content-length"]))
                    self.send_response(200)
                    self.send_header("content-type", "text/event-stream")
                    self.send_header("content-length", str(len(out)))
                    self.end_headers()
                    self.wfile.write(out)

                def log_message(self, *_):
                    pass

            server = closing.enter_context(HTTPServer(("127.0.0.1", 0), Handler))
            Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
            closing.callback(server.shutdown)
            return closing.enter_context(OpenAI(api_key="k", base_url=f"http://127.0.0.1:{server.server_port}/v1", max_retries=0))

        yield make


def test_the_sdk_raises_on_a_failure(sdk):
    """The SDK raises APIError with our message and code."""
    events = events_for()
    client = sdk(events.feed(chunk({"content": "Hel"})) + events.fail(BadUpstream("It broke.")))
    with pytest.raises(APIError, match=r"It broke\.") as raised:
        list(client.responses.create(model="m", input="x", stream=True))
    assert raised.value.code == "upstream_error"


def test_the_sdk_streams_to_the_final_response(sdk):
    """The SDK's stream helper ends with the response we call final."""
    events = events_for()
    client = sdk(b"".join([events.feed(one) for one in texts("Hel", "lo")]) + events.finish())
    with client.responses.stream(model="m", input="x") as stream:
        assert stream.get_final_response().output_text == "Hello"


def test_usage_of_ours_stands_in():
    """When the chunks carry no usage, the gateway's count is told; when nobody knows it, null."""
    events = events_for()
    for one in texts("a"):
        events.feed(one)
    events.finish(Usage(prompt_tokens=3, completion_tokens=1, cached_tokens=2))
    assert (events.response["usage"]["input_tokens"], events.response["usage"]["total_tokens"]) == (3, 4)
    assert streamed(texts("a"), usage=None)[1]["usage"] is None


def test_the_request_is_repeated_in_the_response():
    """The response shows what was asked with OpenAI's defaults for the rest, and nothing of a key it does not know."""
    asked = {
        "instructions": "Be brief.",
        "metadata": {"a": "b"},
        "user": "u",
        "top_p": 0.5,
        "tools": [{"type": "function", "name": "f"}],
    }
    response = whole({"content": "a"}, request=asked)
    assert {name: response[name] for name in ("instructions", "metadata", "user", "top_p")} == {
        name: asked[name] for name in ("instructions", "metadata", "user", "top_p")
    }
    assert response["tools"] == [{"description": None, "parameters": None, "strict": None, "type": "function", "name": "f"}]
    assert (response["temperature"], response["tool_choice"], response["store"]) == (1.0, "auto", True)


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "delta", "index", "content", "tool_calls", "function", "id", "logprobs", "usage", "finish_reason"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@given(chunks=st.lists(st.fixed_dictionaries({}, optional={"choices": ODD, "usage": ODD, "service_tier": ODD}), max_size=4))
def test_odd_chunks_never_break_the_stream(chunks):
    """Whatever an upstream puts into its chunks, the events stay what OpenAI describes."""
    events = events_for({"include": ["message.output_text.logprobs"]})
    out = b"".join([events.feed(one) for one in chunks]) + events.finish()
    found = parsed(out)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    for event in found:
        conformance.model("ResponseStreamEvent").validate_python(event)


def cut(text, places):
    """The text in pieces, cut at these places."""
    ends = sorted({min(place, len(text)) for place in places} | {len(text)})
    starts = [0, *ends[:-1]]
    return [text[start:end] for start, end in zip(starts, ends, strict=True)]


@given(
    text=st.text(max_size=30),
    arguments=st.lists(st.text(max_size=20), max_size=3),
    places=st.lists(st.integers(0, 30), max_size=8),
    finish=st.sampled_from(["stop", "length", "tool_calls"]),
)
def test_any_split_gives_the_same_response(text, arguments, places, finish):
    """However content and arguments were cut into chunks, the final response is that of the whole completion."""
    calls = [{"id": f"c{n}", "type": "function", "function": {"name": "f", "arguments": one}} for n, one in enumerate(arguments)]
    chunks = [chunk({"content": piece}) for piece in cut(text, places)]
    for n, one in enumerate(arguments):
        chunks.append(chunk({"tool_calls": [call(n, f"c{n}", "f", "")]}))
        chunks += [chunk({"tool_calls": [call(n, arguments=piece)]}) for piece in cut(one, places)]
    events = events_for()
    for one in [*chunks, chunk(finish=finish), {"choices": [], "usage": USAGE}]:
        events.feed(one)
    events.finish()
    assert events.response == whole({"content": text, "tool_calls": calls}, finish)
