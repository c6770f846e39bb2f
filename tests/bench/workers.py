"""What a second front worker costs, and how connections spread over several.

    python -m tests.bench.workers cpu --harness DIR [--rounds 3] [--secs 3] [--workers 1,2] [--cores 0]
    python -m tests.bench.workers accept

`cpu`: one gateway for each number of workers, alike in everything else (Redis, key check, scan, policy, metrics, a log line a token;
no cache), measured in one run by the harness in DIR; prints the CPU per request of each as a multiple of the first's. With one core all
workers share it, so that the figure is cost and not scheduling; throughput needs a core for each worker beside the harness's own.

`accept`: small servers on one shared listening socket, and on one socket each (SO_REUSEPORT); prints the largest share of keep-alive
connections that one of them got, and what becomes of connections that wait for a server which is killed. The evidence of docs/decisions/009.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import uvloop

ROOT = Path(__file__).resolve().parents[2]
UPSTREAMS = {"json": 0, "stream": 2}
"""The harness's upstreams that are asked, by the end of a model's name: their ports, counted from its first one."""

CONFIG = """
[server]
port = {port}
workers = {workers}
state_dir = "state"
[cache]
enabled = false
semantic = false
redis_url_env = "BENCH_REDIS_URL"
"""
UPSTREAM = """
[upstreams.{name}]
kind = "openai"
base_url = "http://127.0.0.1:{port}/v1"
zone = "external"
takes_up_to = "internal"
[models.bench-{name}]
candidates = [{{ upstream = "{name}", input_usd_per_mtok = 0.15, output_usd_per_mtok = 0.6 }}]
"""


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: list[str], **options: object) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended with the block."""
    process = subprocess.Popen(command, text=True, **options)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def gateway(folder: Path, *, workers: int, cores: str, upstreams: int, redis: int) -> Iterator[dict[str, object]]:
    """A gateway as a target of the harness, once all its workers serve."""
    (folder / "policies").mkdir(parents=True)
    # The shipped limits, without the tests that speak of the demo's upstreams, and one route.
    (folder / "policies" / "privacy.toml").write_text((ROOT / "policies" / "privacy.toml").read_text().partition("[[test]]")[0])
    (folder / "policies" / "cost.toml").write_text('policy = "cost"\n[[route]]\nname = "all"\norder_by = "cost"\n')
    port = free_port()
    config = CONFIG.format(port=port, workers=workers)
    config += "".join(UPSTREAM.format(name=name, port=upstreams + at) for name, at in UPSTREAMS.items())
    (folder / "config.toml").write_text(config)
    command = ["taskset", "-c", cores, sys.executable, "-m", "gateway", "serve", "-c", str(folder / "config.toml")]
    env = {**os.environ, "BENCH_REDIS_URL": f"redis://127.0.0.1:{redis}/0"}
    with (folder / "said").open("w+") as said, running(command, cwd=ROOT, env=env, stderr=said, stdout=said) as process:
        text = ""
        while len(set(re.findall(r"gateway: (front\d+): ready", text))) < workers:
            if process.poll() is not None:
                raise SystemExit(f"the gateway did not start:\n{text}")
            text = (folder / "said").read_text()
        key = re.search(r"OPENAI_API_KEY=(gw-\S+)", text)
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        auth = {"Authorization": f"Bearer {key.group(1) if key else ''}"}
        kinds = {name: {"url": url, "headers": auth, "model": f"bench-{name}"} for name in UPSTREAMS}
        yield {"name": f"workers-{workers}", "pid": process.pid, **kinds}


def cpu(options: argparse.Namespace) -> None:
    """Measure one gateway for each number of workers, and print the multiples."""
    for tool in ("redis-server", "nginx", "wrk", "taskset"):
        if shutil.which(tool) is None:
            raise SystemExit(f"{tool} is missing; on Debian: apt-get install -y redis-server nginx-light wrk util-linux")
    work = Path(tempfile.mkdtemp(prefix="gateway-bench-"))
    port = free_port()
    redis = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(work)]
    counts = [int(word) for word in options.workers.split(",")]
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        stack.enter_context(running(redis, stdout=subprocess.DEVNULL))
        targets = [
            stack.enter_context(
                gateway(work / str(count), workers=count, cores=options.cores, upstreams=options.port, redis=port)
            )
            for count in counts
        ]
        (work / "targets.json").write_text(json.dumps(targets))
        passed = ["--rounds", options.rounds, "--secs", options.secs, "--phases", "json,stream", "--out", str(work / "out.json")]
        passed += ["--port", str(options.port), "--paced-port", str(options.port + 1)]
        subprocess.run([str(options.harness / "run.sh"), "--spec", str(work / "targets.json"), "--", *passed], check=True)
        results = json.loads((work / "out.json").read_text())["results"]
    for phase in UPSTREAMS:
        medians = [statistics.median(results[target["name"]][phase]["cpu_us"]) for target in targets]
        shown = ", ".join(f"{count} workers {median / medians[0]:.2f}x" for count, median in zip(counts, medians, strict=True))
        print(f"CPU per request, {phase}: {shown}")


