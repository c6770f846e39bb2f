"""What is to be erased, and the part of it that stands in log files. Knows the line format; starts and stops nothing.

A line keeps what an audit needs and loses what may be about a person: the text of tokens, and the client's own request id.
Files are rewritten beside themselves and put in place by one rename, so that a purge that is killed has done a part or
nothing, and can be run again. A gateway that runs goes on writing: the file that it has open is taken from it under the lock
that it holds while it writes, and it begins another.
"""

from __future__ import annotations

import errno
import fcntl
import gzip
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import IO, Any

import msgspec
from msgspec import Struct, field

from gateway.errors import Problem
from gateway.facts import WITHHELD
from gateway.privacy import normalise

_LOG_FILE = re.compile(r"(?P<segment>.+)-(?P<stamp>\d{8}T\d{6})-(?P<number>\d+)\.jsonl(?:\.gz)?")
_UNFINISHED = ".purging"
_BLOCK_BYTES = 1 << 20
_TOKEN = b'"event":"token"'
_HEAD_BYTES = 96


class Selector(Struct, frozen=True, kw_only=True):
    """What is meant: all that matches everything that is given. With nothing given: everything."""

    tenant: str | None = None
    class_: str | None = field(name="class", default=None)
    model: str | None = None
    """As clients name it. Of cached answers only: nothing else is kept by model."""
    subject: str | None = None
    """Words that stand for a person: a name, an address, the `user` of requests. Found as they are, in any case."""

    def told(self) -> dict[str, Any]:
        """The selector as the log may hold it: that there was a subject, never which."""
        return {"tenant": self.tenant, "class": self.class_, "model": self.model, "subject": self.subject is not None}


class Subject:
    """Words that are looked for in what is kept, after the folding that the detector reads text with."""

    def __init__(self, words: str) -> None:
        self._words = _folded(words)
        self.reach = len(self._words) - 1
        """Characters that may stand before a cut in the middle of the words."""

    def stands_in(self, text: str) -> bool:
        """Whether the words stand in this text."""
        return self._words in _folded(text)

    def stands_in_json(self, document: bytes) -> bool:
        """Whether they stand in a string of this JSON; also when it is none."""
        try:
            text = json.dumps(json.loads(document), ensure_ascii=False)
        except ValueError:
            text = document.decode("utf-8", "replace")
        return self.stands_in(text)


def _folded(text: str) -> str:
    return " ".join(normalise(text).casefold().split())


class Erased(Struct, frozen=True):
    """What was done, or would be, in log files."""

    requests: int = 0
    """That match."""
    lines: int = 0
    """That lost something."""
    files: int = 0
    """That were written anew."""
    unread: int = 0
    """Damaged lines that may have held text of these requests; they are gone."""
    problems: tuple[Problem, ...] = ()
    """Files that are as they were because they could not be written anew, as on a full disk."""


class _Facts(Struct):
    tenant: str = ""
    class_: str = field(name="class", default="")


class _Line(Struct):
    """What is read of every line."""

    request_id: str = ""
    event: str = ""
    tenant: str = ""
    class_: str = field(name="class", default="")
    facts: _Facts = field(default_factory=_Facts)
    choice: int = 0
    text: str | None = None
    client_request_id: str = ""


_decoder = msgspec.json.Decoder(_Line)


