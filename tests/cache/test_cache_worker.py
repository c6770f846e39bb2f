"""The cache worker, served inside the test's own loop over a real socket."""

import asyncio
import time
from contextlib import asynccontextmanager, suppress

import pytest
import tiny_embedder

from gateway import frames
from gateway.cache.frames import Done, Embed, Embedded, Failed, Found, Lookup, NotFound, Purge, Store, from_worker_decoder
from gateway.cache.worker import Engine, Options, Worker, main, read_options

SCOPE = b"s" * 32
LONG = "tea " * 129


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """No look-up is too old to be answered, however slow the machine."""
    monkeypatch.setattr("gateway.cache.worker._STALE_S", 60.0)


@asynccontextmanager
async def running(tmp_path, embedder, **options):
    """A worker, and a client that has heard its first hello."""
    chosen = Options(tmp_path / "w.sock", tmp_path / "store", embedder, "tiny", 0.92, 10**7, 1e6)._replace(**options)
    worker = Worker(Engine(chosen))
    news = asyncio.Queue()
    client = frames.Client(str(chosen.socket), from_worker_decoder(), on_news=news.put_nowait, retry_s=0.01)
    tasks = [asyncio.create_task(worker.run(chosen.socket)), asyncio.create_task(client.run())]
    client.worker, client.news = worker, news
    try:
        async with asyncio.timeout(120):
            yield client
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


async def until_ready(client):
    while not (hello := await client.news.get()).embedder:
        pass
    return hello


def store(client, text, *, key=None, tenant="t", answer=b"answer", expires_at=None):
    expires_at = time.time() + 60 if expires_at is None else expires_at
    frame = Store(client.next_id(), SCOPE, key or text.encode(), text, answer, tenant, "m", "public", expires_at)
    return client.ask(frame)


def look_up(client, text, scope=SCOPE):
    return client.ask(Lookup(client.next_id(), scope, text))


async def test_missing_weights_are_said_and_nothing_breaks(tmp_path):
    """Without an embedder the worker runs, says which command mends it, and still forgets on request."""
    async with running(tmp_path, tmp_path / "none") as client:
        mend = 'weights of "tiny" are missing; run: gateway models pull tiny'
        while (await client.news.get()).problem != mend:
            pass
        assert (await look_up(client, "tea")).reason == "no_embedder"
        assert await client.ask(Embed(client.next_id(), ["tea"])) == Failed(2, mend)
        assert (await store(client, "tea")).count == 0
        assert await client.ask(Purge(client.next_id(), tenant="t")) == Done(4, 0)


async def test_weights_that_arrive_later_need_no_restart(tmp_path, monkeypatch):
    """Once the weights are pulled the worker loads them by itself and says hello again."""
    monkeypatch.setattr("gateway.cache.worker._RETRY_S", 0.01)
    async with running(tmp_path, tmp_path / "late") as client:
        while "missing" not in (await client.news.get()).problem:
            pass
        tiny_embedder.build(tmp_path / "made")
        (tmp_path / "made").rename(tmp_path / "late")
        assert (await until_ready(client)).dimensions == tiny_embedder.DIMENSIONS


async def test_a_paraphrase_hits_and_its_neighbours_do_not(tmp_path, tiny):
    """A text with the same meaning is answered; other numbers, other scopes and other questions name why they are not."""
    async with running(tmp_path, tiny, threshold=0.8) as client:
        await until_ready(client)
        assert (await look_up(client, "convert 5 miles to km")).reason == "empty"
        await store(client, "convert 5 miles to km")
        found = await look_up(client, "Convert 5 miles to km ?")
        assert isinstance(found, Found)
        assert found.answer == b"answer"
        assert (await look_up(client, "convert 50 miles to km")).reason in {"numbers", "below"}
        assert (await look_up(client, "convert 5 miles to km not")).reason == "negation"
        assert (await look_up(client, "what is the capital of france")).reason == "below"
        assert (await look_up(client, "convert 5 miles to km", b"o" * 32)).reason == "empty"


async def test_a_long_text_is_neither_looked_up_nor_kept(tmp_path, tiny):
    """Above 128 tokens the semantic tier stands aside, and says so."""
    async with running(tmp_path, tiny) as client:
        await until_ready(client)
        assert (await store(client, LONG)).count == 0
        await store(client, "tea")
        assert (await look_up(client, LONG)).reason == "long"


async def test_an_expired_answer_is_not_found(tmp_path, tiny):
    """An answer stored with a time already past is never served."""
    async with running(tmp_path, tiny) as client:
        await until_ready(client)
        await store(client, "tea", expires_at=time.time() - 1)
        assert isinstance(await look_up(client, "tea"), NotFound)


async def test_a_text_too_long_to_embed_fails_by_its_place(tmp_path, tiny):
    """Embed cuts nothing: it names which text is too long, and by how much."""
    async with running(tmp_path, tiny) as client:
        await until_ready(client)
        failed = await client.ask(Embed(client.next_id(), ["tea", "tea " * 201]))
        assert failed.message == "input[1] has 201 tokens; this embedder reads at most 200"


