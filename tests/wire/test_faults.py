"""What other gateways were reported to get wrong on chat, completions, embeddings, models, errors and headers: none of it here.

Each test names one fault; where an answer can also come from the cache, both ways are shown. The comments name the reports.
"""

import asyncio
import base64
import json
import struct

import pytest
from front import Client, body
from hostile import HANG, answer, chunk, completion, error, head, hostile

WAYS = pytest.mark.parametrize("way", ["relayed", "cached"])
USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 4,
    "total_tokens": 13,
    "prompt_tokens_details": {"cached_tokens": 7, "audio_tokens": 0},
}
DONE = b"data: [DONE]\n\n"


@pytest.fixture
async def server():
    """An upstream that says what a test tells it to."""
    async with hostile() as made:
        yield made


@pytest.fixture
def up(world, server):
    """A gateway in front of it, no attempt made twice."""
    return world(up={"base_url": server.base_url, "retries": 0})


def events(said):
    """The decoded data of a stream, its end mark checked and left out."""
    datas = [event.removeprefix(b"data: ") for event in said.split(b"\n\n") if event]
    assert datas.pop() == b"[DONE]"
    return [json.loads(data) for data in datas]


async def ask(made, sent, way="relayed", **options):
    """One answer; the cached one is the second to the same question, and says that it is."""
    got = await Client(made, sent, **options).answer()
    if way == "cached":
        got = await Client(made, sent, **options).answer()
        assert got.headers["x-gateway-cache"] == "hit-exact"
    return got


def stream_of(*datas):
    return [head(), *(b"data: " + json.dumps(data).encode() + b"\n\n" for data in datas), DONE]


def part(delta=None, *, finish=None, index=0, **fields):
    choice = {"index": index, "delta": delta or {}, "logprobs": None, "finish_reason": finish}
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "up", "choices": [choice], **fields}


WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}}
TRAILER = {**part(), "choices": [], "usage": USAGE}


@WAYS
@pytest.mark.parametrize("source", ["a stream", "a whole answer"])
async def test_the_usage_chunk_has_no_choices(up, server, way, source):
    """It comes once, last, with the upstream's own counts and its cached tokens; every other chunk says null."""
    # litellm#28735, #8450, #25410, #36882
    whole = [answer(200, {**completion(), "usage": USAGE})]
    streamed = stream_of(part({"content": "fine"}, usage=None), part(finish="stop", usage=None), TRAILER)
    server.scripts = [streamed if source == "a stream" else whole]
    *others, last = events((await ask(up, body(**WITH_USAGE), way)).body)
    assert (last["choices"], last["usage"]) == ([], USAGE)
    assert all(event["usage"] is None and event["choices"] for event in others)


async def test_usage_beside_choices_is_the_usage(up, server):
    """An upstream that counts on its last content chunk is believed; nothing is counted anew."""
    # litellm#36168
    server.scripts = [stream_of(part({"content": "fine"}), part(finish="stop", usage=USAGE))]
    got = await ask(up, body(**WITH_USAGE))
    usage = up.records[0].usage
    assert events(got.body)[-1]["usage"] == USAGE
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.estimated) == (9, 4, 7, False)


@WAYS
async def test_no_usage_chunk_comes_unasked(up, server, way):
    """What we asked the upstream for stays with us; not even a null of it is seen."""
    # gittensor#1749, tensorzero#1851
    server.scripts = [stream_of(part({"content": "fine"}, usage=None), part(finish="stop", usage=None), TRAILER)]
    got = await ask(up, body(stream=True), way)
    assert all(event["choices"] and "usage" not in event for event in events(got.body))
    assert up.records[0].usage.completion_tokens == 4


@pytest.mark.parametrize("limit", [0, -1, 7])
async def test_token_limits_go_up_as_they_are(up, server, limit):
    """Neither clamped nor dropped: what is out of range is the upstream's to say."""
    # gittensor#1749, bifrost#6132
    server.scripts = [[answer(200, completion())]]
    await ask(up, body(max_tokens=limit, max_completion_tokens=limit))
    assert server.requests[0][1] == body(max_tokens=limit, max_completion_tokens=limit)


