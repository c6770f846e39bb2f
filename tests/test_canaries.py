"""Claim A in the standing suite: a seeded sample of the canaries, and some of the planted leaks; the long run is started by hand."""

from __future__ import annotations

import base64
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def canaries(monkeypatch):
    """The command's module, as `python -m` finds it."""
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("tests.bench.canaries")


@pytest.fixture
def planted(canaries):
    """The planted leaks."""
    return importlib.import_module("tests.bench.planted_leaks")


@pytest.mark.parametrize("fault", ["none", "detector raises", "home is cut", "policies change meanwhile"])
async def test_no_word_reaches_a_place_that_may_not_have_it(canaries, fault):
    """A sample of every path and way under this fault: nothing is found in sockets, files, outputs, metrics and refusals."""
    found = await canaries.run_batch(6, 1, "", fault=fault)
    assert found["leaks"] == []
    assert len(found["cells"]) == len(canaries.PATHS) * len(canaries.WAYS)
    assert {"complete", "refused", "client_gone", "cancelled", "never_read"} <= set(found["endings"])
    assert found["bytes"] > 10_000


@pytest.mark.parametrize(
    ("fault", "leaves"),
    [("masked", True), ("masked, policies change meanwhile", True), ("masked, key file is damaged", False)],
)  # fmt: skip
async def test_no_word_that_is_found_leaves_unmasked(canaries, fault, leaves):
    """Upstreams outside that are cleared for everything get placeholders, or where that fails nothing; clients get their words."""
    found = await canaries.run_batch(6, 1, "", size=96, fault=fault)
    assert found["leaks"] == []
    assert len(found["cells"]) == len(canaries.MASKED_PATHS) * len(canaries.WAYS)
    assert (found["masked"] > 0, found["restored"] > 0) == (leaves, leaves)


SAMPLE = (
    "decide ignores the class", "a retry goes outside the set", "the scan skips tool calls", "tokens are logged whatever the policy says",
    "a file keeps token ids", "standard error quotes the body", "the cache's key has no tenant", "headers travel as they come",
    "stored responses of every class", "a sealed summary has no class of its own", "an answer that is never read is left on the disk",
    "a mask is forgotten", "a mask that fails is left out", "the vault is logged", "the vault outlives its request",
    "a restored answer is cached", "a masked answer is stored upstream", "a placeholder is a digest of its value",
)  # fmt: skip


@pytest.mark.parametrize("name", SAMPLE)
async def test_the_search_catches_a_planted_leak(planted, name):
    """A part that is wrong on purpose shows in the search that says of the right ones that they are right."""
    assert await planted.caught_by(6, name, "", size=30)


def test_there_are_a_hundred_planted_leaks(planted):
    """`python -m tests.bench.canaries --plant all` runs them all."""
    assert len(planted.PLANTS) >= 100
    assert set(SAMPLE) <= set(planted.PLANTS)


def test_every_form_of_a_canary_is_seen(canaries):
    """Raw, in base64 at every place in a group of three, escaped for JSON, in hex, reversed, as token ids, in each notation."""
    for class_, mark in canaries.CLASSES.items():
        forms = [f"{'x' * shift}{mark}yz" for shift in range(3)]
        coded = [base64.b64encode(form.encode()) for form in forms]
        escaped = "".join(f"\\u{ord(sign):04x}" for sign in mark).encode()
        ids = canaries.IDS[class_]
        tokens = [sep.join(map(str, ids)).encode() for sep in (",", ", ", " ")]
        for data in (*coded, escaped, mark.encode(), mark.encode().hex().encode(), mark[::-1].encode(), *tokens):
            assert [one for one, _ in canaries.seen_in(b"some" + data + b"more", tuple(canaries.CLASSES))] == [class_]
