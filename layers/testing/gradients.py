"""Gradients: against finite differences, for every parameter, and for each sample alone."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError

from layers.testing.behaviour import differentiable
from layers.testing.contract import Case, is_float
from layers.testing.drawing import seeded
from layers.testing.equality import Mismatch, leaves, real, require_equal
from layers.testing.verdicts import NO_BATCH, NO_GRADIENTS, NO_PARAMETERS, Inapplicable, Verdict


def gradcheck(case: Case) -> Verdict:
    """Analytic gradients equal finite differences. A kink inside the step vanishes with a hundred times smaller one.

    Of a block, tensor by tensor; of a whole model, which may have hundreds, along one drawn direction in all of them at once.
    """
    shown = False
    for train in case.modes():
        run, named = as_function(case, case.block(train))
        values = list(named.values())
        if not values or not differentiable(run(*values)):
            return NO_GRADIENTS
        if case.contract.model or case.contract.single_precision:
            shown |= along_a_direction(case, run, values, case.generator(3))
            continue
        for eps, final in ((1e-6, False), (1e-8, True)):
            with seeded(case.seed), without_jacobians():
                try:
                    torch.autograd.gradcheck(run, values, eps=eps, atol=1e-5, rtol=1e-3, fast_mode=True)
                    break
                except GradcheckError as error:
                    if final:
                        raise Mismatch(told(error, list(named))) from None
        shown = True
    return shown


@contextmanager
def without_jacobians() -> Iterator[None]:
    """`torch.autograd.gradcheck` describes a failure by whole Jacobians, seconds for each of a search for a smaller one."""
    module, name = sys.modules["torch.autograd.gradcheck"], "_run_slow_mode_and_get_error"
    describe = getattr(module, name, None)  # not public: without it messages are long and right
    if describe is not None:
        setattr(module, name, lambda *arguments, **named: "")
    try:
        yield
    finally:
        if describe is not None:
            setattr(module, name, describe)


def told(error: Exception, names: list[str]) -> str:
    """What `torch.autograd.gradcheck` says, with the names of the tensors that it counts."""
    text = " ".join(str(error).split())
    found = re.search(r"output (\d+) with respect to input (\d+).*?numerical: ?(\S+).*?analytical: ?(\S+)", text)
    if not found:
        return text[:400]
    output, value, numerical, analytical = found.groups()
    of = names[int(value)]
    return f"gradient of output {output} by {of}: along a drawn direction {analytical}, by finite differences {numerical}"


Run = Callable[..., tuple[Tensor, ...]]


def as_function(case: Case, block: nn.Module) -> tuple[Run, dict[str, Tensor]]:
    """The float outputs, as real numbers, as a function of parameters and float inputs; and values for these by name."""
    inputs, buffers = case.inputs(), dict(block.named_buffers())
    names = [name for name, _ in block.named_parameters()]
    moving = [k for k, v in inputs.items() if is_float(v)]
    sparse = any(getattr(module, "sparse", False) is True for module in block.modules())

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        if sparse:  # finite differences and vector products know no sparse gradients
            values = tuple(DenseGradient.apply(v) for v in values)
        parameters = dict(zip(names, values, strict=False))
        given = {**inputs, **dict(zip(moving, values[len(names) :], strict=True))}
        state = {**parameters, **{k: b.clone() for k, b in buffers.items()}}
        output = case.call(Functional(block, state), given)
        return tuple(real(x) for _, x in leaves(output) if is_float(x))

    values = {name: p.detach().clone().requires_grad_() for name, p in block.named_parameters()}
    return run, values | {f"input.{k}": inputs[k].clone().requires_grad_() for k in moving}


class DenseGradient(torch.autograd.Function):
    """The same values, whose gradient is dense."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].to_dense() if gradients[0].is_sparse else gradients[0]

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return tangents[0].clone()


def inner(x: Tensor, y: Tensor) -> Tensor:
    """The real inner product, which relates gradients of complex tensors to changes of them."""
    return (real(x) * real(y)).sum()


