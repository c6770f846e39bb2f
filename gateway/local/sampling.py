"""Choose the next token from one row of logits. Knows one row, its temperature, top_p and generator; nothing else."""

from __future__ import annotations

import torch

_HEAD = 256
"""Most likely tokens that are sorted first; only when they hold less than top_p is the whole vocabulary sorted."""


def sample(logits: torch.Tensor, *, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """A token id from `logits` (float, shape [vocabulary], on the CPU).

    Temperature 0 takes the most likely token and draws nothing. Otherwise one number is drawn from `generator` and the
    cumulative distribution of the smallest set of tokens whose mass reaches `top_p` is inverted (nucleus sampling,
    Holtzman et al. 2020). Raises ValueError when the logits are not finite numbers.
    """
    best = logits.max()
    if not torch.isfinite(best):
        raise ValueError("the model produced logits that are not finite")
    if temperature == 0:
        return int(logits.argmax())
    # Subtracting the largest first keeps a tiny temperature from overflowing.
    weights = ((logits.double() - best.double()) / temperature).exp()
    draw = torch.rand((), generator=generator, dtype=torch.float64)
    if top_p >= 1:
        return _invert(weights.cumsum(0), draw)
    enough = top_p * weights.sum()
    head, ids = weights.topk(min(_HEAD, len(weights)))
    if head.sum() < enough:
        head, ids = weights.sort(descending=True)
    mass = head.cumsum(0)
    nucleus = int(torch.searchsorted(mass, enough)) + 1
    return int(ids[_invert(mass[:nucleus], draw)])


def _invert(mass: torch.Tensor, draw: torch.Tensor) -> int:
    """The index at which the cumulative `mass` passes the fraction `draw` of its end."""
    return min(int(torch.searchsorted(mass, draw * mass[-1], right=True)), len(mass) - 1)
