"""Whether the size of a prompt has to be known exactly, and the facts once it is. Pure but for the counting that is passed in."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable

from msgspec.structs import replace

from gateway.facts import Facts
from gateway.policy.decide import worst_cost_usd
from gateway.policy.decision import Health, HealthOf, Option
from gateway.policy.generation import Generation
from gateway.tokens import TOKENS_PER_TEXT

Count = Callable[[str, str], tuple[int, bool]]
"""Tokens of a text under a model, and whether that is an estimate."""


def estimated(_text: str, _model: str) -> tuple[int, bool]:
    """A Count for who has no vocabulary."""
    return 0, True


def near_a_limit(generation: Generation, facts: Facts, health: Callable[[], HealthOf]) -> bool:
    """Whether some limit on sizes, context or cap lies within the error band, so that the estimate alone could decide.

    `health()` gives the state of the model's options, asked for only where a cap may hang on it.
    Called on every request: about a microsecond where no cap is near.
    """
    low, high = facts.prompt_tokens_low, facts.prompt_tokens_high
    if low >= high:
        return False
    output = facts.max_output or 1
    if bisect_right(generation.size_steps, low) != bisect_right(generation.size_steps, high):
        return True
    contexts = generation.contexts(facts.model)
    if bisect_right(contexts, low + output - 1) != bisect_right(contexts, high + output - 1):
        return True
    cap_usd = generation.lowest_cap
    if cap_usd is None:
        return False
    states: HealthOf = {} if facts.max_output else health()
    for row in (*generation.rows_for(facts.model), *generation.local_rows):
        state = states.get(row.name, _UNKNOWN)
        output = (facts.max_output or state.long_output or row.long_output) * facts.choices
        most_usd = high * (row.input_usd or 0.0) + output * (row.output_usd or 0.0)
        if most_usd / 1e6 > cap_usd and _straddles(row.option, facts, state, cap_usd):
            return True
    return False


_UNKNOWN = Health()


def _straddles(option: Option, facts: Facts, state: Health, cap_usd: float) -> bool:
    """Whether a cap lies between the worst costs at both ends of the band."""
    most_usd = worst_cost_usd(option, facts, state)
    least_usd = worst_cost_usd(option, replace(facts, prompt_tokens_high=facts.prompt_tokens_low), state)
    return most_usd is not None and least_usd is not None and least_usd <= cap_usd < most_usd


def exact(facts: Facts, texts: Iterable[str], models: Iterable[str], count: Count) -> Facts:
    """The facts with the prompt counted under every one of these models; as they are where one has no vocabulary.

    Long for a long prompt, about 0.04 ms a kilobyte and model: not for the event loop.
    """
    pieces = list(texts)
    whole = "\n".join(pieces)
    tokens = 0
    for model in models:
        counted, guessed = count(whole, model)
        if guessed:
            return facts
        tokens = max(tokens, counted)
    if not tokens:
        return facts
    tokens += TOKENS_PER_TEXT * len(pieces)
    return replace(facts, prompt_tokens=tokens, prompt_tokens_low=tokens, prompt_tokens_high=tokens)
