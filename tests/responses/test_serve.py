"""Responses served on top of chat by the whole request path: every ending, every shape, and what is stored of it."""

import asyncio
import json
import sqlite3

import conformance
import pytest
from front import POLICY, Client
from hostile import answer, begun, chunk, completion, ended, error, head, hostile, response, says
from hypothesis import given
from hypothesis import strategies as st
from test_ask import JUNK

from gateway import wire
from gateway.affinity import Made
from gateway.auth import KeyFile
from gateway.errors import InvalidRequest
from gateway.responses import ask
from gateway.responses.answer import Events
from gateway.responses.serve import ENDPOINTS, NOTHING, ways

BOTH = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
SLOW = {"ms_per_token": 60_000.0}
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}}


def asking(given="one two three", **fields):
    return json.dumps({"model": "m", "input": given, **fields}).encode()


async def post(made, payload, **options):
    return await Client(made, payload, **{"endpoint": "responses", **options}).answer()


def said(got):
    """The Response object that an answer ends with, streamed or whole; each event of a stream is checked."""
    if not got.headers["content-type"].startswith("text/event-stream"):
        told = json.loads(got.body)
    else:
        events = [json.loads(line[6:]) for line in got.body.decode().splitlines() if line.startswith("data: ")]
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        for event in events:
            conformance.check({name: value for name, value in event.items() if name != "error"}, "ResponseStreamEvent")
        told = events[-1]["response"]
    conformance.check(told, "Response")
    return told


def text_of(told):
    return "".join(part["text"] for item in told["output"] for part in item.get("content", ()))


def failed(got):
    return got.status, json.loads(got.body)["error"]["code"], json.loads(got.body)["error"]["param"]


def one_record(made):
    assert made.idle()
    (record,) = made.records
    return record


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0)


@BOTH
async def test_chat_answers_a_response(world, stream):
    """What OpenAI describes, the client's own model name, usage in answer and record, text in the log, nothing open."""
    made = world(a={})
    got = await post(made, asking(stream=stream, instructions="Be brief."))
    told = said(got)
    assert (got.status, told["status"], text_of(told), told["model"], told["store"]) == (
        200,
        "completed",
        "one two three",
        "m",
        True,
    )
    assert (told["usage"]["input_tokens"], told["usage"]["output_tokens"]) == (3, 3)
    record = one_record(made)
    assert (record.endpoint, record.ending, record.route, record.stream) == ("responses", "complete", "a/m", stream)
    assert record.usage.completion_tokens == 3
    assert "".join(token.text for token in made.tokens) == "one two three"


