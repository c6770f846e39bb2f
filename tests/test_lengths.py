"""The running 95th percentile of answers' lengths: near the true one, and soon that of what is new."""

import math

from hypothesis import given
from hypothesis import strategies as st

from gateway.lengths import HALF_LIFE, LEAST_ANSWERS, Lengths


def learned(lengths):
    found = Lengths()
    for tokens in lengths:
        found.add(tokens)
    return found.long


def p95(lengths):
    """By nearest rank."""
    return sorted(lengths)[math.ceil(0.95 * len(lengths)) - 1]


@given(st.lists(st.integers(1, 1_000_000), min_size=LEAST_ANSWERS, max_size=400))
def test_it_is_the_95th_percentile_or_a_little_more(lengths):
    """Never less, so that a cap is not passed by its error; never more than the width of a bucket above."""
    assert p95(lengths) <= learned(lengths) <= math.ceil(p95(lengths) * 2 ** (1 / 8))


def test_few_answers_say_nothing():
    """Up to a number of them there is no figure, then there is."""
    assert learned([100] * (LEAST_ANSWERS - 1)) is None
    assert learned([100] * LEAST_ANSWERS) == 100


def test_what_is_old_is_forgotten():
    """A model that now answers ten times as long, or as short, is known as that after a few half-lives."""
    assert learned([100] * 10 * HALF_LIFE + [1000] * HALF_LIFE) == 1000
    assert learned([1000] * 10 * HALF_LIFE + [100] * 6 * HALF_LIFE) <= 110


@given(st.integers(1, 2**60))
def test_any_length_is_taken(tokens):
    """An upstream may count whatever it likes."""
    assert learned([tokens] * LEAST_ANSWERS) <= tokens
