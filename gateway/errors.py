"""The error tree. Each class knows the HTTP status and OpenAI `type` and `code` it becomes; nothing here knows HTTP.

GatewayError
├── ConfigError            a config or policy file that cannot be used; carries every Problem found
├── WorkerGone             the process behind a Unix socket is not there, or left in the middle of a call
├── UpstreamFailed         one upstream could not answer; dispatch decides what follows
├── BodyStopped            a body that is sent on while it comes in cannot go on; its cause says why
└── ApiError               what a client is told
    ├── InvalidRequest       400
    ├── Unauthorized         401
    ├── Forbidden            403
    ├── NotFound             404
    ├── MethodNotAllowed     405
    ├── Conflict             409
    ├── RequestTimeout       408
    ├── TooLarge             413
    ├── UnsupportedMedia     415
    ├── RateLimited          429
    ├── InternalError        500
    ├── BadUpstream          502
    ├── Unavailable          503
    ├── UpstreamTimeout      504
    └── Relayed              an upstream's own error, passed on as it came
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from msgspec import Struct


class GatewayError(Exception):
    """Anything this package raises on purpose."""


class Problem(Struct, frozen=True):
    """One thing wrong with one place in one file, and what mends it."""

    place: str
    """`file:line:column`, or as much of it as is known."""
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


class ConfigError(GatewayError):
    """A config or policy file cannot be used; `problems` lists every fault that was found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class WorkerGone(GatewayError):
    """The worker process is not reachable, or its connection broke before the call ended."""


class UpstreamFailed(GatewayError):
    """One upstream could not answer. `kind` is a row of the fallback table in `dispatch.py`."""

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        status: int | None = None,
        body: bytes = b"",
        headers: Sequence[tuple[str, str]] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status
        self.body = body
        self.headers = tuple(headers)
        self.retry_after_s = retry_after_s


class BodyStopped(GatewayError):
    """A body that is sent on while it comes in cannot go on: not the upstream's fault. `__cause__` is what the client is told."""


class ApiError(GatewayError):
    """What a client is told: one OpenAI error envelope and one status."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str | None = None
    should_retry: bool | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        should_retry: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code
        self.retry_after_s = retry_after_s
        if should_retry is not None:
            self.should_retry = should_retry

    def envelope(self) -> dict[str, dict[str, str | None]]:
        """OpenAI's error shape; all four keys are required by its API description."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def body(self) -> bytes:
        """The envelope as JSON. ASCII only, so that a lone surrogate in a quoted name cannot break the encoder."""
        return json.dumps(self.envelope()).encode()

    def headers(self) -> list[tuple[str, str]]:
        """Retry hints in the names the official SDKs read."""
        found = []
        if self.retry_after_s is not None:
            found.append(("retry-after", str(max(1, math.ceil(self.retry_after_s)))))
            found.append(("retry-after-ms", str(round(self.retry_after_s * 1000))))
        if self.should_retry is not None:
            found.append(("x-should-retry", "true" if self.should_retry else "false"))
        return found


class InvalidRequest(ApiError):
    """The request itself is wrong; sending it again changes nothing."""

    status = 400
    type = "invalid_request_error"


class Unauthorized(ApiError):
    """No key, or one that is not known. It says that trying again does not help: Claude Code else does so for minutes."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"
    should_retry = False


class Forbidden(ApiError):
    """A known key asks for what a policy or its scopes do not allow."""

    status = 403
    type = "invalid_request_error"
    code = "policy_forbidden"


class NotFound(ApiError):
    """An unknown path, model or id."""

    status = 404
    type = "invalid_request_error"


class MethodNotAllowed(ApiError):
    """A known path with another method; `allow` names those that it has."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"

    def __init__(self, message: str, *, allow: Sequence[str] = ()) -> None:
        super().__init__(message)
        self._allow = tuple(allow)

    def headers(self) -> list[tuple[str, str]]:
        """The methods that would do (RFC 9110, section 15.5.6)."""
        return [("allow", ", ".join(self._allow))] if self._allow else []


class RequestTimeout(ApiError):
    """A body that stopped half-way; its connection is closed after the answer."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"

    def headers(self) -> list[tuple[str, str]]:
        """RFC 9110, section 15.5.9: the connection is given up."""
        return [("connection", "close")]


class Conflict(ApiError):
    """What the request counts on has changed meanwhile."""

    status = 409
    type = "invalid_request_error"


class TooLarge(ApiError):
    """A body above the configured limit."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class UnsupportedMedia(ApiError):
    """A content type or encoding that is not served here."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class RateLimited(ApiError):
    """Too much for now; `retry_after_s` says when to come again."""

    status = 429
    type = "requests"
    code = "rate_limit_exceeded"


class InternalError(ApiError):
    """A fault of ours. The message never carries text of the request."""


class BadUpstream(ApiError):
    """The upstream answered with something that cannot be passed on."""

    status = 502
    code = "upstream_error"


class Unavailable(ApiError):
    """What may serve this request is down or off."""

    status = 503
    code = "upstream_unavailable"


class UpstreamTimeout(ApiError):
    """The upstream did not answer in time."""

    status = 504
    code = "upstream_timeout"


class Relayed(ApiError):
    """An upstream's own error envelope, passed on byte for byte with its status and retry hints.

    `body` is a JSON object whose `error` is one with a message.
    """

    def __init__(self, status: int, body: bytes, headers: Sequence[tuple[str, str]], *, code: str | None) -> None:
        super().__init__(f"the upstream answered {status}", code=code)
        self.status = status  # type: ignore[misc]  # the one error whose status is the upstream's choice
        self._body = body
        self._headers = list(headers)

    def envelope(self) -> dict[str, dict[str, str | None]]:
        """The upstream's own error; all four keys, whatever it left out."""
        error: Any = json.loads(self._body)["error"]
        found = {name: error.get(name) for name in ("message", "type", "param", "code")}
        return {"error": {name: value if isinstance(value, str) else None for name, value in found.items()}}

    def body(self) -> bytes:
        """The upstream's bytes."""
        return self._body

    def headers(self) -> list[tuple[str, str]]:
        """The upstream's retry and rate-limit headers."""
        return [(name, value) for name, value in self._headers if name not in {"content-type", "content-length"}]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean "x"?` when a known word is close, else the known words when they are few."""
    words = sorted(known)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if close:
        return f'; did you mean "{close[0]}"?'
    if 0 < len(words) <= 12:
        return "; known: " + ", ".join(words)
    return ""