@BOTH
async def test_a_limit_of_the_client_makes_it_incomplete(world, stream):
    """`max_output_tokens` reaches chat, and its finish reason comes back as the reason."""
    told = said(await post(world(a={}), asking(stream=stream, max_output_tokens=2)))
    assert (told["status"], told["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})


@BOTH
async def test_what_chat_gets(world, stream):
    """The chat request with the upstream's model name; usage is asked for where the upstream knows the word."""
    async with hostile() as server:
        for knows in (True, False):
            made = world(up={"base_url": server.base_url, "retries": 0, "inject_usage": knows})
            made.set_capabilities(("chat", "tools"))
            server.scripts = [
                [head(), chunk("fi"), chunk("ne", finish="stop"), b"data: [DONE]\n\n"] if stream else [answer(200, completion())]
            ]
            told = said(await post(made, asking("hi", stream=stream, tools=[TOOL], max_output_tokens=5)))
            assert text_of(told) == "fine"
            start, sent = server.requests.pop()
            sent = json.loads(sent)
            assert start.startswith(b"POST /v1/chat/completions ")
            assert (sent["model"], sent["messages"], sent["max_completion_tokens"]) == (
                "m",
                [{"role": "user", "content": "hi"}],
                5,
            )
            assert sent["tools"][0]["function"]["name"] == "weather"
            assert ("stream_options" in sent) == (stream and knows)
            assert sent.keys().isdisjoint({"store", "input", "previous_response_id"})


@BOTH
@pytest.mark.parametrize("first", ["chat", "native"])
async def test_fallback_crosses_from_one_way_to_the_other(world, stream, first):
    """One decision: what the first option fails at, the other serves in its own way, and the client sees a Response."""
    async with hostile() as server:
        upstreams = {"up": {"base_url": server.base_url, "retries": 0}, "echo": {}}
        if first == "chat":
            upstreams = {"echo": {"fail": "first"}, "up": upstreams["up"]}
        made = world(**upstreams)
        native = [head(), begun(), says("fine", 1), ended(2)] if stream else [answer(200, response())]
        server.scripts = [[error(500)] if first == "native" else native]
        got = await post(made, asking(stream=stream))
    assert (b"fine" in got.body, b"three" in got.body) == (first == "chat", first == "native")
    assert (server.requests[0][0].startswith(b"POST /v1/responses "), made.records[0].ending) == (True, "fallback")


async def test_broken_half_way(world):
    """`error`, then `response.failed`, numbered on; the record says broken, and nothing is stored."""
    made = world(a={"fail": "midway"})
    got = await post(made, asking(stream=True))
    told = said(got)
    names = [line[7:] for line in got.body.decode().splitlines() if line.startswith("event: ")]
    assert (names[-2:], told["status"], told["error"]["code"]) == (["error", "response.failed"], "failed", "server_error")
    assert (one_record(made).ending, made.records[0].error, b"[DONE]" in got.body) == ("broken", "cut", False)
    assert (await Client(made, endpoint=f"responses/{told['id']}", method="GET").answer()).status == 404


async def test_an_end_without_a_reason_is_no_end(world):
    """A chat stream with its end mark, but without a finish reason, fails; the record says broken, and nothing is stored."""
    async with hostile() as server:
        made = world(up={"base_url": server.base_url, "retries": 0})
        made.set_capabilities(("chat",))
        server.scripts = [[head(), chunk("fi"), b"data: [DONE]\n\n"]]
        got = await post(made, asking(stream=True))
    assert (said(got)["status"], one_record(made).ending, await made.responses.store.purge()) == ("failed", "broken", 0)


async def test_an_upstreams_error_in_mid_stream_keeps_its_words(world):
    """Message and code of the chat error stand in the `error` event."""
    async with hostile() as server:
        made = world(up={"base_url": server.base_url, "retries": 0})
        made.set_capabilities(("chat",))
        server.scripts = [
            [head(), chunk("fi"), b'data: {"error":{"message":"out of luck","code":"c7","type":"t","param":null}}\n\n']
        ]
        got = await post(made, asking(stream=True))
    (event,) = [json.loads(line[6:]) for line in got.body.decode().splitlines() if '"type":"error"' in line]
    assert (event["message"], event["code"], said(got)["status"]) == ("out of luck", "c7", "failed")
    assert one_record(made).ending == "broken"


@BOTH
async def test_all_failed(world, stream):
    """Before the first event the client gets a real status."""
    made = world(a={"fail": "connect"}, b={"fail": "first"})
    got = await post(made, asking(stream=stream))
    assert (got.status, one_record(made).ending, made.records[0].tried) == (502, "failed", ("a/m", "b/m"))


@BOTH
async def test_client_gone_before_the_first_token(world, stream):
    """Whoever leaves while the upstream thinks has cost it no more than that."""
    made = world(a=SLOW | {"fail": "hang" if stream else ""})
    client = Client(made, asking(stream=stream), endpoint="responses")
    await until(lambda: made.upstreams["a"].calls)
    client.leaves.set()
    await client.task
    assert (one_record(made).ending, made.records[0].status, client.sent) == ("client_gone", 499, [])


async def test_client_gone_in_mid_stream(world):
    """The record says so, and nothing is stored."""
    made = world(a=SLOW)
    client = Client(made, asking(stream=True), endpoint="responses")
    await until(lambda: len(client.sent) > 1)
    client.leaves.set()
    await client.task
    assert (one_record(made).ending, made.records[0].status) == ("client_gone", 200)
    assert await made.responses.store.purge() == 0


@pytest.mark.parametrize("how", ["client_gone", "cancelled"])
async def test_an_answer_without_its_last_event_was_not_delivered(world, how):
    """Chat has ended, but who leaves, or is stopped, before `response.completed` has no whole answer: the record says so."""
    made = world(a={})
    stored, go_on = asyncio.Event(), asyncio.Event()
    put = made.responses.store.put

    async def slow_put(*args, **kwargs):
        stored.set()
        await go_on.wait()
        await put(*args, **kwargs)

    made.responses.store.put = slow_put
    client = Client(made, asking(stream=True), endpoint="responses")
    await stored.wait()
    if how == "client_gone":
        client.leaves.set()
        await client.task
    else:
        client.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await client.task
    assert (one_record(made).ending, made.records[0].usage.completion_tokens) == (how, 3)
    assert b"response.completed" not in b"".join(message.get("body", b"") for message in client.sent)


@BOTH
async def test_a_fault_before_the_first_byte_leaves_nothing_open(world, stream):
    """A crash while the answer is made ready closes the upstream, and is a 500 with one record."""
    made = world(a={})

    async def broken(*_, **__):
        raise RuntimeError("no")

    made.responses.write = broken
    got = await post(made, asking(stream=stream))
    assert (got.status, one_record(made).status >= 200) == (500, True)


@BOTH
async def test_never_read(world, stream):
    """An answer that nobody takes closes its upstream all the same."""
    made = world(a={})
    reply = await made.pipeline.answer(made.incoming(asking(stream=stream), "responses"), made.ledger(endpoint="responses"))
    await reply.aclose()
    await reply.aclose()
    assert one_record(made).ending == "never_read"


async def test_a_fault_of_ours_is_told_in_the_clients_dialect(world):
    """A crash in mid-stream ends with `response.failed`, and the record says broken."""
    made = world(a={})
    made.responses.store.put = None
    got = await post(made, asking(stream=True))
    assert (said(got)["status"], one_record(made).ending, made.records[0].error) == ("failed", "broken", "TypeError")
    assert b"[DONE]" not in got.body


@BOTH
async def test_a_chat_answer_is_hit_by_a_response(world, stream):
    """The cache knows one question in either dialect; the hit is a Response of its own, which can be asked for again."""
    made = world(a={})
    chat = json.dumps({"model": "m", "messages": [{"role": "user", "content": "one two three"}]}).encode()
    await Client(made, chat).answer()
    told = [said(await post(made, asking(stream=stream))) for _ in range(2)]
    assert [record.ending for record in made.records] == ["complete", "hit", "hit"]
    assert (text_of(told[0]), told[0]["usage"]["output_tokens"], told[0]["id"] != told[1]["id"]) == ("one two three", 3, True)
    for one in told:
        got = await Client(made, endpoint=f"responses/{one['id']}", method="GET").answer()
        assert text_of(json.loads(got.body)) == "one two three"
    assert len(made.upstreams["a"].calls) == 1


@BOTH
async def test_a_conversation_goes_on(world, stream):
    """Each turn brings all before it to the upstream, and the stored response is there as soon as its last event is."""
    made = world(a={})
    previous = None
    for n in range(3):
        told = said(await post(made, asking(f"turn {n}", stream=stream, previous_response_id=previous)))
        assert told["previous_response_id"] == previous
        previous = told["id"]
    sent = json.loads(made.upstreams["a"].calls[-1].body)["messages"]
    assert [message["content"] for message in sent] == ["turn 0", "turn 0", "turn 1", "turn 1", "turn 2"]


async def test_a_reference_brings_the_item(world):
    """`item_reference` of an item that we keep; one of nobody's is refused by its place."""
    made = world(a={})
    told = said(await post(made, asking("remember me")))
    item = {"type": "item_reference", "id": told["output"][0]["id"]}
    await post(made, asking([item, {"role": "user", "content": "go on"}]))
    assert [one["content"] for one in json.loads(made.upstreams["a"].calls[-1].body)["messages"]] == ["remember me", "go on"]
    got = await post(made, asking([{"type": "item_reference", "id": "msg_none"}, {"role": "user", "content": "go on"}]))
    assert failed(got) == (400, None, "input[0].id")


async def test_ours_goes_on_through_chat_only(world):
    """An option that speaks Responses does not know our ids: the request never goes there, not even when chat fails."""
    async with hostile() as server:
        made = world(up={"base_url": server.base_url, "retries": 0}, echo={})
        server.scripts = [[error(500)], [error(500)]]
        first = said(await post(made, asking()))
        told = said(await post(made, asking("more", previous_response_id=first["id"])))
        asked = [request.split(b" HTTP")[0] for request, _ in server.requests]
        assert (text_of(told), asked) == ("more", [b"POST /v1/responses", b"POST /v1/chat/completions"])


async def test_theirs_goes_on_where_it_is(world):
    """A response that an upstream keeps is never continued through chat."""
    async with hostile() as server:
        made = world(echo={}, up={"base_url": server.base_url, "retries": 0})
        made.affinity.remember("default", "resp_7", Made("up", "m", "m", "public"))
        server.scripts = [[answer(200, response())]]
        assert b"fine" in (await post(made, asking(previous_response_id="resp_7"))).body
    assert made.upstreams["echo"].calls == []


async def test_another_tenants_response_is_unknown(world):
    """To continue, read, list, cancel and delete; nothing is sent for it."""
    made = world(a={})
    told = said(await post(made, asking()))
    made.upstreams["a"].calls.clear()
    made.key = KeyFile(made.keys._file.path).add("stranger", tenant="other")
    assert failed(await post(made, asking(previous_response_id=told["id"])))[1:] == (
        "previous_response_not_found",
        "previous_response_id",
    )
    item = {"type": "item_reference", "id": told["output"][0]["id"]}
    assert failed(await post(made, asking([item]))) == (400, None, "input[0].id")
    for method, tail in (("GET", ""), ("GET", "/input_items"), ("POST", "/cancel"), ("DELETE", "")):
        got = await Client(made, endpoint=f"responses/{told['id']}{tail}", method=method).answer()
        assert failed(got) == (404, "response_not_found", "response_id")
    assert made.upstreams["a"].calls == []


async def test_the_class_of_a_conversation_never_sinks(world):
    """What goes on from an internal response is internal, though its own words are public; references count too."""
    made = world(a={})
    told = said(await post(made, asking(), x_gateway_class="internal"))
    item = {"type": "item_reference", "id": told["output"][0]["id"]}
    for more in (asking("hi", previous_response_id=told["id"]), asking([item, {"role": "user", "content": "hi"}])):
        made.records.clear()
        await post(made, more)
        assert one_record(made).class_ == "internal"


@pytest.mark.parametrize("asked", [True, None])
async def test_above_the_clearance_nothing_is_stored(world, asked):
    """`store: true` is refused by name; unsaid, the answer comes and says `store: false`, and its id finds nothing."""
    made = world(a={})
    got = await post(made, asking(store=asked), x_gateway_class="confidential")
    if asked:
        assert (failed(got), made.upstreams["a"].calls) == ((400, "store_forbidden", "store"), [])
        return
    told = said(got)
    assert (told["store"], text_of(told)) == (False, "one two three")
    assert (await Client(made, endpoint=f"responses/{told['id']}", method="GET").answer()).status == 404
    assert await made.responses.store.purge() == 0


async def test_above_the_clearance_who_stores_is_left_out(world):
    """Of a native and a chat option only the chat one is asked, since the other would keep what it gets."""
    async with hostile() as server:
        made = world(up={"base_url": server.base_url, "retries": 0}, echo={})
        assert text_of(said(await post(made, asking(), x_gateway_class="confidential"))) == "one two three"
        assert server.requests == []


async def test_a_secret_in_a_conversation_of_ours_raises_its_class(world):
    """New words are judged together with the old ones, and what may not be stored then goes on all the same."""
    made = world(a={})
    told = said(await post(made, asking()))
    more = said(await post(made, asking("my card is 4111 1111 1111 1111", previous_response_id=told["id"])))
    assert (made.records[1].class_ in {"confidential", "restricted"}, more["store"]) == (True, False)


async def test_metadata_is_judged_before_it_is_stored(world):
    """What never reaches the upstream reaches the store: sensitive text there keeps the response out of it."""
    made = world(a={})
    told = said(await post(made, asking()))
    fields = {"metadata": {"note": "4111 1111 1111 1111"}}
    for payload in (asking(**fields), asking(previous_response_id=told["id"], **fields)):
        assert said(await post(made, payload))["store"] is False


async def test_what_is_not_to_be_stored_is_not(world):
    """`store: false` leaves nothing behind."""
    made = world(a={})
    told = said(await post(made, asking(store=False)))
    assert (told["store"], await made.responses.store.purge()) == (False, 0)


@BOTH
async def test_an_answer_that_cannot_be_stored_is_an_answer(world, stream):
    """The disk fails after the model has spoken: the client gets its answer, which says that it is not stored."""
    made = world(a={})

    def broken(*_):
        raise sqlite3.OperationalError("disk I/O error")

    made.responses.store._opened = broken
    told = said(await post(made, asking(stream=stream)))
    assert (text_of(told), told["store"]) == ("one two three", False)
    assert ("response.unstored", {"request_id": made.records[0].request_id, "reason": "state_unavailable"}) in made.events


REFUSED = {
    "tools[0].type": {"tools": [{"type": "web_search"}]},
    "background": {"background": True},
    "input[0].type": {"input": [{"type": "computer_call", "id": "c"}]},
    "temperature": {"temperature": "hot"},
    "nonsense": {"nonsense": 1},
    "include[0]": {"include": ["file_search_call.results"]},
}


@pytest.mark.parametrize(("param", "fields"), REFUSED.items(), ids=REFUSED)
async def test_what_chat_cannot_do_goes_to_who_can_or_is_refused_by_name(world, param, fields):
    """With chat options only, 400 with the place; beside a native option, that one is asked and gets the bytes as they came."""
    made = world(a={})
    assert failed(await post(made, asking(**fields)))[::2] == (400, param)
    assert made.upstreams["a"].calls == []
    async with hostile() as server:
        made = world(a={}, up={"base_url": server.base_url})
        server.scripts = [[answer(200, response())]]
        got = await post(made, asking(**fields))
        assert (got.status, server.requests[0][1], made.upstreams["a"].calls) == (200, asking(**fields), [])


async def test_capabilities_hold_through_chat(world):
    """Tools that the model does not have: the refusal names what is lacking."""
    made = world(a={})
    made.set_capabilities(("chat",))
    got = await post(made, asking(tools=[TOOL]))
    assert failed(got) == (400, "unsupported_by_model", "model")
    assert "chat" in json.loads(got.body)["error"]["message"]
    assert "tools" in json.loads(got.body)["error"]["message"]


async def test_images_of_earlier_turns_count(world):
    """A model without `images` cannot continue what holds one."""
    made = world(policy=POLICY + '[classes]\ninternal = ["unscannable"]\n')
    made.set_capabilities(("chat", "images"))
    parts = [{"type": "input_text", "text": "what is this"}, {"type": "input_image", "image_url": "data:image/png;base64,AA=="}]
    told = said(await post(made, asking([{"role": "user", "content": parts}])))
    made.set_capabilities(("chat",))
    assert failed(await post(made, asking("and now", previous_response_id=told["id"])))[1] == "unsupported_by_model"


async def test_a_codex_like_request(world):
    """Streamed, unstored, with tools, encrypted reasoning asked for by habit, and a call with its output among the input."""
    made = world(a={})
    items = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "You are a coding agent."}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "list files"}]},
        {"type": "reasoning", "summary": [], "encrypted_content": "opaque"},
        {"type": "function_call", "call_id": "c1", "name": "shell", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "a.txt"},
    ]
    told = said(
        await post(
            made,
            asking(
                items, instructions="Be exact.", tools=[TOOL], tool_choice="auto", parallel_tool_calls=False, stream=True,
                store=False, include=["reasoning.encrypted_content"], reasoning={"effort": "medium", "summary": "auto"},
                prompt_cache_key="k", text={"verbosity": "low"},
            ),
        )
    )  # fmt: skip
    assert (text_of(told), told["store"]) == ("list files", False)
    sent = json.loads(made.upstreams["a"].calls[0].body)
    assert [message["role"] for message in sent["messages"]] == ["system", "developer", "user", "assistant", "tool"]


