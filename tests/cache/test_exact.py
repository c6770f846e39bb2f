"""The in-process exact tier."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.cache import Entry, Hit, Miss, Scope
from gateway.cache.exact import Exact


def scope(name, *, tenant="t", model="m"):
    return Scope(digest=b"d", key=str(name).encode(), text=None, exact_only="no_text", tenant=tenant, model=model)


def entry(size=10, class_="public"):
    return Entry(kind="json", body=b"x" * size, class_=class_)


def test_an_expired_answer_is_not_served():
    """From its expiry on an answer is gone, also from the memory it held."""
    cache = Exact(10_000)
    cache.store(scope(1), entry(), now=0, expires_at=5)
    assert isinstance(cache.lookup(scope(1), class_="public", now=4.9), Hit)
    assert cache.lookup(scope(1), class_="public", now=5) == Miss("expired")
    assert cache.held_bytes == 0


def test_another_class_is_a_miss():
    """An answer given to an internal request is not served to a public one, nor the other way round."""
    cache = Exact(10_000)
    cache.store(scope(1), entry(class_="internal"), now=0, expires_at=5)
    assert cache.lookup(scope(1), class_="public", now=1) == Miss("class")


def test_the_least_recently_used_goes_first():
    """When the bytes are used up, what was looked up last stays."""
    cache = Exact(8 * 600)
    for name in range(8):
        cache.store(scope(name), entry(60), now=0, expires_at=5)
    cache.lookup(scope(0), class_="public", now=1)
    cache.store(scope("new"), entry(60), now=1, expires_at=5)
    assert isinstance(cache.lookup(scope(0), class_="public", now=1), Hit)
    assert cache.lookup(scope(1), class_="public", now=1) == Miss("unseen")


def test_one_large_answer_does_not_empty_the_cache():
    """An answer above an eighth of the whole is not kept."""
    cache = Exact(8_000)
    cache.store(scope("small"), entry(), now=0, expires_at=5)
    assert not cache.store(scope("large"), entry(2_000), now=0, expires_at=5)
    assert len(cache) == 1


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 900), st.booleans()), max_size=60))
def test_the_bytes_held_are_always_those_of_what_is_kept(steps):
    """After any stores and purges the count of bytes is exact and within the bound."""
    cache = Exact(9_000)
    for name, size, forget in steps:
        if forget:
            cache.purge(tenant=f"t{name}", model=None, class_=None, dry_run=False)
        else:
            cache.store(scope(name, tenant=f"t{name}"), entry(size), now=0, expires_at=1)
        assert cache.held_bytes == sum(kept.size_bytes for kept in cache._kept.values()) <= 9_000


def test_a_purge_takes_what_matches_all_that_is_given():
    """Tenant, model and class narrow each other; a dry run counts and keeps."""
    cache = Exact(90_000)
    for name, (tenant, class_) in enumerate([("a", "public"), ("a", "internal"), ("b", "public")]):
        cache.store(scope(name, tenant=tenant), entry(class_=class_), now=0, expires_at=9)
    assert cache.purge(tenant="a", model="m", class_="public", dry_run=True) == 1
    assert cache.purge(tenant="a", model="m", class_="public", dry_run=False) == 1
    assert cache.purge(tenant=None, model=None, class_=None, dry_run=False) == 2
