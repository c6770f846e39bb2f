"""The edge of the hot routes: heads, refusals, departures; by hand-made ASGI and through a real server on a real socket."""

import asyncio
import json
import tracemalloc
from contextlib import asynccontextmanager

import pytest
from front import Client, body, scope_of
from hostile import HANG, answer, chunk, completion, head, hostile
from openai import APIError, AsyncOpenAI, InternalServerError

from gateway.http.inference import header_map
from gateway.reply import Reply

MB = 1 << 20


def envelope(got):
    told = json.loads(got.body)["error"]
    assert set(told) == {"message", "type", "param", "code"}
    assert got.headers["content-type"] == "application/json"
    assert got.headers["x-request-id"].startswith("req_")
    assert int(got.headers["openai-processing-ms"]) >= 0
    return told


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
async def test_another_method_is_405_with_allow(world, method):
    """Litestar lets every method through to a raw route; the refusal says which one is right."""
    made = world()
    got = await Client(made, method=method).answer()
    assert (got.status, envelope(got)["code"], got.headers["allow"]) == (405, "method_not_allowed", "POST")
    assert made.records[0].ending == "refused"


@pytest.mark.parametrize("media", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""])
async def test_another_media_type_is_415(world, media):
    """The message says what to send."""
    got = await Client(world(), body(), content_type=media).answer()
    assert (got.status, envelope(got)["code"]) == (415, "unsupported_media_type")
    assert "application/json" in got.body.decode()


async def test_an_encoded_body_is_415(world):
    """Neither unpacked nor taken for JSON."""
    got = await Client(world(), b"\x1f\x8b", content_encoding="gzip").answer()
    assert (got.status, "gzip" in envelope(got)["message"]) == (415, True)


@pytest.mark.parametrize("media", [None, "application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.x+json"])
async def test_json_by_any_name_is_read(world, media):
    """A missing type counts as JSON, as with OpenAI."""
    assert (await Client(world(), body(), content_type=media).answer()).status == 200


KEYS = {
    "none": ({"authorization": None}, "missing_api_key"),
    "empty": ({"authorization": "Bearer "}, "missing_api_key"),
    "another scheme": ({"authorization": "Basic abc"}, "missing_api_key"),
    "unknown": ({"authorization": "Bearer gw-12345678-secretsecret"}, "invalid_api_key"),
    "of another maker": ({"authorization": "Bearer sk-secretsecret"}, "invalid_api_key"),
    "not ASCII": ({"authorization": "Bearer é\xff"}, "invalid_api_key"),
    "two": ({"authorization": "Bearer a,Bearer b"}, "invalid_api_key"),
}


@pytest.mark.parametrize(("headers", "code"), KEYS.values(), ids=KEYS)
async def test_a_wrong_key_is_401(world, headers, code):
    """In OpenAI's envelope, without the key."""
    made = world()
    got = await Client(made, body(), **headers).answer()
    assert (got.status, envelope(got)["code"], envelope(got)["type"]) == (401, code, "invalid_request_error")
    assert b"secretsecret" not in got.body
    assert (made.records[0].ending, made.records[0].status, made.records[0].error) == ("refused", 401, code)


async def test_requests_are_refused_while_they_cannot_be_logged(world):
    """503 with a time to come again."""
    made = world()
    made.edge._log_problem = lambda: "disk full"
    got = await Client(made, body()).answer()
    assert (got.status, envelope(got)["code"], got.headers["retry-after"], got.headers["retry-after-ms"]) == (
        503,
        "log_unavailable",
        "5",
        "5000",
    )


@pytest.mark.parametrize("bad", [b"", b"[]", b"{", b"\xff", b"[" * 20_000, b'{"model":"m","model":"m"}'])
async def test_a_bad_body_is_400(world, bad):
    """Never a 500."""
    got = await Client(world(), bad).answer()
    assert (got.status, envelope(got)["type"]) == (400, "invalid_request_error")


def test_headers_are_joined():
    """A header that comes twice is one list; bytes that are no ASCII stay what they are."""
    assert header_map({"headers": [(b"a", b"1"), (b"b", b"\xe9"), (b"a", b"2")]}) == {"a": "1,2", "b": "é"}


@pytest.mark.parametrize("exposes", [True, False])
async def test_our_own_headers_can_be_switched_off(world, exposes):
    """On answers and on refusals after a policy was in force."""
    server = f"expose_headers = {str(exposes).lower()}"
    for fail, status in (("connect", 503), ("", 200)):
        got = await Client(world(server=server, a={"fail": fail}), body()).answer()
        assert got.status == status
        assert ("x-gateway-policy" in got.headers) is exposes


async def test_no_header_stands_twice(world):
    """Streams and whole answers, with their fixed headers."""
    for stream in (True, False):
        got = await Client(world(), body(stream=stream)).answer()
        names = [name for name, _ in got.raw]
        assert len(names) == len(set(names))
        assert {b"x-request-id", b"openai-processing-ms", b"content-type"} <= set(names)
        assert (got.headers.get("cache-control"), "content-length" in got.headers) == ("no-cache" if stream else None, not stream)


