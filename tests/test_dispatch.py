"""Which upstream answers: retries, fallback, and what a client is told, against a server that misbehaves on real sockets."""

import asyncio
import gzip
import json
import re
from pathlib import Path

import pytest
from front import Client, body
from hostile import GOOD, HANG, RESET, answer, chunk, completion, error, head, hostile

from gateway import dispatch, sse
from gateway.health import FAILURES_TO_OPEN
from gateway.policy.decision import Chosen, Decision
from gateway.upstreams import Call
from gateway.upstreams.echo import EchoAnswer

DOCS = Path(__file__).parents[1] / "docs"
DONE = b"data: [DONE]\n\n"


@pytest.fixture
async def server():
    async with hostile() as made:
        yield made


def settings(server, *, kind="", **changes):
    """An upstream's settings; its patience is short where the fault is silence, and long where only a slow machine is slow."""
    patience = 0.1 if kind == "timeout" else 20.0
    waits = dict.fromkeys(("first_token_timeout_s", "idle_timeout_s", "total_timeout_s"), patience)
    return {"base_url": server.base_url, "retries": 0, **waits, **changes}


async def ask(world, *, stream, **fields):
    return await Client(world, body(stream=stream, **fields)).answer()


BEFORE_THE_HEAD = {
    "reset": ([RESET], "no_answer"),
    "closed": ([], "no_answer"),
    "garbage": ([b"hello\r\n\r\n"], "protocol"),
    "silence": ([HANG], "timeout"),
    "half a head": ([b"HTTP/1.1 200 OK\r\ncontent-ty", HANG], "timeout"),
}
STREAMS = {
    "closed before the first event": ([head()], "cut"),
    "comments, then closed": ([head(), b": ping\n\n: ping\n\n"], "cut"),
    "half an event": ([head(), chunk("text")[:40]], "cut"),
    "reset inside an event": ([head(), chunk("text")[:40], RESET], "cut"),
    "silence after the head": ([head(), HANG], "timeout"),
    "comments without end": ([head(), *[b": ping\n\n"] * 50, HANG], "timeout"),
    "chunked garbage": ([head(transfer_encoding="chunked").replace(b"connection: close\r\n", b""), b"zz\r\nhello"], "protocol"),
    "an event of 40 MB": ([head(), b"data: " + b"x" * (40 << 20)], "protocol"),
    "the end mark alone": ([head(), DONE], "protocol"),
    "an error first": ([head(), b'data: {"error":{"message":"no","code":"c1"}}\n\n', DONE], "in_band"),
    "a comment, then an error": ([head(), b": ping\r\n\r\n", b'data: {"error":"no"}\r\n\r\n'], "in_band"),
    "empty JSON for a stream": ([answer(200, b"")], "protocol"),
    "an error in JSON for a stream": ([answer(200, {"error": {"message": "no"}})], "in_band"),
}
WHOLE = {
    "an empty body": ([answer(200, b"")], "protocol"),
    "null": ([answer(200, b"null")], "protocol"),
    "HTML": ([answer(200, b"<html>", media="text/html")], "protocol"),
    "an error with status 200": ([answer(200, {"error": {"message": "no"}})], "in_band"),
    "a body that is cut": ([answer(200, completion())[:-9]], "cut"),
    "a body in no encoding": ([answer(200, b"plain", content_encoding="gzip")], "protocol"),
}
STATUSES = {
    "HTML 502": ([answer(502, b"<html>bad gateway", media="text/html")], "status"),
    "500": ([error(500)], "status"),
    "a redirect": ([answer(302, b"", location="http://127.0.0.1:1/")], "status"),
    "401": ([error(401)], "status"),
    "403": ([error(403)], "status"),
    "404": ([error(404)], "status"),
    "408": ([error(408)], "status"),
    "429": ([error(429)], "status"),
    "an endless error": ([head(500, "application/json"), b" " * (2 << 20)], "protocol"),
    "a status that is none": ([error(799)], "status"),
}
FAULTS = [
    pytest.param(stream, script, kind, id=f"{name}, {'stream' if stream else 'whole'}")
    for streams, table in (((True,), STREAMS), ((False,), WHOLE), ((True, False), BEFORE_THE_HEAD), ((True, False), STATUSES))
    for stream in streams
    for name, (script, kind) in table.items()
]


