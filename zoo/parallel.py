"""Tensor parallelism: the processes of a group hold a part of every attention and feed-forward network each.

    y = B act(A x)      A by rows (of heads, of hidden units), B by columns: each process computes a summand of y

What goes in is the same in all processes, and so is what comes out, the sum over the group. Backwards it is the other way
around: gradients of what goes in are summed. Two sums of (b, n, dim) a part forward and backward together, whatever the group.
Norms, embeddings and output layers stay whole in each process.

Shoeybi et al., "Megatron-LM", 2019 (arXiv 1909.08053).
"""

from __future__ import annotations

import copy
from collections import Counter
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from layers.attention import MultiHeadAttention
from layers.checks import require
from layers.feedforward import FeedForward, GatedFeedForward

PLANS: dict[type[nn.Module], dict[str, str]] = {
    MultiHeadAttention: {"query": "rows", "key": "rows", "value": "rows", "output": "columns"},
    FeedForward: {"up": "rows", "down": "columns"},
    GatedFeedForward: {"gate": "rows", "up": "rows", "down": "columns"},
}
"""What is split, and how its weights (out, in) are: Transformer, BERT, GPT and their relatives are made of these."""
ACROSS = ("query_norm", "key_norm")
"""Whole modules between split ones, that see the process's own heads: their gradients are summed."""
INPUTS = ("x", "query", "key", "value")


class SumOfGradients(torch.autograd.Function):
    """y = x, the gradient is the sum over the group."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None


class Sum(torch.autograd.Function):
    """y = sum of x over the group, the gradient is that of y."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class RowsLinear(nn.Linear):
    """A linear layer that has some rows of a whole one's weight, and of its bias."""


class ColumnsLinear(nn.Linear):
    """A linear layer that has some columns of a whole one's weight: (..., some features) -> the sum over the group, and bias."""

    group: Any = None

    def forward(self, input: Tensor) -> Tensor:
        y = Sum.apply(F.linear(input, self.weight), self.group)
        return y if self.bias is None else y + self.bias


def tensor_parallel(model: nn.Module, mesh: Any) -> nn.Module:
    """Keep this process's part of every attention and feed-forward network, in place; the model, for the same calls.

    mesh: a `DeviceMesh` of one axis, or a process group. Every process of it gives the same model, calls it with the same inputs,
          and draws from the same seed, as dropout between the parts must be the same: masks of dropout within the heads, and
          within hidden layers, then repeat from process to process.
    Attentions of a split model return the weights of their own heads. It cannot be copied or saved as it is: `whole` gives its
    tensors back.
    Errors: `ValueError` if nothing can be split, and for heads, hidden units or layers that cannot be; nothing is changed then.
    Proven against the whole model, forward and backward.
    """
    group = mesh.get_group() if hasattr(mesh, "get_group") else mesh
    number, index = dist.get_world_size(group), dist.get_rank(group)
    found = {name: module for name, module in model.named_modules() if type(module) in PLANS}
    require_divisible(model, found, number)
    for module in found.values():
        for name, way in PLANS[type(module)].items():
            setattr(module, name, part_of(getattr(module, name), way, number, index, group))
        if isinstance(module, MultiHeadAttention):
            module.heads, module.kv_heads = module.heads // number, module.kv_heads // number
            for norm in (getattr(module, name) for name in ACROSS):
                if norm is not None:
                    norm.forward = partial(with_summed_gradients, norm, group)
        module.register_forward_pre_hook(partial(entered, group), with_kwargs=True)
    return model


def require_divisible(model: nn.Module, found: dict[str, nn.Module], number: int) -> None:
    require(bool(found), "model", type(model).__name__, f"one with {', '.join(kind.__name__ for kind in PLANS)} to split")
    owners = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    for name, module in found.items():
        for last in PLANS[type(module)]:
            linear = getattr(module, last)
            ours = type(linear) is nn.Linear and all(owners[id(p)] == 1 for p in linear.parameters())
            require(
                ours, "model", f"{name}.{last}, {type(linear).__name__}", "an nn.Linear with parameters of its own, and whole"
            )
        if isinstance(module, MultiHeadAttention):
            require(module.position_bias is None, "model", f"a position_bias in {name}", "without, for it has all heads")
            for heads in ("heads", "kv_heads"):
                value = getattr(module, heads)
                require(value % number == 0, f"model, in {name}, {heads}", value, f"a multiple of the {number} processes")
        else:
            hidden: int = module.down.in_features  # type: ignore
            require(hidden % number == 0, f"model, in {name}, hidden_dim", hidden, f"a multiple of the {number} processes")


def part_of(linear: nn.Linear, way: str, number: int, index: int, group: Any) -> nn.Linear:
    rows, sizes = way == "rows", [linear.in_features, linear.out_features]
    sizes[rows] //= number
    with torch.device("meta"):
        part = (RowsLinear if rows else ColumnsLinear)(*sizes, bias=linear.bias is not None)
    weight = linear.weight.detach().chunk(number, 0 if rows else 1)[index].clone(memory_format=torch.contiguous_format)
    part.weight = nn.Parameter(weight, linear.weight.requires_grad)
    if linear.bias is not None:
        bias = linear.bias.detach().chunk(number)[index].clone() if rows else linear.bias.detach()
        part.bias = nn.Parameter(bias, linear.bias.requires_grad)
    if isinstance(part, ColumnsLinear):
        part.group = group
    return part.train(linear.training)


def entered(
    group: Any, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What goes into a split module; a tensor that goes in twice is still one."""
    known: dict[int, Tensor] = {}

    def through(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.requires_grad:
            return x
        if id(x) not in known:
            known[id(x)] = SumOfGradients.apply(x, group)
        return known[id(x)]

    return tuple(map(through, args)), {k: through(x) if k in INPUTS else x for k, x in kwargs.items()}


def with_summed_gradients(module: nn.Module, group: Any, *args: Any, **kwargs: Any) -> Any:
    """A module's forward, whose parameters' gradients are sums over the group."""
    twin = copy.copy(module)
    parameters = {n: p if p is None else SumOfGradients.apply(p, group) for n, p in module._parameters.items()}
    twin.__dict__["_parameters"] = parameters
    return type(module).forward(twin, *args, **kwargs)


def split_axes(model: nn.Module) -> dict[str, int]:
    """Of a model that `tensor_parallel` has split: names of parameters of which each process has a part, and along which axis."""
    axes: dict[str, int] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, RowsLinear):
            axes |= {f"{name}.{last}": 0 for last, p in module._parameters.items() if p is not None}
        elif isinstance(module, ColumnsLinear):
            axes[f"{name}.weight"] = 1
    return axes


def joined(part: Tensor, axis: int | None, group: Any) -> Tensor:
    """The whole tensor of parts (split_axes), in every process."""
    if axis is None:
        return part
    parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, part.contiguous(), group=group)
    return torch.cat(parts, axis)


def whole(model: nn.Module, mesh: Any) -> dict[str, Tensor]:
    """The state of the whole model, as it was before `tensor_parallel`, in every process; all of them have to ask."""
    group = mesh.get_group() if hasattr(mesh, "get_group") else mesh
    axes = split_axes(model)
    return {name: joined(x.detach(), axes.get(name), group) for name, x in model.state_dict().items()}
