"""openai-agents with its chat completions model: a run, a streamed run, a tool that is really called."""

import asyncio
import json

import cases
from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI, AuthenticationError, NotFoundError

set_tracing_disabled(True)


@function_tool
def save_person(name: str, age: int) -> str:
    """Save a person."""
    return json.dumps({"saved": name, "age": age})


def agent(name="relayed", key=cases.KEY, **options):
    client = AsyncOpenAI(base_url=cases.URL, api_key=key, timeout=cases.TIMEOUT_S, max_retries=0)
    return Agent(name="tester", model=OpenAIChatCompletionsModel(model=name, openai_client=client), **options)


async def streamed(made, text):
    result = Runner.run_streamed(made, text)
    deltas = [
        event.data.delta
        async for event in result.stream_events()
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    ]
    return "".join(deltas), result.final_output


def stream(text):
    cases.same(asyncio.run(streamed(agent(), text)), (text, text))


def tools():
    done = Runner.run_sync(agent("scripted", tools=[save_person]), cases.PERSON_JSON)
    cases.same(json.loads(done.final_output), {"saved": "Ann Ünal", "age": 31})


def tools_stream():
    _, final = asyncio.run(streamed(agent("scripted", tools=[save_person]), cases.PERSON_JSON))
    cases.same(json.loads(final), {"saved": "Ann Ünal", "age": 31})


cases.run(
    {
        "chat": lambda: cases.same(Runner.run_sync(agent(), cases.TEXT).final_output, cases.TEXT),
        "cached": lambda: stream(cases.TEXT),
        "stream": lambda: stream(cases.STREAMED),
        "tools": tools,
        "tools stream": tools_stream,
        "unknown model": lambda: cases.raises(NotFoundError, lambda: Runner.run_sync(agent("nope"), "x")),
        "wrong key": lambda: cases.raises(AuthenticationError, lambda: Runner.run_sync(agent(key="sk-wrong"), "x")),
    }
)
