"""Cells of recurrent networks: one step, from a token x and the state that the tokens before it have left, to the next state.

    RNN    h' = tanh(W x + U h)
    LSTM   i, f, o = sigmoid(W x + U h),  g = tanh(W x + U h)
           c' = f c + i g,  h' = o tanh(c'), or P (o tanh(c')) with a projection
    GRU    r, z = sigmoid(W x + U h),  n = tanh(W x + r (U h))
           h' = (1 - z) n + z h

Elman, "Finding Structure in Time", 1990. Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997; f: Gers et al., 2000; P: Sak
et al., 2014 (arXiv 1402.1128). Cho et al., 2014 (arXiv 1406.1078).

Every gate has a W and a U of its own, each with a bias; the letters are torch's and so is their order in the weights. The reset
gate r comes after the product with U, as in cuDNN; Cho et al. have it before, U (r h), and z and 1 - z the other way round.

A cell is a module with `dim` and `state_dims`, the sizes of a token and of each tensor of the state, of which the first is the
output; with `input`, what can be computed of all tokens at once; and with ``step(projected, state)``, which does the rest.
"""

from __future__ import annotations

from torch import Tensor, nn

from layers.checks import require, require_axes

State = tuple[Tensor, ...]
"""What is known of the past: (h,), of an LSTM (h, c)."""


class Cell(nn.Module):
    """Abstract: x (b, dim), state -> the next state, tensors (b, d) for d in `state_dims`."""

    def __init__(self, dim: int, hidden_dim: int, gates: int, bias: bool, projection_dim: int | None = None) -> None:
        super().__init__()
        require(dim > 0, "dim", dim, "positive")
        require(hidden_dim > 0, "hidden_dim", hidden_dim, "positive")
        self.dim = dim
        self.state_dims: tuple[int, ...] = (projection_dim or hidden_dim,)
        self.input = nn.Linear(dim, gates * hidden_dim, bias)
        self.hidden = nn.Linear(self.state_dims[0], gates * hidden_dim, bias)

    def reset_parameters(self) -> None:
        """Uniform in ±hidden_dim^-0.5, as in `nn.LSTM`; biases too."""
        for linear in (m for m in self.modules() if isinstance(m, nn.Linear)):
            for parameter in linear.parameters():
                nn.init.uniform_(parameter, -(self.state_dims[-1] ** -0.5), self.state_dims[-1] ** -0.5)

    def forward(self, x: Tensor, state: State) -> State:
        require_axes(x, "x", "batch dim", dim=self.dim)
        require_state(state, "batch", self.state_dims, batch=x.shape[0])
        return self.step(self.input(x), state)

    def step(self, projected: Tensor, state: State) -> State:
        """projected: ``input(x)``."""
        raise NotImplementedError


class RNNCell(Cell):
    """x (b, dim), (h,) -> (h',), each (b, hidden_dim). activation: tanh unless given, `nn.ReLU()`. Twin: `nn.RNNCell`."""

    def __init__(self, dim: int, hidden_dim: int, *, bias: bool = True, activation: nn.Module | None = None) -> None:
        super().__init__(dim, hidden_dim, 1, bias)
        self.activation = nn.Tanh() if activation is None else activation
        self.reset_parameters()

    def step(self, projected: Tensor, state: State) -> State:
        return (self.activation(projected + self.hidden(state[0])),)


class LSTMCell(Cell):
    """x (b, dim), (h, c) -> (h', c'): h (b, projection_dim or hidden_dim), c (b, hidden_dim). Twin: `nn.LSTMCell`.

    projection_dim: of the h that goes on, narrower than c; None for no projection.
    """

    def __init__(self, dim: int, hidden_dim: int, *, bias: bool = True, projection_dim: int | None = None) -> None:
        narrower = projection_dim is None or 0 < projection_dim < hidden_dim
        require(narrower, "projection_dim", projection_dim, f"positive and below hidden_dim {hidden_dim}")
        super().__init__(dim, hidden_dim, 4, bias, projection_dim)
        self.projection = None if projection_dim is None else nn.Linear(hidden_dim, projection_dim, bias=False)
        self.state_dims: tuple[int, ...] = (*self.state_dims, hidden_dim)
        self.reset_parameters()

    def step(self, projected: Tensor, state: State) -> State:
        h, c = state
        i, f, g, o = (projected + self.hidden(h)).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return h if self.projection is None else self.projection(h), c


class GRUCell(Cell):
    """x (b, dim), (h,) -> (h',), each (b, hidden_dim). Twin: `nn.GRUCell`."""

    def __init__(self, dim: int, hidden_dim: int, *, bias: bool = True) -> None:
        super().__init__(dim, hidden_dim, 3, bias)
        self.reset_parameters()

    def step(self, projected: Tensor, state: State) -> State:
        (h,) = state
        x_r, x_z, x_n = projected.chunk(3, -1)
        h_r, h_z, h_n = self.hidden(h).chunk(3, -1)
        r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
        n = (x_n + r * h_n).tanh()
        return (n + z * (h - n),)


def require_state(state: State, axes: str, dims: tuple[int, ...], **sizes: int) -> None:
    """`ValueError` unless the state has tensors of these axes, after which come `output_dim`, and of an LSTM's c `hidden_dim`."""
    if not isinstance(state, tuple) or len(state) != len(dims):
        got = f"{type(state).__name__} of {len(state)}" if isinstance(state, tuple | list) else type(state).__name__
        raise ValueError(f"state must be a tuple of {len(dims)} tensors, got {got}")
    for n, (tensor, dim) in enumerate(zip(state, dims, strict=True)):
        last = "hidden_dim" if n else "output_dim"
        require_axes(tensor, f"state[{n}]", f"{axes} {last}", **{last: dim}, **sizes)
