"""The semantic store: SQLite and FAISS."""

import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.cache.index import FILE, Index, Record

D = 16
SCOPES = [bytes([letter]) * 32 for letter in b"abc"]


def vector(seed):
    found = np.random.default_rng(seed).normal(size=D).astype(np.float32)
    return found / np.linalg.norm(found)


def record(name, *, scope=SCOPES[0], tenant="t", class_="public", expires_at=1e12, answer=b"answer"):
    return Record(scope, f"key {name}".encode(), f"text {name}", answer, tenant, "m", class_, expires_at)


class Clock:
    now = 1_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def opened(tmp_path, clock):
    indexes = []

    def open_(identity="one", **options):
        index = Index(tmp_path, **{"max_bytes": 10**7, "clock": clock} | options)
        index.use_embedder(identity, D)
        indexes.append(index)
        return index

    yield open_
    for index in indexes:
        index._db.close()


def test_an_expired_entry_is_never_found(opened, clock):
    """An entry past its time is neither found nor, after a sweep, kept."""
    index = opened()
    index.store(record(1, expires_at=1_010), vector(1))
    assert index.search(SCOPES[0], vector(1))
    clock.now = 1_010
    assert index.search(SCOPES[0], vector(1)) == []
    index.sweep()
    assert (index.entries, index.weight_bytes) == (0, 0)


def test_the_same_key_replaces_the_answer(opened):
    """Storing a key again leaves one entry, with the new answer."""
    index = opened()
    index.store(record(1, answer=b"old"), vector(1))
    index.store(record(1, answer=b"new and longer"), vector(1))
    (found,) = index.search(SCOPES[0], vector(1))
    assert index.answer(found) == b"new and longer"
    assert index.entries == 1


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 20)), min_size=1, max_size=30))
@settings(max_examples=25, deadline=None)
def test_a_search_sees_its_own_scope_alone_and_finds_the_nearest(tmp_path_factory, entries):
    """Whatever is stored where, a search returns entries of its scope only, nearest first, and an equal vector is the first."""
    index = Index(tmp_path_factory.mktemp("index"), max_bytes=10**7)
    index.use_embedder("one", D)
    for at, name in entries:
        index.store(record(name, scope=SCOPES[at]), vector(name))
    for at, scope in enumerate(SCOPES):
        mine = {name for where, name in entries if where == at}
        for name in mine:
            found = index.search(scope, vector(name))
            assert found[0].text == f"text {name}"
            assert {candidate.text for candidate in found} <= {f"text {other}" for other in mine}
            assert [candidate.cosine for candidate in found] == sorted((c.cosine for c in found), reverse=True)
        assert index.has(scope) == bool(mine)
    index.close()


def test_the_least_recently_used_goes_when_the_bytes_are_used_up(opened, clock):
    """Above the cap the entries that were served longest ago go; the weight stays within the cap."""
    index = opened(max_bytes=20_000)
    for name in range(10):
        clock.now += 1
        index.store(record(name, answer=b"x" * 1_500), vector(name))
    clock.now += 1
    index.answer(index.search(SCOPES[0], vector(0))[0])
    for name in range(10, 14):
        clock.now += 1
        index.store(record(name, answer=b"x" * 1_500), vector(name))
        assert index.weight_bytes <= 20_000
    assert index.search(SCOPES[0], vector(0))[0].text == "text 0"
    assert index.search(SCOPES[0], vector(1))[0].text != "text 1"
    assert not index.store(record("large", answer=b"x" * 30_000), vector(99))


def test_a_purge_takes_what_matches_and_leaves_no_trace_in_the_file(opened, tmp_path):
    """A purge by tenant forgets that tenant alone, and its text is no longer anywhere on disk."""
    index = opened()
    index.store(record("blue-heron", tenant="a"), vector(1))
    index.store(record("grey-goose", tenant="b", scope=SCOPES[1]), vector(2))
    assert index.purge(tenant="a", model=None, class_=None, dry_run=True) == 1
    assert index.purge(tenant="a", model="m", class_="public", dry_run=False) == 1
    on_disk = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"blue-heron" not in on_disk
    assert b"grey-goose" in on_disk
    assert index.search(SCOPES[0], vector(1)) == []


