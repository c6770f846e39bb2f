"""Stored answers in SQLite, their vectors in FAISS, one partition a scope. One thread at a time; all calls block.

Knows nothing of sockets or embedders: it is given vectors, and the identity of what made them. SQLite is the truth; a FAISS
partition is built from it when its scope is first asked for, and thrown away when memory is short.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]

FILE = "semantic.sqlite3"
NEIGHBOURS = 8
FLAT_UP_TO = 10_000
"""Vectors of one partition that are compared one by one; above it an inverted file with 8-bit codes takes over."""

_GROWTH = 4
"""An inverted file is trained anew when its partition has grown by this factor, since its lists have become long."""
_ROW_OVERHEAD_BYTES = 256
_PARTITIONS = 1_024
_SWEEP_ROWS = 1_000
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS entries (
    id INTEGER PRIMARY KEY AUTOINCREMENT, scope BLOB NOT NULL, key BLOB NOT NULL, tenant TEXT NOT NULL, model TEXT NOT NULL,
    class TEXT NOT NULL, stored_at REAL NOT NULL, expires_at REAL NOT NULL, used_at REAL NOT NULL, hits INTEGER NOT NULL,
    bytes INTEGER NOT NULL, vector BLOB NOT NULL, text TEXT NOT NULL, answer BLOB NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS entries_key ON entries (scope, key);
CREATE INDEX IF NOT EXISTS entries_expiry ON entries (expires_at);
CREATE INDEX IF NOT EXISTS entries_use ON entries (used_at, bytes);
CREATE INDEX IF NOT EXISTS entries_tenant ON entries (tenant, model, class);
"""


class Candidate(NamedTuple):
    """A stored question near the one asked; live when it was looked up."""

    id: int
    key: bytes
    text: str
    cosine: float
    """Exact: from the stored vector, not from its 8-bit code."""
    stored_at: float


class Record(NamedTuple):
    """What one store keeps."""

    scope: bytes
    key: bytes
    text: str
    answer: bytes
    tenant: str
    model: str
    class_: str
    expires_at: float


