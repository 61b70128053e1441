"""Training that feels the rounding to 8-bit integers, so that a network loses less when it is quantized.

Weights and inputs of convolutions and linear layers are rounded in the forward pass, and gradients go through as if they were
not: the straight-through estimator of Bengio et al., 2013 (arXiv 1308.3432), as Jacob et al., 2017 (arXiv 1712.05877) use it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from layers.checks import require

LAYERS = {F.conv2d, F.linear}


def rounded_rows(weight: Tensor) -> Tensor:
    """weight (o, ...) -> what integers from -128 to 127 stand for, a scale for each row, whose largest number is at 127.5."""
    require(weight.is_floating_point(), "weight", weight.dtype, "floats")
    rows = weight.detach().flatten(1).abs().amax(1).reshape(-1, *[1] * (weight.ndim - 1))
    scale = (rows / 127.5).clamp_min(torch.finfo(torch.float32).eps)
    return through(weight, (weight.detach() * (1 / scale)).round().clamp(-128, 127) * scale)


def rounded_inputs(x: Tensor) -> Tensor:
    """x of any shape -> what integers from 0 to 255 stand for, with a scale and a zero for all of it, over all processes.

    Its range is that of this batch, and 0, which stays exact. Where torch's processes have been joined, all must call.
    """
    require(x.is_floating_point(), "x", x.dtype, "floats")
    ends = torch.cat([x.detach().flatten(), x.new_zeros(1)]).aminmax()
    low, high = across_processes(*ends)
    scale = ((high - low) / 255).clamp_min(torch.finfo(torch.float32).eps)
    zero = (-low / scale).round().clamp(0, 255)
    return through(x, ((x.detach() / scale).round() + zero).clamp(0, 255).sub(zero) * scale)


def through(x: Tensor, rounded: Tensor) -> Tensor:
    """The values of `rounded`, with the gradient of x."""
    return Through.apply(x, rounded)


class Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0], None


def across_processes(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the greatest of all processes."""
    if not (dist.is_available() and dist.is_initialized()):
        return low, high
    ends = torch.stack([-low, high])
    dist.all_reduce(ends, dist.ReduceOp.MAX)
    return -ends[0], ends[1]


class FakeQuantized(TorchFunctionMode):
    """While it is entered, convolutions and linear layers compute with rounded weights and inputs; biases stay as they are.

    Nothing is added to a model. Of an integer network, what is added between layers is rounded too, which it is not here.
    """

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in LAYERS and len(args) > 1:
            x, weight, *others = args
            return func(rounded_inputs(x), rounded_rows(weight), *others, **kwargs)
        return func(*args, **kwargs)
