"""Optimizers, the learning rate as a function of the step, and the average of weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from tasks.options import EngineOptions


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


def make_optimizer(model: nn.Module, options: EngineOptions) -> torch.optim.Optimizer:
    groups = parameter_groups(model, options.weight_decay)
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=options.lr, momentum=0.9, nesterov=True, fused=True)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[options.optimizer](groups, lr=options.lr, fused=True)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average = decay * average + (1 - decay) * model, buffers included; counters are copied."""
    for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        mean.lerp_(value, 1 - decay) if mean.is_floating_point() else mean.copy_(value)
