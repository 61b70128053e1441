"""What a block computes: documented shapes, equality with its twins, and error in low precision."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from layers.testing.contract import Case, Twin, cast, is_float, like
from layers.testing.equality import Mismatch, leaves, real, require_equal, rms, unit_roundoff
from layers.testing.rounding import Rounding
from layers.testing.verdicts import Inapplicable, Verdict


def documented(spec: Any, sizes: dict[str, int], name: str = "output") -> Iterator[tuple[str, tuple[int, ...]]]:
    """The shapes that `Contract.outputs` states, under the names that `leaves` gives to the outputs."""
    if isinstance(spec, tuple):
        yield name, tuple(sizes[n] if isinstance(n, str) else n for n in spec)
    elif spec is not ...:
        for key, value in keyed(spec, name):
            yield from documented(value, sizes, key)


def keyed(spec: Any, name: str) -> list[tuple[str, Any]]:
    if isinstance(spec, Mapping):
        return [(f"{name}.{key}", value) for key, value in spec.items()]
    if isinstance(spec, list):
        return [(f"{name}[{i}]", value) for i, value in enumerate(spec)]
    raise TypeError(f"outputs must give a tuple as a shape, or lists and dicts of shapes and `...`, got {spec!r} for {name}")


def undocumented(spec: Any, name: str = "output") -> Iterator[str]:
    """The parts for which `Contract.outputs` gives `...`."""
    if spec is ...:
        yield name
    elif not isinstance(spec, tuple):
        for key, value in keyed(spec, name):
            yield from undocumented(value, key)


def inside(name: str, parts: tuple[str, ...]) -> bool:
    return any(name == part or name.startswith((f"{part}.", f"{part}[")) for part in parts)


def require_shape(case: Case, output: Any) -> None:
    spec = case.contract.outputs(case.arguments, SimpleNamespace(**case.sizes))
    expected = dict(documented(spec, case.sizes))
    free = tuple(undocumented(spec))
    got = {name: tuple(x.shape) for name, x in leaves(output) if not inside(name, free)}
    if got != expected:
        raise Mismatch(f"output shapes are {got}, documented are {expected}")


def smoke(case: Case) -> None:
    """One configuration is drawn and built, its twins too, and all of them can be called."""
    block, inputs = case.block(), case.inputs()
    case.call(block, inputs)
    for twin in case.contract.twins:
        case.call_twin(twin, case.twin(twin, block), case.inputs())


def shape(case: Case) -> None:
    """Outputs have the documented shapes and the block's dtype, in evaluation and in training."""
    for dtype in (torch.float32, torch.float64):
        for train in (False, True):
            output = case.call(case.block(train, dtype), case.inputs(dtype))
            require_shape(case, output)
            for name, x in leaves(output):
                if is_float(x) and x.dtype != like(x, dtype):
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
        require_equal(output, case.call_twin(twin, theirs, case.inputs()), tolerance, f"output ({where})")
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
        _, inputs, parameters = case.gradients(lambda i, m=theirs: case.call_twin(twin, m, i), case.inputs(), theirs)
        carried = twin.map(case.arguments).to_theirs(ours_parameters, strict=False)
        known = dict(theirs.named_parameters())  # a tied one under one of its names only
        carried = {name: x for name, x in carried.items() if name in known}
        require_equal({**ours_inputs, **carried}, {**inputs, **parameters}, tolerance, f"gradient ({where})", common=1.0)


def weights(case: Case, twin: Twin) -> Verdict:
    """Export into the twin and import again: the same bits, and nothing missing on either side."""
    ours, fresh, table = case.block(), cast(case.new(), torch.float64), twin.map(case.arguments)
    table.load(fresh, case.twin(twin, ours).state_dict())
    require_equal(table.shared(fresh.state_dict()), table.shared(ours.state_dict()), 0, "state")
    return True if ours.state_dict() else Inapplicable("it has neither parameters nor saved buffers")


