"""Replies, events and errors held against OpenAI's own API description. Needs that file: it is not part of this project.

Get `openapi.json` from the openai/openai-openapi repository (it may be gzipped) and name it in $GATEWAY_OPENAPI.
"""

import copy
import gzip
import json
import os
from functools import cache
from pathlib import Path

import httpx
import jsonschema
import pytest

from tests.e2e.gateways import ECHO_POLICY, ROOT, Gateway

DESCRIPTION = Path(os.environ.get("GATEWAY_OPENAPI", ROOT.parent / "shared/data/openai/openapi.json.gz"))
FAILS = ("connect", "status", "first", "midway")
TEXT = 'ünï "two"\n你好 🦊'
MESSAGES = [{"role": "user", "content": TEXT}]

pytestmark = pytest.mark.skipif(
    not DESCRIPTION.is_file(),
    reason=f"no API description at {DESCRIPTION}: name openai/openai-openapi's openapi.json in GATEWAY_OPENAPI",
)


@cache
def schemas():
    """The description's schemas in plain JSON Schema: it says `nullable` where its own version, 3.1, no longer knows the word."""
    data = DESCRIPTION.read_bytes()
    found = json.loads(gzip.decompress(data) if DESCRIPTION.suffix == ".gz" else data)["components"]["schemas"]
    # Streamed completions share the schema of whole ones; what is null in a stream only (as the words beside `stream_options`
    # say, and OpenAI's own streams show) may not be null in it.
    streamed = copy.deepcopy(found["CreateCompletionResponse"])
    streamed["properties"]["choices"]["items"]["properties"]["finish_reason"]["nullable"] = True
    streamed["properties"]["usage"]["nullable"] = True
    found["StreamedCompletion"] = streamed
    return _plain(found)


def _plain(value):
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    made = {name: _plain(item) for name, item in value.items()}
    return {"anyOf": [made, {"type": "null"}]} if value.get("nullable") is True else made


@cache
def validator(name):
    """A validator for one of the description's schemas."""
    return jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas()}})


def check(name, value):
    """Fail with every place where a value is not what the description says."""
    problems = [f"{error.json_path}: {error.message[:200]}" for error in validator(name).iter_errors(value)]
    assert problems == [], (name, value)


def check_stream(name, answer):
    """Every event of a stream; gives them back, the end mark checked and left out."""
    *datas, end = [event.removeprefix("data: ") for event in answer.text.split("\n\n") if event]
    assert (end, answer.headers["content-type"]) == ("[DONE]", "text/event-stream; charset=utf-8")
    events = [json.loads(data) for data in datas]
    for event in events:
        check(name, event)
    return events


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    """A real gateway whose upstreams echo, or fail in every way they can."""
    echo = '[upstreams.%s]\nkind = "echo"\nzone = "local"\ntakes_up_to = "confidential"\nfail = "%s"\n'
    model = (
        '[models.%s]\ncandidates = [{ upstream = "%s", capabilities = ["chat", "completions", "embeddings", "tools", "json"] }]\n'
    )
    names = [("echo", ""), *((fail, fail) for fail in FAILS)]
    config = "".join(echo % pair + model % (pair[0], pair[0]) for pair in names) + "[cache]\nsemantic = false\n"
    with Gateway(tmp_path_factory.mktemp("spec"), config, policies={"all.toml": ECHO_POLICY}) as made:
        yield made.until_up("echo/echo")


@pytest.mark.parametrize("state", ["miss", "hit-exact"])
def test_whole_answers_are_as_described(gateway, state):
    """Chat, completions and embeddings, from an upstream and out of the cache."""
    for endpoint, schema, fields in (
        ("chat/completions", "CreateChatCompletionResponse", {"messages": MESSAGES}),
        ("completions", "CreateCompletionResponse", {"prompt": TEXT}),
        ("embeddings", "CreateEmbeddingResponse", {"input": [TEXT, "x"]}),
    ):
        got = gateway.post(endpoint, json={"model": "echo", "top_p": 0.5, **fields})
        assert (got.status_code, got.headers["x-gateway-cache"]) == (200, state)
        check(schema, got.json())


@pytest.mark.parametrize("stored", ["nothing", "a stream", "a whole answer"])
@pytest.mark.parametrize("usage", [True, False])
def test_every_event_is_as_described(gateway, stored, usage):
    """Streams from an upstream, and out of the cache whichever shape was stored, with usage and without."""
    options = {"stream_options": {"include_usage": True}} if usage else {}
    for endpoint, schema, fields in (
        ("chat/completions", "CreateChatCompletionStreamResponse", {"messages": MESSAGES}),
        ("completions", "StreamedCompletion", {"prompt": TEXT}),
    ):
        asked = {"model": "echo", "seed": 2 * len(stored) + usage, **fields}
        if stored != "nothing":
            gateway.post(endpoint, json={**asked, "stream": stored == "a stream"})
        got = gateway.post(endpoint, json={**asked, "stream": True, **options})
        assert got.headers["x-gateway-cache"] == ("miss" if stored == "nothing" else "hit-exact")
        events = check_stream(schema, got)
        assert (events[-1]["choices"] == []) is usage