class _Answer(asyncio.Protocol):
    """Answers whatever comes with the process' id and keeps the connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(b"%d\n" % os.getpid())


async def _answer(fd: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Answer, sock=socket.socket(fileno=fd), backlog=2048)
    print("up", flush=True)
    await server.serve_forever()


def listeners(kind: str, count: int) -> list[socket.socket]:
    """One socket for all servers, or one for each, on one free port."""
    first = socket.create_server(("127.0.0.1", 0), backlog=2048, reuse_port=kind == "one each")
    if kind == "shared":
        return [first] * count
    rest = [socket.create_server(first.getsockname(), backlog=2048, reuse_port=True) for _ in range(count - 1)]
    return [first, *rest]


@contextmanager
def servers(kind: str, count: int, *, keep: bool) -> Iterator[tuple[tuple[str, int], list[subprocess.Popen[bytes]]]]:
    """So many servers that answer; their address and processes. `keep`: their sockets stay open here too."""
    sockets = listeners(kind, count)
    address = sockets[0].getsockname()
    processes = []
    for listener in sockets:
        fd = listener.fileno()
        command = [sys.executable, "-m", "tests.bench.workers", "answer", "--fd", str(fd)]
        processes.append(subprocess.Popen(command, cwd=ROOT, pass_fds=[fd], stdout=subprocess.PIPE))
    for process in processes:
        process.stdout.readline()
    if not keep:
        for listener in sockets:
            listener.close()
    yield address, processes
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()
    for listener in sockets:
        listener.close()


async def _one(address: tuple[str, int], stack: ExitStack) -> bytes:
    """Open a connection that stays open, ask once; who answered, or nothing when it was cut."""
    with suppress(OSError):
        reader, writer = await asyncio.open_connection(*address)
        stack.callback(writer.close)
        writer.write(b"x")
        return await reader.readline()
    return b""


async def largest_share(address: tuple[str, int], connections: int) -> float:
    """The largest share of so many connections, opened at once, that one server got."""
    with ExitStack() as stack:
        answered = await asyncio.gather(*(_one(address, stack) for _ in range(connections)))
    return max(Counter(answered).values()) / connections


async def _lost(address: tuple[str, int], processes: list[subprocess.Popen[bytes]]) -> tuple[int, int]:
    """Stop one server, open 64 connections, kill it: how many are answered within a second, and how many are cut."""
    processes[0].send_signal(signal.SIGSTOP)
    with ExitStack() as stack:
        waiting = [asyncio.create_task(_one(address, stack)) for _ in range(64)]
        await asyncio.sleep(0.2)
        processes[0].kill()
        done, late = await asyncio.wait(waiting, timeout=1)
        answered = sum(bool(task.result()) for task in done)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
    return answered, len(done) - answered


def accept(_options: argparse.Namespace) -> None:
    """Print how fairly each kind of socket spreads connections, and what it loses."""
    for count in (2, 4):
        for kind in ("shared", "one each"):
            with servers(kind, count, keep=True) as (address, _):
                for connections in (16, 64, 256):
                    shares = sorted(uvloop.run(largest_share(address, connections)) for _ in range(15))
                    spread = f"{shares[7]:.2f} [{shares[0]:.2f}..{shares[-1]:.2f}]"
                    print(f"{count} servers, {kind:8}: of {connections:3} connections one server got {spread}")
    for kind, keep in (("shared", True), ("one each", False), ("one each", True)):
        with servers(kind, 2, keep=keep) as (address, processes):
            answered, cut = uvloop.run(_lost(address, processes))
        held = "held open by the parent" if keep else "the servers' own"
        print(
            f"{kind}, {held}: server killed with 64 connections on the way: {answered} answered, {cut} cut, {64 - answered - cut} wait"
        )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for_cpu = commands.add_parser("cpu")
    for_cpu.add_argument("--harness", type=Path, required=True)
    for_cpu.add_argument("--rounds", default="3")
    for_cpu.add_argument("--secs", default="3")
    for_cpu.add_argument("--workers", default="1,2", help="numbers of workers to compare with the first")
    for_cpu.add_argument("--port", type=int, default=47901, help="first of the three ports of the harness's upstreams")
    for_cpu.add_argument("--cores", default="0", help="cores of the gateways, as taskset takes them")
    commands.add_parser("accept")
    commands.add_parser("answer").add_argument("--fd", type=int, required=True)
    options = parser.parse_args()
    if options.command == "answer":
        uvloop.run(_answer(options.fd))
    else:
        {"cpu": cpu, "accept": accept}[options.command](options)


if __name__ == "__main__":
    main()
