"""What the supervisor and its front workers say to each other over private socket pairs, and both ends of that talk.

Knows nothing of what is in a config or a policy, and starts no process.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import msgspec
from msgspec import Struct

from gateway import frames
from gateway.errors import Unavailable, WorkerGone
from gateway.metrics import Counts, add_up, render

COUNT_EVERY_S = 1.0
"""Between two times that every front worker is asked for its counts: what a killed one counted since is not in /metrics."""
PATIENCE_S = 0.25
"""A page of metrics waits this long for a worker's counts, then takes its last ones."""
SILENT_S = 2.0
"""A front worker that has answered nothing for so long is said to be stuck."""
PAGE_S = 2.0
"""A front worker waits this long for the supervisor's answer."""


class Start(Struct, frozen=True, tag="start"):
    """Supervisor → front, first: everything the worker works with."""

    config: bytes
    """The Config as JSON."""
    name: str
    """This worker's: of its log files, and in the news."""
    listeners: dict[str, int]
    """Inherited file descriptors of the listening sockets, by front worker. Each takes connections from its own, and from that
    of a worker that cannot."""
    sockets: dict[str, str]
    """Unix sockets of the worker processes, by worker name (`cache`, `model:NAME`)."""
    admin_sha256: str
    """Digest of the key with which the command line of this machine asks for purges."""
    id: int = 0


class Activate(Struct, frozen=True, tag="activate"):
    """Supervisor → front: this policy generation is in force from now on."""

    number: int
    source: bytes
    """`Generation.source()`."""
    id: int = 0


class WorkerNews(Struct, frozen=True, tag="worker_news"):
    """Supervisor → front: how a worker process is, front workers too. An empty `problem` means that it is ready."""

    worker: str
    problem: str
    id: int = 0


class PolicyNews(Struct, frozen=True, tag="policy_news"):
    """Supervisor → front: how the policy files on the disk are. An empty `problem` means that what they say is in force."""

    problem: str
    id: int = 0


class Event(Struct, frozen=True, tag="event"):
    """Supervisor → one front: a lifecycle event for the log, since front workers own the log files."""

    name: str
    fields: dict[str, str | int | float | list[str]]
    id: int = 0


class Count(Struct, frozen=True, tag="count"):
    """Supervisor → front: say what you have counted."""

    id: int


class Page(Struct, frozen=True, tag="page"):
    """Supervisor → front: the metrics of all front workers, made here since that takes milliseconds; the answer to WantPage."""

    body: bytes
    media: str
    id: int


class Standing(Struct, frozen=True, tag="standing"):
    """Front → supervisor: whether the worker takes connections; an empty `problem` means that it does."""

    problem: str
    id: int = 0


class Counted(Struct, frozen=True, tag="counted"):
    """Front → supervisor: everything this worker has counted since its start; the answer to Count, and its last word."""

    counts: Counts
    id: int = 0


class WantPage(Struct, frozen=True, tag="want_page"):
    """Front → supervisor: somebody asks this worker for the metrics of all."""

    id: int


News = Activate | WorkerNews | PolicyNews | Event
ToFront = Start | News | Count | Page
FromFront = Standing | Counted | WantPage


