"""Two ways to compute attention: torch's fused kernels, and the formula written down.

Fused kernels need memory for q + k rows, not q * k, and have a first derivative, backward, and no other. `fused` lends them the
formula's for the case that a backward pass is itself differentiated.

Axes: b batch, h heads, q queries, k keys, d features of a head. A mask hides no row wholly.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.forward_ad import unpack_dual
from torch.nn import functional as F

from layers import masks


def attended(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    causal: bool,
    dropout: float,
    return_weights: bool,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`layers.attention.attend`, for inputs that are known to fit.

    Where a compiler for the CPU sees a single query, as in decoding, it gets the formula, and makes one loop of it.
    """
    single = query.shape[2] == 1 and query.device.type == "cpu" and torch.compiler.is_compiling()
    explicit = return_weights or single or softcap is not None or needs_formula(query, key, value, bias)
    alone = mask is None and bias is None and query.shape[2] == key.shape[2] and not explicit
    if causal and not alone:
        triangle = masks.causal(query.shape[2], key.shape[2], query.device)
        mask = triangle if mask is None else mask & triangle
    dead = None
    if mask is not None:
        dead = ~mask.any(-1, keepdim=True)  # such rows attend to everything instead, and are overwritten at the end
        mask = mask | dead
    if explicit:
        output, weights = formula(query, key, value, mask, bias, dropout, single, softcap)
        output = output if dead is None else output.masked_fill(dead, 0.0)
        return output, (weights if dead is None else weights.masked_fill(dead, 0.0)) if return_weights else None
    if bias is not None:
        mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
    output = fused(query, key, value, mask, dropout, causal and alone)
    return (output if dead is None else output.masked_fill(dead, 0.0)), None


def formula(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    single: bool = False,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(q k^T / sqrt(d) + bias) v: query (b, h, q, d), key (b, h, k, d), value (b, h, k, e) -> (b, h, q, e), and weights.

    Scores are computed in float32 or better, under autocast too, of queries that are scaled before the product, for float16 ends
    at 65,504.
    single: for one query, in a form of which a compiler makes one loop.
    """
    precise = torch.promote_types(query.dtype, torch.float32)
    root = query.shape[-1] ** 0.5
    if torch.jit.is_tracing():  # which takes a size for a tensor, and its root for one in float32
        root = query.new_full((), query.shape[-1], dtype=precise).sqrt()
    scaled, keys = query.to(precise) / root, key.to(precise)
    kind = query.device.type
    cast_back = kind != "meta" and torch.is_autocast_enabled(kind)
    with torch.autocast(kind, enabled=False) if cast_back else nullcontext():
        scores = (scaled * keys).sum(-1)[:, :, None] if single else scaled @ keys.mT
    scores = scores if softcap is None else softcap * (scores / softcap).tanh()
    scores = scores if bias is None else scores + bias
    scores = scores if mask is None else scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(-1).to(value.dtype)
    kept = F.dropout(weights, dropout)
    return (kept.mT * value).sum(2, keepdim=True) if single else kept @ value, weights


def needs_formula(*tensors: Tensor | None) -> bool:
    """Whether transforms of `torch.func` are at work, or forward-mode derivatives, of which fused kernels have none."""
    if torch.compiler.is_compiling():
        return False
    if torch._C._are_functorch_transforms_active():
        return True
    return forward_ad._current_level >= 0 and any(x is not None and unpack_dual(x).tangent is not None for x in tensors)


def fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, causal: bool) -> Tensor:
    """`F.scaled_dot_product_attention` with second derivatives. mask: boolean, or a float to add to the scores.

    Dropout cannot be repeated by the formula; a mask that takes gradients goes to torch's own formula on a CPU.
    """
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    trained = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    if traced or not trained or dropout > 0 or (mask is not None and mask.requires_grad):
        return F.scaled_dot_product_attention(query, key, value, mask, dropout, causal)
    if mask is not None and mask.dtype == torch.bool:  # as torch does; so that both keep the same tensor
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, float("-inf"))
    output = F.scaled_dot_product_attention(query, key, value, mask, 0.0, causal)
    return TwiceDifferentiable.apply(output, query, key, value, mask, causal)


class TwiceDifferentiable(torch.autograd.Function):
    """Returns the fused kernel's output. Its backward passes gradients to the kernel.

    Under `create_graph` it differentiates the formula instead.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        ctx.save_for_backward(query, key, value, mask)
        ctx.causal = causal
        return output.detach()  # not a view, for which autograd has more rules

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            return *gradients, None, None, None, None, None
        *inputs, mask = ctx.saved_tensors
        query, key, value = (x.view_as(x) for x in inputs)  # apart, where two of them are one tensor
        triangle = masks.causal(query.shape[2], key.shape[2], query.device) if ctx.causal else None
        output, _ = formula(query, key, value, triangle, mask)
        wanted = [x for x in (query, key, value) if x.requires_grad]
        found = iter(torch.autograd.grad(output, wanted, gradients, create_graph=True))
        return None, *(next(found) if x.requires_grad else None for x in (query, key, value)), None, None
