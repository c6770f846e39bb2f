"""What all transfers share of the request path: facts, the decision about them, refusals, and our own headers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from gateway import facts as facts_of
from gateway import wire
from gateway.affinity import Affinity, Kind, Made
from gateway.config import CLASSES, Class, Config
from gateway.dispatch import Dispatch, Opened
from gateway.errors import (
    ApiError,
    Forbidden,
    InvalidRequest,
    NotFound,
    Unavailable,
    did_you_mean,
)
from gateway.facts import Facts
from gateway.health import HealthView
from gateway.incoming import Incoming
from gateway.ledger import Ending, Ledger
from gateway.pipeline import decided
from gateway.policy.decide import decide, policy_for
from gateway.policy.decision import Decision, Health
from gateway.policy.generation import Generation
from gateway.privacy import UNSCANNABLE
from gateway.reply import Headers, Nobody, Reply, relayed

LOOP_CHARS = 128 * 1024
"""More text than this is scanned on a thread, so that the loop stays free."""


class Parts(Struct, frozen=True, kw_only=True):
    """The parts of a front worker that transfers need."""

    config: Config
    generation: Callable[[], Generation]
    dispatch: Dispatch
    health: HealthView
    affinity: Affinity


class Judge:
    """The rules of one front worker, asked about one transfer at a time."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._config = parts.config

    @property
    def generation(self) -> Generation:
        """The policies in force."""
        return self._parts.generation()

    def named(self, request: wire.Request) -> wire.Request:
        """The request with its model: its own, or the first that can serve it. Raises NotFound, or InvalidRequest."""
        models = self._config.models
        if request.model:
            if request.model not in models:
                raise _unknown_model(request.model, self._config)
            return request
        for name in models:
            if any(request.needs[0] in candidate.capabilities for candidate in self._config.candidates(name)):
                return replace(request, model=name)
        raise InvalidRequest(f"No model here serves {request.needs[0]}.", param="model", code="unsupported_by_model")

    def facts(
        self,
        incoming: Incoming,
        request: wire.Request,
        ledger: Ledger,
        generation: Generation,
        *,
        floor: Class = "public",
        has_files: bool = False,
    ) -> Facts:
        """The facts of a request; with `has_files`, of one that holds what nobody can scan. Raises InvalidRequest."""
        principal = incoming.principal
        facts = facts_of.judge(
            request,
            classes=generation.classes,
            detector=generation.detector,
            max_scan_chars=self._config.server.max_scan_chars,
            tenant=principal.tenant,
            key_label=principal.label,
            class_floor=max(principal.class_floor, floor, key=CLASSES.index),
            headers=incoming.headers,
            seed=ledger.request_id,
            now=ledger.opened_at,
            with_task=generation.asks_task,
        )
        if not has_files:
            return facts
        least = generation.classes.get(UNSCANNABLE, CLASSES[-1])
        class_ = max(facts.class_, least, key=CLASSES.index)
        return replace(facts, class_=class_, found=tuple(sorted({*facts.found, UNSCANNABLE})))

    async def facts_aside(
        self, incoming: Incoming, request: wire.Request, texts: Sequence[str], *rest: Any, **more: Any
    ) -> Facts:
        """As `facts`, of a request whose words are `texts`: on a thread when there are many."""
        request = replace(request, data={**request.data, "form": list(texts)})
        if sum(map(len, texts)) <= LOOP_CHARS and not self.generation.detector.waits:
            return self.facts(incoming, request, *rest, **more)
        return await asyncio.to_thread(self.facts, incoming, request, *rest, **more)

    def decide(self, incoming: Incoming, facts: Facts, ledger: Ledger, generation: Generation) -> Decision:
        """Where it may go; logged, and noted for the Record. Raises what `policy_for` does."""
        health = self._parts.health.differing(generation.pairs(facts.model))
        decision = decide(generation, self._policy(incoming, generation), facts, health)
        # How long a body takes to come is its sender's affair: no limit on the first token can be held.
        decision = replace(decision, deadline_ms=None)
        note(ledger, facts, decision)
        ledger.event("route.decided", **decided(facts, decision, health))
        return decision

    def allows(self, incoming: Incoming, facts: Facts, option: str, generation: Generation) -> bool:
        """Whether an option may serve these facts, up or not."""
        healthy: Mapping[str, Health] = {}
        decision = decide(generation, self._policy(incoming, generation), facts, healthy)
        return any(chosen.option.name == option for chosen in decision.candidates)

    def _policy(self, incoming: Incoming, generation: Generation) -> str:
        return policy_for(
            generation,
            key_policy=incoming.principal.policy,
            key_policies=incoming.principal.policies,
            header=incoming.headers.get("x-gateway-policy"),
            default=self._config.policies.default,
        )

    def headers(self, policy: str, route: str) -> Headers:
        """Our own headers of an answer."""
        if not self._config.server.expose_headers:
            return []
        return [("x-gateway-route", route), ("x-gateway-cache", "off"), ("x-gateway-policy", policy)]

    async def relay(
        self, opened: Opened, request: wire.Request, facts: Facts | None, decision: Decision, ledger: Ledger
    ) -> Reply:
        """The answer on its way to the client."""
        first = decision.candidates[0].option
        done: Ending = "complete" if opened.option == first else "fallback"
        headers = self.headers(decision.policy, opened.option.name)
        tokens = facts.prompt_tokens if facts else 0
        return await relayed(ledger, opened, request, headers, prompt_tokens=tokens, keeper=Nobody(), done=done)


def note(ledger: Ledger, facts: Facts, decision: Decision) -> None:
    """What the Record says of facts and decision."""
    ledger.log_text = decision.log_text
    ledger.note(
        model=facts.model,
        stream=facts.stream,
        class_=facts.class_,
        found=facts.found,
        unread=facts.unread,
        policy=decision.policy,
        route_rule=decision.rule,
    )


def made_of(opened: Opened, facts: Facts) -> Made:
    """What is remembered of a thing that this answer tells of."""
    return Made(opened.option.upstream, opened.option.model, facts.model, facts.class_)


def refused(decision: Decision, *, where: str = "") -> ApiError:
    """The refusal of a decision that leaves nobody; `where` stands before its words."""
    refusal = decision.refusal
    if refusal is None:
        raise AssertionError("a decision without candidates carries a refusal")
    message = where + refusal.message
    if refusal.kind == "forbidden":
        return Forbidden(message, code="policy_forbidden")
    if refusal.kind == "unsupported":
        return InvalidRequest(message, param="model", code="unsupported_by_model")
    return Unavailable(message, should_retry=refusal.should_retry, retry_after_s=1.0 if refusal.should_retry else None)


def unknown_id(kind: Kind, id_: str, *, param: str = "") -> NotFound:
    """The refusal of an id that this tenant does not have, whoever else has it."""
    message = f"No {kind} {ascii(id_[:64])[1:-1]} is known here for this key."
    if kind == "file":
        return NotFound(message, param=param or "file_id", code="file_not_found")
    return NotFound(message, param=param or "batch_id", code="batch_not_found")


def _unknown_model(name: str, config: Config) -> NotFound:
    shown = ascii(name[:128])[1:-1]
    hint = did_you_mean(name, config.models) or "; see /v1/models"
    message = f"The model `{shown}` does not exist or you do not have access to it{hint}"
    return NotFound(message, param="model", code="model_not_found")
