"""instructor over openai-python: a model filled by a tool call, and one filled from JSON."""

import cases
import instructor
from openai import AuthenticationError, NotFoundError, OpenAI
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


def ask(model="scripted", key=cases.KEY, mode=instructor.Mode.TOOLS):
    client = instructor.from_openai(OpenAI(base_url=cases.URL, api_key=key, timeout=cases.TIMEOUT_S, max_retries=0), mode=mode)
    messages = [{"role": "user", "content": cases.PERSON_JSON}]
    return client.chat.completions.create(model=model, response_model=Person, messages=messages, max_retries=0)


def stream():
    client = instructor.from_openai(OpenAI(base_url=cases.URL, api_key=cases.KEY, timeout=cases.TIMEOUT_S, max_retries=0))
    messages = [{"role": "user", "content": cases.PERSON_JSON}]
    parts = list(client.chat.completions.create_partial(model="scripted", response_model=Person, messages=messages))
    cases.same(parts[-1].model_dump(), cases.PERSON)


def refused(kind, **options):
    """The package wraps what the SDK raises; the SDK's own error stands behind it."""
    try:
        ask(**options)
    except Exception as error:  # noqa: BLE001 - whatever it is, its chain is looked through
        chain, found = [], error
        while found is not None:
            chain.append(found)
            found = found.__cause__ or found.__context__
        cases.same(any(isinstance(one, kind) for one in chain), True)
        return
    raise AssertionError("no error")


cases.run(
    {
        "tools": lambda: cases.same(ask().model_dump(), cases.PERSON),
        "tools stream": stream,
        "json": lambda: cases.same(ask(model="relayed", mode=instructor.Mode.JSON).model_dump(), cases.PERSON),
        "unknown model": lambda: refused(NotFoundError, model="nope"),
        "wrong key": lambda: refused(AuthenticationError, key="sk-wrong"),
    }
)
