"""The U-Net of DDPM: Ho et al., "Denoising Diffusion Probabilistic Models", 2020 (arXiv 2006.11239).

Down, level by level, each half the size of the one before; through the middle; and up again, where every block also gets what a
block of the same size gave on the way down. Proven against `UNet2DModel` of diffusers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from layers.checks import require
from layers.conditioning import ClassEmbedding, SinusoidalTime, TimeEmbedding
from layers.unet import Downsample, PixelAttention, TimeResidual, Upsample, group_norm, zeroed
from layers.weights import WeightMap
from zoo.model import DiffusionModel


class Block(nn.Module):
    """images (b, c, y, x), time (b, time_dim) -> (b, c', y, x): a residual, and an attention where there is one."""

    def __init__(self, residual: TimeResidual, attention: PixelAttention | None) -> None:
        super().__init__()
        self.residual, self.attention = residual, nn.Identity() if attention is None else attention

    def forward(self, images: Tensor, time: Tensor) -> Tensor:
        return self.attention(self.residual(images, time))


class Level(nn.Module):
    """Blocks of one size, then a module to the size of the next level, if there is one."""

    def __init__(self, blocks: Sequence[Block], resample: nn.Module | None = None) -> None:
        super().__init__()
        self.blocks, self.resample = nn.ModuleList(blocks), nn.Identity() if resample is None else resample


class UNet(DiffusionModel):
    """images (b, in_channels, y, x), times (b,), classes (b,) -> what is predicted of the images, (b, out_channels, y, x).

    widths:     channels of each level. depth: blocks of a level on the way down; on the way up there is one more.
    attention:  for each level, whether its blocks attend over pixels; the middle does.
    head_dim:   channels of a head of these attentions; None for a single head.
    sines:      of the time, `SinusoidalTime`, that of DDPM unless given; the layers after it are 4 widths[0] wide.
    classes:    how many there are, None for a network that knows none; class_dropout: of `ClassEmbedding`.
    groups, eps: of the group norms. dropout: within the residuals.
    patch_size: square of pixels that counts as one with more channels, on the way in and out.
    pad_end:    of `Downsample`.
    Rows and columns of images are multiples of patch_size * 2^(levels - 1). The last layers of residuals and attentions, and of
    the network, start at zero, as in the authors' code.
    Errors: `ValueError` for images of other sizes, other channels, unknown classes, and classes of a network that knows none.
    """

    down: Any
    up: Any

    def __init__(
        self,
        widths: Sequence[int],
        depth: int,
        attention: Sequence[bool],
        *,
        in_channels: int = 3,
        out_channels: int | None = None,
        head_dim: int | None = None,
        sines: SinusoidalTime | None = None,
        classes: int | None = None,
        class_dropout: float = 0.1,
        groups: int = 32,
        dropout: float = 0.0,
        eps: float = 1e-6,
        patch_size: int = 1,
        pad_end: bool = False,
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        require(len(widths) > 0 and min(widths) > 0, "widths", tuple(widths), "positive, of one level at least")
        require(len(attention) == len(widths), "attention", tuple(attention), f"as many as the {len(widths)} widths")
        require(depth > 0, "depth", depth, "positive")
        require(in_channels > 0, "in_channels", in_channels, "positive")
        require(out_channels > 0, "out_channels", out_channels, "positive")
        require(patch_size > 0, "patch_size", patch_size, "positive")
        require(head_dim is None or head_dim > 0, "head_dim", head_dim, "positive")
        attending = [width for width, attends in zip(widths, attention, strict=True) if attends] + [widths[-1]]
        if head_dim and any(width % head_dim for width in attending):
            raise ValueError(f"head_dim must divide the channels {attending} of the levels that attend, got {head_dim}")
        self.references = {"diffusers": names_of_diffusers}
        self.in_channels, self.out_channels, self.patch_size = in_channels, out_channels, patch_size
        self.multiple = patch_size * 2 ** (len(widths) - 1)
        dim, pixels = 4 * widths[0], patch_size**2

        def block(before: int, width: int, attends: bool) -> Block:
            residual = TimeResidual(before, width, dim, groups=groups, dropout=dropout, eps=eps)
            heads = width // (head_dim or width)
            return Block(residual, PixelAttention(width, heads, groups=groups, eps=eps) if attends else None)

        self.time = TimeEmbedding(SinusoidalTime(widths[0]) if sines is None else sines, dim)
        self.class_embedding = None if classes is None else ClassEmbedding(classes, dim, dropout=class_dropout)
        self.stem = nn.Conv2d(in_channels * pixels, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        before, skipped, last = widths[0], [widths[0]], len(widths) - 1
        for n, (width, attends) in enumerate(zip(widths, attention, strict=True)):
            blocks = [block(before if b == 0 else width, width, attends) for b in range(depth)]
            self.down.append(Level(blocks, Downsample(width, pad_end=pad_end) if n < last else None))
            skipped += [width] * (depth + (n < last))
            before = width
        self.middle = Level([block(before, before, True), block(before, before, False)])
        for n, (width, attends) in reversed([*enumerate(zip(widths, attention, strict=True))]):
            blocks = [block((before if b == 0 else width) + skipped.pop(), width, attends) for b in range(depth + 1)]
            self.up.append(Level(blocks, Upsample(width) if n > 0 else None))
            before = width
        self.norm = group_norm(widths[0], groups, eps)
        self.output = zeroed(nn.Conv2d(widths[0], out_channels * pixels, 3, padding=1))

    def predict(self, images: Tensor, condition: Tensor) -> Tensor:
        p = self.patch_size  # torch's pixel_unshuffle knows no empty batch
        x = self.stem(images if p == 1 else rearrange(images, "b c (y p) (x q) -> b (c p q) y x", p=p, q=p))
        skipped = [x]
        for level in self.down:
            for block in level.blocks:
                x = block(x, condition)
                skipped.append(x)
            if not isinstance(level.resample, nn.Identity):
                x = level.resample(x)
                skipped.append(x)
        for block in self.middle.blocks:
            x = block(x, condition)
        for level in self.up:
            for block in level.blocks:
                x = block(torch.cat([x, skipped.pop()], 1), condition)
            x = level.resample(x)
        x = self.output(F.silu(self.norm(x)))
        return x if p == 1 else rearrange(x, "b (c p q) y x -> b c (y p) (x q)", p=p, q=p)


def names_of_diffusers(model: UNet) -> WeightMap:
    """Our names and those of `UNet2DModel`, of a network with patches those of the one within."""
    residual = [(name, name) for name in ("norm1", "conv1", "norm2", "conv2")]
    residual += [("time", "time_emb_proj"), ("shortcut", "conv_shortcut")]
    attention = [("norm", "group_norm"), ("attention.query", "to_q"), ("attention.key", "to_k")]
    attention += [("attention.value", "to_v"), ("attention.output", "to_out.0")]
    rows = [
        ("stem", "conv_in"),
        ("time.up", "time_embedding.linear_1"),
        ("time.down", "time_embedding.linear_2"),
        ("class_embedding.table", "class_embedding"),
        ("norm", "conv_norm_out"),
        ("output", "conv_out"),
        ("down.{l}.resample", "down_blocks.{l}.downsamplers.0"),
        ("up.{l}.resample", "up_blocks.{l}.upsamplers.0"),
    ]
    for ours, theirs in (("down.{l}", "down_blocks.{l}"), ("middle", "mid_block"), ("up.{l}", "up_blocks.{l}")):
        rows += [(f"{ours}.blocks.{{b}}.residual.{x}", f"{theirs}.resnets.{{b}}.{y}") for x, y in residual]
        rows += [(f"{ours}.blocks.{{b}}.attention.{x}", f"{theirs}.attentions.{{b}}.{y}") for x, y in attention]
    return WeightMap(*rows)


def build(
    network: Callable[..., UNet],
    sines: Callable[..., SinusoidalTime],
    in_channels: int = 3,
    classes: int | None = None,
    class_dropout: float = 0.1,
    dropout: float = 0.0,
    time_scale: float = 1.0,
) -> UNet:
    """The options of all variants. time_scale: factor of the times, 1000 for times from 0 to 1."""
    return network(
        in_channels=in_channels,
        sines=sines(scale=time_scale),
        classes=classes,
        class_dropout=class_dropout,
        dropout=dropout,
    )


SMALL = partial(UNet, (32, 64), 2, (False, True), head_dim=32, groups=8, eps=1e-5)
DDPM = partial(UNet, (128, 256, 256, 256), 2, (False, True, False, False), pad_end=True)
SINES = partial(SinusoidalTime, 32, cosines_first=True, frequency_shift=0.0)

VARIANTS: dict[str, Callable[..., UNet]] = {
    "unet_small": partial(build, SMALL, SINES),  # for 8 pixels: 1.0 million parameters
    "unet_medium": partial(build, partial(SMALL, patch_size=2), SINES),  # the same for 28 pixels, in patches of 2
    "unet_ddpm": partial(build, DDPM, partial(SinusoidalTime, 128), dropout=0.1),  # the paper's for CIFAR-10: 35.7 million
}
"""Widths, depths and attention by name. Options are those of `build`."""
