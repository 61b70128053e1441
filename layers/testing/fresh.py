"""What a constructor leaves: values of fresh parameters by a law that somebody states, and defaults that somebody promises."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from layers.testing.contract import Case, Contract, Twin, cast
from layers.testing.drawing import Part, seeded
from layers.testing.equality import Mismatch
from layers.testing.exercise import home_of
from layers.testing.randomness import differ, limit
from layers.testing.verdicts import NO_PARAMETERS, Vacuous, Verdict

VALUES = 20_000
"""Values of a parameter to look at, at most."""
ENOUGH, ENOUGH_OF_VECTOR = 1_100, 400
"""So many that a uniform law of another scale is seen: of a matrix by a square root of 2, of a bias by 2."""
BUILDS, BUILDS_OF_MODEL = 300, 32
"""How often a block is built for them at most."""
CASES = 12
"""Configurations that are looked at, until each parameter has been."""
ALPHA = 1e-9
"""Of one parameter."""
COARSEST = 0.3
"""A difference of two distribution functions that must be seen."""


def initial_values(contract: Contract) -> Verdict:
    """Every fresh parameter has a law: one that `initial_distribution` states, torch's own for its module, or that of a twin.

    Laws are compared by Kolmogorov and Smirnov's statistic, with a false alarm below 1e-6. What one build gives in all places,
    such as zeros and ones, is compared exactly.
    """
    without, few, cases = {}, [], contract.examples(CASES)
    if not any(True for case in cases for _ in case.new().parameters()):
        return NO_PARAMETERS
    for case, names in covering(contract, cases):
        found, unlike = of_case(case, names)
        without |= unlike
        few += [name for name in names if too_few(found[name]) and not beside(name, found, case.new())]
    if without:
        told = "; ".join(f"{name}: {why}" for name, why in list(without.items())[:4])
        raise Mismatch(f"fresh parameters have neither torch's law nor a twin's; state theirs by `initial_distribution`: {told}")
    if few:
        return Vacuous(
            f"{', '.join(few)}: too few values to tell a law by; state it by `initial_distribution`, or draw larger sizes"
        )
    return True


def covering(contract: Contract, cases: Sequence[Case]) -> Iterator[tuple[Case, list[str]]]:
    """Few cases in which every parameter occurs, each with those to look at: not those of parts or that a claim is about."""
    claimed = [name for claim in contract.holds for name in claim.laws]
    sizes = []
    for case in cases:
        others = claimed + [f"{name}.*" for name, value in vars(case.arguments).items() if isinstance(value, Part)]
        parameters = ((name, p.numel()) for name, p in case.new().named_parameters())
        sizes.append({name: n for name, n in parameters if n and not any(fnmatchcase(name, other) for other in others)})
    while any(sizes):
        best = max(range(len(cases)), key=lambda i: (len(sizes[i]), min(sizes[i].values(), default=0), sum(sizes[i].values())))
        names = list(sizes[best])
        yield cases[best], names
        sizes = [{name: n for name, n in each.items() if name not in names} for each in sizes]


def of_case(case: Case, names: list[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Values of these parameters, and which of them have no law, and why."""
    ours = [case.new(stream=100 + i) for i in range(2)]
    drawn = [ours[0].get_parameter(name) for name in names if not constant(values(ours, name))]
    ours += [case.new(stream=100 + i) for i in range(2, builds(case, drawn))]
    found = {name: values(ours, name) for name in names}
    without, plain, kept = {}, unwrapped(case.new(stream=99)), {}
    for name in names:
        home, last = place(ours[0], name)
        parts = re.search(r"(original\d|_g|_v)$", name) and name != f"{home}.{last}".lstrip(".")  # of a weight norm
        why = by_torchs_law(plain, home, last, found[name], kept)
        if why and (not parts or by_torchs_law(plain, home, last, values(ours, name, through=True), kept)):
            without[name] = why
    for twin in case.contract.twins:
        if without:
            like = like_twin(case, twin, without, found)
            without = {name: why for name, why in without.items() if name not in like}
    return found, without


