"""What a contract draws: input tensors by axis names, parts, and the values of parameters and buffers.

Hypothesis draws arguments, sizes and one seed. Values come from a `torch.Generator` with that seed, so that a case is small to
print, quick to shrink and the same on every run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

BATCH = ("b", "batch")
"""Names that an input's batch axis goes by."""


@dataclass(frozen=True)
class Input:
    """A tensor argument of `forward`: names for its axes, sizes for some of them, and how its values are drawn."""

    axes: tuple[str, ...]
    sizes: Mapping[str, Any]
    sample: Callable[[tuple[int, ...], torch.Generator], Any]
    broadcasts: bool = False
    """Whether a size of 1 stands for any size of the axis in other inputs."""

    def __post_init__(self) -> None:
        for axis in self.sizes:
            if axis not in self.axes:
                raise ValueError(f"sizes must name axes of {' '.join(self.axes)!r}, got {axis!r}")

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(1 if axis == "1" else sizes[axis] for axis in self.axes)

    @property
    def batch(self) -> int | None:
        """Position of the batch axis, None if there is none."""
        return next((i for i, axis in enumerate(self.axes) if axis in BATCH), None)


def tensor(axes: str, **sizes: Any) -> Input:
    """Normally distributed float tensor: ``tensor("b channels height width", channels=3, height=st.integers(5, 9))``.

    An axis given as an int is fixed: another size must raise a `ValueError` that names tensor and axis. One given as a
    strategy is drawn; all others get small sizes, pairwise distinct. An axis name means one size in all inputs of a case.
    """
    return Input(tuple(axes.split()), sizes, lambda shape, g: torch.randn(shape, generator=g, dtype=torch.float64))


def tokens(axes: str, vocab_size: int, **sizes: Any) -> Input:
    """Integer tensor with values in ``0 .. vocab_size - 1``."""
    return Input(tuple(axes.split()), sizes, lambda shape, g: torch.randint(vocab_size, shape, generator=g))


