"""The generic properties: what holds for every block, without a claim.

A check takes a `Case` (and a `Twin` where it compares with one) and raises if the property fails. It returns False where the
case could not have shown anything; a property that never could is reported as a failure, not as a pass.
"""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import settings
from pytest_torch import assert_checkpoint_roundtrip
from torch import Tensor, nn

from layers.testing.contract import Case, Contract, Twin, is_float
from layers.testing.drawing import BATCH, Input
from layers.testing.equality import Mismatch, leaves, require_equal, rms, unit_roundoff


@dataclass(frozen=True)
class Property:
    """One thing to check. `cost` divides the number of examples; `each_twin` makes one test a twin, passing it to `check`."""

    name: str
    check: Callable[..., bool | None]
    cost: int = 1
    each_twin: bool = False
    applies: Callable[[Contract], bool] = lambda contract: True


GENERIC: list[Property] = []
THOROUGH = 200
"""Examples from which a run counts as thorough."""


def generic(**options: Any) -> Callable[[Callable[..., bool | None]], Callable[..., bool | None]]:
    """Put a check under its own name among the generic properties."""

    def decorate(check: Callable[..., bool | None]) -> Callable[..., bool | None]:
        GENERIC.append(Property(check.__name__, check, **options))
        return check

    return decorate


def modes(case: Case) -> tuple[bool, ...]:
    """Evaluation, and training where it draws no random numbers."""
    return (False,) if case.contract.stochastic(case.arguments) else (False, True)


# ------------------------------------------------------------------------------------------------ shape and reference


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


@generic()
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


@generic(each_twin=True)
def forward(case: Case, twin: Twin) -> None:
    """Float64 equality with the twin: outputs, and the buffers that training has moved."""
    for train in modes(case):
        ours = case.block(train)
        theirs = case.twin(twin, ours)
        tolerance, where = twin_tolerance(case, twin, ours), "train" if train else "eval"
        output = case.call(ours, case.inputs())
        require_shape(case, output)
        require_equal(output, twin.call(theirs, case.inputs()), tolerance, f"output ({where})")
        buffers = twin.map(case.arguments).to_theirs(dict(ours.named_buffers()), strict=False)
        reference = {name: b for name, b in theirs.named_buffers() if name in buffers}
        require_equal(buffers, reference, tolerance, f"buffers ({where})")


@generic(each_twin=True)
def backward(case: Case, twin: Twin) -> None:
    """Float64 equality of the gradients of every input and every parameter."""
    for train in modes(case):
        ours = case.block(train)
        theirs = case.twin(twin, ours)
        tolerance, where = 10 * twin_tolerance(case, twin, ours), "train" if train else "eval"
        _, ours_inputs, ours_parameters = case.gradients(lambda i, m=ours: case.call(m, i), case.inputs(), ours)
        _, inputs, parameters = case.gradients(lambda i, m=theirs: twin.call(m, i), case.inputs(), theirs)
        require_equal(ours_inputs, inputs, tolerance, f"gradient ({where})")
        carried = twin.map(case.arguments).to_theirs(ours_parameters, strict=False)
        require_equal(carried, parameters, tolerance, f"gradient ({where})", common=1.0)


@generic(each_twin=True)
def weights(case: Case, twin: Twin) -> bool:
    """Export into the twin and import again: the same bits, and nothing missing on either side."""
    ours, fresh = case.block(), case.new().double()
    twin.map(case.arguments).load(fresh, case.twin(twin, ours).state_dict())
    require_equal(fresh.state_dict(), ours.state_dict(), 0, "state")
    return bool(ours.state_dict())


# ------------------------------------------------------------------------------------------------------- low precision


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


@generic(each_twin=True)
def float32(case: Case, twin: Twin | None) -> None:
    """Error in float32 against float64 truth."""
    precision(case, twin, torch.float32)


@generic(each_twin=True)
def bfloat16(case: Case, twin: Twin | None) -> None:
    """Error in bfloat16 against float64 truth."""
    precision(case, twin, torch.bfloat16)


