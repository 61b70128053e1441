"""A Transformer whose decoding runs compiled programs: the encoder and one step of the decoder.

Both are compiled ahead of time, for batches, sources and capacities of any size; see `zoo.deployment.inductor`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers.cache import CrossCache, SharedCache
from layers.checks import require, require_axes
from layers.positions import LearnedPositions
from zoo.deployment.inductor import Program, compiled
from zoo.transformer import Decoding, Transformer


def optimize_decoding(model: Transformer, example: Tensor, dtype: torch.dtype) -> Transformer:
    """A copy whose `start` leads to compiled programs."""
    fast = copy.deepcopy(model).eval().requires_grad_(False).to(dtype)
    source, mask = at_least_two(example, torch.ones_like(example, dtype=torch.bool))
    with torch.no_grad():
        decoding = OptimizedDecoding(fast, fast.encode(source, mask), mask, 16, len(source))  # a compiler plans for such sizes
        decoding(source[:, :2])
        past, crossed = past_of(decoding), crossed_of(decoding)
        encode = compiled(Encoder(fast), source, mask)
        step = compiled(Step(fast), source[:, :1], decoding.memory, mask, past, crossed)
    keys = [own.keys[:1, :, :1] for own, _ in decoding.caches]
    fast.start = partial(start, fast, encode, step, keys)
    return fast


def past_of(decoding: Decoding) -> list[Tensor]:
    caches = [own for own, _ in decoding.caches if isinstance(own, SharedCache)]
    return [x for own in caches for x in (own.keys, own.values, own.length, own.rows)]


def crossed_of(decoding: Decoding) -> list[Tensor]:
    return [x.contiguous() for _, cross in decoding.caches for x in (cross.keys, cross.values)]


class Encoder(nn.Module):
    """source (b, n) and its mask -> memory (b, n, dim), and the keys and values that every cross-attention makes of it."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, source: Tensor, mask: Tensor) -> tuple[Tensor, list[Tensor]]:
        decoding = Decoding(self.model, self.model.encode(source, mask), mask, capacity=1)
        decoding(source[:, :1])  # a step fills the caches, and all else of it is dead code to a compiler
        return decoding.memory, crossed_of(decoding)


class Step(nn.Module):
    """`Transformer.next_logits`, its caches taken apart; those of the past are written to."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, memory: Tensor, mask: Tensor, past: Sequence[Tensor], crossed: Sequence[Tensor]) -> Tensor:
        caches = [(SharedCache(keys.shape[2]), CrossCache()) for keys in past[::4]]
        for n, (own, cross) in enumerate(caches):
            own.keys, own.values, own.length, own.rows = past[4 * n : 4 * n + 4]
            cross.keys, cross.values = crossed[2 * n : 2 * n + 2]
        return self.model.next_logits(tokens, memory, mask, caches)


def at_least_two(source: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Two rows and two tokens, or more, for a compiler takes a size of 1 for a constant; contiguous, as programs expect."""
    rows, tokens = (2 if size == 1 else size for size in source.shape)
    missing = (0, tokens - source.shape[1])
    source, mask = (F.pad(x, missing).expand(rows, -1).contiguous() for x in (source, mask))
    return source, mask


def start(
    model: Transformer,
    encode: Program,
    step: Program,
    keys: Sequence[Tensor],
    source: Tensor,
    source_mask: Tensor | None = None,
    *,
    capacity: int,
) -> Decoding:
    """As `Transformer.start`, with programs; keys: one for each cache, (1, kv_heads, 1, head_dim)."""
    require_axes(source, "source", "batch source_length")
    if source.numel() == 0:
        return Transformer.start(model, source, source_mask, capacity=capacity)
    mask = torch.ones_like(source, dtype=torch.bool) if source_mask is None else source_mask
    require_axes(mask, "source_mask", "batch source_length", batch=len(source), source_length=source.shape[1])
    require(mask.dtype == torch.bool, "source_mask", mask.dtype, "boolean")
    require_known(source, "source", model)
    if isinstance(model.positions, LearnedPositions):
        longest = max(source.shape[1], capacity)
        require(
            longest <= model.positions.max_positions, "source and capacity", longest, f"{model.positions.max_positions} at most"
        )
    rows, (source, mask) = len(source), at_least_two(source, mask)
    memory, *crossed = encode([source, mask])
    decoding = OptimizedDecoding(model, memory, mask, max(2, capacity), rows, step)
    for n, (own, cross) in enumerate(decoding.caches):
        own.allocate(keys[n].expand(len(source), -1, -1, -1))
        cross.keys, cross.values = (x.contiguous() for x in crossed[2 * n : 2 * n + 2])
    return decoding


def require_known(tokens: Tensor, name: str, model: Transformer) -> None:
    """A program ends the process where a token is outside of the vocabulary, so that these are looked for before."""
    low, high = (int(x) for x in tokens.aminmax())
    size = model.embedding.table.num_embeddings
    require(low >= 0 and high < size, name, low if low < 0 else high, f"tokens from 0 to {size - 1}")


class OptimizedDecoding(Decoding):
    """A `Decoding` whose steps of one token run a program; a longer prompt, or no rows at all, go through the model.

    rows: as many as the caller knows of; there may be one more.
    """

    cache = SharedCache

    def __init__(
        self, model: Transformer, memory: Tensor, mask: Tensor, capacity: int, rows: int, step: Program | None = None
    ) -> None:
        super().__init__(model, memory, mask, capacity)
        self.rows, self.step = rows, step

    def __call__(self, tokens: Tensor) -> Tensor:
        """As `Decoding`."""
        require_axes(tokens, "tokens", "batch target_length", batch=self.rows)
        tokens = tokens.repeat(2, 1) if self.rows == 1 else tokens
        if tokens.shape[1] != 1 or self.rows == 0 or self.step is None:
            return super().__call__(tokens)[: self.rows]
        require_known(tokens, "tokens", self.model)
        for own, _ in self.caches:
            own.require_room(1)
        past, crossed = past_of(self), crossed_of(self)
        return self.step([tokens.contiguous(), self.memory, self.source_mask, *past, *crossed])[0][: self.rows]

    def select(self, rows: Tensor) -> None:
        """As `Decoding`."""
        self.rows = len(rows)
        super().select(rows.repeat(2) if self.rows == 1 else rows)
