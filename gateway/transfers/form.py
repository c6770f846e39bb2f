"""A form (multipart/form-data, RFC 7578) read part by part as its bytes come. Keeps every byte as it came; decides nothing.

The grammar is read by the `multipart` package. Beside it stands here what two readers could read differently, which is refused:
what we judge must be what the upstream reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NoReturn
from urllib.parse import unquote

from msgspec import Struct
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from gateway.errors import InvalidRequest, UnsupportedMedia

MAX_PARTS = 256
MAX_HEADER_BYTES = 4096
"""Longest header of a part."""
MAX_HEADERS = 8
"""Most headers of a part."""

_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")
"""RFC 2046, section 5.1.1."""
_OPTION = re.compile(r';[ \t]*([A-Za-z*]+)[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^\s";\\]+)[ \t]*')
_PLAIN_ENCODINGS = frozenset({"7bit", "8bit", "binary"})
_PLAIN_CHARSETS = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})
_TEXT_MEDIA = frozenset({"text/plain", "application/json"})


class Head(Struct, frozen=True):
    """Where a part begins."""

    name: str
    is_file: bool
    """Its content is not read as text."""
    texts: tuple[str, ...]
    """All that a person may have written into its headers."""
    raw: bytes
    """Everything from the end of the part before it to the beginning of its content."""


class End(Struct, frozen=True):
    """The content of a part has come to its end."""


class Tail(Struct, frozen=True):
    """The end of the form."""

    raw: bytes


Event = Head | bytes | End | Tail
"""The `raw` of heads and tail and the contents between them, put together, are the form's bytes."""


def boundary(content_type: str) -> str:
    """What separates the parts, from the request's content-type. Raises UnsupportedMedia; InvalidRequest without a boundary."""
    media, options = parse_options_header(content_type)
    if media != "multipart/form-data":
        raise UnsupportedMedia(f"Send a form, `content-type: multipart/form-data`, not {media[:64]!a}.")
    found: str = options.get("boundary", "")
    if not _BOUNDARY.fullmatch(found) or content_type.lower().count("boundary=") != 1:
        raise InvalidRequest("The content-type names no boundary that separates the form's parts.", param="content-type")
    return found


class Form:
    """One form. Fed with its bytes in pieces of any size."""

    def __init__(self, boundary: str) -> None:
        self._delimiter = b"--" + boundary.encode("ascii")
        self._parser = PushMultipartParser(
            boundary,
            max_header_size=MAX_HEADER_BYTES,
            max_header_count=MAX_HEADERS,
            max_segment_count=MAX_PARTS,
            strict=True,
        )
        self._window = b""
        """What was fed and does not belong to an event yet."""
        self._n_parts = 0
        self._complete = False

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events that these bytes complete, to be read to the end before the next feed. Raises InvalidRequest for no form."""
        if self._complete:
            self._tail(data)
            yield Tail(data)
            return
        self._window += data
        at = 0
        try:
            for event in self._parser.parse(data):
                if isinstance(event, MultipartSegment):
                    end = self._window.index(b"\r\n\r\n", at) + 4
                    yield self._head(event, self._window[at:end])
                    at = end
                elif event is None:
                    yield End()
                    self._complete = self._window.startswith(b"\r\n" + self._delimiter + b"--", at)
                elif self._window.startswith(event, at):
                    yield bytes(event)
                    at += len(event)
                else:
                    _refuse("its parts cannot be told apart")
        except MultipartError as error:
            _refuse(_words(error))
        except ValueError:
            _refuse("a part has no end of its headers")
        self._window = self._window[at:]
        if self._complete:
            rest, self._window = self._window, b""
            self._tail(rest[len(self._delimiter) + 4 :])
            yield Tail(rest)

    def end(self) -> None:
        """No more bytes will come. Raises InvalidRequest when the form is not complete, or empty."""
        if not self._complete:
            _refuse("it ends before its last boundary" if self._n_parts else "it has no parts")

    def _head(self, segment: MultipartSegment, raw: bytes) -> Head:
        self._n_parts += 1
        if self._n_parts == 1 and not raw.startswith((self._delimiter, b"\r\n" + self._delimiter)):
            _refuse("text stands before its first part")
        values = [value for _, value in segment.headerlist]
        names = [name for name, _ in segment.headerlist]
        if len(set(names)) != len(names):
            _refuse("a part has the same header twice")
        headers = dict(segment.headerlist)
        options = _options(headers["Content-Disposition"])
        is_file = "filename" in options or "filename*" in options or (segment.content_type or "text/plain") not in _TEXT_MEDIA
        _check_encoding(headers, segment, is_file=is_file)
        name, filename = segment.name or "", segment.filename or ""
        return Head(name, is_file, (*values, *(unquote(value) for value in values), name, filename), raw)

    @staticmethod
    def _tail(data: bytes) -> None:
        if data.strip(b"\r\n \t"):
            _refuse("something follows its last boundary")


def _options(disposition: str) -> dict[str, str]:
    """What a Content-Disposition says, each word once and in one reading only."""
    options: dict[str, str] = {}
    at = len("form-data")
    while match := _OPTION.match(disposition, at):
        name = match[1].lower()
        if name in options:
            _refuse("a part's name or file name stands twice")
        options[name] = match[2]
        at = match.end()
    if at != len(disposition) or not options.keys() <= {"name", "filename", "filename*"} or "\\" in options.get("name", "\\"):
        _refuse("a part's Content-Disposition is not `form-data; name=...` with, for a file, `filename=...`")
    return options


def _check_encoding(headers: Mapping[str, str], segment: MultipartSegment, *, is_file: bool) -> None:
    if headers.get("Content-Transfer-Encoding", "binary").lower() not in _PLAIN_ENCODINGS:
        _refuse("a part has a content-transfer-encoding; send it as it is")
    if not is_file and (segment.charset or "utf-8").lower() not in _PLAIN_CHARSETS:
        _refuse("a text in it is not UTF-8")


_WORDS: Mapping[str, str] = {
    "Segment header failed to decode": "a part's header is not UTF-8",
    "Maximum segment header length exceeded": f"a part's header is longer than {MAX_HEADER_BYTES} bytes",
    "Maximum segment header count exceeded": f"a part has more than {MAX_HEADERS} headers",
    "Maximum segment count exceeded": f"it has more than {MAX_PARTS} parts",
    "Boundary not found in first chunk": "it does not begin with the boundary that the content-type names",
}


def _words(error: MultipartError) -> str:
    """The parser's reason in fixed words: nothing of what was sent."""
    return _WORDS.get(str(error.args[0]) if error.args else "", "a boundary or a part's header is malformed")


def _refuse(why: str) -> NoReturn:
    raise InvalidRequest(f"The form could not be read: {why}.", param="body", code="invalid_form")
