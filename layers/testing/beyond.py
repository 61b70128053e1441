"""Beyond the sizes that are drawn: one long axis, one large number among the arguments, masks of each head."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from layers.testing.contract import Case, Contract, is_float
from layers.testing.drawing import BATCH, Input
from layers.testing.equality import Mismatch, leaves, require_equal
from layers.testing.exercise import names_of
from layers.testing.reference import require_shape, twin_tolerance
from layers.testing.verdicts import Inapplicable, Vacuous, Verdict

LONG = (131, 136, 67, 40)
"""Positions along an axis that is otherwise short, the first that is taken: beyond 128, 64 and 32, and multiples of 8."""
WIDE = 37
"""An argument that is otherwise a small number."""
ROOM = 140
"""An argument that is called `max_...` bounds what may be long: so that it may."""
MOST_PARAMETERS, MOST_VALUES = 20_000_000, 4_000_000
"""Of a block, and of its inputs: larger ones, such as those whose channels double with each of 37 levels, are not built."""
CASES, TAKEN, TAKEN_OF_MODEL = 12, 4, 2
"""Configurations among which are looked for those with other values of arguments, and how many are taken at most."""
SLACK = 100
"""How much more than of small sizes is allowed: recurrent networks round once for each position, and amplify it."""
OF_POSITIONS = ("causal", "window")
"""Claims that take a call for each position: only where there is no twin of another class than the block's."""


HEADS = ("heads", "num_heads")
"""Names that the number of heads goes by."""


class Untaken(Exception):
    """A larger size that cannot be tried, and why."""


def compares(contract: Contract) -> bool:
    """Whether there is something to compare with: a twin, or a claim that needs few calls."""
    return bool(contract.twins) or any(claim.long or claim.name in OF_POSITIONS for claim in contract.holds)


def varied(contract: Contract) -> list[Case]:
    """Few cases in which arguments have all values that are not drawn as numbers, as far as so few can."""
    cases, taken = contract.examples(CASES), []
    numbers = {name for name, strategy in contract.arguments.items() if is_integers(strategy)}
    values = [
        {f"{k}={v!r}" for k, v in vars(case.arguments).items() if k not in numbers and type(v) is not int} for case in cases
    ]
    seen: set[str] = set()
    while not taken or len(taken) < (TAKEN_OF_MODEL if contract.model else TAKEN):
        best = max(range(len(cases)), key=lambda i: len(values[i] - seen))
        if taken and not values[best] - seen:
            break
        taken.append(cases[best])
        seen |= values[best]
    return taken


def is_integers(strategy: Any) -> bool:
    return isinstance(strategy, st.SearchStrategy) and bool(re.fullmatch(r"integers\([^()]*\)", repr(strategy)))


def widened(contract: Contract) -> Iterator[tuple[str, str, Contract]]:
    """With each argument large in turn that the contract draws with `st.integers`; of models, those of bounds."""
    for name, strategy in contract.arguments.items():
        bounds = name.startswith("max_")
        if is_integers(strategy) and (bounds or not contract.model) and name not in contract.small:
            value = ROOM if bounds else WIDE
            yield name, f"{name}={value}", replace(contract, arguments={**contract.arguments, name: value})


def stretched(case: Case) -> Iterator[tuple[str, list[tuple[str, Case]]]]:
    """For each axis that is drawn the case with lengths of it, from which one is to be taken. `st.just` draws nothing."""
    inputs = [spec for spec in case.specs.values() if isinstance(spec, Input)]
    fixed = {axis for spec in inputs for axis, n in spec.sizes.items() if isinstance(n, int) or repr(n).startswith("just(")}
    for axis in [axis for axis in case.sizes if axis not in (*BATCH, "1", *case.contract.small) and axis not in fixed]:
        yield axis, [(f"{axis}={n}", replace(case, sizes={**case.sizes, axis: n})) for n in LONG]


def tries(contract: Contract) -> Iterator[tuple[list[str], list[tuple[str, Case]], bool]]:
    """What is large, cases of which the first that is taken counts, and whether claims of positions are to be checked."""
    for number, case in enumerate(varied(contract)):
        for axis, lengths in stretched(case):
            yield [axis], lengths, not number
    for name, value, wide in widened(contract):
        try:
            base = wide.example()
        except Exception as error:  # other arguments or the inputs cannot follow
            yield [f"{value} cannot be drawn, {type(error).__name__}"], [], True
            continue
        for axis, lengths in stretched(base):
            yield [name, axis], [(f"{value} and {length}", case) for length, case in lengths], True
        yield [name], [(value, base)], True