LIMITS = {
    "x-ratelimit-limit-requests": "60",
    "x-ratelimit-remaining-tokens": "149984",
    "x-ratelimit-reset-requests": "1s",
    "x-ratelimit-reset-tokens": "6m0s",
}


async def test_retry_hints_keep_their_names(up, server):
    """SDKs back off by `retry-after` and `retry-after-ms`, and by no other name."""
    # litellm#21553
    server.scripts = [[error(429, "slow down", "rate_limit_exceeded", retry_after="7", retry_after_ms="6500", **LIMITS)]]
    got = await ask(up, body())
    assert (got.status, json.loads(got.body)["error"]["code"]) == (429, "rate_limit_exceeded")
    assert (got.headers["retry-after"], got.headers["retry-after-ms"]) == ("7", "6500")
    assert LIMITS.items() <= got.headers.items()


@pytest.mark.parametrize("stream", [True, False])
async def test_rate_limits_keep_their_names_on_every_answer(up, server, stream):
    """Streams too; with a request id of ours, and the upstream's under a name of its own."""
    # litellm#5957, #18631
    lines = {**LIMITS, "x-request-id": "up_1", "openai-version": "2020-10-01", "openai-processing-ms": "12"}
    said = [head(**lines), chunk("fine"), chunk(finish="stop"), DONE] if stream else [answer(200, completion(), **lines)]
    server.scripts = [said]
    got = await ask(up, body(stream=stream))
    assert LIMITS.items() <= got.headers.items()
    assert (got.headers["x-request-id"], got.headers["x-upstream-request-id"]) == (up.records[0].request_id, "up_1")
    assert (got.headers["openai-version"], got.headers["openai-processing-ms"]) == ("2020-10-01", "12")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("said", [[HANG], [head(), HANG]], ids=["before the head", "before the first token"])
async def test_a_client_that_leaves_early_is_noticed(up, server, stream, said):
    """The upstream is left although nothing has been sent yet, streamed or not."""
    # litellm#37140, #13774, #31499
    server.scripts = [said]
    client = Client(up, body(stream=stream))
    await server.arrived.wait()
    client.leaves.set()
    async with asyncio.timeout(30):
        await client.task
        await server.left.wait()
    assert ([record.ending for record in up.records], client.sent) == (["client_gone"], [])


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_the_queue_never_arrives(world, server, stream):
    """Whoever waits for the upstream's one connection and leaves is not sent to it afterwards."""
    server.scripts = [[HANG]]
    made = world(up={"base_url": server.base_url, "retries": 0, "max_connections": 1, "connect_timeout_s": 60})
    first, queued = Client(made, body()), Client(made, body(stream=stream, seed=1))
    await server.arrived.wait()
    async with asyncio.timeout(30):
        while made.health.snapshot([("up", "m")])["up/m"].in_flight < 2:
            await asyncio.sleep(0)
        queued.leaves.set()
        await queued.task
        first.leaves.set()
        await first.task
    assert (len(server.requests), [record.ending for record in made.records]) == (1, ["client_gone"] * 2)
    assert made.idle()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_cut_is_never_a_clean_end(up, server, stream):
    """Streamed: an error in the stream, then the end mark, no invented finish reason. Whole: a 502."""
    # litellm#39748, open-webui#29628
    said = [head(), chunk("fi")] if stream else [answer(200, completion())[:-9]]
    server.scripts = [said]
    got = await ask(up, body(stream=stream))
    if stream:
        first, told = events(got.body)
        assert (first["choices"][0]["finish_reason"], told["error"]["code"]) == (None, "upstream_error")
    else:
        assert (got.status, json.loads(got.body)["error"]["code"]) == (502, "upstream_error")


TOLD = {"message": "overloaded now", "type": "server_error", "param": None, "code": "engine_overloaded"}


