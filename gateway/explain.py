"""Show why a request goes where it goes: every candidate, what it would cost, what removed it. Calls nobody."""

from __future__ import annotations

import math
from typing import Any

import msgspec
from msgspec import Struct
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gateway.facts import Facts
from gateway.policy.decide import decide, expected_cost_usd, expected_ttft_ms, worst_cost_usd
from gateway.policy.decision import Decision, Health, HealthOf, Option, encode
from gateway.policy.generation import Generation


class Line(Struct, frozen=True, kw_only=True):
    """One candidate of the model."""

    option: str
    zone: str
    place: int | None
    """In the order of trying, from 1; None: it was removed."""
    expected_cost_usd: float | None
    worst_cost_usd: float | None
    """What a cost cap is compared with."""
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
            ("class", self.facts.class_ + (f" ({', '.join(self.facts.found)} found)" if self.facts.found else "")),
            ("limits", ", ".join(decision.limits) or "none"),
            ("cache", decision.cache),
            ("text in log", "yes" if decision.log_text else "no"),
            ("first token by", deadline),
        ]
        if decision.refusal is not None:
            rows.append(("refused", f"{decision.refusal.kind}: {decision.refusal.message}"))
        return Text("\n".join(f"{name:<15}{value}" for name, value in rows))

    def _table(self) -> Table:
        table = Table("try", "candidate", "zone", "cost", "at most", "first token", "removed by", box=None)
        for line in self.lines:
            table.add_row(
                "-" if line.place is None else str(line.place),
                Text(line.option, overflow="fold"),
                Text(line.zone),
                _usd(line.expected_cost_usd),
                _usd(line.worst_cost_usd),
                "?" if line.expected_ttft_ms is None else f"{line.expected_ttft_ms:.0f} ms",
                Text(f"{line.removed_by}: {line.reason}" if line.removed_by else "", overflow="fold"),
            )
        return table


def explain(generation: Generation, policy_name: str, facts: Facts, health: HealthOf) -> Explanation:
    """Decide as the gateway would, and keep what a decision alone does not say."""
    decision = decide(generation, policy_name, facts, health)
    removed = {one.option: one for one in decision.removed}
    places = {chosen.option.name: place for place, chosen in enumerate(decision.candidates, 1)}

    def line(option: Option) -> Line:
        gone = removed.get(option.name)
        return Line(
            option=option.name,
            zone=option.zone,
            place=places.get(option.name),
            expected_cost_usd=expected_cost_usd(option, facts),
            worst_cost_usd=worst_cost_usd(option, facts),
            expected_ttft_ms=expected_ttft_ms(health.get(option.name, Health())),
            removed_by=gone.by if gone else "",
            reason=gone.reason if gone else "",
        )

    own = generation.options_for(facts.model)
    considered = dict.fromkeys((*own, *(chosen.option for chosen in decision.candidates)))
    lines = [line(option) for option in considered]
    lines.sort(key=lambda one: math.inf if one.place is None else one.place)
    return Explanation(facts=facts, decision=decision, lines=tuple(lines))


def _usd(value: float | None) -> str:
    return "?" if value is None else f"${value:.6f}"