def second_derivatives(case: Case) -> Verdict:
    """Double backward: the gradient of the squared norm of the gradients equals finite differences, along one drawn direction.

    And a backward pass of which a graph is kept gives the gradients that one without gives.
    """
    shown = False
    for train in case.modes():
        block = case.block(train)
        run, named = as_function(case, block)
        values = list(named.values())
        if not values or not differentiable(run(*values)):
            return NO_GRADIENTS
        generator = case.generator(4)
        weights = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in run(*values)]
        plain, kept = (gradients_of(run, values, list(named), weights, graph) for graph in (False, True))
        require_equal(kept, plain, 10 * case.tolerance(block), "gradient with `create_graph`", 1.0)

        def squared_norm(*values: Tensor, run: Run = run, weights: list[Tensor] = weights) -> tuple[Tensor]:
            with torch.enable_grad():
                values = tuple(v if v.requires_grad else v.requires_grad_() for v in values)
                found = gradients_of(run, values, list(map(str, range(len(values)))), weights, True)
                return (torch.stack([inner(g, g) for g in found.values()]).sum(),)

        shown |= along_a_direction(case, squared_norm, values, case.generator(3), "second derivatives")
    return shown


def gradients_of(
    run: Run, values: Sequence[Tensor], names: Sequence[str], weights: Sequence[Tensor], create_graph: bool
) -> dict[str, Tensor]:
    """Of a sum of the squares of the outputs, so that a block that is linear has second derivatives too."""
    total = torch.stack([(w * x.square()).sum() for w, x in zip(weights, run(*values), strict=True)]).sum()
    found = torch.autograd.grad(total, values, create_graph=create_graph, allow_unused=True)
    return {name: g for name, g in zip(names, found, strict=True) if g is not None}


def forward_derivatives(case: Case) -> Verdict:
    """Forward mode, `torch.func.jvp`, gives the derivatives that backward gives: <u, J v> = <J^T u, v> for drawn u and v."""
    shown = False
    for train in case.modes():
        block = case.block(train)
        run, named = as_function(case, block)
        values = list(named.values())
        outputs = run(*values)
        if not values or not differentiable(outputs):
            return NO_GRADIENTS
        generator = case.generator(3)
        direction = [torch.randn(v.shape, generator=generator, dtype=v.dtype) for v in values]
        with warnings.catch_warnings():  # torch scripts some of its own rules
            warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
            moved = torch.func.jvp(run, tuple(v.detach() for v in values), tuple(direction))[1]
        weights = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in outputs]
        total = torch.stack([(w * x).sum() for w, x in zip(weights, outputs, strict=True)]).sum()
        gradients = torch.autograd.grad(total, values, allow_unused=True)
        forward = torch.cat([(w * m).flatten() for w, m in zip(weights, moved, strict=True)])
        backward = torch.cat([(real(g) * real(d)).flatten() for g, d in zip(gradients, direction, strict=True) if g is not None])
        scale = forward.norm() + backward.norm()
        error = (forward.sum() - backward.sum()).abs() / scale
        if scale and not error <= 10 * case.tolerance(block):
            raise Mismatch(f"forward and backward derivatives differ by {error:.1e} of their norm along a direction")
        shown |= bool(scale)
    return shown


def along_a_direction(case: Case, run: Run, values: list[Tensor], generator: torch.Generator, what: str = "gradients") -> bool:
    """The slope of a drawn sum of all outputs, in a drawn direction, from the gradients and from a step there and back.

    False where both are zero, as under a mask that hides everything, which shows nothing.
    Not `torch.autograd.gradcheck`, which after a failure computes the whole Jacobian to describe it: hours for a model.
    """
    # Where parts are rounded to float32, a step must be larger than that. Batch statistics of few values stretch what comes to
    # them 300 times a layer, until even a step of 1e-9 may cross a kink.
    coarse = case.contract.single_precision
    steps, limit = ((1e-2, 1e-3, 1e-4), 1e-2) if coarse else ((1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-11), 1e-5)
    direction = [torch.randn(v.shape, generator=generator, dtype=v.dtype) for v in values]
    weights = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in run(*values)]

    def total(step: float) -> Tensor:
        outputs = run(*(v + step * d for v, d in zip(values, direction, strict=True)))
        return torch.stack([(x * w).sum() for x, w in zip(outputs, weights, strict=True)]).sum()

    found = torch.autograd.grad(total(0.0), values, allow_unused=True)
    parts = torch.stack([inner(g, d) for g, d in zip(found, direction, strict=True) if g is not None])
    errors = []
    for eps in steps:
        with torch.no_grad():
            slope = (total(eps) - total(-eps)) / (2 * eps)
        if not parts.any() and not slope:
            return False
        errors.append(float((slope - parts.sum()).abs() / parts.norm()))
        if errors[-1] < limit:
            return True
    raise Mismatch(f"the {what} along a direction differ from finite differences by {min(errors):.1e} of their norm")


