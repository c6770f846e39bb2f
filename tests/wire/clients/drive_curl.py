"""curl, as a shell user calls it."""

import json
import subprocess

import cases


def curl(path, body=None, key=cases.KEY, *options):
    """(status, body) of one call; a body makes it a POST."""
    data = ["-d", json.dumps(body, ensure_ascii=False), "-H", "Content-Type: application/json"] if body else []
    command = ["curl", "-sS", "-N", "-m", "30", "-w", "\n%{http_code}", "-H", f"Authorization: Bearer {key}", *data, *options]
    done = subprocess.run([*command, f"{cases.URL}/{path}"], capture_output=True, text=True, timeout=40, check=True)
    said, _, status = done.stdout.rpartition("\n")
    return int(status), said


def ask(text, model="relayed", key=cases.KEY, **fields):
    return curl("chat/completions", {"model": model, "messages": [{"role": "user", "content": text}], **fields}, key)


def models():
    listed = json.loads(curl("models")[1])["data"]
    cases.same({"relayed", "scripted"} <= {model["id"] for model in listed}, True)


def chat():
    status, said = ask(cases.TEXT)
    cases.same((status, json.loads(said)["choices"][0]["message"]["content"]), (200, cases.TEXT))


def streamed(text):
    status, said = ask(text, stream=True)
    datas = [event.removeprefix("data: ") for event in said.split("\n\n") if event.strip()]
    cases.same((status, datas.pop()), (200, "[DONE]"))
    cases.same("".join(json.loads(data)["choices"][0]["delta"].get("content", "") for data in datas), text)


def tools():
    message = json.loads(ask(cases.PERSON_JSON, "scripted", tools=[cases.TOOL])[1])["choices"][0]["message"]
    cases.same(json.loads(message["tool_calls"][0]["function"]["arguments"]), cases.PERSON)


def as_json():
    said = json.loads(ask(cases.PERSON_JSON, response_format={"type": "json_object"})[1])
    cases.same(json.loads(said["choices"][0]["message"]["content"]), cases.PERSON)


def embeddings():
    cases.near(json.loads(curl("embeddings", {"model": "scripted", "input": "x"})[1])["data"][0]["embedding"])


def refused(wanted, **options):
    status, said = ask("x", **options)
    cases.same((status, json.loads(said)["error"]["code"]), wanted)


cases.run(
    {
        "models": models,
        "chat": chat,
        "cached": lambda: streamed(cases.TEXT),
        "stream": lambda: streamed(cases.STREAMED),
        "tools": tools,
        "json": as_json,
        "embeddings": embeddings,
        "unknown model": lambda: refused((404, "model_not_found"), model="nope"),
        "wrong key": lambda: refused((401, "invalid_api_key"), key="sk-wrong"),
    }
)
