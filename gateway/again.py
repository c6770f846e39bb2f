"""Requests whose equals were answered from the exact cache: what their bytes said, so that the next needs not be read.

Holds no text: a digest of the body, the facts, and where the answer stands in the cache. Whether the cache still has it and
the policy lets it answer is asked each time.
"""

from __future__ import annotations

import hashlib

from msgspec import Struct
from msgspec.structs import replace

from gateway.auth import Principal
from gateway.cache import Scope
from gateway.facts import Facts
from gateway.incoming import Incoming
from gateway.policy.generation import Generation
from gateway.wire import Request

MOST_BYTES = 16 * 1024
"""A longer body is always read."""
MOST_KNOWN = 4096
_READ_HEADERS = frozenset({"cache-control", "x-gateway-class", "x-gateway-tags", "x-gateway-deadline-ms"})
"""What facts and cache take from the head; a request with any of them is always read."""

_Key = tuple[bytes, str, str, Principal]


class Known(Struct, frozen=True):
    """What was found out of a request."""

    request: Request
    """Without its body and what that said."""
    facts: Facts
    scope: Scope
    """Without its text, so good for the exact tier alone."""
    near: bool
    """Whether its size was near a limit and could not be counted. Where it comes near one later, it must be read."""


class Again:
    """Of one front worker, under one generation of policies."""

    def __init__(self) -> None:
        self._generation: Generation | None = None
        self._known: dict[_Key, Known] = {}

    def find(self, incoming: Incoming, generation: Generation) -> Known | None:
        """What is known of a request with the same bytes, from the same principal."""
        if not self._known or generation is not self._generation:
            return None
        key = _key(incoming)
        return self._known.get(key) if key is not None else None

    def keep(
        self, incoming: Incoming, generation: Generation, request: Request, facts: Facts, scope: Scope, *, near: bool
    ) -> None:
        """It was answered from the exact tier, as it came: untranslated, and going on from nothing."""
        key = _key(incoming)
        if key is None:
            return
        if generation is not self._generation:
            self._generation = generation
            self._known.clear()
        if len(self._known) >= MOST_KNOWN:
            self._known.pop(next(iter(self._known)))
        self._known[key] = Known(replace(request, body=b"", data={}), facts, replace(scope, text=None), near)


def _key(incoming: Incoming) -> _Key | None:
    """None for a request that must be read."""
    if len(incoming.body) > MOST_BYTES or incoming.query or not _READ_HEADERS.isdisjoint(incoming.headers):
        return None
    return hashlib.sha256(incoming.body).digest(), incoming.endpoint, incoming.deployment, incoming.principal
