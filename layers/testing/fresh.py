"""What a constructor leaves: values of fresh parameters by a law that somebody states, and defaults that somebody promises."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from layers.testing.contract import Case, Contract, Twin, cast
from layers.testing.drawing import Part, seeded
from layers.testing.equality import Mismatch
from layers.testing.exercise import home_of
from layers.testing.randomness import differ
from layers.testing.verdicts import NO_PARAMETERS, Verdict

VALUES, BUILDS, BUILDS_OF_MODEL = 600, 40, 2
"""Values of a parameter to look at, and how often a block is built for them at most."""
ALPHA = 1e-9
"""Of one parameter."""


def initial_values(contract: Contract) -> Verdict:
    """Every fresh parameter has a law: one that `initial_distribution` states, torch's own for its module, or that of a twin.

    Laws are compared by Kolmogorov and Smirnov's statistic, with a false alarm below 1e-6. What one build gives in all places,
    such as zeros and ones, is compared exactly.
    """
    case = contract.example()
    claimed = [name for claim in contract.holds for name in claim.laws]
    fresh = case.new()
    claimed += [f"{name}.*" for name, value in vars(case.arguments).items() if isinstance(value, Part)]  # in their own contracts
    names = [name for name, p in fresh.named_parameters() if p.numel() and not any(fnmatchcase(name, c) for c in claimed)]
    if not dict(fresh.named_parameters()):
        return NO_PARAMETERS
    smallest = min((fresh.get_parameter(name).numel() for name in names), default=VALUES)
    builds = min(BUILDS_OF_MODEL if contract.model else BUILDS, -(-VALUES // smallest))
    ours = [dict(case.new(stream=100 + i).named_parameters()) for i in range(builds)]
    found = {name: torch.cat([p[name].detach().flatten() for p in ours])[:VALUES].double() for name in names}
    without = {name: why for name in names if (why := by_torchs_law(fresh, name, found[name]))}
    for twin in contract.twins:
        if without:
            without = {name: why for name, why in without.items() if name not in like_twin(case, twin, without, found, builds)}
    if without:
        told = "; ".join(f"{name}: {why}" for name, why in list(without.items())[:4])
        raise Mismatch(f"fresh parameters have neither torch's law nor a twin's; state theirs by `initial_distribution`: {told}")
    return True


def by_torchs_law(block: nn.Module, name: str, found: Tensor) -> str:
    """How the values differ from those that torch's module of that kind starts with; "" if they do not."""
    home, _, last = name.rpartition(".")
    owner: Any = block.get_submodule(home)
    if not (type(owner).__module__.startswith("torch.nn.") and callable(getattr(owner, "reset_parameters", None))):
        return "its module has no law of torch"
    other, values, count = copy.deepcopy(owner), [], 0
    with seeded(7):
        while count < len(found):
            other.reset_parameters()
            values.append(getattr(other, last).detach().flatten().double())
            count += values[-1].numel()
    return apart(found, torch.cat(values)[: len(found)])


def apart(left: Tensor, right: Tensor) -> str:
    constants = [x[0].item() for x in (left, right) if torch.equal(x, x[:1].expand_as(x))]
    if len(left) > 1 and constants:
        if torch.equal(left, right):
            return ""
        return f"values from {left.min():.4g} to {left.max():.4g}, not from {right.min():.4g} to {right.max():.4g}"
    return differ(left, right, ALPHA)


def like_twin(case: Case, twin: Twin, names: dict[str, str], found: dict[str, Tensor], builds: int) -> list[str]:
    """The parameters whose values have the law of those that a fresh twin gives them."""
    values: dict[str, list[Tensor]] = {name: [] for name in names}
    for i in range(builds):
        with seeded(11 + i):
            theirs = twin.build(case.arguments)
        if not isinstance(theirs, nn.Module):
            return []
        block = cast(case.new(), torch.float64)
        if own_classes(block) & own_classes(theirs):  # which would be compared with themselves
            return []
        try:
            twin.map(case.arguments).load(block, cast(theirs, torch.float64).state_dict())
        except Exception:  # a twin may have what a fresh one lacks
            return []
        for name in names:
            values[name].append(block.get_parameter(name).detach().flatten())
    return [name for name in names if not apart(found[name], torch.cat(values[name])[: len(found[name])])]


def own_classes(block: nn.Module) -> set[type]:
    """Of its modules, but for those of torch."""
    return {type(module) for module in block.modules() if not type(module).__module__.startswith("torch.")}


def defaults(contract: Contract) -> None:
    """Defaults of the constructor are those that the contract promises, each with where it comes from."""
    parameters = inspect.signature(contract.block).parameters
    for name, (value, source) in contract.defaults.items():
        if not str(source).strip():
            raise Mismatch(f"the default of {name} must name the paper or the reference that it is from")
        if name not in parameters:
            raise Mismatch(f"the constructor has no argument {name}, whose default the contract promises")
        if parameters[name].default != value:
            raise Mismatch(f"{name} is {parameters[name].default!r} by default, promised is {value!r} ({source})")


def unpromised(block: Callable[..., Any], contracts: Sequence[Contract]) -> list[str]:
    """Arguments of the block whose default is a number other than 0 and 1, which somebody chose, and that no contract names."""
    named = {name for contract in contracts if home_of(contract.block) is block for name in contract.defaults}
    parameters = inspect.signature(block).parameters.values()
    return [p.name for p in parameters if type(p.default) in (int, float) and p.default not in (0, 1) and p.name not in named]
