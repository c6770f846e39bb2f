"""How cost grows with the work: larger bodies, more upstreams, more rules, more open streams. Draws a curve each, prints tables.

    python -m tests.bench.growth                             # everything, about seven minutes
    python -m tests.bench.growth --only body,streams --secs 2
    python -m tests.bench.growth --out docs/images           # there the PNGs and growth.json are written

Each point is a gateway of its own with everything on, in front of the built-in upstream of `gateway bench`. A cliff is a step
where cost grows more than half as much again as the work. `soak` holds 256 streams for a minute and watches memory and errors;
`tls` asks an upstream over TLS, by both clients and over HTTP/2; `gc` watches garbage collection under 1,000 streams.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from gateway.bench import load, measure
from gateway.bench.load import chat
from tests.bench import peers, sides

BODY_KB = (1, 4, 16, 64, 256, 1024)
UPSTREAMS = (1, 10, 50, 100, 200)
RULES = (1, 10, 100, 300, 1000)
STREAMS = (1, 10, 100, 300, 1000)
TOKENS_PER_S = 2000
"""Of all open streams together, so that what grows is their number alone; a single stream gives no more than 200 a second."""
MOST_STREAMS = 4000
SOAK_ROUNDS = 6
SOAK_STREAMS = 256
STREAM_S = 8

MANY = """[upstreams.up{number}]
kind = "openai"
base_url = "http://127.0.0.1:{port}/json/v1"
takes_up_to = "internal"
"""
PACED = """[upstreams.{name}]
kind = "openai"
base_url = "http://127.0.0.1:{port}/{name}/v1"
takes_up_to = "internal"
max_connections = 4000
[models.{name}]
candidates = [{{ upstream = "{name}", input_usd_per_mtok = 0.15, output_usd_per_mtok = 0.6 }}]
"""
RULE = """[[limit]]
name = "rule {number}"
when = {{ {when} }}
never = {{ zone = "nowhere-{number}" }}
"""
WHENS = ('prompt_tokens = "> 100"', 'class = ">= confidential"', 'tenant = ["a", "b"]', "tools = true", 'hour = ["< 6", ">= 22"]')


class LeftOut(Exception):
    """A part that cannot be measured here; the message says why."""


@contextmanager
def running(**options: object):
    """A gateway and its upstream in a folder of their own."""
    more = options.pop("more", None) or (lambda _port: "")
    with (
        tempfile.TemporaryDirectory(prefix="gateway-growth-") as name,
        measure.upstream(Path(name)) as port,
        measure.started(Path(name), port, more=more(port), **options) as own,
    ):
        yield own


def cpu_per_request(own: measure.Own, bodies, secs: float, *, connections: int = 8) -> float:
    """Microseconds of all the gateway's processes, after a warm-up. Raises SystemExit when requests fail."""
    run = lambda seconds: asyncio.run(load.saturate(own.gateway, bodies, connections=connections, seconds=seconds))  # noqa: E731
    run(min(1.0, secs))
    before = load.cpu_us(own.pid)
    tally = run(secs)
    time.sleep(0.1)
    if tally.errors or not tally.answers:
        raise SystemExit(f"{tally.errors} requests failed, {tally.answers} were answered")
    return (load.cpu_us(own.pid) - before) / tally.answers


