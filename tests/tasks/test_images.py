"""Images as tensors: the order is pure, digits, normalisation. `test_augment` is about what training makes of them."""

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

import zoo
from tasks.data import DataError, epoch_order, images, seed_of
from tasks.data.augment import WARPS
from tasks.data.images import ImageData, load_images, load_test, moments
from tasks.data.picture_files import sums_of

NOWHERE = Path("nowhere")
complaint = partial(command.complaint, load_images)
"""The message of the DataError that `load_images` raises."""


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_images("digits", NOWHERE, image_size=8)


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


def test_digits_are_scikit_learns(digits):
    """Both splits together are its 1,797 scans, each once, with its label: so the splits share none."""
    from sklearn.datasets import load_digits

    def rows(pixels: Tensor, labels: Tensor) -> list[bytes]:
        return sorted(bytes([*image.flatten().tolist(), label]) for image, label in zip(pixels, labels.tolist(), strict=True))

    found = load_digits()
    expected = rows(torch.from_numpy(found.images * 255 / 16).round().byte(), torch.from_numpy(found.target))
    splits = digits.splits.values()
    assert rows(torch.cat([split.pixels for split in splits]), torch.cat([split.labels for split in splits])) == expected
    assert digits.classes == list("0123456789")
    assert (digits.channels, digits.image_size, digits.skipped, digits.told) == (1, 8, [], [])
    assert not WARPS[digits.augment].flip, "a mirrored digit is another one, or none"


def test_the_split_of_digits_is_fixed_and_stratified(digits):
    assert [len(split) for split in digits.splits.values()] == [1439, 179, 179]
    every = torch.cat([split.labels for split in digits.splits.values()]).bincount()
    for split in (digits.valid, digits.test):
        assert ((split.labels.bincount() - every * 0.1).abs() <= 0.5).all()
    found = hashlib.sha256(bytes(digits.test.pixels.flatten().tolist())).hexdigest()
    assert found.startswith("150e9b9ec6a2a10d"), "another split than in published results"


def test_the_split_of_digits_does_not_hang_on_global_seeds(digits):
    torch.manual_seed(5)
    np.random.seed(5)
    again = load_images("digits", NOWHERE, image_size=8)
    assert torch.equal(again.test.pixels, digits.test.pixels)
    assert torch.equal(again.train.labels, digits.train.labels)


def test_digits_are_enlarged_to_32(digits):
    large = load_images("digits", NOWHERE)
    assert large.train.pixels.shape == (len(digits.train), 1, 32, 32)
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
    each = torch.stack([sums_of(picture) for picture in pixels])
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            sums = sums_of(pixels)
            assert torch.equal(sums, each.sum(0))
            assert torch.equal(sums, sums_of(pixels.flip(0)))
            for ours, exact in zip(moments(sums, 100 * 1600), expected, strict=True):
                torch.testing.assert_close(ours, exact.float(), rtol=2e-7, atol=0)
    finally:
        torch.set_num_threads(threads)


def test_a_test_split_of_a_set_is_that_of_training(digits):
    """Sized and normalised for the model, its grey channel repeated for one of colours."""
    test, classes, _ = load_test("digits", NOWHERE, digits.preprocess(), digits.classes, own=True)
    assert classes == digits.classes
    assert all(torch.equal(a, b) for a, b in zip(test.batch(torch.arange(9)), digits.test.batch(torch.arange(9)), strict=True))
    colours = zoo.Preprocess(8, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    test, _, _ = load_test("digits", NOWHERE, colours, digits.classes)
    assert torch.equal(test.batch(torch.arange(9))[0], colours.normalise(digits.test.pixels[:9].expand(-1, 3, -1, -1)))
    test, _, _ = load_test("digits", NOWHERE, colours, [*reversed(digits.classes), "x"])
    assert torch.equal(test.labels, 9 - digits.test.labels)


def test_a_test_split_of_other_channels_or_classes_is_refused(monkeypatch, digits):
    toy = images.ImageSet({"test": (torch.zeros(2, 3, 8, 8).byte(), torch.arange(2))}, ["a", "b"], "none")
    monkeypatch.setitem(images.SETS, "toy", lambda root: toy)
    with pytest.raises(DataError, match="toy has 3 channels, the model takes 1"):
        load_test("toy", NOWHERE, digits.preprocess(), toy.classes)
    with pytest.raises(DataError, match="toy has classes that the model does not know: b; it knows a, c"):
        load_test("toy", NOWHERE, digits.preprocess(), ["a", "c"])


def test_an_empty_split_is_refused(monkeypatch):
    empty = torch.zeros(0, 1, 8, 8, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64)
    full = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4)
    for role in ("train", "test"):
        made = images.ImageSet({"train": full, "test": full} | {role: empty}, list("abcd"), "none")
        monkeypatch.setitem(images.SETS, "toy", lambda root, made=made: made)
        assert complaint("toy", NOWHERE) == f"toy has no images in its {role} split"


def test_a_set_is_known_by_its_pixels_and_labels(digits):
    known = digits.identity()
    assert load_images("digits", NOWHERE, image_size=9).identity() == known
    assert len({known[role]["fingerprint"] for role in ("train", "valid", "test")}) == 3


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
