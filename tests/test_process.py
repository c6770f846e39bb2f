"""What every worker process owes its supervisor: it stops at once whatever it is at, leaves nothing behind, and says why it cannot work."""

import json
import os
import signal
import stat
import subprocess
import sys

import pytest

from gateway.process import EXIT_UNUSABLE, NICE

WORKER = """
import asyncio, sys, time
from gateway import process
from gateway.errors import GatewayError

async def work():
    process.report("loading")
    if "broken" in sys.argv:
        raise GatewayError("no weights; pull them")
    if "slow" in sys.argv:
        await asyncio.to_thread(time.sleep, 3_600)
    async with await process.listen(lambda reader, writer: writer.close(), sys.argv[1]) as server:
        process.report("ready")
        await server.serve_forever()

sys.exit(process.run(work, sys.argv[1]))
"""


@pytest.fixture
def start(tmp_path):
    """Start such a worker and read its states up to the one that is awaited: the process, and that state."""
    started = []

    def begin(*how, until, socket=tmp_path / "w.sock"):
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", WORKER, str(socket), *how]
        started.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe))
        for line in started[-1].stdout:
            if (status := json.loads(line))["state"] == until:
                return started[-1], status
        raise AssertionError(started[-1].stderr.read())

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("at", ["loading", "ready"])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, None], ids=["SIGTERM", "SIGINT", "supervisor gone"])
def test_a_worker_stops_at_once_and_cleanly(start, tmp_path, how, at):
    """While a thread of it loads for an hour, too: status 0, no socket, not a word on standard error."""
    process, _ = start(*(["slow"] if at == "loading" else []), until=at)
    if how is None:
        process.stdin.close()
        process.stdin = None
    else:
        process.send_signal(how)
    assert process.communicate(timeout=60) == (b"", b"")
    assert process.returncode == 0
    assert not (tmp_path / "w.sock").exists()


def test_a_worker_that_cannot_work_says_why(start, tmp_path):
    """As its last state, and by its status; a folder in which it cannot listen as well, with the mend."""
    process, status = start("broken", until="failed")
    assert status["message"] == "no weights; pull them"
    assert process.wait(60) == EXIT_UNUSABLE
    process, status = start(until="failed", socket=tmp_path / "none" / "w.sock")
    assert "none/w.sock" in status["message"]
    assert "choose a shorter or writable folder" in status["message"]
    assert process.wait(60) == EXIT_UNUSABLE


def test_a_worker_gives_way_and_listens_to_this_user_alone(start, tmp_path):
    """The front workers come first, and nobody else on the machine may ask."""
    process, _ = start(until="ready")
    assert os.getpriority(os.PRIO_PROCESS, process.pid) == os.nice(0) + NICE
    assert stat.S_IMODE((tmp_path / "w.sock").stat().st_mode) & 0o077 == 0
