"""The composition root of a front worker: every concrete part is named and joined here, and nowhere else.

`python -m gateway.app --control-fd N` is started by the supervisor, which sends Start and Activate first.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any, cast

import msgspec
import uvicorn
import uvloop
from litestar import Litestar, Response, asgi
from litestar.exceptions import HTTPException
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

from gateway import control, frames, logs
from gateway.affinity import Affinity
from gateway.auth import KeyFile, Keys, StoredKey, configured_keys
from gateway.cache.exact import Exact
from gateway.cache.off import Off
from gateway.cache.redis import Shared
from gateway.cache.semantic import Semantic
from gateway.cache.tiers import Cache
from gateway.config import Config, EchoUpstream, LocalUpstream, OpenAIUpstream, off_reason, redis_url, upstream_key
from gateway.dispatch import Dispatch
from gateway.errors import ApiError, ConfigError, InternalError, InvalidRequest, MethodNotAllowed, TooLarge, WorkerGone
from gateway.health import HealthView
from gateway.http import ops, paths
from gateway.http.cors import Cors
from gateway.http.door import Door
from gateway.http.inference import Edge, request_id
from gateway.http.lane import Connections
from gateway.ledger import Later, Ledger, Record
from gateway.local.frames import Hello, from_worker_decoder
from gateway.logs import LogWriter
from gateway.metrics import Counts, Metrics
from gateway.names import Names
from gateway.pipeline import Pipeline
from gateway.policy.generation import Generation
from gateway.process import EXIT_UNUSABLE
from gateway.purge import Selector, Subject
from gateway.redact import Redactor
from gateway.responses import Store
from gateway.responses.redis import SharedStore
from gateway.responses.seal import Seal
from gateway.responses.serve import Responses
from gateway.responses.store import ResponseStore
from gateway.spoken import Spoken
from gateway.tokens import Counter
from gateway.transfers.judge import Parts
from gateway.transfers.kept import Kept
from gateway.transfers.uploads import Uploads
from gateway.upstreams import Upstream
from gateway.upstreams.echo import Echo
from gateway.upstreams.local import LocalUpstream as Local
from gateway.upstreams.openai import connect

COLLECT_AFTER = (2_000, 500, 100)
"""Thresholds of the garbage collector: a pause of about half a millisecond each time, and the older generations seldom, since
with 1,000 streams open each of those stops the loop for 50 ms. A request leaves nothing that only the collector could free."""


OPEN_FILES = 65_536
LOOK_AT_KEYS_S = 0.005
"""A revoked key ends within this time: sooner than the command that revokes it returns."""
IDLE_S = 75
"""A client's connection may lie idle for this long: longer than clients keep one, so that it is theirs to close."""
SWITCH_S = 0.001
"""How long the loop and the log's thread leave each other waiting for the interpreter lock: with Python's own 5 ms the thread
falls behind at some ten thousand tokens a second, and new requests are refused."""


