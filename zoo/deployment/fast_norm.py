"""Group norms of float32 images on a CPU in C++, with what goes before and after them: a shift of each channel, and SiLU.

Of an image with channels last, a group's channels are a few numbers out of each vector. Inductor reads them masked, and divides
once for each; here sums are of channels, and then of groups: once over an image for the mean, once for the variance about it,
and once to write, while it stays in a core's cache.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers.checks import require, require_axes
from layers.unet import PixelAttention, TimeResidual, require_time
from zoo.deployment.fast_convolution import has_fast_kernels, hooked, library, require_floats


class FastGroupNorm(nn.Module):
    """images (b, channels, y, x), shift (b, channels) or None -> norm(images + shift), or SiLU of that.

    norm: one that `fits`; its weights are copied. Inference only, float32, on a CPU. Strides are those of channels last.
    Errors: `ValueError` for a norm that does not fit, for other shapes, and once the weights are of another dtype.
    """

    def __init__(self, norm: nn.GroupNorm, *, silu: bool = False) -> None:
        super().__init__()
        width = library("group_norm.cpp").width()
        right = (
            f"of float32 on a CPU, with weights and without hooks, its channels a multiple of {width} and more than its groups"
        )
        require(fits(norm), "norm", norm, right)
        self.channels, self.groups, self.eps, self.silu = norm.num_channels, norm.num_groups, norm.eps, silu
        self.weight = nn.Parameter(norm.weight.detach().clone(), requires_grad=False)
        self.bias = nn.Parameter(norm.bias.detach().clone(), requires_grad=False)

    def forward(self, images: Tensor, shift: Tensor | None = None) -> Tensor:
        require_axes(images, "images", "batch channels height width", channels=self.channels)
        images = images.float().contiguous(memory_format=torch.channels_last)  # as in `FastConv2d`
        shift = None if shift is None else shift.float().contiguous()
        return normalised(images, shift, self.weight, self.bias, self.groups, self.eps, self.silu)


@torch.library.custom_op("zooproof::fast_group_norm", mutates_args=(), device_types="cpu")
def normalised(images: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
    """What `FastGroupNorm` computes."""
    compiled = library("group_norm.cpp")
    require_floats(images=images, shift=shift, weight=weight, bias=bias)
    require_axes(images, "images", "batch channels height width")
    b, c, y, x = images.shape
    require(c % compiled.width() == 0, "channels of images", c, f"a multiple of {compiled.width()}")
    require(groups > 0 and c % groups == 0, "groups", groups, f"a divisor of the {c} channels")
    require(weight.shape == bias.shape == (c,), "shapes of weight and bias", (*weight.shape, *bias.shape), f"{(c,)}")
    if shift is not None:
        require_axes(shift, "shift", "batch channels", batch=b, channels=c)
    outputs = empty_outputs(images, shift, weight, bias, groups, eps, silu)
    images = images.contiguous(memory_format=torch.channels_last)
    read = images, None if shift is None else shift.contiguous(), weight.contiguous(), bias.contiguous(), outputs
    pointers = [None if x is None else ctypes.c_void_p(x.data_ptr()) for x in read]
    sizes = map(ctypes.c_int64, (b, y * x, c, groups))
    run = compiled.normalise
    run(*pointers, *sizes, ctypes.c_double(eps), *map(ctypes.c_int64, (silu, torch.get_num_threads())))
    return outputs


@normalised.register_fake
def empty_outputs(
    images: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> Tensor:
    return torch.empty(images.shape, dtype=images.dtype, device=images.device, memory_format=torch.channels_last)


class FastTimeResidual(nn.Module):
    """`TimeResidual` in evaluation with such norms, where both fit; with its errors."""

    def __init__(self, residual: TimeResidual) -> None:
        super().__init__()
        self.in_channels, self.time_dim = residual.in_channels, residual.time_dim
        self.norm1, self.norm2 = FastGroupNorm(residual.norm1, silu=True), FastGroupNorm(residual.norm2, silu=True)
        self.conv1, self.time, self.conv2, self.shortcut = residual.conv1, residual.time, residual.conv2, residual.shortcut

    def forward(self, images: Tensor, time: Tensor | None = None) -> Tensor:
        require_axes(images, "images", "batch channels height width", channels=self.in_channels)
        require_time(time, self.time_dim, images.shape[0])
        shift = None if time is None or self.time is None else self.time(F.silu(time))
        return self.shortcut(images) + self.conv2(self.norm2(self.conv1(self.norm1(images)), shift))


def use_fast_norms(model: nn.Module) -> nn.Module:
    """Give residuals and attentions of pixels such norms where they fit, in place; before `use_fast_convolutions`."""
    if not has_fast_kernels("group_norm.cpp"):
        return model
    for module in list(model.modules()):
        if type(module) is PixelAttention and fits(module.norm):
            setattr(module, "norm", FastGroupNorm(module.norm))  # noqa: B010, of another type than before
        for name, child in module.named_children():
            if type(child) is TimeResidual and fits(child.norm1) and fits(child.norm2) and not hooked(child):
                setattr(module, name, FastTimeResidual(child))
    return model


def fits(norm: nn.Module) -> bool:
    """Whether it is a plain group norm of float32 on a CPU, not hooked, with channels that fill vectors.

    Not with groups of one channel: torch refuses those of one number, a single image of one pixel.
    """
    if type(norm) is not nn.GroupNorm or hooked(norm) or norm.num_groups == norm.num_channels:
        return False
    if norm.weight is None or norm.bias is None:
        return False
    right = norm.weight.dtype == torch.float32 and norm.weight.is_cpu
    return right and norm.num_channels % library("group_norm.cpp").width() == 0
