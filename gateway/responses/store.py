"""Responses that may be asked for again, and the items they were made from, in one SQLite file. Knows no HTTP and no policy.

Several processes may have the file open. What `put` has returned from survives a killed process; a power cut may lose the last
commits, never the file. A damaged file is set aside under another name, which is said on stderr, and an empty one begun.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

from gateway.files import make_private
from gateway.privacy import CLASSES, highest
from gateway.responses import (
    MAX_CHAIN_BYTES,
    MAX_TURNS,
    TTL_S,
    Head,
    Item,
    Turns,
    after_unknown,
    chain_too_long,
    check_clearance,
    check_page,
    deleted,
    not_found,
    page_of,
    previous_not_found,
    references_too_long,
    too_large,
    unusable,
)

T = TypeVar("T")

MAX_BYTES = 2**30

_SWEEP_ROWS = 200
_SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (
    tenant TEXT NOT NULL, id TEXT NOT NULL, class TEXT NOT NULL, previous TEXT, created_at REAL NOT NULL,
    expires_at REAL NOT NULL, body BLOB NOT NULL, PRIMARY KEY (tenant, id));
CREATE INDEX IF NOT EXISTS responses_expiry ON responses (expires_at);
CREATE INDEX IF NOT EXISTS responses_age ON responses (created_at);
CREATE TABLE IF NOT EXISTS items (
    tenant TEXT NOT NULL, response TEXT NOT NULL, number INTEGER NOT NULL, output INTEGER NOT NULL, id TEXT NOT NULL,
    body BLOB NOT NULL, PRIMARY KEY (tenant, response, number),
    FOREIGN KEY (tenant, response) REFERENCES responses (tenant, id) ON DELETE CASCADE);
CREATE INDEX IF NOT EXISTS items_id ON items (tenant, id);
"""


class ResponseStore:
    """A `responses.Store`: one file. Every method is answered by one thread of its own, so that the event loop stays free.

    The file cannot be used while the disk is full or a lock is held too long.
    """

    def __init__(
        self, path: Path, *, ttl_s: float = TTL_S, max_bytes: int = MAX_BYTES, clock: Callable[[], float] = time.time
    ) -> None:
        """Opens nothing yet. `max_bytes`: above it the oldest responses go. `clock` gives Unix seconds."""
        self._path = path
        self._ttl_s = ttl_s
        self._max_bytes = max_bytes
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="response-store")
        self._db: sqlite3.Connection | None = None
        self._inode = 0

    async def put(
        self,
        response: dict[str, Any],
        *,
        input_items: Sequence[Item],
        tenant: str,
        class_: str,
        expires_at: float | None = None,
    ) -> None:
        """See `Store.put`. Too large is what would take a quarter of the store."""
        check_clearance(class_)
        await self._run(
            _put,
            max_bytes=self._max_bytes,
            now=self._clock(),
            response=response,
            input_items=input_items,
            tenant=tenant,
            class_=class_,
            expires_at=self._until(expires_at),
        )

    async def get(self, id_: str, tenant: str) -> dict[str, Any]:
        """See `Store.get`."""
        return await self._run(_get, self._clock(), id_, tenant)

    async def head(self, id_: str, tenant: str) -> Head:
        """See `Store.head`."""
        return await self._run(_head, self._clock(), id_, tenant)

    async def delete(self, id_: str, tenant: str) -> dict[str, Any]:
        """See `Store.delete`."""
        return await self._run(_delete, self._clock(), id_, tenant, then=_truncate)

    async def input_items(
        self, id_: str, tenant: str, *, limit: int = 20, after: str | None = None, order: Literal["asc", "desc"] = "desc"
    ) -> dict[str, Any]:
        """See `Store.input_items`."""
        check_page(limit, order)
        return await self._run(_input_items, self._clock(), id_, tenant, limit=limit, after=after, order=order)

    async def chain(self, id_: str, tenant: str) -> Turns:
        """See `Store.chain`."""
        return await self._run(_chain, self._clock(), id_, tenant)

    async def items(self, ids: Sequence[str], tenant: str) -> Turns:
        """See `Store.items`."""
        return await self._run(_items, self._clock(), ids, tenant) if ids else Turns([], CLASSES[0])

    async def purge(
        self,
        *,
        tenant: str | None = None,
        class_: str | None = None,
        subject: Callable[[bytes], bool] | None = None,
        dry_run: bool = False,
    ) -> int:
        """See `Store.purge`."""
        return await self._run(_purge, tenant, class_, subject, dry_run=dry_run, then=None if dry_run else _truncate)

    async def aclose(self) -> None:
        """See `Store.aclose`."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown()

    def _until(self, expires_at: float | None) -> float:
        return self._clock() + self._ttl_s if expires_at is None else expires_at

    async def _run(
        self, work: Callable[..., T], *args: Any, then: Callable[[sqlite3.Connection], None] | None = None, **kwargs: Any
    ) -> T:
        """Do `work` in one transaction on the store's thread, once more if the file was damaged, and `then` after it."""

        def attempt() -> T:
            db = self._opened()
            done = _committed(db, work, *args, **kwargs)
            if then is not None:
                then(db)
            return done

        def call() -> T:
            try:
                try:
                    return attempt()
                except (sqlite3.DatabaseError, _Damaged) as error:
                    if not _is_damage(error):
                        raise
                    self._set_aside(error)
                    return attempt()
            except (sqlite3.Error, _Damaged, OSError) as error:
                raise unusable(error) from error

        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def _opened(self) -> sqlite3.Connection:
        """The connection; a new one when another file stands there than was opened, or none."""
        try:
            inode = self._path.stat().st_ino
        except FileNotFoundError:
            make_private(self._path.parent)
            # Only ever a file that nobody has: closing it here would drop the locks of a connection of this process
            # (sqlite.org, "How To Corrupt An SQLite Database File", section 2.2).
            with suppress(FileExistsError):
                os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            inode = self._path.stat().st_ino
        if self._db is None or inode != self._inode:
            self._close()
            self._inode = inode
            self._db = _connect(self._path)
        return self._db

    def _close(self) -> None:
        if self._db is not None:
            with suppress(sqlite3.Error):
                self._db.close()
            self._db = None

    def _set_aside(self, error: Exception) -> None:
        """Keep the damaged file under another name; when another process has done so already, only let go of it."""
        self._close()
        with suppress(FileNotFoundError):
            if self._path.stat().st_ino != self._inode:
                return
            aside = self._path.with_name(f"{self._path.name}.damaged-{time.time_ns()}")
            self._path.rename(aside)
            for suffix in ("-wal", "-shm"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            sys.stderr.write(f"{self._path}: damaged ({error}); kept as {aside.name}, starting with no stored responses\n")


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
    try:
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "secure_delete=ON", "foreign_keys=ON"):
            db.execute(f"PRAGMA {pragma}")
        db.executescript(_SCHEMA)
    except BaseException:
        db.close()
        raise
    return db