def texts(model: str, size: int = 900, **fields: object):
    """Bodies that differ in one number, so that none is an exact hit; made by putting bytes together."""
    words = "An old harbour wall of stone and lime, built by hand. "
    body = chat(model, "@" + (words * (size // len(words) + 1))[:size], max_tokens=64, **fields)
    head, _, tail = body.partition(b"@")
    return (b"%b%012d%b" % (head, number, tail) for number in itertools.count(time.monotonic_ns() % 10**11))


def body(secs: float) -> dict[str, object]:
    """CPU by the size of the body; all on one gateway."""
    points = []
    with running() as own:
        for kb in BODY_KB:
            points.append((kb, cpu_per_request(own, texts("json", kb * 1024 - 120), secs)))
    return curve("body of a request, KB", "CPU of a request, µs", points)


def upstreams(secs: float) -> dict[str, object]:
    """CPU by the number of upstreams that could all serve the model."""
    points = []
    for count in UPSTREAMS:

        def more(port: int, count: int = count) -> str:
            priced = [
                f'{{ upstream = "up{n}", model = "bench", input_usd_per_mtok = {n + 1}, output_usd_per_mtok = {n + 1} }}'
                for n in range(count)
            ]
            parts = [MANY.format(number=number, port=port) for number in range(count)]
            return "".join(parts) + f"[models.many]\ncandidates = [{', '.join(priced)}]\n"

        with running(more=more) as own:
            points.append((count, cpu_per_request(own, texts("many"), secs)))
    return curve("upstreams that can serve the model", "CPU of a request, µs", points)


def rules(secs: float) -> dict[str, object]:
    """CPU by the number of limits, each of which is looked at in each request."""
    points = []
    for count in RULES:
        limits = "".join(RULE.format(number=number, when=WHENS[number % len(WHENS)]) for number in range(count))
        policy = f'policy = "bench"\n{limits}[[route]]\nname = "all"\norder_by = "cost"\n'
        with running(policy=policy) as own:
            points.append((count, cpu_per_request(own, texts("json"), secs)))
    return curve("limits of the policy", "CPU of a request, µs", points)


def interval_ms(count: int) -> int:
    """Between two tokens of one stream, for TOKENS_PER_S over all of them."""
    return max(5, round(1000 * count / TOKENS_PER_S))


def open_streams(own: measure.Own, name: str, count: int, during=None) -> tuple[load.Tally, float]:
    """That many paced streams at once, and the CPU they took; `during` is called from a thread when all are open."""
    apart_s = min(0.003, 1.5 / count)
    timer = threading.Timer(apart_s * count, during) if during else None
    before = load.cpu_us(own.pid)
    if timer:
        timer.start()
    tally = asyncio.run(load.streams(own.gateway, texts(name, 200, stream=True), connections=count, apart_s=apart_s))
    if timer:
        timer.join()
    return tally, load.cpu_us(own.pid) - before


def streams(_secs: float) -> dict[str, object]:
    """CPU of a token by the number of open streams, the tokens of all together coming as often; what a rest costs taken off."""
    names = {count: f"paced-{interval_ms(count)}-{STREAM_S * 1000 // interval_ms(count)}" for count in STREAMS}
    points, delays = [], []
    with running(more=lambda port: "".join(PACED.format(name=name, port=port) for name in dict.fromkeys(names.values()))) as own:
        idle = load.cpu_us(own.pid)
        time.sleep(2)
        idle_us_per_s = (load.cpu_us(own.pid) - idle) / 2
        for count, name in names.items():
            began = time.monotonic()
            tally, used = open_streams(own, name, count)
            if tally.errors:
                raise SystemExit(f"{tally.errors} of {count} streams failed")
            used -= idle_us_per_s * (time.monotonic() - began)
            points.append((count, used / len(tally.delay_us)))
            delays.append((count, statistics.median(tally.delay_us)))
    found = curve("open streams", "CPU of a token, µs", points)
    return {**found, "delay_p50_us": delays}


def curve(x: str, y: str, points: list[tuple[float, float]]) -> dict[str, object]:
    """The points with their cliffs: steps where cost grew by more than 1.5 times as much as the work did."""
    steps = [(a, b) for a, b in itertools.pairwise(points) if b[1] / a[1] > 1.5 * b[0] / a[0]]
    return {"x": x, "y": y, "points": points, "cliffs": steps}


def soak(secs: float) -> dict[str, object]:
    """256 streams at a time for a minute (for `secs` times 20), in six rounds: errors, memory of the front worker as it goes.

    An answer that goes on is kept for the cache until it ends, and then by it: the first two rounds are its warm-up, with a cache
    that is full after one.
    """
    length = max(2, round(secs * 20 / SOAK_ROUNDS))
    name = f"paced-100-{length * 10}"
    memory: list[tuple[float, float]] = []
    with running(more=lambda port: PACED.format(name=name, port=port), exact_max_bytes=4 * 1024 * 1024) as own:
        front = load.front_of(own.pid)
        over = threading.Event()

        def watch() -> None:
            began = time.monotonic()
            while not over.wait(length * SOAK_ROUNDS / 60):
                memory.append((time.monotonic() - began, load.pss_mib([front]) or 0.0))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            rounds = [open_streams(own, name, SOAK_STREAMS) for _ in range(SOAK_ROUNDS)]
        finally:
            over.set()
            watcher.join()
    warm = [mib for second, mib in memory if second > memory[-1][0] / 3]
    tokens = sum(len(tally.delay_us) for tally, _ in rounds)
    return {
        "x": "seconds",
        "y": "memory of the front worker (PSS), MiB",
        "points": memory,
        "streams": SOAK_STREAMS,
        "seconds": sum(tally.seconds for tally, _ in rounds),
        "errors": sum(tally.errors for tally, _ in rounds),
        "answers": sum(tally.answers for tally, _ in rounds),
        "tokens": tokens,
        "cpu_us_per_token": sum(used for _, used in rounds) / max(1, tokens),
        "mib_after_warm_up": [min(warm), max(warm)],
    }


def tls(secs: float) -> dict[str, object]:
    """CPU of a request by what carries it to the upstream; the protocol is what the upstream saw."""
    if shutil.which("openssl") is None:
        raise LeftOut("openssl is not installed")
    found = {}
    with tempfile.TemporaryDirectory(prefix="gateway-growth-") as folder:
        authority, certificate, key = certificates(Path(folder))
        command = [sys.executable, "-m", "tests.bench.origin", str(certificate), str(key)]
        for client, secure in (("http1", False), ("httpx", False), ("http1", True), ("httpx", True)):
            with (Path(folder) / "said").open("w+") as said:
                origin = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said)
                try:
                    port = port_said(Path(folder) / "said", origin)
                    carried = cpu_over(client, port if secure else 0, authority, secs)
                finally:
                    sides.end(origin)
                protocols = sorted(set((Path(folder) / "said").read_text().split()[1:])) if secure else ["http/1.1"]
            found[f"{client}, {'TLS' if secure else 'plain'}, {'+'.join(protocols)}"] = carried
    return {"x": "client", "y": "CPU of a request, µs", "values": found}


def cpu_over(client: str, port: int, authority: Path, secs: float) -> float:
    """Of a gateway whose upstream is asked by this client; `port` 0: in plain, the built-in upstream."""

    def more(plain: int) -> str:
        base = f"https://localhost:{port}/json/v1" if port else f"http://127.0.0.1:{plain}/json/v1"
        fields = f'kind = "openai"\nbase_url = "{base}"\nclient = "{client}"\ntakes_up_to = "internal"\n'
        return f'[upstreams.carried]\n{fields}[models.carried]\ncandidates = [{{ upstream = "carried" }}]\n'

    policy = 'policy = "bench"\n[[route]]\nname = "all"\norder_by = "listed"\n'
    with running(more=more, policy=policy, env={"SSL_CERT_FILE": str(authority)}) as own:
        return cpu_per_request(own, texts("carried"), secs)


def certificates(folder: Path) -> tuple[Path, Path, Path]:
    """A certificate authority of our own, and a certificate and key for localhost by it."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(*new, "-x509", "-days", "2", "-subj", "/CN=bench authority", "-keyout", "ca.key", "-out", "ca.pem")
    openssl(*new, "-subj", "/CN=localhost", "-keyout", "host.key", "-out", "host.csr")
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names", "-out", "host.pem")
    openssl("x509", "-req", "-in", "host.csr", *signed)
    return folder / "ca.pem", folder / "host.pem", folder / "host.key"


def port_said(file: Path, process: subprocess.Popen) -> int:
    """The first line of what a process writes into a file."""
    ends = time.monotonic() + 20
    while time.monotonic() < ends and process.poll() is None:
        if "\n" in (said := file.read_text()):
            return int(said.split()[0])
        time.sleep(0.02)
    raise SystemExit("the upstream over TLS did not start; its error stands above")


def gc(_secs: float) -> dict[str, object]:
    """Pauses of garbage collection in the front worker while 1,000 streams are open."""
    count = STREAMS[-1]
    name = f"paced-{interval_ms(count)}-{STREAM_S * 1000 // interval_ms(count)}"
    window: list[float] = []
    with tempfile.TemporaryDirectory(prefix="gateway-growth-") as folder:
        out = Path(folder) / "pauses"
        program = [sys.executable, "-m", "tests.bench.pauses", str(out)]
        with running(more=lambda port: PACED.format(name=name, port=port), program=program) as own:
            tally, _ = open_streams(own, name, count, during=lambda: window.append(time.monotonic()))
            window.append(time.monotonic())
        pauses = json.loads(out.read_text())
    inside = [(generation, ms) for began, generation, ms in pauses if window[0] <= began <= window[1]]
    by_generation = {
        generation: {"count": len(found), "p50_ms": statistics.median(found), "max_ms": max(found), "sum_ms": sum(found)}
        for generation in (0, 1, 2)
        if (found := [ms for one, ms in inside if one == generation])
    }
    return {
        "streams": count,
        "errors": tally.errors,
        "seconds": window[1] - window[0],
        "generations": by_generation,
        "longest_ms": max((ms for _, ms in inside), default=0.0),
        "longest_ever_ms": max((ms for _, _, ms in pauses), default=0.0),
    }


PARTS = {"body": body, "upstreams": upstreams, "rules": rules, "streams": streams, "soak": soak, "tls": tls, "gc": gc}


def draw(name: str, found: dict, out: Path) -> Path | None:
    """The curve as a PNG; None where matplotlib is not installed (the extra `plots`)."""
    try:
        import matplotlib as mpl  # noqa: PLC0415 - only for drawing, and not everywhere
    except ImportError:
        return None
    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the backend was chosen

    figure, axes = plt.subplots(figsize=(6, 3.6))
    axes.plot([x for x, _ in found["points"]], [y for _, y in found["points"]], marker="o" if name != "soak" else "")
    if name != "soak":
        axes.set_xscale("log")
        axes.set_xticks([x for x, _ in found["points"]], [f"{x:,}" for x, _ in found["points"]])
        axes.minorticks_off()
    axes.set(xlabel=found["x"], ylabel=found["y"], ylim=(0, None))
    axes.grid(alpha=0.3)
    path = out / f"growth-{name}.png"
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)
    return path


def show(name: str, found: dict) -> None:
    """One part in words and numbers."""
    print(f"\n{name}: {found.get('y', 'pauses')}")
    if name == "soak":
        low, high = found["mib_after_warm_up"]
        print(f"  {found['streams']} streams for {found['seconds']:.0f} s: {found['errors']} errors, {found['tokens']} tokens,")
        print(f"  {found['cpu_us_per_token']:.0f} µs a token; memory after warm-up {low:.1f} to {high:.1f} MiB")
    elif "points" in found:
        for x, y in found["points"]:
            print(f"  {x:>6,} {y:>12,.1f}")
        print(f"  cliffs: {found['cliffs'] or 'none'}")
    elif "values" in found:
        for what, value in found["values"].items():
            print(f"  {what:40s} {value:>10,.0f}")
    else:
        print(
            f"  {found['streams']} streams, {found['errors']} errors; longest {found['longest_ms']:.1f} ms in {found['seconds']:.0f} s"
        )
        for generation, one in found["generations"].items():
            print(f"  generation {generation}: {one['count']} times, p50 {one['p50_ms']:.2f} ms, longest {one['max_ms']:.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts to measure, by commas")
    parser.add_argument("--secs", type=float, default=3.0, help="of load at each point")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := set(names) - set(PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, MOST_STREAMS * 4)), hard))
    file = options.out / "growth.json"
    said = json.loads(file.read_text()) if file.exists() else {}
    with sides.alone():
        for name in names:
            print(f"measuring {name}", file=sys.stderr, flush=True)
            average = os.getloadavg()[0]
            try:
                found = PARTS[name](options.secs)
            except LeftOut as reason:
                print(f"\nleft out: {name}: {reason}")
                continue
            show(name, found)
            if "points" in found and draw(name, found, options.out) is None:
                print("  no picture: matplotlib is not installed; pip install 'gateway[plots]'")
            said[name] = {
                **found,
                "load_average": average,
                "commit": peers.commit(),
                "when": time.strftime("%Y-%m-%d", time.gmtime()),
            }
    said["machine"] = f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    file.write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
