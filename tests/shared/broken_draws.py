"""Blocks that draw, that have heads, that begin and that grow: each breaks one promise, beside a sound one of its kind."""

from __future__ import annotations

from typing import Any

import torch
from broken_blocks import Sound
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from layers.testing import Twin, mask, tensor
from layers.weights import WeightMap

RATE = 0.4


class Dropping(Sound):
    """dropout(tanh(x W + b))."""

    def mix(self, x: Tensor) -> Tensor:
        return self.drop(super().mix(x)) if self.training else super().mix(x)

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, RATE)


class DropsFromTheEnd(Dropping):
    """The same law from other numbers."""

    def drop(self, x):
        return x * (torch.rand(x.shape).flip(0) >= RATE) / (1 - RATE)


class HalfTheRate(Dropping):
    def drop(self, x):
        return F.dropout(x, RATE / 2)


class Unscaled(Dropping):
    def drop(self, x):
        return x * (torch.rand_like(x) >= RATE)


class DropsInFront(Dropping):
    def mix(self, x):
        return F.dropout(self.linear(x), RATE, self.training).tanh()


class DropsWholeRows(Dropping):
    def drop(self, x):
        return x * (torch.rand(x.shape[0], 1, 1) >= RATE) / (1 - RATE)


class SharedByRows(Dropping):
    def drop(self, x):
        return x * (torch.rand(1, *x.shape[1:]) >= RATE) / (1 - RATE)


class SharedByNeighbours(Dropping):
    def drop(self, x):
        return x * (torch.rand(x.shape).repeat_interleave(2, 0)[: len(x)] >= RATE) / (1 - RATE)


class OneMaskForAllCalls(Dropping):
    def drop(self, x):
        return x * (torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) >= RATE) / (1 - RATE)


class DropsNothing(Dropping):
    def drop(self, x):
        return x


class TwiceTheGradient(Dropping):
    def drop(self, x):
        y = super().drop(x)
        return 2 * y - y.detach()


dropping = dict(
    trains_differently=lambda a: True,
    stochastic=lambda a: True,
    twins=[
        Twin(
            "torch",
            build=lambda a: nn.Sequential(nn.Linear(a.dim, a.dim), nn.Tanh(), nn.Dropout(RATE)),
            weights=WeightMap(("linear", "0")),
            call=lambda m, i: m(i["x"]),
        )
    ],
)


class AlteredWhenLong(Sound):
    def mix(self, x):
        return super().mix(x) * (1.001 if x.shape[1] > 64 else 1)


class AlteredWhenWide(Sound):
    def mix(self, x):
        return super().mix(x) * (1.001 if self.dim > 32 else 1)


class FailsWhenLong(Sound):
    """A table of 64 places, without a word of it."""

    def mix(self, x):
        return super().mix(x) + 0 * torch.zeros(64)[torch.arange(x.shape[1])][:, None]


class SilentlyNarrow(Sound):
    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.linear = nn.Linear(min(dim, 32), min(dim, 32))

    def mix(self, x):
        return F.pad(super().mix(x[..., :32]), (0, max(0, x.shape[-1] - 32)))


class AlteredWhenLongAndFlipped(Sound):
    """In a configuration that is not the first."""

    def __init__(self, dim: int, flip: bool) -> None:
        super().__init__(dim)
        self.flip = flip

    def mix(self, x):
        return super().mix(x) * (1.001 if x.shape[1] > 64 and self.flip else 1)


class Attending(nn.Module):
    """Attention of x to itself: a mask (b, h, q, k) with 1 in place of any of them."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        scores = (y @ self.keys(y, mask).mT).masked_fill(~self.for_heads(mask), -1e9)
        return (scores.softmax(-1) @ self.keys(y, mask)).transpose(1, 2).flatten(-2)

    def keys(self, y: Tensor, mask: Tensor) -> Tensor:
        return y

    def for_heads(self, mask: Tensor) -> Tensor:
        return mask


class HidesFromAllWhatOneMayNotSee(Attending):
    def for_heads(self, mask):
        return mask.all(1, keepdim=True)


class ZeroesWhatOneMayNotSee(Attending):
    def keys(self, y, mask):
        return y * mask[:, :1].any(2)[..., None]


class ShowsToAllWhatOneMaySee(Attending):
    def for_heads(self, mask):
        return mask.any(1, keepdim=True)


attending: dict[str, Any] = dict(
    arguments=dict(heads=st.integers(1, 3)),
    inputs=lambda a: dict(x=tensor("batch time dim", dim=2 * a.heads), mask=mask("batch 1 1 time")),
    outputs=lambda a, s: ("batch", "time", 2 * a.heads),
    twins=[],
    invalid=[],
)


class HalfTheStart(Sound):
    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.linear.weight.data.mul_(0.5)


class SevenTenthsOfTheStart(Sound):
    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.linear.weight.data.mul_(0.7)


class WithAGain(Sound):
    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.linear.weight.data.mul_(2**0.5)


class WidelySpread(Sound):
    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.table = nn.Embedding(7, dim)
        self.table.weight.data.mul_(1.5)


class BeginsAtZero(Sound):
    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.linear.bias.data.zero_()


class BiasAtZero(Sound):
    """Which not every configuration has."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.other = nn.Linear(dim, dim, bias=dim == 3)
        if dim == 3:
            self.other.bias.data.zero_()


class WithoutLaw(Sound):
    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.scale = nn.Parameter(torch.ones(dim))


class Defaulting(Sound):
    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__(dim)


class AnotherDefault(Sound):
    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__(dim)


class CoarseInHalf(Sound):
    """Of the scale of its output 5 % are lost."""

    def mix(self, x):
        y = super().mix(x)
        return (y * 8).round() / 8 if y.dtype == torch.bfloat16 else y


DRAWING: dict[str, list[type]] = {
    "random_law": [HalfTheRate, Unscaled, DropsInFront, DropsWholeRows, SharedByRows, DropsNothing, TwiceTheGradient],
    "random_rows": [SharedByRows, SharedByNeighbours, OneMaskForAllCalls, DropsNothing],
    "beyond_drawn_sizes": [AlteredWhenLong, AlteredWhenWide, FailsWhenLong, SilentlyNarrow],
    "heads_masked": [HidesFromAllWhatOneMayNotSee, ZeroesWhatOneMayNotSee, ShowsToAllWhatOneMaySee],
    "initial_values": [HalfTheStart, SevenTenthsOfTheStart, WithAGain, WidelySpread, BeginsAtZero, BiasAtZero, WithoutLaw],
    "defaults": [AnotherDefault],
}
"""What fails each of these properties."""
SOUND: dict[str, type] = {"random_law": Dropping, "random_rows": Dropping, "heads_masked": Attending, "defaults": Defaulting}
OPTIONS: dict[str, dict[str, Any]] = {
    "random_law": dropping,
    "random_rows": dropping,
    "heads_masked": attending,
    "defaults": dict(defaults=dict(eps=(1e-6, "the paper"))),
}
"""How the contract differs from that of `Sound`."""
