"""Measures a gateway beside its upstream in one run, and shows what was found. Knows the gateway as its users do: by its URL.

Without a URL it starts a gateway and an upstream of its own in a temporary folder, everything on; both end with it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct
from rich.console import Group
from rich.table import Table

from gateway import __version__
from gateway.auth import KeyFile
from gateway.bench import load
from gateway.bench.load import BenchError, Connection, Target, chat
from gateway.bench.stages import TEXT, Price
from gateway.bench.upstream import CHUNKS

Progress = Callable[[str], None]
"""Takes the name of the step that begins."""

CONNECTIONS = 16
STREAMS = 16
BLOCK = 10
"""Requests in a row to one target before the next one's turn."""
WARM = 50
"""Requests to each side before its times count."""
START_S = 30.0
MOST_ASKED = 40
"""Requests of one kind to a gateway that is not ours: each may be a paid call."""

OWN_STEPS = (
    "starting",
    "whole answers",
    "one connection",
    "exact cache hits",
    "streams in one burst",
    "paced streams",
    "stages",
)
URL_STEPS = ("the gateway alone", "whole answers", "streams", "the same request again")

_POLICY = """policy = "bench"
[classes]
confidential = ["email", "phone", "ip"]
restricted = ["card", "iban", "ssn", "secret", "unscannable"]
[log]
text_up_to = "internal"
[[limit]]
name = "secrets stay home"
when = { class = "restricted" }
only = { zone = "local" }
cache = "off"
log = "no text"
[[limit]]
name = "personal data stays in the EU"
when = { class = "confidential" }
only = { zone = ["local", "eu"], retention = "none", trains = false }
cache = "off"
log = "no text"
[[limit]]
name = "no call dearer than a dollar"
max_cost = 1.0
[[route]]
name = "cheapest"
order_by = "cost"
"""
_CONFIG = """[server]
port = 0
state_dir = "state"
[cache]
semantic = false
exact_max_bytes = {exact_max_bytes}
[policies]
default = "bench"
"""
_UPSTREAM = """[upstreams.{kind}]
kind = "openai"
base_url = "http://127.0.0.1:{port}/{kind}/v1"
takes_up_to = "internal"
[models.{kind}]
candidates = [{{ upstream = "{kind}", model = "bench", input_usd_per_mtok = 0.15, output_usd_per_mtok = 0.6 }}]
"""
KINDS = ("json", "burst", "paced")


class Figure(Struct, frozen=True):
    """One measured value; None where this system does not say."""

    name: str
    value: float | None
    unit: str
    said: str


class Stage(Struct, frozen=True):
    """Where a part of a request's time goes."""

    name: str
    us: float | None
    source: str
    """`alone`: the step's own functions, CPU, in a process of their own. `live`: from the run itself."""
    what: str


class Report(Struct, frozen=True):
    """Everything that one run found."""

    gateway: str
    url: str
    machine: str
    load_average: float
    """Of the last minute when the run began: other work makes every figure worse."""
    errors: int
    figures: tuple[Figure, ...]
    stages: tuple[Stage, ...] = ()


class Own(Struct, frozen=True):
    """A gateway and an upstream of our own."""

    gateway: Target
    direct: Target
    """The upstream itself; its path lacks the kind of answer."""
    config: Path
    pid: int

    def straight(self, kind: str) -> Target:
        """The upstream that gives this kind of answer, asked without the gateway."""
        return Target(self.direct.url.format(kind=kind))


def measure_own(secs: float, progress: Progress) -> Report:
    """Start both, measure for about six times `secs`, stop both. Raises BenchError when either does not start."""
    progress("starting")
    average = os.getloadavg()[0]
    counted: list[int] = []
    with (
        tempfile.TemporaryDirectory(prefix="gateway-bench-") as folder,
        upstream(Path(folder)) as port,
        started(Path(folder), port) as own,
    ):
        figures = tuple(_figures(own, secs, progress, counted))
        progress("stages")
        stages = tuple(_stages(own, {figure.name: figure.value for figure in figures}))
    return Report(
        gateway=__version__,
        url=own.gateway.url,
        machine=_machine(),
        load_average=average,
        errors=sum(counted),
        figures=figures,
        stages=stages,
    )