async def test_a_crash_is_a_500_without_the_requests_text(world, monkeypatch):
    """Type and place are in the log, the text is nowhere."""
    made = world()

    def crash(*_args, **_kwargs):
        raise RuntimeError("one two three")

    monkeypatch.setattr(made.pipeline, "_decide", crash)
    got = await Client(made, body()).answer()
    assert (got.status, envelope(got)["type"], b"two" in got.body) == (500, "server_error", False)
    ((_, crashed),) = [event for event in made.events if event[0] == "request.crashed"]
    assert (crashed["fault"], "two" in str(made.events)) == ("RuntimeError", False)
    assert (made.records[0].ending, made.records[0].error, made.edge.in_flight) == ("failed", "RuntimeError", 0)


async def test_a_crash_in_mid_stream_is_no_clean_end(world, monkeypatch):
    """An error event in the stream, one record that says broken, nothing open."""
    made = world()
    client = Client(made, body(stream=True))

    def crash(_message):
        if len(client.sent) == 3:
            raise RuntimeError("one two three")

    client.on_send = crash
    got = await client.answer()
    assert got.body.endswith(b"data: [DONE]\n\n")
    assert b'"error"' in got.body
    assert b'"stop"' not in got.body
    assert [(record.ending, record.error) for record in made.records] == [("broken", "RuntimeError")]
    assert made.idle()


async def test_a_departure_after_the_end_changes_nothing(world):
    """Servers report the end of an answer as a departure, too; the record says complete and the task is not cancelled."""
    made = world()
    client = Client(made, body(stream=True))
    client.on_send = lambda message: message.get("more_body") is False and client.leaves.set()
    assert (await client.answer()).status == 200
    assert [record.ending for record in made.records] == ["complete"]
    assert not client.task.cancelled()


async def test_closing_is_finished_though_the_client_leaves_meanwhile(world, monkeypatch):
    """A slow clean-up is not cut short by a second cancellation."""
    made = world()
    closed, true = [], Reply.aclose

    async def slow(self, *, gone=False):
        client.task.cancel()
        await asyncio.sleep(0)
        await true(self, gone=gone)
        closed.append(gone)

    monkeypatch.setattr(Reply, "aclose", slow)
    monkeypatch.setattr(Reply, "holds", True)
    client = Client(made, body())
    with pytest.raises(asyncio.CancelledError):
        await client.task
    assert (closed, made.idle(), [record.ending for record in made.records]) == ([False], True, ["complete"])


@pytest.mark.parametrize("parts", [0, 3])
async def test_a_departure_inside_the_body_is_no_request(world, parts):
    """Nothing is served and nothing is sent."""
    made = world()
    coming = iter([{"type": "http.request", "body": b"x", "more_body": True}] * parts + [{"type": "http.disconnect"}])
    sent = []

    async def receive():
        return next(coming)

    async def send(message):
        sent.append(message)

    await made.edge(scope_of(made), receive, send)
    assert (sent, made.records[0].ending, made.records[0].status) == ([], "client_gone", 499)


