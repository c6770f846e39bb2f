"""One request, top to bottom: read, scan, decide, look up, dispatch, relay, store, close. Read this file aloud.

Knows its parts by their protocols only; names no concrete upstream, cache or sink. Whatever happens, the request's Ledger
closes into exactly one Record, and no upstream stays open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from msgspec import Struct, to_builtins

from gateway import facts as facts_of
from gateway import reply, wire
from gateway.auth import Principal
from gateway.cache import CACHEABLE_CLASSES, Entry, Hit, Mode, Scope
from gateway.cache.key import scope
from gateway.cache.tiers import Cache
from gateway.config import Class, Config
from gateway.dispatch import Dispatch
from gateway.errors import ApiError, Forbidden, InvalidRequest, NotFound, Unavailable, did_you_mean
from gateway.facts import Facts
from gateway.health import HealthView
from gateway.ledger import Ending, Ledger
from gateway.policy.decide import decide, policy_for
from gateway.policy.decision import Decision, Health, Option
from gateway.policy.generation import Generation
from gateway.reply import Reply
from gateway.upstreams import Call

LOOP_BODY_BYTES = 256 * 1024
"""Bodies above this are parsed and scanned on a thread, so that the loop stays free."""
KEEP_BYTES = 2 * 1024 * 1024
"""Answers above this are not kept for the cache."""

FORWARDED_HEADERS = ("openai-beta", "idempotency-key", "x-client-request-id", "traceparent", "tracestate")
"""Client headers that travel to external upstreams. Its key never does."""


P = ParamSpec("P")
T = TypeVar("T")


class Incoming(Struct, frozen=True, kw_only=True):
    """A request with its key checked and its body read."""

    endpoint: str
    body: bytes
    headers: Mapping[str, str]
    """Lower-case names."""
    principal: Principal


class Pipeline:
    """The request path of one front worker."""

    def __init__(
        self,
        *,
        config: Config,
        generation: Callable[[], Generation],
        dispatch: Dispatch,
        cache: Cache,
        health: HealthView,
    ) -> None:
        self._config = config
        self._generation = generation
        self._dispatch = dispatch
        self._cache = cache
        self._health = health

    async def answer(self, incoming: Incoming, ledger: Ledger) -> Reply:
        """The whole path. Raises ApiError for a clear refusal; the caller closes the ledger then."""
        request = await _aside(incoming.body, wire.read, incoming.endpoint, incoming.body)
        generation = self._generation()
        if request.model not in self._config.models:
            raise _unknown_model(request.model, self._config)
        facts = await _aside(incoming.body, self._facts, incoming, request, generation, ledger)
        ledger.note(model=request.model, stream=request.stream, class_=facts.class_, found=facts.found)
        decision = self._decide(incoming, facts, generation, ledger)
        key, mode, control = await _aside(incoming.body, self._cache_key, incoming, request, decision, generation)
        found = await self._cache.lookup(key, mode, class_=facts.class_, no_cache=bool(control & {"no-cache", "no-store"}))
        if isinstance(found, Hit):
            _note_hit(ledger, found)
            return await reply.stored(ledger, found, request, self._headers(decision, "cache", f"hit-{found.tier}"))
        ledger.note(cache=_OUTCOMES.get(found.reason, "miss"))
        ledger.event("cache.miss", reason=found.reason, cosine=found.cosine)
        if decision.refusal is not None:
            raise _refused(decision)

        async def prepare(option: Option) -> Call:
            return await _aside(incoming.body, self._call, incoming, request, option, ledger)

        opened = await self._dispatch.open(decision, prepare, ledger)
        headers = self._headers(decision, opened.option.name, str(ledger.fields["cache"]))
        done: Ending = "complete" if opened.option == decision.candidates[0].option else "fallback"
        keeper = Keeper(self._cache, key, mode, facts.class_, no_store="no-store" in control)
        return await reply.relayed(ledger, opened, request, headers, prompt_tokens=facts.prompt_tokens, keeper=keeper, done=done)

    def _facts(self, incoming: Incoming, request: wire.Request, generation: Generation, ledger: Ledger) -> Facts:
        principal = incoming.principal
        return facts_of.judge(
            request,
            classes=generation.classes,
            max_scan_chars=self._config.server.max_scan_chars,
            tenant=principal.tenant,
            key_label=principal.label,
            class_floor=principal.class_floor,
            headers=incoming.headers,
            seed=ledger.request_id,
            now=ledger.opened_at,
        )

    def _decide(self, incoming: Incoming, facts: Facts, generation: Generation, ledger: Ledger) -> Decision:
        principal = incoming.principal
        policy = policy_for(
            generation,
            key_policy=principal.policy,
            key_policies=principal.policies,
            header=incoming.headers.get("x-gateway-policy"),
            default=self._config.policies.default,
        )
        health = self._health.snapshot((option.upstream, option.model) for option in generation.catalogue.options())
        decision = decide(generation, policy, facts, health)
        ledger.log_text = decision.log_text
        ledger.note(policy=decision.policy, route_rule=decision.rule)
        ledger.event("route.decided", **decided(facts, decision, health))
        return decision

    def _cache_key(
        self, incoming: Incoming, request: wire.Request, decision: Decision, generation: Generation
    ) -> tuple[Scope | None, Mode, set[str]]:
        """Where this answer stands in the cache, how far the policy of now lets the cache answer, and what the client asked."""
        control = {part.strip().lower() for part in incoming.headers.get("cache-control", "").split(",")}
        forbidden = decision.refusal is not None and decision.refusal.kind != "unavailable"
        if not self._config.cache.enabled or decision.cache == "off" or forbidden:
            return None, "off", control
        key = scope(
            request.data,
            tenant=incoming.principal.tenant,
            endpoint=request.endpoint,
            model=request.model,
            policy_scope=generation.hash,
            embedder=self._config.cache.embedder,
        )
        return key, decision.cache, control

    def _call(self, incoming: Incoming, request: wire.Request, option: Option, ledger: Ledger) -> Call:
        body = wire.with_model(request, option.model)
        config = self._config.upstreams[option.upstream]
        add_usage = request.stream and not request.include_usage and config.inject_usage
        if add_usage:
            body = wire.with_usage(body)
        return Call(
            request_id=ledger.request_id,
            endpoint=request.endpoint,
            model=option.model,
            body=body,
            stream=request.stream,
            headers=_forwarded(incoming.headers),
            usage_added=add_usage,
        )

    def error_headers(self, ledger: Ledger) -> list[tuple[str, str]]:
        """Our own headers of a refusal or failure: the policy that was in force, once one was."""
        policy = ledger.fields.get("policy")
        return [("x-gateway-policy", str(policy))] if policy and self._config.server.expose_headers else []

    def _headers(self, decision: Decision, route: str, cache: str) -> list[tuple[str, str]]:
        if not self._config.server.expose_headers:
            return []
        return [("x-gateway-route", route), ("x-gateway-cache", cache), ("x-gateway-policy", decision.policy)]


async def _aside(body: bytes, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do work whose time grows with the body: here when it is small, on a thread when the loop would notice."""
    if len(body) <= LOOP_BODY_BYTES:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)


