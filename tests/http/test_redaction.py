"""What leaves the house masked, and comes back: over every endpoint and shape, with failures first. The upstream is on a real socket."""

import json

import pytest
from front import POLICY, Client
from hostile import answer, completion, hostile
from parrot import heard, parrot

from gateway.privacy import Detector

REDACT = POLICY + '[[limit]]\nname = "masked"\nredact = "outside"\n'
KEY = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj\n-----END PRIVATE KEY-----"
TEXT = f"Zoë: mail ada@example.org, card 4111 1111 1111 1111, again ada@example.org; [EMAIL_BCDF_1] [x] [\n{KEY} \U0001f600"
SECRETS = ("ada@example.org", "4111 1111 1111 1111", "MIIEvQIBADAN")
ENDPOINTS = ("chat/completions", "completions", "messages", "responses")
BOTH = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
EVERY = pytest.mark.parametrize("endpoint", ENDPOINTS)


def asking(endpoint, text=TEXT, **fields):
    """A request whose last user text is `text`."""
    given = {
        "completions": {"prompt": text},
        "responses": {"input": text, "store": False},
        "messages": {"messages": [{"role": "user", "content": text}], "max_tokens": 9},
    }
    plain = {"messages": [{"role": "user", "content": text}]}
    return json.dumps({"model": "m", **given.get(endpoint, plain), **fields}).encode()


@pytest.fixture
async def server():
    async with hostile() as one:
        one.scripts = [parrot()]
        yield one


@pytest.fixture
def made(world, server):
    """An upstream outside alone, behind a limit that masks."""
    return world(policy=REDACT, up={"base_url": server.base_url, "retries": 0, "zone": "eu"})


def left(server, *words):
    """Which of these words an upstream was sent, as they are or as JSON writes them."""
    sent = b"".join(part for request in server.requests for part in request)
    return [word for word in words if word.encode() in sent or json.dumps(word)[1:-1].encode() in sent]


def code_of(got):
    return json.loads(got.body)["error"]["code"]


async def test_a_detector_that_fails_sends_nothing(made, server):
    """Whatever is raised, nothing leaves, and neither answer nor log holds a word of it."""

    class Failing(Detector):
        def locate(self, text, *, before=""):
            raise RuntimeError(text)

    made.pipeline._redactor._detector = Failing()
    got = await Client(made, asking("chat/completions")).answer()
    assert (got.status, code_of(got), server.requests) == (403, "redaction_failed", [])
    said = repr(made.events) + repr(made.records) + got.body.decode()
    assert ("RuntimeError" in said, [word for word in SECRETS if word in said]) == (True, [])


CANNOT = {
    "number": {"metadata": {"n": 4111111111111111}},
    "two parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": part} for part in ("visa 41111111", "11111111")]}]},
    "logprobs": {"logprobs": True},
    "image": {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]},
    "stored": {"store": True},
    "arguments": {"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": {
        "name": "f", "arguments": '{"card": 4111111111111111}'}}]}]},
}  # fmt: skip


@pytest.mark.parametrize("fields", CANNOT.values(), ids=CANNOT)
async def test_what_cannot_be_masked_stays_here(world, server, fields):
    """The upstream outside is passed over with a reason, and the local one gets the original; without a local one it is a 403."""
    up = {"base_url": server.base_url, "retries": 0, "zone": "eu"}
    both, alone = world(policy=REDACT, up=up, home={}), world(policy=REDACT, up=up)
    for one in (both, alone):
        one.set_capabilities(("chat", "tools", "logprobs", "images"))
    payload = asking("chat/completions", "mail ada@example.org", **fields)
    got = await Client(both, payload).answer()
    if "store" in fields:
        assert (got.status, code_of(got)) == (400, "store_forbidden")
    else:
        assert (got.status, got.headers["x-gateway-route"]) == (200, "home/m")
        assert json.loads(both.upstreams["home"].calls[0].body) == json.loads(payload)
    refused = await Client(alone, payload).answer()
    assert refused.status in {400, 403}
    assert (server.requests, alone.idle()) == ([], True)


@pytest.mark.parametrize("endpoint", ["embeddings", "moderations"])
async def test_endpoints_whose_answer_is_about_the_text_stay_here(made, server, endpoint):
    """An embedding of masked text would be another vector: it is refused by the limit's name, with the reason."""
    got = await Client(made, json.dumps({"model": "m", "input": "ada@example.org"}).encode(), endpoint=endpoint).answer()
    error = json.loads(got.body)["error"]
    assert (got.status, error["code"], server.requests) == (403, "policy_forbidden", [])
    assert f'"masked" ({endpoint} cannot be masked)' in error["message"]


