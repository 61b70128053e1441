"""Classes are known by their names, whatever their order in the data and in the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def match_classes(model: Any, known: Sequence[str] | None, classes: Sequence[str]) -> list[str]:
    """Give each class the row of the output layer that its name has had, or all a new layer; lines that say which.

    known: what the weights were trained for, in order, or None for weights that do not tell.
    """
    import torch

    import zoo

    if known is None:
        return ["--init: the weights do not tell their classes: the output layer is kept if it has as many"]
    if [*known] == [*classes]:
        return ["--init: the output layer is kept, for the classes are the same"]
    layers = [model.get_submodule(name) for name in model.output_layers]
    if sorted(known) != sorted(classes):
        fresh = zoo.create(model.config["model"], **model.config["arguments"])
        for layer, name in zip(layers, model.output_layers, strict=True):
            layer.load_state_dict(fresh.get_submodule(name).state_dict())
        return [
            f"--init: a new output layer, for the weights know other classes: {', '.join(known[:10])}{' ...' * (len(known) > 10)}"
        ]
    order = torch.tensor([[*known].index(name) for name in classes])
    with torch.no_grad():
        for x in (x for layer in layers for x in layer.parameters()):
            x.copy_(x[order].clone())
    return ["--init: the output layer is kept, its rows in the order of these classes"]
