"""A model at a glance: ``print(zoo.summary(zoo.create("resnet18"), torch.randn(1, 3, 224, 224)))``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from layers.checks import require

AXES = {4: "bcyx", 3: "bnd", 2: "bd", 1: "b"}
"""By how many there are: of images, of tokens with features, of a vector a row. Of integers, two are rows of tokens."""


@dataclass
class Row:
    """A module: its name within the model, class, output's shape, parameters, multiply-adds, and what it is proven against."""

    name: str
    kind: str
    parameters: int
    proof: str
    shape: str = ""
    multiply_adds: int = 0


class Summary(list[Row]):
    """Rows, the model itself first; prints as a table."""

    def __str__(self) -> str:
        table = [("", "class", "output", "parameters", "multiply-adds", "proven against")]
        table += [(r.name, r.kind, r.shape, f"{r.parameters:,}", f"{r.multiply_adds:,}", r.proof) for r in self]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        sides = "<<<>><"
        lines = ("  ".join(f"{x:{s}{w}}" for x, s, w in zip(row, sides, widths, strict=True)).rstrip() for row in table)
        return "\n".join(lines)


def summary(model: nn.Module, *inputs: Any, depth: int = 1, **named: Any) -> Summary:
    """What the model's modules do with these inputs, in the order in which they are first called, and `depth` calls deep.

    A parameter that modules share counts once in each. Multiply-adds are those of matrix products, convolutions and attention,
    half of what torch's `FlopCounterMode` counts, which on a CPU leaves attention out; recurrent networks are written out, as
    wherever there are hooks. What is proven against a reference says so in the docstring of its class or file. The model runs
    once, without gradients, in evaluation; its mode stays.
    Errors: `ValueError` for no module or no input, and whatever the model says of its inputs.
    """
    require(isinstance(model, nn.Module), "model", model, "a module")
    require(bool(inputs or named), "inputs", inputs, "what the model is called with")
    require(depth >= 0, "depth", depth, "0 or more")
    rows: dict[str, Row] = {}
    missing = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    counter = FlopCounterMode(display=False, custom_mapping=missing)

    def before(name: str, module: nn.Module, given: Any) -> None:
        kind = type(module)
        row = rows.setdefault(name, Row(name, kind.__name__, count(module), proof(kind)))
        row.multiply_adds -= counter.get_total_flops() // 2

    def after(name: str, module: nn.Module, given: Any, output: Any) -> None:
        rows[name].multiply_adds += counter.get_total_flops() // 2
        rows[name].shape = shape(output)

    hooks = []
    for name, module in model.named_modules():
        hooks += [module.register_forward_pre_hook(partial(before, name)), module.register_forward_hook(partial(after, name))]
    try:
        with as_evaluated(model), torch.no_grad(), counter:
            model(*inputs, **named)
    finally:
        for hook in hooks:
            hook.remove()
    return Summary(row for name, row in rows.items() if sum(above in rows for above in ancestors(name)) <= depth)


def ancestors(name: str) -> list[str]:
    """ "a.b.c" -> ["", "a", "a.b"]; of the model itself none."""
    parts = name.split(".") if name else []
    return [".".join(parts[:n]) for n in range(len(parts))]


@contextmanager
def as_evaluated(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def attention(query: Any, key: Any, value: Any, *others: Any, out_shape: Any = None, **named: Any) -> int:
    """Twice the multiply-adds of scores and of weighted values."""
    b, h, q, d = query
    return 2 * b * h * q * key[2] * (d + value[3])


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def shape(output: Any) -> str:
    """Of the first tensor that it holds, by axis: "b=2 c=64 y=56 x=56"."""
    while not isinstance(output, Tensor):
        if not output or isinstance(output, str):
            return ""
        output = next(iter(output.values() if isinstance(output, dict) else output), None)
        if output is None:
            return ""
    whole = not output.is_floating_point() and not output.is_complex()
    names = "bn" if whole and output.ndim == 2 else AXES.get(output.ndim, "?" * output.ndim)
    return " ".join(f"{name}={size}" for name, size in zip(names, output.shape, strict=True))


def proof(kind: type) -> str:
    """The end of the sentence "Proven against ..." of the class, else of its file, where it is one of this project."""
    for text in (
        kind.__doc__,
        inspect.getdoc(inspect.getmodule(kind)) if kind.__module__.startswith(("layers.", "zoo.")) else None,
    ):
        if found := re.search(r"Proven against (.*?)\.(?=\s|$)", " ".join((text or "").split())):
            return found[1]
    return ""
