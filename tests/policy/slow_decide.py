"""The decision worked out step by step for every request, remembering nothing: what `decide` must come to, only slower."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType

from msgspec import UNSET
from policy.slow_conditions import compile_when

from gateway.facts import Facts
from gateway.policy.decide import _unmaskable, _unmasked_text
from gateway.policy.decision import CacheMode, Chosen, Decision, Health, HealthOf, Option, Refusal, Removed
from gateway.policy.generation import RANK, Generation, Limit, Policy, Route, Row

USUAL_OUTPUT_TOKENS = 512
"""Answer length that the expected cost reckons with when the client set no lower bound."""
LONG_OUTPUT_TOKENS = 4096
"""Answer length that a cost cap reckons with when neither client nor model bounds it."""
PRIOR_TTFT_MS = 100.0
"""Time to first token that an option is believed to have until one was measured: low, so that a new one is tried soon."""

_HEALTHY = Health()
_CACHE_RANK: Mapping[str, int] = MappingProxyType({"off": 0, "exact": 1, "semantic": 2})
_MOST_CACHED_RANK = RANK["internal"]
_MOST_STORED_RANK = RANK["internal"]
_PERSONAL_RANK = RANK["confidential"]


def decide(generation: Generation, policy_name: str, facts: Facts, health: HealthOf) -> Decision:
    """The allowed set, its order, and what cache and log may do. Never raises for any facts or health.

    `policy_name` is one that `policy_for` gave; KeyError when the generation does not have it.
    """
    policy = generation.policies[policy_name]
    removed: list[Removed] = []
    limits = [limit for limit in generation.limits if _holds(limit.when, facts, upper=True)]
    fitting = _fitting(generation.rows_for(facts.model), facts, removed)
    own = {row.name for row in fitting}
    cleared = _cleared(fitting, facts, removed)
    if fitting and _narrows(facts, cleared):
        cleared += _substitutes(generation, facts, fitting)
    allowed = _allowed(cleared, limits, facts, health, removed)
    route = _route(policy, facts)
    wanted = _wanted(allowed, route, removed)
    ready = _ready(wanted, health, removed)
    refusal = None
    if not ready:
        refusal = _refusal(generation, facts, health, limits, fitting=fitting, cleared=cleared, allowed=allowed, wanted=wanted)
    return Decision(
        policy=generation.label(policy_name),
        rule=route.name if route else "",
        candidates=(
            *_ordered([row for row in ready if row.name in own], route, facts, health),
            *_ordered([row for row in ready if row.name not in own], route, facts, health),
        ),
        removed=tuple(removed),
        cache=_cache(limits, facts) if wanted and not _redacts(limits, facts) else "off",
        log_text=_log_text(generation, limits, facts),
        redact=_redacts(limits, facts),
        deadline_ms=_deadline_ms(route, facts),
        limits=tuple([limit.name for limit in limits]),
        refusal=refusal,
    )


def _holds(when: Mapping[str, object], facts: Facts, *, upper: bool) -> bool:
    holds = compile_when(when, upper=upper)
    return holds is None or holds(facts)


def _narrows(facts: Facts, cleared: Collection[Row]) -> bool:
    """Whether the local models may answer in the place of the one that was named.

    So for personal data, and for whatever class none of the named model's upstreams takes; never for embeddings, since vectors
    of another model are not comparable. It hangs on facts and catalogue alone: were it to hang on what the limits leave,
    adding a limit could add an upstream.
    """
    if facts.endpoint == "embeddings":
        return False
    return RANK[facts.class_] >= _PERSONAL_RANK or not cleared


def _substitutes(generation: Generation, facts: Facts, own: Collection[Row]) -> list[Row]:
    """The local options beyond the named model's own that are able to serve this and may see it."""
    names = {row.name for row in own}
    rows = [row for row in generation.local_rows if row.name not in names]
    return _cleared(_fitting(rows, facts, []), facts, [])


