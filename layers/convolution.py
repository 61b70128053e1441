"""Convolution blocks: the unit that VGG, ResNet, Inception and MobileNet repeat, and a stack of it.

Axes: b batch, c channels, y rows, x columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from operator import index
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from layers.checks import require, require_axes, require_pixels
from layers.normalization import SyncedBatchNorm2d

Pair = int | Sequence[int]


class ConvNormAct(nn.Module):
    """``activation(norm(conv(images)))``, images (b, c, y, x) -> (b, out_channels, y', x').

    With y' = (y + 2 * padding - kernel_size) // stride + 1, so the default padding keeps the size at stride 1.

    kernel_size, stride, padding: pixels, an int or (rows, columns). Padding None is (kernel_size - 1) / 2, for odd kernels;
                "valid" and "same" are those of `nn.Conv2d`, "same" for stride 1.
    groups:     1 is a full convolution, in_channels a depthwise one.
    bias:       None means only where no norm follows, which would subtract it again.
    norm:       channels -> module, such as `nn.BatchNorm2d`, or None.
    activation: () -> module, such as `nn.SiLU`, or None. With gradients it does not work in place: peak memory and time are the
                same, and hooks on the convolution or the norm keep what they were given (pytorch/pytorch issue 61519). Without
                gradients and hooks it does, for time's sake; see `activated`.
    Errors:     `ValueError` at construction for sizes that do not fit, at the call for another number of channels.
    Proven against `nn.Conv2d`, `nn.BatchNorm2d` and the activation in sequence, and torchvision's `Conv2dNormActivation`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair = 3,
        *,
        stride: Pair = 1,
        padding: Pair | str | None = None,
        groups: int = 1,
        bias: bool | None = None,
        norm: Callable[[int], nn.Module] | None = nn.BatchNorm2d,
        activation: Callable[[], nn.Module] | None = nn.ReLU,
    ) -> None:
        super().__init__()
        require(in_channels > 0, "in_channels", in_channels, "positive")
        require(out_channels > 0, "out_channels", out_channels, "positive")
        kernel_size, stride = pair(kernel_size, "kernel_size"), pair(stride, "stride")
        require(min(kernel_size) > 0, "kernel_size", kernel_size, "positive")
        require(min(stride) > 0, "stride", stride, "positive")
        require(groups > 0 and in_channels % groups == 0 and out_channels % groups == 0, "groups", groups,
                f"a divisor of in_channels {in_channels} and of out_channels {out_channels}")  # fmt: skip
        if padding is None:
            require(all(k % 2 for k in kernel_size), "kernel_size", kernel_size, "odd, or padding must be given")
            padding = (kernel_size[0] // 2, kernel_size[1] // 2)
        if isinstance(padding, str):
            known = ("valid", "same") if stride == (1, 1) else ("valid",)
            require(padding in known, "padding", padding, f"{' or '.join(known)} or pixels, for stride {stride}")
        else:
            padding = pair(padding, "padding")
            require(min(padding) >= 0, "padding", padding, "zero or more")
        self.in_channels = in_channels
        bias = norm is None if bias is None else bias
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias)
        self.norm = nn.Identity() if norm is None else norm(out_channels)
        self.activation = nn.Identity() if activation is None else activation()

    def forward(self, images: Tensor) -> Tensor:
        require_axes(images, "images", "batch channels height width", channels=self.in_channels)
        x = self.norm(self.conv(images))
        return activated(self.activation, x, self.conv, self.norm)


IN_PLACE: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.ReLU: torch.relu_, nn.ReLU6: partial(F.relu6, inplace=True), nn.SiLU: partial(F.silu, inplace=True),
    nn.Hardswish: partial(F.hardswish, inplace=True),
}  # fmt: skip
FRESH = (nn.Conv2d, nn.BatchNorm2d, SyncedBatchNorm2d, nn.GroupNorm)
"""Modules whose outputs nobody else has."""


def activated(activation: nn.Module, x: Tensor, *makers: nn.Module) -> Tensor:
    """``activation(x)``, written into x where nobody can tell: without gradients, hooks and compilers, if `makers` made x.

    That saves the memory's first touch: a fifth of the time of a MobileNet v2 on a CPU.
    """
    work = IN_PLACE.get(type(activation))
    if work is None or torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return activation(x)
    kinds = {type(module) for module in makers} - {nn.Identity}
    if not kinds or not kinds.issubset(FRESH) or watched(activation, *makers):  # without any, x is the caller's
        return activation(x)
    return work(x)


def watched(*found: nn.Module) -> bool:
    """Whether a forward hook may see what goes into or comes out of the modules."""
    of_all = torch.nn.modules.module._global_forward_hooks or torch.nn.modules.module._global_forward_pre_hooks
    return bool(of_all) or any(module._forward_hooks or module._forward_pre_hooks for module in found)


