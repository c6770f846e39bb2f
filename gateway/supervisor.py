"""`gateway serve`: reads config and policy once, owns the worker processes, hands one policy generation to all of them.

Holds no requests and imports neither Litestar nor torch nor faiss. What dies is started again with a growing pause; what an
operator must mend first (weights, say) is named and looked at again. People read standard error; standard output is the log's.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

import msgspec

from gateway import __version__, control, weights
from gateway.auth import KeyFile, configured_keys, digest
from gateway.config import ChatModel, Config, EmbeddingModel, off_reason, redis_url
from gateway.control import Fronts
from gateway.errors import ConfigError, Problem
from gateway.files import make_private, write_atomically
from gateway.policy.generation import Generation
from gateway.policy.generation import load as load_policies
from gateway.policy.store import Activated, Broken, Change, Store, Waiting, Watcher
from gateway.process import STOP_S, Child, Started, states

POLL_S = 0.5
"""Between two looks at the policy folder; a change is in force within two of them."""
SOCKET_PATH_BYTES = 100
"""Unix socket paths are limited to 107 bytes on Linux and 103 on macOS."""


def say(text: str) -> None:
    """A line for the person at the terminal."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


class Supervisor:
    """Everything that outlives a worker process: config, policies, the listening sockets, the children."""

    def __init__(
        self,
        config: Config,
        generation: Generation,
        store: Store,
        listeners: Mapping[str, socket.socket],
        *,
        change: Change,
    ) -> None:
        """`listeners` are by the name of the front worker that takes connections from them; `change`: what the files would be."""
        self._config = config
        self._generation = generation
        self._store = store
        self._number = 1
        self._listeners = listeners
        self._change = change
        self._run_dir = _run_dir(config)
        self._sockets = {"cache": str(self._run_dir / "cache.sock")}
        for name in config.chat_models():
            self._sockets[f"model:{name}"] = str(self._run_dir / f"model-{name}.sock")
        if config.names is not None:
            self._sockets["names"] = str(self._run_dir / "names.sock")
        self._problems: dict[str, str] = dict.fromkeys((*self._workers(), *listeners), "starting")
        self._fronts = Fronts(self._tell)
        self._admin_key = "gw-" + secrets.token_urlsafe(32)
        self._greeted = False
        self._stop = asyncio.Event()
        self._status = 0

    def _workers(self) -> list[str]:
        found = [f"model:{name}" for name in self._config.chat_models()]
        found += ["names"] if self._config.names is not None else []
        return ["cache", *found] if self._embedder() else found

    def _embedder(self) -> str | None:
        """Name of the embedding model that the cache worker holds."""
        models = [name for name, model in self._config.local_models.items() if isinstance(model, EmbeddingModel)]
        return self._config.cache.embedder if self._config.cache.embedder in models else next(iter(models), None)

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT; the exit status, 1 after a fault of our own."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        self._publish()
        children = [
            Child(name, partial(self._start_worker, name), tell=self._tell, blocked=partial(self._blocked, name))
            for name in self._workers()
        ]
        fronts = [Child(name, partial(self._start_front, name), tell=self._tell) for name in self._listeners]
        tasks = [asyncio.create_task(child.keep()) for child in (*children, *fronts)]
        tasks += [asyncio.create_task(self._watch_policies()), asyncio.create_task(self._fronts.watch())]
        for task in tasks:
            task.add_done_callback(self._ended)
        await self._stop.wait()
        say(f"gateway: stopping; requests in flight may take {self._config.server.drain_s:g} s")
        self._event("gateway.stopped")
        for listener in self._listeners.values():
            listener.close()
        await asyncio.gather(*(front.stop(self._config.server.drain_s + STOP_S) for front in fronts))
        await asyncio.gather(*(child.stop() for child in children))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        (self._config.state_dir / "run" / "server.json").unlink(missing_ok=True)
        return self._status

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            say(f"gateway: fault in the supervisor: {type(error).__name__}: {error}")
            self._status = 1
            self._stop.set()

    def _publish(self) -> None:
        """What the command line needs to talk to this server, readable by its owner only."""
        known = {"url": self._url(), "pid": os.getpid(), "admin_key": self._admin_key}
        path = self._config.state_dir / "run" / "server.json"
        write_atomically(path, msgspec.json.encode(known), mode=0o600)

    def _url(self) -> str:
        host, port = next(iter(self._listeners.values())).getsockname()[:2]
        return f"http://{_reachable(host)}:{port}"

    def _blocked(self, name: str) -> str | None:
        """Missing weights. The cache worker runs without its embedder, so that it can say so; the names worker names its own."""
        if not name.startswith("model:"):
            return None
        return weights.missing(self._config, name.removeprefix("model:"))

    # Each worker has a session of its own: Ctrl-C reaches the supervisor alone, which ends them in order.

    async def _start_worker(self, name: str) -> Started:
        with suppress(FileNotFoundError):
            os.unlink(self._sockets[name])  # noqa: PTH108 - one system call on a socket's name, nothing to wait for
        command = self._command(name)
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *command, stdin=pipe, stdout=pipe, start_new_session=True
        )
        assert child.stdout is not None  # noqa: S101 - for the type checker; it is a pipe
        return child, states(child.stdout, partial(self._tell, name))

    def _command(self, name: str) -> list[str]:
        if name == "cache":
            return self._cache_command()
        return self._names_command() if name == "names" else self._model_command(name.removeprefix("model:"))

    def _names_command(self) -> list[str]:
        names = self._config.names
        assert names is not None  # noqa: S101 - for the type checker; without it there is no such worker
        return [
            "gateway.names.worker",
            *("--socket", self._sockets["names"]),
            *("--engine", names.engine),
            *("--model", self._config.names_model()),
            *("--language", names.language),
            *("--least-score", str(names.least_score)),
        ]

    def _cache_command(self) -> list[str]:
        cache, name = self._config.cache, self._embedder() or ""
        return [
            "gateway.cache.worker",
            *("--socket", self._sockets["cache"]),
            *("--store", str(self._config.state_dir / "cache")),
            *("--embedder", str(self._config.weights_folder(name))),
            *("--name", name),
            *("--threshold", str(cache.threshold)),
            *("--max-bytes", str(cache.semantic_max_bytes)),
            *("--max-ttl-s", str(cache.ttl_s)),
        ]

    def _model_command(self, name: str) -> list[str]:
        model: ChatModel = self._config.chat_models()[name]
        return [
            "gateway.local.worker",
            *("--socket", self._sockets[f"model:{name}"]),
            *("--name", name),
            *("--weights", str(self._config.weights_folder(name))),
            *("--quantization", model.quantization),
            *("--device", model.device),
            *("--threads", str(model.threads)),
            *("--max-rows", str(model.max_rows)),
            *("--max-waiting", str(model.max_waiting)),
            *("--context", str(model.context)),
        ]

    async def _start_front(self, name: str) -> Started:
        ours, theirs = socket.socketpair()
        listeners = {front: listener.fileno() for front, listener in self._listeners.items()}
        with theirs:
            command = ["gateway.app", "--control-fd", str(theirs.fileno())]
            try:
                child = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", *command),
                    pass_fds=(*listeners.values(), theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    start_new_session=True,
                )
            except OSError:
                ours.close()
                raise
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        start = control.Start(
            config=msgspec.json.encode(self._config),
            name=name,
            listeners=listeners,
            sockets=self._sockets,
            admin_sha256=digest(self._admin_key),
        )
        return child, self._talk(name, reader, writer, start)

    async def _talk(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, start: control.Start) -> str:
        activate = control.Activate(number=self._number, source=self._generation.source())
        news: list[control.ToFront] = [
            control.PolicyNews(problem=_not_in_force(self._change)),
            *(control.WorkerNews(worker=worker, problem=problem) for worker, problem in self._problems.items()),
        ]
        await self._fronts.talk(name, reader, writer, (start, activate, *news))
        return ""

    def _event(self, name: str, **fields: str | int | list[str]) -> None:
        self._fronts.log(control.Event(name=name, fields=dict(fields)))

    def _tell(self, name: str, problem: str, remark: str = "") -> None:
        """How a child is; an empty problem means ready, `remark` adds to that. Said once for every change."""
        if self._problems.get(name) == problem:
            return
        self._problems[name] = problem
        if self._stop.is_set():
            return
        if name in self._listeners and not problem and not self._greeted:
            self._greeted = True
            self._event("gateway.started", version=__version__, policy=self._generation.hash)
            say(self._banner())
        say(f"gateway: {name}: {problem or 'ready'}{f' ({remark})' if remark else ''}")
        self._fronts.send(control.WorkerNews(worker=name, problem=problem))
        if not problem:
            self._event("worker.ready", worker=name)
        elif problem.startswith(("killed", "exited", "cannot be started", "does not answer")):
            self._event("worker.lost", worker=name, reason=problem)

    async def _watch_policies(self) -> None:
        watcher = Watcher(self._config, self._config.policies_folder, self._store)
        while True:
            await asyncio.sleep(POLL_S)
            change = await asyncio.to_thread(watcher.poll)
            if change is not None:
                self._change = change
                self._fronts.send(control.PolicyNews(problem=_not_in_force(change)))
            match change:
                case Activated(generation):
                    self._activate(generation)
                case Waiting() as waiting:
                    self._activate(waiting.generation)
                    say(_waiting_text(waiting))
                    self._event("policy.refused", reason="loses limits", lost=list(waiting.lost), hash=waiting.hash)
                case Broken(problems):
                    shown = [str(problem) for problem in problems]
                    say(
                        "gateway: the changed policies cannot be used; the last good ones stay in force:\n  " + "\n  ".join(shown)
                    )
                    self._event("policy.refused", reason="broken", problems=shown)

    def _activate(self, generation: Generation) -> None:
        if generation.hash == self._generation.hash:
            return
        self._generation = generation
        self._number += 1
        self._fronts.send(control.Activate(number=self._number, source=generation.source()))
        say(f"gateway: policies @{generation.hash} are in force")

    def _banner(self) -> str:
        url = f"{self._url()}/v1"
        keys = KeyFile(self._config.state_dir / "keys.json")
        key = self._first_key(keys)
        lines = [f"\ngateway {__version__} listens on {url}", ""]
        if key:
            lines += [f"  export OPENAI_BASE_URL={url} OPENAI_API_KEY={key}", "", "  The key is shown this once."]
        else:
            lines += [f"  export OPENAI_BASE_URL={url} OPENAI_API_KEY=<your key>", "", "  Another key: gateway keys new LABEL"]
        lines += ["", f"  policy   {self._generation.label(self._config.policies.default)}"]
        for name, upstream in self._config.upstreams.items():
            reason = off_reason(upstream)
            lines.append(f"  upstream {name}: off, {reason}" if reason else f"  upstream {name}: on")
        lines += [f"  worker   {name}: {self._problems[name] or 'ready'}" for name in self._workers()]
        if len(self._listeners) > 1:
            lines.append(f"  fronts   {len(self._listeners)} front workers")
        if isinstance(self._change, Waiting):
            lines += ["", _waiting_text(self._change)]
        model = "auto" if "auto" in self._config.models else next(iter(self._config.models), "MODEL")
        body = '{"model":"' + model + '","messages":[{"role":"user","content":"What is the capital of France?"}]}'
        lines += [
            "",
            f"  curl {url}/chat/completions -H 'content-type: application/json' \\",
            f"    -H \"authorization: Bearer {key or '$OPENAI_API_KEY'}\" -d '{body}'",
            "",
        ]
        return "\n".join(lines)

    def _first_key(self, keys: KeyFile) -> str:
        """A key made when there is none at all, so that the first start is enough to work."""
        with suppress(ConfigError):
            if not self._config.keys and not any(key.revoked_at is None for key in keys.read()):
                # Limits of every policy apply whichever routes it chooses, so the first key may choose any.
                names = tuple(name for name, policy in self._generation.policies.items() if policy.routes)
                return keys.add("first", scopes=("chat",), policies=names)
        return ""


