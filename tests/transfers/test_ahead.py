"""A body that is read on arrives as it was sent, whoever is slow, and its end or failure comes behind its last byte."""

import asyncio
from contextlib import aclosing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.errors import TooLarge, Unavailable
from gateway.transfers.ahead import Ahead


class Source:
    """Gives `parts`; at a number it gives the loop so many turns, at an exception it fails."""

    def __init__(self, *parts):
        self._parts = parts
        self.over = asyncio.Event()

    async def parts(self):
        try:
            for part in self._parts:
                if isinstance(part, Exception):
                    raise part
                if isinstance(part, bytes):
                    yield part
                    continue
                for _ in range(part):
                    await asyncio.sleep(0)
        finally:
            self.over.set()


def reading_on(source, folder):
    """One without patience: what is not taken goes to the disk at once."""
    made = Ahead(source.parts, folder, stall_s=0)
    made.reads_on = True
    return made


STEPS = st.lists(st.binary(min_size=1, max_size=5) | st.integers(1, 4), max_size=12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(STEPS, st.lists(st.integers(0, 6), min_size=1, max_size=6))
def test_its_bytes_are_what_came(tmp_path, steps, pauses):
    """Whatever the pace of either side: from memory, from the disk, and from memory again."""

    async def taken():
        got = b""
        async with asyncio.timeout(30), aclosing(reading_on(Source(*steps), tmp_path).parts()) as parts:
            async for part in parts:
                got += part
                for _ in range(pauses[len(got) % len(pauses)]):
                    await asyncio.sleep(0)
        return got

    assert asyncio.run(taken()) == b"".join(step for step in steps if isinstance(step, bytes))


async def test_it_is_read_to_its_end_while_nobody_takes_it(tmp_path):
    """Then all of it comes, its failure last."""
    source = Source(b"a", *[b"b"] * 50, TooLarge("too much"))
    async with aclosing(reading_on(source, tmp_path).parts()) as parts:
        assert await anext(parts) == b"a"
        assert await anext(parts) == b"b"
        async with asyncio.timeout(30):
            await source.over.wait()
        got = b""
        while len(got) < 49:
            got += await anext(parts)
        with pytest.raises(TooLarge):
            await anext(parts)
        assert got == b"b" * 49


async def test_it_is_not_read_on_before_it_may_be(tmp_path):
    """Until somebody says so, a part is read when it is asked for."""
    source = Source(b"a", b"b")
    async with aclosing(Ahead(source.parts, tmp_path).parts()) as parts:
        assert [await anext(parts), await anext(parts)] == [b"a", b"b"]
        assert not source.over.is_set()


async def test_closing_it_ends_its_reader(tmp_path):
    """Whatever it waits for; the source is closed, too."""
    never = 10**9
    source = Source(b"a", b"b", never)
    parts = reading_on(source, tmp_path).parts()
    assert await anext(parts) == b"a"
    await parts.aclose()
    assert source.over.is_set()
    assert len(asyncio.all_tasks()) == 1


async def test_a_disk_that_takes_nothing_is_said(tmp_path):
    """As Unavailable, behind what was read before."""
    folder = tmp_path / "file"
    folder.write_bytes(b"")
    source = Source(b"a", b"b", b"c")
    async with aclosing(reading_on(source, folder).parts()) as parts:
        assert [await anext(parts), await anext(parts)] == [b"a", b"b"]
        with pytest.raises(Unavailable):
            await anext(parts)
