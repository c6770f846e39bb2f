"""The tier that keeps nothing: what stands where a tier is not configured."""

from __future__ import annotations

import asyncio

from gateway.cache import Entry, Miss, Scope


class Off:
    """Always a miss."""

    async def lookup(self, scope: Scope, *, class_: str) -> Miss:  # noqa: ARG002 - the protocol's words
        """Miss("off")."""
        return Miss("off")

    async def store(self, scope: Scope, entry: Entry, *, expires_at: float) -> bool:  # noqa: ARG002 - the protocol's words
        """Keep nothing."""
        return False

    async def purge(self, *, tenant: str | None, model: str | None, class_: str | None, dry_run: bool) -> int:  # noqa: ARG002
        """Nothing to forget."""
        return 0

    def problem(self) -> None:
        """Being off is not a problem."""
        return

    async def run(self) -> None:
        """Wait to be cancelled, as every tier does."""
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        """Nothing to close."""
