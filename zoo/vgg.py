"""VGG: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2014 (arXiv 1409.1556).

Five stages of 3x3 convolutions, each closed by a 2x2 max pool that halves the image; three linear layers on top. Two 3x3 layers
see what one 5x5 sees, with fewer weights and one more ReLU: that is the paper's idea. Proven against torchvision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from layers.checks import require
from layers.convolution import ConvStack
from layers.weights import WeightMap
from zoo.model import ImageModel, LinearHead, init_he

DEPTHS = {"A": (1, 1, 2, 2, 2), "B": (2, 2, 2, 2, 2), "D": (2, 2, 3, 3, 3), "E": (2, 2, 4, 4, 4)}
"""Convolutions in each stage; the letters are the columns of the paper's table 1."""
WIDTHS = (64, 128, 256, 512, 512)


class VGG(ImageModel):
    """images (b, c, y, x) -> logits (b, num_classes).

    depths: convolutions in each stage.
    head:   module from the last stage's (b, widths[-1], y / 32, x / 32) to the logits: `ImageNetHead` or `LinearHead`.
    norm:   channels -> module after every convolution, or None as in the paper. Convolutions keep their bias, as in torchvision.
    init:   "torchvision" (He, fan-out) or "paper" (zero mean, variance 0.01, section 3.1).
    Errors: `ValueError` for other channels, or an image below 32 pixels, which five pools would halve to nothing.
    """

    def __init__(
        self,
        depths: Sequence[int],
        head: nn.Module,
        *,
        in_channels: int = 3,
        widths: Sequence[int] = WIDTHS,
        norm: Callable[[int], nn.Module] | None = None,
        init: str = "torchvision",
    ) -> None:
        super().__init__()
        require(len(depths) == len(widths), "depths", tuple(depths), f"as many as the {len(widths)} widths")
        require(init in INITS, "init", init, f"one of {', '.join(INITS)}")
        self.in_channels, self.depths, self.normed = in_channels, tuple(depths), norm is not None
        self.smallest_image = 2 ** len(depths)
        channels = [in_channels, *widths]
        self.stem = nn.Identity()
        self.stages = nn.ModuleList(
            ConvStack(i, o, depth, norm=norm, bias=True, pool=nn.MaxPool2d(2))
            for i, o, depth in zip(channels, widths, depths, strict=False)
        )
        self.head = head
        self.references = {name: partial(names, head=rows) for name, rows in HEAD_NAMES.get(type(head), {}).items()}
        self.apply(INITS[init])


class ImageNetHead(nn.Module):
    """The paper's three linear layers on a 7x7 grid, which an adaptive pool provides for every image size, as in torchvision."""

    def __init__(self, channels: int, num_classes: int, *, hidden_dim: int = 4096, dropout: float = 0.5) -> None:
        super().__init__()
        require(num_classes > 0, "num_classes", num_classes, "positive")
        require(0 <= dropout < 1, "dropout", dropout, "a probability below 1")
        self.pool = nn.AdaptiveAvgPool2d(7)
        self.hidden1 = nn.Linear(channels * 7 * 7, hidden_dim)
        self.hidden2 = nn.Linear(hidden_dim, hidden_dim)
        self.output = nn.Linear(hidden_dim, num_classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, grid: Tensor) -> Tensor:
        x = self.pool(grid).flatten(1)
        x = self.dropout(self.hidden1(x).relu())
        x = self.dropout(self.hidden2(x).relu())
        return self.output(x)


@torch.no_grad()
def init_paper(module: nn.Module) -> None:
    """Zero mean, variance 10^-2, zero biases. The paper trains A this way and starts the deeper nets from A's layers."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.normal_(module.weight, std=0.1)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


INITS = {"torchvision": init_he, "paper": init_paper}
HEADS: dict[str, Callable[..., nn.Module]] = {"imagenet": ImageNetHead, "small": LinearHead}


def build(
    depths: Sequence[int],
    norm: Callable[[int], nn.Module] | None,
    num_classes: int = 1000,
    in_channels: int = 3,
    head: str = "imagenet",
    dropout: float | None = None,
    init: str = "torchvision",
) -> VGG:
    """The options of all variants; `head` is "imagenet" or "small", `dropout` None means the head's own default."""
    require(head in HEADS, "head", head, f"one of {', '.join(HEADS)}")
    options: dict[str, Any] = {} if dropout is None else {"dropout": dropout}
    return VGG(depths, HEADS[head](WIDTHS[-1], num_classes, **options), in_channels=in_channels, norm=norm, init=init)


VARIANTS: dict[str, Callable[..., VGG]] = {
    "vgg11": partial(build, DEPTHS["A"], None),  # 8 convolutions
    "vgg11_bn": partial(build, DEPTHS["A"], nn.BatchNorm2d),
    "vgg13": partial(build, DEPTHS["B"], None),  # 10
    "vgg13_bn": partial(build, DEPTHS["B"], nn.BatchNorm2d),
    "vgg16": partial(build, DEPTHS["D"], None),  # 13
    "vgg16_bn": partial(build, DEPTHS["D"], nn.BatchNorm2d),
    "vgg19": partial(build, DEPTHS["E"], None),  # 16
    "vgg19_bn": partial(build, DEPTHS["E"], nn.BatchNorm2d),
}
"""Those of the paper by their depths, and with batch norm. Options are those of `build`."""


def names(model: VGG, head: Sequence[Sequence[Any]]) -> WeightMap:
    """Our names and those of torchvision and timm, which number all layers of all stages in one sequence."""
    rows, n = [], 0
    for s, depth in enumerate(model.depths):
        for c in range(depth):
            rows.append((f"stages.{s}.convs.{c}.conv", f"features.{n}"))
            if model.normed:
                rows.append((f"stages.{s}.convs.{c}.norm", f"features.{n + 1}"))
            n += 3 if model.normed else 2
        n += 1  # the pool
    return WeightMap(*rows, *head)


HEAD_NAMES: dict[type, dict[str, list[tuple]]] = {
    ImageNetHead: {
        "torchvision": [("head.hidden1", "classifier.0"), ("head.hidden2", "classifier.3"), ("head.output", "classifier.6")],
        "timm": [  # whose hidden layers are convolutions
            ("head.hidden1.weight", "pre_logits.fc1.weight", "o (c y x) -> o c y x", dict(y=7, x=7)),
            ("head.hidden1.bias", "pre_logits.fc1.bias"),
            ("head.hidden2.weight", "pre_logits.fc2.weight", "o i -> o i 1 1"),
            ("head.hidden2.bias", "pre_logits.fc2.bias"),
            ("head.output", "head.fc"),
        ],
    },
    LinearHead: {"torchvision": [("head.output", "classifier")]},
}
"""By the kind of head: reference -> rows of the weight map for it."""
