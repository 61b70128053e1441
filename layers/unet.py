"""Blocks of the U-Net that predicts noise: residuals that are told the time, attention over pixels, half and twice the size.

    residual:   shortcut(x) + conv(drop(silu(norm(conv(silu(norm(x))) + linear(silu(time))))))
    attention:  x + attention(norm(x)), every pixel a token

Ho et al., "Denoising Diffusion Probabilistic Models", 2020 (arXiv 2006.11239). All norms are group norms (Wu and He, 2018, arXiv
1803.08494). Axes: b batch, c channels, y rows, x columns.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from layers.attention import MultiHeadAttention
from layers.checks import require, require_axes


def group_norm(channels: int, groups: int, eps: float) -> nn.GroupNorm:
    """Errors: `ValueError` unless the groups divide the channels."""
    require(groups > 0, "groups", groups, "positive")
    require(channels > 0 and channels % groups == 0, "channels", channels, f"a positive multiple of the {groups} groups")
    return nn.GroupNorm(groups, channels, eps)


class TimeResidual(nn.Module):
    """images (b, in_channels, y, x), time (b, time_dim) -> (b, out_channels, y, x): two 3x3 convolutions, the time between.

    time_dim:    None for a block that is told no time, as in autoencoders.
    groups, eps: of the norms, which come before the convolutions; the last convolution starts at zero.
    dropout:     before the last convolution.
    The shortcut is a 1x1 convolution where the channels differ. Proven against `ResnetBlock2D` of diffusers.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_dim: int | None = None,
        *,
        groups: int = 32,
        dropout: float = 0.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        require(time_dim is None or time_dim > 0, "time_dim", time_dim, "positive, or None")
        require(0 <= dropout < 1, "dropout", dropout, "a probability below 1")
        self.in_channels, self.time_dim = in_channels, time_dim
        self.norm1, self.norm2 = group_norm(in_channels, groups, eps), group_norm(out_channels, groups, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time = None if time_dim is None else nn.Linear(time_dim, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, images: Tensor, time: Tensor | None = None) -> Tensor:
        require_axes(images, "images", "batch channels height width", channels=self.in_channels)
        require_time(time, self.time_dim, images.shape[0])
        hidden = self.conv1(F.silu(self.norm1(images)))
        if time is not None and self.time is not None:
            hidden = hidden + self.time(F.silu(time))[..., None, None]
        return self.shortcut(images) + self.conv2(self.dropout(F.silu(self.norm2(hidden))))


def require_time(time: Tensor | None, time_dim: int | None, batch: int) -> None:
    """Raise `ValueError` unless there is a time (batch, time_dim), or none where time_dim is None."""
    if (time is None) != (time_dim is None):
        right = "None" if time_dim is None else f"given, of {time_dim} features"
        raise ValueError(f"time must be {right}, as time_dim says, got {None if time is None else tuple(time.shape)}")
    if time is not None and time_dim is not None:
        require_axes(time, "time", "batch time_dim", batch=batch, time_dim=time_dim)


class PixelAttention(nn.Module):
    """images (b, channels, y, x) -> the same shape: every pixel attends to all pixels, or to a context (b, k, context_dim).

    heads:       divide the channels. context_dim: features of the context, without which there is none.
    groups, eps: of the norm, which the context does not get; the last layer starts at zero.
    Proven against `Attention` of diffusers, as its U-Nets use it.
    """

    def __init__(
        self, channels: int, heads: int = 1, *, context_dim: int | None = None, groups: int = 32, eps: float = 1e-6
    ) -> None:
        super().__init__()
        require(context_dim is None or context_dim > 0, "context_dim", context_dim, "positive")
        self.channels, self.context_dim = channels, context_dim
        self.norm = group_norm(channels, groups, eps)
        self.attention = MultiHeadAttention(channels, heads, key_dim=context_dim)
        zeroed(self.attention.output)

    def forward(self, images: Tensor, context: Tensor | None = None) -> Tensor:
        require_axes(images, "images", "batch channels height width", channels=self.channels)
        if (context is None) != (self.context_dim is None):
            right = "None" if self.context_dim is None else f"given, of {self.context_dim} features"
            raise ValueError(
                f"context must be {right}, as context_dim says, got {None if context is None else tuple(context.shape)}"
            )
        if context is not None:
            require_axes(context, "context", "batch keys context_dim", batch=images.shape[0], context_dim=self.context_dim or 0)
        pixels = rearrange(self.norm(images), "b c y x -> b (y x) c")
        found = self.attention(pixels, context)
        return images + rearrange(found, "b (y x) c -> b c y x", y=images.shape[2])


class Downsample(nn.Module):
    """A 3x3 convolution at every second pixel: images (b, channels, y, x) -> (b, channels, ceil(y / 2), ceil(x / 2)).

    pad_end: zeros after the last row and column only, as in the code of DDPM, which makes it floor(y / 2), floor(x / 2).
    Proven against `Downsample2D` of diffusers.
    """

    def __init__(self, channels: int, *, pad_end: bool = False) -> None:
        super().__init__()
        require(channels > 0, "channels", channels, "positive")
        self.channels, self.pad_end = channels, pad_end
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if pad_end else 1)

    def forward(self, images: Tensor) -> Tensor:
        require_axes(images, "images", "batch channels height width", channels=self.channels)
        return self.conv(F.pad(images, (0, 1, 0, 1)) if self.pad_end else images)


class Upsample(nn.Module):
    """Every pixel four times, then a 3x3 convolution: images (b, channels, y, x) -> (b, channels, 2 y, 2 x).

    Proven against `Upsample2D` of diffusers.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        require(channels > 0, "channels", channels, "positive")
        self.channels = channels
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        require_axes(images, "images", "batch channels height width", channels=self.channels)
        return self.conv(F.interpolate(images, scale_factor=2.0, mode="nearest"))


def zeroed(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """The layer, with weights and biases of zero."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    return layer
