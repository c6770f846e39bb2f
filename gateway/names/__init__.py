"""Names of people, places and organisations: no pattern knows them, so a model in a process of its own is asked.

To the rest of the gateway the Detector and such a model together are one Finder. Whatever goes wrong here raises, and a scan that
raised makes its request `restricted`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from itertools import accumulate

from gateway.errors import WorkerGone
from gateway.frames import Client
from gateway.names.frames import Found, Read, Span, from_worker_decoder
from gateway.privacy import Detector, Finder, Finding, Verdicts
from gateway.recognisers import SEPARATOR

_NO_SPANS: tuple[Span, ...] = ()


class NamesAway(WorkerGone):
    """Nobody who could read was there."""


class NamesLate(WorkerGone):
    """The worker did not answer in time."""


class NamesFailed(WorkerGone):
    """The model failed on a text."""


class NamesTooLong(Exception):
    """More text than the model is to read for one request."""


class Names:
    """A front worker's end of the names worker. `run` keeps the connection; `read` waits, and so belongs on a thread."""

    def __init__(self, path: str, *, max_chars: int, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`path` of the worker's socket; `max_chars` that one request may bring it to read; `timeout_s` for its answer."""
        self._client = Client(path, from_worker_decoder())
        self._max_chars = max_chars
        self._timeout_s = timeout_s
        self._known: Verdicts[tuple[Span, ...]] = Verdicts()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._clock = clock
        self._asked_again: float | None = None
        """When a worker that was late may be asked again: until then nobody waits for it, and then one at a time."""

    @property
    def trouble(self) -> str:
        """Why a text would not be read now; empty when it would."""
        if not self._client.connected:
            return "not yet connected"
        return "late with its last answer" if self._paused() else ""

    def _paused(self) -> bool:
        return self._asked_again is not None and self._clock() < self._asked_again

    async def run(self) -> None:
        """Keep the connection to the worker up until cancelled."""
        self._loop = asyncio.get_running_loop()
        await self._client.run()

    def beside(self, patterns: Detector, kinds: Iterable[str]) -> Finder:
        """Patterns, and names of these kinds, as one."""
        return _Together(patterns, self, frozenset(kinds))

    def read(self, texts: Sequence[str]) -> list[tuple[Span, ...]]:
        """The names in each text; what was read before is remembered by digest.

        Raises NamesAway, NamesLate or NamesFailed, NamesTooLong above `max_chars`, and AssertionError on the event loop, which
        would wait for itself.
        """
        marks = [self._known.digest(text) if _speaks(text) else b"" for text in texts]
        known = {mark: self._known.get(mark) if mark else _NO_SPANS for mark in marks}
        unread = {mark: text for mark, text in zip(marks, texts, strict=True) if known[mark] is None}
        if unread:
            found = self._ask(list(unread.values()))
            for mark, spans in zip(unread, found, strict=True):
                known[mark] = tuple(spans)
                self._known.put(mark, tuple(spans))
        return [known[mark] or _NO_SPANS for mark in marks]

    def _ask(self, texts: list[str]) -> list[list[Span]]:
        if sum(map(len, texts)) > self._max_chars:
            raise NamesTooLong
        with suppress(RuntimeError):
            if asyncio.get_running_loop() is self._loop:
                raise AssertionError("names are read on a thread, never on the event loop")
        if self._loop is None:
            raise NamesAway("nobody keeps the connection to the names worker")
        if self._paused():
            raise NamesLate("the names worker was late with its last answer")
        if self._asked_again is not None:
            self._asked_again = self._clock() + self._timeout_s
        call = asyncio.run_coroutine_threadsafe(
            self._client.ask(Read(self._client.next_id(), texts, self._timeout_s)), self._loop
        )
        try:
            answer = call.result(self._timeout_s)
        except (TimeoutError, CancelledError):
            call.cancel()
            self._asked_again = self._clock() + self._timeout_s
            raise NamesLate(f"the names worker did not answer within {self._timeout_s:g} s") from None
        except WorkerGone as error:
            self._asked_again = None
            raise NamesAway(str(error)) from None
        self._asked_again = None
        if not isinstance(answer, Found) or len(answer.spans) != len(texts):
            raise NamesFailed("the names worker failed on a text")
        return answer.spans


def _speaks(text: str) -> bool:
    """Whether a text can hold a name: keys, roles and numbers need not be sent."""
    return len(text) > 1 and not text.isdigit() and not text.isspace()


class _Together:
    """The Finder of one generation of policies."""

    waits = True

    def __init__(self, patterns: Detector, names: Names, kinds: frozenset[str]) -> None:
        self.patterns = patterns
        self._names = names
        self._kinds = kinds

    def kinds_of_all(self, texts: list[str]) -> frozenset[str]:
        """See `Finder`."""
        pieces = [piece for text in texts for piece in text.split(SEPARATOR)]
        named = {kind for spans in self._names.read(pieces) for kind, _, _ in spans}
        return self.patterns.kinds_of_all(texts) | (self._kinds & named)

    def locate(self, text: str, *, before: str = "") -> list[Finding]:
        """See `Finder`."""
        pieces = text.split(SEPARATOR)
        begins = accumulate((len(piece) + len(SEPARATOR) for piece in pieces), initial=0)
        named = [
            Finding(kind, begin + start, begin + end)
            for begin, spans in zip(begins, self._names.read(pieces), strict=False)
            for kind, start, end in spans
            if kind in self._kinds
        ]
        found = [*self.patterns.locate(text, before=before), *named]
        return sorted(found, key=lambda finding: (finding.start, finding.end))