@generic(each_twin=True)
def autocast(case: Case, twin: Twin | None) -> None:
    """Error under bfloat16 autocast against float64 truth."""
    precision(case, twin, torch.bfloat16, autocast=True)


# ------------------------------------------------------------------------------------------------------------ gradients


@generic(cost=2)
def gradcheck(case: Case) -> bool:
    """Analytic gradients equal finite differences. A kink inside the step vanishes with a hundred times smaller one."""
    for train in modes(case):
        block, inputs = case.block(train), case.inputs()
        names = [name for name, _ in block.named_parameters()]
        moving = [k for k, v in inputs.items() if is_float(v)]
        buffers = dict(block.named_buffers())

        def run(*values: Tensor, block=block, inputs=inputs, names=names, moving=moving, buffers=buffers) -> Any:
            parameters = dict(zip(names, values, strict=False))
            given = {**inputs, **dict(zip(moving, values[len(names) :], strict=True))}
            state = {**parameters, **{k: b.clone() for k, b in buffers.items()}}
            output = case.call(Functional(block, state), given)
            return tuple(x for _, x in leaves(output) if x.is_floating_point())

        values = [p.detach().clone().requires_grad_() for p in block.parameters()]
        values += [inputs[k].clone().requires_grad_() for k in moving]
        if not values:
            return False
        for eps, final in ((1e-6, False), (1e-8, True)):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(case.seed)
                if torch.autograd.gradcheck(run, values, eps=eps, atol=1e-5, rtol=1e-3, fast_mode=True, raise_exception=final):
                    break
    return True


class Functional(nn.Module):
    """A block that is called with the given parameters and buffers in place of its own."""

    def __init__(self, block: nn.Module, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.run = lambda args, kwargs: torch.func.functional_call(block, state, args, kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(args, kwargs)


@generic()
def parameters_used(case: Case) -> bool:
    """Every parameter gets a gradient, and one that is not zero for some values."""
    missing: set[str] = set()
    for attempt in range(8):  # a rectifier may silence a whole tensor for one set of values
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


@generic(cost=4)
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

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, batches))(parameters, rows)
    for r in range(batch_size(case)):
        alone = torch.func.grad(loss)(parameters, {k: v.select(batches[k], r) for k, v in rows.items()})
        require_equal({k: g[r] for k, g in each.items()}, alone, 10 * case.tolerance(block), f"gradient of row {r}", 1.0)
    return True


def batch_size(case: Case) -> int:
    return next(n for axis, n in case.sizes.items() if axis in BATCH)


# ------------------------------------------------------------------------------------------------------------ behaviour


@generic()
def deterministic(case: Case) -> None:
    """In evaluation, two calls give the same bits, forward and backward, whatever the global random state is."""
    block, results = case.block(), []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            results.append(case.gradients(lambda i: case.call(block, i), case.inputs(), block))
    require_equal(results[1], results[0], 0, "second call")


@generic()
def no_global_random(case: Case) -> None:
    """Evaluation draws no global random numbers."""
    block, inputs = case.block(), case.inputs()
    before = torch.get_rng_state(), random.getstate()
    case.call(block, inputs)
    if not torch.equal(before[0], torch.get_rng_state()) or before[1] != random.getstate():
        raise Mismatch("a call in eval mode moved the global random state")


@generic()
def train_eval(case: Case) -> bool:
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
    return not case.contract.trains_differently(case.arguments)


