"""A decoder-only model whose decoding runs a compiled step of one token; prompts go through the model.

Compiled ahead of time, see `zoo.deployment.inductor`: for one row, which is the quickest way to decode it, or for batches of any
size; for capacities of any size.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from layers.cache import Cache, GrowingCache, SharedCache
from layers.checks import require, require_axes
from layers.embedding import require_known
from zoo.deployment.inductor import Program, compiled
from zoo.deployment.optimize import Constant, copied
from zoo.deployment.quantize import is_quantized
from zoo.generation.decoder_only import Decoding
from zoo.gpt import CausalLM


def optimize_causal(model: CausalLM, example: Tensor, dtype: torch.dtype) -> OptimizedCausalLM:
    """What `zoo.optimize` returns of a `CausalLM`. example: tokens (1, n) for single rows, (b, n) for batches of any size."""
    require_axes(example, "example", "batch length")
    require(example.numel() > 0, "example", tuple(example.shape), "of one token at least")
    require_known(example, "example", model.embedding.table.num_embeddings)
    fast: CausalLM = copied(model, {}).eval().requires_grad_(False).to(dtype)
    one, last = len(example) == 1, example[:, -1:]
    with torch.no_grad():
        decoding = OptimizedDecoding(fast, 16, one, None)
        decoding(last)
        # a row reads weights once, and integers are quicker to read; several rows share floats that are made of them once
        step = compiled(Step(fast, one), *decoding.given(decoding.doubled(last)), folded=not (one and is_quantized(fast)))
    return OptimizedCausalLM(fast, step, one)


class OptimizedCausalLM(Constant):
    """A `CausalLM` for inference whose `start` leads to a program. Its weights cannot be reached: all parts stay of one."""

    def __init__(self, model: CausalLM, step: Program, one: bool) -> None:
        weight = next(model.parameters())
        super().__init__((model, step, one), weight.dtype, weight.device)
        self.config = copy.deepcopy(model.config)
        self.place = nn.Parameter(weight.new_empty(0), requires_grad=False)  # tells others the device and dtype

    def forward(self, tokens: Tensor, mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """As `CausalLM`, and no faster."""
        with torch.no_grad():
            return self.programs[0](tokens, mask, positions)

    def start(self, *, capacity: int, spare: int = 0) -> Decoding:
        """As `CausalLM.start`, with a program."""
        model, step, one = self.programs
        model.check_start(capacity, spare)
        return OptimizedDecoding(model, capacity, one, step)


class Step(nn.Module):
    """`CausalLM.next_logits`, its caches taken apart; they are written to."""

    def __init__(self, model: CausalLM, one: bool) -> None:
        super().__init__()
        self.model, self.one = model, one

    def forward(self, tokens: Tensor, start: Tensor, length: Tensor, past: Sequence[Tensor]) -> Tensor:
        size = 3 if self.one else 4
        caches = []
        for n in range(0, len(past), size):
            cache = GrowingCache(past[n].shape[2], start) if self.one else SharedCache(past[n].shape[2], start)
            cache.keys, cache.values, cache.length = past[n : n + 3]
            if isinstance(cache, SharedCache):
                cache.rows = past[n + 3]
            cache.padded = False  # the last token of a prompt is a real one, and a step comes after it or is it
            caches.append(cache)
        return self.model.next_logits(tokens, caches, length)


class OptimizedDecoding(Decoding):
    """A `Decoding` whose steps of one token run a program; prompts, and rows that it is not for, go through the model.

    one: whether the program is for one row. If not, one row is run as two, for compilers specialise on 1.
    """

    def __init__(self, model: CausalLM, capacity: int, one: bool, step: Program | None) -> None:
        super().__init__(model, capacity)
        self.past: Sequence[Cache] = [(GrowingCache if one else SharedCache)(capacity) for _ in model.decoder]
        self.one, self.step = one, step
        self.limit = torch.tensor(capacity, device=model.embedding.table.weight.device)
        self.unpadded = torch.zeros(0, dtype=torch.long)

    @torch.no_grad()
    def __call__(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """As `Decoding`."""
        self.check(tokens, mask)
        self.begin(tokens, None if mask is None else self.doubled(mask))
        given = self.doubled(tokens)
        fits = given.shape[1] == 1 and (given.shape[0] == 1) == self.one and given.shape[0] > 0
        if not fits or self.step is None or not self.past[0].filled:
            return self.model.next_logits(given, self.past, self.capacity)[: self.rows]
        if not tokens.is_cpu:
            require_known(tokens, "tokens", self.vocab_size)
        self.require_room(1)
        *first, past = self.given(given)
        return self.step([*first, *past])[0][: self.rows]

    def doubled(self, tokens: Tensor) -> Tensor:
        """A single row as two, where the program is for several."""
        return tokens if self.one or len(tokens) != 1 else tokens.repeat(2, *[1] * (tokens.ndim - 1))

    @torch.no_grad()
    def all_logits(self, tokens: Tensor) -> Tensor:
        """As `Decoding`."""
        self.check(tokens, None)
        self.begin(tokens, None)
        return self.model.logits(self.model.hidden(self.doubled(tokens), caches=self.past, length=self.capacity))[: self.rows]

    def truncate(self, length: int | Tensor) -> None:
        """As `Decoding`."""
        super().truncate(self.doubled(length) if isinstance(length, Tensor) and length.ndim > 0 else length)

    def require_room(self, new: int) -> None:
        for cache in self.past:
            cache.require_room(new)

    def given(self, tokens: Tensor) -> tuple[Any, ...]:
        """What the program takes."""
        start = self.past[0].start
        if start is None:
            if len(self.unpadded) != len(self.past[0].keys):
                self.unpadded = torch.zeros(len(self.past[0].keys), dtype=torch.long, device=tokens.device)
            start = self.unpadded
        parts = [(c.keys, c.values, c.length, *([c.rows] if isinstance(c, SharedCache) else [])) for c in self.past]
        return tokens.long().contiguous(), start, self.limit, [x for part in parts for x in part]

    def select(self, rows: Tensor) -> None:
        """As `Decoding`."""
        self.check_rows(rows)
        for cache in self.past:
            cache.select(self.doubled(rows))
        self.rows = len(rows)