class _Damaged(Exception):
    """A row does not hold what was written into it."""


def _is_damage(error: Exception) -> bool:
    """Whether the file itself is broken, as against a full disk or a lock."""
    return isinstance(error, _Damaged) or getattr(error, "sqlite_errorcode", 0) & 0xFF in {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
    }


def _truncate(db: sqlite3.Connection) -> None:
    """Empty the log of commits, so that what was forgotten is in no file; while another process reads, that waits."""
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()


def _load(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        raise _Damaged("a row is not JSON") from None
    if not isinstance(value, dict):
        raise _Damaged("a row is no object")
    return value


def _committed(db: sqlite3.Connection, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Do the work in one transaction."""
    db.execute("BEGIN IMMEDIATE")
    try:
        done = work(db, *args, **kwargs)
        db.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise
    return done


def _put(
    db: sqlite3.Connection,
    *,
    max_bytes: int,
    now: float,
    response: dict[str, Any],
    input_items: Sequence[Item],
    tenant: str,
    class_: str,
    expires_at: float,
) -> None:
    id_ = response["id"]
    rows = [(False, item) for item in input_items] + [(True, item) for item in response["output"]]
    listed = [(tenant, id_, number, out, item["id"], _dump(item)) for number, (out, item) in enumerate(rows)]
    body = _dump(response)
    if len(body) + sum(len(row[-1]) for row in listed) > max_bytes // 4:
        raise too_large()
    _sweep(db, now)
    db.execute("DELETE FROM responses WHERE tenant = ? AND id = ?", (tenant, id_))
    head = (tenant, id_, class_, response.get("previous_response_id"), now, expires_at, body)
    db.execute("INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?)", head)
    db.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?, ?)", listed)
    oldest = "SELECT rowid FROM responses ORDER BY created_at, rowid LIMIT 1"
    while _used_bytes(db) > max_bytes and db.execute(f"DELETE FROM responses WHERE rowid = ({oldest})").rowcount:  # noqa: S608
        pass


def _used_bytes(db: sqlite3.Connection) -> int:
    """Bytes of the pages that hold something."""
    pages, free, size = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size"))
    return int((pages - free) * size)


def _sweep(db: sqlite3.Connection, now: float) -> None:
    """Remove some of what has expired."""
    rows = f"SELECT rowid FROM responses WHERE expires_at <= ? LIMIT {_SWEEP_ROWS}"  # noqa: S608 - a fixed number
    db.execute(f"DELETE FROM responses WHERE rowid IN ({rows})", (now,))  # noqa: S608 - as above


def _row(db: sqlite3.Connection, now: float, id_: str, tenant: str) -> tuple[str, dict[str, Any]]:
    query = "SELECT class, body FROM responses WHERE tenant = ? AND id = ? AND expires_at > ?"
    row = db.execute(query, (tenant, id_, now)).fetchone()
    if row is None:
        raise not_found()
    return row[0], _load(row[1])


def _get(db: sqlite3.Connection, now: float, id_: str, tenant: str) -> dict[str, Any]:
    return _row(db, now, id_, tenant)[1]


def _head(db: sqlite3.Connection, now: float, id_: str, tenant: str) -> Head:
    class_, response = _row(db, now, id_, tenant)
    return Head(class_, str(response.get("model", "")))


def _delete(db: sqlite3.Connection, now: float, id_: str, tenant: str) -> dict[str, Any]:
    _get(db, now, id_, tenant)
    db.execute("DELETE FROM responses WHERE tenant = ? AND id = ?", (tenant, id_))
    return deleted(id_)


def _input_items(
    db: sqlite3.Connection, now: float, id_: str, tenant: str, *, limit: int, after: str | None, order: str
) -> dict[str, Any]:
    _get(db, now, id_, tenant)
    mine = (tenant, id_)
    bound, compare, direction = -1, ">", "ASC"
    if order == "desc":
        bound, compare, direction = sys.maxsize, "<", "DESC"
    if after is not None:
        query = "SELECT number FROM items WHERE tenant = ? AND response = ? AND id = ? AND output = 0"
        row = db.execute(query, (*mine, after)).fetchone()
        if row is None:
            raise after_unknown()
        bound = row[0]
    where = f"tenant = ? AND response = ? AND output = 0 AND number {compare} ?"
    query = f"SELECT body FROM items WHERE {where} ORDER BY number {direction} LIMIT ?"  # noqa: S608 - fixed words
    page = [_load(body) for (body,) in db.execute(query, (*mine, bound, limit + 1))]
    return page_of(page, limit)


def _chain(db: sqlite3.Connection, now: float, id_: str, tenant: str) -> Turns:
    turns: list[list[bytes]] = []
    classes: list[str] = []
    size = 0
    previous: str | None = id_
    while previous is not None:
        query = "SELECT class, previous FROM responses WHERE tenant = ? AND id = ? AND expires_at > ?"
        head = db.execute(query, (tenant, previous, now)).fetchone()
        if head is None:
            raise previous_not_found()
        mine = "FROM items WHERE tenant = ? AND response = ?"
        size += db.execute(f"SELECT coalesce(sum(length(body)), 0) {mine}", (tenant, previous)).fetchone()[0]
        if len(turns) >= MAX_TURNS or size > MAX_CHAIN_BYTES:
            raise chain_too_long()
        query = f"SELECT body {mine} ORDER BY number"
        turns.append([body for (body,) in db.execute(query, (tenant, previous))])
        classes.append(head[0])
        previous = head[1]
    return Turns([_load(body) for turn in reversed(turns) for body in turn], highest(*classes))


def _items(db: sqlite3.Connection, now: float, ids: Sequence[str], tenant: str) -> Turns:
    found, classes, size = [], [], 0
    for id_ in dict.fromkeys(ids):
        query = (
            "SELECT items.body, class FROM items JOIN responses ON responses.tenant = items.tenant"
            " AND responses.id = items.response WHERE items.tenant = ? AND items.id = ? AND expires_at > ?"
            " ORDER BY created_at DESC LIMIT 1"
        )
        for body, class_ in db.execute(query, (tenant, id_, now)):
            size += len(body)
            if size > MAX_CHAIN_BYTES:
                raise references_too_long()
            found.append(_load(body))
            classes.append(class_)
    return Turns(found, highest(*classes))


def _purge(
    db: sqlite3.Connection,
    tenant: str | None,
    class_: str | None,
    subject: Callable[[bytes], bool] | None,
    *,
    dry_run: bool,
) -> int:
    where = "(? IS NULL OR tenant = ?) AND (? IS NULL OR class = ?)"
    given: tuple[Any, ...] = (tenant, tenant, class_, class_)
    if subject is None and not dry_run:
        return db.execute(f"DELETE FROM responses WHERE {where}", given).rowcount  # noqa: S608 - fixed words
    found = db.execute(f"SELECT rowid, tenant, id, body FROM responses WHERE {where}", given)  # noqa: S608 - fixed words
    query = "SELECT body FROM items WHERE tenant = ? AND response = ?"
    rows = [
        (row,)
        for row, whose, id_, body in found
        if subject is None or subject(body) or any(subject(item) for (item,) in db.execute(query, (whose, id_)))
    ]
    if not dry_run:
        db.executemany("DELETE FROM responses WHERE rowid = ?", rows)
    return len(rows)
