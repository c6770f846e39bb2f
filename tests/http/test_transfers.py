"""Files, batches and forms through the edge to a real upstream, with the official client and by hand."""

import asyncio
import json

import pytest
from front import POLICY
from msgspec.structs import replace
from openai import AsyncAzureOpenAI, AsyncOpenAI, BadRequestError, NotFoundError, PermissionDeniedError
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
    """Post a form over a raw connection; `until`, given the connection's writer, is awaited before the last byte."""
    async with made.listening() as (host, port):
        reader, writer = await asyncio.open_connection(host, port)
        size = "transfer-encoding: chunked" if chunked else f"content-length: {len(body)}"
        more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        media = "" if "content_type" in headers else "content-type: multipart/form-data; boundary=xyz\r\n"
        path = endpoint if endpoint.startswith("/") else f"/v1/{endpoint}"
        writer.write(
            f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {made.key}\r\n{media}{size}\r\n{more}\r\n".encode()
        )
        for data in (body[:-1], body[-1:]):
            if data is body[-1:] and until:
                await until(writer)
            writer.write(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)
            if until and len(data) > 1:
                await until(writer)
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

    async def arrived(_):
        async with asyncio.timeout(30):
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


async def test_a_form_goes_to_the_next_upstream_when_the_first_cannot_be_reached(world, server):
    """Spooled or sent on as it comes: nothing had left yet."""
    made = world(policy=OPEN, down={"base_url": "http://127.0.0.1:1/v1", "retries": 0}, up={"base_url": server.base_url})
    model, file = part("model", b"m"), part("file", SOUND, "a.mp3")
    for body in (form(file, model), form(model, file)):
        assert (await send(made, "audio/transcriptions", body))[0] == 200
        assert server.requests[-1][2] == body
    assert [(record.ending, record.tried) for record in made.records] == [("fallback", ("down/m", "up/m"))] * 2


async def test_a_spooled_form_is_sent_again_whole(world, server):
    """Where the first upstream broke off inside the body, the next gets all of it."""
    async with shelf() as broken:
        broken.drops_after = 1000
        made = world(policy=OPEN, first={"base_url": broken.base_url, "retries": 0}, up={"base_url": server.base_url})
        body = form(part("file", SOUND, "a.mp3"), part("model", b"m"))
        assert (await send(made, "audio/transcriptions", body))[0] == 200
    assert (server.requests[0][2], made.records[0].tried, made.idle()) == (body, ("first/m", "up/m"), True)


async def test_a_deployment_names_the_model_of_a_form(made, server):
    """It is put in before the first part where the form has none; two names are refused."""
    path = "/openai/deployments/m/audio/transcriptions?api-version=2025-01-01"
    file = part("file", SOUND, "a.mp3")
    for chunked in (False, True):
        assert (await send(made, path, form(file), chunked=chunked))[0] == 200
        assert (server.requests[-1][0], server.requests[-1][2]) == (
            "POST /v1/audio/transcriptions HTTP/1.1",
            form(part("model", b"m"), file),
        )
    status, told = await send(made, path, form(part("model", b"other"), file))
    assert (status, told["error"]["code"], len(server.requests)) == (400, "model_mismatch", 2)


async def test_the_azure_client_sends_forms(made, server):
    """Its path names the deployment, and so does its form."""
    async with made.listening() as (host, port):
        options = {"azure_endpoint": f"http://{host}:{port}", "api_version": "2025-04-01-preview", "api_key": made.key}
        async with AsyncAzureOpenAI(**options, max_retries=0) as client:
            assert (await client.audio.transcriptions.create(model="m", file=("a.mp3", SOUND))).text == "said"
    assert SOUND in server.requests[0][2]


@pytest.mark.parametrize("whole", [False, True])
async def test_a_client_that_leaves_while_the_upstream_does_not_read_is_noticed(made, server, whole):
    """At once, inside its body or behind it: what nobody takes waits on the disk."""
    server.stalls_after = 1000
    content = b"x" * 32_000_000
    head = f"POST /v1/audio/transcriptions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {made.key}\r\n"
    body = form(part("model", b"m"), part("file", content, "a.mp3"))
    head += f"content-type: multipart/form-data; boundary=xyz\r\ncontent-length: {len(body) + (not whole)}\r\n\r\n"
    async with made.listening() as (host, port):
        _, writer = await asyncio.open_connection(host, port)
        writer.write(head.encode() + body)
        async with asyncio.timeout(30):
            await server.stalled.wait()
            await writer.drain()
        writer.transport.abort()
        async with asyncio.timeout(30):
            while not made.records:
                await asyncio.sleep(0.001)
    assert ([record.ending for record in made.records], made.idle()) == (["client_gone"], True)
    server.goes_on.set()


async def test_what_waited_on_the_disk_arrives_in_its_order(made, server):
    """An upstream that stops reading and goes on later gets the form as it was sent."""
    server.stalls_after = 1000
    body = form(part("model", b"m"), part("file", SOUND * 60, "a.mp3"), part("prompt", b"hm"))

    async def read_on(writer):
        await server.stalled.wait()
        await writer.drain()
        server.goes_on.set()

    async with asyncio.timeout(30):
        assert (await send(made, "audio/transcriptions", body, until=read_on))[0] == 200
    assert (server.requests[0][2] == body, made.records[0].ending) == (True, "complete")


async def test_an_upstream_that_refuses_before_it_has_read_is_heard(made, server):
    """Its status and error reach a client that has sent all of a long body."""
    server.refuses = (413, {"error": {"message": "too long", "type": "invalid_request_error", "param": None, "code": None}})
    status, told = await send(made, "audio/transcriptions", form(part("model", b"m"), part("file", SOUND * 20, "a.mp3")))
    assert (status, told["error"]["message"], made.idle()) == (413, "too long", True)


