"""Which generation is in force, over restarts: an archive by hash, and the rule that a change that loses something waits.

Works on files only and starts nothing: the supervisor calls `propose` at its start and `Watcher.poll` now and then.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from gateway.config import Config
from gateway.errors import ConfigError, Problem
from gateway.files import write_atomically
from gateway.policy.generation import HASH_DIGITS, Catalogue, Generation, Source, lost, policy_files, read_folder

_HISTORY = "history.jsonl"
_HASH = re.compile(rf"[0-9a-f]{{{HASH_DIGITS}}}")


class Activated(Struct, frozen=True):
    """The generation is in force from now on."""

    generation: Generation


class Waiting(Struct, frozen=True):
    """The folder's policies would lose something, so others stay in force until `gateway policy apply`."""

    generation: Generation
    """The one in force: the policies of before over the config of now."""
    lost: tuple[str, ...]
    """What the change would lose, in words."""
    hash: str
    """Of the generation that waits."""


class Broken(Struct, frozen=True):
    """The folder cannot be used; what was in force stays."""

    problems: tuple[Problem, ...]


Change = Activated | Waiting | Broken


class InForce(Struct, frozen=True):
    """One line of `history.jsonl`: from then on this generation was in force."""

    hash: str
    since: float
    """Unix seconds."""


class Store:
    """`HASH.json` for every generation that was ever in force, `active`, `approved` and `history.jsonl` in one folder."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives Unix seconds."""
        self._folder = folder
        self._clock = clock

    @property
    def approval(self) -> Path:
        """The file that `approve` writes."""
        return self._folder / "approved"

    def approve(self, generation: Generation) -> None:
        """Say that this generation may come into force whatever it loses: `gateway policy apply`. Used up by the next change."""
        write_atomically(self.approval, generation.hash.encode())

    def open(self, hash_: str) -> Generation:
        """An archived generation, as an old log line names it. Raises ConfigError when it is missing or damaged."""
        path = self._folder / f"{hash_}.json"
        try:
            if not _HASH.fullmatch(hash_):
                raise ConfigError([Problem(str(self._folder), f"a hash is {HASH_DIGITS} digits of 0-9 and a-f")])
            generation = Generation.from_source(path.read_bytes())
            if generation.hash != hash_:
                raise ConfigError([Problem(str(path), f"holds the generation {generation.hash}")])
        except OSError as error:
            raise ConfigError([Problem(str(path), f"cannot be read: {error.strerror}")]) from None
        return generation

    def history(self) -> list[InForce]:
        """What was in force since when, oldest first. What was archived before it was noted comes first."""
        try:
            lines = (self._folder / _HISTORY).read_bytes().splitlines()
        except FileNotFoundError:
            lines = []
        noted = []
        for line in lines:
            with suppress(msgspec.MsgspecError):  # the last line, cut by a crash
                noted.append(msgspec.json.decode(line, type=InForce))
        known = {one.hash for one in noted}
        archived = [path for path in self._folder.glob("*.json") if path.stem not in known]
        older = [InForce(path.stem, path.stat().st_mtime) for path in archived]
        return sorted(older, key=lambda one: one.since) + noted

    def texts(self) -> set[bytes]:
        """Every policy file that was ever in force, as it was. What is damaged is left out."""
        found: set[bytes] = set()
        for path in self._folder.glob("*.json"):
            with suppress(msgspec.MsgspecError, OSError):
                source = msgspec.json.decode(path.read_bytes(), type=Source)
                found.update(text.encode() for text in source.files.values())
        return found

    def active_hash(self) -> str | None:
        """The hash in force, or None when nothing ever was. Raises ConfigError when that cannot be known."""
        path = self._folder / "active"
        try:
            text = path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            if any(self._folder.glob("*.json")):
                raise ConfigError([_unknown_past(path, "is missing")]) from None
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError([_unknown_past(path, f"cannot be read ({type(error).__name__})")]) from None
        if not _HASH.fullmatch(text):
            raise ConfigError([_unknown_past(path, "holds no hash")])
        return text

    def active(self) -> Generation | None:
        """The generation in force, or None when nothing ever was. Raises ConfigError when it is damaged."""
        hash_ = self.active_hash()
        if hash_ is None:
            return None
        try:
            return self.open(hash_)
        except ConfigError as error:
            cause = "; ".join(problem.message for problem in error.problems)
            raise ConfigError([_unknown_past(self._folder / f"{hash_}.json", f"cannot be used ({cause})")]) from None

    def propose(self, generation: Generation) -> Activated | Waiting:
        """Put a generation into force, unless it loses something and is not approved.

        Raises ConfigError when what was in force is damaged, so that a loss could not be seen, or no longer fits the config.
        """
        if self._approved() == generation.hash:
            return self._activate(generation)
        active = self.active()
        losses = lost(active, generation) if active else []
        if active is None or not losses:
            return self._activate(generation)
        kept = _over_new_config(active, generation.catalogue, losses)
        self._activate(kept)
        return Waiting(kept, tuple(losses), generation.hash)

    def _activate(self, generation: Generation) -> Activated:
        archive = self._folder / f"{generation.hash}.json"
        source = generation.source()
        if not archive.exists() or archive.read_bytes() != source:
            write_atomically(archive, source)
        active = self._folder / "active"
        if not active.exists() or active.read_bytes() != generation.hash.encode():
            write_atomically(active, generation.hash.encode())
            self._note(generation.hash)
            self.approval.unlink(missing_ok=True)
        return Activated(generation)

    def _note(self, hash_: str) -> None:
        path = self._folder / _HISTORY
        line = msgspec.json.encode(InForce(hash_, self._clock())) + b"\n"
        with path.open("ab") as file:
            file.write(line)

    def _approved(self) -> str | None:
        try:
            return self.approval.read_text(encoding="ascii").strip()
        except (FileNotFoundError, UnicodeDecodeError):
            return None


