"""A request as the HTTP edge hands it on: its key checked, its body read, nothing in it judged."""

from __future__ import annotations

import re
from collections.abc import Mapping

from msgspec import Struct

from gateway import dialects
from gateway.auth import Principal
from gateway.facts import loggable
from gateway.privacy import DETECTOR, Detector

FORWARDED_HEADERS = ("openai-beta", "idempotency-key", "x-client-request-id", "traceparent", "tracestate")
"""Client headers that travel to external upstreams. Its key never does."""
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
"""W3C Trace Context, section 3.2: digits alone, so a detector of numbers would find some in it by chance."""


def _may_travel(name: str, value: str, detector: Detector) -> bool:
    """Headers are no part of what is classed: one in which anything sensitive is found stays here."""
    if name == "traceparent":
        return _TRACEPARENT.fullmatch(value) is not None
    return value.isascii() and value.isprintable() and len(value) <= 4096 and loggable(value, detector) == value


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
    detector: Detector = DETECTOR
    """What says whether a header may travel."""

    def forwarded(self, more: tuple[str, ...] = ()) -> tuple[tuple[str, str], ...]:
        """The client's headers that travel. One with sensitive text, or no header of ours, stays here."""
        headers = self.headers
        found = [name for name in (*FORWARDED_HEADERS, *more) if name in headers]
        if not found:
            return ()
        return tuple([(name, headers[name]) for name in found if _may_travel(name, headers[name], self.detector)])

    @property
    def forwarded_query(self) -> str:
        """The part of the URL's query that travels with the body."""
        return self.query if self.query and dialects.of(self.endpoint).forwards_query else ""