def mask(axes: str, **sizes: Any) -> Input:
    """Boolean tensor, True = may attend, that broadcasts. About one row in four allows nothing, one in four everything."""

    def sample(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
        row = torch.rand((*shape[:-1], 1), generator=g)
        return (torch.rand(shape, generator=g) < 0.5) & (row > 0.25) | (row > 0.75)

    return Input(tuple(axes.split()), sizes, sample, broadcasts=True)


def generator() -> Input:
    """A `torch.Generator` on the CPU, for blocks and functions that draw: every call of the block finds it in the same state."""

    def sample(shape: tuple[int, ...], g: torch.Generator) -> torch.Generator:
        return torch.Generator().manual_seed(int(torch.randint(2**31, (), generator=g)))

    return Input((), {}, sample)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from the CPU's global generator as seeded here, and leave it as it was.

    Not `torch.manual_seed`, which takes most of a millisecond: it keeps a stack trace for each kind of device that is not there.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class Function(nn.Module):
    """A function as a block without parameters, for its contract: ``Contract(Function, arguments=dict(run=st.just(f)), ...)``."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.run = run

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.run(*inputs, **named)


@dataclass(frozen=True)
class Part:
    """A constructor argument that is itself a module: built anew for every block, so that no two blocks share it."""

    factory: Callable[..., Any]
    arguments: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"{self.factory.__name__}({', '.join(f'{k}={v!r}' for k, v in self.arguments.items())})"


def part(factory: Callable[..., Any], **arguments: Any) -> Part:
    """``part(Rotary, dim=8)`` in a strategy stands for the module `Rotary(dim=8)`, built when the block is."""
    return Part(factory, arguments)


class Arguments(SimpleNamespace):
    """Drawn constructor arguments, by attribute: `a.in_channels`."""

    def __repr__(self) -> str:
        return ", ".join(f"{name}={getattr(value, '__name__', repr(value))}" for name, value in vars(self).items())

    def passed(self) -> dict[str, Any]:
        """What the constructor gets: parts are built, and names with a leading underscore left out."""
        items = ((name, value) for name, value in vars(self).items() if not name.startswith("_"))
        return {name: value.factory(**value.arguments) if isinstance(value, Part) else value for name, value in items}


def draw_arguments(draw: Callable[[st.SearchStrategy], Any], strategies: Mapping[str, Any]) -> Arguments:
    """Draw in order; a function in place of a strategy gets what was drawn before it."""
    arguments = Arguments()
    for name, strategy in strategies.items():
        if inspect.isfunction(strategy):
            strategy = strategy(arguments)
        setattr(arguments, name, draw(strategy) if isinstance(strategy, st.SearchStrategy) else strategy)
    return arguments


def draw_sizes(draw: Callable[[st.SearchStrategy], Any], inputs: Mapping[str, Any]) -> dict[str, int]:
    """A size for every axis of `inputs`; those that are not fixed differ from each other and from the fixed ones."""
    given: dict[str, Any] = {}
    for spec in inputs.values():
        if isinstance(spec, Input):
            given.update({axis: spec.sizes.get(axis, given.get(axis)) for axis in spec.axes if axis != "1"})
    sizes = {axis: size for axis, size in given.items() if isinstance(size, int)}
    for axis, size in given.items():
        if not isinstance(size, int):
            strategy = size if size is not None else st.integers(2, 5 + len(given))
            taken = set(sizes.values())
            sizes[axis] = draw(strategy.filter(lambda n, taken=taken: n not in taken))
    return sizes


def fill(module: nn.Module, generator: torch.Generator, skip: Sequence[str] = (), tables: bool = True) -> nn.Module:
    """Draw every parameter and every saved buffer in place, so that nothing stays at its default.

    Matrices and kernels get a drawn gain of 0.5 to 2 over the square root of their fan-in; vectors named `weight` get 0.5 to 1.5
    with either sign, other vectors (biases) a standard deviation of 0.5; variances 0.05 to 4; means are normal; counters 1 to 9.
    Left alone: buffers that are not saved, masks (of at least two axes, with no other values than 0, 1 and those that stand for
    minus infinity), complex buffers, and what `skip` names (`*` stands for anything). ``tables=False`` leaves all saved buffers
    alone but running statistics, since what others save is often a table that they compute once.
    """

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(like.shape, generator=generator, dtype=torch.float64)

    def normal(like: Tensor, std: float) -> Tensor:
        return std * torch.randn(like.shape, generator=generator, dtype=torch.complex128 if like.is_complex() else torch.float64)

    def kept(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in skip)

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if kept(name) or parameter.numel() == 0:
                continue
            if parameter.ndim >= 2:
                gain = 0.5 + 1.5 * torch.rand((), generator=generator).item()
                value = normal(parameter, gain * (parameter.numel() / parameter.shape[0]) ** -0.5)
            elif name.rpartition(".")[2] == "weight" and not parameter.is_complex():
                value = uniform(parameter, 0.5, 1.5) * uniform(parameter, -1, 3).sign()
            else:
                value = normal(parameter, 0.5)
            parameter.copy_(value)
        saved = module.state_dict(keep_vars=True)
        for name, buffer in module.named_buffers():
            last = name.rpartition(".")[2]
            if name not in saved or kept(name) or not (tables or last in STATISTICS) or is_mask(buffer):
                continue
            if buffer.is_floating_point():
                buffer.copy_(uniform(buffer, 0.05, 4) if "var" in last else normal(buffer, 1))
            elif name.endswith("num_batches_tracked"):
                buffer.fill_(int(torch.randint(1, 10, (), generator=generator)))
    return module


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Buffers of torch's batch norms."""


def is_mask(buffer: Tensor) -> bool:
    """Whether a float buffer is a saved mask: 0 and 1, or 0 and -1e4 and less, in two axes or more. Zeros alone are none."""
    if buffer.ndim < 2 or not buffer.is_floating_point() or not buffer.any():
        return False
    return bool(((buffer == 0) | (buffer == 1) | (buffer <= -1e4)).all())
