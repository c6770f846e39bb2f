"""An upstream that speaks OpenAI's wire format, over our own pooled HTTP/1.1 client: httptools parses, asyncio carries.

Sends bytes as given, hands on bytes as they come. Knows neither policy nor cache nor what the bytes mean; of HTTP, neither HEAD
nor upgrades nor proxies. Why it exists and what it refuses: docs/decisions/008.
"""

from __future__ import annotations

import asyncio
import re
import select
import ssl
import zlib
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, suppress
from typing import NamedTuple, NoReturn, cast
from urllib.parse import quote, urlsplit

import httptools

from gateway import __version__
from gateway.config import OpenAIUpstream, key_header, off_reason
from gateway.errors import BodyStopped, ConfigError, InvalidRequest, Problem, UpstreamFailed
from gateway.upstreams import Call, Piece, Upload

MAX_HEAD_BYTES = 64 * 1024
"""An answer's head (all interim ones included), or framing without content after it, above this is refused."""
MAX_HEADERS = 200
MAX_UNREAD_BYTES = 64 * 1024
"""While more of a body than this waits for its reader, the connection is not read: the upstream feels how fast the client is."""
WRITE_BYTES = 64 * 1024
"""A longer body goes out in parts of this size, each when the transport has room."""
IDLE_S = 15.0
"""A connection unused for this long is closed. Longer than a pause between requests, shorter than most servers' patience."""

KEPT_HEADERS = {
    b"content-type": "content-type",
    b"openai-model": "openai-model",
    b"openai-processing-ms": "openai-processing-ms",
    b"openai-version": "openai-version",
    b"retry-after": "retry-after",
    b"retry-after-ms": "retry-after-ms",
    b"x-should-retry": "x-should-retry",
    b"x-request-id": "x-upstream-request-id",
    b"request-id": "x-upstream-request-id",
}
"""Answer headers that travel to the client, and their names there, besides every `x-ratelimit-*` and `anthropic-ratelimit-*`."""

_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"content-encoding"})
_UNSENDABLE = re.compile(r"[^\x20-\x7e\xa0-\xff]")
_TARGET = re.compile(r"[\x21-\x7e]+")


