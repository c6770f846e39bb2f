"""Text that a client carries for us and can neither read nor change. Knows keys and bytes; nothing of requests.

AES-256 in Galois/Counter Mode (NIST SP 800-38D) with a random nonce; the tenant is authenticated with the text, so what was
sealed for one opens for no other.
"""

from __future__ import annotations

import base64
import json
import secrets
from pathlib import Path
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gateway.errors import Unavailable
from gateway.files import own_key

PREFIX = "gwc1."
"""What every sealed text of ours begins with."""

_NONCE_BYTES = 12


class Opened(NamedTuple):
    """A text as it was sealed."""

    text: str
    class_: str
    """Of the request that it was made from."""


class Seal:
    """One key, in a file that its owner alone can read; made when it is first needed. Several processes may share the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cipher: AESGCM | None = None

    def close(self, text: str, *, tenant: str, class_: str) -> str:
        """The sealed text, ASCII. Raises Unavailable when the key cannot be had."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = self._key().encrypt(nonce, json.dumps([text, class_]).encode(), _bound_to(tenant))
        return PREFIX + base64.urlsafe_b64encode(nonce + sealed).decode()

    def open(self, sealed: str, *, tenant: str) -> Opened | None:
        """What was sealed; None when it was sealed for another tenant or under another key, or was changed."""
        try:
            raw = base64.urlsafe_b64decode(sealed.removeprefix(PREFIX))
            plain = self._key().decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], _bound_to(tenant))
        except (ValueError, InvalidTag):
            return None
        return Opened(*json.loads(plain))

    def _key(self) -> AESGCM:
        if self._cipher is None:
            try:
                self._cipher = AESGCM(own_key(self._path))
            except (OSError, ValueError) as error:
                said = f"The key for compactions ({self._path.name}) cannot be used ({type(error).__name__}); tell the operator."
                raise Unavailable(said, code="state_unavailable", should_retry=False) from None
        return self._cipher


def _bound_to(tenant: str) -> bytes:
    return b"compaction\0" + tenant.encode("utf-8", "surrogatepass")
