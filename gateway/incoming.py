"""A request as the HTTP edge hands it on: its key checked, its body read, nothing in it judged."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from gateway import dialects
from gateway.auth import Principal

FORWARDED_HEADERS = ("openai-beta", "idempotency-key", "x-client-request-id", "traceparent", "tracestate")
"""Client headers that travel to external upstreams. Its key never does."""


class Incoming(Struct, frozen=True, kw_only=True):
    """A request with its key checked and its body read."""

    endpoint: str
    """A key of `wire.ENDPOINTS`; for `recall` one of its own."""
    body: bytes
    headers: Mapping[str, str]
    """Lower-case names."""
    principal: Principal
    deployment: str = ""
    """The model that the path named."""
    query: str = ""
    """Of the URL, as it came."""
    id: str = ""
    """The stored response that the path names."""
    method: str = "POST"

    def forwarded(self, more: tuple[str, ...] = ()) -> tuple[tuple[str, str], ...]:
        """The client's headers that travel. One that could not stand in a header of ours stays here."""
        found = [(name, self.headers[name]) for name in (*FORWARDED_HEADERS, *more) if name in self.headers]
        return tuple((name, value) for name, value in found if value.isascii() and value.isprintable() and len(value) <= 4096)

    @property
    def forwarded_query(self) -> str:
        """The part of the URL's query that travels with the body."""
        return self.query if dialects.of(self.endpoint).forwards_query else ""