def _reachable(host: str) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - what was bound, not what to bind
    return f"[{host}]" if ":" in host else host


def _waiting_text(waiting: Waiting) -> str:
    lines = "\n".join(f"  - {loss}" for loss in waiting.lost)
    return (
        f"gateway: the changed policies would lose:\n{lines}\n  The last good ones stay in force; to accept: gateway policy apply"
    )


def _not_in_force(change: Change) -> str:
    """Why the policy files are not what is in force, for /ready, which anybody may read: no more than places and numbers."""
    match change:
        case Waiting(_, lost, hash_):
            return f"@{hash_} would lose {len(lost)} of what limits, and waits for: gateway policy apply"
        case Broken(problems):
            places = ", ".join(dict.fromkeys(problem.place for problem in problems[:3]))
            return f"broken at {places}; the last good ones stay in force; gateway policy check says more"
        case _:
            return ""


def _run_dir(config: Config) -> Path:
    """Where the Unix sockets stand: in the state folder, or under the temporary folder when that path is too long for one."""
    folder = config.state_dir / "run"
    make_private(folder)
    longest = max((len(name) for name in config.local_models), default=0) + len("model-.sock")
    if len(os.fsencode(folder)) + 1 + longest <= SOCKET_PATH_BYTES:
        return folder
    return Path(tempfile.mkdtemp(prefix="gateway-"))


