"""How long somebody waits, over and over, for the next piece of something. Knows neither what comes nor from where."""

from __future__ import annotations

import asyncio
import math
from typing import Any


class Patience:
    """One timer for all the pieces of something, where `asyncio.timeout` would take one for each.

    `with` it around every wait. Raises TimeoutError, with words for whoever waits, when a wait takes too long, or all together.
    """

    def __init__(self, each_s: float, said: str) -> None:
        """`said` is what a wait of more than `each_s` seconds means."""
        self._loop = asyncio.get_running_loop()
        self._began = self._since = self._loop.time()
        self._each_s, self._said = each_s, said
        self._ends_at = math.inf
        self._waiting: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self._late = ""
        self._timer: asyncio.TimerHandle | None = None

    def change(self, each_s: float, said: str, *, total_s: float) -> None:
        """From now on these hold; `total_s` counts from the very beginning."""
        self._each_s, self._said = each_s, said
        self._ends_at = self._began + total_s

    def hurry(self, seconds: float) -> None:
        """From now on everything may take this long in all."""
        self._ends_at = min(self._ends_at, self._loop.time() + seconds)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = self._loop.call_at(self._due(), self._look)

    def renew(self) -> None:
        """Something went forward; count this wait from now."""
        self._since = self._loop.time()

    def end(self) -> None:
        """Nobody will wait any more."""
        if self._timer is not None:
            self._timer.cancel()

    def __enter__(self) -> None:
        self._waiting = asyncio.current_task()
        self._cancelling = self._waiting.cancelling() if self._waiting is not None else 0
        self._since = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_at(self._due(), self._look)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        waiting, self._waiting = self._waiting, None
        late, self._late = self._late, ""
        if late and waiting is not None and waiting.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError(late) from None

    def _due(self) -> float:
        return min(self._since + self._each_s, self._ends_at)

    def _look(self) -> None:
        now = self._loop.time()
        if self._waiting is None or now < self._due():
            # While nobody waits, nothing is late; whoever waits next sets the timer again.
            self._timer = None if self._waiting is None else self._loop.call_at(self._due(), self._look)
            return
        self._late = "took too long in all" if now >= self._ends_at else self._said
        self._timer = None
        self._waiting.cancel()
