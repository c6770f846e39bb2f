"""Answers to requests seen before, in this process: a least-recently-used map bounded in bytes. No I/O, no clock of its own.

Knows nothing of meaning: a request with one other byte is another request.
"""

from __future__ import annotations

from collections import OrderedDict

from msgspec import Struct

from gateway.cache import Entry, Hit, Miss, Scope


class _Kept(Struct, frozen=True):
    tenant: str
    model: str
    entry: Entry
    stored_at: float
    expires_at: float
    size_bytes: int


class Exact:
    """The first tier. A look-up costs about a microsecond and touches nothing but a dict. `max_bytes` 0 keeps nothing."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held_bytes = 0
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()

    @property
    def held_bytes(self) -> int:
        """What the entries weigh by `Entry.size_bytes`; never above `max_bytes`."""
        return self._held_bytes

    def __len__(self) -> int:
        return len(self._kept)

    def lookup(self, scope: Scope, *, class_: str, now: float) -> Hit | Miss:
        """The answer to exactly this request, if it was given to the same class and has not expired at `now` (Unix seconds)."""
        kept = self._kept.get(scope.key)
        if kept is None:
            return Miss("unseen")
        if kept.expires_at <= now:
            self._drop(scope.key)
            return Miss("expired")
        if kept.entry.class_ != class_:
            return Miss("class")
        self._kept.move_to_end(scope.key)
        return Hit(kept.entry, "exact", 1.0, max(0.0, now - kept.stored_at))

    def store(self, scope: Scope, entry: Entry, *, now: float, expires_at: float) -> bool:
        """Keep the entry; what was used least recently makes room. False for one above an eighth of the whole."""
        size = entry.size_bytes()
        if size * 8 > self._max_bytes:
            return False
        self._drop(scope.key)
        self._kept[scope.key] = _Kept(scope.tenant, scope.model, entry, now, expires_at, size)
        self._held_bytes += size
        while self._held_bytes > self._max_bytes:
            self._held_bytes -= self._kept.popitem(last=False)[1].size_bytes
        return True

    def purge(self, *, tenant: str | None, model: str | None, class_: str | None, dry_run: bool) -> int:
        """Forget what matches all that is given, and count it."""
        keys = [
            key
            for key, kept in self._kept.items()
            if tenant in {None, kept.tenant} and model in {None, kept.model} and class_ in {None, kept.entry.class_}
        ]
        if not dry_run:
            for key in keys:
                self._drop(key)
        return len(keys)

    def _drop(self, key: bytes) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._held_bytes -= kept.size_bytes
