"""litellm as a client: its `openai/` provider with our base URL."""

import json

import cases
import litellm

COMMON = {"api_base": cases.URL, "api_key": cases.KEY, "timeout": cases.TIMEOUT_S, "num_retries": 0, "max_retries": 0}


def ask(text, model="relayed", **options):
    return litellm.completion(
        **{"model": f"openai/{model}", "messages": [{"role": "user", "content": text}], **COMMON, **options}
    )


def chat():
    answer = ask(cases.TEXT)
    cases.same((answer.choices[0].message.content, answer.choices[0].finish_reason), (cases.TEXT, "stop"))


def streamed(text):
    cases.same("".join(chunk.choices[0].delta.content or "" for chunk in ask(text, stream=True)), text)


def tools():
    call = ask(cases.PERSON_JSON, "scripted", tools=[cases.TOOL]).choices[0].message.tool_calls[0]
    cases.same((call.function.name, json.loads(call.function.arguments)), ("save_person", cases.PERSON))


def tools_stream():
    deltas = [chunk.choices[0].delta for chunk in ask(cases.PERSON_JSON, "scripted", tools=[cases.TOOL], stream=True)]
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    cases.same(json.loads("".join(call.function.arguments for call in calls)), cases.PERSON)


def as_json():
    answer = ask(cases.PERSON_JSON, response_format={"type": "json_object"})
    cases.same(json.loads(answer.choices[0].message.content), cases.PERSON)


def embeddings():
    made = litellm.embedding(model="openai/scripted", input=["x"], encoding_format="float", **COMMON)
    cases.near(made.data[0]["embedding"])


cases.run(
    {
        "chat": chat,
        "cached": lambda: streamed(cases.TEXT),
        "stream": lambda: streamed(cases.STREAMED),
        "tools": tools,
        "tools stream": tools_stream,
        "json": as_json,
        "embeddings": embeddings,
        "unknown model": lambda: cases.raises(litellm.NotFoundError, lambda: ask("x", "nope")),
        "wrong key": lambda: cases.raises(litellm.AuthenticationError, lambda: ask("x", api_key="sk-wrong")),
    }
)
