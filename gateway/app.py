"""The composition root of a front worker: every concrete part is named and joined here, and nowhere else.

`python -m gateway.app --listen-fd N --control-fd M` is started by the supervisor, which sends Start and Activate first.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec
import uvicorn
import uvloop
from litestar import Litestar, Response, asgi
from litestar.exceptions import HTTPException
from litestar.types import HTTPScope, Receive, Scope, Send

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
from gateway.http.inference import Edge, request_id
from gateway.ledger import Ledger, Record
from gateway.local.frames import Hello, from_worker_decoder
from gateway.logs import LogWriter
from gateway.metrics import Metrics
from gateway.pipeline import Pipeline
from gateway.policy.generation import Generation
from gateway.process import EXIT_UNUSABLE
from gateway.tokens import Counter
from gateway.upstreams import Upstream
from gateway.upstreams.echo import Echo
from gateway.upstreams.local import LocalUpstream as Local
from gateway.upstreams.openai import connect


class Front:
    """One front worker: its parts, what the supervisor told it last, and the tasks that keep it up to date."""

    def __init__(self, start: control.Start, activate: control.Activate) -> None:
        self.config = msgspec.json.decode(start.config, type=Config)
        self.generation = Generation.from_source(activate.source)
        self.problems: dict[str, str] = {}
        """Why a worker process is not ready, by worker name."""
        self.writer = _log_writer(self.config, start.segment)
        self.emit = logs.configure(self.writer, self.config.logs.level)
        self.clients = self._model_clients(start.sockets)
        self.semantic = Semantic(start.sockets["cache"], deadline_s=self.config.cache.lookup_timeout_s)
        self.cache = self._cache()
        self.local: dict[str, Local] = {}
        self.upstreams = self._upstreams()
        self.health = HealthView(unavailable=self._unavailable, off=self._is_off, clock=time.monotonic)
        routes = {f"{option.upstream}/{option.model}" for option in self.generation.catalogue.options()}
        self.metrics = Metrics(routes=routes, upstreams=self.config.upstreams, log=self.writer)
        self.keys = Keys(
            KeyFile(self.config.state_dir / "keys.json"), (*configured_keys(self.config), _admin(start.admin_sha256))
        )
        self.affinity = Affinity(self.config.state_dir / "responses.sqlite")
        self.pipeline = Pipeline(
            config=self.config,
            generation=lambda: self.generation,
            dispatch=Dispatch(self.upstreams, self.config.upstreams, self.health),
            cache=self.cache,
            health=self.health,
            affinity=self.affinity,
        )
        self.edge = Edge(
            keys=self.keys,
            pipeline=self.pipeline,
            ledgers=self._ledger,
            log_problem=self.writer.healthy,
            max_body_bytes=self.config.server.max_body_bytes,
        )
        self.draining = False

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
        shared = Shared(url, on_purged=self._forget) if url else Off()
        semantic = self.semantic if cache.enabled and cache.semantic else Off()
        return Cache(exact=Exact(cache.exact_max_bytes), shared=shared, semantic=semantic, ttl_s=cache.ttl_s)

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
        return Ledger(id_, endpoint, on_token=self.writer.token, on_event=self.emit, on_record=self._closed)

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
            "routes": {name: "up" if health.up else health.reason for name, health in states.items()},
            "workers": {name: problem or "ready" for name, problem in self.problems.items()},
            "cache": list(self.cache.problems()),
            "log": log_problem or "ok",
            "responses": self.affinity.problem or "ok",
        }
        return serving and not log_problem, state

    def page(self) -> tuple[bytes, str]:
        """The metrics page, with the state of upstreams as it is now."""
        options = self.generation.catalogue.options()
        states = self.health.snapshot((option.upstream, option.model) for option in options)
        for name in self.config.upstreams:
            self.metrics.upstream_state(name, any(state.up for option, state in states.items() if option.startswith(f"{name}/")))
        return self.metrics.render()

    def hear(self, frame: control.ToFront) -> None:
        """Something from the supervisor."""
        match frame:
            case control.Activate():
                self.generation = Generation.from_source(frame.source)
                self.emit("policy.activated", policy=self.generation.label(self.config.policies.default), number=frame.number)
            case control.WorkerNews():
                self.problems[frame.worker] = frame.problem
                if frame.worker.startswith("model:"):
                    for local in self.local.values():
                        local.set_problem(frame.worker.removeprefix("model:"), frame.problem)
            case control.Event():
                self.emit(frame.name, **frame.fields)
            case control.Start():
                raise AssertionError("Start comes once, first")

    async def run(self) -> None:
        """Keep connections to the worker processes and the shared cache up until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for client in self.clients.values():
                tasks.create_task(client.run())
            tasks.create_task(self.cache.run())
            if isinstance(self.cache, Cache) and not (self.config.cache.enabled and self.config.cache.semantic):
                tasks.create_task(self.semantic.run())

    async def aclose(self) -> None:
        """Close what was opened; the log last, so that it holds everything."""
        for upstream in self.upstreams.values():
            await upstream.aclose()
        await self.cache.aclose()
        await self.affinity.aclose()
        await asyncio.to_thread(self.writer.close)


