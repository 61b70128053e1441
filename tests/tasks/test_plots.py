"""Pictures of a run: each shows the numbers it was given, and is written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from tasks import plots


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that were written, so that a test can ask what they show."""
    figures: list[Figure] = []
    write = plots.write

    def remember(figure: Figure, path: Path) -> None:
        figures.append(figure)
        write(figure, path)

    monkeypatch.setattr(plots, "write", remember)
    return figures


def rows(epochs: int) -> list[dict[str, float]]:
    return [
        {
            "epoch": n,
            "train_loss": 2 / n,
            "valid_loss": 3 / n,
            "train_accuracy": 1 - 1 / n,
            "valid_accuracy": 1 - 1.1 / n,
            "lr": 0.1,
        }
        for n in range(1, epochs + 1)
    ]


def is_whole(path: Path) -> bool:
    with Image.open(path) as picture:
        picture.load()
        return picture.format == "PNG" and min(picture.size) > 200 and len(set(picture.convert("L").tobytes())) > 10


def test_curves_show_both_splits_of_every_metric(tmp_path, drawn):
    history = rows(4)
    plots.curves(history, tmp_path / "curves.png")
    loss, accuracy = drawn[0].axes
    for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
        assert axes.get_title() == name
        assert [line.get_label() for line in axes.lines] == ["train", "valid"]
        for line in axes.lines:
            assert list(line.get_xdata()) == [1, 2, 3, 4]
            assert list(line.get_ydata()) == [row[f"{line.get_label()}_{name}"] for row in history]
    assert is_whole(tmp_path / "curves.png")


def test_a_metric_of_the_training_alone(tmp_path, drawn):
    plots.curves([{"epoch": 1, "train_loss": 2.0}, {"epoch": 2, "train_loss": 1.0}], tmp_path / "curves.png")
    (axes,) = drawn[0].axes
    assert [line.get_label() for line in axes.lines] == ["train"]


def test_confusion_counts_the_true_class_in_the_row(tmp_path, drawn):
    labels, predicted = torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([0, 1, 1, 2, 1, 1])
    plots.confusion(labels, predicted, ["ant", "bee", "cow"], tmp_path / "confusion.png")
    axes = drawn[0].axes[0]
    assert {(t.get_position()[::-1], t.get_text()) for t in axes.texts} == {
        ((0, 0), "1"), ((0, 1), "2"), ((0, 2), "1"), ((1, 1), "2")
    }  # fmt: skip
    expected = torch.tensor([[0.25, 0.5, 0.25], [0, 1, 0], [0, 0, 0]])  # nothing of the third class: no division by zero
    torch.testing.assert_close(torch.as_tensor(axes.images[0].get_array().data).float(), expected)
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true", "predicted")
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [tick.get_text() for tick in ticks] == ["ant", "bee", "cow"]
    assert "50.00%" in axes.get_title()
    assert is_whole(tmp_path / "confusion.png")


def test_confusion_of_a_hundred_classes_names_all_and_writes_no_numbers(tmp_path, drawn):
    labels = torch.arange(300) % 100
    plots.confusion(labels, labels.roll(1), [f"class {n}" for n in range(100)], tmp_path / "confusion.png")
    axes = drawn[0].axes[0]
    assert not axes.texts
    assert len(axes.get_xticklabels()) == len(axes.get_yticklabels()) == 100
    with Image.open(tmp_path / "confusion.png") as picture:
        assert min(picture.size) > 1500, "too small to read a hundred names"


