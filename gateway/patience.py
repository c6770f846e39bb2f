"""How long somebody waits, over and over, for the next piece of something. Knows neither what comes nor from where."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any


class Queue:
    """Calls what has waited for `after_s` seconds; one timer of the loop for all that wait equally long.

    A timer of the loop costs 2 µs to set and to cancel, and nearly every wait is over before its time.
    """

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._due: dict[Callable[[], None], float] = {}
        """The one that is due first stands first."""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def used(self) -> bool:
        """Whether anything waits."""
        return bool(self._due)

    def add(self, call: Callable[[], None]) -> None:
        """Call this when its time has come, unless it is discarded before. It must not be in the queue."""
        loop = asyncio.get_running_loop()
        self._due[call] = loop.time() + self._after_s
        if self._timer is None:
            self._timer = loop.call_later(self._after_s, self._look)

    def discard(self, call: Callable[[], None]) -> None:
        """Do not call it, if it waits at all."""
        self._due.pop(call, None)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        while self._due:
            call, due = next(iter(self._due.items()))
            if due > loop.time():
                self._timer = loop.call_at(due, self._look)
                return
            del self._due[call]
            call()


class Waits:
    """The queues of one event loop, by how long they wait."""

    def __init__(self) -> None:
        self._queues: dict[float, Queue] = {}

    def of(self, after_s: float) -> Queue:
        """The queue of those that wait this long."""
        queue = self._queues.get(after_s)
        if queue is None:
            if len(self._queues) >= _MANY_QUEUES:
                self._queues = {length: queue for length, queue in self._queues.items() if queue.used}
            queue = self._queues[after_s] = Queue(after_s)
        return queue


_MANY_QUEUES = 64
"""At so many, those that nobody waits in are let go."""


class Patience:
    """One timer at most for all the pieces of something, where `asyncio.timeout` would take one for each.

    `with` it around every wait. Raises TimeoutError, with words for whoever waits, when a wait takes too long, or all together.
    """

    def __init__(self, waits: Waits, each_s: float, said: str) -> None:
        """`said` is what a wait of more than `each_s` seconds means."""
        self._loop = asyncio.get_running_loop()
        self._began = self._since = self._loop.time()
        self._waits = waits
        self._each_s, self._said = each_s, said
        self._ends_at = math.inf
        self._waiting: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self._late = ""
        self._queue: Queue | None = None
        """Where it waits for its time, unless a timer of its own is set."""
        self._timer: asyncio.TimerHandle | None = None

    def change(self, each_s: float, said: str, *, total_s: float) -> None:
        """From now on these hold; `total_s` counts from the very beginning."""
        if each_s != self._each_s:
            self.end()
        self._each_s, self._said = each_s, said
        self._ends_at = self._began + total_s

    def hurry(self, seconds: float) -> None:
        """From now on everything may take this long in all."""
        self._ends_at = min(self._ends_at, self._loop.time() + seconds)
        if self._timer is not None or self._queue is not None:
            self.end()
            self._timer = self._loop.call_at(self._due(), self._look)

    def renew(self) -> None:
        """Something went forward; count this wait from now."""
        self._since = self._loop.time()

    def end(self) -> None:
        """Nobody will wait any more."""
        if self._queue is not None:
            self._queue.discard(self._look)
            self._queue = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def __enter__(self) -> None:
        self._waiting = task = asyncio.current_task(self._loop)
        self._cancelling = task.cancelling() if task is not None else 0
        self._since = self._loop.time()
        if self._queue is None and self._timer is None:
            if self._since + self._each_s <= self._ends_at:
                self._queue = self._waits.of(self._each_s)
                self._queue.add(self._look)
            else:
                self._timer = self._loop.call_at(self._ends_at, self._look)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        waiting, self._waiting = self._waiting, None
        if not self._late:
            return
        late, self._late = self._late, ""
        if waiting is not None and waiting.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError(late) from None

    def _due(self) -> float:
        return min(self._since + self._each_s, self._ends_at)

    def _look(self) -> None:
        now = self._loop.time()
        self._queue = None
        if self._waiting is None or now < self._due():
            # While nobody waits, nothing is late; whoever waits next sets the timer again.
            self._timer = None if self._waiting is None else self._loop.call_at(self._due(), self._look)
            return
        self._late = "took too long in all" if now >= self._ends_at else self._said
        self._timer = None
        self._waiting.cancel()
