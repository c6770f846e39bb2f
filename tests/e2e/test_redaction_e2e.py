"""The redaction round trip over real processes: a gateway, OpenAI's SDK, and an upstream on a socket that records what it gets."""

import base64
import json

import httpx
import openai
import pytest
from gateways import MODELS, Gateway, until
from hostile import HANG, answer, hostile
from parrot import parrot

MAIL, CARD = "ada.lovelace@example.org", "4111 1111 1111 1111"
TEXT = f'write "hello" to {MAIL}, charge {CARD}, and once more {MAIL}'
CONFIG = """
[upstreams.far]
kind = "openai"
base_url = "{url}"
zone = "eu"
retention = "none"
trains = false
takes_up_to = "restricted"
retries = 0
[upstreams.home]
{home}
[models.far]
candidates = [{{ upstream = "far", capabilities = ["chat", "completions", "tools", "responses", "messages"] }}]
[models.both]
candidates = [{{ upstream = "far", capabilities = ["chat"] }}, {{ upstream = "home", model = "{model}", capabilities = ["chat"], context = 2048 }}]
[cache]
semantic = false
"""
ECHO_HOME = 'kind = "echo"\nzone = "local"\ntakes_up_to = "restricted"'
POLICY = """
policy = "cost"
[[limit]]
name = "masked outside"
redact = "outside"
[[route]]
name = "as listed"
order_by = "listed"
"""


@pytest.fixture
async def server():
    async with hostile() as one:
        one.scripts = [parrot(seed=7)]
        yield one


def gateway_before(server, folder, *, home=ECHO_HOME, model="echo", more=""):
    config = CONFIG.format(url=server.base_url, home=home, model=model) + more
    return Gateway(folder, config, policies={"all.toml": POLICY})


def client_of(gateway):
    return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0, timeout=300)


def leaks(server, gateway):
    """Where an original stands that it must not: at the upstream, on standard error, in any file of the state folder.

    As it is, as base64 has it, and as its digits alone.
    """
    places = {"upstream": b"".join(part for request in server.requests for part in request), "said": gateway.said.encode()}
    places |= {str(path): path.read_bytes() for path in (gateway.folder / "state").rglob("*") if path.is_file()}
    forms = [word.encode() for word in (MAIL, CARD, CARD.replace(" ", ""))]
    forms += [base64.b64encode(word[shift:])[:-4] for word in forms for shift in range(3)]
    return [place for place, text in places.items() for form in forms if form in text]


async def test_the_sdk_sees_originals_and_the_upstream_masks(server, tmp_path):
    """Chat, completions and responses, whole and streamed, content and tool calls: nothing the client gets shows that it was masked."""
    messages = [{"role": "system", "content": f"you serve {MAIL}"}, {"role": "user", "content": TEXT}]
    with gateway_before(server, tmp_path) as gateway:
        async with client_of(gateway) as client:
            told = (await client.chat.completions.create(model="far", messages=messages)).choices[0].message
            assert {told.content, json.loads(told.tool_calls[1].function.arguments)["said"]} == {TEXT}
            async with client.chat.completions.stream(model="far", messages=messages) as stream:
                async for _ in stream:
                    pass
                told = (await stream.get_final_completion()).choices[0].message
            assert {told.content, json.loads(told.tool_calls[1].function.arguments)["said"]} == {TEXT}
            assert (await client.completions.create(model="far", prompt=TEXT)).choices[0].text == TEXT
            response = await client.responses.create(model="far", input=TEXT, store=False)
            assert response.output_text == TEXT
            async with client.responses.stream(model="far", input=TEXT, store=False) as stream:
                async for _ in stream:
                    pass
                assert (await stream.get_final_response()).output_text == TEXT
            assert leaks(server, gateway) == []
            raw = await client.chat.completions.with_raw_response.create(model="far", messages=messages)
        record = gateway.record(raw.headers["x-request-id"])
        assert (record["redacted"], record["altered"], record["cache"]) == ({"email": 1, "card": 1}, 0, "off")
        assert (record["class"], record["found"]) == ("restricted", ["card", "email"])
        assert "masked: card 6, email 6" in gateway.cli("stats").stdout
    assert leaks(server, gateway) == []
    assert len({body for head, body in server.requests if b"/chat/" in head and b'"stream"' not in body}) == 1


async def test_a_planted_leak_is_found(server, tmp_path):
    """Without the limit the same search finds the originals at the upstream: the tests above could fail."""
    config = CONFIG.format(url=server.base_url, home=ECHO_HOME, model="echo")
    with Gateway(tmp_path, config, policies={"all.toml": POLICY.replace('redact = "outside"', 'cache = "off"')}) as gateway:
        async with client_of(gateway) as client:
            await client.completions.create(model="far", prompt=TEXT)
        assert set(leaks(server, gateway)) == {"upstream"}


