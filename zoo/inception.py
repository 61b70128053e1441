"""Inception: GoogLeNet, Szegedy et al., "Going Deeper with Convolutions", 2014 (arXiv 1409.4842), and Inception v3, "Rethinking
the Inception Architecture for Computer Vision", 2015 (arXiv 1512.00567). Proven against torchvision.

In training, auxiliary heads on earlier stages predict too; their losses count with a small weight, so that gradients reach the
first layers. As in torchvision, GoogLeNet has batch norms, which came after its paper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from layers.checks import require
from layers.convolution import ConvNormAct
from layers.inception import conv_unit, inception_a, inception_b, inception_c, inception_d, inception_e, inception_v1
from layers.weights import WeightMap
from zoo.model import ImageModel, LinearHead


class Inception(ImageModel):
    """images (b, c, y, x) -> logits (b, num_classes); in training with auxiliary heads, a tuple: the main ones, then theirs.

    stages:    modules of each stage.
    auxiliary: number of a stage, from 0 -> module from its output to logits.
    auxiliary_weight: what their losses count for, where the main one counts for 1.
    smallest_image, smallest_auxiliary: rows and columns, in pixels, that the stages and the auxiliary heads need.
    Errors:    `ValueError` for other channels or a smaller image.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[Sequence[nn.Module]],
        head: nn.Module,
        auxiliary: Mapping[int, nn.Module],
        *,
        in_channels: int,
        auxiliary_weight: float,
        smallest_image: int,
        smallest_auxiliary: int,
    ) -> None:
        super().__init__()
        self.in_channels, self.auxiliary_weight = in_channels, auxiliary_weight
        self.smallest_image, self.smallest_auxiliary = smallest_image, smallest_auxiliary
        self.stem = stem
        self.stages = nn.ModuleList(nn.Sequential(*modules) for modules in stages)
        self.auxiliary = nn.ModuleDict({str(stage): module for stage, module in auxiliary.items()})
        self.head = head

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.all_logits(images) if self.training and self.auxiliary else super().forward(images)

    def all_logits(self, images: Tensor) -> tuple[Tensor, ...]:
        """The main logits, then those of the auxiliary heads, in any mode."""
        self.check(images, self.smallest_training_image)
        images, logits = self.stem(images), []
        for n, stage in enumerate(self.stages):
            images = stage(images)
            if str(n) in self.auxiliary:
                logits.append(self.auxiliary[str(n)](images))  # at once: later, more of the net would be in memory beside it
        return self.head(images), *logits


def names(model: Inception, units: Sequence[str], linears: Mapping[str, str]) -> WeightMap:
    """Our names and those of torchvision and timm.

    units:   their names of the `ConvNormAct`s, in the order of our modules.
    linears: our names of the linear layers -> theirs.
    """
    ours = [name for name, module in model.named_modules() if isinstance(module, ConvNormAct)]
    rows = [(f"{a}.{part}", f"{b}.{theirs}") for a, b in zip(ours, units, strict=True) for part, theirs in PARTS]
    return WeightMap(*rows, *linears.items())


PARTS = (("conv", "conv"), ("norm", "bn"))


class Renormalize(nn.Module):
    """Images normalised with ImageNet's means and deviations -> with 0.5 and 0.5, which Google's weights were trained with."""

    MEANS, DEVIATIONS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def forward(self, images: Tensor) -> Tensor:
        values = zip(images.unbind(1), self.MEANS, self.DEVIATIONS, strict=True)
        return torch.stack([x * (deviation / 0.5) + (mean - 0.5) / 0.5 for x, mean, deviation in values], 1)


class AuxiliaryHead(nn.Module):
    """Of GoogLeNet: grid (b, c, y, x) -> mean over a 4x4 grid, 1x1 convolution, hidden layer -> logits (b, num_classes)."""

    def __init__(self, conv: nn.Module, channels: int, hidden_dim: int, num_classes: int, *, dropout: float = 0.7) -> None:
        super().__init__()
        self.pool, self.conv = nn.AdaptiveAvgPool2d(4), conv
        self.hidden = nn.Linear(channels * 4 * 4, hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden_dim, num_classes)

    def forward(self, grid: Tensor) -> Tensor:
        x = self.conv(self.pool(grid)).flatten(1)
        return self.output(self.dropout(self.hidden(x).relu()))


