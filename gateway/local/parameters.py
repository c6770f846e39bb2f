"""What a local model makes of OpenAI's request parameters: one table, and the reading of a body by it.

Knows the wire's names, ranges and error codes; nothing of models, workers or replies. A parameter that is not in the table
is refused by name, because one that we do not know might change the answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

from msgspec import Struct

from gateway.errors import InvalidRequest, did_you_mean
from gateway.local.frames import Generate

CHAT, COMPLETIONS, EMBEDDINGS = "chat/completions", "completions", "embeddings"
_TEXT = (CHAT, COMPLETIONS)

MOST_STOPS = 4
MOST_INPUTS = 2048
COMPLETION_MAX_TOKENS = 16
"""What OpenAI's completions endpoint takes when `max_tokens` is left out."""

_INT64 = 2**63


class Parameter(Struct, frozen=True):
    """One row of the table."""

    name: str
    endpoints: tuple[str, ...]
    does: Literal["implemented", "no effect", "refused"]
    words: str
    neutral: tuple[object, ...] = ()
    """Values of a refused parameter that are accepted because they ask for nothing; null always is."""


TABLE = (
    Parameter("model", (*_TEXT, EMBEDDINGS), "implemented", "chooses the model"),
    Parameter(
        "messages",
        (CHAT,),
        "implemented",
        "text contents only; text parts are joined by line ends; `developer` is read as `system`",
    ),
    Parameter("prompt", (COMPLETIONS,), "implemented", "one string, or a list of one; token ids are refused"),
    Parameter("input", (EMBEDDINGS,), "implemented", f"a string, or up to {MOST_INPUTS} of them; token ids are refused"),
    Parameter(
        "max_tokens",
        _TEXT,
        "implemented",
        f"at least 1; left out: what the context leaves room for (chat), {COMPLETION_MAX_TOKENS} (completions)",
    ),
    Parameter("max_completion_tokens", (CHAT,), "implemented", "the newer name of `max_tokens`"),
    Parameter("temperature", _TEXT, "implemented", "0 to 2; 0 takes the most likely token"),
    Parameter("top_p", _TEXT, "implemented", "0 to 1"),
    Parameter("stop", _TEXT, "implemented", f"a string, or up to {MOST_STOPS} of them"),
    Parameter("seed", _TEXT, "implemented", "a 64-bit integer; one generator a request"),
    Parameter("stream", _TEXT, "implemented", "server-sent events"),
    Parameter("stream_options", _TEXT, "implemented", "`include_usage`, `include_obfuscation` (off unless asked for)"),
    Parameter("encoding_format", (EMBEDDINGS,), "implemented", "`float` or `base64` (little-endian float32)"),
    Parameter("dimensions", (EMBEDDINGS,), "implemented", "must be the model's own number"),
    Parameter("user", (*_TEXT, EMBEDDINGS), "no effect", "the gateway's log may name it"),
    Parameter("safety_identifier", _TEXT, "no effect", "nothing leaves the machine"),
    Parameter("metadata", (CHAT,), "no effect", "belongs to stored completions"),
    Parameter("prompt_cache_key", (CHAT,), "no effect", "a hint for the provider's cache"),
    Parameter("prompt_cache_retention", (CHAT,), "no effect", "a hint for the provider's cache"),
    Parameter("prompt_cache_options", (CHAT,), "no effect", "a hint for the provider's cache"),
    Parameter("service_tier", (CHAT,), "no effect", "there is one tier"),
    Parameter("parallel_tool_calls", (CHAT,), "no effect", "there are no tools"),
    Parameter("prediction", (CHAT,), "no effect", "a hint that changes speed, not the answer"),
    Parameter("store", (CHAT,), "refused", "answers are not kept for retrieval", (False,)),
    Parameter("n", _TEXT, "refused", "one choice", (1,)),
    Parameter("best_of", (COMPLETIONS,), "refused", "one choice", (1,)),
    Parameter("tools", (CHAT,), "refused", "no tool calls", ([],)),
    Parameter("tool_choice", (CHAT,), "refused", "no tool calls", ("none", "auto")),
    Parameter("functions", (CHAT,), "refused", "no tool calls", ([],)),
    Parameter("function_call", (CHAT,), "refused", "no tool calls", ("none", "auto")),
    Parameter("response_format", (CHAT,), "refused", "plain text only", ({"type": "text"},)),
    Parameter("logprobs", _TEXT, "refused", "no log probabilities", (False,)),
    Parameter("top_logprobs", (CHAT,), "refused", "no log probabilities", (0,)),
    Parameter("presence_penalty", _TEXT, "refused", "no penalties", (0,)),
    Parameter("frequency_penalty", _TEXT, "refused", "no penalties", (0,)),
    Parameter("logit_bias", _TEXT, "refused", "no bias", ({},)),
    Parameter("modalities", (CHAT,), "refused", "text only", (["text"],)),
    Parameter("audio", (CHAT,), "refused", "text only"),
    Parameter("reasoning_effort", (CHAT,), "refused", "the model does not reason apart", ("none",)),
    Parameter("verbosity", (CHAT,), "refused", "say it in the prompt", ("medium",)),
    Parameter("web_search_options", (CHAT,), "refused", "no search"),
    Parameter("moderation", (CHAT,), "refused", "no moderation"),
    Parameter("echo", (COMPLETIONS,), "refused", "the prompt is not repeated", (False,)),
    Parameter("suffix", (COMPLETIONS,), "refused", "no insertion", ("",)),
)
"""Everything OpenAI's description names for the endpoints a local model serves."""

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_MESSAGE_KEYS = {"role", "content", "name", "tool_call_id"}
_MESSAGE_EMPTY = {"refusal", "tool_calls", "function_call", "audio", "annotations"}
"""Keys of an assistant's message that older answers carry; accepted when they hold nothing."""