async def test_an_error_inside_a_stream_keeps_its_code(up, server):
    """As the upstream sent it; nobody makes a success or a "500" of it."""
    # litellm#40578
    server.scripts = [[head(), chunk("fi"), b"data: " + json.dumps({"error": TOLD}).encode() + b"\n\n"]]
    got = await ask(up, body(stream=True))
    assert events(got.body)[1] == {"error": TOLD}
    assert (up.records[0].ending, up.records[0].error) == ("broken", "in_band")


async def test_an_error_as_first_event_is_a_status(up, server):
    """Before the first byte there is a real status to say it with."""
    # litellm#40578
    server.scripts = [stream_of({"error": TOLD})]
    got = await ask(up, body(stream=True))
    assert (got.status, json.loads(got.body)) == (502, {"error": TOLD})


@WAYS
async def test_the_first_delta_has_the_role_alone(up, server, way):
    """A chunk without text is a chunk."""
    # bifrost#6523
    server.scripts = [stream_of(part({"role": "assistant"}), part({"content": "fine"}), part(finish="stop"))]
    got = await ask(up, body(stream=True), way)
    assert [event["choices"][0]["delta"] for event in events(got.body)] == [{"role": "assistant"}, {"content": "fine"}, {}]


def call(index, name=None, arguments=""):
    named = {"id": f"call_{index}", "type": "function"} if name else {}
    return {"index": index, **named, "function": {**({"name": name} if name else {}), "arguments": arguments}}


CALLS = [
    part({"role": "assistant", "content": None, "tool_calls": [call(0, "a")]}),
    part({"tool_calls": [call(0, arguments='{"x"')]}),
    part({"tool_calls": [call(1, "b")]}),
    part({"tool_calls": [call(0, arguments=":1}"), call(1, arguments="{}")]}),
    part(finish="tool_calls"),
]


async def test_parallel_tool_calls_keep_their_index(up, server):
    """Streamed, each fragment comes as it was: ids and names once, no summary at the end; an answer that acts is not kept."""
    # litellm#21331, #16194, #20480, #39796
    server.scripts = [stream_of(*CALLS)]
    for _ in range(2):
        got = await ask(up, body(stream=True, tools=[]))
        assert (events(got.body), got.headers["x-gateway-cache"]) == (CALLS, "miss")


@WAYS
async def test_a_stream_is_replayed_as_it_was(up, server, way):
    """Event for event: ids, fingerprints, tool fragments, thoughts, log probabilities, finish reasons, usage, unknown fields."""
    # litellm#32068
    odd = {"system_fingerprint": "fp_1", "service_tier": None, "of_next_year": {"z": 1, "a": [1.10]}, "usage": None}
    thought = part({"role": "assistant", "reasoning_content": "hm", "content": None}, **odd)
    spoken = part({"content": "fine"}, **odd)
    spoken["choices"][0]["logprobs"] = {"content": [{"token": "fine", "logprob": -0.5, "bytes": [102], "top_logprobs": []}]}
    calls = [{**call, "usage": None} for call in CALLS[1:-1]]
    said = [thought, spoken, *calls, part(finish="stop", usage=None), TRAILER]
    server.scripts = [stream_of(*said)]
    assert events((await ask(up, body(**WITH_USAGE), way)).body) == said


async def test_parallel_tool_calls_are_joined_and_parted_by_index(up, server):
    """A stream for a client that wants one answer, and one answer for a client that wants a stream."""
    # litellm#21331, #20480, #25766
    server.scripts = [stream_of(*CALLS)]
    whole = json.loads((await ask(up, body())).body)
    calls = whole["choices"][0]["message"]["tool_calls"]
    assert [(one["id"], one["function"]) for one in calls] == [
        ("call_0", {"name": "a", "arguments": '{"x":1}'}),
        ("call_1", {"name": "b", "arguments": "{}"}),
    ]
    server.scripts = [[answer(200, whole)]]
    deltas = [event["choices"][0]["delta"] for event in events((await ask(up, body(stream=True))).body)]
    parted = [one for delta in deltas for one in delta.get("tool_calls", ())]
    assert [(one["index"], one["id"], one["function"]["name"]) for one in parted] == [(0, "call_0", "a"), (1, "call_1", "b")]


