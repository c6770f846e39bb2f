"""The application as it is served: Litestar's router, the operators' pages and cross-origin access, on a real socket."""

import asyncio
import json
from types import SimpleNamespace

import httpx
import msgspec
import pytest
from front import POLICY, body
from hostile import answer, completion, hostile, message, response

from gateway import control
from gateway.app import Front, create_app
from gateway.explain import from_log
from gateway.http.cors import Cors
from gateway.policy.generation import Generation


@pytest.fixture
async def served(world):
    """An httpx client of a World's whole application; give the origins that may call it."""
    async with hostile() as server:
        made = world(server='cors_origins = ["https://page.example"]', up={"base_url": server.base_url})

        async def page():
            return b"up 1\n", "text/plain"

        front = SimpleNamespace(
            edge=made.edge, config=made.config, keys=made.keys, cache=made.cache,
            pipeline=made.pipeline, ready=lambda: (True, {"status": "ready"}),
            page=page, emit=lambda name, **fields: made.events.append((name, fields)),
        )  # fmt: skip
        app = create_app(front)
        async with (
            made.listening(app) as (host, port),
            httpx.AsyncClient(base_url=f"http://{host}:{port}", headers={"authorization": f"Bearer {made.key}"}) as client,
        ):
            yield SimpleNamespace(made=made, server=server, client=client, app=app)


@pytest.fixture
async def front(world, tmp_path):
    """A front worker with all its parts, before it serves."""
    made = world()
    start = control.Start(
        config=msgspec.json.encode(made.config),
        name="front0",
        listeners={},
        sockets={"cache": str(tmp_path / "none.sock"), "names": str(tmp_path / "names.sock")},
        admin_sha256="0" * 64,
    )
    front = Front(start, control.Activate(number=1, source=made.generation.source()), SimpleNamespace())
    yield front
    await front.aclose()


async def test_a_names_worker_is_ready_only_when_a_text_would_reach_it(front, tmp_path):
    """The worker says that it is ready before this front worker has its connection, and its loss may be seen here first."""

    def told():
        return front.ready()[1]["workers"]["names"]

    front.hear(control.WorkerNews(worker="names", problem="loading"))
    assert told() == "loading"
    front.hear(control.WorkerNews(worker="names", problem=""))
    assert told() == "ready, and not yet connected"
    over = asyncio.Event()

    async def serve(reader, writer):
        await reader.read()
        writer.close()
        await writer.wait_closed()
        over.set()

    async with asyncio.timeout(30), await asyncio.start_unix_server(serve, tmp_path / "names.sock"):
        running = asyncio.create_task(front.names.run())
        while told() != "ready":
            await asyncio.sleep(0)
        assert front.names.trouble == ""
        running.cancel()
        await over.wait()
    assert told() == "ready, and not yet connected"


async def test_readiness_tells_of_policy_files_that_are_not_in_force(front):
    """As a remark: what is in force serves on."""
    before = front.ready()
    assert (before[0], before[1]["policy_files"]) == (True, "ok")
    front.hear(control.PolicyNews(problem="broken at policies/a.toml:3:1"))
    assert front.ready() == (True, before[1] | {"policy_files": "broken at policies/a.toml:3:1"})
    front.hear(control.PolicyNews(problem=""))
    assert front.ready() == before


async def test_a_new_generation_is_compiled_off_the_loop(front):
    """While its thousands of words are compiled the loop turns and the old one decides; of two that wait only the last comes."""
    old = front.generation
    words = json.dumps([f"project {number}" for number in range(5000)])
    for number, name in enumerate(("never", "last"), 2):
        terms = f'[[terms]]\nname = "{name}"\nclass = "internal"\nwords = {words}\n'
        made = Generation({"listed.toml": POLICY + terms}, old.catalogue)
        front.hear(control.Activate(number=number, source=made.source()))
    following = asyncio.create_task(front.follow())
    turns = 0
    while front.generation is old and not following.done():
        await asyncio.sleep(0)
        turns += 1
    following.cancel()
    assert front.generation.hash == made.hash
    assert turns > 100


POSTS = {
    "/v1/chat/completions": completion(),
    "/openai/v1/chat/completions": completion(),
    "/openai/deployments/m/chat/completions?api-version=1": completion(),
    "/v1/responses": response(),
    "/openai/responses?api-version=1": response(),
    "/v1/messages?beta=true": message(),
    "/v1/moderations": {"results": []},
}


@pytest.mark.parametrize(("path", "told"), POSTS.items())
async def test_every_spelling_reaches_its_endpoint(served, path, told):
    """Through the router, with a slash at the end or without."""
    served.server.scripts = [[answer(200, told)]]
    sent = body(input="x")
    for asked in (path, path.replace("?", "/?") if "?" in path else path + "/"):
        got = await served.client.post(
            asked, content=sent, headers={"content-type": "application/json", "cache-control": "no-store"}
        )
        assert (got.status_code, got.json()) == (200, told)


