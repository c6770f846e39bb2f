"""Real gateways as separate processes, for tests: written config in, base URL and key out. Nothing in them is patched."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx
import openai
import pytest
import redis

ROOT = Path(__file__).resolve().parents[2]
MODELS = Path(os.environ.get("GATEWAY_TEST_MODELS", ROOT / ".gateway" / "models"))
"""Where `make test` has put the demo weights."""

DEADLINE_S = 180.0
"""Guards against hanging alone: a slow machine that loads the models takes a good part of it."""


_ports = itertools.count(random.randrange(12_000))


def free_port() -> int:
    """A port nobody listens on now, below those that the system gives to connections by itself: none of them takes it meanwhile."""
    while True:
        port = 20_000 + next(_ports) % 12_000
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def until(ready: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """The first truthy value of `ready`, asked again and again; another process gives no other sign."""
    ends = time.monotonic() + deadline_s
    while time.monotonic() < ends:
        if value := ready():
            return value
        threading.Event().wait(0.02)
    raise AssertionError(f"not within {deadline_s:g} s: {what}")


def seconds_until(ready: Callable[[], Any], what: str) -> float:
    """How long it took until this was true."""
    began = time.monotonic()
    until(ready, what)
    return time.monotonic() - began


@contextmanager
def private_redis(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A redis-server of one's own: its URL and its process."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("redis-server is not installed; `make test` says how")
    port = free_port()
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        with redis.Redis(port=port) as client:
            until(lambda: _answers(client), "redis-server")
        try:
            yield f"redis://127.0.0.1:{port}/0", process
        finally:
            process.terminate()


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[str], object]]:
    """A disk of its own; gives what makes it larger."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a real full disk needs the right to mount a tmpfs")
    try:
        yield lambda larger: subprocess.run(["mount", "-o", f"remount,size={larger}", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


class Gateway:
    """One `gateway serve` process with a folder of its own."""

    def __init__(
        self, folder: Path, config: str, *, policies: dict[str, str] | None = None, env: dict[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.port = free_port()
        folder.mkdir(parents=True, exist_ok=True)
        self.config = folder / "config.toml"
        self.config.write_text(f'[server]\nport = {self.port}\nstate_dir = "state"\ndrain_s = 10.0\n' + config)
        self.policies = folder / "policies"
        self.policies.mkdir(exist_ok=True)
        for name, text in (policies or shipped_policies()).items():
            (self.policies / name).write_text(text)
        self.url = f"http://127.0.0.1:{self.port}"
        self.env = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", **(env or {})}
        self.said = ""
        self.stdout: Any = subprocess.DEVNULL
        self.key = ""
        self.process: subprocess.Popen[str] | None = None
        self._clients: list[openai.OpenAI] = []

    def start(self) -> Gateway:
        """Start it and wait for its first greeting."""
        command = [sys.executable, "-m", "gateway", "serve", "--config", str(self.config)]
        self.process = subprocess.Popen(command, env=self.env, stderr=subprocess.PIPE, stdout=self.stdout, text=True)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        until(lambda: " listens on " in self.said or self.process.poll() is not None, "the greeting")
        if self.process.poll() is not None:
            self._reader.join(10)
            raise AssertionError(self.said)
        if found := re.search(r"OPENAI_API_KEY=(gw-\S+)", self.said):
            self.key = found.group(1)
        return self

    def _read(self) -> None:
        with self.process.stderr as lines:
            for line in lines:
                self.said += line

    def ready(self) -> dict[str, Any]:
        """The body of /ready now."""
        return self.get("ready").json()

    def get(self, path: str, **options: Any) -> httpx.Response:
        """What stands at a path, asked without a key."""
        return httpx.get(f"{self.url}/{path}", timeout=60, verify=False, **options)

    def until_up(self, route: str) -> Gateway:
        """Wait until this route can serve."""
        until(lambda: self.ready()["routes"].get(route) == "up", f"{route} up: {self.said}")
        return self

    def client(self, **options: Any) -> openai.OpenAI:
        """The real SDK, pointed here; closed with this gateway at the latest."""
        # Reading the certificates that nobody needs here would take longer than most answers.
        http = openai.DefaultHttpxClient(verify=False)
        made = {"max_retries": 0, "timeout": 300, "http_client": http, **options}
        self._clients.append(openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key, **made))
        return self._clients[-1]

    def post(self, path: str, **options: Any) -> httpx.Response:
        """A request without any SDK; the key is sent unless headers say otherwise."""
        headers = {"authorization": f"Bearer {self.key}", **options.pop("headers", {})}
        return httpx.post(f"{self.url}/v1/{path}", headers=headers, timeout=300, verify=False, **options)

    def cli(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """A command of this gateway's command line."""
        command = [sys.executable, "-m", "gateway", *arguments, "--config", str(self.config)]
        return subprocess.run(command, env=self.env, input=stdin, capture_output=True, text=True, timeout=300, check=False)

    def lines(self, request_id: str = "") -> Iterator[dict[str, Any]]:
        """Log lines, of one request when it is named."""
        for path in sorted((self.folder / "state" / "logs").glob("*.jsonl")):
            for raw in path.read_bytes().splitlines(keepends=True):
                if raw.endswith(b"\n"):
                    line = json.loads(raw)
                    if not request_id or line.get("request_id") == request_id:
                        yield line

    def record(self, request_id: str) -> dict[str, Any]:
        """The one `request.closed` line of a request; waits for it, and fails when there are two."""
        found = until(lambda: [line for line in self.lines(request_id) if line["event"] == "request.closed"], "the record")
        assert len(found) == 1
        return found[0]

    def records(self) -> list[dict[str, Any]]:
        """Every record so far."""
        return [line for line in self.lines() if line["event"] == "request.closed"]

    def closed(self) -> int:
        """How many requests have ended, as the metrics say: at once, where a record is written a moment later."""
        page = until(lambda: (got := self.get("metrics")).status_code == 200 and got.text, "the page of metrics")
        return round(sum(map(float, re.findall(r"^gateway_requests_total\{.*\} (\S+)$", page, re.MULTILINE))))

    def pid_of(self, module: str) -> int | None:
        """Process id of the worker that runs this module."""
        for folder in Path("/proc").iterdir():
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            except (OSError, IndexError):
                continue
            if module.encode() in words and int(parent) == self.process.pid:
                return int(folder.name)
        return None

    def kill(self, module: str, number: int = signal.SIGKILL) -> int:
        """Send a signal to the worker that runs this module; its process id."""
        pid = until(lambda: self.pid_of(module), f"a process of {module}")
        os.kill(pid, number)
        return pid

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        status = self.process.wait(120)
        self._reader.join(10)
        return status

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()
        if self.process is None:
            return
        try:
            self.stop()
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def shipped_policies() -> dict[str, str]:
    """The policy files of this project."""
    return {path.name: path.read_text() for path in (ROOT / "policies").glob("*.toml")}


ECHO_POLICY = 'policy = "cost"\n[log]\ntext_up_to = "internal"\n[[route]]\nname = "all"\norder_by = "listed"\n'
"""One route and no limits, for gateways that only echo."""

ECHO = """
[upstreams.echo]
kind = "echo"
zone = "local"
takes_up_to = "restricted"
[models.echo]
candidates = [{ upstream = "echo", capabilities = ["chat", "completions", "embeddings", "tools"] }]
[cache]
semantic = false
"""


def demo_config(external: str) -> str:
    """The demo's two upstreams: the quantized model here, and an external API at `external`."""
    return f"""
[upstreams.local]
kind = "local"
[upstreams.openai]
kind = "openai"
base_url = "{external}"
key_env = "TEST_UPSTREAM_KEY"
zone = "us"
retention = "30d"
takes_up_to = "internal"
connect_timeout_s = 2.0
[local_models.smollm2-135m]
kind = "chat"
weights = "{MODELS}/smollm2-135m"
threads = 1
[local_models.all-minilm-l6-v2]
kind = "embedding"
weights = "{MODELS}/all-minilm-l6-v2"
[models.auto]
substitutable = true
[models.smollm2-135m]
candidates = [{{ upstream = "local", capabilities = ["chat", "completions"], context = 2048, input_usd_per_mtok = 0, output_usd_per_mtok = 0 }}]
[models.all-minilm-l6-v2]
candidates = [{{ upstream = "local", capabilities = ["embeddings"], input_usd_per_mtok = 0, output_usd_per_mtok = 0 }}]
[models.gpt-4o-mini]
candidates = [{{ upstream = "openai", model = "echo", input_usd_per_mtok = 0.15, output_usd_per_mtok = 0.6, context = 128000, capabilities = ["chat", "tools", "json", "n"] }}]
[cache]
lookup_timeout_s = 10.0
"""
