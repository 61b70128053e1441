"""Keys and values that an attention has already computed, so that decoding computes each of them once.

One cache belongs to one attention and one batch of sequences. It is filled in place, without gradients, and every tensor but
those of a `SharedCache` keeps its shape from the first call on, so that a decoding step compiles once. `keys` and `values` are
(b, kv_heads, slots, head_dim).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from layers.checks import require


class Cache:
    """For a causal self-attention: room for `capacity` positions, allocated by the first call.

    Errors: `ValueError` if more positions come than there is room for.
    """

    def __init__(self, capacity: int) -> None:
        require(capacity > 0, "capacity", capacity, "positive")
        self.capacity = capacity
        self.keys, self.values = torch.empty(0), torch.empty(0)  # until the first call
        self.length = torch.zeros((), dtype=torch.long)
        """Positions seen so far; a tensor, so that a compiled step need not be compiled again for the next one."""

    def first_slots(self) -> int:
        return self.capacity

    def allocate(self, like: Tensor) -> None:
        b, h, _, d = like.shape
        self.keys, self.values = (like.new_zeros(b, h, self.first_slots(), d) for _ in range(2))
        self.length = torch.zeros((), dtype=torch.long, device=like.device)

    @torch.no_grad()
    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Add the new keys and values (b, kv_heads, n, head_dim); returns all of them, and their positions (slots,).

        Slots that are not written yet have positions that lie in the future, or below 0.
        """
        if self.keys.ndim == 1:
            self.allocate(keys)
        if not torch.compiler.is_compiling():
            self.require_room(keys.shape[2])
        result = self.write(keys, values)
        self.length += keys.shape[2]
        return result

    def require_room(self, new: int) -> None:
        if int(self.length) + new > self.capacity:
            raise ValueError(f"cache has a capacity of {self.capacity}, got {int(self.length)} + {new} positions")

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        slots = self.length + torch.arange(keys.shape[2], device=keys.device)
        self.keys.index_copy_(2, slots, keys)
        self.values.index_copy_(2, slots, values)
        return self.keys, self.values, torch.arange(self.keys.shape[2], device=keys.device)

    def select(self, rows: Tensor) -> None:
        """Keep these batch rows, in this order; a row may be taken several times."""
        if self.keys.ndim > 1:
            self.keys, self.values = self.keys.index_select(0, rows), self.values.index_select(0, rows)


class SharedCache(Cache):
    """A `Cache` whose `select` copies no keys and values: a table says in which row's memory each position of a row lies.

    For compiled steps of any number of slots, which look up the table while they compute; elsewhere the look-up is a copy at each
    step. Memory doubles as positions come, so that steps read at most twice as many slots as are filled, or the first 16. Whoever
    compiles a step calls `require_room` before each, outside of the program.
    """

    def first_slots(self) -> int:
        return min(self.capacity, 16)

    def allocate(self, like: Tensor) -> None:
        super().allocate(like)
        self.rows = self.own_rows(like.shape[0], self.keys.shape[2], like.device)

    def require_room(self, new: int) -> None:
        """As `Cache`; makes room too."""
        super().require_room(new)
        slots = self.keys.shape[2]
        if (due := int(self.length) + new) > slots:
            more = min(self.capacity, max(due, 2 * slots)) - slots
            self.keys, self.values = (F.pad(x, (0, 0, 0, more)) for x in (self.keys, self.values))
            self.rows = F.pad(self.rows, (0, more))

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """New positions go to a row's own memory, where nobody looks for them yet."""
        slots = self.length + torch.arange(keys.shape[2], device=keys.device)
        self.rows.index_copy_(1, slots, self.own_rows(keys.shape[0], keys.shape[2], keys.device))
        keys, values, positions = super().write(keys, values)
        return self.read(keys), self.read(values), positions

    def read(self, memory: Tensor) -> Tensor:
        heads, slots = (torch.arange(n, device=memory.device) for n in memory.shape[1:3])
        return memory[self.rows[:, None], heads[:, None], slots]

    def select(self, rows: Tensor) -> None:
        """As `Cache`; copies where the number of rows changes."""
        if self.keys.ndim > 1:
            self.rows = self.rows.index_select(0, rows)
            if len(rows) != len(self.keys):
                self.keys, self.values = self.read(self.keys), self.read(self.values)
                self.rows = self.own_rows(len(rows), self.keys.shape[2], rows.device)

    def own_rows(self, rows: int, slots: int, device: torch.device) -> Tensor:
        """(rows, slots): that every row has all of its positions to itself."""
        return torch.arange(rows, device=device)[:, None].repeat(1, slots)


class RollingCache(Cache):
    """For a causal self-attention with a sliding window: keeps the last `capacity` positions, which are the window's size."""

    def require_room(self, new: int) -> None:
        pass

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        new = keys.shape[2]
        keys, values = torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)
        positions = self.length - self.capacity + torch.arange(self.capacity + new, device=keys.device)
        self.keys.copy_(keys[:, :, new:])
        self.values.copy_(values[:, :, new:])
        return keys, values, positions


class CrossCache:
    """For a cross-attention: the memory's keys and values, computed by the first call and kept."""

    def __init__(self) -> None:
        self.keys, self.values = torch.empty(0), torch.empty(0)

    @torch.no_grad()
    def keep(self, compute: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """What `compute` gives, (b, kv_heads, k, head_dim) each, the first time and ever after."""
        if self.keys.ndim == 1:
            self.keys, self.values = compute()
        return self.keys, self.values

    def select(self, rows: Tensor) -> None:
        """Keep these batch rows, in this order; a row may be taken several times."""
        if self.keys.ndim > 1:
            self.keys, self.values = self.keys.index_select(0, rows), self.values.index_select(0, rows)
