"""Keys and values that an attention has already computed, so that decoding computes each of them once.

One cache belongs to one attention and one batch of sequences. It is filled in place, without gradients, and every tensor but
those of a `SharedCache` keeps its shape from the first call on, so that a decoding step compiles once. `keys` and `values` are
(b, kv_heads, slots, head_dim).

All rows fill the same slots. A row whose past is shorter begins later: the slots before its `start` hold padding, which no query
sees, and its positions count from there.

    slot       0  1  2  3  4      position
    start 0    a  b  c  d  e      0  1  2  3  4
    start 2    -  -  f  g  h      -  -  0  1  2
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from layers.checks import require, require_axes


class Cache:
    """For a causal self-attention: room for `capacity` slots, allocated by the first call.

    start:  (b,), the number of slots before each row's first token; None where no row is padded.
    Errors: `ValueError` if more positions come than there is room for, or of another batch, heads, head_dim or dtype.
    """

    padded: bool = True
    """False where a `start` is known to lie behind: what comes from now on is real in every row."""

    def __init__(self, capacity: int, start: Tensor | None = None) -> None:
        require(capacity > 0, "capacity", capacity, "positive")
        if start is not None:
            require_axes(start, "start", "batch")
            require(start.dtype == torch.long, "start", start.dtype, "of dtype torch.int64")
        self.capacity, self.start = capacity, start
        self.keys, self.values = torch.empty(0), torch.empty(0)  # until the first call
        self.length = torch.zeros((), dtype=torch.long)
        """Slots that are filled; a tensor, so that a compiled step need not be compiled again for the next one."""

    @property
    def filled(self) -> bool:
        return self.keys.ndim > 1

    def first_slots(self) -> int:
        return self.capacity

    def allocate(self, like: Tensor) -> None:
        b, h, _, d = like.shape
        self.keys, self.values = (like.new_zeros(b, h, self.first_slots(), d) for _ in range(2))
        self.length = torch.zeros((), dtype=torch.long, device=like.device)
        self.start = None if self.start is None else self.start.to(like.device)

    def check(self, batch: int, kv_heads: int, head_dim: int, window: int | None) -> None:
        """`ValueError` unless the cache is of these sizes, or not filled yet. window: the attention's, None for none."""
        if self.filled:
            axes = "batch kv_heads slots head_dim"
            require_axes(self.keys, "cache", axes, batch=batch, kv_heads=kv_heads, head_dim=head_dim)
        if self.start is not None:
            require_axes(self.start, "start of the cache", "batch", batch=batch)

    def slots(self, new: int, device: torch.device) -> Tensor:
        """(new,): where the next ones go."""
        return self.length + torch.arange(new, device=device)

    def positions(self, slots: Tensor) -> Tensor:
        """Slots (n,) -> positions (n,), or (b, n) where rows have a `start`; 0 for padding."""
        return slots if self.start is None else (slots - self.start.to(slots.device)[:, None]).clamp(min=0)

    def written(self, slots: Tensor) -> Tensor:
        """Slots (n,) -> (n,) or (b, 1, 1, n): False for padding, and for slots below 0."""
        return slots >= (0 if self.start is None else self.start.to(slots.device)[:, None, None, None])

    @torch.no_grad()
    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Add the new keys and values (b, kv_heads, n, head_dim); returns all of them, and their slots (n,).

        Those that are not written yet are after `length`, or below 0.
        """
        if not self.filled:
            self.allocate(keys)
        require(keys.dtype == self.keys.dtype, "cache", self.keys.dtype, f"of the new keys' {keys.dtype}")
        if not torch.compiler.is_compiling():
            self.require_room(keys.shape[2])
        result = self.write(keys, values)
        self.length += keys.shape[2]
        return result

    def check_room(self, new: int) -> None:
        """`ValueError` unless there is room for as many new positions."""
        if int(self.length) + new > self.capacity:
            raise ValueError(f"cache has a capacity of {self.capacity}, got {int(self.length)} + {new} positions")

    def require_room(self, new: int) -> None:
        """As `check_room`; makes room where a cache grows."""
        self.check_room(new)

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        slots = self.slots(keys.shape[2], keys.device)
        self.keys.index_copy_(2, slots, keys)
        self.values.index_copy_(2, slots, values)
        return self.keys, self.values, torch.arange(self.keys.shape[2], device=keys.device)

    def select(self, rows: Tensor) -> None:
        """Keep these batch rows, in this order; a row may be taken several times."""
        self.start = None if self.start is None else self.start.index_select(0, rows)
        if self.filled:
            self.keys, self.values = self.keys.index_select(0, rows), self.values.index_select(0, rows)

    def truncate(self, length: int | Tensor) -> None:
        """Go back: all slots from `length` on are as if they had never been filled.

        length: of all rows, or (b,) of each. Rows that go back further than the longest one move up until they end where it
                ends; their `start` moves up as far.
        Errors: `ValueError` for a length below 0, above the cache's, or within the padding of a row.
        """
        given = self.check_length(length)
        longest = int(given.max()) if given.numel() else 0
        moved = longest - given
        if bool(moved.any()):
            self.move(moved)
        self.length.fill_(longest)

    def check_length(self, length: int | Tensor) -> Tensor:
        """The length as a tensor (b,) or () on the cache's device. Errors: those of `truncate`."""
        given = torch.as_tensor(length).to(self.length.device)
        fits = not given.is_floating_point() and bool(((given >= 0) & (given <= self.length)).all())
        require(fits, "length", length, f"an integer from 0 to {int(self.length)}, the length of the cache")
        if given.ndim > 0:
            require_axes(given, "length", "batch", batch=self.keys.shape[0])
        if self.start is not None:
            begins = self.start.to(given.device)
            require(bool((given >= begins).all()), "length", length, f"at least {self.start}, where the rows start")
        return given

    def move(self, moved: Tensor) -> None:
        """Moves the slots of each row up by as many as (b,) says."""
        self.start = moved if self.start is None else self.start.to(moved.device) + moved
        slots = torch.arange(self.keys.shape[2], device=moved.device)
        source = (slots - moved[:, None]).clamp(min=0)[:, None, :, None].expand_as(self.keys)
        self.keys, self.values = self.keys.gather(2, source), self.values.gather(2, source)

    def join(self, other: Cache, capacity: int) -> None:
        """Take in the rows of another cache of the same attention, after its own, with room for `capacity` slots from now on.

        Both are filled; all rows end in the same slot, and what is padding in every row is dropped. The other cache is used up.
        Errors: `ValueError` for caches that are not filled, kinds that keep more than slots, and too small a capacity.
        """
        plain = type(self) is Cache and type(other) is Cache and self.filled and other.filled
        require(plain, "other", f"{type(other).__name__} to a {type(self).__name__}", "a Cache to a Cache, both of them filled")
        starts = [one.begins() for one in (self, other)]
        ends = [int(one.length) for one in (self, other)]
        used = [end - (int(start.min()) if len(start) else end) for start, end in zip(starts, ends, strict=True)]
        longest = max(used)
        require(capacity >= longest, "capacity", capacity, f"{longest} at least, which are filled")

        def joined(parts: tuple[Tensor, Tensor]) -> Tensor:
            rows, (_, heads, _, dim) = [len(part) for part in parts], parts[0].shape
            whole = parts[0].new_zeros(sum(rows), heads, capacity, dim)
            for into, part, end, n in zip(whole.split(rows), parts, ends, used, strict=True):
                into[:, :, longest - n : longest] = part[:, :, end - n : end]
            return whole

        self.keys, self.values = joined((self.keys, other.keys)), joined((self.values, other.values))
        self.start = torch.cat([start + longest - end for start, end in zip(starts, ends, strict=True)])
        self.length.fill_(longest)
        self.capacity = capacity

    def begins(self) -> Tensor:
        """(b,): `start` of a filled cache, zeros where there is none."""
        device = self.keys.device
        return torch.zeros(len(self.keys), dtype=torch.long, device=device) if self.start is None else self.start.to(device)


