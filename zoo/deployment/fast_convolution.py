"""3x3 convolutions of float32 images on a CPU by Winograd's products, in C++: plain ones, and those after an upsampling.

`layers.winograd` tells how: 16 products make 2x2 outputs instead of 36. Written out in torch, what is transformed goes to memory
and back, four times the images, which takes longer than the products that it saves unless channels are many. Here a core does a
block of 2x2 outputs at a time, from pixels to outputs within its cache.

After an upsampling every pixel is there twice along each axis. Of pixels a b c, seen as a b b c, weights g make the outputs
``a g0 + b g1 + b g2`` and ``b g0 + b g1 + c g2``, which are the sums of the first two and of the last two of

    (a - b) g0,   b (g0 + g1 + g2),   (c - b) g2

so that 9 products make 2x2 outputs, and nothing is upsampled. The weights are transformed once, in float64.
"""

from __future__ import annotations

import ctypes
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from layers.checks import require, require_axes
from layers.unet import Upsample
from layers.winograd import is_plain_3x3
from zoo.files import first_line

PLAIN = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]]
UPSAMPLED = [[1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0]]
"""How three weights make the factors of the products."""
PACKAGE = Path(__file__).parents[1]


class FastConv2d(nn.Module):
    """What `conv` makes of images (b, in_channels, y, x), or of twice as large ones: (b, out_channels, y or 2 y, x or 2 x).

    conv:     one that `fits`; its weights are copied. upsamples: whether every pixel counts four times.
    Inference only, float32, on a CPU. Strides of outputs are those of channels last.
    Errors: `ValueError` for a convolution that does not fit, for other channels, and once the weights are of another dtype.
    Rounding: as of `WinogradConv2d`, with n = in_channels + 8 roundings, for a weight is rounded once.
    """

    def __init__(self, conv: nn.Conv2d, *, upsamples: bool = False) -> None:
        super().__init__()
        panel = library("winograd.cpp").panel()
        right = f"of float32 on a CPU, 3x3 with padding 1 and nothing else, without hooks, channels times {panel // 2} to {panel}"
        require(fits(conv), "conv", conv, right)
        self.in_channels, self.out_channels, self.upsamples = conv.in_channels, conv.out_channels, upsamples
        matrix = torch.tensor(UPSAMPLED if upsamples else PLAIN, dtype=torch.float64)
        weight = torch.einsum("pi, qj, ocij -> pqco", matrix, matrix, conv.weight.detach().double()).flatten(0, 1)
        # as they are read, (products * panels, in_channels, panel): of four axes, `to` would rearrange them to channels last
        weight = weight.unflatten(2, (-1, panel)).transpose(1, 2).flatten(0, 1)
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().clone()
        self.weight = nn.Parameter(weight.float().contiguous(), requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        require_axes(images, "images", "batch channels height width", channels=self.in_channels)
        # here too, where a compiler makes it part of what comes before
        images = images.float().contiguous(memory_format=torch.channels_last)
        return convolved(images, self.weight, self.bias, self.upsamples)


@torch.library.custom_op("zooproof::fast_convolution", mutates_args=(), device_types="cpu")
def convolved(images: Tensor, weight: Tensor, bias: Tensor, upsamples: bool) -> Tensor:
    """The sums of `FastConv2d`."""
    compiled = library("winograd.cpp")
    panel, products = compiled.panel(), 9 if upsamples else 16
    require_floats(images=images, weight=weight, bias=bias)
    require_axes(images, "images", "batch channels height width")
    b, c, y, x = images.shape
    require(c % (panel // 2) == 0, "channels of images", c, f"a multiple of {panel // 2}")
    require(bias.ndim == 1 and len(bias) % panel == 0, "shape of bias", tuple(bias.shape), f"of one axis, a multiple of {panel}")
    right = products * len(bias) // panel, c, panel
    require(weight.shape == right, "shape of weight", tuple(weight.shape), f"{right}")
    outputs = empty_outputs(images, weight, bias, upsamples)
    run = compiled.convolve_upsampled if upsamples else compiled.convolve_plain
    images = images.contiguous(memory_format=torch.channels_last)
    read = images, weight.contiguous(), bias.contiguous(), outputs  # copies have to live until these were read
    pointers = [ctypes.c_void_p(x.data_ptr()) for x in read]
    run(*pointers, *map(ctypes.c_int64, (b, y, x, c, len(bias), torch.get_num_threads())))
    return outputs


@convolved.register_fake
def empty_outputs(images: Tensor, weight: Tensor, bias: Tensor, upsamples: bool) -> Tensor:
    times = 2 if upsamples else 1
    b, _, y, x = images.shape
    return torch.empty(
        (b, bias.shape[0], times * y, times * x), dtype=images.dtype, device=images.device, memory_format=torch.channels_last
    )


def require_floats(**tensors: Tensor | None) -> None:
    """Raise `ValueError` unless they are what is read here, float32 on a CPU."""
    for name, tensor in tensors.items():
        if tensor is not None:
            got = tensor.dtype, tensor.device.type
            require(got == (torch.float32, "cpu"), name, got, "of float32 on a CPU")


@cache
def library(source: str) -> Any:
    """The compiled functions of a file beside this one, by the compiler and for the processor that inductor finds.

    Errors: whatever inductor raises without a compiler; and its ways may change, for which it gives no promise.
    """
    from torch._inductor.codecache import CppCodeCache

    return CppCodeCache.load((Path(__file__).parent / source).read_text())


@cache
def failure(source: str) -> str | None:
    """Why it does not compile, which is tried once; None if it does."""
    try:
        library(source)
    except Exception as error:
        return first_line(error)
    return None


def has_fast_kernels(*sources: str) -> bool:
    """Whether these functions were measured for such a processor, x86 with AVX2, and compile.

    If they do not compile, the first of them that fails is warned of, at the line outside of this package that led here.
    """
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return False
    found = next(((source, why) for source in sources if (why := failure(source)) is not None), None)
    if found is None:
        return True
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and Path(frame.f_code.co_filename).is_relative_to(PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn("{} does not compile, so that a model is slower: {}".format(*found), stacklevel=level)
    return False


def use_fast_convolutions(model: nn.Module) -> nn.Module:
    """Replace the convolutions that fit, and upsamplings with them, in place, if there are `has_fast_kernels`."""
    if not has_fast_kernels("winograd.cpp"):
        return model
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is Upsample and fits(child.conv) and not hooked(child):
                setattr(module, name, FastConv2d(child.conv, upsamples=True))
            elif fits(child):
                setattr(module, name, FastConv2d(child))
    return model


def fits(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether it is a plain 3x3 convolution of float32 on a CPU, not hooked, with channels that fill vectors."""
    if not is_plain_3x3(conv) or hooked(conv) or conv.weight.dtype != torch.float32 or not conv.weight.is_cpu:
        return False
    panel = library("winograd.cpp").panel()  # two vectors
    return conv.in_channels % (panel // 2) == 0 and conv.out_channels % panel == 0


def hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
