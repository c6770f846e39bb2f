"""A Responses request as a chat body, and its input as items that can be stored. Pure; knows nothing of stores or upstreams.

Source: OpenAI's API description (CreateResponse, InputItem, CreateChatCompletionRequest). What chat cannot do is refused by
name; what has no effect on the answer through chat is listed by `ignored`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct

from gateway.errors import InvalidRequest, did_you_mean

Item = dict[str, Any]


class Parameter(Struct, frozen=True):
    """One row of the table of request parameters."""

    name: str
    does: Literal["translated", "passed on", "answered here", "refused"]
    words: str
    type: Literal["string", "number", "integer", "boolean", "object", "array", "any"] = "any"
    neutral: tuple[object, ...] = ()
    """Values of a refused parameter that are accepted because they ask for nothing; null always is."""


TABLE = (
    Parameter("model", "passed on", "chooses the model", "string"),
    Parameter("input", "translated", "becomes `messages`"),
    Parameter("instructions", "translated", "becomes the first message, role `system`", "string"),
    Parameter("previous_response_id", "answered here", "earlier turns come from the store", "string"),
    Parameter("tools", "translated", "function tools only", "array"),
    Parameter("tool_choice", "translated", "`none`, `auto`, `required`, a function, or `allowed_tools` of functions"),
    Parameter("parallel_tool_calls", "translated", "left out when there are no tools", "boolean"),
    Parameter("text", "translated", "`format` becomes `response_format`, `verbosity` stays", "object"),
    Parameter("reasoning", "translated", "`effort` becomes `reasoning_effort`; `summary` has no effect", "object"),
    Parameter("max_output_tokens", "translated", "becomes `max_completion_tokens`", "integer"),
    Parameter("temperature", "passed on", "", "number"),
    Parameter("top_p", "passed on", "", "number"),
    Parameter("presence_penalty", "passed on", "", "number"),
    Parameter("frequency_penalty", "passed on", "", "number"),
    Parameter("top_logprobs", "translated", "above 0 also sets `logprobs`", "integer"),
    Parameter("include", "translated", "see below", "array"),
    Parameter("stream", "passed on", "with `stream_options.include_usage`", "boolean"),
    Parameter("stream_options", "answered here", "`include_obfuscation` (off unless asked for)", "object"),
    Parameter("store", "answered here", "the store is the gateway's own", "boolean"),
    Parameter("metadata", "answered here", "kept in the response", "object"),
    Parameter("client_metadata", "answered here", "has no effect; the Codex CLI always sends it", "object"),
    Parameter("user", "passed on", "", "string"),
    Parameter("safety_identifier", "passed on", "", "string"),
    Parameter("prompt_cache_key", "passed on", "", "string"),
    Parameter("prompt_cache_retention", "passed on", "", "string"),
    Parameter("prompt_cache_options", "passed on", "", "object"),
    Parameter("service_tier", "passed on", "", "string"),
    Parameter("background", "refused", "answers are made while the client waits", neutral=(False,)),
    Parameter("background_options", "refused", "as `background`"),
    Parameter("conversation", "refused", "use `previous_response_id`"),
    Parameter("prompt", "refused", "prompt templates are the provider's; send the text as `input`"),
    Parameter("truncation", "refused", "nothing is cut from the input", neutral=("disabled",)),
    Parameter("max_tool_calls", "refused", "there are no built-in tools"),
    Parameter("context_management", "refused", "nothing is compacted", neutral=([],)),
    Parameter("moderation", "refused", "the answer is not moderated"),
    Parameter("image", "refused", "no images are made"),
    Parameter("access_programs", "refused", "they are the provider's"),
)
"""Every parameter of OpenAI's description and of its SDK, two penalties of the Open Responses description, and Codex's own."""

_ROWS = {row.name: row for row in TABLE}

LOGPROBS = "message.output_text.logprobs"
_INCLUDES = {
    LOGPROBS: "translated",
    "message.input_image.image_url": "always there",
    "reasoning.encrypted_content": "ignored",
}
"""Values of `include` that are accepted. Clients ask for encrypted reasoning by habit; chat has none to give."""

HOSTED_TOOLS = frozenset({
    "file_search", "web_search", "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11", "computer",
    "computer_use_preview", "mcp", "code_interpreter", "image_generation", "local_shell", "shell", "custom", "namespace",
    "tool_search", "apply_patch", "programmatic_tool_calling",
})  # fmt: skip
"""Types of tools that are known, and not functions; named when refused."""

_FOREIGN_ITEMS = frozenset({
    "file_search_call", "computer_call", "computer_call_output", "web_search_call", "tool_search_call", "tool_search_output",
    "additional_tools", "compaction", "compaction_trigger", "image_generation_call", "code_interpreter_call",
    "local_shell_call", "local_shell_call_output", "shell_call", "shell_call_output", "apply_patch_call",
    "apply_patch_call_output", "mcp_list_tools", "mcp_approval_request", "mcp_approval_response", "mcp_call",
    "custom_tool_call", "custom_tool_call_output", "program", "program_output",
})  # fmt: skip
"""Types of items that chat has no word for; named when refused."""

_KEYS = {
    "message": ("type", "role", "content", "id", "status", "phase"),
    "function_call": ("type", "id", "call_id", "name", "arguments", "status", "created_by"),
    "function_call_output": ("type", "id", "call_id", "name", "output", "status", "created_by"),
    "input_text": ("type", "text", "prompt_cache_breakpoint"),
    "output_text": ("type", "text", "annotations", "logprobs"),
    "refusal": ("type", "refusal"),
    "input_image": ("type", "image_url", "file_id", "detail", "prompt_cache_breakpoint"),
    "input_file": ("type", "file_id", "file_data", "file_url", "filename", "detail", "prompt_cache_breakpoint"),
    "function": ("type", "name", "description", "parameters", "strict"),
}
"""What an item, a part or a tool may hold, by its type. Another key is refused by name unless it is null."""

_PARTS_OF = {"user": ("input_text", "input_image", "input_file"), "assistant": ("output_text", "input_text", "refusal")}
"""Types of parts by role; the other roles take `input_text` only."""

_PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
}


def chat_body(data: dict[str, Any], *, earlier: Sequence[Item], referenced: Sequence[Item] = ()) -> dict[str, Any]:
    """The chat/completions body that asks the same as a Responses request.

    `data` is the parsed request; `earlier` the items of the turns before it, oldest first (`Store.chain`);
    `referenced` the stored items that `references` named. The body holds all text that is to be judged and sent, and asks
    for usage when it streams. Raises InvalidRequest with `param` for what chat cannot do and for what is malformed.
    """
    _check_known(data)
    messages = _messages(data, [*earlier, *items_of(data, referenced)], n_earlier=len(earlier))
    body: dict[str, Any] = {"model": data["model"], "messages": messages}
    body |= {row.name: data[row.name] for row in TABLE if row.does == "passed on" and data.get(row.name) is not None}
    body |= _tools(data) | _text(data) | _reasoning(data) | _logprobs(data)
    if data.get("max_output_tokens") is not None:
        body["max_completion_tokens"] = data["max_output_tokens"]
    if body.get("stream"):
        body["stream_options"] = {"include_usage": True}
    return body


def references(data: dict[str, Any]) -> list[str]:
    """Ids of the stored items that the input names instead of repeating them; fetch them with `Store.items`."""
    given = data.get("input")
    listed = given if isinstance(given, list) else []
    return [item["id"] for item in listed if isinstance(item, dict) and _kind(item) == "item_reference" and _is_id(item)]


def items_of(data: dict[str, Any], referenced: Sequence[Item] = ()) -> list[Item]:
    """The input as a list of items, references replaced. Raises InvalidRequest for what is neither text nor items."""
    given = data.get("input")
    if given is None:
        return []
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    if not isinstance(given, list):
        raise _wrong("input", "a string or an array", given)
    known = {item.get("id"): item for item in referenced}
    found = []
    for index, item in enumerate(given):
        place = f"input[{index}]"
        if not isinstance(item, dict):
            raise _wrong(place, "an object", item)
        if _kind(item) == "item_reference":
            if not _is_id(item):
                raise _wrong(f"{place}.id", "a string", item.get("id"))
            if item["id"] not in known:
                said = f"'{place}' names an item that is not stored: it has expired, was deleted or was never kept."
                raise InvalidRequest(said, param=f"{place}.id")
            item = known[item["id"]]  # noqa: PLW2901 - the item itself stands for its reference
        found.append(item)
    return found


def input_items(data: dict[str, Any], response_id: str, referenced: Sequence[Item] = ()) -> list[Item]:
    """The input as `GET /responses/{id}/input_items` shows it and as it is stored: every item with type, id and status.

    Ids that the client gave stay; the others follow from the response's id and the item's place. Call it after `chat_body`,
    which checks the items.
    """
    return [
        _resource(item, item_id(response_id, f"input {index}", item)) for index, item in enumerate(items_of(data, referenced))
    ]


def ignored(data: dict[str, Any], *, earlier: Sequence[Item] = ()) -> list[str]:
    """Places in a request that have no effect on the answer through chat, each with the reason; holds no text of it."""
    found = []
    given = data.get("input")
    mine = given if isinstance(given, list) else []
    places = [(item, "an earlier turn") for item in earlier] + [(item, f"input[{n}]") for n, item in enumerate(mine)]
    for item, place in places:
        if isinstance(item, dict) and _kind(item) == "reasoning":
            found.append(f"{place}: chat takes no reasoning items back")
        if isinstance(item, dict) and item.get("phase") is not None:
            found.append(f"{place}.phase: chat messages have no phase")
    reasoning = data.get("reasoning")
    if isinstance(reasoning, dict) and any(reasoning.get(name) for name in ("summary", "generate_summary")):
        found.append("reasoning.summary: chat gives no summaries")
    if "reasoning.encrypted_content" in (data.get("include") or ()):
        found.append("include: chat gives no encrypted reasoning")
    return list(dict.fromkeys(found))


def item_id(response_id: str, place: str, item: Mapping[str, Any]) -> str:
    """The item's own id, or one that follows from its response and its place in it, so that it is the same each time."""
    if _is_id(item):
        return str(item["id"])
    prefix = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs", "compaction": "cmp"}[
        _kind(item)
    ]
    return f"{prefix}_{hashlib.sha256(f'{response_id} {place}'.encode()).hexdigest()[:48]}"


