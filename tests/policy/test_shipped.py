"""The policies and the example config that are shipped."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import all_facts, all_health

from gateway import config
from gateway.policy.decide import decide
from gateway.policy.generation import load
from gateway.policy.proof import run_tests, untouched

ROOT = Path(__file__).parents[2]
CONFIG = config.load(ROOT / "config.example.toml")
SHIPPED = load(CONFIG, ROOT / "policies")
RESULTS = run_tests(SHIPPED)


@pytest.mark.parametrize("result", RESULTS, ids=[result.name for result in RESULTS])
def test_every_test_of_a_shipped_policy_passes(result):
    """What the shipped files promise about themselves is true with the example config."""
    assert result.problems == ()


def test_every_limit_and_route_of_the_shipped_policies_is_tested_and_nothing_is_noted():
    """The shipped files are an example of a well-kept folder."""
    assert {result.policy for result in RESULTS} == {"cost", "latency", "privacy"}
    assert untouched(SHIPPED, RESULTS) == []
    assert SHIPPED.notes == ()


@pytest.mark.parametrize("path", sorted((ROOT / "policies").glob("*.toml")), ids=lambda path: path.stem)
def test_a_shipped_policy_is_short(path):
    """A stranger reads a shipped policy in one look: at most 40 lines."""
    assert len(path.read_text().splitlines()) <= 40


@given(
    st.sampled_from(sorted(SHIPPED.policies)),
    all_facts(models=tuple(CONFIG.models)),
    all_health(SHIPPED.catalogue.options()),
)
def test_what_is_confidential_or_restricted_never_leaves(policy, request, health):
    """Whatever the request, the state of the upstreams and the routes: no sensitive request has a way out, cache or log."""
    decision = decide(SHIPPED, policy, request, health)
    if request.class_ in {"confidential", "restricted"}:
        assert {chosen.option.zone for chosen in decision.candidates} <= {"local"}
        assert (decision.cache, decision.log_text) == ("off", False)
