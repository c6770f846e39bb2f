"""What the Open Responses compliance suite asks over HTTP, through a real gateway: byte for byte from an upstream that speaks it.

The cases are ours, after what that suite (github.com/openresponses/openresponses) demands: ten requests, a schema whose 31
fields are all required, and a few words about each answer. Answers are also held against OpenAI's description where it is at hand.
"""

import base64
import json

import pytest

from tests.e2e.gateways import Gateway
from tests.responses.conformance import check, described, validator
from tests.wire.clients.upstream import scripted
from tests.wire.conftest import POLICY

REQUIRED = frozenset({
    "id", "object", "created_at", "completed_at", "status", "incomplete_details", "model", "previous_response_id",
    "instructions", "output", "error", "tools", "tool_choice", "truncation", "parallel_tool_calls", "text", "top_p",
    "presence_penalty", "frequency_penalty", "top_logprobs", "temperature", "reasoning", "usage", "max_output_tokens",
    "max_tool_calls", "store", "background", "service_tier", "metadata", "safety_identifier", "prompt_cache_key",
})  # fmt: skip
"""The suite's schema of a response has no optional field among these."""
NUMBERS = ("top_p", "presence_penalty", "frequency_penalty", "top_logprobs", "temperature", "created_at", "completed_at")
"""Neither null nor text in a completed response."""

PIXEL = base64.b64encode(
    bytes.fromhex("89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc00000")
    + bytes.fromhex("03010100c9fe92ef0000000049454e44ae426082")
).decode()
WEATHER = {
    "type": "function", "name": "get_weather", "description": "Tell the weather of a place.",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
}  # fmt: skip


def says(role, content, **fields):
    return {"type": "message", "role": role, "content": content, **fields}


CREATE = {
    "basic": {"input": [says("user", "Greet me in three words.")]},
    "assistant phase": {
        "input": [
            says("assistant", "I look the number up.", phase="commentary"),
            says("assistant", "It is seven.", phase="final_answer"),
            says("user", "Say the number alone."),
        ]
    },
    "streaming": {"input": [says("user", "Count up to five.")], "stream": True},
    "system prompt": {"input": [says("system", "You are a sailor and talk like one."), says("user", "Greet me.")]},
    "tool calling": {"input": [says("user", '{"place": "Zürich"}')], "tools": [WEATHER]},
    "image input": {
        "input": [
            says(
                "user",
                [
                    {"type": "input_text", "text": "What is in this picture?"},
                    {"type": "input_image", "image_url": f"data:image/png;base64,{PIXEL}", "detail": "auto"},
                ],
            )
        ]
    },
    "multi-turn": {"input": [says("user", "I am Ann."), says("assistant", "Hello Ann."), says("user", "Who am I?")]},
}
CONVERSATION = [says("user", "We start on Monday and tell support before."), says("assistant", "Monday; support is told before.")]
CONFIG = """
[upstreams.speaks]
kind = "openai"
base_url = "{url}"
zone = "local"
takes_up_to = "restricted"
[models.relayed]
candidates = [{{ upstream = "speaks", capabilities = ["responses", "tools", "images"] }}]
[models.translated]
candidates = [{{ upstream = "speaks", capabilities = ["chat", "tools", "images", "json"] }}]
[cache]
semantic = false
"""


@pytest.fixture(scope="module")
def server():
    """The upstream; it keeps what it was sent and what it said."""
    with scripted() as made:
        yield made


@pytest.fixture(scope="module")
def gateway(tmp_path_factory, server):
    """A gateway in front of it: `relayed` as it speaks, `translated` through its chat."""
    folder = tmp_path_factory.mktemp("open_responses")
    with Gateway(folder, CONFIG.format(url=server.url), policies={"all.toml": POLICY}) as made:
        yield made.until_up("speaks/relayed").until_up("speaks/translated")


def ask(gateway, path="responses", **body):
    return gateway.post(path, content=json.dumps(body, ensure_ascii=False).encode(), headers={"content-type": "application/json"})


