"""Pictures of a run as PNG files: curves, confusion matrix, wrong predictions, explanations. No display, no global state.

Every function that draws returns notes for the user: what no font on this machine has, and what to install.
"""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from einops import rearrange, repeat
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.nn import functional as F

from tasks import fonts
from tasks.explain import strongest
from tasks.names import plain, shortened, width
from tasks.task import Metric
from zoo.files import write_bytes

LINES = {"train": "C0.--", "valid": "C1.-", "train, no smoothing": "C0x:"}
"""Colour, marker and style, in matplotlib's words."""
MATRIX = 40
"""Classes above which a matrix is too fine to read."""


def write(figure: Figure, path: Path) -> list[str]:
    FigureCanvasAgg(figure)
    notes = fonts.prepare(figure)
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # of glyphs that no font has, which the notes say in one line
        warnings.filterwarnings("ignore", r"Glyph \d+|Matplotlib currently does not support", UserWarning)
        figure.savefig(buffer, format="png", dpi=120)
    write_bytes(path, buffer.getvalue())
    return notes


def legible(names: Sequence[str]) -> list[str]:
    """Names that fit beside their neighbours; one that has characters which no font has is told by its number."""
    _, lacking = fonts.find(fonts.needed("".join(names)))
    told = shortened([f"{n} {name}" if lacking.intersection(name) else name for n, name in enumerate(names)])
    return [fonts.isolated(name) for name in told]


def title(figure: Figure, *lines: str) -> None:
    """Above the whole figure, each line broken where it is wider."""
    wide = int(figure.get_figwidth() * 12)
    figure.suptitle("\n".join(textwrap.fill(plain(line), wide) for line in lines if line), fontsize=10)


def curves(history: Sequence[Mapping[str, Any]], path: Path, primary: Metric) -> list[str]:
    """The metric that chooses the model, the loss, then all others, over epochs; a dotted line is where the best epoch is.

    history: rows of metrics.jsonl: `epoch`, and `train_NAME` and `valid_NAME`, of which either may be missing. The loss without
             label smoothing, `train_plain_loss`, is drawn beside the loss.
    """
    keys = [key for row in history for key in row if key.startswith(("train_", "valid_"))]
    found = dict.fromkeys(key.partition("_")[2] for key in keys)
    names = [name for name in dict.fromkeys([primary.name, "loss", *found]) if name in found and name != "plain_loss"]
    rows = math.ceil(len(names) / 4)
    columns = math.ceil(len(names) / rows)
    figure = Figure(figsize=(4.4 * columns, 3.5 * rows + 0.3), layout=ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08))
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    key = f"valid_{primary.name}"
    ranked = [row for row in history if key in row and "valid_loss" in row]
    best = max(ranked, key=lambda row: primary.rank(row, "valid_"), default=None)
    if best is not None:
        title(figure, f"best epoch {best['epoch']}: {'lowest' if primary.lower_is_better else 'highest'} {key}, {best[key]:.4g}")
    for axes, name in zip(grid, names, strict=False):
        panel(axes, name, history)
        if best is not None:
            axes.axvline(best["epoch"], color="0.4", linestyle=":", linewidth=1, label="_best")
    for axes in grid[len(names) :]:
        axes.axis("off")
    return write(figure, path)


