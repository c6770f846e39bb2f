"""The breaker and the running mean, under a clock of our own."""

import pytest

from gateway.health import FAILURES_TO_OPEN, FIRST_PAUSE_S, LONGEST_PAUSE_S, HealthView


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
