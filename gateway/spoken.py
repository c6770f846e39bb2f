"""What models say, on its way to the log: credentials in it are masked and told. Knows no files and no event loop.

Runs on the log's thread. Lines of one request stay in their order and are as many as before; a line whose text may be the
beginning of a credential waits for what follows, at most for one word or to the end of the request. Text that no policy lets
be logged is read too, and not kept: only that a credential was in it is told.

A batch is searched in one pass of google-re2, over the ends of all answers that went on in it; only an answer in which that
finds anything is read word by word.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from operator import attrgetter
from typing import Any, NamedTuple

from msgspec.structs import replace

from gateway.ledger import Later, Record, TokenEvent, Tokens
from gateway.output_scan import MASK, OutputScan
from gateway.privacy import suspects

KIND = "secret"
MOST_ANSWERS = 20_000
"""Answers that are read at once; beyond, the oldest is taken for ended. Its record was lost with a full queue."""


SEARCHED_CHARS = 256
"""So much of an answer comes together before it is searched, where no line waits for that."""


class _Run(NamedTuple):
    """Lines of one answer that wait together."""

    events: list[TokenEvent]
    n_chars: int
    """Of the texts that are to be shown."""


class _Answer:
    """One choice of one request: what came since it was last searched, and how much of what waits is sure."""

    __slots__ = ("n_new", "new", "scan", "shown", "sure", "suspect")

    def __init__(self) -> None:
        self.scan = OutputScan()
        self.new: list[str] = []
        self.n_new = 0
        self.suspect = False
        self.sure = 0
        """Characters that may be written, of the text of the lines that wait."""
        self.shown: dict[int, str] = {}
        """By index of a line that a mask touches: what of it may be shown, as far as it is sure."""

    def passed(self, *, last: bool) -> None:
        """Nothing suspicious stands in what came."""
        self.sure += self.scan.passed(self._taken(), last=last)
        self.suspect = False

    def read(self, lines: Sequence[TokenEvent], *, last: bool) -> int:
        """Read what came word by word; how many credentials begin in it. `lines`: those of this answer that wait."""
        parts = [self.scan.feed(self._taken()), *([self.scan.finish()] if last else [])]
        self.suspect = True
        for length, shown in (piece for part in parts for piece in part.pieces):
            # What is shown as it came has its length; a mask, whatever its length, stands where its credential begins.
            mask = shown if shown == MASK or len(shown) != length else None
            for line, begin, end in _cut(lines, self.sure, length):
                text = line.text or ""
                if mask is not None:
                    self.shown.setdefault(line.index, text[:begin])
                if line.index in self.shown:
                    self.shown[line.index] += text[begin:end] if mask is None else mask
                mask = mask and ""
            self.sure += length
        return sum(part.n_found for part in parts)

    def _taken(self) -> str:
        text = "".join(self.new)
        self.new.clear()
        self.n_new = 0
        return text


def _cut(lines: Sequence[TokenEvent], start: int, length: int) -> Iterator[tuple[TokenEvent, int, int]]:
    """The lines over which a stretch of their joined text reaches, each with where the stretch begins and ends in it."""
    for line in lines:
        size = len(line.text or "")
        if start < size and length > 0:
            end = min(size, start + length)
            yield line, max(0, start), end
            length -= end - max(0, start)
            start = 0
        else:
            start -= size
        if length <= 0:
            return


def _split(run: _Run, n_sure: int) -> tuple[list[TokenEvent], _Run | None]:
    """The lines of a run whose texts end within so many characters, and the others."""
    if run.n_chars <= n_sure:
        return run.events, None
    left = run.n_chars
    for place in range(len(run.events) - 1, -1, -1):  # nearly all of it is sure
        left -= len(run.events[place].text or "")
        if left <= n_sure:
            return run.events[:place], _Run(run.events[place:], run.n_chars - left)
    return run.events, None


def _shown(event: TokenEvent, answer: _Answer) -> TokenEvent:
    """The line with its masks, if it has any."""
    return event._replace(text=answer.shown.pop(event.index), said="") if event.index in answer.shown else event


class _Talk:
    """One request: its answers, and its lines that wait in their order."""

    __slots__ = ("answers", "n_found", "record", "request_id", "waiting")

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.answers: dict[int, _Answer] = {}
        self.waiting: deque[Any] = deque()
        self.n_found = 0
        self.record: Record | None = None

    def lines(self, answer: _Answer) -> list[TokenEvent]:
        """The lines of an answer that wait."""
        runs = [run for run in self.waiting if type(run) is _Run and self.answers[run.events[0].choice] is answer]
        return [event for run in runs for event in run.events]

    def ready(self, out: list[Any]) -> None:
        """Let go what is sure and what stood behind it."""
        waiting = self.waiting
        while waiting:
            first = waiting[0]
            if type(first) is _Run:
                answer = self.answers[first.events[0].choice]
                sure, late = _split(first, answer.sure)
                answer.sure -= first.n_chars - (late.n_chars if late else 0)
                if sure:
                    out.append([_shown(event, answer) for event in sure] if answer.shown else sure)
                if late:
                    waiting[0] = late
                    return
            else:
                out.append(first)
            waiting.popleft()
        if self.record is not None:
            out += self._told(self.record)
            self.record = None

    def _told(self, record: Record) -> list[Any]:
        if not self.n_found:
            return [record]
        event = {
            "time_ns": time.time_ns(),
            "event": "output.secret_found",
            "level": "warning",
            "request_id": record.request_id,
            "kind": KIND,
            "count": self.n_found,
        }
        return [event, replace(record, secrets_out=self.n_found)]


_CHOICE = attrgetter("choice")


def _lines_of(thing: Any) -> Sequence[Any]:
    """One by one, what stands in a batch or waits."""
    if type(thing) is _Run:
        return thing.events
    return thing if type(thing) is list else (thing,)


def _by_request(batch: Sequence[Any]) -> list[Any]:
    """The batch with the tokens of each request together, as a list where the first of them stood.

    What else there is of a request keeps its place among them.
    """
    found: list[Any] = []
    runs: dict[str, list[TokenEvent]] = {}
    for item in batch:
        kind = type(item)
        if kind is TokenEvent or kind is Tokens:
            request_id = item.request_id
            run = runs.get(request_id)
            if run is None:
                run = runs[request_id] = []
                found.append(run)
            if kind is TokenEvent:
                run.append(item)
            else:
                run += item.events()
        else:
            runs.pop(item.request_id if kind is Record else _id_of(item), None)
            found.append(item)
    return found


def _id_of(item: Any) -> str:
    """The request that an event is about; empty where it is about none."""
    return item.request_id if type(item) is Later else str(item.get("request_id", ""))


class Spoken:
    """Between the log's queue and its encoder: `through` for every batch, `rest` at the end."""

    def __init__(self) -> None:
        self.n_found = 0
        """Credentials found so far."""
        self._talks: dict[str, _Talk] = {}

    @property
    def waiting(self) -> int:
        """Lines held back."""
        return sum(len(_lines_of(thing)) for talk in self._talks.values() for thing in talk.waiting)

    def through(self, batch: Sequence[Any]) -> list[Any]:
        """The lines that may be written now: of each request in order, among them what waited before.

        Never raises: where the search itself fails, every line is written and no text.
        """
        steps = _by_request(batch)
        try:
            return self._through(steps)
        except Exception as error:  # noqa: BLE001 -- the promise is to fail closed and to lose no line, whatever happened
            return self._without_text(steps, error)

    def _through(self, batch: Sequence[Any]) -> list[Any]:
        steps: list[Any] = []
        told: list[tuple[_Talk, _Answer]] = []
        ended: list[_Talk] = []
        for item in batch:
            if type(item) is list:
                self._heard(item, steps, told)
            elif type(item) is Record:
                if (talk := self._talks.get(item.request_id)) is not None:
                    talk.record = item
                    ended.append(talk)
                steps.append(talk or item)
            elif (talk := self._talks.get(_id_of(item))) is not None:
                talk.waiting.append(item)
                steps.append(talk)
            else:
                steps.append(item)
        if len(self._talks) - len(ended) > MOST_ANSWERS:
            lost = list(islice(self._talks.values(), len(self._talks) - MOST_ANSWERS))
            ended += lost
            steps += lost
        return self._written(steps, told, ended)

    def rest(self) -> list[Any]:
        """Everything that still waits: nothing more comes."""
        talks = list(self._talks.values())
        return self._written(talks, [], talks)

    def _without_text(self, batch: Sequence[Any], error: Exception) -> list[Any]:
        """Everything that waited and came, in order and without what was said."""
        waited = [_lines_of(thing) for talk in self._talks.values() for thing in talk.waiting]
        self._talks.clear()
        known = {id(line) for lines in waited for line in lines}
        came = [[line for line in _lines_of(item) if id(line) not in known] for item in batch]
        lines = [line for part in (*waited, *came) for line in part]
        told = {"event": "log.unencodable", "level": "error", "of": "token", "error_type": type(error).__name__}
        bare = [line._replace(text=None, said="") if type(line) is TokenEvent else line for line in lines]
        return [*bare, {"time_ns": time.time_ns(), **told}]

    def _heard(self, events: list[TokenEvent], steps: list[Any], told: list[tuple[_Talk, _Answer]]) -> None:
        """Take in what tokens of one request say; what is to be done in their place: write them, or its lines that are sure."""
        first = events[0]
        talk = self._talks.get(first.request_id)
        mixed = len({event.choice for event in events}) > 1
        parts = [list(part) for _, part in groupby(events, _CHOICE)] if mixed else [events]
        for part in parts:
            said = "".join([event.text or event.said for event in part])
            if not said and (talk is None or not talk.waiting):
                steps.append(part)
                continue
            if talk is None:
                talk = self._talks[first.request_id] = _Talk(first.request_id)
            n_chars = sum([event.chars for event in part if event.text])
            answer = talk.answers.get(part[0].choice)
            if answer is None:
                answer = talk.answers[part[0].choice] = _Answer()
            if said:
                n_new = answer.n_new
                answer.new.append(said)
                answer.n_new = n_new + len(said)
                # Text that is shown is searched at once, all other when there is more of it.
                least = 1 if n_chars else SEARCHED_CHARS
                if n_new < least <= answer.n_new:
                    told.append((talk, answer))
            if n_chars or talk.waiting:
                talk.waiting.append(_Run(part, n_chars))
                steps.append(talk)
            else:
                steps.append(part)

    def _written(self, steps: list[Any], told: list[tuple[_Talk, _Answer]], ended: list[_Talk]) -> list[Any]:
        told += [(talk, answer) for talk in ended for answer in talk.answers.values() if 0 < answer.n_new < SEARCHED_CHARS]
        if told:
            self._search(told)
        for talk in ended:
            for answer in talk.answers.values():
                self._finish(talk, answer)
            self._talks.pop(talk.request_id, None)
        out: list[Any] = []
        for step in steps:
            if type(step) is _Talk:
                step.ready(out)
            else:
                out.append(step)
        return out

    def _search(self, told: list[tuple[_Talk, _Answer]]) -> None:
        """Look at all that came in one pass, and at each answer in which that finds anything by itself."""
        suspicious = suspects(KIND, [answer.scan.window + "".join(answer.new) for _, answer in told])
        for index, (talk, answer) in enumerate(told):
            if index in suspicious or answer.scan.masks:
                self._count(talk, answer.read(talk.lines(answer), last=False))
            else:
                answer.passed(last=False)

    def _finish(self, talk: _Talk, answer: _Answer) -> None:
        """Nothing more comes: what was held back counts as it is."""
        if answer.suspect or answer.scan.masks:
            self._count(talk, answer.read(talk.lines(answer), last=True))
        else:
            answer.passed(last=True)

    def _count(self, talk: _Talk, n_found: int) -> None:
        talk.n_found += n_found
        self.n_found += n_found