def expected_cost_usd(option: Option, facts: Facts) -> float | None:
    """What a request will probably cost, in US dollars; None when a price is not known. Prompt caches are not reckoned with."""
    output = min(facts.max_output or USUAL_OUTPUT_TOKENS, option.max_output or USUAL_OUTPUT_TOKENS)
    return _cost_usd(option, facts, facts.prompt_tokens, output * facts.choices)


def worst_cost_usd(option: Option, facts: Facts, health: HealthOf) -> float | None:
    """The most a request can cost with all its answers, in US dollars; None when a price is not known."""
    learned = health.get(option.name, _HEALTHY).long_output
    fixed = min(option.max_output or LONG_OUTPUT_TOKENS, LONG_OUTPUT_TOKENS)
    output = facts.max_output or (fixed if learned is UNSET else learned)
    return _cost_usd(option, facts, facts.prompt_tokens_high, output * facts.choices)


def _cost_usd(option: Option, facts: Facts, prompt_tokens: int, output_tokens: int) -> float | None:
    if option.input_usd_per_mtok is None:
        return None
    if facts.endpoint == "embeddings":
        return prompt_tokens * option.input_usd_per_mtok / 1e6
    if option.output_usd_per_mtok is None:
        return None
    return (prompt_tokens * option.input_usd_per_mtok + output_tokens * option.output_usd_per_mtok) / 1e6


def expected_ttft_ms(health: Health) -> float | None:
    """Time to first token with the queue before it, in milliseconds; None while nothing was measured."""
    return None if health.ttft_ms is None else health.ttft_ms * (health.in_flight + 1)


def _fitting(rows: Iterable[Row], facts: Facts, removed: list[Removed]) -> list[Row]:
    """The options that are able to serve the request, whoever may see it."""
    needed = facts.prompt_tokens_high + (facts.max_output or 1)
    found = []
    for row in rows:
        if not _able(row, facts):
            lacking = ", ".join(need for need in _needs_of(row, facts) if need not in row.capabilities)
            removed.append(Removed(option=row.name, by="capability", reason=f"cannot do: {lacking}"))
        elif row.option.context is not None and needed > row.option.context:
            reason = f"up to {needed} tokens do not fit its context of {row.option.context}"
            removed.append(Removed(option=row.name, by="context", reason=reason))
        else:
            found.append(row)
    return found


def _speaks(row: Row, facts: Facts) -> bool:
    """Whether an option gets the request as it came, not translated."""
    return row.capabilities.issuperset(facts.needs[:1])


def _able(row: Row, facts: Facts) -> bool:
    """Whether an option can do what is asked, as it is asked or translated to chat."""
    return row.capabilities.issuperset(facts.needs) or (bool(facts.via_chat) and row.capabilities.issuperset(facts.via_chat))


def _needs_of(row: Row, facts: Facts) -> tuple[str, ...]:
    """What is asked of this option: translated to chat where it does not speak the endpoint itself."""
    translated = facts.via_chat and "chat" in row.capabilities and not _speaks(row, facts)
    return facts.via_chat if translated else facts.needs


def _cleared(rows: Iterable[Row], facts: Facts, removed: list[Removed]) -> list[Row]:
    """The options whose upstream takes requests of this class, and does not keep what must not be kept."""
    rank = RANK[facts.class_]
    kept = facts.stores and rank > _MOST_STORED_RANK
    found = []
    for row in rows:
        if row.rank >= rank and kept and _speaks(row, facts):
            reason = f"{row.option.upstream} would store the answer, and this is {facts.class_}"
            removed.append(Removed(option=row.name, by="store", reason=reason))
        elif row.rank >= rank:
            found.append(row)
        else:
            reason = f"{row.option.upstream} takes up to {row.option.takes_up_to}, this is {facts.class_}"
            removed.append(Removed(option=row.name, by="class", reason=reason))
    return found