def events_of(said):
    """The events of a stream, each under its own name, numbered from 0 without a gap."""
    lines = [event.split(b"\n") for event in said.split(b"\n\n") if event and not event.endswith(b"[DONE]")]
    events = [json.loads(data.removeprefix(b"data: ")) for _, data in lines]
    assert [name.decode() for name, _ in lines] == [f"event: {event['type']}" for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def response_of(got):
    """The final response of an answer, whole or streamed, which must be what both descriptions say."""
    assert got.status_code == 200, got.text
    if got.headers["content-type"].startswith("text/event-stream"):
        events = events_of(got.content)
        for event in events:
            check(event, "ResponseStreamEvent")
        assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
        assert [event["type"] for event in events if "delta" in event]
        found = events[-1]["response"]
    else:
        found = got.json()
    check(found, "Response")
    assert set(found) >= REQUIRED
    assert [name for name in NUMBERS if isinstance(found[name], bool) or not isinstance(found[name], int | float)] == []
    assert found["output"]
    assert (found["object"], found["status"], found["error"]) == ("response", "completed", None)
    return found


def calls_of(response):
    return [(item["name"], json.loads(item["arguments"])) for item in response["output"] if item["type"] == "function_call"]


@pytest.mark.parametrize("case", CREATE)
def test_a_response_is_relayed_as_it_was_made(gateway, server, case):
    """Asked byte for byte, answered byte for byte, and what came is what the suite wants to see."""
    body = {"model": "relayed", **CREATE[case]}
    got = ask(gateway, **body)
    exchange = server.exchanges[-1]
    assert (exchange.path, exchange.body) == ("/v1/responses", got.request.content)
    assert got.content == exchange.answer
    response = response_of(got)
    assert calls_of(response) == ([("get_weather", {"place": "Zürich"})] if case == "tool calling" else [])


def test_the_phases_of_an_answer_are_relayed(gateway):
    """Commentary and final answer stay apart, each under its label."""
    response = response_of(ask(gateway, model="relayed", **CREATE["assistant phase"]))
    assert [(item["role"], item["phase"]) for item in response["output"]] == [
        ("assistant", "commentary"),
        ("assistant", "final_answer"),
    ]


def test_a_compaction_is_relayed_as_it_was_made(gateway, server):
    """With its cache key, to an object of its own kind that holds a compaction item."""
    got = ask(gateway, "responses/compact", model="relayed", prompt_cache_key="open-responses", input=CONVERSATION)
    exchange = server.exchanges[-1]
    assert (exchange.path, exchange.body, exchange.answer) == ("/v1/responses/compact", got.request.content, got.content)
    assert (got.status_code, got.json()["object"]) == (200, "response.compaction")
    assert "compaction" in {item["type"] for item in got.json()["output"]}
    if described() is not None:
        validator("CompactResource").validate(got.json())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("case", CREATE)
def test_a_response_is_made_from_chat(gateway, server, case, stream):
    """From an upstream that speaks chat only: the same cases, whole and streamed, with all fields and events."""
    got = ask(gateway, **{"model": "translated", **CREATE[case], "stream": stream})
    assert server.exchanges[-1].path == "/v1/chat/completions"
    response = response_of(got)
    if case == "tool calling":
        assert calls_of(response) == [("get_weather", {"place": "Zürich"})]
    else:
        last = CREATE[case]["input"][-1]["content"]
        asked = last if isinstance(last, str) else last[0]["text"]
        assert [part["text"] for item in response["output"] for part in item["content"]] == [asked]


def test_a_compaction_is_made_from_chat(gateway):
    """An object of its own kind, which the next request takes for the conversation."""
    got = ask(gateway, "responses/compact", model="translated", prompt_cache_key="open-responses", input=CONVERSATION)
    assert (got.status_code, got.json()["object"]) == (200, "response.compaction")
    assert "compaction" in {item["type"] for item in got.json()["output"]}
    if described() is not None:
        validator("CompactResource").validate(got.json())
    response_of(ask(gateway, model="translated", input=[*got.json()["output"], says("user", "When do we start?")]))


def test_a_compaction_without_a_model_is_refused(gateway, server):
    """With the parameter's name, and nobody is asked: no model is guessed where the API wants one."""
    before = len(server.exchanges)
    got = ask(gateway, "responses/compact", input=CONVERSATION)
    assert (got.status_code, got.json()["error"]["param"], len(server.exchanges)) == (400, "model", before)


@pytest.mark.weights
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("case", ["basic", "assistant phase", "system prompt", "multi-turn"])
def test_a_response_is_made_by_the_local_model(local, case, stream):
    """The cases that need text only; the model says what it likes."""
    response = response_of(ask(local, **{"model": "tiny", **CREATE[case], "stream": stream, "temperature": 0}))
    assert [item["type"] for item in response["output"]] == ["message"]
    assert response["usage"]["output_tokens"] > 0


@pytest.mark.weights
@pytest.mark.parametrize("case", ["tool calling", "image input"])
def test_what_the_local_model_cannot_do_is_refused(local, case):
    """By name, instead of an answer that left it out."""
    got = ask(local, model="tiny", **CREATE[case])
    assert (got.status_code, got.json()["error"]["type"]) == (400, "invalid_request_error")