async def test_a_look_up_overtakes_a_large_embed(tmp_path, tiny):
    """While a large batch is embedded in pieces, look-ups and a small batch that came later are answered before it."""
    async with running(tmp_path, tiny) as client:
        await until_ready(client)
        await store(client, "tea")
        order = []

        async def note(name, call):
            answer = await call
            order.append(name)
            return answer

        large = asyncio.create_task(note("large", client.ask(Embed(client.next_id(), ["green tea with sugar " * 20] * 2_000))))
        small = asyncio.create_task(note("small", client.ask(Embed(client.next_id(), ["tea"]))))
        found = asyncio.create_task(note("found", look_up(client, "tea")))
        answer = await large
        await asyncio.gather(small, found)
        assert order.index("large") == 2
        assert isinstance(answer, Embedded)
        assert len(answer.vectors) == 2_000 * 4 * tiny_embedder.DIMENSIONS


async def test_many_look_ups_at_once_get_their_own_answers(tmp_path, tiny):
    """Look-ups that are answered together do not get each other's answers."""
    words = tiny_embedder.WORDS[5:25]
    async with running(tmp_path, tiny) as client:
        await until_ready(client)
        await asyncio.gather(*(store(client, word, answer=word.encode()) for word in words))
        answers = await asyncio.gather(*(look_up(client, word) for word in words * 3))
        assert [answer.answer.decode() for answer in answers] == words * 3


async def test_what_was_stored_survives_a_stop(tmp_path, tiny):
    """After the worker ends in order and starts again, the answer is found; purged, it is gone for good."""
    async with running(tmp_path, tiny) as client:
        await until_ready(client)
        await store(client, "green tea")
        await client.worker.keep_up()
    async with running(tmp_path, tiny) as client:
        assert (await until_ready(client)).entries == 1
        assert isinstance(await look_up(client, "tea green"), NotFound | Found)
        assert isinstance(await look_up(client, "green tea"), Found)
        assert (await client.ask(Purge(client.next_id(), tenant="t"))).count == 1
        assert (await look_up(client, "green tea")).reason == "empty"


async def test_a_fault_of_a_library_fails_one_call_without_its_text(tmp_path, tiny, capfd):
    """A text that breaks the embedder fails its own call; neither answer nor stderr quote it, and the worker lives on."""
    async with running(tmp_path, tiny) as client:
        await until_ready(client)
        await store(client, "tea")

        class Broken:
            max_tokens = 200

            def tokens(self, text):
                raise ValueError(text)

            def embed(self, texts):
                raise ValueError(texts)

        engine = client.worker._engine
        engine._embedder, whole = Broken(), engine._embedder
        answers = [await look_up(client, "blue heron"), await client.ask(Embed(client.next_id(), ["blue heron"]))]
        engine._embedder = whole
        assert all(isinstance(answer, Failed) and "heron" not in answer.message for answer in answers)
        assert isinstance(await look_up(client, "tea"), Found)
    assert "heron" not in capfd.readouterr().err


def test_a_bad_threshold_is_refused(capsys):
    """A threshold of 0 would let everything hit: the command line refuses it and says what is needed."""
    arguments = ["--socket", "s", "--store", "d", "--embedder", "e", "--name", "n", "--threshold", "0"]
    with pytest.raises(SystemExit):
        read_options(arguments)
    assert "a cosine above 0 and up to 1 is needed" in capsys.readouterr().err


def test_a_store_that_cannot_be_made_is_said(tmp_path, capfd):
    """A store path that is a file ends the worker with a message, not a traceback."""
    (tmp_path / "store").write_text("a file")
    arguments = ["--socket", str(tmp_path / "s"), "--store", str(tmp_path / "store"), "--embedder", "e", "--name", "n"]
    assert main(arguments) == 78
    assert '"state":"failed"' in capfd.readouterr().out


async def test_a_store_sent_before_the_stop_is_kept(tmp_path, tiny):
    """An answer that was sent just before the worker is told to stop is found by the next one."""
    async with running(tmp_path, tiny) as client:
        await until_ready(client)
        for word in tiny_embedder.WORDS[5:25]:
            client.send(Store(client.next_id(), SCOPE, word.encode(), word, b"a", "t", "m", "public", time.time() + 60))
        await look_up(client, "tea")
    async with running(tmp_path, tiny) as client:
        assert (await until_ready(client)).entries == 20


async def test_a_damaged_store_costs_its_entries_and_not_the_worker(tmp_path, tiny, capfd):
    """A file that breaks under the running worker is set aside; the call that met it fails, the next ones work."""
    async with running(tmp_path, tiny) as client:
        await until_ready(client)
        for word in tiny_embedder.WORDS[5:45]:
            await store(client, word, answer=b"x" * 2_000)
        index = client.worker._engine._index
        index._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with index._path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (index._path.stat().st_size - 4096))
        index._db.execute("PRAGMA shrink_memory")
        assert isinstance(await look_up(client, "tea"), Failed)
        assert (await store(client, "tea")).count == 1
        assert isinstance(await look_up(client, "tea"), Found)
    assert "damaged" in capfd.readouterr().err
