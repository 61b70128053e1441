"""Why a model answers as it does: which part of an image speaks for a class, and what the layers make of it.

For every image model of the zoo: `model.features(images)` lists the outputs of its stages, `model.head` makes logits of the last.
Axes: b batch, c channels, y rows, x columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

SMALLEST_GRID = 4
"""Rows and columns below which a map says too little about where: VGG's last stage has but one pixel of a 32x32 image."""


def class_activation(model: Any, images: Tensor, classes: Tensor | None = None) -> tuple[Tensor, int, int]:
    """Grad-CAM: maps (b, y, x), zero or more, in logits, of how much each place speaks for a class; their stage; all stages.

    ``relu(sum_c w_c A_c)``: A is the output of the last stage with at least 4x4 pixels (the first one if there is none), and
    ``w_c = sum_yx dlogit / dA_c``. The paper's w is the mean; the sum leaves out its factor 1 / (y x), so that for a linear head
    on the mean over the last stage the maps *are* class activation maps, whose mean before the relu is the logit less its bias.

    images:  (b, c, y, x), normalised; the model is in eval mode, or batch norm would mix the images.
    classes: (b,), by default what the model predicts.
    Sources: Selvaraju et al., 2017 (arXiv 1610.02391), and Zhou et al., 2016 (arXiv 1512.04150).
    Errors:  `ValueError` in train mode.
    """
    if model.training:
        raise ValueError("model must be in eval mode to be explained, got one in train mode")
    with torch.enable_grad():
        stages = model.features(images.detach().requires_grad_())
        logits = model.head(stages[-1])
        targets = logits.argmax(-1) if classes is None else classes
        stage = max((n for n, grid in enumerate(stages) if min(grid.shape[-2:]) >= SMALLEST_GRID), default=0)
        (slopes,) = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), stages[stage])
    return (slopes.sum((-2, -1), keepdim=True) * stages[stage].detach()).sum(1).relu(), stage, len(stages)


def first_filters(model: nn.Module) -> Tensor:
    """Weights (filters, channels, y, x) of the model's first convolution."""
    return next(module for module in model.modules() if isinstance(module, nn.Conv2d)).weight.detach()


def strongest(grids: Tensor, limit: int) -> Tensor:
    """The `limit` channels of one image's (c, y, x) with the largest mean, largest first."""
    return grids[grids.mean((-2, -1)).argsort(descending=True, stable=True)[:limit]]
