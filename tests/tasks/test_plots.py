"""Pictures of a run: each shows what it was given, and can be read."""

from __future__ import annotations

import pytest
import torch
from figures import assert_readable, is_whole, texts_of

from tasks import plots


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
    assert drawn[0].get_suptitle() == "50.00% of 6 right"
    assert is_whole(tmp_path / "confusion.png")


@pytest.mark.parametrize("classes", [2, 20, 40, 200])
def test_confusion_says_of_which_model_and_is_readable(tmp_path, drawn, classes):
    labels = torch.arange(3 * classes) % classes
    model = "best.safetensors of runs/resnet50-photos-20260131-120000/with/a/long/path, epoch 7, on 360 test images"
    names = [f"a rather long class name {n}" for n in range(classes)]
    plots.confusion(labels, labels.roll(1), names, tmp_path / "confusion.png", model)
    assert drawn[0].get_suptitle().replace("\n", "").replace(" ", "") == f"{model}0.00% of {3 * classes} right".replace(" ", "")
    assert bool(drawn[0].axes[0].images) == (classes <= 40), "a matrix of so many classes cannot be read"
    assert_readable(drawn[0])
    box = drawn[0].axes[0].get_window_extent()
    assert min(box.width, box.height) > max(300, 30 * classes) or classes > 40, "the names leave no room"
    assert is_whole(tmp_path / "confusion.png")


def test_of_many_classes_the_largest_confusions_are_told(tmp_path, drawn):
    """Largest first; each with the true class, the predicted one, how often, and of how many. Classes may have no pictures."""
    pairs = {(0, 1): 3, (5, 2): 9, (7, 7): 50, (9, 0): 3, (9, 9): 1, (199, 3): 1}
    labels, predicted = (torch.tensor([pair[k] for pair, n in pairs.items() for _ in range(n)]) for k in (0, 1))
    plots.confusion(labels, predicted, [f"c{n}" for n in range(200)], tmp_path / "confusion.png")
    axes = drawn[0].axes[0]
    expected = {"c5 → c2": (9, " 9 of 9, 100%"), "c0 → c1": (3, " 3 of 3, 100%"), "c9 → c0": (3, " 3 of 4, 75%"),
                "c199 → c3": (1, " 1 of 1, 100%")}  # fmt: skip
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [*expected]
    assert [bar.get_width() for bar in axes.patches] == [times for times, _ in expected.values()]
    assert [text.get_text() for text in axes.texts] == [text for _, text in expected.values()]
    assert axes.get_title() == "the 4 largest of 4 confusions: true → predicted"
    assert axes.yaxis_inverted(), "the largest one is not on top"
    assert_readable(drawn[0])


@pytest.mark.parametrize("confused", [0, 30, 31, 60])
def test_no_more_than_thirty_confusions_are_drawn(tmp_path, sketched, confused):
    labels = torch.arange(100)
    predicted = torch.where(labels < confused, (labels + 1) % 100, labels)
    plots.confusion(labels, predicted, [f"class {n}" for n in range(100)], tmp_path / "confusion.png")
    shown = min(30, confused)
    assert len(sketched[0].axes[0].patches) == shown
    assert sketched[0].axes[0].get_title() == f"the {shown} largest of {confused} confusions: true → predicted"


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


def test_mistakes_are_no_more_than_the_limit(tmp_path, sketched):
    probabilities = torch.eye(2)[torch.ones(40, dtype=torch.long)]
    pixels = torch.zeros(40, 1, 4, 4, dtype=torch.uint8)
    plots.mistakes(pixels, torch.zeros(40, dtype=torch.long), probabilities, ["ant", "bee"], tmp_path / "m.png", limit=7)
    assert sum(bool(axes.images) for axes in sketched[0].axes) == 7
    assert sketched[0].get_suptitle() == "40 of 40 wrong, the 7 surest"


@pytest.mark.parametrize("files", [False, True])
def test_mistakes_of_long_and_like_names_can_be_told_apart(tmp_path, drawn, files):
    pixels = torch.zeros(12, 1, 4, 4, dtype=torch.uint8)
    labels = torch.arange(12)
    classes = [f"WIDE NAMES OF A LONG TAXONOMY, NUMBER {n}" for n in range(12)]
    names = [f"holiday/2026/beach/IMG_{n:04}_edited.jpg" for n in range(12)] if files else None
    plots.mistakes(pixels, labels, torch.eye(12)[labels.roll(1)], classes, tmp_path / "mistakes.png", names=names)
    titles = [axes.get_title() for axes in drawn[0].axes if axes.images]
    assert len(set(titles)) == 12
    assert all(title.count("\n") == 1 + files for title in titles)
    assert all((f"{n:04}" in title) == files for n, title in enumerate(titles))
    assert_readable(drawn[0])


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
    assert [tick.get_text() for tick in drawn[0].axes[0].get_yticklabels()] == [*names[:2], "great white shark, …"]
    assert not any(text.get_parse_math() for text in texts_of(drawn[0]) + texts_of(drawn[1]) if "$" in text.get_text())
    matrix = drawn[0].axes[0].get_position()
    assert min(matrix.width, matrix.height) > 0.4, "no room is left for the matrix"
    assert is_whole(tmp_path / "confusion.png")
    assert is_whole(tmp_path / "mistakes.png")


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
