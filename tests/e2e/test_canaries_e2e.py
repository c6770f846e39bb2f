"""Claim A where processes are killed: words that may not leave, looked for after the model worker and the cache worker died."""

import base64
import json

import httpx
import pytest
from gateways import MODELS, Gateway
from hostile import hostile, in_a_thread
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
[models.both]
candidates = [
  {{ upstream = "home", model = "smollm2-135m", capabilities = ["chat"], context = 2048 }},
  {{ upstream = "far", capabilities = ["chat"] }},
]
"""
EMBEDDER = """
[local_models.all-minilm-l6-v2]
kind = "embedding"
weights = "{models}/all-minilm-l6-v2"
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


@pytest.fixture(scope="module")
def far():
    """An upstream outside that says what it was asked, and keeps all of it for the search."""
    with in_a_thread(hostile()) as one:
        one.scripts = [parrot(seed=7)]
        yield one


def gateway_before(far, folder, *, takes, policy, embedder="[cache]\nsemantic = false\n"):
    if not (MODELS / "smollm2-135m").is_dir():
        pytest.fail(f"the demo weights are not in {MODELS}; run: make weights")
    config = (CONFIG + embedder).format(url=far.base_url, takes=takes, models=MODELS)
    return Gateway(folder, config, policies={"all.toml": policy})


@pytest.fixture(scope="module")
def confined(tmp_path_factory, far):
    """A gateway whose far upstream may have nothing of this; what it leaves on the disk when it has ended is searched, too."""
    with gateway_before(far, tmp_path_factory.mktemp("confined"), takes="internal", policy=POLICY, embedder=EMBEDDER) as gateway:
        yield gateway.until_up("home/smollm2-135m").until_up("home/all-minilm-l6-v2").until_up("far/both")
    assert leaks(far, gateway) == []


@pytest.fixture(scope="module")
def masking(tmp_path_factory, far):
    """A gateway whose far upstream may have all of it, masked."""
    with gateway_before(far, tmp_path_factory.mktemp("masking"), takes="restricted", policy=MASKS) as gateway:
        yield gateway.until_up("home/smollm2-135m").until_up("far/both")


def leaks(far, gateway, words=(SECRET, ADDRESS)):
    """Places that hold one of these words, as it is or in base64: the far upstream, standard error, any file of the state folder."""
    places = {"upstream": b"".join(part for request in far.requests for part in request), "said": gateway.said.encode()}
    places |= {str(path): path.read_bytes() for path in (gateway.folder / "state").rglob("*") if path.is_file()}
    forms = [word.encode() for word in words]
    forms += [base64.b64encode(word[shift:])[:-4] for word in forms for shift in range(3)]
    return sorted({place for place, text in places.items() for form in forms if form in text})


def body_of(word, **fields):
    asked = [{"role": "user", "content": f"Tell a long story about {word}"}]
    # The likeliest answer: one drawn by chance may end with its first token, before anything can be killed.
    return {"model": "both", "messages": asked, "temperature": 0, **fields}


def client_of(gateway):
    return httpx.AsyncClient(base_url=gateway.url, headers={"authorization": f"Bearer {gateway.key}"}, timeout=300)


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


async def test_a_killed_model_worker_drives_no_word_away(far, confined):
    """Its stream ends in an error and what is asked meanwhile is refused: the far upstream, which is up, gets nothing of it."""
    id_, got = await cut(confined, SECRET, "gateway.local.worker")
    assert '"error"' in got
    assert confined.record(id_)["ending"] == "broken"
    assert [(await ask(confined, word)).status_code for word in (SECRET, ADDRESS)] == [503, 503]
    assert (await ask(confined, "the sea")).headers["x-gateway-route"] == "far/both"
    confined.until_up("home/smollm2-135m")
    assert (await ask(confined, ADDRESS)).headers["x-gateway-route"] == "home/smollm2-135m"
    assert leaks(far, confined) == []


async def test_a_killed_cache_worker_leaves_no_word_behind(far, confined):
    """Killed under requests of every class, and after its restart: no file holds what may not be cached, and what may be is."""
    words = (SECRET, ADDRESS, "the wide zq7ocean")
    before = [(await ask(confined, word)).status_code for word in words]
    await cut(confined, ADDRESS, "gateway.cache.worker", 8)
    during = [(await ask(confined, word)).status_code for word in words]
    confined.until_up("home/all-minilm-l6-v2")
    assert before == during == [(await ask(confined, word)).status_code for word in words] == [200] * 3
    assert (await ask(confined, "the wide zq7ocean")).headers["x-gateway-cache"].startswith("hit")
    assert leaks(far, confined) == []


async def test_a_killed_model_worker_lets_words_leave_masked_alone(far, masking):
    """What then goes to the far upstream, which is cleared for all of it, goes with placeholders; the client gets its words back."""
    sent = len(far.requests)
    await cut(masking, SECRET, "gateway.local.worker")
    for word in (SECRET, ADDRESS):
        answer = await ask(masking, word)
        assert answer.headers["x-gateway-route"] == "far/both"
        assert word in json.loads(answer.content)["choices"][0]["message"]["content"]
    assert {b"[SECRET_" in body or b"[EMAIL_" in body for _, body in far.requests[sent:]} == {True}
    assert leaks(far, masking) == []


async def test_a_planted_leak_is_found(far, masking):
    """A far upstream that gets all of it bare by mistake, once the limit is gone: the searches above could fail."""
    (masking.policies / "all.toml").write_text(POLICY)
    assert masking.cli("policy", "apply", "--yes").returncode == 0
    masking.until_up("home/smollm2-135m")
    await cut(masking, ADDRESS, "gateway.local.worker")
    asked = await ask(masking, ADDRESS)
    assert asked.headers["x-gateway-route"] == "far/both"
    found = leaks(far, masking)
    far.requests.clear()
    assert found == ["upstream"]