@pytest.mark.parametrize(("stream", "script", "kind"), FAULTS)
async def test_whatever_fails_before_the_first_event_costs_the_client_nothing(world, server, stream, script, kind):
    """The next candidate answers; the log names the failure; nothing stays open."""
    server.scripts = [script]
    made = world(bad=settings(server, kind=kind), good={})
    got = await ask(made, stream=stream)
    assert (got.status, b"three" in got.body, b"error" in got.body) == (200, True, False)
    assert [fields["kind"] for name, fields in made.events if name == "upstream.failed"] == [kind]
    (record,) = made.records
    assert (record.ending, record.tried, record.route) == ("fallback", ("bad/m", "good/m"), "good/m")
    assert made.idle()


TOLD = {
    "401": ([error(401, "sk-upstream")], 502, "upstream_auth_failed"),
    "403": ([error(403)], 502, "upstream_auth_failed"),
    "404": ([error(404, "unknown model", "model_not_found")], 404, "model_not_found"),
    "400": ([error(400, "too long", "context_length_exceeded")], 400, "context_length_exceeded"),
    "429": ([error(429, "slow", "rate_limit_exceeded")], 429, "rate_limit_exceeded"),
    "500": ([error(500, "boom", "own_code")], 500, "own_code"),
    "HTML 502": ([answer(502, b"<html>", media="text/html")], 502, "upstream_error"),
    "HTML 503": ([answer(503, b"<html>", media="text/html", retry_after="7")], 503, "upstream_unavailable"),
    "HTML 429": ([answer(429, b"", media="text/html")], 429, "rate_limit_exceeded"),
    "a redirect": ([answer(302, b"", location="http://127.0.0.1:1/")], 502, "upstream_error"),
    "a status that is none": ([error(799, "m", "c")], 502, "upstream_error"),
    "in band": ([head(), b'data: {"error":{"message":"no","code":"c1"}}\n\n'], 502, "c1"),
    "in band, bare": ([head(), b'data: {"error":"no"}\n\n'], 502, "upstream_error"),
    "silence": ([HANG], 504, "upstream_timeout"),
    "closed": ([], 502, "upstream_error"),
    "an empty body": ([answer(200, b"")], 502, "upstream_error"),
}


@pytest.mark.parametrize(("script", "status", "code"), TOLD.values(), ids=TOLD)
async def test_the_last_failure_is_told_in_openais_shape(world, server, script, status, code):
    """The upstream's own envelope goes on byte for byte; anything else becomes one of ours, never HTML and never the request."""
    server.scripts = [script]
    made = world(bad=settings(server, kind="timeout" if HANG in script else ""))
    got = await ask(made, stream=True)
    told = json.loads(got.body)["error"]
    assert (got.status, told["code"], isinstance(told["message"], str)) == (status, code, True)
    assert b"one two" not in got.body
    assert got.headers["x-request-id"].startswith("req_")
    (record,) = made.records
    assert (record.ending, record.error, record.route) == ("failed", code, "")
    assert made.idle()


async def test_an_upstreams_envelope_is_relayed_verbatim(world, server):
    """Status, body, rate-limit and retry headers come through; what belongs to a connection does not."""
    body_ = b'{"error": {"message":"slow down", "type":"tokens","param":null,"code":null, "extra":1.10}}'
    limits = {"x_ratelimit_limit_tokens": "10", "x_ratelimit_reset_tokens": "8.64s", "retry_after": "3", "x_should_retry": "true"}
    server.scripts = [[answer(429, body_, **limits, keep_alive="timeout=5", set_cookie="a=b", x_secret="s")]]
    got = await ask(world(bad=settings(server)), stream=False)
    assert (got.status, got.body) == (429, body_)
    assert {name: got.headers[name.replace("_", "-")] for name in limits} == limits
    assert not {"keep-alive", "set-cookie", "x-secret", "connection", "transfer-encoding"} & set(got.headers)


