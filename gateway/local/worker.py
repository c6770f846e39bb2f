"""The model worker's process: one model behind a Unix socket. Knows connections and calls; the engine knows the tokens.

    python -m gateway.local.worker --socket PATH --name NAME --weights DIR [--quantization bnb-int8|bnb-nf4|none] ...

Three threads: this one serves sockets, one steps the engine (all torch work), one tokenises prompts. So a long step never
delays a cancel or a new call by more than itself, and a long prompt never delays a step.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import logging
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from gateway import frames as wire
from gateway import process
from gateway.errors import WorkerGone
from gateway.local.frames import Cancel, Failed, Finished, FromWorker, Generate, Hello, to_worker_decoder
from gateway.local.quiet import hush
from gateway.weights import WeightsError

if TYPE_CHECKING:
    from gateway.local.engine import Engine
    from gateway.local.model import Loaded, Reader

_MOST_UNREAD_BYTES = 16 * 1024 * 1024
"""A front worker that leaves more than this unread has hung; its connection is closed."""

_log = logging.getLogger("gateway.local")


class Connection:
    """One front worker: its writer, and its call ids → our numbers."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.calls: dict[int, int] = {}
        self._writer = writer

    def send(self, frame: FromWorker) -> None:
        """Write without waiting: a slow reader must not hold up the other rows."""
        if self._writer.is_closing():
            return
        self._writer.write(wire.encode(frame))
        if self._writer.transport.get_write_buffer_size() > _MOST_UNREAD_BYTES:
            _log.error("a front worker reads no more; closing its connection")
            self._writer.transport.abort()


class Worker:
    """Serves one engine to any number of connections."""

    def __init__(self, hello: Hello, engine: Engine, reader: Reader, *, max_rows: int, max_waiting: int) -> None:
        self._hello = hello
        self._engine = engine
        self._reader = reader
        self._most = max_rows + max_waiting
        self._max_waiting = max_waiting
        self._numbers = itertools.count(1)
        self._live: dict[int, tuple[Connection, int]] = {}
        """Our number → who asked, under which id. Numbers are ours because ids repeat between connections."""
        self._work = asyncio.Event()
        self._stepping = ThreadPoolExecutor(1, "engine")
        self._reading = ThreadPoolExecutor(1, "reader")
        self._tasks: set[asyncio.Task[None]] = set()

    async def run_engine(self) -> None:
        """Step while there is work; deliver each step's frames before the next."""
        loop = asyncio.get_running_loop()
        while True:
            await self._work.wait()
            self._work.clear()
            while not self._engine.idle:
                for frame in await loop.run_in_executor(self._stepping, self._engine.step):
                    self._deliver(frame)

    async def serve(self, stream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from Hello until either side closes; then its calls are cancelled."""
        connection = Connection(writer)
        connection.send(self._hello)
        decoder = to_worker_decoder()
        try:
            while (frame := await wire.read(stream, decoder)) is not None:
                match frame:
                    case Generate():
                        self._begin(connection, frame)
                    case Cancel():
                        self._cancel(connection, frame.id)
        except WorkerGone as error:
            _log.warning("a front worker's connection broke: %s", error)
        finally:
            for call in list(connection.calls):
                self._cancel(connection, call)
            writer.close()

    def _begin(self, connection: Connection, frame: Generate) -> None:
        if len(self._live) >= self._most:
            connection.send(
                Failed(
                    frame.id, "overloaded", f"the local model is busy: {self._max_waiting} requests already wait; try again later"
                )
            )
            return
        number = next(self._numbers)
        self._live[number] = (connection, frame.id)
        connection.calls[frame.id] = number
        task = asyncio.create_task(self._queue(number, msgspec.structs.replace(frame, id=number)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _queue(self, number: int, generate: Generate) -> None:
        """Tokenise the prompt, then hand the call to the engine."""
        try:
            prompt = await asyncio.get_running_loop().run_in_executor(self._reading, self._reader.read, generate)
        except Exception as error:  # noqa: BLE001 - the boundary of one call; the text of the error may hold the prompt's
            _log.error("a prompt could not be read: %s", type(error).__name__)
            prompt = Failed(number, "internal", f"the local model could not read the prompt: {type(error).__name__}")
        if isinstance(prompt, Failed):
            self._deliver(prompt)
        elif number in self._live:
            self._engine.add(generate, prompt)
            self._work.set()

    def _cancel(self, connection: Connection, call: int) -> None:
        number = connection.calls.pop(call, None)
        if number is not None:
            del self._live[number]
            self._engine.cancel(number)

    def _deliver(self, frame: FromWorker) -> None:
        """Send the frame under the id its caller knows; one of a cancelled call goes nowhere."""
        live = self._live.get(frame.id)
        if live is None:
            return
        connection, call = live
        if isinstance(frame, Finished | Failed):
            del self._live[frame.id]
            del connection.calls[call]
        connection.send(msgspec.structs.replace(frame, id=call))


def main(arguments: Sequence[str] | None = None) -> int:
    """Load, listen, serve until told to stop. Returns the exit status."""
    options = _options(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(name)s: %(message)s")
    return process.run(partial(_work, options), options.socket)


async def _work(options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1, "loader") as loader:
        loaded, engine, reader = await loop.run_in_executor(loader, _load, options)
    hello = Hello(options.name, loaded.quantization, loaded.device, loaded.context, options.max_rows)
    worker = Worker(hello, engine, reader, max_rows=options.max_rows, max_waiting=options.max_waiting)
    server = await process.listen(worker.serve, options.socket)
    process.report("ready", f"{options.name} on {loaded.device}, {loaded.quantization}, {loaded.context} tokens of context")
    async with server:
        await worker.run_engine()


def _load(options: argparse.Namespace) -> tuple[Loaded, Engine, Reader]:
    """Import the heavy libraries and load the weights; seconds, so not on the loop."""
    folder = Path(options.weights)
    if not (folder / "config.json").is_file():
        raise WeightsError(f'weights of "{options.name}" are missing in {folder}; run: gateway models pull {options.name}')
    process.report("loading", "importing torch and transformers")
    try:
        hush()
        from gateway.local.engine import Engine  # noqa: PLC0415 - heavy: torch comes in after the first report
        from gateway.local.model import Reader, load  # noqa: PLC0415 - as above
    except ImportError as error:
        raise WeightsError(f'{error.name} is missing; run: pip install "gateway[local]"') from error
    process.report("loading", f"loading {options.name} ({options.quantization})")
    loaded = load(
        folder,
        quantization=options.quantization,
        device=options.device,
        threads=options.threads,
        context=options.context,
    )
    return loaded, Engine(loaded, max_rows=options.max_rows), Reader(loaded)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gateway.local.worker")
    parser.add_argument("--socket", required=True, help="path of the Unix socket to listen on")
    parser.add_argument("--name", required=True, help="what the model is called in the configuration")
    parser.add_argument("--weights", required=True, help="folder with config.json, safetensors and tokenizer")
    parser.add_argument("--quantization", choices=["bnb-int8", "bnb-nf4", "none"], default="bnb-int8")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0: physical cores minus one")
    parser.add_argument("--max-rows", type=int, default=8, help="answers that advance together")
    parser.add_argument("--max-waiting", type=int, default=32, help="requests that may wait for a row")
    parser.add_argument("--context", type=int, default=0, help="tokens of prompt and answer; 0: the model's own limit")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
