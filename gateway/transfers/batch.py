"""The lines of a batch file: each a request of its own, read, judged, and given the upstream's name of its model.

Knows no policy and no upstream; how a request is judged is passed in. Messages name a line's number, never its text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from msgspec.structs import replace

from gateway import wire
from gateway.config import CLASSES
from gateway.errors import ApiError, InvalidRequest
from gateway.facts import Facts, because

MAX_LINES = 50_000
"""As OpenAI's Batch API has it."""

_PREFIX = "/v1/"


class Batch:
    """What the lines of one file ask for, taken together. Long for a large file: then off the loop, block by block."""

    def __init__(self, judge: Callable[[wire.Request], Facts], *, longest_line: int) -> None:
        """`judge` scans one request; `longest_line` is in bytes."""
        self.facts: dict[str, Facts] = {}
        """By model: the most that any of its lines asks for and holds, so that whatever may serve this may serve each."""
        self.line_of: dict[str, int] = {}
        """By model: the line that made its facts' class what it is."""
        self._judge = judge
        self._longest_line = longest_line
        self._n_lines = 0
        self._ids: set[int] = set()

    def read(self, lines: Iterable[bytes]) -> None:
        """The next lines. Raises InvalidRequest naming the first that is not a request which can be served here."""
        for raw in lines:
            self._n_lines += 1
            if not raw.strip():
                continue
            try:
                self._line(raw)
            except ApiError as error:
                raise refused(self._n_lines, error.message) from None

    def end(self) -> None:
        """There are no more lines. Raises InvalidRequest when there was no request among them."""
        if not self.facts:
            raise InvalidRequest("The batch file has no lines.", param="file", code="invalid_batch_file")

    def _line(self, raw: bytes) -> None:
        if len(raw) > self._longest_line:
            raise InvalidRequest(f"it is longer than {self._longest_line} bytes (server.max_body_bytes)")
        if self._n_lines > MAX_LINES:
            raise InvalidRequest(f"a file may have {MAX_LINES} lines")
        line, request, _ = _parse(raw)
        known = hash(line["custom_id"])
        if known in self._ids:
            raise InvalidRequest("its custom_id stands in an earlier line already")
        self._ids.add(known)
        rest = {name: value for name, value in line.items() if name != "body"}
        facts = self._judge(replace(request, data={**request.data, "line": rest}))
        _check_kept(request, facts)
        earlier = self.facts.get(request.model)
        if earlier is None or rank(facts) > rank(earlier):
            self.line_of[request.model] = self._n_lines
        self.facts[request.model] = _more(earlier, facts) if earlier else facts


def edited(lines: Iterable[bytes], models: Mapping[str, str]) -> bytes:
    """The same lines, `model` replaced by the upstream's own name of it; nothing else moves. The lines were read before."""
    return b"".join([_edited(raw, models) for raw in lines])


def refused(number: int, why: str) -> InvalidRequest:
    """The refusal of one line."""
    return InvalidRequest(f"Line {number} of the batch file: {why}", param="file", code="invalid_batch_file")


def rank(facts: Facts) -> int:
    """How sensitive, from 0."""
    return CLASSES.index(facts.class_)


def _edited(raw: bytes, models: Mapping[str, str]) -> bytes:
    if not raw.strip():
        return raw
    _, request, (start, end) = _parse(raw)
    return raw[:start] + wire.with_model(request, models[request.model]) + raw[end:]


def _parse(raw: bytes) -> tuple[dict[str, Any], wire.Request, tuple[int, int]]:
    """A line, the request in it, and where the request's body stands. Raises InvalidRequest."""
    line = wire.parse(raw)
    if not isinstance(line.get("custom_id"), str) or not line["custom_id"]:
        raise InvalidRequest("`custom_id` must be a string that is not empty")
    if line.get("method") != "POST":
        raise InvalidRequest("`method` must be POST")
    url = line.get("url")
    endpoint = url.removeprefix(_PREFIX) if isinstance(url, str) and url.startswith(_PREFIX) else ""
    if endpoint not in wire.ENDPOINTS:
        raise InvalidRequest("`url` must be the path of an endpoint that is served here, such as /v1/chat/completions")
    if not isinstance(line.get("body"), dict):
        raise InvalidRequest("`body` must be an object")
    start, end = wire.span(raw, "body")
    request = wire.read(endpoint, raw[start:end])
    if not request.model:
        raise InvalidRequest("its body must name a `model`")
    if request.previous:
        raise InvalidRequest("`previous_response_id` cannot be used in a batch; send the items themselves")
    return line, request, (start, end)


def _check_kept(request: wire.Request, facts: Facts) -> None:
    if request.stores and rank(facts) > CLASSES.index("internal"):
        raise InvalidRequest(
            f"it is of class {facts.class_}{because(facts)} and must not be stored by an upstream; send `store: false` in it"
        )


def _more(one: Facts, other: Facts) -> Facts:
    """Facts at least as demanding as both."""
    outputs = [facts.max_output for facts in (one, other) if facts.max_output is not None]
    return replace(
        one,
        class_=max(one.class_, other.class_, key=CLASSES.index),
        found=tuple(sorted({*one.found, *other.found})),
        unsearched=one.unsearched or other.unsearched,
        needs=tuple(dict.fromkeys((*one.needs, *other.needs))),
        tools=one.tools or other.tools,
        images=one.images or other.images,
        json_mode=one.json_mode or other.json_mode,
        prompt_tokens=max(one.prompt_tokens, other.prompt_tokens),
        prompt_tokens_low=max(one.prompt_tokens_low, other.prompt_tokens_low),
        prompt_tokens_high=max(one.prompt_tokens_high, other.prompt_tokens_high),
        max_output=max(outputs) if outputs else None,
    )
