"""Responses relayed by the edge: bytes, errors, stored ids and whose they are; with the official client where it can be."""

import json
from contextlib import asynccontextmanager

import pytest
from front import Client
from hostile import HANG, answer, begun, ended, error, event, head, hostile, response, says
from openai import APIError, AsyncOpenAI, BadRequestError, NotFoundError

from gateway.affinity import Made
from gateway.auth import KeyFile

STREAM = (begun(), says("fi", 1), says("ne", 2), ended(3))


def asking(**fields):
    return json.dumps({"model": "m", "input": "hello", **fields}).encode()


@asynccontextmanager
async def client_of(made, key=None):
    async with (
        made.listening() as (host, port),
        AsyncOpenAI(base_url=f"http://{host}:{port}/v1", api_key=key or made.key, max_retries=0) as client,
    ):
        yield client


@pytest.fixture
async def server():
    async with hostile() as one:
        yield one


@pytest.fixture
def made(world, server):
    return world(up={"base_url": server.base_url, "retries": 0})


BAD = {
    "model": {"model": None},
    "input": {"input": 5},
    "input[0]": {"input": ["x"]},
    "input[0].content[0].type": {"input": [{"content": [{"type": 1}]}]},
    "stream": {"stream": "yes"},
    "store": {"store": 0},
    "text": {"text": "x"},
    "previous_response_id": {"previous_response_id": 7},
    "conversation": {"conversation": "conv_1"},
    "max_output_tokens": {"max_output_tokens": "many"},
}


@pytest.mark.parametrize(("param", "fields"), BAD.items(), ids=BAD)
async def test_a_bad_field_is_named(made, server, param, fields):
    """Nothing is sent, and the refusal says which field is wrong."""
    got = await Client(made, asking(**fields), endpoint="responses").answer()
    assert (got.status, json.loads(got.body)["error"]["param"], server.requests) == (400, param, [])


@pytest.mark.parametrize(
    "needs",
    [
        {"tools": [{"type": "function", "name": "f"}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]},
    ],
)
async def test_what_the_model_must_be_able_to_do_is_known(world, server, needs):
    """Tools and images are asked of the candidate as for chat; without the capability nothing is sent."""
    made = world(up={"base_url": server.base_url})
    for able, status in ((("chat",), 400), (("responses",), 400), (("responses", "tools", "images"), 200)):
        made.set_capabilities(able)
        server.scripts = [[answer(200, response())]]
        got = await Client(made, asking(**needs), endpoint="responses").answer()
        assert got.status == status, got.body
        if status == 400:
            assert json.loads(got.body)["error"]["code"] == "unsupported_by_model"
    assert len(server.requests) == 1


async def test_a_body_and_its_answer_keep_their_bytes(made, server):
    """Numbers, order, nulls and unknown fields go and come as they are; usage and text are in the record and the log."""
    sent = b'{ "zeta": 9007199254740993, "model":"m" , "input":"h\\u00e9", "x":null, "tools":[] }'
    told = (
        b'{"id":"resp_9", "object":"response", "n":1.10, "status":"completed", "output":'
        + json.dumps(response()["output"]).encode()
        + b', "usage":{"input_tokens":5,"output_tokens":2}, "error":null}'
    )
    server.scripts = [[answer(200, told)]]
    got = await Client(made, sent, endpoint="responses").answer()
    assert (server.requests[0][1], got.body, got.status) == (sent, told, 200)
    assert server.requests[0][0].startswith(b"POST /v1/responses HTTP/1.1")
    record = made.records[0]
    assert (record.usage.prompt_tokens, record.usage.completion_tokens, record.finish_reason) == (5, 2, "completed")
    assert ([token.text for token in made.tokens], record.cache, got.headers["x-gateway-cache"]) == (["fine"], "off", "off")


async def test_a_stream_keeps_its_bytes(made, server):
    """Events of any name pass; the record has usage, the log the text."""
    events = b"".join((begun(), event("response.odd", sequence_number=1, x=1), *STREAM[1:]))
    server.scripts = [[head(), events]]
    got = await Client(made, asking(stream=True), endpoint="responses").answer()
    assert (got.body, made.records[0].ending) == (events, "complete")
    assert (made.records[0].usage.completion_tokens, made.records[0].usage.cached_tokens) == (2, 1)
    assert [token.text for token in made.tokens] == ["fi", "ne"]


CUTS = {"closed": [], "in an event": [says("more", 3)[:30]]}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
async def test_a_cut_stream_ends_in_an_error_with_the_next_number(made, server, cut):
    """First `error`, then `response.failed` with the response as it had begun; never a clean end."""
    server.scripts = [[head(), *STREAM[:3], *cut]]
    got = await Client(made, asking(stream=True), endpoint="responses").answer()
    whole, tail = got.body[: len(b"".join(STREAM[:3]))], got.body[len(b"".join(STREAM[:3])) :]
    names = [line[7:] for line in tail.decode().splitlines() if line.startswith("event: ")]
    told = [json.loads(line[6:]) for line in tail.decode().splitlines() if line.startswith("data: ")]
    assert (whole, names) == (b"".join(STREAM[:3]), ["error", "response.failed"])
    assert [one["sequence_number"] for one in told] == [3, 4]
    assert (told[0]["code"], told[0]["param"], told[1]["response"]["id"]) == ("upstream_error", None, "resp_1")
    assert (told[1]["response"]["status"], made.records[0].ending, made.records[0].error) == ("failed", "broken", "cut")


