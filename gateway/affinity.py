"""Which upstream made a stored response, and for whom: a small SQLite table in the state folder.

Knows ids, tenants, upstreams and classes; nothing of what a response says. All work is done by one thread, in order, so what
was remembered is found by whoever asks afterwards, and the event loop never waits for the disk.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from msgspec import Struct

from gateway.config import Class
from gateway.errors import Unavailable

KEEP_S = 31 * 86_400.0
"""Upstreams keep a stored response for 30 days (OpenAI's API reference, `store`); what is older is forgotten at the start."""

_SCHEMA = """
create table if not exists responses (
    tenant text not null, id text not null, upstream text not null, model text not null, name text not null,
    class text not null, made_at real not null, primary key (tenant, id)
) without rowid
"""


class Made(Struct, frozen=True):
    """Where a stored response is, and what it is worth."""

    upstream: str
    model: str
    """The upstream's own name of the model that made it."""
    name: str
    """The model as the client named it."""
    class_: Class
    """Of the request that it answered: whatever goes on from it is at least of this class."""


class Affinity:
    """The table of one front worker. An id is looked up together with the tenant that it was made for, never alone."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives Unix seconds. The file is made when the first response is stored or asked for."""
        self._path = path
        self._clock = clock
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="affinity")
        self._connection: sqlite3.Connection | None = None
        self.problem = ""
        """Why the last write failed, for operators; empty when it did not."""

    def remember(self, tenant: str, id_: str, made: Made) -> None:
        """Note where a response is kept; returns at once. A failure shows in `problem`: the response cannot be found then."""
        row = (tenant, id_, made.upstream, made.model, made.name, made.class_, self._clock())
        self._write("insert or replace into responses values (?, ?, ?, ?, ?, ?, ?)", row)

    def forget(self, tenant: str, id_: str) -> None:
        """The response was deleted; returns at once."""
        self._write("delete from responses where tenant = ? and id = ?", (tenant, id_))

    async def find(self, tenant: str, id_: str) -> Made | None:
        """Where this tenant's response is; None when it has none of this id. Raises Unavailable when the table is unreadable."""
        try:
            row = await asyncio.get_running_loop().run_in_executor(self._thread, self._read, tenant, id_)
        except (sqlite3.Error, OSError) as error:
            said = (
                f"The table of stored responses ({self._path.name}) cannot be read ({type(error).__name__}); tell the operator."
            )
            raise Unavailable(said, code="state_unavailable", should_retry=False) from None
        return Made(row[0], row[1], row[2], cast("Class", row[3])) if row else None

    async def aclose(self) -> None:
        """Write what is waiting, then close the file."""
        with suppress(RuntimeError):
            await asyncio.wrap_future(self._thread.submit(self._close))
        self._thread.shutdown()

    def _write(self, statement: str, values: tuple[Any, ...]) -> None:
        self._thread.submit(self._execute, statement, values).add_done_callback(self._written)

    def _written(self, done: Future[None]) -> None:
        error = done.exception()
        self.problem = f"cannot be written: {type(error).__name__}" if error else ""

    def _execute(self, statement: str, values: tuple[Any, ...]) -> None:
        with self._open() as connection:
            connection.execute(statement, values)

    def _read(self, tenant: str, id_: str) -> Any:
        found = self._open().execute(
            "select upstream, model, name, class from responses where tenant = ? and id = ?", (tenant, id_)
        )
        return found.fetchone()

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(mode=0o600)
            connection = sqlite3.connect(self._path, check_same_thread=False)
            connection.execute("pragma journal_mode = wal")
            with connection:
                connection.execute(_SCHEMA)
                connection.execute("delete from responses where made_at < ?", (self._clock() - KEEP_S,))
            self._connection = connection
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
