"""The suite is tested too: for every property a toy block that must fail it, and one that must pass them all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from layers.checks import require, require_axes
from layers.testing import (
    GENERIC,
    Contract,
    Twin,
    cache_consistent,
    causal,
    initial_distribution,
    mask,
    padding_invariant,
    permutation_equivariant,
    shift_equivariant,
    tensor,
)
from layers.testing.items import examples
from layers.weights import WeightMap


class Sound(nn.Module):
    """tanh(x W + b): keeps every promise."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        require(dim > 0, "dim", dim, "positive")
        self.dim = dim
        self.linear = nn.Linear(dim, dim)

    def mix(self, x: Tensor) -> Tensor:
        return self.linear(x).tanh()

    def forward(self, x: Tensor) -> Tensor:
        require_axes(x, "x", "batch time dim", dim=self.dim)
        return self.mix(x)


class Transposed(Sound):
    def mix(self, x):
        return super().mix(x).mT


class AlwaysSingle(Sound):
    def mix(self, x):
        return super().mix(x).float()


class SlightlyScaled(Sound):
    def mix(self, x):
        return super().mix(x) * (1 + 1e-10)


class DoubledGradient(Sound):
    def mix(self, x):
        y = super().mix(x)
        return 2 * y - y.detach()


class ExtraParameter(Sound):
    def __init__(self, dim):
        super().__init__(dim)
        self.extra = nn.Parameter(torch.zeros(dim))

    def mix(self, x):
        return super().mix(x + 0 * self.extra)


class Cancelling(Sound):
    offset = 1e3

    def mix(self, x):
        return (super().mix(x) + self.offset) - self.offset


class CancellingOnlyInHalf(Sound):
    def mix(self, x):
        y = super().mix(x).bfloat16() if torch.is_autocast_enabled("cpu") else super().mix(x)
        return (y + 30) - 30 if y.dtype == torch.bfloat16 else y


class WrongDerivative(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.tanh()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, gradient):
        (y,) = ctx.saved_tensors
        return gradient * (1 - y)


class WrongBackward(Sound):
    def mix(self, x):
        return WrongDerivative.apply(self.linear(x))