class Asked(Struct, frozen=True):
    """A request for text, read and checked."""

    generate: Generate
    """With id 0; the caller gives it one."""
    include_usage: bool
    include_obfuscation: bool


class Texts(Struct, frozen=True):
    """A request for embeddings, read and checked."""

    texts: list[str]
    base64: bool
    dimensions: int | None


def parameters_table() -> str:
    """The table as Markdown, for the docs."""
    lines = ["| parameter | endpoints | | what it does here |", "| --- | --- | --- | --- |"]
    for row in TABLE:
        neutral = ", ".join(f"`{json.dumps(value)}`" for value in (None, *row.neutral)) if row.does == "refused" else ""
        words = f"{row.words}; accepted: {neutral}" if neutral else row.words
        lines.append(f"| `{row.name}` | {', '.join(row.endpoints)} | {row.does} | {words} |")
    return "\n".join(lines) + "\n"


def read_text(endpoint: str, data: dict[str, Any]) -> Asked:
    """What a chat or completions body asks for. Raises InvalidRequest with `param` for what cannot be done."""
    _check_known(endpoint, data)
    chat = endpoint == CHAT
    options = _stream_options(data)
    generate = Generate(
        id=0,
        messages=_messages(data) if chat else None,
        prompt=None if chat else _prompt(data),
        max_tokens=_max_tokens(data, default=None if chat else COMPLETION_MAX_TOKENS),
        temperature=_decimal(data, "temperature", most=2),
        top_p=_decimal(data, "top_p", most=1),
        stop=_stops(data),
        seed=_integer(data, "seed", least=-_INT64, most=_INT64 - 1),
    )
    return Asked(generate, options.get("include_usage") is True, options.get("include_obfuscation") is True)


