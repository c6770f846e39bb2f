"""langchain-openai: ChatOpenAI and OpenAIEmbeddings."""

import cases
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from openai import AuthenticationError, NotFoundError


def model(name="relayed", key=cases.KEY):
    return ChatOpenAI(model=name, base_url=cases.URL, api_key=key, timeout=cases.TIMEOUT_S, max_retries=0)


def chat():
    answer = model().invoke(cases.TEXT)
    cases.same(answer.content, cases.TEXT)
    cases.same(answer.usage_metadata["total_tokens"] > 0, True)


def streamed(text):
    cases.same("".join(chunk.content for chunk in model().stream(text)), text)


def tools():
    calls = model("scripted").bind_tools([cases.TOOL]).invoke(cases.PERSON_JSON).tool_calls
    cases.same([(call["name"], call["args"]) for call in calls], [("save_person", cases.PERSON)])


def tools_stream():
    chunks = list(model("scripted").bind_tools([cases.TOOL]).stream(cases.PERSON_JSON))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    cases.same([(call["name"], call["args"]) for call in whole.tool_calls], [("save_person", cases.PERSON)])


def as_json():
    schema = {"title": "person", **cases.TOOL["function"]["parameters"]}
    cases.same(model().with_structured_output(schema, method="json_mode").invoke(cases.PERSON_JSON), cases.PERSON)


def embeddings():
    made = OpenAIEmbeddings(model="scripted", base_url=cases.URL, api_key=cases.KEY, check_embedding_ctx_length=False)
    cases.near(made.embed_query("x"))


cases.run(
    {
        "chat": chat,
        "cached": lambda: streamed(cases.TEXT),
        "stream": lambda: streamed(cases.STREAMED),
        "tools": tools,
        "tools stream": tools_stream,
        "json": as_json,
        "embeddings": embeddings,
        "unknown model": lambda: cases.raises(NotFoundError, lambda: model("nope").invoke("x")),
        "wrong key": lambda: cases.raises(AuthenticationError, lambda: model(key="sk-wrong").invoke("x")),
    }
)
