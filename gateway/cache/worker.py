"""The cache worker: answers look-ups by meaning, keeps answers, and embeds texts, over one Unix socket.

Knows nothing of requests or policy: a scope is a digest to it. The event loop only moves frames; the embedder, FAISS and
SQLite live in one thread. Each turn of that thread takes the waiting look-ups first, then one small piece of other work,
so that a look-up waits for one piece at most.

    python -m gateway.cache.worker --socket PATH --store DIR --embedder DIR --name NAME
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from gateway import frames
from gateway.cache import embed, verify
from gateway.cache.frames import (
    Done,
    Embed,
    Embedded,
    Failed,
    Found,
    FromWorker,
    Hello,
    Lookup,
    NotFound,
    Purge,
    Store,
    ToWorker,
    to_worker_decoder,
)
from gateway.cache.index import Index, Record, Training, is_damage
from gateway.errors import ConfigError, WorkerGone
from gateway.process import EXIT_UNUSABLE, report, until_stopped

T = TypeVar("T")
W = TypeVar("W")

LOOKUP_TOKENS = 128
"""A longer text is neither looked up nor kept by meaning: one vector says too little about it."""

_LOOKUPS_A_TURN = 32
_PIECE_TOKENS = 128
"""Of one piece of a large Embed: some tens of milliseconds on one core, and no look-up waits for more than one."""
_STALE_S = 0.5
"""A look-up that waited longer is answered unseen; its caller has long gone to the upstream."""
_VECTORS_KEPT = 2_048
_RETRY_S = 5.0
_SWEEP_S = 30.0
_FLUSH_S = 2.0
"""Of stores that wait when the worker is told to stop."""


class Options(NamedTuple):
    """What the command line says."""

    socket: Path
    store: Path
    embedder: Path
    name: str
    threshold: float
    """Least cosine of a hit."""
    max_bytes: int
    """Of stored entries on disk."""
    max_ttl_s: float
    """No entry lives longer, whatever its Store says."""


class Bulk:
    """An Embed under way: the vectors it has so far."""

    def __init__(self, frame: Embed) -> None:
        self.frame = frame
        self.vectors: list[bytes] = []
        self.n_tokens = 0


class Engine:
    """Embedder, index and verdict. Called from one thread, a few frames at a time; never raises for one bad call."""

    def __init__(self, options: Options, clock: Callable[[], float] = time.time) -> None:
        self._options = options
        self._clock = clock
        self._index = Index(options.store, max_bytes=options.max_bytes, clock=clock)
        self._embedder: embed.Embedder | None = None
        self._problem = f'embedder "{options.name}" is still loading'
        self._vectors: OrderedDict[str, embed.Vectors] = OrderedDict()

    def load(self) -> bool:
        """Load the embedder; True when it is there now. Otherwise `hello` says what is wrong."""
        directory, name = self._options.embedder, self._options.name
        if not directory.is_dir() or not any(directory.iterdir()):
            self._problem = f'weights of "{name}" are missing; run: gateway models pull {name}'
            return False
        try:
            embedder = embed.load(directory)
        except (ConfigError, ImportError, RuntimeError, ValueError, OSError) as error:
            self._problem = f'embedder "{name}" cannot be loaded: {error}'
            return False
        dropped = self._guarded(lambda: self._index.use_embedder(embedder.identity, embedder.dimensions))
        if dropped:
            sys.stderr.write(f"{self._options.store}: another embedder; {dropped} entries dropped\n")
        self._embedder, self._problem = embedder, ""
        return True

    def hello(self) -> Hello:
        """What this worker can do now."""
        if self._embedder is None:
            return Hello(None, 0, 0, self._index.entries, self._problem)
        return Hello(self._options.name, self._embedder.dimensions, self._embedder.max_tokens, self._index.entries)

    def answer(self, frame: Lookup | Store | Purge) -> FromWorker:
        """The answer to one call. A damaged file is replaced; any other fault of the file fails this call alone."""
        try:
            match frame:
                case Lookup():
                    return self._lookup(frame)
                case Store():
                    return self._store(frame)
                case Purge():
                    count = self._index.purge(tenant=frame.tenant, model=frame.model, class_=frame.class_, dry_run=frame.dry_run)
                    return Done(frame.id, count)
        except sqlite3.DatabaseError as error:
            if is_damage(error):
                self._index.renew(error)
            return Failed(frame.id, f"semantic store: {error}")
        except Exception as error:  # noqa: BLE001 - the boundary of one call: a text that breaks a library must not end the worker
            return self._failed(frame.id, error)

    def answer_all(self, frames_: Sequence[Lookup]) -> list[FromWorker]:
        """The answers to look-ups that came together, in order."""
        return [self.answer(frame) for frame in frames_]

    def _lookup(self, frame: Lookup) -> Found | NotFound:
        if self._embedder is None:
            return NotFound(frame.id, "no_embedder")
        if not self._index.has(frame.scope):
            return NotFound(frame.id, "empty")
        vector = self._short_vector(frame.text)
        if vector is None:
            return NotFound(frame.id, "long")
        near = self._index.search(frame.scope, vector)
        if not near:
            return NotFound(frame.id, "empty")
        reason = "below"
        for candidate in near:
            if candidate.cosine < self._options.threshold:
                break
            vetoed = verify.veto(frame.text, candidate.text)
            if vetoed is None:
                answer = self._index.answer(candidate)
                return Found(frame.id, candidate.key, answer, candidate.cosine, candidate.stored_at)
            reason = vetoed if candidate is near[0] else reason
        return NotFound(frame.id, reason, near[0].cosine)

    def _store(self, frame: Store) -> Done:
        vector = None if self._embedder is None else self._short_vector(frame.text)
        if vector is None:
            return Done(frame.id, 0)
        expires_at = min(frame.expires_at, self._clock() + self._options.max_ttl_s)
        record = Record(frame.scope, frame.key, frame.text, frame.answer, frame.tenant, frame.model, frame.class_, expires_at)
        return Done(frame.id, int(self._index.store(record, vector)))

    def advance(self, job: Bulk) -> FromWorker | None:
        """Embed the next texts of the job, some hundred tokens; its answer once all are done or one cannot be."""
        if self._embedder is None:
            return Failed(job.frame.id, self._problem)
        room = _PIECE_TOKENS
        while room > 0 and len(job.vectors) < len(job.frame.texts):
            at = len(job.vectors)
            try:
                vectors, n_tokens = self._embedder.embed([job.frame.texts[at]])
            except embed.TooLong as error:
                return Failed(job.frame.id, str(embed.TooLong(at, error.n_tokens, error.max_tokens)))
            except Exception as error:  # noqa: BLE001 - the boundary of one call, as in `answer`
                return self._failed(job.frame.id, error)
            job.vectors.append(vectors[0].astype("<f4").tobytes())
            job.n_tokens += n_tokens
            room -= n_tokens
        if len(job.vectors) < len(job.frame.texts):
            return None
        return Embedded(job.frame.id, self._embedder.dimensions, b"".join(job.vectors), job.n_tokens)

    def _failed(self, id_: int, error: Exception) -> Failed:
        """Say on stderr that a call failed, by the error's type alone: its text might quote the request."""
        message = f"cache worker: a call failed inside {type(error).__module__}.{type(error).__qualname__}"
        sys.stderr.write(message + "\n")
        return Failed(id_, message)

    def sweep(self) -> Training | None:
        """Drop what has expired; the search structure that should now be built, if one should."""
        self._guarded(self._index.sweep)
        return self._index.training()

    def adopt(self, training: Training) -> None:
        """Search through the structure that was built."""
        self._guarded(lambda: self._index.adopt(training))

    def close(self) -> None:
        """Write what is only in memory."""
        self._guarded(self._index.close)

    def _guarded(self, work: Callable[[], T]) -> T | None:
        """Work of our own that no call waits for: a fault of the file is mended or said, and does not end the worker."""
        try:
            return work()
        except sqlite3.DatabaseError as error:
            if is_damage(error):
                self._index.renew(error)
            else:
                sys.stderr.write(f"{self._options.store}: {error}; free some space or check the disk\n")
            return None

    def _short_vector(self, text: str) -> embed.Vectors | None:
        """The text's vector, or None for a long one. A miss is embedded once: its Store finds the vector here."""
        assert self._embedder is not None  # noqa: S101 - for the type checker; both callers have looked
        known = self._vectors.pop(text, None)
        if known is None:
            if len(self._embedder.tokens(text)) > LOOKUP_TOKENS:
                return None
            known = self._embedder.embed([text])[0][0]
        self._vectors[text] = known
        if len(self._vectors) > _VECTORS_KEPT:
            self._vectors.popitem(last=False)
        return known


