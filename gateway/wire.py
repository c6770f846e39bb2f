"""Request shapes of every endpoint: what routing, caching and logging need to know of a body, and the two edits made to it.

Everything that is not named here stays in the bytes and travels untouched. Knows nothing of HTTP, policy or upstreams.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from msgspec import Struct

from gateway.errors import InvalidRequest

MAX_DEPTH = 200
"""Levels of arrays and objects in a body. Below what Python's recursion bears, so that whoever walks the data may recurse."""


class Request(Struct, frozen=True, kw_only=True):
    """One request as the client sent it: its bytes, and a parsed copy of what we act on."""

    endpoint: str
    """A key of `ENDPOINTS`."""
    body: bytes
    data: dict[str, Any]
    """The whole body, decoded. Read only."""
    model: str
    """Empty where the endpoint lets the client leave it out, and it did."""
    deployment: str = ""
    """The model that the path named."""
    stream: bool = False
    include_usage: bool = False
    """Whether the client gets usage in a stream: it asked, or the endpoint always sends it."""
    choices: int = 1
    """How many choices a whole answer has: `n` for each prompt."""
    max_output: int | None = None
    needs: tuple[str, ...] = ()
    """Capabilities a model must have, the endpoint's own first."""
    stores: bool = False
    """Whether the upstream is to keep the answer, to be asked for by its id."""
    previous: str = ""
    """Id of the stored response that this one goes on from."""


def parse(body: bytes) -> dict[str, Any]:
    """The body as a JSON object.

    Raises InvalidRequest for anything that two readers could read differently (a key twice, NaN, another encoding than
    UTF-8), for nesting beyond the parser's depth, and for what is not JSON.
    """
    if not body or body.isspace():
        raise InvalidRequest("The request has no body; send a JSON object.")
    try:
        data = _decode(body.decode("utf-8"))
    except _Twice:
        raise InvalidRequest(f"A key stands twice in one object ({_second_key(body)}).", code="duplicate_key") from None
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The body is not valid UTF-8 (byte {error.start}).") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InvalidRequest(f"We could not parse the JSON body of your request: {error.msg} at {where}.") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:
        raise InvalidRequest("The JSON body holds a number with too many digits.") from None
    if not isinstance(data, dict):
        raise InvalidRequest(f"The body must be a JSON object, not {_kind(data)}.")
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH:
        _check_depth(data)
    return data


class _Twice(Exception):
    """An object has the same key twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _Twice
    return made


def _no_constant(name: str) -> Any:
    raise InvalidRequest(f"{name} is not JSON.")


_decode = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant).decode


def _second_key(body: bytes) -> str:
    """Where the second of two equal keys stands. Its name is the client's text, and text stays out of messages."""
    levels: list[set[str] | None] = []
    expect_key = False
    for token in _TOKEN.finditer(body):
        text = token.group()
        if text in (b"{", b"["):
            levels.append(set() if text == b"{" else None)
            expect_key = text == b"{"
        elif text in (b"}", b"]"):
            levels.pop()
        elif text == b",":
            expect_key = levels[-1] is not None
        elif expect_key and (keys := levels[-1]) is not None:
            key = json.loads(text.decode())
            if key in keys:
                line = body.count(b"\n", 0, token.start()) + 1
                column = len(body[body.rfind(b"\n", 0, token.start()) + 1 : token.start()].decode()) + 1
                return f"line {line}, column {column}"
            keys.add(key)
            expect_key = False
    raise AssertionError("the parser has seen a key twice")


def _too_deep() -> InvalidRequest:
    return InvalidRequest(f"The JSON body is nested deeper than {MAX_DEPTH} levels.", code="nested_too_deeply")


def _check_depth(data: dict[str, Any]) -> None:
    level: list[Any] = [data]
    for _ in range(MAX_DEPTH):
        inner = [value for one in level for value in (one.values() if isinstance(one, dict) else one)]
        level = [value for value in inner if isinstance(value, dict | list)]
        if not level:
            return
    raise _too_deep()


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array", dict: "an object"}
    return names[type(value)]


