"""Sizes: an estimate with its band, and an exact count only where a limit lies within the band."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from worlds import DARK, EU, HOME, LIMITS, US, VAULT, all_facts, all_health, facts, generation, limit_texts, names

from gateway.policy.decide import decide
from gateway.policy.decision import Health
from gateway.policy.sizes import exact, near_a_limit

OPTIONS = (HOME, US)
SIZED = generation('[[limit]]\nname = "s"\nwhen = { prompt_tokens = "> 500" }\nonly = { zone = "local" }\n', options=OPTIONS)
CAPPED = generation('[[limit]]\nname = "c"\nmax_cost = 0.0031\n', options=(US,))


def band(low, high, **changes):
    return facts(prompt_tokens=(low + high) // 2, prompt_tokens_high=high, prompt_tokens_low=low, **changes)


@pytest.mark.parametrize(
    ("made", "request_", "near"),
    [
        (SIZED, band(300, 500), False),
        (SIZED, band(300, 501), True),
        (SIZED, band(501, 900), False),
        (SIZED, band(501, 501), False),
        (SIZED, band(6800, 7001, max_output=1000), True),
        (SIZED, band(6800, 7000, max_output=1000), False),
        (CAPPED, band(100, 9000, max_output=1000), False),
        (CAPPED, band(100, 20_000, max_output=1000), True),
        (CAPPED, band(100, 20_000, max_output=2000), False),
    ],
)
def test_a_prompt_is_counted_where_the_band_holds_a_limit(made, request_, near):
    """A limit on size, the end of a context and a cap on costs are such limits; a size on one side of them all is not counted."""
    assert near_a_limit(made, request_, dict) is near


def test_a_cap_is_near_by_the_length_that_answers_have():
    """Without a bound of the client's, what was learned moves the cap to other sizes of prompts; with one it does not."""
    learned = {US.name: Health(long_output=1500)}
    assert not near_a_limit(CAPPED, band(900, 1200), dict)
    assert near_a_limit(CAPPED, band(900, 1200), lambda: learned)
    assert not near_a_limit(CAPPED, band(900, 1200, max_output=1000), lambda: learned)


@given(LIMITS, all_facts(), st.integers(0, 400), all_health((HOME, EU, US, DARK, VAULT)))
def test_where_no_limit_is_near_either_end_of_the_band_allows_the_same(limits, request, width, health):
    """So counting could not have changed what may serve."""
    made = generation("\n".join(limit_texts(limits)), options=(HOME, EU, US, DARK, VAULT))
    request = replace(request, prompt_tokens_low=request.prompt_tokens, prompt_tokens_high=request.prompt_tokens + width)
    if not near_a_limit(made, request, lambda: health):
        least = replace(request, prompt_tokens_high=request.prompt_tokens_low)
        assert set(names(decide(made, "p0", request, health))) == set(names(decide(made, "p0", least, health)))


def test_an_exact_count_replaces_the_band_and_an_estimate_does_not():
    """All models must have their vocabulary; the largest count holds. Three tokens a message are added, as templates do."""
    counts = {"small": (10, False), "big": (12, False), "other": (11, True)}
    request = band(300, 501)
    told = exact(request, ["a", "b"], ["small", "big"], lambda _, model: counts[model])
    assert (told.prompt_tokens_low, told.prompt_tokens, told.prompt_tokens_high) == (18, 18, 18)
    assert exact(request, ["a"], ["small", "other"], lambda _, model: counts[model]) == request
