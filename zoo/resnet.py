"""ResNet: He et al., "Deep Residual Learning for Image Recognition", 2015 (arXiv 1512.03385), and its relatives.

A stem, then stages of residual blocks; the first block of every stage but the first halves the image and widens. ResNeXt (Xie et
al., 2016, arXiv 1611.05431) splits the 3x3 convolutions of the bottlenecks into groups, Wide ResNet (Zagoruyko and Komodakis,
2016, arXiv 1605.07146) gives them twice the channels. Proven against torchvision, timm and Hugging Face.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn

from layers.checks import require
from layers.convolution import ConvNormAct, SqueezeExcite
from layers.residual import PaddedShortcut, Residual, basic_block, bottleneck
from layers.weights import WeightMap
from zoo.model import ImageModel, LinearHead, References, init_he


class ResNet(ImageModel):
    """images (b, c, y, x) -> logits (b, num_classes).

    block:  (in_channels, out_channels, stride=...) -> module, such as `layers.residual.basic_block` or `bottleneck`.
    depths: blocks in each stage.
    widths: channels that each stage puts out.
    stem:   module from the images to (b, stem_channels, y', x'): `imagenet_stem` or `small_stem`.
    head:   module from the last stage to the logits.
    zero_init: start each block's last norm at zero, so that it starts as its shortcut (Goyal et al., 2017, arXiv 1706.02677).
    Errors: `ValueError` for other channels. In training, torch refuses a batch of one value per channel.
    """

    def __init__(
        self,
        block: Callable[..., nn.Module],
        depths: Sequence[int],
        widths: Sequence[int],
        stem: nn.Module,
        head: nn.Module,
        *,
        in_channels: int = 3,
        stem_channels: int = 64,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        self.references = REFERENCES
        require(len(depths) == len(widths), "depths", tuple(depths), f"as many as the {len(widths)} widths")
        require(min(depths) > 0, "depths", tuple(depths), "positive")
        self.in_channels, self.stem, self.head = in_channels, stem, head
        self.stages = nn.ModuleList()
        for n, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            first = block(stem_channels if n == 0 else widths[n - 1], width, stride=1 if n == 0 else 2)
            self.stages.append(nn.Sequential(first, *(block(width, width, stride=1) for _ in range(depth - 1))))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init_he(module)
            elif zero_init and isinstance(module, Residual):
                *_, last = (m for m in module.body.modules() if isinstance(m, ConvNormAct))
                nn.init.constant_(last.norm.get_parameter("weight"), 0)


def names_of_torchvision(model: ResNet) -> WeightMap:
    """Our names and torchvision's, which are timm's too, squeeze-and-excitation included."""
    rows = [("stem.0.conv", "conv1"), ("stem.0.norm", "bn1"), ("head.output", "fc")]
    for s, stage in enumerate(model.stages):
        for b, block in enumerate(stage):
            rows += [(f"stages.{s}.{b}.{ours}", f"layer{s + 1}.{b}.{theirs}") for ours, theirs in names(block)]
    return WeightMap(*rows)


def names_of_hugging_face(model: ResNet) -> WeightMap:
    """Our names and those of `transformers.ResNetForImageClassification`."""
    layer = "resnet.encoder.stages.{s}.layers.{b}"
    return WeightMap(
        ("stem.0.conv", "resnet.embedder.embedder.convolution"),
        ("stem.0.norm", "resnet.embedder.embedder.normalization"),
        ("stages.{s}.{b}.body.{n}.conv", f"{layer}.layer.{{n}}.convolution"),
        ("stages.{s}.{b}.body.{n}.norm", f"{layer}.layer.{{n}}.normalization"),
        ("stages.{s}.{b}.shortcut.conv", f"{layer}.shortcut.convolution"),
        ("stages.{s}.{b}.shortcut.norm", f"{layer}.shortcut.normalization"),
        ("head.output", "classifier.1"),
    )


REFERENCES: References = {
    "torchvision": names_of_torchvision,
    "timm": names_of_torchvision,
    "huggingface": names_of_hugging_face,
}


def names(block: Any) -> list[tuple[str, str]]:
    """Our names and torchvision's within a block, whatever its body has between the convolutions."""
    rows, convs = [], 0
    for n, module in enumerate(block.body):
        if isinstance(module, ConvNormAct):
            convs += 1
            rows += [(f"body.{n}.conv", f"conv{convs}"), (f"body.{n}.norm", f"bn{convs}")]
        elif isinstance(module, SqueezeExcite):
            rows += [(f"body.{n}.down", "se.fc1"), (f"body.{n}.up", "se.fc2")]
    if isinstance(block.shortcut, ConvNormAct):
        rows += [("shortcut.conv", "downsample.0"), ("shortcut.norm", "downsample.1")]
    return rows


