"""The local upstream against a scripted worker: the same frames over the same socket, failing when the test says so."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from contextlib import asynccontextmanager

import pytest
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from gateway import frames as wire
from gateway.cache.frames import Embedded
from gateway.errors import InvalidRequest, UpstreamFailed, WorkerGone
from gateway.frames import Client
from gateway.local.frames import Cancel, Delta, Failed, Finished, Hello, Started, from_worker_decoder, to_worker_decoder
from gateway.upstreams import Call
from gateway.upstreams.local import LocalUpstream

CHAT, COMPLETIONS = "chat/completions", "completions"
HELLO = Hello("tiny", "bnb-int8", "cpu", 512, 4)
ANSWER = (Started(0, 5), Delta(0, "Grüß", 2), Delta(0, ' "Gott"\n', 3), Finished(0, "stop", 5, 6, tail_tokens=1))


@pytest.fixture
async def worker(tmp_path):
    """Serve a script of frames to every call; None in it closes the connection, `received` holds what came in."""

    @asynccontextmanager
    async def serve(*script):
        received = asyncio.Queue()

        async def answer(reader, writer):
            writer.write(wire.encode(HELLO))
            while (frame := await wire.read(reader, to_worker_decoder())) is not None:
                received.put_nowait(frame)
                for reply in script if not isinstance(frame, Cancel) else ():
                    if reply is None:
                        writer.close()
                        return
                    writer.write(
                        wire.encode(type(reply)(**{**{f: getattr(reply, f) for f in reply.__struct_fields__}, "id": frame.id}))
                    )
            writer.close()

        server = await asyncio.start_unix_server(answer, tmp_path / "w.sock")
        ready = asyncio.Event()
        client = Client(str(tmp_path / "w.sock"), from_worker_decoder(), on_news=lambda _: ready.set())
        upstream = LocalUpstream("local", {"tiny": client})
        running = asyncio.create_task(client.run())
        await asyncio.wait_for(ready.wait(), 30)
        upstream.set_hello("tiny", HELLO)
        yield upstream, received
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        server.close()
        await server.wait_closed()

    return serve


def call(*, stream=True, endpoint=CHAT, model="tiny", **fields):
    given = {"prompt": "hello"} if endpoint == COMPLETIONS else {"messages": [{"role": "user", "content": "hello"}]}
    body = json.dumps({"model": model, "stream": stream} | given | fields).encode()
    return Call("r1", endpoint, model, body, stream)


async def pieces(answer):
    return [piece async for piece in answer]


async def keep(answer, found):
    async for piece in answer:
        found.append(piece)


def events(found):
    assert all(piece.data.startswith(b"data: ") and piece.data.endswith(b"\n\n") for piece in found)
    assert found[-1].data == b"data: [DONE]\n\n"
    return [json.loads(piece.data[6:]) for piece in found[:-1]]


@pytest.mark.parametrize(
    ("failed", "error", "kind"),
    [
        (Failed(0, "overloaded", "busy"), UpstreamFailed, "overloaded"),
        (Failed(0, "internal", "broken"), UpstreamFailed, "internal"),
        (Failed(0, "context_length", "512", "messages"), InvalidRequest, "context_length_exceeded"),
        (None, UpstreamFailed, "cut"),
    ],
)
async def test_a_failure_before_the_first_token_is_raised_by_send(worker, failed, error, kind):
    """Nothing has been promised yet, so the pipeline can still answer with a real status or fall back."""
    async with worker(failed) as (upstream, _):
        with pytest.raises(error) as caught:
            await upstream.send(call())
        assert kind in (getattr(caught.value, "kind", None), getattr(caught.value, "code", None))


@pytest.mark.parametrize(("ending", "kind"), [(None, "cut"), (Failed(0, "internal", "broken"), "internal")])
async def test_a_failure_midway_is_never_a_clean_end(worker, ending, kind):
    """After the first token the failure is raised while reading, and no finish_reason was sent."""
    async with worker(*ANSWER[:2], ending) as (upstream, _):
        answer, found = await upstream.send(call()), []
        with pytest.raises(UpstreamFailed) as caught:
            await keep(answer, found)
        assert caught.value.kind == kind
        assert b"stop" not in b"".join(piece.data for piece in found)


async def test_overload_says_when_to_come_again(worker):
    """The pipeline gets a number of seconds."""
    async with worker(Failed(0, "overloaded", "busy")) as (upstream, _):
        with pytest.raises(UpstreamFailed) as caught:
            await upstream.send(call())
        assert caught.value.retry_after_s > 0


async def test_a_model_that_is_not_there_is_no_connection(tmp_path):
    """Without a worker, send fails as `connect` and says what the supervisor knows."""
    upstream = LocalUpstream("local", {"tiny": Client(str(tmp_path / "none"), from_worker_decoder())})
    upstream.set_problem("tiny", "weights are missing")
    for model, words in (("tiny", "model worker of tiny is not ready: weights are missing"), ("other", "it has: tiny")):
        with pytest.raises(UpstreamFailed, match=words) as caught:
            await upstream.send(call(model=model))
        assert caught.value.kind == "connect"
    assert "weights are missing" in upstream.unavailable()


async def test_a_connected_worker_is_available_and_its_problem_forgotten(worker):
    """What the supervisor said last week does not outlive a connection."""
    async with worker(*ANSWER) as (upstream, _):
        assert upstream.unavailable() is None
        assert upstream.unavailable("tiny") is None


async def test_giving_up_while_waiting_cancels_the_workers_call(worker):
    """A client that leaves before the first token frees its place in the queue."""
    async with worker() as (upstream, received):
        waiting = asyncio.create_task(upstream.send(call()))
        generate = await received.get()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await asyncio.wait_for(received.get(), 30) == Cancel(generate.id)


async def test_a_finished_answer_is_not_cancelled(worker):
    """Closing what has ended sends nothing, twice."""
    async with worker(*ANSWER) as (upstream, received):
        answer = await upstream.send(call())
        await pieces(answer)
        await answer.aclose()
        await answer.aclose()
        assert received.qsize() == 1


async def test_a_chat_stream_has_openais_shape(worker):
    """Role first, then text, then the reason; every choice has index, logprobs and finish_reason; one id throughout."""
    async with worker(*ANSWER) as (upstream, _):
        answer = await upstream.send(call())
        found = await pieces(answer)
    chunks = [ChatCompletionChunk.model_validate(event, strict=True) for event in events(found)]
    assert answer.headers[0] == ("content-type", "text/event-stream; charset=utf-8")
    assert (chunks[0].choices[0].delta.role, chunks[0].choices[0].delta.content) == ("assistant", "")
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, None, "stop"]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == 'Grüß "Gott"\n'
    assert len({(chunk.id, chunk.created, chunk.system_fingerprint) for chunk in chunks}) == 1
    assert chunks[0].system_fingerprint == "fp_tiny_bnb-int8_cpu"
    assert all("usage" not in event and event["choices"][0]["logprobs"] is None for event in events(found))
    assert [(piece.text, piece.n_tokens) for piece in found] == [("", 0), ("Grüß", 2), (' "Gott"\n', 3), ("", 1), ("", 0)]


async def test_usage_comes_in_one_extra_chunk(worker):
    """With include_usage every other chunk says null, and the last one has no choices."""
    async with worker(*ANSWER) as (upstream, _):
        *others, last = events(await pieces(await upstream.send(call(stream_options={"include_usage": True}))))
    assert all(event["usage"] is None for event in others)
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}


async def test_obfuscation_pads_when_it_is_asked_for(worker):
    """Text and padding of every delta together have one length, so that an onlooker learns less."""
    async with worker(*ANSWER) as (upstream, _):
        found = events(await pieces(await upstream.send(call(stream_options={"include_obfuscation": True}))))
    assert {len(event["choices"][0]["delta"]["content"]) + len(event["obfuscation"]) for event in found[1:3]} == {32}


@pytest.mark.parametrize(("endpoint", "shape"), [(CHAT, ChatCompletion), (COMPLETIONS, Completion)])
async def test_a_whole_answer_has_openais_shape(worker, endpoint, shape):
    """Pieces without bytes name the tokens as they come; the last one is the body."""
    async with worker(*ANSWER) as (upstream, _):
        answer = await upstream.send(call(stream=False, endpoint=endpoint))
        *tokens, body = await pieces(answer)
    whole = shape.model_validate(json.loads(body.data), strict=True)
    assert (whole.choices[0].finish_reason, whole.usage.total_tokens) == ("stop", 11)
    assert [(piece.data, piece.text, piece.n_tokens) for piece in tokens] == [
        (b"", "Grüß", 2),
        (b"", ' "Gott"\n', 3),
        (b"", "", 1),
    ]


async def test_a_completions_stream_has_openais_shape(worker):
    """Plain completions have text in their choices and no role."""
    async with worker(*ANSWER) as (upstream, _):
        found = events(await pieces(await upstream.send(call(endpoint=COMPLETIONS))))
    assert Completion.model_validate(found[-1], strict=True).choices[0].finish_reason == "stop"
    assert {(event["object"], event["choices"][0]["logprobs"]) for event in found} == {("text_completion", None)}
    assert "".join(event["choices"][0]["text"] for event in found) == 'Grüß "Gott"\n'


class Vectors:
    """An embedder of two dimensions that counts one token a text."""

    async def embed(self, texts):
        if texts == ["gone"]:
            raise WorkerGone("worker is not connected")
        return Embedded(1, 2, b"".join(struct.pack("<2f", index, 0.1) for index in range(len(texts))), len(texts))


def embed(**fields):
    return Call("r1", "embeddings", "mini", json.dumps({"model": "mini"} | fields).encode(), stream=False)


async def test_embeddings_fail_clearly_without_a_worker():
    """No embedder and a lost one are both `connect`."""
    for embedder in (None, Vectors()):
        with pytest.raises(UpstreamFailed) as caught:
            await LocalUpstream("local", {}, embedder).send(embed(input="gone"))
        assert caught.value.kind == "connect"


async def test_embeddings_refuse_another_number_of_dimensions():
    """A vector is never cut to size behind the caller's back."""
    upstream = LocalUpstream("local", {}, Vectors())
    with pytest.raises(InvalidRequest) as caught:
        await upstream.send(embed(input="a", dimensions=3))
    assert caught.value.param == "dimensions"
    assert (await upstream.send(embed(input="a", dimensions=2))).status == 200


@pytest.mark.parametrize("count", [1, 9])
async def test_embeddings_have_openais_shape_in_both_encodings(count):
    """Floats and base64 (little-endian float32) carry the same numbers in the order asked; usage counts tokens."""
    upstream = LocalUpstream("local", {}, Vectors())
    given = ["x"] * count if count > 1 else "x"
    (plain,), (packed,) = [
        await pieces(await upstream.send(embed(input=given, encoding_format=form))) for form in ("float", "base64")
    ]
    plain, packed = json.loads(plain.data), json.loads(packed.data)
    assert len(CreateEmbeddingResponse.model_validate(plain).data) == count == plain["usage"]["total_tokens"]
    for index, (row, other) in enumerate(zip(plain["data"], packed["data"], strict=True)):
        assert row["index"] == index == row["embedding"][0]
        assert struct.unpack("<2f", base64.b64decode(other["embedding"])) == tuple(row["embedding"])
