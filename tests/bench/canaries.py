"""Claim A by search: words that must not leave are put wherever text may be, and looked for wherever they may not.

`python -m tests.bench.canaries --cases 100000 --json` runs a real front worker's parts in this process, with loopback sockets
for its upstreams, a state folder and, where redis-server is installed, a Redis. A case is drawn from its seed and number: a path,
a fault, a way the client behaves, a place and a form of the canary. `--state FILE` goes on where a run was stopped;
`--shard 1/4` does a part. `--plant all` runs the same search over deliberate leaks, each of which it must catch.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import socket
import string
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import Progress

from gateway import config as config_of
from gateway import control, metrics
from gateway.app import Front, create_app
from gateway.cache import Miss
from gateway.policy.generation import Catalogue, Generation

NO_REDIS = "redis://127.0.0.1:1/0"
"""Where nobody listens."""
BATCH = 100
"""Cases between two searches: one front worker, one fault."""

PATHS = ("chat", "chat stream", "completions", "responses", "responses chain", "messages", "embeddings", "moderations", "transcription",
         "batch file", "explain")  # fmt: skip
FAULTS = ("none", "detector raises", "oversize", "home is down", "home answers 500", "home is cut", "cloud is down", "redis is down",
          "disk is full", "policies change meanwhile")  # fmt: skip
WAYS = (
    "reads to the end",
    "asks again",
    "leaves before the answer",
    "leaves in the middle",
    "never reads",
    "another tenant asks",
)

# What is searched for: a constant head and tail by class, so that one pass over a sink sees every canary.
CLASSES = {"restricted": "Zq7Red4Red4Red", "confidential": "Zq7Con4Con4Con", "internal": "Zq7Int4Int4Int"}
IDS = {"restricted": (91234, 47391, 60021), "confidential": (91235, 47393, 60023), "internal": (91236, 47397, 60027)}
FORMS = ("raw", "json-escaped", "base64", "token ids")
PLACES = ("user", "system", "part", "assistant", "tool call", "tool result", "tool description", "name", "metadata", "user field",
          "object key", "stop", "query", "header", "tag", "file name")  # fmt: skip

CONFIG = """
[server]
state_dir = "{state}"
max_scan_chars = {max_scan_chars}
[logs]
on_full = "drop"
[cache]
semantic = false
{redis}
[upstreams.cloud]
kind = "openai"
base_url = "{cloud}"
zone = "us"
takes_up_to = "internal"
trains = true
[upstreams.eu]
kind = "openai"
base_url = "{eu}"
zone = "eu"
takes_up_to = "confidential"
[upstreams.home]
kind = "openai"
base_url = "{home}"
zone = "local"
takes_up_to = "restricted"
[policies]
default = "listed"
{models}
"""
POLICY = """
policy = "listed"
[classes]
internal = ["ip"]
confidential = ["email", "phone"]
[log]
text_up_to = "internal"
[[route]]
name = "all"
order_by = "listed"
"""


def needles() -> dict[str, list[bytes]]:
    """By class: the forms in which its canaries may be seen, whatever stands around them."""
    found: dict[str, list[bytes]] = {}
    for class_, mark in CLASSES.items():
        raw = mark.encode()
        forms = [raw, raw[::-1], raw.hex().encode(), "".join(f"\\u{byte:04x}" for byte in raw).encode()]
        for shift in range(3):
            # Of base64, the part that does not hang on what stands before and behind.
            coded = base64.b64encode(b"\0" * shift + raw)
            forms.append(coded[-(-8 * shift // 6) if shift else 0 : (8 * (shift + len(raw)) // 6)])
        ids = IDS[class_]
        forms += [b",".join(b"%d" % one for one in ids), b", ".join(b"%d" % one for one in ids)]
        forms += [b" ".join(b"%d" % one for one in ids)]
        found[class_] = forms
    return found


NEEDLES = needles()


def seen_in(data: bytes, classes: tuple[str, ...]) -> list[tuple[str, bytes]]:
    """Class and form of the canaries of these classes that stand in the bytes; also when escapes or percent signs hide them."""
    found = []
    plain = data.replace(b"\\", b"") if b"\\" in data else data
    for class_ in classes:
        found += [(class_, form) for form in NEEDLES[class_] if form in data or form in plain]
    return found


class Upstream:
    """An upstream on a real socket: keeps every byte that reaches it, answers in its dialect, and repeats what it was told."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.heard = bytearray()
        self.mode = "ok"
        self.nonces: list[str] = []
        self.on_request: Callable[[], None] | None = None
        self.url = ""
        self._server: asyncio.Server | None = None

    async def start(self) -> Upstream:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 24)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            if self.mode == "down":
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                await self._answer(reader, writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heard += head
        names = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:] if b": " in line)
        body = b""
        if b"content-length" in names:
            body = await reader.readexactly(int(names[b"content-length"]))
        elif names.get(b"transfer-encoding") == b"chunked":
            while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
                body += await reader.readexactly(size)
                await reader.readexactly(2)
            await reader.readexactly(2)
        self.heard += body
        if self.on_request is not None:
            self.on_request()
        path = head.split(b" ", 2)[1].decode().partition("?")[0].removeprefix("/v1/")
        nonce = f"nonce-{self.name}-{len(self.nonces)}"
        self.nonces.append(nonce)
        said = re.findall(rb"(?:sk-proj-)?Zq7\w+", body)
        text = " ".join([nonce, "you said", *(word.decode() for word in said[:3]), "and that was it"])
        if self.mode == "500":
            error = json.dumps({"error": {"message": "it broke", "type": "server_error", "param": None, "code": None}}).encode()
            writer.write(_http(500, "application/json", error))
        elif b'"stream":true' in body.replace(b" ", b"") and path in {"chat/completions", "completions"}:
            await self._stream(writer, text)
        else:
            whole = _http(200, "application/json", json.dumps(_whole(path, text, nonce)).encode())
            writer.write(whole[: len(whole) // 2] if self.mode == "cut" else whole)
        await writer.drain()

    async def _stream(self, writer: asyncio.StreamWriter, text: str) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        pieces = re.findall(r".{1,7}", text)
        for number, piece in enumerate(pieces):
            if self.mode == "cut" and number > len(pieces) // 2:
                return
            await _say(writer, {"content": piece}, None)
        await _say(writer, {}, "stop")
        writer.write(b"data: [DONE]\n\n")


async def _say(writer: asyncio.StreamWriter, delta: dict[str, str], finish: str | None) -> None:
    choice = {"index": 0, "delta": delta, "text": delta.get("content", ""), "finish_reason": finish}
    whole = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "up", "choices": [choice]}
    writer.write(b"data: " + json.dumps(whole).encode() + b"\n\n")
    await writer.drain()


def _http(status: int, media: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {media}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    return head.encode() + body


def _whole(path: str, text: str, nonce: str) -> dict[str, Any]:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    match path.partition("/")[0]:
        case "embeddings":
            return {
                "object": "list",
                "model": "up",
                "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
                "usage": usage,
            }
        case "moderations":
            return {"id": nonce, "model": "up", "results": []}
        case "responses":
            part = {"type": "output_text", "text": text, "annotations": []}
            item = {"id": f"msg_{nonce}", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
            return {"id": f"resp_{nonce}", "object": "response", "created_at": 1, "status": "completed", "model": "up", "output": [item],
                    "usage": {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}, "error": None}  # fmt: skip
        case "messages":
            return {"id": nonce, "type": "message", "role": "assistant", "model": "up", "content": [{"type": "text", "text": text}],
                    "stop_reason": "end_turn", "usage": {"input_tokens": 3, "output_tokens": 2}}  # fmt: skip
        case "files":
            return {"id": f"file-{nonce}", "object": "file", "bytes": 1, "created_at": 1, "filename": "x", "purpose": "batch"}
        case "audio":
            return {"text": text}
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "text": text, "finish_reason": "stop"}
    return {"id": nonce, "object": "chat.completion", "created": 1, "model": "up", "choices": [choice], "usage": usage}


class Tape:
    """Stands where the semantic tier stands, and keeps all that would be embedded or stored by it."""

    def __init__(self) -> None:
        self.heard = bytearray()

    async def lookup(self, scope: Any, *, class_: str) -> Miss:
        self.heard += repr((scope, class_)).encode()
        return Miss("unseen")

    async def store(self, scope: Any, entry: Any, *, expires_at: float) -> bool:
        self.heard += repr((scope, expires_at)).encode() + msgspec.msgpack.encode(entry)
        return True

    async def purge(self, **_: Any) -> int:
        return 0

    def problem(self) -> None:
        return None

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        return None


class Site:
    """One front worker with its surroundings, and everything that it must not fill."""

    def __init__(self, folder: Path, upstreams: dict[str, Upstream], redis_url: str, *, max_scan_chars: int = 100_000) -> None:
        self.folder, self.upstreams, self.redis_url = folder, upstreams, redis_url
        models = "".join(
            f'[[models.m.candidates]]\nupstream = "{name}"\ncapabilities = {json.dumps(config_of.CAPABILITIES)}\n'
            for name in upstreams
        )
        text = CONFIG.format(
            state=folder / "state",
            max_scan_chars=max_scan_chars,
            redis='redis_url_env = "CANARY_REDIS"' if redis_url else "",
            models=models,
            **{name: upstream.url for name, upstream in upstreams.items()},
        )
        (folder / "config.toml").write_text(text)
        os.environ["CANARY_REDIS"] = redis_url
        self.config = config_of.load(folder / "config.toml")
        self.generation = Generation({"listed.toml": POLICY}, Catalogue.of(self.config))
        start = control.Start(
            config=msgspec.json.encode(self.config),
            name="front0",
            listeners={},
            sockets={"cache": str(folder / "none.sock")},
            admin_sha256=hashlib.sha256(b"gw-admin").hexdigest(),
        )
        self.front = Front(start, control.Activate(number=1, source=self.generation.source()), SimpleNamespace())  # type: ignore[arg-type]
        self.tape = Tape()
        self.front.cache._semantic = self.tape  # type: ignore[assignment]
        self.app = create_app(self.front)
        key_file = self.front.keys._file
        self.keys = {tenant: key_file.add(tenant, tenant=tenant, scopes=("chat", "admin")) for tenant in ("acme", "beta")}
        self.told: list[tuple[str, bytes]] = []
        """Answers that must hold no canary: refusals, and what another tenant got, with what they are."""
        self.owners: dict[str, str] = {}
        """Tenant by nonce."""

    def own(self, tenant: str) -> None:
        """What upstreams have answered since the last call was asked by this tenant."""
        for upstream in self.upstreams.values():
            for nonce in upstream.nonces:
                self.owners.setdefault(nonce, tenant)

    async def close(self) -> None:
        await self.front.aclose()

    def sinks(self) -> Iterator[tuple[str, bytes, tuple[str, ...]]]:
        """Everything that was written: its name, its bytes, and the classes that it may not hold."""
        high = ("restricted", "confidential")
        yield "socket of cloud", bytes(self.upstreams["cloud"].heard), high
        yield "socket of eu", bytes(self.upstreams["eu"].heard), ("restricted",)
        yield "embedder", bytes(self.tape.heard), high
        yield "metrics", metrics.render(self.front.counts())[0], tuple(CLASSES)
        for path in sorted(self.folder.rglob("*")):
            if path.is_file():
                data = path.read_bytes()
                yield f"file {path.relative_to(self.folder)}", data, high
                if path.suffix == ".jsonl":
                    yield f"text of {path.name}", _texts(data), high
        for what, data in self.told:
            yield what, data, tuple(CLASSES)
        if self.redis_url and self.redis_url != NO_REDIS:
            yield from _redis(self.redis_url, high)


def _texts(log: bytes) -> bytes:
    """The texts of each request's token lines, joined: what is cut over lines is whole again."""
    said: dict[tuple[str, int], str] = {}
    for raw in log.splitlines():
        with suppress(ValueError):
            line = json.loads(raw)
            if line.get("event") == "token":
                place = line["request_id"], line["choice"]
                said[place] = said.get(place, "") + line.get("text", "")
    return "\n".join(said.values()).encode()


def _redis(url: str, classes: tuple[str, ...]) -> Iterator[tuple[str, bytes, tuple[str, ...]]]:
    import redis  # noqa: PLC0415 -- only where one runs

    with redis.Redis.from_url(url) as client:
        for name in client.scan_iter():
            kind = client.type(name)
            value = client.get(name) if kind == b"string" else repr(client.xrange(name)).encode()
            yield f"redis {name[:24]!r}", name + b"=" + (value or b""), classes


def _emptied(url: str) -> None:
    import redis  # noqa: PLC0415 -- only where one runs

    with redis.Redis.from_url(url) as client:
        client.flushall()


class Case(msgspec.Struct, frozen=True):
    """One case, all of it drawn from its seed."""

    number: int
    path: str
    fault: str
    way: str
    class_: str
    form: str
    place: str
    canary: str


def draw(seed: int, number: int, fault: str, **forced: str) -> Case:
    """The case of this number. Paths and ways take turns, so that every cell gets its share; the rest is drawn, or forced."""
    drawn = random.Random(f"{seed}/{number}")
    cell = number // BATCH // len(FAULTS) * BATCH + number % BATCH
    path = forced.get("path", PATHS[cell % len(PATHS)])
    way = forced.get("way", WAYS[cell // len(PATHS) % len(WAYS)])
    class_ = forced.get("class_", drawn.choices(tuple(CLASSES), (6, 3, 1))[0])
    form = forced.get("form", drawn.choice(FORMS))
    place = forced.get("place", drawn.choice(PLACES))
    if place in {"header", "tag"}:
        # Words about a request are no part of it: they stay away from logs and upstreams where anything is found in them.
        class_, form = "restricted", "raw"
    elif form == "token ids" and path not in {"completions", "embeddings"}:
        form = "raw"
    word = CLASSES[class_] + "".join(drawn.choices(string.ascii_letters + string.digits, k=30))
    canary = f"sk-proj-{word}" if class_ == "restricted" and form in {"raw", "json-escaped"} else word
    return Case(number, path, fault, way, class_, form, place, canary)


def request_of(case: Case) -> tuple[str, str, bytes, dict[str, str]]:
    """Endpoint, query, body and headers of a case."""
    word = base64.b64encode(f"see {case.canary} there".encode()).decode() if case.form == "base64" else case.canary
    headers = {"content-type": "application/json"}
    # What the detector does not see is classed by its sender; what it finds needs no word.
    if not case.canary.startswith("sk-proj-"):
        headers["x-gateway-class"] = case.class_
    query = ""
    if case.place == "header":
        headers["x-client-request-id"] = headers["idempotency-key"] = word[:120]
    elif case.place == "tag":
        headers["x-gateway-tags"] = word
    elif case.place == "query" and case.path == "messages":
        query = f"note={word}"
    endpoint, body = _body(case, f"Dear model, look at {word} please.", word)
    if isinstance(body, bytes):
        headers["content-type"] = "multipart/form-data; boundary=XX"
        return endpoint, query, body, headers
    raw = json.dumps(body)
    if case.form == "json-escaped":
        raw = raw.replace(word, "".join(f"\\u{ord(sign):04x}" for sign in word))
    return endpoint, query, raw.encode(), headers


def _body(case: Case, text: str, word: str) -> tuple[str, Any]:
    shown = text if case.place not in {"header", "tag", "query"} else "Dear model."
    if case.path == "transcription":
        name = f"{word}.wav" if case.place == "file name" else "a.wav"
        form = f'--XX\r\ncontent-disposition: form-data; name="model"\r\n\r\nm\r\n--XX\r\ncontent-disposition: form-data; name="prompt"\r\n\r\n{shown}\r\n--XX\r\ncontent-disposition: form-data; name="file"; filename="{name}"\r\ncontent-type: audio/wav\r\n\r\nRIFF{word}\r\n--XX--\r\n'
        return "audio/transcriptions", form.encode()
    if case.path == "batch file":
        line = json.dumps({"custom_id": "1", "method": "POST", "url": "/v1/chat/completions",
                           "body": {"model": "m", "messages": [{"role": "user", "content": shown}]}})  # fmt: skip
        name = f"{word}.jsonl" if case.place == "file name" else "b.jsonl"
        form = f'--XX\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--XX\r\ncontent-disposition: form-data; name="file"; filename="{name}"\r\ncontent-type: application/jsonl\r\n\r\n{line}\n\r\n--XX--\r\n'
        return "files", form.encode()
    ids = [101, *IDS[case.class_], 102]
    match case.path:
        case "completions":
            return "completions", {"model": "m", "prompt": ids if case.form == "token ids" else shown, "max_tokens": 9}
        case "embeddings":
            return "embeddings", {"model": "m", "input": ids if case.form == "token ids" else shown}
        case "moderations":
            return "moderations", {"model": "m", "input": shown}
        case "responses" | "responses chain":
            return "responses", {"model": "m", "input": [{"role": "user", "content": shown}], "store": case.class_ == "internal" or case.number % 3 == 0,
                                 "metadata": {"note": word} if case.place == "metadata" else {}}  # fmt: skip
        case "messages":
            return "messages", {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": shown}]}
    return ("route" if case.path == "explain" else "chat/completions"), _chat(case, text, word)


def _chat(case: Case, text: str, word: str) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Dear model."}]
    body: dict[str, Any] = {"model": "m", "messages": messages}
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": json.dumps({"q": text})}}
    match case.place:
        case "system":
            messages.insert(0, {"role": "system", "content": text})
        case "part":
            messages[0]["content"] = [{"type": "text", "text": "look"}, {"type": "text", "text": text}]
        case "assistant":
            messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "go on"}]
        case "tool call":
            messages += [{"role": "assistant", "content": None, "tool_calls": [call]}]
            messages += [{"role": "tool", "tool_call_id": "call_1", "content": "ok"}]
        case "tool result":
            call["function"] = {"name": "f", "arguments": "{}"}
            messages += [{"role": "assistant", "content": None, "tool_calls": [call]}]
            messages += [{"role": "tool", "tool_call_id": "call_1", "content": text}]
        case "tool description":
            body["tools"] = [
                {"type": "function", "function": {"name": "f", "description": text, "parameters": {"type": "object"}}}
            ]
        case "name":
            messages[0]["name"] = word
        case "metadata":
            body["metadata"] = {"note": word}
        case "user field":
            body["user"] = word
        case "object key":
            body["metadata"] = {word: "note"}
        case "stop":
            body["stop"] = [word]
        case "header" | "tag" | "query":
            pass
        case _:
            messages[0]["content"] = text
    if case.path == "chat stream":
        body["stream"] = True
    return body


class Asked:
    """One ASGI exchange driven by hand."""

    def __init__(  # noqa: PLR0917 -- what a request is made of
        self, site: Site, endpoint: str, query: str, body: bytes, headers: dict[str, str], tenant: str
    ) -> None:
        named = {"authorization": f"Bearer {site.keys[tenant]}", **headers}
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "method": "POST",
            "path": f"/v1/{endpoint}", "raw_path": f"/v1/{endpoint}".encode(), "query_string": query.encode(), "root_path": "",
            "headers": [(name.encode(), value.encode("latin-1", "replace")) for name, value in named.items()],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "extensions": {},
        }  # fmt: skip
        self._body: bytes | None = body
        self._leaves = asyncio.Event()
        self._when = ""
        self.status = 0
        self.data = bytearray()
        self.headers: dict[str, str] = {}
        self.task = asyncio.ensure_future(site.app(scope, self._receive, self._send))  # type: ignore[arg-type]

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._leaves.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode().lower(): value.decode("latin-1") for name, value in message["headers"]}
        else:
            self.data += message.get("body", b"")
        if self._when == "middle" and self.data:
            self._leaves.set()
        if self._when == "never":
            self._leaves.set()

    async def end(self, when: str = "") -> None:
        """Wait for the end; the client leaves `before` it, in the `middle`, or `never` reads."""
        self._when = when
        if when == "before":
            await asyncio.sleep(0)
            self._leaves.set()
        with suppress(OSError, asyncio.CancelledError):
            async with asyncio.timeout(20):
                await self.task


WHEN = {"leaves before the answer": "before", "leaves in the middle": "middle", "never reads": "never"}


async def play(site: Site, case: Case) -> None:
    """Do one case, and keep what must hold no canary."""
    if case.fault == "policies change meanwhile":
        # Whatever a later generation lets be logged, a request is judged by the one that was in force when it came.
        loose = POLICY.replace('text_up_to = "internal"', 'text_up_to = "restricted"')
        site.front.generation = site.generation
        later = Generation({"listed.toml": loose}, Catalogue.of(site.config))
        for upstream in site.upstreams.values():
            upstream.on_request = lambda: setattr(site.front, "generation", later)
    site.front.health._states.clear()
    endpoint, query, body, headers = request_of(case)
    asked = Asked(site, endpoint, query, body, headers, "acme")
    await asked.end(WHEN.get(case.way, ""))
    site.own("acme")
    _check(site, case, asked)
    if case.path == "responses chain" and asked.status == 200:
        with suppress(ValueError, KeyError):
            previous = json.loads(asked.data)["id"]
            more = json.dumps({"model": "m", "input": "go on", "previous_response_id": previous, "store": False}).encode()
            for tenant in ("acme", "beta"):
                again = Asked(site, "responses", "", more, {"content-type": "application/json"}, tenant)
                await again.end()
                site.own(tenant)
                if tenant == "beta" and again.status == 200:
                    site.told.append((f"case {case.number}: a chain of another tenant", CLASSES["restricted"].encode()))
    if case.way in {"asks again", "another tenant asks"}:
        tenant = "acme" if case.way == "asks again" else "beta"
        site.front.generation = site.generation if case.fault == "policies change meanwhile" else site.front.generation
        again = Asked(site, endpoint, query, body, headers, tenant)
        await again.end()
        site.own(tenant)
        _check(site, case, again)
        for nonce in re.findall(r"nonce-\w+-\d+", again.data.decode("utf-8", "replace")):
            if site.owners.get(nonce) != tenant:
                site.told.append((f"case {case.number}: an answer of another tenant", CLASSES["restricted"].encode()))


def _check(site: Site, case: Case, asked: Asked) -> None:
    """A refusal holds nothing of the request, nor do headers; an explanation is of facts alone."""
    if asked.status >= 400 or case.path == "explain":
        site.told.append((f"case {case.number}: body of a {asked.status}", bytes(asked.data)))
    site.told.append((f"case {case.number}: headers", repr(asked.headers).encode()))


class Raising:
    """A detector that fails on whatever it is given, and says what it was in its exception."""

    def kinds(self, text: str) -> frozenset[str]:
        raise RuntimeError(text)

    kinds_of_all = find = kinds


@asynccontextmanager
async def site_of(fault: str, redis_url: str, plant: Callable[[Site], Any] | None = None) -> AsyncIterator[Site]:
    """A front worker under this fault."""
    with tempfile.TemporaryDirectory(prefix="canaries-") as name:
        folder = Path(name)
        upstreams = {one: await Upstream(one).start() for one in ("cloud", "eu", "home")}
        url = NO_REDIS if fault == "redis is down" else redis_url
        site = Site(folder, upstreams, url, max_scan_chars=20 if fault == "oversize" else 100_000)
        modes = {"home is down": ("home", "down"), "home answers 500": ("home", "500"), "home is cut": ("home", "cut"),
                 "cloud is down": ("cloud", "down")}  # fmt: skip
        if fault in modes:
            upstreams[modes[fault][0]].mode = modes[fault][1]
        if fault == "detector raises":
            site.front.generation.detector = Raising()  # type: ignore[assignment]
        if fault == "disk is full":
            _fill(site)
        runs = asyncio.ensure_future(site.front.cache._shared.run())
        try:
            with contextlib.ExitStack() as stack:
                if plant is not None:
                    stack.enter_context(plant(site))
                yield site
        finally:
            runs.cancel()
            with suppress(asyncio.CancelledError):
                await runs
            await site.close()
            for upstream in upstreams.values():
                await upstream.stop()


def _fill(site: Site) -> None:
    """Nothing more can be written below the state folder's stores and the log."""
    for name in ("stored_responses.sqlite3", "responses.sqlite"):
        (site.folder / "state" / name).mkdir(parents=True, exist_ok=True)

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    for sink in site.front.writer._sinks:
        sink.write = full  # type: ignore[method-assign]


@contextmanager
def stderr_kept(folder: Path) -> Iterator[Path]:
    """What this process and its libraries say on standard output and error goes to a file."""
    kept = folder / "said"
    saved = os.dup(1), os.dup(2)
    with kept.open("ab") as file:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            with kept.open("a") as words, contextlib.redirect_stdout(words), contextlib.redirect_stderr(words):
                yield kept
        finally:
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            for one in saved:
                os.close(one)


def _said(kept: Path) -> bytes:
    sys.stdout.flush()
    sys.stderr.flush()
    return kept.read_bytes()


async def run_batch(
    seed: int,
    batch: int,
    redis_url: str,
    plant: Callable[[Site], Any] | None = None,
    *,
    size: int = BATCH,
    fault: str = "",
    forced: dict[str, str] | None = None,
) -> dict[str, Any]:
    """The cases of one batch, all under one fault, and what the search found after them."""
    fault = fault or FAULTS[batch % len(FAULTS)]
    if batch // len(FAULTS) % 2:
        redis_url = ""
    cells: Counter[str] = Counter()
    endings: Counter[str] = Counter()
    if redis_url:
        _emptied(redis_url)
    with tempfile.TemporaryDirectory(prefix="canaries-said-") as said, stderr_kept(Path(said)) as kept:
        async with site_of(fault, redis_url, plant) as site:
            closed = site.front._closed
            site.front._closed = lambda record: (endings.update([record.ending]), closed(record))  # type: ignore[method-assign]
            for number in range(batch * BATCH, batch * BATCH + size):
                case = draw(seed, number, fault, **(forced or {}))
                cells[f"{case.path} | {fault} | {case.way}"] += 1
                await play(site, case)
            await site.front.cache.settled()
            await _flushed(site)
            sinks = [*site.sinks(), ("standard output and error", _said(kept), tuple(CLASSES))]
    leaks = [
        {"sink": name, "class": class_, "form": form.decode("latin-1"), "batch": batch}
        for name, data, classes in sinks
        for class_, form in seen_in(data, classes)
    ]
    return {
        "batch": batch,
        "cases": size,
        "cells": dict(cells),
        "endings": dict(endings),
        "leaks": leaks,
        "bytes": sum(len(one[1]) for one in sinks),
    }


async def _flushed(site: Site) -> None:
    """Wait until the log's thread has nothing to do, or cannot do it."""
    ends = time.monotonic() + 2
    while (site.front.writer.queued or site.front.writer._block) and time.monotonic() < ends and not site.front.writer.fault:
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.03)


