"""An upstream that speaks OpenAI's wire format, over stock httpx. Sends bytes as given, hands on bytes as they come.

The only module that imports httpx for the request path; knows neither policy nor cache nor what the bytes mean.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx

from gateway import __version__
from gateway.config import OpenAIUpstream, off_reason
from gateway.errors import UpstreamFailed
from gateway.upstreams import Call, Piece

KEPT_HEADERS = frozenset(
    {
        "content-type",
        "openai-model",
        "openai-processing-ms",
        "openai-version",
        "retry-after",
        "retry-after-ms",
        "x-should-retry",
    }
)
"""Answer headers that travel to the client, besides every `x-ratelimit-*`."""


class OpenAI:
    """One OpenAI-compatible API: a connection pool and a key."""

    def __init__(self, name: str, config: OpenAIUpstream, *, key: str) -> None:
        self.name = name
        self._off = off_reason(config)
        headers = {"user-agent": f"gateway/{__version__}", "accept-encoding": "identity", "content-type": "application/json"}
        if key and self._off is None:
            headers["authorization"] = f"Bearer {key}"
        limits = httpx.Limits(max_connections=config.max_connections, max_keepalive_connections=config.max_connections)
        # How long to wait for bytes is dispatch's business: it knows whether the answer is streamed, and how far it came.
        seconds = config.connect_timeout_s
        timeout = httpx.Timeout(connect=seconds, read=None, write=config.idle_timeout_s, pool=seconds)
        self._url = config.base_url.rstrip("/") + "/"
        # A cookie set on one client's answer must not travel with another client's request: the jar takes none.
        cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))
        self._client = httpx.AsyncClient(headers=headers, cookies=cookies, limits=limits, timeout=timeout, follow_redirects=False)

    def unavailable(self, model: str | None = None) -> str | None:  # noqa: ARG002 - one answer for all its models
        """See `Upstream.unavailable`."""
        return self._off

    async def send(self, call: Call) -> HttpAnswer:
        """See `Upstream.send`."""
        headers = [*call.headers, ("accept", "text/event-stream" if call.stream else "application/json")]
        request = self._client.build_request("POST", self._url + call.endpoint, content=call.body, headers=headers)
        try:
            response = await self._client.send(request, stream=True)
        except httpx.RequestError as error:
            raise _failed(error) from None
        return HttpAnswer(response)

    async def aclose(self) -> None:
        """See `Upstream.aclose`."""
        await self._client.aclose()


class HttpAnswer:
    """An answer whose body is still on the connection."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.headers = [
            (name.lower(), value)
            for name, value in response.headers.items()
            if name.lower() in KEPT_HEADERS or name.lower().startswith("x-ratelimit-")
        ]
        upstream_id = response.headers.get("x-request-id")
        if upstream_id:
            self.headers.append(("x-upstream-request-id", upstream_id))
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
