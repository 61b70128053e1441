"""Images as tensors: the order is pure, augmentation too, digits, normalisation."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

import command
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.data import epoch_order, seed_of
from tasks.data.images import (
    AUGMENTATIONS,
    Augmentation,
    ImageData,
    Images,
    load_images,
    moments,
    warp,
)

NOWHERE = Path("nowhere")
complaint = partial(command.complaint, load_images)
"""The message of the DataError that `load_images` raises."""


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_images("digits", NOWHERE, image_size=8)


@pytest.fixture
def fifty() -> Images:
    pixels = torch.randint(0, 256, (50, 3, 9, 9), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Images(pixels, torch.arange(50) % 7, torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.1]))


def test_the_order_is_a_function_of_seed_and_epoch():
    order = epoch_order(101, seed=3, epoch=4)
    assert sorted(order.tolist()) == list(range(101))
    torch.manual_seed(1)
    assert torch.equal(order, epoch_order(101, seed=3, epoch=4))
    orders = {tuple(epoch_order(101, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    assert tuple(range(101)) not in orders


def test_places_have_seeds_of_their_own():
    places = [(name, seed, epoch) for name in ("order", "augment") for seed in range(12) for epoch in range(12)]
    seeds = {seed_of(*place) for place in places}
    assert len(seeds) == len(places)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of("order", 1, 23) != seed_of("order", 12, 3)


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name != "none"])
def test_a_sample_looks_the_same_in_every_batch(fifty, name):
    """To the bit: whatever its companions, their number and order, the threads, and what was drawn before."""
    augmentation = AUGMENTATIONS[name]
    whole, labels = fifty.batch(torch.arange(50), augmentation, seed=3, epoch=5)
    draw, threads = torch.Generator().manual_seed(0), torch.get_num_threads()
    try:
        for n, size in enumerate([*range(1, 18), 31, 64]):
            torch.set_num_threads(1 + n % 3)
            torch.manual_seed(n)
            indices = torch.randint(50, (size,), generator=draw)
            state = torch.get_rng_state()
            images, of = fifty.batch(indices, augmentation, seed=3, epoch=5)
            assert torch.equal(images, whole[indices])
            assert torch.equal(of, labels[indices])
            assert torch.equal(state, torch.get_rng_state()), "a global random number was drawn"
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name != "none"])
def test_samples_epochs_and_seeds_differ(fifty, name):
    same = Images(fifty.pixels[:1].expand(50, -1, -1, -1), fifty.labels, fifty.mean, fifty.std)
    plain, _ = same.batch(torch.arange(50))
    batches = [same.batch(torch.arange(50), AUGMENTATIONS[name], s, e)[0] for s, e in ((0, 0), (0, 1), (1, 0))]
    assert all(len(batch.unique(dim=0)) == 50 for batch in batches), "two samples had the same fate"
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        assert (batches[a] != batches[b]).flatten(1).any(1).all()
    assert (batches[0] != plain).flatten(1).any(1).all()


def test_without_augmentation_seed_and_epoch_do_not_matter(fifty):
    expected = (fifty.pixels.double() / 255 - fifty.mean.double()[:, None, None]) / fifty.std.double()[:, None, None]
    for augmentation in (None, AUGMENTATIONS["none"]):
        images, _ = fifty.batch(torch.arange(50), augmentation, seed=1, epoch=2)
        assert images.dtype == torch.float32
        torch.testing.assert_close(images.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_batch_does_not_touch_the_data(fifty):
    before = fifty.pixels.clone()
    for name in AUGMENTATIONS:
        fifty.batch(torch.arange(50), AUGMENTATIONS[name])[0].zero_()
    assert torch.equal(before, fifty.pixels)


def test_warp_is_the_affine_map_of_torch():
    """Against F.affine_grid: first mirror, then scale and turn, then shift, as seen from the output."""
    draw = torch.Generator().manual_seed(0)
    images, drawn = torch.rand(40, 2, 11, 11, generator=draw), torch.rand(40, 5, generator=draw)
    shift, degrees, scale = 0.2, 30.0, 0.25
    down, right, turn, grow, flip = (2 * drawn.double() - 1).unbind(1)
    angle, size, mirror = (turn * degrees).deg2rad(), 1 + scale * grow, torch.where(flip < 0, -1.0, 1.0)
    cos, sin = angle.cos() / size, angle.sin() / size
    rows = torch.stack([cos * mirror, sin * mirror, 2 * shift * right, -sin, cos, 2 * shift * down], 1)
    grid = F.affine_grid(rows.view(-1, 2, 3).float(), list(images.shape), align_corners=False)
    expected = F.grid_sample(images, grid, align_corners=False)
    torch.testing.assert_close(warp(images, drawn, Augmentation(shift, degrees, scale, flip=True)), expected)


def test_warp_moves_turns_and_mirrors():
    images = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    still = torch.tensor([[0.5, 0.5, 0.5, 0.5, 0.9]])

    def warped(augmentation: Augmentation, **drawn: float) -> Tensor:
        numbers = still.clone()
        for name, value in drawn.items():
            numbers[0, ("down", "right", "turn", "grow", "flip").index(name)] = value
        return warp(images, numbers, augmentation)

    quarter = Augmentation(shift=0.25, rotation=90, flip=True)  # a quarter of 8 pixels is 2
    torch.testing.assert_close(warped(quarter), images)
    torch.testing.assert_close(warped(quarter, down=1.0), F.pad(images[..., 2:, :], (0, 0, 0, 2)))
    torch.testing.assert_close(warped(quarter, right=0.0), F.pad(images[..., :-2], (2, 0)))
    torch.testing.assert_close(warped(quarter, flip=0.1), images.flip(-1))
    torch.testing.assert_close(warped(Augmentation(), flip=0.1), images)
    turned = {turn: warped(quarter, turn=turn) for turn in (0.0, 1.0)}
    torch.testing.assert_close(turned[1.0], images.rot90(-1, (-2, -1)))
    torch.testing.assert_close(turned[0.0], images.rot90(1, (-2, -1)))


def test_digits_are_scikit_learns(digits):
    """Both splits together are its 1,797 scans, each once, with its label: so the splits share none."""
    from sklearn.datasets import load_digits

    def rows(pixels: Tensor, labels: Tensor) -> list[bytes]:
        return sorted(bytes([*image.flatten().tolist(), label]) for image, label in zip(pixels, labels.tolist(), strict=True))

    found = load_digits()
    expected = rows(torch.from_numpy(found.images * 255 / 16).round().byte(), torch.from_numpy(found.target))
    parts = [torch.cat(pair) for pair in ((digits.train.pixels, digits.test.pixels), (digits.train.labels, digits.test.labels))]
    assert rows(*parts) == expected
    assert digits.classes == list("0123456789")
    assert (digits.channels, digits.image_size, digits.skipped) == (1, 8, [])
    assert not AUGMENTATIONS[digits.augment].flip, "a mirrored digit is another one, or none"


def test_the_split_of_digits_is_fixed_and_stratified(digits):
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    ours, every = digits.test.labels.bincount(), torch.cat([digits.train.labels, digits.test.labels]).bincount()
    assert ((ours - every * 0.2).abs() <= 1).all()
    found = hashlib.sha256(bytes(digits.test.pixels.flatten().tolist())).hexdigest()
    assert found.startswith("de85aee14a9506dd"), "another split than in published results"


def test_the_split_of_digits_does_not_hang_on_global_seeds(digits):
    torch.manual_seed(5)
    np.random.seed(5)
    again = load_images("digits", NOWHERE, image_size=8)
    assert torch.equal(again.test.pixels, digits.test.pixels)
    assert torch.equal(again.train.labels, digits.train.labels)


def test_digits_are_enlarged_to_32(digits):
    large = load_images("digits", NOWHERE)
    assert large.train.pixels.shape == (1437, 1, 32, 32)
    expected = F.interpolate(digits.test.pixels.float(), size=(32, 32), mode="bilinear", antialias=True)
    assert (large.test.pixels.float() - expected).abs().max() <= 1


def test_normalisation_comes_from_the_training_split(digits):
    images, _ = digits.train.batch(torch.arange(len(digits.train)))
    assert images.mean() == pytest.approx(0, abs=1e-4)
    assert images.std() == pytest.approx(1, abs=1e-4)
    assert torch.equal(digits.test.mean, digits.train.mean)
    assert torch.equal(digits.test.std, digits.train.std)


def test_moments_are_exact_on_any_number_of_threads():
    pixels = torch.randint(0, 200, (100, 3, 40, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pixels[:, 1] //= 3
    pixels[:, 2] = 77
    values, threads = pixels.double() / 255, torch.get_num_threads()
    expected = values.mean((0, 2, 3)), values.std((0, 2, 3), correction=0).clamp(min=1e-3)
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            for ours, exact in zip(moments(pixels), expected, strict=True):
                torch.testing.assert_close(ours, exact.float(), rtol=2e-7, atol=0)
            assert all(torch.equal(a, b) for a, b in zip(moments(pixels), moments(pixels.flip(0)), strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("size", [0, -1])
def test_an_image_size_below_one_is_refused(tmp_path, size):
    for source in ("digits", f"folder:{tmp_path}"):
        assert complaint(source, NOWHERE, image_size=size).endswith(f"got {size}")


@pytest.mark.processes
def test_importing_does_not_wait_for_what_one_set_needs(python):
    """scikit-learn, torchvision, Pillow and matplotlib come with the first set that wants them."""
    slow = ("sklearn", "torchvision", "PIL", "matplotlib")
    done = python("-c", f"import sys, tasks.data.images; print([m for m in {slow!r} if m in sys.modules])")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
