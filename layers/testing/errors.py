"""Bad arguments and inputs: each a `ValueError` that names what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

from torch import Tensor, nn

from layers.testing.contract import Case, Contract
from layers.testing.drawing import Input
from layers.testing.equality import Mismatch, require_equal
from layers.testing.verdicts import Vacuous, Verdict


def bad_argument(case: Case) -> Verdict:
    """Every invalid constructor argument raises a `ValueError` that names it."""
    for overrides, name in case.contract.invalid:
        require_error(lambda overrides=overrides: case.new(overrides), f"constructor with {overrides}", name)
    return bool(case.contract.invalid) or Vacuous(
        "the contract names no `invalid` arguments; `foreign=True` is for others' blocks"
    )


def bad_input(case: Case) -> Verdict:
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
    return checked or Vacuous('no axis of an input has a fixed size: give it, as in `tensor("b dim", dim=a.dim)`')


def sizes_agree(case: Case) -> bool:
    """Inputs that share an axis and disagree about its size raise a `ValueError` that names the axis and one of them.

    A size of 1 is a size as any other, unless the contract writes the axis as 1 or the input broadcasts, as masks do.
    """
    block, shared = case.block(), shared_axes(case.specs)
    for axis, names in shared.items():
        for odd, (size, other) in product(names, ((2, 1), (1, 2), (1, 3), (case.sizes[axis], case.sizes[axis] + 1))):
            sizes = {name: other if name == odd else size for name in names}
            if len({n for name, n in sizes.items() if n > 1 or not case.specs[name].broadcasts}) < 2:
                continue
            drawn = {name: case.inputs(sizes={**case.sizes, axis: n})[name] for name, n in sizes.items()}
            inputs = {**case.inputs(), **drawn}
            what = f"{axis} of {odd} {other}, of {', '.join(n for n in names if n != odd)} {size}"
            require_error(lambda i=inputs: case.call(block, i), what, axis, any_of=names)
    return bool(shared)


def share_axes(contract: Contract) -> bool:
    """Whether inputs share an axis; where the inputs cannot be drawn, `smoke` tells why."""
    try:
        return not contract.foreign and bool(shared_axes(contract.example().specs))
    except Exception:
        return False


def shared_axes(specs: Mapping[str, Any]) -> dict[str, list[str]]:
    """Axes of no fixed size that several inputs have, and which inputs; fixed ones are for `bad_input`."""
    tensors = {name: spec for name, spec in specs.items() if isinstance(spec, Input)}
    fixed = {axis for spec in tensors.values() for axis, size in spec.sizes.items() if isinstance(size, int)}
    axes = dict.fromkeys(axis for spec in tensors.values() for axis in spec.axes if axis != "1" and axis not in fixed)
    having = {axis: [name for name, spec in tensors.items() if axis in spec.axes] for axis in axes}
    return {axis: names for axis, names in having.items() if len(names) > 1}


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


def require_error(run: Callable[[], Any], what: str, *words: str, any_of: Sequence[str] = ()) -> None:
    try:
        run()
    except ValueError as error:
        missing = [w for w in words if w not in str(error)]
        if any_of and not any(w in str(error) for w in any_of):
            missing.append(" or ".join(any_of))
        if missing:
            raise Mismatch(f"{what}: the error does not name {', '.join(missing)}: {error}") from error
    except Exception as error:
        raise Mismatch(f"{what}: expected a ValueError that names {', '.join(words)}, got {error!r}") from error
    else:
        raise Mismatch(f"{what}: no error")
