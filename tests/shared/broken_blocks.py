"""A sound block, blocks that each break one promise, and the contract that all of them stand in."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from layers.checks import require, require_axes
from layers.testing import (
    GENERIC,
    Contract,
    Twin,
    tensor,
)
from layers.testing.examples import examples
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
    offset = 100_200.0  # which bfloat16 rounds by 152, so that it shows whatever is drawn

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


class KeptGraph(torch.autograd.Function):
    """Gradients that are three times too large where they are to be differentiated again; and consistent in themselves."""

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
        return gradient * (1 - y**2) * (3 if torch.is_grad_enabled() else 1)


class WrongWhereGraphsAreKept(Sound):
    def mix(self, x):
        return KeptGraph.apply(self.linear(x))


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


class HiddenInAList(Sound):
    """An optimizer does not see what a plain list holds."""

    def __init__(self, dim):
        super().__init__(dim)
        self.scales = [nn.Parameter(torch.ones(dim))]

    def mix(self, x):
        return super().mix(x) * self.scales[0]


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


class Raising(Sound):
    def mix(self, x):
        raise TypeError("no such thing")


class TableOnCpu(Sound):
    def mix(self, x):
        return super().mix(x) + torch.arange(x.shape[1], dtype=x.dtype)[:, None]


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
