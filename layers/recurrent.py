"""Recurrent networks: cells that pass a state from token to token, in layers, in one direction or both.

    lstm = LSTM(dim, hidden_dim, layers=2, bidirectional=True)
    output, state = lstm(x, mask=mask)                              # of rows of unequal length
    output, state = lstm(more, state)                               # goes on where the last call ended

Two ways to compute: torch's kernels, which see all tokens and layers at once (`layers.recurrent_kernels`), and the loop written
out below, for cells of any kind. Both are proven equal to `nn.RNN`, `nn.LSTM` and `nn.GRU`.

Differs from these: the batch comes first, in states too; a mask says which tokens are real, on whichever side the padding is; a
state is always a tuple; a last state is the one after the last real token; and weights lie in linear layers of each cell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers import recurrent_kernels
from layers.cells import GRUCell, LSTMCell, RNNCell, State, require_state
from layers.checks import require, require_axes
from layers.weights import WeightMap


class Recurrent(nn.Module):
    """x (b, n, dim) -> output (b, n, directions * output_dim), and the state that goes on.

    cells:   one a layer, which see what the layer before has put out.
    backward_cells: as many that begin at the last token; a layer's two outputs stand side by side.
    dropout: of what goes from layer to layer, in training.
    fused:   whether torch's kernels compute it where they can: for cells of `layers.cells`, all of one kind and size, without
             hooks and parametrizations, outside of `torch.func` and forward-mode derivatives. Under `torch.compile` they stay as
             they are, between two graphs; the loop has one graph, in which all steps are unrolled. On a GPU cuDNN copies the
             weights into one piece for each call, and torch warns of it.

    Tensors of a state are (b, layers * directions, d), of a bidirectional network forward and backward in turn, for d in the
    `state_dims` of the cells, which all layers share.

    Proven against `nn.RNN`, `nn.LSTM` and `nn.GRU`.
    """

    def __init__(
        self, cells: Sequence[Any], backward_cells: Sequence[Any] = (), *, dropout: float = 0.0, fused: bool = True
    ) -> None:
        super().__init__()
        require(len(cells) > 0, "cells", len(cells), "one at least")
        require(len(backward_cells) in (0, len(cells)), "backward_cells", len(backward_cells), f"as many as cells, {len(cells)}")
        require(0 <= dropout < 1, "dropout", dropout, "a probability below 1")
        require(dropout == 0 or len(cells) > 1, "dropout", dropout, "0 for a single layer: it is between layers")
        self.cells, self.backward_cells = nn.ModuleList(cells), nn.ModuleList(backward_cells)
        self.dropout, self.fused = dropout, fused
        self.dim: int = cells[0].dim
        self.state_dims: tuple[int, ...] = cells[0].state_dims
        self.directions = 2 if backward_cells else 1
        self.output_dim = self.directions * self.state_dims[0]
        for n, layer in enumerate(self.layers()):
            dim = self.output_dim if n else self.dim
            for cell in layer:
                require(cell.dim == dim, f"dim of layer {n}", cell.dim, f"{dim}, what the layer before puts out")
                require(cell.state_dims == self.state_dims, f"state_dims of layer {n}", cell.state_dims, f"{self.state_dims}")

    def layers(self) -> list[tuple[Any, ...]]:
        """The cells of each layer: forward, and backward if there is one."""
        return list(zip(*(part for part in (self.cells, self.backward_cells) if len(part)), strict=True))

    def start(self, x: Tensor) -> State:
        """The state before the first token of x (b, ...): zeros."""
        count = self.directions * len(self.cells)
        return tuple(x.new_zeros(x.shape[0], count, dim) for dim in self.state_dims)

    def forward(self, x: Tensor, state: State | None = None, *, mask: Tensor | None = None) -> tuple[Tensor, State]:
        """state: zeros unless given. mask: boolean (b, n), True for real tokens.

        The others are skipped: they may hold anything, their output is zeros, and a row gives what it gives without them.
        """
        require_axes(x, "x", "batch tokens dim", dim=self.dim)
        if mask is not None:
            require_axes(mask, "mask", "batch tokens", batch=x.shape[0], tokens=x.shape[1])
            require(mask.dtype == torch.bool, "mask", mask.dtype, "boolean, True for real tokens")
        state = self.start(x) if state is None else state
        count = self.directions * len(self.cells)
        require_state(state, "batch cells", self.state_dims, batch=x.shape[0], cells=count)
        dropout = self.dropout if self.training else 0.0
        if self.fused and recurrent_kernels.can_run(self.layers(), x, state, mask):
            return recurrent_kernels.run(self.layers(), x, state, mask, dropout)
        return self.written_out(x, state, mask, dropout)

    def written_out(self, x: Tensor, state: State, mask: Tensor | None, dropout: float) -> tuple[Tensor, State]:
        """As `forward`, token by token."""
        x = x.transpose(0, 1)
        real = None if mask is None else mask.t().unsqueeze(-1)
        x = x if real is None else x.masked_fill(~real, 0.0)  # for 0 * NaN is NaN
        began, last = list(zip(*(part.unbind(1) for part in state), strict=True)), []
        for layer in self.layers():
            x = F.dropout(x, dropout) if last and dropout else x
            outputs = []
            for direction, cell in enumerate(layer):
                output, after = through(cell, x, began[len(last)], real, backward=direction == 1)
                outputs.append(output)
                last.append(after)
            x = torch.cat(outputs, -1) if len(outputs) > 1 else outputs[0]
        return x.transpose(0, 1), tuple(torch.stack(parts, 1) for parts in zip(*last, strict=True))


def through(cell: Any, x: Tensor, state: State, real: Tensor | None, backward: bool) -> tuple[Tensor, State]:
    """x (n, b, dim), state, real (n, b, 1) -> output (n, b, d), zeros for what is not real, and the state at the end."""
    projected, outputs = cell.input(x).unbind(0), []
    for t in reversed(range(len(projected))) if backward else range(len(projected)):
        after = cell.step(projected[t], state)
        state = after if real is None else tuple(torch.where(real[t], new, old) for new, old in zip(after, state, strict=True))
        outputs.append(state[0])
    if not outputs:
        return x.new_zeros(0, x.shape[1], cell.state_dims[0]), state
    output = torch.stack(outputs[::-1] if backward else outputs)
    return output if real is None else output.masked_fill(~real, 0.0), state


Activation = Callable[[], nn.Module]


def RNN(dim: int, hidden_dim: int, *, activation: Activation = nn.Tanh, bias: bool = True, **options: Any) -> Recurrent:  # noqa: N802
    """Elman's network; `nn.RNN` has tanh and `nn.ReLU`. Options: those of `stacked`."""
    return stacked(lambda dim: RNNCell(dim, hidden_dim, bias=bias, activation=activation()), dim, **options)