class OnceDifferentiable(torch.autograd.Function):
    """Right gradients, whose own gradients are lost; and forward derivatives that are twice too large."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.tanh()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output.detach())
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx, gradient):
        (y,) = ctx.saved_tensors
        return gradient * (1 - y.detach() ** 2)

    @staticmethod
    def jvp(ctx, tangent):
        (y,) = ctx.saved_tensors
        return 2 * tangent * (1 - y**2)


class WrongTwice(Sound):
    def mix(self, x):
        return OnceDifferentiable.apply(self.linear(x))


class WrongForwardWhileTraining(Sound):
    def mix(self, x):
        return OnceDifferentiable.apply(self.linear(x)) if self.training else super().mix(x)


class FusedKernel(torch.autograd.Function):
    """Without a derivative of its backward, and without forward mode."""

    @staticmethod
    def forward(ctx, x):
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (y,) = ctx.saved_tensors
        return gradient * (1 - y**2)


class Fused(Sound):
    def mix(self, x):
        return FusedKernel.apply(self.linear(x))


class WritesOver(Sound):
    """What its linear layer has given, which a hook on that may have kept or wrapped."""

    def mix(self, x):
        return self.linear(x).tanh_()


class WritesOverWithoutGradients(Sound):
    """Only where autograd does not see it."""

    def mix(self, x):
        y = self.linear(x)
        y.data.tanh_()
        return y


class RaisingProperty(Sound):
    @property
    def twin(self):
        raise ValueError("there is none")


class RaisingRepr(Sound):
    def extra_repr(self):
        return self.nothing


class Unused(Sound):
    def __init__(self, dim):
        super().__init__(dim)
        self.spare = nn.Linear(dim, dim)

    def mix(self, x):
        self.spare(x)
        return super().mix(x)


class Silenced(ExtraParameter):
    """Its extra parameter is reached, and never counts."""


class LooksAtValues(Sound):
    def mix(self, x):
        return super().mix(x) if x.sum() > 0 else -super().mix(x)


class BakesValues(Sound):
    def mix(self, x):
        return super().mix(x) * x.mean().item()


class Noisy(Sound):
    def mix(self, x):
        return super().mix(x + torch.randn_like(x))


class DrawsInVain(Sound):
    def mix(self, x):
        torch.rand(1)
        return super().mix(x)


class SecretDropout(Sound):
    def mix(self, x):
        return nn.functional.dropout(super().mix(x), 0.5, self.training)


class Centred(Sound):
    def mix(self, x):
        return super().mix(x - x.mean(0))


class IgnoresInput(Sound):
    def mix(self, x):
        return super().mix(0 * x)


class InPlace(Sound):
    def mix(self, x):
        return super().mix(x if x.requires_grad else x.mul_(2))


class AssumesContiguous(Sound):
    def mix(self, x):
        return super().mix(x.as_strided(x.shape, (x.shape[1] * x.shape[2], x.shape[2], 1)))


class Counting(Sound):
    calls = 0

    def mix(self, x):
        self.calls += 1
        return super().mix(x) * self.calls


class EatsEmptiness(Sound):
    def mix(self, x):
        return super().mix(x.reshape(x.shape[0], -1, self.dim))


class Normalising(Sound):
    def mix(self, x):
        return super().mix(x / x.norm(dim=-1, keepdim=True))


class Forgetful(Sound):
    """A random table in a plain attribute: state_dict does not know it."""

    def __init__(self, dim):
        super().__init__(dim)
        self.table = torch.rand(dim)

    def mix(self, x):
        return super().mix(x * self.table.to(x))


class SharedCopy(Sound):
    """deepcopy gives the same object."""

    def __deepcopy__(self, memo):
        return self


class UnbuiltTable(Sound):
    def __init__(self, dim):
        super().__init__(dim)
        self.register_buffer("table", torch.arange(1.0, dim + 1), persistent=False)

    def mix(self, x):
        return super().mix(x * self.table)


class BakesBatch(Sound):
    def mix(self, x):
        return super().mix(x) * (2 if x.shape[0] % 2 else 1)


class BreaksGraph(Sound):
    def mix(self, x):
        torch._dynamo.graph_break()
        return super().mix(x)


class UncheckedArgument(Sound):
    def __init__(self, dim):
        super().__init__(max(dim, 1))


class UncheckedInput(Sound):
    def forward(self, x):
        return self.mix(x)


class Pair(Sound):
    """tanh((x + y) W + b), y not to be broadcast."""

    def check(self, x, y):
        require_axes(y, "y", "batch time dim", batch=x.shape[0], time=x.shape[1])

    def forward(self, x, y):
        self.check(x, y)
        return super().forward(x + y)


class Broadcasting(Pair):
    def check(self, x, y):
        pass


class ChecksLargeSizesOnly(Pair):
    def check(self, x, y):
        for n, axis in enumerate(("batch", "time")):
            require(x.shape[n] == y.shape[n] or min(x.shape[n], y.shape[n]) == 1, axis, y.shape[n], "that of x")


class NamesNoAxis(Pair):
    def check(self, x, y):
        require(x.shape == y.shape, "y", tuple(y.shape), f"of shape {tuple(x.shape)}")


class NamesNoInput(Pair):
    def check(self, x, y):
        for n, axis in enumerate(("batch", "time")):
            require(x.shape[n] == y.shape[n], axis, "another", "the same")


class OtherError(Pair):
    def check(self, x, y):
        if x.shape != y.shape:
            raise RuntimeError("y: batch and time must be those of x")


class OneForAllTimes(Pair):
    def check(self, x, y):
        require_axes(y, "y", "batch one dim", batch=x.shape[0], one=1)


class Masked(Pair):
    """y may have 1 in place of every size."""

    def check(self, x, y):
        for axis, size, n in zip(("batch", "time", "dim"), x.shape, y.shape, strict=True):
            require(n in (1, size), f"y: {axis}", n, f"1 or {size}")


class Two(Sound):
    """Called by position, and of two outputs the first is meant."""

    def forward(self, a, /):
        return super().forward(a), a


FAILS: dict[str, list[type[Sound]]] = {
    "shape": [Transposed, AlwaysSingle],
    "forward": [SlightlyScaled, Transposed],
    "backward": [DoubledGradient, WrongBackward],
    "weights": [ExtraParameter],
    "float32": [Cancelling],
    "bfloat16": [Cancelling, CancellingOnlyInHalf],
    "autocast": [CancellingOnlyInHalf],
    "gradcheck": [WrongBackward, DoubledGradient],
    "second_derivatives": [WrongTwice, Fused],
    "forward_derivatives": [WrongTwice, Fused, WrongForwardWhileTraining],
    "parameters_used": [Unused, Silenced],
    "per_sample_gradients": [LooksAtValues],
    "deterministic": [Noisy],
    "no_global_random": [Noisy, DrawsInVain],
    "train_eval": [SecretDropout],
    "batch_rows": [Centred, IgnoresInput],
    "inputs_unchanged": [InPlace],
    "non_contiguous": [AssumesContiguous],
    "history_independent": [Counting],
    "empty_batch": [EatsEmptiness],
    "finite": [Normalising],
    "state_round_trip": [Forgetful, SharedCopy],
    "meta_device": [UnbuiltTable],
    "inspection": [RaisingProperty, RaisingRepr],
    "hooks": [WritesOver, WritesOverWithoutGradients],
    "trace": [BakesValues],
    "export": [BakesBatch],
    "compile": [BakesBatch, BreaksGraph],
    "bad_argument": [UncheckedArgument],
    "bad_input": [UncheckedInput],
    "sizes_agree": [Broadcasting, ChecksLargeSizesOnly, NamesNoAxis, NamesNoInput, OtherError],
}

GOOD: dict[str, type[Sound]] = {"sizes_agree": Pair}
"""A block that passes, where it is not `Sound`."""


def contract(block: Any, **changes: Any) -> Contract:
    pair = isinstance(block, type) and issubclass(block, Pair)
    more = dict(y=tensor("batch time dim")) if pair else {}
    twin = Twin(
        "torch",
        build=lambda a: nn.Sequential(nn.Linear(a.dim, a.dim), nn.Tanh()),
        weights=WeightMap(("linear", "0")),
        call=lambda m, i: m(i["x"]),
    )
    return Contract(
        **{
            "block": block,
            "arguments": dict(dim=st.integers(2, 4)),
            "inputs": lambda a: dict(x=tensor("batch time dim", dim=a.dim), **more),
            "outputs": lambda a, s: ("batch", "time", a.dim),
            "twins": [twin],
            "invalid": [(dict(dim=0), "dim")],
            **changes,
        }
    )


def check(name: str, promise: Contract) -> None:
    """Whether it fails is the question here, not how small it fails."""
    prop = next(p for p in [*GENERIC, *promise.holds] if p.name == name)
    examples(promise, prop, promise.twins[0] if prop.each_twin and promise.twins else None, shrink=False)()


def test_every_property_has_a_block_that_fails_it():
    assert FAILS.keys() == {p.name for p in GENERIC}


@pytest.mark.parametrize("name", [p.name for p in GENERIC])
def test_a_sound_block_passes(name):
    check(name, contract(GOOD.get(name, Sound)))


@pytest.mark.parametrize(("name", "block"), [(name, block) for name, blocks in FAILS.items() for block in blocks])
def test_a_broken_block_fails(name, block):
    with pytest.raises((AssertionError, ValueError, RuntimeError, pytest.fail.Exception)) as caught:
        check(name, contract(block))
    assert "Unsatisfi" not in repr(caught.value)


def test_sizes_agree_is_for_blocks_whose_inputs_share_an_axis():
    prop = next(p for p in GENERIC if p.name == "sizes_agree")
    assert prop.applies(contract(Pair))
    assert not prop.applies(contract(Sound))
    assert not prop.applies(contract(Pair, inputs=lambda a: dict(x=tensor("batch time dim"), y=tensor("rows 1 depth"))))


@pytest.mark.parametrize(("y", "block", "sound"), [
    (tensor("batch 1 dim"), OneForAllTimes, True),
    (mask("batch time dim"), Masked, True),
    (tensor("batch time dim"), Masked, False),
])  # fmt: skip
def test_an_input_may_broadcast_where_the_contract_says_so(y, block, sound):
    promise = contract(block, inputs=lambda a: dict(x=tensor("batch time dim", dim=a.dim), y=y))
    if sound:
        return check("sizes_agree", promise)
    with pytest.raises(AssertionError, match="batch of x 2, of y 1: no error"):
        check("sizes_agree", promise)


@pytest.mark.parametrize("name", ["export", "state_round_trip", "trace"])
def test_a_block_is_called_as_its_contract_says(name):
    check(name, contract(Two, call=lambda m, i: m(i["x"])[0]))


@pytest.mark.parametrize("block", [Sound, *FAILS["gradcheck"]])
def test_gradients_of_a_whole_model_are_checked_too(block):
    """Where all tensors move at once."""
    promise = contract(block, model=True)
    if block is Sound:
        return check("gradcheck", promise)
    with pytest.raises(AssertionError, match="along a direction differ from finite differences"):
        check("gradcheck", promise)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "autocast"])
def test_precision_without_a_twin(name):
    check(name, contract(Sound, twins=[]))
    with pytest.raises(AssertionError):
        check(name, contract(Cancelling, twins=[]))


def test_a_claimed_difference_must_show():
    with pytest.raises(pytest.fail.Exception, match="vacuous"):
        check("train_eval", contract(Sound, trains_differently=lambda a: True))
    check("train_eval", contract(SecretDropout, trains_differently=lambda a: True))


class ConstantWhereNarrow(Sound):
    def mix(self, x):
        return super().mix(x) * float(x.shape[-1] > 2)


def test_few_examples_that_show_nothing_are_followed_by_more():
    """The first one drawn is the simplest, and of a costly property the only one."""
    check("forward_derivatives", contract(ConstantWhereNarrow))
    with pytest.raises(pytest.fail.Exception, match=r"vacuous: none of [2-9]"):
        check("forward_derivatives", contract(ConstantWhereNarrow, arguments=dict(dim=2)))


def test_running_statistics_are_compared():
    """A batch norm of another momentum moves its running statistics differently, and nothing else."""

    class Norm(nn.BatchNorm1d):
        def __init__(self, dim):
            super().__init__(dim, momentum=0.2)

    twin = Twin("torch", build=lambda a: nn.BatchNorm1d(a.dim), weights=WeightMap(("", "")), call=lambda m, i: m(i["input"]))
    promise = contract(
        Norm,
        inputs=lambda a: dict(input=tensor("batch dim", dim=a.dim)),
        outputs=lambda a, s: ("batch", a.dim),
        twins=[twin],
        trains_differently=lambda a: True,
    )
    with pytest.raises(AssertionError, match="running_mean"):
        check("forward", promise)
    check("backward", promise)


class Prefix(Sound):
    def mix(self, x):
        return super().mix(x).cumsum(1)


class Suffix(Sound):
    def mix(self, x):
        return super().mix(x).flip(1).cumsum(1).flip(1)


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


HOLDS = {
    "causal": (causal("x", "time", 1), Prefix, Suffix),
    "causal, two-sided": (causal("x", "time", 1), Prefix, IgnoresInput),
    "permutation": (permutation_equivariant("x", "time", 1), Sound, Prefix),
    "shift": (shift_equivariant("x", "time", 1, lambda a: 1, lambda a: 0), Sound, Stepping),
    "padding": (padding_invariant("x", "time", 1), MaskedMean, IgnoresMask),
    "padding, poison": (padding_invariant("x", "time", 1), MaskedMean, MultipliesByMask),
    "padding, two-sided": (padding_invariant("x", "time", 1), MaskedMean, HidesEverything),
    "padding, left": (padding_invariant("x", "time", 1), MaskedMean, ReachesLeft),
    "cache": (cache_consistent("x", "time", 1, lambda a, n: Total()), RunningSum, ForgetsCache),
    "cache, all pieces": (cache_consistent("x", "time", 1, lambda a, n: Total()), RunningSum, KeepsLastPiece),
    "cache, two-sided": (cache_consistent("x", "time", 1, lambda a, n: Total()), RunningSum, NeedsNoCache),
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
    check(claim.name, contract(good, holds=[claim], **wide))
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(claim.name, contract(bad, holds=[claim], **wide))
