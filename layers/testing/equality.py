"""How equal is equal: error over the root mean square of the reference, bounded by what rounding can explain."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn


class Mismatch(AssertionError):
    """Two things that should be equal are not; the message names the first one that differs."""


def leaves(tree: Any, name: str = "output") -> Iterator[tuple[str, Tensor]]:
    """Tensors of nested tuples, lists, mappings, dataclasses and objects that hold them, with names such as `output[1].hidden`.

    Of an object, such as a cache, the attributes count. What stands beside the tensors (None, numbers, dtypes) is passed over.
    Errors: `TypeError` for a tree that is none of these.
    """
    if tree is not None and not isinstance(tree, (Tensor, Mapping, tuple, list)) and children(tree) is None:
        raise TypeError(f"{name} must be a tensor or nested tuples, lists, mappings and dataclasses of tensors, got {type(tree)}")
    yield from walk(tree, name, ())


BESIDE = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
"""What may stand in an output beside its tensors."""


def walk(tree: Any, name: str, above: tuple[int, ...]) -> Iterator[tuple[str, Tensor]]:
    """`above`: objects on the way here, of which a cache may hold one again."""
    if isinstance(tree, Tensor):
        yield name, tree
    elif isinstance(tree, Mapping):  # these first and without `id`, which torch 2.6 does not export
        for key, value in tree.items():
            yield from walk(value, f"{name}.{key}", above)
    elif isinstance(tree, (tuple, list)):
        for i, value in enumerate(tree):
            yield from walk(value, f"{name}[{i}]", above)
    elif tree is not None and id(tree) not in above:
        for key, value in children(tree) or ():
            yield from walk(value, f"{name}{key}", (*above, id(tree)))


def children(tree: Any) -> list[tuple[str, Any]] | None:
    """What an object holds, by attribute; None for what holds nothing."""
    if isinstance(tree, (*BESIDE, torch.Generator)) or callable(tree):
        return None
    if dataclasses.is_dataclass(tree):
        return [(f".{field.name}", getattr(tree, field.name)) for field in dataclasses.fields(tree)]
    found = [(f".{key}", value) for key, value in vars(tree).items()] if hasattr(tree, "__dict__") else []
    found += [(f".{key}", getattr(tree, name)) for key, name in slots(type(tree)) if hasattr(tree, name)]
    return found if found or hasattr(tree, "__dict__") else None


def slots(kind: type) -> Iterator[tuple[str, str]]:
    """Attributes that have places of their own, `__slots__`, and the names under which Python has them."""
    for base in kind.__mro__:
        given = vars(base).get("__slots__", ())
        for name in (given,) if isinstance(given, str) else given:
            if not name.endswith("__"):
                yield name, f"_{base.__name__.lstrip('_')}{name}" if name.startswith("__") else name


def real(x: Tensor) -> Tensor:
    """The same numbers as a real tensor: a complex one gets a last axis of real and imaginary parts."""
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def rms(x: Tensor) -> float:
    return real(x).double().square().mean().sqrt().item() if x.numel() else 0.0


def unit_roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def longest_reduction(module: nn.Module, inputs: Mapping[str, Any]) -> int:
    """K: the largest fan-in of a weight, or the largest number of elements of one input."""
    fans = [p.numel() // p.shape[0] for p in module.parameters() if p.ndim >= 2]
    return max(fans + [x.numel() for x in inputs.values() if isinstance(x, Tensor)] + [1])


def rounding_depth(module: nn.Module) -> int:
    """L: how many roundings follow one another, estimated by the number of modules without children."""
    return max(2, sum(1 for m in module.modules() if next(m.children(), None) is None))


def bound(dtype: torch.dtype, reduction: int, depth: int) -> float:
    """``16 u sqrt(K) L``: far above what reordered sums do, far below any eps, scale or activation that differs."""
    return 16 * unit_roundoff(dtype) * sqrt(reduction) * depth


def require_equal(ours: Any, theirs: Any, tolerance: float, name: str = "output", common: float = 0.0) -> None:
    """Largest error at most `tolerance` times the reference's root mean square, tensor by tensor; 0 means bitwise.

    `common` scales tensors that are only rounding noise, such as the gradient of a bias in front of a batch norm or a softmax:
    below a hundredth of the largest root mean square of the group, errors are measured against that hundredth.
    """
    left, right = dict(leaves(ours, name)), dict(leaves(theirs, name))
    if left.keys() != right.keys():
        raise Mismatch(f"structure differs: {sorted(left.keys() ^ right.keys())} only on one side")
    floor = common * 1e-2 * max((rms(x) for x in right.values() if x.is_floating_point() or x.is_complex()), default=0.0)
    for path, x in left.items():
        y = right[path]
        if x.shape != y.shape or x.dtype != y.dtype:
            raise Mismatch(f"{path}: {tuple(x.shape)} {x.dtype} is not the reference's {tuple(y.shape)} {y.dtype}")
        x, y = real(x), real(y)
        if torch.equal(x, y) or (
            x.is_floating_point()
            and x.numel()
            and torch.equal(x.nan_to_num(), y.nan_to_num())
            and torch.equal(x.isnan(), y.isnan())
        ):
            continue
        if tolerance == 0 or not x.is_floating_point():
            raise Mismatch(f"{path}: not bitwise equal, {(x != y).sum().item()} of {x.numel()} elements differ")
        scale = max(rms(y), floor)
        error = ((x - y).abs().max() / scale).item() if scale else float("inf")
        if not error <= tolerance:
            where = tuple(int(i) for i in torch.unravel_index((x - y).abs().nan_to_num(float("inf")).argmax(), x.shape))
            raise Mismatch(
                f"{path}: error {error:.2e} of the reference's root mean square, allowed {tolerance:.2e}; "
                f"worst at {where}: {x[where].item():.9g}, reference {y[where].item():.9g}"
            )
