"""What discriminators of adversarial networks are made of beside convolutions: a statistic of the batch, bounded weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from layers.checks import require, require_axes


class MinibatchStd(nn.Module):
    """One more channel, which tells how much the images of the batch differ: images (b, c, y, x) -> (b, c + 1, y, x).

    ``mean over c, y, x of sqrt(variance over b + eps)``, the same number for every image and pixel. A generator that always draws
    the same image gives itself away by it. An image's output depends on its batch, in evaluation too: no penalty that takes the
    gradients of each image alone goes with it.
    Karras et al., "Progressive Growing of GANs", 2018 (arXiv 1710.10196), section 3. The variance is divided by b, not by b - 1,
    and the group is the whole batch. Errors: `ValueError` for other than 4 axes.
    """

    def __init__(self, eps: float = 1e-8) -> None:
        super().__init__()
        require(eps > 0, "eps", eps, "positive: the square root has no derivative at 0")
        self.eps = eps

    def forward(self, images: Tensor) -> Tensor:
        require_axes(images, "images", "batch channels height width")
        require(images.is_floating_point(), "images", images.dtype, "of a floating-point dtype")
        variance = (images - images.mean(0)).square().mean(0)
        statistic = (variance + self.eps).sqrt().mean()
        return torch.cat([images, statistic.expand_as(images.narrow(1, 0, 1))], 1)


def add_spectral_norm(model: nn.Module, iterations: int = 1) -> nn.Module:
    """Divide the weight of every convolution and linear layer by its largest singular value, in place; returns the model.

    The weight of a convolution is read as a matrix of a row for each output channel, so the axis 1 of a transposed one. Power
    iterations take place in training alone: evaluation leaves the state as it is.
    Miyato et al., "Spectral Normalization for GANs", 2018 (arXiv 1802.05957), by torch's own parametrization. Layers that have
    one are left alone. Errors: `ValueError` for iterations that are not positive.
    """
    require(iterations > 0, "iterations", iterations, "positive")
    for module in list(model.modules()):
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)) and not parametrize.is_parametrized(module, "weight"):
            dim = 1 if isinstance(module, nn.ConvTranspose2d) else 0
            spectral_norm(module, n_power_iterations=iterations, dim=dim)
    return model