class _Peer:
    """One front worker's connection."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.gone = False

    def send(self, frame: FromWorker) -> None:
        if not self.gone:
            self._writer.write(frames.encode(frame))

    async def drained(self) -> None:
        """Wait until the peer has read most of its answers: who does not read is not served further."""
        await self._writer.drain()

    def close(self) -> None:
        self.gone = True
        self._writer.close()


class _Call(NamedTuple, Generic[W]):
    """A call that waits for its turn."""

    peer: _Peer
    work: W
    at: float
    """When it came, by the monotonic clock."""


class Worker:
    """Moves frames between front workers and the engine's thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cache")
        self._peers: set[_Peer] = set()
        self._lookups: deque[_Call[Lookup]] = deque()
        self._writes: deque[_Call[Store | Purge]] = deque()
        self._bulk: deque[_Call[Bulk]] = deque()
        self._wake = asyncio.Event()
        self._hello = engine.hello()

    async def _compute(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run in the engine's thread. Work that was handed over is done even when its caller is cancelled."""
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments))

    async def run(self, path: Path, *, started: Callable[[], None] = lambda: None) -> None:
        """Serve on the socket until cancelled, then keep what was sent to be kept and write everything down."""
        server = await asyncio.start_unix_server(self._serve, path)
        path.chmod(0o600)  # noqa: ASYNC240 - once, before anything is served
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._take_turns())
                tasks.create_task(self._keep_embedder(started))
                tasks.create_task(self._keep_up())
        finally:
            server.close()
            with suppress(TimeoutError):
                async with asyncio.timeout(_FLUSH_S):
                    while self._writes:
                        await self._write()
            for peer in tuple(self._peers):
                peer.close()
            await self._compute(self._engine.close)
            self._thread.shutdown()
            path.unlink(missing_ok=True)  # noqa: ASYNC240 - once, after everything was served

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = _Peer(writer)
        peer.send(self._hello)
        self._peers.add(peer)
        decoder = to_worker_decoder()
        try:
            with suppress(WorkerGone, ConnectionError):
                while (frame := await frames.read(reader, decoder)) is not None:
                    self._queue(peer, frame)
                    await peer.drained()
        finally:
            self._peers.discard(peer)
            peer.close()

    def _queue(self, peer: _Peer, frame: ToWorker) -> None:
        now = time.monotonic()
        match frame:
            case Lookup():
                self._lookups.append(_Call(peer, frame, now))
            case Embed():
                self._bulk.append(_Call(peer, Bulk(frame), now))
            case Store() | Purge():
                self._writes.append(_Call(peer, frame, now))
        self._wake.set()

    async def _take_turns(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._lookups or self._writes or self._bulk:
                await self._look_up()
                await self._write()
                await self._look_up()
                await self._embed()

    async def _look_up(self) -> None:
        """All look-ups that wait, in one visit to the thread."""
        calls = [self._lookups.popleft() for _ in range(min(len(self._lookups), _LOOKUPS_A_TURN))]
        fresh = time.monotonic() - _STALE_S
        late = [call for call in calls if call.at < fresh]
        for call in late:
            call.peer.send(NotFound(call.work.id, "late"))
        calls = [call for call in calls if call.at >= fresh and not call.peer.gone]
        if calls:
            answers = await self._compute(self._engine.answer_all, [call.work for call in calls])
            for call, answer in zip(calls, answers, strict=True):
                call.peer.send(answer)

    async def _write(self) -> None:
        if self._writes:
            call = self._writes.popleft()
            call.peer.send(await self._compute(self._engine.answer, call.work))

    async def _embed(self) -> None:
        """One piece of the oldest Embed; its queue turns, so that a small one does not wait for a large one."""
        if not self._bulk:
            return
        call = self._bulk.popleft()
        if call.peer.gone:
            return
        answer = await self._compute(self._engine.advance, call.work)
        if answer is None:
            self._bulk.append(call)
        else:
            call.peer.send(answer)

    async def _keep_embedder(self, started: Callable[[], None]) -> None:
        """Load the embedder, and while its weights are missing look again now and then: a pull needs no restart."""
        loaded = await self._compute(self._engine.load)
        self._announce()
        started()
        while not loaded:
            await asyncio.sleep(_RETRY_S)
            loaded = await self._compute(self._engine.load)
            self._announce()

    def _announce(self) -> None:
        """Say hello again to everybody when what we can do has changed."""
        old, self._hello = self._hello, self._engine.hello()
        if (old.embedder, old.problem) != (self._hello.embedder, self._hello.problem):
            for peer in self._peers:
                peer.send(self._hello)

    async def _keep_up(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            await self.keep_up()

    async def keep_up(self) -> None:
        """Sweep, and build a search structure beside the running one when a partition has outgrown its own."""
        training = await self._compute(self._engine.sweep)
        if training is not None:
            try:
                await asyncio.to_thread(training.build)
            except (sqlite3.Error, RuntimeError) as error:
                # The flat search goes on serving; a later start of the worker tries again.
                sys.stderr.write(f"cache worker: building a search structure failed with {type(error).__name__}\n")
            else:
                await self._compute(self._engine.adopt, training)
        self._hello = self._engine.hello()


def read_options(arguments: Sequence[str]) -> Options:
    """The command line as Options; argparse ends the process on a bad one."""
    parser = argparse.ArgumentParser(prog="python -m gateway.cache.worker", description="The gateway's cache worker.")
    parser.add_argument("--socket", type=Path, required=True, help="Unix socket to serve on")
    parser.add_argument("--store", type=Path, required=True, help="directory of the stored answers")
    parser.add_argument("--embedder", type=Path, required=True, help="directory of the embedder")
    parser.add_argument("--name", required=True, help="the embedder's name, as messages and front workers call it")
    parser.add_argument("--threshold", type=float, default=0.92, help="least cosine of a hit (default %(default)s)")
    parser.add_argument("--max-bytes", type=int, default=2**30, help="of stored answers on disk (default %(default)s)")
    parser.add_argument("--max-ttl-s", type=float, default=7 * 86_400.0, help="longest life of an answer (default %(default)s)")
    given = parser.parse_args(arguments)
    if not 0 < given.threshold <= 1:
        parser.error(f"--threshold {given.threshold}: a cosine above 0 and up to 1 is needed")
    return Options(**vars(given))


async def _main(options: Options) -> None:
    report("loading")
    engine = Engine(options)
    serving = asyncio.create_task(Worker(engine).run(options.socket, started=lambda: report("ready", engine.hello().problem)))
    stopping = asyncio.create_task(until_stopped())
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    serving.cancel()
    stopping.cancel()
    with suppress(asyncio.CancelledError):
        await serving


def main(arguments: Sequence[str]) -> int:
    """Run until SIGTERM, SIGINT or the end of standard input; the exit status."""
    options = read_options(arguments)
    try:
        asyncio.run(_main(options))
    except OSError as error:
        report("failed", f"{options.socket} or {options.store}: {error}")
        return EXIT_UNUSABLE
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