class GrowingCache(Cache):
    """A `Cache` whose memory doubles as positions come: steps read at most twice as many slots as are filled, or the first 16.

    Whoever compiles a step calls `require_room` before each, outside of the program.
    """

    def first_slots(self) -> int:
        return max(2, min(self.capacity, 16))  # two, for a compiler takes a size of 1 for a constant

    def require_room(self, new: int) -> None:
        """As `Cache`."""
        super().require_room(new)
        slots = self.keys.shape[2]
        if (needed := int(self.length) + new) > slots:
            self.grow(min(self.capacity, max(needed, 2 * slots)) - slots)

    def grow(self, more: int) -> None:
        self.keys, self.values = (F.pad(x, (0, 0, 0, more)) for x in (self.keys, self.values))


class SharedCache(GrowingCache):
    """A cache whose `select` copies no keys and values: a table says in which row's memory each slot of a row lies.

    For compiled decoding, where the lookup fuses into attention; eager mode copies keys and values each step.
    """

    def allocate(self, like: Tensor) -> None:
        super().allocate(like)
        self.rows = self.own_rows(like.shape[0], self.keys.shape[2], like.device)

    def grow(self, more: int) -> None:
        super().grow(more)
        self.rows = F.pad(self.rows, (0, more))

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """New positions go to a row's own memory, where nobody looks for them yet."""
        slots = self.slots(keys.shape[2], keys.device)
        self.rows.index_copy_(1, slots, self.own_rows(keys.shape[0], keys.shape[2], keys.device))
        keys, values, positions = super().write(keys, values)
        return self.read(keys), self.read(values), positions

    def read(self, memory: Tensor) -> Tensor:
        heads, slots = (torch.arange(n, device=memory.device) for n in memory.shape[1:3])
        return memory[self.rows[:, None], heads[:, None], slots]

    def select(self, rows: Tensor) -> None:
        """As `Cache`; copies where the number of rows changes."""
        self.start = None if self.start is None else self.start.index_select(0, rows)
        if self.filled:
            self.rows = self.rows.index_select(0, rows)
            if len(rows) != len(self.keys):
                self.copy_rows()

    def copy_rows(self) -> None:
        """Gives every row its slots in its own memory."""
        self.keys, self.values = self.read(self.keys), self.read(self.values)
        self.rows = self.own_rows(len(self.rows), self.rows.shape[1], self.rows.device)

    def move(self, moved: Tensor) -> None:
        self.copy_rows()
        super().move(moved)

    def own_rows(self, rows: int, slots: int, device: torch.device) -> Tensor:
        """(rows, slots): that every row has all of its slots to itself."""
        return torch.arange(rows, device=device)[:, None].repeat(1, slots)


