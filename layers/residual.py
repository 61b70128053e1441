"""Residual blocks of convolutional networks: what a layer adds to its input is easier to learn than what it should put out.

    basic:     relu(conv3x3(conv3x3(x)) + shortcut(x))              He et al., 2015 (arXiv 1512.03385), figure 5
    bottleneck: relu(conv1x1(conv3x3(conv1x1(x))) + shortcut(x))    the 3x3 convolution works on a quarter of the channels
    inverted:  x + conv1x1(depthwise(conv1x1(x)))                   Sandler et al., 2018 (arXiv 1801.04381): on a multiple of them

All convolutions have their norm; the last one of each has no ReLU. Axes: b batch, c channels, y rows, x columns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from layers.checks import require, require_axes
from layers.convolution import ConvNormAct

Norm = Callable[[int], nn.Module]
Gate = Callable[[int], nn.Module]


class Residual(nn.Module):
    """``activation(body(images) + shortcut(images))``, images (b, c, y, x) -> the shape that body and shortcut have in common.

    The sum is a new tensor: memory peaks earlier, within the body, and hooks on the body keep what they were given.
    Proven against the blocks of torchvision and timm.
    """

    def __init__(self, body: nn.Module, shortcut: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut, self.activation = body, shortcut, activation

    def forward(self, images: Tensor) -> Tensor:
        return self.activation(self.body(images) + self.shortcut(images))


class PaddedShortcut(nn.Module):
    """Every `stride`-th pixel, then zeros in place of the channels that are missing; no parameters. Option A of the paper.

    images (b, in_channels, y, x) -> (b, out_channels, ceil(y / stride), ceil(x / stride)).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        require(stride > 0, "stride", stride, "positive")
        require(0 < in_channels <= out_channels, "in_channels", in_channels, f"positive and at most out_channels {out_channels}")
        self.in_channels, self.missing, self.stride = in_channels, out_channels - in_channels, stride

    def forward(self, images: Tensor) -> Tensor:
        require_axes(images, "images", "batch channels height width", channels=self.in_channels)
        kept = images[..., :: self.stride, :: self.stride]  # torch 2.6 exports no `:` of a batch of any size
        return F.pad(kept, (0, 0, 0, 0, 0, self.missing))