@torch.no_grad()
def init_truncated(module: nn.Module, std: float) -> None:
    """Normal, cut off at two deviations (torchvision cuts at two, which cuts nothing); linear layers keep torch's biases."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)


def scaled(width: float, step: int) -> tuple[Callable[[int], int], Callable[..., nn.Module]]:
    """channels -> channels * width, and `conv_unit` with all its channels scaled so."""
    require(width > 0 and width * step == int(width * step), "width", width, f"a positive multiple of 1/{step}")

    def scale(channels: int) -> int:
        return int(channels * width)

    def conv(in_channels: int, out_channels: int, kernel_size, **options) -> nn.Module:
        return conv_unit(scale(in_channels), scale(out_channels), kernel_size, **options)

    return scale, conv


def entry(transform_input: bool, in_channels: int) -> nn.Module:
    require(in_channels == 3 or not transform_input, "transform_input", transform_input, f"False for {in_channels} channels")
    return Renormalize() if transform_input else nn.Identity()


def listed(prefix: str, blocks: Mapping[str, str]) -> list[str]:
    return [f"{prefix}{block}.{unit}" for block, units in blocks.items() for unit in units.split()]


V1 = "branch1 branch2.0 branch2.1 branch3.0 branch3.1 branch4.1"


def googlenet(
    num_classes: int = 1000,
    in_channels: int = 3,
    width: float = 1.0,
    dropout: float = 0.2,
    auxiliary: bool = True,
    dropout_auxiliary: float = 0.7,
    transform_input: bool = False,
    kernel_size: int = 3,
) -> Inception:
    """Nine blocks in five stages, auxiliary heads on the second and third; 15 pixels at least.

    width:           factor to the channels of every layer, a multiple of 1/8.
    auxiliary:       with auxiliary heads, whose losses count 0.3 each, as in the paper.
    transform_input: as torchvision's pretrained weights expect it; see `Renormalize`.
    kernel_size:     of the third branch; see `layers.inception.inception_v1`.
    """
    scale, conv = scaled(width, 8)
    block = partial(inception_v1, conv=conv, kernel_size=kernel_size)

    def pool(size: int = 3) -> nn.Module:
        return nn.MaxPool2d(size, stride=2, ceil_mode=True)

    stem = nn.Sequential(
        entry(transform_input, in_channels), conv_unit(in_channels, scale(64), 7, stride=2), pool(),
        conv(64, 64, 1), conv(64, 192, 3), pool(),
    )  # fmt: skip
    stages = [
        [block(192, 64, (96, 128), (16, 32), 32), block(256, 128, (128, 192), (32, 96), 64)],
        [pool(), block(480, 192, (96, 208), (16, 48), 64)],
        [
            block(512, 160, (112, 224), (24, 64), 64),
            block(512, 128, (128, 256), (24, 64), 64),
            block(512, 112, (144, 288), (32, 64), 64),
        ],
        [block(528, 256, (160, 320), (32, 128), 128)],
        [pool(2), block(832, 256, (160, 320), (32, 128), 128), block(832, 384, (192, 384), (48, 128), 128)],
    ]
    heads = {
        stage: AuxiliaryHead(conv(channels, 128, 1), scale(128), 1024, num_classes, dropout=dropout_auxiliary)
        for stage, channels in ((1, 512), (2, 528))
        if auxiliary
    }
    model = Inception(
        stem, stages, LinearHead(scale(1024), num_classes, dropout=dropout), heads,
        in_channels=in_channels, auxiliary_weight=0.3, smallest_image=15, smallest_auxiliary=15,
    )  # fmt: skip
    linears = {f"auxiliary.{n}.{a}": f"aux{n}.{b}" for n in heads for a, b in (("hidden", "fc1"), ("output", "fc2"))}
    units = [
        "conv1", "conv2", "conv3",
        *listed("inception", dict.fromkeys(("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"), V1)),
        *(f"aux{n}.conv" for n in heads),
    ]  # fmt: skip
    model.references = {"torchvision": partial(names, units=units, linears={"head.output": "fc", **linears})}  # timm has none
    model.output_layers = ("head.output", *(f"auxiliary.{n}.output" for n in heads))
    return model.apply(partial(init_truncated, std=0.01))


A = "branch1x1 branch5x5_1 branch5x5_2 branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3 branch_pool"
B = "branch3x3 branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3"
C = (
    "branch1x1 branch7x7_1 branch7x7_2 branch7x7_3 "
    "branch7x7dbl_1 branch7x7dbl_2 branch7x7dbl_3 branch7x7dbl_4 branch7x7dbl_5 branch_pool"
)
D = "branch3x3_1 branch3x3_2 branch7x7x3_1 branch7x7x3_2 branch7x7x3_3 branch7x7x3_4"
E = (
    "branch1x1 branch3x3_1 branch3x3_2a branch3x3_2b "
    "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3a branch3x3dbl_3b branch_pool"
)  # fmt: skip
V3 = {"5b": A, "5c": A, "5d": A, "6a": B, "6b": C, "6c": C, "6d": C, "6e": C, "7a": D, "7b": E, "7c": E}
"""torchvision's names of the blocks and, in our order, of their units."""


