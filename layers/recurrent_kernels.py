"""Torch's own kernels for recurrent networks, over the parameters of `layers.cells`: cuDNN's, oneDNN's, and loops in C++.

One call does all layers and tokens. Rows of unequal length are packed, as by `nn.utils.rnn.pack_padded_sequence`: tokens of one
time step stand together, in the order of the rows, of which the longest comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from layers.backends import needs_formula
from layers.cells import GRUCell, LSTMCell, RNNCell, State

Layers = Sequence[tuple[Any, ...]]
"""The cells of each layer: forward, and backward if there is one."""


def exporting() -> bool:
    """Whether `torch.export` looks on. Torch 2.6 cannot say: dynamo takes kernels for it alone, else there is another flag."""
    if hasattr(torch.compiler, "is_exporting"):
        return torch.compiler.is_exporting()
    return torch._dynamo.config.allow_rnn or torch.compiler._is_compiling_flag  # type: ignore[attr-defined]


def can_run(layers: Layers, x: Tensor, state: State, mask: Tensor | None) -> bool:
    """Whether `run` may stand for the cells. What it packs depends on values, which recorded programs must not."""
    recorded = torch.jit.is_tracing() or (torch.compiler.is_compiling() and exporting())
    if x.numel() == 0 or x.is_meta or (mask is not None and recorded) or needs_formula(x, *state):
        return False
    cells = [cell for layer in layers for cell in layer]
    kernel, biased, cast = kernel_of(cells[0]), cells[0].input.bias is not None, torch.is_autocast_enabled(x.device.type)
    if kernel is torch.lstm and x.is_cpu and x.dtype != torch.float64:
        if cells[0].projection is not None:
            return False  # torch would warn that oneDNN has no projections, and write out the loop too
        if cast and x.dtype == torch.float32 and not onednn_has(torch.get_autocast_dtype("cpu")):
            return False  # torch would call oneDNN all the same, which raises
    return kernel is not None and all(
        kernel_of(cell) is kernel
        and all(type(m) is nn.Linear and (cast or m.weight.dtype == x.dtype) for m in linears(cell))
        and all((m.bias is not None) == biased for m in linears(cell)[:2])
        and not any(hooked(m) for m in cell.modules())
        for cell in cells
    )


def onednn_has(dtype: torch.dtype) -> bool:
    """Whether oneDNN computes in this half precision on this processor: of those with AVX2 alone on none."""
    known = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return dtype in known and known[dtype]()


def kernel_of(cell: Any) -> Callable[..., Any] | None:
    """The kernel that computes what such cells do, if there is one."""
    kind = (type(cell), type(cell.activation)) if type(cell) is RNNCell else (type(cell),)
    return KERNELS.get(kind)


KERNELS: dict[tuple[type, ...], Callable[..., Any]] = {
    (RNNCell, nn.Tanh): torch.rnn_tanh,
    (RNNCell, nn.ReLU): torch.rnn_relu,
    (LSTMCell,): torch.lstm,
    (GRUCell,): torch.gru,
}


def linears(cell: Any) -> list[nn.Linear]:
    return [m for m in (cell.input, cell.hidden, getattr(cell, "projection", None)) if m is not None]


def hooked(module: nn.Module) -> bool:
    """Whether a call of the module does more than its class says, such as to compute a pruned weight."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(len(some) > 0 for some in hooks)


def run(layers: Layers, x: Tensor, state: State, mask: Tensor | None, dropout: float) -> tuple[Tensor, State]:
    """As `Recurrent.written_out`. A compiler leaves it alone: of oneDNN's kernel it knows no gradients."""
    apart = torch.compiler.is_compiling() and not exporting()
    return (outside_of_graphs if apart else computed)(layers, x, state, mask, dropout)


def computed(layers: Layers, x: Tensor, state: State, mask: Tensor | None, dropout: float) -> tuple[Tensor, State]:
    cells = [cell for layer in layers for cell in layer]
    kernel: Any = kernel_of(cells[0])
    weights = [weight for cell in cells for weight in weights_of(cell)]
    train = dropout > 0 or torch.is_grad_enabled()  # cuDNN has gradients in training only, which is nothing else but dropout
    settings = cells[0].input.bias is not None, len(layers), dropout, train, len(layers[0]) > 1
    if mask is None or bool(mask.all()):
        output, *last = kernel(x, as_hidden(state), weights, *settings, True)
        # torch 2.6 believes, where it only traces shapes, that last states of an LSTM have an axis more
        return output, tuple(part.reshape(-1, *part.shape[-2:]).transpose(0, 1) for part in last)
    (b, n), lengths = mask.shape, mask.sum(1)
    order = lengths.argsort(descending=True, stable=True)
    places = mask.int().argsort(dim=1, descending=True, stable=True)  # of each row the real tokens, then the others
    steps = torch.arange(n, device=x.device)[:, None] < lengths[order].clamp(min=1)  # an empty row takes a step that is undone
    index = (order * n + places[order].t())[steps]
    padding, sizes = ~mask.flatten()[index][:, None], steps.sum(1).cpu()
    packed = x.flatten(0, 1).index_select(0, index).masked_fill(padding, 0.0)  # for 0 * NaN is NaN
    hidden = as_hidden(tuple(part[order] for part in state))
    packed, *last = kernel(packed, sizes[sizes > 0], hidden, weights, *settings)
    output = packed.new_zeros(b * n, packed.shape[1]).index_copy(0, index, packed.masked_fill(padding, 0.0))
    some, rows = (lengths > 0)[:, None, None], order.argsort()
    after = (torch.where(some, new.transpose(0, 1)[rows], old) for new, old in zip(last, state, strict=True))
    return output.unflatten(0, (b, n)), tuple(after)


outside_of_graphs = torch.compiler.disable(computed)


def weights_of(cell: Any) -> list[Tensor]:
    """In the order of the kernels: those of both products, their biases, the projection's."""
    first, second, *projection = linears(cell)
    biases = [bias for bias in (first.bias, second.bias) if bias is not None]
    return [first.weight, second.weight, *biases, *(linear.weight for linear in projection)]


def as_hidden(state: State) -> Tensor | State:
    """(b, cells, d) -> (cells, b, d), as the kernels have it: a tensor, or several."""
    parts = tuple(part.transpose(0, 1).contiguous() for part in state)
    return parts if len(parts) > 1 else parts[0]
