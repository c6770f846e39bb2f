"""An upstream on a real socket that keeps files and batches, and takes sound and images; every byte it gets is there to compare."""

import asyncio
import json
from contextlib import asynccontextmanager, suppress


class Shelf:
    """`requests` holds (first line, headers, body) of each request that came whole."""

    def __init__(self):
        self.requests = []
        self.got = 0
        """Bytes of body so far, of whatever comes in."""
        self.keeps = True
        self.digest = None
        """Of all that comes in, when somebody sets a hash here."""
        self.open = 0
        self.writers = set()
        self.files = {}
        self.batches = {}
        self.refuses = None
        """(status, body) said before a body is read."""
        self.drops_after = None
        """Bytes of body after which the connection is dropped."""
        self.stalls_after = None
        """Bytes of body after which nothing more is read, until `goes_on` is set."""
        self.stalled, self.goes_on = asyncio.Event(), asyncio.Event()
        self.base_url = ""

    async def serve(self, reader, writer):
        self.open += 1
        self.writers.add(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError, ValueError):
            while True:
                await self._one(reader, writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        self.writers.discard(writer)
        self.open -= 1

    async def _one(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.strip().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        headers["content-type"] = next((line.split(": ", 1)[1] for line in lines if line.lower().startswith("content-type")), "")
        if self.refuses:
            self._say(writer, *self.refuses)
            # Closed over unread bytes, the connection would be reset, and the answer lost with it.
            while await reader.read(65536):
                pass
            raise ConnectionError
        body = b"".join([part async for part in self._body(reader, headers)])
        self.requests.append((first, headers, body))
        method, path, _ = first.split(" ")
        self._say(writer, *self._answer(method, path.removeprefix("/v1/"), body))
        await writer.drain()

    async def _body(self, reader, headers):
        chunked = headers.get("transfer-encoding") == "chunked"
        left = int(headers.get("content-length", 0))
        while chunked or left:
            if chunked and not (left := int(await reader.readline(), 16)):
                await reader.readline()
                return
            while left:
                part = await reader.readexactly(left) if chunked else await reader.read(min(left, 65536))
                if not part:
                    raise ConnectionError
                left -= len(part)
                self.got += len(part)
                if self.digest is not None:
                    self.digest.update(part)
                if self.drops_after is not None and self.got >= self.drops_after:
                    raise ConnectionError
                if self.stalls_after is not None and self.got >= self.stalls_after:
                    self.stalled.set()
                    await self.goes_on.wait()
                if self.keeps:
                    yield part
            if chunked:
                await reader.readline()

    def _say(self, writer, status, answer, media=None):
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        media = media or ("application/octet-stream" if isinstance(answer, bytes) else "application/json")
        writer.write(f"HTTP/1.1 {status} Any\r\ncontent-type: {media}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)

    def _answer(self, method, path, body):
        folder, _, rest = path.partition("/")
        id_, _, action = rest.partition("/")
        if path.startswith("audio/"):
            return 200, *self._said(body)
        if path.startswith("images/"):
            return 200, {"created": 1, "data": [{"b64_json": "AAAA"}]}
        things = self.files if folder == "files" else self.batches
        if method == "POST" and not rest:
            id_ = f"{folder}-{len(things) + 1}"
            things[id_] = self._file(id_, body) if folder == "files" else self._batch(id_, body)
            return 200, things[id_]
        if id_ not in things:
            return 404, {"error": {"message": "no", "type": "invalid_request_error", "param": None, "code": None}}
        if action == "content":
            return 200, b"\x00the content\xff"
        if method == "DELETE":
            del things[id_]
            return 200, {"id": id_, "object": "file", "deleted": True}
        return 200, things[id_]

    @staticmethod
    def _said(body):
        """What was heard, in the form that is asked for."""
        if b'name="stream"\r\n\r\ntrue' in body:
            events = ({"type": "transcript.text.delta", "delta": "said"}, {"type": "transcript.text.done", "text": "said"})
            return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events), "text/event-stream"
        if b"\r\n\r\ntext\r\n" in body:
            return b"said\n", "text/plain; charset=utf-8"
        return {"text": "said"}, None

    def _file(self, id_, body):
        purpose = "batch" if b"\r\n\r\nbatch\r\n" in body else "user_data"
        return {
            "id": id_,
            "object": "file",
            "bytes": len(body),
            "created_at": 1,
            "filename": "f",
            "purpose": purpose,
            "status": "processed",
        }

    def _batch(self, id_, body):
        self.files["files-out"] = self._file("files-out", b"")
        return {"id": id_, "object": "batch", "endpoint": "/v1/chat/completions", "completion_window": "24h", "created_at": 1,
                "input_file_id": json.loads(body)["input_file_id"], "status": "completed", "output_file_id": "files-out"}  # fmt: skip


@asynccontextmanager
async def shelf():
    """A Shelf that listens."""
    made = Shelf()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, limit=1 << 20)
    made.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield made
    finally:
        server.close()
        async with asyncio.timeout(30):
            while made.open:
                for writer in made.writers:
                    writer.close()
                await asyncio.sleep(0.001)