ODD_ERRORS = {
    "a bare string": b'{"error":"boom"}',
    "an int code": b'{"error":{"message":"boom","type":null,"code":500}}',
    "no envelope": b'{"detail":"boom"}',
    "HTML": b"<html>boom</html>",
    "nothing": b"",
    "null": b"null",
}


@pytest.mark.parametrize("said", ODD_ERRORS.values(), ids=ODD_ERRORS)
@pytest.mark.parametrize("status", [400, 422, 500])
async def test_every_error_has_openais_shape(up, server, said, status):
    """All four keys, strings or null, whatever shape the upstream's error had; never a 200."""
    # litellm#4970, #39521, #39540, #32221; tensorzero#5445
    server.scripts = [[answer(status, said)]]
    got = await ask(up, body())
    told = json.loads(got.body)["error"]
    assert got.status >= 400
    assert (set(told), type(told["message"]), type(told["type"])) == ({"message", "type", "param", "code"}, str, str)
    assert all(told[name] is None or (isinstance(told[name], str) and told[name] != "None") for name in ("param", "code"))


async def test_an_upstreams_own_error_is_passed_on(up, server):
    """Status, message, param and code of a 422 reach the client as they were."""
    # litellm#32221
    said = b'{"error": {"message": "too hot", "type": "invalid_request_error", "param": "temperature", "code": null, "x": 1.10}}'
    server.scripts = [[answer(422, said)]]
    got = await ask(up, body(temperature=9))
    assert (got.status, got.body) == (422, said)


@pytest.mark.parametrize(
    ("options", "status", "code"),
    [({"authorization": None}, 401, "missing_api_key"), ({"authorization": "Bearer sk-x"}, 401, "invalid_api_key")],
)
async def test_a_wrong_key_is_401_in_openais_shape(world, options, status, code):
    """Not 400, not 500, not a bare text; and a tool that obeys `x-should-retry` does not try it for minutes."""
    # litellm#1554
    got = await ask(world(), body(), **options)
    assert (got.status, json.loads(got.body)["error"]["code"], got.headers["x-should-retry"]) == (status, code, "false")


@pytest.mark.parametrize("endpoint", ["chat/completions", "completions", "embeddings"])
async def test_an_unknown_model_is_404(world, endpoint):
    """With the code that SDKs know, and the parameter's name."""
    # litellm#1554
    got = await ask(world(), body(model="nope", prompt="x", input="x"), endpoint=endpoint)
    told = json.loads(got.body)["error"]
    assert (got.status, told["code"], told["param"]) == (404, "model_not_found", "model")


MISTAKES = [
    ("chat/completions", b"[]"),
    ("chat/completions", b'{"model":"m"}'),
    ("chat/completions", b'{"model":"m","messages":5}'),
    ("chat/completions", b'{"model":"m","messages":["x"]}'),
    ("chat/completions", b'{"model":["m"],"messages":[{"role":"user","content":"x"}]}'),
    ("chat/completions", b'{"model":"m","messages":[{"role":"user","content":"x"}],"stream":"yes"}'),
    ("completions", b'{"model":"m"}'),
    ("completions", b'{"model":"m","prompt":{}}'),
    ("embeddings", b'{"model":"m","input":5}'),
    ("embeddings", b'{"model":"m","input":[null]}'),
]


@pytest.mark.parametrize(("endpoint", "sent"), MISTAKES)
async def test_a_clients_mistake_is_400(world, endpoint, sent):
    """Never 500, and the parameter is named wherever there is one."""
    # litellm#16993
    got = await ask(world(), sent, endpoint=endpoint)
    told = json.loads(got.body)["error"]
    assert (got.status, told["type"], sent == b"[]" or bool(told["param"])) == (400, "invalid_request_error", True)


