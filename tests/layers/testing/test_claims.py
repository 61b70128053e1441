"""For every property that only some blocks have: one that must fail it, and one that must pass."""

from __future__ import annotations

import pytest
import torch
from broken_blocks import IgnoresInput, Sound, check, contract
from hypothesis import strategies as st
from torch import nn

from layers.testing import (
    cache_consistent,
    causal,
    generator,
    influence,
    initial_distribution,
    padding_invariant,
    permutation_equivariant,
    seeded,
    shift_equivariant,
    streaming,
)


class Prefix(Sound):
    def mix(self, x):
        return super().mix(x).cumsum(1)


class Suffix(Sound):
    def mix(self, x):
        return super().mix(x).flip(1).cumsum(1).flip(1)


class RoundedPrefix(Prefix):
    """The future changes last digits, as where experts multiply as many rows as they have tokens."""

    def mix(self, x):
        return super().mix(x) + 1e-15 * x.sum(1, keepdim=True)


class Stepping(Sound):
    def mix(self, x):
        return super().mix(x) + torch.arange(x.shape[1], device=x.device).to(x)[:, None]


class MaskedMean(Sound):
    """Every position less the mean of those that the mask shows."""

    def visible(self, x, mask):
        return x.masked_fill(~mask[:, 0, 0, :, None], 0)

    def forward(self, x, mask):
        shown = self.visible(x, mask).sum(1, keepdim=True) / mask.sum(-1)
        return self.mix(x - shown)


class MultipliesByMask(MaskedMean):
    """0 * NaN is NaN."""

    def visible(self, x, mask):
        return x * mask[:, 0, 0, :, None]


class IgnoresMask(MaskedMean):
    def visible(self, x, mask):
        return x


class HidesEverything(MaskedMean):
    def visible(self, x, mask):
        return torch.zeros_like(x)


class ReachesLeft(MaskedMean):
    """Right padding does not matter, left padding does."""

    def forward(self, x, mask):
        return super().forward(x, mask) + torch.arange(x.shape[1]).to(x)[:, None]


class NaNGradientAtLeft(MaskedMean):
    """Right outputs: the square root of what is hidden at the left has no gradient at 0, which a product with 0 does not help."""

    def forward(self, x, mask):
        before = (mask[:, 0, 0].cumsum(1) > 0).to(x)[..., None]
        return super().forward(x, mask) + 0 * (x * before).abs().sqrt()


class NaNAtHiddenPositions(MaskedMean):
    def forward(self, x, mask):
        return super().forward(x, mask).masked_fill(~mask[:, 0, 0, :, None], float("nan"))


class Streaming(Prefix):
    """The sum of what came before goes in and out."""

    def forward(self, x, state=None):
        y = super().forward(x)
        y = y if state is None else y + state["sum"]
        return y, {"sum": y[:, -1:]}


class ForgetsState(Streaming):
    def forward(self, x, state=None):
        return super().forward(x)


class StateOfThePiece(Streaming):
    """The first two pieces are right."""

    def forward(self, x, state=None):
        y, after = super().forward(x, state)
        return y, after if state is None else {"sum": after["sum"] - state["sum"]}


class NeedsNoState(Sound):
    def forward(self, x, state=None):
        return super().forward(x), {"sum": x[:, :0]}


class Total(list):
    """What has been summed up so far."""


class RunningSum(Prefix):
    def forward(self, x, cache=None):
        y = super().forward(x)
        if cache is None:
            return y
        y = y + sum(cache)
        cache[:] = [y[:, -1:]]
        return y


class ForgetsCache(RunningSum):
    def forward(self, x, cache=None):
        return super().forward(x)


class KeepsLastPiece(RunningSum):
    def forward(self, x, cache=None):
        y = super().forward(x, None)
        if cache is not None:
            y, cache[:] = y + sum(cache), [y[:, -1:]]
        return y


class NeedsNoCache(Sound):
    def forward(self, x, cache=None):
        return super().forward(x)


class WideStart(Sound):
    def __init__(self, dim):
        super().__init__(dim)
        nn.init.normal_(self.linear.weight, std=2 * dim**-0.5)