def _forwarded(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The client's headers that travel. One that could not stand in a header of ours stays here."""
    found = [(name, headers[name]) for name in FORWARDED_HEADERS if name in headers]
    return tuple((name, value) for name, value in found if value.isascii() and value.isprintable() and len(value) <= 4096)


def decided(facts: Facts, decision: Decision, health: Mapping[str, Health]) -> dict[str, Any]:
    """The fields of `route.decided`: everything needed to decide again later, and nothing of the request's text."""
    return {
        "facts": to_builtins(facts),
        "health": to_builtins(health),
        "policy": decision.policy,
        "rule": decision.rule,
        "order": [chosen.option.name for chosen in decision.candidates],
        "removed": [to_builtins(removed) for removed in decision.removed],
        "cache": decision.cache,
        "limits": decision.limits,
        "refusal": decision.refusal.kind if decision.refusal else None,
    }


_OUTCOMES = {"off": "off", "class": "off", "no_cache": "bypass"}
"""Reasons of a Miss that mean that nobody looked."""


def _note_hit(ledger: Ledger, hit: Hit) -> None:
    ledger.sent()
    ledger.note(cache=f"hit-{hit.tier}", source="cache", route="cache", cosine=hit.cosine, saved_usd=hit.entry.cost_usd)
    ledger.event("cache.hit", tier=hit.tier, cosine=hit.cosine, age_s=hit.age_s)


def _unknown_model(name: str, config: Config) -> NotFound:
    shown = ascii(name[:128])[1:-1]
    hint = did_you_mean(name, config.models) or "; see /v1/models"
    return NotFound(
        f"The model `{shown}` does not exist or you do not have access to it{hint}", param="model", code="model_not_found"
    )


def _refused(decision: Decision) -> ApiError:
    refusal = decision.refusal
    if refusal is None:
        raise AssertionError("a decision without candidates carries a refusal")
    if refusal.kind == "forbidden":
        return Forbidden(refusal.message, code="policy_forbidden")
    if refusal.kind == "unsupported":
        return InvalidRequest(refusal.message, param="model", code="unsupported_by_model")
    return Unavailable(refusal.message, should_retry=refusal.should_retry, retry_after_s=1.0 if refusal.should_retry else None)


class Keeper:
    """Stores one answer after it went out whole, if policy, request and client let it."""

    def __init__(self, cache: Cache, key: Scope | None, mode: Mode, class_: Class, *, no_store: bool) -> None:
        self._cache = cache
        self._key = key
        self._mode: Mode = "off" if no_store else mode
        self._class = class_

    @property
    def room(self) -> int:
        """See `reply.Keeper`."""
        return KEEP_BYTES if self._key is not None and self._mode != "off" and self._class in CACHEABLE_CLASSES else 0

    def keep(self, entry: Entry, *, exact_only: bool) -> None:
        """See `reply.Keeper`."""
        mode: Mode = "exact" if exact_only and self._mode == "semantic" else self._mode
        self._cache.store(self._key, entry, mode, class_=self._class)