def builds(case: Case, parameters: Iterable[Tensor]) -> int:
    """How often to build for enough values of each; of a model, which takes long, for some of each matrix."""
    model = case.contract.model
    of_vector, of_matrix = (0, ENOUGH_OF_VECTOR) if model else (ENOUGH_OF_VECTOR, ENOUGH)
    needed = (-(-(of_matrix if p.ndim > 1 else of_vector) // p.numel()) for p in parameters)
    return max(2, min(BUILDS_OF_MODEL if model else BUILDS, max(needed, default=0)))


def values(blocks: Sequence[nn.Module], name: str, through: bool = False) -> Tensor:
    """Of a parameter in all of them; `through` its parametrization."""
    found = []
    for block in blocks:
        home, last = place(block, name)
        found.append((getattr(block.get_submodule(home), last) if through else block.get_parameter(name)).detach().flatten())
    return torch.cat(found)[:VALUES].double()


def constant(x: Tensor) -> bool:
    return torch.equal(x, x[:1].expand_as(x))


def too_few(x: Tensor) -> bool:
    return not constant(x) and limit(len(x), ALPHA) > COARSEST


def beside(name: str, found: Mapping[str, Tensor], block: nn.Module) -> bool:
    """Whether its module has another parameter that shows its law, or has a stated one: a bias may rest on the weight's."""
    home, _, last = name.rpartition(".")
    others = [f"{home}.{k}".lstrip(".") for k, _ in block.get_submodule(home).named_parameters(recurse=False) if k != last]
    return any(k not in found or not (constant(found[k]) or too_few(found[k])) for k in others)


def place(block: nn.Module, name: str) -> tuple[str, str]:
    """The module, and the name there, of what a parameter is or is a part of: a weight norm keeps length and direction."""
    home, _, last = name.rpartition(".")
    parents, _, whole = home.rpartition(".")
    if parents.rpartition(".")[2] == "parametrizations":
        return parents.rpartition(".")[0], whole
    stem, _, suffix = last.rpartition("_")
    wrapped = suffix in ("g", "v", "orig") and any(hook.name == stem for _, hook in norms_of(block.get_submodule(home)))
    return home, stem if wrapped else last


def norms_of(module: nn.Module) -> list[tuple[int, Any]]:
    """Weight norms and spectral norms that are hooks."""
    return [(k, hook) for k, hook in module._forward_pre_hooks.items() if isinstance(hook, (WeightNorm, SpectralNorm))]


def unwrapped(block: nn.Module) -> nn.Module:
    """Without parametrizations."""
    for module in list(block.modules()):
        for k, hook in norms_of(module):
            hook.remove(module)
            del module._forward_pre_hooks[k]
        parametrizations = getattr(module, "parametrizations", None) if parametrize.is_parametrized(module) else None
        for name in list(parametrizations) if isinstance(parametrizations, nn.ModuleDict) else ():
            parametrize.remove_parametrizations(module, name)
    return block


def by_torchs_law(block: nn.Module, home: str, last: str, found: Tensor, kept: dict[str, list[dict[str, Tensor]]]) -> str:
    """How the values differ from those that torch's module of that kind starts with; "" if they do not.

    The outermost one counts, which begins the parts of its own anew: `nn.MultiheadAttention` a linear layer, for example.
    kept: what has been drawn of each already.
    """
    parts = home.split(".") if home else []
    path = [".".join(parts[:i]) for i in range(len(parts) + 1)]
    outer = next((name for name in path if resets(block.get_submodule(name))), None)
    if outer is None or not resets(block.get_submodule(home)):
        return "its module has no law of torch"
    whole, drawn = block.get_submodule(outer), kept.setdefault(outer, [])
    inner = f"{home}.{last}".removeprefix(outer).strip(".")
    steps = [step for module in reversed(list(whole.modules())) if (step := resets(module))]
    with seeded(7 + len(drawn)):
        while len(drawn) * whole.get_parameter(inner).numel() < len(found):
            for step in steps:
                step()
            drawn.append({name: p.detach().flatten().double() for name, p in whole.named_parameters()})
    return apart(found, torch.cat([each[inner] for each in drawn])[: len(found)])


def resets(module: nn.Module) -> Callable[[], Any] | None:
    """How torch begins it anew, whatever a class that is derived from torch's does."""
    for kind in type(module).__mro__:
        for name in ("reset_parameters", "_reset_parameters"):
            if kind.__module__.startswith("torch.nn.") and name in vars(kind):
                return partial(vars(kind)[name], module)
    return None


def apart(left: Tensor, right: Tensor) -> str:
    if len(left) > 1 and (constant(left) or constant(right)):
        if torch.equal(left, right):
            return ""
        return f"values from {left.min():.4g} to {left.max():.4g}, not from {right.min():.4g} to {right.max():.4g}"
    return differ(left, right, ALPHA)


def like_twin(case: Case, twin: Twin, names: dict[str, str], found: dict[str, Tensor]) -> list[str]:
    """The parameters whose values have the law of those that a fresh twin gives them."""
    drawn: dict[str, list[Tensor]] = {name: [] for name in names}
    fresh = case.new()
    for i in range(builds(case, [fresh.get_parameter(name) for name in names if not constant(found[name])])):
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
            drawn[name].append(block.get_parameter(name).detach().flatten())
    theirs = {name: torch.cat(drawn[name])[:VALUES] for name in names}
    return [name for name in names if not apart(found[name][: len(theirs[name])], theirs[name][: len(found[name])])]


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
