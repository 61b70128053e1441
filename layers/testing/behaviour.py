"""How a block behaves: alike on every call, row by row, for any layout, for no rows and for extreme values."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from layers.testing.contract import Case, is_float
from layers.testing.drawing import BATCH, seeded
from layers.testing.equality import Mismatch, leaves, real, require_equal
from layers.testing.reference import documented, require_shape
from layers.testing.verdicts import NO_BATCH, NO_ROWS, Vacuous, Verdict


def deterministic(case: Case) -> None:
    """In evaluation, two calls give the same bits, forward and backward, whatever the global random state is."""
    block, results = case.block(), []
    for seed in (0, 1):
        with seeded(seed):
            results.append(case.gradients(lambda i: case.call(block, i), case.inputs(), block))
    require_equal(results[1], results[0], 0, "second call")


def no_global_random(case: Case) -> None:
    """Evaluation draws no global random numbers."""
    block, inputs = case.block(), case.inputs()
    before = torch.get_rng_state(), random.getstate()
    case.call(block, inputs)
    if not torch.equal(before[0], torch.get_rng_state()) or before[1] != random.getstate():
        raise Mismatch("a call in eval mode moved the global random state")


def train_eval(case: Case) -> Verdict:
    """Training and evaluation differ where the contract says so, and only there."""
    block = case.block()
    output = case.call(block, case.inputs())
    trained = case.call(case.block(train=True), case.inputs())
    try:
        require_equal(trained, output, case.tolerance(block), "output in training mode")
    except Mismatch:
        if not case.contract.trains_differently(case.arguments):
            raise
        return True
    claimed = case.contract.trains_differently(case.arguments)
    return not claimed or Vacuous("the contract says `trains_differently`, and training gives what evaluation gives")


def batch_rows(case: Case) -> Verdict:
    """In evaluation a row depends on itself (it changes when its input does) and on no other row, to the last bit."""
    batches = case.batches()
    if not batches:
        return NO_BATCH
    block, inputs = case.block(), case.inputs()
    row = case.seed % case.batch_size()
    ours, other = rows_of(case, case.call(block, inputs), row), case.inputs(stream=3)
    if not ours:
        return NO_ROWS
    mixed = {k: v if k not in batches else replace_row(other[k], inputs[k], batches[k], row) for k, v in inputs.items()}
    require_equal(rows_of(case, case.call(block, mixed), row), ours, 0, f"row {row} after changing all others")
    alone = {k: v if k not in batches else v.narrow(batches[k], row, 1) for k, v in inputs.items()}
    single = rows_of(case.with_batch(1), case.call(block, alone), 0)
    require_equal(single, ours, case.tolerance(block), f"row {row} alone", 1.0)
    changed = rows_of(case, case.call(block, other), row)
    return any(not torch.equal(x, changed[k]) for k, x in ours.items()) or Vacuous("a row does not change with its inputs")


def batched(case: Case) -> dict[str, int]:
    """The outputs that have a batch axis, and its position."""
    spec = case.contract.outputs(case.arguments, SimpleNamespace(**case.sizes))
    marked = documented(spec, {axis: -1 if axis in BATCH else size for axis, size in case.sizes.items()})
    return {name: shape.index(-1) for name, shape in marked if -1 in shape}


def rows_of(case: Case, output: Any, row: int) -> dict[str, Tensor]:
    """That row of every output that has a batch axis."""
    positions = batched(case)
    return {name: x.select(positions[name], row) for name, x in leaves(output) if name in positions}


def replace_row(target: Tensor, source: Tensor, axis: int, row: int) -> Tensor:
    return target.clone().index_copy_(axis, torch.tensor([row]), source.narrow(axis, row, 1))


def inputs_unchanged(case: Case) -> None:
    """Forward and backward leave the caller's tensors as they were."""
    for train in case.modes():
        block, inputs = case.block(train), case.inputs()
        kept = {k: v.clone() for k, v in inputs.items() if isinstance(v, Tensor)}
        output = case.call(block, inputs)
        gradients = [torch.randn(x.shape, generator=case.generator(2), dtype=x.dtype) for x in differentiable(output)]
        copies = [g.clone() for g in gradients]
        if gradients:
            torch.autograd.backward(differentiable(output), gradients)
        require_equal({k: inputs[k] for k in kept}, kept, 0, "input")
        require_equal(gradients, copies, 0, "output gradient")


