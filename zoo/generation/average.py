"""The exponential moving average of a model's weights, which samples better than the weights themselves."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from layers.checks import require


class ExponentialAverage:
    """``average = decay * average + (1 - decay) * weights`` after each step of an optimizer, as in Ho et al., 2020.

    `module` is a copy of the model, in evaluation mode, whose parameters are the average. Buffers are copied, not averaged: what
    batch norm counts is an average already, and the vectors of spectral norm are directions. Twin:
    `torch.optim.swa_utils.AveragedModel`. Errors: `ValueError`.

    model:  what is averaged, at its first weights, before `torch.compile` or a wrapper renames its parameters. Parameters need
            float32 or float64, for shorter ones do not change by a thousandth.
    decay:  from 0 to 1, without 1.
    warmup: begins with shorter averages, decay being at most (1 + n) / (10 + n) at update n, counted from 1, as TensorFlow's
            `ExponentialMovingAverage`, so that the first weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, *, warmup: bool = True) -> None:
        require(0 <= decay < 1, "decay", decay, "from 0 to 1, without 1")
        for name, parameter in model.named_parameters():
            long = not parameter.is_floating_point() or parameter.dtype in (torch.float32, torch.float64)
            require(long, f"model, in {name},", parameter.dtype, "of float32 or float64")
        self.decay, self.warmup, self.updates = decay, warmup, 0
        self.module = copy.deepcopy(model).eval().requires_grad_(False)

    def decay_at(self, update: int) -> float:
        """The decay of an update, the first of which is 1."""
        return min(self.decay, (1 + update) / (10 + update)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes in the model's weights, and its buffers as they are."""
        pairs = [*self._pairs(model, "named_parameters"), *self._pairs(model, "named_buffers")]
        self.updates += 1
        weight = 1 - self.decay_at(self.updates)
        averaged = [(x, new.to(x.device)) for x, new in pairs if isinstance(x, nn.Parameter) and x.is_floating_point()]
        if averaged:
            averages: list[Any] = [x for x, _ in averaged]
            torch._foreach_lerp_(averages, [new for _, new in averaged], weight)
        for x, new in pairs:
            if not (isinstance(x, nn.Parameter) and x.is_floating_point()):
                x.copy_(new)

    def _pairs(self, model: nn.Module, kind: str) -> list[tuple[Tensor, Tensor]]:
        ours, theirs = (dict(getattr(module, kind)()) for module in (self.module, model))
        found = {name: tuple(tensor.shape) for name, tensor in theirs.items()}
        expected = {name: tuple(tensor.shape) for name, tensor in ours.items()}
        differing = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        require(not differing, "model", differing, "one with the averaged model's names and shapes; these differ")
        return [(tensor, theirs[name]) for name, tensor in ours.items()]

    def state_dict(self) -> dict[str, Any]:
        """The average, and how many updates it took. The decay is an argument, which a restored state leaves as it is."""
        return {"updates": self.updates, "module": self.module.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Strict: what `state_dict` gave, of a model with the same names and shapes."""
        self.module.load_state_dict(state["module"])
        self.updates = int(state["updates"])