async def test_stored_responses_are_routed_by_id_and_method(served):
    """An unknown id is 404, a known one goes on; input_tokens is no id."""
    client = served.client
    assert (await client.get("/v1/responses/resp_1")).json()["error"]["code"] == "response_not_found"
    served.server.scripts = [[answer(200, response())]]
    await client.post("/v1/responses", json={"model": "m", "input": "x"})
    for method, path in (("GET", ""), ("GET", "/input_items"), ("POST", "/cancel"), ("DELETE", "")):
        assert (await client.request(method, f"/openai/v1/responses/resp_1{path}")).status_code == 200
    assert (await client.post("/v1/responses/input_tokens", json={"input": "x"})).status_code == 200
    assert served.server.requests[-1][0].startswith(b"POST /v1/responses/input_tokens ")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_somebody_is_there(served, method):
    """Tools ask the root of their base URL, without a key."""
    async with httpx.AsyncClient() as client:
        assert (await client.request(method, str(served.client.base_url))).status_code == 200


async def test_every_answer_has_an_id_and_a_time(served):
    """Operators' pages, refusals of the router and preflights too, each its own."""
    paths = (
        "/",
        "/health",
        "/ready",
        "/metrics",
        "/v1/models",
        "/openai/models",
        "/v1/models/m",
        "/v1/models/nope",
        "/v1/assistants",
        "/nope",
    )
    got = [await served.client.get(path) for path in paths]
    assert [one.status_code for one in got] == [200] * 7 + [404] * 3
    ids = [one.headers["x-request-id"] for one in got]
    assert all(id_.startswith("req_") for id_ in ids)
    assert len(set(ids)) == len(ids)
    got += [await served.client.delete("/v1/models"), await served.client.options("/v1/models", headers=PREFLIGHT)]
    got += [await served.client.post("/v1/gateway/purge", json={}), await served.client.post("/v1/chat/completions", content=b"")]
    assert [one.status_code for one in got[-4:]] == [405, 204, 403, 400]
    assert all(one.headers["openai-processing-ms"].isdecimal() and one.headers["x-request-id"] for one in got)


async def test_a_wrong_method_says_which_is_right(served):
    """On the router's own pages as on the edge."""
    for method, path, allow in (
        ("DELETE", "/v1/models", "GET"),
        ("GET", "/v1/chat/completions", "POST"),
        ("PUT", "/v1/responses/x", "GET, DELETE"),
    ):
        got = await served.client.request(method, path)
        assert (got.status_code, got.json()["error"]["code"]) == (405, "method_not_allowed")
        assert set(allow.split(", ")) <= set(got.headers["allow"].split(", "))


PREFLIGHT = {
    "origin": "https://page.example",
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,x-stainless-os",
}


async def test_a_page_that_is_not_named_gets_no_cross_origin_answer(served):
    """Neither its preflight nor its request is answered with the headers that a browser wants."""
    for method, path in (("OPTIONS", "/v1/chat/completions"), ("GET", "/v1/models")):
        got = await served.client.request(method, path, headers={**PREFLIGHT, "origin": "https://other.example"})
        assert not [name for name in got.headers if name.startswith("access-control-")]
    assert got.status_code == 200


async def test_a_named_page_may_call(served):
    """The preflight needs no key and asks nobody; the answer may be read, its headers too; cookies are never allowed."""
    async with httpx.AsyncClient() as client:
        got = await client.options(f"{served.client.base_url}/v1/chat/completions", headers=PREFLIGHT)
    assert (got.status_code, got.headers["access-control-allow-origin"]) == (204, "https://page.example")
    assert got.headers["access-control-allow-headers"] == "authorization,x-stainless-os"
    for path in ("/v1/models", "/nope"):
        got = await served.client.get(path, headers={"origin": "https://page.example"})
        assert (got.headers["access-control-allow-origin"], got.headers["vary"]) == ("https://page.example", "origin")
        assert "x-request-id" in got.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in got.headers
    assert served.made.records == []