def beyond_drawn_sizes(contract: Contract) -> Verdict:
    """What holds for the small sizes that are drawn holds for a long axis and for large arguments, if the block takes them.

    Equality with the twins in evaluation, as far as they take them, and claims that need few calls. A block that does not take a
    size says so by a `ValueError` that names the argument or the axis, or an argument of its part that refuses.
    """
    shown, untaken = False, []
    for unknown in sorted(contract.small.keys() - contract.arguments.keys() - contract.example().sizes.keys()):
        raise Mismatch(f"small names {unknown}, which is neither an argument nor an axis")
    for names, lengths, positions in tries(contract):
        untaken += names if not lengths else []
        for what, case in lengths:
            if contract.until and time.monotonic() > contract.until:
                return True if shown else Inapplicable("its time is over")
            try:
                block, output = run(case, names)
            except Untaken as why:
                untaken.append(f"{what}: {why}")
                continue
            try:
                shown |= holds(case, block, output, positions)
            except Untaken as why:
                untaken.append(f"{what}: {why}")
            except Mismatch as error:
                raise Mismatch(f"with {what}: {error}; {case!r}") from error
            break
    if shown:
        return True
    return Inapplicable(f"no larger size is compared ({'; '.join(untaken)})" if untaken else "no size of it is drawn")


def run(case: Case, names: list[str]) -> tuple[nn.Module, Any]:
    """The block and its output; `Untaken` where it is too large, or refused with its name."""
    told = [*names, *case.specs, *vars(case.arguments)]
    try:
        require_room(case)
        block, inputs = case.block(), case.inputs()
        told += {name for module in block.modules() for name in names_of(module.forward)}  # of the part that refuses
        with torch.no_grad():
            return block, case.call(block, inputs)
    except Untaken:
        raise
    except Exception as error:
        if case.contract.foreign or (isinstance(error, ValueError) and any(named(name, str(error)) for name in told)):
            raise Untaken(type(error).__name__) from error
        large = ", ".join(f"{name}={case.sizes.get(name, vars(case.arguments).get(name))}" for name in names)
        how = "what is not taken must be refused by a `ValueError` that names it, or be named in the contract's `small`"
        raise Mismatch(f"with {large}: {type(error).__name__} ({error}); {how}; {case!r}") from error


def named(name: str, message: str) -> bool:
    return bool(re.search(rf"\b{re.escape(name.partition('[')[0])}\b", message))


def require_room(case: Case) -> None:
    """Nothing is built that would take all memory: parameters are counted on the meta device first."""
    values = sum(math.prod(spec.shape(case.sizes)) for spec in case.specs.values() if isinstance(spec, Input))
    if values > MOST_VALUES:
        raise Untaken(f"its inputs have {values} values")
    try:
        with torch.device("meta"):
            count = sum(p.numel() for p in case.new().parameters())
    except ValueError:
        raise
    except Exception as error:
        raise Untaken(f"its parameters cannot be counted on the meta device, {type(error).__name__}") from error
    if count > MOST_PARAMETERS:
        raise Untaken(f"it has {count} parameters")


def holds(case: Case, block: nn.Module, output: Any, positions: bool = True) -> bool:
    """Whether something could be checked. `Untaken` where there are twins, and none takes the size."""
    shown, told, untaken = False, False, []
    require_shape(case, output)
    for twin in case.contract.twins:
        try:
            with torch.random.fork_rng(devices=[]):
                twin.build(case.arguments)
        except Exception as error:  # others have bounds of their own
            untaken.append(f"{twin.name} is not built, {type(error).__name__}")
            continue
        try:
            reference = case.twin(twin, block)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise Mismatch(
                f"the weights do not fit those of {twin.name}, which is built with the same arguments: {why}"
            ) from error
        try:
            with torch.no_grad():
                expected = case.call_twin(twin, reference, case.inputs())
        except Exception as error:
            untaken.append(f"{twin.name} does not take it, {type(error).__name__}")
            continue
        require_equal(output, expected, SLACK * twin_tolerance(case, twin, block), f"output, against {twin.name}")
        shown, told = True, told or type(reference) is not type(block)
    for claim in case.contract.holds:
        if claim.long or (positions and claim.name in OF_POSITIONS and not told):
            claim.check(case)
            shown = True
    if untaken and not shown:
        raise Untaken(", ".join(untaken))
    return shown