@generic()
def batch_rows(case: Case) -> bool:
    """In evaluation a row depends on itself (it changes when its input does) and on no other row, to the last bit."""
    batches = case.batches()
    if not batches:
        return False
    block, inputs = case.block(), case.inputs()
    row = case.seed % batch_size(case)
    ours, other = rows_of(case, case.call(block, inputs), row), case.inputs(stream=3)
    mixed = {k: v if k not in batches else replace_row(other[k], inputs[k], batches[k], row) for k, v in inputs.items()}
    require_equal(rows_of(case, case.call(block, mixed), row), ours, 0, f"row {row} after changing all others")
    alone = {k: v if k not in batches else v.narrow(batches[k], row, 1) for k, v in inputs.items()}
    single = rows_of(case.with_batch(1), case.call(block, alone), 0)
    require_equal(single, ours, case.tolerance(block), f"row {row} alone", 1.0)
    changed = rows_of(case, case.call(block, other), row)
    return any(not torch.equal(x, changed[k]) for k, x in ours.items())


def rows_of(case: Case, output: Any, row: int) -> dict[str, Tensor]:
    """That row of every output that has a batch axis."""
    spec = case.contract.outputs(case.arguments, SimpleNamespace(**case.sizes))
    marked = documented(spec, {axis: -1 if axis in BATCH else size for axis, size in case.sizes.items()})
    positions = {name: shape.index(-1) for name, shape in marked if -1 in shape}
    return {name: x.select(positions[name], row) for name, x in leaves(output) if name in positions}


def replace_row(target: Tensor, source: Tensor, axis: int, row: int) -> Tensor:
    return target.clone().index_copy_(axis, torch.tensor([row]), source.narrow(axis, row, 1))


@generic()
def inputs_unchanged(case: Case) -> None:
    """Forward and backward leave the caller's tensors as they were."""
    for train in modes(case):
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


@generic()
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
    return [[x.detach() for x in output], [g for g in found if g is not None]]


@generic()
def history_independent(case: Case) -> None:
    """A call does not depend on the calls before it, of other shapes too, and evaluation leaves the state alone."""
    block = case.block()
    state = copy.deepcopy(block.state_dict())
    first = case.call(block, case.inputs())
    case.call(block, case.inputs(stream=3, sizes=case.other_sizes))
    require_equal(case.call(block, case.inputs()), first, 0, "output after another call")
    require_equal(dict(block.state_dict()), dict(state), 0, "state after eval calls")


@generic()
def empty_batch(case: Case) -> bool:
    """A batch of no rows gives outputs of no rows, and gradients without NaN."""
    if not case.batches():
        return False
    empty = case.with_batch(0)
    block = case.block()
    output, of_inputs, of_parameters = empty.gradients(lambda i: empty.call(block, i), empty.inputs(), block)
    require_shape(empty, output)
    require_finite({**of_inputs, **of_parameters}, "gradient")
    return True


def require_finite(tree: Any, name: str) -> None:
    for path, x in leaves(tree, name):
        if x.is_floating_point() and not x.isfinite().all():
            raise Mismatch(f"{path} has {(~x.isfinite()).sum().item()} values of {x.numel()} that are not finite")


@generic()
def finite(case: Case) -> None:
    """Zero, constant, tiny and large inputs give finite outputs and gradients in float32."""
    for train in modes(case):
        for extreme in (0.0, 3.0, 1e-20, 1e4):
            block, inputs = case.block(train, torch.float32), case.inputs(torch.float32)
            scaled = {
                k: v.sign() * extreme if is_float(v) and extreme != 3.0 else torch.full_like(v, 3.0) if is_float(v) else v
                for k, v in inputs.items()
            }
            output, *gradients = case.gradients(lambda i, m=block: case.call(m, i), scaled, block)
            require_finite([output, *gradients], f"result for inputs of {extreme:g}")


# ------------------------------------------------------------------------------------------------------ state and copies


@generic()
def state_round_trip(case: Case) -> None:
    """state_dict, deepcopy and pickle keep every bit, and a copy shares nothing with its original."""
    block = case.block()
    output = case.call(block, case.inputs())
    if block.state_dict():
        assert_checkpoint_roundtrip(lambda: case.new(stream=1).double(), case.inputs(), model=block, rtol=0, atol=0)
    for how, copied in (("deepcopy", copy.deepcopy(block)), ("pickle", pickle.loads(pickle.dumps(block)))):
        require_equal(case.call(copied, case.inputs()), output, 0, f"output after {how}")
        with torch.no_grad():
            for x in [*copied.parameters(), *copied.buffers()]:
                x.zero_()
        require_equal(case.call(block, case.inputs()), output, 0, f"output after changing a {how}")


