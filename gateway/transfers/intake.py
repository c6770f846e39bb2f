"""What is known of a form while its parts come in: the fields that we act on, all that must be scanned, where things stand."""

from __future__ import annotations

from gateway.errors import InvalidRequest, TooLarge
from gateway.transfers.form import End, Event, Head

MAX_TEXT_BYTES = 1024 * 1024
"""Most text in all the fields of a form. What is longer is a file, and has a file name."""

_ACTED_ON = frozenset({"model", "purpose", "stream"})
_TRUE = frozenset({"true", "1", "yes", "on", "t", "y"})
"""What API servers take for true in a form."""

Place = tuple[int, int]
"""First byte, and the one after the last, counted from the beginning of the form."""


class Intake:
    """The state of one form. `take` is called with every event, in order."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}
        """By name: those that we act on, and the prompt."""
        self.texts: list[str] = []
        """Whatever a person or a program may have written: values, names, file names, headers."""
        self.length = 0
        """Bytes so far."""
        self.model: Place | None = None
        """The value of the field `model`."""
        self.content: Place | None = None
        """Of the first file."""
        self.n_files = 0
        self.sealed = False
        """Whether the decision was made: what we act on comes too late from here on."""
        self._part: Head | None = None
        self._start = 0
        self._value = bytearray()
        self._n_text_bytes = 0

    @property
    def streams(self) -> bool:
        """Whether the client asks for a stream."""
        return self.fields.get("stream", "").strip().lower() in _TRUE

    @property
    def reads_text(self) -> bool:
        """Whether the part that comes now is a text, which nobody has seen whole yet."""
        return self._part is not None and not self._part.is_file

    def take(self, event: Event) -> bytes:
        """Note what an event says; gives its bytes. Raises InvalidRequest for a field that may not stand there, TooLarge."""
        if isinstance(event, bytes):
            raw = event
            if self.reads_text:
                self._n_text_bytes += len(event)
                if self._n_text_bytes > MAX_TEXT_BYTES:
                    said = f"The fields of the form hold more than {MAX_TEXT_BYTES} bytes of text; send a file with a file name."
                    raise TooLarge(said)
                self._value += event
        elif isinstance(event, End):
            raw = b""
            self._end()
        else:
            raw = event.raw
            if isinstance(event, Head):
                self._begin(event)
        self.length += len(raw)
        return raw

    def _begin(self, head: Head) -> None:
        self._part = head
        self._start = self.length + len(head.raw)
        self.texts += head.texts
        self.n_files += head.is_file
        if head.name not in _ACTED_ON:
            return
        if head.is_file:
            raise _misplaced(head.name, "is a file; it must be a text")
        if head.name in self.fields:
            raise _misplaced(head.name, "stands twice")
        if self.sealed:
            raise _misplaced(head.name, "stands behind a file; send it before the first file")

    def _end(self) -> None:
        part, place = self._part, (self._start, self.length)
        self._part = None
        if part is None or part.is_file:
            self.content = self.content or place
            return
        try:
            value = self._value.decode()
        except UnicodeDecodeError:
            raise InvalidRequest("A text field of the form is not UTF-8.", param="body", code="invalid_form") from None
        self._value.clear()
        self.texts.append(value)
        if part.name in _ACTED_ON or part.name == "prompt":
            self.fields[part.name] = value
        if part.name == "model":
            self.model = place


def _misplaced(name: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"The form's field `{name}` {why}.", param=name, code="invalid_form")