def heads_masked(case: Case) -> Verdict:
    """A mask may differ from head to head: what one head may not see, the others still do.

    A mask that is the same for all heads gives what the broadcast one gives; a key that is hidden from one head reaches other
    positions, and one that is hidden from all reaches none.
    """
    heads, name = heads_of(case), mask_of(case)
    if not heads or not name:
        return Inapplicable("no mask of it broadcasts over heads")
    if heads == 1:
        always = all(heads_of(other) == 1 for other in case.contract.examples(CASES))
        return Inapplicable("it always has one head") if always else Vacuous("there is one head")
    block, inputs = case.block(), case.inputs()
    b, _, q, k = inputs[name].shape
    with torch.no_grad():
        try:
            each = case.call(block, {**inputs, name: inputs[name].expand(b, heads, q, k).contiguous()})
        except ValueError:
            return Inapplicable("its masks are those of all heads")
        require_equal(each, case.call(block, inputs), case.tolerance(block), f"output for a {name} of each head", 1.0)
        shows = torch.ones(b, heads, q, k, dtype=torch.bool)
        axis = case.specs[name].axes[3]
        reaches = reaching(case, block, inputs, axis)
        some, none = shows.clone(), shows.clone()
        some[:, 0, :, 0], none[:, :, :, 0] = False, False
        if not reaches({name: shows}):
            return Vacuous("no key reaches another position")
        if not reaches({name: some}):
            raise Mismatch(f"a key that {name} hides from the first head only reaches no other position: others no longer see it")
        if reaches({name: none}):
            raise Mismatch(f"a key that {name} hides from each head reaches other positions")
        require_differ(case, block, inputs, name, shows, some)
    return True


def heads_of(case: Case) -> int:
    """Their number; 0 where the block has no such argument."""
    return next((n for name in HEADS if isinstance(n := getattr(case.arguments, name, None), int)), 0)


def require_differ(case: Case, block: nn.Module, inputs: dict[str, Any], name: str, shows: Tensor, some: Tensor) -> None:
    plain, hidden = (first(case.call(block, {**inputs, name: m})) for m in (shows, some))
    if torch.equal(plain, hidden):
        raise Mismatch(f"a key that {name} hides from the first head changes nothing: the first head's own mask is ignored")


def mask_of(case: Case) -> str:
    """The first mask (b, 1, q, k) among the inputs."""
    for name, spec in case.specs.items():
        if isinstance(spec, Input) and spec.broadcasts and len(spec.axes) == 4 and spec.axes[1] == "1":
            return name
    return ""


def first(output: Any) -> Tensor:
    """The first floating-point tensor of an output."""
    return next(x for _, x in leaves(output) if is_float(x))


def reaching(case: Case, block: nn.Module, inputs: dict[str, Any], axis: str) -> Callable[[dict[str, Any]], bool]:
    """Whether what stands first along that axis changes outputs at other positions."""
    other = case.inputs(stream=3)
    changed = dict(inputs)
    for name, spec in case.specs.items():
        if isinstance(spec, Input) and axis in spec.axes and is_float(inputs[name]):
            dim, at = spec.axes.index(axis), torch.tensor([0])
            changed[name] = inputs[name].index_copy(dim, at, other[name].index_select(dim, at))
    places = case.contract.outputs(case.arguments, Sizes(case.sizes))
    place = places.index(axis) if isinstance(places, tuple) and axis in places else None

    def reaches(mask: dict[str, Any]) -> bool:
        plain, moved = (first(case.call(block, {**given, **mask})) for given in (inputs, changed))
        if place is not None:
            plain, moved = (x.narrow(place, 1, x.shape[place] - 1) for x in (plain, moved))
        return not torch.equal(plain, moved)

    return reaches


class Sizes:
    """Sizes by attribute that stay names, where a contract's `outputs` gives an axis as it is."""

    def __init__(self, sizes: dict[str, int]) -> None:
        vars(self).update(sizes)
