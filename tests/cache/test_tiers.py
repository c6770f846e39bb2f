"""The order of the tiers, and what none of them may keep."""

import asyncio

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cache import Entry, Hit, Miss, Scope
from gateway.cache.exact import Exact
from gateway.cache.off import Off
from gateway.cache.tiers import Cache
from gateway.errors import Unavailable


class Remembering(Off):
    """A tier that notes what it was asked and keeps one answer a key."""

    def __init__(self, name):
        self.name, self.kept, self.asked, self.purged = name, {}, [], []
        self.down = False

    async def lookup(self, scope, *, class_):
        self.asked.append(scope.key)
        entry = self.kept.get(scope.key)
        return Hit(entry, self.name, 1.0, 0.0) if entry else Miss(f"{self.name}-unseen")

    async def store(self, scope, entry, *, expires_at):
        self.kept[scope.key] = entry
        return True

    async def purge(self, *, tenant, model, class_, dry_run):
        if self.down:
            raise Unavailable("down")
        self.purged.append((tenant, model, class_, dry_run))
        return len(self.kept)


@pytest.fixture
def shared():
    return Remembering("shared")


@pytest.fixture
def semantic():
    return Remembering("semantic")


@pytest.fixture
def cache(shared, semantic):
    return Cache(exact=Exact(10**6), shared=shared, semantic=semantic)


def scope(name=b"k", tenant="t"):
    return Scope(digest=b"d", key=name, text="x", exact_only="", tenant=tenant, model="m")


@pytest.mark.parametrize(
    ("change", "mode", "class_", "flags", "reason"),
    [
        ({}, "off", "public", {}, "off"),
        ({}, "semantic", "confidential", {}, "class"),
        ({}, "semantic", "restricted", {}, "class"),
        ({}, "semantic", "Public", {}, "class"),
        ({}, "semantic", "", {}, "class"),
        ({"status": 500}, "semantic", "public", {}, "status"),
        ({"finish_reason": "length"}, "semantic", "public", {}, "unfinished"),
        ({"finish_reason": "tool_calls"}, "semantic", "public", {}, "unfinished"),
        ({"body": b""}, "semantic", "public", {}, "empty"),
        ({}, "semantic", "public", {"no_store": True}, "no_store"),
    ],
)
async def test_what_may_not_be_kept_reaches_no_tier(*, cache, shared, semantic, entry, change, mode, class_, flags, reason):
    """Whatever the caller says, a class above internal, a failed or cut answer and no-store are refused with a reason."""
    assert cache.store(scope(), msgspec.structs.replace(entry, **change), mode, class_=class_, **flags) == reason
    await cache.settled()
    assert not shared.kept
    assert not semantic.kept
    assert await cache.lookup(scope(), "exact", class_="public") == Miss("shared-unseen")


@given(st.text(max_size=14).filter(lambda word: word not in {"public", "internal"}))
def test_an_unknown_class_is_treated_as_the_highest(word):
    """Any class but public and internal is neither stored nor looked up."""
    cache = Cache(exact=Exact(10**6), shared=Off(), semantic=Off())
    assert cache.store(scope(), Entry(kind="json", body=b"x"), "semantic", class_=word) == "class"
    assert asyncio.run(cache.lookup(scope(), "semantic", class_=word)) == Miss("class")


async def test_a_hit_is_checked_against_the_class_of_now(cache, entry):
    """What was public when it was stored is not served once the same request is judged higher."""
    cache.store(scope(), entry, "exact", class_="public")
    assert isinstance(await cache.lookup(scope(), "exact", class_="public"), Hit)
    assert await cache.lookup(scope(), "exact", class_="confidential") == Miss("class")
    assert not isinstance(await cache.lookup(scope(), "exact", class_="internal"), Hit)


async def test_tiers_are_asked_in_order_and_only_as_far_as_the_mode_says(cache, shared, semantic, entry):
    """Exact answers first; shared next; the semantic tier is asked in its own mode alone; a hit promotes nothing."""
    assert await cache.lookup(scope(), "exact", class_="public") == Miss("shared-unseen")
    assert semantic.asked == []
    assert await cache.lookup(scope(), "semantic", class_="public") == Miss("semantic-unseen")
    shared.kept[b"k"] = entry
    assert (await cache.lookup(scope(), "semantic", class_="public")).tier == "shared"
    assert (await cache.lookup(scope(), "semantic", class_="public")).tier == "shared"
    cache.store(scope(), entry, "exact", class_="public")
    assert (await cache.lookup(scope(), "semantic", class_="public")).tier == "exact"
    await cache.settled()
    assert not semantic.kept


async def test_no_cache_looks_nothing_up_and_still_stores(cache, entry):
    """Cache-Control: no-cache asks for a fresh answer, which others may then have."""
    cache.store(scope(), entry, "exact", class_="public")
    assert await cache.lookup(scope(), "exact", class_="public", no_cache=True) == Miss("no_cache")
    assert await cache.lookup(None, "exact", class_="public") == Miss("uncacheable")


async def test_an_answer_ages_and_expires(shared, semantic, entry):
    """A hit says how old it is, and after its life there is none."""
    now = [100.0]
    cache = Cache(exact=Exact(10**6), shared=Off(), semantic=Off(), ttl_s=60, clock=lambda: now[0])
    cache.store(scope(), entry, "semantic", class_="public")
    now[0] = 130.0
    assert (await cache.lookup(scope(), "semantic", class_="public")).age_s == 30
    now[0] = 160.0
    assert await cache.lookup(scope(), "semantic", class_="public") == Miss("expired")


async def test_a_purge_reaches_every_tier_and_says_when_one_could_not(cache, shared, semantic, entry):
    """A purge counts copies over all tiers, after stores under way; a tier that is down makes it an error, not a silence."""
    cache.store(scope(), entry, "semantic", class_="public")
    assert await cache.purge(tenant="t", dry_run=True) == 3
    assert await cache.purge(tenant="t") == 3
    assert shared.purged == semantic.purged == [("t", None, None, True), ("t", None, None, False)]
    semantic.down = True
    with pytest.raises(Unavailable):
        await cache.purge(tenant="t")


async def test_another_process_purge_is_owed_until_the_worker_is_back(cache, semantic, entry, monkeypatch):
    """A purge heard from elsewhere empties the exact tier at once and the semantic one as soon as it answers."""
    monkeypatch.setattr("gateway.cache.tiers._RETRY_S", 0)
    cache.store(scope(), entry, "exact", class_="public")
    semantic.down = True
    running = asyncio.create_task(cache.run())
    await cache.forget("t", None, None)
    assert not isinstance(await cache.lookup(scope(), "exact", class_="internal"), Hit)
    assert len(cache._exact) == 0
    semantic.down = False
    async with asyncio.timeout(30):
        while not semantic.purged:
            await asyncio.sleep(0)
    running.cancel()
    assert semantic.purged == [("t", None, None, False)]


async def test_too_many_stores_under_way_are_dropped_not_queued(cache, shared, entry, monkeypatch):
    """When the slower tiers do not keep up, new answers stay in the exact tier and the drop is counted."""
    monkeypatch.setattr("gateway.cache.tiers._PENDING", 1)
    cache.store(scope(b"1"), entry, "exact", class_="public")
    cache.store(scope(b"2"), entry, "exact", class_="public")
    await cache.settled()
    assert list(shared.kept) == [b"1"]
    assert cache.dropped == 1
    assert isinstance(await cache.lookup(scope(b"2"), "exact", class_="public"), Hit)
