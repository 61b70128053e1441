"""A contract for a block that has none: arguments from annotations, defaults and names, axes by trying what `forward` takes.

It is a beginning: it knows no reference, makes no claims, and holds the block to what holds for any. The contract that
`python -m layers.testing` checks is the source that it prints.
"""

from __future__ import annotations

import inspect
import itertools
import keyword
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layers.testing.contract import Contract
from layers.testing.drawing import Part, seeded
from layers.testing.examples import first_line
from layers.testing.exercise import alike
from layers.testing.guesses import SIZES, Built, Seen, Unclear, builds, described, guessed, is_count, quoted, signature, some_of

LEAST = (2, 6, 16, 32)
"""Where the sizes of axes that are free begin."""
FORMS = ("b n d", "b d y x", "b y x d", "b d n", "b d", "b d z y x")
"""Axes of an input, most likely first; d is an argument of the constructor, or a number, or free."""
WHOLE = ("b n", "b", "b n m", "b y x")
"""The same without d: real numbers, or whole ones below an argument, or below 4."""


@dataclass(frozen=True)
class Given:
    """An input. sizes: of its fixed axes, and below: of its whole numbers; each a number or the name of an argument."""

    axes: tuple[str, ...]
    sizes: Mapping[str, str]
    below: str = ""
    least: int = 2

    @classmethod
    def parse(cls, text: str, arguments: Mapping[str, Any]) -> Given:
        """``b n dim``, ``b c=3 y x``, and whole numbers as in ``b n < vocab_size``; an axis named as an argument has its size."""
        axes, _, below = (part.strip() for part in text.partition("<"))
        pairs = [axis.partition("=")[::2] for axis in axes.split()]
        sizes = {name: size or name for name, size in pairs if size or isinstance(arguments.get(name), int)}
        for size in {*sizes.values(), *([below] if below else [])}:
            if not (size.isdigit() or isinstance(arguments.get(size), int)):
                raise Unclear(
                    f"--input: {size} in {text!r} is neither a number nor an argument; there are {', '.join(arguments)}"
                )
        return cls(tuple(name for name, _ in pairs), sizes, below)

    def sample(self, arguments: Mapping[str, Any], sizes: Mapping[str, int]) -> Tensor:
        shape = [1 if a == "1" else number(self.sizes[a], arguments) if a in self.sizes else sizes[a] for a in self.axes]
        if self.below:  # the largest, which shows what is too large
            return torch.full(shape, number(self.below, arguments) - 1)
        return torch.randn(shape, dtype=torch.float64)

    def __str__(self) -> str:
        fixed = [f"{axis}={size if size.isdigit() else f'a.{size}'}" for axis, size in self.sizes.items()]
        free = [a for a in self.axes if a not in (*self.sizes, "b", "batch", "1")] if self.least > 2 else []
        options = [*fixed, *(f"{axis}=st.integers({self.least}, {self.least + 4})" for axis in free)]
        below = [self.below if self.below.isdigit() else f"a.{self.below}"] if self.below else []
        return f"{'tokens' if below else 'tensor'}({', '.join([quoted(' '.join(self.axes)), *below, *options])})"


@dataclass(frozen=True)
class Draft:
    """A contract to begin with. expression: how the block is written after `imported`. outputs: as written, too."""

    module: str
    expression: str
    values: Mapping[str, Sequence[Any]]
    inputs: Mapping[str, Given]
    outputs: str
    differs: bool
    draws: bool

    def __str__(self) -> str:
        """The source of a test file, which runs as it stands."""
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", self.expression).replace(".", "_").lower()
        arguments = [f"{k}={one_of(v)}" for k, v in self.values.items()]
        given = [f"{k}={v}" for k, v in self.inputs.items()]
        body = ["arguments=dict(", *(f"    {line}," for line in arguments), "),"] if arguments else ["arguments={},"]
        body += ["inputs=lambda a: dict(", *(f"    {line}," for line in given), "),", f"outputs=lambda a, sizes: {self.outputs},"]
        body += ["trains_differently=lambda a: True,"] * self.differs + ["stochastic=lambda a: True,"] * self.draws
        body += ["foreign=True,  # leave it out where wrong arguments and sizes must be a ValueError that names them"]
        text = "\n".join(f"    {line}" for line in body)
        parts = {x.factory if isinstance(x, Part) else x for v in self.values.values() for x in v if isinstance(x, (Part, type))}
        used = ["Contract", *(n for n in ("part", "tensor", "tokens") if f"{n}(" in text)]
        imports = {f"from {x.__module__} import {x.__name__}" for x in parts if x.__module__ != "builtins"}
        imports |= {f"from {self.module} import {self.expression.partition('.')[0]}"}
        imports |= {"from hypothesis import strategies as st"} if "st." in text else set()
        named = {"dict", *used, *(line.split()[-1] for line in imports)}
        name += "_contract" * (keyword.iskeyword(name) or name in named)
        others, ours = sorted(i for i in imports if "from layers" not in i), sorted(i for i in imports if "from layers" in i)
        kit = [*ours, f"from layers.testing import {', '.join(used)}"]
        return "\n".join(
            [*others, *([""] if others else []), *kit, "", f"{name} = Contract(", f"    {self.expression},", text, ")"]
        )

    def contract(self) -> Contract:
        """What the source declares."""
        namespace: dict[str, Any] = {}
        exec(compile(str(self), f"<draft of {self.expression}>", "exec"), namespace)
        return next(value for value in namespace.values() if isinstance(value, Contract))


