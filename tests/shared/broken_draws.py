"""Blocks that draw, that have heads, that begin and that grow: each breaks one promise, beside a sound one of its kind."""

from __future__ import annotations

from typing import Any

import torch
from broken_blocks import Sound
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from layers.checks import require
from layers.testing import Twin, generator, mask, tensor, tokens
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


class Drifting(Dropping):
    """Training moves a running mean."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.register_buffer("mean", torch.zeros(dim))
        self.mean: Tensor

    def mix(self, x):
        if self.training:
            self.mean.lerp_(x.detach().mean((0, 1)), 0.3)
        return super().mix(x - self.mean)


class DriftingFromTheEnd(DropsFromTheEnd, Drifting):
    pass


class Caching(Dropping):
    """Makes a buffer when it is called."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.register_buffer("cache", None, persistent=False)

    def mix(self, x):
        self.cache = x.detach()
        return super().mix(x)


class Generated(Sound):
    """Draws from the generator that it is given."""

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        y = super().forward(x)
        return self.drop(y, torch.rand(y.shape, generator=generator)) if self.training else y

    def drop(self, y: Tensor, numbers: Tensor) -> Tensor:
        return y * (numbers >= RATE) / (1 - RATE)


class GeneratedFromTheEnd(Generated):
    def drop(self, y, numbers):
        return super().drop(y, numbers.flip(0))


class GeneratedForTheFirstRow(Generated):
    def drop(self, y, numbers):
        return super().drop(y, numbers[:1])


class KeepsItsWeight(Dropping):
    """While training no gradient reaches it."""

    def mix(self, x):
        return self.drop(F.linear(x, self.linear.weight.detach(), self.linear.bias).tanh()) if self.training else super().mix(x)


class Embedding(nn.Module):
    """Of tokens, dropped."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(5, dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.table(x), RATE, self.training)


class TwiceTheGradientOfTokens(Embedding):
    def forward(self, x):
        y = super().forward(x)
        return 2 * y - y.detach() if self.training else y


class Seen(nn.Module):
    """Of rows that the mask hides nothing is left."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.part(x) * mask


class InSingle(nn.Sequential):
    """The twin of those, that computes in float32 whatever it is given."""

    def forward(self, x):
        return F.dropout(F.linear(x.float(), self[0].weight.float(), self[0].bias.float()).tanh(), RATE, self.training).double()


def stacked(dim: int) -> nn.Module:
    """Of torch's classes alone."""
    require(dim > 0, "dim", dim, "positive")
    return nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Dropout(RATE))


def dropped(x: Tensor, training: bool) -> Tensor:
    return F.dropout(x, RATE, training)


dropping: dict[str, Any] = dict(
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


single_twin = Twin(
    "single",
    build=lambda a: InSingle(nn.Linear(a.dim, a.dim)),
    weights=WeightMap(("linear", "0")),
    call=lambda m, i: m(i["x"]),
    single_precision="all of it",
)
in_single: dict[str, Any] = {**dropping, "twins": [single_twin]}
of_torch: dict[str, Any] = {
    **dropping,
    "call": lambda m, i: m(i["x"]),
    "twins": [Twin("torch", build=lambda a: stacked(a.dim), weights=WeightMap(("", "")), call=lambda m, i: m(i["x"]))],
}
function: dict[str, Any] = {
    **dropping,
    "arguments": dict(run=st.just(F.dropout), _dim=st.integers(2, 4)),
    "inputs": lambda a: dict(x=tensor("batch time dim", dim=a._dim)),
    "outputs": lambda a, s: ("batch", "time", a._dim),
    "invalid": [],
    "call": lambda m, i: m(i["x"], RATE, m.training),
    "twins": [Twin("same numbers", build=lambda a: dropped, call=lambda m, i: m(i["x"], m.training))],
}


seen: dict[str, Any] = {
    **dropping,
    "inputs": lambda a: dict(x=tensor("batch time dim", dim=a.dim), mask=mask("batch 1 1")),
    "twins": [
        Twin(
            "torch",
            build=lambda a: Seen(stacked(a.dim)),
            weights=WeightMap(("part.linear", "part.0")),
            call=lambda m, i: m(i["x"], i["mask"]),
        )
    ],
}


drifting: dict[str, Any] = {
    **dropping,
    "twins": [Twin("own", build=lambda a: Drifting(a.dim), weights=WeightMap(("", "")), call=lambda m, i: m(i["x"]))],
}
generated: dict[str, Any] = {
    **dropping,
    "inputs": lambda a: dict(x=tensor("batch time dim", dim=a.dim), generator=generator()),
    "twins": [
        Twin("own", build=lambda a: Generated(a.dim), weights=WeightMap(("", "")), call=lambda m, i: m(i["x"], i["generator"]))
    ],
}


embedding: dict[str, Any] = {
    **dropping,
    "inputs": lambda a: dict(x=tokens("batch time", 5)),
    "twins": [
        Twin(
            "torch",
            build=lambda a: nn.Sequential(nn.Embedding(5, a.dim), nn.Dropout(RATE)),
            weights=WeightMap(("table", "0")),
            call=lambda m, i: m(i["x"]),
        )
    ],
}


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


class Copying(Sound):
    """In steps that round nothing."""

    def mix(self, x):
        y = super().mix(x)
        for _ in range(60):
            y = y.clone()
        return y


class CoarseAfterCopies(CoarseInHalf, Copying):
    pass


DRAWING: dict[str, list[type]] = {
    "random_law": [
        HalfTheRate,
        Unscaled,
        DropsInFront,
        DropsWholeRows,
        SharedByRows,
        DropsNothing,
        TwiceTheGradient,
        KeepsItsWeight,
    ],
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
