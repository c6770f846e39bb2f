"""Keys and values of many rows at different positions, as a cache that Hugging Face modules accept.

Knows slots, positions and tensors; not which request sits in a slot. Rows live in slots 0..n-1 without gaps, so that
any run of neighbouring slots is a view and a step over them copies nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

_GRAIN = 256
"""Lengths grow in steps of this many positions, at least doubling, so that growth costs a constant per token."""


class _Layer(CacheLayerMixin):  # type: ignore[misc]  # transformers is untyped here, so its classes are Any
    """One layer's tensors, shape [slots, heads, positions, size of a head]."""

    def __init__(self, cache: RaggedCache) -> None:
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Take heads, sizes, dtype and device from the first states that arrive.

        Zeros, because a masked position still takes part in the sums and a stray NaN there would spread.
        """
        room = (self._cache.rows, self._cache.length)
        self.keys = key_states.new_zeros((room[0], key_states.shape[1], room[1], key_states.shape[3]))
        self.values = value_states.new_zeros((room[0], value_states.shape[1], room[1], value_states.shape[3]))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new states at the positions of the window and return every state up to the window's end."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        window = self._cache.window
        self.keys[window.slots, :, window.positions] = key_states.transpose(1, 2)
        self.values[window.slots, :, window.positions] = value_states.transpose(1, 2)
        rows = slice(window.first, window.first + window.count)
        return self.keys[rows, :, : window.end], self.values[rows, :, : window.end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002 - the base class' signature
        """Asked by modules that build their own mask; ours is always given, so only its width is told."""
        return self._cache.window.end, 0

    def get_seq_length(self) -> int:
        """Rows differ; a module that asks for one number gets the end of the window."""
        return self._cache.window.end

    def get_max_length(self) -> int:
        """No fixed length."""
        return -1

    def resize(self, rows: int, length: int) -> None:
        """Move what is stored into tensors of another size."""
        if self.is_initialized:
            self.keys, self.values = (_resized(old, rows, length) for old in (self.keys, self.values))

    def wipe(self, slot: int) -> None:
        """Zero one slot."""
        if self.is_initialized:
            self.keys[slot].zero_()
            self.values[slot].zero_()

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one slot into another."""
        if self.is_initialized:
            self.keys[target, :, :length] = self.keys[source, :, :length]
            self.values[target, :, :length] = self.values[source, :, :length]


class _Window:
    """Which slots and positions the running forward pass writes, and how far it reads."""

    def __init__(self, first: int, starts: torch.Tensor, width: int, end: int) -> None:
        self.first = first
        self.count = len(starts)
        self.end = end
        self.slots = torch.arange(first, first + self.count, device=starts.device)[:, None]
        self.positions = starts[:, None] + torch.arange(width, device=starts.device)


class RaggedCache(Cache):  # type: ignore[misc]  # transformers is untyped here, so its classes are Any
    """Keys and values of up to `rows` rows; `aim` says which of them the next forward pass is about."""

    def __init__(self, *, layers: int, rows: int, device: str) -> None:
        self.rows = rows
        self.length = 0
        self._device = device
        self.window = _Window(0, torch.zeros(0, dtype=torch.long, device=device), 0, 0)
        super().__init__(layers=[_Layer(self) for _ in range(layers)])

    def aim(self, first: int, starts: list[int], width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Prepare a pass over slots `first`..: row i writes positions starts[i] .. starts[i]+width-1.

        Returns positions [rows, width] and a boolean mask [rows, 1, width, end] in which each position sees itself and
        every earlier one of its own row. Width may pad a row: what is written past its tokens is overwritten later and
        never seen before that.
        """
        end = max(starts) + width
        self._reserve(end)
        at = torch.tensor(starts, device=self._device)
        self.window = _Window(first, at, width, end)
        seen = torch.arange(end, device=self._device) <= self.window.positions[:, None, :, None]
        return self.window.positions, seen

    def move(self, source: int, target: int, length: int) -> None:
        """Let the row in slot `source`, `length` positions long, live in slot `target`."""
        for layer in self.layers:
            layer.move(source, target, length)

    def wipe(self, slot: int) -> None:
        """Forget a slot whose states may not be numbers; a NaN would spread to the slot's next row through the mask."""
        for layer in self.layers:
            layer.wipe(slot)

    def clear(self) -> None:
        """Give the memory back; called when no row is left."""
        self.length = 0
        for layer in self.layers:
            layer.keys = layer.values = None
            layer.is_initialized = False

    def _reserve(self, end: int) -> None:
        if end <= self.length:
            return
        self.length = max(-(-end // _GRAIN) * _GRAIN, 2 * self.length)
        for layer in self.layers:
            layer.resize(self.rows, self.length)


def _resized(old: torch.Tensor, rows: int, length: int) -> torch.Tensor:
    new = old.new_zeros((rows, old.shape[1], length, old.shape[3]))
    new[:, :, : old.shape[2]] = old
    return new
