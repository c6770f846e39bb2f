"""The request path of a front worker, joined as app.py joins it, with everything that it records kept in lists."""

import asyncio
import json
import socket
import time
from contextlib import asynccontextmanager, nullcontext
from types import SimpleNamespace

import uvicorn
from msgspec.structs import replace

from gateway import config
from gateway.affinity import Affinity
from gateway.auth import KeyFile, Keys
from gateway.cache.exact import Exact
from gateway.cache.off import Off
from gateway.cache.tiers import Cache
from gateway.dispatch import Dispatch
from gateway.health import HealthView
from gateway.http.inference import Edge
from gateway.http.lane import Connections
from gateway.ledger import Ledger, TokenEvent
from gateway.pipeline import Incoming, Pipeline
from gateway.policy import sizes
from gateway.policy.generation import Catalogue, Generation
from gateway.redact import Redactor
from gateway.responses.seal import Seal
from gateway.responses.serve import Responses
from gateway.responses.store import ResponseStore
from gateway.transfers.judge import Parts
from gateway.transfers.kept import Kept
from gateway.transfers.uploads import Uploads
from gateway.upstreams.echo import Echo
from gateway.upstreams.openai import connect

POLICY = 'policy = "listed"\n[log]\ntext_up_to = "restricted"\n[[route]]\nname = "all"\norder_by = "listed"\n'


class World:
    """`upstreams`: TOML fields by name, in the order they are tried; an upstream without `kind` is an echo."""

    def __init__(self, folder, upstreams, policy, server):
        path = folder / "config.toml"
        path.write_text(_config_text(upstreams, server))
        self.config = config.load(path)
        self.policies = {"listed.toml": policy}
        self.generation = Generation(self.policies, Catalogue.of(self.config))
        made = {"echo": Echo, "openai": lambda name, settings: connect(name, settings, key=config.upstream_key(settings))}
        kinds = {name: "openai" if "base_url" in fields else "echo" for name, fields in upstreams.items()}
        self.upstreams = {name: made[kinds[name]](name, settings) for name, settings in self.config.upstreams.items()}
        self.health = HealthView(
            unavailable=lambda upstream, model: self.upstreams[upstream].unavailable(model),
            off=lambda _: False,
            clock=time.monotonic,
        )
        self.cache = Cache(exact=Exact(1 << 24), shared=Off(), semantic=Off())
        self.records, self.tokens, self.events = [], [], []
        dispatch = Dispatch(self.upstreams, self.config.upstreams, self.health)
        self.affinity = Affinity(folder / "responses.sqlite")
        self.responses = Responses(ResponseStore(folder / "stored_responses.sqlite3"), Seal(folder / "compaction.key"))
        self.count = sizes.estimated
        self.pipeline = Pipeline(
            config=self.config,
            generation=lambda: self.generation,
            dispatch=dispatch,
            cache=self.cache,
            health=self.health,
            affinity=self.affinity,
            responses=self.responses,
            redactor=Redactor(folder / "redaction.key"),
            count=lambda *asked: self.count(*asked),  # noqa: PLW0108 - a test may exchange it later
        )
        self.key_file = KeyFile(folder / "keys.json")
        self.keys = Keys(self.key_file, ())
        self.key = self.key_file.add("test")
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
            ledgers=self.ledger,
            log_problem=lambda: None,
            uploads=Uploads(transfers, spool_folder=folder / "spool"),
            kept=Kept(transfers),
            max_body_bytes=self.config.server.max_body_bytes,
            max_file_bytes=self.config.server.max_file_bytes,
            body_timeout_s=self.config.server.body_timeout_s,
        )

    def set_capabilities(self, able):
        """From now on every candidate can do this and nothing else."""
        models = {
            name: replace(model, candidates=tuple(replace(one, capabilities=tuple(able)) for one in model.candidates))
            for name, model in self.config.models.items()
        }
        self.config.models.update(models)
        self.generation = Generation(self.policies, Catalogue.of(self.config))

    def ledger(self, id_="req_1", endpoint="chat/completions"):
        return Ledger(
            id_,
            endpoint,
            on_token=self.tokens.append,
            on_tokens=self._together,
            on_event=lambda name, **fields: self.events.append((name, fields)),
            on_record=self.records.append,
        )

    def _together(self, tokens):
        """As if each had come by itself."""
        columns = zip(tokens.time_ns, tokens.index, tokens.ms, tokens.n_tokens, tokens.text, tokens.choice, strict=True)
        self.tokens += [
            TokenEvent(time_ns, tokens.request_id, index, ms, n, text, tokens.shown, tokens.upstream, tokens.source, choice)
            for time_ns, index, ms, n, text, choice in columns
        ]

    def incoming(self, body, endpoint="chat/completions", **headers):
        principal = self.keys.principal(self.key)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return Incoming(endpoint=endpoint, body=body, headers=named, principal=principal)

    def idle(self):
        """Whether nothing is open anywhere."""
        states = self.health.snapshot((name, "m") for name in self.upstreams)
        echoes = [upstream.open for upstream in self.upstreams.values() if isinstance(upstream, Echo)]
        return not any(echoes) and not any(state.in_flight for state in states.values())

    @asynccontextmanager
    async def listening(self, app=None, *, idle_s=75, protocol=None):
        """The edge as a front worker serves it, or an application by itself, on a real socket; gives (host, port)."""
        protocol = protocol or ("httptools" if app else Connections(self.edge, idle_s=idle_s, cors=False))
        settings_ = uvicorn.Config(
            app or self.edge, interface="asgi3", http=protocol, lifespan="off", log_config=None, access_log=False
        )
        server = _Server(settings_)
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            sock.listen()
            task = asyncio.create_task(server.serve(sockets=[sock]))
            try:
                yield sock.getsockname()
            finally:
                server.force_exit = True
                server.over.set()
                await task


