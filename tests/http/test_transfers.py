"""Files, batches and forms through the edge to a real upstream, with the official client and by hand."""

import asyncio
import json

import pytest
from front import POLICY
from msgspec.structs import replace
from openai import AsyncOpenAI, BadRequestError, NotFoundError, PermissionDeniedError
from shelf import shelf

from gateway.auth import KeyFile
from gateway.config import CAPABILITIES

SOUND = bytes(range(256)) * 2000
OPEN = POLICY.replace("[log]", '[classes]\ninternal = ["unscannable"]\nrestricted = ["card"]\n[log]')
OPEN += '[[limit]]\nname = "no cards"\nwhen = { found = "card" }\nnever = { upstream = "up" }\n'
EDGE = b"--xyz"


@pytest.fixture
async def server():
    async with shelf() as one:
        yield one


@pytest.fixture
def made(world, server):
    return world(policy=OPEN, up={"base_url": server.base_url, "retries": 0})


@pytest.fixture
async def client(made):
    async with (
        made.listening() as (host, port),
        AsyncOpenAI(base_url=f"http://{host}:{port}/v1", api_key=made.key, max_retries=0) as one,
    ):
        yield one


def part(name, value, filename=None):
    shown = f'; filename="{filename}"' if filename else ""
    return EDGE + f'\r\nContent-Disposition: form-data; name="{name}"{shown}\r\n\r\n'.encode() + value + b"\r\n"


def form(*parts):
    return b"".join(parts) + EDGE + b"--\r\n"


async def send(made, endpoint, body, *, chunked=False, until=None, **headers):
    """Post a form over a raw connection; `until` is awaited before the last byte."""
    async with made.listening() as (host, port):
        reader, writer = await asyncio.open_connection(host, port)
        size = "transfer-encoding: chunked" if chunked else f"content-length: {len(body)}"
        more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        media = "" if "content_type" in headers else "content-type: multipart/form-data; boundary=xyz\r\n"
        writer.write(
            f"POST /v1/{endpoint} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {made.key}\r\n{media}{size}\r\n{more}\r\n".encode()
        )
        for data in (body[:-1], body[-1:]):
            if data is body[-1:] and until:
                await until()
            writer.write(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)
            if until and len(data) > 1:
                await until()
        writer.write(b"0\r\n\r\n" if chunked else b"")
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        told = json.loads(await reader.readexactly(length))
        writer.close()
    return int(head.split()[1]), told


@pytest.mark.parametrize("client_kind", ["http1", "httpx"])
@pytest.mark.parametrize("order", ["model first", "file first"])
async def test_only_the_model_is_edited(world, server, order, client_kind):
    """Whether the form is sent on while it comes or spooled; with a length or without one."""
    made = world(policy=OPEN, up={"base_url": server.base_url, "client": client_kind})
    model = made.config.models.pop("m")
    made.config.models["public"] = replace(model, candidates=(replace(model.candidates[0], model="theirs"),))
    made.set_capabilities(CAPABILITIES)
    parts = [part("model", b"public"), part("file", SOUND, "a.mp3"), part("prompt", b"hm")]
    parts = parts if order == "model first" else [parts[1], parts[0], parts[2]]
    for chunked in (False, True):
        status, _ = await send(made, "audio/transcriptions", form(*parts), chunked=chunked)
        got = server.requests[-1]
        assert (status, got[2]) == (200, form(*parts).replace(b"public", b"theirs"))
        assert got[1]["content-type"] == "multipart/form-data; boundary=xyz"
    assert [record.ending for record in made.records] == ["complete"] * 2
    assert {name for name, _ in made.events} >= {"request.opened", "route.decided"}


async def test_the_upstream_sees_the_first_bytes_before_the_client_has_sent_its_last(made, server):
    """A form with its model in front is not waited for."""
    body = form(part("model", b"m"), part("file", SOUND, "a.mp3"))

    async def arrived():
        async with asyncio.timeout(5):
            while server.got < len(SOUND) // 2:
                await asyncio.sleep(0.001)

    assert (await send(made, "audio/transcriptions", body, until=arrived))[0] == 200
    assert server.requests[0][2] == body


@pytest.mark.parametrize(
    ("parts", "status", "code", "param"),
    [
        ([part("model", b"m"), part("model", b"m"), part("file", b"x", "a")], 400, "invalid_form", "model"),
        ([part("model", b"m"), part("file", b"x", "a"), part("stream", b"true")], 400, "invalid_form", "stream"),
        ([part("file", b"x", "a")], 400, "missing_required_parameter", "model"),
        ([part("model", b"m")], 400, "missing_required_parameter", "file"),
        ([part("model", b"nope"), part("file", b"x", "a")], 404, "model_not_found", "model"),
        ([b"text before\r\n", part("model", b"m"), part("file", b"x", "a")], 400, "invalid_form", "body"),
        ([part("model", b"m"), part("prompt", b"4111 1111 1111 1111"), part("file", b"x", "a")], 403, "policy_forbidden", None),
        ([part("model", b"m"), part("file", b"x", "a"), part("prompt", b"4111 1111 1111 1111")], 403, "policy_forbidden", None),
        ([part("model", b"m"), part("file", b"x", "4111 1111 1111 1111")], 403, "policy_forbidden", None),
    ],
)
async def test_a_form_that_may_not_be_sent_is_refused_and_never_whole_at_the_upstream(
    made, server, *, parts, status, code, param
):
    """With the field that is wrong; texts are scanned before they leave, wherever they stand."""
    got, told = await send(made, "audio/transcriptions", form(*parts))
    assert (got, told["error"]["code"], told["error"]["param"], server.requests) == (status, code, param, [])
    assert len(made.records) == 1
    assert made.idle()