UNKNOWN = {
    "verbosity": "low",
    "moderation": {"mode": "auto"},
    "prompt_cache_options": {"ttl": "1h"},
    "safety_identifier": "u",
    "of_next_year": [None, {"z": 1, "a": {}}],
}


@pytest.mark.parametrize("endpoint", ["chat/completions", "completions", "embeddings"])
async def test_fields_nobody_knows_go_up(up, server, endpoint):
    """And nothing of ours goes with them: no key, no header, no field."""
    # Portkey gateway#1469, #1098; litellm#34926, #28991, #41342, #40424; Guardrails#2060
    server.scripts = [[answer(200, completion())]]
    sent = body(prompt="x", input="x", **UNKNOWN)
    await ask(up, sent, endpoint=endpoint, x_gateway_class="public", x_api_key="secret-of-the-client", cookie="a=b")
    top, arrived = server.requests[0]
    assert arrived == sent
    assert not any(word in top for word in (b"x-gateway", b"secret-of-the-client", b"cookie", up.key.encode()))


async def test_keys_keep_their_order(up, server):
    """Upstreams' prefix caches and models that fill a schema in its order depend on it."""
    # agentgateway#3371, kubeai#690, bifrost#2163
    server.scripts = [[answer(200, completion())]]
    tools = '[{"type":"function","function":{"parameters":{"properties":{"z":{},"a":{}},"type":"object"},"name":"f"}}]'
    sent = f'{{"tools": {tools}, "messages": [{{"content": "x", "role": "user"}}], "model": "m"}}'.encode()
    await ask(up, sent)
    assert server.requests[0][1] == sent


@pytest.mark.parametrize(
    "message", [{"role": "developer"}, {"role": "user", "name": "ann"}, {"role": "tool", "tool_call_id": "c"}]
)
async def test_messages_keep_their_roles_and_names(up, server, message):
    """`developer` is not made `system`; a name is not dropped."""
    # bifrost PR #162
    server.scripts = [[answer(200, completion())]]
    sent = body(messages=[{"content": "x", **message}])
    await ask(up, sent)
    assert server.requests[0][1] == sent


async def test_a_character_may_be_cut_anywhere(up, server):
    """An answer sent byte by byte has whole characters at its end, and no replacement for any."""
    # claude-code-router#1672, aisix#111, plano#980
    raw = json.dumps(part({"content": "ünï 你好 🦊"}), ensure_ascii=False).encode()
    said = b"data: " + raw + b"\n\n" + chunk(finish="stop") + DONE
    server.scripts = [[head(), *(said[at : at + 1] for at in range(len(said)))]]
    assert (await ask(up, body(stream=True))).body == said


@WAYS
async def test_vectors_asked_for_as_base64_come_as_base64(up, server, way):
    """The format goes up and the text comes down; a client that asked for numbers is not given the other's answer."""
    # litellm#42426, #42421; mem0#4057
    packed = base64.b64encode(struct.pack("<3f", 0.5, -1, 2)).decode()
    made = {form: _vectors(value) for form, value in (("base64", packed), ("float", [0.5, -1, 2]))}
    for form in ("base64", "float"):
        server.scripts = [[answer(200, made[form])]]
        sent = body(input=["x"], encoding_format=form, messages=None)
        got = await ask(up, sent, way, endpoint="embeddings")
        assert (json.loads(got.body), server.requests[-1][1]) == (made[form], sent)


def _vectors(vector):
    data = [{"object": "embedding", "index": 0, "embedding": vector}]
    return {"object": "list", "data": data, "model": "up", "usage": {"prompt_tokens": 1, "total_tokens": 1}}


@WAYS
@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "reasoning_details"])
async def test_reasoning_keeps_its_name(up, server, way, name):
    """Streamed or out of the cache, whatever the upstream calls it."""
    # litellm#32068, bifrost#5325
    value = [{"type": "text", "text": "hm"}] if name == "reasoning_details" else "hm"
    server.scripts = [stream_of(part({name: value}), part({"content": "fine"}), part(finish="stop"))]
    assert events((await ask(up, body(stream=True), way)).body)[0]["choices"][0]["delta"] == {name: value}
    if way == "cached":
        whole = json.loads((await ask(up, body())).body)
        assert whole["choices"][0]["message"][name] == value


