"""OpenAI's request shapes: what routing, caching and logging need to know of a body, and the two edits made to it.

Everything that is not named here stays in the bytes and travels untouched. Knows nothing of HTTP, policy or upstreams.
"""

from __future__ import annotations

import json
import re
from typing import Any

from msgspec import Struct

from gateway.errors import InvalidRequest

ENDPOINTS = ("chat/completions", "completions", "embeddings")


class Request(Struct, frozen=True, kw_only=True):
    """One request as the client sent it: its bytes, and a parsed copy of what we act on."""

    endpoint: str
    body: bytes
    data: dict[str, Any]
    """The whole body, decoded. Read only."""
    model: str
    stream: bool = False
    include_usage: bool = False
    """Whether the client asked for a usage chunk."""
    max_output: int | None = None
    needs: tuple[str, ...] = ()
    """Capabilities a model must have, the endpoint's own first."""


def parse(body: bytes) -> dict[str, Any]:
    """The body as a JSON object.

    Raises InvalidRequest for anything that two readers could read differently (a key twice, NaN, another encoding than
    UTF-8), for nesting beyond the parser's depth, and for what is not JSON.
    """
    if not body.strip():
        raise InvalidRequest("The request has no body; send a JSON object.")
    try:
        data = json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The body is not valid UTF-8 (byte {error.start}).") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InvalidRequest(f"We could not parse the JSON body of your request: {error.msg} at {where}.") from None
    except RecursionError:
        raise InvalidRequest("The JSON body is nested too deeply.", code="nested_too_deeply") from None
    except ValueError:
        raise InvalidRequest("The JSON body holds a number with too many digits.") from None
    if not isinstance(data, dict):
        raise InvalidRequest(f"The body must be a JSON object, not {_kind(data)}.")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise InvalidRequest(f"The key {json.dumps(name[:64])} stands twice in one object.", code="duplicate_key")
            seen.add(name)
    return made


def _no_constant(name: str) -> Any:
    raise InvalidRequest(f"{name} is not JSON.")


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array", dict: "an object"}
    return names[type(value)]


def read(endpoint: str, body: bytes) -> Request:
    """Parse a body and check the fields we act on; ranges are the upstream's business. Raises InvalidRequest with `param`."""
    data = parse(body)
    model = _field(data, "model", str)
    if not model:
        raise InvalidRequest("You must provide a model parameter.", param="model", code="missing_required_parameter")
    needs = [{"chat/completions": "chat"}.get(endpoint, endpoint)]
    if endpoint == "embeddings":
        if data.get("input") is None:
            raise _missing("input")
        return Request(endpoint=endpoint, body=body, data=data, model=model, needs=tuple(needs))
    if endpoint == "chat/completions":
        needs += _chat_needs(data)
    elif data.get("prompt") is None:
        raise _missing("prompt")
    options = _field(data, "stream_options", dict) or {}
    if (_field(data, "n", int) or 1) > 1:
        needs.append("n")
    limits = [limit for name in ("max_completion_tokens", "max_tokens") if (limit := _field(data, name, int)) is not None]
    return Request(
        endpoint=endpoint,
        body=body,
        data=data,
        model=model,
        stream=bool(_field(data, "stream", bool)),
        include_usage=options.get("include_usage") is True,
        max_output=limits[0] if limits else None,
        needs=tuple(needs),
    )


