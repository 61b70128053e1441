"""Pictures of a run as PNG files: learning curves, confusion matrix, wrong predictions. No display, no global state."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

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
    """Every metric that rows of metrics.jsonl have as `train_NAME` and `test_NAME`, over epochs."""
    names = [key.removeprefix("train_") for key in history[0] if key.startswith("train_")]
    figure = Figure(figsize=(5 * len(names), 3.6), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for split, style in (("train", "--"), ("test", "-")):
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
        image = pixels[i].permute(1, 2, 0).numpy()
        axes.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
        axes.set_title(
            f"{short(classes[int(labels[i])])}, taken for\n{short(classes[int(predicted[i])])} ({sure[i]:.0%})",
            fontsize=8,
        )
    write(figure, path)


def attention(weights: Tensor, source: Sequence[str], target: Sequence[str], path: Path) -> None:
    """Weights (target, source) between 0 and 1: a row for each token that was written, a column for each that was read."""
    figure = Figure(figsize=(2 + 0.35 * len(source), 1.5 + 0.35 * len(target)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(weights.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(source)), [short(token) for token in source], rotation=90)
    axes.set_yticks(range(len(target)), [short(token) for token in target])
    axes.set(xlabel="source", ylabel="written")
    write(figure, path)