@pytest.mark.parametrize(
    "retry_after", [{"retry_after": "20"}, {"retry_after_ms": "20000"}, {"retry_after": "Fri, 31 Dec 2100 23:59:59 GMT"}]
)
async def test_an_upstream_that_asks_to_wait_is_left_alone(world, server, retry_after):
    """The next request does not try it, and its health does not suffer."""
    server.scripts = [[error(429, **retry_after)]]
    made = world(bad=settings(server, retries=2), good={})
    for text in ("one", "two"):
        assert (await Client(made, body(text)).answer()).status == 200
    assert [record.tried for record in made.records] == [("bad/m", "good/m"), ("good/m",)]
    assert "asked to wait" in made.health.snapshot([("bad", "m")])["bad/m"].reason


@pytest.mark.parametrize("value", ["inf", "nan", "-5", "1e300", "soon", ""])
async def test_a_nonsensical_retry_after_harms_nobody(world, server, value):
    """The client still gets its error."""
    server.scripts = [[answer(429, b"<html>", media="text/html", retry_after=value)]]
    assert (await ask(world(bad=settings(server)), stream=False)).status == 429


@pytest.mark.parametrize("stream", [True, False])
async def test_a_500_is_retried_before_the_next_candidate(world, server, stream):
    """As often as its config says; a retry that succeeds is no fallback."""
    good = GOOD if stream else [answer(200, completion())]
    server.scripts = [[error(500)], good]
    made = world(flaky=settings(server, retries=1), spare={})
    assert b"fine" in (await ask(made, stream=stream)).body
    assert (made.records[0].ending, made.records[0].tried) == ("complete", ("flaky/m", "flaky/m"))
    server.scripts = [[error(500)]]
    assert b"three" in (await ask(made, stream=stream, seed=1)).body
    assert made.records[1].tried == ("flaky/m", "flaky/m", "spare/m")


async def test_a_request_that_is_wrong_is_not_tried_elsewhere(world, server):
    """A 400 is the request's own fault: relayed, and nobody else is bothered."""
    server.scripts = [[error(400, "bad", "c")]]
    made = world(first=settings(server, retries=2), second={})
    assert (await ask(made, stream=True)).status == 400
    assert made.records[0].tried == ("first/m",)


async def test_the_deadline_holds_over_all_attempts(world, server):
    """When the time is up nobody else is asked."""
    server.scripts = [[HANG]]
    made = world(slow=settings(server, retries=3), spare={"fail": "hang"}, third={})
    got = await Client(made, body(stream=True), x_gateway_deadline_ms="500").answer()
    assert (got.status, made.records[0].tried) == (504, ("slow/m",))


def attempts(made, **patience):
    """A Dispatch of this world, the one candidate it may ask, and how a call to it is made."""
    found = dispatch.Dispatch(made.upstreams, made.config.upstreams, made.health, **patience)
    options = tuple(Chosen(option=option) for option in made.generation.catalogue.options())

    async def prepare(option):
        return Call(request_id="r", endpoint="chat/completions", model="m", body=body(stream=True), stream=True)

    def open_(**limits):
        return found.open(Decision(policy="p@0", rule="", candidates=options, **limits), prepare, made.ledger())

    return open_


async def test_retries_back_off_by_lot(world, server):
    """The longest wait doubles from one try to the next; how much of it is waited, chance decides."""
    server.scripts = [[error(500)], [error(500)], [error(500)], GOOD]
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    opened = await attempts(world(up=settings(server, retries=3)), sleep=sleep, draw=lambda: 0.5)()
    await opened.aclose()
    assert slept == [dispatch.FIRST_BACKOFF_S * share for share in (0.5, 1.0, 2.0)]


async def test_a_wait_beyond_the_deadline_is_not_begun(world, server, monkeypatch):
    """The time that is left goes to the next candidate."""
    monkeypatch.setattr(dispatch, "FIRST_BACKOFF_S", 120.0)
    monkeypatch.setattr(dispatch, "LONGEST_BACKOFF_S", 120.0)
    server.scripts = [[error(500)]]

    async def sleep(seconds):
        raise AssertionError

    opened = await attempts(world(up=settings(server, retries=3), spare={}), sleep=sleep, draw=lambda: 0.999)(deadline_ms=60_000)
    await opened.aclose()
    assert (opened.option.upstream, len(server.requests)) == ("spare", 1)


