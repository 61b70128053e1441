"""What a failure teaches beside its message: the first sub-module whose output differs, and what usually causes the like."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layers.testing.behaviour import replace_row, spread
from layers.testing.contract import Case, Twin
from layers.testing.drawing import seeded
from layers.testing.equality import Mismatch, leaves, require_equal

USUALLY = {
    "smoke": "an argument or an input that the contract draws in another form than the block takes",
    "shape": "an axis that is swapped, kept or summed otherwise than documented, or a tensor that is made without `dtype=`",
    "forward": "another eps, scale or activation, a norm on the other side of the residual, or weights mapped to a wrong place",
    "backward": "a `detach`, a write in place, or a custom backward that is wrong",
    "weights": "a parameter or a saved buffer that the map does not name",
    "float32": "large numbers that cancel, or a constant of lower precision",
    "bfloat16": "sums, variances or exponentials that are not taken in float32",
    "autocast": "a part that is cast where the twin's is not",
    "gradcheck": "a custom backward that is wrong, a `detach`, or random numbers that are drawn anew",
    "second_derivatives": "a custom backward that detaches what it keeps, or a fused kernel without a second derivative",
    "forward_derivatives": "a custom autograd function whose `jvp` is missing or wrong",
    "parameters_used": "a layer that is built and never called, or stands in a plain list",
    "per_sample_gradients": "`.item()`, an `if` on values, or a write in place to a tensor that has no batch",
    "deterministic": "`functional.dropout` without `training=self.training`, or noise in evaluation",
    "no_global_random": "`functional.dropout` without `training=self.training`, or noise in evaluation",
    "train_eval": "a dropout or batch norm that no contract tells of, or `functional.dropout` without `training=self.training`",
    "random_law": "a dropout at another place, of another rate, by rows in place of elements, or one that is left out",
    "random_rows": "numbers that are drawn without the batch axis, or from a generator with a seed of its own",
    "beyond_drawn_sizes": "a table or a buffer of a fixed length, a path of its own for long inputs, or a bound of an argument",
    "heads_masked": "a mask that is reduced over heads, or of which the first head's counts for all",
    "defaults": "a number that was changed for one model, and with it for all",
    "initial_values": "an initialisation that was left out, or of another scale than the module's own",
    "batch_rows": "a mean or softmax over the batch, a reshape that mixes it with other axes, or batch statistics in evaluation",
    "inputs_unchanged": "`+=`, `relu_`, `x[...] =` or the like on what the caller gave",
    "non_contiguous": "`view` or `as_strided` of memory that need not be in one piece",
    "history_independent": "a buffer or a cache in which a call leaves something for the next",
    "empty_batch": "`reshape(-1, ...)`, a division by the size of the batch, or the largest of nothing",
    "finite": "a division or logarithm without eps, a root at 0, or an exponential whose maximum is not taken off",
    "state_round_trip": "a tensor that is no buffer and should be, or a `__deepcopy__` that shares it",
    "meta_device": "a tensor that the constructor computes and `state_dict` does not have",
    "meta_forward": "`torch.zeros`, `torch.arange` or the like without `device=`",
    "inspection": "a property or a `__repr__` that raises",
    "hooks": "a write in place to the output of a sub-module",
    "trace": "sizes or values that become numbers of Python, as by `int(x)` and `if`",
    "export": "sizes or values that become numbers of Python, as by `int(x)` and `if`, or a batch of fixed size",
    "compile": "`.item()`, `print`, an `if` on values, or a batch of fixed size",
    "bad_argument": "a check that is missing: `layers.checks.require` names the argument, its value and what would be right",
    "bad_input": "a check that is missing: `layers.checks.require_axes` names the input and the axis",
    "sizes_agree": "a check that is missing: `layers.checks.require_axes` names the input and the axis",
}
"""Property -> what breaks it most often."""


@dataclass(frozen=True)
class Step:
    """What a sub-module was given, and gave, in one call."""

    module: str
    given: dict[str, Tensor]
    gives: dict[str, Tensor]


def steps(block: nn.Module, run: Callable[[], Any]) -> list[Step]:
    """Of all sub-modules, in the order in which they are done."""
    found: list[Step] = []
    begun: dict[str, dict[str, Tensor]] = {}

    def kept(values: Any) -> dict[str, Tensor]:
        return {name: x.detach().clone() for name, x in leaves(values, "")}  # a later write in place shall not change it

    def before(name: str) -> Callable[..., None]:
        return lambda module, args, named: begun.update({name: kept([list(args), named])})

    def after(name: str) -> Callable[..., None]:
        return lambda module, args, output: found.append(Step(name, begun[name], kept([output])))

    handles = []
    for name, module in block.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
            handles.append(module.register_forward_hook(after(name)))
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return found


def pair(case: Case, name: str) -> tuple[list[Step], list[Step]] | None:
    """The sub-modules in the two calls that a property compares."""
    block, inputs = case.block(), case.inputs()

    def called(block: nn.Module, inputs: Mapping[str, Any], seed: int = 0) -> list[Step]:
        with seeded(seed):
            return steps(block, lambda: case.call(block, dict(inputs)))

    if name in ("deterministic", "no_global_random"):
        return called(block, inputs), called(block, inputs, 1)
    if name == "train_eval":
        return called(block, inputs), called(case.block(train=True), inputs)
    if name == "non_contiguous":
        return called(block, inputs), called(block, {k: spread(v) if isinstance(v, Tensor) else v for k, v in inputs.items()})
    if name == "history_independent":
        first = called(block, inputs)
        called(block, case.inputs(stream=3, sizes=case.other_sizes))
        return first, called(block, inputs)
    if name == "batch_rows" and (batches := case.batches()):
        row, other = case.seed % case.batch_size(), case.inputs(stream=3)
        mixed = {k: v if k not in batches else replace_row(other[k], inputs[k], batches[k], row) for k, v in inputs.items()}
        size = case.batch_size()
        plain, others = ([of_row(step, row, size) for step in called(block, i)] for i in (inputs, mixed))
        return plain, others
    return None


def of_row(step: Step, row: int, batch: int) -> Step:
    def chosen(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: x[row] for name, x in values.items() if x.ndim and x.shape[0] == batch}

    return Step(step.module, chosen(step.given), chosen(step.gives))


def beside_twin(case: Case, twin: Twin) -> Iterator[tuple[Step, Step]]:
    """Sub-modules whose weights the map gives to one of the twin's, and that."""
    block = case.block()
    theirs = case.twin(twin, block)
    reference = {step.module: step for step in steps(theirs, lambda: case.call_twin(twin, theirs, case.inputs()))}
    state, table = block.state_dict(), twin.map(case.arguments)
    for step in steps(block, lambda: case.call(block, case.inputs())):
        names = [f"{step.module}.weight"] if f"{step.module}.weight" in state else []
        there = {name.rpartition(".")[0] for name in table.to_theirs({n: state[n] for n in names}, strict=False)}
        other = reference.get(next(iter(there))) if len(there) == 1 else None
        if other and all(x.shape == y.shape for x, y in zip(step.gives.values(), other.gives.values(), strict=False)):
            yield step, other