class Index:
    """The entries of one embedder, bounded in bytes on disk and in memory."""

    def __init__(
        self,
        directory: Path,
        *,
        max_bytes: int,
        memory_bytes: int = 512 * 2**20,
        flat_up_to: int = FLAT_UP_TO,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = directory / FILE
        self._max_bytes = max_bytes
        self._memory_bytes = memory_bytes
        self._flat_up_to = flat_up_to
        self._clock = clock
        self._partitions: OrderedDict[bytes, _Partition] = OrderedDict()
        self._uses: dict[int, tuple[float, int]] = {}
        self._dimensions = 0
        self._identity = ""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._open()

    def _open(self) -> None:
        """Open the file, or set a damaged one aside and start anew; what was in it is only ever a copy of an answer."""
        try:
            self._db = self._connect()
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            self._set_aside(error)
            self._db = self._connect()
        self._count, self._bytes = self._db.execute("SELECT count(*), coalesce(sum(bytes), 0) FROM entries").fetchone()

    def _connect(self) -> sqlite3.Connection:
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=1.0)
        try:
            # A killed process loses nothing that was committed; a power cut may lose the last commits, never the file.
            for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "secure_delete=ON", "journal_size_limit=67108864"):
                db.execute(f"PRAGMA {pragma}")
            db.executescript(_SCHEMA)
            db.execute("SELECT count(*), sum(bytes) FROM entries").fetchone()
        except BaseException:
            db.close()
            raise
        return db

    def _set_aside(self, error: sqlite3.Error) -> None:
        aside = self._path.with_name(f"{FILE}.damaged-{time.time_ns()}")
        self._path.rename(aside)
        for suffix in ("-wal", "-shm"):
            self._path.with_name(FILE + suffix).unlink(missing_ok=True)
        sys.stderr.write(f"{self._path}: damaged ({error}); kept as {aside.name}, starting with an empty cache\n")

    def renew(self, error: sqlite3.Error) -> None:
        """Set the file aside that turned out to be damaged while in use, and go on with an empty one."""
        with suppress(sqlite3.Error):
            self._db.close()
        self._partitions.clear()
        self._uses.clear()
        self._set_aside(error)
        self._open()
        if self._identity:
            self.use_embedder(self._identity, self._dimensions)

    @property
    def entries(self) -> int:
        """How many are kept, expired ones that await the sweep included."""
        return int(self._count)

    @property
    def weight_bytes(self) -> int:
        """What they weigh by our own count: text, vector, answer and a fixed share a row."""
        return int(self._bytes)

    def use_embedder(self, identity: str, dimensions: int) -> int:
        """Say whose vectors come from now on. Entries of any other embedder are purged; returns how many."""
        self._identity, self._dimensions = identity, dimensions
        row = self._db.execute("SELECT value FROM meta WHERE name = 'embedder'").fetchone()
        if row is not None and row[0] == identity:
            return 0
        with self._transaction():
            dropped = self._delete(self._ids("1", ()))
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('embedder', ?)", (identity,))
        return dropped

    def has(self, scope: bytes) -> bool:
        """Whether a search in this scope could find anything; asked before a text is embedded for nothing."""
        return self._partition(scope).count > 0

    def search(self, scope: bytes, vector: Vectors) -> list[Candidate]:
        """The nearest live entries of the scope, nearest first; at most NEIGHBOURS."""
        near = self._partition(scope).search(vector)
        marks = ",".join("?" * len(near))
        rows = self._db.execute(
            f"SELECT id, key, text, vector, stored_at FROM entries WHERE id IN ({marks}) AND expires_at > ?",  # noqa: S608 - marks only
            (*near, self._clock()),
        )
        found = [
            Candidate(id_, key, text, float(vector @ np.frombuffer(stored, np.float32)), stored_at)
            for id_, key, text, stored, stored_at in rows
        ]
        return sorted(found, key=lambda candidate: -candidate.cosine)

    def answer(self, candidate: Candidate) -> bytes:
        """The answer of a candidate that will be served; counts as a use."""
        at, hits = self._uses.get(candidate.id, (0.0, 0))
        self._uses[candidate.id] = (max(at, self._clock()), hits + 1)
        row = self._db.execute("SELECT answer FROM entries WHERE id = ?", (candidate.id,)).fetchone()
        return bytes(row[0])

    def store(self, record: Record, vector: Vectors) -> bool:
        """Keep the answer; the same key in the same scope replaces it. False when it alone is above the size cap."""
        size = len(record.text.encode("utf-8", "surrogatepass")) + len(record.answer) + vector.nbytes + _ROW_OVERHEAD_BYTES
        if size > self._max_bytes:
            return False
        now = self._clock()
        with self._transaction():
            old = self._db.execute("SELECT id, bytes FROM entries WHERE scope = ? AND key = ?", record[:2]).fetchone()
            if old is not None:
                self._db.execute(
                    "UPDATE entries SET answer = ?, tenant = ?, model = ?, class = ?, stored_at = ?, expires_at = ?, used_at = ?,"
                    " bytes = ? WHERE id = ?",
                    (record.answer, record.tenant, record.model, record.class_, now, record.expires_at, now, size, old[0]),
                )
            else:
                self._insert(record, vector, now, size)
            self._bytes += size - (old[1] if old else 0)
            if self._bytes > self._max_bytes:
                self._make_room()
        return True

    def _insert(self, record: Record, vector: Vectors, now: float, size: int) -> None:
        columns = (record.scope, record.key, record.tenant, record.model, record.class_, now, record.expires_at, now, 0, size)
        cursor = self._db.execute(
            "INSERT INTO entries (scope, key, tenant, model, class, stored_at, expires_at, used_at, hits, bytes, vector, text,"
            " answer) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (*columns, vector.tobytes(), record.text, record.answer),
        )
        self._count += 1
        if (partition := self._partitions.get(record.scope)) is not None:
            partition.add(np.array([cursor.lastrowid], np.int64), vector.reshape(1, -1))

    def purge(self, *, tenant: str | None, model: str | None, class_: str | None, dry_run: bool) -> int:
        """Forget every entry that matches all given fields; returns how many. The bytes leave the file too."""
        given = {"tenant": tenant, "model": model, "class": class_}
        wanted = {name: value for name, value in given.items() if value is not None}
        where = " AND ".join(f"{name} = ?" for name in wanted) or "1"
        ids = self._ids(where, tuple(wanted.values()))
        if dry_run:
            return len(ids)
        with self._transaction():
            self._delete(ids)
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return len(ids)

    def sweep(self) -> int:
        """Delete some expired entries and write down recent uses; returns how many went. Called now and then."""
        with self._transaction():
            self._write_uses()
            return self._delete(self._ids("expires_at <= ?", (self._clock(),), limit=_SWEEP_ROWS))

    def close(self) -> None:
        """Write what is only in memory and close the file."""
        with self._transaction():
            self._write_uses()
        self._db.close()

    def _make_room(self) -> None:
        """Expired entries first, then the least recently used, down to nine tenths of the cap."""
        self._write_uses()
        self._delete(self._ids("expires_at <= ?", (self._clock(),), limit=_SWEEP_ROWS))
        while self._bytes > self._max_bytes * 0.9 and self._count > 1:
            spare, ids = self._bytes - self._max_bytes * 0.9, []
            for id_, size in self._db.execute("SELECT id, bytes FROM entries ORDER BY used_at, bytes LIMIT ?", (_SWEEP_ROWS,)):
                ids.append(id_)
                spare -= size
                if spare <= 0:
                    break
            self._delete(ids)

    def _ids(self, where: str, values: tuple[Any, ...], limit: int = -1) -> list[int]:
        query = f"SELECT id FROM entries WHERE {where} LIMIT ?"  # noqa: S608 - column names of ours, values as parameters
        return [row[0] for row in self._db.execute(query, (*values, limit))]

    def _delete(self, ids: list[int]) -> int:
        by_scope: dict[bytes, list[int]] = {}
        for id_ in ids:
            scope, size = self._db.execute("DELETE FROM entries WHERE id = ? RETURNING scope, bytes", (id_,)).fetchone()
            self._count -= 1
            self._bytes -= size
            self._uses.pop(id_, None)
            if scope in self._partitions:
                by_scope.setdefault(scope, []).append(id_)
        for scope, gone in by_scope.items():
            self._partitions[scope].remove(np.array(gone, np.int64))
        return len(ids)

    def _write_uses(self) -> None:
        uses, self._uses = self._uses, {}
        rows = [(at, hits, id_) for id_, (at, hits) in uses.items()]
        self._db.executemany("UPDATE entries SET used_at = max(used_at, ?), hits = hits + ? WHERE id = ?", rows)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing. After a failure the partitions are forgotten, since they may be ahead of the file."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            self._partitions.clear()
            with suppress(sqlite3.Error):
                self._count, self._bytes = self._db.execute("SELECT count(*), coalesce(sum(bytes), 0) FROM entries").fetchone()
            raise

    def _partition(self, scope: bytes) -> _Partition:
        """The scope's vectors, loaded when they are not in memory. An empty scope is not kept: most are asked once."""
        partition = self._partitions.get(scope)
        if partition is not None:
            self._partitions.move_to_end(scope)
            return partition
        partition = _Partition(self._dimensions)
        for ids, vectors in _vectors(self._db, scope, self._dimensions):
            partition.add(ids, vectors)
        if partition.count:
            self._partitions[scope] = partition
            self._forget_least_used()
        return partition

    def _forget_least_used(self) -> None:
        held = sum(partition.memory_bytes for partition in self._partitions.values())
        while len(self._partitions) > 1 and (held > self._memory_bytes or len(self._partitions) > _PARTITIONS):
            held -= self._partitions.popitem(last=False)[1].memory_bytes

    def training(self) -> Training | None:
        """The next partition that has outgrown its search structure, to be built in any thread and then adopted."""
        for scope, partition in self._partitions.items():
            if partition.removed is None and partition.count > max(self._flat_up_to, partition.trained_for * _GROWTH):
                partition.removed = []
                return Training(self._path, scope, self._dimensions)
        return None

    def adopt(self, training: Training) -> None:
        """Put a built structure in the place of the old one, after what was stored and deleted meanwhile."""
        partition = self._partitions.get(training.scope)
        if partition is None or partition.removed is None:
            return
        index, removed = training.index, partition.removed
        for ids, vectors in _vectors(self._db, training.scope, self._dimensions, after=training.last_id):
            index.add_with_ids(vectors, ids)
        if removed:
            index.remove_ids(np.array(removed, np.int64))
        partition.index, partition.trained_for, partition.removed = index, index.ntotal, None