async def test_an_upstream_that_says_when_is_not_asked_before(world, server):
    """A 503 with `retry-after` is no failure to try again at once."""
    server.scripts = [[error(503, retry_after=2)]]
    made = world(up=settings(server, retries=3), spare={})
    assert (await ask(made, stream=True)).status == 200
    assert made.records[0].tried == ("up/m", "spare/m")


def after_its_pause(made):
    """The option's breaker was open, and its time has come."""
    for _ in range(FAILURES_TO_OPEN):
        made.health.failed("up/m", "why")
    made.health._state("up/m").paused_until = 0.0
    return made


async def test_after_a_breakers_pause_one_request_finds_out(world, server):
    """The others are told to come again, until its first event; a client that leaves hands its place on."""
    server.scripts = [[head(), HANG]]
    made = after_its_pause(world(up=settings(server)))
    probe = Client(made, body(stream=True))
    await server.arrived.wait()
    others = [await Client(made, body(str(number))).answer() for number in range(3)]
    assert {(got.status, got.headers["x-should-retry"]) for got in others} == {(503, "true")}
    assert len(server.requests) == 1
    probe.leaves.set()
    await probe.task
    server.scripts = [GOOD]
    assert (await ask(made, stream=True)).status == 200
    assert (await ask(made, stream=False)).status == 200


async def test_who_was_sent_there_before_the_probe_left_goes_elsewhere(world, server):
    """A decision may be a moment old: the probe is claimed when the attempt leaves, not when it is decided."""
    server.scripts = [[head(), HANG]]
    made = after_its_pause(world(up=settings(server), spare={}))
    open_ = attempts(made)
    probe = asyncio.create_task(open_())
    await server.arrived.wait()
    opened = await open_()
    await opened.aclose()
    probe.cancel()
    await asyncio.wait([probe])
    assert (opened.option.upstream, len(server.requests), made.idle()) == ("spare", 1, True)
    assert [fields["kind"] for name, fields in made.events if name == "upstream.failed"] == ["probed"]


GOOD_STREAMS = {
    "crlf": [head(), *[part.replace(b"\n", b"\r\n") for part in GOOD[1:]]],
    "comments first": [head(), b": ping\n\n", b": ping\n\n", *GOOD[1:]],
    "no end mark": [head(), *GOOD[1:-1]],
    "no last blank line": [head(), *GOOD[1:-1], b"data: [DONE]"],
    "no end mark and no last blank line": [head(), chunk("fine"), chunk(finish="stop", end=b"")],
    "a chunk that is not JSON": [head(), b"data: hello\n\n", *GOOD[1:]],
    "unknown events and fields": [head(), b"event: x\nid: 5\nretry: 1\nfoo\n\n", b"event: y\ndata: {}\n\n", *GOOD[1:]],
    "two events in one, one in three": [
        head(),
        chunk("ü€🙂") + chunk("x")[:-20],
        chunk("x")[-20:-1],
        b"\n",
        chunk(finish="stop"),
        DONE,
    ],
    "an event of 2 MB": [head(), chunk("x" * (2 << 20)), chunk(finish="stop"), DONE],
    "usage beside choices": [head(), chunk("x", usage={"prompt_tokens": 1}), chunk(finish="stop", usage=None), DONE],
    "another media type's case": [head(media="Text/Event-Stream; charset=UTF-8"), *GOOD[1:]],
}


@pytest.mark.parametrize("asks", [True, False], ids=["client asks for usage", "nobody asks"])
@pytest.mark.parametrize("script", GOOD_STREAMS.values(), ids=GOOD_STREAMS)
async def test_a_stream_is_relayed_byte_for_byte(world, server, script, asks):
    """Whatever its line ends, comments, fields and cuts, when the client asked for usage itself or we did not."""
    server.scripts = [script]
    made = world(up=settings(server, inject_usage=asks))
    sent = body(stream=True, stream_options={"include_usage": asks})
    got = await Client(made, sent).answer()
    assert got.body == b"".join(script[1:])
    assert server.requests[0][1] == sent
    assert made.records[0].ending == "complete"


