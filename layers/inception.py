"""Inception blocks: several convolutions of different sizes look at the same image, and their channels are put side by side.

    inception_v1    1x1 | 1x1, 3x3 | 1x1, 5x5 | pool, 1x1                                  Szegedy et al., 2014 (arXiv 1409.4842)
    inception_a     1x1 | 1x1, 5x5 | 1x1, 3x3, 3x3 | pool, 1x1                             Szegedy et al., 2015 (arXiv 1512.00567)
    inception_b     3x3 / 2 | 1x1, 3x3, 3x3 / 2 | pool / 2                                 halves the image
    inception_c     1x1 | 1x1, 1x7, 7x1 | 1x1, 7x1, 1x7, 7x1, 1x7 | pool, 1x1
    inception_d     1x1, 3x3 / 2 | 1x1, 1x7, 7x1, 3x3 / 2 | pool / 2                       halves the image
    inception_e     1x1 | 1x1, (1x3 | 3x1) | 1x1, 3x3, (1x3 | 3x1) | pool, 1x1

All are `Branches`, images (b, in_channels, y, x) -> (b, sum of the branches' channels, y', x'). Their `conv` makes one unit:
(in_channels, out_channels, kernel_size, stride=..., padding=...) -> module. Proven against torchvision's blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from layers.checks import require, require_axes
from layers.convolution import ConvNormAct

conv_unit = partial(ConvNormAct, norm=partial(nn.BatchNorm2d, eps=1e-3))
"""Inception's unit: its batch norms add 0.001 to the variance, as in TensorFlow."""

Conv = Callable[..., nn.Module]


class Branches(nn.Module):
    """Every branch on the same images (b, c, y, x), their outputs joined along the channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        require(len(branches) > 0, "branches", len(branches), "one module or more")
        self.branches = nn.ModuleList(branches)

    def forward(self, images: Tensor) -> Tensor:
        require_axes(images, "images", "batch channels height width")
        return torch.cat([branch(images) for branch in self.branches], 1)


def inception_v1(
    in_channels: int,
    one: int,
    three: tuple[int, int],
    five: tuple[int, int],
    pool: int,
    *,
    kernel_size: int = 3,
    conv: Conv = conv_unit,
) -> Branches:
    """GoogLeNet's: the columns of the paper's table 1, pairs being the 1x1 convolution in front and the large one.

    kernel_size: of the branch `five`. The paper has 5; 3 is an old slip of torchvision's that its weights were trained with
                 (pytorch/vision issue 906).
    """
    return Branches(
        conv(in_channels, one, 1),
        nn.Sequential(conv(in_channels, three[0], 1), conv(three[0], three[1], 3)),
        nn.Sequential(conv(in_channels, five[0], 1), conv(five[0], five[1], kernel_size)),
        nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1, ceil_mode=True), conv(in_channels, pool, 1)),
    )


def pooled(in_channels: int, channels: int, conv: Conv) -> nn.Sequential:
    return nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1), conv(in_channels, channels, 1))


def inception_a(in_channels: int, pool: int, *, conv: Conv = conv_unit) -> Branches:
    """35x35 in Inception v3; 224 channels and `pool` more."""
    return Branches(
        conv(in_channels, 64, 1),
        nn.Sequential(conv(in_channels, 48, 1), conv(48, 64, 5)),
        nn.Sequential(conv(in_channels, 64, 1), conv(64, 96, 3), conv(96, 96, 3)),
        pooled(in_channels, pool, conv),
    )


def inception_b(in_channels: int, *, conv: Conv = conv_unit) -> Branches:
    """To 17x17 in Inception v3; 480 channels and its input's."""
    return Branches(
        conv(in_channels, 384, 3, stride=2, padding=0),
        nn.Sequential(conv(in_channels, 64, 1), conv(64, 96, 3), conv(96, 96, 3, stride=2, padding=0)),
        nn.MaxPool2d(3, stride=2),
    )


def inception_c(in_channels: int, hidden_dim: int, *, conv: Conv = conv_unit) -> Branches:
    """17x17 in Inception v3, 768 channels; a 7x7 convolution as a row and a column of 7."""
    row, column = (1, 7), (7, 1)
    return Branches(
        conv(in_channels, 192, 1),
        nn.Sequential(conv(in_channels, hidden_dim, 1), conv(hidden_dim, hidden_dim, row), conv(hidden_dim, 192, column)),
        nn.Sequential(
            conv(in_channels, hidden_dim, 1),
            conv(hidden_dim, hidden_dim, column),
            conv(hidden_dim, hidden_dim, row),
            conv(hidden_dim, hidden_dim, column),
            conv(hidden_dim, 192, row),
        ),
        pooled(in_channels, 192, conv),
    )


def inception_d(in_channels: int, *, conv: Conv = conv_unit) -> Branches:
    """To 8x8 in Inception v3; 512 channels and its input's."""
    return Branches(
        nn.Sequential(conv(in_channels, 192, 1), conv(192, 320, 3, stride=2, padding=0)),
        nn.Sequential(
            conv(in_channels, 192, 1),
            conv(192, 192, (1, 7)),
            conv(192, 192, (7, 1)),
            conv(192, 192, 3, stride=2, padding=0),
        ),
        nn.MaxPool2d(3, stride=2),
    )


def inception_e(in_channels: int, *, conv: Conv = conv_unit) -> Branches:
    """8x8 in Inception v3, 2,048 channels; a 3x3 convolution as a row beside a column of 3."""

    def cross(channels: int) -> Branches:
        return Branches(conv(channels, 384, (1, 3)), conv(channels, 384, (3, 1)))

    return Branches(
        conv(in_channels, 320, 1),
        nn.Sequential(conv(in_channels, 384, 1), cross(384)),
        nn.Sequential(conv(in_channels, 448, 1), conv(448, 384, 3), cross(384)),
        pooled(in_channels, 192, conv),
    )