def first_difference(case: Case, name: str, twin: Twin | None) -> str:
    """A line about the sub-module that is the first to give something else, and whether what it is given differs already.

    "" where nothing is known of it.
    """
    rounded = name in ("forward", "backward", "train_eval", "non_contiguous")
    try:
        tolerance = case.tolerance(case.block()) if rounded else 0.0
        known = dict(case.block().named_modules())
        both = None if twin else pair(case, name)
        found = zip(*both, strict=True) if both else ()
        if twin and name in ("forward", "backward"):
            found = beside_twin(case, twin)
        for ours, theirs in found:
            if differs(ours.gives, theirs.gives, tolerance):
                already = differs(ours.given, theirs.given, tolerance)
                where = "and what it is given differs already: look before it" if already else "from the same input"
                return f"first sub-module whose output differs: {ours.module} ({type(known[ours.module]).__name__}), {where}"
    except Exception:  # what cannot be told is left out: the failure itself is told in any case
        return ""
    return "no sub-module's output differs: look at what the block does beside calling them" if both and len(known) > 1 else ""


def differs(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> bool:
    pairs = list(zip(ours.values(), theirs.values(), strict=False))
    try:
        require_equal([x for x, _ in pairs], [y for _, y in pairs], tolerance, "", 1.0)
    except Mismatch:
        return True
    return False


def lessons(error: BaseException | None, name: str, twin: Twin | None) -> list[str]:
    """Lines for below a failure's message."""
    case = vars(error).get("contract_case") if error else None
    where = first_difference(case, name, twin) if isinstance(case, Case) else ""
    return [line for line in (where, f"usually: {USUALLY[name]}" if name in USUALLY else "") if line]