def kept(raw: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    """The headers of an answer (lower-case names) that travel to the client."""
    found = []
    for name, value in raw:
        known = KEPT_HEADERS.get(name)
        if known is not None:
            found.append((known, value.decode("latin-1")))
        elif name.startswith((b"x-ratelimit-", b"anthropic-ratelimit-")):
            found.append((name.decode("latin-1"), value.decode("latin-1")))
    return found


class Origin(NamedTuple):
    """Where an upstream stands, as its `base_url` says."""

    host: str
    port: int
    tls: bool
    path: str
    """Begins and ends with a slash."""

    @classmethod
    def of(cls, base_url: str) -> Origin:
        """Raises ValueError, with words for an operator, for what is not such a URL."""
        parts = urlsplit(base_url)
        if not parts.hostname or parts.query or parts.fragment or "@" in parts.netloc:
            raise ValueError("must be http(s)://HOST[:PORT]/PATH, with neither user name nor query")
        tls = parts.scheme == "https"
        # Python's own codec speaks the IDNA of 2003; a newer name can be written in its xn-- form.
        host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode()
        path = quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~") + "/"
        return cls(host, parts.port or (443 if tls else 80), tls, path)

    def netloc(self) -> str:
        """The value of the Host header: the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


class Http1:
    """One OpenAI-compatible API: a connection pool and a key."""

    def __init__(self, name: str, config: OpenAIUpstream, *, key: str) -> None:
        self.name = name
        self._off = off_reason(config)
        if _UNSENDABLE.search(key):
            self._off = f"the key in {config.key_env} holds a line break or a character that no header can carry; set it anew"
        try:
            origin = Origin.of(config.base_url)
        except ValueError as error:
            raise ConfigError([Problem(f"upstreams.{name}.base_url", str(error))]) from None
        lines = [f"host: {origin.netloc()}", f"user-agent: gateway/{__version__}"]
        if key and self._off is None:
            lines.append(": ".join(key_header(config, key)))
        lines.append("accept-encoding: identity")
        self._path = origin.path
        self._lines = "\r\n".join(lines)
        self._heads: dict[tuple[str, str, bool], bytes] = {}
        self._pool = Pool(origin, max_connections=config.max_connections, connect_timeout_s=config.connect_timeout_s)

    def unavailable(self, model: str | None = None) -> str | None:  # noqa: ARG002 - one answer for all its models
        """See `Upstream.unavailable`."""
        return self._off

    async def send(self, call: Call) -> Exchange:
        """See `Upstream.send`."""
        extra = "".join([f"{name}: {value}\r\n" for name, value in call.headers])
        if extra and _UNSENDABLE.search(extra.replace("\r\n", "", len(call.headers))):
            raise InvalidRequest("A header of the request holds a character that no header can carry; leave it out.")
        length = len(call.body) if call.upload is None else call.upload.length
        size = b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length
        head = b"%b%b%b\r\n\r\n" % (self._head(call), extra.encode("latin-1"), size)
        return await self._pool.send(head, call.body, call.upload)

    def _head(self, call: Call) -> bytes:
        """What the heads of all requests of this kind begin with."""
        kind = (call.method, call.endpoint, call.stream)
        usual = not call.path and call.upload is None
        head = self._heads.get(kind) if usual else None
        if head is None:
            if not _TARGET.fullmatch(call.target):
                raise InvalidRequest("The path or query of the request holds a character that must be percent-encoded.")
            if _UNSENDABLE.search(call.content_type):
                raise InvalidRequest("The content type holds a character that no header can carry.", param="content-type")
            accept = "text/event-stream" if call.stream else "application/json"
            text = f"{call.method} {self._path}{call.target} HTTP/1.1\r\n{self._lines}\r\n"
            head = f"{text}content-type: {call.content_type}\r\naccept: {accept}\r\n".encode("latin-1")
            if usual:
                self._heads[kind] = head
        return head

    async def aclose(self) -> None:
        """See `Upstream.aclose`."""
        await self._pool.aclose()


class Exchange:
    """One request and its answer. Once `head` returned it is an `Answer`; its pieces are what arrived together."""

    __slots__ = (
        "_ended", "_feeding", "_pieces", "_waiter", "begun", "body", "connection", "encoded", "error", "head_bytes", "headers",
        "stale", "status", "unread",
    )  # fmt: skip

    def __init__(self, head_bytes: bytes, body: bytes) -> None:
        self.head_bytes = head_bytes
        self.body = body
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self.begun = False
        """Whether status and headers are known."""
        self.encoded = False
        """Whether the body is compressed, though that was not asked for; its pieces are given as they were before."""
        self.stale = False
        """A connection that had served before closed without a byte of answer; the place in the pool is still held."""
        self.error: UpstreamFailed | BodyStopped | None = None
        self.unread = 0
        """Bytes of body that wait for their reader."""
        self.connection: Connection | None = None
        self._pieces: deque[bytes] = deque()
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None
        self._feeding: asyncio.Task[None] | None = None
        """Sends the upload."""

    def upload(self, upload: Upload) -> None:
        """Send this behind the head, until it ends, or the exchange does."""
        if self.connection is not None:
            self._feeding = asyncio.create_task(self.connection.upload(self, upload))

    async def head(self) -> None:
        """Wait for status and headers. Raises UpstreamFailed, or BodyStopped."""
        while not self.begun:
            if self.error is not None:
                raise self.error
            await self._change()

    def __aiter__(self) -> AsyncIterator[Piece]:
        return _inflated(self) if self.encoded else self

    async def __anext__(self) -> Piece:
        while not self._pieces:
            if self.error is not None:
                raise self.error
            if self._ended:
                raise StopAsyncIteration
            await self._change()
        data = self._pieces.popleft()
        self.unread -= len(data)
        if self.connection is not None and self.unread <= MAX_UNREAD_BYTES:
            self.connection.read_on()
        return Piece(data)

    async def aclose(self) -> None:
        """Close the connection when the body has not come to its end; that is how the upstream learns of it."""
        self.close()
        if self._feeding is not None:
            # Whose body it is may read on only when nobody else does.
            await asyncio.wait((self._feeding,))

    def close(self) -> None:
        """Leave the connection, if this is still on one. Whoever reads gets an error, never an end."""
        if self.connection is not None:
            self.connection.leave()
        if not self._ended or self._pieces:
            self._pieces.clear()
            self.fail(UpstreamFailed("cut", "the answer was closed before its end"))

    def begin(self, status: int, headers: list[tuple[str, str]]) -> None:
        """The head has come."""
        self.status, self.headers, self.begun = status, headers, True
        if status >= 300:
            # Whatever is still to be sent, it has been refused.
            self._stop_upload()
        self._wake()

    def feed(self, data: bytes) -> None:
        """Some of the body has come."""
        self._pieces.append(data)
        self.unread += len(data)
        self._wake()

    def finish(self) -> None:
        """The body has come to its end."""
        self._ended = True
        self.connection = None
        self._stop_upload()
        self._wake()

    def fail(self, error: UpstreamFailed | BodyStopped) -> None:
        """Nothing more will come."""
        self.error = error
        self.connection = None
        self._stop_upload()
        self._wake()

    def _stop_upload(self) -> None:
        if self._feeding is not None and self._feeding is not asyncio.current_task():
            self._feeding.cancel()

    async def _change(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


async def _inflated(exchange: Exchange) -> AsyncIterator[Piece]:
    """The body as it was before gzip or deflate, in pieces of bounded size. Raises UpstreamFailed when it is neither, or cut."""
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)
    given = False
    while True:
        try:
            data = (await anext(exchange)).data
        except StopAsyncIteration:
            if given and not inflater.eof:
                raise UpstreamFailed("protocol", "sent a compressed body without its end") from None
            return
        given = True
        while True:
            try:
                out = inflater.decompress(data, MAX_UNREAD_BYTES)
            except zlib.error:
                raise UpstreamFailed("protocol", "sent a body that is not in the encoding it names") from None
            if inflater.unused_data:
                raise UpstreamFailed("protocol", "sent more after the end of a compressed body")
            if out:
                yield Piece(out)
            data = inflater.unconsumed_tail
            if not data and len(out) < MAX_UNREAD_BYTES:
                break
            await asyncio.sleep(0)


class _Refused(Exception):
    """Stops the parser; `Connection.refusal` says why."""


class Connection(asyncio.Protocol):
    """One connection; it carries one exchange at a time, and between two of them lies idle in its pool."""

    def __init__(self, pool: Pool, exchange: Exchange) -> None:
        self.since = 0.0
        """When it fell idle, by the loop's clock."""
        self.closed = False
        self.exchange: Exchange | None = exchange
        exchange.connection = self
        self.transport: asyncio.Transport | None = None
        self.refusal = ""
        self._pool = pool
        self._poll = select.poll()
        self._parser = httptools.HttpResponseParser(self)
        self._served = False
        """Whether an exchange before this one was carried to its end."""
        self._unsent = memoryview(b"")
        self._full = self._paused = False
        self._uploading = False
        """Whether an upload has not been sent to its end: then nothing else can be sent here, ever."""
        self._room: asyncio.Future[None] | None = None
        """Set while an upload waits for the upstream to read."""
        self._reset()

    def _reset(self) -> None:
        self._touched = self._interim = self._complete = self._keep_alive = self._until_close = False
        self._n_headers = self._head_bytes = self._bare_bytes = 0
        self._begin_head()
        self._body: list[bytes] = []

    def _begin_head(self) -> None:
        self._headers: list[tuple[bytes, bytes]] = []
        self._sized = self._chunked = self._encoded = False

    # What the pool and the exchange ask for.

    def begin(self, exchange: Exchange) -> None:
        """Carry one more exchange."""
        self._served = True
        self._reset()
        self.exchange = exchange
        exchange.connection = self
        self._send(exchange)

    def quiet(self) -> bool:
        """Whether nothing, not even its end, has come over this idle connection that the loop has not seen yet."""
        return not self.closed and not self._poll.poll(0)

    def leave(self) -> None:
        """Give up the exchange, and the connection with it."""
        self.exchange = None
        self.abort()
        self._pool.freed()

    def abort(self) -> None:
        """Close at once. Leaves the place in the pool to whoever calls."""
        self.closed = True
        if self.transport is not None:
            self.transport.abort()

    def read_on(self) -> None:
        """The reader has caught up."""
        if self._paused and self.transport is not None:
            self._paused = False
            self.transport.resume_reading()

    # What asyncio says.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request; or close, when nobody waits any more."""
        self.transport = cast("asyncio.Transport", transport)
        if self.exchange is None:
            self.transport.abort()
            return
        self._pool.connections.add(self)
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        self._send(self.exchange)

    def _send(self, exchange: Exchange) -> None:
        assert self.transport is not None  # noqa: S101 - tells mypy what begin and connection_made know
        # Most requests leave in this one write.
        self.transport.write(exchange.head_bytes + exchange.body[:WRITE_BYTES])
        if len(exchange.body) > WRITE_BYTES:
            self._unsent = memoryview(exchange.body)[WRITE_BYTES:]
            self._pump(self.transport)

    def _pump(self, transport: asyncio.Transport) -> None:
        while self._unsent and not self._full:
            part, self._unsent = self._unsent[:WRITE_BYTES], self._unsent[WRITE_BYTES:]
            transport.write(part)

    async def upload(self, exchange: Exchange, upload: Upload) -> None:
        """Send a body part by part, each when there is room. Ends the exchange when the body cannot go on."""
        self._uploading = True
        try:
            await self._send_parts(exchange, upload)
            self._uploading = False
        except BodyStopped as error:
            if self.exchange is exchange:
                self.leave()
                exchange.fail(UpstreamFailed("cut", "the request's own body broke off") if exchange.begun else error)

    async def _send_parts(self, exchange: Exchange, upload: Upload) -> None:
        left = upload.length
        async with aclosing(upload.parts()) as parts:
            async for part in parts:
                if left is None:
                    await self._write(exchange, b"%x\r\n%b\r\n" % (len(part), part))
                    continue
                left -= len(part)
                if left >= 0:
                    await self._write(exchange, part)
        if left:
            raise BodyStopped("the body is not as long as it was said to be")
        if left is None:
            await self._write(exchange, b"0\r\n\r\n")

    async def _write(self, exchange: Exchange, data: bytes) -> None:
        assert self.transport is not None  # noqa: S101 - tells mypy what connection_made knows
        while self._full:
            self._room = asyncio.get_running_loop().create_future()
            await self._room
        if self.exchange is exchange:
            self.transport.write(data)

    def pause_writing(self) -> None:
        """The upstream reads more slowly than we write."""
        self._full = True

    def resume_writing(self) -> None:
        """There is room again."""
        self._full = False
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        if self.exchange is not None and self.transport is not None:
            self._pump(self.transport)

    def data_received(self, data: bytes) -> None:
        """Parse what came and hand on the body in it as one piece."""
        exchange = self.exchange
        if exchange is None:
            self._drop()
            return
        self._touched = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            # The parser's own words are fixed phrases, without a byte of what was sent.
            self.refusal = self.refusal or f"sent what is not HTTP/1.1 ({error})"
        if self._body:
            exchange.feed(self._body[0] if len(self._body) == 1 else b"".join(self._body))
            self._body.clear()
            self._bare_bytes = 0
        else:
            self._bare_bytes += len(data)
            if self._bare_bytes > MAX_HEAD_BYTES:
                self.refusal = self.refusal or f"sent more than {MAX_HEAD_BYTES} bytes without content"
        if self._complete:
            self._finish(reusable=self._keep_alive and not self.refusal)
        elif self.refusal:
            self._fail("protocol", self.refusal)
        elif exchange.unread > MAX_UNREAD_BYTES and not self._paused and self.transport is not None:
            self._paused = True
            self.transport.pause_reading()

    def eof_received(self) -> None:
        """The upstream has said all it will; for a body without a length that is its end."""
        if self.exchange is not None and self.exchange.begun and self._until_close and self._closed_properly():
            self._finish(reusable=False)

    def _closed_properly(self) -> bool:
        """Whether the other side itself ended the stream; over TLS anybody on the way can send a bare end."""
        tls = self.transport.get_extra_info("ssl_object") if self.transport is not None else None
        if tls is None:
            return True
        try:
            return not tls.read(1)
        except ssl.SSLError:
            return False

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - how it was lost changes nothing
        """Whatever was going on here has failed."""
        self._pool.lost(self)
        exchange = self.exchange
        if exchange is None:
            if not self.closed:
                self._drop()
        elif exchange.begun:
            self._fail("cut", "closed the connection before the end of its answer")
        elif self._served and not self._touched:
            self.exchange = None
            self.closed = exchange.stale = True
            exchange.fail(UpstreamFailed("no_answer", "closed the connection without an answer"))
        else:
            self._fail("no_answer", "closed the connection before the head of its answer")

    def _drop(self) -> None:
        """Idle, and of no more use: closed, or spoken over when nobody asked."""
        self.abort()
        self._pool.dropped(self)

    def _finish(self, *, reusable: bool) -> None:
        exchange, transport = self.exchange, self.transport
        assert exchange is not None and transport is not None  # noqa: S101, PT018 - an answer came over it
        self.exchange = None
        exchange.finish()
        if reusable and not self._unsent and not self._uploading and not transport.get_write_buffer_size():
            self.read_on()
            self._pool.returned(self)
        else:
            self.abort()
            self._pool.freed()

    def _fail(self, kind: str, message: str) -> None:
        exchange, self.exchange = self.exchange, None
        self.abort()
        self._pool.freed()
        if exchange is not None:
            exchange.fail(UpstreamFailed(kind, message))

    # What the parser says.

    def on_message_begin(self) -> None:
        """A first line begins."""
        if self._complete:
            self._refuse("sent an answer that nobody asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header of an answer, of an interim one, or of a trailer; only the first kind is kept."""
        self._n_headers += 1
        self._head_bytes += len(name) + len(value)
        if self._n_headers > MAX_HEADERS or self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(f"sent more than {MAX_HEADERS} headers, or {MAX_HEAD_BYTES} bytes of them")
        if self.exchange is None or self.exchange.begun:
            return
        name = name.lower()
        if name not in _FRAMING:
            self._headers.append((name, value))
            return
        if name == b"content-length":
            self._sized = True
        elif name == b"transfer-encoding":
            if self._chunked or value.lower() != b"chunked":
                self._refuse("names a transfer encoding other than chunked")
            self._chunked = True
        elif name == b"content-encoding" and value.lower() != b"identity":
            if self._encoded or value.lower() not in {b"gzip", b"x-gzip", b"deflate"}:
                self._refuse("sent a body in an encoding that was not asked for")
            self._encoded = True

    def on_headers_complete(self) -> None:
        """The head of an answer, or of an interim one that is passed over."""
        status = self._parser.get_status_code()
        if self._parser.get_http_version() not in {"1.1", "1.0"} or status < 100 or status == 101:
            self._refuse("sent a status or an HTTP version that nobody asked for")
        if status < 200:
            self._interim = True
            self._begin_head()
            return
        self._keep_alive = self._parser.should_keep_alive()
        self._until_close = not (self._sized or self._chunked or status in {204, 304})
        if self.exchange is not None:
            self.exchange.encoded = self._encoded
            self.exchange.begin(status, kept(self._headers))

    def on_body(self, data: bytes) -> None:
        """Some of the body; what came together is handed on together."""
        self._body.append(data)

    def on_message_complete(self) -> None:
        """The end of an answer whose end can be known, or of an interim one."""
        self._complete = not self._interim
        self._interim = False

    def _refuse(self, why: str) -> NoReturn:
        self.refusal = why
        raise _Refused


class Pool:
    """The connections to one origin, at most `max_connections`, the last used first.

    A place is held by whoever sends, then by the exchange until it ends, then by the connection while it lies idle.
    """

    def __init__(self, origin: Origin, *, max_connections: int, connect_timeout_s: float, idle_s: float = IDLE_S) -> None:
        self.connections: set[Connection] = set()
        """Those that are."""
        self._origin = origin
        self._max = max_connections
        self._connect_timeout_s = connect_timeout_s
        self._idle_s = idle_s
        self._held = 0
        self._idle: deque[Connection] = deque()
        """The longest idle first."""
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._last_lost: asyncio.Future[None] | None = None
        self._tls: ssl.SSLContext | None = None
        if origin.tls:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])

    async def send(self, head: bytes, body: bytes, upload: Upload | None = None) -> Exchange:
        """Send a request and wait for the head of its answer. Raises UpstreamFailed; leaves nothing open when it raises.

        Sent again, once and over a new connection, only when a connection that had served before turns out to be closed
        before a byte of answer came. An upload cannot be sent again, so it always gets a new connection.
        """
        connection = await self._place()
        if connection is not None and upload is not None:
            connection.abort()
        if connection is not None and not connection.closed:
            exchange = Exchange(head, body)
            connection.begin(exchange)
            try:
                await exchange.head()
            except UpstreamFailed:
                if not exchange.stale:
                    raise
            except BaseException:
                if exchange.stale:
                    self.freed()
                exchange.close()
                raise
            else:
                return exchange
        return await self._connect(Exchange(head, body), upload)

    async def _place(self) -> Connection | None:
        """A place in the pool, with an idle connection if there is one. Raises UpstreamFailed."""
        if not self._waiting:
            while self._idle:
                connection = self._idle.pop()
                if connection.quiet():
                    return connection
                connection.abort()
                self.freed()
            if self._held < self._max:
                self._held += 1
                return None
        turn: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                return await turn
        except BaseException as error:
            self._give_back(turn)
            if isinstance(error, TimeoutError):
                raise UpstreamFailed("overloaded", "all of its connections are in use") from None
            raise

    def _give_back(self, turn: asyncio.Future[Connection | None]) -> None:
        """Whoever waited has left; what came to it in the same moment goes to the next."""
        with suppress(ValueError):
            self._waiting.remove(turn)
        if turn.cancelled() or not turn.done():
            return
        connection = turn.result()
        if connection is None or connection.closed:
            self.freed()
        else:
            self.returned(connection)

    async def _connect(self, exchange: Exchange, upload: Upload | None) -> Exchange:
        connection = Connection(self, exchange)
        host = self._origin.host
        opened = False
        try:
            try:
                async with asyncio.timeout(self._connect_timeout_s):
                    await asyncio.get_running_loop().create_connection(
                        lambda: connection, host, self._origin.port, ssl=self._tls, server_hostname=host if self._tls else None
                    )
            except (OSError, UnicodeError) as error:
                # One that was made has sent its request, though nobody could wait for its answer.
                kind = "connect" if connection.transport is None else "no_answer"
                raise UpstreamFailed(kind, f"cannot be reached ({_reason(error)})") from None
            opened = True
            if upload is not None:
                exchange.upload(upload)
            await exchange.head()
        except BaseException:
            await exchange.aclose()
            if not opened:
                # uvloop does not say that a connection is lost whose making was cancelled.
                self.lost(connection)
            raise
        return exchange

    def returned(self, connection: Connection) -> None:
        """A connection is free: for whoever waits longest, or to lie idle."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(connection)
                return
        loop = asyncio.get_running_loop()
        connection.since = loop.time()
        self._idle.append(connection)
        if self._timer is None:
            self._timer = loop.call_later(self._idle_s, self._expire)

    def freed(self) -> None:
        """A place is free: for whoever waits longest, or for later."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._held -= 1

    def dropped(self, connection: Connection) -> None:
        """A connection without exchange has closed. One that was promised to a waiter is not idle; its place is the waiter's."""
        with suppress(ValueError):
            self._idle.remove(connection)
            self.freed()

    def _expire(self) -> None:
        """Close what has been idle for too long; the one timer of the pool."""
        loop = asyncio.get_running_loop()
        while self._idle and self._idle[0].since + self._idle_s <= loop.time():
            self._idle.popleft().abort()
            self.freed()
        self._timer = loop.call_at(self._idle[0].since + self._idle_s, self._expire) if self._idle else None

    async def aclose(self) -> None:
        """Close every connection. Answers that are still read break off."""
        if self._timer is not None:
            self._timer.cancel()
        for connection in tuple(self.connections):
            if connection.exchange is not None:
                connection.exchange.close()
            else:
                connection.abort()
                self.dropped(connection)
        if self.connections:
            self._last_lost = asyncio.get_running_loop().create_future()
            await self._last_lost

    def lost(self, connection: Connection) -> None:
        """A connection is no more."""
        self.connections.discard(connection)
        if not self.connections and self._last_lost is not None and not self._last_lost.done():
            self._last_lost.set_result(None)


def _reason(error: Exception) -> str:
    """Why there is no connection, in words an operator can act on."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}; SSL_CERT_FILE names further authorities"
    if isinstance(error, TimeoutError):
        return "no connection in time"
    return type(error).__name__