async def test_media_and_size_are_judged_by_the_head(world, server):
    """415 and 413, before a byte of the body counts."""
    made = world(policy=OPEN, server="max_file_bytes = 100", up={"base_url": server.base_url})
    assert (await send(made, "files", form(part("file", b"x" * 200, "a"))))[0] == 413
    assert (await send(made, "files", b"{}", content_type="application/json"))[0] == 415
    assert (await send(made, "files", form(part("purpose", b"x"), part("file", b"x" * 200, "a")), chunked=True))[0] == 413


async def test_an_upstream_that_fails_inside_the_body_is_said(made, server):
    """502 in the envelope; nothing is sent again."""
    server.drops_after = 1000
    status, told = await send(made, "audio/transcriptions", form(part("model", b"m"), part("file", SOUND, "a.mp3")))
    assert (status, told["error"]["code"], made.records[0].tried) == (502, "upstream_error", ("up/m",))


async def test_a_client_that_leaves_inside_its_body_takes_the_upstream_with_it(made, server):
    """One record, nothing open."""
    body = form(part("model", b"m"), part("file", SOUND, "a.mp3"))
    async with made.listening() as (host, port):
        _, writer = await asyncio.open_connection(host, port)
        head = f"POST /v1/audio/transcriptions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {made.key}\r\n"
        head += f"content-type: multipart/form-data; boundary=xyz\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body[:-10])
        async with asyncio.timeout(5):
            while not server.got:
                await asyncio.sleep(0.001)
            writer.close()
            while not made.records or server.open:
                await asyncio.sleep(0.001)
    assert ([record.ending for record in made.records], made.idle(), server.requests) == (["client_gone"], True, [])


async def test_a_body_that_stops_is_given_up(world, server):
    """408 and a closed connection, for any body."""
    made = world(server="body_timeout_s = 0.05", up={"base_url": server.base_url})
    async with made.listening() as (host, port):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {made.key}\r\ncontent-length: 99\r\n\r\n{{".encode()
        )
        async with asyncio.timeout(5):
            assert (await reader.read()).startswith(b"HTTP/1.1 408")
        writer.close()


async def test_files_are_their_tenants(made, client, server):
    """Made, read, listed and deleted by the official client; another tenant's id is not there."""
    one = await client.files.create(file=("a.txt", SOUND), purpose="user_data")
    assert SOUND in server.requests[0][2]
    assert (await client.files.retrieve(one.id)).id == one.id
    assert (await client.files.content(one.id)).content == b"\x00the content\xff"
    assert [file.id async for file in client.files.list()] == [one.id]
    stranger = client.with_options(api_key=KeyFile(made.config.root / "keys.json").add("other", tenant="other"))
    with pytest.raises(NotFoundError):
        await stranger.files.retrieve(one.id)
    assert [file.id async for file in stranger.files.list()] == []
    assert (await client.files.delete(one.id)).deleted
    with pytest.raises(NotFoundError):
        await client.files.retrieve(one.id)


async def test_images_are_edited_by_the_official_client(client, server):
    """Several files in one form."""
    got = await client.images.edit(model="m", image=[("a.png", SOUND), ("b.png", SOUND)], prompt="a cat")
    assert (got.data[0].b64_json, server.requests[0][2].count(SOUND)) == ("AAAA", 2)


def line(number=1, model="m", text="hi", **fields):
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    return json.dumps(
        {"custom_id": f"c{number}", "method": "POST", "url": "/v1/chat/completions", "body": body, **fields}
    ).encode()


async def test_a_batch_is_made_where_its_file_is(client, server, made):
    """The file's bytes arrive as they were; what the batch makes is the tenant's."""
    lines = b"\n".join(line(number) for number in range(2000)) + b"\n"
    file = await client.files.create(file=("b.jsonl", lines), purpose="batch")
    assert lines in server.requests[0][2]
    batch = await client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    assert (await client.files.content(batch.output_file_id)).content == b"\x00the content\xff"
    assert [one.id async for one in client.batches.list()] == [batch.id]
    assert (await client.batches.cancel(batch.id)).id == batch.id
    with pytest.raises(NotFoundError):
        await client.batches.create(input_file_id="files-77", endpoint="/v1/chat/completions", completion_window="24h")


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (b"{", BadRequestError),
        (line(2, method="GET"), BadRequestError),
        (line(1), BadRequestError),
        (line(2, model="secretive"), BadRequestError),
        (line(2, text="secretive 4111 1111 1111 1111"), PermissionDeniedError),
    ],
)
async def test_a_batch_file_is_refused_by_line(client, server, bad, error):
    """The number of the line, never its text; nothing is sent."""
    with pytest.raises(error, match=r"Line 2 of the batch file") as caught:
        await client.files.create(file=("b.jsonl", line(1) + b"\n" + bad + b"\n" + line(3)), purpose="batch")
    assert ("secretive" in str(caught.value), server.requests) == (False, [])