def draft(
    block: Callable[..., nn.Module], given: Mapping[str, Sequence[Any]], forms: Mapping[str, str], where: str = ""
) -> Draft:
    """given: values to draw constructor arguments from. forms: axes of inputs, as `Given.parse` reads them.

    where: "module:name" of the block, if not its own. Errors: `Unclear` says what cannot be guessed, and how to give it.
    """
    module, _, expression = (where or f"{block.__module__}:{block.__qualname__}").partition(":")
    problem, names = "", list[str]()
    values: dict[str, list[Any]] = {}
    for sizes in SIZES:
        values, switches = guessed(block, given, sizes)
        built, why = builds(block, values)
        problem = problem or why
        if not built:
            continue
        names = names or required(built[0][1], list(forms))
        for inputs in candidates(names, forms, built, pairs=sizes == SIZES[0]):
            try:
                outputs = described(observed(built, inputs))
            except Exception as error:
                problem = problem or first_line(error)
                continue
            if re.search(r'"b"[^()]*"b"', outputs):  # a form that fits by broadcasting only
                continue
            values = turned(block, values, switches, inputs, outputs)
            try:
                differs, draws = trained(some_of(block, values, 8), inputs)
            except Exception as error:
                why = f"in training it raises {first_line(error)}"
                raise Unclear(f"{why}: give other arguments, such as --set dim=3,5, or inputs, as --input") from error
            return Draft(module, expression, values, inputs, outputs, differs, draws)
    if not names:
        shown = ", ".join(f"{name}={value[0]!r}" for name, value in values.items())
        raise Unclear(f"it cannot be built with {shown or 'no arguments'} ({problem}): give arguments, such as --set dim=4,8")
    wanted = [name for name in names if name not in forms] or names
    raise Unclear(
        f"no guess fits the inputs {', '.join(wanted)} ({problem}): give their axes, such as --input '{wanted[0]}=b n dim', or "
        f"'{wanted[0]}=b c=3 y x', or whole numbers, '{wanted[0]}=b n < vocab_size'; arguments by --set"
    )


def turned(
    block: Callable[..., nn.Module],
    values: dict[str, list[Any]],
    switches: Mapping[str, list[Any]],
    inputs: Mapping[str, Given],
    outputs: str,
) -> dict[str, list[Any]]:
    """With those values of switches that leave the form of the output alone, each and together."""

    def fits(values: Mapping[str, list[Any]]) -> bool:
        try:
            return described(observed(some_of(block, values, 24), inputs)) == outputs
        except Exception:
            return False

    single = {name: options[:1] for name, options in values.items() if name in switches}
    for name, options in switches.items():
        more = [x for x in options if fits({**values, **single, name: [x]})]
        if more and fits(wider := {**values, name: [*values[name], *more]}):
            values = wider
        elif not any(p.name == name and p.default is p.empty for p in signature(block)[0]):
            values = {other: options for other, options in values.items() if other != name}
    return values


# Inputs and outputs


