"""One request, top to bottom: read, scan, decide, look up, dispatch, relay, store, close. Read this file aloud.

Knows its parts by their protocols only; names no concrete upstream, cache or sink. Whatever happens, the request's Ledger
closes into exactly one Record, and no upstream stays open.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, ParamSpec, TypeVar
from urllib.parse import unquote_plus

from msgspec import to_builtins
from msgspec.structs import replace

from gateway import dialects, reply, wire
from gateway import facts as facts_of
from gateway.affinity import Affinity, Made
from gateway.again import Again, Known
from gateway.cache import CACHEABLE_CLASSES, Entry, Hit, Miss, Mode, Scope
from gateway.cache.key import scope
from gateway.cache.tiers import Cache
from gateway.config import CLASSES, Class, Config
from gateway.dispatch import Dispatch, Opened, finished
from gateway.errors import ApiError, Forbidden, InvalidRequest, NotFound, Unavailable, did_you_mean
from gateway.explain import Explanation, explain, reason
from gateway.facts import Facts
from gateway.health import HealthView
from gateway.incoming import Incoming
from gateway.ledger import Ending, Ledger
from gateway.policy import sizes
from gateway.policy.decide import decide, pin, policy_for
from gateway.policy.decision import Decision, Health, Option
from gateway.policy.generation import Generation
from gateway.privacy import Detector
from gateway.redact import Redactor
from gateway.reply import Reply
from gateway.responses.recall import Recall
from gateway.responses.serve import ENDPOINTS, NATIVE, NOTHING, Before, Responses, Translation, Ways, ways
from gateway.restore import masked
from gateway.stream import Pool, Room
from gateway.upstreams import Call

__all__ = ["Incoming", "Keeper", "Pipeline", "decided"]

LOOP_BODY_BYTES = 64 * 1024
"""Bodies above this are parsed and scanned on a thread, so that the loop stays free."""
KEEP_BYTES = 2 * 1024 * 1024
"""Answers above this are not kept for the cache."""

STORABLE_CLASSES = frozenset({"public", "internal"})
"""Classes whose answers an upstream may be told to keep. Any other word, known or not, means: not stored."""

P = ParamSpec("P")
T = TypeVar("T")


class _Judged(NamedTuple):
    """What is known of a request before a policy is asked."""

    request: wire.Request
    before: Before
    how: Ways
    facts: Facts
    size_bytes: int
    """Of the body, with what it goes on from."""


class _Asked(NamedTuple):
    """A request that was decided, and where its answer stands in the cache."""

    incoming: Incoming
    ledger: Ledger
    generation: Generation
    judged: _Judged
    decision: Decision
    first: Translation | None
    """The translation that the first candidate gets, if it gets one."""
    key: Scope | None
    mode: Mode
    control: set[str]
    """Words of the client's cache-control."""

    @property
    def may_hit(self) -> bool:
        """Whether the client takes a cached answer."""
        return not self.control & {"no-cache", "no-store"}


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
        affinity: Affinity,
        responses: Responses,
        redactor: Redactor,
        count: sizes.Count = sizes.estimated,
    ) -> None:
        self._config = config
        self._count = count
        self._generation = generation
        self._dispatch = dispatch
        self._cache = cache
        self._health = health
        self._affinity = affinity
        self._responses = responses
        self._redactor = redactor
        self._again = Again()
        self._pool = Pool(config.cache.exact_max_bytes)
        self._recall = Recall(
            config=config,
            generation=generation,
            dispatch=dispatch,
            affinity=affinity,
            store=responses.store,
            headers=self._headers,
        )

    @property
    def detector(self) -> Detector:
        """What finds sensitive text in a word now, by patterns and by the customer's words of the policies in force."""
        return self._generation().patterns

    async def answer(self, incoming: Incoming, ledger: Ledger) -> Reply:
        """The whole path. Raises ApiError for a clear refusal; the caller closes the ledger then."""
        generation = self._generation()
        known = self._again.find(incoming, generation)
        if known is not None and (hit := await self._answer_again(known, incoming, generation, ledger)) is not None:
            return hit
        judged = await self._judge(incoming, generation, ledger)
        request, how, facts = judged.request, judged.how, judged.facts
        _note_request(ledger, request, facts)
        decision = self._decide(incoming, facts, judged.before, generation, ledger)
        first = _first(decision, how)
        place = await _aside(judged.size_bytes, self._cache_key, incoming, request, first, decision, generation)
        asked = _Asked(incoming, ledger, generation, judged, decision, first, *place)
        found = await self._cache.lookup(asked.key, asked.mode, class_=facts.class_, no_cache=not asked.may_hit)
        if isinstance(found, Hit):
            return await self._from_cache(asked, found)
        ledger.note(cache=_OUTCOMES.get(found.reason, "miss"))
        if asked.mode != "off":
            ledger.event_of("cache.miss", _missed, found)
        if decision.refusal is not None:
            raise _refused(decision, facts, how, generation)
        _check_store(request, facts)
        if first is not None and request.endpoint == "responses/input_tokens":
            return self._responses.count(first, ledger, self._headers(decision, "gateway", "off", ledger.why))
        return await self._from_upstream(asked)

    async def _from_cache(self, asked: _Asked, found: Hit) -> Reply:
        ledger, judged, first = asked.ledger, asked.judged, asked.first
        request, facts = judged.request, judged.facts
        _note_hit(ledger, found)
        headers = self._headers(asked.decision, "cache", f"hit-{found.tier}", ledger.why)
        if found.tier == "exact" and judged.how is NATIVE and judged.before is NOTHING and asked.key is not None:
            near = self._near_a_limit(asked.generation, facts)
            self._again.keep(asked.incoming, asked.generation, request, facts, asked.key, near=near)
        if first is None:
            return await reply.stored(ledger, found, request, headers)
        hit = await reply.stored(ledger, found, first.chat, headers)
        return await self._responses.write(hit, first, ledger, facts, stores=_stores(request, facts), done="hit")

    async def _from_upstream(self, asked: _Asked) -> Reply:
        ledger, judged, decision = asked.ledger, asked.judged, asked.decision
        request, how, facts = judged.request, judged.how, judged.facts
        try:
            opened = await self._dispatch.open(decision, partial(self._prepared, asked), ledger)
        except InvalidRequest as error:
            raise how.renamed(error) from None
        headers = self._headers(decision, opened.option.name, str(ledger.fields["cache"]), ledger.why)
        done: Ending = "complete" if opened.option == decision.candidates[0].option else "fallback"
        made = self._made(asked.incoming, request, facts)
        no_store = "no-store" in asked.control
        keeper = Keeper(self._cache, asked.key, asked.mode, facts.class_, pool=self._pool, no_store=no_store, made=made)
        translated = how.through_chat(opened.option)
        sent = translated.chat if translated else request
        answer = await reply.relayed(ledger, opened, sent, headers, prompt_tokens=facts.prompt_tokens, keeper=keeper, done=done)
        if translated is None:
            return answer
        try:
            return await self._responses.write(answer, translated, ledger, facts, stores=_stores(request, facts), done=done)
        except BaseException:
            if answer.holds:
                await finished(answer.aclose())
            raise

    async def _prepared(self, asked: _Asked, option: Option) -> Call:
        """What this option is sent: translated where it speaks chat only, masked where a limit asks for it."""
        ledger, judged = asked.ledger, asked.judged
        call = await _aside(judged.size_bytes, self._call, asked.incoming, judged.request, judged.how, option, ledger)
        if not asked.decision.redact or option.zone == "local":
            return call
        return await masked(
            call,
            self._redactor,
            upstream=option.upstream,
            tenant=judged.facts.tenant,
            max_chars=self._config.server.max_scan_chars,
            detector=asked.generation.detector,
            ledger=ledger,
        )

    async def _answer_again(self, known: Known, incoming: Incoming, generation: Generation, ledger: Ledger) -> Reply | None:
        """The cached answer to a request whose equal had it before; None, and nothing is logged, where it must be read anew."""
        request = known.request
        facts = replace(known.facts, seed=ledger.request_id, hour=facts_of.hour(ledger.opened_at))
        _note_request(ledger, request, facts)
        if not known.near and self._near_a_limit(generation, facts):
            return None
        health = self._health_of(generation, facts.model)
        decision = decide(generation, self._policy(incoming, generation), facts, health)
        if decision.cache == "off" or decision.refusal is not None:
            return None
        found = self._cache.at_once(known.scope, class_=facts.class_)
        if found is None:
            return None
        self._tell(decision, facts, incoming, ledger, health=health)
        _note_hit(ledger, found)
        return await reply.stored(ledger, found, request, self._headers(decision, "cache", f"hit-{found.tier}", ledger.why))

    async def explain(self, incoming: Incoming, ledger: Ledger) -> Explanation:
        """Where `answer` would send this request now, and why. Calls nobody; logs the decision as `route.explained`.

        A dry run has no answer and so no record: the ledger is left open. Raises ApiError where `answer` would refuse by
        something else than the decision, whose refusals are part of the explanation.
        """
        generation = self._generation()
        judged = await self._judge(incoming, generation, ledger)
        request, before = judged.request, judged.before
        facts = facts_of.with_task(judged.facts, judged.how.judged(request))
        name = self._policy(incoming, generation)
        health = self._health_of(generation, facts.model)
        pinned = before.made.upstream if before.made else None
        found = explain(generation, name, facts, health, pinned=pinned)
        ledger.event("route.explained", **decided(facts, found.decision, health, pinned))
        if found.decision.refusal is None:
            _check_store(request, facts)
        return found

    async def recall(self, incoming: Incoming, ledger: Ledger) -> Reply:
        """What is asked of a stored response; only for the tenant that it was made for. Raises ApiError as `answer` does."""
        return await self._recall.answer(incoming, ledger)

    async def _judge(self, incoming: Incoming, generation: Generation, ledger: Ledger) -> _Judged:
        """Read a request and gather its facts. Raises ApiError for one that cannot be served by anybody."""
        size = len(incoming.body)
        effort = math.inf if generation.detector.waits else size
        if incoming.endpoint not in ENDPOINTS:
            judged = await _aside(effort, self._judge_alone, incoming, generation, ledger)
            return await self._counted(judged, generation) if self._near_a_limit(generation, judged.facts) else judged
        request = await _aside(size, wire.read, incoming.endpoint, incoming.body, deployment=incoming.deployment)
        before = await self._before(request, incoming.principal.tenant)
        request = self._named(request, before)
        size += before.most_bytes
        how = await _aside(size, ways, request, before)
        facts = await _aside(max(size, effort), self._facts, incoming, how.judged(request), before, generation, ledger)
        if how.via_chat:
            facts = replace(facts, via_chat=how.via_chat)
        judged = _Judged(request, before, how, facts, size)
        return await self._counted(judged, generation) if self._near_a_limit(generation, facts) else judged

    def _near_a_limit(self, generation: Generation, facts: Facts) -> bool:
        return sizes.near_a_limit(generation, facts, lambda: self._health_of(generation, facts.model))

    async def _counted(self, judged: _Judged, generation: Generation) -> _Judged:
        """With the exact size of the prompt, where it can be counted: a limit lies within the estimate's band."""
        facts = judged.facts
        if facts.images:
            return judged
        models = dict.fromkeys(option.model for option in generation.options_for(facts.model))
        texts = facts_of.texts(judged.how.judged(judged.request))
        return judged._replace(facts=await asyncio.to_thread(sizes.exact, facts, texts, models, self._count))

    def _judge_alone(self, incoming: Incoming, generation: Generation, ledger: Ledger) -> _Judged:
        """As `_judge`, of a request that goes on from nothing."""
        request = self._named(wire.read(incoming.endpoint, incoming.body, deployment=incoming.deployment), NOTHING)
        facts = self._facts(incoming, request, NOTHING, generation, ledger)
        return _Judged(request, NOTHING, NATIVE, facts, len(incoming.body))

    async def _before(self, request: wire.Request, tenant: str) -> Before:
        """What a request goes on from. Raises InvalidRequest for a stored response that this tenant does not have."""
        made = await self._affinity.find(tenant, request.previous) if request.previous else None
        if made is not None:
            return Before(made=made, class_=made.class_, model=made.name)
        return await self._responses.before(request, tenant)

    def _named(self, request: wire.Request, before: Before) -> wire.Request:
        """The request with its model: where a client may leave it out, the earlier response's, or the first that can serve it."""
        models = self._config.models
        if request.model:
            if request.model not in models:
                raise _unknown_model(request.model, self._config)
            return request
        if before.model in models:
            return replace(request, model=before.model)
        needed = {request.needs[0], "chat"} if request.endpoint in ENDPOINTS else {request.needs[0]}
        for name in models:
            if any(needed.intersection(candidate.capabilities) for candidate in self._config.candidates(name)):
                return replace(request, model=name)
        raise InvalidRequest(f"No model here serves {request.needs[0]}.", param="model", code="unsupported_by_model")

    def _made(self, incoming: Incoming, request: wire.Request, facts: Facts) -> Callable[[str, Opened], None]:
        """What to do when an upstream says under which id it keeps an answer."""

        def remember(id_: str, opened: Opened) -> None:
            made = Made(opened.option.upstream, opened.option.model, request.model, facts.class_)
            self._affinity.remember(incoming.principal.tenant, id_, made)

        return remember if request.stores else _nothing

    def _facts(self, incoming: Incoming, request: wire.Request, before: Before, generation: Generation, ledger: Ledger) -> Facts:
        principal = incoming.principal
        return facts_of.judge(
            request,
            query=unquote_plus(query) if (query := incoming.forwarded_query) else "",
            classes=generation.classes,
            detector=generation.detector,
            max_scan_chars=self._config.server.max_scan_chars,
            tenant=principal.tenant,
            key_label=principal.label,
            class_floor=_higher(principal.class_floor, before.class_),
            headers=incoming.headers,
            seed=ledger.request_id,
            now=ledger.opened_at,
            with_task=generation.asks_task,
        )

    def _decide(self, incoming: Incoming, facts: Facts, before: Before, generation: Generation, ledger: Ledger) -> Decision:
        health = self._health_of(generation, facts.model)
        decision = decide(generation, self._policy(incoming, generation), facts, health)
        if before.made is not None:
            decision = pin(decision, before.made.upstream)
        self._tell(decision, facts, incoming, ledger, health=health, pinned=before.made.upstream if before.made else None)
        return decision

    def _tell(
        self,
        decision: Decision,
        facts: Facts,
        incoming: Incoming,
        ledger: Ledger,
        *,
        health: dict[str, Health],
        pinned: str | None = None,
    ) -> None:
        """Into ledger and log, what was decided."""
        ledger.log_text = decision.log_text
        ledger.note(policy=decision.policy, route_rule=decision.rule)
        if incoming.headers.get("x-gateway-explain") == "1":
            ledger.why = reason(facts, decision)
        ledger.event_of("route.decided", _decided, facts, decision, health, pinned)

    def _policy(self, incoming: Incoming, generation: Generation) -> str:
        """Name of the policy whose routes order this request. Raises ApiError as `policy_for` does."""
        return policy_for(
            generation,
            key_policy=incoming.principal.policy,
            key_policies=incoming.principal.policies,
            header=incoming.headers.get("x-gateway-policy"),
            default=self._config.policies.default,
        )

    def _health_of(self, generation: Generation, model: str) -> dict[str, Health]:
        return self._health.differing(generation.pairs(model))

    def _cache_key(
        self,
        incoming: Incoming,
        request: wire.Request,
        first: Translation | None,
        decision: Decision,
        generation: Generation,
    ) -> tuple[Scope | None, Mode, set[str]]:
        """Where this answer stands in the cache, how far the policy of now lets the cache answer, and what the client asked."""
        asked_for = incoming.headers.get("cache-control")
        control = {part.strip().lower() for part in asked_for.split(",")} if asked_for else set()
        forbidden = decision.refusal is not None and decision.refusal.kind != "unavailable"
        asked = first.chat if first is not None and request.endpoint == "responses" else request
        kept = dialects.of(asked.endpoint).converts and self._config.cache.enabled and decision.cache != "off"
        if not kept or forbidden:
            return None, "off", control
        key = scope(
            asked.data,
            tenant=incoming.principal.tenant,
            endpoint=asked.endpoint,
            model=request.model,
            policy_scope=generation.hash,
            embedder=self._config.cache.embedder,
        )
        return key, decision.cache, control

    def _call(self, incoming: Incoming, request: wire.Request, how: Ways, option: Option, ledger: Ledger) -> Call:
        knows_usage = self._config.upstreams[option.upstream].inject_usage
        translated = how.through_chat(option)
        if translated is not None:
            return Call(
                request_id=ledger.request_id,
                endpoint=translated.chat.endpoint,
                model=option.model,
                body=translated.body(option.model, with_usage=knows_usage),
                stream=request.stream,
                headers=incoming.forwarded(),
            )
        body = wire.with_model(request, option.model)
        add_usage = request.stream and not request.include_usage and knows_usage
        return Call(
            request_id=ledger.request_id,
            endpoint=request.endpoint,
            model=option.model,
            body=wire.with_usage(body, request.data) if add_usage else body,
            stream=request.stream,
            headers=incoming.forwarded(dialects.of(request.endpoint).forwarded),
            usage_added=add_usage,
            path=f"{request.endpoint}?{query}" if (query := incoming.forwarded_query) else "",
        )

    def error_headers(self, ledger: Ledger) -> list[tuple[str, str]]:
        """Our own headers of a refusal or failure: the policy that was in force, once one was, and why, where that was asked."""
        policy = ledger.fields.get("policy")
        if not policy or not self._config.server.expose_headers:
            return []
        return [("x-gateway-policy", str(policy)), *_reasons(ledger.why)]

    def _headers(self, decision: Decision, route: str, cache: str, why: str = "") -> list[tuple[str, str]]:
        if not self._config.server.expose_headers:
            return []
        return [("x-gateway-route", route), ("x-gateway-cache", cache), ("x-gateway-policy", decision.policy), *_reasons(why)]