async def test_tool_calls_come_back_and_go_on(world):
    """A call in the chat answer is an item; its output continues the conversation by id."""
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"at":"x"}'}}
    first = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "up"}
    delta = {**first, "choices": [{"index": 0, "delta": {"role": "assistant", "tool_calls": [call]}, "finish_reason": None}]}
    last = {**first, "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}
    async with hostile() as server:
        made = world(up={"base_url": server.base_url, "retries": 0})
        made.set_capabilities(("chat", "tools"))
        server.scripts = [
            [head(), *(b"data: " + json.dumps(one).encode() + b"\n\n" for one in (delta, last)), b"data: [DONE]\n\n"]
        ]
        server.scripts.append([answer(200, completion("dry"))])
        told = said(await post(made, asking("rain?", tools=[TOOL], stream=True)))
        (item,) = told["output"]
        assert (item["type"], item["name"], item["arguments"], item["call_id"]) == (
            "function_call",
            "weather",
            '{"at":"x"}',
            "c1",
        )
        output = [{"type": "function_call_output", "call_id": "c1", "output": "dry"}]
        again = said(await post(made, asking(output, tools=[TOOL], previous_response_id=told["id"])))
        assert text_of(again) == "dry"
        roles = [message["role"] for message in json.loads(server.requests[1][1])["messages"]]
        assert roles == ["user", "assistant", "tool"]


async def test_a_stored_response_is_read_listed_and_deleted(world):
    """By us, without asking any upstream; then it is gone for every path, and cannot be continued."""
    made = world(a={})
    told = said(await post(made, asking([{"role": "user", "content": str(n)} for n in range(3)])))
    made.upstreams["a"].calls.clear()

    async def ask(tail="", method="GET", query=""):
        return await Client(made, endpoint=f"responses/{told['id']}{tail}", method=method, query=query).answer()

    got = await ask()
    assert (json.loads(got.body), got.headers["x-gateway-route"]) == (told, "gateway")
    page = json.loads((await ask("/input_items", query="limit=2&order=asc")).body)
    assert ([item["content"][0]["text"] for item in page["data"]], page["has_more"]) == (["0", "1"], True)
    conformance.check(page, "ResponseItemList")
    assert failed(await ask("/cancel", "POST")) == (400, "not_cancellable", "response_id")
    assert json.loads((await ask(method="DELETE")).body) == {"id": told["id"], "object": "response", "deleted": True}
    assert (await ask()).status == (await ask("/input_items")).status == (await ask(method="DELETE")).status == 404
    assert failed(await post(made, asking(previous_response_id=told["id"])))[1] == "previous_response_not_found"
    assert made.upstreams["a"].calls == []
    assert {record.model for record in made.records[1:5]} == {"m"}


QUERIES = {
    "limit": ("/input_items", "limit=ten"),
    "order": ("/input_items", "order=up"),
    "after": ("/input_items", "after=msg_none"),
    "before": ("/input_items", "before=x"),
    "stream": ("", "stream=true"),
    "starting_after": ("", "starting_after=3"),
}


@pytest.mark.parametrize(("param", "asked"), QUERIES.items(), ids=QUERIES)
async def test_a_query_that_means_nothing_here_is_refused_by_name(world, param, asked):
    """Pages that cannot be, and replaying events, which are not kept."""
    made = world(a={})
    told = said(await post(made, asking()))
    got = await Client(made, endpoint=f"responses/{told['id']}{asked[0]}", method="GET", query=asked[1]).answer()
    assert failed(got)[::2] == (400, param)


async def test_input_tokens_are_counted_here(world):
    """For a chat option nobody is asked; earlier turns count, and the model may be left out."""
    made = world(a={})
    told = said(await post(made, asking("w " * 100)))
    made.upstreams["a"].calls.clear()
    counts = []
    for payload in ({"input": "hi"}, {"input": "hi", "previous_response_id": told["id"]}):
        got = await Client(made, json.dumps(payload).encode(), endpoint="responses/input_tokens").answer()
        assert (got.status, json.loads(got.body)["object"]) == (200, "response.input_tokens")
        counts.append(json.loads(got.body)["input_tokens"])
    assert (made.upstreams["a"].calls, counts[0] < 20, counts[1] > 100) == ([], True, True)
    assert [record.ending for record in made.records] == ["complete"] * 3
    got = await Client(made, json.dumps({"input": "x", "personality": "y"}).encode(), endpoint="responses/input_tokens").answer()
    assert failed(got) == (400, "unknown_parameter", "personality")


async def test_a_policy_forbids_through_chat_as_well(world):
    """A limit on the zone holds whatever way the request would take."""
    made = world(policy=POLICY + '[[limit]]\nname = "none"\nwhen = { endpoint = "responses" }\nnever = { zone = "local" }\n')
    assert failed(await post(made, asking()))[:2] == (403, "policy_forbidden")


@given(
    endpoint=st.sampled_from(sorted(ENDPOINTS)),
    request=st.fixed_dictionaries({"model": st.just("m")}, optional={row.name: JUNK for row in ask.TABLE if row.name != "model"}),
)
def test_whatever_can_be_translated_can_be_answered(endpoint, request):
    """No request that becomes a chat request fails later: not where it is sent, written as a Response, or made ready to store."""
    try:
        how = ways(wire.of(endpoint, request), NOTHING)
    except InvalidRequest:
        return
    if how.chat is None:
        assert how.refusal.param
        return
    json.loads(how.chat.body("up", with_usage=False))
    events = Events(how.chat.data, "resp_1", 1, "m")
    events.whole(completion())
    json.dumps([events.response, ask.input_items(how.chat.data, "resp_1"), how.chat.said])