def required(module: nn.Module, given: list[str]) -> list[str]:
    """Names of the inputs that are given, and of those without which it cannot be called."""
    every = [p for p in inspect.signature(module.forward).parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    needed = [p.name for p in every if p.default is p.empty and p.name not in given]
    names = [*given, *needed] or [p.name for p in every[:1]]
    if not names:
        raise Unclear("forward names no input: give one, such as --input 'x=b n dim'")
    return names


def candidates(names: list[str], forms: Mapping[str, str], built: Built, pairs: bool) -> Iterator[dict[str, Given]]:
    """Inputs to try, most likely first: those that are not given all of one form, such as one that is, then any two."""
    arguments, module = built[0]
    given = {name: Given.parse(text, arguments) for name, text in forms.items()}
    wanted = [name for name in names if name not in given]
    numbers = [name for name, value in arguments.items() if isinstance(value, int) and not isinstance(value, bool)]
    features = [name for name in numbers if not is_count(name)]
    constants = dict.fromkeys(str(n) for p in itertools.islice(module.parameters(), 2) for n in reversed(p.shape) if n <= 64)
    of_name = re.search(r"[123](?=d$)", type(module).__name__.lower())

    def unlike(form: str) -> bool:  # a Conv2d is given images, though it takes one alone too
        return bool(of_name) and len(form.split()) != int(of_name[0]) + 2

    single = list(given.values())
    for form, size in itertools.product(sorted(FORMS, key=unlike), [*features, *constants, ""]):
        axis = size if size in features and size not in ("b", "n", "y", "x") else "d"
        axes = tuple(form.replace("d", axis).split() if axis == "d" else [axis if a == "d" else a for a in form.split()])
        single.append(Given(axes, {axis: size} if size else {}))
    single += [Given(tuple(form.split()), {}) for form in WHOLE]
    single += [Given(tuple(form.split()), {}, below) for form, below in itertools.product(WHOLE, [*numbers, "4"])]
    rows = [(g,) * len(wanted) for g in single] if wanted else [()]
    tried = list(itertools.product(rows, LEAST))
    if pairs and len(wanted) == 2:
        tried += list(itertools.product(itertools.product(single, repeat=2), LEAST[:1]))
    for row, least in tried:
        every = given | dict(zip(wanted, row, strict=True))
        yield {name: Given(g.axes, g.sizes, g.below, least) for name, g in every.items()}


def observed(built: Built, inputs: Mapping[str, Given]) -> Seen:
    found: Seen = []
    free = list(dict.fromkeys(a for g in inputs.values() for a in g.axes if a not in (*g.sizes, "1")))
    for turn, (arguments, module) in itertools.product(range(5), built):
        least = max(g.least for g in inputs.values())
        sizes = {a: least + (turn + 2 * i) % 5 for i, a in enumerate(a for a in free if a not in ("b", "batch"))}
        sizes |= {a: (3, 2, 5, 4, 2)[turn] for a in free if a in ("b", "batch")}
        known = {f"sizes.{a}": n for a, n in sizes.items()}
        known |= {f"a.{k}": v for k, v in arguments.items() if isinstance(v, int) and not isinstance(v, bool)}
        with torch.no_grad(), seeded(turn):
            found.append((known, module(**{name: g.sample(arguments, sizes) for name, g in inputs.items()})))
    return found


def trained(built: Built, inputs: Mapping[str, Given]) -> tuple[bool, bool]:
    """Whether training differs from evaluation, and whether it draws random numbers."""
    differs = draws = False
    for arguments, module in built:
        sizes = dict.fromkeys((a for g in inputs.values() for a in g.axes), max(4, *(g.least for g in inputs.values())))
        with seeded(0):
            given = {name: g.sample(arguments, sizes) for name, g in inputs.items()}
        results = []
        for mode, seed in ((False, 1), (True, 1), (True, 2)):
            with torch.no_grad(), seeded(seed):
                results.append(module.train(mode)(**{name: x.clone() for name, x in given.items()}))
        differs |= not alike(results[0], results[1])
        draws |= not alike(results[1], results[2])
    return differs, draws


def number(text: str, arguments: Mapping[str, Any]) -> int:
    return int(text) if text.isdigit() else arguments[text]


def one_of(values: Sequence[Any]) -> str:
    def shown(value: Any) -> str:
        if isinstance(value, Part):
            return f"part({value.factory.__name__})"
        return quoted(value) if isinstance(value, str) else getattr(value, "__name__", repr(value))

    return shown(values[0]) if len(values) == 1 else f"st.sampled_from([{', '.join(map(shown, values))}])"
