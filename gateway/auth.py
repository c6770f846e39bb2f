"""API keys: made once, stored hashed, revocable at once. A key becomes a Principal; nothing here knows HTTP or policy.

A key is `gw-` + 8 hex characters that name it + `-` + 32 random bytes. Only the SHA-256 is stored: the secret is random,
so a slow hash would protect nothing more.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import secrets
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from gateway.config import Class, Config, Key, Scope
from gateway.errors import ConfigError, Forbidden, Problem, Unauthorized
from gateway.files import write_atomically


class Principal(Struct, frozen=True, kw_only=True):
    """Who asks, and what they may."""

    key_id: str
    label: str
    tenant: str
    scopes: tuple[Scope, ...]
    policy: str = ""
    policies: tuple[str, ...] = ()
    class_floor: Class = "public"

    def require(self, scope: Scope) -> None:
        """Raises Forbidden when the key lacks this scope."""
        if scope not in self.scopes:
            raise Forbidden(f'This key ("{self.label}") lacks the scope "{scope}".', code="insufficient_scope")


class StoredKey(Struct, frozen=True, kw_only=True):
    """One key as it lies in `keys.json`."""

    id: str
    label: str
    sha256: str
    tenant: str = "default"
    scopes: tuple[Scope, ...] = ("chat",)
    policy: str = ""
    policies: tuple[str, ...] = ()
    class_floor: Class = "public"
    created_at: float = 0.0
    """Unix seconds."""
    revoked_at: float | None = None

    def principal(self) -> Principal:
        """What the key stands for."""
        return Principal(
            key_id=self.id,
            label=self.label,
            tenant=self.tenant,
            scopes=self.scopes,
            policy=self.policy,
            policies=self.policies,
            class_floor=self.class_floor,
        )


def digest(key: str) -> str:
    """What is stored of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


