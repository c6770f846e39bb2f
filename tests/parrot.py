"""An upstream that says what it was asked in every place where a text can stand, in every dialect, whole or cut to pieces.

What it was asked is the last user's text. Knows nothing of the gateway; `parrot` makes scripts for `hostile`.
"""

import json
import random

from hostile import answer, event, head, message, response


def pieces_of(text, seed):
    """The text cut at random, down to single characters."""
    draw = random.Random(seed)
    pieces = []
    while text:
        size = draw.choice([1, 1, 2, 3, 5, 8, 13, 40])
        pieces.append(text[:size])
        text = text[size:]
    return pieces


def asked(data):
    """The last text of a user."""
    given = data.get("messages") or data.get("input") or data.get("prompt")
    if isinstance(given, str):
        return given
    content = [item["content"] for item in given if item.get("role") == "user"][-1]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def parrot(*, change=lambda text: text, cut_after=None, seed=0):
    """A script for `hostile`. `change`: what becomes of the text on the way; `cut_after`: so many events, then the end."""

    def script(request, body):
        data = json.loads(body)
        endpoint = request.split(b" ")[1].decode().partition("/v1/")[2].partition("?")[0]
        text = change(asked(data))
        if not data.get("stream"):
            return [answer(200, WHOLE[endpoint](text, data))]
        events = [*STREAMED[endpoint](text, seed, data)]
        return [head(), *events[:cut_after]]

    return script


def arguments(text):
    """A call's arguments that hold the text."""
    return json.dumps({"said": text, "n": 1})


def _chat(text, data):
    calls = [{"id": f"call_{n}", "type": "function", "function": {"name": "say", "arguments": arguments(text)}} for n in range(2)]
    said = {"role": "assistant", "content": text, "refusal": text, "reasoning_content": text, "tool_calls": calls}
    choices = [{"index": n, "message": said, "finish_reason": "stop"} for n in range(data.get("n") or 1)]
    return {"id": "c1", "object": "chat.completion", "created": 1, "model": "up", "choices": choices, "usage": USAGE}


USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def _data(value):
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _chat_events(text, seed, data):
    chunk = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "up"}
    queues = []
    for n in range(data.get("n") or 1):
        for place, name in enumerate(("content", "refusal", "reasoning_content")):
            queues.append([(n, {name: piece}) for piece in pieces_of(text, (seed, n, place).__hash__())])
        for place in range(2):
            first = {"index": place, "id": f"call_{place}", "type": "function", "function": {"name": "say", "arguments": ""}}
            cut = pieces_of(arguments(text), (seed, n, place, 1).__hash__())
            rest = [(n, {"tool_calls": [{"index": place, "function": {"arguments": piece}}]}) for piece in cut]
            queues.append([(n, {"tool_calls": [first]}), *rest])
    for n, delta in _mixed(queues, seed):
        yield _data({**chunk, "choices": [{"index": n, "delta": delta, "finish_reason": None}]})
    for n in range(data.get("n") or 1):
        yield _data({**chunk, "choices": [{"index": n, "delta": {}, "finish_reason": "stop"}]})
    if (data.get("stream_options") or {}).get("include_usage"):
        yield _data({**chunk, "choices": [], "usage": USAGE})
    yield b"data: [DONE]\n\n"


def _mixed(queues, seed):
    draw = random.Random(seed)
    while queues := [queue for queue in queues if queue]:
        yield draw.choice(queues).pop(0)


def _completion(text, data):
    choices = [{"index": 0, "text": text, "logprobs": None, "finish_reason": "stop"}]
    return {"id": "c1", "object": "text_completion", "created": 1, "model": "up", "choices": choices, "usage": USAGE}


