"""Stored responses: found by their tenant only, for as long as they may be kept, whatever happens to the process or the file."""

import asyncio
import signal
import sqlite3
import sys
from contextlib import aclosing, closing

import conformance
import pytest

from gateway.errors import InvalidRequest, NotFound, TooLarge, Unavailable
from gateway.responses import check_clearance
from gateway.responses import redis as redis_module
from gateway.responses import store as module
from gateway.responses.answer import Events
from gateway.responses.ask import chat_body, input_items, references
from gateway.responses.redis import SharedStore
from gateway.responses.store import ResponseStore
from tests.e2e.gateways import private_redis

TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def store(tmp_path, clock):
    made = ResponseStore(tmp_path / "state/responses.sqlite3", ttl_s=100, clock=clock)
    yield made
    await made.aclose()


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory):
    """The URL of a private redis-server."""
    with private_redis(tmp_path_factory.mktemp("r")) as (url, _):
        yield url


@pytest.fixture(params=["file", pytest.param("redis", marks=pytest.mark.redis)])
async def either(request, tmp_path, clock):
    """A store of either kind, empty."""
    if request.param == "file":
        made = ResponseStore(tmp_path / "state/responses.sqlite3", ttl_s=100, clock=clock)
    else:
        made = SharedStore(request.getfixturevalue("redis_server"), ttl_s=100, clock=clock)
        await made.purge()
    yield made
    await made.aclose()


def answered(id_, text="Hello", *, message=None, **request):
    """A request and the final response to it."""
    request = {"model": "m", "input": "Hi", **request}
    completion = {"choices": [{"index": 0, "message": message or {"content": text}, "finish_reason": "stop"}]}
    return request, Events(request, id_, 100, "m").whole(completion)


async def keep(store, id_, *, tenant="a", class_="public", expires_at=None, **more):
    request, response = answered(id_, **more)
    await store.put(response, input_items=input_items(request, id_), tenant=tenant, class_=class_, expires_at=expires_at)
    return response


async def test_only_the_own_tenant_finds_a_response(either):
    """Another tenant's response is as unknown as one that never was, in every method."""
    await keep(either, "resp_1")
    item = (await either.input_items("resp_1", "a"))["first_id"]
    for call in (
        either.get("resp_1", "b"),
        either.delete("resp_1", "b"),
        either.input_items("resp_1", "b"),
        either.get("resp_2", "a"),
    ):
        with pytest.raises(NotFound):
            await call
    with pytest.raises(InvalidRequest) as raised:
        await either.chain("resp_1", "b")
    assert (raised.value.param, raised.value.code) == ("previous_response_id", "previous_response_not_found")
    assert (await either.items([item], "b")).items == []
    assert len((await either.items([item], "a")).items) == 1


@pytest.mark.parametrize("class_", ["confidential", "restricted", "unheard of"])
async def test_nothing_above_the_clearance_is_stored(either, class_):
    """A class above internal, and one nobody knows, is refused by name and leaves no row."""
    with pytest.raises(InvalidRequest) as raised:
        await keep(either, "resp_1", class_=class_)
    assert (raised.value.param, raised.value.code) == ("store", "store_forbidden")
    with pytest.raises(InvalidRequest):
        check_clearance(class_)
    with pytest.raises(NotFound):
        await either.get("resp_1", "a")


async def test_a_response_comes_back_as_it_was(either):
    """What was stored is what is given back, until it is deleted."""
    response = await keep(either, "resp_1", text="lone \ud800 surrogate")
    assert await either.get("resp_1", "a") == response
    conformance.check(await either.get("resp_1", "a"), "Response")
    assert await either.delete("resp_1", "a") == {"id": "resp_1", "object": "response", "deleted": True}
    with pytest.raises(NotFound):
        await either.get("resp_1", "a")


async def test_a_response_expires(either, clock):
    """After its time a response is gone for every reader; one that was given longer stays."""
    item = (await keep(either, "resp_1"))["output"][0]["id"]
    await keep(either, "resp_2", expires_at=1500.0)
    clock.now += 100
    with pytest.raises(NotFound):
        await either.get("resp_1", "a")
    with pytest.raises(InvalidRequest):
        await either.chain("resp_1", "a")
    assert (await either.items([item], "a")).items == []
    await either.get("resp_2", "a")


