"""What a block computes: documented shapes, equality with its twins, and error in low precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from layers.testing.contract import Case, Twin
from layers.testing.equality import Mismatch, leaves, require_equal, rms, unit_roundoff


def documented(spec: Any, sizes: dict[str, int], name: str = "output") -> Iterator[tuple[str, tuple[int, ...]]]:
    """The shapes that `Contract.outputs` states, under the names that `leaves` gives to the outputs."""
    if isinstance(spec, tuple):
        yield name, tuple(sizes[n] if isinstance(n, str) else n for n in spec)
    else:
        items = spec.items() if isinstance(spec, dict) else enumerate(spec)
        for key, value in items:
            yield from documented(value, sizes, f"{name}.{key}" if isinstance(spec, dict) else f"{name}[{key}]")


def require_shape(case: Case, output: Any) -> None:
    expected = dict(documented(case.contract.outputs(case.arguments, SimpleNamespace(**case.sizes)), case.sizes))
    got = {name: tuple(x.shape) for name, x in leaves(output)}
    if got != expected:
        raise Mismatch(f"output shapes are {got}, documented are {expected}")


def shape(case: Case) -> None:
    """Outputs have the documented shapes and the block's dtype, in evaluation and in training."""
    for dtype in (torch.float32, torch.float64):
        for train in (False, True):
            output = case.call(case.block(train, dtype), case.inputs(dtype))
            require_shape(case, output)
            for name, x in leaves(output):
                if x.is_floating_point() and x.dtype != dtype:
                    raise Mismatch(f"{name} has dtype {x.dtype} in a {dtype} block")


def twin_tolerance(case: Case, twin: Twin, block: nn.Module) -> float:
    return case.tolerance(block, torch.float32 if twin.single_precision else torch.float64)


def forward(case: Case, twin: Twin) -> None:
    """Float64 equality with the twin: outputs, and the buffers that training has moved."""
    for train in case.modes():
        ours = case.block(train)
        theirs = case.twin(twin, ours)
        tolerance, where = twin_tolerance(case, twin, ours), "train" if train else "eval"
        output = case.call(ours, case.inputs())
        require_shape(case, output)
        require_equal(output, twin.call(theirs, case.inputs()), tolerance, f"output ({where})")
        buffers = twin.map(case.arguments).to_theirs(dict(ours.named_buffers()), strict=False)
        reference = {name: b for name, b in theirs.named_buffers() if name in buffers}
        require_equal(buffers, reference, tolerance, f"buffers ({where})")


def backward(case: Case, twin: Twin) -> None:
    """Float64 equality of the gradients of every input and every parameter."""
    for train in case.modes():
        ours = case.block(train)
        theirs = case.twin(twin, ours)
        tolerance, where = 10 * twin_tolerance(case, twin, ours), "train" if train else "eval"
        _, ours_inputs, ours_parameters = case.gradients(lambda i, m=ours: case.call(m, i), case.inputs(), ours)
        _, inputs, parameters = case.gradients(lambda i, m=theirs: twin.call(m, i), case.inputs(), theirs)
        carried = twin.map(case.arguments).to_theirs(ours_parameters, strict=False)
        known = dict(theirs.named_parameters())  # a tied one under one of its names only
        carried = {name: x for name, x in carried.items() if name in known}
        require_equal({**ours_inputs, **carried}, {**inputs, **parameters}, tolerance, f"gradient ({where})", common=1.0)


def weights(case: Case, twin: Twin) -> bool:
    """Export into the twin and import again: the same bits, and nothing missing on either side."""
    ours, fresh = case.block(), case.new().double()
    twin.map(case.arguments).load(fresh, case.twin(twin, ours).state_dict())
    require_equal(fresh.state_dict(), ours.state_dict(), 0, "state")
    return bool(ours.state_dict())


def precision(case: Case, twin: Twin | None, dtype: torch.dtype, autocast: bool = False) -> None:
    """Error against float64 on the same rounded values: at most twice the twin's own (three times in half precision)."""
    stored = torch.float32 if autocast else dtype
    truth = dict(leaves(case.call(case.block(values=stored), case.inputs(values=stored))))
    block = case.block(dtype=stored)

    def errors(run: Callable[[], Any]) -> dict[str, float]:
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=autocast):
            result = dict(leaves(run()))
        return {name: rms(x.double() - truth[name]) for name, x in result.items() if x.is_floating_point()}

    ours = errors(lambda: case.call(block, case.inputs(stored)))
    reference = errors(lambda: twin.call(case.twin(twin, block), case.inputs(stored))) if twin else {}
    factor = 2 if dtype == torch.float32 else 3
    for name, error in ours.items():
        ulps = 4 * unit_roundoff(dtype) * rms(truth[name])
        allowed = factor * reference[name] + ulps if twin else case.tolerance(block, dtype) * rms(truth[name]) + ulps
        if not error <= allowed:
            raise Mismatch(
                f"{name} in {dtype}{' autocast' * autocast}: error {error:.2e}, "
                f"the reference's own {reference.get(name, float('nan')):.2e}, allowed {allowed:.2e}"
            )


def float32(case: Case, twin: Twin | None) -> None:
    """Error in float32 against float64 truth."""
    precision(case, twin, torch.float32)


def bfloat16(case: Case, twin: Twin | None) -> None:
    """Error in bfloat16 against float64 truth."""
    precision(case, twin, torch.bfloat16)


def autocast(case: Case, twin: Twin | None) -> None:
    """Error under bfloat16 autocast against float64 truth."""
    precision(case, twin, torch.bfloat16, autocast=True)
