"""The `[[test]]`s of policy files: that they fail when they should, and what they leave untouched."""

import pytest
from worlds import LAST_ROUTE, generation

from gateway.policy.proof import facts_of, run_tests, untouched

LIMIT = '[[limit]]\nname = "cards stay"\nwhen = { found = "card" }\nonly = { zone = "local" }\n'


def run(given, expect):
    (result,) = run_tests(generation(LIMIT + LAST_ROUTE + f'[[test]]\nname = "t"\ngiven = {given}\nexpect = {expect}\n'))
    return result


@pytest.mark.parametrize(
    ("given", "expect", "problem"),
    [
        ("{}", '{ first = "us-api" }', "expected us-api first, got home/m"),
        ("{}", '{ first_not = "home/m" }', "expected another than home/m first"),
        ("{}", "{ refused = true }", "expected a refusal, got home/m"),
        (
            '{ needs = ["audio"] }',
            "{ refused = false }",
            "expected an upstream, got nobody: No upstream of this model can do all",
        ),
        ("{}", '{ only_zone = ["local", "eu"] }', "expected only zone local, eu, got us-api/m in us"),
        ("{}", '{ cache = "off" }', "expected cache off, got semantic"),
        (
            '{ text = "4111 1111 1111 1111", off = ["home"] }',
            '{ first = "home" }',
            "expected home first, got nobody: No upstream that",
        ),
    ],
)
def test_a_test_that_is_not_met_says_what_came_instead(given, expect, problem):
    """Each demand can fail, and then tells what was expected and what came."""
    result = run(given, expect)
    assert not result.passed
    assert result.problems[0].startswith(problem)


@pytest.mark.parametrize(
    ("given", "expect"),
    [
        ('{ down = ["home"] }', '{ first = "eu-api" }'),
        ('{ down = "home/m" }', '{ first_not = "home", refused = false }'),
        ('{ text = "card 4111 1111 1111 1111" }', '{ only_zone = "local", cache = "off", rule = "all" }'),
        ('{ found = ["card"], down = ["home"] }', "{ refused = true }"),
    ],
)
def test_a_test_that_is_met_passes(given, expect):
    """Text is scanned, kinds are classified and upstreams are down as the test says."""
    assert run(given, expect).problems == ()


def test_what_a_test_leaves_out_is_filled_in_as_the_gateway_would():
    """Capabilities follow from endpoint and flags, size bounds from the size, the class from what was found."""
    made = generation('[classes]\nconfidential = ["email"]')
    facts = facts_of(made, {"tools": True, "prompt_tokens": 7, "text": "ada@example.org", "found": ["email"]})
    assert (facts.model, facts.endpoint, facts.needs) == ("auto", "chat/completions", ("chat", "tools"))
    assert (facts.prompt_tokens_high, facts.class_, facts.found) == (7, "confidential", ("email",))
    assert facts_of(made, {"endpoint": "embeddings", "class": "restricted", "found": ["email"]}).class_ == "restricted"


def test_limits_and_routes_that_no_test_touches_are_listed():
    """What no test exercises is told with its place."""
    made = generation(LIMIT + '[[route]]\nname = "s"\nwhen = { stream = true }\norder_by = "cost"\n' + LAST_ROUTE)
    assert untouched(made, run_tests(made)) == [
        'policies/p0.toml:2: limit "cards stay"',
        'policies/p0.toml:6: route "s"',
        'policies/p0.toml:10: route "all"',
    ]
