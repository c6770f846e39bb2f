"""Every kind of log line: what it tells, and the fields it always has. Knows nothing of how lines are written.

The schema in words and for programs is docs/logs.md and docs/log-schema.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from msgspec import Struct


class Event(Struct, frozen=True):
    """What one kind of log line tells, and the fields it always has beside `time`, `event` and `level`."""

    when: str
    lifecycle: bool = False
    """About the gateway, not about one request: has no `request_id`, and may carry the message of a GatewayError."""
    fields: tuple[str, ...] = ()
    level: Literal["info", "warning", "error"] = "info"


_DECISION = ("request_id", "facts", "health", "policy", "rule", "order", "removed", "cache", "redact", "limits", "refusal")

EVENTS: Mapping[str, Event] = MappingProxyType(
    {
        "request.opened": Event("a request was accepted for work", fields=("request_id", "endpoint")),
        "route.decided": Event(
            "policy said where the request may go",
            fields=_DECISION,
        ),
        "route.explained": Event(
            "policy said where the request would go; it went nowhere",
            fields=_DECISION,
        ),
        "cache.hit": Event("the answer comes from the cache", fields=("request_id", "tier")),
        "cache.miss": Event("the cache had no answer that may be used", fields=("request_id", "reason")),
        "upstream.failed": Event(
            "one attempt at one upstream failed", fields=("request_id", "upstream", "kind"), level="warning"
        ),
        "redaction.failed": Event(
            "a request was to be masked for an upstream and could not be, so nothing was sent to it",
            fields=("request_id", "upstream", "reason"),
            level="warning",
        ),
        "request.crashed": Event("a fault of the gateway's own", fields=("request_id", "fault", "place"), level="error"),
        "response.unstored": Event(
            "a response could not be stored, and its client was told so", fields=("request_id", "reason"), level="warning"
        ),
        "token": Event(
            "one event that carried content passed to the client",
            fields=("request_id", "index", "ms", "n_tokens", "upstream", "source", "choice", "chars"),
        ),
        "output.secret_found": Event(
            "the answer held credentials; they are masked in the log", fields=("request_id", "kind", "count"), level="warning"
        ),
        "request.closed": Event("the request ended; its whole record", fields=("request_id", "endpoint", "ending", "status")),
        "gateway.started": Event("the supervisor runs", lifecycle=True),
        "gateway.stopped": Event("the supervisor ended in order", lifecycle=True),
        "worker.ready": Event("a worker process can work", lifecycle=True, fields=("worker",)),
        "worker.lost": Event("a worker process died or cannot be reached", lifecycle=True, fields=("worker",), level="error"),
        "policy.activated": Event("a policy is in force from here on", lifecycle=True, fields=("policy",)),
        "policy.refused": Event(
            "changed policies were refused; the last good ones stay", lifecycle=True, fields=("reason",), level="error"
        ),
        "data.purged": Event(
            "what was kept was erased; by whom, what was meant, and how much",
            lifecycle=True,
            fields=("by", "selector", "erased"),
            level="warning",
        ),
        "log.failed": Event(
            "a log sink cannot be written (on standard error)", lifecycle=True, fields=("reason",), level="error"
        ),
        "log.healed": Event("the sink takes lines again", lifecycle=True, fields=("failed_s",), level="warning"),
        "log.dropped": Event("lines were lost because the queue was full", lifecycle=True, fields=("count",), level="error"),
        "log.unencodable": Event(
            "a line could not be written as JSON", lifecycle=True, fields=("of", "error_type"), level="error"
        ),
        "library.logged": Event(
            "a library logged a warning or an error", lifecycle=True, fields=("logger", "place"), level="warning"
        ),
    }
)
"""Every kind of line. An event that is not here is written all the same, but a test finds its name in the source."""
