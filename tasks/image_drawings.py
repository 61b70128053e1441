"""Pictures that `predict` draws: why a model answers as it does, and what its layers make of a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tasks import plots
from tasks.explain import class_activation, first_filters
from tasks.names import short
from zoo import Preprocess


def draw_explanations(
    model: Any,
    context: AbstractContextManager[Any],
    preprocess: Preprocess,
    pixels: Tensor,
    answers: Sequence[Mapping[str, Any]],
    path: Path,
) -> None:
    """A row for each of `pixels` (n, c, y, x): itself, and under the map of its likeliest class, as `answers` say.

    Model and context: as `tasks.saved.placed` has them.
    """
    device, drawn = next(model.parameters()).device, []
    for part in pixels.split(8):  # each takes gradients of all that the model computes
        with context:
            maps, stage, stages = class_activation(model, preprocess.normalise(part).to(device))
        rows, columns = maps.shape[1:]
        drawn.append(F.interpolate(maps[:, None].float().cpu(), size=pixels.shape[-2:], mode="bilinear")[:, 0])
    title = f"what speaks for the class, as stage {stage + 1} of {stages} sees it ({rows}x{columns})"
    said = [f"{short(row['class'])}, {row['probability']:.1%}" for row in answers]
    names = [Path(row["file"]).name for row in answers]
    for note in plots.explanations(pixels, torch.cat(drawn), names, said, title, path):
        print(note)


def draw_features(model: Any, context: AbstractContextManager[Any], preprocess: Preprocess, pixels: Tensor, path: Path) -> None:
    """Of one picture (c, y, x)."""
    device = next(model.parameters()).device
    with torch.inference_mode(), context:
        stages = [stage[0].float().cpu() for stage in model.features(preprocess.normalise(pixels[None]).to(device))]
    plots.features(pixels, first_filters(model).cpu(), stages, path)
