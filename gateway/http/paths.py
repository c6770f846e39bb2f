"""Which path is which endpoint: OpenAI's, Azure's and Anthropic's spellings of the same things. Pure; answers nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from msgspec import Struct

from gateway.errors import ApiError, MethodNotAllowed, NotFound
from gateway.wire import ENDPOINTS, UPLOADS

PREFIXES = ("/v1/", "/openai/v1/", "/openai/")
"""What may stand before an endpoint: OpenAI's base URL, Azure's new one, and Azure's old one (its `api-version` is ignored)."""

_POST: Mapping[str, str] = MappingProxyType({"POST": ""})
_STORED: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "": MappingProxyType({"GET": "responses/retrieve", "DELETE": "responses/delete"}),
        "/cancel": MappingProxyType({"POST": "responses/cancel"}),
        "/input_items": MappingProxyType({"GET": "responses/input_items"}),
    }
)
"""What can be done with a stored response, by the path below its id and by method."""
_KEPT: Mapping[tuple[str, str], Mapping[str, str]] = MappingProxyType(
    {
        ("files", ""): MappingProxyType({"GET": "files/retrieve", "DELETE": "files/delete"}),
        ("files", "/content"): MappingProxyType({"GET": "files/content"}),
        ("batches", ""): MappingProxyType({"GET": "batches/retrieve"}),
        ("batches", "/cancel"): MappingProxyType({"POST": "batches/cancel"}),
    }
)
"""The same for files and batches."""
_LISTED: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {name: MappingProxyType({"POST": name, "GET": f"{name}/list"}) for name in ("files", "batches")}
)

NOT_SERVED = (
    "assistants", "audio/voices", "chat/completions", "containers", "conversations", "evals", "fine_tuning", "messages/batches",
    "organization", "realtime", "skills", "threads", "uploads", "vector_stores", "videos",
)  # fmt: skip
"""Endpoints that these APIs have and this gateway does not, by the beginning of their path."""


class Target(Struct, frozen=True):
    """What a path stands for."""

    actions: Mapping[str, str]
    """Endpoint by method."""
    deployment: str = ""
    """The model that the path names."""
    id: str = ""
    """The stored response, file or batch that the path names."""

    @property
    def name(self) -> str:
        """The endpoint, whatever the method; for the record of a request that is refused for its method."""
        return next(iter(self.actions.values()))

    def endpoint(self, method: str) -> str:
        """What a request with this method asks for. Raises MethodNotAllowed."""
        found = self.actions.get(method)
        if found is None:
            allow = tuple(self.actions)
            raise MethodNotAllowed(f"Use {' or '.join(allow)} for this path, not {ascii(method[:16])[1:-1]}.", allow=allow)
        return found


PLAIN: Mapping[str, Target] = MappingProxyType(
    {
        prefix + name: Target(_LISTED.get(name) or MappingProxyType({"POST": name}))
        for prefix in PREFIXES
        for name in (*ENDPOINTS, *UPLOADS, "batches")
    }
)
_RESPONSE = re.compile(r"(?:/v1|/openai/v1|/openai)/responses/([^/]+)(/cancel|/input_items|)")
_THING = re.compile(r"(?:/v1|/openai/v1|/openai)/(files|batches)/([^/]+)(/content|/cancel|)")
_PREFIX = re.compile(r"^/(?:openai/deployments/[^/]+|openai/v1|openai|v1)/")
_DEPLOYMENT = re.compile(r"/openai/deployments/([^/]+)/(.+)")

MOUNTS = (*(prefix + name for prefix in PREFIXES for name in ("responses", "files", "batches")), "/openai/deployments")
"""Where paths that hold an id begin: a router gives these, with all that stands below them, to `find`."""
EXACT = tuple(path for path in PLAIN if not path.startswith(MOUNTS))
"""The other paths that `find` knows."""


def find(path: str) -> Target | None:
    """What a path stands for, with or without a slash at its end; None for one that stands for nothing here."""
    path = path.rstrip("/")
    if (plain := PLAIN.get(path)) is not None:
        return plain
    if match := _RESPONSE.fullmatch(path):
        return Target(_STORED[match[2]], id=match[1])
    if (match := _THING.fullmatch(path)) and (actions := _KEPT.get((match[1], match[3]))):
        return Target(actions, id=match[2])
    if (match := _DEPLOYMENT.fullmatch(path)) and (match[2] in ENDPOINTS or match[2] in UPLOADS[1:]):
        return Target(MappingProxyType({"POST": match[2]}), deployment=match[1])
    return None


def unknown(method: str, path: str) -> ApiError:
    """The refusal of a path that stands for nothing here: whether it is one of these APIs' at all, and what to do."""
    shown = f"{ascii(method[:16])[1:-1]} {ascii(path[:128])[1:-1]}"
    below = _PREFIX.sub("", path)
    if any(below == name or below.startswith(name + "/") for name in NOT_SERVED):
        message = f"{shown} is part of the API and not served by this gateway; docs/endpoints.md lists what is."
        return NotFound(message, code="endpoint_not_served")
    return NotFound(f"Unknown request URL: {shown}. See docs/endpoints.md; a base URL ends in /v1.", code="unknown_url")
