"""One request, top to bottom: read, scan, decide, look up, dispatch, relay, store, close. Read this file aloud.

Knows its parts by their protocols only; names no concrete upstream, cache or sink. Whatever happens, the request's Ledger
closes into exactly one Record, and no upstream stays open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, cast

from msgspec import Struct, to_builtins

from gateway import facts as facts_of
from gateway import privacy, reply, wire
from gateway.auth import Principal
from gateway.cache import Entry, Hit, Mode, Scope
from gateway.cache.key import scope
from gateway.cache.tiers import Cache
from gateway.config import Class, Config, OpenAIUpstream
from gateway.dispatch import Dispatch
from gateway.errors import ApiError, Forbidden, InvalidRequest, NotFound, Unavailable, did_you_mean
from gateway.facts import Facts
from gateway.health import HealthView
from gateway.ledger import Ending, Ledger
from gateway.policy.decide import decide, policy_for
from gateway.policy.decision import Decision, Health, Option
from gateway.policy.generation import Generation
from gateway.reply import Reply
from gateway.tokens import size_estimate
from gateway.upstreams import Call

LOOP_BODY_BYTES = 256 * 1024
"""Bodies above this are parsed and scanned on a thread, so that the loop stays free."""
KEEP_BYTES = 2 * 1024 * 1024
"""Answers above this are not kept for the cache."""

FORWARDED_HEADERS = ("openai-beta", "idempotency-key", "x-client-request-id", "traceparent", "tracestate")
"""Client headers that travel to external upstreams. Its key never does."""


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
        request = await self._read(incoming)
        generation = self._generation()
        if request.model not in self._config.models:
            raise _unknown_model(request.model, self._config)
        facts = await self._facts(incoming, request, generation, ledger)
        decision = self._decide(incoming, facts, generation, ledger)
        key, mode, control = self._cache_key(incoming, request, decision, generation)
        found = await self._cache.lookup(key, mode, class_=facts.class_, no_cache=bool(control & {"no-cache", "no-store"}))
        if isinstance(found, Hit):
            _note_hit(ledger, found)
            return reply.stored(ledger, found, request, self._headers(decision, "cache", f"hit-{found.tier}"))
        ledger.note(cache=_OUTCOMES.get(found.reason, "miss"))
        ledger.event("cache.miss", reason=found.reason, cosine=found.cosine)
        if decision.refusal is not None:
            raise _refused(decision)
        opened = await self._dispatch.open(decision, lambda option: self._call(incoming, request, option, ledger), ledger)
        headers = self._headers(decision, opened.option.name, str(ledger.fields["cache"])) + opened.headers
        done: Ending = "complete" if opened.option == decision.candidates[0].option else "fallback"
        keeper = Keeper(self._cache, key, mode, facts.class_, no_store="no-store" in control)
        return await reply.relayed(ledger, opened, request, headers, prompt_tokens=facts.prompt_tokens, keeper=keeper, done=done)

    async def _read(self, incoming: Incoming) -> wire.Request:
        if len(incoming.body) <= LOOP_BODY_BYTES:
            return wire.read(incoming.endpoint, incoming.body)
        return await asyncio.to_thread(wire.read, incoming.endpoint, incoming.body)

    async def _facts(self, incoming: Incoming, request: wire.Request, generation: Generation, ledger: Ledger) -> Facts:
        limit = self._config.server.max_scan_chars
        if len(request.body) <= LOOP_BODY_BYTES:
            scan = privacy.scan(request.data, max_chars=limit)
        else:
            scan = await asyncio.to_thread(privacy.scan, request.data, max_chars=limit)
        principal = incoming.principal
        facts = facts_of.build(
            request,
            class_=cast("Class", privacy.classify(scan, generation.classes)),
            found=tuple(sorted(scan.kinds)),
            size=size_estimate(facts_of.texts(request)),
            tenant=principal.tenant,
            key_label=principal.label,
            class_floor=principal.class_floor,
            headers=incoming.headers,
            seed=ledger.request_id,
            now=ledger.opened_at,
        )
        ledger.note(model=request.model, stream=request.stream, class_=facts.class_, found=facts.found)
        return facts

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
        if request.stream and not request.include_usage and isinstance(config, OpenAIUpstream) and config.inject_usage:
            body = wire.with_usage(body)
        headers = tuple((name, incoming.headers[name]) for name in FORWARDED_HEADERS if name in incoming.headers)
        return Call(
            request_id=ledger.request_id,
            endpoint=request.endpoint,
            model=option.model,
            body=body,
            stream=request.stream,
            headers=headers,
        )

    def _headers(self, decision: Decision, route: str, cache: str) -> list[tuple[str, str]]:
        if not self._config.server.expose_headers:
            return []
        return [("x-gateway-route", route), ("x-gateway-cache", cache), ("x-gateway-policy", decision.policy)]


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
    ledger.event("cache.hit", kind=hit.tier, cosine=hit.cosine, age_s=hit.age_s)


def _unknown_model(name: str, config: Config) -> NotFound:
    shown = ascii(name[:128])[1:-1]
    hint = did_you_mean(name, config.models) or "; see /v1/models"
    return NotFound(f"The model `{shown}` does not exist or you do not have access to it{hint}", param="model", code="model_not_found")


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
        return KEEP_BYTES if self._key is not None and self._mode != "off" else 0

    def keep(self, entry: Entry) -> None:
        """See `reply.Keeper`."""
        self._cache.store(self._key, entry, self._mode, class_=self._class)
