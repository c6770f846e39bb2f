"""Anthropic's messages relayed by the edge, in that dialect from the first refusal to the last event."""

import json

import pytest
from front import POLICY, Client
from hostile import HANG, answer, event, head, hostile, message, message_events

EVENTS = message_events()
SPOKEN = b"".join(EVENTS)


def asking(**fields):
    return json.dumps({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}], **fields}).encode()


async def ask(made, payload, *, endpoint="messages", **options):
    return await Client(made, payload, endpoint=endpoint, **options).answer()


def told(got):
    """The error, which has Anthropic's shape and no other."""
    body = json.loads(got.body)
    assert (set(body), body["type"], set(body["error"])) == ({"type", "error"}, "error", {"type", "message"})
    return body["error"]


@pytest.fixture
async def server():
    async with hostile() as one:
        yield one


@pytest.fixture
def made(world, server):
    return world(up={"base_url": server.base_url, "retries": 0})


NEVER = '[[limit]]\nname = "none"\nwhen = { max_output = "> 5" }\nnever = { zone = "local" }\n'
REFUSALS = {
    "no key": ({"x_api_key": None, "authorization": None}, asking(), 401, "authentication_error"),
    "unknown key": ({"x_api_key": "sk-ant-x", "authorization": None}, asking(), 401, "authentication_error"),
    "no model": ({}, b"{}", 400, "invalid_request_error"),
    "no messages": ({}, b'{"model":"m"}', 400, "invalid_request_error"),
    "unknown model": ({}, asking(model="nope"), 404, "not_found_error"),
    "not JSON": ({}, b"{", 400, "invalid_request_error"),
    "form": ({"content_type": "text/plain"}, asking(), 415, "invalid_request_error"),
    "method": ({"method": "GET"}, b"", 405, "invalid_request_error"),
    "too large": ({}, asking(system="x" * 3000), 413, "request_too_large"),
}


@pytest.mark.parametrize(("headers", "payload", "status", "kind"), REFUSALS.values(), ids=REFUSALS)
async def test_our_refusals_are_in_anthropics_shape(world, server, *, headers, payload, status, kind):
    """Whatever is wrong, before anything is sent."""
    got = await ask(world(server="max_body_bytes = 2048", up={"base_url": server.base_url}), payload, **headers)
    assert (got.status, told(got)["type"], server.requests) == (status, kind, [])
    assert got.headers["request-id"] == got.headers["x-request-id"]


async def test_policy_is_in_anthropics_shape_too(world, server):
    """403 is a permission error."""
    got = await ask(world(policy=POLICY + NEVER, up={"base_url": server.base_url}), asking())
    assert (got.status, told(got)["type"], server.requests) == (403, "permission_error", [])


UPSTREAMS = {
    "its own": (
        answer(529, {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}, "request_id": "r"}),
        529,
        None,
    ),
    "OpenAI's": (
        answer(400, {"error": {"message": "bad", "type": "x", "param": None, "code": None}}),
        400,
        "invalid_request_error",
    ),
    "HTML": (answer(500, b"<html>", "text/html"), 502, "api_error"),
    "our key refused": (
        answer(401, {"type": "error", "error": {"type": "authentication_error", "message": "x"}}),
        502,
        "api_error",
    ),
    "rate limit": (answer(429, b""), 429, "rate_limit_error"),
}


@pytest.mark.parametrize(("script", "status", "kind"), UPSTREAMS.values(), ids=UPSTREAMS)
async def test_an_upstreams_error_arrives_in_anthropics_shape(made, server, script, status, kind):
    """Byte for byte where it has that shape already, else in our words or its message."""
    server.scripts = [[script]]
    got = await ask(made, asking())
    assert got.status == status
    if kind is None:
        assert got.body == script.partition(b"\r\n\r\n")[2]
    else:
        assert told(got)["type"] == kind