def projected(in_channels: int, out_channels: int, stride: int = 1, norm: Norm = nn.BatchNorm2d) -> nn.Module:
    """The identity where shapes agree, else a strided 1x1 convolution with its norm; no ReLU. Option B of the paper."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return ConvNormAct(in_channels, out_channels, 1, stride=stride, norm=norm, activation=None)


def downsampling(
    in_channels: int, out_channels: int, stride: int, blur: Callable[[int, int], nn.Module] | None, **options
) -> list[nn.Module]:
    """A 3x3 convolution with that stride, or one with stride 1 and then ``blur(channels, stride)`` if there is one to do."""
    if blur is None or stride == 1:
        return [ConvNormAct(in_channels, out_channels, 3, stride=stride, **options)]
    return [ConvNormAct(in_channels, out_channels, 3, **options), blur(out_channels, stride)]


def basic_block(
    in_channels: int,
    out_channels: int,
    *,
    stride: int = 1,
    norm: Norm = nn.BatchNorm2d,
    gate: Gate | None = None,
    blur: Callable[[int, int], nn.Module] | None = None,
    shortcut: Callable[..., nn.Module] | None = None,
) -> Residual:
    """Two 3x3 convolutions: images (b, in_channels, y, x) -> (b, out_channels, ceil(y / stride), ceil(x / stride)).

    stride:   of the first convolution.
    gate:     channels -> module after the last norm, such as `layers.convolution.SqueezeExcite`.
    blur:     (channels, stride) -> module that does the downsampling, such as `layers.convolution.BlurPool`.
    shortcut: (in_channels, out_channels, stride) -> module; by default `projected`.
    """
    body = [
        *downsampling(in_channels, out_channels, stride, blur, norm=norm),
        ConvNormAct(out_channels, out_channels, 3, norm=norm, activation=None),
        *([] if gate is None else [gate(out_channels)]),
    ]
    beside = (shortcut or partial(projected, norm=norm))(in_channels, out_channels, stride)
    return Residual(nn.Sequential(*body), beside, nn.ReLU())


def bottleneck(
    in_channels: int,
    out_channels: int,
    *,
    stride: int = 1,
    hidden_dim: int | None = None,
    groups: int = 1,
    norm: Norm = nn.BatchNorm2d,
    gate: Gate | None = None,
    blur: Callable[[int, int], nn.Module] | None = None,
) -> Residual:
    """1x1, 3x3 and 1x1 convolutions: images (b, in_channels, y, x) -> (b, out_channels, ceil(y / stride), ceil(x / stride)).

    stride:     of the 3x3 convolution, as torchvision has it ("v1.5"); in the paper it is the first 1x1 convolution's.
    hidden_dim: channels of the 3x3 convolution, by default a quarter of out_channels.
    groups:     of the 3x3 convolution; 32 in ResNeXt (Xie et al., 2016, arXiv 1611.05431).
    gate, blur: as for `basic_block`.
    """
    require(out_channels > 0, "out_channels", out_channels, "positive")
    hidden_dim = out_channels // 4 if hidden_dim is None else hidden_dim
    require(hidden_dim > 0, "hidden_dim", hidden_dim, "positive")
    body = [
        ConvNormAct(in_channels, hidden_dim, 1, norm=norm),
        *downsampling(hidden_dim, hidden_dim, stride, blur, groups=groups, norm=norm),
        ConvNormAct(hidden_dim, out_channels, 1, norm=norm, activation=None),
        *([] if gate is None else [gate(out_channels)]),
    ]
    return Residual(nn.Sequential(*body), projected(in_channels, out_channels, stride, norm), nn.ReLU())


class InvertedResidual(nn.Module):
    """1x1 convolution to `hidden_dim` channels, a depthwise one, 1x1 back; plus the input where shapes agree.

    images (b, in_channels, y, x) -> (b, out_channels, ceil(y / stride), ceil(x / stride)). The first convolution is left out if
    hidden_dim is in_channels.
    kernel_size: of the depthwise convolution, odd.
    gate:        channels -> module after the depthwise convolution, such as `layers.convolution.SqueezeExcite`.
    Proven against torchvision's blocks of MobileNet v2 and v3.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden_dim: int,
        kernel_size: int = 3,
        stride: int = 1,
        gate: Gate | None = None,
        norm: Norm = nn.BatchNorm2d,
        activation: Callable[[], nn.Module] = nn.ReLU6,
    ) -> None:
        super().__init__()
        require(hidden_dim > 0, "hidden_dim", hidden_dim, "positive")
        wide = partial(ConvNormAct, norm=norm, activation=activation)
        self.in_channels, self.adds = in_channels, stride == 1 and in_channels == out_channels
        self.expand = nn.Identity() if hidden_dim == in_channels else wide(in_channels, hidden_dim, 1)
        self.depthwise = wide(hidden_dim, hidden_dim, kernel_size, stride=stride, groups=hidden_dim)
        self.gate = nn.Identity() if gate is None else gate(hidden_dim)
        self.project = ConvNormAct(hidden_dim, out_channels, 1, norm=norm, activation=None)

    def forward(self, images: Tensor) -> Tensor:
        output = self.project(self.gate(self.depthwise(self.expand(images))))
        return output + images if self.adds else output


class DepthwiseSeparable(nn.Module):
    """A 3x3 depthwise convolution, then a 1x1 one, both with norm and activation: what MobileNet v1 repeats.

    images (b, in_channels, y, x) -> (b, out_channels, ceil(y / stride), ceil(x / stride)).
    Howard et al., "MobileNets", 2017 (arXiv 1704.04861). Proven against timm's and Hugging Face's.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        norm: Norm = nn.BatchNorm2d,
        activation: Callable[[], nn.Module] = nn.ReLU6,
    ) -> None:
        super().__init__()
        self.depthwise = ConvNormAct(
            in_channels, in_channels, 3, stride=stride, groups=in_channels, norm=norm, activation=activation
        )
        self.pointwise = ConvNormAct(in_channels, out_channels, 1, norm=norm, activation=activation)

    def forward(self, images: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(images))
