"""The README's comparison: our gateway beside nginx, Envoy, ferrogw, Portkey and LiteLLM in one run. Prints tables, writes JSON.

    python -m tests.bench.peers --harness DIR [--rounds 3] [--secs 3] [--only gateway,nginx,envoy] [--out peers.json]

DIR holds a harness with `run.sh` that measures targets by URL and process (its README says how); it brings upstreams and load.
Every side has one worker on one core; load and upstreams are on another. What is not installed is, once, into
~/.cache/gateway-bench; what cannot be had, or does not answer rightly before the run, is left out and named.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from gateway.bench.load import front_of, pss_mib
from tests.bench import sides
from tests.bench.sides import Bench, LeftOut, Side

COLUMNS = (
    ("JSON CPU µs", "json", "cpu_us"),
    ("JSON 1/s", "json", "rps"),
    ("added p50 µs", "lat", "add50"),
    ("64-chunk stream CPU µs", "stream", "cpu_us"),
    ("first token p50 µs", "paced", "ttft50_us"),
    ("token delay p50 µs", "paced", "tok50_us"),
    ("paced token CPU µs", "paced", "cpu_us_chunk"),
    ("PSS MiB", "json", "pss"),
)
"""Heading, phase and column of the harness's results."""

GOALS = (
    ("CPU of a JSON request, of Envoy's", ("json", "cpu_us"), "gateway", "envoy", 2.5, 1.2),
    ("CPU of a JSON request, of nginx's", ("json", "cpu_us"), "gateway", "nginx", 8, None),
    ("CPU of a JSON request, of ferrogw's", ("json", "cpu_us"), "gateway", "ferrogw", 0.8, 0.4),
    ("CPU of a JSON request, of Portkey's", ("json", "cpu_us"), "gateway", "portkey", 1 / 15, None),
    ("CPU of a JSON request, of LiteLLM's", ("json", "cpu_us"), "gateway", "litellm", 1 / 100, None),
    ("added p50 latency, of Envoy's", ("lat", "add50"), "gateway", "envoy", 2, 1.2),
    ("64-chunk stream, of ferrogw's", ("stream", "cpu_us"), "gateway", "ferrogw", 1 / 3, 1 / 5),
    ("exact cache hit, of Envoy's relay CPU", ("json", "cpu_us"), "gateway-hit", "envoy", 1.5, 0.8),
    ("two workers, of one worker's CPU", ("json", "cpu_us"), "gateway-2", "gateway", 1.1, None),
)
"""What, column, ours, theirs, and the ratio that must and that should not be exceeded."""


def run(
    harness: Path, names: list[str], *, rounds: int, secs: int, core: str, phases: str, out: Path | None
) -> dict[str, object]:
    """Start, prove, measure, stop. The results, also written to `out`."""
    with sides.bench(core) as bench:
        left_out: dict[str, str] = {}
        started = list(start(bench, harness, names, left_out))
        for name, reason in left_out.items():
            print(f"left out: {name}: {reason}", flush=True)
        if not started:
            raise SystemExit("nothing is left to measure")
        found = harness_run(bench, harness, started, rounds=rounds, secs=secs, phases=phases)
        ours = next((side for side in started if side.name == "gateway"), None)
        front = front_of(ours.pid) if ours else None
        said = {
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}",
            "commit": commit(),
            "versions": {side.name: side.version for side in started},
            "left_out": left_out,
            "rounds": rounds,
            "secs": secs,
            "front_pss_mib": pss_mib([front]) if front else None,
            "log_dropped": _dropped(ours) if ours else None,
            "results": found,
        }
    said["goals"] = goals(found, said["front_pss_mib"])
    if out:
        out.write_text(json.dumps(said, indent=1))
    return said


def start(bench: Bench, harness: Path, names: list[str], left_out: dict[str, str]):
    """The sides that came up and gave true answers of every kind."""
    with sides.upstreams(bench, harness):
        for name in names:
            print(f"starting {name}", file=sys.stderr, flush=True)
            try:
                side = sides.SIDES[name](bench)
                sides.prove(side)
            except LeftOut as error:
                left_out[name] = str(error)
            else:
                yield side


