"""A request whose equal was answered from the cache is served without being read, and nobody can tell but by the time it takes."""

import json

import pytest
from front import POLICY, Client, body
from msgspec.structs import replace

from gateway import wire
from gateway.policy.generation import Catalogue, Generation

ENDPOINT = pytest.mark.parametrize(
    ("endpoint", "asked"),
    [
        ("chat/completions", body()),
        ("chat/completions", body(stream=True)),
        ("embeddings", json.dumps({"model": "m", "input": "one two"}).encode()),
    ],
    ids=["whole", "stream", "embeddings"],
)
SECRET = "the words of a client"


async def asked_three_times(made, asked, endpoint="chat/completions", **headers):
    """The last one of them would be served unread."""
    return [await Client(made, asked, endpoint=endpoint, **headers).answer() for _ in range(3)]


def unread(monkeypatch):
    """From now on a request that is read fails the test."""
    monkeypatch.setattr(wire, "read", lambda *_, **__: pytest.fail("it was read"))


def told(made, record):
    """Record and events of one request, without what differs from request to request."""
    own = {"request_id": "", "opened_at": 0.0, "duration_ms": 0.0, "overhead_ms": 0.0, "ttft_ms": None}
    events = [(name, dict(fields)) for name, fields in made.events if fields["request_id"] == record.request_id]
    for _, fields in events:
        fields.update(request_id="", age_s=0.0)
        if "facts" in fields:
            fields["facts"] = fields["facts"] | {"seed": ""}
    tokens = [token._replace(request_id="", time_ns=0, ms=0.0) for token in made.tokens if token.request_id == record.request_id]
    return replace(record, **own), events, tokens


@ENDPOINT
async def test_what_is_served_unread_is_answered_and_logged_as_what_was_read(world, monkeypatch, endpoint, asked):
    """The same status, headers, bytes, record, events and token lines."""
    made = world(a={})
    _, read = [await Client(made, asked, endpoint=endpoint).answer() for _ in range(2)]
    unread(monkeypatch)
    again = await Client(made, asked, endpoint=endpoint).answer()
    for answer in (read, again):
        for name in ("x-request-id", "openai-processing-ms"):
            answer.headers.pop(name)
    assert (again.status, again.headers, again.body) == (read.status, read.headers, read.body)
    assert again.headers["x-gateway-cache"] == "hit-exact"
    assert told(made, made.records[2]) == told(made, made.records[1])
    assert len({record.request_id for record in made.records}) == 3
    assert made.idle()


@pytest.mark.parametrize(
    "headers",
    [{"x_gateway_class": "internal"}, {"x_gateway_tags": "a"}, {"x_gateway_deadline_ms": "500"}, {"cache_control": "no-cache"},
     {"query": "api-version=1"}],
)  # fmt: skip
async def test_a_request_with_a_word_to_say_beside_its_body_is_read(world, headers):
    """Its facts are its own: whatever the head says holds, however often the body came before."""
    made = world(a={})
    await asked_three_times(made, body())
    got = await Client(made, body(), **headers).answer()
    if "cache_control" in headers:
        assert got.headers["x-gateway-cache"] == "bypass"
    decided = [fields["facts"] for name, fields in made.events if name == "route.decided"][-1]
    assert decided["class"] == headers.get("x_gateway_class", "public")
    assert decided["tags"] == ((headers["x_gateway_tags"],) if "x_gateway_tags" in headers else ())
    assert decided["deadline_ms"] == (500 if "x_gateway_deadline_ms" in headers else None)


async def test_another_key_gets_its_own_class_floor(world):
    """What is known of a request hangs on who asks."""
    made = world(a={})
    await asked_three_times(made, body())
    made.key = made.key_file.add("careful", class_floor="confidential")
    got = await Client(made, body()).answer()
    assert got.headers["x-gateway-cache"] == "off"
    assert made.records[-1].class_ == "confidential"


async def test_after_a_purge_the_upstream_is_asked(world):
    """The cache's entry is what counts."""
    made = world(a={})
    await asked_three_times(made, body())
    await made.cache.purge()
    assert (await Client(made, body()).answer()).headers["x-gateway-cache"] == "miss"
    assert len(made.upstreams["a"].calls) == 2


async def test_new_policies_are_asked_anew(world):
    """A limit that keeps requests from the cache holds from the next request on."""
    made = world(a={})
    await asked_three_times(made, body())
    text = POLICY + '[[limit]]\nname = "uncached"\ncache = "off"\n'
    made.generation = Generation({"listed.toml": text}, Catalogue.of(made.config))
    assert (await Client(made, body()).answer()).headers["x-gateway-cache"] == "off"


async def test_nothing_of_its_text_is_held(world):
    """Only a digest, the facts and a place in the cache."""
    made = world(a={})
    await asked_three_times(made, body(SECRET))
    held = made.pipeline._again._known
    assert len(held) == 1
    assert SECRET not in repr(held)
