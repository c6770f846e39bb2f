"""What the outermost layer adds to answers, and how an answer of unknown length ends for HTTP/1.0, on real sockets."""

import asyncio

import pytest
from front import body
from hostile import RESET, answer, chunk, completion, head, hostile

from gateway.http.door import Door


@pytest.fixture
async def server():
    """An upstream that says what a test tells it to."""
    async with hostile() as made:
        yield made


async def ask(made, payload, version="1.0", *, path="/v1/chat/completions", app=None, **headers):
    """Everything that came before the connection's end; the request asks to keep it open."""
    fields = {"authorization": f"Bearer {made.key}", "content-type": "application/json", "connection": "keep-alive", **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    async with made.listening(app or Door(made.edge)) as (host, port):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(f"POST {path} HTTP/{version}\r\n{lines}content-length: {len(payload)}\r\n\r\n".encode() + payload)
        try:
            async with asyncio.timeout(30):
                top, _, rest = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
    return top.lower(), rest


async def test_a_stream_for_http_1_0_ends_with_its_connection(world, server):
    """No chunks, which that version does not know; the bytes are the upstream's, and come as they come."""
    said = [chunk("fine"), chunk(finish="stop"), b"data: [DONE]\n\n"]
    server.scripts = [[head(), *said]]
    top, rest = await ask(world(up={"base_url": server.base_url}), body(stream=True))
    assert b"transfer-encoding" not in top
    assert b"connection: close" in top
    assert rest == b"".join(said)


@pytest.mark.parametrize("sent", [body(), body(model="nope"), b"{"], ids=["an answer", "an unknown model", "no JSON"])
async def test_what_has_a_length_keeps_it(world, server, sent):
    """Whole answers and errors say how long they are, in either version."""
    server.scripts = [[answer(200, completion())]]
    top, rest = await ask(world(up={"base_url": server.base_url}), sent)
    assert f"content-length: {len(rest)}".encode() in top
    assert b"transfer-encoding" not in top


async def test_http_1_1_still_gets_chunks(world, server):
    """And its connection stays open, unless it asks otherwise."""
    server.scripts = [[head(), chunk("fine"), chunk(finish="stop"), b"data: [DONE]\n\n"]]
    top, rest = await ask(world(up={"base_url": server.base_url}), body(stream=True), "1.1", connection="close")
    assert b"transfer-encoding: chunked" in top
    assert rest.endswith(b"0\r\n\r\n")


async def test_what_broke_off_is_reset_and_not_closed(world, server):
    """Sound has no way to say that it is cut; an orderly end of the connection would pass for the end of the sound."""
    server.scripts = [[head(200, "audio/mpeg"), b"sound", RESET]]
    made = world(up={"base_url": server.base_url, "retries": 0})
    with pytest.raises(ConnectionResetError):
        await ask(made, body(input="say it"), path="/v1/audio/speech")


async def test_a_crash_inside_is_named_and_reset(world):
    """Whatever happens inside, the client has a head with an id, and no false end."""

    async def crashing(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError

    with pytest.raises(ConnectionResetError):
        await ask(world(), b"", path="/x", app=Door(crashing))


async def test_a_head_without_a_body_still_leaves(world):
    """An application that stops after its head ends the connection, and what it said is not lost."""

    async def stops(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})

    made = world()
    top, rest = await ask(made, body(), "1.1", app=Door(stops), connection="close")
    assert top.startswith(b"http/1.1 200")
    assert rest == b""


async def test_a_client_that_waits_to_be_asked_is_asked(world, server):
    """`100 Continue` is no head of an answer: it leaves at once, and the body follows it."""
    server.scripts = [[answer(200, completion())]]
    made, payload = world(up={"base_url": server.base_url}), body()
    async with made.listening(Door(made.edge)) as (host, port):
        reader, writer = await asyncio.open_connection(host, port)
        top = f"POST /v1/chat/completions HTTP/1.1\r\nauthorization: Bearer {made.key}\r\ncontent-type: application/json\r\n"
        writer.write(f"{top}expect: 100-continue\r\nconnection: close\r\ncontent-length: {len(payload)}\r\n\r\n".encode())
        async with asyncio.timeout(30):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(payload)
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()
