"""Norms that torch does not ship: RMSNorm with a fixed eps, and batch norm over all processes, on any device."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from layers.checks import require


class SumOverProcesses(torch.autograd.Function):
    """y = sum over processes of x; every process uses y, so the gradient is the sum over processes too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone()
        dist.all_reduce(gradient)
        return gradient


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose batch is that of all processes: input (b, c, y, x) -> the same shape, b may differ and be 0.

    `nn.SyncBatchNorm` takes GPU tensors only, so that a distributed run on the CPU could not be the same as a single one. The
    variance is taken around the common mean, in a second sum, because a mean of squares less a squared mean loses digits.
    Proven against `nn.BatchNorm2d` on the whole batch, in two processes.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and dist.is_initialized()):
            return super().forward(input)
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        count = x.new_tensor([x.numel() // x.shape[1]])
        total = SumOverProcesses.apply(torch.cat([x.sum((0, 2, 3)), count]))
        mean, n = total[:-1] / total[-1], total[-1].detach()
        centred = x - mean[:, None, None]
        variance = SumOverProcesses.apply(centred.square().sum((0, 2, 3))) / n
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean.to(self.running_mean), momentum)
                self.running_var.lerp_((variance * n / (n - 1)).to(self.running_var), momentum)
        scale = (variance + self.eps).rsqrt() * (self.weight if self.affine else 1)
        shift = self.bias[:, None, None] if self.affine else 0
        return (centred * scale[:, None, None] + shift).to(input.dtype)


def synchronise_norms(model: nn.Module) -> nn.Module:
    """Make every `nn.BatchNorm2d` of a model count all processes' batches; names and values stay."""
    if next(model.parameters()).is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncedBatchNorm2d  # the same attributes; only `forward` differs
    return model


class RMSNorm(nn.Module):
    """x (..., dim) -> x / sqrt(mean(x^2) + eps) * weight: a layer norm without mean and bias.

    Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019 (arXiv 1910.07467). The mean is taken in float32 at least.
    Differs from `nn.RMSNorm` in that eps is the same in every dtype.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        require(dim > 0, "dim", dim, "positive")
        require(eps > 0, "eps", eps, "positive")
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim < 1 or x.shape[-1] != len(self.weight):
            raise ValueError(f"x: dim must be {len(self.weight)}, got shape {tuple(x.shape)}")
        wide = torch.promote_types(x.dtype, self.weight.dtype)  # under autocast they may differ
        return F.rms_norm(x.to(wide), self.weight.shape, self.weight.to(wide), self.eps).to(x.dtype)
