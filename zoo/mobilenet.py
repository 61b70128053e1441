"""MobileNets: depthwise convolutions mix pixels, 1x1 convolutions mix channels, an eighth of the work of doing both at once.

v1: Howard et al., 2017 (arXiv 1704.04861), separable convolutions in a row.
v2: Sandler et al., 2018 (arXiv 1801.04381), inverted residuals with linear bottlenecks.
v3: Howard et al., 2019 (arXiv 1905.02244), searched, with squeeze-and-excitation and hard swish.

Proven against torchvision (v2, v3), timm (v1, v2) and Hugging Face (v1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from layers.checks import require
from layers.convolution import ConvNormAct, SqueezeExcite, hard_sigmoid
from layers.residual import DepthwiseSeparable, InvertedResidual
from layers.weights import WeightMap
from zoo.model import ImageModel, LinearHead, init_he


class MobileNet(ImageModel):
    """images (b, c, y, x) -> logits (b, num_classes), by a `ConvNormAct`, stages of blocks and a head.

    stages: blocks of each stage, `DepthwiseSeparable`, `InvertedResidual` or `ConvNormAct`; a stage works on one size of image.
    Errors: `ValueError` for other channels. In training, torch refuses a batch of one value per channel.
    """

    def __init__(self, stem: ConvNormAct, stages: Sequence[Sequence[nn.Module]], head: nn.Module) -> None:
        super().__init__()
        self.in_channels, self.stem, self.head = stem.in_channels, stem, head
        self.stages = nn.ModuleList(nn.Sequential(*blocks) for blocks in stages)
        self.apply(init_he)

    @property
    def torchvision(self) -> WeightMap:
        """Our names and torchvision's, which number all blocks in one sequence and the layers of each in another."""
        deep = isinstance(self.head, HiddenHead)
        if isinstance(self.stages[0][0], DepthwiseSeparable):
            return super().torchvision
        rows = unit("stem", "features.0")
        blocks = [(f"stages.{s}.{b}", block) for s, stage in enumerate(self.stages) for b, block in enumerate(stage)]
        for n, (name, block) in enumerate(blocks, start=1):
            if isinstance(block, ConvNormAct):
                rows += unit(name, f"features.{n}")
                continue
            theirs, k = f"features.{n}.{'block' if deep else 'conv'}", 0
            for part in ("expand", "depthwise", "gate", "project"):
                layer = getattr(block, part)
                if isinstance(layer, SqueezeExcite):
                    rows += [(f"{name}.gate.down", f"{theirs}.{k}.fc1"), (f"{name}.gate.up", f"{theirs}.{k}.fc2")]
                elif part == "project" and not deep:  # v2 leaves the last convolution and its norm in the open
                    rows += [(f"{name}.project.conv", f"{theirs}.{k}"), (f"{name}.project.norm", f"{theirs}.{k + 1}")]
                elif isinstance(layer, ConvNormAct):
                    rows += unit(f"{name}.{part}", f"{theirs}.{k}")
                k += not isinstance(layer, nn.Identity)
        if deep:
            return WeightMap(*rows, ("head.hidden", "classifier.0"), ("head.output", "classifier.3"))
        return WeightMap(*rows, ("head.output", "classifier.1"))

    @property
    def timm(self) -> WeightMap:
        """Our names and timm's, of v1 and v2."""
        if isinstance(self.head, HiddenHead):
            raise ValueError("MobileNet v3 has no twin in timm: its head and eps differ")
        separable = isinstance(self.stages[0][0], DepthwiseSeparable)
        depths = [len(stage) for stage in self.stages] if separable else [row[2] for rows in V2 for row in rows]
        places = iter([f"blocks.{s}.{b}" for s, depth in enumerate(depths) for b in range(depth)])
        rows = [("stem.conv", "conv_stem"), ("stem.norm", "bn1"), ("head.output", "classifier")]
        for s, stage in enumerate(self.stages):
            for b, block in enumerate(stage):
                ours = f"stages.{s}.{b}"
                if isinstance(block, ConvNormAct):
                    rows += [(f"{ours}.conv", "conv_head"), (f"{ours}.norm", "bn2")]
                    continue
                theirs = next(places)
                parts = [name for name, part in block.named_children() if isinstance(part, ConvNormAct)]
                for k, part in enumerate(parts, start=1):
                    conv = "conv_pw" if len(parts) == 2 and k == 2 else TIMM[part]
                    rows += [(f"{ours}.{part}.conv", f"{theirs}.{conv}"), (f"{ours}.{part}.norm", f"{theirs}.bn{k}")]
        return WeightMap(*rows)


