"""The short way from the parser to the Edge, on real sockets: what uvicorn would have done by itself still holds."""

import asyncio
import gc
import json

import pytest
from front import body
from hostile import answer, chunk, completion, head, hostile

from gateway.http.lane import Connection, Connections, Lane

DONE = b"data: [DONE]\n\n"


@pytest.fixture
async def server():
    """An upstream that says what a test tells it to."""
    async with hostile() as made:
        yield made


def request(made, payload, *, path="/v1/chat/completions", version="1.1", length=None, **fields):
    """The bytes of a request."""
    named = {"host": "x", "authorization": f"Bearer {made.key}", "content-type": "application/json", **fields}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in named.items())
    size = len(payload) if length is None else length
    return f"POST {path} HTTP/{version}\r\n{lines}content-length: {size}\r\n\r\n".encode() + payload


async def read_answer(reader):
    """Status and body of the next answer on a connection that stays open."""
    async with asyncio.timeout(30):
        top = (await reader.readuntil(b"\r\n\r\n")).lower()
        status = int(top.split()[1])
        if b"transfer-encoding: chunked" not in top:
            length = int(top.partition(b"content-length: ")[2].split(b"\r\n")[0])
            return status, await reader.readexactly(length)
        parts = []
        while size := int(await reader.readuntil(b"\r\n"), 16):
            parts.append(await reader.readexactly(size))
            await reader.readexactly(2)
        await reader.readexactly(2)
        return status, b"".join(parts)


@pytest.mark.parametrize("sent", [body(), body(stream=True), b"{"], ids=["whole", "stream", "refused"])
async def test_a_head_leaves_with_the_first_bytes_of_its_body(world, server, sent, monkeypatch):
    """One write and one packet, not two: a head by itself would wake the client for nothing."""
    server.scripts = [[head(), chunk("fine"), chunk(finish="stop"), DONE]]
    transport = asyncio.selector_events._SelectorSocketTransport
    wrote, write = [], transport.write
    monkeypatch.setattr(transport, "write", lambda self, data: (wrote.append(bytes(data)), write(self, data))[1])
    made = world(up={"base_url": server.base_url})
    async with made.listening() as (host, port):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(request(made, sent))
        await read_answer(reader)
        writer.close()
    heads = [data for data in wrote if data.startswith(b"HTTP/1.1 ") and b"x-request-id" in data]
    assert len(heads) == 1
    assert heads[0].partition(b"\r\n\r\n")[2]


async def test_one_connection_carries_request_after_request(world, server):
    """Whole answers, streams and refusals, each in its turn; a body in pieces is one body."""
    stream = [head(), chunk("fine"), chunk(finish="stop"), DONE]
    server.scripts = [[answer(200, completion())], stream, [answer(200, completion())]]
    made = world(up={"base_url": server.base_url})
    async with made.listening() as (host, port):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(request(made, body("one")))
        assert (await read_answer(reader))[0] == 200
        writer.write(request(made, body("two", stream=True)))
        assert (await read_answer(reader))[1].endswith(DONE)
        writer.write(request(made, b"{"))
        assert (await read_answer(reader))[0] == 400
        whole = request(made, body())
        writer.write(whole[:-7])
        await writer.drain()
        while made.edge.in_flight == 0:
            await asyncio.sleep(0)
        writer.write(whole[-7:])
        assert (await read_answer(reader))[0] == 200
        writer.close()
    assert [record.ending for record in made.records] == ["complete", "complete", "refused", "complete"]


async def test_what_comes_ahead_of_its_turn_waits_and_is_answered_in_order(world, server):
    """Three requests in one packet, one of which takes the other way through the application: answers in their order."""
    server.scripts = [[answer(200, completion("one"))], [answer(200, completion("two"))]]
    first, last = body("first"), body("last")
    made = world(up={"base_url": server.base_url})
    async with made.listening() as (host, port):
        reader, writer = await asyncio.open_connection(host, port)
        other = f"GET /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {made.key}\r\n\r\n".encode()
        writer.write(request(made, first) + other + request(made, last))
        found = [await read_answer(reader) for _ in range(3)]
        writer.close()
    assert [status for status, _ in found] == [200, 405, 200]
    assert [json.loads(found[at][1])["choices"][0]["message"]["content"] for at in (0, 2)] == ["one", "two"]


NO_HTTP = {
    "no request line": b"hello\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "two lengths": b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}",
    "a header without a name": b"GET /v1/models HTTP/1.1\r\nhost: x\r\n: y\r\n\r\n",
    "a body of no chunks": b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
}


@pytest.mark.parametrize("sent", NO_HTTP.values(), ids=NO_HTTP)
async def test_what_is_no_http_gets_an_error_that_a_client_can_read(world, sent):
    """OpenAI's envelope, an id, and the end of the connection."""
    made = world(up={})
    async with made.listening() as (host, port):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(sent)
        async with asyncio.timeout(30):
            top, _, told = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
    assert top.startswith(b"HTTP/1.1 400 ")
    assert b"x-request-id: req_" in top
    assert json.loads(told)["error"]["type"] == "invalid_request_error"


async def test_an_answer_comes_to_its_end_whatever_follows_its_request(world, server, caplog):
    """What is no HTTP behind a request in flight is not answered into that one's answer: it ends the connection behind it."""
    gate = asyncio.Event()
    server.scripts = [[head(), chunk("one"), gate, chunk("two"), chunk(finish="stop"), DONE]]
    made = world(up={"base_url": server.base_url})
    async with made.listening() as (host, port):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(request(made, body(stream=True)))
        async with asyncio.timeout(30):
            begun = await reader.readuntil(b"one")
            writer.write(b"\x00\x00 no HTTP \r\n\r\n")
            while "Invalid HTTP" not in caplog.text:
                await asyncio.sleep(0)
            gate.set()
            rest = await reader.read()
        writer.close()
    assert b" 200 " in begun
    assert rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert b"400" not in rest
    assert [record.ending for record in made.records] == ["complete"]


