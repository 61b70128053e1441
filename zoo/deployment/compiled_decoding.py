"""A Transformer whose decoding runs compiled programs: the encoder and one step of the decoder.

Both are compiled ahead of time, for batches, sources and capacities of any size; see `zoo.deployment.inductor`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers.cache import CrossCache, SharedCache
from layers.embedding import require_known
from zoo.deployment.inductor import Program, compiled
from zoo.deployment.optimize import Constant, copied
from zoo.generation.encoder_decoder import Decoding
from zoo.transformer import Transformer


def optimize_decoding(model: Transformer, example: Tensor, dtype: torch.dtype) -> OptimizedTransformer:
    """What `zoo.optimize` returns of a Transformer. example: one sentence if most of what comes is single ones."""
    model.check_start(example, None, 1)
    fast: Transformer = copied(model, {}).eval().requires_grad_(False).to(dtype)
    source, mask = at_least_two(example, torch.ones_like(example, dtype=torch.bool))
    with torch.no_grad():
        decoding = OptimizedDecoding(fast, fast.encode(source, mask), mask, 16, len(source))  # a compiler plans for such sizes
        decoding(source[:, :2])
        past, crossed = past_of(decoding), crossed_of(decoding)
        rows = len(example)
        encode = compiled(Encoder(fast), source, mask, rows=rows)
        step = compiled(Step(fast), source[:, :1], decoding.memory, mask, decoding.starts(), past, crossed, rows=rows)
    return OptimizedTransformer(fast, encode, step, [own.keys[:1, :, :1] for own, _ in decoding.caches])


class OptimizedTransformer(Constant):
    """A Transformer for inference whose `start` leads to programs. Its weights cannot be reached, so that all parts stay of one.

    keys: one for each cache, (1, kv_heads, 1, head_dim).
    """

    def __init__(self, model: Transformer, encode: Program, step: Program, keys: Sequence[Tensor]) -> None:
        weight = next(model.parameters())
        super().__init__((model, encode, step, keys), weight.dtype, weight.device)
        self.config = copy.deepcopy(model.config)
        self.place = nn.Parameter(weight.new_empty(0), requires_grad=False)  # tells others the device and dtype

    def forward(
        self, source: Tensor, target: Tensor, source_mask: Tensor | None = None, target_mask: Tensor | None = None
    ) -> Tensor:
        """As `Transformer`, and no faster."""
        with torch.no_grad():
            return self.programs[0](source, target, source_mask, target_mask)

    def start(self, source: Tensor, source_mask: Tensor | None = None, *, capacity: int) -> Decoding:
        """As `Transformer.start`, with programs."""
        model, encode, step, keys = self.programs
        model.check_start(source, source_mask, capacity)
        if source.numel() == 0:
            return model.start(source, source_mask, capacity=capacity)
        require_known(source, "source", model.embedding.table.num_embeddings)  # on a GPU too: a program ends the process
        mask = torch.ones_like(source, dtype=torch.bool) if source_mask is None else source_mask
        rows, (source, mask) = len(source), at_least_two(source, mask)
        memory, *crossed = encode([source, mask])
        decoding = OptimizedDecoding(model, memory, mask, capacity, rows, step)
        for n, (own, cross) in enumerate(decoding.caches):
            own.allocate(keys[n].expand(len(source), -1, -1, -1))
            cross.keys, cross.values = (x.contiguous() for x in crossed[2 * n : 2 * n + 2])
        return decoding


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

    def forward(
        self,
        tokens: Tensor,
        memory: Tensor,
        mask: Tensor,
        start: Tensor,
        past: Sequence[Tensor],
        crossed: Sequence[Tensor],
    ) -> Tensor:
        caches = [(SharedCache(keys.shape[2], start), CrossCache()) for keys in past[::4]]
        for n, (own, cross) in enumerate(caches):
            own.keys, own.values, own.length, own.rows = past[4 * n : 4 * n + 4]
            own.padded = False  # the last token of a prompt is a real one, and a step comes after it or is it
            cross.keys, cross.values = crossed[2 * n : 2 * n + 2]
        return self.model.next_logits(tokens, memory, mask, caches)


def at_least_two(source: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Two rows and two tokens, or more, for compilers specialise on 1; int64 and contiguous, as programs expect."""
    source = source.long()
    rows, tokens = (2 if size == 1 else size for size in source.shape)
    missing = (0, tokens - source.shape[1])
    source, mask = (F.pad(x, missing).expand(rows, -1).contiguous() for x in (source, mask))
    return source, mask


class OptimizedDecoding(Decoding):
    """A `Decoding` whose steps of one token run a program; a longer prompt, or no rows at all, go through the model.

    rows: the caller's batch size; 1 is run as 2, for compilers specialise on 1.
    """

    cache = SharedCache

    def __init__(
        self, model: Transformer, memory: Tensor, mask: Tensor, capacity: int, rows: int, step: Program | None = None
    ) -> None:
        super().__init__(model, memory, mask, capacity)
        self.rows: int | None = rows
        self.step = step
        self.unpadded = torch.zeros(0, dtype=torch.long)

    def starts(self) -> Tensor:
        """(b,): where each row of the caches starts."""
        start = self.caches[0][0].start
        if start is None and len(self.unpadded) != len(self.memory):
            self.unpadded = torch.zeros(len(self.memory), dtype=torch.long, device=self.memory.device)
        return self.unpadded if start is None else start

    @torch.no_grad()
    def __call__(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """As `Decoding`."""
        self.check(tokens, mask)
        if self.rows == 1:
            tokens, mask = tokens.repeat(2, 1), None if mask is None else mask.repeat(2, 1)
        self.begin(tokens, mask)
        if tokens.shape[1] != 1 or self.rows == 0 or self.step is None:
            return self.model.next_logits(tokens, self.memory, self.source_mask, self.caches)[: self.rows]
        if not tokens.is_cpu:
            require_known(tokens, "tokens", self.model.embedding.table.num_embeddings)
        for own, _ in self.caches:
            own.require_room(1)
        given = [tokens.long().contiguous(), self.memory, self.source_mask, self.starts(), *past_of(self), *crossed_of(self)]
        return self.step(given)[0][: self.rows]

    def select(self, rows: Tensor) -> None:
        """As `Decoding`."""
        super().select(rows.repeat(2) if rows.shape == (1,) else rows)
        self.rows = len(rows)
