"""What an answer costs. Pure; prices stand in the config beside each candidate."""

from __future__ import annotations

from gateway.ledger import Usage
from gateway.policy.decision import Option


def cost_usd(option: Option, usage: Usage) -> float | None:
    """Dollars for this usage; None when a price it needs is not known. Cached prompt tokens count at their own price, if any."""
    if option.input_usd_per_mtok is None or (option.output_usd_per_mtok is None and usage.completion_tokens):
        return None
    output_price = option.output_usd_per_mtok or 0.0
    cached_price = option.cached_input_usd_per_mtok
    cached = usage.cached_tokens if cached_price is not None else 0
    fresh = usage.prompt_tokens - cached
    total = fresh * option.input_usd_per_mtok + cached * (cached_price or 0.0) + usage.completion_tokens * output_price
    return total / 1_000_000
