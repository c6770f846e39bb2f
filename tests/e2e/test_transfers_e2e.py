"""A large upload through a real gateway process: what arrives is what was sent, and memory does not grow with it."""

import asyncio
import hashlib
import threading

import psutil
import pytest
from gateways import Gateway
from shelf import shelf

MB = 1024 * 1024
POLICY = """policy = "cost"
[classes]
internal = ["unscannable"]
[[route]]
name = "all"
order_by = "listed"
"""


@pytest.fixture
def upstream():
    """A Shelf on a loop of its own, for a gateway in another process."""
    loop, ready, over, made = asyncio.new_event_loop(), threading.Event(), asyncio.Event(), []

    async def run():
        async with shelf() as one:
            made.append(one)
            ready.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    ready.wait(10)
    yield made[0]
    loop.call_soon_threadsafe(over.set)
    thread.join(10)
    loop.close()


@pytest.mark.parametrize("order", ["streamed", "spooled"])
def test_memory_does_not_grow_with_an_upload(tmp_path, upstream, order):
    """100 MB cost the front worker less than 16 MB at any time, and arrive byte for byte."""
    config = f"""
[upstreams.up]
kind = "openai"
base_url = "{upstream.base_url}"
takes_up_to = "internal"
[models.m]
candidates = [{{ upstream = "up", capabilities = ["files", "audio/transcriptions"] }}]
[cache]
semantic = false
"""
    purpose = b'--xyz\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
    file = b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    content = bytes(range(256)) * 4096

    def body():
        yield (purpose + file) if order == "streamed" else file
        for _ in range(100):
            yield content
        yield b"\r\n" + (b"" if order == "streamed" else purpose) + b"--xyz--\r\n"

    upstream.keeps = False
    with Gateway(tmp_path, config, policies={"all.toml": POLICY}) as gateway:
        gateway.until_up("up/m")
        front = psutil.Process(gateway.pid_of("gateway.app"))
        media = {"content-type": "multipart/form-data; boundary=xyz"}
        small = gateway.post("audio/transcriptions", content=purpose + file + b"x\r\n--xyz--\r\n", headers=media)
        assert small.status_code == 200, small.text
        before, most, over = front.memory_info().rss, [0], threading.Event()
        upstream.got, upstream.digest = 0, hashlib.sha256()

        def watch():
            while not over.wait(0.005):
                most[0] = max(most[0], front.memory_info().rss)

        watching = threading.Thread(target=watch)
        watching.start()
        answer = gateway.post("audio/transcriptions", content=body(), headers=media)
        over.set()
        watching.join()
        assert answer.status_code == 200, answer.text
        assert upstream.digest.hexdigest() == hashlib.sha256(b"".join(body())).hexdigest()
        assert most[0] - before < 16 * MB, f"{(most[0] - before) / MB:.1f} MB"
        assert list((tmp_path / "state" / "spool").glob("*")) == []
        assert gateway.record(answer.headers["x-request-id"])["ending"] == "complete"
        print(f"{order}: {(most[0] - before) / MB:.1f} MB")
