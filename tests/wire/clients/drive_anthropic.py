"""anthropic-python: Messages through an upstream outside, which sees masks where the client sees what it wrote itself."""

import json

import cases
from anthropic import Anthropic, AuthenticationError, NotFoundError

URL = cases.URL.removesuffix("/v1")
client = Anthropic(base_url=URL, api_key=cases.KEY, timeout=cases.TIMEOUT_S, max_retries=0)
stranger = Anthropic(base_url=URL, api_key="sk-wrong", timeout=cases.TIMEOUT_S, max_retries=0)
SECRET = f"{cases.TEXT} for {cases.ORIGINAL}"
PERSON = {**cases.PERSON, "name": cases.ORIGINAL}
TOOL = {"name": "save_person", "input_schema": cases.TOOL["function"]["parameters"]}


def asked(text, model="masked", **options):
    return {"model": model, "max_tokens": 500, "messages": [{"role": "user", "content": text}], **options}


def chat():
    told = client.messages.create(**asked(SECRET, system=f"You serve {cases.ORIGINAL}."))
    cases.same((told.content[0].text, told.stop_reason), (SECRET, "end_turn"))
    cases.same(told.usage.output_tokens > 0, True)


def stream():
    with client.messages.stream(**asked(f"streamed {SECRET}")) as events:
        cases.same("".join(events.text_stream), f"streamed {SECRET}")
        cases.same(events.get_final_message().content[0].text, f"streamed {SECRET}")


def tools():
    call = client.messages.create(**asked(json.dumps(PERSON, ensure_ascii=False), tools=[TOOL])).content[0]
    cases.same((call.type, call.name, call.input), ("tool_use", "save_person", PERSON))


def tools_stream():
    with client.messages.stream(**asked(json.dumps(PERSON, ensure_ascii=False), tools=[TOOL])) as events:
        call = events.get_final_message().content[0]
    cases.same((call.type, call.name, call.input), ("tool_use", "save_person", PERSON))


cases.run(
    {
        "chat": chat,
        "stream": stream,
        "tools": tools,
        "tools stream": tools_stream,
        "unknown model": lambda: cases.raises(NotFoundError, lambda: client.messages.create(**asked("x", "nope"))),
        "wrong key": lambda: cases.raises(AuthenticationError, lambda: stranger.messages.create(**asked("x"))),
    }
)