def _listen(config: Config) -> dict[str, socket.socket]:
    """A listening socket for each front worker, all on one address. Raises ConfigError when the address cannot be had.

    They stay open here, so that no connection is lost with the worker that would have taken it.
    """
    host, port, workers = config.server.host, config.server.port, config.server.workers
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # Alone at first: SO_REUSEPORT by itself would share the address with another gateway, and say nothing.
        found = [_bound(socket.socket(family, kind, proto), address)]
        if workers > 1:
            address = found[0].getsockname()
            found[0].close()
            found = [_bound(socket.socket(family, kind, proto), address, shared=True) for _ in range(workers)]
        for listener in found:
            listener.listen(2048)
    except OSError as error:
        mend = (
            "stop what listens there, or set another server.port"
            if error.errno == errno.EADDRINUSE
            else "set another server.host"
        )
        message = f"cannot listen on {host}:{port}: {error.strerror or error}; {mend}"
        raise ConfigError([Problem(config.path, message)]) from None
    return {f"front{number}": listener for number, listener in enumerate(found)}


def _bound(listener: socket.socket, address: Any, *, shared: bool = False) -> socket.socket:
    """The socket at its address, together with others of ours when `shared`. Raises OSError, and closes it then."""
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shared))
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def hold_state(config: Config) -> IO[bytes]:
    """Make the state folder this gateway's own. Raises ConfigError when it cannot be written or another gateway uses it."""
    folder = config.state_dir
    try:
        make_private(folder)
        lock = (folder / "lock").open("ab")
    except OSError as error:
        message = f"the state folder cannot be written: {error.strerror}; mend its permissions, or set another server.state_dir"
        raise ConfigError([Problem(str(folder), message)]) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        message = "another gateway runs with this state folder; stop it, or set another server.state_dir"
        raise ConfigError([Problem(str(folder), message)]) from None
    return lock