def panel(axes: Axes, name: str, history: Sequence[Mapping[str, Any]]) -> None:
    """One metric over epochs; what is not finite is a gap, and counted."""
    keys = [f"train_{name}", f"valid_{name}", *(["train_plain_loss"] if name == "loss" else [])]
    strange = 0
    for (label, style), key in zip(LINES.items(), keys, strict=False):
        points = {row["epoch"]: float(row[key]) for row in history if key in row}
        if points:
            finite = [value if math.isfinite(value) else math.nan for value in points.values()]
            axes.plot([*points], finite, style, label=label)
            strange += sum(map(math.isnan, finite))
    if strange:
        axes.text(0.5, 0.02, f"{strange} not finite", transform=axes.transAxes, ha="center", color="C3", fontsize=9)
    axes.set(title=name, xlabel="epoch", xlim=(history[0]["epoch"] - 0.5, history[-1]["epoch"] + 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)


def confusion(labels: Tensor, predicted: Tensor, classes: Sequence[str], path: Path, model: str = "") -> list[str]:
    """How often each true class was taken for each class: a matrix, of more than 40 classes the largest confusions.

    model: what predicted on what, such as "best.safetensors of runs/a, epoch 7, on 360 test images".
    """
    n = len(classes)
    counts = (labels * n + predicted).bincount(minlength=n * n).reshape(n, n)
    figure = (matrix if n <= MATRIX else largest)(counts, legible(classes))
    right = int((labels == predicted).sum())
    title(figure, model, f"{right / max(1, len(labels)):.2%} of {len(labels):,} right")
    return write(figure, path)


def matrix(counts: Tensor, names: Sequence[str]) -> Figure:
    """True classes in rows, predicted ones in columns; colours are parts of the row, the faint ones lifted."""
    n, shares = len(names), counts / counts.sum(1, keepdim=True).clamp(min=1)
    side = max(4, min(0.5 * n, max(10, 0.3 * n))) + 0.07 * max(map(width, names))
    figure = Figure(figsize=(side + 1, side + 0.3), layout="compressed")
    axes = figure.subplots()
    image = axes.imshow(shares.numpy(), cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    small = 9 if n <= 20 else 7
    axes.set_xticks(range(n), names, rotation=90 if max(map(len, names)) > 2 else 0, fontsize=small)
    axes.set_yticks(range(n), names, fontsize=small)
    axes.set(xlabel="predicted", ylabel="true")
    if n <= 20:
        for row, column in counts.nonzero().tolist():
            colour = "white" if shares[row, column] > 0.25 else "black"
            axes.text(column, row, str(int(counts[row, column])), ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axes, shrink=0.8, aspect=40, label="part of the true class")
    return figure


def largest(counts: Tensor, names: Sequence[str], limit: int = 30) -> Figure:
    """The largest confusions as bars: how often, and which part of the true class that is."""
    wrong = counts.clone().fill_diagonal_(0).flatten()
    order = wrong.argsort(descending=True, stable=True)[:limit]
    times = wrong[order][wrong[order] > 0].tolist()
    pairs = [divmod(i, len(names)) for i in order[: len(times)].tolist()]
    figure = Figure(figsize=(8, 1.4 + 0.24 * max(len(times), 4)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(range(len(times)), times, color="C0")
    totals = [int(counts[true].sum()) for true, _ in pairs]
    axes.bar_label(bars, [f" {k} of {n}, {k / n:.0%}" for k, n in zip(times, totals, strict=True)], fontsize=8)
    axes.set_yticks(range(len(times)), [f"{names[t]} → {names[p]}" for t, p in pairs], fontsize=8)
    axes.set(xlabel="how often", xlim=(0, 1.25 * max(times, default=1)))
    axes.set_title(f"the {len(times)} largest of {int((wrong > 0).sum())} confusions: true → predicted", fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(max(len(times), 4) - 0.5, -0.5)
    return figure


def mistakes(
    pixels: Any,
    labels: Tensor,
    probabilities: Tensor,
    classes: Sequence[str],
    path: Path,
    limit: int = 25,
    names: Sequence[str] | None = None,
) -> list[str]:
    """The wrong predictions that the model was surest of: true class, predicted class, its probability, the picture's name.

    pixels: whatever gives a picture (c, y, x) for its number. names: of the pictures' files, if there are files.
    """
    sure, predicted = probabilities.max(-1)
    wrong = (predicted != labels).nonzero().flatten()
    wrong = wrong[sure[wrong].argsort(descending=True, stable=True)]
    drawn = wrong[:limit].tolist()
    columns = min(5, max(1, len(drawn)))
    rows = -(-max(1, len(drawn)) // columns)
    figure = Figure(figsize=(max(4, 2.1 * columns), (2.7 if names else 2.5) * rows + 0.5), layout="constrained")
    title(figure, f"{len(wrong)} of {len(labels):,} wrong" + (f", the {limit} surest" if len(wrong) > limit else ""))
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    if not drawn:
        grid[0].text(0.5, 0.5, "no wrong predictions", ha="center", va="center", color="grey")
    said = legible(classes)
    captions = shortened([names[i] for i in drawn], 28) if names else [""] * len(drawn)
    for axes in grid:
        axes.axis("off")
    for axes, i, caption in zip(grid, drawn, captions, strict=False):
        show(axes, pixels[i])
        words = f"{said[int(labels[i])]}, taken for\n{said[int(predicted[i])]} ({sure[i]:.0%})\n{caption}"
        axes.set_title(words.rstrip("\n"), fontsize=8)
    return write(figure, path)


def show(axes: Axes, pixels: Tensor) -> None:
    """One picture (c, y, x), uint8, grey or in colours."""
    image = pixels.permute(1, 2, 0).numpy()
    axes.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
    axes.axis("off")


def explanations(pixels: Tensor, maps: Tensor, names: Sequence[str], answers: Sequence[str], title: str, path: Path) -> list[str]:
    """A row for each picture (n, c, y, x): itself, and under its map (n, y, x), which is drawn from zero to its own maximum."""
    figure = Figure(figsize=(5.2, 2.7 * len(pixels) + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=10)
    grid = figure.subplots(len(pixels), 2, squeeze=False)
    for row, picture, heat, *texts in zip(grid, pixels, maps, shortened(names, 28), shortened(answers, 28), strict=True):
        for axes, text in zip(row, texts, strict=True):
            show(axes, picture)
            axes.set_title(text, fontsize=9)
        row[1].imshow(heat.numpy(), cmap="jet", alpha=0.5, vmin=0, vmax=heat.max().item() or 1.0)
    return write(figure, path)


def features(pixels: Tensor, filters: Tensor, stages: Sequence[Tensor], path: Path, limit: int = 36) -> list[str]:
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
    return write(figure, path)


def mosaic(tiles: Tensor) -> Tensor:
    """(n, c, y, x) in a square, row by row: a picture (rows, columns) of one channel, (rows, columns, 3) of three."""
    side, grow = math.ceil(math.sqrt(len(tiles))), math.ceil(16 / min(tiles.shape[-2:]))
    large = repeat(tiles, "n c y x -> n c (y g) (x h)", g=grow, h=grow)
    between = 1.0 if tiles.shape[1] == 3 else math.nan  # white, both
    padded = F.pad(large, (0, 2, 0, 2, 0, 0, 0, side * side - len(tiles)), value=between)
    return rearrange(padded, "(r k) c y x -> (r y) (k x) c", r=side)[:-2, :-2].squeeze(-1)


def attention(weights: Tensor, source: Sequence[str], target: Sequence[str], path: Path) -> list[str]:
    """Weights (target, source) between 0 and 1: a row for each token that was written, a column for each that was read."""
    figure = Figure(figsize=(2 + 0.35 * len(source), 1.5 + 0.35 * len(target)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(weights.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(source)), legible(source), rotation=90)
    axes.set_yticks(range(len(target)), legible(target))
    axes.set(xlabel="source", ylabel="written")
    return write(figure, path)