def request_bytes(made, payload, *, length=None, **headers):
    lines = [
        "POST /v1/chat/completions HTTP/1.1",
        "host: x",
        f"authorization: Bearer {made.key}",
        "content-type: application/json",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    if "transfer_encoding" not in headers:
        lines.append(f"content-length: {len(payload) if length is None else length}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + payload


@asynccontextmanager
async def connected(made):
    async with made.listening() as address:
        reader, writer = await asyncio.open_connection(*address[:2])
        try:
            yield reader, writer
        finally:
            writer.close()


async def read_answer(reader):
    """(status, headers, body) of one answer with a content-length."""
    top = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in top[1:] if ": " in line)
    return int(top[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


WAITING = {
    "before the first token of a stream": (True, [head(), HANG]),
    "before the head of a stream": (True, [HANG]),
    "before a whole answer": (False, [HANG]),
    "inside a whole answer": (False, [answer(200, completion())[:-20], HANG]),
    "in mid-stream": (True, [head(), chunk("fine"), HANG]),
}


@pytest.mark.parametrize(("stream", "script"), WAITING.values(), ids=WAITING)
async def test_the_upstream_is_closed_when_the_client_leaves(world, stream, script):
    """In every phase and by nothing else, for the upstream would wait for ever; with one record that says so."""
    async with hostile() as server:
        server.scripts = [script]
        made = world(up={"base_url": server.base_url})
        async with connected(made) as (reader, writer):
            writer.write(request_bytes(made, body(stream=stream)))
            await server.arrived.wait()
            if len(script) == 3:
                await reader.readuntil(b"fine")
            writer.close()
            async with asyncio.timeout(30):
                await server.left.wait()
            await until(lambda: made.records)
        assert [record.ending for record in made.records] == ["client_gone"]
        assert made.idle()


async def test_a_client_that_leaves_inside_its_body_leaves_nothing(world):
    """No upstream is asked."""
    made = world()
    async with connected(made) as (_, writer):
        writer.write(request_bytes(made, body()[:20], length=5_000))
        await writer.drain()
        await until(lambda: made.edge.in_flight)
        writer.close()
        await until(lambda: made.records)
    assert (made.records[0].ending, made.upstreams["echo"].calls, made.edge.in_flight) == ("client_gone", [], 0)


async def test_a_connection_serves_again_after_each_answer(world):
    """Whole, streamed, refused: the next request on the same connection is read from its first byte."""
    made = world()
    async with connected(made) as (reader, writer):
        for payload, status in ((body(), 200), (b"[]", 400), (body("x", model="nope"), 404), (body(), 200)):
            writer.write(request_bytes(made, payload))
            assert (await read_answer(reader))[0] == status
        writer.write(request_bytes(made, body(stream=True)))
        assert (await reader.readuntil(b"0\r\n\r\n")).count(b"[DONE]") == 1
        writer.write(request_bytes(made, body()))
        assert (await read_answer(reader))[0] == 200
    assert {record.ending for record in made.records} == {"complete", "refused", "hit"}


async def test_the_official_client_sees_a_cut_as_an_error(world):
    """What came before the cut is delivered, then the SDK raises; it never ends the loop as if all were well."""
    made = world(a={"fail": "midway"})
    async with made.listening() as (host, port), AsyncOpenAI(base_url=f"http://{host}:{port}/v1", api_key=made.key) as client:
        asked = {"model": "m", "messages": [{"role": "user", "content": "one two three"}]}
        stream = aiter(await client.chat.completions.create(**asked, stream=True))
        came = [(await anext(stream)).choices[0].delta.content for _ in range(2)]
        with pytest.raises(APIError, match="cut on purpose"):
            await anext(stream)
        with pytest.raises(InternalServerError) as caught:
            await client.with_options(max_retries=0).chat.completions.create(**asked)
    assert came == ["", "one "]
    assert (caught.value.status_code, caught.value.code) == (502, "upstream_error")
    assert caught.value.request_id == made.records[-1].request_id


UPLOADS = {
    "declared": {},
    "declared, then closed": {"connection": "close"},
    "chunked": {"transfer_encoding": "chunked"},
    "chunked, then closed": {"transfer_encoding": "chunked", "connection": "close"},
}


@pytest.mark.parametrize("headers", UPLOADS.values(), ids=UPLOADS)
async def test_a_sender_of_too_much_sees_the_413(world, headers):
    """64 MB against a limit of 1 MB, sent to the end before the answer is read; memory does not grow with it."""
    made = world(server=f"max_body_bytes = {MB}")
    part = b"x" * (MB // 4)
    framed = b"%x\r\n%s\r\n" % (len(part), part) if "transfer_encoding" in headers else part
    tracemalloc.start()
    async with connected(made) as (reader, writer):
        writer.write(request_bytes(made, b"", length=64 * MB, **headers))
        for _ in range(256):
            writer.write(framed)
            await writer.drain()
        if "transfer_encoding" in headers:
            writer.write(b"0\r\n\r\n")
        status, got, told = await read_answer(reader)
    assert (status, json.loads(told)["error"]["code"], "x-request-id" in got) == (413, "request_too_large", True)
    assert "max_body_bytes" in json.loads(told)["error"]["message"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 9 * MB
    assert [(record.ending, record.status) for record in made.records] == [("refused", 413)]


async def test_a_declared_413_comes_before_the_body(world):
    """The answer is there before one byte of the body is; a sender that asks first never sends it."""
    made = world(server=f"max_body_bytes = {MB}")
    async with connected(made) as (reader, writer):
        writer.write(request_bytes(made, b"", length=64 * MB, expect="100-continue"))
        async with asyncio.timeout(30):
            assert (await read_answer(reader))[0] == 413


async def test_a_continue_is_sent_when_the_body_is_wanted(world):
    """A client that asks first is told to go on."""
    made = world()
    async with connected(made) as (reader, writer):
        payload = body()
        writer.write(request_bytes(made, b"", length=len(payload), expect="100-continue"))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        writer.write(payload)
        assert (await read_answer(reader))[0] == 200


async def test_a_body_in_pieces_is_one_body(world):
    """Chunked or slow, the bytes are the same."""
    made = world()
    payload = body("in pieces")
    async with connected(made) as (reader, writer):
        writer.write(request_bytes(made, b"", transfer_encoding="chunked"))
        for letter in payload:
            writer.write(b"1\r\n%c\r\n" % letter)
        writer.write(b"0\r\n\r\n")
        status, _, got = await read_answer(reader)
    assert (status, b"in pieces" in got) == (200, True)
    assert made.upstreams["echo"].calls[0].body == payload