TIMM = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl"}


def unit(ours: str, theirs: str) -> list[tuple[str, str]]:
    """A `ConvNormAct` of ours and a `Conv2dNormActivation` of torchvision."""
    return [(f"{ours}.conv", f"{theirs}.0"), (f"{ours}.norm", f"{theirs}.1")]


class HiddenHead(nn.Module):
    """Of v3: a hidden layer between the mean over rows and columns and the logits (b, num_classes)."""

    def __init__(self, channels: int, hidden_dim: int, num_classes: int, *, dropout: float = 0.2) -> None:
        super().__init__()
        require(num_classes > 0, "num_classes", num_classes, "positive")
        require(0 <= dropout < 1, "dropout", dropout, "a probability below 1")
        self.hidden = nn.Linear(channels, hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden_dim, num_classes)

    def forward(self, grid: Tensor) -> Tensor:
        return self.output(self.dropout(F.hardswish(self.hidden(grid.mean((-2, -1))))))


def rounded(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of the divisor, but not less than nine tenths of the channels, and not less than the divisor."""
    nearest = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * channels else nearest


def entry(in_channels: int, channels: int, stem: str, **options) -> ConvNormAct:
    require(stem in STRIDES, "stem", stem, f"one of {', '.join(STRIDES)}")
    return ConvNormAct(in_channels, channels, 3, stride=STRIDES[stem], **options)


STRIDES = {"imagenet": 2, "small": 1}


def mobilenet_v1(
    num_classes: int = 1000,
    in_channels: int = 3,
    width: float = 1.0,
    dropout: float = 0.001,
    stem: str = "imagenet",
    eps: float = 1e-5,
) -> MobileNet:
    """13 separable convolutions. `eps` is that of the norms: timm's 1e-5, or 1e-3 as in TensorFlow and Hugging Face.

    Options of this and all below:

    width: factor to the channels of every layer; v2 and v3 round to multiples of 8, v1 rounds down, to 8 at least.
    stem:  "imagenet" halves the image, "small" keeps it, for images such as CIFAR's.
    """
    require(width > 0, "width", width, "positive")
    norm = partial(nn.BatchNorm2d, eps=eps)

    def scaled(channels: int) -> int:
        return max(8, int(channels * width))

    stages, before = [], scaled(32)
    for channels, depth, stride in ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2)):
        blocks = []
        for n in range(depth):
            blocks.append(DepthwiseSeparable(before, scaled(channels), stride=stride if n == 0 else 1, norm=norm))
            before = scaled(channels)
        stages.append(blocks)
    stem_block = entry(in_channels, scaled(32), stem, norm=norm, activation=nn.ReLU6)
    return MobileNet(stem_block, stages, LinearHead(before, num_classes, dropout=dropout))


V2 = (
    ((1, 16, 1, 1),),
    ((6, 24, 2, 2),),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2), (6, 320, 1, 1)),
)
"""(expansion, channels, blocks, stride of the first) by stages: table 2 of the paper."""


def mobilenet_v2(
    num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, dropout: float = 0.2, stem: str = "imagenet"
) -> MobileNet:
    """17 inverted residuals, and a 1x1 convolution to 1,280 channels."""
    require(width > 0, "width", width, "positive")
    stages, before = [], rounded(32 * width)
    for rows in V2:
        blocks: list[nn.Module] = []
        for expansion, channels, depth, stride in rows:
            for n in range(depth):
                after = rounded(channels * width)
                options = dict(hidden_dim=before * expansion, stride=stride if n == 0 else 1)
                blocks.append(InvertedResidual(before, after, **options))
                before = after
        stages.append(blocks)
    last = rounded(1280 * max(1.0, width))
    stages[-1].append(ConvNormAct(before, last, 1, activation=nn.ReLU6))
    stem_block = entry(in_channels, rounded(32 * width), stem, activation=nn.ReLU6)
    return MobileNet(stem_block, stages, LinearHead(last, num_classes, dropout=dropout))


# kernel, hidden channels, channels, squeeze-and-excitation, hard swish, stride: tables 1 and 2 of the paper, in stages
LARGE = (
    ((3, 16, 16, 0, 0, 1),),
    ((3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1)),
    ((5, 72, 40, 1, 0, 2), (5, 120, 40, 1, 0, 1), (5, 120, 40, 1, 0, 1)),
    (
        (3, 240, 80, 0, 1, 2), (3, 200, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1),
        (3, 480, 112, 1, 1, 1), (3, 672, 112, 1, 1, 1),
    ),
    ((5, 672, 160, 1, 1, 2), (5, 960, 160, 1, 1, 1), (5, 960, 160, 1, 1, 1)),
)  # fmt: skip
SMALL = (
    ((3, 16, 16, 1, 0, 2),),
    ((3, 72, 24, 0, 0, 2), (3, 88, 24, 0, 0, 1)),
    (
        (5, 96, 40, 1, 1, 2), (5, 240, 40, 1, 1, 1), (5, 240, 40, 1, 1, 1),
        (5, 120, 48, 1, 1, 1), (5, 144, 48, 1, 1, 1),
    ),
    ((5, 288, 96, 1, 1, 2), (5, 576, 96, 1, 1, 1), (5, 576, 96, 1, 1, 1)),
)  # fmt: skip


def mobilenet_v3(
    table: Sequence[Sequence[Sequence[int]]],
    last: int,
    num_classes: int = 1000,
    in_channels: int = 3,
    width: float = 1.0,
    dropout: float = 0.2,
    stem: str = "imagenet",
) -> MobileNet:
    """Of any table; `last` is the width of the head's hidden layer."""
    require(width > 0, "width", width, "positive")
    norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)

    def gate(channels: int) -> SqueezeExcite:
        return SqueezeExcite(channels, rounded(channels // 4), gate=hard_sigmoid)

    stages, first = [], rounded(16 * width)
    before = first
    for rows in table:
        blocks: list[nn.Module] = []
        for kernel, hidden, channels, excited, swish, stride in rows:
            activation: Callable[[], nn.Module] = nn.Hardswish if swish else nn.ReLU
            after, options = rounded(channels * width), dict(hidden_dim=rounded(hidden * width), kernel_size=kernel)
            blocks.append(
                InvertedResidual(
                    before, after, stride=stride, gate=gate if excited else None, norm=norm, activation=activation, **options
                )
            )
            before = after
        stages.append(blocks)
    stages[-1].append(ConvNormAct(before, 6 * before, 1, norm=norm, activation=nn.Hardswish))
    head = HiddenHead(6 * before, rounded(last * width), num_classes, dropout=dropout)
    return MobileNet(entry(in_channels, first, stem, norm=norm, activation=nn.Hardswish), stages, head)


def mobilenet_v3_large(**options) -> MobileNet:
    """15 inverted residuals."""
    return mobilenet_v3(LARGE, 1280, **options)


def mobilenet_v3_small(**options) -> MobileNet:
    """11 inverted residuals."""
    return mobilenet_v3(SMALL, 1024, **options)


VARIANTS = (mobilenet_v1, mobilenet_v2, mobilenet_v3_small, mobilenet_v3_large)