def _admin(sha256: str) -> StoredKey:
    """The command line of this machine: whoever can read the state folder is its operator."""
    return StoredKey(id="local", label="local operator", sha256=sha256, scopes=("admin", "audit"))


def _log_writer(config: Config, segment: str) -> LogWriter:
    settings = config.logs
    folder = Path(settings.vocabulary_folder) if settings.vocabulary_folder else None
    return LogWriter(
        None if settings.stdout else config.logs_folder,
        segment=segment,
        stdout=settings.stdout,
        rotate_bytes=settings.rotate_bytes,
        keep_files=settings.keep_files,
        on_full=settings.on_full,
        queue_limit=settings.queue_limit,
        count_tokens=Counter(config.root / folder if folder else None).count,
    )


def create_app(front: Front) -> Litestar:
    """The Litestar application: raw hot routes, ordinary handlers for the rest, every failure in OpenAI's envelope."""
    handlers: list[Any] = [_hot_route(front.edge), *(_mounted(front.edge, prefix) for prefix in paths.MOUNTS)]
    handlers += ops.routes(
        config=front.config,
        keys=front.keys,
        cache=front.cache,
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
        return _envelope(InternalError(f"The gateway failed on this request; its log has the place under {id_}."))

    return Litestar(
        route_handlers=handlers,
        lifespan=[lifespan],
        after_request=_named,
        openapi_config=None,
        exception_handlers={HTTPException: _http_error, ApiError: _api_error, Exception: crashed},
        logging_config=None,
        request_max_body_size=1024 * 1024,
    )


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


def _named(response: Response[Any]) -> Response[Any]:
    """Every answer has an id under which its asker can speak of it."""
    response.headers.setdefault("x-request-id", request_id())
    return response


def _envelope(error: ApiError) -> Response[bytes]:
    headers = {**dict(error.headers()), "x-request-id": request_id()}
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
    """uvicorn that leaves signals to us and says when it serves."""

    def __init__(self, config: uvicorn.Config, on_serving: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_serving = on_serving

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        if self.started:
            self._on_serving()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are ours: SIGTERM also turns /ready."""
        yield


async def serve(listen_fd: int, control_fd: int) -> None:
    """Run one front worker until SIGTERM or the supervisor's end."""
    reader, writer = await asyncio.open_unix_connection(sock=socket.socket(fileno=control_fd))
    decoder = control.to_front_decoder()
    start, activate = await frames.read(reader, decoder), await frames.read(reader, decoder)
    if not isinstance(start, control.Start) or not isinstance(activate, control.Activate):
        raise SystemExit("the supervisor left before it said what to serve")
    front = Front(start, activate)
    config = uvicorn.Config(
        Cors(create_app(front), front.config.server.cors_origins) if front.config.server.cors_origins else create_app(front),
        loop="uvloop",
        http="httptools",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=max(1, round(front.config.server.drain_s)),
    )
    server = _Server(config, on_serving=lambda: writer.write(frames.encode(control.Serving())))

    def stop() -> None:
        front.draining = True
        server.should_exit = True

    async def listen_to_supervisor() -> None:
        with suppress(WorkerGone):
            while (frame := await frames.read(reader, decoder)) is not None:
                front.hear(frame)
        stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    listening: Awaitable[None] = asyncio.create_task(listen_to_supervisor())
    with socket.socket(fileno=listen_fd) as sock:
        await server.serve(sockets=[sock])
    del listening


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="python -m gateway.app", description="A front worker; started by `gateway serve`.")
    parser.add_argument("--listen-fd", type=int, required=True)
    parser.add_argument("--control-fd", type=int, required=True)
    options = parser.parse_args()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(options.listen_fd, options.control_fd))
    except ConfigError as error:
        sys.stderr.write("".join(f"gateway: {problem}\n" for problem in error.problems))
        sys.exit(EXIT_UNUSABLE)


if __name__ == "__main__":
    main()