def _figures(own: Own, secs: float, progress: Progress, errors: list[int]) -> Iterator[Figure]:
    texts = (f"{number:08d} {TEXT}" for number in itertools.count())
    json_bodies = (chat("json", text, temperature=0.2, max_tokens=64) for text in texts)
    burst_bodies = (chat("burst", text, stream=True, max_tokens=64) for text in texts)
    paced_bodies = (chat("paced", text, stream=True, max_tokens=64) for text in texts)
    same_bodies = itertools.repeat(next(json_bodies))

    def cost(bodies: Iterator[bytes]) -> tuple[float | None, float]:
        """CPU of the gateway's processes for one request, and requests per second."""
        asyncio.run(load.saturate(own.gateway, bodies, connections=CONNECTIONS, seconds=min(1.0, secs)))
        before = load.cpu_us(own.pid)
        tally = asyncio.run(load.saturate(own.gateway, bodies, connections=CONNECTIONS, seconds=secs))
        time.sleep(0.1)  # what the log's thread still has to write belongs to these requests
        after = load.cpu_us(own.pid)
        errors.append(tally.errors)
        used = None if before is None or after is None else (after - before) / max(1, tally.answers)
        return used, tally.answers / tally.seconds

    progress("whole answers")
    used, rate = cost(json_bodies)
    yield Figure("json_cpu", used, "µs", "CPU for a JSON request")
    yield Figure(
        "json_rate", rate, "1/s", f"JSON requests a second over {CONNECTIONS} connections, client and upstream beside it"
    )
    progress("one connection")
    ours, direct = alternate(own.gateway, own.straight("json"), json_bodies, seconds=secs)
    for share, name in ((50, "p50"), (95, "p95")):
        added = quantile(ours, share) - quantile(direct, share)
        yield Figure(f"json_added_{name}", added, "µs", f"added {name} latency of a JSON request on one connection")
    yield Figure("json_direct_p50", quantile(direct, 50), "µs", "p50 of the upstream itself")
    progress("exact cache hits")
    used = cost(same_bodies)[0]
    _ask(own.gateway, same_bodies, 0.0, cache="hit-exact")
    yield Figure("hit_cpu", used, "µs", "CPU for an exact cache hit")
    progress("streams in one burst")
    yield Figure("burst_cpu", cost(burst_bodies)[0], "µs", f"CPU for a stream of {CHUNKS} chunks, each parsed and logged")
    progress("paced streams")
    yield from _paced(own, paced_bodies, secs, errors)
    front = load.front_of(own.pid) if load.cpu_us(own.pid) is not None else None
    yield Figure("pss", load.pss_mib([front]) if front else None, "MiB", "memory (PSS) of the front worker")
    yield Figure("pss_tree", load.pss_mib(load.tree(own.pid)) if front else None, "MiB", "memory (PSS) of all its processes")


def _paced(own: Own, bodies: Iterator[bytes], secs: float, errors: list[int]) -> Iterator[Figure]:
    """Turns of gateway and upstream, about a third of a second each."""
    ours, direct, ends = load.Tally(), load.Tally(), time.monotonic() + secs
    used = 0.0
    while not ours.answers or time.monotonic() < ends:
        before = load.cpu_us(own.pid) or 0.0
        for target, tally in ((own.gateway, ours), (own.straight("paced"), direct)):
            found = asyncio.run(load.streams(target, bodies, connections=STREAMS))
            tally.answers += found.answers
            tally.errors += found.errors
            tally.first_us += found.first_us
            tally.delay_us += found.delay_us
            if target is own.gateway:
                used += (load.cpu_us(own.pid) or 0.0) - before
            if found.errors:
                raise BenchError(f"{found.errors} of {STREAMS} paced streams failed; see the gateway's log")
    errors.append(ours.errors)
    first = quantile(ours.first_us, 50) - quantile(direct.first_us, 50)
    delay = quantile(ours.delay_us, 50) - quantile(direct.delay_us, 50)
    yield Figure("first_token_added", first, "µs", f"added p50 until the first token, {STREAMS} streams, 5 ms a token")
    yield Figure("token_delay_added", delay, "µs", "added p50 delay of a token")
    yield Figure("token_cpu", used / len(ours.delay_us) if used else None, "µs", "CPU for a paced token")


def alternate(ours: Target, direct: Target, bodies: Iterator[bytes], *, seconds: float) -> tuple[list[float], list[float]]:
    """Times of whole answers, by turns of a few requests each, so that both see the same machine."""
    ends = time.monotonic() + seconds
    with Connection(ours) as first, Connection(direct) as second:
        sides = [(first, ours, list[float]()), (second, direct, list[float]())]
        for connection, target, _ in sides:
            for _ in range(WARM):
                connection.ask(target.request(next(bodies)))
        while time.monotonic() < ends or not sides[0][2]:
            for connection, target, times in sides:
                connection.ask(target.request(next(bodies)))
                times += [_answer(connection, target, next(bodies)).total_us for _ in range(BLOCK)]
    return sides[0][2], sides[1][2]


def _answer(connection: Connection, target: Target, body: bytes) -> load.Took:
    """One answer. Raises BenchError, in the words of whoever refused, when it is not 200."""
    took = connection.ask(target.request(body))
    if took.status != 200:
        raise BenchError(f"{target.url} answered {took.status}: {_reason(took)}")
    return took


