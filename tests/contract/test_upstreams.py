"""What every upstream promises, whatever stands behind it. `KINDS` names the implementations; each is one function below."""

import asyncio
import json
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest
from hostile import HANG, chunk, head, hostile
from shelf import shelf

from gateway import frames, sse
from gateway.config import EchoUpstream, OpenAIUpstream
from gateway.dispatch import FALLBACK
from gateway.errors import BodyStopped, UpstreamFailed
from gateway.local.frames import Cancel, Delta, Finished, Hello, Started, from_worker_decoder, to_worker_decoder
from gateway.upstreams import Call, Upstream
from gateway.upstreams.echo import Echo
from gateway.upstreams.http1 import Http1
from gateway.upstreams.local import LocalUpstream
from gateway.upstreams.openai import OpenAI, connect

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "proxy-authenticate", "content-length"}


class Subject(NamedTuple):
    """An upstream that answers "one two", and ways to look behind it."""

    upstream: Upstream
    open: Callable[[], int]
    """How many answers the other side still works on."""


@asynccontextmanager
async def echo(*, silent, _folder):
    upstream = Echo("up", EchoUpstream(ms_per_token=1e6 if silent else 0.0))
    yield Subject(upstream, lambda: upstream.open)


@asynccontextmanager
async def external(client, *, silent):
    rest = [HANG] if silent else [chunk("two"), chunk(finish="stop"), sse.DONE]
    async with hostile() as server:
        server.scripts = [[head(keep_alive="timeout=5"), chunk("one "), *rest]]
        config = OpenAIUpstream(base_url=server.base_url, max_connections=30, client=client)
        upstream = connect("up", config, key="")
        yield Subject(upstream, lambda: server.open)
        await upstream.aclose()


def http1(*, silent, _folder):
    return external("http1", silent=silent)


def httpx(*, silent, _folder):
    return external("httpx", silent=silent)


@asynccontextmanager
async def local(*, silent, _folder):
    working = set()

    async def work(reader, writer):
        writer.write(frames.encode(Hello("m", "bnb-int8", "cpu", 512, 4)))
        while (frame := await frames.read(reader, to_worker_decoder())) is not None:
            if isinstance(frame, Cancel):
                working.discard(frame.id)
                continue
            working.add(frame.id)
            writer.write(frames.encode(Started(frame.id, 3)) + frames.encode(Delta(frame.id, "one ", 1)))
            if not silent:
                working.discard(frame.id)
                writer.write(frames.encode(Delta(frame.id, "two", 1)) + frames.encode(Finished(frame.id, "stop", 3, 2)))
        writer.close()

    server = await asyncio.start_unix_server(work, _folder / "w.sock")
    greeted = asyncio.Event()
    client = frames.Client(str(_folder / "w.sock"), from_worker_decoder(), on_news=lambda _: greeted.set())
    running = asyncio.create_task(client.run())
    await greeted.wait()
    yield Subject(LocalUpstream("up", {"m": client}), lambda: len(working))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    server.close()


KINDS = (echo, http1, httpx, local)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
async def make(request, tmp_path):
    """Open a Subject; `silent` ones fall silent after their first word."""

    def opened(*, silent=False):
        return request.param(silent=silent, _folder=tmp_path)

    return opened


def call(*, stream=True, text="one two"):
    sent = {"model": "m", "stream": stream, "messages": [{"role": "user", "content": text}]}
    return Call(request_id="r", endpoint="chat/completions", model="m", body=json.dumps(sent).encode(), stream=stream)


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_silent_answer_is_closed_at_once(make):
    """Closing stops the work behind it, also in the middle and a second time."""
    async with make(silent=True) as subject:
        got = await subject.upstream.send(call())
        pieces = aiter(got)
        await anext(pieces)
        await until(lambda: subject.open() == 1)
        await got.aclose()
        await got.aclose()
        await until(lambda: subject.open() == 0)
        if hasattr(pieces, "aclose"):
            await pieces.aclose()


async def test_an_unread_answer_is_closed(make):
    """Nobody need read before closing."""
    async with make(silent=True) as subject:
        got = await subject.upstream.send(call())
        await got.aclose()
        await until(lambda: subject.open() == 0)


