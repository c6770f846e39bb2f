"""The talk between the supervisor and its front workers, over real socket pairs; nothing but the workers' work is left out."""

import asyncio
import socket
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import control, frames
from gateway.errors import Unavailable, WorkerGone
from gateway.metrics import Counts

ACTIVATE = control.Activate(number=1, source=b"policies")
READY = control.WorkerNews(worker="cache", problem="")


def start(name):
    return control.Start(config=b"{}", name=name, listeners={}, sockets={}, admin_sha256="")


class Worker:
    """A front worker as far as its supervisor can tell: it counts, hears news, and may stop answering or die."""

    def __init__(self, fronts, name):
        self.fronts, self.name = fronts, name
        self.counts, self.heard = Counts(), []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def begin(self):
        ours, theirs = socket.socketpair()
        ends = await asyncio.open_unix_connection(sock=ours)
        self.talk = asyncio.create_task(self.fronts.talk(self.name, *ends, (start(self.name), ACTIVATE)))
        reader, self.writer = await asyncio.open_unix_connection(sock=theirs)
        self.uplink = control.Uplink(reader, self.writer)
        self.first = await self.uplink.begin()
        return self

    async def serve(self):
        self.uplink.say("")
        self.listening = asyncio.create_task(self.uplink.listen(self.hear, lambda: self.counts))
        await self.fronts_have_heard()
        return self

    async def fronts_have_heard(self):
        """Return when the supervisor has read all that was sent until now, and this worker has read what came of that."""
        await self.uplink.page()

    async def hear(self, frame):
        self.heard.append(frame)
        await self.may_answer.wait()

    def request(self, errors=1):
        self.counts.sums.errors["cut"] = self.counts.sums.errors.get("cut", 0) + errors
        self.counts.state.in_flight += 1

    async def die(self):
        self.writer.close()
        await asyncio.gather(self.talk, self.listening)

    async def leave(self):
        await self.uplink.leave(self.counts)
        await asyncio.gather(self.talk, self.listening)


@asynccontextmanager
async def joined(*names, patience_s=5.0, clock=lambda: 0.0):
    """A supervisor's end with serving workers, and what it was told."""
    told = []
    fronts = control.Fronts(lambda *news: told.append(news), patience_s=patience_s, clock=clock)
    workers = [await (await Worker(fronts, name).begin()).serve() for name in names]
    yield fronts, workers, told
    for worker in workers:
        worker.may_answer.set()
        if not worker.talk.done():
            await worker.die()


async def test_a_worker_without_a_supervisor_gives_up(monkeypatch):
    """A supervisor that says anything else first is WorkerGone; one that never adds up is Unavailable; a gone one ends it."""
    ours, theirs = socket.socketpair()
    _, writer = await asyncio.open_unix_connection(sock=ours)
    reader, uplink_writer = await asyncio.open_unix_connection(sock=theirs)
    uplink = control.Uplink(reader, uplink_writer)
    writer.write(frames.encode(READY) + frames.encode(READY))
    with pytest.raises(WorkerGone):
        await uplink.begin()
    monkeypatch.setattr(control, "PAGE_S", 0.01)
    with pytest.raises(Unavailable, match="ask again"):
        await uplink.page()
    writer.close()
    await uplink.listen(lambda frame: asyncio.sleep(0), Counts)
    uplink_writer.close()


async def test_news_reach_every_worker_after_its_first_words():
    """Start and Activate come first; then each worker hears the same news in the same order."""
    async with joined("front0", "front1") as (fronts, workers, told):
        later = control.Activate(number=2, source=b"other policies")
        fronts.send(READY)
        fronts.send(later)
        for worker in workers:
            await worker.fronts_have_heard()
            assert worker.first == (start(worker.name), ACTIVATE)
            assert worker.heard == [READY, later]
        assert told == [("front0", ""), ("front1", "")]


async def test_an_event_is_logged_once_and_waits_for_a_worker_that_serves():
    """An event before any worker serves is kept for the first; later ones go to one worker, and not to one that is gone."""
    before, after = control.Event(name="before", fields={}), control.Event(name="after", fields={})
    async with joined() as (fronts, workers, _):
        fronts.log(before)
        workers += [await (await Worker(fronts, name).begin()).serve() for name in ("front0", "front1")]
        await workers[0].die()
        fronts.log(after)
        await workers[1].fronts_have_heard()
        assert [worker.heard for worker in workers] == [[before], [after]]