def precision(case: Case, twin: Twin | None, dtype: torch.dtype, autocast: bool = False) -> Verdict:
    """Error against float64 on the same rounded values: at most twice the twin's own (three times in half precision).

    Without a twin: three times what rounding the result of each operation comes to, or moving inputs and parameters as far.
    """
    stored = torch.float32 if autocast else dtype
    block = case.block(dtype=stored)
    tensors = [x for x in [*block.parameters(), *block.buffers(), *case.inputs().values()] if isinstance(x, Tensor)]
    if dtype == torch.bfloat16 and any(x.is_complex() for x in tensors):
        return Inapplicable("complex numbers have no bfloat16")
    truth = dict(leaves(case.call(case.block(values=stored), case.inputs(values=stored))))

    def errors(run: Callable[[], Any]) -> dict[str, float]:
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=autocast):
            result = dict(leaves(run()))
        return {name: rms(real(x).double() - real(truth[name])) for name, x in result.items() if is_float(x)}

    ours = errors(lambda: case.call(block, case.inputs(stored)))
    if not ours:
        return Inapplicable("no output is of real numbers")
    reference = errors(lambda: case.call_twin(twin, case.twin(twin, block), case.inputs(stored))) if twin else {}
    if not twin:
        reference = rounded(case, stored, dtype, truth)
    factor = 2 if dtype == torch.float32 and twin else 3
    for name, error in ours.items():
        ulps = 4 * unit_roundoff(dtype) * rms(truth[name])
        allowed = factor * reference[name] + ulps
        if case.contract.single_precision:  # the truth itself is known to float32's rounding
            allowed += case.tolerance(block) * rms(truth[name])
        if not error <= allowed:
            own = f"the twin's own {reference[name]:.2e}, " if twin else f"that of rounding {reference[name]:.2e}, "
            raise Mismatch(f"{name} in {dtype}{' autocast' * autocast}: error {error:.2e}, {own}allowed {allowed:.2e}")
    return True


def rounded(case: Case, stored: torch.dtype, dtype: torch.dtype, truth: dict[str, Tensor]) -> dict[str, float]:
    """What the error may come to, by output, a third of it, by a few runs in float64, more where few elements are off.

    Of those whose operations are each rounded to `dtype`, and of those whose inputs and parameters are moved as far, times the
    root of the number of operations, the smaller: an operation that loses digits without need counts in the first alone.
    """
    errors: dict[str, list[tuple[float, float]]] = {}
    elements: dict[str, int] = {}
    for seed in itertools.count():
        mode = Rounding(dtype, seed)
        with torch.no_grad():
            block, inputs = case.block(values=stored), case.inputs(values=stored)
            with mode:
                runs = [case.call(block, inputs)]
            for x in [*block.parameters(), *inputs.values()]:
                if is_float(x) and not x.is_complex():
                    x.copy_(mode.moved(x))
            runs.append(case.call(block, inputs))
        off, by_inputs = ({k: real(x).double() - real(truth[k]) for k, x in leaves(run) if is_float(x)} for run in runs)
        for name, x in off.items():
            errors.setdefault(name, []).append((rms(x), rms(by_inputs[name]) * mode.operations**0.5 or rms(x)))
            elements[name] = max(elements.get(name, 0), int(x.count_nonzero()))
        if seed >= 2 and (seed + 1) * min((n for n in elements.values() if n), default=24) >= 24:
            break
    return {name: min(at_most(each, elements[name]) for each in zip(*found, strict=True)) for name, found in errors.items()}


def at_most(errors: Sequence[float], elements: int) -> float:
    """A third of what one more such root mean square over so many elements comes to at most.

    The largest of them, and for few elements what chance adds to their mean square: one of normal values exceeds it with a
    probability of 1e-8 (Laurent and Massart, "Adaptive estimation of a quadratic functional by model selection", 2000, lemma 1).
    """
    few = math.log(1e8) / max(1, elements)
    mean = sum(x * x for x in errors) / len(errors)
    return max(*errors, math.sqrt(mean * (1 + 2 * math.sqrt(few) + 2 * few)) / 3)


def float32(case: Case, twin: Twin | None) -> Verdict:
    """Error in float32 against float64 truth."""
    return precision(case, twin, torch.float32)


def bfloat16(case: Case, twin: Twin | None) -> Verdict:
    """Error in bfloat16 against float64 truth."""
    return precision(case, twin, torch.bfloat16)


def autocast(case: Case, twin: Twin | None) -> Verdict:
    """Error under bfloat16 autocast against float64 truth."""
    return precision(case, twin, torch.bfloat16, autocast=True)