def purge_logs(folder: Path, wanted: Selector, *, dry_run: bool) -> Erased:
    """Take the text of all requests that are meant out of the log files of a folder, packed ones (`.jsonl.gz`) too.

    A request whose lines do not say whose it is is meant by every tenant, and one whose class is not told by every class:
    its first lines are gone, or it is not decided yet. What a request that is under way logs later stays. A file that cannot be
    written anew keeps the others from nothing, and a second call does it. Raises OSError for one that cannot be read.
    """
    if not folder.is_dir() or wanted.model is not None:
        return Erased()
    for rest in folder.glob(f".*{_UNFINISHED}"):
        rest.unlink(missing_ok=True)
    meant = _Meant(wanted)
    for path in log_files(folder):
        with suppress(FileNotFoundError), _reader(path) as lines:
            for raw in lines:
                meant.read(raw)
    requests = meant.close()
    n_lines = n_files = n_unread = 0
    problems: list[Problem] = []
    for path in log_files(folder):
        try:
            changed, unread = _rewrite(path, meant, dry_run=dry_run)
        except FileNotFoundError:
            continue
        except OSError as error:
            problems.append(Problem(str(path), _mend(error)))
            continue
        n_lines += changed
        n_unread += unread
        n_files += changed + unread > 0
    return Erased(requests, n_lines, n_files, n_unread, tuple(problems))


def _mend(error: OSError) -> str:
    full = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    what = "free as much room on its disk as it is long" if full else "see to it that files can be written in its folder"
    return f"nothing was erased here, as it could not be written anew ({error.strerror}); {what}, and purge again"


def log_files(folder: Path) -> list[Path]:
    """All log files, packed ones too, oldest first."""
    found = [(match, path) for path in folder.iterdir() if (match := _LOG_FILE.fullmatch(path.name))]
    return [path for _, path in sorted(found, key=lambda one: (one[0]["stamp"], int(one[0]["number"]), one[1].name))]


class _Meant:
    """Which requests are meant. Fed with all lines of the log, then asked line by line what is left of each."""

    def __init__(self, wanted: Selector) -> None:
        self._tenant, self._class = wanted.tenant, wanted.class_
        self._subject = Subject(wanted.subject) if wanted.subject is not None else None
        self._tenants: dict[str, str] = {}
        self._classes: dict[str, str] = {}
        self._named: set[str] = set()
        self._ends: dict[tuple[str, int], str] = {}
        self._ids: set[str] = set()
        self._known: set[str] = set()

    def read(self, raw: bytes) -> None:
        """One line of the log, in its order."""
        try:
            line = _decoder.decode(raw)
        except msgspec.MsgspecError:
            return
        id_ = line.request_id
        if not id_:
            return
        self._known.add(id_)
        if line.event != "token":
            self._note(line, id_)
        if self._subject is None or id_ in self._named:
            return
        if line.event != "token":
            if self._subject.stands_in_json(raw):
                self._named.add(id_)
            if line.event == "request.closed":
                self._ends = {place: end for place, end in self._ends.items() if place[0] != id_} if self._ends else {}
        elif line.text:
            text = self._ends.get((id_, line.choice), "") + line.text
            if self._subject.stands_in(text):
                self._named.add(id_)
            # Folding may shorten a text, so more is kept than the words are long.
            self._ends[id_, line.choice] = text[-4 * self._subject.reach - 64 :]

    def _note(self, line: _Line, id_: str) -> None:
        if tenant := line.tenant or line.facts.tenant:
            self._tenants[id_] = tenant
        if class_ := line.class_ or line.facts.class_:
            self._classes[id_] = class_

    def close(self) -> int:
        """All lines were read; how many requests are meant."""
        for id_ in self._known:
            tenant, class_ = self._tenants.get(id_), self._classes.get(id_)
            fits = (self._tenant is None or tenant in {None, self._tenant}) and (
                self._class is None or class_ in {None, self._class}
            )
            if fits and (self._subject is None or id_ in self._named):
                self._ids.add(id_)
        return len(self._ids)

    def left_of(self, raw: bytes) -> bytes | None:
        """The line as it may stay; None: it cannot be read and may hold text of a request that is meant."""
        is_token = raw.find(_TOKEN, 0, _HEAD_BYTES) > 0
        if self._subject is None and not (b'"text":' in raw if is_token else b'"client_request_id":"' in raw):
            return raw
        try:
            line = _decoder.decode(raw)
        except msgspec.MsgspecError:
            if b'"text":' not in raw:
                return raw
            told = re.search(rb'"request_id":"([^"\\]*)"', raw)
            id_ = told[1].decode("utf-8", "replace") if told else ""
            return raw if id_ in self._known and id_ not in self._ids else None
        if line.request_id not in self._ids:
            return raw
        plain: dict[str, Any] = json.loads(raw)
        bare = _without(plain, self._subject)
        if line.event == "token":
            bare.pop("text", None)
        elif bare.get("client_request_id"):
            bare["client_request_id"] = ""
        return raw if bare == plain else msgspec.json.encode(bare) + b"\n"