def read(endpoint: str, body: bytes, *, deployment: str = "") -> Request:
    """Parse a body and check the fields we act on; ranges are the upstream's business. Raises InvalidRequest with `param`.

    `deployment` is the model that the path names, if it names one; a body that names another is refused.
    """
    return of(endpoint, parse(body), body=body, deployment=deployment)


def of(endpoint: str, data: dict[str, Any], *, body: bytes = b"", deployment: str = "") -> Request:
    """As `read`, of a body that is parsed already, or that we write ourselves and never had as bytes."""
    shape = ENDPOINTS[endpoint]
    model = _field(data, "model", str) or deployment
    if not model and not shape.model_optional:
        raise InvalidRequest("You must provide a model parameter.", param="model", code="missing_required_parameter")
    if deployment and model != deployment:
        raise InvalidRequest("The path names another model than the body.", param="model", code="model_mismatch")
    if "modalities" in data:
        _check_words(data, "modalities")
    fields = shape.read(endpoint, data)
    own = fields.pop("needs", ())
    parts = _part_needs(data)
    needs = (shape.capability, *dict.fromkeys((*parts, *own))) if parts else (shape.capability, *own)
    fields.setdefault("include_usage", shape.include_usage)
    return Request(endpoint=endpoint, body=body, data=data, model=model, deployment=deployment, needs=needs, **fields)


