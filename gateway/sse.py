"""Server-sent events: bytes to whole events and back. Knows the framing (WHATWG HTML, section 9.2), not what events mean."""

from __future__ import annotations

import re

MAX_EVENT_BYTES = 32 * 1024 * 1024
"""An event that grows beyond this is a fault of its sender."""

_SHORT_BYTES = 64 * 1024
"""Of a part of an event that may be copied once more for each read that goes on with it."""

_BOUNDARY = re.compile(rb"(?:\r\n|\r(?!\n)|\n)(?:\r\n|\r(?!\n)|\n)")
_LINE_END = re.compile(rb"\r\n|\r|\n")


class Splitter:
    """Cuts a byte stream into whole events, whatever its line ends and wherever it was split.

    The raw events in order, with `rest`, are exactly the bytes that were fed. Time is linear in them: what is held is
    appended to in place, and what was searched is not searched again.
    """

    def __init__(self) -> None:
        self._held = bytearray()
        self._searched = 0
        self._returns = False
        """Whether a carriage return was ever seen: until then a blank line can be one thing only."""

    @property
    def rest(self) -> bytes:
        """What was fed and is not yet a whole event."""
        return bytes(self._held)

    def feed(self, data: bytes) -> list[bytes]:
        """The events completed by these bytes, each with its blank line. Raises ValueError above MAX_EVENT_BYTES."""
        self._returns = self._returns or b"\r" in data
        buffer: bytes | bytearray = data
        if self._held:
            self._held += data
            buffer = self._held
        events, start = [], 0
        for end in self._ends(buffer):
            events.append(bytes(buffer[start:end]))
            start = end
        if buffer is self._held:
            del self._held[:start]
        else:
            self._held += data[start:]
        if len(self._held) > MAX_EVENT_BYTES:
            raise ValueError(f"an event is longer than {MAX_EVENT_BYTES} bytes")
        # A blank line has four bytes at most: three of them may have come already.
        self._searched = max(0, len(self._held) - 3)
        return events

    def through(self, data: bytes) -> bytes | None:
        """As `feed`, the whole events in one piece; None, and nothing is fed, where it takes a closer look to find their ends."""
        if self._returns or b"\r" in data or len(self._held) > _SHORT_BYTES:
            return None
        if self._held:
            data = bytes(self._held) + data
        end = data.rfind(b"\n\n") + 2
        if end < 2:
            end = 0
        elif data.startswith(b"\n") or b"\n\n\n" in data:
            return None
        self._held = bytearray(data[end:])
        self._searched = max(0, len(self._held) - 3)
        return data[:end]

    def _ends(self, buffer: bytes | bytearray) -> list[int]:
        """Where events end."""
        found = []
        at = self._searched
        if not self._returns:
            while (at := buffer.find(b"\n\n", at) + 2) >= 2:
                found.append(at)
            return found
        # A carriage return at the very end may be the first half of a line end: wait for what follows.
        limit = len(buffer) - 1 if buffer.endswith(b"\r") else len(buffer)
        while match := _BOUNDARY.search(buffer, at, limit):
            at = match.end()
            found.append(at)
        return found


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
