"""The worker's protocol over a real socket, and the local upstream on top of it."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
from contextlib import aclosing
from pathlib import Path

import pytest

pytest.importorskip("torch")
from gateway import frames as wire
from gateway.errors import InvalidRequest, UpstreamFailed
from gateway.local.frames import Cancel, Delta, Failed, Finished, Generate, Started, from_worker_decoder
from gateway.process import EXIT_UNUSABLE
from gateway.upstreams import Call
from gateway.upstreams.local import LocalUpstream
from gateway.weights import pull

pytestmark = pytest.mark.torch

CHAT = "chat/completions"
LONG = {"max_tokens": 450, "temperature": 0.0}
"""The likeliest answer, 148 tokens each time: one drawn by chance may end with its first token."""


def chat(number, **wishes):
    return Generate(number, messages=[{"role": "user", "content": "hello"}], **wishes)


def call(*, stream=True, model="tiny", endpoint=CHAT, **fields):
    given = {"prompt": "hello"} if endpoint == "completions" else {"messages": [{"role": "user", "content": "hello"}]}
    body = json.dumps({"model": model, "stream": stream} | given | fields).encode()
    return Call("r1", endpoint, model, body, stream)


async def collect(client, frame):
    """All frames of one call."""
    found = []
    async with aclosing(client.stream(frame)) as answers:
        async for answer in answers:
            found.append(answer)
            if isinstance(answer, Finished | Failed):
                break
    return found


async def until(condition):
    """Ask another process again and again, for a while."""
    async with asyncio.timeout(30):
        while not await condition():
            pass


async def test_a_broken_frame_ends_its_connection_only(workers, connect):
    """What is not a frame closes that connection; the worker goes on."""
    reader, writer = await asyncio.open_unix_connection(workers[0].socket)
    writer.write(b"\0\0\0\5hello")
    assert await asyncio.wait_for(reader.read(), 30)
    writer.close()
    client, _ = await connect(workers[0].socket)
    assert isinstance((await collect(client, chat(1, max_tokens=2)))[-1], Finished)


async def test_hello_comes_first_and_says_what_is_loaded(workers, connect):
    """A connection begins with the model's name, device, context and rows."""
    _, hello = await connect(workers[0].socket)
    assert (hello.model, hello.quantization, hello.device, hello.context, hello.max_rows) == ("tiny", "none", "cpu", 512, 4)


def test_the_socket_is_for_this_user_alone(workers):
    """Nobody else on the machine may ask the model."""
    assert Path(workers[0].socket).stat().st_mode & 0o077 == 0


async def test_calls_of_two_connections_with_one_id_do_not_meet(workers, connect):
    """Ids belong to a connection: two front workers may both use 1, and each gets its own answer."""
    (one, _), (two, _) = [await connect(workers[0].socket) for _ in range(2)]
    first, second = await asyncio.gather(collect(one, chat(1, seed=1, max_tokens=9)), collect(two, chat(1, seed=2, max_tokens=5)))
    assert [frames[0] for frames in (first, second)] == [Started(1, first[0].prompt_tokens)] * 2
    assert first[-1].completion_tokens <= 9
    assert second[-1].completion_tokens <= 5
    assert [frame for frame in first if isinstance(frame, Delta)] != [frame for frame in second if isinstance(frame, Delta)]


async def test_a_full_queue_is_said_at_once(workers, connect):
    """Four rows and two waiting: the seventh call is told `overloaded`, the others are untouched."""
    client, _ = await connect(workers[0].socket)
    for number in range(100, 106):
        client.send(chat(number, **LONG))
    (failed,) = await collect(client, chat(106))
    assert (failed.kind, failed.id) == ("overloaded", 106)
    for number in range(100, 106):
        client.send(Cancel(number))

    async def free():
        return isinstance((await collect(client, chat(client.next_id(), max_tokens=1)))[-1], Finished)

    await until(free)


async def test_a_closed_connection_cancels_its_calls(workers, connect):
    """When a front worker leaves, its rows are free for the others."""
    client, _ = await connect(workers[0].socket)
    reader, writer = await asyncio.open_unix_connection(workers[0].socket)

    async def full():
        return isinstance((await collect(client, chat(client.next_id(), max_tokens=1)))[-1], Failed)

    ids = itertools.count(1)

    async def filled():
        writer.write(b"".join(wire.encode(chat(next(ids), **LONG)) for _ in range(6)))
        while not isinstance(await wire.read(reader, from_worker_decoder()), Started):
            pass
        return await full()

    # Whoever asks too late, for the machine stalled meanwhile, finds them all answered.
    await until(filled)
    writer.close()

    async def free():
        return not await full()

    await until(free)