def _check_log_folder(config: Config) -> None:
    """Raises ConfigError when requests could not be logged from the first one on; not with `on_full = "drop"`."""
    folder = config.logs_folder
    if config.logs.stdout or config.logs.on_full == "drop":
        return
    try:
        make_private(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        message = f"the log folder cannot be written: {error.strerror}; mend its permissions, or set another logs.folder"
        raise ConfigError([Problem(str(folder), message)]) from None


def _first_generation(config: Config, store: Store) -> tuple[Generation, Change]:
    """The policies to start with, and what the folder would be. A broken or lossy one never weakens what was in force."""
    try:
        generation = load_policies(config, config.policies_folder)
    except ConfigError as error:
        active = store.active()
        if active is None:
            raise
        say(
            "gateway: the policies cannot be used; those of the last start stay in force:\n  "
            + "\n  ".join(str(error).splitlines())
        )
        return active, Broken(error.problems)
    change = store.propose(generation)
    return change.generation, change


def serve(config: Config) -> int:
    """Run the gateway until it is told to stop; the exit status. Raises ConfigError when it cannot start."""
    lock = hold_state(config)
    try:
        configured_keys(config)
        redis_url(config)
        _check_log_folder(config)
        KeyFile(config.state_dir / "keys.json").read()
        store = Store(config.state_dir / "policies")
        generation, change = _first_generation(config, store)
        listeners = _listen(config)
        with ExitStack() as open_:
            for listener in listeners.values():
                open_.enter_context(listener)
            return asyncio.run(_run(config, generation, store, listeners, change))
    finally:
        lock.close()


async def _run(
    config: Config, generation: Generation, store: Store, listeners: Mapping[str, socket.socket], change: Change
) -> int:
    return await Supervisor(config, generation, store, listeners, change=change).run()