async def test_a_worker_that_does_not_answer_holds_up_nobody():
    """The page comes without it, with its last counts; it is called stuck after a while, and ready when it answers."""
    now = [0.0]
    async with joined("front0", "front1", patience_s=0.02, clock=lambda: now[0]) as (fronts, (slow, other), told):
        slow.request()
        assert 'kind="cut"} 1.0' in (await other.uplink.page()).body.decode()
        slow.may_answer.clear()
        fronts.send(READY)
        slow.request()
        other.request()
        assert 'kind="cut"} 2.0' in (await other.uplink.page()).body.decode()
        now[0] = control.SILENT_S + 1
        await fronts.look()
        assert [name for name, problem in told if problem.startswith("does not answer")] == ["front0"]
        fronts.log(control.Event(name="for the other", fields={}))
        await other.fronts_have_heard()
        assert isinstance(other.heard[-1], control.Event)
        slow.may_answer.set()
        await slow.fronts_have_heard()
        assert told[-1] == ("front0", "")
        assert (await fronts.totals()).sums.errors == {"cut": 3}


async def test_many_who_ask_at_once_each_get_a_page_that_holds_what_they_know_of():
    """Pages are made once for all who wait, and never from before the asking."""
    async with joined("front0", "front1") as (_, (first, second), _):
        early = [asyncio.create_task(worker.uplink.page()) for worker in (first, second) for _ in range(50)]
        await asyncio.sleep(0)
        first.request()
        late = [asyncio.create_task(worker.uplink.page()) for worker in (first, second) for _ in range(50)]
        await asyncio.gather(*early)
        for page in await asyncio.gather(*late):
            assert b'kind="cut"} 1.0' in page.body


async def test_a_page_does_not_wait_for_a_worker_that_dies_meanwhile():
    """What is asked of a worker that ends before it answers is answered at once without it, however patient the page is."""
    async with joined("front0", patience_s=600.0) as (fronts, (dying,), _), asyncio.timeout(30):
        dying.request()
        await fronts.totals()
        dying.may_answer.clear()
        fronts.send(READY)
        page = asyncio.create_task(fronts.totals())
        await asyncio.sleep(0)
        dying.writer.close()
        assert (await page).sums.errors == {"cut": 1}
        dying.may_answer.set()


async def test_a_worker_that_leaves_in_order_takes_nothing_with_it():
    """It says that it takes no more connections, goes on counting, and its last counts stay exactly, without its state."""
    async with joined("front0", "front1") as (fronts, (leaving, _), told):
        leaving.uplink.say("finishes its requests")
        leaving.request()
        assert (await fronts.totals()).state.in_flight == 1
        leaving.request(errors=4)
        await leaving.leave()
        assert told[-1] == ("front0", "finishes its requests")
        totals = await fronts.totals()
        assert (totals.sums.errors, totals.state.in_flight) == ({"cut": 5}, 0)


STEPS = st.lists(st.tuples(st.sampled_from(("request", "ask", "die", "stall", "go on")), st.integers(0, 1)), max_size=12)


@settings(max_examples=25)
@given(STEPS)
def test_sums_never_fall(steps):
    """Whatever dies, stalls or starts anew: no page shows less than one before, and all that was ever shown stays."""
    asyncio.run(_sums_never_fall(steps))


async def _sums_never_fall(steps):
    shown = 0
    async with joined("front0", "front1", patience_s=0.01) as (fronts, workers, _):
        for what, which in steps:
            worker = workers[which]
            match what:
                case "request":
                    worker.request()
                case "ask":
                    page = await fronts.totals()
                    assert page.sums.errors.get("cut", 0) >= shown
                    assert page.state.in_flight <= sum(one.counts.state.in_flight for one in workers)
                    shown = page.sums.errors.get("cut", 0)
                case "die" if worker.may_answer.is_set():
                    await worker.die()
                    workers[which] = await (await Worker(fronts, worker.name).begin()).serve()
                case "stall" if worker.may_answer.is_set():
                    worker.may_answer.clear()
                    fronts.send(READY)
                case "go on":
                    worker.may_answer.set()
        assert (await fronts.totals()).sums.errors.get("cut", 0) >= shown
