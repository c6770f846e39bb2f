"""What the supervisor does by itself: listening sockets, and children that cannot be started. Its processes are in e2e/."""

import asyncio
import errno
import socket
import sys
from contextlib import ExitStack

import pytest

from gateway import config, supervisor
from gateway.errors import ConfigError
from gateway.process import Child, states


def config_with(tmp_path, port, workers):
    """A config file as it is read, with so many front workers."""
    path = tmp_path / "config.toml"
    path.write_text(f'[server]\nport = {port}\nworkers = {workers}\n[cache]\nsemantic = false\nredis_url_env = "REDIS"\n')
    return config.load(path)


@pytest.fixture
def listen(tmp_path):
    """`listen(port, workers)`: the sockets of the front workers, closed at the end."""
    with ExitStack() as open_:

        def make(port, workers):
            found = supervisor._listen(config_with(tmp_path, port, workers))
            for listener in found.values():
                open_.enter_context(listener)
            return found

        yield make


def test_every_front_worker_has_a_socket_on_the_one_address(listen):
    """Three workers: three listening sockets with one port, and each gets some of the connections."""
    listeners = listen(0, 3)
    assert list(listeners) == ["front0", "front1", "front2"]
    addresses = {listener.getsockname() for listener in listeners.values()}
    assert len(addresses) == 1
    taken = set()
    with ExitStack() as open_:
        for listener in listeners.values():
            listener.setblocking(False)
        for _ in range(100):
            open_.enter_context(socket.create_connection(next(iter(addresses)), timeout=30))
        for name, listener in listeners.items():
            with open_.enter_context(listener.accept()[0]):
                taken.add(name)
    assert taken == set(listeners)


@pytest.mark.parametrize("workers", [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_an_address_in_use_is_refused_whoever_shares_it(listen, workers):
    """However many workers the one gateway and the other have, the second is told that the address is taken."""
    first, second = workers
    port = listen(0, first)["front0"].getsockname()[1]
    with pytest.raises(ConfigError, match="cannot listen on"):
        listen(port, second)


async def test_a_child_that_cannot_be_started_does_not_end_the_supervisor():
    """No process to be had is a reason to wait and to say so, like a process that ends."""
    told, known = [], asyncio.Event()

    async def start():
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    def tell(name, problem):
        told.append((name, problem))
        known.set()

    child = Child("front0", start, tell=tell)
    keeping = asyncio.create_task(child.keep())
    await known.wait()
    await child.stop()
    await keeping
    assert told == [("front0", "cannot be started: Resource temporarily unavailable")]


async def test_a_child_that_ends_is_started_again_and_its_own_reason_is_told():
    """A process names why it fails; the next life that says nothing is told by its exit status."""
    lives, told = iter(('print(\'{"state":"failed","message":"no weights"}\')', "raise SystemExit(3)")), asyncio.Queue()

    async def start():
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", next(lives), stdout=asyncio.subprocess.PIPE)
        return child, states(child.stdout, lambda problem, remark: None)

    child = Child("model:m", start, tell=lambda name, problem: told.put_nowait(problem))
    keeping = asyncio.create_task(child.keep())
    assert await told.get() == "no weights"
    assert await told.get() == "exited with status 3; starting again in 0.4 s"
    await child.stop()
    await keeping
