"""Which upstream keeps what: stored responses, files and batches, and for whom. A small SQLite table in the state folder.

Knows ids, tenants, upstreams and classes; nothing of what is kept under an id. All work is done by one thread, in order, so what
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
from typing import Any, Literal, cast

from msgspec import Struct

from gateway.config import Class
from gateway.errors import Unavailable
from gateway.files import make_private

Kind = Literal["response", "file", "batch"]
"""What an upstream keeps. The same id may stand for one of each."""

KEEP_S = 31 * 86_400.0
"""Upstreams keep a stored response for 30 days (OpenAI's API reference, `store`); what is older is forgotten at the start.
Files and batches stay until they are deleted."""

_SCHEMA = """
create table if not exists kept (
    tenant text not null, kind text not null, id text not null, upstream text not null, model text not null, name text not null,
    class text not null, made_at real not null, primary key (tenant, kind, id)
) without rowid
"""
_OLD_TABLE = "select 1 from sqlite_master where type = 'table' and name = 'responses'"
_TAKE_OVER = """
insert or ignore into kept select tenant, 'response', id, upstream, model, name, class, made_at from responses;
drop table responses;
"""
"""Before files and batches there was a table of responses alone."""


class Made(Struct, frozen=True):
    """Where something is kept, and what it is worth."""

    upstream: str
    model: str
    """The upstream's own name of the model that it was made with."""
    name: str
    """The model as the client named it."""
    class_: Class
    """Of the request that made it: whatever goes on from it is at least of this class."""


class Affinity:
    """The table of one front worker. An id is looked up together with the tenant that it was made for, never alone."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives Unix seconds. The file is made when the first thing is kept or asked for."""
        self._path = path
        self._clock = clock
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="affinity")
        self._connection: sqlite3.Connection | None = None
        self.problem = ""
        """Why the last write failed, for operators; empty when it did not."""

    def remember(self, tenant: str, id_: str, made: Made, *, kind: Kind = "response") -> None:
        """Note where something is kept; returns at once. A failure shows in `problem`: it cannot be found then.

        What is known already keeps its time, and so its place in a list.
        """
        row = (tenant, kind, id_, made.upstream, made.model, made.name, made.class_, self._clock())
        self._write(
            "insert into kept values (?, ?, ?, ?, ?, ?, ?, ?) on conflict do update set "
            "upstream = excluded.upstream, model = excluded.model, name = excluded.name, class = excluded.class",
            row,
        )

    def forget(self, tenant: str, id_: str, *, kind: Kind = "response") -> None:
        """It was deleted; returns at once."""
        self._write("delete from kept where tenant = ? and kind = ? and id = ?", (tenant, kind, id_))

    async def find(self, tenant: str, id_: str, *, kind: Kind = "response") -> Made | None:
        """Where this tenant's thing is; None when it has none of this id. Raises Unavailable when the table is unreadable."""
        rows = await self._read(
            "select upstream, model, name, class from kept where tenant = ? and kind = ? and id = ?", (tenant, kind, id_)
        )
        return _made(rows[0]) if rows else None

    async def page(self, tenant: str, *, kind: Kind, after: str, newest_first: bool, limit: int) -> list[tuple[str, Made]]:
        """The ids of this tenant by time, those that follow the id `after` (empty: from the first), at most `limit`.

        An `after` that is not known gives none. Raises Unavailable as `find` does.
        """
        side, order = ("<", "desc") if newest_first else (">", "asc")
        place = f"and (made_at, id) {side} (select made_at, id from kept where tenant = ? and kind = ? and id = ?)"  # noqa: S608 - as below
        values = (tenant, kind, *((tenant, kind, after) if after else ()), limit)
        rows = await self._read(
            f"select id, upstream, model, name, class from kept where tenant = ? and kind = ? {place if after else ''} "  # noqa: S608 - put together from the constants above; every value is a parameter
            f"order by made_at {order}, id {order} limit ?",
            values,
        )
        return [(row[0], _made(row[1:])) for row in rows]

    async def purge(self, *, tenant: str | None, class_: str | None, dry_run: bool) -> int:
        """Forget where things are kept, of a tenant, a class, both, or all; how many. Raises Unavailable as `find` does.

        What upstreams keep stays there; nobody can ask for it through the gateway any more.
        """
        where, values = "(? is null or tenant = ?) and (? is null or class = ?)", (tenant, tenant, class_, class_)
        rows = await self._read(f"select count(*) from kept where {where}", values)  # noqa: S608 - as above
        if not dry_run:
            await self._read(f"delete from kept where {where} returning 1", values)  # noqa: S608 - as above
        return int(rows[0][0])

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

    async def _read(self, statement: str, values: tuple[Any, ...]) -> list[Any]:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._select, statement, values)
        except (sqlite3.Error, OSError) as error:
            said = (
                f"The table of what upstreams keep ({self._path.name}) cannot be read ({type(error).__name__}); "
                "tell the operator."
            )
            raise Unavailable(said, code="state_unavailable", should_retry=False) from None

    def _select(self, statement: str, values: tuple[Any, ...]) -> list[Any]:
        with self._open() as connection:
            return connection.execute(statement, values).fetchall()

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            make_private(self._path.parent)
            self._path.touch(mode=0o600)
            connection = sqlite3.connect(self._path, check_same_thread=False)
            connection.execute("pragma journal_mode = wal")
            with connection:
                connection.execute(_SCHEMA)
                if connection.execute(_OLD_TABLE).fetchone():
                    connection.executescript(_TAKE_OVER)
                connection.execute("delete from kept where kind = 'response' and made_at < ?", (self._clock() - KEEP_S,))
            self._connection = connection
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _made(row: Any) -> Made:
    return Made(row[0], row[1], row[2], cast("Class", row[3]))
