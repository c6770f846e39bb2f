"""`gateway purge` at the terminal: whoever waits is told for what, and what to do."""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from gateway import config, purge_cli
from gateway.errors import ConfigError

ANSWER = json.dumps({"purged": 0, "dry_run": False, "counts": {"cache": 0}})


@pytest.fixture
def slow(tmp_path):
    """A purge that asks a gateway which takes its time: the command, and the connection on which it waits."""
    (tmp_path / "config.toml").write_text('[server]\nstate_dir = "state"\n[cache]\nsemantic = false\n')
    state = tmp_path / "state"
    (state / "run").mkdir(parents=True)
    command = [sys.executable, "-m", "gateway", "purge", "--all", "--json", "--config", str(tmp_path / "config.toml")]
    with contextlib.ExitStack() as stack:
        fcntl.flock(stack.enter_context((state / "lock").open("wb")), fcntl.LOCK_EX)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        (state / "run" / "server.json").write_text(json.dumps({"url": url, "pid": os.getpid(), "admin_key": "gw-x"}))
        pipe = subprocess.PIPE
        # A shell starts what runs in its background deaf to Ctrl-C, and that is inherited.
        command = ["env", "--default-signal=INT", *command]
        process = stack.enter_context(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True))
        stack.callback(process.kill)
        listener.settimeout(60)
        connection, _ = listener.accept()
        yield process, stack.enter_context(connection), url


def test_a_purge_that_waits_says_for_what(slow):
    """On standard error, so that what the command prints is still JSON; then it goes on as if nothing had been."""
    process, connection, url = slow
    told = process.stderr.readline()
    assert f"waiting for the gateway at {url} (process {os.getpid()})" in told
    assert "Ctrl-C" in told
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(ANSWER)}\r\n\r\n"
    connection.sendall((head + ANSWER).encode())
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, json.loads(out)["counts"]["cache"]) == (0, 0)


def test_a_purge_that_waits_ends_with_ctrl_c(slow):
    """At once, and without a traceback."""
    process, _, _ = slow
    assert "waiting" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in rest) == (130, False)


def test_a_gateway_that_does_not_finish_is_told_apart_from_one_that_is_away(tmp_path, monkeypatch):
    """It may go on erasing: nobody is told to stop it."""
    (tmp_path / "config.toml").write_text('[server]\nstate_dir = "state"\n[cache]\nsemantic = false\n')
    (tmp_path / "state/run").mkdir(parents=True)
    monkeypatch.setattr(purge_cli, "ANSWER_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = {"url": f"http://127.0.0.1:{listener.getsockname()[1]}", "pid": 1, "admin_key": "gw-x"}
        (tmp_path / "state/run/server.json").write_text(json.dumps(server))
        with pytest.raises(ConfigError, match=r"has not finished within 0[.]05 s, and may go on; purge again"):
            purge_cli.ask_server(config.load(tmp_path / "config.toml"), "/v1/gateway/purge", {})
    with pytest.raises(ConfigError, match="does not answer"):
        purge_cli.ask_server(config.load(tmp_path / "config.toml"), "/v1/gateway/purge", {})