async def _aside(size_bytes: float, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do work whose time grows with the body: here when it is small, on a thread when the loop would notice or work waits."""
    if size_bytes <= LOOP_BODY_BYTES:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)


def _higher(one: Class, other: Class) -> Class:
    return one if one == other else max(one, other, key=CLASSES.index)


def _reasons(why: str) -> list[tuple[str, str]]:
    return [("x-gateway-explain", why)] if why else []


def _first(decision: Decision, how: Ways) -> Translation | None:
    """The translation, where the first choice gets it; also where nobody can be asked, and only the cache may answer."""
    return how.through_chat(decision.candidates[0].option) if decision.candidates else how.chat


def _stores(request: wire.Request, facts: Facts) -> bool:
    """Whether the answer is to be kept, and may be."""
    return request.stores and facts.class_ in STORABLE_CLASSES


def _check_store(request: wire.Request, facts: Facts) -> None:
    """Raises InvalidRequest when a client wants kept what must not be. Where it said nothing, `decide` has seen to it."""
    if request.stores and request.data.get("store") is True and facts.class_ not in STORABLE_CLASSES:
        raise _store_forbidden(facts)


def _store_forbidden(facts: Facts) -> InvalidRequest:
    message = f"A request of class {facts.class_} must not be stored; send `store: false`."
    return InvalidRequest(message, param="store", code="store_forbidden")


def _nothing(id_: str, opened: Opened) -> None:
    """An answer that nobody will ask for again."""


def decided(facts: Facts, decision: Decision, health: Mapping[str, Health], pinned: str | None = None) -> dict[str, Any]:
    """The fields of `route.decided`: everything needed to decide again later, and nothing of the request's text.

    `pinned`: the upstream that keeps what the request goes on from.
    """
    fields: dict[str, Any] = to_builtins(_decided(facts, decision, health, pinned))
    return fields


def _decided(facts: Facts, decision: Decision, health: Mapping[str, Health], pinned: str | None) -> dict[str, Any]:
    """As `decided`, for whoever writes it as JSON at once."""
    return {
        "facts": facts,
        "health": health,
        "policy": decision.policy,
        "rule": decision.rule,
        "order": [chosen.option.name for chosen in decision.candidates],
        "removed": decision.removed,
        "cache": decision.cache,
        "redact": decision.redact,
        "limits": decision.limits,
        "refusal": decision.refusal.kind if decision.refusal else None,
        "pinned": pinned,
        "detector": facts_of.detector_version(),
        "classifier": facts_of.classifier(facts),
    }


_OUTCOMES = {"off": "off", "class": "off", "no_cache": "bypass"}
"""Reasons of a Miss that mean that nobody looked."""


def _note_request(ledger: Ledger, request: wire.Request, facts: Facts) -> None:
    ledger.note(model=request.model, stream=request.stream, class_=facts.class_, found=facts.found, unread=facts.unread)


def _note_hit(ledger: Ledger, hit: Hit) -> None:
    ledger.sent()
    ledger.note(cache=f"hit-{hit.tier}", source="cache", route="cache", cosine=hit.cosine, saved_usd=hit.entry.cost_usd)
    ledger.event_of("cache.hit", _hit, hit.tier, hit.cosine, hit.age_s)


def _missed(miss: Miss) -> dict[str, Any]:
    return {"reason": miss.reason, "cosine": miss.cosine}


def _hit(tier: str, cosine: float | None, age_s: float) -> dict[str, Any]:
    return {"tier": tier, "cosine": cosine, "age_s": age_s}


def _unknown_model(name: str, config: Config) -> NotFound:
    shown = ascii(name[:128])[1:-1]
    hint = did_you_mean(name, config.models) or "; see /v1/models"
    return NotFound(
        f"The model `{shown}` does not exist or you do not have access to it{hint}", param="model", code="model_not_found"
    )


_PROMPTS = {"chat/completions": "messages", "messages": "messages", "completions": "prompt"}
"""The field that holds the prompt, where it is not `input`."""


def _refused(decision: Decision, facts: Facts, how: Ways, generation: Generation) -> ApiError:
    refusal = decision.refusal
    if refusal is None:
        raise AssertionError("a decision without candidates carries a refusal")
    if any(removed.by == "store" for removed in decision.removed):
        return _store_forbidden(facts)
    if refusal.kind == "forbidden":
        return Forbidden(refusal.message, code="policy_forbidden")
    if refusal.kind == "unsupported":
        through_chat = any("chat" in option.capabilities for option in generation.options_for(facts.model))
        if how.refusal is not None and through_chat:
            return how.refusal
        if any(removed.by == "context" for removed in decision.removed):
            param = _PROMPTS.get(facts.endpoint, "input")
            return InvalidRequest(refusal.message, param=param, code="context_length_exceeded")
        return InvalidRequest(refusal.message, param="model", code="unsupported_by_model")
    return Unavailable(refusal.message, should_retry=refusal.should_retry, retry_after_s=1.0 if refusal.should_retry else None)


class Keeper:
    """Stores one answer after it went out whole, if policy, request and client let it."""

    def __init__(
        self,
        cache: Cache,
        key: Scope | None,
        mode: Mode,
        class_: Class,
        *,
        pool: Pool,
        no_store: bool,
        made: Callable[[str, Opened], None],
    ) -> None:
        self.made = made
        self._pool = pool
        self._cache = cache
        self._key = key
        self._mode: Mode = "off" if no_store else mode
        self._class = class_

    def room(self) -> Room | None:
        """See `reply.Keeper`."""
        keeps = self._key is not None and self._mode != "off" and self._class in CACHEABLE_CLASSES
        return Room(KEEP_BYTES, self._pool) if keeps else None

    def keep(self, entry: Entry, *, exact_only: bool) -> None:
        """See `reply.Keeper`."""
        mode: Mode = "exact" if exact_only and self._mode == "semantic" else self._mode
        self._cache.store(self._key, entry, mode, class_=self._class)