def read_embeddings(data: dict[str, Any]) -> Texts:
    """What an embeddings body asks for. Raises InvalidRequest with `param`."""
    _check_known(EMBEDDINGS, data)
    form = data.get("encoding_format") or "float"
    if form not in ("float", "base64"):
        raise InvalidRequest("'encoding_format' must be 'float' or 'base64'.", param="encoding_format", code="invalid_value")
    given = data.get("input")
    texts = given if isinstance(given, list) else [given]
    if given is None:
        raise _missing("input")
    if not texts:
        raise InvalidRequest("'input' must hold at least one text.", param="input", code="empty_array")
    if len(texts) > MOST_INPUTS:
        said = f"'input' holds {len(texts)} texts; at most {MOST_INPUTS} go into one request."
        raise InvalidRequest(said, param="input", code="array_above_max_length")
    if isinstance(texts[0], int | list):
        raise InvalidRequest("Token ids in 'input' are not supported by the local model; send the text.", param="input")
    read = [_text(text, "input" if given is text else f"input[{index}]") for index, text in enumerate(texts)]
    if "" in read:
        raise InvalidRequest("'input' holds an empty text.", param="input", code="empty_string")
    return Texts(read, form == "base64", _integer(data, "dimensions", least=1))


def _check_known(endpoint: str, data: dict[str, Any]) -> None:
    """Refuse by name what the table does not know and what it refuses."""
    rows = {row.name: row for row in TABLE if endpoint in row.endpoints}
    for name, value in data.items():
        row = rows.get(name)
        if row is None:
            shown = name[:64].encode("ascii", "backslashreplace").decode()
            hint = did_you_mean(name, rows)
            raise InvalidRequest(
                f"Unknown parameter for a local model: '{shown}'{hint if 'mean' in hint else ''}.",
                param=shown,
                code="unknown_parameter",
            )
        if row.does == "refused" and value is not None and not any(_same(value, neutral) for neutral in row.neutral):
            raise InvalidRequest(
                f"'{name}' is not supported by the local model ({row.words}); leave it out or choose another model.",
                param=name,
                code="unsupported_parameter",
            )


def _same(value: object, neutral: object) -> bool:
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def _messages(data: dict[str, Any]) -> list[dict[str, object]]:
    messages = data.get("messages")
    if messages is None:
        raise _missing("messages")
    if not isinstance(messages, list):
        raise _wrong_type("messages", "an array", messages)
    if not messages:
        raise InvalidRequest("'messages' must hold at least one message.", param="messages", code="empty_array")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _message(message: Any, place: str) -> dict[str, object]:
    if not isinstance(message, dict):
        raise _wrong_type(place, "an object", message)
    for key in message.keys() - _MESSAGE_KEYS:
        if message[key] not in (None, []) or key not in _MESSAGE_EMPTY:
            shown = f"{place}.{key[:64].encode('ascii', 'backslashreplace').decode()}"
            raise InvalidRequest(f"'{shown}' is not supported by the local model.", param=shown, code="unsupported_parameter")
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        known = ", ".join(f"'{name}'" for name in _ROLES)
        raise InvalidRequest(
            f"Invalid value for '{place}.role'. Supported values are: {known}.", param=f"{place}.role", code="invalid_value"
        )
    read: dict[str, object] = {"role": _ROLES[role], "content": _content(message.get("content"), f"{place}.content")}
    for key in ("name", "tool_call_id"):
        if message.get(key) is not None:
            read[key] = _text(message[key], f"{place}.{key}")
    return read


def _content(content: Any, place: str) -> str:
    if not isinstance(content, list):
        return _text(content, place)
    return "\n".join(_parts(content, place))


def _parts(parts: list[Any], place: str) -> Iterator[str]:
    for index, part in enumerate(parts):
        if not isinstance(part, dict):
            raise _wrong_type(f"{place}[{index}]", "an object", part)
        if part.get("type") != "text":
            raise InvalidRequest(
                f"'{place}[{index}]' is no text part; the local model reads text only.",
                param=f"{place}[{index}]",
                code="unsupported_value",
            )
        yield _text(part.get("text"), f"{place}[{index}].text")