class RollingCache(Cache):
    """For a causal self-attention with a sliding window: keeps the last `capacity` positions, the window's size or more.

    Going back by n positions takes a capacity of window + n - 1, unless nothing has been dropped yet.
    """

    def __init__(self, capacity: int, start: Tensor | None = None) -> None:
        super().__init__(capacity, start)
        self.window, self.dropped = capacity, 0  # slots below `dropped` are lost

    def check(self, batch: int, kv_heads: int, head_dim: int, window: int | None) -> None:
        fits = window is not None and window <= self.capacity
        require(fits, "cache", f"RollingCache({self.capacity})", f"a RollingCache of the attention's window, {window}, or more")
        super().check(batch, kv_heads, head_dim, window)
        self.window = window or self.capacity

    def check_room(self, new: int) -> None:
        """There always is."""

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        new = keys.shape[2]
        keys, values = torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)
        slots = self.length - self.capacity + torch.arange(self.capacity + new, device=keys.device)
        self.keys.copy_(keys[:, :, new:])
        self.values.copy_(values[:, :, new:])
        return keys, values, slots

    def truncate(self, length: int | Tensor) -> None:
        """As `Cache`. Errors: `ValueError` too where slots that the window will need have been dropped."""
        given = self.check_length(length)
        before, dropped = int(self.length), max(self.dropped, int(self.length) - self.capacity)
        shortest = int(given.min()) if before else 0
        kept = dropped == 0 or shortest == before or shortest - self.window + 1 >= dropped
        require(kept, "length", length, f"{dropped + self.window - 1} or more, for slots below {dropped} have been dropped")
        super().truncate(given)
        self.dropped = dropped and dropped + int(self.length) - shortest  # with the rows that moved up
        if self.filled and int(self.length) < before:  # the last slot filled is the last one again
            start = self.start
            self.move(torch.full(self.keys.shape[:1], before - int(self.length), device=self.keys.device))
            self.start = start


class CrossCache:
    """For a cross-attention: the memory's keys and values, computed by the first call and kept."""

    def __init__(self) -> None:
        self.keys, self.values = torch.empty(0), torch.empty(0)

    def check(self, batch: int, kv_heads: int, keys: int, head_dim: int) -> None:
        """`ValueError` unless the cache is of these sizes, or not filled yet."""
        if self.keys.ndim > 1:
            axes = "batch kv_heads keys head_dim"
            require_axes(self.keys, "cache", axes, batch=batch, kv_heads=kv_heads, keys=keys, head_dim=head_dim)

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