class Uplink:
    """A front worker's end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder: msgspec.msgpack.Decoder[ToFront] = msgspec.msgpack.Decoder(ToFront)
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Page]] = {}

    async def begin(self) -> tuple[Start, Activate]:
        """What the supervisor says first. Raises WorkerGone when it says anything else."""
        start, activate = await frames.read(self._reader, self._decoder), await frames.read(self._reader, self._decoder)
        if not isinstance(start, Start) or not isinstance(activate, Activate):
            raise WorkerGone("the supervisor left before it said what to serve")
        return start, activate

    def say(self, problem: str) -> None:
        """Tell why this worker takes no connections, or, with an empty problem, that it does."""
        self._send(Standing(problem=problem))

    def _send(self, frame: FromFront) -> None:
        if not self._writer.is_closing():
            self._writer.write(frames.encode(frame))

    async def leave(self, counts: Counts) -> None:
        """Say last what was counted, and hang up."""
        self._send(Counted(counts=counts))
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def listen(self, hear: Callable[[News], Awaitable[None]], counts: Callable[[], Counts]) -> None:
        """Hand all news to `hear` and answer with `counts` when asked; returns when the supervisor is gone."""
        with suppress(WorkerGone):
            while (frame := await frames.read(self._reader, self._decoder)) is not None:
                match frame:
                    case Count():
                        self._send(Counted(counts=counts(), id=frame.id))
                    case Page():
                        if (asked := self._asked.get(frame.id)) is not None and not asked.done():
                            asked.set_result(frame)
                    case Activate() | WorkerNews() | PolicyNews() | Event():
                        await hear(frame)
                    case Start():
                        raise AssertionError("Start comes once, first")

    async def page(self) -> Page:
        """The metrics of all front workers, this one too. Raises Unavailable when the supervisor does not answer in time."""
        number = next(self._numbers)
        asked: asyncio.Future[Page] = asyncio.get_running_loop().create_future()
        self._asked[number] = asked
        self._send(WantPage(id=number))
        try:
            async with asyncio.timeout(PAGE_S):
                return await asked
        except TimeoutError:
            raise Unavailable("The supervisor did not say what all front workers have counted; ask again.") from None
        finally:
            del self._asked[number]


class _Front:
    """One connected front worker, as the supervisor knows it."""

    def __init__(self, name: str, writer: asyncio.StreamWriter, now: float) -> None:
        self.name = name
        self.writer = writer
        self.serving = False
        self.counts = Counts()
        self.answered_at = now
        self.stuck = False
        self.waiting: dict[int, asyncio.Future[None]] = {}

    def send(self, frame: ToFront) -> None:
        if not self.writer.is_closing():
            self.writer.write(frames.encode(frame))


class Fronts:
    """The supervisor's end: every front worker that is connected now, and what those that are gone had counted.

    `tell(name, problem)` hears why a worker takes no connections; an empty problem means that it does.
    """

    def __init__(
        self,
        tell: Callable[[str, str], None],
        *,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell = tell
        self._patience_s = patience_s
        self._clock = clock
        self._decoder: msgspec.msgpack.Decoder[FromFront] = msgspec.msgpack.Decoder(FromFront)
        self._fronts: list[_Front] = []
        self._gone = Counts()
        self._unsent: list[Event] = []
        self._numbers = itertools.count(1)
        self._askers: list[tuple[_Front, int]] = []
        self._answering: asyncio.Task[None] | None = None

    async def talk(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: Sequence[ToFront]) -> None:
        """Say `first`, then listen until the worker is gone. Whatever is sent to all from now on reaches it after `first`."""
        front = _Front(name, writer, self._clock())
        self._fronts.append(front)
        try:
            for said in first:
                front.send(said)
            with suppress(WorkerGone):
                while (frame := await frames.read(reader, self._decoder)) is not None:
                    self._hear(front, frame)
        finally:
            self._fronts.remove(front)
            self._gone = add_up([self._gone, Counts(sums=front.counts.sums)])
            for waiting in front.waiting.values():
                waiting.cancel()
            writer.close()

    def _hear(self, front: _Front, frame: FromFront) -> None:
        front.answered_at = self._clock()
        match frame:
            case Standing():
                front.serving = True
                for event in self._unsent:
                    front.send(event)
                self._unsent.clear()
                self._tell(front.name, frame.problem)
            case Counted():
                front.counts = frame.counts
                if (waiting := front.waiting.pop(frame.id, None)) is not None and not waiting.done():
                    waiting.set_result(None)
            case WantPage():
                self._askers.append((front, frame.id))
                if self._answering is None or self._answering.done():
                    self._answering = asyncio.get_running_loop().create_task(self._answer())
        if front.stuck:
            front.stuck = False
            self._tell(front.name, "")

    def send(self, frame: Activate | WorkerNews | PolicyNews) -> None:
        """Tell every front worker."""
        for front in self._fronts:
            front.send(frame)

    def log(self, event: Event) -> None:
        """Have one front worker log this, the first that can; kept until there is one."""
        able = next((front for front in self._fronts if front.serving and not front.stuck), None)
        if able is None:
            self._unsent.append(event)
        else:
            able.send(event)

    async def _answer(self) -> None:
        """One page for all who wait when it is begun; who comes meanwhile gets the next, so that nobody's own requests miss."""
        while self._askers:
            askers, self._askers = self._askers, []
            body, media = render(await self.totals())
            for front, number in askers:
                front.send(Page(body=body, media=media, id=number))

    async def totals(self) -> Counts:
        """What all front workers have counted since the gateway's start: no sum ever falls.

        Takes `patience_s` at most: of a worker that does not answer by then the last counts are taken. What a dead one had last
        counted stays in the sums.
        """
        await self._ask()
        return add_up([self._gone, *(front.counts for front in self._fronts)])

    async def _ask(self) -> None:
        """Get the counts of every worker that answers in time."""
        number = next(self._numbers)
        asked = [front for front in self._fronts if front.serving and not front.stuck]
        for front in asked:
            front.waiting[number] = asyncio.get_running_loop().create_future()
            front.send(Count(id=number))
        if asked:
            await asyncio.wait([front.waiting[number] for front in asked], timeout=self._patience_s)
        for front in asked:
            front.waiting.pop(number, None)

    async def watch(self) -> None:
        """Ask for counts every COUNT_EVERY_S, and say which worker has stopped answering; until cancelled."""
        while True:
            await asyncio.sleep(COUNT_EVERY_S)
            await self.look()

    async def look(self) -> None:
        """One such round."""
        await self._ask()
        for front in self._fronts:
            if front.serving and not front.stuck and self._clock() - front.answered_at > SILENT_S:
                front.stuck = True
                self._tell(front.name, "does not answer; the other front workers take its new connections")
