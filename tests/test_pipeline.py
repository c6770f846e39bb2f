"""The nine endings, each with one record and nothing left open; and what the cache may keep."""

import asyncio
import json
import threading
from functools import partial

import pytest
from front import POLICY, Client, body
from hostile import answer, hostile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from gateway import facts, pipeline, reply, wire
from gateway.errors import InvalidRequest
from gateway.lengths import LEAST_ANSWERS
from gateway.policy.generation import Catalogue, Generation
from gateway.stream import Pool

BOTH = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
SLOW = {"ms_per_token": 60_000.0}


def one_record(made):
    assert made.idle()
    (record,) = made.records
    assert record.duration_ms >= record.overhead_ms >= 0
    return record


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0)


@BOTH
async def test_all_failed(world, stream):
    """Every candidate was tried; the client gets the last failure."""
    made = world(a={"fail": "connect"}, b={"fail": "status"}, c={"fail": "first"})
    got = await Client(made, body(stream=stream)).answer()
    assert got.status == 502
    record = one_record(made)
    assert (record.ending, record.status, record.tried, record.route) == ("failed", 502, ("a/m", "b/m", "c/m"), "")


@BOTH
async def test_refused(world, stream):
    """Nobody is tried for a model that does not exist, or for what policy forbids."""
    made = world(policy=POLICY + '[[limit]]\nname = "none"\nwhen = { max_output = "> 9" }\nnever = { zone = "local" }\n')
    got = await Client(made, body(stream=stream, max_tokens=10)).answer()
    assert (got.status, json.loads(got.body)["error"]["code"]) == (403, "policy_forbidden")
    assert (one_record(made).ending, made.records[0].tried, made.upstreams["echo"].calls) == ("refused", (), [])
    got = await Client(made, body(stream=stream, model="nope")).answer()
    assert (got.status, json.loads(got.body)["error"]["code"]) == (404, "model_not_found")
    assert [record.ending for record in made.records] == ["refused", "refused"]


async def test_broken_half_way(world):
    """A stream that was cut is a 200 with an error in it."""
    made = world(a={"fail": "midway"}, b={})
    got = await Client(made, body(stream=True)).answer()
    assert (got.status, got.body.endswith(b"data: [DONE]\n\n"), b'"error"' in got.body) == (200, True, True)
    record = one_record(made)
    assert (record.ending, record.error, record.tried, record.events) == ("broken", "cut", ("a/m",), 1)


@BOTH
async def test_client_gone_before_the_first_token(world, stream):
    """Whoever leaves while the upstream thinks has cost it no more than that."""
    made = world(a=SLOW | {"fail": "" if not stream else "hang"})
    client = Client(made, body(stream=stream))
    await until(lambda: made.upstreams["a"].calls)
    client.leaves.set()
    await client.task
    assert client.sent == []
    assert (one_record(made).ending, made.records[0].status, made.records[0].tried) == ("client_gone", 499, ("a/m",))


async def test_client_gone_in_mid_stream(world):
    """What had gone out is in the record, as an estimate."""
    made = world(a=SLOW)
    client = Client(made, body(stream=True))
    await until(lambda: len(client.sent) > 1)
    client.leaves.set()
    await client.task
    record = one_record(made)
    assert (record.ending, record.status, record.usage.estimated) == ("client_gone", 200, True)
    assert not client.task.cancelling()


@BOTH
async def test_cancelled_before_the_first_event(world, stream):
    """We stop while an upstream thinks."""
    made = world(a={"fail": "hang"})
    client = Client(made, body(stream=stream))
    await until(lambda: made.upstreams["a"].calls)
    client.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await client.task
    assert one_record(made).ending == "cancelled"


async def test_cancelled_in_mid_stream(world):
    """We stop while an answer goes out, or a cached one does."""
    made = world(a=SLOW)
    client = Client(made, body(stream=True))
    await until(lambda: len(client.sent) > 1)
    client.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await client.task
    assert (one_record(made).ending, made.records[0].status) == ("cancelled", 200)


@BOTH
async def test_never_read(world, stream):
    """An answer that nobody takes closes its upstream all the same."""
    made = world(a={})
    answer = await made.pipeline.answer(made.incoming(body(stream=stream)), made.ledger())
    await answer.aclose()
    await answer.aclose()
    assert one_record(made).ending == "never_read"


