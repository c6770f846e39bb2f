"""One suite for every kind of cache: exact in process, shared through a real Redis, semantic through a real worker, off."""

import asyncio
import json
import runpy
import socket
import subprocess
import sys
import time
import uuid
from array import array
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.cache import Entry, Hit, Miss, key
from gateway.cache.exact import Exact
from gateway.cache.off import Off
from gateway.cache.redis import Shared
from gateway.cache.semantic import Semantic
from gateway.cache.tiers import Cache
from gateway.errors import InvalidRequest, Unavailable
from gateway.ledger import Usage
from tests.e2e.gateways import private_redis

build_tiny = runpy.run_path(str(Path(__file__).parents[1] / "cache" / "tiny_embedder.py"))["build"]
WEIGHTS = Path(__file__).parents[2] / ".gateway" / "models" / "all-minilm-l6-v2"
ENTRY = Entry(
    kind="events",
    content_type="text/event-stream",
    events=(b"data: {}\n\n", b"data: \xff\x00[DONE]\n\n"),
    usage=Usage(prompt_tokens=3, completion_tokens=5),
    model="m-2026",
    upstream="echo",
    cost_usd=0.01,
    finish_reason="stop",
)
TIER = {"exact": "exact", "redis": "shared", "semantic": "semantic"}


def scope(text="how do i reset my password", *, tenant="acme", model="auto", **fields):
    body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
    return key.scope(body, tenant=tenant, endpoint="chat/completions", model=model, policy_scope="p@1")


def start_worker(directory, embedder):
    """A worker process that has said it is ready."""
    command = [
        sys.executable,
        "-m",
        "gateway.cache.worker",
        "--socket",
        str(directory / "w.sock"),
        "--store",
        str(directory / "s"),
    ]
    command += ["--embedder", str(embedder), "--name", "all-minilm-l6-v2"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if json.loads(line)["state"] == "ready":
            return process
    raise AssertionError(f"the worker ended with {process.wait()}")


def stop(process):
    process.terminate()
    status = process.wait(20)
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    return status


@asynccontextmanager
async def served(directory, embedder):
    """A worker process and a connected semantic tier, both gone afterwards."""
    process = await asyncio.to_thread(start_worker, directory, embedder)
    semantic = Semantic(str(directory / "w.sock"), deadline_s=30)
    try:
        running = await connected(semantic)
        yield process, semantic
        await ended(running)
    finally:
        await asyncio.to_thread(stop, process)


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    directory = tmp_path_factory.mktemp("w")
    process = start_worker(directory, build_tiny(directory / "tiny"))
    yield directory / "w.sock"
    assert stop(process) == 0


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory):
    with private_redis(tmp_path_factory.mktemp("r")) as (url, _):
        yield url


async def ended(task):
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def connected(tier):
    """The task that keeps the tier's connection, once it is there."""
    running = asyncio.create_task(tier.run())
    async with asyncio.timeout(30):
        await tier.until(lambda hello: hello is not None and hello.embedder is not None)
    return running


@pytest.fixture(params=["exact", pytest.param("redis", marks=pytest.mark.redis), "semantic"])
async def cache(request):
    """A cache with one tier that keeps; `kind` names it."""
    exact, shared, semantic, running = Exact(0), Off(), Off(), None
    if request.param == "exact":
        exact = Exact(10**6)
    elif request.param == "redis":
        shared = Shared(request.getfixturevalue("redis_url"), timeout_s=30)
    else:
        semantic = Semantic(str(request.getfixturevalue("worker")), deadline_s=30)
        running = await connected(semantic)
    cache = Cache(exact=exact, shared=shared, semantic=semantic, ttl_s=60)
    cache.kind = request.param
    await cache.purge()
    yield cache
    await cache.aclose()
    if running is not None:
        await ended(running)


async def keep(cache, scope, entry=ENTRY, class_="public"):
    assert cache.store(scope, entry, "semantic", class_=class_) is None
    await cache.settled()