@pytest.mark.parametrize("stream", [True, False])
async def test_cancelling_whoever_waits_stops_the_work(make, stream):
    """While the head is awaited, or the body."""
    async with make(silent=True) as subject:

        async def read():
            got = await subject.upstream.send(call(stream=stream))
            try:
                return [piece async for piece in got]
            finally:
                await got.aclose()

        reading = asyncio.create_task(read())
        await until(lambda: subject.open() == 1)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await until(lambda: subject.open() == 0)


async def test_a_cancellation_at_any_moment_costs_nothing(make):
    """While a connection is awaited or opened, before and after the request is out: nothing stays open, no place is lost."""
    async with make(silent=True) as subject:
        for turns in range(120):
            sending = asyncio.create_task(subject.upstream.send(call()))
            for _ in range(turns % 20):
                await asyncio.sleep(0)
            sending.cancel()
            (got,) = await asyncio.gather(sending, return_exceptions=True)
            if not isinstance(got, asyncio.CancelledError):
                await got.aclose()
        await until(lambda: subject.open() == 0)
        answers = await asyncio.gather(*(subject.upstream.send(call()) for _ in range(30)))
        for got in answers:
            await got.aclose()
        await until(lambda: subject.open() == 0)


async def test_a_stream_is_events_in_openais_shape(make):
    """Every piece arrives when it was sent; together they are whole events, the end mark last."""
    async with make() as subject:
        got = await subject.upstream.send(call())
        pieces = [piece async for piece in got]
        await got.aclose()
    splitter = sse.Splitter()
    datas = [sse.data_of(event) for piece in pieces for event in splitter.feed(piece.data)]
    chunks = [json.loads(data) for data in datas[:-1]]
    assert (got.status, dict(got.headers)["content-type"].partition(";")[0]) == (200, "text/event-stream")
    assert (splitter.rest, datas[-1]) == (b"", b"[DONE]")
    assert "".join(part["choices"][0]["delta"].get("content") or "" for part in chunks) == "one two"
    assert [part["choices"][0]["finish_reason"] for part in chunks][-1] == "stop"


async def test_what_a_source_says_of_its_tokens_is_what_it_sends(make):
    """A piece either knows its text, or leaves it to the tap; never a mixture in one answer."""
    async with make() as subject:
        got = await subject.upstream.send(call())
        pieces = [piece async for piece in got]
        await got.aclose()
    known = [piece.text for piece in pieces if piece.text is not None]
    assert len(known) in {0, len(pieces)}
    assert "".join(known) in {"", "one two"}


async def test_headers_are_lower_case_and_the_connections_own_are_gone(make):
    """Whatever belongs to one hop ends there."""
    async with make() as subject:
        got = await subject.upstream.send(call())
        await got.aclose()
    names = {name for name, _ in got.headers}
    assert names == {name.lower() for name in names}
    assert not names & HOP_BY_HOP


async def test_calls_do_not_meet(make):
    """Thirty at once, each with an answer of its own."""
    async with make() as subject:

        async def text():
            got = await subject.upstream.send(call())
            try:
                return b"".join([piece.data async for piece in got])
            finally:
                await got.aclose()

        answers = await asyncio.gather(*(text() for _ in range(30)))
        assert all(answer.count(b"[DONE]") == 1 and answer.count(b"one ") == 1 for answer in answers)
        await until(lambda: subject.open() == 0)


class Body:
    """An upload of 64 KB parts; says how many were taken. `stops` after so many."""

    def __init__(self, n_parts, *, length=True, stops=None):
        self.length = n_parts * 65536 if length else None
        self.taken, self.spent, self.stops, self._n_parts = 0, False, stops, n_parts
        self.closed = asyncio.Event()

    async def parts(self):
        self.spent = True
        try:
            for _ in range(self._n_parts):
                if self.taken == self.stops:
                    raise BodyStopped("on purpose")
                self.taken += 1
                yield b"x" * 65536
                await asyncio.sleep(0)
        finally:
            self.closed.set()


