"""The breaker and the running mean, under a clock of our own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from gateway.health import FAILURES_TO_OPEN, FIRST_PAUSE_S, LONGEST_PAUSE_S, HealthView
from gateway.lengths import LEAST_ANSWERS
from gateway.policy.decision import Health


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def view(clock):
    return HealthView(unavailable=lambda upstream, model: None, off=lambda upstream: False, clock=clock)


def state(view):
    return view.snapshot([("up", "m")])["up/m"]


def fail(view, times=1):
    for _ in range(times):
        view.failed("up/m", "why")


def test_the_length_of_answers_is_shown_once_enough_were_seen(view):
    """Also of an option that is idle, and of one that is down; what counted no tokens says nothing."""
    for _ in range(LEAST_ANSWERS - 1):
        view.wrote("up/m", 300)
        view.wrote("up/m", 0)
    assert state(view).long_output is UNSET
    assert view.differing([("up", "m")]) == {}
    view.wrote("up/m", 300)
    assert view.differing([("up", "m")])["up/m"].long_output == 300
    fail(view, FAILURES_TO_OPEN)
    assert (state(view).up, state(view).long_output) == (False, 300)


def test_failures_in_a_row_open_the_breaker(view, clock):
    """Not one fewer; the reason says why, and time closes it."""
    fail(view, FAILURES_TO_OPEN - 1)
    assert state(view).up
    fail(view)
    assert (state(view).up, state(view).reason) == (False, "failed 5 times in a row: why")
    clock.now += FIRST_PAUSE_S
    assert state(view).up


def test_an_answer_between_failures_keeps_it_closed(view):
    """In a row means in a row."""
    for _ in range(3):
        fail(view, FAILURES_TO_OPEN - 1)
        view.answered("up/m")
    assert state(view).up


def test_an_answer_that_began_is_not_one_that_ended(view):
    """A stream that always breaks after its first event opens the breaker, too."""
    for _ in range(FAILURES_TO_OPEN):
        view.began("up/m", 10.0)
        fail(view)
    assert not state(view).up


def test_each_failure_after_a_pause_doubles_the_next_one(view, clock):
    """Up to the longest; a success begins anew."""
    fail(view, FAILURES_TO_OPEN - 1)
    pause = FIRST_PAUSE_S
    for _ in range(8):
        fail(view)
        clock.now += min(pause, LONGEST_PAUSE_S) - 0.01
        assert not state(view).up
        clock.now += 0.01
        assert state(view).up
        pause *= 2
    view.answered("up/m")
    fail(view, FAILURES_TO_OPEN)
    clock.now += FIRST_PAUSE_S
    assert state(view).up


def test_a_burst_of_failures_is_one_pause(view, clock):
    """Requests that were under way when the breaker opened do not make its pause longer."""
    fail(view, 50)
    clock.now += FIRST_PAUSE_S
    assert state(view).up


@pytest.fixture
def back(view, clock):
    """The view of an option whose breaker was open and whose pause is over."""
    fail(view, FAILURES_TO_OPEN)
    clock.now += FIRST_PAUSE_S
    return view


def test_after_the_pause_one_attempt_leaves_alone(back):
    """For everybody else the option stays down, also for those who were sent there a moment before."""
    assert state(back).up
    assert (back.started("up/m"), back.admit("up/m"), back.started("up/m")) == (True, False, False)
    assert (state(back).up, "finds out" in state(back).reason) == (False, True)


def test_a_probe_that_fails_opens_the_breaker_for_twice_as_long(back, clock):
    """And the next one has to wait for the end of that pause."""
    back.started("up/m")
    back.withdrawn("up/m")
    fail(back)
    clock.now += 2 * FIRST_PAUSE_S - 0.01
    assert not state(back).up
    clock.now += 0.01
    assert (state(back).up, back.started("up/m")) == (True, True)


def test_a_probe_that_tells_nothing_leaves_its_place_to_the_next(back):
    """Its client left, or the request was at fault."""
    back.started("up/m")
    back.withdrawn("up/m")
    back.ended("up/m")
    assert (state(back).up, back.started("up/m")) == (True, True)


def test_a_probes_first_event_lets_the_others_in_on_probation(back, clock):
    """One more failure opens the breaker again; an answer that comes to its end closes it."""
    back.started("up/m")
    back.began("up/m", 10.0)
    assert (state(back).up, back.admit("up/m"), back.started("up/m")) == (True, True, False)
    fail(back)
    assert not state(back).up
    clock.now += 2 * FIRST_PAUSE_S
    back.started("up/m")
    back.answered("up/m")
    fail(back, FAILURES_TO_OPEN - 1)
    assert state(back).up


def test_without_failures_nobody_is_a_probe(view):
    """A thousand may leave at once."""
    fail(view, FAILURES_TO_OPEN - 1)
    assert not any(view.started("up/m") for _ in range(1000))


def test_being_asked_to_wait_is_no_failure(view, clock):
    """It is left alone for so long, within reason, and its count stays."""
    for _ in range(FAILURES_TO_OPEN):
        view.asked_to_wait("up/m", "answered 429", 3.0)
    assert state(view).reason == "asked to wait: answered 429"
    clock.now += 3.0
    assert state(view).up
    view.asked_to_wait("up/m", "answered 429", 1e9)
    clock.now += LONGEST_PAUSE_S
    assert state(view).up


def test_the_mean_follows_slowly(view):
    """The first measurement stands for itself; a fifth of each further one comes in."""
    assert state(view).ttft_ms is None
    for ms in (100.0, 200.0):
        view.began("up/m", ms)
    assert state(view).ttft_ms == pytest.approx(120.0)


def test_what_an_upstream_says_of_itself_comes_first(clock):
    """Off needs an operator; its reason is shown."""
    view = HealthView(unavailable=lambda upstream, model: f"{upstream} {model} is off", off=lambda upstream: True, clock=clock)
    view.started("up/m")
    found = state(view)
    assert (found.up, found.off, found.reason, found.in_flight) == (False, True, "up m is off", 1)
    view.ended("up/m")
    assert state(view).in_flight == 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["started", "ended", "began", "failed", "answered", "wait", "tick"]), st.sampled_from(["a", "b"])
        ),
        max_size=30,
    )
)
def test_what_is_left_out_of_the_state_is_what_decide_takes_it_to_be(steps):
    """After any history, the short form says of each option what the whole one does, or leaves it out as up, idle and not measured."""
    now = [0.0]
    view = HealthView(unavailable=lambda *_: None, off=lambda _: False, clock=lambda: now[0])
    pairs = [("a", "m"), ("b", "m"), ("c", "m")]
    for step, name in steps:
        option = f"{name}/m"
        match step:
            case "tick":
                now[0] += 1.5
            case "began":
                view.began(option, 10.0 + now[0])
            case "failed":
                view.failed(option, "x")
            case "wait":
                view.asked_to_wait(option, "x", 1.0)
            case _:
                getattr(view, step)(option)
        whole, short = view.snapshot(pairs), view.differing(pairs)
        assert {name: short.get(name, Health()) for name in whole} == whole
        assert "c/m" not in short
