"""What an upstream is: something that takes one Call and gives one Answer. Knows neither policy nor cache."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import NamedTuple, Protocol

from msgspec import Struct

from gateway.redact import Vault


class Upload(Protocol):
    """A body that is not in memory. It is taken part by part, no faster than the upstream reads."""

    @property
    def length(self) -> int | None:
        """Bytes in all; None when nobody knows yet."""
        ...

    @property
    def spent(self) -> bool:
        """Whether parts were taken that cannot be given again: then nothing can be tried after this attempt."""
        ...

    def parts(self) -> AsyncGenerator[bytes, None]:
        """Its bytes from the first one on; no part is empty, or longer than a few hundred KB.

        Raises BodyStopped where it cannot go on: the upstream must not take what it got for a whole body.
        """
        ...


class Call(Struct, frozen=True):
    """One request as it leaves for one upstream."""

    request_id: str
    endpoint: str
    """A key of `wire.ENDPOINTS`, one of `wire.UPLOADS`, or what is done with what an upstream keeps: `files/retrieve`."""
    model: str
    """The upstream's own name for the model; `body` already carries it."""
    body: bytes
    stream: bool
    headers: tuple[tuple[str, str], ...] = ()
    """Client headers that may travel; never its key."""
    usage_added: bool = False
    """Whether `body` asks for a usage chunk that the client did not ask for, and must not get."""
    method: str = "POST"
    path: str = ""
    """Below the upstream's base URL, its query with it; empty: the endpoint."""
    upload: Upload | None = None
    """Sent in the place of `body`, which is empty then."""
    content_type: str = "application/json"
    vault: Vault | None = None
    """What stands for what in `body`, when it was masked: the answer is restored with it. No upstream gets to see it."""

    @property
    def target(self) -> str:
        """What follows the upstream's base URL."""
        return self.path or self.endpoint


class Piece(NamedTuple):
    """Some bytes of an answer as they go to the client.

    A source that knows its tokens says so: `text` is the content these bytes carry and `n_tokens` how many tokens it is.
    `text is None` means that nobody has looked inside yet; a tap parses a copy.
    """

    data: bytes
    text: str | None = None
    n_tokens: int = 0


class Answer(Protocol):
    """An upstream's answer, its head known and its body still to be read. Whoever holds it closes it, whatever the ending."""

    @property
    def status(self) -> int:
        """HTTP status."""
        ...

    @property
    def headers(self) -> Sequence[tuple[str, str]]:
        """Lower-case names, hop-by-hop headers already dropped."""
        ...

    def __aiter__(self) -> AsyncIterator[Piece]:
        """The body's pieces, each handed on as soon as it arrived. Raises UpstreamFailed when the body is cut."""
        ...

    async def aclose(self) -> None:
        """Stop the upstream's work at once and free what it holds. May be called twice."""
        ...


class Upstream(Protocol):
    """A place that answers requests. One instance lives as long as its front worker; `send` runs many times at once."""

    name: str

    def unavailable(self, model: str | None = None) -> str | None:
        """Why nothing can be sent now (to this model), in words an operator can act on, or None. Called often: must not block."""
        ...

    async def send(self, call: Call) -> Answer:
        """Send the call and wait for the answer's head.

        A status the upstream gave is an Answer, not an error. Raises UpstreamFailed when there is no answer, ApiError
        (InvalidRequest) when this upstream cannot do what the body asks, BodyStopped when an upload could not go on.
        Cancelling the wait cancels the upstream's work. An upload may go on after the head came, until the answer is closed.
        """
        ...

    async def aclose(self) -> None:
        """Close connections; called once, when the front worker stops."""
        ...