async def test_a_query_that_cannot_be_masked_stays_here(made, server):
    """It travels with the body, and there is no way to put placeholders into a URL's words."""
    got = await Client(made, asking("messages", "hello"), endpoint="messages", query="who=ada%40example.org").answer()
    assert (got.status, server.requests, made.events[-1][0]) == (403, [], "upstream.failed")
    assert ("redaction.failed", "the query of its URL cannot be masked") in [
        (name, one.get("reason")) for name, one in made.events
    ]


async def test_a_body_that_reaches_an_upstream_unmasked_is_a_fault(made, server, monkeypatch):
    """Defence in depth: the dispatch itself refuses a call without a vault."""

    async def forgets(call, *rest, **more):
        return call

    monkeypatch.setattr("gateway.pipeline.masked", forgets)
    got = await Client(made, asking("chat/completions")).answer()
    assert (got.status, server.requests) == (500, [])


@EVERY
@BOTH
async def test_no_original_leaves_and_every_text_comes_back(made, server, endpoint, stream):
    """Content, refusal, reasoning and arguments are what they would be without masks, in every shape of every endpoint."""
    for seed in range(5):
        server.scripts = [parrot(seed=seed)]
        got = await Client(made, asking(endpoint, stream=stream), endpoint=endpoint).answer()
        said = heard(endpoint, got.body, stream=stream)
        assert (got.status, set(said.values())) == (200, {TEXT})
        assert left(server, *SECRETS) == []
        record = made.records[-1]
        assert (record.redacted, record.altered, record.cache) == ({"email": 1, "card": 1, "secret": 1}, 0, "off")
    assert made.idle()


@BOTH
async def test_a_response_through_chat_comes_back(made, server, stream):
    """Masks go into the translated body, and the events are made of the restored answer."""
    made.set_capabilities(("chat", "tools"))
    got = await Client(made, asking("responses", stream=stream), endpoint="responses").answer()
    assert b"POST /v1/chat/completions" in server.requests[0][0]
    if stream:
        said = heard("responses", got.body, stream=True)
        assert {said[name] for name in said} == {TEXT}
    else:
        parts = [part for item in json.loads(got.body)["output"] for part in item.get("content", ())]
        assert {part.get("text") or part.get("refusal") for part in parts} == {TEXT}
    assert left(server, *SECRETS) == []


async def test_what_is_stored_of_a_response_is_the_original(world, server):
    """A class that may be stored is stored here as the client knows it, so that its next turn is masked anew."""
    made = world(policy=REDACT + '[classes]\ninternal = ["email"]\n', up={"base_url": server.base_url, "zone": "eu"})
    made.set_capabilities(("chat", "tools"))
    got = await Client(made, asking("responses", "for ada@example.org", store=True), endpoint="responses").answer()
    kept = await made.responses.store.get(json.loads(got.body)["id"], "default")
    assert "for ada@example.org" in json.dumps(kept)
    done = [{"type": "function_call_output", "call_id": f"call_{n}", "output": "ok"} for n in range(2)]
    more = {
        "model": "m",
        "input": [*done, {"role": "user", "content": "and again"}],
        "previous_response_id": kept["id"],
        "store": False,
    }
    again = await Client(made, json.dumps(more).encode(), endpoint="responses").answer()
    first, second = (json.loads(body)["messages"] for _, body in server.requests)
    assert (again.status, second[: len(first)], left(server, "ada@example.org")) == (200, first, [])


async def test_numbers_of_events_stay_in_order(made, server):
    """An event of ours among a Response's moves the numbers of those behind it on."""
    server.scripts = [parrot(change=lambda text: text + text[-1:] + "[", seed=3)]
    got = await Client(made, asking("responses", "for ada@example.org", stream=True), endpoint="responses").answer()
    numbers = [json.loads(line[6:])["sequence_number"] for line in got.body.decode().splitlines() if line.startswith("data: ")]
    assert numbers == list(range(len(numbers)))


ENDS = {
    "chat/completions": '"finish_reason":"stop"',
    "completions": '"finish_reason":"stop"',
    "messages": '"message_delta"',
    "responses": '"response.completed"',
}
"""What an event holds that ends an answer."""


@EVERY
async def test_what_is_held_goes_out_before_the_end(made, server, endpoint):
    """A text that ends like the beginning of a placeholder is whole before its end is told; so it is before an error."""
    server.scripts = [parrot(change=lambda text: text + text[text.index("[") :][:9], seed=1)]
    got = await Client(made, asking(endpoint, "for ada@example.org", stream=True), endpoint=endpoint).answer()
    for said in heard(endpoint, got.body, stream=True).values():
        assert said.startswith("for ada@example.org[EMAIL_")
    lines = [line for line in got.body.decode().splitlines() if line.startswith("data: {")]
    end = next(place for place, line in enumerate(lines) if ENDS[endpoint] in line.replace(" ", ""))
    assert end > max(place for place, line in enumerate(lines) if "[EMAIL_" in line and "response.completed" not in line)


