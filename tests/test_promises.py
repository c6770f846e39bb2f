"""What docs promise of times holds by how the code is made: the waits that it consists of are counted here, and no clock is read.

That nothing else takes long is measured by `tests/e2e` and `tests/bench`.
"""

from pathlib import Path

import pytest

from gateway import app, auth, control, dispatch, health, policy_cli, process, supervisor
from gateway.auth import KeyFile, Keys
from gateway.errors import Unauthorized

ROOT = Path(__file__).resolve().parents[1]


def says(page, words):
    """Whether a page says so, wherever its lines break."""
    return words in " ".join((ROOT / page).read_text().split())


PROMISES = {
    "README.md": [("a revoked key ends within 5 ms", app.LOOK_AT_KEYS_S, 0.005)],
    "docs/architecture.md": [
        ("looks again after 5 ms at the latest", app.LOOK_AT_KEYS_S, 0.005),
        ("A save is in force everywhere within two seconds", 3 * supervisor.POLL_S, 2),
        ("is started again after 0.2 s, doubling up to 30 s", process.FIRST_PAUSE_S, 0.2),
        ("is started again after 0.2 s, doubling up to 30 s", process.LONGEST_PAUSE_S, 30),
    ],
    "docs/metrics.md": [("does not answer within 2 s", control.PAGE_S, 2)],
    "docs/fallback.md": [
        ("at most 0.2 s before the first, doubling up to 5 s", dispatch.FIRST_BACKOFF_S, 0.2),
        ("at most 0.2 s before the first, doubling up to 5 s", dispatch.LONGEST_BACKOFF_S, 5),
        ("five of these in a row open", health.FAILURES_TO_OPEN, 5),
        ("passed over for 2 s, and for twice as long each time it fails again, up to 60 s", health.FIRST_PAUSE_S, 2),
        ("passed over for 2 s, and for twice as long each time it fails again, up to 60 s", health.LONGEST_PAUSE_S, 60),
    ],
}
"""By page: its words, the wait that the code makes, and what it may be at most. A change of policies waits for two looks at most,
and the one that is just going on; see `test_policy_store.py`."""


@pytest.mark.parametrize(
    ("page", "words", "wait", "most"), [(page, *promise) for page, promises in PROMISES.items() for promise in promises]
)
def test_no_wait_is_longer_than_promised(page, words, wait, most):
    """And the page still promises it."""
    assert says(page, words)
    assert 0 < wait <= most


def test_an_approval_is_waited_for_longer_than_it_takes():
    """`gateway policy apply` does not say that a gateway has not taken what it was about to take."""
    assert policy_cli.TAKEN_WITHIN_S >= 4 * supervisor.POLL_S


def test_a_revoked_key_is_known_until_the_next_look_and_no_longer(tmp_path, monkeypatch):
    """One look in five milliseconds, by the clock and not by the number of requests."""
    now = [100.0]
    monkeypatch.setattr(auth.time, "monotonic", lambda: now[0])
    file = KeyFile(tmp_path / "keys.json")
    key = file.add("one")
    keys = Keys(file, (), look_every_s=app.LOOK_AT_KEYS_S)
    assert keys.principal(key).label == "one"
    file.revoke("one")
    now[0] += 0.0049
    assert keys.principal(key).label == "one"
    now[0] += 0.0002
    with pytest.raises(Unauthorized):
        keys.principal(key)