def _missing(name: str) -> InvalidRequest:
    return InvalidRequest(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")


def _field(data: dict[str, Any], name: str, type_: type) -> Any:
    value = data.get(name)
    if value is None:
        return None
    if not isinstance(value, type_) or (type_ is int and isinstance(value, bool)):
        wanted = {str: "a string", int: "an integer", bool: "a boolean", dict: "an object", list: "an array"}[type_]
        message = f"Invalid type for '{name}': expected {wanted}, but got {_kind(value)} instead."
        raise InvalidRequest(message, param=name, code="invalid_type")
    return value


def _chat_needs(data: dict[str, Any]) -> list[str]:
    """Capabilities the messages and options ask for. Raises InvalidRequest when `messages` is not a list of objects."""
    messages = _field(data, "messages", list)
    if messages is None:
        raise _missing("messages")
    if not messages:
        raise InvalidRequest("'messages' must hold at least one message.", param="messages", code="empty_array")
    parts: set[str] = set()
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            said = f"Invalid type for 'messages[{index}]': expected an object, but got {_kind(message)} instead."
            raise InvalidRequest(said, param=f"messages[{index}]", code="invalid_type")
        content = message.get("content")
        if isinstance(content, list):
            parts |= {str(part.get("type")) for part in content if isinstance(part, dict)}
    needs = [need for kind, need in _PART_NEEDS.items() if kind in parts]
    if data.get("tools") or data.get("functions"):
        needs.append("tools")
    form = _field(data, "response_format", dict) or {}
    if form.get("type", "text") != "text":
        needs.append("json")
    if data.get("logprobs"):
        needs.append("logprobs")
    return needs


_PART_NEEDS = {"image_url": "images", "input_audio": "audio", "file": "files"}

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\]:,]|[^\s"{}\[\]:,]+', re.DOTALL)
_MODEL = re.compile(rb'"model"\s*:\s*("(?:[^"\\]|\\.)*")')


def with_model(request: Request, model: str) -> bytes:
    """The client's bytes with the value of the top-level `model` replaced; nothing else moves.

    The result is decoded and compared before it is returned: a mistake here would send what nobody judged.
    """
    if model == request.model:
        return request.body
    wanted = {**request.data, "model": model}
    quoted = json.dumps(model).encode()
    matches = list(_MODEL.finditer(request.body))
    if len(matches) == 1:
        start, end = matches[0].span(1)
        edited = request.body[:start] + quoted + request.body[end:]
        if json.loads(edited) == wanted:
            return edited
    start, end = _span(request.body, "model")
    return _checked(request.body[:start] + quoted + request.body[end:], wanted)


def with_usage(body: bytes) -> bytes:
    """The bytes with `stream_options.include_usage` set to true, for an upstream whose client did not ask for usage."""
    data = json.loads(body)
    options = data.get("stream_options")
    wanted = {**data, "stream_options": {**(options or {}), "include_usage": True}}
    quoted = json.dumps(wanted["stream_options"], ensure_ascii=True).encode()
    if "stream_options" in data:
        start, end = _span(body, "stream_options")
        return _checked(body[:start] + quoted + body[end:], wanted)
    end = body.rindex(b"}")
    return _checked(body[:end] + b',"stream_options":' + quoted + body[end:], wanted)


def _checked(edited: bytes, wanted: dict[str, Any]) -> bytes:
    if json.loads(edited) != wanted:
        raise InvalidRequest("The body cannot be forwarded unchanged; write its keys without escapes.")
    return edited


def _span(body: bytes, name: str) -> tuple[int, int]:
    """Start and end of the value of a top-level key, in bytes. The body is a valid JSON object that has it."""
    depth, key, start, last_end = 0, None, 0, 0
    expect_key = False
    for token in _TOKEN.finditer(body):
        text = token.group()
        if depth == 1 and key is not None and start and text in (b",", b"}"):
            return start, last_end
        if text in (b"{", b"["):
            depth += 1
            expect_key = depth == 1
        elif text in (b"}", b"]"):
            depth -= 1
        elif depth == 1 and text == b",":
            expect_key = True
        elif depth == 1 and expect_key and text[:1] == b'"':
            key = name if json.loads(text) == name else None
            expect_key, start = False, 0
        if depth == 1 and text == b":" and key is not None and not start:
            start = _TOKEN.search(body, token.end()).start()  # type: ignore[union-attr]  # valid JSON: a value follows
        last_end = token.end()
    raise InvalidRequest(f"The key '{name}' is missing.", param=name)
