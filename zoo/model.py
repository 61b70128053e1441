"""What models of the zoo have in common beside their layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from layers.checks import require, require_axes
from layers.weights import WeightMap
from zoo.pretrained.preprocess import Preprocess


class Model(nn.Module):
    """Abstract: a final model gives its weight map; `zoo.create` and `zoo.load` set `config`."""

    config: dict[str, Any]
    """JSON object with the model's name and arguments, and what a run added ("preprocess", "classes")."""

    @property
    def torchvision(self) -> WeightMap:
        """Our names and torchvision's. Errors: `ValueError` for a model that torchvision has no twin of."""
        raise ValueError(f"{type(self).__name__} has no twin in torchvision")

    @property
    def timm(self) -> WeightMap:
        """Our names and timm's. Errors: `ValueError` for a model that timm has no twin of."""
        raise ValueError(f"{type(self).__name__} has no twin in timm")

    def optimized(self, example: Tensor, dtype: torch.dtype) -> Model | None:
        """What `zoo.optimize` returns, where it is more than a compiled `forward`, such as compiled decoding; else None."""
        return None


class ImageModel(Model):
    """Abstract: images (b, c, y, x) -> logits (b, num_classes), by a stem, stages and a head, which a final model sets."""

    in_channels: int
    smallest_image: int = 1
    """Rows and columns that the least image must have, in pixels."""
    stem: nn.Module
    stages: Any
    """`nn.ModuleList` of modules from images to images."""
    head: nn.Module
    frozen: tuple[str, ...] = ()

    @property
    def preprocess(self) -> Preprocess:
        """Pictures -> images, as the weights expect them. Errors: `ValueError` for a model that was not trained on pictures."""
        if "preprocess" not in self.config:
            raise ValueError("preprocess is known of models that a run has trained, or that were made with weights=..., only")
        return Preprocess.of(self.config["preprocess"])

    def parts(self) -> dict[str, nn.Module]:
        """stem, stage1, stage2, ... in order."""
        return {"stem": self.stem} | {f"stage{n}": stage for n, stage in enumerate(self.stages, start=1)}

    def check(self, images: Tensor, smallest: int) -> None:
        require_axes(images, "images", "batch channels height width", channels=self.in_channels)
        if min(images.shape[-2:]) < smallest:
            raise ValueError(f"images must have at least {smallest} rows and columns, got {tuple(images.shape)}")

    def features(self, images: Tensor) -> list[Tensor]:
        """Output (b, c, y, x) of every stage."""
        self.check(images, self.smallest_image)
        outputs = [self.stem(images)]
        for stage in self.stages:
            outputs.append(stage(outputs[-1]))
        return outputs[1:]

    def forward(self, images: Tensor) -> Any:
        """Of `features`, each is forgotten as soon as the next one is there."""
        self.check(images, self.smallest_image)
        images = self.stem(images)
        for stage in self.stages:
            images = stage(images)
        return self.head(images)

    def freeze(self, parts: Iterable[str]) -> None:
        """Train these parts no further: no gradients, and their batch norms stay in eval mode, whatever `train` says.

        parts: names of `parts()`.
        """
        parts, known = tuple(parts), self.parts()
        for name in parts:
            require(name in known, "freeze", name, f"one of {', '.join(known)}")
            known[name].requires_grad_(False)
        self.frozen = tuple(dict.fromkeys(self.frozen + parts))
        self.train(self.training)

    def train(self, mode: bool = True) -> ImageModel:
        super().train(mode)
        for name in self.frozen:
            self.parts()[name].eval()
        return self


class LinearHead(nn.Module):
    """Dropout and one linear layer on the mean over rows and columns: grid (b, c, y, x) -> logits (b, num_classes)."""

    def __init__(self, channels: int, num_classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        require(num_classes > 0, "num_classes", num_classes, "positive")
        require(0 <= dropout < 1, "dropout", dropout, "a probability below 1")
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(channels, num_classes)

    def forward(self, grid: Tensor) -> Tensor:
        return self.output(self.dropout(grid.mean((-2, -1))))


@torch.no_grad()
def init_he(module: nn.Module) -> None:
    """He's normal law with the fan-out for convolutions, N(0, 0.01^2) for linear layers, zero biases."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
    if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
        nn.init.zeros_(module.bias)
