"""A network of diffusion made fast for sampling: what it does to images is compiled, with weights as constants.

Times and classes are embedded by the model itself, which is little work, so that any of their kinds and all errors are its own.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from layers.checks import require_axes
from layers.conditioning import require_multiples
from zoo.deployment.fast_convolution import has_fast_kernels, use_fast_convolutions
from zoo.deployment.fast_norm import use_fast_norms
from zoo.deployment.optimize import Optimized, prepared, shared
from zoo.model import DiffusionModel


def optimize_diffusion(model: DiffusionModel, example: Tensor, dtype: torch.dtype) -> OptimizedDiffusion:
    """What `zoo.optimize` returns of a network of diffusion."""
    require_axes(example, "example", "batch channels height width", channels=model.in_channels)
    require_multiples(example, model.multiple)
    fast: Any = prepared(model, dtype)
    optimized = OptimizedDiffusion(fast.to(memory_format=torch.channels_last), example, dtype)
    optimized(example, torch.zeros(len(example), device=example.device))
    return optimized


class Predict(nn.Module):
    """`DiffusionModel.predict` as a module."""

    def __init__(self, model: DiffusionModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, condition: Tensor) -> Tensor:
        return self.model.predict(images, condition)


class OptimizedDiffusion(Optimized):
    """A `DiffusionModel` for inference: noisy images (b, c, y, x), times (b,) and classes (b,) or None -> (b, c', y, x).

    Before torch 2.9 without a program for other shapes than the example's: that of a U-Net is wrong on torch 2.6.
    """

    any_size = torch.__version__ >= "2.9"  # compared as a version, of which 2.15 is a later one

    def __init__(self, model: DiffusionModel, example: Tensor, dtype: torch.dtype) -> None:
        super().__init__(Predict(model), example, dtype)
        self.config = copy.deepcopy(model.config)
        self.in_channels, self.out_channels, self.multiple = model.in_channels, model.out_channels, model.multiple
        self.no_class = model.no_class
        self.place = nn.Parameter(torch.empty(0, dtype=dtype, device=self.device), requires_grad=False)  # tells others both

    def by_fewer_products(self, model: nn.Module) -> tuple[nn.Module, nn.Module]:
        """Those of `FastConv2d`, which take any size, and `FastGroupNorm`."""
        if not has_fast_kernels("winograd.cpp", "group_norm.cpp"):  # told once of both
            return shared(model), model
        fast = use_fast_convolutions(use_fast_norms(shared(model)))
        return fast, shared(fast)

    def forward(self, images: Tensor, times: Tensor, classes: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """As `DiffusionModel`. A program for tensors of `inference_mode` would be another: these are copied."""
        with torch.inference_mode(False), torch.no_grad():
            if isinstance(images, Tensor) and images.is_inference():
                images = images.clone()
            return super().forward(images, self.programs[2].model.condition(images, times, classes))