@generic()
def meta_device(case: Case) -> None:
    """Built on the meta device, materialised as NaN, reset and loaded: the same outputs."""
    block = case.block()
    with torch.device("meta"):
        bare = case.new().double()
    devices = {x.device.type for x in [*bare.parameters(), *bare.buffers()]}
    if devices - {"meta"}:
        raise Mismatch(f"construction under torch.device('meta') left tensors on {sorted(devices - {'meta'})}")
    bare.to_empty(device="cpu")
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for x in [*bare.parameters(), *bare.buffers()]:
            x.fill_(float("nan") if x.is_floating_point() else -1)
        for module in bare.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    bare.load_state_dict(block.state_dict())
    require_equal(case.call(bare.eval(), case.inputs()), case.call(block, case.inputs()), 0, "output")


# --------------------------------------------------------------------------------------------------- export and compile


def dynamic_shapes(case: Case) -> dict[str, Any]:
    batch = torch.export.Dim("batch")
    return {k: {position: batch} if (position := case.batches().get(k)) is not None else None for k in case.specs}


@generic(cost=50)
def export(case: Case) -> bool:
    """`torch.export` with a dynamic batch equals eager, at another batch size too."""
    if not case.batches():
        return False
    block = case.block()
    program = torch.export.export(block, (), case.inputs(), dynamic_shapes=dynamic_shapes(case)).module()
    for size in (batch_size(case), batch_size(case) + 5):
        other = case.with_batch(size)
        require_equal(
            program(**other.inputs()),
            other.call(block, other.inputs()),
            case.tolerance(block),
            f"exported, batch {size}",
        )
    return True


@generic(cost=50)
def compile(case: Case) -> bool:
    """Whole-graph `torch.compile` with a dynamic batch equals eager, forward and backward, without compiling again.

    Whole models, and every block in a thorough run, go through inductor; blocks otherwise through aot_eager, which is quick.
    """
    if not case.batches():
        return False
    block, graphs = case.block(), []
    thorough = settings.default is not None and settings.default.max_examples >= THOROUGH
    compiler = torch._dynamo.lookup_backend("inductor" if case.contract.model or thorough else "aot_eager")

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return compiler(graph, inputs)

    torch._dynamo.reset()
    compiled: Any = torch.compile(block, backend=counting, fullgraph=True)
    for size in (batch_size(case), batch_size(case) + 5):
        other = case.with_batch(size)

        def run(inputs: dict[str, Any], other: Case = other) -> Any:
            for k, position in other.batches().items():
                torch._dynamo.mark_dynamic(inputs[k], position)
            return other.call(compiled, inputs)

        ours = other.gradients(run, other.inputs(), block)
        eager = other.gradients(lambda i, c=other: c.call(block, i), other.inputs(), block)
        require_equal(ours[0], eager[0], case.tolerance(block), f"compiled, batch {size}")
        require_equal(ours[1:], eager[1:], 10 * case.tolerance(block), f"compiled gradient, batch {size}", 1.0)
    if len(graphs) != 1:
        raise Mismatch(f"compiled {len(graphs)} graphs for two batch sizes, one is enough")
    return True


# ------------------------------------------------------------------------------------------------------------ bad input


@generic(cost=5, applies=lambda contract: bool(contract.arguments))
def bad_argument(case: Case) -> bool:
    """Every invalid constructor argument raises a `ValueError` that names it."""
    for overrides, name in case.contract.invalid:
        require_error(lambda overrides=overrides: case.new(overrides), f"constructor with {overrides}", name)
    return bool(case.contract.invalid)


@generic(cost=5)
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
