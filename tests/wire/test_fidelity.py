"""Nothing is altered that nobody asked to alter: bytes in, bytes out, through a real gateway process. Knows no gateway code.

The upstream is a socket of this process that keeps what it was sent and answers with exactly the bytes that a test chose.
"""

import asyncio
import json
import random
import statistics
import time
from contextlib import suppress

import httpx
import pytest
import pytest_asyncio

from tests.e2e.gateways import ECHO_POLICY, Gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

REQUESTS = 1_000
ANSWERS = 300
DEPARTURES = 300
FRESH = {"cache-control": "no-store"}
MEDIAN_DEPARTURE_S = 0.25
JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: up_1\r\ncontent-length: %d\r\n\r\n"
SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
HANG = object()
"""In a script: say nothing more until the peer leaves."""


class Upstream:
    """Keeps each request's body and answers with the pieces that `script` makes of it."""

    def __init__(self):
        self.script = None
        """body -> an iterable of bytes and HANG; its first bytes hold the head."""
        self.bodies = []
        self.busy = 0
        """Requests whose answer is not over."""
        self.left = {}
        """When the peer left, by the body's `user`."""

    async def serve(self, reader, writer):
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                self.bodies.append(body)
                self.busy += 1
                try:
                    await self._answer(body, reader, writer)
                finally:
                    self.busy -= 1
        writer.close()

    async def _answer(self, body, reader, writer):
        for piece in self.script(body):
            if piece is HANG:
                await reader.read()
                self.left[json.loads(body)["user"]] = time.monotonic()
                raise ConnectionResetError
            writer.write(piece)
            await writer.drain()
            # One turn of the loop between pieces, or the kernel would join what is to arrive apart.
            await asyncio.sleep(0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream():
    made = Upstream()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, limit=1 << 24)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    yield made
    server.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory, upstream):
    """`m` goes up under another name; `same` under its own, and asks for no usage that the client did not ask for."""
    everything = '["chat", "completions", "embeddings", "tools", "json", "n", "logprobs", "images", "audio", "files"]'
    fields = f'kind = "openai"\nbase_url = "{upstream.url}"\nzone = "local"\ntakes_up_to = "restricted"\nretries = 0\n'
    config = (
        f"[upstreams.up]\n{fields}inject_usage = false\n[upstreams.asks]\n{fields}"
        f'[models.m]\ncandidates = [{{ upstream = "up", model = "upstream/ünïque-name", capabilities = {everything} }}]\n'
        f'[models.same]\ncandidates = [{{ upstream = "up", capabilities = {everything} }}]\n'
        f'[models.left]\ncandidates = [{{ upstream = "up", capabilities = {everything} }}]\n'
        f'[models.counted]\ncandidates = [{{ upstream = "asks", capabilities = {everything} }}]\n'
        "[cache]\nsemantic = false\n"
    )
    made = Gateway(tmp_path_factory.mktemp("fidelity"), config, policies={"all.toml": ECHO_POLICY})
    # Waiting for another process must not stop the loop that the upstream lives on.
    await asyncio.to_thread(made.start)
    yield made
    await asyncio.to_thread(made.__exit__)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(gateway):
    headers = {"authorization": f"Bearer {gateway.key}", "content-type": "application/json"}
    async with httpx.AsyncClient(base_url=f"{gateway.url}/v1", headers=headers, timeout=120) as made:
        yield made


WORDS = [
    "", "a", "model", '"model":"x"', "\\", '\\"', "{", "},", "\x7f", "ünï", "你好", "🦊", "\u2028", "\ufeff", "data: [DONE]", "\n\n", "null",
]  # fmt: skip
LITERALS = [
    "null", "true", "false", "0", "-0", "-0.0", "1.10", "9007199254740993", "123456789012345678901234567890", "1E+2", "1e400", "5e-324",
]  # fmt: skip
LONE = [r'"\ud800"', r'"x\udfffy"', r'"\uDC00\uD800"', r'"\u0000"', r'"\u00e9"', r'"\/"']


