"""Gradients: against finite differences, for every parameter, and for each sample alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from layers.testing.contract import Case, is_float
from layers.testing.equality import Mismatch, leaves, require_equal


def gradcheck(case: Case) -> bool:
    """Analytic gradients equal finite differences. A kink inside the step vanishes with a hundred times smaller one.

    Of a block, tensor by tensor; of a whole model, which may have hundreds, along one drawn direction in all of them at once.
    """
    for train in case.modes():
        run, values = as_function(case, case.block(train))
        if not values:
            return False
        if case.contract.model:
            along_a_direction(run, values, case.generator(3))
            continue
        for eps, final in ((1e-6, False), (1e-8, True)):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(case.seed)
                if torch.autograd.gradcheck(run, values, eps=eps, atol=1e-5, rtol=1e-3, fast_mode=True, raise_exception=final):
                    break
    return True


Run = Callable[..., tuple[Tensor, ...]]


def as_function(case: Case, block: nn.Module) -> tuple[Run, list[Tensor]]:
    """The float outputs as a function of parameters and float inputs, and values for these."""
    inputs, buffers = case.inputs(), dict(block.named_buffers())
    names = [name for name, _ in block.named_parameters()]
    moving = [k for k, v in inputs.items() if is_float(v)]

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        parameters = dict(zip(names, values, strict=False))
        given = {**inputs, **dict(zip(moving, values[len(names) :], strict=True))}
        state = {**parameters, **{k: b.clone() for k, b in buffers.items()}}
        output = case.call(Functional(block, state), given)
        return tuple(x for _, x in leaves(output) if x.is_floating_point())

    values = [p.detach().clone().requires_grad_() for p in block.parameters()]
    return run, values + [inputs[k].clone().requires_grad_() for k in moving]


def second_derivatives(case: Case) -> bool:
    """Double backward: the gradient of the squared norm of the gradients equals finite differences, along one drawn direction."""
    shown = False
    for train in case.modes():
        run, values = as_function(case, case.block(train))
        if not values:
            return False
        generator = case.generator(4)
        weights = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in run(*values)]

        def squared_norm(*values: Tensor, run: Run = run, weights: list[Tensor] = weights) -> tuple[Tensor]:
            with torch.enable_grad():
                values = tuple(v if v.requires_grad else v.requires_grad_() for v in values)
                # the squares of the outputs, so that a block that is linear has second derivatives too
                total = torch.stack([(w * x.square()).sum() for w, x in zip(weights, run(*values), strict=True)]).sum()
                gradients = torch.autograd.grad(total, values, create_graph=True, allow_unused=True)
                return (torch.stack([g.square().sum() for g in gradients if g is not None]).sum(),)

        shown |= along_a_direction(squared_norm, values, case.generator(3), "second derivatives")
    return shown


def forward_derivatives(case: Case) -> bool:
    """Forward mode, `torch.func.jvp`, gives the derivatives that backward gives: <u, J v> = <J^T u, v> for drawn u and v."""
    shown = False
    for train in case.modes():
        block = case.block(train)
        run, values = as_function(case, block)
        if not values:
            return False
        generator = case.generator(3)
        direction = [torch.randn(v.shape, generator=generator, dtype=v.dtype) for v in values]
        with warnings.catch_warnings():  # torch scripts some of its own rules
            warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
            moved = torch.func.jvp(run, tuple(v.detach() for v in values), tuple(direction))[1]
        outputs = run(*values)
        weights = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in outputs]
        gradients = torch.autograd.grad(outputs, values, weights, allow_unused=True)
        forward = torch.cat([(w * m).flatten() for w, m in zip(weights, moved, strict=True)])
        backward = torch.cat([(g * d).flatten() for g, d in zip(gradients, direction, strict=True) if g is not None])
        scale = forward.norm() + backward.norm()
        error = (forward.sum() - backward.sum()).abs() / scale
        if scale and not error <= 10 * case.tolerance(block):
            raise Mismatch(f"forward and backward derivatives differ by {error:.1e} of their norm along a direction")
        shown |= bool(scale)
    return shown


def along_a_direction(run: Run, values: list[Tensor], generator: torch.Generator, what: str = "gradients") -> bool:
    """The slope of a drawn sum of all outputs, in a drawn direction, from the gradients and from a step there and back.

    False where both are zero, as under a mask that hides everything, which shows nothing.
    Not `torch.autograd.gradcheck`, which after a failure computes the whole Jacobian to describe it: hours for a model.
    """
    direction = [torch.randn(v.shape, generator=generator, dtype=v.dtype) for v in values]
    weights = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in run(*values)]

    def total(step: float) -> Tensor:
        outputs = run(*(v + step * d for v, d in zip(values, direction, strict=True)))
        return torch.stack([(x * w).sum() for x, w in zip(outputs, weights, strict=True)]).sum()

    found = torch.autograd.grad(total(0.0), values, allow_unused=True)
    parts = torch.stack([(g * d).sum() for g, d in zip(found, direction, strict=True) if g is not None])
    with torch.no_grad():
        slopes = [(total(eps) - total(-eps)) / (2 * eps) for eps in (1e-6, 1e-7, 1e-8, 1e-9)]
    if not parts.any() and not any(slopes):
        return False
    errors = [(slope - parts.sum()).abs() / parts.norm() for slope in slopes]
    if not min(errors) < 1e-5:
        raise Mismatch(f"the {what} along a direction differ from finite differences by {float(min(errors)):.1e} of their norm")
    return True


class Functional(nn.Module):
    """A block that is called with the given parameters and buffers in place of its own."""

    def __init__(self, block: nn.Module, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.run = lambda args, kwargs: torch.func.functional_call(block, state, args, kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(args, kwargs)


def parameters_used(case: Case) -> bool:
    """Every parameter gets a gradient, and one that is not zero for some values."""
    missing: set[str] = set()
    for attempt in range(8):  # a ReLU may silence a whole tensor for one set of values
        drawn = Case(case.contract, case.arguments, case.specs, case.sizes, case.other_sizes, case.seed + attempt)
        block = drawn.block()
        _, _, gradients = drawn.gradients(lambda i, m=block, c=drawn: c.call(m, i), drawn.inputs(), block)
        names = {name for name, p in block.named_parameters() if p.requires_grad}
        if unused := sorted(names - gradients.keys()):
            raise Mismatch(f"no gradient for {', '.join(unused)}: the output does not depend on them")
        silent = {name for name in names if not gradients[name].any()}
        missing = silent if attempt == 0 else missing & silent
        if not missing:
            return bool(names)
    raise Mismatch(f"gradient always zero for {', '.join(sorted(missing))}")


def per_sample_gradients(case: Case) -> bool:
    """`torch.func`: gradients for each row by vmap equal those of each row alone."""
    batches = case.batches()
    block = case.block()
    parameters = {k: p.detach() for k, p in block.named_parameters()}
    buffers = dict(block.named_buffers())
    if not batches or not parameters:
        return False
    inputs = case.inputs()
    rows = {k: v for k, v in inputs.items() if k in batches}
    rest = {k: v for k, v in inputs.items() if k not in batches}

    def loss(parameters: dict[str, Tensor], row: dict[str, Tensor]) -> Tensor:
        single = {k: v.unsqueeze(batches[k]) for k, v in row.items()}
        output = case.call(Functional(block, {**parameters, **buffers}), {k: {**rest, **single}[k] for k in inputs})
        return torch.stack([x.square().sum() for _, x in leaves(output) if x.is_floating_point()]).sum()

    with warnings.catch_warnings():  # fused kernels have no rule for vmap and run row by row: right, and slow
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, batches))(parameters, rows)
    for r in range(case.batch_size()):
        alone = torch.func.grad(loss)(parameters, {k: v.select(batches[k], r) for k, v in rows.items()})
        require_equal({k: g[r] for k, g in each.items()}, alone, 10 * case.tolerance(block), f"gradient of row {r}", 1.0)
    return True