class ConvStack(nn.Module):
    """`depth` equal ConvNormActs, then a pool: images (b, c, y, x) -> (b, out_channels, y', x'). One stage of a VGG.

    pool:    module at the end, None for none; y' and x' are its.
    options: what every ConvNormAct gets (kernel_size, norm, activation, bias).
    Proven against the same layers of torch in sequence.
    """

    def __init__(self, in_channels: int, out_channels: int, depth: int, *, pool: nn.Module | None = None, **options) -> None:
        super().__init__()
        require(depth > 0, "depth", depth, "positive")
        widths = [in_channels] + [out_channels] * depth
        self.convs = nn.Sequential(*(ConvNormAct(i, o, **options) for i, o in pairwise(widths)))
        self.pool = nn.Identity() if pool is None else pool

    def forward(self, images: Tensor) -> Tensor:
        return self.pool(self.convs(images))


class SqueezeExcite(nn.Module):
    """Scales every channel by a gate that sees the mean of all: images (b, c, y, x) -> (b, c, y, x).

    ``gate(up(relu(down(mean))))``, `down` to hidden_dim channels and `up` from there.
    gate: channels -> factors, such as `hard_sigmoid`.
    Hu et al., 2017 (arXiv 1709.01507). Proven against torchvision's `SqueezeExcitation`.
    """

    def __init__(self, channels: int, hidden_dim: int, *, gate: Callable[[Tensor], Tensor] = torch.sigmoid) -> None:
        super().__init__()
        require(channels > 0, "channels", channels, "positive")
        require(hidden_dim > 0, "hidden_dim", hidden_dim, "positive")
        self.channels, self.gate = channels, gate
        self.down, self.up = nn.Conv2d(channels, hidden_dim, 1), nn.Conv2d(hidden_dim, channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        require_axes(images, "images", "batch channels height width", channels=self.channels)
        require_pixels(images, 1)
        mean = images.mean((2, 3), keepdim=True)
        return images * self.gate(self.up(self.down(mean).relu()))


def hard_sigmoid(x: Tensor) -> Tensor:
    """``min(max(x + 3, 0), 6) / 6``. `F.hardsigmoid` is the same, but torch cannot differentiate it twice."""
    return F.relu6(x + 3) / 6


class BlurPool(nn.Module):
    """Every `stride`-th pixel of the images weighted by 1 2 1 in both directions: images (b, c, y, x) -> (b, c, y', x').

    y' = (y - 1) // stride + 1. Images are mirrored at their borders, so that they must have two rows and columns. A net that
    downsamples this way hardly changes its mind when its input moves by a pixel.
    Zhang, "Making Convolutional Networks Shift-Invariant Again", 2019 (arXiv 1904.11486). Proven against timm's `BlurPool2d`.
    """

    def __init__(self, channels: int, stride: int = 2) -> None:
        super().__init__()
        require(channels > 0, "channels", channels, "positive")
        require(stride > 0, "stride", stride, "positive")
        self.channels, self.stride = channels, stride

    def forward(self, images: Tensor) -> Tensor:
        require_axes(images, "images", "batch channels height width", channels=self.channels)
        require(images.is_floating_point(), "images", images.dtype, "of a floating-point dtype")
        require_pixels(images, 2)
        line = 0.5 - 0.25 * torch.arange(-1, 2, dtype=images.dtype, device=images.device).abs()  # 1 2 1, of a sum of 1
        kernel = (line[:, None] * line).expand(self.channels, 1, 3, 3)
        return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), kernel, stride=self.stride, groups=self.channels)


def pair(size: Pair, argument: str) -> tuple[int, int]:
    try:
        rows, columns = (index(n) for n in (size if isinstance(size, Sequence) else (size, size)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{argument} must be an int or (rows, columns), got {size!r}") from error
    return rows, columns


def fold_norms(model: nn.Module) -> nn.Module:
    """Put the batch norm of every ConvNormAct into its convolution, in place, for inference.

    ``w' = w * gamma / sqrt(var + eps)`` and ``b' = (b - mean) * gamma / sqrt(var + eps) + beta``: equal up to rounding.
    Left alone are norms that use the batch's own statistics, and whatever may compute something else than its class: hooked,
    pruned and parametrized modules, subclasses, and a block with a `forward` of its own.
    """
    require(not model.training, "model", "training", "in eval mode: training needs the batch norms")
    for block in model.modules():
        if isinstance(block, ConvNormAct) and type(block).forward is ConvNormAct.forward and "forward" not in vars(block):
            norm: Any = block.norm
            if folds(block.conv, norm):
                block.conv = fuse_conv_bn_eval(block.conv, norm)  # a new one: another block may share the old
                block.norm = nn.Identity()
    return model


def folds(conv: nn.Module, norm: Any) -> bool:
    """Whether these are a convolution and the affine map that a batch norm is in evaluation, and nothing more."""
    norms = (nn.BatchNorm2d, nn.SyncBatchNorm, SyncedBatchNorm2d)
    if not (is_plain(conv, nn.Conv2d) and is_plain(norm, *norms)):
        return False
    return not (conv.training or norm.training or norm.running_mean is None or norm.running_var is None)


def is_plain(module: nn.Module, *classes: type[nn.Module]) -> bool:
    """Whether it computes what one of these classes does: no subclass (parametrized ones are), no hooks, no own `forward`."""
    hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return type(module) in classes and not any(hooks) and "forward" not in vars(module)