def _prompt(data: dict[str, Any]) -> str:
    prompt = data.get("prompt")
    if prompt is None:
        raise _missing("prompt")
    if isinstance(prompt, list):
        if len(prompt) != 1 or not isinstance(prompt[0], str):
            raise InvalidRequest(
                "The local model takes one text as 'prompt'; several prompts and token ids are not supported.",
                param="prompt",
                code="unsupported_value",
            )
        prompt = prompt[0]
    return _text(prompt, "prompt")


def _max_tokens(data: dict[str, Any], *, default: int | None) -> int | None:
    old, new = (_integer(data, name, least=1) for name in ("max_tokens", "max_completion_tokens"))
    if old is not None and new is not None and old != new:
        raise InvalidRequest("'max_tokens' and 'max_completion_tokens' differ; send one of them.", param="max_tokens")
    asked = new if old is None else old
    return default if asked is None else min(asked, _INT64 - 1)


def _stops(data: dict[str, Any]) -> tuple[str, ...]:
    stop = data.get("stop")
    if stop is None:
        return ()
    stops = stop if isinstance(stop, list) else [stop]
    if len(stops) > MOST_STOPS:
        said = f"'stop' holds {len(stops)} strings; at most {MOST_STOPS} are allowed."
        raise InvalidRequest(said, param="stop", code="array_above_max_length")
    read = tuple(_text(text, "stop") for text in stops)
    if "" in read:
        raise InvalidRequest("'stop' holds an empty string.", param="stop", code="empty_string")
    return read


def _stream_options(data: dict[str, Any]) -> dict[str, Any]:
    stream, options = data.get("stream"), data.get("stream_options")
    if not isinstance(stream, bool | None):
        raise _wrong_type("stream", "a boolean", stream)
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise _wrong_type("stream_options", "an object", options)
    if not stream:
        raise InvalidRequest("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    for name, value in options.items():
        place = f"stream_options.{name[:64].encode('ascii', 'backslashreplace').decode()}"
        if name not in ("include_usage", "include_obfuscation"):
            raise InvalidRequest(f"Unknown parameter for a local model: '{place}'.", param=place, code="unknown_parameter")
        if not isinstance(value, bool | None):
            raise _wrong_type(place, "a boolean", value)
    return options


def _decimal(data: dict[str, Any], name: str, *, most: float) -> float:
    """A number from 0 to `most`; OpenAI's default for both that we have is 1."""
    value = data.get(name)
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type(name, "a decimal", value)
    if not value >= 0:  # so that NaN is below, too
        raise _out_of_range(name, "decimal_below_min_value", "at least 0")
    if value > most:
        raise _out_of_range(name, "decimal_above_max_value", f"at most {most}")
    return float(value)


def _integer(data: dict[str, Any], name: str, *, least: int, most: int | None = None) -> int | None:
    value = data.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong_type(name, "an integer", value)
    if value < least:
        raise _out_of_range(name, "integer_below_min_value", f"at least {least}")
    if most is not None and value > most:
        raise _out_of_range(name, "integer_above_max_value", f"at most {most}")
    return value


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise _wrong_type(place, "a string", value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(
            f"'{place}' holds half a surrogate pair, which is no text.", param=place, code="invalid_value"
        ) from None
    return value


def _missing(name: str) -> InvalidRequest:
    return InvalidRequest(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")


def _out_of_range(name: str, code: str, wanted: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid '{name}': expected a value of {wanted}.", param=name, code=code)


def _wrong_type(place: str, wanted: str, value: object) -> InvalidRequest:
    kinds = {bool: "a boolean", int: "an integer", float: "a decimal", str: "a string", list: "an array", dict: "an object"}
    said = f"Invalid type for '{place}': expected {wanted}, but got {kinds.get(type(value), 'null')} instead."
    return InvalidRequest(said, param=place, code="invalid_type")
