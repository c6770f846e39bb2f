"""Decide where a request may go, and in which order. Pure: no clock, no network, no file; the same in gives the same out."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import itemgetter
from types import MappingProxyType

from msgspec import Struct
from msgspec.structs import replace

from gateway.errors import Conflict, Forbidden, did_you_mean
from gateway.facts import Facts
from gateway.policy.decision import CacheMode, Chosen, Decision, Health, HealthOf, Option, Refusal, Removed
from gateway.policy.generation import RANK, USUAL_OUTPUT_TOKENS, Generation, Limit, Route, Row, long_output
from gateway.privacy import UNSCANNABLE

PRIOR_TTFT_MS = 100.0
"""Time to first token that an option is believed to have until one was measured: low, so that a new one is tried soon."""

MOST_KINDS = 4096
"""Kinds of requests (model, needs, class, limits that hold) of which a generation remembers what they may reach."""

_HEALTHY = Health()
_CACHE_RANK: Mapping[str, int] = MappingProxyType({"off": 0, "exact": 1, "semantic": 2})
_MOST_CACHED_RANK = RANK["internal"]
_MOST_STORED_RANK = RANK["internal"]
_PERSONAL_RANK = RANK["confidential"]
_UNSCANNED_RANK = RANK["restricted"]
"""What could not be scanned is of this class, with nothing found."""
_MASKABLE = frozenset(
    {
        "chat/completions", "completions", "messages", "messages/count_tokens",
        "responses", "responses/compact", "responses/input_tokens",
    }
)  # fmt: skip
"""Endpoints whose bodies are text that can be masked, and whose answers can be restored."""


def decide(generation: Generation, policy_name: str, facts: Facts, health: HealthOf) -> Decision:
    """The allowed set, its order, and what cache and log may do. Never raises for any facts or health.

    `policy_name` is one that `policy_for` gave; KeyError when the generation does not have it.
    """
    policy = generation.policies[policy_name]
    held = policy.matcher.held(facts)
    found = _permitted(generation, facts, held & generation.limit_bits)
    removed = found.removed
    allowed: Sequence[Offer] = found.offers
    redact = found.redact is not None and _needs_masks(facts)
    if redact and found.redact is not None:
        allowed, bare = _maskable(allowed, found.redact, facts)
        removed += bare
    if found.cap is not None and not (facts.max_output and _all_affordable(found.dearest, found.cap, facts)):
        allowed, dear = _affordable(allowed, found.cap, facts, health)
        removed += dear
    first = held >> len(generation.limits)
    route = policy.routes[(first & -first).bit_length() - 1] if first else None
    wanted = allowed
    if route is not None and route.order == "nothing":
        wanted, unused = _wanted(allowed, route)
        removed += unused
    if not found.substituted:
        candidates, down = _ordered(wanted, route, facts, health)
    else:
        candidates, down = _ordered([offer for offer in wanted if offer[0].bit & found.own], route, facts, health)
        others, more = _ordered([offer for offer in wanted if not offer[0].bit & found.own], route, facts, health)
        candidates, down = candidates + others, down + more
    removed += down
    refusal = None
    if not candidates:
        refusal = _refusal(generation, facts, health, found, allowed=_rows(allowed), wanted=_rows(wanted))
    deadline_ms = facts.deadline_ms
    if route is not None and route.deadline_ms is not None and (deadline_ms is None or route.deadline_ms < deadline_ms):
        deadline_ms = route.deadline_ms
    return Decision(
        policy=generation.label(policy_name),
        rule=route.name if route else "",
        candidates=candidates,
        removed=removed,
        cache=found.cache if wanted and not redact else "off",
        log_text=found.log_text,
        redact=redact,
        deadline_ms=deadline_ms,
        limits=found.limits,
        refusal=refusal,
    )


Offer = tuple[Row, str, Option, float | None, float, float, float]
"""A permitted option with what its costs are made of: row, name, option, dollars for a million tokens of prompt (None: no price
is known) and of answer, tokens of a long and of a usual answer. Plain, since `decide` takes dozens apart on every request."""


def _offer(row: Row, endpoint: str) -> Offer:
    input_usd, output_usd = row.input_usd, row.output_usd
    if endpoint == "embeddings":
        output_usd = 0.0
    if output_usd is None:
        input_usd, output_usd = None, 0.0
    return (row, row.name, row.option, input_usd, output_usd, float(row.long_output), float(row.usual_output))


def _rows(offers: Iterable[Offer]) -> list[Row]:
    return [offer[0] for offer in offers]


class _Permitted(Struct, frozen=True):
    """What all limits but a cap on costs leave, and what follows from the limits that hold."""

    offers: tuple[Offer, ...]
    removed: tuple[Removed, ...]
    fitting: tuple[Row, ...]
    cleared: tuple[Row, ...]
    own: int
    """Bits of the options of the named model."""
    substituted: bool
    """Whether there are others among the offers."""
    held: tuple[Limit, ...]
    """The limits that hold."""
    cap: Limit | None
    """The lowest cap on costs."""
    redact: Limit | None
    """The first that masks what leaves."""
    dearest: tuple[float, float] | None
    """The highest prices of all offers together; None where one is not known."""
    cache: CacheMode
    log_text: bool
    limits: tuple[str, ...]


def _permitted(generation: Generation, facts: Facts, held: int) -> _Permitted:
    """As `_work_out`; the same for every request of the same kind that fits every context, and so worked out once."""
    if facts.prompt_tokens_high + (facts.max_output or 1) > generation.shortest_context:
        return _work_out(generation, facts, held)
    kind = (facts.model, facts.endpoint, facts.needs, facts.via_chat, facts.stores, facts.class_, held)
    found: _Permitted | None = generation.known.get(kind)
    if found is None:
        if len(generation.known) >= MOST_KINDS:
            generation.known.clear()
        found = generation.known[kind] = _work_out(generation, facts, held)
    return found


def _work_out(generation: Generation, facts: Facts, held: int) -> _Permitted:
    limits = tuple(limit for limit in generation.limits if limit.bit & held)
    removed: list[Removed] = []
    fitting = _fitting(generation.rows_for(facts.model), facts, removed)
    cleared = _cleared(fitting, facts, removed)
    if fitting and _narrows(facts, cleared):
        cleared += _substitutes(generation, facts, fitting)
    rows = _permitted_rows(cleared, limits, removed)
    offers = tuple(_offer(row, facts.endpoint) for row in rows)
    own = 0
    for row in fitting:
        own |= row.bit
    return _Permitted(
        offers=offers,
        removed=tuple(removed),
        fitting=tuple(fitting),
        cleared=tuple(cleared),
        own=own,
        substituted=any(not row.bit & own for row in rows),
        held=limits,
        cap=min((limit for limit in limits if limit.max_cost is not None), key=_cap, default=None),
        redact=next((limit for limit in limits if limit.redacts), None),
        dearest=_dearest(offers),
        cache=_cache(limits, facts),
        log_text=_log_text(generation, limits, facts),
        limits=tuple(limit.name for limit in limits),
    )


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


def worst_cost_usd(option: Option, facts: Facts, health: Health) -> float | None:
    """What a cap is compared with, in US dollars; None when a price is not known."""
    return _cost_usd(option, facts, facts.prompt_tokens_high, worst_output(option, facts, health) * facts.choices)


def worst_output(option: Option, facts: Facts, health: Health) -> int:
    """Tokens of each answer that a cap reckons with: what the client allows; where it does not say, what few answers exceed."""
    return facts.max_output or health.long_output or long_output(option)


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


def _allowed(rows: Sequence[Row], limit: Limit, facts: Facts, health: HealthOf) -> Sequence[Offer]:
    """What a limit leaves, also by its masks and its cap on costs."""
    left: Sequence[Offer] = [_offer(row, facts.endpoint) for row in _permitted_rows(rows, (limit,), [])]
    if limit.redacts and _needs_masks(facts):
        left, _ = _maskable(left, limit, facts)
    return left if limit.max_cost is None else _affordable(left, limit, facts, health)[0]


def _permitted_rows(rows: Sequence[Row], limits: Iterable[Limit], removed: list[Removed]) -> list[Row]:
    """What `only` and `never` leave. Each limit can only take away, so neither their order nor their file matters."""
    left = 0
    for row in rows:
        left |= row.bit
    for limit in limits:
        if taken := left & limit.taken_bits:
            left ^= taken
            removed += [limit.removes[row.name] for row in rows if row.bit & taken]
    return [row for row in rows if row.bit & left]


def _needs_masks(facts: Facts) -> bool:
    """Whether there is anything to mask; what could not be scanned may hold anything."""
    return bool(facts.found) or RANK[facts.class_] >= _UNSCANNED_RANK


def _maskable(offers: Sequence[Offer], limit: Limit, facts: Facts) -> tuple[Sequence[Offer], tuple[Removed, ...]]:
    """The local options, and those others for which the request can be masked and the answer restored; why the rest is not."""
    causes = {row.name: "" if row.option.zone == "local" else _unmaskable(row, facts) for row in _rows(offers)}
    bare = [Removed(option=name, by="redact", reason=f"{limit.cause}: {why}") for name, why in causes.items() if why]
    return [offer for offer in offers if not causes[offer[1]]], tuple(bare)


def _unmaskable(row: Row, facts: Facts) -> str:
    """Why this option cannot get a masked request; empty: as far as the facts tell, it can."""
    if facts.endpoint not in _MASKABLE:
        return f"{facts.endpoint} cannot be masked"
    if UNSCANNABLE in facts.found:
        return "files and images cannot be masked"
    if "logprobs" in facts.needs:
        return "log probabilities would be those of the masked text; leave out logprobs"
    if facts.stores and _speaks(row, facts):
        return f"{row.option.upstream} would store a masked answer, which nobody could restore; send store: false"
    if facts.endpoint == "responses/compact" and _speaks(row, facts):
        return f"{row.option.upstream} would seal a masked summary, which nobody could restore"
    return ""


def _cap(limit: Limit) -> float:
    return math.inf if limit.max_cost is None else limit.max_cost


def _dearest(offers: Collection[Offer]) -> tuple[float, float] | None:
    inputs = [input_usd for _, _, _, input_usd, _, _, _ in offers if input_usd is not None]
    if not offers or len(inputs) < len(offers):
        return None
    return max(inputs), max(offer[4] for offer in offers)


def _all_affordable(dearest: tuple[float, float] | None, cap: Limit, facts: Facts) -> bool:
    """Whether a cap takes nothing away, by one look at the dearest that any of them can be; False where that is not certain.

    For a request whose answers are bounded.
    """
    if dearest is None or cap.max_cost is None:
        return False
    input_usd, output_usd = dearest
    most_usd = (facts.prompt_tokens_high * input_usd + (facts.max_output or math.inf) * facts.choices * output_usd) / 1e6
    return most_usd <= cap.max_cost


def _affordable(
    offers: Sequence[Offer], limit: Limit, facts: Facts, health: HealthOf
) -> tuple[Sequence[Offer], tuple[Removed, ...]]:
    """What stays under a cap, and why the rest does not."""
    cap_usd, too_dear = _cap(limit), limit.too_dear
    prompt, choices = float(facts.prompt_tokens_high), float(facts.choices)
    most = float(facts.max_output or 0)
    state_of = health.get
    found, dear = [], []
    # The loop says what `worst_cost_usd` does, without a call for each option.
    for offer in offers:
        _, name, _, input_usd, output_usd, long, _ = offer
        if input_usd is None:
            dear.append(Removed(option=name, by="cost", reason=f"{limit.cause}: its price is not known"))
            continue
        output = most or state_of(name, _HEALTHY).long_output or long
        cost_usd = (prompt * input_usd + output * choices * output_usd) / 1e6
        if cost_usd <= cap_usd:
            found.append(offer)
        else:
            dear.append(Removed(name, "cost", too_dear, cost_usd))
    return (found, tuple(dear)) if dear else (offers, ())


def _wanted(offers: Sequence[Offer], route: Route) -> tuple[Sequence[Offer], tuple[Removed, ...]]:
    """The allowed options that a route tries, which tries no others, and those."""
    reason = f'route "{route.name}" ({route.place}) does not use it'
    unused = [Removed(option=offer[1], by="route", reason=reason) for offer in offers if offer[1] not in route.places]
    return [offer for offer in offers if offer[1] in route.places], tuple(unused)


def _state_text(state: Health) -> str:
    word = "off" if state.off else "down"
    return f"{word}, {state.reason}" if state.reason else word


def _ordered(
    offers: Sequence[Offer], route: Route | None, facts: Facts, health: HealthOf
) -> tuple[tuple[Chosen, ...], tuple[Removed, ...]]:
    """What is up, in the order of the route, and why the rest is not."""
    prompt, choices = float(facts.prompt_tokens), float(facts.choices)
    most = float(facts.max_output or USUAL_OUTPUT_TOKENS)
    state_of = health.get
    by_cost = route is not None and route.order == "cost"
    by_latency = route is not None and route.order == "latency"
    scored: list[_Scored] = []
    down: list[Removed] = []
    score = 0.0
    # The loop says what `expected_cost_usd` and `expected_ttft_ms` do, without two calls for each option.
    for _, name, option, input_usd, output_usd, _, usual in offers:
        state = state_of(name, _HEALTHY)
        if state.off or not state.up:
            down.append(Removed(option=name, by="down", reason=_state_text(state)))
            continue
        cost = time = None
        if input_usd is not None:
            # `min` would be a call for each option.
            cost = (prompt * input_usd + (usual if usual < most else most) * choices * output_usd) / 1e6  # noqa: FURB136
        if state.ttft_ms is not None:
            time = state.ttft_ms * (state.in_flight + 1)
        if by_cost:
            score = math.inf if cost is None else cost
        elif by_latency:
            score = PRIOR_TTFT_MS * (state.in_flight + 1) if time is None else time
        scored.append((score, Chosen(option, cost, time), name))
    if route is not None and len(scored) > 1:
        if by_cost or by_latency:
            scored.sort(key=_score)
            if route.within is not None:
                _share(scored, route.within, facts.seed)
        if route.use:
            last, places = len(route.use), route.places
            scored.sort(key=lambda one: places.get(one[2], last))
    return tuple([chosen for _, chosen, _ in scored]), tuple(down)


_Scored = tuple[float, Chosen, str]
"""What is lower comes first, by its name; what is the same stays in the order of the catalogue."""
_score = itemgetter(0)


def _share(order: list[_Scored], within: float, seed: str) -> None:
    """Draw the order of the head, all that are nearly as good as the best, so that load does not herd to one."""
    worst = order[0][0] * within
    size = sum([one[0] <= worst for one in order])
    if size > 1:
        head = order[:size]
        random.Random(seed).shuffle(head)
        order[:size] = head


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


def _refusal(
    generation: Generation,
    facts: Facts,
    health: HealthOf,
    found: _Permitted,
    *,
    allowed: Sequence[Row],
    wanted: Sequence[Row],
) -> Refusal:
    """Why nothing is left, by the first step that left nothing."""
    limits, cleared = found.held, found.cleared
    if not found.fitting:
        return Refusal(kind="unsupported", message=_unsupported_text(generation.rows_for(facts.model), facts))
    if not wanted:
        if allowed:
            cause = "the route of its policy uses none of the upstreams that may serve it"
        elif cleared:
            cause = "it is refused by " + ", ".join(f'"{name}"' for name in _taking(limits, cleared, facts, health))
            cause += _unmasked_text(limits, cleared, facts)
        else:
            cause = f"no upstream that can serve it takes the class {facts.class_}"
        return Refusal(
            kind="forbidden", message=f"The policy does not allow this request of class {facts.class_}{facts.why}: {cause}."
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


def _taking(limits: Iterable[Limit], rows: Sequence[Row], facts: Facts, health: HealthOf) -> list[str]:
    """Names of the limits that take any of these options away, each judged alone."""
    return [limit.name for limit in limits if len(_allowed(rows, limit, facts, health)) < len(rows)]


def _unmasked_text(limits: Iterable[Limit], rows: Iterable[Row], facts: Facts) -> str:
    """Why masks did not help, where a limit asks for them: the mend may be in the request."""
    if not _needs_masks(facts) or not any(limit.redacts for limit in limits):
        return ""
    causes = [_unmaskable(row, facts) for row in rows if row.option.zone != "local"]
    told = "; ".join(dict.fromkeys(filter(None, causes)))
    return f" ({told})" if told else ""


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


def pin(decision: Decision, upstream: str, *, what: str = "the previous response") -> Decision:
    """Only the candidates of one upstream, which keeps what the request goes on from. Narrows the set, never widens it.

    `what` it keeps, in the words of a message.
    """
    left = tuple(chosen for chosen in decision.candidates if chosen.option.upstream == upstream)
    if left or decision.refusal is not None:
        return replace(decision, candidates=left)
    causes = {removed.by for removed in decision.removed if removed.option.startswith(f"{upstream}/")}
    if "down" in causes:
        said = f'"{upstream}" keeps {what} and is not available.'
        return replace(decision, candidates=(), refusal=Refusal(kind="unavailable", message=said, should_retry=True))
    if causes & {"class", "store", "limit", "cost", "redact", "route"}:
        said = f'The policy does not allow this request to go to "{upstream}", which keeps {what}.'
        return replace(decision, candidates=(), refusal=Refusal(kind="forbidden", message=said))
    said = f'"{upstream}" keeps {what} and does not serve this model; name the model that made it.'
    return replace(decision, candidates=(), refusal=Refusal(kind="unsupported", message=said))


def policy_for(
    generation: Generation,
    *,
    key_policy: str,
    key_policies: Collection[str],
    header: str | None,
    default: str,
) -> str:
    """The policy whose routes a request uses: the header's when the key may use it, else the key's own, else the default.

    `header` is NAME or NAME@HASH. Raises Forbidden for a policy the key may not use or that is no longer there, and
    Conflict (code `policy_changed`) for a HASH that is not in force. No message repeats what the header said.
    """
    own = key_policy or default
    name, _, pinned = header.partition("@") if header else (own, "", "")
    param = "x-gateway-policy" if header else None
    if name != own and name not in key_policies:
        mine = {own, *key_policies}
        message = f"This key may not use the policy that x-gateway-policy names{did_you_mean(name, mine)}"
        raise Forbidden(message, param=param)
    policy = generation.policies.get(name)
    if policy is None or not policy.routes:
        raise Forbidden(
            f'The policy "{name}" of this key is not in force; its operator must add it or change the key.', param=param
        )
    if pinned and pinned != generation.hash:
        message = f"The policy is no longer the one that x-gateway-policy pins; {generation.label(name)} is in force."
        raise Conflict(message, param=param, code="policy_changed")
    return name
