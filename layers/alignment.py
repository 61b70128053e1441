"""Attention as recurrent decoders have it: one head, the memory itself is what is averaged, and a score for each place in it.

    additive         score(q, m) = v . tanh(W q + U m)      Bahdanau et al., 2014 (arXiv 1409.0473)
    multiplicative   score(q, m) = q . W m, or q . m        Luong et al., 2015 (arXiv 1508.04025): "general" and "dot"

The context of a query is the mean of the memory, weighted by the softmax of its scores. The papers call the weights alignments.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from layers.checks import require, require_axes


class Remembered(NamedTuple):
    """What all queries need of a memory, computed once."""

    memory: Tensor
    """(b, k, memory_dim), zeros where the mask hides it."""
    keys: Tensor
    """(b, k, d)"""
    mask: Tensor | None
    """(b, k), True for what may be attended to; None for all."""


class Alignment(nn.Module):
    """Abstract: query (b, q, query_dim), memory (b, k, memory_dim) -> context (b, q, memory_dim), weights (b, q, k)."""

    key: nn.Module
    """memory -> keys (b, k, d)."""

    def __init__(self, query_dim: int, memory_dim: int) -> None:
        super().__init__()
        require(query_dim > 0, "query_dim", query_dim, "positive")
        require(memory_dim > 0, "memory_dim", memory_dim, "positive")
        self.query_dim, self.memory_dim = query_dim, memory_dim

    def remember(self, memory: Tensor, mask: Tensor | None = None) -> Remembered:
        """For a memory that is attended to several times. mask: boolean (b, k), True = may attend; the rest may hold anything."""
        require_axes(memory, "memory", "batch keys memory_dim", memory_dim=self.memory_dim)
        if mask is not None:
            require_axes(mask, "mask", "batch keys", batch=memory.shape[0], keys=memory.shape[1])
            require(mask.dtype == torch.bool, "mask", mask.dtype, "boolean, True where a query may attend")
            memory = memory.masked_fill(~mask.unsqueeze(-1), 0.0)  # for 0 * NaN is NaN
        return Remembered(memory, self.key(memory), mask)

    def forward(self, query: Tensor, memory: Tensor | Remembered, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """memory, mask: those of `remember`, or what it gave. A row that may attend to nothing gives zeros."""
        kept = memory if isinstance(memory, Remembered) else self.remember(memory, mask)
        require_axes(query, "query", "batch queries query_dim", batch=kept.memory.shape[0], query_dim=self.query_dim)
        scores = self.scores(query, kept.keys)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if kept.mask is None:
            weights = scores.softmax(-1)
        else:
            empty = ~kept.mask.any(1).reshape(-1, 1, 1)  # such rows attend to everything, and are overwritten
            weights = scores.masked_fill(~(kept.mask.unsqueeze(1) | empty), float("-inf")).softmax(-1).masked_fill(empty, 0.0)
        weights = weights.to(kept.memory.dtype)
        return weights @ kept.memory, weights

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """(b, q, query_dim), (b, k, d) -> (b, q, k)"""
        raise NotImplementedError


class AdditiveAttention(Alignment):
    """v . tanh(W q + U m), of `hidden_dim` features. Memory is needed for q * k * hidden_dim numbers."""

    def __init__(self, query_dim: int, memory_dim: int, hidden_dim: int) -> None:
        super().__init__(query_dim, memory_dim)
        require(hidden_dim > 0, "hidden_dim", hidden_dim, "positive")
        self.query = nn.Linear(query_dim, hidden_dim, bias=False)
        self.key = nn.Linear(memory_dim, hidden_dim, bias=False)
        self.score = nn.Linear(hidden_dim, 1, bias=False)

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        return self.score((self.query(query).unsqueeze(2) + keys.unsqueeze(1)).tanh()).squeeze(-1)


class MultiplicativeAttention(Alignment):
    """q . W m; without W where it is not `general`, for a memory of the query's size. Scores are not scaled."""

    def __init__(self, query_dim: int, memory_dim: int, *, general: bool = True) -> None:
        super().__init__(query_dim, memory_dim)
        require(general or query_dim == memory_dim, "memory_dim", memory_dim, f"query_dim, {query_dim}, unless general")
        self.key = nn.Linear(memory_dim, query_dim, bias=False) if general else nn.Identity()

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        return query @ keys.mT
