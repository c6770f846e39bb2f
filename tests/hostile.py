"""An upstream on a real socket that does what its script says, well-behaved or not. Knows HTTP/1.1 only as far as it must."""

import asyncio
import json
import socket
import struct
import threading
from contextlib import asynccontextmanager, contextmanager, suppress

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


def event(kind, **fields):
    """A typed event, as Responses and messages send it."""
    return f"event: {kind}\n".encode() + b"data: " + json.dumps({"type": kind, **fields}).encode() + b"\n\n"


def response(status="completed", text="fine", id_="resp_1", **fields):
    """A whole answer of /v1/responses."""
    part = {"type": "output_text", "text": text, "annotations": []}
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    usage = {
        "input_tokens": 5, "output_tokens": 2, "total_tokens": 7,
        "input_tokens_details": {"cached_tokens": 1}, "output_tokens_details": {"reasoning_tokens": 0},
    }  # fmt: skip
    return {
        "id": id_, "object": "response", "created_at": 1, "status": status, "model": "up", "output": [item], "usage": usage,
        "error": None, "incomplete_details": None, "instructions": None, "metadata": {}, "parallel_tool_calls": True,
        "temperature": 1.0, "tool_choice": "auto", "tools": [], "top_p": 1.0, **fields,
    }  # fmt: skip


def begun(**fields):
    """The first event of a streamed response."""
    return event("response.created", sequence_number=0, response=response("in_progress", output=[], usage=None, **fields))


def says(text, number):
    """A piece of a streamed response's text."""
    return event(
        "response.output_text.delta",
        sequence_number=number,
        item_id="msg_1",
        output_index=0,
        content_index=0,
        delta=text,
        logprobs=[],
    )


def ended(number, kind="completed", **fields):
    """The last event of a streamed response."""
    return event(f"response.{kind}", sequence_number=number, response=response(kind, **fields))


def message(text="fine"):
    """A whole answer of /v1/messages."""
    usage = {"input_tokens": 3, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 1, "output_tokens": 2}
    content = [{"type": "text", "text": text}]
    return {"id": "msg_1", "type": "message", "role": "assistant", "model": "up", "content": content, "stop_reason": "end_turn",
            "stop_sequence": None, "usage": usage}  # fmt: skip


def message_events(text="fine"):
    """The events of a streamed message, the first one before anything is said."""
    start = {**message(), "content": [], "stop_reason": None}
    return (
        event("ping"),
        event("message_start", message={**start, "usage": {**start["usage"], "output_tokens": 0}}),
        event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        event("content_block_delta", index=0, delta={"type": "text_delta", "text": text}),
        event("content_block_stop", index=0),
        event("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage={"output_tokens": 2}),
        event("message_stop"),
    )


GOOD = (head(), chunk("fine"), chunk(finish="stop"), b"data: [DONE]\n\n")


class Hostile:
    """What came in, and whether the last peer has left."""

    def __init__(self):
        self.scripts = [GOOD]
        """One for each request, the last one for all that follow: bytes to send, an event to wait for, RESET or HANG; then the connection closes.

        Or a function that makes such a script of the request's head and body.
        """
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
            for step in script(request, body) if callable(script) else script:
                if step is RESET:
                    sock = writer.get_extra_info("socket")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                elif step is HANG:
                    await reader.read()
                    self.left.set()
                elif isinstance(step, asyncio.Event):
                    await step.wait()
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


@contextmanager
def in_a_thread(opens):
    """What an asynchronous context manager opens, on a loop of its own: for tests that wait for other processes."""
    ready, made = threading.Event(), []
    loop, over = asyncio.new_event_loop(), asyncio.Event()

    async def run():
        async with opens as one:
            made.append(one)
            ready.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    try:
        ready.wait(30)
        yield made[0]
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(30)
        loop.close()