def imagenet_stem(in_channels: int = 3, channels: int = 64) -> nn.Sequential:
    """A strided 7x7 convolution and a strided 3x3 max pool: a quarter of the image's rows and columns."""
    return nn.Sequential(ConvNormAct(in_channels, channels, 7, stride=2), nn.MaxPool2d(3, stride=2, padding=1))


def small_stem(in_channels: int = 3, channels: int = 64) -> nn.Sequential:
    """A 3x3 convolution that keeps the size: for images as small as CIFAR's."""
    return nn.Sequential(ConvNormAct(in_channels, channels, 3))


STEMS = {"imagenet": imagenet_stem, "small": small_stem}
WIDTHS = (64, 128, 256, 512)


def build(
    block: Callable[..., nn.Module],
    depths: Sequence[int],
    expansion: int,
    references: Sequence[str],
    num_classes: int = 1000,
    in_channels: int = 3,
    stem: str = "imagenet",
    dropout: float = 0.0,
    zero_init: bool = False,
) -> ResNet:
    """The options of all variants for ImageNet; `stem` is "imagenet" or "small". Stages put out `expansion` times `WIDTHS`."""
    require(stem in STEMS, "stem", stem, f"one of {', '.join(STEMS)}")
    widths = [expansion * width for width in WIDTHS]
    head = LinearHead(widths[-1], num_classes, dropout=dropout)
    model = ResNet(block, depths, widths, STEMS[stem](in_channels), head, in_channels=in_channels, zero_init=zero_init)
    model.references = {name: REFERENCES[name] for name in references}
    return model


def deep(in_channels: int, out_channels: int, stride: int, *, groups: int = 1, width: int = 64) -> Residual:
    """A bottleneck that computes with ``groups * width / 64`` times the channels of ResNet's."""
    hidden_dim = out_channels // 4 * width // 64 * groups
    return bottleneck(in_channels, out_channels, stride=stride, hidden_dim=hidden_dim, groups=groups)


def cifar(depth: int, num_classes: int = 10, in_channels: int = 3, dropout: float = 0.0, zero_init: bool = False) -> ResNet:
    """Section 4.2 of the paper: 16, 32 and 64 channels, (depth - 2) / 6 basic blocks each, shortcuts without parameters."""
    widths, head = (16, 32, 64), LinearHead(64, num_classes, dropout=dropout)
    model = ResNet(
        partial(basic_block, shortcut=PaddedShortcut),
        [(depth - 2) // 6] * 3,
        widths,
        small_stem(in_channels, 16),
        head,
        in_channels=in_channels,
        stem_channels=16,
        zero_init=zero_init,
    )
    model.references = {"torchvision": names_of_torchvision}
    return model


PLAIN, WIDE = ("torchvision", "timm", "huggingface"), ("torchvision", "timm")
VARIANTS: dict[str, Callable[..., ResNet]] = {
    "resnet18": partial(build, basic_block, (2, 2, 2, 2), 1, PLAIN),
    "resnet34": partial(build, basic_block, (3, 4, 6, 3), 1, PLAIN),
    "resnet50": partial(build, bottleneck, (3, 4, 6, 3), 4, PLAIN),
    "resnet101": partial(build, bottleneck, (3, 4, 23, 3), 4, PLAIN),
    "resnet152": partial(build, bottleneck, (3, 8, 36, 3), 4, PLAIN),
    "resnext50_32x4d": partial(build, partial(deep, groups=32, width=4), (3, 4, 6, 3), 4, WIDE),  # 32 groups of 4 channels
    "resnext101_32x8d": partial(build, partial(deep, groups=32, width=8), (3, 4, 23, 3), 4, WIDE),
    "resnext101_64x4d": partial(build, partial(deep, groups=64, width=4), (3, 4, 23, 3), 4, WIDE),
    "wide_resnet50_2": partial(build, partial(deep, width=128), (3, 4, 6, 3), 4, WIDE),  # bottlenecks twice as wide
    "wide_resnet101_2": partial(build, partial(deep, width=128), (3, 4, 23, 3), 4, WIDE),
    "resnet20": partial(cifar, 20),  # for CIFAR's images, with 0.27 million parameters
    "resnet32": partial(cifar, 32),  # 0.46
    "resnet44": partial(cifar, 44),  # 0.66
    "resnet56": partial(cifar, 56),  # 0.85
    "resnet110": partial(cifar, 110),  # 1.7
}
"""Blocks and depths by name. Options are those of `build`, of the nets for CIFAR those of `cifar`."""