class Noised(Sound):
    """Noise of its own for every element, from the generator that is passed."""

    def noise(self, x, generator):
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    def forward(self, x, generator):
        return super().forward(x) + self.noise(x, generator)


class NoisedGlobally(Noised):
    def noise(self, x, generator):
        return super().noise(x, generator) + torch.randn(x.shape, dtype=x.dtype)


class SeedsGlobally(Noised):
    """The same bits every time, and what others draw is spoilt."""

    def noise(self, x, generator):
        torch.manual_seed(int(torch.randint(99, (), generator=generator)))
        return torch.randn(x.shape, dtype=x.dtype)


class CopiesGenerator(Noised):
    """Draws the same at the next call."""

    def noise(self, x, generator):
        other = torch.Generator()
        other.set_state(generator.get_state())
        return super().noise(x, other)


class DrawsForNothing(Noised):
    def noise(self, x, generator):
        return 0 * super().noise(x, generator)


class NoisedGloballyInTraining(Noised):
    def noise(self, x, generator):
        return super().noise(x, None if self.training else generator)


HOLDS = {
    "causal": (causal("x", "time", 1), Prefix, Suffix),
    "causal, two-sided": (causal("x", "time", 1), Prefix, IgnoresInput),
    "causal, to the bit": (causal("x", "time", 1), Prefix, RoundedPrefix),
    "causal, but for rounding": (influence("causal", "x", "time", lambda a, i, o: i <= o, 1, exact=False), RoundedPrefix, Suffix),
    "permutation": (permutation_equivariant("x", "time", 1), Sound, Prefix),
    "shift": (shift_equivariant("x", "time", 1, lambda a: 1, lambda a: 0), Sound, Stepping),
    "padding": (padding_invariant("x", "time", 1), MaskedMean, IgnoresMask),
    "padding, poison": (padding_invariant("x", "time", 1), MaskedMean, MultipliesByMask),
    "padding, two-sided": (padding_invariant("x", "time", 1), MaskedMean, HidesEverything),
    "padding, left": (padding_invariant("x", "time", 1), MaskedMean, ReachesLeft),
    "padding, gradients": (padding_invariant("x", "time", 1), MaskedMean, NaNGradientAtLeft),
    "padding, hidden": (padding_invariant("x", "time", 1), MaskedMean, NaNAtHiddenPositions),
    **{
        f"streaming, {bad.__name__}": (streaming("x", "time", 1), Streaming, bad)
        for bad in (ForgetsState, StateOfThePiece, NeedsNoState)
    },
    "cache": (cache_consistent("x", "time", 1, lambda a, n: Total()), RunningSum, ForgetsCache),
    "cache, all pieces": (cache_consistent("x", "time", 1, lambda a, n: Total()), RunningSum, KeepsLastPiece),
    "cache, two-sided": (cache_consistent("x", "time", 1, lambda a, n: Total()), RunningSum, NeedsNoCache),
    **{
        f"seeded, {bad.__name__}": (seeded(), Noised, bad)
        for bad in (NoisedGlobally, SeedsGlobally, CopiesGenerator, DrawsForNothing, NoisedGloballyInTraining)
    },
    "initial": (
        initial_distribution(linear__weight=lambda a, p: (0.0, (1 / (3 * a.dim)) ** 0.5)),
        Sound,
        WideStart,
    ),
}


@pytest.mark.parametrize("name", HOLDS)
def test_claims(name):
    claim, good, bad = HOLDS[name]
    wide = dict(arguments=dict(dim=st.integers(8, 12))) if name == "initial" else {}
    if claim.name == "seeded":
        inputs = contract(Sound).inputs
        wide = dict(inputs=lambda a: {**inputs(a), "generator": generator()})
    check(claim.name, contract(good, holds=[claim], **wide))
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(claim.name, contract(bad, holds=[claim], **wide))


def test_others_masks_need_not_hide_nan():
    """A mask that multiplies hides what is finite."""
    for more in (
        dict(holds=[padding_invariant("x", "time", 1, nan=False)]),
        dict(holds=[padding_invariant("x", "time", 1)], foreign=True),
    ):
        check("padding_invariant", contract(MultipliesByMask, **more))
