"""What every model of the zoo has beside its layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from layers.weights import WeightMap


class Model(nn.Module):
    """Abstract: a final model sets `smallest_image` and gives its weight map; `zoo.create` and `zoo.load` set `config`."""

    config: dict[str, Any]
    """JSON object with the model's name and arguments, and what a run added ("preprocess", "classes")."""
    smallest_image: int
    """Rows and columns that the least image must have, in pixels."""

    @property
    def torchvision(self) -> WeightMap:
        """Our names and torchvision's."""
        raise AttributeError(f"{type(self).__name__} has no twin in torchvision")
