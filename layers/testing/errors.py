"""Bad arguments and inputs: each a `ValueError` that names what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from layers.testing.contract import Case
from layers.testing.drawing import Input
from layers.testing.equality import Mismatch, require_equal


def bad_argument(case: Case) -> bool:
    """Every invalid constructor argument raises a `ValueError` that names it."""
    for overrides, name in case.contract.invalid:
        require_error(lambda overrides=overrides: case.new(overrides), f"constructor with {overrides}", name)
    return bool(case.contract.invalid)


def bad_input(case: Case) -> bool:
    """A fixed axis of another size, and an axis too few, raise a `ValueError` that names the tensor and the axis.

    A block that takes any number of leading axes must give for a row what it gives for that row of the batch.
    """
    block, checked = case.block(), False
    for name, spec in case.specs.items():
        if not isinstance(spec, Input):
            continue
        fixed = [axis for axis, size in spec.sizes.items() if isinstance(size, int)]
        for axis in fixed:
            inputs = case.inputs()
            inputs[name] = case.inputs(sizes={**case.sizes, axis: case.sizes[axis] + 1})[name]
            require_error(lambda i=inputs: case.call(block, i), f"{axis} of {name} one too large", name, axis)
        if fixed:
            inputs = {k: v[0] if k == name else v for k, v in case.inputs().items()}
            if not any_leading_axes(case, block, inputs):
                require_error(lambda i=inputs: case.call(block, i), f"{name} without its first axis", name)
            checked = True
    return checked


def any_leading_axes(case: Case, block: nn.Module, inputs: dict[str, Any]) -> bool:
    """Whether the block takes the row of its only input, and gives the row of its output."""
    if len(inputs) > 1:
        return False
    try:
        row, whole = case.call(block, inputs), case.call(block, case.inputs())
        require_equal(row, whole[0] if isinstance(whole, Tensor) else whole, case.tolerance(block))
    except (ValueError, Mismatch):
        return False
    return True


def require_error(run: Callable[[], Any], what: str, *words: str) -> None:
    try:
        run()
    except ValueError as error:
        if missing := [w for w in words if w not in str(error)]:
            raise Mismatch(f"{what}: the error does not name {', '.join(missing)}: {error}") from error
    except Exception as error:
        raise Mismatch(f"{what}: a ValueError that names {', '.join(words)} is due, got {error!r}") from error
    else:
        raise Mismatch(f"{what}: no error")
