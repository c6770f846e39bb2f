"""Moderations, images and speech relayed by the edge, and the other spellings of every path."""

import json

import pytest
from front import Client, body
from hostile import RESET, answer, completion, error, event, head, hostile
from openai import AsyncAzureOpenAI, AsyncOpenAI

from gateway.config import ENDPOINT_CAPABILITIES

SOUND = bytes(range(256)) * 40


@pytest.fixture
async def server():
    async with hostile() as one:
        yield one


@pytest.fixture
def made(world, server):
    return world(up={"base_url": server.base_url, "retries": 0})


JSON_RELAYS = {
    "moderations": (
        b'{"input": [ "x", {"type":"text","text":"y"} ], "z":1.10}',
        b'{"id":"modr-1", "results":[{"flagged":false}] }',
    ),
    "images/generations": (b'{ "prompt":"a cat", "model" :"m", "n":2}', b'{"created":1, "data":[{"b64_json":"AAAA"}]}'),
}


@pytest.mark.parametrize("endpoint", [*JSON_RELAYS, "audio/speech"])
async def test_without_its_capability_an_endpoint_is_refused_by_name(made, server, endpoint):
    """A model that has every other capability does not get it."""
    made.set_capabilities({"chat", *ENDPOINT_CAPABILITIES} - {endpoint})
    for fields in ({"model": "m"}, {}):
        got = await Client(made, json.dumps({"input": "x", "prompt": "x", **fields}).encode(), endpoint=endpoint).answer()
        told = json.loads(got.body)["error"]
        expected = "missing_required_parameter" if endpoint == "audio/speech" and not fields else "unsupported_by_model"
        assert (got.status, told["code"], server.requests) == (400, expected, [])
        assert endpoint in told["message"] or expected == "missing_required_parameter"


@pytest.mark.parametrize("endpoint", [*JSON_RELAYS, "audio/speech"])
async def test_without_its_text_a_request_is_refused(made, server, endpoint):
    """The field that is missing is named."""
    got = await Client(made, b'{"model":"m"}', endpoint=endpoint).answer()
    told = json.loads(got.body)["error"]
    assert (got.status, told["code"], server.requests) == (400, "missing_required_parameter", [])
    assert told["param"] == ("prompt" if endpoint.startswith("images") else "input")


@pytest.mark.parametrize(("endpoint", "sent", "told"), [(name, *pair) for name, pair in JSON_RELAYS.items()], ids=JSON_RELAYS)
async def test_json_travels_byte_for_byte_and_is_never_cached(made, server, endpoint, sent, told):
    """Both ways, twice; a body without a model stays without one."""
    server.scripts = [[answer(200, told)]]
    for _ in range(2):
        got = await Client(made, sent, endpoint=endpoint).answer()
        assert (got.status, got.body, got.headers["x-gateway-cache"]) == (200, told, "off")
    assert [request[1] for request in server.requests] == [sent, sent]
    assert server.requests[0][0].startswith(f"POST /v1/{endpoint} ".encode())
    assert (made.records[0].model, made.records[0].endpoint) == ("m", endpoint)


async def test_sound_is_relayed_as_it_comes(made, server):
    """Bytes and content type are the upstream's."""
    server.scripts = [[head(200, "audio/mpeg"), SOUND[:5_000], SOUND[5_000:]]]
    async with made.listening() as (host, port), AsyncOpenAI(base_url=f"http://{host}:{port}/v1", api_key=made.key) as client:
        got = await client.audio.speech.create(model="m", input="say it", voice="alloy")
        assert (await got.aread(), got.response.headers["content-type"]) == (SOUND, "audio/mpeg")
    assert (made.records[0].ending, made.records[0].usage.estimated) == ("complete", True)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_sound_that_was_cut_is_never_ended(made, server):
    """There is no place for an error in it, so the connection breaks and the client knows."""
    server.scripts = [[b"HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\ncontent-length: 99999\r\n\r\n", SOUND, RESET]]
    client = Client(made, json.dumps({"model": "m", "input": "x"}).encode(), endpoint="audio/speech")
    await client.task
    assert client.sent[-1]["more_body"] is True
    assert (made.records[0].ending, made.records[0].status, made.idle()) == ("broken", 200, True)