async def test_a_refusal_and_an_error_hold_no_original(server, tmp_path):
    """What cannot be masked is refused with its reason; the log of it has no word of the text."""
    with gateway_before(server, tmp_path) as gateway:
        async with client_of(gateway) as client:
            with pytest.raises(openai.PermissionDeniedError) as caught:
                await client.completions.create(model="far", prompt=TEXT, logprobs=1)
        error = caught.value
        assert (error.code, "leave out logprobs" in error.message) == ("redaction_failed", True)
        lines = [*gateway.lines(gateway.record(error.response.headers["x-request-id"])["request_id"])]
        assert "redaction.failed" in {line["event"] for line in lines}
        assert [word for word in (MAIL, CARD) if word in json.dumps(lines) + str(error)] == []
        assert server.requests == []


async def test_the_explanation_says_that_it_leaves_masked(server, tmp_path):
    """`gateway explain` on a body, and the header of an answer."""
    with gateway_before(server, tmp_path) as gateway:
        asked = {"model": "far", "messages": [{"role": "user", "content": TEXT}]}
        (tmp_path / "body.json").write_text(json.dumps(asked))
        assert json.loads(gateway.cli("explain", str(tmp_path / "body.json"), "--json").stdout)["decision"]["redact"] is True
        async with client_of(gateway) as client:
            raw = await client.chat.completions.with_raw_response.create(**asked, extra_headers={"x-gateway-explain": "1"})
        assert json.loads(raw.headers["x-gateway-explain"])["redact"] is True


async def test_a_killed_front_worker_cuts_a_masked_stream_and_leaves_nothing_behind(server, tmp_path):
    """The client sees a cut and no end; no file holds an original, also after the restart, when the question is answered again."""
    begins = lambda *request: [*parrot(seed=7, cut_after=60)(*request), HANG]  # noqa: E731
    server.scripts = [begins, parrot(seed=7)]
    asked = {"model": "far", "messages": [{"role": "user", "content": TEXT}]}
    with gateway_before(server, tmp_path) as gateway:
        http = {"base_url": gateway.url, "headers": {"authorization": f"Bearer {gateway.key}"}, "timeout": 300}
        got = []

        def said():
            deltas = [choice["delta"] for line in got if line[:7] == "data: {" for choice in json.loads(line[6:])["choices"]]
            return "".join(delta.get("content") or "" for delta in deltas)

        async def read_on(lines, enough):
            while not enough():
                got.append(await anext(lines))

        async with (
            httpx.AsyncClient(**http) as client,
            client.stream("POST", "/v1/chat/completions", json={**asked, "stream": True}) as answer,
        ):
            lines = answer.aiter_lines()
            await read_on(lines, lambda: "ada.lo" in said())
            pid = gateway.kill("gateway.app")
            with pytest.raises(httpx.TransportError):
                await read_on(lines, lambda: False)
        assert (TEXT.startswith(said()), "[DONE]" in "".join(got), "_1]" in "".join(got)) == (True, False, False)
        await server.left.wait()
        assert leaks(server, gateway) == []
        until(lambda: gateway.pid_of("gateway.app") not in {None, pid}, "another front worker")
        async with client_of(gateway) as client:
            told = (await client.with_options(max_retries=5).chat.completions.create(**asked)).choices[0].message
        assert told.content == TEXT
        assert leaks(server, gateway) == []
    assert leaks(server, gateway) == []


@pytest.mark.weights
async def test_the_local_model_gets_the_original_when_the_far_one_fails(server, tmp_path):
    """The real quantized model answers after an upstream that has seen masks and failed; one decision, one record."""
    if not (MODELS / "smollm2-135m").is_dir():
        pytest.fail(f"the demo weights are not in {MODELS}; run: make weights")
    server.scripts = [[answer(500, {"error": {"message": "no"}})]]
    local = f'[local_models.smollm2-135m]\nkind = "chat"\nweights = "{MODELS}/smollm2-135m"\nthreads = 1\n'
    with gateway_before(server, tmp_path, home='kind = "local"', model="smollm2-135m", more=local) as gateway:
        gateway.until_up("home/smollm2-135m")
        async with client_of(gateway) as client:
            said = f"Repeat exactly: {MAIL}"
            asked = {"model": "both", "messages": [{"role": "user", "content": said}], "max_tokens": 24, "temperature": 0}
            raw = await client.chat.completions.with_raw_response.create(**asked)
            text = raw.parse().choices[0].message.content
        record = gateway.record(raw.headers["x-request-id"])
        assert (record["ending"], record["route"], record["tried"]) == (
            "fallback", "home/smollm2-135m", ["far/both", "home/smollm2-135m"],
        )  # fmt: skip
        assert ("[EMAIL_" in text, "@" in text, leaks(server, gateway)) == (False, True, [])