@BOTH
async def test_complete_then_hit(world, stream):
    """The second answer is the first one, in either shape, without an upstream."""
    made = world(a={})
    first = await Client(made, body(stream=stream)).answer()
    again = await Client(made, body(stream=stream)).answer()
    other = await Client(made, body(stream=not stream)).answer()
    assert [answer.headers["x-gateway-cache"] for answer in (first, again, other)] == ["miss", "hit-exact", "hit-exact"]
    if stream:
        assert again.body == first.body
        assert json.loads(other.body)["choices"][0]["message"]["content"] == "one two three"
    else:
        assert again.body == first.body
        assert other.body.endswith(b"data: [DONE]\n\n")
    assert [record.ending for record in made.records] == ["complete", "hit", "hit"]
    assert len(made.upstreams["a"].calls) == 1
    assert made.idle()


@BOTH
async def test_fallback(world, stream):
    """Complete, by another than the first."""
    made = world(a={"fail": "first"}, b={})
    got = await Client(made, body(stream=stream)).answer()
    assert (got.status, b"three" in got.body, got.headers["x-gateway-route"]) == (200, True, "b/m")
    record = one_record(made)
    assert (record.ending, record.route, record.tried) == ("fallback", "b/m", ("a/m", "b/m"))


@BOTH
async def test_leaving_a_cached_stream_is_noticed(world, stream):
    """Replay gives the loop a turn between its events."""
    made = world(a={})
    await Client(made, body("w " * 50, stream=stream)).answer()
    client = Client(made, body("w " * 50, stream=True))
    client.on_send = lambda message: client.leaves.set()
    await client.task
    assert (made.records[1].ending, len(client.sent) < 20) == ("client_gone", True)


@BOTH
@pytest.mark.parametrize("limit", [2, 50])
async def test_an_answer_that_met_the_clients_own_limit_is_kept(world, stream, limit):
    """The limit is part of the request, so the same request gets the same answer; without a limit it is another request."""
    made = world(a={})
    for _ in range(2):
        got = await Client(made, body(stream=stream, max_tokens=limit)).answer()
    assert got.headers["x-gateway-cache"] == "hit-exact"
    assert (await Client(made, body(stream=stream)).answer()).headers["x-gateway-cache"] == "miss"


class Shelf:
    """A keeper that tells what it was given."""

    def __init__(self):
        self.kept = []

    def keep(self, entry, *, exact_only):
        self.kept.append(exact_only)


ENDS = [
    ({"stop"}, None, [False]),
    ({"stop"}, 5, [False]),
    ({"length"}, 5, [True]),
    ({"stop", "length"}, 5, [True]),
    ({"length"}, None, []),
    ({"tool_calls"}, 5, []),
    ({"content_filter"}, 5, []),
    ({"stop", "content_filter"}, 5, []),
    ({""}, 5, []),
]


@pytest.mark.parametrize(("reasons", "limit", "kept"), ENDS)
def test_how_an_answer_ended_says_how_far_it_is_kept(reasons, limit, kept):
    """Stop: as far as policy lets; the client's own limit: for equal requests only; anything else: not at all."""
    shelf = Shelf()
    request = wire.Request(endpoint="chat/completions", body=b"", data={}, model="m", max_output=limit)
    reply.keep(shelf, None, request, reasons)
    assert shelf.kept == kept


async def test_exact_only_never_reaches_the_semantic_tier(world):
    """The mode of a policy is narrowed, never widened."""
    modes = []
    made = world(a={})
    made.cache.store = lambda key, entry, mode, *, class_: modes.append(mode)
    keeper = partial(pipeline.Keeper, made.cache, None, class_="public", pool=Pool(0), made=print)
    for mode in ("semantic", "exact", "off"):
        for exact_only in (False, True):
            keeper(mode=mode, no_store=False).keep(None, exact_only=exact_only)
    keeper(mode="semantic", no_store=True).keep(None, exact_only=False)
    assert modes == ["semantic", "exact", "exact", "exact", "off", "off", "off"]