class Training:
    """The building of one inverted file from the rows on disk. Takes seconds for 1e5 rows; reads through its own connection."""

    def __init__(self, path: Path, scope: bytes, dimensions: int) -> None:
        self._path = path
        self._dimensions = dimensions
        self.scope = scope
        self.index: Any = None
        self.last_id = 0

    def build(self) -> None:
        """Train on a sample, then add every row."""
        db = sqlite3.connect(f"file:{self._path}?mode=ro", uri=True)
        try:
            (count,) = db.execute("SELECT count(*) FROM entries WHERE scope = ?", (self.scope,)).fetchone()
            lists = max(1, int(4 * count**0.5))
            sample = np.concatenate([rows for _, rows in _vectors(db, self.scope, self._dimensions, sample=40 * lists)])
            coarse = faiss.IndexFlatIP(self._dimensions)
            index = faiss.IndexIVFScalarQuantizer(
                coarse, self._dimensions, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
            )
            index.nprobe = max(8, lists // 16)
            index.train(sample)
            for ids, vectors in _vectors(db, self.scope, self._dimensions):
                index.add_with_ids(vectors, ids)
                self.last_id = int(ids[-1])
            self.index = index
        finally:
            db.close()


class _Partition:
    """The vectors of one scope in FAISS: compared one by one while they are few, through an inverted file when many."""

    def __init__(self, dimensions: int) -> None:
        self._dimensions = dimensions
        self.index: Any = faiss.IndexIDMap2(faiss.IndexFlatIP(dimensions))
        self.trained_for = 0
        self.removed: list[int] | None = None
        """Ids that went while a new structure is being built; None while none is."""

    @property
    def count(self) -> int:
        return int(self.index.ntotal)

    @property
    def memory_bytes(self) -> int:
        """Memory held: float32 or one byte a dimension, an id each, and what an empty index costs."""
        return 4096 + self.count * (8 + self._dimensions * (1 if self.trained_for else 4))

    def add(self, ids: npt.NDArray[np.int64], vectors: Vectors) -> None:
        self.index.add_with_ids(vectors, ids)

    def remove(self, ids: npt.NDArray[np.int64]) -> None:
        self.index.remove_ids(ids)
        if self.removed is not None:
            self.removed.extend(ids.tolist())

    def search(self, vector: Vectors) -> list[int]:
        if self.count == 0:
            return []
        _, ids = self.index.search(vector.reshape(1, -1), NEIGHBOURS)
        return [int(id_) for id_ in ids[0] if id_ >= 0]


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file itself is broken, as against a full disk or a lock."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def _vectors(
    db: sqlite3.Connection, scope: bytes, dimensions: int, *, after: int = 0, sample: int = -1
) -> Iterator[tuple[npt.NDArray[np.int64], Vectors]]:
    """The scope's vectors in order of id, some thousands at a time; with `sample`, that many, spread by chance."""
    order = "random()" if sample > 0 else "id"
    query = f"SELECT id, vector FROM entries WHERE scope = ? AND id > ? ORDER BY {order} LIMIT ?"  # noqa: S608 - two fixed words
    cursor = db.execute(query, (scope, after, sample))
    while rows := cursor.fetchmany(4096):
        ids = np.array([row[0] for row in rows], np.int64)
        yield ids, np.frombuffer(b"".join(row[1] for row in rows), np.float32).reshape(len(rows), dimensions)