async def test_what_has_expired_leaves_the_file(store, clock):
    """Its rows go with the next response that is stored."""
    await keep(store, "resp_1")
    clock.now += 100
    await keep(store, "resp_3")
    with closing(sqlite3.connect(store._path)) as db:
        assert db.execute("SELECT count(*) FROM responses WHERE id = 'resp_1'").fetchone() == (0,)
        assert db.execute("SELECT count(*) FROM items WHERE response = 'resp_1'").fetchone() == (0,)


async def test_the_head_is_known_without_the_text(either):
    """Class and model, for the owner only."""
    await keep(either, "resp_1", class_="internal")
    assert await either.head("resp_1", "a") == ("internal", "m")
    with pytest.raises(NotFound):
        await either.head("resp_1", "b")


@pytest.mark.parametrize("count", [1, 4, 5])
async def test_input_items_come_in_pages(either, count):
    """Pages in either order hold each input item once, say whether more follow, and are what OpenAI describes."""
    await keep(either, "resp_1", input=[{"role": "user", "content": str(n)} for n in range(count)])
    for order in ("asc", "desc"):
        seen, after = [], None
        while True:
            page = await either.input_items("resp_1", "a", limit=2, after=after, order=order)
            conformance.check(page, "ResponseItemList")
            seen += [item["content"][0]["text"] for item in page["data"]]
            after = page["last_id"]
            if not page["has_more"]:
                break
        assert seen == sorted("01234"[:count], reverse=order == "desc")


@pytest.mark.parametrize(
    ("wrong", "param"),
    [({"limit": 0}, "limit"), ({"limit": 101}, "limit"), ({"order": "up"}, "order"), ({"after": "msg_x"}, "after")],
)
async def test_a_bad_page_is_refused(either, wrong, param):
    """A page that cannot be is refused with the name of what is wrong."""
    await keep(either, "resp_1")
    with pytest.raises(InvalidRequest) as raised:
        await either.input_items("resp_1", "a", **wrong)
    assert raised.value.param == param


async def test_a_conversation_over_three_turns(either):
    """Question, call, its output and the next question: each turn's chat body holds all that was said before it."""
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    await keep(either, "resp_1", input="Rain?", tools=[TOOL], message={"content": "Let me see.", "tool_calls": [call]})
    output = [{"type": "function_call_output", "call_id": "c1", "output": "dry"}]
    await keep(either, "resp_2", input=output, text="No.", previous_response_id="resp_1", class_="internal")
    turns = await either.chain("resp_2", "a")
    asked = {"model": "m", "input": "Sure?", "previous_response_id": "resp_2"}
    body = chat_body(asked, earlier=turns.items)
    conformance.check(body, "CreateChatCompletionRequest")
    assert turns.class_ == "internal"
    assert body["messages"] == [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "dry"},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "Sure?"},
    ]


async def test_a_stored_item_can_be_referenced(either):
    """Ids that the response and its input items carry lead back to the items."""
    response = await keep(either, "resp_1", class_="internal")
    first = (await either.input_items("resp_1", "a"))["first_id"]
    request = {"model": "m", "input": [{"type": "item_reference", "id": first}, {"id": response["output"][0]["id"]}]}
    found = await either.items(references(request), "a")
    assert found.class_ == "internal"
    assert chat_body(request, earlier=[], referenced=found.items)["messages"] == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
    ]


async def test_a_chain_that_lost_a_turn_is_refused(either):
    """A conversation is never continued without one of its turns."""
    await keep(either, "resp_1")
    await keep(either, "resp_2", previous_response_id="resp_1")
    await either.delete("resp_1", "a")
    with pytest.raises(InvalidRequest) as raised:
        await either.chain("resp_2", "a")
    assert raised.value.code == "previous_response_not_found"