class Functional(nn.Module):
    """A block that is called with the given parameters and buffers in place of its own."""

    def __init__(self, block: nn.Module, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.run = lambda args, kwargs: torch.func.functional_call(block, state, args, kwargs)
        self.settings = {k: v for k, v in vars(block).items() if not k.startswith("_")}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(args, kwargs)

    def __getattr__(self, name: str) -> Any:
        """What a contract's `call` may look at: settings of the block, such as `batch_first`."""
        settings = vars(self).get("settings", {})
        return settings[name] if name in settings else super().__getattr__(name)


def parameters_used(case: Case) -> Verdict:
    """Every parameter is registered and gets a gradient, one that is not zero for some values."""
    missing: set[str] = set()
    if hidden := sorted(unregistered(case.new())):
        raise Mismatch(f"{', '.join(hidden)}: not among the parameters; lists and dicts must be `nn.ParameterList`s and the like")
    for attempt in range(8):  # a ReLU may silence a whole tensor for one set of values
        drawn = replace(case, seed=case.seed + attempt)
        block = drawn.block()
        names = {name for name, p in block.named_parameters() if p.requires_grad}
        if not names:
            return NO_PARAMETERS
        _, _, gradients = drawn.gradients(lambda i, m=block, c=drawn: c.call(m, i), drawn.inputs(), block)
        if unused := sorted(names - gradients.keys()):
            raise Mismatch(f"no gradient for {', '.join(unused)}: the output does not depend on them")
        silent = {name for name in names if not gradients[name].any()}
        missing = silent if attempt == 0 else missing & silent
        if not missing:
            return True
    raise Mismatch(f"gradient always zero for {', '.join(sorted(missing))}")


def unregistered(block: nn.Module) -> Iterator[str]:
    """Parameters that no module knows, though one holds them, in a list or so: optimizers and `state_dict` pass them over."""
    known = {id(p) for p in block.parameters()}

    def held(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
        if isinstance(value, nn.Parameter):
            yield name, value
        elif isinstance(value, nn.Module):
            yield from ((f"{name}.{inner}", p) for inner, p in value.named_parameters())
        elif isinstance(value, (list, tuple)):
            for i, part in enumerate(value):
                yield from held(part, f"{name}[{i}]")
        elif isinstance(value, dict):
            for key, part in value.items():
                yield from held(part, f"{name}[{key!r}]")

    for prefix, module in block.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, (list, tuple, dict)) and key not in ("_parameters", "_buffers", "_modules"):
                found = held(value, f"{prefix}.{key}".lstrip("."))
                yield from (name for name, p in found if p.requires_grad and id(p) not in known)


def per_sample_gradients(case: Case) -> Verdict:
    """`torch.func`: gradients for each row by vmap equal those of each row alone."""
    batches = case.batches()
    block = case.block()
    parameters = {k: p.detach() for k, p in block.named_parameters()}
    buffers = dict(block.named_buffers())
    if not parameters:
        return NO_PARAMETERS
    if not batches:
        return NO_BATCH
    if why := beyond_vmap(block):
        return Inapplicable(why)
    inputs = case.inputs()
    rows = {k: v for k, v in inputs.items() if k in batches}
    rest = {k: v for k, v in inputs.items() if k not in batches}

    def loss(parameters: dict[str, Tensor], row: dict[str, Tensor]) -> Tensor:
        single = {k: v.unsqueeze(batches[k]) for k, v in row.items()}
        output = case.call(Functional(block, {**parameters, **buffers}), {k: {**rest, **single}[k] for k in inputs})
        return torch.stack([real(x).square().sum() for _, x in leaves(output) if is_float(x)]).sum()

    with warnings.catch_warnings():  # fused kernels have no rule for vmap and run row by row: right, and slow
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, batches))(parameters, rows)
    for r in range(case.batch_size()):
        alone = torch.func.grad(loss)(parameters, {k: v.select(batches[k], r) for k, v in rows.items()})
        require_equal({k: g[r] for k, g in each.items()}, alone, 10 * case.tolerance(block), f"gradient of row {r}", 1.0)
    return True


def beyond_vmap(block: nn.Module) -> str:
    """Why torch has no rule for the block under vmap, if so."""
    if found := kernels(block):
        return f"torch has no rule for vmap over the kernel of {found}"
    if any(getattr(module, "sparse", False) is True for module in block.modules()):
        return "torch has no rule for vmap over sparse gradients"
    return ""


def kernels(block: nn.Module) -> str:
    """Names of the classes of torch that run whole sequences in one kernel, if the block has any."""
    return ", ".join(sorted({type(m).__name__ for m in block.modules() if isinstance(m, nn.RNNBase)}))