def test_another_embedder_purges_the_vectors_of_the_last(opened):
    """Vectors of two embedders are never compared: a change empties the store, the same embedder keeps it."""
    opened("one").store(record(1), vector(1))
    assert opened("one").entries == 1
    changed = opened("two")
    assert changed.entries == 0
    assert changed.search(SCOPES[0], vector(1)) == []


def test_a_damaged_file_is_set_aside_and_said(opened, tmp_path, capfd):
    """A file that is no database is kept under another name, and an empty cache starts."""
    (tmp_path / FILE).write_bytes(b"not a database, but long enough to be taken for one" * 100)
    index = opened()
    assert index.store(record(1), vector(1))
    assert [path.name for path in tmp_path.iterdir() if "damaged" in path.name]
    assert f"{tmp_path / FILE}: damaged" in capfd.readouterr().err


def test_damage_found_in_use_does_not_end_the_cache(opened, tmp_path, capfd):
    """A file that breaks while it is open is set aside too, and the next store works."""
    index = opened()
    for name in range(50):
        index.store(record(name, answer=b"x" * 3_000), vector(name))
    index._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    index._partitions.clear()
    size = (tmp_path / FILE).stat().st_size
    with (tmp_path / FILE).open("r+b") as file:
        file.seek(4096)
        file.write(random.Random(2).randbytes(size - 4096))
    index._db.execute("PRAGMA shrink_memory")
    with pytest.raises(sqlite3.DatabaseError) as caught:
        index.search(SCOPES[0], vector(1))
    index.renew(caught.value)
    assert index.store(record("new"), vector(1))
    assert "damaged" in capfd.readouterr().err


def test_many_vectors_are_searched_through_a_trained_structure(opened):
    """A partition that outgrows the flat search is rebuilt beside it; what came and went meanwhile is not lost."""
    index = opened(flat_up_to=500)
    for name in range(600):
        index.store(record(name, tenant="gone" if name % 10 == 0 else "t"), vector(name))
    assert index.has(SCOPES[0])
    training = index.training()
    training.build()
    index.store(record("late"), vector(10_001))
    index.purge(tenant="gone", model=None, class_=None, dry_run=False)
    index.adopt(training)
    assert index._partitions[SCOPES[0]].trained_for == index.entries == 541
    found = sum(index.search(SCOPES[0], vector(name))[0].text == f"text {name}" for name in range(1, 600, 2))
    assert found >= 297
    assert index.search(SCOPES[0], vector(10_001))[0].text == "text late"
    assert all(candidate.text != "text 0" for candidate in index.search(SCOPES[0], vector(0)))
    assert index.training() is None


def test_partitions_leave_memory_and_come_back(opened):
    """With memory for one partition every scope is still answered, from the file."""
    index = opened(memory_bytes=1)
    for at, scope in enumerate(SCOPES):
        index.store(record(at, scope=scope), vector(at))
    for _ in range(2):
        for at, scope in enumerate(SCOPES):
            assert index.search(scope, vector(at))[0].text == f"text {at}"
            assert len(index._partitions) == 1


def test_a_killed_process_leaves_a_file_that_opens(opened, tmp_path, capfd):
    """After SIGKILL in the middle of storing, everything that was confirmed is there and nothing is damaged."""
    code = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_index import *
        from pathlib import Path
        index = Index(Path({str(tmp_path)!r}), max_bytes=10**7)
        index.use_embedder("one", D)
        for name in range(10**6):
            index.store(record(name), vector(name))
            print(name, flush=True)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line == "40\n":
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.read()
    process.stdout.close()
    assert process.wait(10) == -signal.SIGKILL
    index = opened()
    assert index.entries >= 41
    assert index.search(SCOPES[0], vector(40))[0].text == "text 40"
    assert capfd.readouterr().err == ""
