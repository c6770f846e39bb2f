"""Cross-origin access for the web pages that an operator names. Off when none is; knows nothing of what is served.

Requests carry their key in a header, so credentials (cookies) are never allowed, and `*` is safe to say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from litestar.types import ASGIApp, Receive, Scope, Send

METHODS = b"GET, POST, DELETE"
EXPOSED = (
    b"x-request-id, request-id, openai-processing-ms, retry-after, retry-after-ms, x-should-retry, "
    b"x-ratelimit-limit-requests, x-ratelimit-limit-tokens, x-ratelimit-remaining-requests, x-ratelimit-remaining-tokens, "
    b"x-ratelimit-reset-requests, x-ratelimit-reset-tokens, x-gateway-route, x-gateway-cache, x-gateway-policy, "
    b"x-gateway-explain"
)
"""Answer headers that a page may read."""
MAX_AGE_S = 600
"""How long a browser may remember a preflight's answer."""

_NAMES = re.compile(rb"[A-Za-z0-9_\-, ]{1,2048}")


class Cors:
    """An ASGI application with the cross-origin answers of the Fetch standard around it; preflights need no key."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        """`origins`: `scheme://host[:port]` each, or `*` for any page."""
        self._app = app
        self._any = "*" in origins
        self._origins = frozenset(origin.encode() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a preflight; let everything else through, with the headers that let the page read the answer."""
        http: Any = scope if str(scope["type"]) == "http" else {"headers": ()}
        asked: dict[bytes, bytes] = dict(http["headers"])
        origin = asked.get(b"origin")
        if origin is None or not (self._any or origin in self._origins):
            await self._app(scope, receive, send)
            return
        own = [(b"access-control-allow-origin", b"*" if self._any else origin), (b"vary", b"origin")]
        if http["method"] == "OPTIONS" and b"access-control-request-method" in asked:
            await _preflight(asked, own, send)
            return

        async def with_own(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *own, (b"access-control-expose-headers", EXPOSED)]}
            await send(message)

        await self._app(scope, receive, with_own)


async def _preflight(asked: dict[bytes, bytes], own: list[tuple[bytes, bytes]], send: Send) -> None:
    wanted = asked.get(b"access-control-request-headers", b"")
    headers = [*own, (b"access-control-allow-methods", METHODS), (b"access-control-max-age", str(MAX_AGE_S).encode())]
    if _NAMES.fullmatch(wanted):
        headers.append((b"access-control-allow-headers", wanted))
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