def upload(body):
    return Call(
        request_id="r",
        endpoint="files",
        model="m",
        body=b"",
        stream=False,
        upload=body,
        content_type="multipart/form-data; boundary=b",
    )


@pytest.mark.parametrize("client", ["http1", "httpx"])
@pytest.mark.parametrize("length", [True, False])
async def test_an_upload_arrives_whole_under_its_own_type(client, length):
    """With a length or in chunks; the connection serves again afterwards."""
    async with shelf() as server:
        up = connect("up", OpenAIUpstream(base_url=server.base_url, client=client), key="")
        for _ in range(2):
            got = await up.send(upload(Body(40, length=length)))
            assert got.status == 200
            assert b"".join([piece.data async for piece in got])
            await got.aclose()
        assert [(headers["content-type"], len(body)) for _, headers, body in server.requests] == [
            ("multipart/form-data; boundary=b", 40 * 65536)
        ] * 2
        await up.aclose()


@pytest.mark.parametrize("client", ["http1", "httpx"])
async def test_an_upload_is_taken_no_faster_than_it_is_read(client):
    """What the kernel's buffers do not hold stays with its sender, until the other side reads on."""
    async with shelf() as server:
        server.stalls_after, server.keeps = 1, False
        body = Body(2000)
        up = connect("up", OpenAIUpstream(base_url=server.base_url, client=client), key="")
        sending = asyncio.create_task(up.send(upload(body)))
        await until(server.stalled.is_set)
        # Whoever waits for nothing takes a part in a few turns of the loop, and would be through by then.
        for _ in range(20_000):
            await asyncio.sleep(0)
        assert body.taken < 1000
        server.goes_on.set()
        got = await sending
        assert (body.taken, server.got) == (2000, body.length)
        await got.aclose()
        await up.aclose()


@pytest.mark.parametrize("client", ["http1", "httpx"])
async def test_an_upload_that_is_given_up_is_closed(client):
    """Also while the other side does not read."""
    async with shelf() as server:
        server.stalls_after = 1
        body = Body(2000)
        up = connect("up", OpenAIUpstream(base_url=server.base_url, client=client), key="")
        sending = asyncio.create_task(up.send(upload(body)))
        await until(server.stalled.is_set)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        async with asyncio.timeout(30):
            await body.closed.wait()
        assert body.taken < 2000
        server.goes_on.set()
        await up.aclose()


@pytest.mark.parametrize("client", ["http1", "httpx"])
async def test_an_upload_that_stops_is_never_a_whole_body(client):
    """Its reason comes back, and the other side sees a broken connection."""
    async with shelf() as server:
        up = connect("up", OpenAIUpstream(base_url=server.base_url, client=client), key="")
        with pytest.raises(BodyStopped):
            await up.send(upload(Body(40, length=False, stops=20)))
        await until(lambda: server.open == 0)
        assert server.requests == []
        await up.aclose()


async def test_availability_is_told_without_waiting(make):
    """None when a call can be sent."""
    async with make() as subject:
        assert subject.upstream.unavailable("m") is None
        assert subject.upstream.name == "up"


UNREACHABLE = {
    "echo": lambda folder: Echo("up", EchoUpstream(fail="connect")),
    "http1": lambda folder: Http1("up", OpenAIUpstream(base_url="http://127.0.0.1:1/v1"), key=""),
    "httpx": lambda folder: OpenAI("up", OpenAIUpstream(base_url="http://127.0.0.1:1/v1"), key=""),
    "local": lambda folder: LocalUpstream("up", {"m": frames.Client(str(folder / "none"), from_worker_decoder())}),
}


@pytest.mark.parametrize("made", UNREACHABLE.values(), ids=UNREACHABLE)
async def test_what_cannot_be_reached_says_so(made, tmp_path):
    """A row of the fallback table, and not a word of the request."""
    upstream = made(tmp_path)
    with pytest.raises(UpstreamFailed) as caught:
        await upstream.send(call(text="secret"))
    assert caught.value.kind == "connect"
    assert caught.value.kind in FALLBACK
    assert "secret" not in str(caught.value)
    await upstream.aclose()
