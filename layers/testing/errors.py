"""Bad arguments and inputs: each a `ValueError` that names what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from layers.testing.contract import Case
from layers.testing.drawing import Input
from layers.testing.equality import Mismatch


def bad_argument(case: Case) -> bool:
    """Every invalid constructor argument raises a `ValueError` that names it."""
    for overrides, name in case.contract.invalid:
        require_error(lambda overrides=overrides: case.new(overrides), f"constructor with {overrides}", name)
    return bool(case.contract.invalid)


def bad_input(case: Case) -> bool:
    """A fixed axis of another size, and an axis too few, raise a `ValueError` that names the tensor and the axis."""
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
            require_error(lambda i=inputs: case.call(block, i), f"{name} without its first axis", name)
            checked = True
    return checked


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