def _without(value: Any, subject: Subject | None) -> Any:
    """The value with WITHHELD in the place of every string that the subject stands in."""
    if isinstance(value, dict):
        return {name: _without(one, subject) for name, one in value.items()}
    if isinstance(value, list):
        return [_without(one, subject) for one in value]
    return WITHHELD if isinstance(value, str) and subject is not None and subject.stands_in(value) else value


def _rewrite(path: Path, meant: _Meant, *, dry_run: bool) -> tuple[int, int]:
    """Write a file anew where anything in it is meant; how many lines changed, and how many unreadable ones were left out."""
    with _reader(path) as lines:
        if all(meant.left_of(raw) == raw for raw in lines):
            return 0, 0
    if dry_run:
        with _reader(path) as lines:
            return _changes(lines, meant, None)
    aside = path.with_name(f".{path.name}{_UNFINISHED}")
    with path.open("rb") as held:
        try:
            done = _copy(path, held, aside, meant)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
    return done


def _copy(path: Path, held: IO[bytes], aside: Path, meant: _Meant) -> tuple[int, int]:
    """Write what may stay beside the file, then take its place. The lock is held for what came in meanwhile alone."""
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as file:
        if path.suffix == ".gz":
            with gzip.GzipFile(fileobj=held) as old, gzip.GzipFile(fileobj=file, mode="wb", filename="") as new:
                changed, unread = _changes(old, meant, new)
        else:
            changed, unread = _changes(_whole_lines(held, os.fstat(held.fileno()).st_size), meant, file)
        fcntl.flock(held, fcntl.LOCK_EX)
        try:
            if path.suffix != ".gz":
                more = _changes(held, meant, file)
                changed, unread = changed + more[0], unread + more[1]
            file.flush()
            os.fsync(file.fileno())
            # Rotation may have removed the file meanwhile: then it stays removed.
            if os.fstat(held.fileno()).st_nlink and path.stat().st_ino == os.fstat(held.fileno()).st_ino:
                aside.replace(path)
            else:
                aside.unlink()
        finally:
            fcntl.flock(held, fcntl.LOCK_UN)
    return changed, unread


def _whole_lines(file: IO[bytes], end: int) -> Iterator[bytes]:
    """The lines that are complete and begin before this place; the file stays at the first one that is not."""
    while (begin := file.tell()) < end:
        raw = file.readline()
        if not raw.endswith(b"\n"):
            file.seek(begin)
            return
        yield raw


def _changes(lines: Any, meant: _Meant, file: Any) -> tuple[int, int]:
    changed = unread = 0
    for raw in lines:
        left = meant.left_of(raw)
        changed += left is not None and left != raw
        unread += left is None
        if left is not None and file is not None:
            file.write(left)
    return changed, unread


@contextmanager
def _reader(path: Path) -> Iterator[Iterator[bytes]]:
    """The lines that a file has now, unpacked; a half one comes last."""
    with path.open("rb", buffering=_BLOCK_BYTES) as file:
        if path.suffix == ".gz":
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield iter(unpacked)
        else:
            yield chain(_whole_lines(file, os.fstat(file.fileno()).st_size), _rest(file))


def _rest(file: IO[bytes]) -> Iterator[bytes]:
    """What stands behind the last whole line."""
    if raw := file.read(_BLOCK_BYTES):
        yield raw
