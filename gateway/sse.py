"""Server-sent events: bytes to whole events and back. Knows the framing (WHATWG HTML, section 9.2), not what events mean."""

from __future__ import annotations

import re

MAX_EVENT_BYTES = 32 * 1024 * 1024
"""An event that grows beyond this is a fault of its sender."""

_BOUNDARY = re.compile(rb"(?:\r\n|\r(?!\n)|\n)(?:\r\n|\r(?!\n)|\n)")
_LINE_END = re.compile(rb"\r\n|\r|\n")


class Splitter:
    """Cuts a byte stream into whole events, whatever its line ends and wherever it was split.

    The raw events in order, with `rest`, are exactly the bytes that were fed.
    """

    def __init__(self) -> None:
        self.rest = b""
        self._searched = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The events completed by these bytes, each with its blank line. Raises ValueError above MAX_EVENT_BYTES."""
        buffer = self.rest + data if self.rest else data
        if b"\r" not in buffer:
            return self._feed_newlines(buffer)
        events, start = [], 0
        search_from = max(0, self._searched - 3)
        # A carriage return at the very end may be the first half of a line end: wait for what follows.
        limit = len(buffer) - 1 if buffer.endswith(b"\r") else len(buffer)
        while match := _BOUNDARY.search(buffer, search_from, limit):
            events.append(buffer[start : match.end()])
            start = search_from = match.end()
        self._keep(buffer[start:])
        return events

    def _feed_newlines(self, buffer: bytes) -> list[bytes]:
        events, start = [], 0
        at = buffer.find(b"\n\n", max(0, self._searched - 1))
        while at >= 0:
            events.append(buffer[start : at + 2])
            start = at + 2
            at = buffer.find(b"\n\n", start)
        self._keep(buffer[start:])
        return events

    def _keep(self, rest: bytes) -> None:
        if len(rest) > MAX_EVENT_BYTES:
            raise ValueError(f"an event is longer than {MAX_EVENT_BYTES} bytes")
        self.rest = rest
        self._searched = len(rest)


def data_of(event: bytes) -> bytes | None:
    """The event's data, lines joined by newline; None when it has none (a comment, or only an id)."""
    if event.startswith(b"data: ") and event.endswith(b"\n\n") and event.find(b"\n") == len(event) - 2 and b"\r" not in event:
        return event[6:-2]
    found = []
    for line in _LINE_END.split(event.removeprefix(b"\xef\xbb\xbf")):
        name, _, value = line.partition(b":")
        if name == b"data":
            found.append(value.removeprefix(b" "))
    return b"\n".join(found) if found else None


def event_of(data: bytes) -> bytes:
    """One unnamed event that carries `data`, which holds no line end."""
    return b"data: " + data + b"\n\n"


DONE = event_of(b"[DONE]")