async def test_a_chain_is_bounded(either, monkeypatch):
    """A chain beyond the bound in turns or in bytes is refused, and one at the bound is not."""
    for one in (module, redis_module):
        monkeypatch.setattr(one, "MAX_TURNS", 2)
    await keep(either, "resp_1")
    await keep(either, "resp_2", previous_response_id="resp_1")
    assert len((await either.chain("resp_2", "a")).items) == 4
    await keep(either, "resp_3", previous_response_id="resp_2")
    with pytest.raises(InvalidRequest) as raised:
        await either.chain("resp_3", "a")
    assert raised.value.code == "context_length_exceeded"
    for one in (module, redis_module):
        monkeypatch.setattr(one, "MAX_CHAIN_BYTES", 10)
    with pytest.raises(InvalidRequest):
        await either.chain("resp_1", "a")


async def test_purge_by_tenant_and_class(either):
    """A purge removes what it names and nothing else."""
    await keep(either, "resp_1")
    await keep(either, "resp_2", class_="internal")
    await keep(either, "resp_3", tenant="b")
    assert await either.purge(tenant="a", class_="internal") == 1
    assert await either.purge(tenant="a") == 1
    assert await either.purge() == 1


async def test_purge_by_subject_and_its_dry_run(either):
    """A purge by subject asks of the answer and of every item of the input; a dry run counts and keeps."""
    await keep(either, "resp_1", text="ask Ada")
    await keep(either, "resp_2", input="I am Ada")
    await keep(either, "resp_3")

    def about_ada(document):
        return b"Ada" in document

    assert await either.purge(tenant="a", dry_run=True) == 3
    assert await either.purge(tenant="a", subject=about_ada, dry_run=True) == 2
    assert await either.purge(tenant="a", subject=about_ada) == 2
    assert (await either.get("resp_3", "a"))["id"] == "resp_3"
    assert await either.purge() == 1


@pytest.mark.redis
async def test_redis_keeps_nothing_of_what_was_deleted(redis_server, clock):
    """Neither the response nor the ids of its items; and every key ends by itself."""
    store = SharedStore(redis_server, ttl_s=100, clock=clock)
    await store.purge()
    await keep(store, "resp_1", input="a very peculiar sentence")
    names = await store._redis.keys("gateway:responses:*")
    assert len(names) == 3
    assert all([0 < await store._redis.pttl(name) <= 100_000 for name in names])
    await store.delete("resp_1", "a")
    assert await store._redis.keys("gateway:responses:*") == []
    await store.aclose()


@pytest.mark.redis
async def test_two_gateways_share_what_is_stored(redis_server, clock):
    """What one has stored, the other continues and deletes."""
    async with aclosing(SharedStore(redis_server, clock=clock)) as one, aclosing(SharedStore(redis_server, clock=clock)) as other:
        response = await keep(one, "resp_1")
        assert await other.get("resp_1", "a") == response
        await other.delete("resp_1", "a")
        with pytest.raises(InvalidRequest):
            await one.chain("resp_1", "a")


async def test_a_redis_that_is_gone_is_said(clock):
    """503 with what to do, for every method, and never a crash."""
    async with aclosing(SharedStore("redis://127.0.0.1:1/0", clock=clock)) as store:
        for call in (keep(store, "resp_1"), store.get("r", "a"), store.chain("r", "a"), store.items(["i"], "a"), store.purge()):
            with pytest.raises(Unavailable, match="Redis"):
                await call


async def test_what_is_too_large_for_redis_is_refused(clock, monkeypatch):
    """By name, before anything is sent."""
    monkeypatch.setattr(redis_module, "MAX_RESPONSE_BYTES", 1000)
    async with aclosing(SharedStore("redis://127.0.0.1:1/0", clock=clock)) as store:
        with pytest.raises(TooLarge) as raised:
            await keep(store, "resp_1", input="x" * 2000)
    assert raised.value.param == "store"


async def test_what_was_deleted_is_in_no_file(store):
    """After a delete the text is not in the database or its log any more."""
    await keep(store, "resp_1", input="a very peculiar sentence")
    folder = store._path.parent
    assert any(b"very peculiar" in path.read_bytes() for path in folder.iterdir())
    await store.delete("resp_1", "a")
    assert not any(b"very peculiar" in path.read_bytes() for path in folder.iterdir())