FAILURES = {
    "error": event("error", sequence_number=2, code="c1", message="no", param=None),
    "failed": ended(2, "failed", error={"code": "server_error", "message": "no"}),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
async def test_the_upstreams_own_error_passes_as_it_came(made, server, failure):
    """Nothing is added to it, and the record says broken."""
    server.scripts = [[head(), *STREAM[:2], failure]]
    got = await Client(made, asking(stream=True), endpoint="responses").answer()
    assert got.body.startswith(b"".join((*STREAM[:2], failure)))
    assert (got.body.count(b"response.failed") <= 2, made.records[0].ending) == (True, "broken")


async def test_an_error_before_the_answer_begins_falls_back(world, server):
    """The next candidate answers, and the client sees nothing of it."""
    async with hostile() as other:
        made = world(a={"base_url": server.base_url, "retries": 0}, b={"base_url": other.base_url})
        server.scripts = [[head(), FAILURES["error"]]]
        other.scripts = [[head(), *STREAM]]
        got = await Client(made, asking(stream=True), endpoint="responses").answer()
    assert (got.status, got.body, made.records[0].ending) == (200, b"".join(STREAM), "fallback")


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_in_the_other_shape_is_no_answer(made, server, stream):
    """A stream where a whole answer was asked for, or the reverse, is a 502; we do not build one from the other."""
    server.scripts = [[answer(200, response())] if stream else [head(), *STREAM]]
    got = await Client(made, asking(stream=stream), endpoint="responses").answer()
    assert (got.status, json.loads(got.body)["error"]["code"]) == (502, "upstream_error")


async def test_the_official_client_creates_reads_continues_and_deletes(made, server):
    """The id is the upstream's own, and every later call goes where the response is."""
    server.scripts = [
        [answer(200, response())],
        [answer(200, response())],
        [answer(200, {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False})],
        [answer(200, response(id_="resp_2"))],
        [answer(200, response("cancelled"))],
        [answer(200, {"id": "resp_1", "object": "response.deleted", "deleted": True})],
    ]
    async with client_of(made) as client:
        first = await client.responses.create(model="m", input="hello")
        assert (await client.responses.retrieve(first.id)).output_text == "fine"
        assert (await client.responses.input_items.list(first.id, limit=5)).data == []
        second = await client.responses.create(model="m", input="more", previous_response_id=first.id)
        assert (await client.responses.cancel(first.id)).status == "cancelled"
        await client.responses.delete(first.id)
        with pytest.raises(NotFoundError) as caught:
            await client.responses.retrieve(first.id)
    assert (first.id, second.id, caught.value.code) == ("resp_1", "resp_2", "response_not_found")
    lines = [request.split(b" HTTP")[0] for request, _ in server.requests]
    assert lines == [
        b"POST /v1/responses", b"GET /v1/responses/resp_1", b"GET /v1/responses/resp_1/input_items?limit=5", b"POST /v1/responses",
        b"POST /v1/responses/resp_1/cancel", b"DELETE /v1/responses/resp_1",
    ]  # fmt: skip
    assert not any(made.key.encode() in request for request, _ in server.requests)


async def test_the_official_client_streams(made, server):
    """Its own event types come out, and the id of a streamed response can be asked for again, as a stream too."""
    server.scripts = [[head(), *STREAM], [head(), *STREAM[2:]]]
    async with client_of(made) as client:
        events = [one async for one in await client.responses.create(model="m", input="hello", stream=True)]
        again = [one async for one in await client.responses.retrieve("resp_1", stream=True, starting_after=1)]
    assert [one.type for one in events] == [
        "response.created", "response.output_text.delta", "response.output_text.delta", "response.completed",
    ]  # fmt: skip
    assert [one.sequence_number for one in again] == [2, 3]
    assert (
        server.requests[1][0].startswith(b"GET /v1/responses/resp_1?starting_after=1&stream=true HTTP")
        or b"stream=true" in server.requests[1][0]
    )
    assert made.records[1].usage.completion_tokens == 0


async def test_the_official_client_raises_for_a_cut(made, server):
    """What came before is delivered, then the SDK raises with our message."""
    server.scripts = [[head(), *STREAM[:2]]]
    async with client_of(made) as client:
        stream = aiter(await client.responses.create(model="m", input="hello", stream=True))
        seen = [(await anext(stream)).type for _ in range(2)]
        with pytest.raises(APIError, match="ended before"):
            await anext(stream)
    assert seen == ["response.created", "response.output_text.delta"]


async def test_a_response_belongs_to_its_tenant(made, server):
    """Another tenant can neither read nor continue it; nothing of that reaches the upstream."""
    server.scripts = [[answer(200, response())]]
    stranger = KeyFile(made.keys._file.path).add("stranger", tenant="other")
    async with made.listening() as (host, port):
        url = f"http://{host}:{port}/v1"
        async with AsyncOpenAI(base_url=url, api_key=made.key) as owner, AsyncOpenAI(base_url=url, api_key=stranger) as other:
            await owner.responses.create(model="m", input="hello")
            with pytest.raises(NotFoundError) as unread:
                await other.responses.retrieve("resp_1")
            with pytest.raises(BadRequestError) as uncontinued:
                await other.responses.create(model="m", input="go on", previous_response_id="resp_1")
    assert (unread.value.code, uncontinued.value.code) == ("response_not_found", "previous_response_not_found")
    assert (uncontinued.value.param, len(server.requests)) == ("previous_response_id", 1)


async def test_what_is_not_stored_is_not_found(made, server):
    """`store: false` leaves no id behind."""
    server.scripts = [[answer(200, response())]]
    await Client(made, asking(store=False), endpoint="responses").answer()
    assert await made.affinity.find("default", "resp_1") is None


@pytest.mark.parametrize("store", [{}, {"store": True}, {"store": None}])
async def test_what_is_too_sensitive_is_not_stored(made, server, store):
    """Left out means stored, with this API: the refusal names `store`, and with false the request goes."""
    server.scripts = [[answer(200, response())]]
    got = await Client(made, asking(**store), endpoint="responses", x_gateway_class="confidential").answer()
    assert (got.status, json.loads(got.body)["error"]["code"], json.loads(got.body)["error"]["param"]) == (
        400,
        "store_forbidden",
        "store",
    )
    assert server.requests == []
    got = await Client(made, asking(store=False), endpoint="responses", x_gateway_class="confidential").answer()
    assert got.status == 200


async def test_a_response_is_continued_where_it_is(world, server):
    """Another upstream of the model is not asked, not even when the right one fails; and the class goes on, too."""
    async with hostile() as other:
        made = world(a={"base_url": server.base_url}, b={"base_url": other.base_url, "retries": 0})
        made.affinity.remember("default", "resp_7", Made("b", "m", "m", "internal"))
        other.scripts = [[error(500)], [answer(200, response())]]
        for status in (500, 200):
            got = await Client(made, asking(previous_response_id="resp_7"), endpoint="responses").answer()
            assert got.status == status
        assert ({record.class_ for record in made.records}, server.requests) == ({"internal"}, [])


async def test_an_upstream_that_is_gone_cannot_continue(made):
    """The message says which upstream keeps the response; a response of one that is no longer configured is not found."""
    made.affinity.remember("default", "resp_7", Made("gone", "m", "m", "public"))
    got = await Client(made, asking(previous_response_id="resp_7"), endpoint="responses").answer()
    assert (got.status, "gone" in json.loads(got.body)["error"]["message"]) == (400, True)
    got = await Client(made, endpoint="responses/resp_7", method="GET").answer()
    assert (got.status, json.loads(got.body)["error"]["code"]) == (404, "response_not_found")


@pytest.mark.parametrize("query", ["secret=1", "after=a%20b", "stream=true&stream=%00", "limit=" + "1" * 200])
async def test_a_query_that_nobody_scans_does_not_travel(made, server, query):
    """Words that the API does not have, and values that are more than one plain word."""
    made.affinity.remember("default", "resp_1", Made("up", "m", "m", "public"))
    got = await Client(made, endpoint="responses/resp_1", method="GET", query=query).answer()
    assert (got.status, json.loads(got.body)["error"]["code"], server.requests) == (400, "unknown_parameter", [])


async def test_another_method_on_a_stored_response_is_405(made):
    """The refusal says which would do."""
    got = await Client(made, endpoint="responses/resp_1", method="PUT").answer()
    assert (got.status, got.headers["allow"]) == (405, "GET, DELETE")


async def test_a_model_may_be_left_out_where_the_api_lets_it(made, server):
    """Token counts go to the model of the earlier response, else to the first that speaks Responses."""
    server.scripts = [[answer(200, {"object": "response.input_tokens", "input_tokens": 3})]]
    got = await Client(made, b'{"input":[{"role":"user","content":"x"}]}', endpoint="responses/input_tokens").answer()
    assert (got.status, server.requests[0][1]) == (200, b'{"input":[{"role":"user","content":"x"}]}')
    assert made.records[0].model == "m"


async def test_leaving_a_response_leaves_its_upstream(made, server):
    """Reading a stored response as a stream is cancelled like any other."""
    made.affinity.remember("default", "resp_1", Made("up", "m", "m", "public"))
    server.scripts = [[head(), begun(), HANG]]
    client = Client(made, endpoint="responses/resp_1", method="GET", query="stream=true")
    await server.arrived.wait()
    client.leaves.set()
    await client.task
    await server.left.wait()
    assert [record.ending for record in made.records] == ["client_gone"]
    assert made.idle()
