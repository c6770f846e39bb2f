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
from itertools import islice, pairwise, repeat
from typing import Any, NamedTuple

from msgspec.structs import replace

from gateway.ledger import Record, Tokens, request_of
from gateway.output_scan import MASK, OutputScan
from gateway.privacy import suspects

KIND = "secret"
MOST_ANSWERS = 20_000
"""Answers that are read at once; beyond, the oldest is taken for ended. Its record was lost with a full queue."""


SEARCHED_CHARS = 256
"""So much of an answer comes together before it is searched, where no line waits for that."""


class _Run(NamedTuple):
    """Lines of one answer that wait together."""

    tokens: Tokens
    n_chars: int
    """Of the texts that are to be shown."""


Line = tuple[int, str]
"""Index and text of a line that waits."""


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

    def read(self, lines: Sequence[Line], *, last: bool) -> int:
        """Read what came word by word; how many credentials begin in it. `lines`: those of this answer that wait."""
        parts = [self.scan.feed(self._taken()), *([self.scan.finish()] if last else [])]
        self.suspect = True
        for length, shown in (piece for part in parts for piece in part.pieces):
            # What is shown as it came has its length; a mask, whatever its length, stands where its credential begins.
            mask = shown if shown == MASK or len(shown) != length else None
            for index, text, begin, end in _cut(lines, self.sure, length):
                if mask is not None:
                    self.shown.setdefault(index, text[:begin])
                if index in self.shown:
                    self.shown[index] += text[begin:end] if mask is None else mask
                mask = mask and ""
            self.sure += length
        return sum(part.n_found for part in parts)

    def _taken(self) -> str:
        text = "".join(self.new)
        self.new.clear()
        self.n_new = 0
        return text

    def masked(self, tokens: Tokens) -> Tokens:
        """The lines with their masks, if they have any."""
        if not self.shown:
            return tokens
        return tokens._replace(text=[self.shown.pop(*line) for line in zip(tokens.index, tokens.text, strict=True)])


def _cut(lines: Sequence[Line], start: int, length: int) -> Iterator[tuple[int, str, int, int]]:
    """The lines over which a stretch of their joined text reaches, each with where the stretch begins and ends in it."""
    for index, text in lines:
        size = len(text)
        if start < size and length > 0:
            end = min(size, start + length)
            yield index, text, max(0, start), end
            length -= end - max(0, start)
            start = 0
        else:
            start -= size
        if length <= 0:
            return


def _split(run: _Run, n_sure: int) -> tuple[Tokens | None, _Run | None]:
    """The lines of a run whose texts end within so many characters, and the others."""
    tokens, left = run
    if left <= n_sure:
        return tokens, None
    place = len(tokens.chars)
    while left > n_sure:  # nearly all of it is sure
        place -= 1
        left -= tokens.chars[place]
    late = _Run(tokens.between(place, len(tokens.chars)), run.n_chars - left)
    return tokens.between(0, place) if place else None, late


class _Talk:
    """One request: its answers, and its lines that wait in their order."""

    __slots__ = ("answers", "n_found", "record", "request_id", "waiting")

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.answers: dict[int, _Answer] = {}
        self.waiting: deque[Any] = deque()
        self.n_found = 0
        self.record: Record | None = None

    def lines(self, answer: _Answer) -> list[Line]:
        """The lines of an answer that wait, with the texts that are to be shown."""
        runs = [run.tokens for run in self.waiting if type(run) is _Run and self.answers[run.tokens.choice[0]] is answer]
        return [line for tokens in runs for line in zip(tokens.index, tokens.text if tokens.shown else repeat(""), strict=False)]

    def ready(self, out: list[Any]) -> None:
        """Let go what is sure and what stood behind it."""
        waiting = self.waiting
        while waiting:
            first = waiting[0]
            if type(first) is _Run:
                answer = self.answers[first.tokens.choice[0]]
                sure, late = _split(first, answer.sure)
                answer.sure -= first.n_chars - (late.n_chars if late else 0)
                if sure:
                    out.append(answer.masked(sure))
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


def _by_choice(tokens: Tokens) -> list[Tokens]:
    """Those of each choice that follow each other together."""
    choices = tokens.choice
    if choices.count(choices[0]) == len(choices):
        return [tokens]
    edges = [0, *(place for place, (one, next_) in enumerate(pairwise(choices), 1) if one != next_), len(choices)]
    return [tokens.between(begin, end) for begin, end in pairwise(edges)]


def _one_by_one(thing: Any) -> Sequence[Any]:
    """What waits or came, each line of tokens by itself."""
    tokens = thing.tokens if type(thing) is _Run else thing
    return [tokens.between(place, place + 1) for place in range(len(tokens.text))] if type(tokens) is Tokens else [tokens]


def _key(line: Any) -> object:
    """What tells a line from all others."""
    return (line.request_id, line.index[0]) if type(line) is Tokens else id(line)


class Spoken:
    """Between the log's queue and its encoder: `through` for every batch, `rest` at the end."""

    def __init__(self) -> None:
        self.n_found = 0
        """Credentials found so far."""
        self._talks: dict[str, _Talk] = {}

    @property
    def waiting(self) -> int:
        """Lines held back."""
        waiting = (thing for talk in self._talks.values() for thing in talk.waiting)
        return sum(len(thing.tokens.text) if type(thing) is _Run else 1 for thing in waiting)

    def through(self, batch: Sequence[Any]) -> list[Any]:
        """The lines that may be written now: of each request in order, among them what waited before.

        Never raises: where the search itself fails, every line is written and no text.
        """
        try:
            return self._through(batch)
        except Exception as error:  # noqa: BLE001 -- the promise is to fail closed and to lose no line, whatever happened
            return self._without_text(batch, error)

    def _through(self, batch: Sequence[Any]) -> list[Any]:
        steps: list[Any] = []
        told: list[tuple[_Talk, _Answer]] = []
        ended: list[_Talk] = []
        for item in batch:
            if type(item) is Tokens:
                self._heard(item, steps, told)
            elif type(item) is Record:
                if (talk := self._talks.get(item.request_id)) is not None:
                    talk.record = item
                    ended.append(talk)
                steps.append(talk or item)
            elif (talk := self._talks.get(request_of(item))) is not None:
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
        waited = [line for talk in self._talks.values() for thing in talk.waiting for line in _one_by_one(thing)]
        self._talks.clear()
        known = set(map(_key, waited))
        came = [line for item in batch for line in _one_by_one(item) if _key(line) not in known]
        told = {"event": "log.unencodable", "level": "error", "of": "token", "error_type": type(error).__name__}
        bare = [line._replace(shown=False) if type(line) is Tokens else line for line in (*waited, *came)]
        return [*bare, {"time_ns": time.time_ns(), **told}]

    def _heard(self, tokens: Tokens, steps: list[Any], told: list[tuple[_Talk, _Answer]]) -> None:
        """Take in what tokens of one request say; what is to be done in their place: write them, or its lines that are sure."""
        talk = self._talks.get(tokens.request_id)
        for part in _by_choice(tokens):
            said = "".join(part.text)
            if not said and (talk is None or not talk.waiting):
                steps.append(part)
                continue
            if talk is None:
                talk = self._talks[tokens.request_id] = _Talk(tokens.request_id)
            n_chars = len(said) if part.shown else 0
            answer = talk.answers.get(part.choice[0])
            if answer is None:
                answer = talk.answers[part.choice[0]] = _Answer()
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
