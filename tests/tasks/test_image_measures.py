"""Distances and neighbourhoods of sets of features, against torchmetrics, closed forms and definitions written out."""

from __future__ import annotations

import pytest
import torch

from tasks import image_measures
from tasks.image_measures import frechet_distance, kernel_distance, measures, nearest, nearest_pictures, neighbourhoods


@pytest.fixture(params=[1024, 7], ids=["whole tables", "tables in parts"], autouse=True)
def rows(request, monkeypatch):
    monkeypatch.setattr(image_measures, "ROWS", request.param)


def drawn(count, seed, shift=0.0, scale=1.0, dim=6):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=g, dtype=torch.float64) * scale * torch.linspace(0.5, 2, dim) + shift


class Features(torch.nn.Module):
    """What torchmetrics asks of a network: here the images are their features."""

    num_features = 6

    def forward(self, x):
        return x.flatten(1)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save:UserWarning")
@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.7, 1.0), (0.0, 2.0)])
def test_distances_are_those_of_torchmetrics(shift, scale):
    fid, kid = (pytest.importorskip(f"torchmetrics.image.{name}") for name in ("fid", "kid"))
    real, made = drawn(40, 0), drawn(33, 1, shift, scale)
    frechet = fid.FrechetInceptionDistance(feature=Features(), normalize=True).set_dtype(torch.float64)
    kernel = kid.KernelInceptionDistance(feature=Features(), subsets=1, subset_size=33, normalize=True).set_dtype(torch.float64)
    for metric in (frechet, kernel):
        metric.update(real.float()[:33] if metric is kernel else real.float(), real=True)
        metric.update(made.float(), real=False)
    assert frechet_distance(real.float().double(), made.float().double()) == pytest.approx(float(frechet.compute()), rel=1e-5)
    expected = float(kernel.compute()[0])
    assert kernel_distance(real[:33].float().double(), made.float().double()) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_the_frechet_distance_of_laws_with_parallel_axes():
    """Of features without correlation it is the sum of squared differences of means and of standard deviations."""
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)  # without correlation
    unbiased = (len(corners) / (len(corners) - 1)) ** 0.5
    real, made = corners * torch.tensor([1.0, 2, 3]), corners * torch.tensor([2.0, 2, 1]) + torch.tensor([0.0, 1, 2])
    assert frechet_distance(real, made) == pytest.approx(1 + 4 + unbiased**2 * (1 + 0 + 4), rel=1e-12)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-12)


def test_the_kernel_distance_is_its_definition():
    real, made = drawn(9, 0), drawn(8, 1, 0.5)

    def k(x, y):
        return (x @ y / 6 + 1) ** 3

    def within(xs):
        return sum(k(x, y) for i, x in enumerate(xs) for j, y in enumerate(xs) if i != j) / (len(xs) * (len(xs) - 1))

    expected = within(real) + within(made) - 2 * sum(k(x, y) for x in real for y in made) / 72
    assert kernel_distance(real, made) == pytest.approx(float(expected), rel=1e-12)


def test_neighbourhoods_are_their_definitions():
    real, made = drawn(30, 0), drawn(20, 1, 0.8, 0.6)

    def radius(xs, i, k):
        return sorted(float((xs[i] - x).norm()) for j, x in enumerate(xs) if j != i)[k - 1]

    for k in (1, 3, 5):
        around_real = [radius(real, i, k) for i in range(30)]
        around_made = [radius(made, j, k) for j in range(20)]
        apart = [[float((x - y).norm()) for y in made] for x in real]
        held = [sum(apart[i][j] <= around_real[i] for i in range(30)) for j in range(20)]
        expected = {
            "precision": sum(h > 0 for h in held) / 20,
            "recall": sum(any(apart[i][j] <= around_made[j] for j in range(20)) for i in range(30)) / 30,
            "density": sum(held) / 20 / k,
            "coverage": sum(min(apart[i]) <= around_real[i] for i in range(30)) / 30,
        }
        assert neighbourhoods(real, made, k) == pytest.approx(expected, rel=1e-12)


def test_what_is_wrong_with_images_shows_where_it_should():
    """Half of the modes: recall and coverage fall. Half of the images noise: precision and density fall. Copies: nothing does."""
    g = torch.Generator().manual_seed(0)
    centres = 20 * torch.eye(4, 6, dtype=torch.float64)
    real, other = (centres.repeat(50, 1) + torch.randn(200, 6, generator=g, dtype=torch.float64) for _ in range(2))
    whole = neighbourhoods(real, other)
    assert min(whole["precision"], whole["recall"], whole["coverage"]) > 0.85
    assert 0.9 < whole["density"] < 1.1
    half = neighbourhoods(real, other[torch.arange(200) % 4 < 2])
    assert half["recall"] < 0.55
    assert half["coverage"] < 0.55
    assert half["precision"] > 0.85
    noise = neighbourhoods(real, torch.where(torch.arange(200)[:, None] < 100, other, 90.0))
    assert noise["precision"] < 0.55
    assert noise["density"] < 0.6
    assert neighbourhoods(real, real)["coverage"] == 1.0
    for wrong in (other[torch.arange(200) % 4 < 2], torch.where(torch.arange(200)[:, None] < 100, other, 90.0)):
        assert frechet_distance(real, wrong) > 10 * frechet_distance(real, other)
        assert kernel_distance(real, wrong) > 10 * abs(kernel_distance(real, other))


def test_the_nearest_real_image_of_each():
    real, made = drawn(30, 0), drawn(9, 1)
    made[4] = real[17]
    indices, distances = nearest(made, real)
    assert indices.tolist() == [min(range(30), key=lambda i, y=y: float((real[i] - y).norm())) for y in made]
    assert distances[4] == 0
    assert distances[0] == (made[0] - real[indices[0]]).norm()


@pytest.mark.parametrize(
    ("real", "made", "words"),
    [
        (drawn(5, 0), drawn(9, 1), "real must be more than 5"),
        (drawn(9, 0), drawn(2, 1), "made must be more than 5"),
        (drawn(9, 0), drawn(9, 1, dim=4), "features"),
        (drawn(9, 0), drawn(9, 1) * float("nan"), "made must be finite"),
        (drawn(9, 0)[0], drawn(9, 1), "real"),
    ],
)
def test_sets_that_cannot_be_measured(real, made, words):
    with pytest.raises(ValueError, match=words):
        measures(real, made)
    assert set(measures(drawn(9, 0), drawn(9, 1))) == {
        "frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage",
    }  # fmt: skip


def test_the_nearest_pictures_in_parts():
    g = torch.Generator().manual_seed(0)
    pixels, made = (torch.randint(256, (count, 3, 4, 4), generator=g, dtype=torch.uint8) for count in (30, 9))
    made[2] = pixels[17]
    index, apart = nearest(made.flatten(1).float(), pixels.flatten(1).float())
    for part in (7, 30):
        pictures, distances = nearest_pictures(made, pixels, part)
        assert torch.equal(pictures, pixels[index])
        assert torch.equal(distances, apart)
    assert distances[2] == 0
