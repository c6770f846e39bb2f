"""One request, top to bottom: read, scan, decide, look up, dispatch, relay, store, close. Read this file aloud.

Knows its parts by their protocols only; names no concrete upstream, cache or sink. Whatever happens, the request's Ledger
closes into exactly one Record, and no upstream stays open.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar
from urllib.parse import parse_qsl, quote, unquote_plus, urlencode

from msgspec import Struct, to_builtins
from msgspec.structs import replace

from gateway import dialects, reply, wire
from gateway import facts as facts_of
from gateway.affinity import Affinity, Made
from gateway.auth import Principal
from gateway.cache import CACHEABLE_CLASSES, Entry, Hit, Mode, Scope
from gateway.cache.key import scope
from gateway.cache.tiers import Cache
from gateway.config import CLASSES, Class, Config
from gateway.dispatch import Dispatch, Opened
from gateway.errors import ApiError, Forbidden, InvalidRequest, NotFound, Unavailable, did_you_mean
from gateway.facts import Facts
from gateway.health import HealthView
from gateway.ledger import Ending, Ledger
from gateway.policy.decide import decide, policy_for
from gateway.policy.decision import Chosen, Decision, Health, Option, Refusal
from gateway.policy.generation import Generation
from gateway.reply import Reply
from gateway.upstreams import Call

LOOP_BODY_BYTES = 256 * 1024
"""Bodies above this are parsed and scanned on a thread, so that the loop stays free."""
KEEP_BYTES = 2 * 1024 * 1024
"""Answers above this are not kept for the cache."""

STORABLE_CLASSES = frozenset({"public", "internal"})
"""Classes whose answers an upstream may be told to keep. Any other word, known or not, means: not stored."""

FORWARDED_HEADERS = ("openai-beta", "idempotency-key", "x-client-request-id", "traceparent", "tracestate")
"""Client headers that travel to external upstreams. Its key never does."""


P = ParamSpec("P")
T = TypeVar("T")


class Incoming(Struct, frozen=True, kw_only=True):
    """A request with its key checked and its body read."""

    endpoint: str
    """A key of `wire.ENDPOINTS`; for `recall` one of its own."""
    body: bytes
    headers: Mapping[str, str]
    """Lower-case names."""
    principal: Principal
    deployment: str = ""
    """The model that the path named."""
    query: str = ""
    """Of the URL, as it came."""
    id: str = ""
    """The stored response that the path names."""
    method: str = "POST"


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
    ) -> None:
        self._config = config
        self._generation = generation
        self._dispatch = dispatch
        self._cache = cache
        self._health = health
        self._affinity = affinity

    async def answer(self, incoming: Incoming, ledger: Ledger) -> Reply:
        """The whole path. Raises ApiError for a clear refusal; the caller closes the ledger then."""
        request = await _aside(incoming.body, wire.read, incoming.endpoint, incoming.body, deployment=incoming.deployment)
        generation = self._generation()
        previous = await self._previous(request, incoming.principal)
        request = self._named(request, previous)
        facts = await _aside(incoming.body, self._facts, incoming, request, previous, generation, ledger)
        ledger.note(model=request.model, stream=request.stream, class_=facts.class_, found=facts.found)
        decision = self._decide(incoming, facts, previous, generation, ledger)
        key, mode, control = await _aside(incoming.body, self._cache_key, incoming, request, decision, generation)
        found = await self._cache.lookup(key, mode, class_=facts.class_, no_cache=bool(control & {"no-cache", "no-store"}))
        if isinstance(found, Hit):
            _note_hit(ledger, found)
            return await reply.stored(ledger, found, request, self._headers(decision, "cache", f"hit-{found.tier}"))
        ledger.note(cache=_OUTCOMES.get(found.reason, "miss"))
        ledger.event("cache.miss", reason=found.reason, cosine=found.cosine)
        if decision.refusal is not None:
            raise _refused(decision)
        _check_store(request, facts)

        async def prepare(option: Option) -> Call:
            return await _aside(incoming.body, self._call, incoming, request, option, ledger)

        opened = await self._dispatch.open(decision, prepare, ledger)
        headers = self._headers(decision, opened.option.name, str(ledger.fields["cache"]))
        done: Ending = "complete" if opened.option == decision.candidates[0].option else "fallback"
        keeper = Keeper(
            self._cache, key, mode, facts.class_, no_store="no-store" in control, made=self._made(incoming, request, facts)
        )
        return await reply.relayed(ledger, opened, request, headers, prompt_tokens=facts.prompt_tokens, keeper=keeper, done=done)

    async def recall(self, incoming: Incoming, ledger: Ledger) -> Reply:
        """Hand on what is asked of a stored response to the upstream that made it; only for the tenant that it was made for.

        Nothing but the id and known words of the query leaves, so no policy is asked, and what comes back was paid for
        before. Raises ApiError as `answer` does.
        """
        tenant = incoming.principal.tenant
        made = await self._affinity.find(tenant, incoming.id)
        option = _option_of(made, self._generation())
        if made is None or option is None:
            shown = ascii(incoming.id[:64])[1:-1]
            raise NotFound(
                f"No stored response {shown} is known here for this key.", param="response_id", code="response_not_found"
            )
        query = _checked_query(incoming.query)
        stream = "stream=true" in query.split("&")
        ledger.note(
            model=made.name, stream=stream, class_=made.class_, policy=self._generation().label(self._config.policies.default)
        )
        tail = incoming.endpoint.partition("/")[2]
        path = f"responses/{quote(incoming.id, safe='')}" + (f"/{tail}" if tail in {"cancel", "input_items"} else "")
        call = Call(
            request_id=ledger.request_id,
            endpoint=incoming.endpoint,
            model=made.model,
            body=b"",
            stream=stream,
            headers=_forwarded(incoming.headers, ()),
            method=incoming.method,
            path=f"{path}?{query}" if query else path,
        )

        async def prepare(_option: Option) -> Call:
            return call

        decision = Decision(policy=str(ledger.fields["policy"]), rule="", candidates=(Chosen(option=option),))
        opened = await self._dispatch.open(decision, prepare, ledger)
        if incoming.method == "DELETE":
            self._affinity.forget(tenant, incoming.id)
        request = wire.Request(endpoint=incoming.endpoint, body=b"", data={}, model=made.name, stream=stream)
        headers = self._headers(decision, option.name, "off")
        keeper = Keeper(self._cache, None, "off", made.class_, no_store=True, made=_nothing)
        return await reply.relayed(ledger, opened, request, headers, prompt_tokens=0, keeper=keeper, done="complete")

    async def _previous(self, request: wire.Request, principal: Principal) -> Made | None:
        """The stored response that a request goes on from. Raises InvalidRequest for one that this tenant does not have."""
        if not request.previous:
            return None
        made = await self._affinity.find(principal.tenant, request.previous)
        if made is None:
            shown = ascii(request.previous[:64])[1:-1]
            message = f"Previous response with id '{shown}' is not known here for this key."
            raise InvalidRequest(message, param="previous_response_id", code="previous_response_not_found")
        return made

    def _named(self, request: wire.Request, previous: Made | None) -> wire.Request:
        """The request with its model: where a client may leave it out, the earlier response's, or the first that can serve it."""
        models = self._config.models
        if request.model:
            if request.model not in models:
                raise _unknown_model(request.model, self._config)
            return request
        if previous is not None and previous.name in models:
            return replace(request, model=previous.name)
        needed = request.needs[0]
        for name in models:
            if any(needed in candidate.capabilities for candidate in self._config.candidates(name)):
                return replace(request, model=name)
        raise InvalidRequest(f"No model here serves {needed}.", param="model", code="unsupported_by_model")

    def _made(self, incoming: Incoming, request: wire.Request, facts: Facts) -> Callable[[str, Opened], None]:
        """What to do when an upstream says under which id it keeps an answer."""

        def remember(id_: str, opened: Opened) -> None:
            made = Made(opened.option.upstream, opened.option.model, request.model, facts.class_)
            self._affinity.remember(incoming.principal.tenant, id_, made)

        return remember if request.stores else _nothing

    def _facts(
        self, incoming: Incoming, request: wire.Request, previous: Made | None, generation: Generation, ledger: Ledger
    ) -> Facts:
        principal = incoming.principal
        floor = max(principal.class_floor, previous.class_ if previous else "public", key=CLASSES.index)
        return facts_of.judge(
            request,
            query=unquote_plus(_query(incoming)),
            classes=generation.classes,
            max_scan_chars=self._config.server.max_scan_chars,
            tenant=principal.tenant,
            key_label=principal.label,
            class_floor=floor,
            headers=incoming.headers,
            seed=ledger.request_id,
            now=ledger.opened_at,
        )

    def _decide(
        self, incoming: Incoming, facts: Facts, previous: Made | None, generation: Generation, ledger: Ledger
    ) -> Decision:
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
        if previous is not None:
            decision = _pinned(decision, previous)
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
        kept = dialects.of(request.endpoint).converts and self._config.cache.enabled and decision.cache != "off"
        if not kept or forbidden:
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
            headers=_forwarded(incoming.headers, dialects.of(request.endpoint).forwarded),
            usage_added=add_usage,
            path=f"{request.endpoint}?{query}" if (query := _query(incoming)) else "",
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


