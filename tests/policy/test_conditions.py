"""Conditions: what holds for which facts."""

import pytest
from worlds import facts

from gateway.policy.conditions import FACTS, BadConditionError, compile_fact, compile_when


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
    assert compile_when(when, {}, upper=False)(facts(**given)) is holds


@pytest.mark.parametrize("name", ["max_output", "deadline_ms"])
def test_a_bound_that_the_client_did_not_set_counts_as_endless(name):
    """What the client left open is more than any number, so that a limit on large answers cannot be passed by silence."""
    assert not compile_fact(name, "< 1000000", {}, upper=False)(facts())
    assert compile_fact(name, "> 1000000", {}, upper=False)(facts())


def test_a_limit_sees_the_upper_bound_of_the_size_and_a_route_the_estimate():
    """The same condition on size is stricter in a limit than in a route."""
    request = facts(prompt_tokens=900, prompt_tokens_high=1100)
    assert not compile_fact("prompt_tokens", "> 1000", {}, upper=False)(request)
    assert compile_fact("prompt_tokens", "> 1000", {}, upper=True)(request)


@pytest.mark.parametrize("value", [[], {"a": 1}, 1.5, "< many", "<", None])
@pytest.mark.parametrize("name", FACTS)
def test_no_fact_takes_a_value_that_it_cannot_be_compared_with(name, value):
    """A condition that makes no sense is refused, whatever the fact."""
    with pytest.raises(BadConditionError):
        compile_fact(name, value, {}, upper=False)
