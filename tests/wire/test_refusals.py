"""What is refused costs little and says why: ten thousand malformed bodies, and a body twice as large as the limit."""

import asyncio
import copy
import json
import random
import socket
from pathlib import Path

import pytest
from front import Client
from hostile import error, hostile

from tests.e2e.gateways import ECHO, ECHO_POLICY, Gateway

BODIES = 10_000
TURN = [{"role": "user", "content": "one two three"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}}}
SEEDS = {
    "chat/completions": {
        "model": "m", "messages": [*TURN, {"role": "assistant", "content": None, "tool_calls": []}], "stream": True, "n": 1,
        "stream_options": {"include_usage": True}, "tools": [TOOL], "max_tokens": 5, "temperature": 0.5, "response_format": {"type": "text"},
    },
    "completions": {"model": "m", "prompt": ["a", "b"], "stream": False, "max_tokens": 5, "stop": ["x"], "n": 1},
    "embeddings": {"model": "m", "input": ["a", "ünï"], "encoding_format": "base64", "dimensions": 8},
    "responses": {
        "model": "m", "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]}],
        "stream": True, "store": False, "tools": [{"type": "function", "name": "f"}], "text": {"format": {"type": "text"}},
    },
    "responses/input_tokens": {"model": "m", "input": "x", "instructions": "y"},
    "messages": {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}], "max_tokens": 5, "system": "y"},
    "moderations": {"model": "m", "input": ["x"]},
    "images/generations": {"model": "m", "prompt": "x", "n": 1},
    "audio/speech": {"model": "m", "input": "x", "voice": "v"},
}  # fmt: skip
WRONG = [
    None, True, False, 0, -1, 10**30, 1.5, "", "x", "\ud800", [], [[]], {}, {"": None}, [None], ["x", 5], {"type": 5}, {"role": []},
    {"content": {}}, [{"role": "user"}], [{"type": "image_url"}], {"include_usage": "yes"}, [{"type": "function", "function": "f"}],
]  # fmt: skip
"""Values that may stand anywhere and mostly should not."""
BYTES = [
    b"",
    b"\xff",
    b"\x00",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"'",
    b"//",
    b"\xed\xa0\x80",
    b"[" * 30_000,
    b'{"a":' * 5_000,
    b"\xef\xbb\xbf",
]


def malformed(chance):
    """An endpoint and a body that was spoilt in one to three places: values, keys, or bytes."""
    endpoint = chance.choice(list(SEEDS))
    body = json.loads(json.dumps(SEEDS[endpoint]))
    for _ in range(chance.randrange(3)):
        spoil(chance, body)
    raw = json.dumps(body, ensure_ascii=chance.random() < 0.9).encode("utf-8", "surrogatepass")
    for _ in range(chance.choice([0, 0, 1, 2])):
        at, length = chance.randrange(len(raw) + 1), chance.choice([0, 1, 1, 5, 10_000])
        raw = raw[:at] + chance.choice([*BYTES, raw[: chance.randrange(40)]]) + raw[at + length :]
    return endpoint, raw


def spoil(chance, value):
    """Exchange, drop or add one member somewhere inside."""
    places = list(value) if isinstance(value, dict) else list(range(len(value)))
    place = chance.choice(places) if places else None
    if place is not None and isinstance(value[place], dict | list) and value[place] and chance.random() < 0.7:
        spoil(chance, value[place])
    elif isinstance(value, dict):
        if place is not None and chance.random() < 0.5:
            del value[place]
        value[chance.choice([place or "x", "x", "stream", "model", "input", "messages"])] = copy.deepcopy(chance.choice(WRONG))
    else:
        value.append(copy.deepcopy(chance.choice(WRONG)))


def problem(endpoint, got):
    """What is wrong with a refusal, or nothing."""
    if not 400 <= got.status < 500:
        return f"status {got.status}"
    told = json.loads(got.body)
    if endpoint == "messages":
        whole = told["type"] == "error" and all(isinstance(told["error"][name], str) for name in ("type", "message"))
    else:
        whole = set(told["error"]) == {"message", "type", "param", "code"} and all(
            isinstance(told["error"][name], str) for name in ("message", "type")
        )
        whole = whole and all(told["error"][name] is None or isinstance(told["error"][name], str) for name in ("param", "code"))
    return "" if whole and got.headers["content-type"] == "application/json" else f"not an envelope: {got.body[:200]}"


async def test_ten_thousand_malformed_bodies(world):
    """None gives a 500 or another shape than its endpoint's errors; each has its record, and nothing stays open."""
    chance, problems = random.Random(3), []
    async with hostile() as server:
        # What happens to be well-formed goes up, where it is refused, too.
        server.scripts = [[error(400, "refused", "c")]]
        made = world(up={"base_url": server.base_url, "retries": 0})
        for _ in range(BODIES // 50):
            asked = [malformed(chance) for _ in range(50)]
            answers = await asyncio.gather(*(Client(made, raw, endpoint=endpoint).answer() for endpoint, raw in asked))
            problems += [(*one, said) for one, got in zip(asked, answers, strict=True) if (said := problem(one[0], got))]
    assert problems == []
    assert (len(made.records), {record.ending for record in made.records} <= {"refused", "failed"}) == (BODIES, True)
    assert BODIES / 50 < len(server.requests) < BODIES / 2
    assert made.idle()


LIMIT_MB, ROOM_MB = 32, 8


@pytest.fixture(scope="module")
def echo_process(tmp_path_factory):
    """A real gateway with the default limit, warmed up."""
    with Gateway(tmp_path_factory.mktemp("refusals"), ECHO, policies={"all.toml": ECHO_POLICY}) as made:
        made.until_up("echo/echo").post("chat/completions", json={"model": "echo", "messages": TURN})
        yield made


@pytest.mark.parametrize("declared", [True, False])
def test_refused_uploads_cost_no_more_than_the_limit(echo_process, declared):
    """64 MB against a limit of 32, three times: refused from the declared length, or as soon as it is too much; nothing is kept."""
    pid = echo_process.pid_of("gateway.app")
    before = resident_mb(pid)
    for _ in range(3):
        head, body = upload(echo_process, 64, declared=declared)
        assert (head.split()[1], json.loads(body)["error"]["code"]) == (b"413", "request_too_large")
    assert peak_mb(pid) - before <= (ROOM_MB if declared else LIMIT_MB + ROOM_MB)


def resident_mb(pid):
    """Memory of a process now; from here on its peak is counted anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak_mb(pid)


def peak_mb(pid):
    (peak,) = [row.split()[1] for row in Path(f"/proc/{pid}/status").read_text().splitlines() if row.startswith("VmHWM:")]
    return int(peak) / 1024


def upload(gateway, megabytes, *, declared):
    """Send a body to its end, whatever is said meanwhile; the answer's head and body."""
    piece = b"x" * 2**20
    length = f"content-length: {megabytes * 2**20}" if declared else "transfer-encoding: chunked"
    lines = ["POST /v1/chat/completions HTTP/1.1", "host: x", f"authorization: Bearer {gateway.key}", "connection: close", length]
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=120) as to:
        to.sendall("\r\n".join([*lines, "content-type: application/json", "", ""]).encode())
        for _ in range(megabytes):
            to.sendall(piece if declared else b"%x\r\n%b\r\n" % (len(piece), piece))
        to.sendall(b"" if declared else b"0\r\n\r\n")
        said = b"".join(iter(lambda: to.recv(65536), b""))
    head, _, body = said.partition(b"\r\n\r\n")
    return head, body