def _missing(name: str) -> InvalidRequest:
    return InvalidRequest(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")


def _field(data: dict[str, Any], name: str, type_: type) -> Any:
    value = data.get(name)
    if value is None:
        return None
    if not isinstance(value, type_) or (type_ is int and isinstance(value, bool)):
        names = {str: "a string", int: "an integer", bool: "a boolean", dict: "an object", list: "an array"}
        raise _wrong(name, names[type_], value)
    return value


def _wrong(name: str, wanted: str, value: Any) -> InvalidRequest:
    message = f"Invalid type for '{name}': expected {wanted}, but got {_kind(value)} instead."
    return InvalidRequest(message, param=name, code="invalid_type")


def _texts(data: dict[str, Any], name: str) -> int:
    """How many texts a `prompt` or `input` holds: a string, tokens, or an array of either."""
    value = data.get(name)
    if value is None:
        raise _missing(name)
    if isinstance(value, str):
        return 1
    if not isinstance(value, list):
        raise _wrong(name, "a string or an array", value)
    for index, item in enumerate(value):
        if not isinstance(item, str | int | list):
            raise _wrong(f"{name}[{index}]", "a string, a token or an array of tokens", item)
    return 1 if not value or isinstance(value[0], int) else len(value)


def _check_words(data: dict[str, Any], name: str) -> None:
    for index, word in enumerate(_field(data, name, list) or ()):
        if not isinstance(word, str):
            raise _wrong(f"{name}[{index}]", "a string", word)


def _part_needs(data: dict[str, Any]) -> list[str]:
    """What the content parts of messages and input items ask for. Raises InvalidRequest for messages that are no objects."""
    kinds: set[str] = set()
    if "messages" in data:
        for index, message in enumerate(_field(data, "messages", list) or ()):
            if type(message) is not dict:
                raise _wrong(f"messages[{index}]", "an object", message)
            if type(content := message.get("content")) is list:
                _collect_kinds(content, f"messages[{index}].content", kinds)
    items = data.get("input")
    for index, item in enumerate(items if isinstance(items, list) else ()):
        if isinstance(item, dict):
            for name in ("content", "output"):
                _collect_kinds(item.get(name), f"input[{index}].{name}", kinds)
    return [need for kind, need in _PART_NEEDS.items() if kind in kinds] if kinds else []


def _collect_kinds(content: Any, place: str, kinds: set[str]) -> None:
    """The types of content parts, those inside a tool's result too."""
    for number, part in enumerate(content if isinstance(content, list) else ()):
        if not isinstance(part, dict):
            continue
        kind = part.get("type")
        if kind is not None and not isinstance(kind, str):
            raise _wrong(f"{place}[{number}].type", "a string", kind)
        kinds.add(kind or "")
        _collect_kinds(part.get("content"), f"{place}[{number}].content", kinds)


_PART_NEEDS = {
    "image_url": "images", "input_image": "images", "image": "images", "input_audio": "audio",
    "file": "files", "input_file": "files", "document": "files",
}  # fmt: skip


def _read_chat(_endpoint: str, data: dict[str, Any]) -> dict[str, Any]:
    _check_messages(data)
    fields = _read_choices(data)
    needs = ["tools"] if data.get("tools") or data.get("functions") else []
    if "response_format" in data and (_field(data, "response_format", dict) or {}).get("type", "text") != "text":
        needs.append("json")
    if data.get("logprobs"):
        needs.append("logprobs")
    if needs:
        fields["needs"] = (*needs, *fields.get("needs", ()))
    if data.get("store") is True:
        fields["stores"] = True
    return fields


def _read_completion(_endpoint: str, data: dict[str, Any]) -> dict[str, Any]:
    prompts = _texts(data, "prompt")
    fields = _read_choices(data)
    return {**fields, "choices": fields["choices"] * prompts}


def _read_choices(data: dict[str, Any]) -> dict[str, Any]:
    """What chat and completions have in common."""
    options = (_field(data, "stream_options", dict) or {}) if "stream_options" in data else {}
    count = (_field(data, "n", int) or 1) if "n" in data else 1
    fields = {
        "stream": "stream" in data and bool(_field(data, "stream", bool)),
        "include_usage": options.get("include_usage") is True,
        "choices": max(1, count),
        "max_output": _limit(data, "max_completion_tokens", "max_tokens"),
    }
    if count > 1:
        fields["needs"] = ("n",)
    return fields


def _read_embeddings(_endpoint: str, data: dict[str, Any]) -> dict[str, Any]:
    _texts(data, "input")
    return {}


def _read_responses(endpoint: str, data: dict[str, Any]) -> dict[str, Any]:
    if data.get("conversation") is not None:
        message = "Conversations are not kept apart by tenant here; send previous_response_id, or the items themselves."
        raise InvalidRequest(message, param="conversation", code="unsupported_parameter")
    items = data.get("input")
    if items is not None and not isinstance(items, str):
        for index, item in enumerate(_field(data, "input", list)):
            if not isinstance(item, dict):
                raise _wrong(f"input[{index}]", "an object", item)
    form = (_field(data, "text", dict) or {}).get("format")
    needs = ["tools"] if data.get("tools") else []
    if isinstance(form, dict) and form.get("type", "text") != "text":
        needs.append("json")
    return {
        "stream": bool(_field(data, "stream", bool)),
        "max_output": _limit(data, "max_output_tokens"),
        "needs": tuple(needs),
        "stores": endpoint == "responses" and _field(data, "store", bool) is not False,
        "previous": _field(data, "previous_response_id", str) or "",
    }


def _read_messages(_endpoint: str, data: dict[str, Any]) -> dict[str, Any]:
    _check_messages(data)
    return {
        "stream": bool(_field(data, "stream", bool)),
        "max_output": _limit(data, "max_tokens"),
        "needs": ("tools",) if data.get("tools") else (),
    }


def _read_moderation(_endpoint: str, data: dict[str, Any]) -> dict[str, Any]:
    if data.get("input") is None:
        raise _missing("input")
    return {}


def _read_image(_endpoint: str, data: dict[str, Any]) -> dict[str, Any]:
    if not _field(data, "prompt", str):
        raise _missing("prompt")
    return {"stream": bool(_field(data, "stream", bool))}


def _read_speech(_endpoint: str, data: dict[str, Any]) -> dict[str, Any]:
    if not _field(data, "input", str):
        raise _missing("input")
    return {"stream": _field(data, "stream_format", str) == "sse"}


def _check_messages(data: dict[str, Any]) -> None:
    messages = _field(data, "messages", list)
    if messages is None:
        raise _missing("messages")
    if not messages:
        raise InvalidRequest("'messages' must hold at least one message.", param="messages", code="empty_array")


def _limit(data: dict[str, Any], *names: str) -> int | None:
    for name in names:
        if name in data and (limit := _field(data, name, int)) is not None:
            found: int = limit
            return found
    return None


class Shape(Struct, frozen=True):
    """How the bodies of one endpoint are read."""

    capability: str
    """What a candidate must list to get them."""
    read: Callable[[str, dict[str, Any]], dict[str, Any]]
    """Endpoint and body → fields of its Request."""
    include_usage: bool = True
    """Whether its streams bring usage unasked; else we may ask."""
    model_optional: bool = False


ENDPOINTS: Mapping[str, Shape] = MappingProxyType(
    {
        "chat/completions": Shape("chat", _read_chat, include_usage=False),
        "completions": Shape("completions", _read_completion, include_usage=False),
        "embeddings": Shape("embeddings", _read_embeddings),
        "responses": Shape("responses", _read_responses),
        "responses/compact": Shape("responses", _read_responses),
        "responses/input_tokens": Shape("responses", _read_responses, model_optional=True),
        "messages": Shape("messages", _read_messages),
        "messages/count_tokens": Shape("messages", _read_messages),
        "moderations": Shape("moderations", _read_moderation, model_optional=True),
        "images/generations": Shape("images/generations", _read_image, model_optional=True),
        "images/edits": Shape("images/edits", _read_image, model_optional=True),
        "audio/speech": Shape("audio/speech", _read_speech),
    }
)
"""Everything that takes a JSON body and is judged by policy, by its path below `/v1/`."""

UPLOADS = ("files", "audio/transcriptions", "audio/translations", "images/edits", "images/variations")
"""Everything that takes a form (multipart/form-data) with a file in it and is judged by policy. `images/edits` takes both."""

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_TOKEN = re.compile(_STRING + rb'|[{}\[\]:,]|[^\s"{}\[\]:,]++', re.DOTALL)
_MODEL = re.compile(rb'"model"\s*+:\s*+(' + _STRING + rb")", re.DOTALL)


def with_model(request: Request, model: str) -> bytes:
    """The client's bytes with the value of the top-level `model` replaced; nothing else moves.

    Where the path named the model and the body does not, it is put in at the end; where nobody named one, nothing changes.
    The result is decoded and compared before it is returned: a mistake here would send what nobody judged.
    """
    named = request.data.get("model") is not None
    if (named and model == request.model) or not (named or request.deployment):
        return request.body
    wanted = {**request.data, "model": model}
    quoted = json.dumps(model).encode()
    if "model" not in request.data:
        end = request.body.rindex(b"}")
        return _checked(request.body[:end] + (b"," if request.data else b"") + b'"model":' + quoted + request.body[end:], wanted)
    matches = list(_MODEL.finditer(request.body))
    if len(matches) == 1:
        start, end = matches[0].span(1)
        edited = request.body[:start] + quoted + request.body[end:]
        if json.loads(edited) == wanted:
            return edited
    start, end = span(request.body, "model")
    return _checked(request.body[:start] + quoted + request.body[end:], wanted)


def with_usage(body: bytes, data: dict[str, Any] | None = None) -> bytes:
    """The bytes with `stream_options.include_usage` set to true, for an upstream whose client did not ask for usage.

    `data`: what the bytes say, where that is known; the name of the model may have been another.
    """
    data = json.loads(body) if data is None else data
    if data and "stream_options" not in data:
        # Whatever stands in the body, its last brace closes the object, and no key of it has this name.
        end = body.rindex(b"}")
        return body[:end] + b',"stream_options":{"include_usage":true}' + body[end:]
    data = json.loads(body)
    options = data.get("stream_options") or {}
    wanted = {**data, "stream_options": {**options, "include_usage": True}}
    start, end = span(body, "stream_options")
    value = body[start:end]
    if "include_usage" in options:
        first, last = span(value, "include_usage")
        value = value[:first] + b"true" + value[last:]
    else:
        value = b'{"include_usage":true' + (b"," + value[1:] if options else b"}")
    return _checked(body[:start] + value + body[end:], wanted)


def _checked(edited: bytes, wanted: dict[str, Any]) -> bytes:
    if json.loads(edited) != wanted:
        raise InvalidRequest("The body cannot be forwarded unchanged; write its keys without escapes.")
    return edited


def span(body: bytes, name: str) -> tuple[int, int]:
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
