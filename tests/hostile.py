"""An upstream on a real socket that does what its script says, well-behaved or not. Knows HTTP/1.1 only as far as it must."""

import asyncio
import json
import socket
import struct
from contextlib import asynccontextmanager, suppress

RESET = "reset"
"""Drop the connection with a RST."""
HANG = "hang"
"""Say nothing more until the peer leaves."""


def head(status=200, media="text/event-stream", **headers):
    lines = [f"HTTP/1.1 {status} Any", f"content-type: {media}", "connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def answer(status, body, media="application/json", **headers):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return head(status, media, content_length=len(body), **headers) + body


def error(status, message="no", code=None, **headers):
    return answer(status, {"error": {"message": message, "type": "server_error", "param": None, "code": code}}, **headers)


def chunk(content="", *, finish=None, end=b"\n\n", **fields):
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish}
    whole = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "up", "choices": [choice], **fields}
    return b"data: " + json.dumps(whole).encode() + end


def completion(content="fine", finish="stop"):
    choice = {"index": 0, "message": {"role": "assistant", "content": content, "refusal": None}, "finish_reason": finish}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    return {"id": "c1", "object": "chat.completion", "created": 1, "model": "up", "choices": [choice], "usage": usage}


GOOD = (head(), chunk("fine"), chunk(finish="stop"), b"data: [DONE]\n\n")


class Hostile:
    """What came in, and whether the last peer has left."""

    def __init__(self):
        self.scripts = [GOOD]
        """One for each request, the last one for all that follow: bytes to send, RESET or HANG; then the connection closes."""
        self.requests = []
        """(head, body) of each, as bytes."""
        self.arrived = asyncio.Event()
        self.left = asyncio.Event()
        self.open = 0
        """Connections that are."""
        self.base_url = ""

    async def serve(self, reader, writer):
        self.open += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            request = await reader.readuntil(b"\r\n\r\n")
            names = dict(line.split(b": ", 1) for line in request.lower().split(b"\r\n")[1:] if b": " in line)
            body = await reader.readexactly(int(names.get(b"content-length", 0)))
            self.requests.append((request, body))
            script = self.scripts[min(len(self.requests), len(self.scripts)) - 1]
            self.arrived.set()
            for step in script:
                if step is RESET:
                    sock = writer.get_extra_info("socket")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                elif step is HANG:
                    await reader.read()
                    self.left.set()
                else:
                    writer.write(step)
                    await writer.drain()
        self.open -= 1
        writer.close()


@asynccontextmanager
async def hostile():
    """A Hostile that listens; closed at the end, whatever its connections do."""
    made = Hostile()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield made
    finally:
        server.close()