async def test_any_page_is_said_with_a_star(served):
    """Without naming the page back, and without credentials."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(Cors(served.app, ["*"])), base_url="http://x") as client:
        got = await client.get("/health", headers={"origin": "https://anything.example"})
    assert (got.headers["access-control-allow-origin"], "access-control-allow-credentials" in got.headers) == ("*", False)


async def test_a_header_name_that_is_none_is_not_repeated(served):
    """What a preflight asks for goes back only if it is a list of names."""
    got = await served.client.options("/v1/models", headers={**PREFLIGHT, "access-control-request-headers": "a; b: c"})
    assert (got.status_code, "access-control-allow-headers" in got.headers) == (204, False)


@pytest.fixture
def operator(served):
    """The headers of a key of scope admin."""
    return {"authorization": f"Bearer {served.made.key_file.add('operator', scopes=('admin',))}"}


async def test_a_dry_run_needs_the_scope_admin(served):
    """A key for chat alone is refused, and so is none, before the body is looked at."""
    got = await served.client.post("/v1/route", content=body())
    assert (got.status_code, got.json()["error"]["code"]) == (403, "insufficient_scope")
    assert (await served.client.post("/v1/route", content=b"{", headers={"authorization": ""})).status_code == 401
    assert served.made.events == []


async def test_a_dry_run_explains_and_calls_nobody(served, operator):
    """The answer is what `gateway explain --json` prints; its id finds the decision in the log; there is no record."""
    got = await served.client.post("/v1/route", content=body(stream=True), headers=operator | {"x-gateway-class": "internal"})
    told = got.json()
    assert (got.status_code, set(told)) == (200, {"facts", "decision", "candidates"})
    assert (told["facts"]["class"], told["facts"]["stream"], told["facts"]["key_label"]) == ("internal", True, "operator")
    assert [(one["option"], one["place"]) for one in told["candidates"]] == [("up/m", 1)]
    ((name, fields),) = served.made.events
    assert (name, fields["request_id"], fields["order"]) == ("route.explained", got.headers["x-request-id"], ["up/m"])
    again = from_log([{"event": name, **fields}], lambda _: served.made.generation)
    assert json.loads(json.dumps(again.as_json())) == told
    assert (served.server.requests, served.made.records) == ([], [])


async def test_a_dry_run_decides_for_whom_it_is_told(served, operator):
    """As the key of a label, with its tenant and class floor, or as any tenant, label, class and policy: as `gateway explain` does."""
    served.made.key_file.add("ci", tenant="acme", class_floor="internal")

    async def told(query):
        facts = (await served.client.post("/v1/route?" + query, content=body(), headers=operator)).json()["facts"]
        return facts["key_label"], facts["tenant"], facts["class"], facts["task"]

    assert await told("key_label=ci") == ("ci", "acme", "internal", "chat")
    assert await told("key_label=ci&tenant=other&class=confidential") == ("ci", "other", "confidential", "chat")
    assert await told("key_label=nobody") == ("nobody", "default", "public", "chat")
    got = await served.client.post("/v1/route?policy=gone", content=body(), headers=operator)
    assert (got.status_code, "gone" in got.json()["error"]["message"]) == (403, True)


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("?endpoint=responses", {"input": "x"}),
        ("?endpoint=messages", {"max_tokens": 5}),
        ("?endpoint=embeddings", {"input": "x"}),
    ],
)
async def test_a_dry_run_takes_the_body_of_any_json_endpoint(served, operator, query, fields):
    """Read and judged as a request of that endpoint."""
    got = await served.client.post("/v1/route" + query, content=body(**fields), headers=operator)
    assert (got.status_code, got.json()["facts"]["endpoint"]) == (200, query.partition("=")[2])


@pytest.mark.parametrize(
    ("query", "payload", "told"),
    [
        ("", b"{", (400, None)),
        ("", b"[]", (400, None)),
        ("", b'{"model": "m"}', (400, "messages")),
        ("", body(model="nope"), (404, "model")),
        ("?endpoint=respones", body(), (400, "endpoint")),
        ("?endpoint=files", body(), (400, "endpoint")),
        ("?klass=public", body(), (400, "klass")),
        ("?class=secret", body(), (400, "x-gateway-class")),
    ],
)
async def test_what_no_policy_would_see_is_refused_as_a_request_would_be(served, operator, query, payload, told):
    """Bad bodies, unknown models and unknown endpoints, in OpenAI's shape."""
    got = await served.client.post("/v1/route" + query, content=payload, headers=operator)
    assert (got.status_code, got.json()["error"]["param"]) == told
    assert served.server.requests == []


async def test_a_dry_run_is_refused_where_the_request_would_be_after_its_decision(served, operator):
    """What a client wants stored and must not be has an upstream, and is refused all the same."""
    served.made.set_capabilities(["chat"])
    asked = {"model": "m", "input": "4111 1111 1111 1111", "store": True}
    got = await served.client.post("/v1/route?endpoint=responses", json=asked, headers=operator)
    assert (got.status_code, got.json()["error"]["code"]) == (400, "store_forbidden")


async def test_a_dry_run_may_be_as_long_as_a_request(served, operator):
    """Beyond the router's own bound on bodies, up to `server.max_body_bytes`."""
    got = await served.client.post("/v1/route", content=body("word " * 500_000), headers=operator)
    assert got.json()["facts"]["prompt_tokens"] > 100_000
    most = served.made.config.server.max_body_bytes
    got = await served.client.post("/v1/route", content=b" " * (most + 1), headers=operator)
    assert (got.status_code, got.json()["error"]["type"]) == (413, "invalid_request_error")


async def test_a_dry_run_keeps_no_text(served, operator):
    """Neither the answer nor the log holds a word of the body, and a refusal by policy is explained, not raised."""
    served.made.set_capabilities(["embeddings"])
    payload = body("quicksilver ada@example.org", user="zanzibar", metadata={"xylophone": "marimba"})
    got = await served.client.post("/v1/route", content=payload, headers=operator)
    assert (got.status_code, got.json()["decision"]["refusal"]["kind"]) == (200, "unsupported")
    assert got.json()["facts"]["found"] == ["email"]
    kept = got.text + str(served.made.events) + str(got.headers)
    assert not [word for word in ("quicksilver", "ada@", "zanzibar", "xylophone", "marimba") if word in kept]
