"""One timer for many waits."""

import asyncio

import pytest

from gateway.patience import Patience, Waits


async def forever():
    await asyncio.get_running_loop().create_future()


async def test_a_wait_that_is_too_long_ends():
    """With the words that were given for it, and the task is not left cancelled."""
    patience = Patience(Waits(), 0.01, "nothing came")
    with pytest.raises(TimeoutError, match="nothing came"), patience:
        await forever()
    assert asyncio.current_task().cancelling() == 0


async def test_each_wait_counts_anew_and_all_together_are_bounded():
    """Many short waits outlast one long one, until the time for all of them is over."""
    patience = Patience(Waits(), 0.5, "nothing came")
    patience.change(0.5, "nothing came", total_s=0.7)
    turns = []

    async def wait():
        while True:
            with patience:
                await asyncio.sleep(0.005)
            turns.append(1)

    with pytest.raises(TimeoutError, match="in all"):
        await wait()
    assert len(turns) > 10


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


async def test_what_went_forward_is_not_late():
    """`renew` counts the wait from now."""
    patience = Patience(Waits(), 0.5, "nothing came")
    with patience:
        for _ in range(12):
            await asyncio.sleep(0.05)
            patience.renew()
    patience.end()


async def test_hurry_shortens_what_is_left():
    """A wait that goes on ends when the little time that is left is over."""
    patience = Patience(Waits(), 60.0, "nothing came")
    asyncio.get_running_loop().call_soon(patience.hurry, 0.01)
    with pytest.raises(TimeoutError, match="in all"), patience:
        await forever()
