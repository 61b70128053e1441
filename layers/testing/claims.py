"""Claimed properties: what a contract may add to `holds`. Each is checked from both sides, with its opposite.

`causal(...)` and `influence(...)` ask what must not change and what must; `permutation_equivariant`, `shift_equivariant` ask that
the output follows the input, and that the input moved at all; `seeded` that a generator decides what is drawn;
`initial_distribution` looks at what the constructor drew; `exercised` that the contract leaves no argument out. Those of padding,
caches and states are in `layers.testing.sequences`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from layers.testing.beyond import first
from layers.testing.contract import Case, Contract, is_float
from layers.testing.drawing import Input
from layers.testing.equality import Mismatch, require_equal, rms
from layers.testing.exercise import unexercised_by_any
from layers.testing.nesting import regrouped
from layers.testing.properties import Property
from layers.testing.verdicts import Vacuous, Verdict


def influence(
    name: str,
    source: str,
    axis: str,
    reaches: Callable[[Any, int, int], bool],
    output_axis: int,
    cost: int = 1,
    exact: bool = True,
) -> Property:
    """Position i of `source` along `axis` reaches output position o exactly where ``reaches(arguments, i, o)``.

    Everything else must not change in a single bit; what is reached must change for some values.

    exact: False allows rounding where nothing is reached, as in products of experts, which round by how many tokens they have.
    """

    def check(case: Case) -> bool:
        block, inputs, other = case.block(), case.inputs(), case.inputs(stream=3)
        output, shown = first(case.call(block, inputs)), False
        dim, noise = axis_of(case, source, axis), 0.0 if exact else case.tolerance(block) * rms(output)
        for i in range(inputs[source].shape[dim]):
            index = torch.tensor([i])
            changed = inputs[source].clone().index_copy_(dim, index, other[source].index_select(dim, index))
            after = first(case.call(block, {**inputs, source: changed}))
            moved = after != output if exact else ~((after - output).abs() <= noise)
            where = moved.movedim(output_axis, 0).flatten(1).any(1)
            for o, differs in enumerate(where.tolist()):
                if differs and not reaches(case.arguments, i, o):
                    raise Mismatch(
                        f"output position {o} changes with {source} position {i} along {axis}, which must not reach it"
                    )
            expected = [o for o in range(len(where)) if reaches(case.arguments, i, o)]
            if expected and not where[expected].any() and is_float(inputs[source]):
                raise Mismatch(f"no output position changes with {source} position {i} along {axis}; expected: {expected}")
            shown |= bool(expected) and len(expected) < len(where)
        return shown

    return Property(name, check, cost)


def causal(source: str, axis: str, output_axis: int) -> Property:
    """No output position depends on a later input position, and the past does reach it."""
    return influence("causal", source, axis, lambda arguments, i, o: i <= o, output_axis)


def permutation_equivariant(source: str, axis: str, output_axis: int) -> Property:
    """Permuting `source` along `axis` permutes the output along `output_axis`."""

    def check(case: Case) -> bool:
        block, inputs = case.block(), case.inputs()
        dim = axis_of(case, source, axis)
        order = torch.randperm(inputs[source].shape[dim], generator=case.generator(4))
        permuted = case.call(block, {**inputs, source: inputs[source].index_select(dim, order)})
        expected = first(case.call(block, inputs)).index_select(output_axis, order)
        require_equal(first(permuted), expected, case.tolerance(block), f"output for {source} permuted along {axis}", 1.0)
        return not torch.equal(order, order.sort().values)

    return Property("permutation_equivariant", check, long=True)


def shift_equivariant(
    source: str, axis: str, output_axis: int, step: Callable[[Any], int], border: Callable[[Any], int]
) -> Property:
    """Moving the content of `source` by one output step moves the output by one, away from the borders.

    step:   arguments -> input positions per output position (the stride).
    border: arguments -> output positions at each end that see padding, left out of the comparison.
    """

    def check(case: Case) -> bool:
        by, edge = step(case.arguments), border(case.arguments)
        dim = axis_of(case, source, axis)
        inputs = case.inputs()
        shifted = {**inputs, source: inputs[source].roll(by, dim)}
        block = case.block()
        output, moved = first(case.call(block, inputs)), first(case.call(block, shifted))
        length = output.shape[output_axis] - 2 * edge - 1
        if length < 1:
            return False
        expected = output.narrow(output_axis, edge, length)
        found = moved.narrow(output_axis, edge + 1, length)
        require_equal(found, expected, case.tolerance(block), f"output for {source} moved along {axis}", 1.0)
        return bool((found != moved.narrow(output_axis, edge, length)).any())

    return Property(f"shift_equivariant_{axis}", check, long=True)


Law = Callable[[Any, Tensor], tuple[float, float]]


CASES, CASES_OF_MODEL, BUILDS = 12, 4, 20
"""Configurations whose fresh parameters are looked at, and how often each is built at most."""
LEAST, ENOUGH = 64, 400
"""Values of one parameter, of all configurations and builds together: fewer show nothing, and that many are looked for."""


def initial_distribution(laws: Mapping[str, Law | str] | None = None, **expected: Law) -> Property:
    """A fresh parameter has the mean and standard deviation that ``expected[name](arguments, parameter)`` gives.

    Names are written with `__` for dots. The bound is five standard errors. Values of several builds and configurations count
    together, less the mean and over the deviation that the law gives for each; fewer than 64 of a parameter show nothing.
    laws: the same by names with dots and `*`, of which the first that fits counts; in place of a law a sentence says why there is
          none to check.
    """
    given: dict[str, Law | str] = {**(laws or {}), **{name.replace("__", "."): law for name, law in expected.items()}}
    for name, law in given.items():
        if isinstance(law, str) and not law.strip():
            raise ValueError(f"{name} must have a law or a reason why not, got {law!r}")

    def check(contract: Contract) -> Verdict:
        """A fresh parameter has the mean and the standard deviation that the contract states."""
        cases, used = contract.examples(CASES_OF_MODEL if contract.model else CASES), set[str]()
        pooled: dict[str, list[Tensor]] = {}
        for case in cases:
            parameters = dict(case.new().named_parameters())
            if missing := [pattern for pattern in given if "*" not in pattern and pattern not in parameters]:
                raise Mismatch(f"there is no parameter {', '.join(missing)}; there are {', '.join(parameters)}")
            fits = {name: pattern for name in parameters if (pattern := next((p for p in given if fnmatchcase(name, p)), ""))}
            used |= set(fits.values())
            stated = {name: law(case.arguments, parameters[name]) for name, p in fits.items() if callable(law := given[p])}
            drawn = {name: (mean, std) for name, (mean, std) in stated.items() if std and parameters[name].numel()}
            smallest = min((parameters[name].numel() for name in drawn), default=ENOUGH)
            for i in range(min(BUILDS, -(-ENOUGH // (smallest * len(cases))))):
                block = case.new(stream=100 + i)
                for name, (mean, std) in stated.items():
                    value = block.get_parameter(name).detach().double().flatten()
                    require_law(f"{name} of {case!r}", value, mean, std)
                    if name in drawn:
                        pooled.setdefault(name, []).append((value - mean) / std)
        if idle := [pattern for pattern in given if pattern not in used]:
            raise Mismatch(f"no parameter is the first to fit {', '.join(idle)}")
        for name, values in pooled.items():
            require_law(f"{name}, less its mean and over its deviation,", torch.cat(values), 0.0, 1.0)
        few = [name for name, values in pooled.items() if sum(map(len, values)) < LEAST]
        return Vacuous(f"{', '.join(few)}: fewer than {LEAST} values") if few else True

    return Property("initial_distribution", check, whole=True, laws=tuple(given))


def require_law(name: str, values: Tensor, mean: float, std: float) -> None:
    n = values.numel()
    if std == 0 and not torch.equal(values, torch.full_like(values, mean)):
        raise Mismatch(f"{name} must be {mean} everywhere when fresh")
    if std == 0 or n < LEAST:
        return
    if abs(values.mean().item() - mean) > 5 * std / n**0.5 or abs(values.std().item() / std - 1) > 5 / n**0.5:
        raise Mismatch(
            f"{name} has mean {values.mean():.4g} and standard deviation {values.std():.4g} when fresh; "
            f"expected {mean:.4g} and {std:.4g}"
        )


def seeded(source: str = "generator") -> Property:
    """The `torch.Generator` that is passed decides what is drawn, in training and in evaluation, and nothing else does.

    From the same state come the same bits, forward and backward, whatever the global random state is, which is left alone; the
    generator moves on, so that the next call draws anew; another seed gives another output.
    """

    def check(case: Case) -> bool:
        for train in (False, True):
            block, found = case.block(train), []
            for seed in (0, 1):
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seed)
                    before = torch.get_rng_state(), random.getstate()
                    found.append(case.gradients(lambda i, m=block: case.call(m, i), case.inputs(), block))
                    if not torch.equal(before[0], torch.get_rng_state()) or before[1] != random.getstate():
                        raise Mismatch(f"a call with a {source} of its own moved the global random state")
                block = case.block(train)  # training may have moved the buffers
            require_equal(found[1], found[0], 0, f"result for the same state of {source}")
            inputs = case.inputs()
            state = inputs[source].get_state()
            output = first(case.contract.call(block, regrouped(inputs, case.given)))
            if torch.equal(state, inputs[source].get_state()):
                raise Mismatch(f"a call draws nothing from {source}")
            other = torch.Generator().manual_seed(case.seed + 1)
            if output.numel() and torch.equal(first(case.call(case.block(train), {**case.inputs(), source: other})), output):
                raise Mismatch(f"another seed of {source} gives the same output")
        return True

    return Property("seeded", check, cost=2)


def exercised(**excused: str) -> Property:
    """Every argument of the constructor and of `forward` is given, takes several values, and changes something.

    By the contract or another one of the same block in its file. pytest asks this of all blocks that are not `foreign`, and with
    ``--contract-arguments`` of those too.
    excused: argument -> reason why it need not be.
    """
    for name, reason in excused.items():
        if not reason.strip():
            raise ValueError(f"{name} must be excused with a reason, got {reason!r}")

    def check(contract: Contract) -> None:
        """Every argument of the constructor and of `forward` is given, takes several values, and changes something."""
        missed = unexercised_by_any([contract, *contract.beside], lambda c: [name for claim in c.holds for name in claim.gives])
        if idle := sorted(excused.keys() - missed.keys()):
            raise Mismatch(f"excused, and exercised all the same: {', '.join(idle)}")
        if found := [f"{name}: {what}" for name, what in missed.items() if name not in excused]:
            raise Mismatch("; ".join(found))

    return Property("exercised", check, whole=True)


def axis_of(case: Case, source: str, axis: str) -> int:
    spec = case.specs[source]
    if not isinstance(spec, Input) or axis not in spec.axes:
        raise ValueError(f"{source} must be a tensor input with an axis {axis!r}, got {spec!r}")
    return spec.axes.index(axis)
