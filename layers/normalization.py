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
    def forward(x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        """Nothing is kept: the sum is linear."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return SumOverProcesses.apply(gradients[0])

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return SumOverProcesses.apply(tangents[0])


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose batch is that of all processes: input (b, c, y, x) -> the same shape, b may differ and be 0.

    `nn.SyncBatchNorm` takes GPU tensors only, so that a distributed run on the CPU could not be the same as a single one. The
    variance is taken around the common mean, in a second sum, because a mean of squares less a squared mean loses digits.
    Errors: those of `nn.BatchNorm2d`, `RuntimeError` for another number of channels and `ValueError` for one value per channel in
    all processes together; running statistics then stay as they were. They do too where no process has an image.
    Proven against `nn.BatchNorm2d` on the whole batch, in two processes.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and dist.is_initialized()):
            return super().forward(input)
        self._check_input_dim(input)
        self.check_channels(input)
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        count = x.new_tensor([x.shape[0] * x.shape[2] * x.shape[3]])
        total = SumOverProcesses.apply(torch.cat([x.sum((0, 2, 3)), count]))
        n = int(total[-1])
        if n == 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {input.size()}")
        mean = total[:-1] / max(n, 1)
        centred = x - mean[:, None, None]
        variance = SumOverProcesses.apply(centred.square().sum((0, 2, 3))) / max(n, 1)
        if self.track_running_stats:
            self.track(mean.detach(), variance.detach(), n)
        scale = (variance + self.eps).rsqrt()
        scale = scale if self.weight is None else scale * self.weight
        output = centred * scale[:, None, None]
        output = output if self.bias is None else output + self.bias[:, None, None]
        return output.to(input.dtype)

    def track(self, mean: Tensor, variance: Tensor, n: int) -> None:
        momentum = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            momentum = 1 / self.num_batches_tracked.item() if momentum is None else momentum
        if n > 1 and self.running_mean is not None and self.running_var is not None:
            self.running_mean.lerp_(mean.to(self.running_mean), momentum or 0.0)
            self.running_var.lerp_((variance * n / (n - 1)).to(self.running_var), momentum or 0.0)

    def check_channels(self, input: Tensor) -> None:
        for name in ("running_mean", "weight"):
            vector = getattr(self, name)
            if vector is not None and len(vector) != input.shape[1]:
                raise RuntimeError(f"{name} should contain {input.shape[1]} elements not {len(vector)}")


def synchronise_norms(model: nn.Module) -> nn.Module:
    """Make every `nn.BatchNorm2d` of a model count all processes' batches, in place; names, values and hooks stay.

    Subclasses, which may compute something else, are left alone, and so are parametrized ones.
    """
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            on_gpu = any(x.is_cuda for x in [*module.parameters(), *module.buffers()])
            norm: Any = module
            norm.__class__ = nn.SyncBatchNorm if on_gpu else SyncedBatchNorm2d  # the same attributes; `forward` differs
            if on_gpu:
                norm.process_group = None
    return model


class RMSNorm(nn.Module):
    """x (..., dim) -> x / sqrt(mean(x^2) + eps) * (offset + weight): a layer norm without mean and bias.

    offset: 0, or 1 as in Gemma, whose weights start as zeros, so that weight decay pulls the factor to 1.
    Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019 (arXiv 1910.07467). The mean is taken in float32 at least.
    Differs from `nn.RMSNorm` in that eps is the same in every dtype.

    Proven against `nn.RMSNorm`, and Llama's of transformers.
    """

    def __init__(self, dim: int, eps: float = 1e-6, offset: float = 0.0) -> None:
        super().__init__()
        require(dim > 0, "dim", dim, "positive")
        require(eps > 0, "eps", eps, "positive")
        self.eps, self.offset = eps, offset
        self.weight = nn.Parameter(torch.full((dim,), 1 - offset))

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim < 1 or x.shape[-1] != len(self.weight):
            raise ValueError(f"x: dim must be {len(self.weight)}, got shape {tuple(x.shape)}")
        require(x.is_floating_point(), "x", x.dtype, "of a floating-point dtype")
        weight = (
            self.weight
            if self.offset == 0
            else self.weight.to(torch.promote_types(self.weight.dtype, torch.float32)) + self.offset
        )
        wide = torch.promote_types(x.dtype, weight.dtype)  # under autocast they may differ
        return F.rms_norm(x.to(wide), weight.shape, weight.to(wide), self.eps).to(x.dtype)
