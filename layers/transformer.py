"""Residual wiring, and the blocks of a Transformer: what is called sublayer below is an attention or a feed-forward network.

    PostNorm:  norm(x + drop(sublayer(x)))     Vaswani et al., 2017 (arXiv 1706.03762)
    PreNorm:   x + drop(sublayer(norm(x)))     Xiong et al., "On Layer Normalization", 2020 (arXiv 2002.04745)
    SandwichNorm:  x + drop(after(sublayer(norm(x))))    Ding et al., "CogView", 2021 (arXiv 2105.13290); Gemma 2

A pre-norm stack needs one more norm after its last block; a post-norm stack has one there already.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from layers import masks
from layers.cache import Cache, CrossCache
from layers.checks import require, require_axes
from layers.padding import RealTokens
from layers.positions import Angles


class PostNorm(nn.Module):
    """x -> norm(x + drop(sublayer(x, ...))); whatever else it is called with goes to the sublayer."""

    def __init__(self, sublayer: nn.Module, norm: nn.Module, drop: nn.Module | None = None) -> None:
        super().__init__()
        self.sublayer, self.norm, self.drop = sublayer, norm, nn.Identity() if drop is None else drop

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.norm(x + self.drop(self.sublayer(x, *args, **kwargs)))


class PreNorm(nn.Module):
    """x -> x + drop(sublayer(norm(x), ...)); whatever else it is called with goes to the sublayer."""

    def __init__(self, sublayer: nn.Module, norm: nn.Module, drop: nn.Module | None = None) -> None:
        super().__init__()
        self.sublayer, self.norm, self.drop = sublayer, norm, nn.Identity() if drop is None else drop

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x + self.drop(self.sublayer(self.norm(x), *args, **kwargs))


class SandwichNorm(nn.Module):
    """x -> x + drop(after(sublayer(norm(x), ...))); whatever else it is called with goes to the sublayer."""

    def __init__(self, sublayer: nn.Module, norm: nn.Module, after: nn.Module, drop: nn.Module | None = None) -> None:
        super().__init__()
        self.sublayer, self.norm, self.after, self.drop = sublayer, norm, after, nn.Identity() if drop is None else drop

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x + self.drop(self.after(self.sublayer(self.norm(x), *args, **kwargs)))


class StochasticDepth(nn.Module):
    """Drops whole rows (b, ...) with probability p in training and scales the others by 1 / (1 - p); for `drop` above.

    Huang et al., "Deep Networks with Stochastic Depth", 2016 (arXiv 1603.09382).

    Proven against torchvision's.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        require(0 <= p < 1, "p", p, "a probability below 1")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0 or not self.training:
            return x
        keep = torch.rand((x.shape[0], *[1] * (x.ndim - 1)), device=x.device) >= self.p
        return x * keep / (1 - self.p)


class EncoderBlock(nn.Module):
    """x (b, n, dim) -> (b, n, dim), through self-attention and feed-forward network, each inside its wiring.

    Of a decoder-only model too, with a causal attention and a cache.

    Proven against `nn.TransformerEncoderLayer`.
    """

    def __init__(self, attention: nn.Module, feedforward: nn.Module) -> None:
        super().__init__()
        self.attention, self.feedforward = attention, feedforward

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        positions: Tensor | Angles | None = None,
        cache: Cache | None = None,
        real: RealTokens | None = None,
    ) -> Tensor:
        """mask: boolean, True = may attend, broadcastable to (b, heads, n, n).

        positions: if given: integers (n,) or (b, n), or the `angles` of a `Rotary`.
        real: if given, x and the output are (1, t, dim), the real tokens of rows (b, n), which mask and positions are about.
        """
        require_axes(x, "x", "batch n dim")
        given = {"positions": positions, "real": real}
        given = {name: value for name, value in given.items() if value is not None}
        return self.feedforward(self.attention(x, mask=mask, cache=cache, **given))


class DecoderBlock(nn.Module):
    """x (b, n, dim), memory (b, k, memory dim) -> (b, n, dim): causal self-attention, attention to the memory, feed-forward.

    Proven against `nn.TransformerDecoderLayer`.
    """

    def __init__(self, attention: nn.Module, cross_attention: nn.Module, feedforward: nn.Module) -> None:
        super().__init__()
        self.attention, self.cross_attention, self.feedforward = attention, cross_attention, feedforward

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        *,
        mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: tuple[Cache, CrossCache] | None = None,
    ) -> Tensor:
        """mask, memory_mask: boolean, True = may attend, broadcastable to (b, heads, n, n) and (b, heads, n, k).

        positions: of x, if given: integers (n,) or (b, n).
        """
        require_axes(x, "x", "batch n dim")
        require_axes(memory, "memory", "batch k dim", batch=x.shape[0])
        if memory_mask is not None:
            require(2 <= memory_mask.ndim <= 4, "memory_mask", tuple(memory_mask.shape), "of 2 to 4 axes")
            masks.require_fits(memory_mask, "memory_mask", batch=x.shape[0], queries=x.shape[1], keys=memory.shape[1])
        own, crossed = cache or (None, None)
        places = {} if positions is None else {"positions": positions}
        x = self.attention(x, mask=mask, cache=own, **places)
        x = self.cross_attention(x, memory, mask=memory_mask, cache=crossed)
        return self.feedforward(x)