def test_a_worker_without_weights_says_which_command_mends_it(launch, tmp_path):
    """Missing weights are reported as failed with the command, and the exit status forbids restarts in a loop."""
    process, status = launch(tmp_path / "nowhere", tmp_path / "s.sock")
    assert status["state"] == "failed"
    assert "gateway models pull tiny" in status["message"]
    assert process.wait(30) == EXIT_UNUSABLE


async def test_a_prompt_beyond_the_context_is_a_400(workers, connect):
    """The client is told both numbers and OpenAI's code; nothing of its text."""
    client, hello = await connect(workers[0].socket)
    upstream = LocalUpstream("local", {"tiny": client})
    upstream.set_hello("tiny", hello)
    with pytest.raises(InvalidRequest, match="512") as caught:
        await upstream.send(call(messages=[{"role": "user", "content": "secret " * 200}]))
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("endpoint", [CHAT, "completions"])
async def test_a_stream_and_a_whole_answer_say_the_same(workers, connect, endpoint):
    """The same seed gives the same text, reason and usage in both forms."""
    client, _ = await connect(workers[0].socket)
    upstream = LocalUpstream("local", {"tiny": client})
    fields = {"seed": 4, "max_tokens": 30, "endpoint": endpoint}
    streamed = [piece async for piece in await upstream.send(call(stream_options={"include_usage": True}, **fields))]
    whole = [piece async for piece in await upstream.send(call(stream=False, **fields))]
    body = json.loads(whole[-1].data)
    said = body["choices"][0]
    text = said["message"]["content"] if endpoint == CHAT else said["text"]
    assert text == "".join(piece.text for piece in streamed) == "".join(piece.text for piece in whole)
    assert json.loads(streamed[-2].data[6:])["usage"] == body["usage"]
    assert (
        sum(piece.n_tokens for piece in streamed) == sum(piece.n_tokens for piece in whole) == body["usage"]["completion_tokens"]
    )


async def test_closing_an_answer_frees_its_row_even_under_a_reader(workers, connect):
    """aclose() from another task ends the reader's loop and the worker's work."""
    client, _ = await connect(workers[0].socket)
    upstream = LocalUpstream("local", {"tiny": client})
    answers = [await upstream.send(call(**LONG)) for _ in range(4)]
    first = asyncio.Event()

    async def read(answer):
        async for _ in answer:
            first.set()

    readers = [asyncio.create_task(read(answer)) for answer in answers]
    await first.wait()
    for answer in answers * 2:
        await answer.aclose()
    await asyncio.wait_for(asyncio.gather(*readers), 30)
    assert isinstance((await collect(client, chat(client.next_id(), max_tokens=1)))[-1], Finished)
    assert client._calls == {}


async def test_sigterm_ends_the_worker_at_once_and_cleanly(workers, connect):
    """In the middle of answers, SIGTERM gives exit status 0 and no socket is left behind."""
    process, socket = workers[0]
    client, _ = await connect(socket)
    client.send(chat(1, **LONG))
    process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.wait, 30) == 0
    assert not await asyncio.to_thread(Path(socket).exists)


async def test_a_killed_worker_is_a_cut_answer(workers, connect):
    """SIGKILL in the middle of an answer is UpstreamFailed `cut`; the next request is `connect`, with the reason."""
    process, socket = workers[1]
    client, _ = await connect(socket)
    upstream = LocalUpstream("local", {"tiny": client})
    answer = await upstream.send(call(**LONG))

    async def read():
        async for piece in answer:
            if piece.n_tokens:
                process.kill()

    with pytest.raises(UpstreamFailed) as caught:
        await asyncio.wait_for(read(), 30)
    assert caught.value.kind == "cut"
    upstream.set_problem("tiny", "it was killed")
    with pytest.raises(UpstreamFailed, match="model worker of tiny is not ready: it was killed") as caught:
        await upstream.send(call())
    assert caught.value.kind == "connect"
    assert upstream.unavailable() == "model worker of tiny is not ready: it was killed"


@pytest.mark.weights
async def test_the_demo_weights_know_the_capital_of_france(launch, connect, tmp_path):
    """The quantized demo model answers a simple question over its socket and ends by itself."""
    folder = pull("smollm2-135m", Path(".gateway/models"), progress=print)
    _, status = launch(folder, tmp_path / "demo.sock", "--quantization", "bnb-int8")
    assert status["state"] == "ready"
    client, _ = await connect(str(tmp_path / "demo.sock"))
    question = [{"role": "user", "content": "What is the capital of France?"}]
    frames = await collect(client, Generate(1, messages=question, temperature=0.0, max_tokens=40))
    assert "Paris" in "".join(frame.text for frame in frames if isinstance(frame, Delta))
    assert frames[-1].finish_reason == "stop"
