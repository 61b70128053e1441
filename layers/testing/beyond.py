"""Beyond the sizes that are drawn: one long axis, one large number among the arguments, masks of each head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from layers.testing.contract import Case, Contract, is_float
from layers.testing.drawing import BATCH, Input
from layers.testing.equality import Mismatch, leaves, require_equal
from layers.testing.reference import require_shape, twin_tolerance
from layers.testing.verdicts import Inapplicable, Vacuous, Verdict

LONG = (131, 136, 67, 40)
"""Positions along an axis that is otherwise short, the first that is taken: beyond 128, 64 and 32, and multiples of 8."""
WIDE = 37
"""An argument that is otherwise a small number."""
ROOM = 140
"""An argument that is called `max_...` bounds what may be long: so that it may."""
SLACK = 100
"""How much more than of small sizes is allowed: recurrent networks round once for each position, and amplify it."""
OF_POSITIONS = ("causal", "window")
"""Claims that take a call for each position: only where there is no twin of another class than the block's."""


def compares(contract: Contract) -> bool:
    """Whether there is something to compare with: a twin, or a claim that needs few calls."""
    return bool(contract.twins) or any(claim.long or claim.name in OF_POSITIONS for claim in contract.holds)


def bases(contract: Contract) -> Iterator[tuple[str, Case]]:
    """A case, and one with each argument large in turn that the contract draws with `st.integers`; of models, those of bounds."""
    yield "", contract.example()
    for name, strategy in contract.arguments.items():
        bounds = name.startswith("max_")
        if isinstance(strategy, st.SearchStrategy) and repr(strategy).startswith("integers(") and (bounds or not contract.model):
            value = ROOM if bounds else WIDE
            try:
                yield f"{name}={value}", replace(contract, arguments={**contract.arguments, name: value}).example()
            except Exception:  # other arguments or the inputs cannot follow
                continue


def stretched(case: Case) -> Iterator[list[tuple[str, Case]]]:
    """For each axis that is drawn the case with lengths of it, from which one is to be taken. `st.just` draws nothing."""
    inputs = [spec for spec in case.specs.values() if isinstance(spec, Input)]
    fixed = {axis for spec in inputs for axis, n in spec.sizes.items() if isinstance(n, int) or repr(n).startswith("just(")}
    for axis in [axis for axis in case.sizes if axis not in (*BATCH, "1") and axis not in fixed]:
        yield [(f"{axis}={n}", replace(case, sizes={**case.sizes, axis: n})) for n in LONG]


def beyond_drawn_sizes(contract: Contract) -> Verdict:
    """What holds for the small sizes that are drawn holds for a long axis and for large arguments, if the block takes them.

    Equality with the twins in evaluation, as far as they take them, and claims that need few calls.
    """
    shown, refused = False, []
    for wide, base in bases(contract):
        for lengths in [*stretched(base), *([[("", base)]] if wide else [])]:
            for length, case in lengths:
                what = " and ".join(filter(None, (wide, length)))
                try:
                    block, inputs = case.block(), case.inputs()
                    with torch.no_grad():
                        output = case.call(block, inputs)
                except Exception as error:
                    refused.append(f"{what}: {type(error).__name__}")
                    continue
                try:
                    shown |= holds(case, block, output)
                except Mismatch as error:
                    raise Mismatch(f"with {what}: {error}; {case!r}") from error
                break
    if shown:
        return True
    return Inapplicable(f"no larger size is taken ({'; '.join(refused)})" if refused else "no size of it is drawn")


def holds(case: Case, block: nn.Module, output: Any) -> bool:
    """Whether something could be checked."""
    shown = told = False
    require_shape(case, output)
    for twin in case.contract.twins:
        try:
            reference = case.twin(twin, block)
            with torch.no_grad():
                expected = case.call_twin(twin, reference, case.inputs())
        except Exception:  # others have bounds of their own
            continue
        require_equal(output, expected, SLACK * twin_tolerance(case, twin, block), f"output, against {twin.name}")
        shown, told = True, told or type(reference) is not type(block)
    for claim in case.contract.holds:
        if claim.long or (claim.name in OF_POSITIONS and not told):
            claim.check(case)
            shown = True
    return shown


def heads_masked(case: Case) -> Verdict:
    """A mask may differ from head to head: what one head may not see, the others still do.

    A mask that is the same for all heads gives what the broadcast one gives; a key that is hidden from one head reaches other
    positions, and one that is hidden from all reaches none.
    """
    heads, name = getattr(case.arguments, "heads", None), mask_of(case)
    if not isinstance(heads, int) or not name:
        return Inapplicable("no mask of it broadcasts over heads")
    if heads == 1:
        return Vacuous("there is one head")
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


def require_differ(case: Case, block: nn.Module, inputs: dict[str, Any], name: str, shows: Tensor, some: Tensor) -> None:
    plain, hidden = (values(case.call(block, {**inputs, name: m})) for m in (shows, some))
    if torch.equal(plain, hidden):
        raise Mismatch(f"a key that {name} hides from the first head changes nothing: what its other heads see counts")


def mask_of(case: Case) -> str:
    """The first mask (b, 1, q, k) among the inputs."""
    for name, spec in case.specs.items():
        if isinstance(spec, Input) and spec.broadcasts and len(spec.axes) == 4 and spec.axes[1] == "1":
            return name
    return ""


def values(output: Any) -> Tensor:
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
        plain, moved = (values(case.call(block, {**given, **mask})) for given in (inputs, changed))
        if place is not None:
            plain, moved = (x.narrow(place, 1, x.shape[place] - 1) for x in (plain, moved))
        return not torch.equal(plain, moved)

    return reaches


class Sizes:
    """Sizes by attribute that stay names, where a contract's `outputs` gives an axis as it is."""

    def __init__(self, sizes: dict[str, int]) -> None:
        vars(self).update(sizes)