async def test_versions_and_betas_travel_and_the_clients_key_does_not(made, server):
    """Headers, query and body as they came; our key is nowhere in what the upstream sees."""
    server.scripts = [[answer(200, message())]]
    headers = {"x_api_key": made.key, "authorization": None, "anthropic_version": "2023-06-01", "anthropic_beta": "a-1,b-2",
               "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}  # fmt: skip
    got = await ask(made, asking(marked={"cache_control": None}), query="beta=true", **headers)
    ((request, sent),) = server.requests
    assert (got.status, json.loads(got.body), sent) == (200, message(), asking(marked={"cache_control": None}))
    assert request.startswith(b"POST /v1/messages?beta=true HTTP/1.1")
    assert {b"anthropic-version: 2023-06-01", b"anthropic-beta: a-1,b-2"} <= set(request.lower().split(b"\r\n"))
    assert b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01" in request.lower()
    assert made.key.encode() not in request
    assert (made.records[0].usage.prompt_tokens, made.records[0].usage.cached_tokens, made.records[0].finish_reason) == (
        8,
        4,
        "end_turn",
    )


@pytest.mark.parametrize("client", ["http1", "httpx"])
async def test_the_upstreams_own_key_goes_as_it_wants_it(world, server, upstream_key, client):
    """Bare in x-api-key when its config says so; its limits come back under its own names."""
    server.scripts = [[answer(200, message(), anthropic_ratelimit_requests_remaining="7", request_id="up-1")]]
    settings = {"base_url": server.base_url, "key_env": "TEST_UPSTREAM", "key_header": "x-api-key", "client": client}
    got = await ask(world(up=settings), asking(), anthropic_version="2023-06-01")
    lines = server.requests[0][0].lower().split(b"\r\n")
    assert f"x-api-key: {upstream_key}".encode() in lines
    assert not [line for line in lines if line.startswith(b"authorization")]
    assert (got.headers["anthropic-ratelimit-requests-remaining"], got.headers["x-upstream-request-id"]) == ("7", "up-1")


async def test_a_query_is_scanned_like_the_body(made, server):
    """An address in it raises the class as one in the body does."""
    server.scripts = [[answer(200, message())]]
    await ask(made, asking(), query="note=jane.roe%40example.org")
    assert (made.records[0].found, made.records[0].class_) == (("email",), "restricted")


TEXTS = ({"system": "write to jane.roe@example.org"}, {"messages": [{"role": "user", "content": [
    {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "jane.roe@example.org"}]}]}]})  # fmt: skip


@pytest.mark.parametrize("fields", TEXTS)
async def test_every_string_is_scanned(made, server, fields):
    """System prompt and what tools gave back."""
    server.scripts = [[answer(200, message())]]
    await ask(made, asking(**fields))
    assert made.records[0].found == ("email",)


async def test_a_stream_keeps_its_bytes(made, server):
    """Pings and all; text, usage and reason are in log and record."""
    server.scripts = [[head(), SPOKEN]]
    got = await ask(made, asking(stream=True))
    assert (got.body, made.records[0].ending, made.records[0].finish_reason) == (SPOKEN, "complete", "end_turn")
    assert ([token.text for token in made.tokens], made.records[0].usage.completion_tokens) == (["fine"], 2)
    assert made.records[0].usage.prompt_tokens == 8


async def test_a_cut_stream_ends_in_an_error_event(made, server):
    """No [DONE], no invented message_stop."""
    server.scripts = [[head(), *EVENTS[:4]]]
    got = await ask(made, asking(stream=True))
    tail = got.body[len(b"".join(EVENTS[:4])) :].decode().split("\n")
    assert (tail[0], json.loads(tail[1][6:])["error"]["type"], tail[2:]) == ("event: error", "api_error", ["", ""])
    assert (made.records[0].ending, made.records[0].error) == ("broken", "cut")


async def test_the_upstreams_own_error_event_is_the_last(made, server):
    """It passes as it came, and nothing follows it."""
    own = event("error", error={"type": "overloaded_error", "message": "busy"})
    server.scripts = [[head(), *EVENTS[:4], own]]
    got = await ask(made, asking(stream=True))
    assert (got.body, made.records[0].ending) == (b"".join((*EVENTS[:4], own)), "broken")


async def test_pings_do_not_begin_an_answer(world, server):
    """An error behind a ping still falls back to the next candidate."""
    async with hostile() as other:
        made = world(a={"base_url": server.base_url, "retries": 0}, b={"base_url": other.base_url})
        server.scripts = [[head(), event("ping"), event("error", error={"type": "overloaded_error", "message": "busy"})]]
        other.scripts = [[head(), SPOKEN]]
        got = await ask(made, asking(stream=True))
    assert (got.body, made.records[0].ending) == (SPOKEN, "fallback")


async def test_a_candidate_must_speak_it(made, server):
    """One that only knows chat is not asked."""
    made.set_capabilities(("chat", "responses"))
    got = await ask(made, asking())
    assert (got.status, told(got)["type"], server.requests) == (400, "invalid_request_error", [])
    assert made.records[0].error == "unsupported_by_model"


async def test_tokens_are_counted_by_the_upstream(made, server):
    """Relayed with its query; never cached."""
    server.scripts = [[answer(200, {"input_tokens": 7})]]
    for _ in range(2):
        got = await ask(made, asking(), endpoint="messages/count_tokens", query="beta=true")
    assert (json.loads(got.body), len(server.requests)) == ({"input_tokens": 7}, 2)
    assert server.requests[0][0].startswith(b"POST /v1/messages/count_tokens?beta=true ")


async def test_leaving_leaves_the_upstream(made, server):
    """In mid-stream, with one record."""
    server.scripts = [[head(), *EVENTS[:4], HANG]]
    client = Client(made, asking(stream=True), endpoint="messages")
    client.on_send = lambda sent: b"text_delta" in sent.get("body", b"") and client.leaves.set()
    await client.task
    await server.left.wait()
    assert ([record.ending for record in made.records], made.idle()) == (["client_gone"], True)