async def test_a_cut_stream_gives_what_was_held_and_then_the_error(made, server):
    """The held end is text that came; the answer is never told as whole."""
    cut = [b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"to [EMA"},"finish_reason":null}]}\n\n']

    def script(request, body):
        return [b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 9999\r\n\r\n", *cut]

    server.scripts = [script]
    got = await Client(made, asking("chat/completions", "ada@example.org", stream=True)).answer()
    told = [json.loads(line[6:]) for line in got.body.decode().splitlines() if line.startswith("data: {")]
    assert "".join(one["choices"][0]["delta"]["content"] for one in told[:-1]) == "to [EMA"
    assert ("error" in told[-1], made.records[0].ending) == (True, "broken")


@BOTH
async def test_altered_placeholders_are_counted_and_left(made, server, stream):
    """Case, blanks, a missing bracket, an unknown number: each is text like any other, and the record has their number."""

    def change(text):
        mark = text[text.index("[") : text.index("]") + 1]
        return " ".join([mark, mark.lower(), mark.replace("_", " "), mark[1:], mark.replace("_1]", "_77]")])

    server.scripts = [parrot(change=change)]
    got = await Client(made, asking("completions", "for ada@example.org", stream=stream), endpoint="completions").answer()
    (said,) = heard("completions", got.body, stream=stream).values()
    assert (said.split()[0], "ada" in said.partition(" ")[2]) == ("ada@example.org", False)
    assert made.records[0].altered == 4


async def test_a_fallback_masks_for_those_outside_alone(world, server):
    """One decision: the upstream outside fails and has seen masks, the local one answers and has seen the original."""
    server.scripts = [[answer(500, {"error": {"message": "no"}})]]
    made = world(policy=REDACT, up={"base_url": server.base_url, "retries": 1, "zone": "eu"}, home={})
    got = await Client(made, asking("chat/completions", stream=True)).answer()
    said = "".join(
        json.loads(line[6:])["choices"][0]["delta"].get("content", "")
        for line in got.body.decode().splitlines()
        if line.startswith("data: {")
    )
    assert (got.headers["x-gateway-route"], said) == ("home/m", TEXT)
    assert (len(server.requests), left(server, *SECRETS)) == (2, [])
    assert made.records[0].ending == "fallback"


async def test_a_masked_request_is_never_in_the_cache(world, server):
    """Neither stored nor looked up, though its class might be; an unmasked one beside it is."""
    policy = REDACT + '[classes]\ninternal = ["email"]\n'
    made = world(policy=policy, up={"base_url": server.base_url, "retries": 0, "zone": "eu"})
    server.scripts = [[answer(200, completion())]]
    for text, outcome in (("ada@example.org", ["off", "off"]), ("hello", ["miss", "hit-exact"])):
        for _ in range(2):
            await Client(made, asking("chat/completions", text)).answer()
        assert [record.cache for record in made.records[-2:]] == outcome


async def test_placeholders_stay_the_same_over_turns(made, server):
    """The second turn sends the bytes of the first again, so that an upstream's prompt cache stays warm; another tenant's differ."""
    first = [{"role": "system", "content": "write to bob@example.org"}, {"role": "user", "content": TEXT}]
    more = [{"role": "assistant", "content": TEXT}, {"role": "user", "content": "and eve@example.org?"}]
    for messages in (first, first + more):
        await Client(made, json.dumps({"model": "m", "messages": messages}).encode()).answer()
    one, two = (json.loads(body)["messages"] for _, body in server.requests)
    assert (two[:2], two[2]["content"]) == (one, one[1]["content"])
    made.key = made.key_file.add("other", tenant="other")
    await Client(made, json.dumps({"model": "m", "messages": first}).encode()).answer()
    assert json.loads(server.requests[2][1])["messages"] != one


async def test_without_the_limit_nothing_is_touched(world, server):
    """The body travels as it came, whatever is found in it."""
    made = world(up={"base_url": server.base_url, "retries": 0, "zone": "eu"})
    await Client(made, asking("chat/completions")).answer()
    assert json.loads(server.requests[0][1])["messages"][0]["content"] == TEXT
    assert made.records[0].redacted == {}
    assert left(server, *SECRETS) == [*SECRETS]