class Front:
    """One front worker: its parts, what the supervisor told it last, and the tasks that keep it up to date."""

    def __init__(self, start: control.Start, activate: control.Activate, uplink: control.Uplink) -> None:
        self.config = msgspec.json.decode(start.config, type=Config)
        self.names = self._names(start.sockets)
        self.generation = self._opened(activate.source)
        self._activations: asyncio.Queue[control.Activate] = asyncio.Queue()
        self.problems: dict[str, str] = {}
        """Why a worker process is not ready, by worker name; front workers too."""
        self.policy_problem = ""
        """Why the policy files on the disk are not in force."""
        self.uplink = uplink
        self.spoken = Spoken()
        self.writer = _log_writer(self.config, start.name, self.spoken)
        self.emit = logs.configure(self.writer, self.config.logs.level)
        self._later = self.writer.later if self.config.logs.level in {"debug", "info"} else _unwanted
        self.clients = self._model_clients(start.sockets)
        self.semantic = Semantic(start.sockets["cache"], deadline_s=self.config.cache.lookup_timeout_s)
        self.cache = self._cache()
        self.local: dict[str, Local] = {}
        self.upstreams = self._upstreams()
        self.health = HealthView(unavailable=self._unavailable, off=self._is_off, clock=time.monotonic)
        routes = {f"{option.upstream}/{option.model}" for option in self.generation.catalogue.options()}
        self.metrics = Metrics(
            routes=routes, upstreams=self.config.upstreams, log=self.writer, output_secrets=lambda: self.spoken.n_found
        )
        self.keys = Keys(
            KeyFile(self.config.state_dir / "keys.json"),
            (*configured_keys(self.config), _admin(start.admin_sha256)),
            look_every_s=LOOK_AT_KEYS_S,
        )
        self.affinity = Affinity(self.config.state_dir / "responses.sqlite")
        self.responses = Responses(self._store(), Seal(self.config.state_dir / "compaction.key"))
        dispatch = Dispatch(self.upstreams, self.config.upstreams, self.health)
        self.pipeline = Pipeline(
            config=self.config,
            generation=lambda: self.generation,
            dispatch=dispatch,
            cache=self.cache,
            health=self.health,
            affinity=self.affinity,
            responses=self.responses,
            redactor=Redactor(self.config.state_dir / "redaction.key"),
            count=_counter(self.config).count,
        )
        transfers = Parts(
            config=self.config,
            generation=lambda: self.generation,
            dispatch=dispatch,
            health=self.health,
            affinity=self.affinity,
        )
        self.edge = Edge(
            keys=self.keys,
            pipeline=self.pipeline,
            ledgers=self._ledger,
            log_problem=self.writer.healthy,
            uploads=Uploads(transfers, spool_folder=self.config.state_dir / "spool"),
            kept=Kept(transfers),
            max_body_bytes=self.config.server.max_body_bytes,
            max_file_bytes=self.config.server.max_file_bytes,
            body_timeout_s=self.config.server.body_timeout_s,
        )
        self.draining = False

    def _names(self, sockets: Mapping[str, str]) -> Names | None:
        settings = self.config.names
        if settings is None:
            return None
        return Names(sockets["names"], max_chars=settings.max_chars, timeout_s=settings.timeout_s)

    def _opened(self, source: bytes) -> Generation:
        """The policies; where those of the last start ask for names that no model is set up for now, no text passes for read."""
        names = self.names or Names("", max_chars=sys.maxsize, timeout_s=1.0)
        return Generation.from_source(source, beside=names.beside)

    def _model_clients(self, sockets: Mapping[str, str]) -> dict[str, frames.Client]:
        made = {}
        for name in self.config.chat_models():
            made[name] = frames.Client(
                sockets[f"model:{name}"],
                from_worker_decoder(),
                on_news=partial(self._greeted, name),
            )
        return made

    def _greeted(self, model: str, hello: Hello) -> None:
        self.problems[f"model:{model}"] = ""
        for local in self.local.values():
            local.set_hello(model, hello)

    def _cache(self) -> Cache:
        cache = self.config.cache
        url = redis_url(self.config)
        exact, semantic = Exact(cache.exact_max_bytes), self.semantic if cache.enabled and cache.semantic else Off()
        if not url:
            return Cache(exact=exact, shared=Off(), semantic=semantic, ttl_s=cache.ttl_s)
        shared = Shared(url, on_purged=self._forget, position=self.config.state_dir / "cache" / "purges.heard")
        return Cache(exact=exact, shared=shared, semantic=semantic, ttl_s=cache.ttl_s, on_settled=shared.settled)

    def _store(self) -> Store:
        url = redis_url(self.config)
        return SharedStore(url) if url else ResponseStore(self.config.state_dir / "stored_responses.sqlite3")

    async def _forget(self, tenant: str | None, model: str | None, class_: str | None) -> None:
        """Another gateway purged the shared cache."""
        await self.cache.forget(tenant, model, class_)

    def _upstreams(self) -> dict[str, Upstream]:
        made: dict[str, Upstream] = {}
        for name, config in self.config.upstreams.items():
            match config:
                case OpenAIUpstream():
                    made[name] = connect(name, config, key=upstream_key(config))
                case LocalUpstream():
                    made[name] = self.local[name] = Local(name, self.clients, self.semantic)
                case EchoUpstream():
                    made[name] = Echo(name, config)
        return made

    def _unavailable(self, upstream: str, model: str) -> str | None:
        if upstream in self.local and model not in self.clients:
            return self.problems.get("cache") or self.semantic.problem()
        return self.upstreams[upstream].unavailable(model)

    def _is_off(self, upstream: str) -> bool:
        return off_reason(self.config.upstreams[upstream]) is not None

    def _ledger(self, id_: str, endpoint: str) -> Ledger:
        self.metrics.opened()
        return Ledger(
            id_,
            endpoint,
            on_token=self.writer.token,
            on_event=self.emit,
            on_record=self._closed,
            on_later=self._later,
            on_tokens=self.writer.tokens,
        )

    def _closed(self, record: Record) -> None:
        self.metrics.observe(record)
        self.writer.closed(record)

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """Whether a route can serve, and what is up and why the rest is not."""
        options = self.generation.catalogue.options()
        states = self.health.snapshot((option.upstream, option.model) for option in options)
        serving = not self.draining and any(health.up for health in states.values())
        log_problem = self.writer.healthy()
        state = {
            "status": "draining" if self.draining else "ready" if serving and not log_problem else "not_ready",
            "policy": self.generation.label(self.config.policies.default),
            "policy_files": self.policy_problem or "ok",
            "routes": {name: "up" if health.up else health.reason for name, health in states.items()},
            "workers": {name: problem or self._reached(name) for name, problem in self.problems.items()},
            "cache": list(self.cache.problems()),
            "log": log_problem or "ok",
            "responses": self.affinity.problem or "ok",
        }
        return serving and not log_problem, state

    def _reached(self, worker: str) -> str:
        """Of a worker process that is ready: whether a request would be served by it now."""
        trouble = self.names.trouble if worker == "names" and self.names is not None else ""
        return f"ready, and {trouble}" if trouble else "ready"

    async def page(self) -> tuple[bytes, str]:
        """The metrics page of all front workers. Raises Unavailable."""
        page = await self.uplink.page()
        return page.body, page.media

    def counts(self) -> Counts:
        """What this worker has counted, with the state of upstreams as it is now."""
        options = self.generation.catalogue.options()
        states = self.health.snapshot((option.upstream, option.model) for option in options)
        tried = {option.upstream for option in options if states[option.name].up}
        for name in self.config.upstreams:
            self.metrics.upstream_state(name, name in tried)
        return self.metrics.counts()

    def hear(self, frame: control.News) -> None:
        """Something from the supervisor."""
        match frame:
            case control.Activate():
                self._activations.put_nowait(frame)
            case control.WorkerNews():
                self.problems[frame.worker] = frame.problem
                if frame.worker.startswith("model:"):
                    for local in self.local.values():
                        local.set_problem(frame.worker.removeprefix("model:"), frame.problem)
            case control.PolicyNews():
                self.policy_problem = frame.problem
            case control.Event():
                self.emit(frame.name, **frame.fields)

    async def follow(self) -> None:
        """Take the generations that were heard of, one by one until cancelled; of several that wait, the last alone.

        Each is compiled on a thread: one with thousands of words takes a tenth of a second, and meanwhile the old one decides.
        Raises ConfigError for one that this version cannot open.
        """
        while True:
            frame = await self._activations.get()
            while not self._activations.empty():
                frame = self._activations.get_nowait()
            self.generation = await asyncio.to_thread(self._opened, frame.source)
            self.emit("policy.activated", policy=self.generation.label(self.config.policies.default), number=frame.number)

    async def run(self) -> None:
        """Keep connections to the worker processes and the shared cache up until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for client in self.clients.values():
                tasks.create_task(client.run())
            tasks.create_task(self.cache.run())
            if self.names is not None:
                tasks.create_task(self.names.run())
            if isinstance(self.cache, Cache) and not (self.config.cache.enabled and self.config.cache.semantic):
                tasks.create_task(self.semantic.run())

    async def aclose(self) -> None:
        """Close what was opened; the log last, so that it holds everything."""
        for upstream in self.upstreams.values():
            await upstream.aclose()
        await self.cache.aclose()
        await self.affinity.aclose()
        await self.responses.aclose()
        await asyncio.to_thread(self.writer.close)


def _unwanted(event: Later) -> None:
    """Events of the request path are not logged at this level."""


def _admin(sha256: str) -> StoredKey:
    """The command line of this machine: whoever can read the state folder is its operator."""
    return StoredKey(id="local", label="local operator", sha256=sha256, scopes=("admin", "audit"))


def _log_writer(config: Config, segment: str, spoken: Spoken) -> LogWriter:
    settings = config.logs
    return LogWriter(
        None if settings.stdout else config.logs_folder,
        segment=segment,
        stdout=settings.stdout,
        rotate_bytes=settings.rotate_bytes,
        keep_files=settings.keep_files,
        on_full=settings.on_full,
        queue_limit=settings.queue_limit,
        count_tokens=_counter(config).count,
        between=spoken,
    )


def _counter(config: Config) -> Counter:
    folder = config.logs.vocabulary_folder
    return Counter(config.root / folder if folder else None)


async def purge_state(front: Front, wanted: Selector, *, dry_run: bool, by: str) -> dict[str, int]:
    """Erase what is meant from everything but the log files; how much of each. One place that fails is told last.

    Cached answers are not told apart by subject: all of its tenant and class go. Raises Unavailable.
    """
    subject = Subject(wanted.subject).stands_in_json if wanted.subject is not None else None
    tenant, class_ = wanted.tenant, wanted.class_
    works = {"cache": front.cache.purge(tenant, wanted.model, class_, dry_run=dry_run)}
    if wanted.model is None:
        store = front.responses.store
        works["responses"] = store.purge(tenant=tenant, class_=class_, subject=subject, dry_run=dry_run)
        if subject is None:
            works["affinity"] = front.affinity.purge(tenant=tenant, class_=class_, dry_run=dry_run)
    results = dict(zip(works, await asyncio.gather(*works.values(), return_exceptions=True), strict=True))
    counts = {place: found for place, found in results.items() if not isinstance(found, BaseException)}
    if not dry_run:
        front.emit("data.purged", by=f"key:{by}", selector=wanted.told(), erased=counts)
    for result in results.values():
        if isinstance(result, BaseException):
            raise result
    return counts


def create_app(front: Front) -> ASGIApp:
    """The application: raw hot routes, ordinary handlers for the rest, every failure in OpenAI's envelope."""
    handlers: list[Any] = [_hot_route(front.edge), *(_mounted(front.edge, prefix) for prefix in paths.MOUNTS)]
    handlers += ops.routes(
        config=front.config,
        keys=front.keys,
        purge_state=partial(purge_state, front),
        pipeline=front.pipeline,
        emit=front.emit,
        ready=front.ready,
        metrics=front.page,
        started_at=int(time.time()),
    )

    @asynccontextmanager
    async def lifespan(_app: Litestar) -> AsyncIterator[None]:
        task = asyncio.create_task(front.run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await front.aclose()

    def crashed(_request: Any, error: Exception) -> Response[bytes]:
        id_ = request_id()
        front.emit("request.crashed", request_id=id_, fault=type(error).__name__, place=logs.place_of(error))
        said = f"The gateway failed on this request; its log has the place under {id_}."
        return _envelope(InternalError(said), id_)

    app = Litestar(
        route_handlers=handlers,
        lifespan=[lifespan],
        openapi_config=None,
        exception_handlers={HTTPException: _http_error, ApiError: _api_error, Exception: crashed},
        logging_config=None,
        request_max_body_size=1024 * 1024,
    )
    origins = front.config.server.cors_origins
    return Door(Cors(app, origins) if origins else app)


def _hot_route(edge: Edge) -> Any:
    @asgi(list(paths.EXACT), copy_scope=False)
    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        await edge(cast("HTTPScope", scope), receive, send)

    return handle


def _mounted(edge: Edge, prefix: str) -> Any:
    """A prefix with everything below it: a raw handler of a path with parameters is a 500 in Litestar (2.25)."""

    @asgi(prefix, is_mount=True, copy_scope=False)
    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        scope["path"] = prefix + scope["path"]
        await edge(cast("HTTPScope", scope), receive, send)

    return handle


def _envelope(error: ApiError, id_: str | None = None) -> Response[bytes]:
    headers = dict(error.headers()) | ({"x-request-id": id_} if id_ else {})
    return Response(error.body(), status_code=error.status, media_type="application/json", headers=headers)


def _api_error(_request: Any, error: ApiError) -> Response[bytes]:
    return _envelope(error)


def _http_error(request: Any, error: HTTPException) -> Response[bytes]:
    """Litestar's own errors (no such path, wrong method, bad body) in OpenAI's shape."""
    path = ascii(request.scope["path"][:128])[1:-1]
    match error.status_code:
        case 404:
            made: ApiError = paths.unknown(request.method, request.scope["path"])
        case 405:
            allowed = (error.headers or {}).get("allow", "")
            made = MethodNotAllowed(f"{request.method} is not allowed on {path}.", allow=allowed.split(", ") if allowed else ())
        case 413:
            made = TooLarge("The body is too large.")
        case status if status < 500:
            made = InvalidRequest("The request could not be read.")
        case _:
            made = InternalError("The gateway failed on this request.")
    return _envelope(made)


class _Server(uvicorn.Server):
    """uvicorn that leaves signals to us, says when it serves, and takes the connections of a neighbour that cannot."""

    def __init__(self, config: uvicorn.Config, on_serving: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_serving = on_serving
        self._covered: dict[str, asyncio.Server] = {}

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        if self.started:
            self._on_serving()

    async def cover(self, name: str, listener: socket.socket) -> None:
        """Take connections from this neighbour's listener too, until `uncover`."""
        if name not in self._covered and not self.should_exit:
            loop = asyncio.get_running_loop()
            backlog = self.config.backlog
            self._covered[name] = await loop.create_server(self._protocol, sock=listener.dup(), backlog=backlog)
            self.servers.append(self._covered[name])

    def uncover(self, name: str) -> None:
        """The neighbour takes its connections itself; those taken for it stay here to their end."""
        if (server := self._covered.pop(name, None)) is not None:
            self.servers.remove(server)
            server.close()

    def _protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]  # as uvicorn itself makes it
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are ours: SIGTERM also turns /ready."""
        yield


async def serve(control_fd: int) -> None:
    """Run one front worker until SIGTERM or the supervisor's end."""
    reader, writer = await asyncio.open_unix_connection(sock=socket.socket(fileno=control_fd))
    uplink = control.Uplink(reader, writer)
    start, activate = await uplink.begin()
    front = Front(start, activate, uplink)
    listeners = {name: socket.socket(fileno=fd) for name, fd in start.listeners.items()}
    own = listeners.pop(start.name)
    tasks: list[asyncio.Task[None]] = []

    async def hear(frame: control.News) -> None:
        front.hear(frame)
        match frame:
            case control.WorkerNews(worker, "") if worker in listeners:
                server.uncover(worker)
            case control.WorkerNews(worker) if worker in listeners:
                with suppress(OSError):  # no file descriptor to spare: the neighbour's connections wait for it
                    await server.cover(worker, listeners[worker])

    async def listen_to_supervisor() -> None:
        try:
            await uplink.listen(hear, front.counts)
        finally:
            stop()

    async def follow_policies() -> None:
        try:
            await front.follow()
        finally:
            stop()

    def serving() -> None:
        _settle_memory()
        uplink.say("")
        tasks.extend((asyncio.create_task(listen_to_supervisor()), asyncio.create_task(follow_policies())))

    def stop() -> None:
        front.draining = server.should_exit = True
        uplink.say("finishes its requests, then starts anew; the other front workers take its new connections")

    server = _Server(_settings(front), on_serving=serving)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    with own:
        await server.serve(sockets=[own])
    await asyncio.gather(*(task for task in tasks if task.done()))
    await uplink.leave(front.counts())


def _settings(front: Front) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(front),
        loop="uvloop",
        http=Connections(front.edge, idle_s=IDLE_S, cors=bool(front.config.server.cors_origins)),  # type: ignore[arg-type]  # called as a class is
        timeout_keep_alive=IDLE_S,
        lifespan="on",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=max(1, round(front.config.server.drain_s)),
    )


def _raise_open_files() -> None:
    """As many open files as this user may have: a stream holds two, and shells start programs with 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if most == resource.RLIM_INFINITY else min(most, OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _settle_memory() -> None:
    """Leave what a worker holds for its whole life out of garbage collection, and collect the rest less often.

    Without this one collection in some ten thousand requests stops the loop for 136 ms while 1,000 streams are open.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
    sys.setswitchinterval(SWITCH_S)


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="python -m gateway.app", description="A front worker; started by `gateway serve`.")
    parser.add_argument("--control-fd", type=int, required=True)
    options = parser.parse_args()
    _raise_open_files()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(options.control_fd))
    except WorkerGone as error:
        raise SystemExit(str(error)) from None
    except ConfigError as error:
        sys.stderr.write("".join(f"gateway: {problem}\n" for problem in error.problems))
        sys.exit(EXIT_UNUSABLE)


if __name__ == "__main__":
    main()