async def test_the_oldest_go_when_the_store_is_full(tmp_path, clock):
    """The store stays within its bytes by dropping the oldest; one answer that would fill a quarter of it is refused."""
    store = ResponseStore(tmp_path / "r.sqlite3", max_bytes=400_000, clock=clock)
    for n in range(30):
        clock.now += 1
        await keep(store, f"resp_{n}", input="x" * 20_000)
    with pytest.raises(NotFound):
        await store.get("resp_0", "a")
    await store.get("resp_29", "a")
    with pytest.raises(TooLarge):
        await keep(store, "resp_big", input="x" * 100_000)
    await store.aclose()
    assert (tmp_path / "r.sqlite3").stat().st_size < 500_000


async def test_a_damaged_file_is_set_aside(store, capsys):
    """A file that is no database is kept under another name, said on stderr, and an empty one begun."""
    store._path.parent.mkdir()
    store._path.write_bytes(b"no database " * 1000)
    await keep(store, "resp_1")
    await store.get("resp_1", "a")
    aside = list(store._path.parent.glob("*.damaged-*"))
    assert len(aside) == 1
    assert aside[0].name in capsys.readouterr().err


async def test_a_row_that_holds_something_else_is_damage(store):
    """A row that is no JSON any more is never given out; its file is set aside as a damaged one."""
    await keep(store, "resp_1")
    with closing(sqlite3.connect(store._path)) as db, db:
        db.execute("UPDATE responses SET body = x'00'")
    with pytest.raises(NotFound):
        await store.get("resp_1", "a")
    assert len(list(store._path.parent.glob("*.damaged-*"))) == 1


async def test_a_file_that_another_process_has_begun_is_not_set_aside(store):
    """Whoever meets damage in a file that is set aside already leaves the new file where it is."""
    await keep(store, "resp_1")
    store._path.rename(store._path.with_name("old"))
    store._path.touch()
    store._set_aside(sqlite3.DatabaseError("malformed"))
    assert list(store._path.parent.glob("*.damaged-*")) == []


async def test_damage_in_use_is_noticed_by_both_processes(store, clock):
    """Of two stores on one file the first that meets damage sets it aside, and the other goes on with the new file."""
    await keep(store, "resp_1", input="x" * 50_000)
    await store.purge(tenant="nobody")
    async with aclosing(ResponseStore(store._path, clock=clock)) as other:
        assert (await other.items(["none"], "a")).items == []
        with store._path.open("r+b") as file:
            file.seek(-40_000, 2)
            file.write(b"\xff" * 40_000)
        with pytest.raises(InvalidRequest):
            await other.chain("resp_1", "a")
        await keep(store, "resp_2")
        await other.get("resp_2", "a")
    assert len(list(store._path.parent.glob("*.damaged-*"))) == 1


async def test_a_file_that_cannot_be_written_is_said(tmp_path):
    """A place where no file can be made is 503 with what to do, not a crash."""
    (tmp_path / "file").write_text("")
    store = ResponseStore(tmp_path / "file/responses.sqlite3")
    with pytest.raises(Unavailable, match="store: false"):
        await keep(store, "resp_1")
    await store.aclose()


async def test_the_file_is_the_operators_alone(store):
    """Nobody else may read what is stored."""
    await keep(store, "resp_1")
    assert {path.stat().st_mode & 0o077 for path in store._path.parent.iterdir()} == {0}


WRITER = """
import asyncio, sys
from pathlib import Path
from gateway.responses.store import ResponseStore

async def main():
    store = ResponseStore(Path(sys.argv[1]))
    for n in range(100_000):
        response = {"id": f"resp_{n}", "output": [{"id": f"msg_{n}", "text": "x" * 500}]}
        await store.put(response, input_items=[], tenant="a", class_="public")
        print(n, flush=True)

asyncio.run(main())
"""


async def test_what_was_stored_survives_a_kill(store):
    """Every response whose `put` had returned is there, whole, after the process was killed in the middle of its work."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, str(store._path), stdout=asyncio.subprocess.PIPE)
    while int(await process.stdout.readline()) < 50:
        pass
    process.kill()
    done = int((b"50\n" + await process.stdout.read()).rpartition(b"\n")[0].rpartition(b"\n")[2])
    assert await process.wait() == -signal.SIGKILL
    for n in range(done + 1):
        assert (await store.get(f"resp_{n}", "a"))["output"][0]["id"] == f"msg_{n}"
    assert not list(store._path.parent.glob("*.damaged-*"))
