"""Heads of models of tokens: what they make of the states of all tokens.

Each is called with the states (b, n, dim), a mask (b, n), True for real tokens, or None where all are, and the model's token
embedding. What it gives for padding means nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layers.checks import require
from layers.embedding import TokenEmbedding


class PooledHead(nn.Module):
    """The first real token of each row through a layer: states (b, n, dim) -> (b, dim). activation: tanh unless given."""

    def __init__(self, dim: int, *, activation: nn.Module | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.dim = dim
        self.dropout, self.dense = nn.Dropout(dropout), nn.Linear(dim, dim)
        self.activation = nn.Tanh() if activation is None else activation

    def forward(self, states: Tensor, mask: Tensor | None = None, embedding: nn.Module | None = None) -> Tensor:
        require(states.shape[1] > 0, "states", tuple(states.shape), "of one token a row at least")
        first = 0 if mask is None else mask.int().argmax(1)
        rows = torch.arange(states.shape[0], device=states.device)
        return self.activation(self.dense(self.dropout(states[rows, first])))


class Pooling(nn.Module):
    """Abstract: states (b, n, dim) -> (b, dim), of real tokens alone; zeros for a row without any."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        require(states.shape[1] > 0, "states", tuple(states.shape), "of one token a row at least")
        return self.pool(states, torch.ones_like(states[..., 0], dtype=torch.bool) if mask is None else mask)

    def pool(self, states: Tensor, mask: Tensor) -> Tensor:
        raise NotImplementedError


class LastStates(Pooling):
    """Where the two directions of a recurrent network end: the first half at the last real token, the second at the first."""

    def pool(self, states: Tensor, mask: Tensor) -> Tensor:
        forward, backward = states.masked_fill(~mask[..., None], 0.0).chunk(2, -1)
        rows, real = torch.arange(states.shape[0], device=states.device), mask.int()
        return torch.cat([forward[rows, -1 - real.flip(1).argmax(1)], backward[rows, real.argmax(1)]], -1)


class MeanStates(Pooling):
    """The mean over real tokens."""

    def pool(self, states: Tensor, mask: Tensor) -> Tensor:
        return states.masked_fill(~mask[..., None], 0.0).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


class MaxStates(Pooling):
    """The largest value of each feature over real tokens."""

    def pool(self, states: Tensor, mask: Tensor) -> Tensor:
        largest = states.masked_fill(~mask[..., None], float("-inf")).amax(1)
        return largest.masked_fill(~mask.any(1, keepdim=True), 0.0)


class SequenceHead(nn.Module):
    """A class for each row: states (b, n, dim) -> logits (b, num_classes)."""

    def __init__(self, pooled: PooledHead | Pooling, num_classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.pooled, self.dropout = pooled, nn.Dropout(dropout)
        self.output = nn.Linear(pooled.dim, num_classes)

    def forward(self, states: Tensor, mask: Tensor | None = None, embedding: nn.Module | None = None) -> Tensor:
        return self.output(self.dropout(self.pooled(states, mask)))


class TokenHead(nn.Module):
    """A class for each token: states (b, n, dim) -> logits (b, n, num_classes)."""

    def __init__(self, dim: int, num_classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout, self.output = nn.Dropout(dropout), nn.Linear(dim, num_classes)

    def forward(self, states: Tensor, mask: Tensor | None = None, embedding: nn.Module | None = None) -> Tensor:
        return self.output(self.dropout(states))


class AnswerHead(nn.Module):
    """Where an answer starts and ends: states (b, n, dim) -> logits (b, n) of its first token, and (b, n) of its last."""

    outputs = ("start", "end")

    def __init__(self, dim: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout, self.output = nn.Dropout(dropout), nn.Linear(dim, 2)

    def forward(self, states: Tensor, mask: Tensor | None = None, embedding: nn.Module | None = None) -> tuple[Tensor, Tensor]:
        start, end = self.output(self.dropout(states)).unbind(-1)
        return start, end


class MaskedHead(nn.Module):
    """What a masked token was: states (..., dim) -> logits (..., vocab_size), by the embedding's table and a bias of its own."""

    def __init__(self, dim: int, vocab_size: int, eps: float = 1e-12) -> None:
        super().__init__()
        self.dense, self.activation, self.norm = nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim, eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, states: Tensor, mask: Tensor | None, embedding: TokenEmbedding) -> Tensor:
        return embedding.logits(self.norm(self.activation(self.dense(states))), self.bias)