def _over_new_config(active: Generation, catalogue: Catalogue, losses: list[str]) -> Generation:
    try:
        return active.with_catalogue(catalogue)
    except ConfigError as error:
        message = (
            f"the change loses {'; '.join(losses)}, so the policies of before stay in force, but they do not fit this config: "
            "undo the change, or accept it with `gateway policy apply`"
        )
        raise ConfigError([Problem(active.folder, message), *error.problems]) from None


def _unknown_past(path: Path, what: str) -> Problem:
    message = (
        f"{what}, so it cannot be seen whether the policies lost a limit since. "
        "Restore it from a backup, or accept the policy folder as it is with `gateway policy apply`"
    )
    return Problem(str(path), message)


class Watcher:
    """Notices changes of the policy folder. Reads it as one whole, and only after two polls in which nothing moved."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        store: Store,
        *,
        read: Callable[[Path], Mapping[str, str]] = read_folder,
    ) -> None:
        """To be made after the first `store.propose`; `read` gives file name → text and raises ConfigError."""
        self._catalogue = Catalogue.of(config)
        self._folder = folder
        self._store = store
        self._read = read
        self._seen: object = None
        self._done: object = None
        self._told: object = ("active", store.active_hash())

    def poll(self) -> Change | None:
        """What changed since the last poll, told once for every content; None while nothing did or the folder still moves."""
        stamp = self._stamp()
        if stamp != self._seen:
            self._seen = stamp
            return None
        if stamp == self._done:
            return None
        try:
            texts: Mapping[str, str] | ConfigError = self._read(self._folder)
        except ConfigError as error:
            texts = error
        if self._stamp() != stamp:
            return None
        self._done = stamp
        change, told = self._propose(texts)
        if told == self._told:
            return None
        self._told = told
        return change

    def _propose(self, texts: Mapping[str, str] | ConfigError) -> tuple[Change, object]:
        """The change, and what makes it different from the one told before."""
        try:
            if isinstance(texts, ConfigError):
                raise texts
            change = self._store.propose(Generation(texts, self._catalogue, folder=self._folder.name))
        except ConfigError as error:
            return Broken(error.problems), ("broken", error.problems)
        if isinstance(change, Waiting):
            return change, ("waiting", change.hash)
        return change, ("active", change.generation.hash)

    def _stamp(self) -> object:
        paths = [*policy_files(self._folder), self._store.approval]
        return [(path.name, *_stat(path)) for path in paths]


def _stat(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_mtime_ns, found.st_size, found.st_ino)
