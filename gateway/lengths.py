"""How long answers are: a length that all but one in twenty keep within, learned as they end. Knows neither options nor clock.

Buckets whose edges grow by one factor keep the relative error of every quantile (Masson, Rim and Lee, "DDSketch", PVLDB 12,
2019); what is old is forgotten by halving.
"""

from __future__ import annotations

import math

LEAST_ANSWERS = 50
"""Of fewer, the last twentieth is two answers, which say nothing of the others to come."""
HALF_LIFE = 1000
"""After so many more answers, one counts half."""

_PER_DOUBLING = 8
"""Buckets: so that none is wider than 9.1 %."""
_BUCKETS = 25 * _PER_DOUBLING
"""Up to 32 million tokens."""
_BEYOND = 0.05


class Lengths:
    """A running 95th percentile of the lengths of answers, in tokens."""

    def __init__(self) -> None:
        self._weights = [0.0] * _BUCKETS
        """Of each bucket; its upper edge belongs to it."""
        self._total = 0.0
        self._seen = 0
        self._longest = self._top = 0
        """The longest of them, and its bucket."""

    def add(self, tokens: int) -> None:
        """An answer of so many tokens, at least one, came to its end."""
        bucket = min(math.ceil(math.log2(tokens) * _PER_DOUBLING), _BUCKETS - 1)
        self._weights[bucket] += 1.0
        self._total += 1.0
        self._seen += 1
        if tokens > self._longest:
            self._longest, self._top = tokens, bucket
        if self._total >= 2 * HALF_LIFE:
            self._weights = [weight / 2 for weight in self._weights]
            self._total /= 2

    @property
    def long(self) -> int | None:
        """What all but one in twenty keep within, at most 9.1 % above the shortest such length; None after too few answers."""
        if self._seen < LEAST_ANSWERS:
            return None
        above, beyond = 0.0, self._total * _BEYOND
        for bucket in range(self._top, -1, -1):
            above += self._weights[bucket]
            if above > beyond:
                return min(math.ceil(math.exp2(bucket / _PER_DOUBLING)), self._longest)
        return None
