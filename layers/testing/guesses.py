"""What annotations, defaults and names tell of the arguments of a constructor, and sizes of the axes of an output."""

from __future__ import annotations

import inspect
import itertools
import json
import random
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from layers.testing.contract import cast
from layers.testing.drawing import Part, fill, seeded
from layers.testing.equality import children
from layers.testing.examples import first_line

SIZES = ((4, 8), (32, 64))
"""What a number of features may be; the second where nothing can be built with the first."""
KEPT = ("inplace", "track_running_stats", "scale_grad_by_freq", "sparse")
"""Switches that stay as they are: what they change, a property forbids, and rightly."""


class Unclear(ValueError):
    """What cannot be guessed, and how it is told."""


def guessed(
    block: Callable[..., Any], given: Mapping[str, Sequence[Any]], sizes: tuple[int, int]
) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """Values of each argument that is passed; and of switches, which are tried later, all values but the first."""
    every, hints = signature(block)
    named = [p for p in every if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    parameters = {p.name: p for p in named if p.name != "self" and p.name[0] != "_"}
    any_name = any(p.kind == p.VAR_KEYWORD for p in every)
    if not any_name and (unknown := sorted(given.keys() - {p.name for p in every})):
        raise Unclear(f"--set: there is no argument {', '.join(unknown)}; there are {', '.join(parameters)}")
    values: dict[str, list[Any]] = {}
    switches: dict[str, list[Any]] = {}
    for name, parameter in parameters.items():
        if name in given:
            values[name] = list(given[name])
        elif found := choices(parameter, hints.get(name, parameter.annotation), sizes):
            values[name] = found
            if isinstance(found[0], (bool, str)) and len(found) > 1:
                default = found[0] if parameter.default is parameter.empty else parameter.default
                values[name], switches[name] = [default], [x for x in found if x != default]
    values |= {name: list(options) for name, options in given.items() if name not in values}
    return values, switches


def signature(block: Callable[..., Any]) -> tuple[list[inspect.Parameter], dict[str, Any]]:
    """Parameters of the constructor, of the first overload if there are any, and their annotations."""
    call: Any = block.__init__ if inspect.isclass(block) else block
    call = next(iter(typing.get_overloads(call)), call) if hasattr(call, "__qualname__") else call
    try:
        hints = typing.get_type_hints(call)
    except Exception:  # names that are imported for type checkers only
        hints = {}
    return list(inspect.signature(call).parameters.values()), hints


def choices(parameter: inspect.Parameter, hint: Any, sizes: tuple[int, int]) -> list[Any]:
    """What an argument may be; nothing where its default is left."""
    name, default, needed = parameter.name, parameter.default, parameter.default is parameter.empty
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if name == "batch_first":
        return [True]
    if name in KEPT and not needed:
        return []
    if literal := [value for kind in kinds if typing.get_origin(kind) is Literal for value in typing.get_args(kind)]:
        return literal
    if isinstance(default, bool) or (needed and bool in kinds):
        return [False, True]
    if not needed:
        return list(sizes) if isinstance(default, int) and default > 16 else []
    plain = hint is parameter.empty and not re.search(r"act|norm|mode|type|fn|module|config|cls|class$", name)
    share = bool(re.search(r"^p$|prob|rate|ratio|drop|momentum|decay|eps|keep", name))
    if float in kinds or (plain and share):
        return [0.3 if share else 2.0]
    if not (plain or int in kinds):
        what = getattr(hint, "__name__", str(hint)) if hint is not parameter.empty else "without annotation"
        raise Unclear(
            f"the argument {name} ({what}) cannot be guessed: give its values, numbers as --set {name}=4,8, words as "
            f"--set {name}=one,two, a list as --set '{name}=[4, 8]', a class as --set {name}=torch.nn:ReLU, a module of it as "
            f"--set '{name}=torch.nn:ReLU()'"
        )
    return [3] if "kernel" in name else [1, 2] if is_count(name) else list(sizes)


def is_count(name: str) -> bool:
    """Whether an argument by its name counts something other than features, such as heads or pixels of a kernel."""
    if "kernel" in name:
        return True
    of_features = re.search(r"(dim|size|shape|channels|features|width)$", name)
    return not of_features and bool(re.search(r"head|group|layer|depth|block|stride|dilation|pad", name))


Built = list[tuple[dict[str, Any], nn.Module]]


def build(block: Callable[..., nn.Module], arguments: dict[str, Any]) -> nn.Module:
    """In evaluation, with drawn parameters in float64."""
    with seeded(0):
        passed = {k: v.factory(**v.arguments) if isinstance(v, Part) else v for k, v in arguments.items()}
        module = cast(block(**passed), torch.float64)
    return fill(module, torch.Generator().manual_seed(0), tables=False).eval()


def combinations(values: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    return (dict(zip(values, row, strict=True)) for row in itertools.product(*values.values()))


def some_of(block: Callable[..., nn.Module], values: Mapping[str, Sequence[Any]], count: int) -> Built:
    every = list(itertools.islice(combinations(values), 4096))
    chosen = every if len(every) <= count else random.Random(0).sample(every, count)
    return [(arguments, build(block, arguments)) for arguments in chosen]


def builds(block: Callable[..., nn.Module], values: dict[str, list[Any]]) -> tuple[Built, str]:
    """Blocks of all combinations of `values`, from which is taken what does not go together; and why, where none can be built."""
    while True:
        several = [name for name, options in values.items() if len(options) > 1]
        for name in several[4:]:
            values[name] = values[name][:1]
        try:
            return [(arguments, build(block, arguments)) for arguments in combinations(values)], ""
        except Exception as error:
            if not several:
                return [], first_line(error)
            values[several[-1]] = values[several[-1]][:1]


Seen = list[tuple[dict[str, int], Any]]
"""Sizes, as `Contract.outputs` writes them, and the output of a call."""


def described(seen: Seen) -> str:
    """How `Contract.outputs` writes what is alike in all outputs."""
    trees = [tree for _, tree in seen]
    if all(isinstance(tree, Tensor) for tree in trees):
        if len({tree.ndim for tree in trees}) > 1:
            raise Unclear("outputs have different numbers of axes")
        axes = [written([tree.shape[i] for tree in trees], [known for known, _ in seen]) for i in range(trees[0].ndim)]
        return "..." if "" in axes else f"({', '.join(axes)}{',' * (len(axes) == 1)})"
    if len({type(tree) for tree in trees}) > 1:
        raise Unclear("outputs have different forms")
    parts = [keyed(tree) for tree in trees]
    if any(part.keys() != parts[0].keys() for part in parts):
        raise Unclear("outputs have different parts")
    told = {key: described([(known, part[key]) for (known, _), part in zip(seen, parts, strict=True)]) for key in parts[0]}
    if isinstance(trees[0], (tuple, list)):
        return f"[{', '.join(told.values())}]"
    return f"{{{', '.join(f'{quoted(key)}: {text}' for key, text in told.items())}}}" if told else "..."


def keyed(tree: Any) -> dict[Any, Any]:
    if isinstance(tree, (tuple, list)):
        return dict(enumerate(tree))
    if isinstance(tree, Mapping):
        return dict(tree)
    return {key.removeprefix("."): value for key, value in children(tree) or ()}


def written(sizes: list[int], known: list[dict[str, int]]) -> str:
    """An axis of an output: one of the inputs', an argument, a number, or what comes of these by a step or a product."""
    columns = {text: [row[text] for row in known] for text in known[0]}
    if same := [text for text, column in columns.items() if column == sizes]:
        return quoted(same[0].removeprefix("sizes.")) if same[0].startswith("sizes.") else same[0]
    if len(set(sizes)) == 1:
        return str(sizes[0])
    for (text, column), by in itertools.product(columns.items(), (*range(1, 9), 16, 32)):
        for more in sorted(range(-32, 33), key=abs):
            moved = f"({text} {'+' if more > 0 else '-'} {abs(more)})" if more else text
            if [(n + more) // by for n in column] == sizes:
                return f"{moved} // {by}" if by > 1 else moved.strip("()")
            if [(n + more) * by for n in column] == sizes:
                return f"{moved} * {by}"
    for count in (2, 3):
        for several in itertools.combinations(columns, count):
            product = [int(torch.tensor([row[text] for text in several]).prod()) for row in known]
            if product == sizes:
                return " * ".join(several)
            times = sizes[0] // max(product[0], 1)
            if [times * n for n in product] == sizes:
                return f"{' * '.join(several)} * {times}"
    return ""


def quoted(text: str) -> str:
    """As a string of Python, in double quotes."""
    return json.dumps(str(text), ensure_ascii=False)
