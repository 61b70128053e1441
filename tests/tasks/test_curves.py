"""Learning curves: the metric that chooses comes first, every panel marks the epoch that is kept, and nothing is left out."""

from __future__ import annotations

import math
import os

import pytest
from figures import assert_readable, is_whole
from matplotlib.figure import Figure

from tasks import plots
from tasks.task import Metric

ACCURACY = Metric("accuracy")


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


def lines(axes) -> dict[str, list]:
    """What is drawn over epochs, by its label."""
    return {line.get_label(): [*zip(*line.get_data(), strict=True)] for line in axes.lines if line.get_label() != "_best"}


def marks(figure: Figure) -> list[list[float]]:
    """Where every panel marks the best epoch."""
    return [[line.get_xdata()[0] for line in axes.lines if line.get_label() == "_best"] for axes in figure.axes if axes.axison]


def test_curves_show_both_splits_of_every_metric(tmp_path, drawn):
    history = rows(4)
    assert plots.curves(history, tmp_path / "curves.png", ACCURACY) == []
    assert [axes.get_title() for axes in drawn[0].axes] == ["accuracy", "loss"]
    for axes in drawn[0].axes:
        assert lines(axes) == {
            split: [(row["epoch"], row[f"{split}_{axes.get_title()}"]) for row in history] for split in ("train", "valid")
        }
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["train", "valid"]
    assert is_whole(tmp_path / "curves.png")


def test_the_metric_that_chooses_comes_first_wherever_it_is_measured(tmp_path, sketched):
    """BLEU is measured on the validation set alone."""
    history = [row | {"valid_bleu": 10.0 * n, "valid_chrf": 5.0} for n, row in enumerate(rows(3))]
    plots.curves(history, tmp_path / "curves.png", Metric("bleu"))
    assert [axes.get_title() for axes in sketched[0].axes] == ["bleu", "loss", "accuracy", "chrf"]
    assert lines(sketched[0].axes[0]) == {"valid": [(1, 0.0), (2, 10.0), (3, 20.0)]}


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("last", [3.0, math.nan])
def test_every_panel_marks_the_epoch_that_the_engine_keeps(tmp_path, sketched, lower, last):
    """The best one in the metric's direction; of equals the one with the least loss; NaN is never the best."""
    values, losses = [2.0, 1.0, 3.0, 1.0, last], [5.0, 4.0, 3.0, 2.0, 9.0]
    history = [row | {"valid_rate": v, "valid_loss": x} for row, v, x in zip(rows(5), values, losses, strict=True)]
    primary = Metric("rate", lower_is_better=lower)
    plots.curves(history, tmp_path / "curves.png", primary)
    epoch = max(history, key=lambda row: primary.rank(row, "valid_"))["epoch"]
    assert epoch == (4 if lower else 3)
    assert marks(sketched[0]) == [[epoch]] * 3
    told = "lowest valid_rate, 1" if lower else "highest valid_rate, 3"
    assert sketched[0].get_suptitle() == f"best epoch {epoch}: {told}"


def test_the_loss_without_smoothing_is_drawn_beside_the_loss(tmp_path, sketched):
    """Where a row has it: a resumed run may have begun without."""
    history = rows(2) + [row | {"train_plain_loss": 0.5} for row in rows(4)[2:]]
    plots.curves(history, tmp_path / "curves.png", ACCURACY)
    accuracy, loss = sketched[0].axes
    assert set(lines(accuracy)) == {"train", "valid"}
    assert lines(loss)["train, no smoothing"] == [(3, 0.5), (4, 0.5)]
    assert len(lines(loss)) == 3
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in loss.lines}
    assert len(looks) == 4
    assert len({(colour, marker) for colour, _, marker in looks}) == 4, "single epochs, which are dots, look alike"


def test_a_metric_of_the_training_alone(tmp_path, sketched):
    plots.curves([{"epoch": 1, "train_loss": 2.0}, {"epoch": 2, "train_loss": 1.0}], tmp_path / "curves.png", ACCURACY)
    (axes,) = sketched[0].axes
    assert lines(axes) == {"train": [(1, 2.0), (2, 1.0)]}
    assert marks(sketched[0]) == [[]], "no epoch is the best without the metric that chooses"


def test_what_is_not_finite_is_a_gap_and_counted(tmp_path, drawn):
    strange = {1: math.nan, 3: math.inf, 4: -math.inf}
    history = [row | ({"train_loss": strange[row["epoch"]]} if row["epoch"] in strange else {}) for row in rows(5)]
    history = [row | {"valid_score": math.nan} for row in history]
    plots.curves(history, tmp_path / "curves.png", ACCURACY)
    accuracy, loss, score = drawn[0].axes
    assert [math.isfinite(y) for _, y in lines(loss)["train"]] == [False, True, False, False, True]
    assert all(map(math.isfinite, loss.get_ylim()))
    assert [[text.get_text() for text in axes.texts] for axes in (accuracy, loss, score)] == [
        [], ["3 not finite"], ["5 not finite"]
    ]  # fmt: skip
    assert len({axes.get_xlim() for axes in drawn[0].axes}) == 1
    assert is_whole(tmp_path / "curves.png")


@pytest.mark.parametrize("count", [1, 5, 8])
def test_many_metrics_wrap_into_rows(tmp_path, drawn, count):
    history = [{"epoch": n, "train_loss": 1.0} | {f"valid_generator_loss_{k}": float(n) for k in range(1, count)} for n in (1, 2)]
    plots.curves(history, tmp_path / "curves.png", ACCURACY)
    used = [axes for axes in drawn[0].axes if axes.axison]
    assert len(used) == count
    assert drawn[0].get_figwidth() <= 18
    assert len(drawn[0].axes) - count < 4
    assert_readable(drawn[0])


def test_a_single_epoch_has_a_tick_of_its_own(tmp_path, sketched):
    plots.curves(rows(1), tmp_path / "curves.png", ACCURACY)
    axes = sketched[0].axes[0]
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


def test_a_full_disk_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    plots.curves(rows(2), path, ACCURACY)
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            plots.curves(rows(5), path, ACCURACY)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]
    plots.curves(rows(5), path, ACCURACY)
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
from tasks.task import Metric
plots.curves([{{"epoch": 1, "train_loss": 1.0, "valid_loss": 2.0}}], Path({str(tmp_path)!r}) / "curves.png", Metric("loss"))
print("matplotlib.pyplot" in sys.modules)
"""
    done = python("-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"
    assert is_whole(tmp_path / "curves.png")