def _allowed(rows: list[Row], limits: Iterable[Limit], facts: Facts, health: HealthOf, removed: list[Removed]) -> list[Row]:
    """What every limit leaves. Each limit can only take away, so neither their order nor their file matters."""
    left = 0
    for row in rows:
        left |= row.bit
    for limit in limits:
        if taken := left & limit.taken_bits:
            left ^= taken
            removed += [limit.removes[row.name] for row in rows if row.bit & taken]
    rows = [row for row in rows if row.bit & left]
    if _redacts(limits, facts):
        first = next(limit for limit in limits if limit.redacts)
        reasons = {row.name: _unmaskable(row, facts) for row in rows if row.option.zone != "local"}
        removed += [
            Removed(option=name, by="redact", reason=f"{first.cause}: {reason}") for name, reason in reasons.items() if reason
        ]
        rows = [row for row in rows if not reasons.get(row.name)]
    caps = [limit for limit in limits if limit.max_cost is not None]
    return _affordable(rows, min(caps, key=_cap), facts, health, removed) if caps else rows


def _redacts(limits: Iterable[Limit], facts: Facts) -> bool:
    """Whether there is something to mask, and a limit that wants it masked."""
    return any(limit.redacts for limit in limits) and (facts.found != () or facts.class_ == "restricted")


def _cap(limit: Limit) -> float:
    return math.inf if limit.max_cost is None else limit.max_cost


def _affordable(rows: list[Row], limit: Limit, facts: Facts, health: HealthOf, removed: list[Removed]) -> list[Row]:
    """What stays under the lowest of the caps."""
    cap_usd = _cap(limit)
    found = []
    for row in rows:
        cost_usd = worst_cost_usd(row.option, facts, health)
        if cost_usd is not None and cost_usd <= cap_usd:
            found.append(row)
        else:
            reason = "its price is not known" if cost_usd is None else f"the cap is ${cap_usd:.6g}"
            removed.append(Removed(option=row.name, by="cost", reason=f"{limit.cause}: {reason}", most_usd=cost_usd))
    return found


def _route(policy: Policy, facts: Facts) -> Route | None:
    for route in policy.routes:
        if _holds(route.when, facts, upper=False):
            return route
    return None


def _wanted(rows: list[Row], route: Route | None, removed: list[Removed]) -> list[Row]:
    """The allowed options that the route tries at all."""
    if route is None or route.order != "nothing":
        return rows
    named = frozenset().union(*route.use)
    reason = f'route "{route.name}" ({route.place}) does not use it'
    removed += [Removed(option=row.name, by="route", reason=reason) for row in rows if row.name not in named]
    return [row for row in rows if row.name in named]


def _ready(rows: Iterable[Row], health: HealthOf, removed: list[Removed]) -> list[Row]:
    found = []
    for row in rows:
        state = health.get(row.name, _HEALTHY)
        if state.up and not state.off:
            found.append(row)
        else:
            removed.append(Removed(option=row.name, by="down", reason=_state_text(state)))
    return found


def _state_text(state: Health) -> str:
    word = "off" if state.off else "down"
    return f"{word}, {state.reason}" if state.reason else word


def _ordered(rows: list[Row], route: Route | None, facts: Facts, health: HealthOf) -> tuple[Chosen, ...]:
    chosen = [
        Chosen(
            option=row.option,
            expected_cost_usd=expected_cost_usd(row.option, facts),
            expected_ttft_ms=expected_ttft_ms(health.get(row.name, _HEALTHY)),
        )
        for row in rows
    ]
    if route is None or len(chosen) < 2:
        return tuple(chosen)
    if route.order in {"cost", "latency"}:
        score = _by_cost if route.order == "cost" else _by_latency(health)
        chosen.sort(key=score)
        if route.within is not None:
            _share(chosen, score, route.within, facts.seed)
    if route.use:
        chosen.sort(key=lambda one: _place_in_use(route, one.option.name))
    return tuple(chosen)


def _by_cost(chosen: Chosen) -> float:
    return math.inf if chosen.expected_cost_usd is None else chosen.expected_cost_usd


def _by_latency(health: HealthOf) -> Callable[[Chosen], float]:
    def score(chosen: Chosen) -> float:
        if chosen.expected_ttft_ms is not None:
            return chosen.expected_ttft_ms
        return PRIOR_TTFT_MS * (health.get(chosen.option.name, _HEALTHY).in_flight + 1)

    return score


