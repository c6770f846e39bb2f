"""Our own HTTP/1.1 client against upstreams on real sockets: what it takes, what it refuses, and that it leaves nothing behind."""

import asyncio
import gzip
import hashlib
import os
import random
import socket
import ssl
import struct
import subprocess
import zlib
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config import OpenAIUpstream
from gateway.errors import ConfigError, InvalidRequest, UpstreamFailed
from gateway.upstreams import Call
from gateway.upstreams.http1 import MAX_UNREAD_BYTES, Http1, Origin, Pool
from gateway.upstreams.openai import OpenAI, connect

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
DEADLINE_S = 30.0
"""No test takes a hundredth of this; one that hangs fails here."""
MARK = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nmark"


def sized(body, status=b"200"):
    return b"HTTP/1.1 %b OK\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


def chunks(*parts):
    return CHUNKED + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (*parts, b""))


class Peer:
    """The upstream's side of one connection."""

    def __init__(self, server, reader, writer):
        self.server, self.reader, self.writer = server, reader, writer

    async def request(self):
        """The next request as (head, body)."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        names = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:] if b": " in line)
        body = await self.reader.readexactly(int(names[b"content-length"]))
        self.server.requests.append((head, body))
        return head, body

    async def send(self, *parts):
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()
            await asyncio.sleep(0)

    def reset(self):
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


class Server:
    """Runs `serve(peer)` for each connection, which closes when that returns."""

    def __init__(self, serve):
        self.serve = serve
        self.requests = []
        self.peers = []
        self.connections = self.open = 0

    async def __call__(self, reader, writer):
        self.connections += 1
        self.open += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            self.peers.append(Peer(self, reader, writer))
            await self.serve(self.peers[-1])
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        self.open -= 1


@asynccontextmanager
async def talking(serve, make=Http1, *, tls=None, **config):
    """(upstream, server): a client of ours, and a Server that listens until the end."""
    server = Server(serve)
    listening = await asyncio.start_server(server, "127.0.0.1", 0, ssl=tls)
    host = f"https://localhost:{port_of(listening)}" if tls else f"http://127.0.0.1:{port_of(listening)}"
    upstream = make("up", OpenAIUpstream(base_url=f"{host}/v1", **config), key="sk-up")
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield upstream, server
            await upstream.aclose()
            await until(lambda: server.open == 0)
    finally:
        listening.close()
        async with asyncio.timeout(DEADLINE_S):
            # Connections that were accepted in the last moment close as well, or the next test finds them.
            while others := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(others)


def port_of(listening):
    return listening.sockets[0].getsockname()[1]


def always(*parts, rest=MARK):
    """Answers a first request with these parts, then closes; every later connection answers each request with `rest`."""

    async def serve(peer):
        first = peer.server.connections == 1
        while True:
            await peer.request()
            await peer.send(*(parts if first else [rest]))
            if first:
                return

    return serve


def call(body=b"{}", **fields):
    return Call(**{"request_id": "r", "endpoint": "chat/completions", "model": "m", "body": body, "stream": True, **fields})


async def ask(upstream, body=b"{}"):
    """(status, headers, body, kind of failure or None) of one request, its answer closed."""
    status, headers, data, kind = 0, [], b"", None
    got = None
    try:
        got = await upstream.send(call(body))
        status, headers = got.status, sorted(got.headers)
        async for piece in got:
            data += piece.data
    except UpstreamFailed as failure:
        kind = failure.kind
    finally:
        if got is not None:
            await got.aclose()
    return status, headers, data, kind


def open_files():
    """How many files and sockets this process holds."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


# What is taken.