AFTER = {
    "an endless connection": [head(), *GOOD[1:], HANG],
    "a message without its end": [
        head(transfer_encoding="chunked"),
        b"%x\r\n%s\r\n" % (len(b"".join(GOOD[1:])), b"".join(GOOD[1:])),
    ],
}


@pytest.mark.parametrize("script", AFTER.values(), ids=AFTER)
async def test_after_the_end_mark_nothing_can_break(world, server, script, monkeypatch):
    """However the connection goes down then, the answer was complete; nobody waits for it long."""
    monkeypatch.setattr(dispatch, "END_GRACE_S", 0.05)
    server.scripts = [script]
    made = world(up=settings(server))
    got = await ask(made, stream=True)
    assert got.body == b"".join(GOOD[1:])
    assert made.records[0].ending == "complete"
    assert made.idle()


async def test_injected_usage_is_taken_out_again(world, server):
    """We asked for it, so the client does not see it; the record does."""
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}
    counted = chunk(usage=usage).replace(b'[{"index": 0, "delta": {"content": ""}, "finish_reason": null}]', b"[]")
    server.scripts = [[head(), chunk("fine", usage=None), chunk(finish="stop", usage=None), counted, DONE]]
    made = world(up=settings(server))
    got = await ask(made, stream=True)
    assert got.body == chunk("fine") + chunk(finish="stop") + DONE
    assert json.loads(server.requests[0][1])["stream_options"] == {"include_usage": True}
    assert (made.records[0].usage.prompt_tokens, made.records[0].usage.cached_tokens) == (3, 1)


BROKEN = {
    "closed": ([], "cut", "upstream_error"),
    "reset": ([RESET], "cut", "upstream_error"),
    "half an event": ([chunk("secret")[:30]], "cut", "upstream_error"),
    "a comment without its end": ([b": ping"], "cut", "upstream_error"),
    "a finish for nobody": ([b'data: {"choices":[]}'], "cut", "upstream_error"),
    "silence": ([HANG], "timeout", "upstream_timeout"),
    "an event of 40 MB": ([b"data: " + b"x" * (40 << 20)], "protocol", "upstream_error"),
}


@pytest.mark.parametrize(("script", "kind", "code"), BROKEN.values(), ids=BROKEN)
async def test_a_cut_upstream_never_ends_cleanly(world, server, script, kind, code):
    """After the first event: an error event, the end mark, no finish reason, nothing kept, no second upstream."""
    server.scripts = [[head(), chunk("fine"), *script]]
    made = world(up=settings(server, kind=kind), spare={})
    got = await ask(made, stream=True)
    *_, last, end = _events(got.body)
    assert got.body.startswith(chunk("fine"))
    assert (json.loads(last)["error"]["code"], end) == (code, b"[DONE]")
    assert b"secret" not in got.body
    assert b'"stop"' not in got.body
    (record,) = made.records
    assert (record.ending, record.error, record.finish_reason, record.tried) == ("broken", kind, "", ("up/m",))
    assert made.idle()
    server.scripts = [GOOD]
    assert (await ask(made, stream=True)).headers["x-gateway-cache"] == "miss"


def _events(raw):
    splitter = sse.Splitter()
    found = splitter.feed(raw)
    assert splitter.rest == b""
    return [data for event in found if (data := sse.data_of(event)) is not None]


@pytest.mark.parametrize("ending", [[], [DONE], [RESET], [chunk(finish="stop"), DONE]])
async def test_a_later_in_band_error_is_relayed_and_recorded(world, server, ending):
    """As it came, with one end mark after it; it is never cached."""
    bad = b'event: error\r\ndata: {"error":{"message":"out of luck","code":"c9"}}\r\n\r\n'
    server.scripts = [[head(), chunk("fine"), bad, *ending]]
    made = world(up=settings(server))
    got = await ask(made, stream=True)
    assert got.body.startswith(chunk("fine") + bad)
    assert (got.body.count(b"[DONE]"), got.body.endswith(DONE), got.body.count(b'"error"')) == (1, True, 1)
    assert (made.records[0].ending, made.records[0].error) == ("broken", "cut" if RESET in ending else "in_band")
    server.scripts = [GOOD]
    assert (await ask(made, stream=True)).headers["x-gateway-cache"] == "miss"


