"""One timer for many waits. Time stands still while anything runs, so that no machine is too slow for these tests."""

import asyncio
from functools import wraps

import pytest

from gateway.patience import Patience, Queue, Waits


class Timeless(asyncio.SelectorEventLoop):
    """Its clock jumps to the next timer when there is nothing else to do."""

    now = 0.0

    def time(self):
        return self.now

    def _run_once(self):
        waiting = [timer.when() for timer in self._scheduled if not timer.cancelled()]
        if waiting and not self._ready:
            self.now = max(self.now, min(waiting))
        super()._run_once()


def timeless(test):
    """Run a test on such a loop."""

    @wraps(test)
    def run():
        with asyncio.Runner(loop_factory=Timeless) as runner:
            runner.run(test())

    return run


async def forever():
    await asyncio.get_running_loop().create_future()


@timeless
async def test_a_wait_that_is_too_long_ends():
    """With the words that were given for it, and the task is not left cancelled."""
    patience = Patience(Waits(), 0.01, "nothing came")
    with pytest.raises(TimeoutError, match="nothing came"), patience:
        await forever()
    assert asyncio.current_task().cancelling() == 0


@timeless
async def test_each_wait_counts_anew_and_all_together_are_bounded():
    """Many short waits outlast one long one, until the time for all of them is over."""
    patience = Patience(Waits(), 0.5, "nothing came")
    patience.change(0.5, "nothing came", total_s=0.7)
    began = asyncio.get_running_loop().time()
    turns = []

    async def wait():
        while True:
            with patience:
                await asyncio.sleep(0.005)
            turns.append(1)

    with pytest.raises(TimeoutError, match="in all"):
        await wait()
    assert len(turns) in {139, 140}
    assert asyncio.get_running_loop().time() - began == pytest.approx(0.7, abs=0.01)


@timeless
async def test_a_true_cancellation_stays_one():
    """Whoever is cancelled from outside is cancelled, not late; also while the timer is armed."""
    patience = Patience(Waits(), 60.0, "nothing came")

    async def wait():
        with patience:
            await forever()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    patience.end()


@timeless
async def test_time_between_two_waits_does_not_count():
    """A timer that fires while nobody waits makes nobody late; the next wait has a timer again."""
    patience = Patience(Waits(), 0.02, "nothing came")
    with patience:
        pass
    await asyncio.sleep(0.05)
    with patience:
        await asyncio.sleep(0)
    with pytest.raises(TimeoutError, match="nothing came"), patience:
        await forever()


@timeless
async def test_what_went_forward_is_not_late():
    """`renew` counts the wait from now."""
    patience = Patience(Waits(), 0.5, "nothing came")
    with patience:
        for _ in range(12):
            await asyncio.sleep(0.05)
            patience.renew()
    patience.end()


@timeless
async def test_hurry_shortens_what_is_left():
    """A wait that goes on ends when the little time that is left is over."""
    patience = Patience(Waits(), 60.0, "nothing came")
    asyncio.get_running_loop().call_soon(patience.hurry, 0.01)
    with pytest.raises(TimeoutError, match="in all"), patience:
        await forever()


@timeless
async def test_a_queue_calls_what_waited_long_enough_and_nothing_else():
    """In the order in which they came; what was discarded before is not called, and one timer serves all."""
    queue, called, over = Queue(0.02), [], asyncio.Event()
    calls = [lambda name=name: called.append(name) for name in "abc"]
    for call in calls:
        queue.add(call)
    queue.discard(calls[1])
    queue.add(over.set)
    await over.wait()
    assert called == ["a", "c"]
    assert not queue.used


@timeless
async def test_many_lengths_of_waiting_do_not_pile_up():
    """Whoever waits for a length of their own leaves nothing behind, and whoever waits goes on waiting."""
    waits, over = Waits(), asyncio.Event()
    waits.of(0.02).add(over.set)
    for number in range(1000):
        waits.of(100.0 + number)
    assert len(waits._queues) < 100
    await over.wait()


@timeless
async def test_a_shorter_patience_counts_from_its_change():
    """A long limit on the first wait does not make later ones, which have a shorter limit, late."""
    patience = Patience(Waits(), 60.0, "nothing came")
    with patience:
        pass
    patience.change(0.01, "nothing more came", total_s=60.0)
    with pytest.raises(TimeoutError, match="nothing more"), patience:
        await forever()
