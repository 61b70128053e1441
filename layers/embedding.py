"""Token embeddings, and the same table as output layer.

Press and Wolf, "Using the Output Embedding to Improve Language Models", 2016 (arXiv 1608.05859).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers.checks import require


class TokenEmbedding(nn.Module):
    """tokens (...) of 0 .. vocab_size - 1 -> (..., dim); `logits` goes back with the same table.

    scale:   factor of the embeddings, sqrt(dim) in the 2017 Transformer; `logits` does not use it.
    padding: token whose row starts as zeros and gets no gradient from `forward`.
    std:     standard deviation of the other rows at the start, dim^-0.5 unless given.
    Errors:  `ValueError` for tokens that are no integers of 32 or 64 bits and, on the CPU, for one outside of the vocabulary.
             Compiled calls, and values on a GPU, which are not worth waiting for, run into torch's own bounds check.

    Proven against `nn.Embedding`, times its factor.
    """

    def __init__(
        self, vocab_size: int, dim: int, *, scale: float = 1.0, padding: int | None = None, std: float | None = None
    ) -> None:
        super().__init__()
        require(vocab_size > 0, "vocab_size", vocab_size, "positive")
        require(dim > 0, "dim", dim, "positive")
        require(padding is None or 0 <= padding < vocab_size, "padding", padding, f"a token from 0 to {vocab_size - 1}")
        self.scale, self.padding, self.std = scale, padding, dim**-0.5 if std is None else std
        self.table = nn.Embedding(vocab_size, dim, padding_idx=padding)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.table.weight, std=self.std)
        if self.padding is not None:
            nn.init.zeros_(self.table.weight[self.padding].detach())

    def forward(self, tokens: Tensor) -> Tensor:
        require_indices(tokens, "tokens")
        try:
            embedded = self.table(tokens)
        except IndexError:
            require_known(tokens, "tokens", self.table.num_embeddings)
            raise
        return embedded if self.scale == 1 else embedded * self.scale

    def logits(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (..., dim), bias (vocab_size,) -> (..., vocab_size)"""
        return F.linear(x, self.table.weight, bias)


def require_indices(tokens: Tensor, name: str) -> None:
    """`ValueError` unless these are integers of a dtype by which torch looks rows up."""
    require(tokens.dtype in (torch.long, torch.int), name, tokens.dtype, "of dtype torch.int64 or torch.int32")


def require_known(tokens: Tensor, name: str, vocab_size: int) -> None:
    """`ValueError` unless all tokens are from 0 to vocab_size - 1; it waits for a GPU that computes them."""
    require_indices(tokens, name)
    if tokens.numel() > 0:
        low, high = (int(x) for x in tokens.aminmax())
        require(low >= 0 and high < vocab_size, name, low if low < 0 else high, f"tokens from 0 to {vocab_size - 1}")
