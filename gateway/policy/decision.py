"""What a decision is made from besides the facts, and what it is."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from gateway.config import Class

CacheMode = Literal["off", "exact", "semantic"]


class Option(Struct, frozen=True, kw_only=True, dict=True):
    """One upstream with one model, and all that policy may know of it: a row of the catalogue."""

    upstream: str
    model: str
    """The upstream's own name."""
    zone: str
    retention: str
    trains: bool
    takes_up_to: Class
    capabilities: tuple[str, ...]
    context: int | None = None
    max_output: int | None = None
    input_usd_per_mtok: float | None = None
    output_usd_per_mtok: float | None = None
    cached_input_usd_per_mtok: float | None = None

    @cached_property
    def name(self) -> str:
        """`upstream/model`, as routes, headers and logs write it."""
        return f"{self.upstream}/{self.model}"


class Health(Struct, frozen=True, kw_only=True):
    """The state of one option (`upstream/model`) at the moment of the decision. Logged with it."""

    up: bool = True
    reason: str = ""
    """Why it is not up, in words for an operator."""
    off: bool = False
    """True: not configured or switched off, so waiting does not help."""
    ttft_ms: float | None = None
    """Expected time to first token; None while nothing was measured."""
    in_flight: int = 0
    long_output: int | UnsetType = UNSET
    """Tokens that all but one in twenty of its answers keep within, where the client sets no bound; unset while too few came."""


class Removed(Struct, frozen=True, gc=False, omit_defaults=True):
    """Why one candidate may not or cannot serve."""

    option: str
    by: Literal["capability", "context", "class", "store", "limit", "cost", "redact", "route", "down", "deadline"]
    reason: str
    """For people: `limit "secrets never leave" (policies/privacy.toml:12)`."""
    most_usd: float | None = None
    """What it may cost, where that is above a cap."""

    @property
    def said(self) -> str:
        """The whole reason, for people."""
        return self.reason if self.most_usd is None else f"{self.reason}, and this may cost ${self.most_usd:.6g}"


class Chosen(Struct, frozen=True, gc=False):
    """One candidate that is left, with what ranked it."""

    option: Option
    expected_cost_usd: float | None = None
    expected_ttft_ms: float | None = None


class Refusal(Struct, frozen=True, kw_only=True):
    """Why nothing can serve. `forbidden`: policy; `unavailable`: allowed but down or off; `unsupported`: no model can do it."""

    kind: Literal["forbidden", "unavailable", "unsupported"]
    message: str
    """For the client; holds no text of its request."""
    should_retry: bool = False


class Decision(Struct, frozen=True, kw_only=True):
    """Where one request may go, in order, and why. The allowed set is fixed here; nothing later widens it."""

    policy: str
    """NAME@HASH."""
    rule: str
    """Name of the route rule that ranked."""
    candidates: tuple[Chosen, ...] = ()
    """In the order they are tried."""
    removed: tuple[Removed, ...] = ()
    cache: CacheMode = "off"
    log_text: bool = False
    """Whether the text of this request and its answer may stand in the log."""
    redact: bool = False
    """Whether what the detector finds is masked in what leaves to a zone other than `local`."""
    deadline_ms: int | None = None
    """Longest wait for the first token, over all attempts."""
    limits: tuple[str, ...] = ()
    """Names of the limits that applied."""
    refusal: Refusal | None = None
    """Set exactly when `candidates` is empty."""


HealthOf = Mapping[str, Health]
"""By `upstream/model`; an option that is missing counts as up."""


def encode(decision: Decision) -> dict[str, object]:
    """The decision as plain values, for the log and for `gateway explain --json`."""
    plain: dict[str, object] = msgspec.to_builtins(decision)
    return plain
