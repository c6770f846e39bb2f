"""pydantic-ai: text, a stream, a tool that is really called, an output type."""

import asyncio
import json

import cases
from pydantic import BaseModel
from pydantic_ai import Agent, ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


class Person(BaseModel):
    name: str
    age: int


def agent(name="relayed", key=cases.KEY, **options):
    return Agent(OpenAIChatModel(name, provider=OpenAIProvider(base_url=cases.URL, api_key=key)), retries=0, **options)


async def streamed(text):
    async with agent().run_stream(text) as result:
        return "".join([part async for part in result.stream_text(delta=True)])


def save_person(name: str, age: int) -> str:
    return json.dumps({"saved": name, "age": age})


def tools():
    done = agent("scripted", tools=[save_person]).run_sync(cases.PERSON_JSON)
    cases.same(json.loads(done.output), {"saved": "Ann Ünal", "age": 31})


def as_json():
    cases.same(agent("scripted", output_type=Person).run_sync(cases.PERSON_JSON).output, Person(**cases.PERSON))


def refused(status, **options):
    try:
        agent(**options).run_sync("x")
    except ModelHTTPError as error:
        cases.same(error.status_code, status)
        return
    raise AssertionError("no ModelHTTPError")


cases.run(
    {
        "chat": lambda: cases.same(agent().run_sync(cases.TEXT).output, cases.TEXT),
        "cached": lambda: cases.same(asyncio.run(streamed(cases.TEXT)), cases.TEXT),
        "stream": lambda: cases.same(asyncio.run(streamed(cases.STREAMED)), cases.STREAMED),
        "tools": tools,
        "json": as_json,
        "unknown model": lambda: refused(404, name="nope"),
        "wrong key": lambda: refused(401, key="sk-wrong"),
    }
)
