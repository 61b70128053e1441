"""The position-wise network of a Transformer block: a hidden layer that is wider than the model, and back.

FeedForward:  W2 act(W1 x)                 Vaswani et al., 2017 (arXiv 1706.03762), with ReLU; GELU in BERT and GPT
Gated:        W2 (act(Wg x) * (W1 x))      Shazeer, "GLU Variants Improve Transformer", 2020 (arXiv 2002.05202)
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from layers.checks import require


class FeedForward(nn.Module):
    """x (..., dim) -> (..., dim). `activation` is a module: `nn.ReLU()`, `nn.GELU()` (exact), `nn.GELU("tanh")` (GPT-2's).

    Proven against the same layers of torch in sequence, and GPT-2's of transformers.
    """

    def __init__(
        self, dim: int, hidden_dim: int, *, activation: nn.Module | None = None, bias: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        require(hidden_dim > 0, "hidden_dim", hidden_dim, "positive")
        require(0 <= dropout < 1, "dropout", dropout, "a probability below 1")
        self.dim = dim
        self.up = nn.Linear(dim, hidden_dim, bias)
        self.activation = nn.ReLU() if activation is None else activation
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(hidden_dim, dim, bias)

    def forward(self, x: Tensor) -> Tensor:
        require_dim(x, self.dim)
        return self.down(self.dropout(self.activation(self.up(x))))


class GatedFeedForward(nn.Module):
    """x (..., dim) -> (..., dim). Two hidden layers, one of which opens and closes the other; see `SwiGLU` and `GEGLU`.

    Proven against Llama's and T5's of transformers.
    """

    def __init__(self, dim: int, hidden_dim: int, *, activation: nn.Module, bias: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        require(hidden_dim > 0, "hidden_dim", hidden_dim, "positive")
        require(0 <= dropout < 1, "dropout", dropout, "a probability below 1")
        self.dim = dim
        self.gate = nn.Linear(dim, hidden_dim, bias)
        self.up = nn.Linear(dim, hidden_dim, bias)
        self.activation = activation
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(hidden_dim, dim, bias)

    def forward(self, x: Tensor) -> Tensor:
        require_dim(x, self.dim)
        return self.down(self.dropout(self.activation(self.gate(x)) * self.up(x)))


def SwiGLU(dim: int, hidden_dim: int, **options: Any) -> GatedFeedForward:  # noqa: N802
    """Gated by SiLU (Swish), as in PaLM and Llama."""
    return GatedFeedForward(dim, hidden_dim, activation=nn.SiLU(), **options)


def GEGLU(dim: int, hidden_dim: int, *, approximate: str = "none", **options: Any) -> GatedFeedForward:  # noqa: N802
    """Gated by GELU, as in T5 v1.1 and Gemma, which take `approximate="tanh"`."""
    return GatedFeedForward(dim, hidden_dim, activation=nn.GELU(approximate), **options)


def require_dim(x: Tensor, dim: int) -> None:
    if x.ndim < 1 or x.shape[-1] != dim:
        raise ValueError(f"x: dim must be {dim}, got shape {tuple(x.shape)}")