def differentiable(output: Any) -> list[Tensor]:
    return [x for _, x in leaves(output) if x.requires_grad]


def spread(x: Tensor) -> Tensor:
    """The same values at every second address, with junk between them."""
    return torch.stack([x, torch.full_like(x, 7 if x.dtype != torch.bool else 1)], -1)[..., 0]


def non_contiguous(case: Case) -> None:
    """Strided and channels-last inputs, and strided output gradients, give the same outputs and gradients."""
    block = case.block()
    expected = contiguous_gradients(case, block, case.inputs(), lambda x: x)
    layouts: dict[str, Callable[[Tensor], Tensor]] = {"strided": spread}
    if any(isinstance(v, Tensor) and v.ndim == 4 for v in case.inputs().values()):
        layouts["channels-last"] = lambda x: x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
    for name, layout in layouts.items():
        found = contiguous_gradients(case, block, case.inputs(), layout)
        require_equal(found, expected, 10 * case.tolerance(block), f"{name}: result", 1.0)


def contiguous_gradients(case: Case, block: nn.Module, inputs: dict[str, Any], layout: Callable[[Tensor], Tensor]) -> list[Any]:
    given = {k: layout(v).requires_grad_(is_float(v)) if isinstance(v, Tensor) else v for k, v in inputs.items()}
    output = differentiable(case.call(block, given))
    generator = case.generator(2)
    gradients = [layout(torch.randn(x.shape, generator=generator, dtype=x.dtype)) for x in output]
    variables = [v for v in given.values() if is_float(v)] + list(block.parameters())
    found = torch.autograd.grad(output, variables, gradients, allow_unused=True) if output and variables else []
    return [[x.detach() for x in output], [g.to_dense() if g.is_sparse else g for g in found if g is not None]]


def history_independent(case: Case) -> None:
    """A call does not depend on the calls before it, of other shapes too, and evaluation leaves the state alone."""
    block = case.block()
    state = copy.deepcopy(block.state_dict())
    first = case.call(block, case.inputs())
    case.call(block, case.inputs(stream=3, sizes=case.other_sizes))
    require_equal(case.call(block, case.inputs()), first, 0, "output after another call")
    require_equal(dict(block.state_dict()), dict(state), 0, "state after eval calls")


def empty_batch(case: Case) -> Verdict:
    """A batch of no rows gives outputs of no rows, and gradients without NaN."""
    if not case.batches():
        return NO_BATCH
    if not batched(case):
        return NO_ROWS
    empty = case.with_batch(0)
    block = case.block()
    output, of_inputs, of_parameters = empty.gradients(lambda i: empty.call(block, i), empty.inputs(), block)
    require_shape(empty, output)
    require_finite({**of_inputs, **of_parameters}, "gradient")
    return True


def require_finite(tree: Any, name: str) -> None:
    for path, x in leaves(tree, name):
        if is_float(x) and not real(x).isfinite().all():
            raise Mismatch(f"{path} has {(~x.isfinite()).sum().item()} values of {x.numel()} that are not finite")


def finite(case: Case) -> None:
    """Zero, constant, tiny and large inputs give finite outputs and gradients in float32."""
    for train in case.modes():
        for extreme in (0.0, 3.0, 1e-20, 1e4):
            block, inputs = case.block(train, torch.float32), case.inputs(torch.float32)
            scaled = {
                k: v.sgn() * extreme if is_float(v) and extreme != 3.0 else torch.full_like(v, 3.0) if is_float(v) else v
                for k, v in inputs.items()
            }
            output, *gradients = case.gradients(lambda i, m=block: case.call(m, i), scaled, block)
            require_finite([output, *gradients], f"result for inputs of {extreme:g}")
