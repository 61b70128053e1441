"""The one way to complain: an error names the argument, its value, and what would be right."""

from typing import Any

import torch
from torch import Tensor


def require(condition: bool, argument: str, value: Any, expected: str) -> None:
    """Raise `ValueError` unless `condition` holds: ``require(heads > 0, "heads", heads, "positive")``."""
    if not condition:
        raise ValueError(f"{argument} must be {expected}, got {value!r}")


def require_axes(tensor: Tensor, name: str, axes: str, **sizes: int) -> None:
    """Raise `ValueError` unless `tensor` has the `axes` (names separated by spaces) and the given `sizes`.

    ``require_axes(images, "images", "batch channels height width", channels=3)`` names the axis that is wrong:
    ``images: channels must be 3, got 4 (shape (8, 4, 32, 32), axes batch channels height width)``.
    """
    names = axes.split()
    if tensor.ndim != len(names):
        raise ValueError(f"{name} must have {len(names)} axes ({axes}), got shape {tuple(tensor.shape)}")
    for axis, size in zip(names, tensor.shape, strict=True):
        if axis in sizes and size != sizes[axis]:
            raise ValueError(f"{name}: {axis} must be {sizes[axis]}, got {size} (shape {tuple(tensor.shape)}, axes {axes})")


def require_integers(tensor: Tensor, name: str) -> None:
    """Raise `ValueError` unless the tensor holds integers."""
    whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    require(whole, name, tensor.dtype, "integers: float32 counts to 2^24, bfloat16 to 256")


def is_traced() -> bool:
    """Whether somebody compiles, exports, traces or transforms (`torch.func`) the call, so that no value may be asked for."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()


def require_pixels(images: Tensor, least: int) -> None:
    """Raise `ValueError` unless images (b, c, y, x) have this many rows and columns."""
    if min(images.shape[-2:]) < least:
        raise ValueError(f"images must have at least {least} rows and columns, got {tuple(images.shape)}")