def parameters_table() -> str:
    """The table as Markdown, for the docs."""
    lines = ["| parameter | here | |", "| --- | --- | --- |"]
    for row in TABLE:
        accepted = ", ".join(["`null`", *(f"`{str(value).lower()}`" for value in row.neutral)])
        words = f"{row.words}; accepted: {accepted}" if row.does == "refused" else row.words
        lines.append(f"| `{row.name}` | {row.does} | {words} |")
    return "\n".join(lines) + "\n"


def _check_known(data: dict[str, Any]) -> None:
    for name, value in data.items():
        row = _ROWS.get(name)
        if row is None:
            shown = name[:64].encode("ascii", "backslashreplace").decode()
            hint = did_you_mean(name, _ROWS)
            said = f"Unknown parameter: '{shown}'{hint if 'mean' in hint else ''}."
            raise InvalidRequest(said, param=shown, code="unknown_parameter")
        if value is None:
            continue
        if row.does == "refused" and not any(value == one and type(value) is type(one) for one in row.neutral):
            raise _unsupported(
                name, f"'{name}' is not supported for this model ({row.words}); leave it out or choose another model."
            )
        if row.type != "any":
            _typed(value, row.type, name)
    if not data.get("model"):
        raise _missing("model")
    if data.get("stream_options") is not None and not data.get("stream"):
        raise InvalidRequest("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    for name, value in (data.get("stream_options") or {}).items():
        if name != "include_obfuscation":
            raise InvalidRequest("'stream_options' may hold 'include_obfuscation' only.", param="stream_options")
        if value is not None:
            _typed(value, "boolean", f"stream_options.{name}")
    for value in (data.get("metadata") or {}).values():
        _typed(value, "string", "metadata")


def _messages(data: dict[str, Any], items: list[Item], *, n_earlier: int) -> list[dict[str, Any]]:
    """Chat messages of all items. Calls and the text of one turn of the model become one assistant message."""
    messages: list[dict[str, Any]] = []
    unanswered: dict[str, str] = {}
    for index, item in enumerate(items):
        place = f"input[{index - n_earlier}]" if index >= n_earlier else "previous_response_id"
        kind = _kind(item)
        _only(item, place, _KEYS.get(kind, tuple(item)))
        if kind == "message":
            _add_message(messages, item, place)
        elif kind == "function_call":
            call = _call(item, place)
            unanswered[call["id"]] = place
            _add_call(messages, call)
        elif kind == "function_call_output":
            answer = _tool_message(item, place)
            if unanswered.pop(answer["tool_call_id"], None) is None:
                said = f"'{place}' answers a function call that does not stand before it."
                raise InvalidRequest(said, param=f"{place}.call_id")
            messages.append(answer)
        elif kind != "reasoning":
            raise _foreign_item(kind, place)
    for place in unanswered.values():
        said = f"The function call '{place}' has no function_call_output; send one for each call."
        raise InvalidRequest(said, param="input")
    if not messages:
        raise _missing("input")
    instructions = data.get("instructions")
    return [{"role": "system", "content": instructions}, *messages] if instructions else messages


def _add_message(messages: list[dict[str, Any]], item: Item, place: str) -> None:
    role = item.get("role")
    if role not in ("user", "assistant", "system", "developer"):
        said = f"Invalid value for '{place}.role'. Supported values are: 'user', 'assistant', 'system', 'developer'."
        raise InvalidRequest(said, param=f"{place}.role", code="invalid_value")
    parts = _parts(item.get("content"), f"{place}.content", role)
    if role != "assistant":
        messages.append({"role": role, "content": _content(parts)})
        return
    message: dict[str, Any] = {"role": "assistant", "content": "".join(part.get("text", "") for part in parts)}
    if refusal := "".join(part.get("refusal", "") for part in parts):
        message |= {"content": message["content"] or None, "refusal": refusal}
    last = messages[-1] if messages else {}
    if last.get("tool_calls") and last["content"] is None:
        last |= message
    else:
        messages.append(message)


def _add_call(messages: list[dict[str, Any]], call: dict[str, Any]) -> None:
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    messages[-1].setdefault("tool_calls", []).append(call)


def _call(item: Item, place: str) -> dict[str, Any]:
    texts = {name: _typed(item.get(name), "string", f"{place}.{name}") for name in ("call_id", "name", "arguments")}
    return {
        "id": texts["call_id"],
        "type": "function",
        "function": {"name": texts["name"], "arguments": texts["arguments"]},
    }


def _tool_message(item: Item, place: str) -> dict[str, Any]:
    call_id = _typed(item.get("call_id"), "string", f"{place}.call_id")
    return {"role": "tool", "tool_call_id": call_id, "content": _content(_parts(item.get("output"), f"{place}.output", "tool"))}


def _content(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """One text stays a plain string, which every chat upstream reads."""
    return parts[0]["text"] if len(parts) == 1 and parts[0].keys() == {"type", "text"} else parts


def _parts(content: Any, place: str, role: str) -> list[dict[str, Any]]:
    """Chat's content parts of a Responses content."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise _wrong(place, "a string or an array", content)
    if not content:
        raise InvalidRequest(f"'{place}' must hold at least one part.", param=place, code="empty_array")
    return [_part(part, f"{place}[{index}]", role) for index, part in enumerate(content)]


def _part(part: Any, place: str, role: str) -> dict[str, Any]:
    kind = _typed(part, "object", place).get("type")
    makers = {
        "input_text": _text_part,
        "output_text": _text_part,
        "refusal": _refusal,
        "input_image": _image,
        "input_file": _file,
    }
    takes = _PARTS_OF.get(role, ("input_text",))
    if not isinstance(kind, str) or kind not in takes:
        said = f"'{place}' is no part that a {role} message takes through chat ({', '.join(takes)})."
        raise _unsupported(place, said, code="unsupported_value")
    _only(part, place, _KEYS[kind])
    made = makers[kind](part, place)
    if part.get("prompt_cache_breakpoint") is not None:
        made["prompt_cache_breakpoint"] = part["prompt_cache_breakpoint"]
    return made


def _text_part(part: Item, place: str) -> dict[str, Any]:
    return {"type": "text", "text": _typed(part.get("text"), "string", f"{place}.text")}


def _refusal(part: Item, place: str) -> dict[str, Any]:
    return {"type": "refusal", "refusal": _typed(part.get("refusal"), "string", f"{place}.refusal")}


def _image(part: Item, place: str) -> dict[str, Any]:
    if part.get("file_id") is not None:
        raise _unsupported(
            f"{place}.file_id", f"'{place}.file_id' is not supported for this model; send the image as `image_url`."
        )
    image = {"url": _typed(part.get("image_url"), "string", f"{place}.image_url")}
    detail = part.get("detail")
    if detail not in (None, "auto", "low", "high"):
        said = f"Invalid value for '{place}.detail'. Supported values are: 'auto', 'low', 'high'."
        raise _unsupported(f"{place}.detail", said, code="unsupported_value")
    return {"type": "image_url", "image_url": image if detail is None else {**image, "detail": detail}}


def _file(part: Item, place: str) -> dict[str, Any]:
    for name in ("file_url", "detail"):
        if part.get(name) is not None:
            raise _unsupported(
                f"{place}.{name}", f"'{place}.{name}' is not supported for this model; send the file as `file_data`."
            )
    names = [name for name in ("file_id", "file_data", "filename") if part.get(name) is not None]
    return {"type": "file", "file": {name: _typed(part[name], "string", f"{place}.{name}") for name in names}}


def _tools(data: dict[str, Any]) -> dict[str, Any]:
    tools = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(data.get("tools") or ())]
    found: dict[str, Any] = {"tools": tools} if tools else {}
    choice = data.get("tool_choice")
    if choice is not None and (tools or choice not in ("auto", "none")):
        found["tool_choice"] = _tool_choice(choice)
    if tools and data.get("parallel_tool_calls") is not None:
        found["parallel_tool_calls"] = data["parallel_tool_calls"]
    return found


def _tool(tool: Any, place: str) -> dict[str, Any]:
    kind = _typed(tool, "object", place).get("type")
    if kind != "function":
        named = f"The tool '{kind}'" if isinstance(kind, str) and kind in HOSTED_TOOLS else "This type of tool"
        said = f"{named} ('{place}') is not supported for this model; it takes function tools only."
        raise _unsupported(f"{place}.type", said, code="unsupported_value")
    _only({name: value for name, value in tool.items() if value is not False}, place, _KEYS["function"])
    _typed(tool.get("name"), "string", f"{place}.name")
    for name, type_ in (("description", "string"), ("parameters", "object"), ("strict", "boolean")):
        if tool.get(name) is not None:
            _typed(tool[name], type_, f"{place}.{name}")
    names = [name for name in ("name", "description", "parameters", "strict") if tool.get(name) is not None]
    return {"type": "function", "function": {name: tool[name] for name in names}}


def _tool_choice(choice: Any) -> Any:
    if choice in ("none", "auto", "required"):
        return choice
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "function":
        return {"type": "function", "function": {"name": _typed(choice.get("name"), "string", "tool_choice.name")}}
    if kind == "allowed_tools" and choice.get("mode") in ("auto", "required"):
        names = []
        for index, tool in enumerate(_typed(choice.get("tools"), "array", "tool_choice.tools")):
            place = f"tool_choice.tools[{index}]"
            if _typed(tool, "object", place).get("type") != "function":
                raise _unsupported(
                    place, f"'{place}' is no function; this model takes function tools only.", code="unsupported_value"
                )
            names.append(_typed(tool.get("name"), "string", f"{place}.name"))
        tools = [{"type": "function", "function": {"name": name}} for name in names]
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice["mode"], "tools": tools}}
    said = "Invalid 'tool_choice': this model takes 'none', 'auto', 'required', a function, or allowed_tools of functions."
    raise _unsupported("tool_choice", said, code="unsupported_value")


def _text(data: dict[str, Any]) -> dict[str, Any]:
    text = data.get("text") or {}
    _only(text, "text", ("format", "verbosity"))
    found: dict[str, Any] = {}
    if text.get("verbosity") is not None:
        found["verbosity"] = _typed(text["verbosity"], "string", "text.verbosity")
    form = _typed(text.get("format") or {"type": "text"}, "object", "text.format")
    kind = form.get("type")
    if kind == "json_object":
        found["response_format"] = {"type": "json_object"}
    elif kind == "json_schema":
        _typed(form.get("name"), "string", "text.format.name")
        _typed(form.get("schema"), "object", "text.format.schema")
        for name, type_ in (("description", "string"), ("strict", "boolean")):
            if form.get(name) is not None:
                _typed(form[name], type_, f"text.format.{name}")
        names = [name for name in ("name", "description", "schema", "strict") if form.get(name) is not None]
        found["response_format"] = {"type": "json_schema", "json_schema": {name: form[name] for name in names}}
    elif kind != "text":
        said = "Invalid value for 'text.format.type'. Supported values are: 'text', 'json_object', 'json_schema'."
        raise InvalidRequest(said, param="text.format.type", code="invalid_value")
    return found


def _reasoning(data: dict[str, Any]) -> dict[str, Any]:
    reasoning = data.get("reasoning") or {}
    _only(reasoning, "reasoning", ("effort", "summary", "generate_summary", "mode", "context"))
    for name, neutral in (("mode", "standard"), ("context", "auto")):
        if reasoning.get(name) not in (None, neutral):
            raise _unsupported(
                f"reasoning.{name}", f"'reasoning.{name}' is not supported for this model; accepted: null, '{neutral}'."
            )
    for name in ("effort", "summary", "generate_summary"):
        if reasoning.get(name) is not None:
            _typed(reasoning[name], "string", f"reasoning.{name}")
    return {} if reasoning.get("effort") is None else {"reasoning_effort": reasoning["effort"]}


def wants_logprobs(data: dict[str, Any]) -> bool:
    """Whether a request asks for log probabilities of the answer's tokens."""
    return LOGPROBS in (data.get("include") or ()) or bool(data.get("top_logprobs"))


def _logprobs(data: dict[str, Any]) -> dict[str, Any]:
    for index, value in enumerate(data.get("include") or ()):
        if not isinstance(value, str) or value not in _INCLUDES:
            known = ", ".join(f"'{name}'" for name in _INCLUDES)
            place = f"include[{index}]"
            raise _unsupported(
                place, f"'{place}' asks for what this model cannot give; accepted: {known}.", code="unsupported_value"
            )
    if not wants_logprobs(data):
        return {}
    top = data.get("top_logprobs")
    return {"logprobs": True, **({"top_logprobs": top} if top else {})}


def _kind(item: Mapping[str, Any]) -> str:
    """An item's type; of those that may leave it out, a message has a role and a reference has only its id."""
    kind = item.get("type")
    if kind is None:
        return "message" if "role" in item else "item_reference" if "id" in item else ""
    return kind if isinstance(kind, str) else ""


def _is_id(item: Mapping[str, Any]) -> bool:
    return isinstance(item.get("id"), str) and bool(item["id"])


def _resource(item: Item, id_: str) -> Item:
    """An item of the input as the API gives it back."""
    kept = {name: value for name, value in item.items() if value is not None}
    shown = {**kept, "type": _kind(item), "id": id_, "status": item.get("status") or "completed"}
    if shown["type"] == "reasoning":
        return {"summary": [], **shown}
    if shown["type"] == "message":
        written = item.get("role") == "assistant"
        content = item.get("content")
        parts = [{"type": "output_text" if written else "input_text", "text": content}] if isinstance(content, str) else content
        shown["content"] = [_shown_part(part) for part in parts or ()]
    return shown


def _shown_part(part: Item) -> Item:
    defaults: dict[str, Item] = {"output_text": {"annotations": [], "logprobs": []}, "input_image": {"detail": "auto"}}
    return {**defaults.get(part["type"], {}), **part}


def _only(value: dict[str, Any], place: str, names: tuple[str, ...]) -> None:
    for name in value.keys() - set(names):
        if value[name] is not None:
            shown = f"{place}.{name[:64].encode('ascii', 'backslashreplace').decode()}"
            said = f"'{shown}' is not known here or not supported for this model; leave it out."
            raise InvalidRequest(said, param=shown, code="unknown_parameter")


def _unsupported(param: str, said: str, *, code: str = "unsupported_parameter") -> InvalidRequest:
    return InvalidRequest(said, param=param, code=code)


def _foreign_item(kind: str, place: str) -> InvalidRequest:
    named = f"Items of type '{kind}'" if kind in _FOREIGN_ITEMS else "Items of this type"
    takes = "message, function_call, function_call_output, reasoning and item_reference"
    return _unsupported(
        f"{place}.type", f"{named} ('{place}') are not supported for this model; it takes {takes}.", code="unsupported_value"
    )


def _missing(name: str) -> InvalidRequest:
    return InvalidRequest(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")


def _typed(value: Any, type_: str, place: str) -> Any:
    right = isinstance(value, _PYTHON_TYPES[type_]) and (isinstance(value, bool) == (type_ == "boolean"))
    if not right:
        raise _wrong(place, f"an {type_}" if type_[0] in "aio" else f"a {type_}", value)
    return value


def _wrong(place: str, wanted: str, value: Any) -> InvalidRequest:
    kinds = {bool: "a boolean", int: "an integer", float: "a number", str: "a string", list: "an array", dict: "an object"}
    said = f"Invalid type for '{place}': expected {wanted}, but got {kinds.get(type(value), 'null')} instead."
    return InvalidRequest(said, param=place, code="invalid_type")
