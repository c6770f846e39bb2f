"""The names worker's process: one model that knows names, behind a Unix socket.

    python -m gateway.names.worker --socket PATH --engine presidio|gliner --model NAME_OR_FOLDER [--language en]

The event loop moves frames; the model reads on one thread, call after call. Text that was read is kept nowhere.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import get_args

from gateway import frames as wire
from gateway import process
from gateway.errors import WorkerGone
from gateway.names import engines
from gateway.names.frames import Failed, Found, FromWorker, Read, to_worker_decoder


class Worker:
    """Serves one engine to any number of connections."""

    def __init__(self, engine: engines.Engine) -> None:
        self._engine = engine
        self._reading = ThreadPoolExecutor(1, "reader")
        self._calls: set[asyncio.Task[None]] = set()

    async def serve(self, stream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side closes; then nothing more is read for it."""
        decoder, calls = to_worker_decoder(), set[asyncio.Task[None]]()
        with suppress(WorkerGone):
            while (frame := await wire.read(stream, decoder)) is not None:
                call = asyncio.create_task(self._answer(frame, writer))
                calls.add(call)
                call.add_done_callback(calls.discard)
        for call in calls:
            call.cancel()
        writer.close()

    async def _answer(self, frame: Read, writer: asyncio.StreamWriter) -> None:
        until = time.monotonic() + frame.patience_s
        answer = await asyncio.get_running_loop().run_in_executor(self._reading, self._read, frame, until)
        if not writer.is_closing():
            writer.write(wire.encode(answer))

    def _read(self, frame: Read, until: float) -> FromWorker:
        # What waited too long in a line is passed over, or a burst would make all that comes after it late as well.
        if time.monotonic() > until:
            return Failed(frame.id, "late")
        try:
            return Found(frame.id, [self._engine.locate(text) for text in frame.texts])
        except Exception as error:  # noqa: BLE001 - the boundary of one call; the words of the error may be the text's
            return Failed(frame.id, type(error).__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Load, listen, serve until told to stop. Returns the exit status."""
    options = _options(arguments)
    return process.run(partial(_work, options), options.socket)


async def _work(options: argparse.Namespace) -> None:
    process.report("loading", f"loading {options.engine} with {options.model}")
    with ThreadPoolExecutor(1, "loader") as loader:
        engine = await asyncio.get_running_loop().run_in_executor(loader, _load, options)
    server = await process.listen(Worker(engine).serve, options.socket)
    process.report("ready", f"{options.engine} with {options.model}")
    async with server:
        await server.serve_forever()


def _load(options: argparse.Namespace) -> engines.Engine:
    return engines.load(options.engine, options.model, language=options.language, least_score=options.least_score)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gateway.names.worker")
    parser.add_argument("--socket", required=True, help="path of the Unix socket to listen on")
    parser.add_argument("--engine", choices=get_args(engines.EngineName), required=True)
    parser.add_argument("--model", required=True, help="spaCy pipeline (a package or a folder), or GLiNER's folder")
    parser.add_argument("--language", default="en", help="of the spaCy pipeline")
    parser.add_argument("--least-score", type=float, default=0.5, help="below it a name is none")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
