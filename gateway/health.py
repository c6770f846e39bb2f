"""A live view of every option (`upstream/model`): is it up, how many are in flight, how soon answers begin, how long they are.

The clock is passed in; nobody is called. One view per front worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from gateway.lengths import Lengths
from gateway.policy.decision import Health

FAILURES_TO_OPEN = 5
"""Failures in a row after which an option is left alone for a while."""
FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 60.0
SMOOTHING = 0.2
"""Weight of the newest time to first token in the running mean."""


class _State:
    __slots__ = (
        "failures", "in_flight", "lengths", "long_output", "name",
        "pause_s", "paused_until", "probed", "reason", "shown", "ttft_ms",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        self.name = name
        self.shown: Health | None = None
        """Of the last time that it was up."""
        self.failures = 0
        self.in_flight = 0
        self.pause_s = FIRST_PAUSE_S
        self.paused_until = 0.0
        self.probed = False
        """Whether one attempt is finding out now if the option is back."""
        self.reason = ""
        self.ttft_ms: float | None = None
        self.lengths = Lengths()
        self.long_output: int | UnsetType = UNSET
        """As of the last of them."""


def _up(state: _State) -> Health:
    return Health(ttft_ms=state.ttft_ms, in_flight=state.in_flight, long_output=state.long_output)


class HealthView:
    """Learns from every attempt.

    A breaker opens after failures in a row. When its pause is over, one attempt alone may leave, and for all others the option
    stays down until that one's first event comes; then one more failure opens it again, and an answer that ends closes it.
    """

    def __init__(
        self, *, unavailable: Callable[[str, str], str | None], off: Callable[[str], bool], clock: Callable[[], float]
    ) -> None:
        """`unavailable(upstream, model)` says why an option cannot be used now; `off(upstream)` whether an operator must act."""
        self._unavailable = unavailable
        self._off = off
        self._clock = clock
        self._states: dict[str, _State] = {}
        self._by_pair: dict[tuple[str, str], _State] = {}

    def snapshot(self, options: Iterable[tuple[str, str]]) -> dict[str, Health]:
        """The state of these (upstream, model) pairs now, by `upstream/model`."""
        now = self._clock()
        return {f"{upstream}/{model}": self._one(upstream, model, now) for upstream, model in options}

    def differing(self, options: Iterable[tuple[str, str]]) -> dict[str, Health]:
        """As `snapshot`, without those that are up, idle and not measured, as `decide` takes any to be that is missing.

        Called on every request: what did not change since the last call is not made again.
        """
        now = self._clock()
        found = {}
        for pair in options:
            state = self._by_pair.get(pair)
            if state is None:
                state = self._by_pair[pair] = self._state(f"{pair[0]}/{pair[1]}")
            if self._unavailable(*pair) is not None or now < state.paused_until or state.probed:
                found[state.name] = self._one(*pair, now)
            elif state.in_flight or state.ttft_ms is not None or state.long_output:
                shown = state.shown
                if (
                    shown is None
                    or shown.in_flight != state.in_flight
                    or shown.ttft_ms != state.ttft_ms
                    or shown.long_output != state.long_output
                ):
                    shown = state.shown = _up(state)
                found[state.name] = shown
        return found

    def _one(self, upstream: str, model: str, now: float) -> Health:
        state = self._state(f"{upstream}/{model}")
        reason = self._unavailable(upstream, model)
        if reason is not None:
            return replace(_up(state), up=False, reason=reason, off=self._off(upstream))
        if now < state.paused_until:
            return replace(_up(state), up=False, reason=state.reason)
        if state.probed:
            return replace(_up(state), up=False, reason=f"{state.reason}; another request finds out whether it is back")
        return _up(state)

    def _state(self, option: str) -> _State:
        state = self._states.get(option)
        if state is None:
            state = self._states[option] = _State(option)
        return state

    def admit(self, option: str) -> bool:
        """Whether an attempt may leave that was allowed a moment ago. False while another one probes the option."""
        return not self._state(option).probed

    def started(self, option: str) -> bool:
        """An attempt leaves. True when it is the probe; then `withdrawn` must be said unless its first event comes."""
        state = self._state(option)
        state.in_flight += 1
        probes = state.failures >= FAILURES_TO_OPEN and self._clock() >= state.paused_until and not state.probed
        state.probed = state.probed or probes
        return probes

    def withdrawn(self, option: str) -> None:
        """The probe is over without a first event. What it says of the option, if anything, comes by `failed`."""
        self._state(option).probed = False

    def ended(self, option: str) -> None:
        """An attempt is over, whatever came of it."""
        self._state(option).in_flight -= 1

    def began(self, option: str, ttft_ms: float) -> None:
        """Its first event (or whole answer) came after this long."""
        state = self._state(option)
        state.ttft_ms = ttft_ms if state.ttft_ms is None else state.ttft_ms + SMOOTHING * (ttft_ms - state.ttft_ms)
        if state.probed:
            state.probed = False
            state.failures = FAILURES_TO_OPEN - 1

    def answered(self, option: str) -> None:
        """An answer came to its end."""
        state = self._state(option)
        state.failures = 0
        state.pause_s = FIRST_PAUSE_S
        state.paused_until = 0.0
        state.probed = False

    def wrote(self, option: str, tokens: int) -> None:
        """An answer that its client had not bounded came to its end after so many tokens."""
        state = self._state(option)
        if tokens > 0:
            state.lengths.add(tokens)
            state.long_output = state.lengths.long or UNSET

    def failed(self, option: str, reason: str) -> None:
        """It failed in a way that says something about it.

        What fails while the breaker is open had left before it opened: it is counted and does not make the pause longer.
        """
        state = self._state(option)
        state.failures += 1
        now = self._clock()
        if state.failures >= FAILURES_TO_OPEN and now >= state.paused_until:
            state.paused_until = now + state.pause_s
            state.pause_s = min(state.pause_s * 2, LONGEST_PAUSE_S)
            state.reason = f"failed {state.failures} times in a row: {reason}"

    def asked_to_wait(self, option: str, reason: str, retry_after_s: float) -> None:
        """It asked to be left alone for so long."""
        state = self._state(option)
        state.paused_until = max(state.paused_until, self._clock() + min(retry_after_s, LONGEST_PAUSE_S))
        state.reason = f"asked to wait: {reason}"