class KeyFile:
    """`keys.json` in the state folder, readable by its owner only."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[StoredKey, ...]:
        """Every key, revoked ones too. Raises ConfigError when the file is damaged: no key works then."""
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=tuple[StoredKey, ...])
        except FileNotFoundError:
            return ()
        except (OSError, msgspec.MsgspecError) as error:
            message = f"the key file cannot be read ({type(error).__name__}); restore it, or remove it and make new keys"
            raise ConfigError([Problem(str(self.path), message)]) from None

    def add(self, label: str, **fields: object) -> str:
        """Make a key, store its hash, return it: the only time that it is seen. Raises ConfigError when the label is in use."""
        keys = self.read()
        if any(key.label == label and key.revoked_at is None for key in keys):
            message = f'a key named "{label}" exists; choose another label, or revoke it: gateway keys revoke {label}'
            raise ConfigError([Problem(str(self.path), message)])
        key_id = secrets.token_hex(4)
        key = f"gw-{key_id}-{secrets.token_urlsafe(32)}"
        stored = StoredKey(id=key_id, label=label, sha256=digest(key), created_at=time.time(), **fields)  # type: ignore[arg-type]  # checked by the CLI
        self._write((*keys, stored))
        return key

    def revoke(self, label: str) -> bool:
        """Revoke by label or id; every worker sees it at its next request. False when there is no such live key."""
        keys = self.read()
        hit = [key for key in keys if label in {key.label, key.id} and key.revoked_at is None]
        self._write(tuple(msgspec.structs.replace(key, revoked_at=time.time()) if key in hit else key for key in keys))
        return bool(hit)

    def _write(self, keys: tuple[StoredKey, ...]) -> None:
        write_atomically(self.path, msgspec.json.format(msgspec.json.encode(keys), indent=1) + b"\n", mode=0o600)


class Keys:
    """Every key that is valid now: those of the key file, looked at again whenever it changed, and those of the config."""

    def __init__(self, file: KeyFile, configured: Iterable[StoredKey], *, look_every_s: float = 0.0) -> None:
        """`look_every_s`: how long what was read of the file may be relied on without looking whether it changed."""
        self._look_every_s = look_every_s
        self._looked_at = -math.inf
        self._file = file
        self._path = str(file.path)
        self._configured = tuple(configured)
        self._stamp: tuple[int, int, int] | None = None
        self._by_digest: dict[str, tuple[str, Principal]] = {}

    def principal(self, key: str) -> Principal:
        """Who this key belongs to. Raises Unauthorized. Costs a stat call now and then, so that a revoked key ends at once."""
        if (now := time.monotonic()) - self._looked_at >= self._look_every_s:
            self._looked_at = now
            self._refresh()
        wanted = digest(key)
        # A dict finds the digest of a secret with 256 random bits: timing tells nothing that helps to guess it.
        found = self._by_digest.get(wanted)
        if found is None or not hmac.compare_digest(found[0], wanted):
            hint = key[:11] + "..." if key.startswith("gw-") else "a key that is not ours (gw-...)."
            raise Unauthorized(f"Incorrect API key provided: {ascii(hint)[1:-1]} Make one with: gateway keys new")
        return found[1]

    def labelled(self, label: str) -> Principal | None:
        """Who the valid key of this label belongs to."""
        self._refresh()
        return next((principal for _, principal in self._by_digest.values() if principal.label == label), None)

    def _refresh(self) -> None:
        try:
            found = os.stat(self._path)  # noqa: PTH116 - on every request; Path.stat costs a third more
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
        except OSError:
            stamp = (0, 0, 0)
        if stamp == self._stamp:
            return
        try:
            stored = self._file.read()
        except ConfigError:
            stored = ()
        live = [key for key in (*self._configured, *stored) if key.revoked_at is None]
        self._by_digest = {key.sha256: (key.sha256, key.principal()) for key in live}
        self._stamp = stamp


def configured_keys(config: Config) -> list[StoredKey]:
    """The keys that `[[keys]]` takes from the environment. Raises ConfigError for a variable that is missing or too weak."""
    problems: list[Problem] = []
    found: list[StoredKey] = []
    for index, key in enumerate(config.keys):
        value = os.environ.get(key.key_env, "")
        if len(value) < 16:
            state = "is not set" if not value else "is shorter than 16 characters"
            problems.append(Problem(f"{config.path}: keys[{index}]", f"{key.key_env} {state}; export it, or remove the entry"))
        found.append(_stored(key, value))
    if problems:
        raise ConfigError(problems)
    return found


def labelled(config: Config, file: KeyFile, label: str) -> Principal | None:
    """As `Keys.labelled`, without the secrets of the environment. Raises ConfigError when the key file is damaged."""
    stored = [*(_stored(key, "") for key in config.keys), *file.read()]
    return next((key.principal() for key in stored if key.label == label and key.revoked_at is None), None)


def _stored(key: Key, value: str) -> StoredKey:
    return StoredKey(
        id=f"config:{key.label}",
        label=key.label,
        sha256=digest(value),
        tenant=key.tenant,
        scopes=key.scopes,
        policy=key.policy,
        policies=key.policies,
        class_floor=key.class_floor,
    )


def as_if(found: Principal | None, base: Principal, *, label: str, tenant: str, policy: str) -> Principal:
    """Whom a dry run decides for: the key `found` by a label, else `base` under that label; what is given replaces its own.

    Empty: not given. `found` brings its tenant, policies and class floor.
    """
    principal = found or msgspec.structs.replace(base, label=label or base.label)
    if tenant:
        principal = msgspec.structs.replace(principal, tenant=tenant)
    return msgspec.structs.replace(principal, policy=policy, policies=()) if policy else principal


def bearer(headers: dict[str, str]) -> str:
    """The client's key from `authorization: Bearer`, `api-key` or `x-api-key`. Raises Unauthorized when there is none."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    for name in ("api-key", "x-api-key"):
        if headers.get(name):
            return headers[name]
    raise Unauthorized(
        "You didn't provide an API key. Send it as `Authorization: Bearer gw-...`; make one with: gateway keys new",
        code="missing_api_key",
    )