@pytest.mark.parametrize("channels", [1, 3])
def test_mistakes_are_the_wrong_ones_surest_first(tmp_path, drawn, channels):
    pixels = torch.arange(4 * channels * 36).view(4, channels, 6, 6).remainder(251).byte()
    probabilities = torch.tensor([[0.9, 0.1], [0.3, 0.7], [0.2, 0.8], [0.4, 0.6]])
    plots.mistakes(pixels, torch.tensor([0, 0, 0, 1]), probabilities, ["ant", "bee"], tmp_path / "mistakes.png")
    shown = [axes for axes in drawn[0].axes if axes.images]
    assert [axes.get_title() for axes in shown] == ["ant, taken for\nbee (80%)", "ant, taken for\nbee (70%)"]
    for axes, index in zip(shown, (2, 1), strict=True):
        image = torch.as_tensor(axes.images[0].get_array().data.copy())
        assert torch.equal(image.reshape(6, 6, channels), pixels[index].permute(1, 2, 0))
        assert axes.images[0].get_clim() == (0, 255), "a dark picture would look like a bright one"
    assert drawn[0].get_suptitle() == "2 of 4 wrong"
    assert is_whole(tmp_path / "mistakes.png")


def test_mistakes_are_no_more_than_the_limit(tmp_path, drawn):
    probabilities = torch.eye(2)[torch.ones(40, dtype=torch.long)]
    pixels = torch.zeros(40, 1, 4, 4, dtype=torch.uint8)
    plots.mistakes(pixels, torch.zeros(40, dtype=torch.long), probabilities, ["ant", "bee"], tmp_path / "m.png", limit=7)
    assert sum(bool(axes.images) for axes in drawn[0].axes) == 7
    assert drawn[0].get_suptitle() == "40 of 40 wrong, the 7 surest"


def test_no_mistakes_are_a_picture_too(tmp_path, drawn):
    labels = torch.tensor([0, 1])
    pixels = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    plots.mistakes(pixels, labels, torch.eye(2), ["ant", "bee"], tmp_path / "mistakes.png")
    assert not any(axes.images for axes in drawn[0].axes)
    assert "0 of 2 wrong" in drawn[0].get_suptitle()
    assert is_whole(tmp_path / "mistakes.png")


def test_odd_class_names_are_written_as_they_are(tmp_path, drawn):
    """Neither a formula nor so long that nothing is left for the picture."""
    names = ["$a_$", "$b^$", "great white shark, man-eater, man-eating shark"]
    labels = torch.tensor([0, 1, 2])
    plots.confusion(labels, labels.roll(1), names, tmp_path / "confusion.png")
    pixels = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    plots.mistakes(pixels, labels, torch.eye(3)[labels.roll(1)], names, tmp_path / "mistakes.png")
    assert [tick.get_text() for tick in drawn[0].axes[0].get_yticklabels()] == [r"\$a_\$", r"\$b^\$", "great white shark, …"]
    matrix = drawn[0].axes[0].get_position()
    assert min(matrix.width, matrix.height) > 0.4, "no room is left for the matrix"
    assert is_whole(tmp_path / "confusion.png")
    assert is_whole(tmp_path / "mistakes.png")


def test_a_single_epoch_has_a_tick_of_its_own(tmp_path, drawn):
    plots.curves(rows(1), tmp_path / "curves.png")
    axes = drawn[0].axes[0]
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


def shown(axes) -> torch.Tensor:
    return torch.as_tensor(axes.images[-1].get_array().filled(-1.0))


@pytest.mark.parametrize("channels", [1, 3])
def test_explanations_lay_each_map_over_its_picture(tmp_path, drawn, channels):
    pixels = torch.arange(2 * channels * 36).view(2, channels, 6, 6).remainder(251).byte()
    maps = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([5.0, 0.0])[:, None, None]
    plots.explanations(pixels, maps, ["a.png", "b.png"], ["ant, 90%", "bee, 60%"], "why", tmp_path / "why.png")
    assert [axes.get_title() for axes in drawn[0].axes] == ["a.png", "ant, 90%", "b.png", "bee, 60%"]
    for axes, index in zip(drawn[0].axes, (0, 0, 1, 1), strict=True):
        image = torch.as_tensor(axes.images[0].get_array().data.copy())
        assert torch.equal(image.reshape(6, 6, channels), pixels[index].permute(1, 2, 0))
        assert axes.images[0].get_clim() == (0, 255)
    over = [axes.images[1] for axes in drawn[0].axes[1::2]]
    assert all(torch.equal(torch.as_tensor(image.get_array().data), heat) for image, heat in zip(over, maps, strict=True))
    assert [image.get_clim() for image in over] == [(0, pytest.approx(maps[0].max().item())), (0, 1)]
    assert [len(axes.images) for axes in drawn[0].axes] == [1, 2, 1, 2]
    assert is_whole(tmp_path / "why.png")


