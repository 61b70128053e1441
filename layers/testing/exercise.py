"""What no case of a contract has tried: arguments that are never given, take one value only, or never change the output."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from layers.testing.contract import Case, Contract
from layers.testing.drawing import Arguments, Input, seeded
from layers.testing.equality import leaves

CASES = 12
"""Configurations that are looked at, the same every time."""
ATTEMPTS = 8
"""Times that an argument gets another value before it counts as one that changes nothing."""

ALWAYS = "it is always "
UNGIVEN = "the constructor is never given it"
IDLE = "no value of it changes the output or the state"
NEVER = "`forward` is never given it"


def unexercised(contract: Contract, given_by_claims: Sequence[str] = ()) -> dict[str, str]:
    """Argument of the constructor or of `forward` -> what its contract misses of it.

    given_by_claims: inputs that claimed properties add, such as `mask` and `cache`.
    """
    cases = contract.examples(CASES)
    missed = dict(of_constructor(contract, cases))
    if any(why.startswith(ALWAYS) for why in missed.values()):  # by chance, maybe
        missed = dict(of_constructor(contract, contract.examples(4 * CASES)))
    return missed | dict(of_forward(cases, set(given_by_claims)))


def unexercised_by_any(contracts: Sequence[Contract], given: Callable[[Contract], Sequence[str]]) -> dict[str, str]:
    """The same of contracts of one block: what all of them miss.

    One that is constant in each may take several values in all, of which one must change something in another's place.
    """
    found = [unexercised(contract, given(contract)) for contract in contracts]
    missed = {}
    for name in [name for name in found[0] if all(name in each for each in found)]:
        whys = [each[name] for each in found]
        values = values_of(contracts, name) if any(why.startswith(ALWAYS) for why in whys) else {}
        if len(values) < 2:
            missed[name] = min(whys, key=lambda why: (why in (UNGIVEN, NEVER), why))
        elif not any(changes(partial(results, other), results(case)) for case, other in crossed(contracts, name, values)):
            missed[name] = IDLE
    return missed


def values_of(contracts: Sequence[Contract], name: str) -> dict[str, Any]:
    """What the contracts give the argument, by `repr`, and its default where one gives none."""
    values: dict[str, Any] = {}
    for contract in contracts:
        value = value_of(contract.examples(1)[0], name)
        if value is not inspect.Parameter.empty:
            values.setdefault(repr(value), value)
    return values


def value_of(case: Case, name: str) -> Any:
    """What the constructor gets; the default of what is built where the contract gives none."""
    block = case.contract.block
    if hasattr(case.arguments, name):
        return getattr(case.arguments, name)
    if isinstance(block, partial) and name in block.keywords:
        return block.keywords[name]
    for builder in (home_of(block), type(case.new())):
        parameter = inspect.signature(builder).parameters.get(name)
        if parameter is not None:
            return parameter.default
    return inspect.Parameter.empty


def crossed(contracts: Sequence[Contract], name: str, values: Mapping[str, Any]) -> Iterator[tuple[Case, Case]]:
    """Cases, and the same with a value of another contract, up to the number of attempts with each value of each contract."""
    for contract in contracts:
        for case in contract.examples(ATTEMPTS):
            own = repr(value_of(case, name))
            for value in [value for told, value in values.items() if told != own]:
                yield case, replace(case, arguments=Arguments(**{**vars(case.arguments), name: value}))


def home_of(block: Any) -> Any:
    """That which builds it, without arguments that are given beforehand."""
    while isinstance(block, partial):
        block = block.func
    return block


def names_of(call: Callable[..., Any]) -> list[str]:
    """Names of its parameters, but for those that take any number of arguments."""
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def passed_on(contract: Contract, case: Case) -> list[str]:
    """Names that the constructor does not know itself and hands to the class that it builds, by `**options`."""
    try:
        parameters = inspect.signature(contract.block).parameters
    except (TypeError, ValueError):
        return []
    if all(p.kind != p.VAR_KEYWORD for p in parameters.values()):
        return []
    options = inspect.signature(type(case.new())).parameters.values()
    return [p.name for p in options if p.name not in parameters and p.default is not p.empty and takes(case, p.name, p.default)]


def takes(case: Case, name: str, value: Any) -> bool:
    try:
        case.new({name: value})
    except TypeError:
        return False
    except Exception:  # the value does not fit
        return True
    return True


def of_constructor(contract: Contract, cases: list[Case]) -> Iterator[tuple[str, str]]:
    kept: dict[int, Any] = {}

    def of_case(case: Case) -> Any:
        if id(case) not in kept:
            kept[id(case)] = results(case)
        return kept[id(case)]

    for name in [*names_of(contract.block), *passed_on(contract, cases[0])]:
        values = {repr(getattr(case.arguments, name)) for case in cases if hasattr(case.arguments, name)}
        if isinstance(contract.block, partial) and name in contract.block.keywords:
            values.add(repr(contract.block.keywords[name]))
        if not values:
            yield name, UNGIVEN
        elif len(values) == 1:
            yield name, f"{ALWAYS}{values.pop()}"
        elif not any(changes(partial(results, other), of_case(case)) for case, other in exchanged(cases, name)):
            yield name, IDLE


def exchanged(cases: list[Case], name: str) -> Iterator[tuple[Case, Case]]:
    """Cases, and the same with that argument of another case, up to the number of attempts."""
    found = 0
    for step in range(1, len(cases)):  # of each case one before the second of any
        for i, case in enumerate(cases):
            other = cases[(i + step) % len(cases)]
            if found < ATTEMPTS and repr(getattr(case.arguments, name)) != repr(getattr(other.arguments, name)):
                found += 1
                yield case, replace(case, arguments=Arguments(**{**vars(case.arguments), name: getattr(other.arguments, name)}))


def changes(run: Callable[[], Any], expected: Any) -> bool:
    """Whether something else comes of it, or nothing, since another value does not fit."""
    try:
        return not alike(run(), expected)
    except Exception:
        return True


def results(case: Case) -> list[Any]:
    """The output in evaluation and in training, and the state, fresh and moved."""
    found: list[Any] = [case.new().state_dict()]
    for train in (False, True):
        block = case.block(train)
        found += [output(case, block, case.inputs()), block.state_dict()]
    return found


def output(case: Case, block: nn.Module, inputs: dict[str, Any]) -> Any:
    """With the same global random numbers every time, for dropout."""
    with seeded(case.seed), torch.no_grad():
        return case.call(block, inputs)


def alike(left: Any, right: Any) -> bool:
    x, y = dict(leaves(left)), dict(leaves(right))
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


def of_forward(cases: list[Case], given: set[str]) -> Iterator[tuple[str, str]]:
    takes: list[str] = []
    moves: dict[str, bool] = {}
    for case in cases:
        block, inputs = case.block(), case.inputs()
        takes = names_of(block.forward)
        hook = block.register_forward_pre_hook(lambda m, args, named: given.update(passed(m, args, named)), with_kwargs=True)
        expected = output(case, block, inputs)
        hook.remove()
        for name, other in others(case, cases):
            if not moves.setdefault(name, False):
                moves[name] = changes(partial(output, case, block, {**inputs, name: other}), expected)
        if given.issuperset(takes) and all(moves.values()):
            break
    yield from ((name, NEVER) for name in takes if name not in given)
    yield from ((name, "no value of it changes the output") for name, moved in moves.items() if not moved)


def passed(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> set[str]:
    """Names of what a call has given other values than their defaults."""
    signature = inspect.signature(module.forward)
    return {k for k, v in signature.bind(*args, **named).arguments.items() if v is not signature.parameters[k].default}


def others(case: Case, cases: list[Case]) -> Iterator[tuple[str, Any]]:
    """Inputs by name, with other values: those that are drawn here drawn anew, of others what other cases have."""
    drawn = case.inputs(stream=3)
    for name, spec in case.specs.items():
        if isinstance(spec, Input):
            yield name, drawn[name]
            continue
        for value in (other.specs.get(name) for other in cases[:ATTEMPTS]):
            if not (value is None or isinstance(value, Input) or repr(value) == repr(spec)):
                yield name, value