def _forwarded(headers: Mapping[str, str], more: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """The client's headers that travel. One that could not stand in a header of ours stays here."""
    found = [(name, headers[name]) for name in (*FORWARDED_HEADERS, *more) if name in headers]
    return tuple((name, value) for name, value in found if value.isascii() and value.isprintable() and len(value) <= 4096)


def _query(incoming: Incoming) -> str:
    """The part of the URL's query that travels with the body."""
    return incoming.query if dialects.of(incoming.endpoint).forwards_query else ""


_RECALL_WORDS = frozenset(
    {"after", "before", "include", "include[]", "include_obfuscation", "limit", "order", "starting_after", "stream"}
)
_RECALL_VALUE = re.compile(r"[A-Za-z0-9_.\-]{0,128}")


def _checked_query(query: str) -> str:
    """The query of a stored response's URL, encoded anew. Raises InvalidRequest for words that are not known: nobody scans it."""
    pairs = parse_qsl(query, keep_blank_values=True)
    pairs = [pair for pair in pairs if pair[0] != "api-version"]
    if not all(name in _RECALL_WORDS and _RECALL_VALUE.fullmatch(value) for name, value in pairs):
        message = f"The URL's query holds more than is known here: {', '.join(sorted(_RECALL_WORDS))}, each with one plain word."
        raise InvalidRequest(message, code="unknown_parameter")
    return urlencode(pairs)


def _option_of(made: Made | None, generation: Generation) -> Option | None:
    """The option that made a stored response, or another of its upstream, while the upstream is configured at all."""
    options = [option for option in generation.catalogue.options() if made is not None and option.upstream == made.upstream]
    return next(
        (option for option in options if made is not None and option.model == made.model), options[0] if options else None
    )


def _pinned(decision: Decision, previous: Made) -> Decision:
    """Only the upstream that keeps the earlier response. Narrows the set, never widens it."""
    left = tuple(chosen for chosen in decision.candidates if chosen.option.upstream == previous.upstream)
    if left or decision.refusal is not None:
        return replace(decision, candidates=left)
    causes = {removed.by for removed in decision.removed if removed.option.startswith(f"{previous.upstream}/")}
    name = previous.upstream
    if "down" in causes:
        said = f'"{name}" keeps the previous response and is not available.'
        return replace(decision, candidates=(), refusal=Refusal(kind="unavailable", message=said, should_retry=True))
    if causes & {"class", "limit", "cost", "route"}:
        said = f'The policy does not allow this request to go to "{name}", which keeps the previous response.'
        return replace(decision, candidates=(), refusal=Refusal(kind="forbidden", message=said))
    said = f'"{name}" keeps the previous response and does not serve this model; name the model that made it.'
    return replace(decision, candidates=(), refusal=Refusal(kind="unsupported", message=said))


def _check_store(request: wire.Request, facts: Facts) -> None:
    """Raises InvalidRequest when the upstream would keep what must not be kept. Responses are stored unless told otherwise."""
    if request.stores and facts.class_ not in STORABLE_CLASSES:
        message = f"A request of class {facts.class_} must not be stored by an upstream; send `store: false`."
        raise InvalidRequest(message, param="store", code="store_forbidden")


def _nothing(id_: str, opened: Opened) -> None:
    """An answer that nobody will ask for again."""


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

    def __init__(
        self,
        cache: Cache,
        key: Scope | None,
        mode: Mode,
        class_: Class,
        *,
        no_store: bool,
        made: Callable[[str, Opened], None],
    ) -> None:
        self.made = made
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
