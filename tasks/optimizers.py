"""Optimizers, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tasks.muon import Muon, hidden_matrices
from tasks.options import EngineOptions
from zoo.model import Model


def learning_rate(options: EngineOptions, step: int, steps_per_epoch: int) -> float:
    """In closed form; `step` counts optimizer steps from 0."""
    warmup, total = options.warmup * steps_per_epoch, options.epochs * steps_per_epoch
    if step < warmup:
        return options.lr * (step + 1) / (warmup + 1)
    done = min(1.0, (step - warmup) / max(1.0, total - warmup))
    factor = {
        "cosine": (1 + math.cos(math.pi * done)) / 2,
        "step": 0.1 ** ((done >= 0.5) + (done >= 0.75)),
        "rsqrt": ((warmup + 1) / (step + 1)) ** 0.5,
        "constant": 1.0,
    }
    return options.lr * factor[options.schedule]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """A partition of the trainable parameters: matrices and kernels decay, vectors (norms, biases) do not."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]


def layer_groups(model: nn.Module, options: EngineOptions) -> list[dict[str, Any]]:
    """The same, for each depth apart: the deepest parameters keep the learning rate, those before get less and less.

    Source: Clark et al., 2020 (arXiv 2003.10555).
    """
    found = depths(model)
    deepest, groups = max(found.values(), default=0), []
    for depth in range(deepest + 1):
        part = nn.ParameterList([p for name, p in model.named_parameters() if found[name] == depth])
        rate = options.lr * options.layer_decay ** (deepest - depth)
        groups += [{**group, "lr": rate} for group in parameter_groups(part, options.weight_decay) if group["params"]]
    return groups


def depths(model: nn.Module) -> dict[str, int]:
    """The depth of every parameter by name: the number of its part in `Model.parts`, after the last of which the head comes."""
    parts = model.parts() if isinstance(model, Model) else dict(model.named_children())
    numbers = {id(p): depth for depth, part in enumerate(parts.values()) for p in part.parameters()}
    return {name: numbers.get(id(p), len(parts)) for name, p in model.named_parameters()}


def apart(groups: list[dict[str, Any]], hidden: set[Tensor]) -> list[dict[str, Any]]:
    """Each group as two: the hidden matrices, and the rest."""
    split = [
        {**group, "params": [p for p in group["params"] if (p in hidden) == orthogonal], "orthogonal": orthogonal}
        for group in groups
        for orthogonal in (True, False)
    ]
    return [group for group in split if group["params"]]


def make_optimizer(model: nn.Module, options: EngineOptions) -> torch.optim.Optimizer:
    groups = parameter_groups(model, options.weight_decay) if options.layer_decay == 1 else layer_groups(model, options)
    if options.optimizer == "sgd":
        fused = not any(isinstance(p, DTensor) for group in groups for p in group["params"])  # of slices there is no such kernel
        return torch.optim.SGD(groups, lr=options.lr, momentum=0.9, nesterov=True, fused=fused)
    if options.optimizer == "muon":
        return Muon(apart(groups, hidden_matrices(model)), options.lr, (0.9, options.beta2))
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[options.optimizer]
    return kind(groups, lr=options.lr, betas=(0.9, options.beta2), fused=True)
