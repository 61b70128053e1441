"""MobileNets: depthwise convolutions mix pixels, 1x1 convolutions mix channels, an eighth of the work of doing both at once.

v1: Howard et al., 2017 (arXiv 1704.04861), separable convolutions in a row.
v2: Sandler et al., 2018 (arXiv 1801.04381), inverted residuals with linear bottlenecks.
v3: Howard et al., 2019 (arXiv 1905.02244), searched, with squeeze-and-excitation and hard swish.

Proven against torchvision (v2, v3), timm (v1, v2) and Hugging Face (v1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain

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
    model = MobileNet(stem_block, stages, LinearHead(before, num_classes, dropout=dropout))
    model.references = {"timm": v1_of_timm, "huggingface": v1_of_hugging_face}
    return model


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
    model = MobileNet(stem_block, stages, LinearHead(last, num_classes, dropout=dropout))
    model.references = {"torchvision": v2_of_torchvision, "timm": v2_of_timm}
    return model


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
    model = MobileNet(entry(in_channels, first, stem, norm=norm, activation=nn.Hardswish), stages, head)
    model.references = {"torchvision": v3_of_torchvision}  # timm's has another head and another eps
    return model


VARIANTS: dict[str, Callable[..., MobileNet]] = {
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v2": mobilenet_v2,
    "mobilenet_v3_small": partial(mobilenet_v3, SMALL, 1024),  # 11 inverted residuals
    "mobilenet_v3_large": partial(mobilenet_v3, LARGE, 1280),  # 15
}


def unit(ours: str, theirs: str, conv: str, norm: str) -> list[tuple[str, str]]:
    """The two layers of a `ConvNormAct`."""
    return [(f"{ours}.conv", f"{theirs}{conv}"), (f"{ours}.norm", f"{theirs}{norm}")]


def v1_of_timm(model: MobileNet) -> WeightMap:
    ours, theirs = "stages.{s}.{b}", "blocks.{s}.{b}."
    return WeightMap(
        *unit("stem", "", "conv_stem", "bn1"),
        *unit(f"{ours}.depthwise", theirs, "conv_dw", "bn1"),
        *unit(f"{ours}.pointwise", theirs, "conv_pw", "bn2"),
        ("head.output", "classifier"),
    )


def v1_of_hugging_face(model: MobileNet) -> WeightMap:
    """Theirs number all convolutions in one sequence."""
    ours = ["stem", *(f"{name}.{part}" for name in blocks(model) for part in ("depthwise", "pointwise"))]
    theirs = ["conv_stem", *(f"layer.{n}" for n in range(len(ours) - 1))]
    rows = [unit(a, f"mobilenet_v1.{b}.", "convolution", "normalization") for a, b in zip(ours, theirs, strict=True)]
    return WeightMap(*chain(*rows), ("head.output", "classifier"))


def v2_of_timm(model: MobileNet) -> WeightMap:
    """Theirs make a stage of each row of the paper's table."""
    theirs = [f"blocks.{s}.{b}." for s, row in enumerate(chain(*V2)) for b in range(row[2])]
    *ours, last = blocks(model).items()
    rows = [*unit("stem", "", "conv_stem", "bn1"), *unit(last[0], "", "conv_head", "bn2")]
    for (name, block), place in zip(ours, theirs, strict=True):
        layers = layers_of(block)
        convs = ["conv_pw", "conv_dw", "conv_pwl"] if len(layers) == 3 else ["conv_dw", "conv_pw"]
        for n, (layer, conv) in enumerate(zip(layers, convs, strict=True), start=1):
            rows += unit(f"{name}.{layer}", place, conv, f"bn{n}")
    return WeightMap(*rows, ("head.output", "classifier"))


def v2_of_torchvision(model: MobileNet) -> WeightMap:
    """Theirs number all blocks in one sequence and the layers of each in another; the last one's norm counts as a layer."""
    *ours, last = blocks(model).items()
    rows = [*unit("stem", "features.0.", "0", "1"), *unit(last[0], f"features.{len(ours) + 1}.", "0", "1")]
    for n, (name, block) in enumerate(ours, start=1):
        *inner, project = layers_of(block)
        rows += chain(*(unit(f"{name}.{layer}", f"features.{n}.conv.{k}.", "0", "1") for k, layer in enumerate(inner)))
        rows += unit(f"{name}.{project}", f"features.{n}.conv.", f"{len(inner)}", f"{len(inner) + 1}")
    return WeightMap(*rows, ("head.output", "classifier.1"))


def v3_of_torchvision(model: MobileNet) -> WeightMap:
    """Numbered as v2's; each layer has a number, the gate too."""
    *ours, last = blocks(model).items()
    rows = [*unit("stem", "features.0.", "0", "1"), *unit(last[0], f"features.{len(ours) + 1}.", "0", "1")]
    for n, (name, block) in enumerate(ours, start=1):
        for k, layer in enumerate(layers_of(block)):
            place = f"features.{n}.block.{k}."
            if layer == "gate":
                rows += [(f"{name}.gate.down", f"{place}fc1"), (f"{name}.gate.up", f"{place}fc2")]
            else:
                rows += unit(f"{name}.{layer}", place, "0", "1")
    return WeightMap(*rows, ("head.hidden", "classifier.0"), ("head.output", "classifier.3"))


def blocks(model: MobileNet) -> dict[str, nn.Module]:
    return {f"stages.{s}.{b}": block for s, stage in enumerate(model.stages) for b, block in enumerate(stage)}


def layers_of(block: nn.Module) -> list[str]:
    """Names of a block's layers that have weights, in order: expand, depthwise, gate, project."""
    return [name for name, layer in block.named_children() if any(True for _ in layer.parameters())]