class Scribe:
    """Writes random JSON text, byte by byte as a client might, not as any encoder would."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def blank(self):
        return self.random.choice(["", "", "", " ", "\n", "\t ", "\r\n"])

    def string(self):
        if self.random.random() < 0.2:
            return self.random.choice(LONE)
        text = "".join(self.random.choice(WORDS) for _ in range(self.random.randrange(4)))
        return json.dumps(text, ensure_ascii=self.random.random() < 0.5)

    def value(self, depth=0):
        shape = self.random.randrange(4 if depth < 3 else 2)
        if shape == 0:
            return self.random.choice(LITERALS)
        if shape == 1:
            return self.string()
        if shape == 2:
            return self.joined("[", [self.value(depth + 1) for _ in range(self.random.randrange(3))], "]")
        return self.object([(json.dumps(f"k{n}"), self.value(depth + 1)) for n in range(self.random.randrange(3))])

    def joined(self, opening, parts, end):
        return opening + self.blank() + f"{self.blank()},{self.blank()}".join(parts) + self.blank() + end

    def object(self, pairs):
        return self.joined("{", [f"{name}{self.blank()}:{self.blank()}{value}" for name, value in pairs], "}")

    def shuffled(self, pairs):
        """Known fields among unknown ones, in any order."""
        unknown = [(json.dumps(f"{self.random.choice(WORDS)}_{n}"), self.value()) for n in range(self.random.randrange(5))]
        pairs = [*pairs, *unknown]
        self.random.shuffle(pairs)
        return self.blank() + self.object(pairs) + self.blank()

    def request(self, seed):
        """(endpoint, body, the same body as it must go up)."""
        endpoint, asked = self.random.choice(
            [
                ("chat/completions", ("messages", f'[{{"role":"user", "content":{self.string()} , "z":{self.value()}}}]')),
                ("completions", ("prompt", self.string())),
                ("embeddings", ("input", self.string())),
            ]
        )
        name = self.random.choice(['"model"', '"mod\\u0065l"'])
        pairs = [(name, "@MODEL@"), (json.dumps(asked[0]), asked[1]), ('"user"', f'"{seed}"')]
        pairs += self.random.choice([[], [('"metadata"', '{"model":"m"}')]])
        text = self.shuffled(pairs)
        public, private = self.random.choice([('"m"', json.dumps("upstream/ünïque-name")), ('"same"', '"same"')])
        return endpoint, text.replace("@MODEL@", public).encode(), text.replace("@MODEL@", private).encode()

    def answer(self):
        """A whole answer with fields nobody knows."""
        message = self.shuffled([('"role"', '"assistant"'), ('"content"', self.string()), ('"refusal"', "null")])
        choice = self.shuffled([('"index"', "0"), ('"message"', message), ('"finish_reason"', '"stop"')])
        return self.shuffled([('"id"', '"c"'), ('"object"', '"chat.completion"'), ('"choices"', f"[{choice}]")]).encode()

    def chunk(self, finish="null"):
        # An event's data has no line end of its own, so chunks are written without.
        delta = f'{{"content":{self.string()},"z":{json.dumps(self.random.choice(WORDS))}}}'
        choice = f'{{"index":0,"delta":{delta},"finish_reason":{finish},"logprobs":null}}'
        return f'{{"id":"c","object":"chat.completion.chunk","n":1.10,"choices":[{choice}],"usage":null}}'

    def stream(self):
        """An event stream with any line ends, comments and unknown fields, with or without its end mark."""
        end = self.random.choice(["\n", "\r\n", "\r"])
        space = self.random.choice([" ", ""])
        lines = []
        for _ in range(self.random.randrange(1, 6)):
            lines += self.random.choice(
                [[], [": comment ünï"], [": keepalive", ""], ["id: 7", "retry: 10"], ["event: message"], ["x: y"]]
            )
            lines += [f"data:{space}{self.chunk()}", ""]
        lines += [f"data:{space}" + self.chunk('"stop"'), ""]
        if self.random.random() < 0.7:
            lines += [f"data:{space}[DONE]", ""]
        return end.join([*lines, ""]).encode()

    def split(self, data):
        """The same bytes in pieces of any size, inside characters and line ends too."""
        at = 0
        while at < len(data):
            size = self.random.choice([1, 2, 3, 17, 200, 5_000])
            yield data[at : at + size]
            at += size


def whole(data):
    return [JSON_HEAD % len(data) + data]


def chunked(pieces):
    yield SSE_HEAD
    for piece in pieces:
        yield b"%x\r\n%s\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


PLAIN = b'{"id":"c","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"x"},"finish_reason":"stop"}]}'


def ask(model="same", **fields):
    return json.dumps({"model": model, "messages": [{"role": "user", "content": "x"}], **fields}).encode()


async def test_requests_arrive_byte_for_byte_but_for_the_model(gateway, upstream, client):
    """Key order, blanks, nulls, number text, unknown fields, escapes and lone surrogates of 1,000 random bodies go up as they came."""
    upstream.script = lambda body: whole(PLAIN)
    scribe = Scribe(1)
    for seed in range(REQUESTS):
        endpoint, sent, wanted = scribe.request(seed)
        upstream.bodies.clear()
        got = await client.post(endpoint, content=sent, headers=FRESH)
        assert (got.status_code, upstream.bodies) == (200, [wanted]), (seed, sent, got.content)


async def test_whole_answers_come_byte_for_byte(gateway, upstream, client):
    """Random answers with unknown fields reach the client as they are, and once more the same out of the cache."""
    scribe = Scribe(2)
    for seed in range(ANSWERS // 3):
        said = scribe.answer()
        upstream.script = lambda body, said=said: whole(said)
        for state in ("miss", "hit-exact"):
            got = await client.post("chat/completions", content=ask(seed=seed))
            assert (got.content, got.headers["x-gateway-cache"]) == (said, state), seed


async def test_streams_come_byte_for_byte(gateway, upstream, client):
    """Whatever its line ends, comments, unknown fields, split points, and with or without its end mark."""
    scribe = Scribe(3)
    for seed in range(ANSWERS):
        said = scribe.stream()
        pieces = list(scribe.split(said))
        upstream.script = lambda body, pieces=pieces: chunked(pieces)
        got = await client.post("chat/completions", content=ask(stream=True, user=str(seed)), headers=FRESH)
        assert got.content == said, seed


async def test_an_event_of_megabytes_passes(gateway, upstream, client):
    """One event of 3 MB in pieces of 64 KB, and a body of 3 MB, come as they were."""
    said = b"data: " + Scribe(4).chunk().replace('"n":1.10', f'"n":"{"x" * 3_000_000}"').encode() + b"\n\n" + Scribe(4).stream()
    upstream.script = lambda body: chunked(said[at : at + 65_536] for at in range(0, len(said), 65_536))
    got = await client.post("chat/completions", content=ask(stream=True, user="big"))
    assert got.content == said
    large = PLAIN.replace(b'"x"', b'"' + "é".encode() * 1_500_000 + b'"')
    upstream.script = lambda body: whole(large)
    assert (await client.post("chat/completions", content=ask(user="big"))).content == large


async def test_usage_that_we_asked_for_is_taken_out_and_nothing_else(gateway, upstream, client):
    """The client that asked for no usage gets every other event as it came; the one that asked gets all of them."""
    head = '"id":"c","object":"chat.completion.chunk"'
    kept = [
        f'data: {{{head},"choices":[{{"index":0,"delta":{{"content":"é"}},"finish_reason":{end}}}]%s}}\n\n'
        for end in ("null", '"stop"')
    ]
    usage = f'data: {{{head},"choices":[],"usage":{{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}}}\n\n'
    said = "".join(event % ',"usage":null' for event in kept) + usage + "data: [DONE]\n\n"
    upstream.script = lambda body: chunked([said.encode()])
    upstream.bodies.clear()
    got = await client.post("chat/completions", content=ask("counted", stream=True, user="no"))
    assert got.text == "".join(event % "" for event in kept) + "data: [DONE]\n\n"
    assert json.loads(upstream.bodies[0])["stream_options"] == {"include_usage": True}
    got = await client.post(
        "chat/completions", content=ask("counted", stream=True, user="yes", seed=1, stream_options={"include_usage": True})
    )
    assert got.text == said


async def test_64_streams_at_once_keep_apart(gateway, upstream, client):
    """Each of 64 concurrent streams gets the events that were made for it, all of them, in order."""

    def own(body):
        name = json.loads(body)["user"]
        events = [ask(name, n=n) for n in range(50)]
        end = json.dumps({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}).encode()
        return chunked(b"data: " + data + b"\n\n" for data in (*events, end, b"[DONE]"))

    upstream.script = own

    async def one(number):
        got = await client.post("chat/completions", content=ask(stream=True, user=f"user-{number}"), headers=FRESH)
        events = [json.loads(line[6:]) for line in got.text.split("\n\n")[:50]]
        return [(event["model"], event["n"]) for event in events] == [(f"user-{number}", n) for n in range(50)]

    assert all(await asyncio.gather(*map(one, range(64))))


def phases(body):
    """Where the upstream stops to speak: before the head, before the first token, in mid-stream, inside a whole answer."""
    event = b"data: " + Scribe(5).chunk().encode() + b"\n\n"
    return {
        0: [HANG],
        1: [SSE_HEAD, HANG],
        2: [*list(chunked([event] * 3))[:-1], HANG],
        3: [whole(PLAIN)[0][:-10], HANG],
    }[json.loads(body)["seed"] % 4]


async def test_an_upstream_is_left_soon_after_its_client_has_gone(gateway, upstream):
    """Of 300 clients that leave in random phases every upstream is closed, and each has its record.

    Wherever the upstream was silent, it is left within 250 ms of half of them, and within ten times that of nine in ten.
    """
    upstream.script = phases
    upstream.left.clear()
    chance, gone = random.Random(6), {}

    async def one(number):
        body = ask("left", stream=number % 4 != 3, user=str(number), seed=number)
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {gateway.key}\r\ncontent-type: application/json\r\n"
        writer.write(head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        # The phase is left to chance on purpose: from before the request is read to long after the answer has begun.
        await asyncio.sleep(chance.uniform(0, 0.06))
        gone[str(number)] = time.monotonic()
        writer.close()

    for first in range(0, DEPARTURES, 10):
        await asyncio.gather(*map(one, range(first, first + 10)))
    await until(lambda: not upstream.busy)
    records = await until(lambda: closed if len(closed := of_model(gateway, "left")) >= DEPARTURES else None)
    took = [[left - gone[name] for name, left in upstream.left.items() if int(name) % 4 == phase] for phase in range(4)]
    for each in took:
        assert len(each) > DEPARTURES / 8
        assert statistics.median(each) < MEDIAN_DEPARTURE_S
        assert statistics.quantiles(each, n=10)[-1] < 10 * MEDIAN_DEPARTURE_S
    assert (len(records), {record["ending"] for record in records}) == (DEPARTURES, {"client_gone"})


def of_model(gateway, name):
    return [record for record in gateway.records() if record["model"] == name]


async def until(ready, deadline_s=60):
    async with asyncio.timeout(deadline_s):
        while not (found := ready()):
            await asyncio.sleep(0.05)
        return found