async def test_a_client_that_leaves_ends_its_upstream(world):
    """Though the upstream has not said a word yet: one record, and nothing stays open."""
    made = world(silent={"fail": "hang"})
    async with made.listening() as (host, port):
        _, writer = await asyncio.open_connection(host, port)
        writer.write(request(made, body()))
        while made.idle():
            await asyncio.sleep(0)
        writer.close()
        async with asyncio.timeout(30):
            while not made.records:
                await asyncio.sleep(0)
    assert made.records[0].ending == "client_gone"
    assert made.idle()


async def test_a_client_that_leaves_half_way_through_its_body_is_gone(world):
    """Its record says so, and no upstream was asked."""
    made = world(up={})
    async with made.listening() as (host, port):
        _, writer = await asyncio.open_connection(host, port)
        writer.write(request(made, body()[:10], length=100))
        while made.edge.in_flight == 0:
            await asyncio.sleep(0)
        writer.close()
        async with asyncio.timeout(30):
            while not made.records:
                await asyncio.sleep(0)
    assert [(record.ending, record.tried) for record in made.records] == [("client_gone", ())]


async def test_a_connection_that_nobody_uses_is_closed(world):
    """After its time, and not while a request is being served."""
    made = world(up={})
    async with made.listening(idle_s=0.3) as (host, port):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(request(made, body()))
        assert (await read_answer(reader))[0] == 200
        async with asyncio.timeout(30):
            assert await reader.read() == b""
        writer.close()


async def test_a_client_that_waits_to_be_asked_is_asked_unless_it_is_refused(world, server):
    """`100 Continue` leaves by itself, and the body follows it; a request that is refused anyway is not asked for its body."""
    server.scripts = [[answer(200, completion())]]
    made, payload = world(up={"base_url": server.base_url}), body()
    async with made.listening() as (host, port):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(request(made, b"", length=len(payload), expect="100-continue"))
        async with asyncio.timeout(30):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(payload)
        assert (await read_answer(reader))[0] == 200
        writer.write(request(made, b"", length=len(payload), expect="100-continue", authorization="Bearer gw-wrong"))
        async with asyncio.timeout(30):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 401 ")
        writer.close()


async def test_a_connection_that_shall_close_closes(world):
    """As the client asked, with the answer whole."""
    made = world(up={})
    async with made.listening() as (host, port):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(request(made, body(), connection="close"))
        async with asyncio.timeout(30):
            top, _, rest = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
    assert b"connection: close" in top
    assert json.loads(rest)["object"] == "chat.completion"


async def test_a_header_with_a_line_break_never_leaves(world, monkeypatch):
    """Whatever an answer's header holds, it cannot begin another header, or another answer."""
    made = world(up={})
    monkeypatch.setattr(made.pipeline, "_headers", lambda *_: [("x-gateway-route", "a\r\nx-evil: 1")])
    async with made.listening() as (host, port):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(request(made, body(), connection="close"))
        async with asyncio.timeout(30):
            assert b"x-evil" not in await reader.read()
        writer.close()


async def test_what_the_lane_does_not_carry_goes_through_the_application(world):
    """HTTP/1.0, another method, a page of another origin where those are served: the application sees them, the lane does not."""
    made, seen = world(up={}), []

    async def application(scope, receive, send):
        seen.append((scope["http_version"], scope["method"]))
        await send({"type": "http.response.start", "status": 204, "headers": [(b"connection", b"close")]})
        await send({"type": "http.response.body", "body": b""})

    async with made.listening(application, protocol=Connections(made.edge, idle_s=75, cors=True)) as (host, port):
        for sent in (
            request(made, body(), version="1.0"),
            request(made, body(), origin="https://page.example"),
            request(made, body()).replace(b"POST", b"PUT", 1),
            request(made, body(), path="/v1/other"),
            request(made, body(), connection="close"),
        ):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(sent)
            async with asyncio.timeout(30):
                await reader.read()
            writer.close()
    assert seen == [("1.0", "POST"), ("1.1", "POST"), ("1.1", "PUT"), ("1.1", "POST")]
    assert len(made.records) == 1


async def test_nothing_of_a_request_waits_for_the_garbage_collector(world, server):
    """Whole, streamed, refused, or left by its client: with the connection closed, every exchange is freed by itself."""
    server.scripts = [[answer(200, completion())], [head(), chunk("fine"), chunk(finish="stop"), DONE]]
    made = world(up={"base_url": server.base_url})

    def lanes():
        return [thing for thing in gc.get_objects() if type(thing) in {Lane, Connection}]

    async with made.listening() as (host, port):
        gc.collect()
        gc.disable()
        try:
            before = len(lanes())
            for sent in (body("one"), body("two", stream=True), b"{"):
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(request(made, sent))
                await read_answer(reader)
                writer.close()
            _, writer = await asyncio.open_connection(host, port)
            writer.write(request(made, body()[:10], length=100))
            while made.edge.in_flight == 0:
                await asyncio.sleep(0)
            writer.close()
            async with asyncio.timeout(30):
                while len(lanes()) > before:
                    await asyncio.sleep(0.001)
        finally:
            gc.enable()
