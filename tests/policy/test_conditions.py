"""Conditions: what holds for which facts."""

import pytest
from hypothesis import given as given_
from hypothesis import strategies as st
from policy.slow_conditions import compile_when
from worlds import all_facts, facts, whens

from gateway.policy.conditions import FACTS, BadConditionError, Matcher, parse


@pytest.mark.parametrize(
    ("when", "given", "holds"),
    [
        ({"stream": True}, {"stream": False}, False),
        ({"stream": True}, {"stream": True}, True),
        ({"class": ">= confidential"}, {"class_": "internal"}, False),
        ({"class": ">= confidential"}, {"class_": "restricted"}, True),
        ({"class": "< internal"}, {"class_": "internal"}, False),
        ({"class": ["public", "restricted"]}, {"class_": "restricted"}, True),
        ({"found": ["card", "iban"]}, {"found": ("email",)}, False),
        ({"found": ["card", "iban"]}, {"found": ("card", "email")}, True),
        ({"prompt_tokens": "< 2000"}, {"prompt_tokens": 2000}, False),
        ({"prompt_tokens": "<= 2000"}, {"prompt_tokens": 2000}, True),
        ({"hour": ["< 8", ">= 18"]}, {"hour": 12}, False),
        ({"hour": ["< 8", ">= 18"]}, {"hour": 18}, True),
        ({"hour": 12}, {"hour": 12}, True),
        ({"tenant": "a", "tools": True}, {"tenant": "a"}, False),
        ({"tenant": "a", "tools": True}, {"tenant": "a", "tools": True}, True),
        ({"needs": "images"}, {"needs": ("chat", "images")}, True),
    ],
)
def test_a_condition_holds_only_when_every_fact_in_it_does(when, given, holds):
    """Every fact in a `when` must hold, and of a list any item suffices."""
    assert bool(Matcher([], [when]).held(facts(**given))) is holds


@pytest.mark.parametrize("name", ["max_output", "deadline_ms"])
def test_a_bound_that_the_client_did_not_set_counts_as_endless(name):
    """What the client left open is more than any number, so that a limit on large answers cannot be passed by silence."""
    assert Matcher([{name: "< 1000000"}, {name: "> 1000000"}]).held(facts()) == 0b10


def test_a_limit_sees_the_upper_bound_of_the_size_and_a_route_the_estimate():
    """The same condition on size is stricter in a limit than in a route."""
    request = facts(prompt_tokens=900, prompt_tokens_high=1100)
    when = {"prompt_tokens": "> 1000"}
    assert Matcher([when], [when]).held(request) == 0b01


@pytest.mark.parametrize("value", [[], {"a": 1}, 1.5, "< many", "<", None])
@pytest.mark.parametrize("name", FACTS)
def test_no_fact_takes_a_value_that_it_cannot_be_compared_with(name, value):
    """A condition that makes no sense is refused, whatever the fact."""
    with pytest.raises(BadConditionError):
        parse(name, value)


@given_(st.lists(whens(), max_size=8), st.lists(whens(), max_size=8), all_facts())
def test_many_rules_hold_as_each_one_alone(limits, routes, request):
    """Looking a request up once for all rules comes to the same as asking each rule."""
    alone = [compile_when(when, upper=place < len(limits)) for place, when in enumerate([*limits, *routes])]
    expected = sum(1 << place for place, holds in enumerate(alone) if holds is None or holds(request))
    assert Matcher(limits, routes).held(request) == expected