async def test_a_client_that_leaves_inside_its_body_takes_the_upstream_with_it(made, server):
    """One record, nothing open."""
    body = form(part("model", b"m"), part("file", SOUND, "a.mp3"))
    async with made.listening() as (host, port):
        _, writer = await asyncio.open_connection(host, port)
        head = f"POST /v1/audio/transcriptions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {made.key}\r\n"
        head += f"content-type: multipart/form-data; boundary=xyz\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body[:-10])
        async with asyncio.timeout(30):
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
        async with asyncio.timeout(30):
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


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
async def test_images_are_varied_by_the_official_client(client, server):
    """With a model or without one."""
    for fields in ({"model": "m"}, {}):
        got = await client.images.create_variation(image=("a.png", SOUND), **fields)
        assert (got.data[0].b64_json, b'name="model"' in server.requests[-1][2]) == ("AAAA", bool(fields))


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
async def test_sound_is_heard_by_the_official_client(client, server, made):
    """As JSON, as text, and as events."""
    ask = {"model": "m", "file": ("a.mp3", SOUND)}
    assert (await client.audio.transcriptions.create(**ask)).text == "said"
    assert await client.audio.transcriptions.create(**ask, response_format="text") == "said\n"
    events = [event async for event in await client.audio.transcriptions.create(**ask, stream=True)]
    assert [event.type for event in events] == ["transcript.text.delta", "transcript.text.done"]
    assert (await client.audio.translations.create(**ask)).text == "said"
    assert [SOUND in request[2] for request in server.requests] == [True] * 4
    assert [record.ending for record in made.records] == ["complete"] * 4


EDIT = b'{ "prompt":"a cat", "images":[{"image_url":"https://x.test/a.png"}], "model" :"m"}'


async def test_images_are_edited_by_json(made, server):
    """The same path with a JSON body: byte for byte, every text scanned."""
    media = {"content_type": "application/json"}
    status, told = await send(made, "images/edits", EDIT, **media)
    assert (status, told["data"][0]["b64_json"], server.requests[0][2]) == (200, "AAAA", EDIT)
    assert server.requests[0][1]["content-type"] == "application/json"
    refused = await send(made, "images/edits", EDIT.replace(b"a cat", b"4111 1111 1111 1111"), **media)
    assert (refused[0], refused[1]["error"]["code"]) == (403, "policy_forbidden")
    for endpoint, sent in (("images/edits", b'{"model":"m"}'), ("images/variations", EDIT)):
        assert (await send(made, endpoint, sent, **media))[0] == (400 if endpoint == "images/edits" else 415)
    assert len(server.requests) == 1


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
    assert (await client.batches.retrieve(batch.id)).status == "completed"
    assert (await client.batches.cancel(batch.id)).id == batch.id
    with pytest.raises(NotFoundError):
        await client.batches.create(input_file_id="files-77", endpoint="/v1/chat/completions", completion_window="24h")


def models_of(made, **names):
    """Give these models, each with its candidates: upstream and its own name."""
    (model,) = made.config.models.values()
    for name, own in names.items():
        candidates = tuple(replace(model.candidates[0], upstream=upstream, model=theirs) for upstream, theirs in own.items())
        made.config.models[name] = replace(model, candidates=candidates)
    del made.config.models["m"]
    made.set_capabilities(CAPABILITIES)


LINES = (
    b'{"custom_id":"1","method":"POST","url":"/v1/chat/completions","body":{"model":"%b","messages":[{"role":"user",'
    b'"content":"\\"model\\": \\"a\\" \xc3\xa9 \\u00e9"}],"metadata":{"model":"a"},"seed":1.10}}\r\n\n'
    b'{ "body" : { "input":["model","a"] , "model" :\t"%b" }, "url":"/v1/embeddings" ,"method":"POST","custom_id":"2", "model":"a"}'
)


async def test_in_a_batch_file_only_the_models_are_edited(world, server):
    """It goes to the one upstream that has them all, under its own names; every other byte is the client's."""
    async with shelf() as unfit:
        made = world(policy=OPEN, first={"base_url": unfit.base_url}, up={"base_url": server.base_url})
        models_of(made, a={"first": "f-a", "up": "u-a"}, b={"up": "u-b", "first": "f-b"}, c={"up": "u-c"})
        for first, second in ((b"a", b"c"), (b"c", b"a"), (b"c", b"c")):
            sent = [form(part("purpose", b"batch"), part("file", LINES % names, "b.jsonl"))
                    for names in ((first, second), (b"u-" + first, b"u-" + second))]  # fmt: skip
            assert (await send(made, "files", sent[0]))[0] == 200
            assert (server.requests[-1][2], unfit.requests) == (sent[1], [])


async def test_a_batch_file_whose_models_no_upstream_shares_is_refused(world, server):
    """By the number of the line that cannot be added; nothing is sent."""
    async with shelf() as other:
        made = world(policy=OPEN, first={"base_url": other.base_url}, up={"base_url": server.base_url})
        models_of(made, a={"first": "a"}, b={"up": "b"})
        body = form(part("purpose", b"batch"), part("file", LINES % (b"a", b"b"), "b.jsonl"))
        status, told = await send(made, "files", body)
        assert (status, told["error"]["code"], told["error"]["param"]) == (400, "invalid_batch_file", "file")
        assert told["error"]["message"].startswith("Line 3 of the batch file: no upstream may serve its model")
        assert (server.requests, other.requests, made.idle()) == ([], [], True)


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
