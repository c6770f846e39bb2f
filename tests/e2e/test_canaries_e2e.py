"""Claim A where processes are killed: words that may not leave, looked for after the model worker and the cache worker died."""

import base64
import json

import httpx
import pytest
from gateways import MODELS, Gateway
from hostile import hostile
from parrot import parrot

pytestmark = pytest.mark.weights

SECRET = "sk-proj-" + "Zq7Canary" * 4 + "0123456789"
ADDRESS = "zq7canary.ada@example.org"
CONFIG = """
[upstreams.far]
kind = "openai"
base_url = "{url}"
zone = "eu"
takes_up_to = "{takes}"
retries = 0
[upstreams.home]
kind = "local"
[local_models.smollm2-135m]
kind = "chat"
weights = "{models}/smollm2-135m"
threads = 1
[local_models.all-minilm-l6-v2]
kind = "embedding"
weights = "{models}/all-minilm-l6-v2"
[models.both]
candidates = [
  {{ upstream = "home", model = "smollm2-135m", capabilities = ["chat"], context = 2048 }},
  {{ upstream = "far", capabilities = ["chat"] }},
]
[models.all-minilm-l6-v2]
candidates = [{{ upstream = "home", capabilities = ["embeddings"] }}]
"""
POLICY = """
policy = "cost"
[classes]
confidential = ["email"]
[log]
text_up_to = "internal"
[[route]]
name = "as listed"
order_by = "listed"
"""
MASKS = POLICY + '[[limit]]\nname = "masked outside"\nredact = "outside"\n'


@pytest.fixture
async def far():
    async with hostile() as one:
        one.scripts = [parrot(seed=7)]
        yield one


def gateway_before(far, folder, *, takes, policy):
    if not (MODELS / "smollm2-135m").is_dir():
        pytest.fail(f"the demo weights are not in {MODELS}; run: make weights")
    return Gateway(folder, CONFIG.format(url=far.base_url, takes=takes, models=MODELS), policies={"all.toml": policy})


def leaks(far, gateway, words=(SECRET, ADDRESS)):
    """Places that hold one of these words, as it is or in base64: the far upstream, standard error, any file of the state folder."""
    places = {"upstream": b"".join(part for request in far.requests for part in request), "said": gateway.said.encode()}
    places |= {str(path): path.read_bytes() for path in (gateway.folder / "state").rglob("*") if path.is_file()}
    forms = [word.encode() for word in words]
    forms += [base64.b64encode(word[shift:])[:-4] for word in forms for shift in range(3)]
    return sorted({place for place, text in places.items() for form in forms if form in text})


def body_of(word, **fields):
    return {"model": "both", "messages": [{"role": "user", "content": f"Tell a long story about {word}"}], **fields}


def client_of(gateway):
    return httpx.AsyncClient(base_url=gateway.url, headers={"authorization": f"Bearer {gateway.key}"}, timeout=60)


async def cut(gateway, word, module, max_tokens=400):
    """A stream after whose first event a worker is killed; its request's id and all that the client got."""
    asked = body_of(word, stream=True, max_tokens=max_tokens)
    async with client_of(gateway) as client, client.stream("POST", "/v1/chat/completions", json=asked) as answer:
        lines = answer.aiter_lines()
        got = [await anext(lines)]
        gateway.kill(module)
        got += [line async for line in lines]
        return answer.headers["x-request-id"], "\n".join(got)


async def ask(gateway, word):
    """A whole answer, whatever its status."""
    async with client_of(gateway) as client:
        return await client.post("/v1/chat/completions", json=body_of(word, max_tokens=4))


async def test_a_killed_model_worker_drives_no_word_away(far, tmp_path):
    """Its stream ends in an error and what is asked meanwhile is refused: the far upstream, which is up, gets nothing of it."""
    with gateway_before(far, tmp_path, takes="internal", policy=POLICY) as gateway:
        gateway.until_up("home/smollm2-135m").until_up("far/both")
        id_, got = await cut(gateway, SECRET, "gateway.local.worker")
        assert '"error"' in got
        assert gateway.record(id_)["ending"] == "broken"
        assert [(await ask(gateway, word)).status_code for word in (SECRET, ADDRESS)] == [503, 503]
        assert (await ask(gateway, "the sea")).headers["x-gateway-route"] == "far/both"
        gateway.until_up("home/smollm2-135m")
        assert (await ask(gateway, ADDRESS)).headers["x-gateway-route"] == "home/smollm2-135m"
        assert leaks(far, gateway) == []
    assert leaks(far, gateway) == []


async def test_a_killed_model_worker_lets_words_leave_masked_alone(far, tmp_path):
    """What then goes to the far upstream, which is cleared for all of it, goes with placeholders; the client gets its words back."""
    with gateway_before(far, tmp_path, takes="restricted", policy=MASKS) as gateway:
        gateway.until_up("home/smollm2-135m").until_up("far/both")
        await cut(gateway, SECRET, "gateway.local.worker")
        for word in (SECRET, ADDRESS):
            answer = await ask(gateway, word)
            assert answer.headers["x-gateway-route"] == "far/both"
            assert word in json.loads(answer.content)["choices"][0]["message"]["content"]
        assert {b"[SECRET_" in body or b"[EMAIL_" in body for _, body in far.requests} == {True}
        assert leaks(far, gateway) == []
    assert leaks(far, gateway) == []


async def test_a_killed_cache_worker_leaves_no_word_behind(far, tmp_path):
    """Killed under requests of every class, and after its restart: no file holds what may not be cached, and what may be is."""
    with gateway_before(far, tmp_path, takes="internal", policy=POLICY) as gateway:
        gateway.until_up("home/smollm2-135m").until_up("home/all-minilm-l6-v2")
        words = (SECRET, ADDRESS, "the wide zq7ocean")
        before = [(await ask(gateway, word)).status_code for word in words]
        await cut(gateway, ADDRESS, "gateway.cache.worker", 8)
        during = [(await ask(gateway, word)).status_code for word in words]
        gateway.until_up("home/all-minilm-l6-v2")
        assert before == during == [(await ask(gateway, word)).status_code for word in words] == [200] * 3
        assert (await ask(gateway, "the wide zq7ocean")).headers["x-gateway-cache"].startswith("hit")
        assert leaks(far, gateway) == []
    assert leaks(far, gateway) == []


async def test_a_planted_leak_is_found(far, tmp_path):
    """A far upstream that is cleared by mistake gets the words while the model worker is down: the search above could fail."""
    with gateway_before(far, tmp_path, takes="restricted", policy=POLICY) as gateway:
        gateway.until_up("home/smollm2-135m").until_up("far/both")
        await cut(gateway, ADDRESS, "gateway.local.worker")
        assert (await ask(gateway, ADDRESS)).headers["x-gateway-route"] == "far/both"
        assert leaks(far, gateway) == ["upstream"]