@contextmanager
def redis_running() -> Iterator[str]:
    """The URL of a private Redis; empty where redis-server is not installed."""
    binary = shutil.which("redis-server")
    if binary is None:
        yield ""
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            ends = time.monotonic() + 10
            while time.monotonic() < ends:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
            try:
                yield f"redis://127.0.0.1:{port}/0"
            finally:
                process.terminate()


def add_up(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The sums of several batches."""
    cells: Counter[str] = Counter()
    endings: Counter[str] = Counter()
    for part in parts:
        cells.update(part["cells"])
        endings.update(part["endings"])
    leaks = [leak for part in parts for leak in part["leaks"]]
    return {
        "cases": sum(part["cases"] for part in parts),
        "bytes_searched": sum(part["bytes"] for part in parts),
        "cells": len(cells),
        "fewest_in_a_cell": min(cells.values(), default=0),
        "endings": dict(endings),
        "leaks": len(leaks),
        "shown": leaks[:20],
    }


def main() -> int:
    """Run it; exit status 1 when anything leaked, or a planted leak was not seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--shard", default="1/1", help="I/N: every N-th batch, beginning with the I-th")
    parser.add_argument("--state", type=Path, help="JSON lines of finished batches; what stands in it is not done again")
    parser.add_argument("--plant", help="`all`, or the name of one planted leak")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with redis_running() as url:
        if options.plant:
            return _plants(options, url)
        shard, shards = map(int, options.shard.split("/"))
        done = (
            [json.loads(line) for line in options.state.read_text().splitlines()]
            if options.state and options.state.exists()
            else []
        )
        known = {part["batch"] for part in done}
        wanted = [batch for batch in range(-(-options.cases // BATCH)) if batch % shards == shard - 1 and batch not in known]
        with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
            task = progress.add_task("canaries", total=len(wanted))
            for batch in wanted:
                done.append(asyncio.run(run_batch(options.seed, batch, url)))
                if options.state:
                    with options.state.open("a") as file:
                        file.write(json.dumps(done[-1]) + "\n")
                progress.advance(task)
    found = {**add_up(done), "seed": options.seed, "redis": bool(url)}
    print(json.dumps(found, indent=None if options.json else 2))
    return 1 if found["leaks"] else 0


def _plants(options: argparse.Namespace, url: str) -> int:
    from tests.bench.planted_leaks import PLANTS, caught_by  # noqa: PLC0415 -- it imports this file

    names = list(PLANTS) if options.plant == "all" else [options.plant]
    found = {name: asyncio.run(caught_by(options.seed, name, url)) for name in names}
    missed = [name for name, caught in found.items() if not caught]
    print(json.dumps({"planted": len(names), "caught": len(names) - len(missed), "missed": missed, "by": found}, indent=2))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