def harness_run(bench: Bench, harness: Path, started: list[Side], *, rounds: int, secs: int, phases: str) -> dict[str, object]:
    """The harness's results by target, phase and column. Raises SystemExit when a target was not measured in a phase."""
    spec, out = bench.work / "targets.json", bench.work / "harness.json"
    spec.write_text(json.dumps([side.spec() for side in started]))
    ports = ["--port", str(bench.upstream("json")), "--paced-port", str(bench.upstream("paced"))]
    passed = ["--rounds", str(rounds), "--secs", str(secs), "--phases", phases, "--out", str(out), *ports]
    process = subprocess.Popen([str(harness / "run.sh"), "--spec", str(spec), "--", *passed])
    try:
        # Three attempts a cell at most, four phases; LiteLLM needs minutes for the requests that are counted, not timed.
        status = process.wait(300 + rounds * (len(started) + 1) * 4 * (secs + 10) * 3)
    except subprocess.TimeoutExpired:
        status = "a time-out"
    finally:
        sides.end(process)  # it stops its upstreams at SIGTERM
    if status or not out.exists():
        raise SystemExit(f"the harness ended with {status}; its output above says why")
    found = json.loads(out.read_text())["results"]
    for side in started:
        missing = [phase for phase in phases.split(",") if phase in side.asks and phase not in found[side.name]]
        if missing:
            raise SystemExit(f"{side.name} was not measured in {', '.join(missing)}; the harness's output above says why")
    return found


def median(found: dict, name: str, phase: str, column: str) -> float | None:
    """Over the rounds."""
    values = found.get(name, {}).get(phase, {}).get(column)
    return statistics.median(values) if values else None


def goals(found: dict, front_pss: float | None) -> list[dict[str, object]]:
    """Each figure of the goals that this run can judge."""
    rows = []
    for what, (phase, column), ours, theirs, must, aim in GOALS:
        mine, other = median(found, ours, phase, column), median(found, theirs, phase, column)
        if mine is not None and other:
            rows.append({"what": what, "found": mine / other, "must": must, "aim": aim})
    for what, column, must, aim in (
        ("paced stream: added first token, µs", "ttft50_us", 1000, 300),
        ("paced stream: added token delay, µs", "tok50_us", 200, 100),
    ):
        mine, direct = median(found, "gateway", "paced", column), median(found, "direct", "paced", column)
        if mine is not None and direct is not None:
            rows.append({"what": what, "found": mine - direct, "must": must, "aim": aim})
    if front_pss is not None:
        rows.append({"what": "front worker's memory after the run (PSS), MiB", "found": front_pss, "must": 80, "aim": 60})
    return rows


def commit() -> str:
    """The commit that is measured, with a mark when files differ from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=10"], cwd=sides.ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def _dropped(ours: Side) -> float | None:
    url = str(ours.asks["json"]["url"]).partition("/v1/")[0]
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("gateway_log_dropped"))


def tables(said: dict) -> str:
    """Two tables in Markdown: every target's figures, and what they mean for the goals."""
    found = said["results"]
    lines = [f"{said['machine']}; commit {said['commit']}; median [min..max] of {said['rounds']} rounds of {said['secs']} s", ""]
    lines += ["| | " + " | ".join(head for head, _, _ in COLUMNS) + " |", "| --- |" + " --- |" * len(COLUMNS)]
    for name in found:
        rows = [found[name].get(phase, {}).get(column) for _, phase, column in COLUMNS]
        # The harness knows no process behind `direct`; its noughts say nothing.
        cells = [_cell(values) if values and any(values) else "" for values in rows]
        lines.append(f"| {name} {said['versions'].get(name, '')} | " + " | ".join(cells) + " |")
    foreign = [value for phases in found.values() for phase in phases.values() for value in phase.get("foreign", ())]
    lines += ["", f"other work on the machine: median {statistics.median(foreign):.2f} cores, at most {max(foreign):.2f}", ""]
    lines += ["| figure | found | must | aim | |", "| --- | --- | --- | --- | --- |"]
    for row in said["goals"]:
        must, aim = row["must"], row["aim"]
        met = "aim" if aim is not None and row["found"] <= aim else "must" if row["found"] <= must else "no"
        lines.append(f"| {row['what']} | {row['found']:.3g} | {must:.3g} | {'' if aim is None else f'{aim:.3g}'} | {met} |")
    lines += [f"\nleft out: {name}: {reason}" for name, reason in said["left_out"].items()]
    if said["log_dropped"]:
        lines.append(f"\n{said['log_dropped']:.0f} log lines were dropped: the disk did not keep up, and the figures flatter")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    shown = [
        f"{value:,.0f}" if value >= 100 else f"{value:.1f}" for value in (statistics.median(values), min(values), max(values))
    ]
    return shown[0] if len(values) == 1 else f"{shown[0]} [{shown[1]}..{shown[2]}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--harness", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--secs", type=int, default=3)
    parser.add_argument("--only", default=",".join(sides.SIDES), help="sides to measure, by commas")
    parser.add_argument("--phases", default="json,lat,stream,paced")
    parser.add_argument("--core", default="0", help="core of the sides; the harness uses core 1")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := set(names) - set(sides.SIDES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(sides.SIDES)}")
    said = run(
        options.harness,
        names,
        rounds=options.rounds,
        secs=options.secs,
        core=options.core,
        phases=options.phases,
        out=options.out,
    )
    print("\n" + tables(said))


if __name__ == "__main__":
    main()