def LSTM(dim: int, hidden_dim: int, *, projection_dim: int | None = None, bias: bool = True, **options: Any) -> Recurrent:  # noqa: N802
    """Long short-term memory. projection_dim: of the output, see `LSTMCell`. Options: those of `stacked`. Twin: `nn.LSTM`."""
    return stacked(lambda dim: LSTMCell(dim, hidden_dim, bias=bias, projection_dim=projection_dim), dim, **options)


def GRU(dim: int, hidden_dim: int, *, bias: bool = True, **options: Any) -> Recurrent:  # noqa: N802
    """Gated recurrent units. Options: those of `stacked`. Twin: `nn.GRU`."""
    return stacked(lambda dim: GRUCell(dim, hidden_dim, bias=bias), dim, **options)


def stacked(
    cell: Callable[[int], Any],
    dim: int,
    *,
    layers: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
    fused: bool = True,
) -> Recurrent:
    """`Recurrent` of layers that ``cell(dim)`` makes for the dim of what they see."""
    require(layers > 0, "layers", layers, "positive")
    directions: tuple[list[Any], ...] = ([], []) if bidirectional else ([],)
    for _ in range(layers):
        for cells in directions:
            cells.append(cell(dim))
        dim = len(directions) * directions[0][-1].state_dims[0]
    return Recurrent(*directions, dropout=dropout, fused=fused)


def rows(ours: str, suffix: str) -> list[tuple[str, str]]:
    names = {"input.weight": "weight_ih", "hidden.weight": "weight_hh", "input.bias": "bias_ih", "hidden.bias": "bias_hh"}
    names["projection.weight"] = "weight_hr"
    return [(f"{ours}.{{i}}.{own}", f"{theirs}_l{{i}}{suffix}") for own, theirs in names.items()]


NAMES_OF_TORCH = WeightMap(*rows("cells", ""), *rows("backward_cells", "_reverse"))
"""Names of a `Recurrent` and of `nn.RNN`, `nn.LSTM` and `nn.GRU`."""