async def test_a_stream_for_a_whole_request_is_collected(world, server):
    """One JSON object, with the upstream's own usage."""
    server.scripts = [
        [head(x_ratelimit_limit_requests="9"), chunk("fi"), chunk("ne"), chunk(finish="stop", usage={"prompt_tokens": 3}), DONE]
    ]
    made = world(up=settings(server))
    got = await ask(made, stream=False)
    whole = json.loads(got.body)
    assert (whole["choices"][0]["message"]["content"], whole["usage"], whole["object"]) == (
        "fine",
        {"prompt_tokens": 3},
        "chat.completion",
    )
    assert (got.headers["content-type"], got.headers["x-ratelimit-limit-requests"]) == ("application/json", "9")
    assert [token.text for token in made.tokens] == ["fi", "ne"]
    assert made.idle()


HALVES = {
    "closed": ([], "upstream_error"),
    "reset": ([RESET], "upstream_error"),
    "an error": ([b'data: {"error":{"message":"no","code":"c9"}}\n\n', DONE], "c9"),
}


@pytest.mark.parametrize(("ending", "code"), HALVES.values(), ids=HALVES)
async def test_a_stream_that_breaks_while_it_is_collected_is_an_error(world, server, ending, code):
    """A client that asked for a whole answer never gets half of one."""
    server.scripts = [[head(), chunk("half"), *ending]]
    made = world(up=settings(server))
    got = await ask(made, stream=False)
    assert (got.status, json.loads(got.body)["error"]["code"]) == (502, code)
    assert b"half" not in got.body
    assert made.records[0].ending == "failed"
    assert made.idle()


async def test_a_whole_answer_for_a_stream_request_is_streamed(world, server):
    """Chunks, the end mark, and usage only for who asked."""
    server.scripts = [[answer(200, completion("fine words"))]]
    made = world(up=settings(server))
    parts = [json.loads(part) for part in _events((await ask(made, stream=True)).body)[:-1]]
    assert "".join(part["choices"][0]["delta"].get("content") or "" for part in parts) == "fine words"
    got = await ask(made, stream=True, stream_options={"include_usage": True}, seed=1)
    *rest, last, end = _events(got.body)
    assert (json.loads(last)["usage"]["total_tokens"], json.loads(last)["choices"], end) == (5, [], b"[DONE]")
    assert all(json.loads(part)["usage"] is None for part in rest)


async def test_a_whole_answer_is_relayed_byte_for_byte(world, server):
    """Numbers, key order, nulls and blanks included."""
    body_ = json.dumps(completion()).replace("}", ' , "n" : 1.10, "big": 9007199254740993123, "null": null }').encode()
    server.scripts = [[answer(200, body_, media="application/json; charset=utf-8")]]
    got = await ask(world(up=settings(server)), stream=False)
    assert (got.body, got.headers["content-type"]) == (body_, "application/json; charset=utf-8")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_compressed_answer_arrives_readable(world, server, stream):
    """We ask for none; an API that compresses all the same is unpacked, since its encoding header stays behind."""
    plain = b"".join(GOOD[1:]) if stream else json.dumps(completion()).encode()
    media = "text/event-stream" if stream else "application/json"
    server.scripts = [[answer(200, gzip.compress(plain), media=media, content_encoding="gzip")]]
    got = await ask(world(up=settings(server)), stream=stream)
    assert (got.body, "content-encoding" in got.headers) == (plain, False)


async def test_the_clients_key_never_travels(world, server, upstream_key):
    """Upstream sees its own key, our agent and what may travel; no cookie of an earlier answer; no header that cannot stand."""
    server.scripts = [[head(set_cookie="session=abc"), *GOOD[1:]]]
    made = world(up=settings(server, key_env="TEST_UPSTREAM"))
    travels = {"openai_beta": "b", "idempotency_key": "k"}
    for name in ("one", "two"):
        stays = {"cookie": "c=d", "x_forwarded_for": "1.2.3.4", "connection": "close, x-hop", "x_hop": "1", "te": "trailers"}
        got = Client(made, body(name, stream=True), api_key=made.key, x_client_request_id="né", **travels, **stays)
        assert (await got.answer()).status == 200
    for request, sent in server.requests:
        assert made.key.encode() not in request + sent
        assert f"authorization: bearer {upstream_key}".encode() in request.lower()
        assert b"openai-beta: b" in request.lower()
        assert not re.search(rb"cookie|forwarded|x-hop|te: |api-key|x-client-request-id", request.lower())


