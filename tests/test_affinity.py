"""The table of what upstreams keep: whose it is, where it is, and how long it remembers."""

import sqlite3

import pytest

from gateway.affinity import KEEP_S, Affinity, Made
from gateway.errors import Unavailable

MADE = Made("up", "gpt", "m", "internal")


@pytest.fixture
async def opened(tmp_path):
    """Open the table at a time; the same file each time."""
    made = []

    def open_at(now=1_000.0):
        made.append(Affinity(tmp_path / "state" / "responses.sqlite", clock=lambda: now))
        return made[-1]

    yield open_at
    for one in made:
        await one.aclose()


async def test_an_id_is_nothing_without_its_tenant(opened):
    """The same id may be another tenant's, and then it is another response."""
    table = opened()
    table.remember("a", "resp_1", MADE)
    assert await table.find("b", "resp_1") is None
    table.remember("b", "resp_1", Made("other", "x", "y", "public"))
    assert await table.find("a", "resp_1") == MADE
    table.forget("b", "resp_1")
    assert (await table.find("b", "resp_1"), await table.find("a", "resp_1")) == (None, MADE)


async def test_a_purge_forgets_what_matches(opened):
    """By tenant and class; a dry run counts and keeps, and what was remembered just before counts."""
    table = opened()
    table.remember("a", "resp_1", MADE)
    table.remember("b", "file_1", MADE, kind="file")
    assert await table.purge(tenant="a", class_=MADE.class_, dry_run=True) == 1
    assert await table.purge(tenant="a", class_=MADE.class_, dry_run=False) == 1
    assert await table.find("a", "resp_1") is None
    assert await table.purge(tenant=None, class_=None, dry_run=False) == 1


async def test_it_outlives_the_process_and_nobody_else_reads_it(opened, tmp_path):
    """What was remembered just before the end is there after it, in a file of its owner's."""
    table = opened()
    table.remember("a", "resp_1", MADE)
    await table.aclose()
    assert await opened().find("a", "resp_1") == MADE
    assert (tmp_path / "state" / "responses.sqlite").stat().st_mode & 0o077 == 0


async def test_what_upstreams_have_forgotten_is_forgotten(opened):
    """At the start, by age."""
    table = opened(0.0)
    table.remember("a", "resp_1", MADE)
    await table.aclose()
    assert await opened(KEEP_S - 1).find("a", "resp_1") == MADE
    assert await opened(KEEP_S + 1).find("a", "resp_1") is None


async def test_a_damaged_table_is_said(opened, tmp_path):
    """503 for who asks, and a problem for operators when nothing can be written; the next that can be written ends it."""
    path = tmp_path / "state" / "responses.sqlite"
    path.parent.mkdir()
    path.write_bytes(b"this is no database, however long one looks at it" * 100)
    table = opened()
    table.remember("a", "resp_1", MADE)
    with pytest.raises(Unavailable) as caught:
        await table.find("a", "resp_1")
    assert (caught.value.code, "DatabaseError" in table.problem) == ("state_unavailable", True)
    path.unlink()
    table.remember("a", "resp_1", MADE)
    assert (await table.find("a", "resp_1"), table.problem) == (MADE, "")


async def test_it_holds_no_text(opened, tmp_path):
    """Its columns are names, ids and a time."""
    table = opened()
    table.remember("a", "resp_1", MADE)
    await table.aclose()
    with sqlite3.connect(tmp_path / "state" / "responses.sqlite") as connection:
        rows = connection.execute("select * from kept").fetchall()
    connection.close()
    assert rows == [("a", "response", "resp_1", "up", "gpt", "m", "internal", 1_000.0)]


async def test_a_table_of_responses_alone_is_taken_over(opened, tmp_path):
    """What an earlier version remembered is found under its kind, and under no other."""
    path = tmp_path / "state" / "responses.sqlite"
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("create table responses (tenant, id, upstream, model, name, class, made_at)")
        connection.execute("insert into responses values ('a', 'x1', 'up', 'gpt', 'm', 'internal', 999.0)")
    connection.close()
    table = opened()
    assert (await table.find("a", "x1"), await table.find("a", "x1", kind="file")) == (MADE, None)


async def test_what_is_no_response_stays_until_it_is_deleted(opened):
    """Files and batches have no end of their own here."""
    table = opened(0.0)
    table.remember("a", "file_1", MADE, kind="file")
    await table.aclose()
    table = opened(KEEP_S * 100)
    assert await table.find("a", "file_1", kind="file") == MADE
    table.forget("a", "file_1", kind="file")
    assert await table.find("a", "file_1", kind="file") is None


@pytest.mark.parametrize("newest_first", [True, False])
async def test_a_tenants_ids_come_page_by_page(opened, newest_first):
    """In order, each once, without another tenant's or another kind's; nothing follows an id that is not known."""
    times = iter(range(100))
    table = opened()
    table._clock = lambda: float(next(times) // 2)
    for number in range(7):
        table.remember("a", f"file_{number}", MADE, kind="file")
    table.remember("b", "file_b", MADE, kind="file")
    table.remember("a", "batch_1", MADE, kind="batch")
    found, after = [], ""
    while page := await table.page("a", kind="file", after=after, newest_first=newest_first, limit=3):
        found += [id_ for id_, _ in page]
        after = found[-1]
    expected = [f"file_{number}" for number in range(7)]
    assert found == (expected[::-1] if newest_first else expected)
    assert await table.page("a", kind="file", after="file_b", newest_first=newest_first, limit=3) == []