def quantile(values: list[float], percent: int) -> float:
    """The value below which so many percent lie. Raises BenchError for an empty list."""
    if not values:
        raise BenchError("nothing was answered; see the gateway's log")
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


def _stages(own: Own, found: dict[str, float | None]) -> Iterator[Stage]:
    command = [sys.executable, "-m", "gateway.bench.stages", str(own.config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)  # noqa: S603 - our own module
    if done.returncode:
        raise BenchError(f"the stages could not be measured: {_last_words(done.stderr)}")
    prices = msgspec.json.decode(done.stdout, type=list[Price])
    for price in prices:
        yield Stage(price.stage, price.us, "alone", price.what)
    straight = own.straight("json")
    connects, firsts = [], []
    for _ in range(20):
        began = time.perf_counter_ns()
        with Connection(straight) as connection:
            connects.append((time.perf_counter_ns() - began) / 1000)
            firsts.append(connection.ask(straight.request(chat("json", TEXT))).first_us)
    yield Stage("connect", statistics.median(connects), "live", "a new connection to the upstream; only when none is idle")
    yield Stage("first byte", statistics.median(firsts), "live", "the upstream's own time to its first byte, not ours")
    yield Stage("relay", found["token_delay_added"], "live", "added p50 delay of a token of a paced stream")
    burst = found["burst_cpu"]
    yield Stage("relay a burst", None if burst is None else burst / CHUNKS, "live", "CPU of a chunk, its log line included")
    if (used := found["json_cpu"]) is not None:
        known = sum(price.us for price in prices if not price.stage.endswith("token"))
        yield Stage("the rest", used - known, "live", "of the JSON request's CPU: HTTP, sockets, tasks, headers, metrics")


@contextmanager
def upstream(folder: Path) -> Iterator[int]:
    """The built-in upstream; its port."""
    with (folder / "upstream.err").open("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway.bench.upstream"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        with process:
            try:
                said = process.stdout.readline() if process.stdout else ""
                if not said.strip().isdigit():
                    raise BenchError(f"the upstream did not start: {_last_words((folder / 'upstream.err').read_text())}")
                yield int(said)
            finally:
                process.terminate()


@contextmanager
def started(
    folder: Path,
    port: int,
    *,
    more: str = "",
    policy: str = _POLICY,
    program: Sequence[str] = (sys.executable, "-m", "gateway"),
    env: Mapping[str, str] | None = None,
    exact_max_bytes: int = 64 * 1024 * 1024,
) -> Iterator[Own]:
    """A gateway with everything on, in front of the upstream at `port`; `more` is added to its config, `env` to its variables."""
    (folder / "policies").mkdir()
    (folder / "policies" / "bench.toml").write_text(policy)
    path = folder / "config.toml"
    path.write_text(
        _CONFIG.format(exact_max_bytes=exact_max_bytes) + "".join(_UPSTREAM.format(kind=kind, port=port) for kind in KINDS) + more
    )
    state = folder / "state"
    state.mkdir()
    key = KeyFile(state / "keys.json").add("bench")
    with (folder / "gateway.err").open("w") as errors:
        process = subprocess.Popen(  # noqa: S603 - our own command
            [*program, "serve", "--config", str(path)],
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
    try:
        url = _serving(process, state / "run" / "server.json", folder / "gateway.err")
        yield Own(
            gateway=Target(f"{url}/v1/chat/completions", (("authorization", f"Bearer {key}"),)),
            direct=Target(f"http://127.0.0.1:{port}/{{kind}}/v1/chat/completions"),
            config=path,
            pid=process.pid,
        )
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _serving(process: subprocess.Popen[bytes], known: Path, said: Path) -> str:
    """The base URL of a gateway that answers. Raises BenchError with its last words when it does not start."""
    ends = time.monotonic() + START_S
    while time.monotonic() < ends and process.poll() is None:
        if " listens on " in said.read_text():
            return str(json.loads(known.read_bytes())["url"])
        time.sleep(0.02)
    raise BenchError(f"the gateway did not start: {_last_words(said.read_text())}")


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-5:])[-600:] or "it said nothing"


def measure_url(url: str, *, key: str, model: str, secs: float, state_dir: Path | None, progress: Progress) -> Report:
    """Measure a gateway that runs already, by at most 40 short requests of each kind; its upstream answers them.

    `state_dir`, when that gateway's, gives its process and so its CPU. Raises BenchError for a gateway that cannot be asked.
    """
    base = url.rstrip("/")
    base = base if base.endswith("/v1") else base + "/v1"
    auth = (("authorization", f"Bearer {key}"),) if key else ()
    average, pid = os.getloadavg()[0], _pid_of(base, state_dir)
    chats = Target(f"{base}/chat/completions", auth)
    mark = f"{os.urandom(4).hex()} "
    bodies = (chat(model, f"{mark}{number:04d} Say one word.", max_tokens=16) for number in itertools.count())
    stream_bodies = (chat(model, f"{mark}{number:04d} Count to ten.", max_tokens=16, stream=True) for number in itertools.count())

    def figures() -> Iterator[Figure]:
        progress("the gateway alone")
        alone = [took.total_us for took in _ask(Target(f"{base}/models", auth), itertools.repeat(b""), secs, most=1_000)]
        yield Figure("alone_p50", quantile(alone, 50), "µs", "p50 of GET /v1/models: the gateway without an upstream")
        progress("whole answers")
        before = load.cpu_us(pid) if pid else None
        took = _ask(chats, bodies, secs)
        after = load.cpu_us(pid) if pid else None
        times = [one.total_us for one in took]
        yield Figure("json_p50", quantile(times, 50), "µs", f"p50 of {len(took)} whole answers, the model's time included")
        yield Figure("json_p95", quantile(times, 95), "µs", "p95 of the same")
        used = None if before is None or after is None else (after - before) / len(took)
        yield Figure("json_cpu", used, "µs", "CPU of the gateway's processes for one, local models included")
        progress("streams")
        took = _ask(chats, stream_bodies, secs)
        firsts = [one.events_us[0] for one in took if one.events_us]
        gaps = [later - earlier for one in took for earlier, later in itertools.pairwise(one.events_us)]
        yield Figure("first_token_p50", quantile(firsts, 50), "µs", f"p50 until the first event of {len(took)} streams")
        yield Figure("token_gap_p50", quantile(gaps, 50) if gaps else None, "µs", "p50 between two events")
        progress("the same request again")
        again = _ask(chats, itertools.repeat(next(bodies)), secs)
        hits = [one.total_us for one in again if one.headers.get("x-gateway-cache", "").startswith("hit")]
        yield Figure("hit_p50", quantile(hits, 50) if hits else None, "µs", f"p50 of {len(hits)} cache hits among {len(again)}")

    found = tuple(figures())
    return Report(gateway="", url=base, machine=_machine(), load_average=average, errors=0, figures=found)


def _ask(target: Target, bodies: Iterator[bytes], secs: float, *, most: int = MOST_ASKED, cache: str = "") -> list[load.Took]:
    """Answers of one connection, for so long and no more than `most`; at least three.

    Raises BenchError at the first that is not 200, or whose x-gateway-cache is another than `cache` where that is given.
    """
    took, ends = list[load.Took](), time.monotonic() + secs
    while len(took) < most and (len(took) < 3 or time.monotonic() < ends):
        with Connection(target) as connection:
            while len(took) < most and (len(took) < 3 or time.monotonic() < ends):
                took.append(_answer(connection, target, next(bodies)))
                if cache and (found := took[-1].headers.get("x-gateway-cache")) != cache:
                    raise BenchError(f"an answer was to come as {cache} and came as {found}; see the gateway's log")
                if took[-1].headers.get("connection", "").lower() == "close":
                    break
    return took


def _reason(took: load.Took) -> str:
    try:
        return str(json.loads(took.body)["error"]["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return "it said no more"


def _pid_of(base: str, state_dir: Path | None) -> int | None:
    """The process of the gateway at this URL, when the state folder is its own."""
    if state_dir is None:
        return None
    try:
        known = json.loads((state_dir / "run" / "server.json").read_bytes())
        return int(known["pid"]) if base.startswith(known["url"]) else None
    except (OSError, ValueError, KeyError):
        return None


def _machine() -> str:
    return f"{platform.system()} {platform.release()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def render(report: Report) -> Group:
    """The report for a terminal."""
    figures = Table("figure", "", "", box=None, title_justify="left", title=f"{report.url}: {report.machine}")
    for figure in report.figures:
        figures.add_row(figure.said, _number(figure.value), figure.unit)
    shown: list[object] = [figures]
    if report.stages:
        stages = Table("stage", "µs", "", "what", box=None, title_justify="left", title="\nWhere a request's time goes")
        for stage in report.stages:
            stages.add_row(stage.name, _number(stage.us), stage.source, stage.what)
        shown += [stages, "alone: the step's functions by themselves, CPU. live: from this run, wall clock unless it says CPU."]
    if report.load_average > 0.5:
        shown.append(f"Other work was on this machine (load {report.load_average:.1f}): medians and CPU compare, tails do not.")
    if report.errors:
        shown.append(f"{report.errors} requests failed: these figures are not worth much; see the gateway's log.")
    return Group(*shown)  # type: ignore[arg-type]  # tables and strings are renderable


def _number(value: float | None) -> str:
    if value is None:
        return "not known here"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