def test_models_are_as_described(gateway):
    """The list and each of its entries."""
    listed = httpx.get(f"{gateway.url}/v1/models", headers={"authorization": f"Bearer {gateway.key}"}).json()
    check("ListModelsResponse", listed)
    one = httpx.get(f"{gateway.url}/v1/models/echo", headers={"authorization": f"Bearer {gateway.key}"}).json()
    check("Model", one)


def ask(**fields):
    return {"json": {"model": "echo", "messages": MESSAGES, **fields}}


ERRORS = {
    "no JSON": (400, {"content": b"{"}),
    "an array": (400, {"content": b"[]"}),
    "a key twice": (400, {"content": b'{"model":"a","model":"b"}'}),
    "no model": (400, {"json": {"messages": MESSAGES}}),
    "no messages": (400, {"json": {"model": "echo"}}),
    "empty messages": (400, ask(messages=[])),
    "a wrong type": (400, ask(stream="yes")),
    "what the model cannot do": (400, ask(n=3)),
    "no key": (401, {**ask(), "headers": {"authorization": ""}}),
    "a wrong key": (401, {**ask(), "headers": {"authorization": "Bearer sk-wrong"}}),
    "forbidden by policy": (403, {**ask(), "headers": {"x-gateway-class": "restricted"}}),
    "an unknown model": (404, ask(model="nope")),
    "an unknown path": (404, {**ask(), "path": "nothing/here"}),
    "too much": (413, {"content": b'{"x":"' + b"x" * 33_554_432 + b'"}'}),
    "another media type": (415, {"content": b"x", "headers": {"content-type": "text/plain"}}),
    "an encoded body": (415, {"content": b"x", "headers": {"content-encoding": "gzip"}}),
    "an upstream that fails": (500, ask(model="status")),
    "an error as first event": (502, ask(model="first", stream=True)),
    "a cut": (502, ask(model="midway")),
    "an upstream that is down": (503, ask(model="connect")),
}


@pytest.mark.parametrize(("status", "asked"), ERRORS.values(), ids=ERRORS)
def test_every_error_is_as_described(gateway, status, asked):
    """Twenty kinds, each with its status, all four keys of the envelope, and a request id to ask about."""
    asked = dict(asked)
    got = gateway.post(asked.pop("path", "chat/completions"), **asked)
    assert (got.status_code, got.headers["content-type"]) == (status, "application/json")
    assert got.headers["x-request-id"].startswith("req_")
    check("ErrorResponse", got.json())


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_a_wrong_method_is_as_described(gateway, method):
    """405 in the same envelope, with the method that is right."""
    got = httpx.request(method, f"{gateway.url}/v1/chat/completions", headers={"authorization": f"Bearer {gateway.key}"})
    assert (got.status_code, got.headers["allow"]) == (405, "POST")
    check("ErrorResponse", got.json())


def test_an_error_in_a_stream_is_as_described(gateway):
    """The event after which nothing follows but the end mark has the envelope that a status would have had."""
    got = gateway.post("chat/completions", **ask(model="midway", stream=True))
    *events, told, end = [event.removeprefix("data: ") for event in got.text.split("\n\n") if event]
    for event in events:
        check("CreateChatCompletionStreamResponse", json.loads(event))
    check("ErrorResponse", json.loads(told))
    assert end == "[DONE]"


LOCAL = {
    "plain": {},
    "a stop": {"stop": ["a", "e"]},
    "a limit": {"max_tokens": 3, "seed": 1, "temperature": 1},
}


@pytest.mark.weights
@pytest.mark.parametrize("fields", LOCAL.values(), ids=LOCAL)
@pytest.mark.parametrize("obfuscated", [True, False])
def test_the_local_models_answers_are_as_described(local, fields, obfuscated):
    """Whole and streamed, fresh and out of the cache, with the options it has."""
    asked = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Say hello."}],
        "max_tokens": 12,
        "temperature": 0,
        **fields,
    }
    streamed = {**asked, "stream": True, "stream_options": {"include_usage": True, "include_obfuscation": obfuscated}}
    for _ in range(2):
        got = local.post("chat/completions", json=streamed)
        assert check_stream("CreateChatCompletionStreamResponse", got)[-1]["usage"]["completion_tokens"] > 0
        got = local.post("chat/completions", json=asked)
        assert got.status_code == 200, got.text
        check("CreateChatCompletionResponse", got.json())


@pytest.mark.weights
def test_the_local_models_completions_are_as_described(local):
    """Whole and streamed."""
    asked = {"model": "tiny", "prompt": "The capital of France is", "max_tokens": 5, "temperature": 0}
    check("CreateCompletionResponse", local.post("completions", json=asked).json())
    check_stream("StreamedCompletion", local.post("completions", json={**asked, "stream": True}))
