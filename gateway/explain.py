"""Show why a request goes where it goes: every candidate, what it would cost, what removed it. Calls nobody."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import msgspec
from msgspec import Struct
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gateway.errors import ConfigError, Problem
from gateway.facts import Facts
from gateway.policy.decide import decide, expected_cost_usd, expected_ttft_ms, pin, worst_cost_usd, worst_output
from gateway.policy.decision import Decision, Health, HealthOf, Option, encode
from gateway.policy.generation import Generation

NAME_CHARS = 128
"""Longest name of a policy or route in it; each character is at most twelve in ASCII."""
REASON_CHARS = 4096
"""Longest reason in a header; many servers and clients take no header block above 8 KB."""


class Line(Struct, frozen=True, kw_only=True):
    """One candidate of the model."""

    option: str
    zone: str
    place: int | None
    """In the order of trying, from 1; None: it was removed."""
    expected_cost_usd: float | None
    worst_cost_usd: float | None
    """What a cost cap is compared with."""
    worst_output_tokens: int
    """Of each answer, in that."""
    worst_output_by: Literal["client", "learned", "fixed"]
    """Whose bound it is: the client's, that of nineteen in twenty answers so far, or the one for as long as few were seen."""
    expected_ttft_ms: float | None
    """None while nothing was measured."""
    removed_by: str = ""
    reason: str = ""
    """What removed it; a limit with its file and line."""


class Explanation(Struct, frozen=True, kw_only=True):
    """A decision with all that led to it."""

    facts: Facts
    decision: Decision
    lines: tuple[Line, ...]
    """In the order of trying, then the removed ones."""

    def as_json(self) -> dict[str, Any]:
        """As plain values, for `gateway explain --json`."""
        return {
            "facts": msgspec.to_builtins(self.facts),
            "decision": encode(self.decision),
            "candidates": msgspec.to_builtins(self.lines),
        }

    def render(self) -> RenderableType:
        """For a terminal."""
        return Group(self._summary(), self._table())

    def _summary(self) -> Text:
        decision = self.decision
        deadline = f"{decision.deadline_ms} ms" if decision.deadline_ms is not None else "none"
        rows = [
            ("policy", decision.policy),
            ("route", decision.rule or "none"),
            ("class", self.facts.class_ + self.facts.why),
            ("limits", ", ".join(decision.limits) or "none"),
            ("cache", decision.cache),
            ("text in log", "yes" if decision.log_text else "no"),
            ("masked outside", "yes" if decision.redact else "no"),
            ("first token by", deadline),
        ]
        if decision.refusal is not None:
            rows.append(("refused", f"{decision.refusal.kind}: {decision.refusal.message}"))
        return Text("\n".join(f"{name:<15}{value}" for name, value in rows))

    def _table(self) -> Table:
        names = ("try", "candidate", "zone", "cost", "at most", "for tokens", "first token", "removed by")
        table = Table(*names, box=None)
        for line in self.lines:
            table.add_row(
                "-" if line.place is None else str(line.place),
                Text(line.option, overflow="fold"),
                Text(line.zone),
                _usd(line.expected_cost_usd),
                _usd(line.worst_cost_usd),
                f"{line.worst_output_tokens} {line.worst_output_by}",
                "?" if line.expected_ttft_ms is None else f"{line.expected_ttft_ms:.0f} ms",
                Text(f"{line.removed_by}: {line.reason}" if line.removed_by else "", overflow="fold"),
            )
        return table


def explain(
    generation: Generation, policy_name: str, facts: Facts, health: HealthOf, *, pinned: str | None = None
) -> Explanation:
    """Decide as the gateway would, and keep what a decision alone does not say.

    `pinned` is the upstream that keeps what the request goes on from.
    """
    decision = decide(generation, policy_name, facts, health)
    if pinned:
        decision = pin(decision, pinned)
    removed = {one.option: (one.by, one.said) for one in decision.removed}
    places = {chosen.option.name: place for place, chosen in enumerate(decision.candidates, 1)}
    elsewhere = ("pin", f'"{pinned}" keeps what this request goes on from')

    def line(option: Option) -> Line:
        state = health.get(option.name, _UNKNOWN)
        by, why = removed.get(option.name) or (("", "") if option.name in places else elsewhere)
        return Line(
            option=option.name,
            zone=option.zone,
            place=places.get(option.name),
            expected_cost_usd=expected_cost_usd(option, facts),
            worst_cost_usd=worst_cost_usd(option, facts, state),
            worst_output_tokens=worst_output(option, facts, state),
            worst_output_by="client" if facts.max_output else "learned" if state.long_output else "fixed",
            expected_ttft_ms=expected_ttft_ms(state),
            removed_by=by,
            reason=why,
        )

    own = generation.options_for(facts.model)
    considered = dict.fromkeys((*own, *(chosen.option for chosen in decision.candidates)))
    lines = [line(option) for option in considered]
    lines.sort(key=lambda one: math.inf if one.place is None else one.place)
    return Explanation(facts=facts, decision=decision, lines=tuple(lines))


_UNKNOWN = Health()


def from_log(lines: Iterable[Mapping[str, Any]], past: Callable[[str], Generation]) -> Explanation:
    """The explanation of a request that was decided before, from its log lines and the generation that was in force then.

    `past(hash)` opens an archived generation. Raises ConfigError when it cannot, or when no line tells the decision.
    """
    for line in lines:
        if line["event"] in {"route.decided", "route.explained"}:
            name, _, hash_ = line["policy"].partition("@")
            facts = msgspec.convert(line["facts"], Facts)
            health = msgspec.convert(line["health"], dict[str, Health])
            return explain(past(hash_), name, facts, health, pinned=line.get("pinned"))
    raise ConfigError([Problem("log", "the request was refused before a policy was asked; `gateway logs show` has its lines")])


def reason(facts: Facts, decision: Decision) -> str:
    """Why a request goes where it goes, as JSON that fits a header: names, kinds and rules; nothing of the request's text."""
    told: dict[str, Any] = {
        "policy": decision.policy[:NAME_CHARS],
        "route": decision.rule[:NAME_CHARS],
        "class": facts.class_,
        "found": facts.found,
        "unread": facts.unread,
        "limits": decision.limits,
        "cache": decision.cache,
        "redact": decision.redact,
        "order": [chosen.option.name for chosen in decision.candidates],
        "refusal": decision.refusal.kind if decision.refusal else None,
        "removed": [f"{one.option}: {one.by}: {one.said}" for one in decision.removed],
    }
    while len(text := _printable(json.dumps(told, separators=(",", ":")))) > REASON_CHARS:
        longest = max(("removed", "order", "limits", "found"), key=lambda name: len(str(told[name])))
        if not told[longest]:
            break
        told[longest], told["cut"] = list(told[longest])[: len(told[longest]) // 2], True
    return text


def _printable(text: str) -> str:
    """JSON in ASCII escapes every control character but this one, which no header may hold (RFC 9110, 5.5)."""
    return text.replace("\x7f", "\\u007f")


def _usd(value: float | None) -> str:
    return "?" if value is None else f"${value:.6f}"