def _completion_events(text, seed, data):
    whole = _completion("", data)
    del whole["usage"]
    for piece in pieces_of(text, seed):
        yield _data({**whole, "choices": [{"index": 0, "text": piece, "logprobs": None, "finish_reason": None}]})
    yield _data({**whole, "choices": [{"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}]})
    yield b"data: [DONE]\n\n"


def _message(text, data):
    blocks = [
        {"type": "thinking", "thinking": text, "signature": "sig"},
        {"type": "text", "text": text},
        {"type": "tool_use", "id": "t1", "name": "say", "input": {"said": text, "n": 1}},
    ]
    return {**message(), "content": blocks}


def _message_events(text, seed, data):
    yield event("message_start", message={**message(), "content": [], "stop_reason": None})
    growing = (("thinking", "thinking", text), ("text", "text", text), ("input_json", "partial_json", arguments(text)))
    for index, (kind, name, said) in enumerate(growing):
        block = {"type": "tool_use", "id": "t1", "name": "say", "input": {}} if index == 2 else {"type": kind, name: ""}
        yield event("content_block_start", index=index, content_block=block)
        for piece in pieces_of(said, (seed, index).__hash__()):
            yield event("content_block_delta", index=index, delta={"type": f"{kind}_delta", name: piece})
        yield event("content_block_stop", index=index)
    yield event("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage={"output_tokens": 2})
    yield event("message_stop")


def _response(text, data):
    call = {"id": "fc_1", "type": "function_call", "call_id": "call_1", "name": "say", "arguments": arguments(text)}
    whole = response(text=text, instructions=data.get("instructions"))
    return {**whole, "output": [*whole["output"], {**call, "status": "completed"}]}


def _response_events(text, seed, data):
    whole = _response(text, data)
    spoken, call = whole["output"]
    number = 0

    def numbered(kind, **fields):
        nonlocal number
        number += 1
        return event(kind, sequence_number=number - 1, **fields)

    yield numbered("response.created", response={**whole, "status": "in_progress", "output": []})
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    yield numbered("response.output_item.added", output_index=0, item={**spoken, "content": []})
    part = spoken["content"][0]
    yield numbered("response.content_part.added", **place, part={**part, "text": ""})
    for piece in pieces_of(text, seed):
        yield numbered("response.output_text.delta", **place, delta=piece, logprobs=[])
    yield numbered("response.output_text.done", **place, text=text, logprobs=[])
    yield numbered("response.content_part.done", **place, part=part)
    yield numbered("response.output_item.done", output_index=0, item=spoken)
    yield numbered("response.output_item.added", output_index=1, item={**call, "arguments": ""})
    for piece in pieces_of(call["arguments"], seed + 1):
        yield numbered("response.function_call_arguments.delta", item_id="fc_1", output_index=1, delta=piece)
    done = {"name": "say", "arguments": call["arguments"]}
    yield numbered("response.function_call_arguments.done", item_id="fc_1", output_index=1, **done)
    yield numbered("response.output_item.done", output_index=1, item=call)
    yield numbered("response.completed", response=whole)


WHOLE = {"chat/completions": _chat, "completions": _completion, "messages": _message, "responses": _response}
STREAMED = {
    "chat/completions": _chat_events,
    "completions": _completion_events,
    "messages": _message_events,
    "responses": _response_events,
}


def heard(endpoint, body, *, stream):
    """Every text of an answer as its client puts it together, by where it stands. Arguments are the `said` of their JSON."""
    if not stream:
        return dict(_texts_of(endpoint, json.loads(body)))
    found = {}
    for line in body.decode().splitlines():
        if line.startswith("data: {"):
            for name, piece in _pieces(endpoint, json.loads(line[6:])):
                found[name] = found.get(name, "") + piece
    return {name: json.loads(text)["said"] if "arguments" in name else text for name, text in found.items()}


def _texts_of(endpoint, whole):
    if endpoint == "messages":
        for block in whole["content"]:
            yield block["type"], block.get("thinking") or block.get("text") or block["input"]["said"]
    elif endpoint == "responses":
        for item in whole["output"]:
            is_call = item["type"] == "function_call"
            yield item["type"], json.loads(item["arguments"])["said"] if is_call else item["content"][0]["text"]
    else:
        for choice in whole["choices"]:
            if "text" in choice:
                yield "text", choice["text"]
                continue
            said = choice["message"]
            for name in ("content", "refusal", "reasoning_content"):
                yield f"{name} {choice['index']}", said[name]
            for place, call in enumerate(said["tool_calls"]):
                yield f"arguments {choice['index']} {place}", json.loads(call["function"]["arguments"])["said"]


def _pieces(endpoint, told):
    if endpoint == "messages":
        if told["type"] == "content_block_delta":
            for name in ("thinking", "text", "partial_json"):
                if name in told["delta"]:
                    yield f"{'arguments' if name == 'partial_json' else name} {told['index']}", told["delta"][name]
    elif endpoint == "responses":
        if told["type"].endswith(".delta"):
            yield f"{told['type']} {told['output_index']}", told["delta"]
    else:
        for choice in told["choices"]:
            delta = choice.get("delta", choice)
            for name in ("content", "refusal", "reasoning_content", "text"):
                if isinstance(delta.get(name), str):
                    yield f"{name} {choice['index']}", delta[name]
            for call in delta.get("tool_calls", ()):
                yield f"arguments {choice['index']} {call['index']}", call["function"]["arguments"]