async def test_a_cached_answer_streams_like_any_other(up, server):
    """Stored whole, asked for as a stream: the same id, role first, the text, one finish, the end mark."""
    # litellm#24579, #11145; semantic-router#1555, #913
    server.scripts = [[answer(200, completion("one two three"))]]
    await ask(up, body())
    got = await ask(up, body(stream=True))
    parts = events(got.body)
    assert (got.headers["x-gateway-cache"], got.headers["content-type"]) == ("hit-exact", "text/event-stream; charset=utf-8")
    assert {(one["id"], one["object"], one["model"]) for one in parts} == {("c1", "chat.completion.chunk", "up")}
    assert parts[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(one["choices"][0]["delta"].get("content", "") for one in parts) == "one two three"
    assert [one["choices"][0]["finish_reason"] for one in parts] == [None] * (len(parts) - 1) + ["stop"]


@WAYS
async def test_a_stream_nobody_asked_for_becomes_one_answer(up, server, way):
    """A client that did not ask to stream gets JSON, though its upstream streamed."""
    # litellm#25766
    server.scripts = [
        stream_of(part({"role": "assistant", "content": "fi"}), part({"content": "ne"}), part(finish="stop"), TRAILER)
    ]
    got = await ask(up, body(), way)
    whole = json.loads(got.body)
    assert (got.headers["content-type"], whole["object"], whole["usage"]) == ("application/json", "chat.completion", USAGE)
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": "fine", "refusal": None}


@WAYS
@pytest.mark.parametrize("stream", [True, False])
async def test_nulls_and_ids_stay(up, server, way, stream):
    """`refusal`, `logprobs`, `finish_reason` and fields nobody knows are there though null; ids are the upstream's."""
    # litellm#16966
    said = completion() | {"id": "chatcmpl-Ab/+=", "service_tier": None}
    said["choices"][0] |= {"logprobs": None}
    parts = [part({"content": "x", "refusal": None}, system_fingerprint=None), part(finish="stop", id="c1")]
    server.scripts = [stream_of(*parts) if stream else [answer(200, said)]]
    got = await ask(up, body(stream=stream), way)
    assert (events(got.body) if stream else json.loads(got.body)) == (parts if stream else said)


async def test_several_choices_all_end(up, server):
    """Three interleaved choices keep their three finish reasons, relayed and made one answer."""
    parts = [part({"content": str(n)}, index=n) for n in (0, 1, 2)] + [part(finish="stop", index=n) for n in (2, 0, 1)]
    server.scripts = [stream_of(*parts)]
    assert events((await ask(up, body(stream=True, n=3))).body) == parts
    whole = json.loads((await ask(up, body(n=3))).body)
    assert [(one["index"], one["message"]["content"], one["finish_reason"]) for one in whole["choices"]] == [
        (0, "0", "stop"),
        (1, "1", "stop"),
        (2, "2", "stop"),
    ]


async def test_no_header_tells_what_runs_here(up, server):
    """Neither our version nor the upstream's server travels to the client."""
    # litellm#39113
    server.scripts = [[answer(200, completion(), server="nginx/1.2.3", x_powered_by="Secret/9", set_cookie="a=b", via="1.1 x")]]
    got = await ask(up, body())
    assert not {"server", "x-powered-by", "set-cookie", "via", "date"} & set(got.headers)


@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
async def test_only_the_null_usage_is_taken_out(up, server, end):
    """Where we asked for usage and hide it again, comments, ids and line ends of the event stay."""
    part = b'{"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"stop"}]%s}'
    said = b": note" + end + b"id: 7" + end + b"data: " + part + end * 2
    done = b"data: [DONE]" + end * 2
    server.scripts = [[head(), said % b',"usage":null', done]]
    assert (await ask(up, body(stream=True))).body == said % b"" + done
