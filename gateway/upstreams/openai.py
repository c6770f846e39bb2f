"""An upstream that speaks OpenAI's wire format: which client carries it, and the one over stock httpx.

Sends bytes as given, hands on bytes as they come. The only module that imports httpx for the request path; knows neither policy
nor cache nor what the bytes mean.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from gateway import __version__
from gateway.config import OpenAIUpstream, key_header, off_reason
from gateway.errors import BodyStopped, ConfigError, Problem, UpstreamFailed
from gateway.upstreams import Call, Piece, Upstream
from gateway.upstreams.http1 import Http1, kept


def connect(name: str, config: OpenAIUpstream, *, key: str) -> Upstream:
    """The upstream over the client that its config names; over httpx also when the environment names a proxy for it.

    Raises ConfigError for a `base_url` that is none.
    """
    made = OpenAI if config.client == "httpx" or _proxied(config.base_url) else Http1
    return made(name, config, key=key)


def _proxied(base_url: str) -> bool:
    """Whether HTTP_PROXY, HTTPS_PROXY or ALL_PROXY (or the system's settings) apply to this URL, and NO_PROXY does not."""
    try:
        parts = urlsplit(base_url)
    except ValueError:
        return False
    proxies = getproxies()
    return bool(proxies.get(parts.scheme) or proxies.get("all")) and not proxy_bypass(parts.netloc.rpartition("@")[2])


def _names_host(url: str) -> bool:
    try:
        return bool(httpx.URL(url).host)
    except httpx.InvalidURL:
        return False


class OpenAI:
    """One OpenAI-compatible API over httpx: for proxies, and for who prefers a client that many others use."""

    def __init__(self, name: str, config: OpenAIUpstream, *, key: str) -> None:
        self.name = name
        self._off = off_reason(config)
        headers = {"user-agent": f"gateway/{__version__}", "accept-encoding": "identity"}
        if key and self._off is None:
            name_, value = key_header(config, key)
            headers[name_] = value
        limits = httpx.Limits(max_connections=config.max_connections, max_keepalive_connections=config.max_connections)
        # How long to wait for bytes is dispatch's business: it knows whether the answer is streamed, and how far it came.
        seconds = config.connect_timeout_s
        timeout = httpx.Timeout(connect=seconds, read=None, write=config.idle_timeout_s, pool=seconds)
        self._url = config.base_url.rstrip("/") + "/"
        if not _names_host(self._url):
            raise ConfigError([Problem(f"upstreams.{name}.base_url", "must be http(s)://HOST[:PORT]/PATH")])
        # A cookie set on one client's answer must not travel with another client's request: the jar takes none.
        cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))
        self._client = httpx.AsyncClient(
            headers=headers, cookies=cookies, limits=limits, timeout=timeout, follow_redirects=False, http2=True
        )
        self._sending: set[asyncio.Future[httpx.Response]] = set()

    def unavailable(self, model: str | None = None) -> str | None:  # noqa: ARG002 - one answer for all its models
        """See `Upstream.unavailable`."""
        return self._off

    async def send(self, call: Call) -> HttpAnswer:
        """See `Upstream.send`."""
        headers = [*call.headers, ("accept", "text/event-stream" if call.stream else "application/json")]
        headers.append(("content-type", call.content_type))
        parts = call.upload.parts() if call.upload is not None else None
        if call.upload is not None and call.upload.length is not None:
            headers.append(("content-length", str(call.upload.length)))
        content = call.body if parts is None else parts
        request = self._client.build_request(call.method, self._url + call.target, content=content, headers=headers)
        try:
            return HttpAnswer(await self._sent_request(request))
        finally:
            if parts is not None:
                # Whoever was given up before it asked for a part ends by itself, and asks for none.
                with suppress(RuntimeError):
                    await parts.aclose()

    async def _sent_request(self, request: httpx.Request) -> httpx.Response:
        """The response's head."""
        sending = _Sending(self._client, request)
        self._sending.add(sending.task)
        sending.task.add_done_callback(self._sent)
        try:
            response = await asyncio.shield(sending.task)
        except httpx.RequestError as error:
            raise _failed(error) from None
        except asyncio.CancelledError:
            await sending.give_up()
            raise
        return response

    def _sent(self, task: asyncio.Future[httpx.Response]) -> None:
        self._sending.discard(task)
        if not task.cancelled():
            # Whoever waits is told; when nobody does, asyncio would report the failure as one that was overlooked.
            task.exception()

    async def aclose(self) -> None:
        """See `Upstream.aclose`."""
        for task in tuple(self._sending):
            task.cancel()
            await _close(task)
        await self._client.aclose()


class _Sending:
    """One request on its way to its answer's head, in a task of its own, so that it is given up only where that is safe.

    Stock httpx does not survive a cancellation while it waits for a connection or opens one: it loses the connection, which
    then takes a place in the pool for ever (measured: 1 of 14 requests cancelled in their first turns of the loop). So whoever
    gives up early leaves at once, and the task ends by itself before a byte of the request has been sent.
    """

    def __init__(self, client: httpx.AsyncClient, request: httpx.Request) -> None:
        self._connected = False
        self._given_up = False
        request.extensions["trace"] = self._trace
        self.task = asyncio.ensure_future(client.send(request, stream=True))

    async def _trace(self, name: str, _info: Mapping[str, Any]) -> None:
        """Called by httpcore at each step of a request."""
        if name.endswith("send_request_headers.started"):
            self._connected = True
            if self._given_up:
                raise asyncio.CancelledError

    async def give_up(self) -> None:
        """Nobody waits for the answer any more. Returns when the upstream has been left, or will be before it is asked."""
        self._given_up = True
        if self._connected:
            self.task.cancel()
            await asyncio.shield(_close(self.task))


async def _close(task: asyncio.Future[httpx.Response]) -> None:
    with suppress(asyncio.CancelledError, httpx.RequestError, BodyStopped):
        response = await task
        await response.aclose()


class HttpAnswer:
    """An answer whose body is still on the connection."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.headers = kept((name.lower(), value) for name, value in response.headers.raw)
        self._response = response

    async def __aiter__(self) -> AsyncIterator[Piece]:
        try:
            # Decoded, because some APIs compress whatever was asked; without an encoding these are the bytes as they came.
            async for data in self._response.aiter_bytes():
                yield Piece(data)
        except httpx.RequestError as error:
            raise _failed(error, answered=True) from None

    async def aclose(self) -> None:
        """Close the connection when the body was not read to its end; that is how the upstream learns of it."""
        await self._response.aclose()


def _failed(error: httpx.RequestError, *, answered: bool = False) -> UpstreamFailed:
    """The row of the fallback table for a transport error. Its text may name the host, never the request."""
    if isinstance(error, httpx.PoolTimeout):
        return UpstreamFailed("overloaded", "all of its connections are in use")
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.UnsupportedProtocol | httpx.ProxyError):
        return UpstreamFailed("connect", f"cannot be reached ({type(error).__name__})")
    if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout):
        return UpstreamFailed("timeout", "did not answer in time")
    if isinstance(error, httpx.DecodingError):
        return UpstreamFailed("protocol", "sent a body that is not in the encoding it names")
    return UpstreamFailed("cut" if answered else "no_answer", f"closed the connection ({type(error).__name__})")
