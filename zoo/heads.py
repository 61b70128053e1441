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
        self.dropout, self.dense = nn.Dropout(dropout), nn.Linear(dim, dim)
        self.activation = nn.Tanh() if activation is None else activation

    def forward(self, states: Tensor, mask: Tensor | None = None, embedding: nn.Module | None = None) -> Tensor:
        require(states.shape[1] > 0, "states", tuple(states.shape), "of one token a row at least")
        first = 0 if mask is None else mask.int().argmax(1)
        rows = torch.arange(states.shape[0], device=states.device)
        return self.activation(self.dense(self.dropout(states[rows, first])))


class SequenceHead(nn.Module):
    """A class for each row: states (b, n, dim) -> logits (b, num_classes)."""

    def __init__(self, pooled: PooledHead, num_classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.pooled, self.dropout = pooled, nn.Dropout(dropout)
        self.output = nn.Linear(pooled.dense.out_features, num_classes)

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