def inception_v3(
    num_classes: int = 1000,
    in_channels: int = 3,
    width: float = 1.0,
    dropout: float = 0.5,
    auxiliary: bool = True,
    transform_input: bool = False,
) -> Inception:
    """Eleven blocks in three stages, an auxiliary head on the second; 75 pixels at least, in training with that head 299.

    width:           factor to the channels of every layer, a multiple of 1/16.
    auxiliary:       with the auxiliary head, whose loss counts 0.4.
    transform_input: as torchvision's pretrained weights expect it; see `Renormalize`.
    """
    scale, conv = scaled(width, 16)
    stem = nn.Sequential(
        entry(transform_input, in_channels),
        conv_unit(in_channels, scale(32), 3, stride=2, padding=0),
        conv(32, 32, 3, padding=0), conv(32, 64, 3), nn.MaxPool2d(3, stride=2),
        conv(64, 80, 1), conv(80, 192, 3, padding=0), nn.MaxPool2d(3, stride=2),
    )  # fmt: skip
    stages = [
        [inception_a(192, 32, conv=conv), inception_a(256, 64, conv=conv), inception_a(288, 64, conv=conv)],
        [inception_b(288, conv=conv), *(inception_c(768, hidden, conv=conv) for hidden in (128, 160, 160, 192))],
        [inception_d(768, conv=conv), inception_e(1280, conv=conv), inception_e(2048, conv=conv)],
    ]
    large, last = conv(128, 768, 5, padding=0), LinearHead(scale(768), num_classes)
    side = nn.Sequential(nn.AvgPool2d(5, stride=3), conv(768, 128, 1), large, last)
    model = Inception(
        stem, stages, LinearHead(scale(2048), num_classes, dropout=dropout), {1: side} if auxiliary else {},
        in_channels=in_channels, auxiliary_weight=0.4, smallest_image=75, smallest_auxiliary=299 if auxiliary else 0,
    ).apply(partial(init_truncated, std=0.1))  # fmt: skip
    units = [
        "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3",
        *listed("Mixed_", V3), *(["AuxLogits.conv0", "AuxLogits.conv1"] if auxiliary else []),
    ]  # fmt: skip
    linears = {"head.output": "fc", **({"auxiliary.1.3.output": "AuxLogits.fc"} if auxiliary else {})}
    model.references = dict.fromkeys(("torchvision", "timm"), partial(names, units=units, linears=linears))
    model.output_layers = tuple(linears)
    large.apply(partial(init_truncated, std=0.01))
    last.apply(partial(init_truncated, std=0.001))
    return model


VARIANTS: dict[str, Callable[..., Inception]] = {"googlenet": googlenet, "inception_v3": inception_v3}