def _share(chosen: list[Chosen], score: Callable[[Chosen], float], within: float, seed: str) -> None:
    """Draw the order of the head of the list, all that are nearly as good as the best, so that load does not herd to one."""
    worst = score(chosen[0]) * within
    size = sum(1 for one in chosen if score(one) <= worst)
    head = chosen[:size]
    random.Random(seed).shuffle(head)
    chosen[:size] = head


def _place_in_use(route: Route, name: str) -> int:
    return next((place for place, names in enumerate(route.use) if name in names), len(route.use))


def _cache(limits: Iterable[Limit], facts: Facts) -> CacheMode:
    if RANK[facts.class_] > _MOST_CACHED_RANK:
        return "off"
    modes: list[CacheMode] = [limit.cache for limit in limits if limit.cache is not None]
    return min(modes, key=_CACHE_RANK.__getitem__, default="semantic")


def _log_text(generation: Generation, limits: Iterable[Limit], facts: Facts) -> bool:
    up_to = generation.log_text_up_to
    if up_to is None or RANK[facts.class_] > RANK[up_to]:
        return False
    return not any(limit.hides_text for limit in limits)


def _deadline_ms(route: Route | None, facts: Facts) -> int | None:
    given = [value for value in (route.deadline_ms if route else None, facts.deadline_ms) if value is not None]
    return min(given, default=None)


def _refusal(
    generation: Generation,
    facts: Facts,
    health: HealthOf,
    limits: Iterable[Limit],
    *,
    fitting: list[Row],
    cleared: list[Row],
    allowed: list[Row],
    wanted: list[Row],
) -> Refusal:
    """Why nothing is left, by the first step that left nothing."""
    if not fitting:
        return Refusal(kind="unsupported", message=_unsupported_text(generation.rows_for(facts.model), facts))
    if not wanted:
        found = f" ({', '.join(facts.found)} found)" if facts.found else ""
        if allowed:
            cause = "the route of its policy uses none of the upstreams that may serve it"
        elif cleared:
            cause = "it is refused by " + ", ".join(f'"{name}"' for name in _taking(limits, cleared, facts, health))
            cause += _unmasked_text(limits, cleared, facts)
        else:
            cause = f"no upstream that can serve it takes the class {facts.class_}"
        return Refusal(
            kind="forbidden", message=f"The policy does not allow this request of class {facts.class_}{found}: {cause}."
        )
    states = dict.fromkeys(f"{row.option.upstream}: {_state_text(health[row.name])}" for row in wanted)
    causes = "; ".join([*states, *_inabilities(generation, facts)])
    should_retry = any(not health[row.name].off for row in wanted)
    return Refusal(
        kind="unavailable", message=f"No upstream that may serve this is available ({causes}).", should_retry=should_retry
    )


def _inabilities(generation: Generation, facts: Facts) -> list[str]:
    """Why the options of the asked endpoint that could not serve this could not: the mend may be in the request."""
    removed: list[Removed] = []
    rows = [row for row in generation.rows_for(facts.model) if row.capabilities.issuperset(_needs_of(row, facts)[:1])]
    _fitting(rows, facts, removed)
    return [f"{one.option}: {one.reason}" for one in removed]


def _taking(limits: Iterable[Limit], rows: list[Row], facts: Facts, health: HealthOf) -> list[str]:
    """Names of the limits that take any of these options away, each judged alone."""
    return [limit.name for limit in limits if len(_allowed(rows, [limit], facts, health, [])) < len(rows)]


def _unsupported_text(rows: Collection[Row], facts: Facts) -> str:
    if not rows:
        return "No upstream serves this model."
    able = [row for row in rows if _able(row, facts)]
    if not able:
        needs = facts.needs
        if facts.via_chat:
            needs = (f"{facts.needs[0]} (or chat)", *dict.fromkeys((*facts.needs[1:], *facts.via_chat[1:])))
        return f"No upstream of this model can do all of: {', '.join(needs)}."
    longest = max(row.option.context or 0 for row in able)
    needed = facts.prompt_tokens_high + (facts.max_output or 1)
    return f"Prompt and answer may take {needed} tokens; the maximum context length that can serve this is {longest} tokens."
