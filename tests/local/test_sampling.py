"""Choosing a token from logits."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from gateway.local.sampling import sample  # noqa: E402 - after torch is known to be there

pytestmark = pytest.mark.torch


def draw(logits, count, *, temperature=1.0, top_p=1.0, seed=7):
    generator = torch.Generator().manual_seed(seed)
    return [sample(torch.tensor(logits), temperature=temperature, top_p=top_p, generator=generator) for _ in range(count)]


def test_logits_that_are_no_numbers_are_refused():
    """A broken row is an error, not a token."""
    with pytest.raises(ValueError, match="not finite"):
        draw([1.0, float("nan")], 1)


def test_temperature_zero_takes_the_best_and_a_tiny_one_does_too():
    """Neither zero nor the smallest temperature overflows or draws."""
    assert set(draw([0.0, 3.0, 2.9], 50, temperature=0.0)) == {1}
    assert set(draw([0.0, 3.0, 2.9], 50, temperature=1e-300)) == {1}


def test_frequencies_follow_the_distribution():
    """Tokens come as often as softmax says, also over a vocabulary larger than the part that is sorted first."""
    logits = [0.0, 1.0, 2.0] + [-30.0] * 1000
    wanted = torch.softmax(torch.tensor(logits), 0)[:3]
    for top_p in (1.0, 0.999999):
        found = torch.bincount(torch.tensor(draw(logits, 1500, top_p=top_p)), minlength=3)[:3] / 1500
        assert torch.allclose(found, wanted, atol=0.05)


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    """With probabilities .5, .3, .2 a top_p of .6 leaves two tokens and .5 leaves one."""
    logits = torch.tensor([0.5, 0.3, 0.2]).log().tolist()
    assert set(draw(logits, 200, top_p=0.6)) == {0, 1}
    assert set(draw(logits, 200, top_p=0.49)) == {0}


def test_top_p_reaches_beyond_the_part_that_is_sorted_first():
    """A flat distribution over 600 tokens keeps about 540 of them at top_p .9."""
    found = set(draw([0.0] * 600, 3000, top_p=0.9))
    assert 480 < len(found) <= 541


def test_the_same_seed_draws_the_same_tokens():
    """One generator a request makes its tokens repeatable."""
    assert draw([0.0] * 50, 20, seed=3) == draw([0.0] * 50, 20, seed=3) != draw([0.0] * 50, 20, seed=4)