async def test_a_stored_answer_comes_back_whole(cache):
    """What was stored is served byte for byte, with what it had cost, its tier and its age."""
    assert isinstance(await cache.lookup(scope(), "semantic", class_="public"), Miss)
    await keep(cache, scope())
    hit = await cache.lookup(scope(stream=True, user="u"), "semantic", class_="public")
    assert hit.tier == TIER[cache.kind]
    assert hit.entry == Entry(**{name: getattr(ENTRY, name) for name in ENTRY.__struct_fields__} | {"class_": "public"})
    assert 0 <= hit.age_s < 30
    assert hit.cosine == pytest.approx(1.0)


async def test_the_newest_answer_to_a_request_is_the_one_served(cache):
    """Storing the same request again replaces what was there."""
    await keep(cache, scope())
    await keep(cache, scope(), Entry(kind="json", body=b"new", finish_reason="stop"))
    assert (await cache.lookup(scope(), "semantic", class_="public")).entry.body == b"new"
    assert await cache.purge() == 1


async def test_an_answer_is_never_served_to_another_class(cache):
    """An answer to an internal request misses for a public one, and for everything above."""
    await keep(cache, scope(), class_="internal")
    for class_ in ("public", "confidential", "restricted", "unheard-of"):
        assert isinstance(await cache.lookup(scope(), "semantic", class_=class_), Miss)
    assert isinstance(await cache.lookup(scope(), "semantic", class_="internal"), Hit)


OTHERS = st.one_of(
    st.builds(dict, tenant=st.text(max_size=6).filter(lambda word: word != "acme")),
    st.builds(dict, model=st.text(max_size=6).filter(lambda word: word != "auto")),
    st.builds(dict, temperature=st.floats(0, 2)),
    st.builds(dict, seed=st.integers()),
    st.builds(dict, response_format=st.just({"type": "json_object"})),
    st.builds(dict, stop=st.text(max_size=4)),
    st.dictionaries(st.text("abc_", min_size=1, max_size=8).map("x_".__add__), st.integers() | st.text(max_size=4), min_size=1),
)