class _Server(uvicorn.Server):
    """uvicorn without signals and without its clock, whose tick of a tenth of a second would be most of a test."""

    def __init__(self, settings_):
        super().__init__(settings_)
        self.over = asyncio.Event()

    def capture_signals(self):
        return nullcontext()

    async def main_loop(self):
        await self.over.wait()


def _config_text(upstreams, server):
    parts = ["[server]\n" + server + '\n[cache]\nsemantic = false\n[policies]\ndefault = "listed"\n[names]\nmodel = "none"\n']
    for name, fields in upstreams.items():
        kind = "openai" if "base_url" in fields else "echo"
        settings_ = {"kind": kind, "zone": "local", "takes_up_to": "restricted", **fields}
        values = "\n".join(f"{field} = {json.dumps(value)}" for field, value in settings_.items())
        parts.append(f"[upstreams.{name}]\n{values}\n")
    for name, fields in upstreams.items():
        able = config.CAPABILITIES if "base_url" in fields else (*config.CHAT_CAPABILITIES, "completions", "embeddings")
        parts.append(f'[[models.m.candidates]]\nupstream = "{name}"\ncapabilities = {json.dumps(able)}\n')
    return "".join(parts)


def body(content="one two three", **fields):
    """A chat request as bytes."""
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": content}], **fields}).encode()


def scope_of(world, *, method="POST", endpoint="chat/completions", query="", **headers):
    """The ASGI scope of a request; a header that is None is left out."""
    headers = {"authorization": f"Bearer {world.key}", "content_type": "application/json", **headers}
    names = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items() if value is not None]
    path = endpoint if endpoint.startswith("/") else f"/v1/{endpoint}"
    return {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": names}


class Client:
    """One ASGI request driven by hand. The client leaves when `leaves` is set."""

    def __init__(self, world, payload=b"", *, endpoint="chat/completions", **options):
        scope = scope_of(world, endpoint=endpoint, **options)
        self.payload = payload
        self.leaves = asyncio.Event()
        self.on_send = lambda message: None
        self.sent = []
        self.task = asyncio.ensure_future(world.edge(scope, self._receive, self._send))

    async def _receive(self):
        if self.payload is not None:
            payload, self.payload = self.payload, None
            return {"type": "http.request", "body": payload, "more_body": False}
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message):
        self.sent.append(message)
        self.on_send(message)

    async def answer(self):
        """Status, headers and body of what came."""
        async with asyncio.timeout(30):
            await self.task
        headers = {name.decode(): value.decode("latin-1") for name, value in self.sent[0]["headers"]}
        content = b"".join(message.get("body", b"") for message in self.sent[1:])
        assert self.sent[-1].get("more_body") is False
        return SimpleNamespace(status=self.sent[0]["status"], headers=headers, body=content, raw=self.sent[0]["headers"])
