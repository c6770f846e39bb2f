"""Claim A by search: words that must not leave are put wherever text may be, and looked for wherever they may not.

`python -m tests.bench.canaries --cases 100000 --json` runs a real front worker's parts in this process, with loopback sockets
for its upstreams, a state folder and, where redis-server is installed, a Redis. A case is drawn from its seed and number: a path,
a fault, a way the request ends, a place and a form of the canary. Under a fault that begins with `masked`, upstreams outside are
cleared for everything and a limit masks what leaves: no canary may reach them in any form. `--state FILE` goes on where a run was stopped;
`--shard 1/4` does a part. `--plant all` runs the same search over deliberate leaks, each of which it must catch.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import gc
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
from urllib.parse import quote

import msgspec
from rich.console import Console
from rich.progress import Progress

from gateway import config as config_of
from gateway import control, metrics
from gateway.app import Front, create_app
from gateway.cache import Miss
from gateway.policy.generation import Catalogue, Generation
from gateway.redact import Vault

NO_REDIS = "redis://127.0.0.1:1/0"
"""Where nobody listens."""
BATCH = 120
"""Cases between two searches: one front worker, one fault, and every path in every way."""

PATHS = ("chat", "chat stream", "completions", "responses", "responses chain", "responses above", "responses compacted", "messages",
         "embeddings", "moderations", "speech", "transcription", "image edit", "batch file", "explain")  # fmt: skip
MASKED_PATHS = ("chat", "chat stream", "completions", "responses", "responses stream", "responses chain", "responses above",
                "responses compacted", "messages", "messages stream", "explain", "not maskable")  # fmt: skip
BARE = ("embeddings", "moderations", "speech", "transcription", "image edit", "batch file")
"""What `not maskable` is, in turn."""
OUTSIDE = ("open", "cloud", "eu")
"""Upstreams of other zones, lowest clearance first."""
CONFINED = ("none", "detector raises", "oversize", "home is down", "home answers 500", "home is cut", "home is slow",
            "eu quotes in its error", "cloud is down", "redis is down", "disk is full", "policies change meanwhile")  # fmt: skip
MASKED = ("masked", "masked, detector raises", "masked, detector raises on the way", "masked, key file is damaged", "masked, oversize",
          "masked, cloud is down", "masked, cloud answers 500", "masked, cloud is cut", "masked, cloud is slow",
          "masked, cloud quotes in its error", "masked, disk is full", "masked, policies change meanwhile")  # fmt: skip
FAULTS = CONFINED + MASKED
WAYS = ("reads to the end", "asks again", "leaves before the answer", "leaves in the middle", "never reads", "another tenant asks",
        "is stopped at the head", "is stopped in the middle")  # fmt: skip
"""What the client does; in the last two, the gateway gives up the request itself."""

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
{upstreams}
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
MASKING = f"""
[[terms]]
name = "projects"
class = "internal"
words = ["{CLASSES["internal"]}"]
[[limit]]
name = "masked outside"
redact = "outside"
"""
CLEARED = {"open": ("us", "public"), "cloud": ("us", "internal"), "eu": ("eu", "confidential"), "home": ("local", "restricted")}
"""By upstream: its zone and clearance."""
SLOW = "first_token_timeout_s = 0.02\nidle_timeout_s = 0.02\ntotal_timeout_s = 0.06\nretries = 0"
PLACEHOLDER = re.compile(rb"\[[A-Z0-9_]+_[A-Z]{4}_[0-9]+\]")


def needles() -> dict[str, list[bytes]]:
    """By class: the forms in which its canaries may be seen, whatever stands around them."""
    found: dict[str, list[bytes]] = {}
    for class_, mark in CLASSES.items():
        raw = mark.encode()
        forms = [raw, raw[::-1], raw.hex().encode(), raw.hex().upper().encode()]
        forms += ["".join(f"\\u{byte:04x}" for byte in raw).encode()]
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


def digests(word: str) -> list[bytes]:
    """What a table could be searched for, where a placeholder is made of its value: the beginnings of its usual digests."""
    made = [hashlib.new(name, word.encode()).hexdigest()[:12] for name in ("md5", "sha1", "sha256", "blake2b")]
    return [form.encode() for one in made for form in (one, one.upper())]


class Upstream:
    """An upstream on a real socket: keeps every byte that reaches it, answers in its dialect, and repeats what it was told."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.heard = bytearray()
        self.mode = "ok"
        self.nonces: list[str] = []
        self.on_request: Callable[[bytes], object] | None = None
        """Called with a request's head."""
        self.keeps_masks = False
        """Whether it was told to keep an answer with placeholders in it."""
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
            self.on_request(head)
        path = head.split(b" ", 2)[1].decode().partition("?")[0].removeprefix("/v1/")
        nonce = f"nonce-{self.name}-{len(self.nonces)}"
        self.nonces.append(nonce)
        plain = body.replace(b" ", b"")
        self.keeps_masks |= path == "responses" and b'"store":false' not in plain and bool(PLACEHOLDER.search(body))
        said = re.findall(rb"(?:sk-proj-)?Zq7\w+(?:@example\.org)?|" + PLACEHOLDER.pattern, body)
        text = " ".join([nonce, "you said", *(word.decode() for word in said[:3]), "and that was it"])
        streams = b'"stream":true' in plain and path in STREAMS
        if self.mode == "slow":
            # Some answers come late, others not within any patience.
            await asyncio.sleep(0.2 if len(self.nonces) % 3 == 0 else 0.004)
        if self.mode == "500" or (self.mode == "quotes" and not streams):
            error = {"error": {"message": f"it broke: {text}", "type": "server_error", "param": None, "code": None}}
            writer.write(_http(400 if self.mode == "quotes" else 500, "application/json", json.dumps(error).encode()))
        elif streams:
            await self._stream(writer, path, text, nonce)
        elif path == "audio/speech":
            writer.write(_http(200, "audio/mpeg", text.encode()))
        else:
            whole = _http(200, "application/json", json.dumps(_whole(path, text, nonce)).encode())
            writer.write(whole[: len(whole) // 2] if self.mode == "cut" else whole)
        await writer.drain()

    async def _stream(self, writer: asyncio.StreamWriter, path: str, text: str, nonce: str) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        events = list(STREAMS[path](re.findall(r".{1,7}", text), _whole(path, text, nonce)))
        for number, event in enumerate(events):
            if number > len(events) // 2 and self.mode in {"cut", "quotes"}:
                if self.mode == "quotes":
                    error = {"message": f"it broke: {text}", "type": "server_error", "param": None, "code": None}
                    writer.write(b"data: " + json.dumps({"type": "error", "error": error}).encode() + b"\n\n")
                return
            if self.mode == "slow":
                await asyncio.sleep(0.001)
            name = f"event: {event['type']}\n" if "type" in event else ""
            writer.write(f"{name}data: {json.dumps(event)}\n\n".encode())
            await writer.drain()
        if path not in {"responses", "messages"}:
            writer.write(b"data: [DONE]\n\n")


def _chunks(pieces: list[str], _: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for piece in (*pieces, ""):
        delta, finish = ({"content": piece}, None) if piece else ({}, "stop")
        choice = {"index": 0, "delta": delta, "text": piece, "finish_reason": finish}
        yield {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "up", "choices": [choice]}


def _response_events(pieces: list[str], whole: dict[str, Any]) -> Iterator[dict[str, Any]]:
    item = whole["output"][0]
    place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    empty = {**whole, "status": "in_progress", "output": []}
    events: list[dict[str, Any]] = [{"type": "response.created", "response": empty}]
    events += [{"type": "response.output_item.added", "output_index": 0, "item": {**item, "content": []}}]
    events += [{"type": "response.output_text.delta", **place, "delta": piece} for piece in pieces]
    events += [{"type": "response.output_text.done", **place, "text": "".join(pieces)}]
    events += [{"type": "response.output_item.done", "output_index": 0, "item": item}]
    for number, event in enumerate([*events, {"type": "response.completed", "response": whole}]):
        yield {**event, "sequence_number": number}


def _message_events(pieces: list[str], whole: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"type": "message_start", "message": {**whole, "content": [], "stop_reason": None}}
    yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    for piece in pieces:
        yield {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
    yield {"type": "content_block_stop", "index": 0}
    yield {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}}
    yield {"type": "message_stop"}


STREAMS = {"chat/completions": _chunks, "completions": _chunks, "responses": _response_events, "messages": _message_events}
"""By path: the events that say a text in these pieces."""


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

    def __init__(self, folder: Path, upstreams: dict[str, Upstream], redis_url: str, *, fault: str) -> None:
        self.folder, self.upstreams, self.redis_url = folder, upstreams, redis_url
        self.masks = fault in MASKED
        plain = [one for one in config_of.CAPABILITIES if one != "responses"]
        models = "".join(
            f'[[models.{model}.candidates]]\nupstream = "{name}"\ncapabilities = {json.dumps(able)}\n'
            for model, able in (("m", config_of.CAPABILITIES), ("through-chat", plain))
            for name in upstreams
        )
        cleared = CLEARED | dict.fromkeys(("cloud", "eu"), ("eu", "restricted")) if self.masks else CLEARED
        text = CONFIG.format(
            state=folder / "state",
            max_scan_chars=20 if "oversize" in fault else 100_000,
            redis='redis_url_env = "CANARY_REDIS"' if redis_url else "",
            models=models,
            upstreams="\n".join(
                f'[upstreams.{name}]\nkind = "openai"\nbase_url = "{upstream.url}"\nzone = "{cleared[name][0]}"\n'
                f'takes_up_to = "{cleared[name][1]}"\n{SLOW if "is slow" in fault else ""}'
                for name, upstream in upstreams.items()
            ),
        )
        (folder / "config.toml").write_text(text)
        os.environ["CANARY_REDIS"] = redis_url
        self.config = config_of.load(folder / "config.toml")
        self.generation = Generation({"listed.toml": POLICY + MASKING if self.masks else POLICY}, Catalogue.of(self.config))
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
        # What is tried again is tried at once.
        self.front.pipeline._dispatch._sleep = lambda _: asyncio.sleep(0)
        key_file = self.front.keys._file
        self.keys = {tenant: key_file.add(tenant, tenant=tenant, scopes=("chat", "admin")) for tenant in ("acme", "beta")}
        self.told: list[tuple[str, bytes]] = []
        """Answers that must hold no canary: refusals, and what another tenant got, with what they are."""
        self.owners: dict[str, str] = {}
        """Tenant by nonce."""
        self.asked: set[str] = set()
        """Canaries of the requests so far."""
        self.restored = 0
        """Answers of upstreams outside in which a client found its canary again, though they never had it."""

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
        for name, classes in zip(OUTSIDE, (tuple(CLASSES), high, high[:1]), strict=True):
            upstream = self.upstreams[name]
            yield f"socket of {name}", bytes(upstream.heard), tuple(CLASSES) if self.masks else classes
            if self.masks and upstream.keeps_masks:
                yield f"an answer with masks, kept at {name}", CLASSES["restricted"].encode(), high
            if self.masks and any(form in upstream.heard for word in self.asked for form in digests(word)):
                yield f"a digest at {name}", CLASSES["restricted"].encode(), high
        # Nothing that was masked is ever cached; of the rest, what is public and internal.
        kept = tuple(CLASSES) if self.masks else high
        yield "embedder", bytes(self.tape.heard), kept
        yield "memory of the cache", repr(self.front.cache._exact._kept).encode(), kept
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
    kind: str
    """The path, or what of a group of paths this case is."""
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
    masks = fault in MASKED
    paths = MASKED_PATHS if masks else PATHS
    path = forced.get("path", paths[cell % len(paths)])
    kind = forced.get("kind", BARE[cell // len(paths) % len(BARE)]) if path == "not maskable" else path
    way = forced.get("way", WAYS[cell // len(paths) % len(WAYS)])
    class_ = forced.get("class_", "internal" if path == "responses above" else drawn.choices(tuple(CLASSES), (6, 3, 1))[0])
    # Masks are for what is found: of base64 nobody says that it is.
    form = forced.get("form", drawn.choice([form for form in FORMS if not (masks and form == "base64")]))
    place = forced.get("place", drawn.choice(PLACES))
    if place in {"header", "tag"}:
        # Words about a request are no part of it: they stay away from logs and upstreams where anything is found in them.
        class_, form = "restricted", "raw"
    elif form == "token ids" and kind not in {"completions", "embeddings"}:
        form = "raw"
    elif form == "token ids" and masks:
        class_ = "restricted"
    tail = "".join(drawn.choices(string.ascii_letters + string.digits, k=30))
    canary = CLASSES[class_] + tail
    if form in {"raw", "json-escaped"}:
        if class_ == "restricted":
            canary = f"sk-proj-{canary}"
        elif masks:
            # What the detector finds: an address, and a customer's own word.
            canary = f"{canary}@example.org" if class_ == "confidential" else f"{CLASSES[class_]} {tail}"
    return Case(number, path, kind, fault, way, class_, form, place, canary)


def request_of(case: Case) -> tuple[str, str, bytes, dict[str, str]]:
    """Endpoint, query, body and headers of a case."""
    word = base64.b64encode(f"see {case.canary} there".encode()).decode() if case.form == "base64" else case.canary
    headers = {"content-type": "application/json"}
    # What the detector does not see is classed by its sender; what it finds needs no word.
    found = case.canary.startswith("sk-proj-") or (case.fault in MASKED and case.form != "token ids")
    if not found:
        headers["x-gateway-class"] = case.class_
    query = ""
    if case.place == "header":
        headers["x-client-request-id"] = headers["idempotency-key"] = word[:120]
    elif case.place == "tag":
        headers["x-gateway-tags"] = word
    elif case.place == "query" and case.kind.startswith("messages"):
        query = f"note={quote(word)}"
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
    if case.kind == "image edit":
        form = f'--XX\r\ncontent-disposition: form-data; name="model"\r\n\r\nm\r\n--XX\r\ncontent-disposition: form-data; name="prompt"\r\n\r\n{shown}\r\n--XX\r\ncontent-disposition: form-data; name="image"; filename="a.png"\r\ncontent-type: image/png\r\n\r\nPNG{word}\r\n--XX--\r\n'
        return "images/edits", form.encode()
    if case.kind == "transcription":
        name = f"{word}.wav" if case.place == "file name" else "a.wav"
        form = f'--XX\r\ncontent-disposition: form-data; name="model"\r\n\r\nm\r\n--XX\r\ncontent-disposition: form-data; name="prompt"\r\n\r\n{shown}\r\n--XX\r\ncontent-disposition: form-data; name="file"; filename="{name}"\r\ncontent-type: audio/wav\r\n\r\nRIFF{word}\r\n--XX--\r\n'
        return "audio/transcriptions", form.encode()
    if case.kind == "batch file":
        line = json.dumps({"custom_id": "1", "method": "POST", "url": "/v1/chat/completions",
                           "body": {"model": "m", "messages": [{"role": "user", "content": shown}]}})  # fmt: skip
        name = f"{word}.jsonl" if case.place == "file name" else "b.jsonl"
        form = f'--XX\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--XX\r\ncontent-disposition: form-data; name="file"; filename="{name}"\r\ncontent-type: application/jsonl\r\n\r\n{line}\n\r\n--XX--\r\n'
        return "files", form.encode()
    ids = [101, *IDS[case.class_], 102]
    match case.kind:
        case "completions":
            return "completions", {"model": "m", "prompt": ids if case.form == "token ids" else shown, "max_tokens": 9}
        case "embeddings":
            return "embeddings", {"model": "m", "input": ids if case.form == "token ids" else shown}
        case "moderations":
            return "moderations", {"model": "m", "input": shown}
        case "speech":
            return "audio/speech", {"model": "m", "voice": "alloy", "input": shown}
        case "responses compacted":
            return "responses/compact", {"model": "through-chat", "input": [{"role": "user", "content": shown}]}
        case "responses above":
            return "responses", {"model": "through-chat", "input": [{"role": "user", "content": shown}], "store": True}
        case "responses" | "responses chain" | "responses stream":
            return "responses", {"model": "m", "input": [{"role": "user", "content": shown}], "store": case.class_ == "internal" or case.number % 3 == 0,
                                 "metadata": {"note": word} if case.place == "metadata" else {}, "stream": case.kind.endswith("stream")}  # fmt: skip
        case "messages" | "messages stream":
            asked = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": shown}]}
            return "messages", {**asked, "stream": case.kind.endswith("stream")}
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
        if self._when == ("at the head" if message["type"] == "http.response.start" else "stopped"):
            self.task.cancel()
            await asyncio.sleep(0)

    async def end(self, when: str = "") -> None:
        """Wait for the end; the client leaves `before` it, in the `middle`, or `never` reads."""
        self._when = when
        if when == "before":
            await asyncio.sleep(0)
            self._leaves.set()
        with suppress(OSError, asyncio.CancelledError):
            async with asyncio.timeout(20):
                await self.task


WHEN = {"leaves before the answer": "before", "leaves in the middle": "middle", "never reads": "never",
        "is stopped at the head": "at the head", "is stopped in the middle": "stopped"}  # fmt: skip


async def play(site: Site, case: Case) -> None:
    """Do one case, and keep what must hold no canary."""
    changes = case.fault.endswith("policies change meanwhile")
    site.asked.add(case.canary)
    endpoint, query, body, headers = request_of(case)
    if changes:
        # Whatever a later generation lets be logged or sent, a request is judged by the one that was in force when it came.
        loose = POLICY.replace('text_up_to = "internal"', 'text_up_to = "restricted"')
        site.front.generation = site.generation
        later = Generation({"listed.toml": loose}, Catalogue.of(site.config))
        # Only its own arrival: that of a request whose client has left may come while the next one is judged.
        trace = headers["traceparent"] = f"00-{case.number + 1:032x}-{case.number + 1:016x}-01"
        for upstream in site.upstreams.values():
            upstream.on_request = lambda head: trace.encode() in head and setattr(site.front, "generation", later)
    site.front.health._states.clear()
    asked = Asked(site, endpoint, query, body, headers, "acme")
    await asked.end(WHEN.get(case.way, ""))
    site.own("acme")
    _check(site, case, asked)
    outside = asked.headers.get("x-gateway-route", "").partition("/")[0] in OUTSIDE
    site.restored += site.masks and outside and case.canary.encode() in asked.data
    if asked.status == 200:
        await _go_on(site, case, asked)
    if case.way in {"asks again", "another tenant asks"}:
        tenant = "acme" if case.way == "asks again" else "beta"
        # The second is an exact hit at most; after one, equal bytes are no longer read.
        for _ in range(2):
            site.front.generation = site.generation if changes else site.front.generation
            again = Asked(site, endpoint, query, body, headers, tenant)
            await again.end()
            site.own(tenant)
            _check(site, case, again)
            for nonce in re.findall(r"nonce-\w+-\d+", again.data.decode("utf-8", "replace")):
                if site.owners.get(nonce) != tenant:
                    site.told.append((f"case {case.number}: an answer of another tenant", CLASSES["restricted"].encode()))


async def _go_on(site: Site, case: Case, asked: Asked) -> None:
    """Go on from an answer with words that nobody minds: what they go on from keeps its class, and its tenant."""
    if case.path not in {"responses chain", "responses above", "responses compacted"}:
        return
    with suppress(ValueError, KeyError, IndexError):
        told = json.loads(asked.data)
        model = "m" if case.path == "responses chain" else "through-chat"
        # What comes after a change of policies is judged by what they changed to, which lets more be logged.
        site.front.generation = site.generation if case.fault.endswith("policies change meanwhile") else site.front.generation
        asks: list[dict[str, Any]] = [{"input": "go on", "previous_response_id": told["id"]}]
        if case.path == "responses compacted":
            if told["object"] != "response.compaction":
                return
            # With what its user has said in plain words, and without.
            asks = [{"input": [*told["output"][cut:], {"role": "user", "content": "go on"}]} for cut in (0, -1)]
        elif case.path == "responses above":
            named = {"type": "item_reference", "id": told["output"][0]["id"]}
            asks += [{"input": [named, {"role": "user", "content": "go on"}]}]
        for more in asks:
            for tenant in ("acme", "beta"):
                body = json.dumps({"model": model, "store": False, **more}).encode()
                again = Asked(site, "responses", "", body, {"content-type": "application/json"}, tenant)
                await again.end()
                site.own(tenant)
                # Who names what is not there gets nothing; the words that a client sends itself are its own.
                found = again.status == 200 if "previous_response_id" in more else case.canary.encode() in again.data
                if found and tenant == "beta":
                    site.told.append((f"case {case.number}: a chain of another tenant", CLASSES["restricted"].encode()))


def _check(site: Site, case: Case, asked: Asked) -> None:
    """A refusal holds nothing of the request, nor do headers; an explanation is of facts alone."""
    relayed = b"it broke: nonce-" in asked.data  # An upstream's own words, to the client that has asked.
    if (asked.status >= 400 and not relayed) or case.path == "explain":
        site.told.append((f"case {case.number}: body of a {asked.status}", bytes(asked.data)))
    site.told.append((f"case {case.number}: headers", repr(asked.headers).encode()))


class Raising:
    """A detector that fails on whatever it is given, and says what it was in its exception."""

    waits = False

    @property
    def patterns(self) -> Raising:
        """Itself."""
        return self

    def kinds(self, text: str) -> frozenset[str]:
        raise RuntimeError(text)

    kinds_of_all = find = locate = kinds


@asynccontextmanager
async def site_of(fault: str, redis_url: str, plant: Callable[[Site], Any] | None = None) -> AsyncIterator[Site]:
    """A front worker under this fault."""
    with tempfile.TemporaryDirectory(prefix="canaries-") as name:
        folder = Path(name)
        upstreams = {one: await Upstream(one).start() for one in CLEARED}
        url = NO_REDIS if fault == "redis is down" else redis_url
        site = Site(folder, upstreams, url, fault=fault)
        part, _, rest = fault.removeprefix("masked, ").partition(" ")
        if part in upstreams:
            upstreams[part].mode = "quotes" if rest.startswith("quotes") else rest.rpartition(" ")[2]
        elif fault == "masked, policies change meanwhile":
            upstreams["cloud"].mode = "500"
        elif rest == "raises":
            generation = site.front.generation
            generation.detector = generation.patterns = Raising()  # type: ignore[assignment]
        elif rest == "raises on the way":
            site.front.generation.detector.locate = Raising().find  # type: ignore[method-assign]
        elif rest == "file is damaged":
            (folder / "state" / "redaction.key").write_bytes(b"too short")
        elif rest == "is full":
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
    vaults = _vaults() if fault in MASKED else 0
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
            if site.masks and _vaults() > vaults:
                site.told.append(("memory after the request: what stands for what", CLASSES["restricted"].encode()))
            masked = sum(len(PLACEHOLDER.findall(site.upstreams[name].heard)) for name in OUTSIDE)
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
        "masked": masked,
        "restored": site.restored,
        "bytes": sum(len(one[1]) for one in sinks),
    }


def _vaults() -> int:
    """How many requests' originals are in memory."""
    gc.collect()
    # By type alone: `isinstance` also asks an object for its class, at which some of torch's warn.
    return sum(type(one) is Vault for one in gc.get_objects())


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
        "masked": sum(part["masked"] for part in parts),
        "restored": sum(part["restored"] for part in parts),
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
