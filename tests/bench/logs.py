"""Measure the per-token log: its cost beside structlog's usual chain in the same run, and what kill -9 loses. Prints figures.

    .venv/bin/python -m tests.bench.logs            # everything, about 30 s
    .venv/bin/python -m tests.bench.logs --kills 50

The chain measured as the floor is structlog's documented production set-up (level, time stamp, JSON) into a file, per token.
"""

from __future__ import annotations

import argparse
import calendar
import json
import mmap
import os
import random
import select
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import structlog

from gateway.ledger import TokenEvent
from gateway.logs import LogWriter
from gateway.sinks import segment_files
from gateway.spoken import Spoken
from gateway.tokens import Counter

PACE = struct.Struct("<QQ")
"""What the victim says about itself in shared memory: lines handed over, and the wall clock of the last one in ns."""


def writer(folder: Path) -> LogWriter:
    return LogWriter(
        folder,
        segment="bench",
        stdout=False,
        rotate_bytes=1 << 30,
        keep_files=0,
        on_full="refuse",
        queue_limit=1_000_000,
        count_tokens=Counter(None).count,
        between=Spoken(),
    )


def per_token(folder: Path, n: int, n_tokens: int) -> tuple[float, float]:
    """Microseconds a token on the calling thread, and in the whole process once all is written."""
    log = writer(folder)
    whole, own = time.process_time_ns(), time.thread_time_ns()
    for index in range(n):
        event = TokenEvent(time.time_ns(), "req-0123456789", index, 12.345, n_tokens, " token", True, "a/b", "external", 0)
        log.token(event)
    own = time.thread_time_ns() - own
    lost = log.close()
    assert not lost
    return own / n / 1000, (time.process_time_ns() - whole) / n / 1000


def per_token_structlog(folder: Path, n: int) -> tuple[float, float]:
    with (folder / "structlog.jsonl").open("w") as file:
        log = structlog.wrap_logger(
            structlog.WriteLogger(file),
            processors=[
                structlog.contextvars.merge_contextvars,
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso"),
                structlog.processors.JSONRenderer(),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(20),
            cache_logger_on_first_use=True,
        )
        log = log.bind()
        start = time.thread_time_ns()
        for index in range(n):
            log.info(
                "token",
                request_id="req-0123456789",
                index=index,
                ms=12.345,
                n_tokens=1,
                upstream="openai/gpt-4o",
                source="external",
                choice=0,
                chars=6,
                text=" token",
            )
        used = (time.thread_time_ns() - start) / n / 1000
    return used, used


def costs(rounds: int, n: int) -> None:
    ways = {
        "structlog, usual chain": lambda folder: per_token_structlog(folder, n // 4),
        "LogWriter, tokens counted by the source": lambda folder: per_token(folder, n, 1),
        "LogWriter, tokens estimated on the thread": lambda folder: per_token(folder, n, 0),
    }
    found = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                found[name].append(run(Path(folder)))
    print(f"\nus per token, median [min..max] of {rounds} rounds, {n} tokens a round")
    for name, pairs in found.items():
        parts = []
        for values in zip(*pairs, strict=True):
            parts.append(f"{statistics.median(values):6.2f} [{min(values):.2f}..{max(values):.2f}]")
        print(f"  {name:44s} on the loop {parts[0]}   whole process {parts[1]}")


def victim(folder: str, shared: str, per_second: int) -> None:
    """Hand over tokens at a pace, counting them in shared memory, until killed."""
    with Path(shared).open("r+b") as file, mmap.mmap(file.fileno(), PACE.size) as said:
        log = writer(Path(folder))
        print("ready", flush=True)
        begin, index = time.monotonic(), 0
        while True:
            due = int((time.monotonic() - begin) * per_second)
            while index < due:
                now = time.time_ns()
                log.token(TokenEvent(now, "victim", index, 1.0, 1, " token", True, "openai/gpt-4o", "external", 0))
                index += 1
                said[:] = PACE.pack(index, now)
            time.sleep(0.0005)


def kill_once(per_second: int) -> tuple[float, int]:
    """Milliseconds and lines lost by one SIGKILL at a random moment."""
    with tempfile.TemporaryDirectory() as folder:
        shared = Path(folder) / "said"
        shared.write_bytes(bytes(PACE.size))
        command = [sys.executable, "-m", "tests.bench.logs", "--victim", folder, str(shared), str(per_second)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            select.select([], [], [], 0.3 + random.random() * 0.3)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        handed, last_ns = PACE.unpack(shared.read_bytes())
        lines = [line for path in segment_files(Path(folder)) for line in path.read_bytes().splitlines(keepends=True)]
        whole = [line for line in lines if line.endswith(b"}\n")]
        last = json.loads(whole[-1])
        assert [json.loads(line)["index"] for line in whole] == list(range(len(whole)))
        written_ns = time_ns(last["time"])
        return max(0.0, (last_ns - written_ns) / 1e6), max(0, handed - len(whole))


def time_ns(text: str) -> int:
    seconds = time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S")
    return calendar.timegm(seconds) * 1_000_000_000 + int(text[20:26]) * 1000


def losses(kills: int) -> None:
    print(f"\nlost to SIGKILL, median / max of {kills} kills")
    for per_second in (1_000, 20_000):
        found = [kill_once(per_second) for _ in range(kills)]
        ms = sorted(pair[0] for pair in found)
        lines = sorted(pair[1] for pair in found)
        print(
            f"  {per_second:6d} tokens/s: {statistics.median(ms):5.1f} / {ms[-1]:.1f} ms, "
            f"{statistics.median(lines):.0f} / {lines[-1]} lines"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--victim", nargs=3)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.victim:
        victim(arguments.victim[0], arguments.victim[1], int(arguments.victim[2]))
    versions = f"Python {sys.version.split()[0]}, structlog {structlog.__version__}"
    print(f"{versions}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    costs(arguments.rounds, 40_000)
    losses(arguments.kills)


if __name__ == "__main__":
    main()