@pytest.mark.parametrize("header", ["no-store", "no-cache"])
async def test_the_client_may_keep_the_cache_out(world, header):
    """no-store: neither read nor kept; no-cache: not read."""
    made = world(a={})
    for expected in ("bypass", "bypass"):
        got = await Client(made, body(), cache_control=header).answer()
        assert got.headers["x-gateway-cache"] == expected
    got = await Client(made, body()).answer()
    assert got.headers["x-gateway-cache"] == ("miss" if header == "no-store" else "hit-exact")


@BOTH
async def test_failures_are_never_kept(world, stream):
    """Broken or failed, the next one asks again."""
    made = world(a={"fail": "midway"})
    for _ in range(2):
        await Client(made, body(stream=stream)).answer()
    assert [record.cache for record in made.records] == ["miss", "miss"]


@pytest.mark.parametrize("stored_as", [True, False], ids=["from events", "from a body"])
@pytest.mark.parametrize("asks", [True, False])
async def test_a_replayed_stream_has_usage_for_who_asked(world, stored_as, asks):
    """One chunk without choices and nulls elsewhere, or nothing at all, whoever filled the cache."""
    made = world(a={})
    await Client(made, body(stream=stored_as, stream_options={"include_usage": True})).answer()
    options = {"stream_options": {"include_usage": True}} if asks else {}
    got = await Client(made, body(stream=True, **options)).answer()
    chunks = [json.loads(line[6:]) for line in got.body.split(b"\n\n") if line.startswith(b"data: {")]
    usages = [chunk.get("usage", "absent") for chunk in chunks]
    assert made.records[1].ending == "hit"
    assert usages[-1] == ({"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6} if asks else "absent")
    assert set(map(str, usages[:-1])) == {"None" if asks else "absent"}


async def test_every_token_is_logged_once(world):
    """Streamed, whole, replayed: text, choice and route are there."""
    made = world(a={})
    for streamed in (True, False):
        await Client(made, body(stream=streamed)).answer()
    await Client(made, body(stream=True)).answer()
    said = ["".join(token.text for token in made.tokens if token.request_id == record.request_id) for record in made.records]
    assert said == ["one two three"] * 3
    assert [token.upstream for token in made.tokens][:3] == ["a/m"] * 3


async def test_large_bodies_leave_the_loop_free(world, monkeypatch):
    """Above a quarter of a megabyte, reading, scanning, keying and editing happen on a thread."""
    threads = set()
    for module, name in ((wire, "read"), (facts.privacy, "scan"), (pipeline, "scope"), (wire, "with_model")):
        true = getattr(module, name)
        monkeypatch.setattr(
            module,
            name,
            lambda *a, _true=true, _name=name, **k: threads.add((_name, threading.current_thread().name[:7])) or _true(*a, **k),
        )
    made = world(a={})
    assert (await Client(made, body("x " * 140_000)).answer()).status == 200
    assert {name for name, _ in threads} == {"read", "scan", "scope", "with_model"}
    assert "MainThr" not in {thread for _, thread in threads}


ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from(["text", "user", "\ud800", "m"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "text", "content", "role", "function"]), inner, max_size=3)
    ),
    max_leaves=5,
)
FIELDS = (
    "messages",
    "input",
    "prompt",
    "stream",
    "stream_options",
    "n",
    "max_tokens",
    "tools",
    "modalities",
    "response_format",
    "audio",
    "store",
)
LIKELY = st.fixed_dictionaries({"role": st.just("user") | ANY, "content": ANY}).map(lambda message: [message])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.sampled_from(sorted(wire.ENDPOINTS)), st.dictionaries(st.sampled_from(FIELDS), ANY | LIKELY, max_size=4))
async def test_no_body_is_our_fault(shared, endpoint, fields):
    """Whatever stands in the fields of a body, the answer is a 200 or a 400, never a 500."""
    sent = json.dumps(
        {"model": "m", "messages": [{"role": "user", "content": "x"}], "input": "x", "prompt": "x", **fields}
    ).encode()
    got = await Client(shared, sent, endpoint=endpoint).answer()
    assert got.status in {200, 400}, shared.events[-1]
    assert shared.idle()


