"""Winograd's convolution: the same sums by fewer multiplications.

A kernel of three weights g makes two outputs of four pixels d, ``d0 g0 + d1 g1 + d2 g2`` and ``d1 g0 + d2 g1 + d3 g2``. That is
six products; these are four:

    (d0 - d2) g0,   (d1 + d2) (g0 + g1 + g2) / 2,   (d2 - d1) (g0 - g1 + g2) / 2,   (d1 - d3) g2

The first output is the sum of the first three, the second is the second less the third and the fourth. Down the rows and then
along the columns, 3x3 weights make 2x2 outputs of 4x4 pixels by 16 products instead of 36. Between the input channels these are
summed before the way back, so that nearly all of the work is a product of matrices.

Winograd, 1980; Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015 (arXiv 1509.09308).
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers.checks import require, require_axes


def transform_pixels(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> list[Tensor]:
    return [a - c, b + c, c - b, b - d]


def transform_weights(a: Tensor, b: Tensor, c: Tensor) -> list[Tensor]:
    return [a, (a + b + c) / 2, (a - b + c) / 2, c]


def transform_products(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> list[Tensor]:
    return [a + b + c, b - c - d]


class WinogradConv2d(nn.Conv2d):
    """`nn.Conv2d` with 3x3 pixels, stride 1 and padding 1: input (b, c, y, x) -> (b, out_channels, y, x). Same state dict.

    Rounding: n = in_channels + 11 roundings follow one another (4 in the weights, 2 in the pixels, a product, in_channels - 1
    sums, 4 on the way back, the bias). With u half of the dtype's eps and M the same sums over absolute values, no output is off
    by more than n u M / (1 - n u), in whatever order a processor adds. M is up to 8 times a direct convolution's.
    It pays where it is compiled with weights as constants and channels are many (`zoo.optimize`); the constants are 16/9 of the
    weights. In eager torch it is slower, for it writes down 4 times the input and 4 times the output.
    Errors: `ValueError` at construction for sizes that do not fit, at the call for another number of channels.
    Proven against `nn.Conv2d`.
    """

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True) -> None:
        require(in_channels > 0, "in_channels", in_channels, "positive")
        require(out_channels > 0, "out_channels", out_channels, "positive")
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        require_axes(input, "input", "batch channels height width", channels=self.in_channels)
        y, x = input.shape[-2:]
        rows, columns = 2 * ((y + 1) // 2), 2 * ((x + 1) // 2)
        pixels = F.pad(input, (1, 2, 1, 2)).permute(0, 2, 3, 1)  # channels last, in memory too where a compiler sees this
        lines = torch.stack(transform_pixels(*(pixels[..., i : i + columns : 2, :] for i in range(4))), 3)
        tiles = torch.stack(transform_pixels(*(lines[..., i : i + rows : 2, :, :, :] for i in range(4))), 3)
        tiles = tiles.flatten(3).permute(0, 3, 1, 2)  # (b, 4 * 4 * c, y / 2, x / 2)

        lines = torch.stack(transform_weights(*self.weight.unbind(2)))
        weight = torch.stack(transform_weights(*lines.unbind(-1)), 1)
        weight = weight.flatten(0, 2)[:, :, None, None]  # (4 * 4 * out_channels, c, 1, 1)
        products = F.conv2d(tiles, weight, groups=16)

        products = products.permute(0, 2, 3, 1).unflatten(3, (4, 4, -1))
        lines = torch.stack(transform_products(*products.unbind(3)), 2)
        outputs = torch.stack(transform_products(*lines.unbind(4)), 4)  # (b, y / 2, 2, x / 2, 2, out_channels)
        outputs = outputs.flatten(3, 4).flatten(1, 2)[..., :y, :x, :].contiguous()
        outputs = outputs if self.bias is None else outputs + self.bias.to(outputs.dtype)
        return outputs.permute(0, 3, 1, 2)


def use_winograd(model: nn.Module, least_channels: int = 128) -> nn.Module:
    """Turn the convolutions that it can stand for into `WinogradConv2d`, in place, where both channel numbers are this large."""
    for conv in model.modules():
        if is_plain_3x3(conv) and min(conv.in_channels, conv.out_channels) >= least_channels:
            conv.__class__ = WinogradConv2d  # its parameters, hooks and state stay as they are
    return model


def is_plain_3x3(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    """A 3x3 convolution that keeps the size of its images."""
    if type(conv) is not nn.Conv2d or conv.kernel_size != (3, 3) or conv.padding not in ("same", (1, 1)):
        return False
    return conv.stride == conv.dilation == (1, 1) and conv.groups == 1 and conv.padding_mode == "zeros"