@given(OTHERS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_another_tenant_model_or_parameter_never_sees_it(event_loop_cache, changes):
    """The same text under another tenant, model or parameter always misses, in every tier."""
    loop, cache = event_loop_cache
    other = scope(**changes)
    assert isinstance(loop.run_until_complete(cache.lookup(other, "semantic", class_="public")), Miss)


@pytest.fixture(params=["exact", pytest.param("redis", marks=pytest.mark.redis), "semantic"])
def event_loop_cache(request):
    """A loop and a cache of one kind that holds one answer, for tests that hypothesis drives."""
    with asyncio.Runner() as runner:
        exact, shared, semantic, running = Exact(0), Off(), Off(), None
        if request.param == "exact":
            exact = Exact(10**6)
        elif request.param == "redis":
            shared = Shared(request.getfixturevalue("redis_url"), timeout_s=30)
        else:
            semantic = Semantic(str(request.getfixturevalue("worker")), deadline_s=30)
            running = runner.run(connected(semantic))
        cache = Cache(exact=exact, shared=shared, semantic=semantic, ttl_s=60)
        runner.run(keep(cache, scope()))
        assert isinstance(runner.run(cache.lookup(scope(), "semantic", class_="public")), Hit)
        yield runner.get_loop(), cache
        runner.run(cache.aclose())
        if running is not None:
            runner.run(ended(running))


async def test_a_purge_forgets_what_matches_and_nothing_else(cache):
    """Tenant, model and class narrow a purge; a dry run counts and keeps; what is left is still served."""
    await keep(cache, scope())
    await keep(cache, scope(tenant="other*"))
    await keep(cache, scope(model="small"), class_="internal")
    assert await cache.purge(tenant="acme", dry_run=True) == 2
    assert await cache.purge(tenant="acme", class_="internal") == 1
    assert await cache.purge(tenant="*") == 0
    assert isinstance(await cache.lookup(scope(), "semantic", class_="public"), Hit)
    assert await cache.purge(model="auto") == 2
    assert isinstance(await cache.lookup(scope(), "semantic", class_="public"), Miss)


async def test_an_answer_past_its_life_is_not_served(cache):
    """With a life of nothing, nothing is served."""
    cache._ttl_s = -1
    assert cache.store(scope(), ENTRY, "semantic", class_="public") is None
    await cache.settled()
    assert isinstance(await cache.lookup(scope(), "semantic", class_="public"), Miss)


async def test_off_keeps_nothing_and_has_no_problem():
    """The null tier misses, counts nothing and never complains."""
    cache = Cache(exact=Exact(0), shared=Off(), semantic=Off())
    await keep(cache, scope())
    assert isinstance(await cache.lookup(scope(), "semantic", class_="public"), Miss)
    assert (await cache.purge(), cache.problems()) == (0, ())


@pytest.mark.redis
async def test_a_purge_reaches_the_other_processes(redis_url):
    """What one process purges leaves the exact tier of another too."""
    one, other = (Cache(exact=Exact(10**6), shared=(tier := Shared(redis_url, timeout_s=30)), semantic=Off()) for _ in range(2))
    tier.on_purged(other.forget)
    await one.purge()
    running = asyncio.create_task(other.run())
    await keep(other, scope())
    async with asyncio.timeout(30):
        while len(other._exact):
            await one.purge(tenant="acme")
            await asyncio.sleep(0.01)
    await ended(running)
    await asyncio.gather(one.aclose(), other.aclose())


@pytest.mark.redis
async def test_a_purge_is_heard_also_by_who_was_cut_off(redis_url):
    """A process whose connections broke learns of what was purged meanwhile."""
    told, prefix = asyncio.Queue(), uuid.uuid4().hex
    here, there = (Shared(redis_url, prefix=prefix, timeout_s=30) for _ in range(2))
    there.on_purged(lambda *what: told.put(what))
    running = asyncio.create_task(there.run())
    async with asyncio.timeout(30):
        while told.empty():
            await here.purge(tenant="first", model=None, class_=None, dry_run=False)
            await asyncio.sleep(0.01)
        await here._redis.client_kill_filter(_type="normal", skipme=True)
        await here.purge(tenant="second", model=None, class_=None, dry_run=False)
        while (heard := await told.get())[0] == "first":
            pass
    assert heard == ("second", None, None)
    await ended(running)
    await asyncio.gather(here.aclose(), there.aclose())


async def heard_by(shared, told, *, until):
    """What a process that begins now hears, up to the purge of the tenant `until`."""
    shared.on_purged(lambda *what: told.put(what))
    running = asyncio.create_task(shared.run())
    tenants = []
    async with asyncio.timeout(30):
        while not tenants or tenants[-1] != until:
            tenants.append((await told.get())[0])
    await shared.settled()
    await ended(running)
    await shared.aclose()
    return tenants


@pytest.mark.redis
async def test_a_purge_made_while_a_process_came_up_without_redis_is_heard(redis_url):
    """What was purged after a process began, and before it reached Redis for the first time, is forgotten there too."""
    prefix, told = uuid.uuid4().hex, asyncio.Queue()
    here, late = Shared(redis_url, prefix=prefix, timeout_s=30), Shared(redis_url, prefix=prefix, timeout_s=30)
    await here.purge(tenant="meanwhile", model=None, class_=None, dry_run=False)
    assert await heard_by(late, told, until="meanwhile") == ["meanwhile"]
    await here.aclose()


@pytest.mark.redis
async def test_a_purge_made_while_a_gateway_was_down_is_heard_once_when_it_comes_up(redis_url, tmp_path):
    """A later process goes on where an earlier one of the same state folder ended: its disk holds what it has not heard of."""
    prefix, told, place = uuid.uuid4().hex, asyncio.Queue(), tmp_path / "heard"

    def process(began):
        return Shared(redis_url, prefix=prefix, timeout_s=30, position=place, clock=lambda: began)

    here = Shared(redis_url, prefix=prefix, timeout_s=30)
    await here.purge(tenant="first", model=None, class_=None, dry_run=False)
    assert await heard_by(process(time.time()), told, until="first") == ["first"]
    await here.purge(tenant="second", model=None, class_=None, dry_run=False)
    assert await heard_by(process(time.time() + 3600), told, until="second") == ["second"]
    await here.aclose()


@pytest.mark.redis
async def test_where_redis_lost_its_record_of_purges_everything_is_forgotten(redis_url, tmp_path):
    """Nobody can say what was purged meanwhile, so nothing that was kept from before is served."""
    place, told = tmp_path / "heard", asyncio.Queue()
    place.write_bytes(b"1700000000000-0")
    assert await heard_by(Shared(redis_url, prefix=uuid.uuid4().hex, timeout_s=30, position=place), told, until=None) == [None]
    assert place.read_bytes() == b"0-0"


@pytest.mark.redis
async def test_an_answer_that_belongs_to_another_request_is_a_miss(redis_url):
    """Values carry their key: one that lies under another key, or another class, is not served."""
    shared = Shared(redis_url, timeout_s=30)
    entry = msgspec.structs.replace(ENTRY, class_="public")
    await shared.store(scope("tea"), entry, expires_at=time.time() + 60)
    await shared._redis.copy(shared._name(scope("tea"), "public"), shared._name(scope("coffee"), "public"), replace=True)
    assert await shared.lookup(scope("coffee"), class_="public") == Miss("mismatch")
    await shared.aclose()


@pytest.mark.redis
async def test_an_undecodable_value_is_a_miss(redis_url):
    """What another version left under our key is a miss, never an error."""
    shared = Shared(redis_url, timeout_s=30)
    await shared._redis.set(shared._name(scope(), "public"), b"\xc1 not ours")
    assert await shared.lookup(scope(), class_="public") == Miss("undecodable")
    await shared.aclose()


async def test_a_redis_that_is_gone_costs_a_miss_and_says_so():
    """A refused connection is a miss, is counted, is left alone for a while, and makes a purge fail loudly."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = Shared(f"redis://127.0.0.1:{free.getsockname()[1]}/0", pause_s=60)
        assert await shared.lookup(scope(), class_="public") == Miss("failed")
        assert await shared.lookup(scope(), class_="public") == Miss("down")
        assert shared.failures == 1
        assert "cache.redis_url_env" in shared.problem()
        with pytest.raises(Unavailable, match="purge again when Redis is back"):
            await shared.purge(tenant="acme", model=None, class_=None, dry_run=False)
        await shared.aclose()


async def test_a_late_redis_answer_never_reaches_the_next_call():
    """A look-up given up at its deadline leaves no answer behind for the look-up that follows."""
    release = asyncio.Event()
    seen = []

    async def slow(reader, writer):
        while line := await reader.readline():
            if line.upper() == b"GET\r\n":
                await reader.readline()
                seen.append(await reader.readline())
                if len(seen) == 1:
                    await release.wait()
                with suppress(ConnectionError):
                    writer.write(b"$6\r\nstolen\r\n" if len(seen) == 1 else b"$-1\r\n")
            elif line.startswith(b"*") is False and line.upper().strip() in {b"CLIENT", b"HELLO"}:
                writer.write(b"-ERR unknown command\r\n")
        writer.close()

    server = await asyncio.start_server(slow, "127.0.0.1", 0)
    shared = Shared(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0", pause_s=0, timeout_s=0.5)
    assert await shared.lookup(scope("tea"), class_="public") == Miss("late")
    release.set()
    assert await shared.lookup(scope("coffee"), class_="public") == Miss("unseen")
    await shared.aclose()
    server.close()


async def test_a_worker_that_is_away_costs_a_miss_and_says_so(tmp_path):
    """Without the cache worker look-ups miss at once, stores are skipped, and embeddings and purges fail with the reason."""
    away = Semantic(str(tmp_path / "none.sock"))
    assert await away.lookup(scope(), class_="public") == Miss("no_worker")
    assert not await away.store(scope(), ENTRY, expires_at=time.time() + 9)
    assert away.problem() == "the cache worker is not running"
    with pytest.raises(Unavailable, match="the cache worker is not running"):
        await away.embed(["tea"])
    with pytest.raises(Unavailable, match="purge again when it is running"):
        await away.purge(tenant="acme", model=None, class_=None, dry_run=False)


async def test_a_worker_that_does_not_answer_costs_the_deadline(tmp_path):
    """A look-up that takes longer than its deadline is a miss named late."""
    met, left = asyncio.Event(), asyncio.Event()

    async def mute(reader, writer):
        met.set()
        await reader.read()
        writer.close()
        await writer.wait_closed()
        left.set()

    server = await asyncio.start_unix_server(mute, tmp_path / "w.sock")
    semantic = Semantic(str(tmp_path / "w.sock"), deadline_s=0.05)
    running = asyncio.create_task(semantic.run())
    await met.wait()
    assert await semantic.lookup(scope(), class_="public") == Miss("late")
    await ended(running)
    await left.wait()
    server.close()


async def test_embeddings_come_in_order_and_refusals_name_the_text(worker):
    """Vectors come in the order asked, of length 1; a text that is too long is the client's fault and named."""
    semantic = Semantic(str(worker))
    running = await connected(semantic)
    answer = await semantic.embed(["tea", "coffee", "tea"])
    values = array("f", answer.vectors)
    rows = [values[at : at + answer.dimensions] for at in range(0, len(values), answer.dimensions)]
    assert rows[0] == rows[2] != rows[1]
    assert sum(value * value for value in rows[0]) == pytest.approx(1)
    with pytest.raises(InvalidRequest, match=r"input\[1\] has 300 tokens; this embedder reads at most 200"):
        await semantic.embed(["tea", "tea " * 300])
    with pytest.raises(InvalidRequest, match="lone surrogate"):
        await semantic.embed(["\ud800"])
    await ended(running)


async def test_a_killed_worker_loses_nothing_it_confirmed(tmp_path):
    """After SIGKILL a worker on the same store serves what the first one had confirmed; the front connects again by itself."""
    embedder = build_tiny(tmp_path / "tiny")
    async with asyncio.timeout(120), served(tmp_path, embedder) as (first, semantic):
        assert await semantic.store(scope(), ENTRY, expires_at=time.time() + 60)
        first.kill()
        await semantic.until(lambda hello: hello is None)
        second = await asyncio.to_thread(start_worker, tmp_path, embedder)
        await semantic.until(lambda hello: hello is not None and hello.embedder is not None)
        assert isinstance(await semantic.lookup(scope(), class_=""), Hit)
        assert await asyncio.to_thread(stop, second) == 0


@pytest.mark.weights
@pytest.mark.skipif(not WEIGHTS.exists(), reason="weights are missing; run: gateway models pull all-minilm-l6-v2")
async def test_the_real_embedder_finds_a_paraphrase_and_no_opposite(tmp_path):
    """With the shipped embedder another wording hits, and a changed number, side or negation does not."""
    async with served(tmp_path, WEIGHTS) as (_, semantic):
        cache = Cache(exact=Exact(0), shared=Off(), semantic=semantic)
        await keep(cache, scope("How do I enable two-factor login for 5 users?"))
        asked = {
            "How can I enable two-factor login for 5 users": True,
            "How do I disable two-factor login for 5 users?": False,
            "How do I enable two-factor login for 50 users?": False,
            "How do I not enable two-factor login for 5 users?": False,
            "Who wrote Dune?": False,
        }
        for text, hits in asked.items():
            assert isinstance(await cache.lookup(scope(text), "semantic", class_="public"), Hit) == hits