WORDS = ("text", "tools", "previous_response_id", "system", "instructions", "conversation", "stream_format")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(st.sampled_from(sorted(wire.ENDPOINTS)), st.dictionaries(st.sampled_from((*FIELDS, *WORDS)), ANY | LIKELY, max_size=4))
async def test_no_body_is_our_fault_on_any_endpoint(relaying, endpoint, fields):
    """With an upstream that answers anything with one JSON object: relayed, refused, or not the answer that was asked for."""
    sent = json.dumps(
        {"model": "m", "messages": [{"role": "user", "content": "x"}], "input": "x", "prompt": "x", **fields}
    ).encode()
    got = await Client(relaying, sent, endpoint=endpoint).answer()
    assert got.status in {200, 400, 502}, relaying.events[-1]
    assert got.status != 502 or fields.get("stream") is True
    assert relaying.idle()


@pytest.fixture
async def relaying(world):
    """One world for all examples, in front of a server."""
    async with hostile() as server:
        server.scripts = [[answer(200, {"id": "x", "choices": []})]]
        yield world(up={"base_url": server.base_url, "retries": 0})


@pytest.fixture
async def shared(world):
    """One world for all examples."""
    return world()


async def test_a_class_header_that_names_none_is_refused(world):
    """What the facts find wrong is the client's mistake, not a crash."""
    made = world()
    with pytest.raises(InvalidRequest):
        await made.pipeline.answer(made.incoming(body(), x_gateway_class="secret"), made.ledger())


@pytest.mark.parametrize(("count", "status"), [((700, False), 200), ((9999, False), 403), ((0, True), 403)])
async def test_a_size_near_a_limit_is_counted_before_it_decides(world, count, status):
    """The estimate of this prompt reaches over the limit; the count says on which side it is, and without one the upper end holds."""
    made = world(policy=POLICY + '[[limit]]\nname = "small"\nwhen = { prompt_tokens = "> 1000" }\nnever = { zone = "local" }\n')
    asked = []
    made.count = lambda text, model: asked.append((len(text), model)) or count
    client = Client(made, body("word " * 800))
    assert (await client.answer()).status == status
    assert asked == [(4000, "m")]
    ((_, fields),) = [event for event in made.events if event[0] == "route.decided"]
    facts = fields["facts"]
    assert (facts["prompt_tokens_low"] == facts["prompt_tokens_high"]) is not count[1]


def learned(made):
    """What the health of the last decision says of the length of answers."""
    decided = [fields for name, fields in made.events if name == "route.decided"]
    return decided[-1]["health"].get("echo/m", {}).get("long_output")


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}], ids=str)
async def test_the_length_of_answers_is_learned_where_no_client_bounds_them(world, fields):
    """Once enough came to their end, the next decision is logged with what all but one in twenty keep within."""
    made = world()
    for number in range(LEAST_ANSWERS + 1):
        assert number == 0 or learned(made) is None
        await Client(made, body("word " * 9 + str(number), **fields)).answer()
    assert learned(made) == 10


@pytest.mark.parametrize(
    ("fields", "fail"),
    [({"max_tokens": 100}, ""), ({"n": 2}, ""), ({"stream": True}, "midway")],
    ids=["bounded", "several", "broken off"],
)
async def test_what_does_not_say_how_long_answers_become_teaches_nothing(world, fields, fail):
    """So it is with an answer that its client bounded, with several at once, and with one that broke off."""
    made = world(echo={"fail": fail})
    for number in range(LEAST_ANSWERS + 1):
        await Client(made, body(f"one two three {number}", **fields)).answer()
    assert learned(made) is None


@pytest.mark.parametrize(
    ("endpoint", "fields", "param"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": "word " * 9_000}]}, "messages"),
        ("completions", {"prompt": "word " * 9_000}, "prompt"),
    ],
)
async def test_a_prompt_that_fits_nowhere_is_told_as_openai_tells_it(world, endpoint, fields, param):
    """Clients shorten the conversation at this code; what nobody can do at all is another matter."""
    made = world(a={})
    model = made.config.models["m"]
    made.config.models["m"] = structs.replace(
        model, candidates=tuple(structs.replace(one, context=4_096) for one in model.candidates)
    )
    made.generation = Generation(made.policies, Catalogue.of(made.config))
    sent = json.dumps({"model": "m", **fields}).encode()
    with pytest.raises(InvalidRequest) as told:
        await made.pipeline.answer(made.incoming(sent, endpoint), made.ledger(endpoint=endpoint))
    assert (told.value.status, told.value.code, told.value.param) == (400, "context_length_exceeded", param)
    assert "maximum context length" in str(told.value)