async def test_sound_that_cannot_be_made_is_an_error(made, server):
    """Before the first byte it is an ordinary refusal, or an empty answer that is none."""
    server.scripts = [[error(400, "no such voice")], [head(200, "audio/mpeg")]]
    for status in (400, 502):
        got = await Client(made, json.dumps({"model": "m", "input": "x"}).encode(), endpoint="audio/speech").answer()
        assert (got.status, "message" in json.loads(got.body)["error"]) == (status, True)


STREAMS = {
    "images/generations": ({"prompt": "x", "stream": True}, "image_generation.completed"),
    "audio/speech": ({"input": "x", "stream_format": "sse"}, "speech.audio.done"),
}


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize(("endpoint", "fields", "last"), [(name, *pair) for name, pair in STREAMS.items()], ids=STREAMS)
async def test_streams_of_typed_events_are_relayed(made, server, *, endpoint, fields, last, cut):
    """To their last event, or to an error event."""
    first = event("image_generation.partial_image", b64_json="AAAA")
    server.scripts = [[head(), first, *([] if cut else [event(last)])]]
    got = await Client(made, json.dumps({"model": "m", **fields}).encode(), endpoint=endpoint).answer()
    rest = got.body.removeprefix(first)
    assert rest.startswith(b"event: error") if cut else rest == event(last)
    assert made.records[0].ending == ("broken" if cut else "complete")


DEPLOYMENT = "/openai/deployments/m/chat/completions"


@pytest.mark.parametrize("named", [{"model": "m"}, {}, {"model": None}])
async def test_a_deployment_is_a_model(made, server, named):
    """Its name is put in where the body has none; api-version stays here."""
    server.scripts = [[answer(200, completion())]]
    sent = json.dumps({"messages": [{"role": "user", "content": "x"}], **named}).encode()
    headers = {"authorization": None, "api_key": made.key}
    got = await Client(made, sent, endpoint=DEPLOYMENT, query="api-version=2024-10-21", **headers).answer()
    assert (got.status, json.loads(server.requests[0][1])) == (200, {**json.loads(sent), "model": "m"})
    assert server.requests[0][0].startswith(b"POST /v1/chat/completions HTTP")


async def test_a_deployment_that_the_body_contradicts_is_refused(made, server):
    """Two names for one model is nobody's."""
    got = await Client(made, body(model="other"), endpoint=DEPLOYMENT).answer()
    assert (got.status, json.loads(got.body)["error"]["code"], server.requests) == (400, "model_mismatch", [])


async def test_the_azure_client_is_served(made, server):
    """Chat by deployment, Responses without one."""
    server.scripts = [[answer(200, completion())]]
    async with made.listening() as (host, port):
        options = {"azure_endpoint": f"http://{host}:{port}", "api_version": "2025-04-01-preview", "api_key": made.key}
        async with AsyncAzureOpenAI(**options, max_retries=0) as client:
            got = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
    assert got.choices[0].message.content == "fine"


NOWHERE = {"/v1/uploads": "endpoint_not_served", "/v1/vector_stores/b1": "endpoint_not_served", "/openai/v1/audio/voices": "endpoint_not_served",
           "/openai/deployments/m/files": "unknown_url", "/v1/nothing": "unknown_url", "/v2/responses": "unknown_url", "/v1/responses/a/b": "unknown_url"}  # fmt: skip


@pytest.mark.parametrize(("path", "code"), NOWHERE.items())
async def test_what_is_not_served_says_so(made, path, code):
    """404, whatever the key, with the page that lists what is served."""
    got = await Client(made, b"", endpoint=path).answer()
    assert (got.status, json.loads(got.body)["error"]["code"]) == (404, code)
    assert "docs/endpoints.md" in json.loads(got.body)["error"]["message"]