async def test_a_header_with_sensitive_text_never_travels(world, server):
    """Headers are not part of what is classed: what the detector finds in one stays here, a well-formed traceparent goes."""
    server.scripts = [[head(), *GOOD[1:]]]
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    told = {"tracestate": "mail=ada@example.org", "idempotency_key": "4111 1111 1111 1111", "traceparent": trace}
    made = world(up=settings(server))
    assert (await Client(made, body("one", stream=True), **told).answer()).status == 200
    request = server.requests[0][0].lower()
    assert trace.encode() in request
    assert not re.search(rb"ada@|4111|idempotency|tracestate", request)


async def test_breakers_open_and_the_upstream_is_passed_over(world, server):
    """Five failures in a row, streams that break after their first event among them."""
    server.scripts = [[head(), chunk("fine")]]
    made = world(up=settings(server), spare={})
    for index in range(6):
        await ask(made, stream=True, seed=index)
    assert [record.tried for record in made.records] == [("up/m",)] * 5 + [("spare/m",)]


@pytest.mark.parametrize("script", [[error(404)], [error(429)], [error(408)]], ids=["404", "429", "408"])
async def test_what_says_nothing_of_an_upstreams_health_opens_no_breaker(world, server, script):
    """It is tried again, however often it answers so."""
    server.scripts = [script]
    made = world(up=settings(server), spare={})
    for index in range(7):
        await ask(made, stream=True, seed=index)
    assert {record.tried for record in made.records} == {("up/m", "spare/m")}


async def test_a_cancelled_attempt_leaves_nothing_open(world, server):
    """The upstream sees its connection close."""
    server.scripts = [[head(), HANG]]
    made = world(up=settings(server))
    client = Client(made, body(stream=True))
    await server.arrived.wait()
    client.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await client.task
    async with asyncio.timeout(30):
        await server.left.wait()
    assert made.idle()
    assert [record.ending for record in made.records] == ["cancelled"]


async def test_a_second_cancellation_does_not_cut_a_clean_up_short(world, monkeypatch):
    """Whoever cancels twice waits for the upstream to be closed all the same."""
    made = world(a={"ms_per_token": 1e6})
    closing, true = asyncio.Event(), EchoAnswer.aclose

    async def slow(self):
        closing.set()
        await asyncio.sleep(0.01)
        await true(self)

    monkeypatch.setattr(EchoAnswer, "aclose", slow)
    client = Client(made, body())
    while not made.upstreams["a"].open:
        await asyncio.sleep(0)
    client.task.cancel()
    await closing.wait()
    client.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await client.task
    assert made.idle()


def test_the_docs_repeat_the_table():
    """docs/fallback.md has exactly the rows of FALLBACK and status_row."""
    rows = {cells[0]: cells[1:] for line in (DOCS / "fallback.md").read_text().splitlines() if (cells := _cells(line))}
    said = {kind: _row(row) for kind, row in dispatch.FALLBACK.items()}
    said |= {name: _row(dispatch.status_row(status)) for name, statuses in STATUS_ROWS.items() for status in statuses}
    assert rows == said
    assert all(_row(dispatch.status_row(status)) == said[name] for name, statuses in STATUS_ROWS.items() for status in statuses)
    assert {status for statuses in STATUS_ROWS.values() for status in statuses} == set(range(300, 600))


STATUS_ROWS = {
    "3xx": range(300, 400),
    "401, 403": (401, 403),
    "404": (404,),
    "408, 425": (408, 425),
    "429": (429,),
    "5xx": range(500, 600),
    "other 4xx": sorted(set(range(400, 500)) - {401, 403, 404, 408, 425, 429}),
}


def _cells(line):
    cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
    cells[0] = cells[0].strip("`")
    return cells if len(cells) == 5 and cells[1] in {"yes", "no"} else None


def _row(row):
    return [*("yes" if flag else "no" for flag in (row.retry, row.fall_back, row.counts)), row.meaning]
