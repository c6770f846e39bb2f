"""openai-python, any major: whole, streamed, tools, JSON, vectors, errors."""

import json

import cases
from openai import AuthenticationError, NotFoundError, OpenAI

client = OpenAI(base_url=cases.URL, api_key=cases.KEY, timeout=cases.TIMEOUT_S, max_retries=0)
stranger = OpenAI(base_url=cases.URL, api_key="sk-wrong", timeout=cases.TIMEOUT_S, max_retries=0)


def ask(text, model="relayed", **options):
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], **options)


def models():
    cases.same({"echo", "relayed", "scripted"} <= {model.id for model in client.models.list()}, True)
    cases.same(client.models.retrieve("relayed").object, "model")


def chat():
    messages = [{"role": "user", "content": cases.TEXT}]
    raw = client.chat.completions.with_raw_response.create(model="relayed", messages=messages)
    answer = raw.parse()
    cases.same(answer.choices[0].message.content, cases.TEXT)
    cases.same(answer.choices[0].finish_reason, "stop")
    cases.same(raw.headers["x-request-id"].startswith("req_"), True)
    cases.same(answer.usage.total_tokens > 0, True)


def cached():
    chunks = list(ask(cases.TEXT, stream=True, stream_options={"include_usage": True}))
    cases.same("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), cases.TEXT)
    cases.same(chunks[-1].usage.total_tokens > 0, True)


def stream():
    chunks = list(ask(cases.STREAMED, stream=True))
    cases.same("".join(chunk.choices[0].delta.content or "" for chunk in chunks), cases.STREAMED)
    cases.same([chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason], ["stop"])


def tools():
    call = ask(cases.PERSON_JSON, "scripted", tools=[cases.TOOL]).choices[0].message.tool_calls[0]
    cases.same((call.id, call.function.name, json.loads(call.function.arguments)), ("call_1", "save_person", cases.PERSON))


def tools_stream():
    deltas = [chunk.choices[0].delta for chunk in ask(cases.PERSON_JSON, "scripted", tools=[cases.TOOL], stream=True)]
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    cases.same([call.id for call in calls if call.id], ["call_1"])
    cases.same(json.loads("".join(call.function.arguments for call in calls)), cases.PERSON)


def as_json():
    answer = ask(cases.PERSON_JSON, response_format={"type": "json_object"})
    cases.same(json.loads(answer.choices[0].message.content), cases.PERSON)


def embeddings():
    cases.near(client.embeddings.create(model="scripted", input="x").data[0].embedding)
    cases.near(client.embeddings.create(model="scripted", input=["x", "y"], encoding_format="float").data[1].embedding)


def ask_as_stranger():
    stranger.chat.completions.create(model="relayed", messages=[{"role": "user", "content": "x"}])


cases.run(
    {
        "models": models,
        "chat": chat,
        "cached": cached,
        "stream": stream,
        "tools": tools,
        "tools stream": tools_stream,
        "json": as_json,
        "embeddings": embeddings,
        "unknown model": lambda: cases.raises(NotFoundError, lambda: ask("x", "nope")),
        "wrong key": lambda: cases.raises(AuthenticationError, ask_as_stranger),
    }
)