def test_a_mosaic_goes_row_by_row():
    tiles = torch.arange(5.0)[:, None, None, None].expand(5, 1, 16, 16)
    picture = plots.mosaic(tiles)
    assert picture.shape == (3 * 16 + 2 * 2, 3 * 16 + 2 * 2)
    centres = picture[8::18, 8::18]
    assert centres.nan_to_num(-1).tolist() == [[0, 1, 2], [3, 4, -1], [-1, -1, -1]]
    assert picture[16:18].isnan().all()
    colours = plots.mosaic(torch.zeros(4, 3, 2, 2))
    assert colours.shape == (34, 34, 3)
    assert (colours[16:18] == 1).all(), "not white"


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_features_show_filters_and_the_strongest_channels(tmp_path, drawn, channels):
    draw = torch.Generator().manual_seed(0)
    filters = torch.randn(5, channels, 3, 3, generator=draw)
    stages = [torch.rand(40, 6, 6, generator=draw), torch.rand(3, 1, 1, generator=draw) - 0.5]
    stages[0][7] += 2
    plots.features(torch.zeros(1, 9, 8, dtype=torch.uint8), filters, stages, tmp_path / "f.png", limit=4)
    used = [axes for axes in drawn[0].axes if axes.images]
    assert [axes.get_title() for axes in used] == [
        "9x8 pixels", "first filters, 4 of 5", "stage 1, 4 of 40 channels, 6x6", "stage 2, 3 of 3 channels, 1x1"
    ]  # fmt: skip
    assert all(axes.images[0].get_clim() == (0, 1) for axes in used[1:])
    colours = filters if channels == 3 else filters.mean(1, keepdim=True)
    first = shown(used[1]).reshape(38, 38, -1)[:18:6, :18:6]  # six times as large
    expected = (colours[0] / colours.abs().max() / 2 + 0.5).permute(1, 2, 0)
    torch.testing.assert_close(first.float(), expected)
    low, high = (bound(stages[0][stages[0].mean((1, 2)).argsort()[-4:]]) for bound in (torch.min, torch.max))
    torch.testing.assert_close(shown(used[2])[:18:3, :18:3].float(), (stages[0][7] - low) / (high - low))
    assert is_whole(tmp_path / "f.png")


def test_dead_layers_are_a_picture_too(tmp_path, drawn):
    """All weights and all outputs zero: nothing is divided by zero."""
    black = torch.zeros(1, 4, 4, dtype=torch.uint8)
    plots.features(black, torch.zeros(2, 1, 3, 3), [torch.zeros(2, 4, 4)], tmp_path / "features.png")
    plots.explanations(black[None], torch.zeros(1, 4, 4), ["a"], ["b"], "c", tmp_path / "why.png")
    assert is_whole(tmp_path / "features.png")
    _, filters, stage = (shown(axes) for axes in drawn[0].axes)
    assert set(filters.flatten().tolist()) == {0.5, -1.0}
    assert set(stage.flatten().tolist()) == {0.0, -1.0}


def test_a_full_disk_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    plots.curves(rows(2), path)
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            plots.curves(rows(5), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]
    plots.curves(rows(5), path)
    assert path.read_bytes() != before


@pytest.mark.processes
def test_no_display_and_no_global_state_are_needed(tmp_path, python, monkeypatch):
    """With a backend that wants a display, and none at hand."""
    monkeypatch.setenv("MPLBACKEND", "tkagg")
    monkeypatch.delenv("DISPLAY", raising=False)
    script = f"""
import sys
from pathlib import Path
from tasks import plots
plots.curves([{{"epoch": 1, "train_loss": 1.0, "valid_loss": 2.0}}], Path({str(tmp_path)!r}) / "curves.png")
print("matplotlib.pyplot" in sys.modules)
"""
    done = python("-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"
    assert is_whole(tmp_path / "curves.png")
