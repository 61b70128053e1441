"""Pictures of a run as PNG files: curves, confusion matrix, wrong predictions, explanations. No display, no global state."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from einops import rearrange, repeat
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from tasks.explain import strongest
from zoo.files import write_bytes


def write(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_bytes(path, buffer.getvalue())


def short(name: str) -> str:
    """A class name that fits beside its neighbours; a dollar is a dollar, not the start of a formula."""
    return (name if len(name) <= 20 else f"{name[:19]}…").replace("$", r"\$")


def curves(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Every metric that rows of metrics.jsonl have as `train_NAME` and `valid_NAME`, over epochs."""
    names = [key.removeprefix("train_") for key in history[0] if key.startswith("train_")]
    figure = Figure(figsize=(5 * len(names), 3.6), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for split, style in (("train", "--"), ("valid", "-")):
            if f"{split}_{name}" in history[0]:
                axes.plot(epochs, [row[f"{split}_{name}"] for row in history], style, marker=".", label=split)
        axes.set(title=name, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(alpha=0.3)
        axes.legend()
    write(figure, path)


def confusion(labels: Tensor, predicted: Tensor, classes: Sequence[str], path: Path) -> None:
    """How often each true class (row) was taken for each class (column); colours are parts of the row, the faint ones lifted."""
    n, names = len(classes), [short(name) for name in classes]
    counts = (labels * n + predicted).bincount(minlength=n * n).reshape(n, n)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    side = max(4.5, min(0.5 * n, 16))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares.numpy(), cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    small = 9 if n <= 20 else 5
    axes.set_xticks(range(n), names, rotation=90 if max(map(len, names)) > 2 else 0, fontsize=small)
    axes.set_yticks(range(n), names, fontsize=small)
    axes.set(xlabel="predicted", ylabel="true", title=f"{(labels == predicted).double().mean():.2%} of {len(labels):,} right")
    if n <= 20:
        for row in range(n):
            for column in range(n):
                if counts[row, column]:
                    colour = "white" if shares[row, column] > 0.25 else "black"
                    axes.text(column, row, str(int(counts[row, column])), ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axes, shrink=0.8, aspect=40, label="part of the true class")
    write(figure, path)


def mistakes(pixels: Tensor, labels: Tensor, probabilities: Tensor, classes: Sequence[str], path: Path, limit: int = 25) -> None:
    """The wrong predictions that the model was surest of, with true class, predicted class and its probability."""
    sure, predicted = probabilities.max(-1)
    wrong = (predicted != labels).nonzero().flatten()
    wrong = wrong[sure[wrong].argsort(descending=True)]
    shown = wrong[:limit]
    columns = min(5, max(1, len(shown)))
    rows = -(-max(1, len(shown)) // columns)
    figure = Figure(figsize=(max(4, 1.8 * columns), 2.2 * rows + 0.5), layout="constrained")
    figure.suptitle(f"{len(wrong)} of {len(labels):,} wrong" + (f", the {limit} surest" if len(wrong) > limit else ""))
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    if not len(shown):
        grid[0].text(0.5, 0.5, "no wrong predictions", ha="center", va="center", color="grey")
    for axes in grid:
        axes.axis("off")
    for axes, i in zip(grid, shown.tolist(), strict=False):
        show(axes, pixels[i])
        axes.set_title(
            f"{short(classes[int(labels[i])])}, taken for\n{short(classes[int(predicted[i])])} ({sure[i]:.0%})",
            fontsize=8,
        )
    write(figure, path)


def show(axes: Axes, pixels: Tensor) -> None:
    """One picture (c, y, x), uint8, grey or in colours."""
    image = pixels.permute(1, 2, 0).numpy()
    axes.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
    axes.axis("off")


def explanations(pixels: Tensor, maps: Tensor, names: Sequence[str], answers: Sequence[str], title: str, path: Path) -> None:
    """A row for each picture (n, c, y, x): itself, and under its map (n, y, x), which is drawn from zero to its own maximum."""
    figure = Figure(figsize=(5.2, 2.7 * len(pixels) + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=10)
    grid = figure.subplots(len(pixels), 2, squeeze=False)
    for row, picture, heat, *texts in zip(grid, pixels, maps, names, answers, strict=True):
        for axes, text in zip(row, texts, strict=True):
            show(axes, picture)
            axes.set_title(text, fontsize=9)
        row[1].imshow(heat.numpy(), cmap="jet", alpha=0.5, vmin=0, vmax=heat.max().item() or 1.0)
    write(figure, path)


def features(pixels: Tensor, filters: Tensor, stages: Sequence[Tensor], path: Path, limit: int = 36) -> None:
    """A picture (c, y, x), the first layer's filters (n, c, y, x), and of every stage (c, y, x) the strongest channels.

    Filters share one scale, on which grey is zero; three channels are drawn as colours, of others the mean. The channels of a
    stage share one too, from the least value to the largest.
    """
    columns = min(3, len(stages) + 2)
    rows = -(-(len(stages) + 2) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    show(grid[0], pixels)
    grid[0].set_title(f"{pixels.shape[1]}x{pixels.shape[2]} pixels", fontsize=9)
    colours = filters if filters.shape[1] == 3 else filters.mean(1, keepdim=True)
    tiles = [(colours / (2 * colours.abs().max().clamp(min=1e-30)) + 0.5)[:limit]]
    names = [f"first filters, {len(tiles[0])} of {len(filters)}"]
    for n, stage in enumerate(stages):
        found = strongest(stage, limit)
        names.append(f"stage {n + 1}, {len(found)} of {len(stage)} channels, {stage.shape[1]}x{stage.shape[2]}")
        low, high = found.min(), found.max()
        tiles.append(((found - low) / (high - low).clamp(min=1e-30))[:, None])
    for axes, tile, name, colour in zip(grid[1:], tiles, names, ["gray", *["viridis"] * len(stages)], strict=False):
        axes.imshow(mosaic(tile).numpy(), cmap=colour, vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(name, fontsize=9)
    for axes in grid:
        axes.axis("off")
    write(figure, path)


def mosaic(tiles: Tensor) -> Tensor:
    """(n, c, y, x) in a square, row by row: a picture (rows, columns) of one channel, (rows, columns, 3) of three."""
    side, grow = math.ceil(math.sqrt(len(tiles))), math.ceil(16 / min(tiles.shape[-2:]))
    large = repeat(tiles, "n c y x -> n c (y g) (x h)", g=grow, h=grow)
    between = 1.0 if tiles.shape[1] == 3 else math.nan  # white, both
    padded = F.pad(large, (0, 2, 0, 2, 0, 0, 0, side * side - len(tiles)), value=between)
    return rearrange(padded, "(r k) c y x -> (r y) (k x) c", r=side)[:-2, :-2].squeeze(-1)


def attention(weights: Tensor, source: Sequence[str], target: Sequence[str], path: Path) -> None:
    """Weights (target, source) between 0 and 1: a row for each token that was written, a column for each that was read."""
    figure = Figure(figsize=(2 + 0.35 * len(source), 1.5 + 0.35 * len(target)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(weights.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(source)), [short(token) for token in source], rotation=90)
    axes.set_yticks(range(len(target)), [short(token) for token in target])
    axes.set(xlabel="source", ylabel="written")
    write(figure, path)