TAKEN = {
    "a length": (sized(b"hello"), 200, b"hello"),
    "no body at all": (sized(b""), 200, b""),
    "chunks": (chunks(b"he", b"llo"), 200, b"hello"),
    "chunks with extensions and a trailer": (CHUNKED + b"5;a=b\r\nhello\r\n0\r\nx-t: 1\r\n\r\n", 200, b"hello"),
    "until the connection closes": (OK + b"\r\nhello", 200, b"hello"),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\n\r\nhello", 200, b"hello"),
    "interim answers": (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nlink: a\r\n\r\n" + sized(b"hello"), 200, b"hello"),
    "no reason": (sized(b"hello").replace(b" OK", b""), 200, b"hello"),
    "204": (b"HTTP/1.1 204 No\r\n\r\n", 204, b""),
    "304 with a length": (b"HTTP/1.1 304 No\r\ncontent-length: 9\r\n\r\n", 304, b""),
    "an error": (sized(b'{"error":1}', b"429"), 429, b'{"error":1}'),
    "close": (sized(b"hello").replace(b"OK\r\n", b"OK\r\nconnection: close\r\n"), 200, b"hello"),
    "a 200 that speaks of upgrades": (sized(b"hello").replace(b"OK\r\n", b"OK\r\nconnection: upgrade\r\nupgrade: h2c\r\n"), 200, b"hello"),
    "gzip unasked": (OK + b"content-encoding: gzip\r\n\r\n" + gzip.compress(b"hello"), 200, b"hello"),
    "deflate unasked": (OK + b"content-encoding: deflate\r\n\r\n" + zlib.compress(b"hello"), 200, b"hello"),
    "headers": (sized(b"", b"200").replace(b"\r\n\r\n", b"\r\nX-RateLimit-A: 1\r\nX-Request-Id: i\r\nset-cookie: c\r\n\r\n"), 200, b""),
}  # fmt: skip

# What is refused: (what the upstream sends before it closes, the kind of failure, what httpx says of it).
# httpx does not tell malformed from cut; where it takes the answer (None) we follow RFC 9112, sections 5.2, 6.1 and 6.3, more strictly.

LONG = b"x-%d: " + b"a" * 1000 + b"\r\n"
REFUSED = {
    "two lengths": (OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello", "no_answer"),
    "the same length twice": (OK + b"content-length: 5\r\ncontent-length: 5\r\n\r\nhello", None),
    "a list of lengths": (OK + b"content-length: 5, 5\r\n\r\nhello", None),
    "a negative length": (OK + b"content-length: -5\r\n\r\nhello", "no_answer"),
    "a signed length": (OK + b"content-length: +5\r\n\r\nhello", "no_answer"),
    "an empty length": (OK + b"content-length:\r\n\r\nhello", "no_answer"),
    "a length beyond 64 bits": (OK + b"content-length: 99999999999999999999\r\n\r\nhello", "cut"),
    "length, then chunked": (OK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", None),
    "chunked, then length": (OK + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n5\r\nhello\r\n0\r\n\r\n", None),
    "chunked twice": (OK + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "no_answer"),
    "another transfer encoding": (OK + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "no_answer"),
    "identity": (OK + b"transfer-encoding: identity\r\n\r\nhello", "no_answer"),
    "a folded header": (OK + b"x-a: a\r\n b\r\ncontent-length: 5\r\n\r\nhello", None),
    "a folded length": (OK + b"content-length:\r\n 5\r\n\r\nhello", None),
    "a space before the colon": (OK + b"content-length : 5\r\n\r\nhello", "no_answer"),
    "bare line feeds": (sized(b"hello").replace(b"\r\n", b"\n"), None),
    "a bare carriage return": (OK + b"x-a: a\rb\r\ncontent-length: 0\r\n\r\n", "no_answer"),
    "a NUL in a header": (OK + b"x-a: a\0b\r\ncontent-length: 0\r\n\r\n", "no_answer"),
    "201 headers": (OK + b"".join(b"x-%d: a\r\n" % n for n in range(201)) + b"\r\n", None),
    "70 KB of headers": (OK + b"".join(LONG % n for n in range(70)) + b"\r\n", None),
    "one header of 70 KB, unfinished": (OK + b"x-a: " + b"a" * 70_000, "no_answer"),
    "interim answers without end": (b"HTTP/1.1 100 Continue\r\n\r\n" * 4000, "no_answer"),
    "a reason of 70 KB": (b"HTTP/1.1 200 " + b"a" * 70_000, "no_answer"),
    "101": (b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nhello", "no_answer"),
    "101 without a word": (b"HTTP/1.1 101 Switching\r\n\r\nhello", "no_answer"),
    "status 0": (sized(b"hello", b"000"), "no_answer"),
    "status 2000": (sized(b"hello", b"2000"), "no_answer"),
    "HTTP/2.0": (sized(b"hello").replace(b"1.1", b"2.0"), None),
    "not HTTP": (b"hello\r\n\r\n", "no_answer"),
    "a bad chunk size": (CHUNKED + b"zz\r\nhello\r\n0\r\n\r\n", "cut"),
    "a negative chunk size": (CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n", "cut"),
    "a chunk size beyond 64 bits": (CHUNKED + b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n", "cut"),
    "a chunk longer than it says": (CHUNKED + b"4\r\nhello\r\n0\r\n\r\n", "cut"),
    "a chunk extension without end": (CHUNKED + b"5;" + b"a" * 70_000, "cut"),
    "a trailer without end": (CHUNKED + b"5\r\nhello\r\n0\r\nx: " + b"a" * 900_000, "cut"),
    "a trailer of 201 headers": (CHUNKED + b"0\r\n" + b"x: a\r\n" * 201 + b"\r\n", None),
    "an encoding nobody knows": (OK + b"content-encoding: br\r\n\r\nhello", None),
    "gzip that is none": (OK + b"content-encoding: gzip\r\n\r\nhello", "protocol"),
    "gzip without its end": (OK + b"content-encoding: gzip\r\n\r\n" + gzip.compress(b"hello")[:-4], None),
    "gzip and more": (OK + b"content-encoding: gzip\r\n\r\n" + gzip.compress(b"hello") + b"more", None),
}  # fmt: skip

CUT = {
    "nothing": (b"", "no_answer"),
    "half a head": (OK + b"content-le", "no_answer"),
    "an interim answer alone": (b"HTTP/1.1 100 Continue\r\n\r\n", "no_answer"),
    "a short body": (sized(b"hello")[:-1], "cut"),
    "a length and no body": (sized(b"hello")[:-5], "cut"),
    "half a chunk": (CHUNKED + b"5\r\nhel", "cut"),
    "no last chunk": (CHUNKED + b"5\r\nhello\r\n", "cut"),
    "no end of the trailer": (CHUNKED + b"5\r\nhello\r\n0\r\n", "cut"),
}


@pytest.mark.parametrize(("sent", "status", "body"), TAKEN.values(), ids=TAKEN)
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
async def test_an_answer_is_the_same_however_it_is_split(sent, status, body, step):
    """Byte by byte, in sevens or at once; and the next request is served as if nothing had been."""
    parts = [sent[at : at + step] for at in range(0, len(sent), step)]
    async with talking(always(*parts)) as (upstream, _):
        got = await ask(upstream)
        assert (got[0], got[2], got[3]) == (status, body, None)
        assert (await ask(upstream))[2] == b"mark"


@pytest.mark.parametrize(("sent", "_httpx"), REFUSED.values(), ids=REFUSED)
async def test_what_two_readers_could_read_differently_is_refused(sent, _httpx):
    """Refused as `protocol`, whatever follows, and with it the connection."""
    async with talking(always(sent)) as (upstream, server):
        assert (await ask(upstream))[3] == "protocol"
        assert (await ask(upstream))[2] == b"mark"
        assert server.connections == 2


@pytest.mark.parametrize(("sent", "kind"), CUT.values(), ids=CUT)
@pytest.mark.parametrize("reset", [False, True])
async def test_a_cut_answer_is_never_a_whole_one(sent, kind, reset):
    """Closed or reset before its end."""

    async def serve(peer):
        await peer.request()
        await peer.send(sent)
        if reset:
            peer.reset()

    async with talking(serve) as (upstream, _):
        assert (await ask(upstream))[3] == kind


@pytest.mark.parametrize("name", [*TAKEN, *REFUSED, *CUT])
async def test_both_clients_say_the_same(name):
    """The same bytes have the same outcome through httpx, but for what REFUSED says of it."""
    sent = {**TAKEN, **REFUSED, **CUT}[name][0]
    outcomes = []
    for make in (Http1, OpenAI):
        async with talking(always(sent), make) as (upstream, _):
            outcomes.append(await ask(upstream))
    ours, theirs = outcomes
    if name in REFUSED:
        assert (ours[3], theirs[3]) == ("protocol", REFUSED[name][1])
    elif name in CUT:
        assert (ours[0], ours[3]) == (theirs[0], theirs[3])
    else:
        assert ours == theirs


async def test_a_body_without_length_that_is_reset_is_cut():
    """Its end is an end only when the upstream itself said so."""

    async def serve(peer):
        await peer.request()
        await peer.send(OK + b"\r\nhello")
        await reached.wait()
        peer.reset()

    reached = asyncio.Event()
    async with talking(serve) as (upstream, _):
        got = await upstream.send(call())
        assert (await anext(got)).data == b"hello"
        reached.set()
        with pytest.raises(UpstreamFailed) as caught:
            await anext(got)
        assert caught.value.kind == "cut"


# Whatever comes.

VALID = st.sampled_from([sent for sent, _, _ in TAKEN.values()])
SOME = st.one_of(
    st.binary(max_size=200),
    st.lists(st.sampled_from([OK, b"\r\n", b"content-length: 3\r\n", b"transfer-encoding: chunked\r\n", b"3\r\n", b"abc", b"0\r\n", b"HTTP/1.1 100 C\r\n\r\n"])).map(b"".join),
)  # fmt: skip


@st.composite
def mutated(draw):
    """A valid answer with a few bytes changed, taken out or put in."""
    sent = bytearray(draw(VALID))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(sent)))
        sent[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(sent)


def split(sent, cuts):
    marks = [0, *sorted({cut % (len(sent) + 1) for cut in cuts}), len(sent)]
    return [sent[a:b] for a, b in pairwise(marks) if a < b]


@settings(max_examples=300)
@given(sent=st.one_of(SOME, mutated()), cuts=st.lists(st.integers(0, 400), max_size=4))
def test_whatever_comes_ends_and_harms_nobody_else(sent, cuts):
    """Random and mutated answers, split anywhere: an answer or an UpstreamFailed, soon; then the next answer is its own."""

    async def run():
        async with talking(always(*split(sent, cuts))) as (upstream, _):
            await ask(upstream)
            assert (await ask(upstream))[2:] == (b"mark", None)
            assert len(upstream._pool.connections) == upstream._pool._held == 1

    asyncio.run(run())


@settings(max_examples=150)
@given(
    body=st.binary(max_size=50),
    framing=st.sampled_from([sized, chunks]),
    extra=st.one_of(st.binary(max_size=40), st.sampled_from([MARK, sized(b"evil"), b"\r\n"])),
    cuts=st.lists(st.integers(0, 200), max_size=4),
    apart=st.booleans(),
    turns=st.integers(0, 4),
)
def test_no_byte_of_one_answer_reaches_another(body, framing, extra, cuts, apart, turns):  # noqa: PLR0917 - what hypothesis varies
    """What follows an answer on its connection, unasked, is never taken for the next one."""

    async def serve(peer):
        if peer.server.connections == 1:
            await peer.request()
            whole = framing(body) if body else sized(b"")
            try:
                await peer.send(*(split(whole, cuts) + split(extra, cuts) if apart else split(whole + extra, cuts)))
            finally:
                all_sent.set()
        while True:
            await peer.request()
            await peer.send(sized(b"mine"))

    async def run():
        async with talking(serve) as (upstream, server):
            assert (await ask(upstream))[2:] == (body, None)
            await all_sent.wait()
            for _ in range(turns):
                await asyncio.sleep(0)
            assert (await ask(upstream))[2:] == (b"mine", None)
            # Line ends alone are harmless, whether or not the connection is used again.
            assert server.connections == 2 or not extra.strip(b"\r\n")

    all_sent = asyncio.Event()
    asyncio.run(run())


async def test_what_came_unasked_is_no_answer_though_nobody_has_read_it_yet():
    """Bytes that still lie in the socket when the next request is made cost the connection, not the request."""
    async with talking(keep_alive) as (upstream, server):
        await ask(upstream)
        server.peers[0].writer.write(sized(b"evil"))
        assert (await ask(upstream))[2] == b"mark"
        assert server.connections == 2


# The pool.


async def keep_alive(peer):
    while True:
        await peer.request()
        await peer.send(MARK)


async def test_one_connection_serves_request_after_request():
    """Opened once; the last used is used first."""
    async with talking(keep_alive) as (upstream, server):
        await asyncio.gather(*(ask(upstream) for _ in range(3)))
        for _ in range(5):
            assert (await ask(upstream))[2] == b"mark"
        assert (server.connections, len(server.requests)) == (3, 8)


async def test_a_stale_connection_costs_nothing_but_time():
    """An upstream that closed an idle connection just as the request left gets it once more, over a new one."""

    async def serve(peer):
        await peer.request()
        await peer.send(MARK)
        await peer.request()

    async with talking(serve, max_connections=1) as (upstream, server):
        for _ in range(3):
            assert (await ask(upstream))[2] == b"mark"
        assert (server.connections, len(server.requests)) == (3, 5)


async def test_a_cancellation_just_as_a_connection_turns_out_stale_leaks_nothing():
    """The place that was kept for the second attempt is given back."""

    async def serve(peer):
        await peer.request()
        await peer.send(MARK)
        await peer.request()

    async with talking(serve, max_connections=1) as (upstream, _):
        for turns in range(40):
            await ask(upstream)
            asking = asyncio.create_task(ask(upstream))
            for _ in range(turns % 20):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            assert upstream._pool._held == len(upstream._pool._idle)


@pytest.mark.parametrize(
    ("before", "sent", "kind"), [(0, b"", "no_answer"), (1, OK, "no_answer"), (1, sized(b"hello")[:-1], "cut")]
)
async def test_nothing_else_is_sent_twice(before, sent, kind):
    """Not over a new connection, and not once a byte of answer came."""

    async def serve(peer):
        for _ in range(before):
            await peer.request()
            await peer.send(MARK)
        await peer.request()
        await peer.send(sent)

    async with talking(serve) as (upstream, server):
        for _ in range(before):
            await ask(upstream)
        assert (await ask(upstream))[3] == kind
        assert len(server.requests) == before + 1


async def test_an_upstream_that_always_closes_is_asked_twice_at_most():
    """The second connection of one request is a new one, though others lie idle, and its failure is final."""

    async def serve(peer):
        if peer.server.connections <= 3:
            await peer.request()
            await all_there.wait()
            await peer.send(MARK)
        await peer.request()

    all_there = asyncio.Event()
    async with talking(serve) as (upstream, server):
        asking = [asyncio.create_task(ask(upstream)) for _ in range(3)]
        await until(lambda: len(server.requests) == 3)
        all_there.set()
        await asyncio.gather(*asking)
        assert (await ask(upstream))[3] == "no_answer"
        assert len(server.requests) == 5


async def test_idle_connections_are_closed_in_time():
    """By one timer, oldest first, and the places are free again."""
    async with talking(keep_alive) as (upstream, server):
        pool = upstream._pool
        pool._idle_s = 0.05
        await asyncio.gather(*(ask(upstream) for _ in range(3)))
        assert (pool._held, len(pool._idle)) == (3, 3)
        await until(lambda: server.open == 0)
        assert (pool._held, len(pool._idle), pool._timer) == (0, 0, None)


async def test_whoever_waits_longest_is_served_first():
    """With all connections in use, places go in the order of coming."""
    async with talking(keep_alive, max_connections=1) as (upstream, server):
        bodies = [b"%d" % n for n in range(20)]
        await asyncio.gather(*(ask(upstream, body) for body in bodies))
        assert [body for _, body in server.requests] == bodies
        assert server.connections == 1


async def test_waiting_for_a_connection_has_an_end():
    """After `connect_timeout_s` the upstream counts as overloaded; a place that comes free serves the next."""

    async def serve(peer):
        await peer.request()
        await leave.wait()
        await peer.send(MARK)

    leave = asyncio.Event()
    async with talking(serve, max_connections=1, connect_timeout_s=0.5) as (upstream, server):
        first = asyncio.create_task(ask(upstream))
        await until(lambda: server.requests)
        assert (await ask(upstream))[3] == "overloaded"
        leave.set()
        assert (await first)[2] == (await ask(upstream))[2] == b"mark"


async def test_a_dead_end_is_given_up_in_time():
    """An address that takes connections and never speaks TLS, or takes none, is `connect` within the time-out."""

    async def serve(peer):
        await peer.reader.read()

    async with talking(serve) as (upstream, _):
        port = upstream._pool._origin.port
        pool = Pool(Origin("127.0.0.1", port, tls=True, path="/"), max_connections=1, connect_timeout_s=0.1)
        with pytest.raises(UpstreamFailed, match="no connection in time") as caught:
            await pool.send(b"", b"")
        assert (caught.value.kind, pool._held) == ("connect", 0)


@pytest.mark.parametrize("host", ["nobody.invalid", "a" * 70 + ".invalid"])
async def test_a_name_that_is_none_is_a_failure_to_connect(host):
    """And no exception of another kind."""
    upstream = Http1("up", OpenAIUpstream(base_url=f"http://{host}/v1"), key="")
    assert (await ask(upstream))[3] == "connect"


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_cancelled_requests_leak_nothing(run):
    """500 cancellations in random phases, on both loops: no place, connection or file stays, and the rest is served."""
    dice = random.Random(4)

    async def serve(peer):
        while True:
            await peer.request()
            for part in (OK + b"transfer-en", b"coding: chunked\r\n\r\n", b"3\r\nabc\r\n", b"0\r\n\r\n"):
                await peer.send(part)

    async def later(task):
        for _ in range(dice.randrange(40)):
            await asyncio.sleep(0)
        task.cancel()

    async def main():
        async with talking(serve, max_connections=8) as (upstream, server):
            pool, before = upstream._pool, open_files()
            for _ in range(25):
                tasks = [asyncio.create_task(ask(upstream, b"x" * dice.choice([2, 300_000]))) for _ in range(20)]
                found = await asyncio.gather(*tasks, *map(later, tasks), return_exceptions=True)
                assert {type(one) for one in found} <= {tuple, asyncio.CancelledError, type(None)}
                assert all(one[2:] == (b"abc", None) for one in found if isinstance(one, tuple))
                assert pool._held == len(pool._idle) <= 8
                assert not pool._waiting
            await until(lambda: server.open == len(pool.connections) == len(pool._idle))
            assert open_files() <= before + 2 * 8
            assert (await ask(upstream))[2] == b"abc"

    run(main())


async def test_closing_the_upstream_ends_what_still_runs():
    """Whoever waits is told; nothing stays open."""

    async def serve(peer):
        await peer.request()
        await peer.send(CHUNKED)
        await peer.reader.read()

    async with talking(serve) as (upstream, server):
        got = await upstream.send(call())
        reading = asyncio.ensure_future(anext(got))
        await asyncio.sleep(0)
        await upstream.aclose()
        with pytest.raises(UpstreamFailed):
            await reading
        await until(lambda: server.open == 0)
        assert upstream._pool._held == 0


async def test_closing_an_answer_wakes_its_reader():
    """With an error, since what was read is not the whole."""

    async def serve(peer):
        await peer.request()
        await peer.send(CHUNKED)
        await peer.reader.read()

    async with talking(serve) as (upstream, _):
        got = await upstream.send(call())
        reading = asyncio.ensure_future(anext(got))
        await asyncio.sleep(0)
        await got.aclose()
        with pytest.raises(UpstreamFailed) as caught:
            await reading
        assert caught.value.kind == "cut"


# Streams.


@pytest.mark.parametrize("make", [Http1, OpenAI])
async def test_each_piece_is_handed_on_before_the_next_is_sent(make):
    """A source that sends a piece only when the last one was read is read to its end: nothing is held back."""

    async def serve(peer):
        await peer.request()
        await peer.send(CHUNKED)
        for _ in range(20):
            await peer.send(b"a\r\ndata: x\n\n\n\r\n")
            await taken.get()
        await peer.send(b"0\r\n\r\n")

    taken = asyncio.Queue()
    async with talking(serve, make) as (upstream, _):
        got = await upstream.send(call())
        async for piece in got:
            assert piece.data == b"data: x\n\n\n"
            taken.put_nowait(None)
        await got.aclose()


async def test_chunks_that_come_together_are_one_piece():
    """What one read of the socket brought is handed on once, however it was framed."""
    async with talking(always(chunks(*[b"x" * 10] * 64))) as (upstream, _):
        got = await upstream.send(call())
        assert [len(piece.data) async for piece in got] == [640]


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_an_upstream_is_not_read_faster_than_its_client(run):
    """While nobody takes the pieces, what waits for them stays bounded and the upstream must wait; nothing is lost."""
    size = 64 << 20

    async def serve(peer):
        await peer.request()
        peer.writer.write(OK + b"content-length: %d\r\n\r\n" % size)
        for _ in range(size >> 16):
            await peer.send(b"x" * (1 << 16))
            sent.append(1 << 16)

    sent = []

    async def main():
        async with talking(serve) as (upstream, _):
            got = await upstream.send(call())
            await until(lambda: got.connection._paused)
            for _ in range(200):
                await asyncio.sleep(0)
            assert got.unread <= MAX_UNREAD_BYTES + 300_000
            assert sum(sent) < size // 2
            assert sum([len(piece.data) async for piece in got]) == size
            assert upstream._pool._held in {0, 1}

    run(main())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_large_request_arrives_whole(run):
    """Over a reader that takes its time, in parts that the transport has room for."""
    body = random.Random(1).randbytes(9 << 20)

    async def serve(peer):
        while True:
            _, got = await peer.request()
            await peer.send(sized(hashlib.sha256(got).hexdigest().encode()))

    async def main():
        async with talking(serve) as (upstream, server):
            for _ in range(2):
                assert (await ask(upstream, body))[2].decode() == hashlib.sha256(body).hexdigest()
            assert server.connections == 1

    run(main())


async def test_an_early_answer_to_a_large_request_is_heard():
    """A 413 that comes while the request is still being sent is the answer; that connection serves nothing more."""

    async def serve(peer):
        if peer.server.connections == 1:
            await peer.reader.readuntil(b"\r\n\r\n")
            await peer.send(sized(b"no", b"413"))
            await left.wait()
        else:
            await keep_alive(peer)

    left = asyncio.Event()
    async with talking(serve) as (upstream, server):
        assert (await ask(upstream, b"x" * (32 << 20)))[::2] == (413, b"no")
        assert (await ask(upstream))[2] == b"mark"
        assert server.connections == 2
        left.set()


async def test_a_gzip_bomb_comes_in_small_pieces():
    """However much a few bytes unfold to, it is handed on in pieces that a limit can stop."""
    bomb = gzip.compress(bytes(64 << 20))
    async with talking(always(OK + b"content-encoding: gzip\r\n\r\n" + bomb)) as (upstream, _):
        got = await upstream.send(call())
        pieces = aiter(got)
        assert [len((await anext(pieces)).data) for _ in range(3)] == [MAX_UNREAD_BYTES] * 3
        await got.aclose()
        await pieces.aclose()


# TLS.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Paths of a self-made certificate for localhost and its key."""
    folder = tmp_path_factory.mktemp("tls")
    made, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(made)]
    subprocess.run(command, check=True, capture_output=True)
    return made, key


@pytest.fixture
def tls(certificate):
    """The server's side of TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


@pytest.fixture
def trusted(monkeypatch, certificate):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_certificate_that_nobody_vouches_for_is_refused(run, tls):
    """Before a byte of the request is sent, with words that name the mend."""

    async def main():
        async with talking(keep_alive, tls=tls) as (upstream, server):
            with pytest.raises(UpstreamFailed, match="SSL_CERT_FILE") as caught:
                await upstream.send(call())
            assert (caught.value.kind, server.requests, upstream._pool._held) == ("connect", [], 0)

    run(main())


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_certificate_for_another_name_is_refused(run, tls):
    """Trusted, but not this host's."""

    async def main():
        async with talking(keep_alive, tls=tls) as (upstream, server):
            other = Http1("up", OpenAIUpstream(base_url=f"https://127.0.0.1:{upstream._pool._origin.port}"), key="")
            assert ((await ask(other))[3], server.requests) == ("connect", [])

    run(main())


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_trusted_upstream_is_spoken_to_over_tls(run, tls):
    """By the name in its URL, as HTTP/1.1, large requests included, over one connection."""
    names = []
    tls.sni_callback = lambda _socket, name, _context: names.append(name)

    async def serve(peer):
        spoken.append(peer.writer.get_extra_info("ssl_object").selected_alpn_protocol())
        while True:
            _, body = await peer.request()
            await peer.send(sized(b"%d" % len(body)))

    spoken = []

    async def main():
        async with talking(serve, tls=tls) as (upstream, server):
            for size in (2, 3 << 20, 2):
                assert (await ask(upstream, b"x" * size))[2] == b"%d" % size
            assert (names, spoken, server.connections) == (["localhost"], ["http/1.1"], 1)

    run(main())


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize(
    ("head", "properly", "kind"), [(OK, True, None), (OK, False, "cut"), (OK + b"content-length: 9\r\n", False, "cut")]
)
def test_a_truncated_tls_stream_is_cut(run, tls, head, properly, kind):
    """Without TLS's own end, the end of the connection is nobody's word: a body that ends there is cut."""

    async def serve(peer):
        await peer.request()
        await peer.send(head + b"\r\nhello")
        await taken.wait()
        if not properly:
            os.dup2(other.fileno(), peer.writer.get_extra_info("socket").fileno())

    async def main():
        async with talking(serve, tls=tls) as (upstream, _):
            got = await upstream.send(call())
            assert (await anext(got)).data == b"hello"
            taken.set()
            with pytest.raises((StopAsyncIteration, UpstreamFailed)) as caught:
                await anext(got)
            assert getattr(caught.value, "kind", None) == kind

    taken = asyncio.Event()
    with socket.socket() as other:
        run(main())


# What is sent, and by what.


async def test_the_request_is_exactly_this():
    """Nothing is added that was not said; the body goes as it is."""
    async with talking(keep_alive) as (upstream, server):
        headers = (("openai-beta", "b\xe9"),)
        got = await upstream.send(call(b'{"a": 1.10}', headers=headers))
        await got.aclose()
        port = upstream._pool._origin.port
    ((head, body),) = server.requests
    lines = head.decode("latin-1").split("\r\n")
    assert lines.pop(2).startswith("user-agent: gateway/")
    assert lines == [
        "POST /v1/chat/completions HTTP/1.1", f"host: 127.0.0.1:{port}", "authorization: Bearer sk-up", "accept-encoding: identity",
        "content-type: application/json", "accept: text/event-stream", "openai-beta: b\xe9", "content-length: 11", "", "",
    ]  # fmt: skip
    assert body == b'{"a": 1.10}'


@pytest.mark.parametrize("fields", [
    {"headers": (("openai-beta", "a\r\nx: b"),)}, {"headers": (("openai-beta", "a\nb"),)}, {"headers": (("a", "\0"), ("b", "c"))},
    {"headers": (("openai-beta", "snow \u2603"),)}, {"path": "a HTTP/1.1\r\nx: b"}, {"path": "a b"},
])  # fmt: skip
async def test_a_request_cannot_hold_another(fields):
    """A header or path with a line break or the like is refused, and nothing is sent."""
    async with talking(keep_alive) as (upstream, server):
        with pytest.raises(InvalidRequest):
            await upstream.send(call(**fields))
        assert (server.connections, upstream._pool._held) == (0, 0)


def test_a_key_that_no_header_can_carry_turns_the_upstream_off(monkeypatch):
    """The reason names the variable and never the key."""
    monkeypatch.setenv("UP_KEY", "sk-1\n")
    upstream = Http1("up", OpenAIUpstream(base_url="http://127.0.0.1/v1", key_env="UP_KEY"), key="sk-1\n")
    assert "UP_KEY" in upstream.unavailable()
    assert "sk-1" not in upstream.unavailable()


@pytest.mark.parametrize(("url", "clients"), [
    ("http://", ["http1", "httpx"]), ("http://a:b/v1", ["http1", "httpx"]), ("http://[::1/v1", ["http1", "httpx"]),
    ("http://a/v1?x=1", ["http1"]), ("http://u:p@a/v1", ["http1"]),
])  # fmt: skip
def test_a_base_url_that_is_none_is_refused_with_its_place(url, clients):
    """At the start, not at the first request."""
    for client in clients:
        with pytest.raises(ConfigError) as caught:
            connect("up", OpenAIUpstream(base_url=url, client=client), key="")
        assert caught.value.problems[0].place == "upstreams.up.base_url"


@pytest.mark.parametrize(("url", "origin", "netloc"), [
    ("https://api.example/v1/", ("api.example", 443, True, "/v1/"), "api.example"),
    ("http://Api.Example:8080", ("api.example", 8080, False, "/"), "api.example:8080"),
    ("http://[::1]:80/a b", ("::1", 80, False, "/a%20b/"), "[::1]"),
    ("https://b\xfccher.example/v1", ("xn--bcher-kva.example", 443, True, "/v1/"), "xn--bcher-kva.example"),
])  # fmt: skip
def test_a_base_url_says_where_to_go(url, origin, netloc):
    """Host, port, TLS and path; the Host header names a port only where it is not the usual one."""
    found = Origin.of(url)
    assert (tuple(found), found.netloc()) == (origin, netloc)


@pytest.mark.parametrize(("variables", "client", "chosen"), [
    ({}, "http1", Http1), ({}, "httpx", OpenAI), ({"HTTP_PROXY": "http://p:1"}, "http1", Http1),
    ({"HTTPS_PROXY": "http://p:1"}, "http1", OpenAI), ({"all_proxy": "http://p:1"}, "http1", OpenAI),
    ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "other.example"}, "http1", OpenAI),
    ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "api.example"}, "http1", Http1),
    ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, "http1", Http1),
])  # fmt: skip
def test_a_proxy_for_the_upstream_means_httpx(monkeypatch, variables, client, chosen):
    """Only when the variable is for this scheme and NO_PROXY does not name this host."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert type(connect("up", OpenAIUpstream(base_url="https://api.example/v1", client=client), key="")) is chosen


def test_a_send_cancelled_while_it_connects_leaves_nothing():
    """The pool closes at once afterwards, on the loop that front workers run on."""

    async def main():
        pool = Pool(Origin.of(f"http://127.0.0.1:{listener.getsockname()[1]}/v1"), max_connections=8, connect_timeout_s=5)
        for turns in range(8):
            task = asyncio.ensure_future(pool.send(b"POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n", b""))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        async with asyncio.timeout(30):
            await pool.aclose()

    with socket.socket() as listener, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        runner.run(main())
