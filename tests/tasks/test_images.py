"""Image data sets: what is read, how it is split, that augmentation is pure, and every complaint."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pickle
import re
import struct
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from tasks.data import DataError, epoch_order, seed_of
from tasks.data.images import (
    AUGMENTATIONS,
    Augmentation,
    ImageData,
    Images,
    load_images,
    moments,
    read_image,
    read_pictures,
    warp,
)
from zoo.pretrained.preprocess import Preprocess, square

NOWHERE = Path("nowhere")


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_images("digits", NOWHERE, image_size=8)


@pytest.fixture
def fifty() -> Images:
    pixels = torch.randint(0, 256, (50, 3, 9, 9), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Images(pixels, torch.arange(50) % 7, torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.1]))


def complaint(*arguments: object, **options: object) -> str:
    """The message of the DataError that `load_images` raises; it is one line."""
    with pytest.raises(DataError) as caught:
        load_images(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------ order and augmentation are pure


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
    due = (fifty.pixels.double() / 255 - fifty.mean.double()[:, None, None]) / fifty.std.double()[:, None, None]
    for augmentation in (None, AUGMENTATIONS["none"]):
        images, _ = fifty.batch(torch.arange(50), augmentation, seed=1, epoch=2)
        assert images.dtype == torch.float32
        torch.testing.assert_close(images.double(), due, rtol=1e-5, atol=1e-6)


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
    due = F.grid_sample(images, grid, align_corners=False)
    torch.testing.assert_close(warp(images, drawn, Augmentation(shift, degrees, scale, flip=True)), due)


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


# -------------------------------------------------------------------------------------------------------------------- digits


def test_digits_are_scikit_learns(digits):
    """Both splits together are its 1,797 scans, each once, with its label: so the splits share none."""
    from sklearn.datasets import load_digits

    def rows(pixels: Tensor, labels: Tensor) -> list[bytes]:
        return sorted(bytes([*image.flatten().tolist(), label]) for image, label in zip(pixels, labels.tolist(), strict=True))

    found = load_digits()
    due = rows(torch.from_numpy(found.images * 255 / 16).round().byte(), torch.from_numpy(found.target))
    parts = [torch.cat(pair) for pair in ((digits.train.pixels, digits.test.pixels), (digits.train.labels, digits.test.labels))]
    assert rows(*parts) == due
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
    due = F.interpolate(digits.test.pixels.float(), size=(32, 32), mode="bilinear", antialias=True)
    assert (large.test.pixels.float() - due).abs().max() <= 1


def test_normalisation_comes_from_the_training_split(digits):
    images, _ = digits.train.batch(torch.arange(len(digits.train)))
    assert images.mean() == pytest.approx(0, abs=1e-4)
    assert images.std() == pytest.approx(1, abs=1e-4)
    assert torch.equal(digits.test.mean, digits.train.mean)
    assert torch.equal(digits.test.std, digits.train.std)


# ------------------------------------------------------------------------------------------------------------------- folders


def write_levels(folder: Path, counts: dict[str, int], start: int = 0) -> Path:
    """`folder/CLASS/N.png`, 4x4, every image of a colour of its own: (start + number of the image, 100, label)."""
    number = start
    for label, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for n in range(count):
            Image.new("RGB", (4, 4), (number, 100, label)).save(folder / name / f"{n:02}.png")
            number += 1
    return folder


def test_train_and_test_folders(tmp_path):
    write_levels(tmp_path / "train", {"ant": 2, "bee": 3})
    write_levels(tmp_path / "test", {"ant": 1, "bee": 2}, start=200)
    data = load_images(f"folder:{tmp_path}", NOWHERE, image_size=4)
    assert data.classes == ["ant", "bee"]
    assert data.train.pixels.shape == (5, 3, 4, 4)
    assert data.train.pixels[:, :, 1, 2].tolist() == [[n, 100, label] for n, label in enumerate([0, 0, 1, 1, 1])]
    assert data.test.pixels[:, 0, 0, 0].tolist() == [200, 201, 202]
    assert data.train.labels.tolist() == [0, 0, 1, 1, 1]
    assert data.test.labels.tolist() == [0, 1, 1]
    assert data.train.mean.tolist() == pytest.approx([2 / 255, 100 / 255, 0.6 / 255]), "not that of the training images"


def test_val_serves_as_test(tmp_path):
    write_levels(tmp_path / "train", {"ant": 2, "bee": 3})
    write_levels(tmp_path / "val", {"ant": 1, "bee": 2}, start=200)
    assert load_images(f"folder:{tmp_path}", NOWHERE, image_size=4).test.pixels[:, 0, 0, 0].tolist() == [200, 201, 202]


def test_one_folder_is_split_stratified_and_always_alike(tmp_path):
    write_levels(tmp_path, {"ant": 20, "bee": 10})
    (tmp_path / "README.txt").write_text("not a class")
    (tmp_path / "ant" / "notes.txt").write_text("not an image")
    data = load_images(f"folder:{tmp_path}", NOWHERE, image_size=4)
    assert data.train.labels.bincount().tolist() == [16, 8]
    assert data.test.labels.bincount().tolist() == [4, 2]
    parts = [split.pixels[:, 0, 0, 0].tolist() for split in (data.train, data.test)]
    assert sorted(parts[0] + parts[1]) == list(range(30))
    for split in (data.train, data.test):
        assert torch.equal(split.pixels[:, 2, 0, 0].long(), split.labels)
    np.random.seed(1)
    again = load_images(f"folder:{tmp_path}", NOWHERE, image_size=4)
    assert torch.equal(again.test.pixels, data.test.pixels)


def test_folders_default_to_224(tmp_path):
    write_levels(tmp_path / "train", {"ant": 1, "bee": 1})
    write_levels(tmp_path / "test", {"ant": 1, "bee": 1})
    assert load_images(f"folder:{tmp_path}", NOWHERE).train.pixels.shape == (2, 3, 224, 224)


def test_a_prediction_sees_what_training_saw(make_pictures, tmp_path):
    """`read_pictures` and what the run keeps in config.json, against the test split's own batch."""
    make_pictures(tmp_path / "train", {"dark": 3, "light": 3})
    make_pictures(tmp_path / "test", {"dark": 2, "light": 1}, seed=1)
    data = load_images(f"folder:{tmp_path}", NOWHERE, image_size=20)
    paths = sorted((tmp_path / "test").rglob("*.png"))
    preprocess = Preprocess.of(json.loads(json.dumps(data.preprocess().config())))
    pixels = read_pictures(paths, preprocess)
    assert torch.equal(pixels, data.test.pixels)
    images = preprocess.normalise(pixels)
    torch.testing.assert_close(images, data.test.batch(torch.arange(3))[0], rtol=0, atol=1e-6)


def test_an_evaluation_sees_what_a_prediction_sees(make_pictures, tmp_path):
    """Where weights of others resize before they cut."""
    make_pictures(tmp_path / "train", {"dark": 1, "light": 1})
    make_pictures(tmp_path / "test", {"dark": 2, "light": 1}, seed=1)
    published = Preprocess(20, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), resize=26)
    data = load_images(f"folder:{tmp_path}", NOWHERE, image_size=20, cut=published.cut)
    data.suit(published)
    pixels = read_pictures(sorted((tmp_path / "test").rglob("*.png")), published)
    assert torch.equal(data.test.pixels, pixels)
    assert not torch.equal(pixels, load_images(f"folder:{tmp_path}", NOWHERE, image_size=20).test.pixels)
    assert torch.equal(data.test.batch(torch.arange(3))[0], published.normalise(pixels))


# ------------------------------------------------------------------------------------------------------ pictures of all kinds


def test_the_middle_square_is_kept(tmp_path):
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide.transpose(1, 0, 2)).save(tmp_path / "high.png")
    for name in ("wide.png", "high.png"):
        assert (square(read_image(tmp_path / name, 3), 4) == 200).all()


def test_pictures_are_put_upright(tmp_path):
    """Exif orientation 6: the camera was turned, the first column stored is the top row."""
    stored = np.zeros((16, 16, 3), np.uint8)
    stored[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(tmp_path / "turned.png", exif=exif)
    image = square(read_image(tmp_path / "turned.png", 3), 16)
    assert (image[:, :8] == 255).all()
    assert (image[:, 8:] == 0).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb_or_grey(tmp_path, mode):
    black_white = np.zeros((6, 6, 3), np.uint8)
    black_white[2:] = 255
    path = tmp_path / ("picture.tiff" if mode == "CMYK" else "picture.png")
    Image.fromarray(black_white).convert(mode).save(path)
    for channels in (1, 3):
        image = square(read_image(path, channels), 6)
        assert image.dtype == torch.uint8
        assert torch.equal(image, torch.from_numpy(black_white).permute(2, 0, 1)[:channels])


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's, of the TIFF
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "bmp", "tiff", "ppm"])
def test_a_cut_picture_is_named_whatever_its_format(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    square(read_image(path, 3), 8)
    content = path.read_bytes()
    for kept in (0, 1, 20, len(content) // 2):
        path.write_bytes(content[:kept])
        with pytest.raises(DataError, match=re.escape(str(path))) as caught:
            square(read_image(path, 3), 8)
        assert "\n" not in str(caught.value)


def test_a_picture_that_would_fill_the_memory_is_named(tmp_path, monkeypatch):
    """Pillow refuses a file of few bytes that claims very many pixels."""
    Image.new("L", (40, 40)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with pytest.raises(DataError, match=r"bomb\.png"):
        square(read_image(tmp_path / "bomb.png", 3), 8)


# -------------------------------------------------------------------------------------------------------- complaints: folders


def test_an_unknown_source_is_told_the_nearest():
    for wrong, meant in (("digit", "'digits'"), ("cifar_10", "'cifar10'"), ("fashionmnist", "'fashion_mnist'")):
        message = complaint(wrong, NOWHERE)
        assert f"did you mean {meant}" in message
        assert "folder:PATH" in message
    assert "did you mean" not in complaint("xyz", NOWHERE)


def test_folders_that_are_none_or_empty(tmp_path):
    assert str(tmp_path / "gone") in complaint(f"folder:{tmp_path / 'gone'}", NOWHERE)
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in complaint(f"folder:{tmp_path / 'file'}", NOWHERE)
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'} is empty" in complaint(f"folder:{tmp_path / 'empty'}", NOWHERE)
    (tmp_path / "half" / "train").mkdir(parents=True)
    (tmp_path / "half" / "test").mkdir()
    assert f"{tmp_path / 'half' / 'train'} is empty" in complaint(f"folder:{tmp_path / 'half'}", NOWHERE)


def test_a_class_without_images_is_named(tmp_path):
    write_levels(tmp_path, {"ant": 6, "bee": 0})
    (tmp_path / "bee" / "notes.txt").write_text("no image")
    assert f"{tmp_path / 'bee'} is a class folder without images" in complaint(f"folder:{tmp_path}", NOWHERE)


def test_train_wants_a_test_beside_it(tmp_path):
    write_levels(tmp_path / "train", {"ant": 1, "bee": 1})
    message = complaint(f"folder:{tmp_path}", NOWHERE)
    assert str(tmp_path) in message
    assert "'test' or 'val'" in message


@pytest.mark.parametrize("names", [("ant", "cow"), ("ant",), ("ant", "bee", "cow")])
def test_classes_of_train_and_test_must_agree(tmp_path, names):
    write_levels(tmp_path / "train", {"ant": 1, "bee": 1})
    write_levels(tmp_path / "test", dict.fromkeys(names, 1))
    message = complaint(f"folder:{tmp_path}", NOWHERE)
    assert str(tmp_path / "test") in message
    assert message.endswith(", ".join(sorted({"ant", "bee"} ^ set(names))))


def test_too_few_images_to_split(tmp_path):
    write_levels(tmp_path, {"ant": 1, "bee": 9})
    message = complaint(f"folder:{tmp_path}", NOWHERE, image_size=4)
    assert str(tmp_path) in message
    assert "[1, 9]" in message


def test_a_set_too_large_for_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    write_levels(tmp_path, {"ant": 5, "bee": 5})
    monkeypatch.setattr(os, "sysconf", lambda name: 40)  # 1,600 bytes of memory
    monkeypatch.setattr(Image, "open", lambda *a, **k: pytest.fail("an image was read"))
    assert "--image_size" in complaint(f"folder:{tmp_path}", NOWHERE, image_size=8)


@pytest.fixture
def two_cut(tmp_path) -> tuple[Path, list[Path]]:
    write_levels(tmp_path / "train", {"ant": 4, "bee": 4})
    write_levels(tmp_path / "test", {"ant": 2, "bee": 2}, start=200)
    cut = [tmp_path / "train" / "ant" / "01.png", tmp_path / "train" / "bee" / "03.png"]
    for path in cut:
        path.write_bytes(path.read_bytes()[:50])
    return tmp_path, cut


def test_unreadable_images_are_found_before_training(two_cut):
    root, cut = two_cut
    message = complaint(f"folder:{root}", NOWHERE, image_size=4)
    assert message.startswith(str(cut[0]))
    assert "and 1 more" in message
    assert "--skip_bad" in message


def test_skip_bad_goes_on_and_lists_them(two_cut):
    root, cut = two_cut
    data = load_images(f"folder:{root}", NOWHERE, image_size=4, skip_bad=True)
    assert len(data.skipped) == 2
    assert all(str(path) in line for path, line in zip(cut, data.skipped, strict=True))
    assert data.train.pixels[:, 0, 0, 0].tolist() == [0, 2, 3, 4, 5, 6]
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(data.test) == 4


def test_skip_bad_does_not_lose_a_class(two_cut):
    root, _ = two_cut
    for path in (root / "test" / "bee").iterdir():
        path.write_bytes(b"")
    assert complaint(f"folder:{root}", NOWHERE, image_size=4, skip_bad=True).endswith("class bee")


# -------------------------------------------------------------------------------------------------------------- Fashion-MNIST


def idx(values: Tensor) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + bytes(values.flatten().tolist())


NAMES = [f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


@pytest.fixture
def fashion() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes, tops = [(12, 28, 28), (12,), (5, 28, 28), (5,)], [256, 10, 256, 10]
    tensors = [torch.randint(0, top, s, generator=draw, dtype=torch.uint8) for s, top in zip(shapes, tops, strict=True)]
    return dict(zip(NAMES, tensors, strict=True))


def write_idx(folder: Path, tensors: dict[str, Tensor], zipped: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in tensors.items():
        path, content = (folder / f"{name}.gz", gzip.compress(idx(values))) if zipped else (folder / name, idx(values))
        path.write_bytes(content)
    return folder


@pytest.mark.parametrize("folder", [".", "FashionMNIST/raw"])
@pytest.mark.parametrize("zipped", [True, False])
def test_fashion_mnist_is_read_in_both_layouts(tmp_path, fashion, folder, zipped, offline):
    write_idx(tmp_path / folder, fashion, zipped)
    data = load_images("fashion_mnist", tmp_path, image_size=28)
    found = [data.train.pixels[:, 0], data.train.labels, data.test.pixels[:, 0], data.test.labels]
    assert all(torch.equal(ours, theirs.to(ours.dtype)) for ours, theirs in zip(found, fashion.values(), strict=True))
    assert data.train.labels.dtype == torch.int64
    assert (data.channels, len(data.classes), data.classes[9]) == (1, 10, "Ankle boot")


@pytest.mark.parametrize("folder", [".", "FashionMNIST/raw"])
def test_fashion_mnist_is_what_torchvision_reads(tmp_path, fashion, folder, offline):
    """The published files as they are, against torchvision's own reader of a folder of its own."""
    from torchvision.datasets import FashionMNIST

    write_idx(tmp_path / "theirs" / "FashionMNIST" / "raw", fashion, zipped=False)
    write_idx(tmp_path / "ours" / folder, fashion)
    data = load_images("fashion_mnist", tmp_path / "ours", image_size=28)
    for ours, train in ((data.train, True), (data.test, False)):
        theirs = FashionMNIST(str(tmp_path / "theirs"), train=train)
        assert torch.equal(ours.pixels[:, 0], theirs.data)
        assert torch.equal(ours.labels, theirs.targets)
        assert data.classes == theirs.classes


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "header only": lambda content: content[:6],
    "nothing": lambda content: b"",
    "a byte too many": lambda content: content + b"\0",
    "no zeros first": lambda content: b"\x89PNG" + content[4:],
    "floats": lambda content: content[:2] + b"\x0d" + content[3:],
    "a larger count": lambda content: content[:4] + struct.pack(">I", 13) + content[8:],
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", [NAMES[0], NAMES[3]])
def test_a_damaged_idx_file_is_named(tmp_path, fashion, name, damage, zipped):
    write_idx(tmp_path, fashion, zipped)
    path, content = tmp_path / (f"{name}.gz" if zipped else name), DAMAGE[damage](idx(fashion[name]))
    path.write_bytes(gzip.compress(content) if zipped else content)
    assert complaint("fashion_mnist", tmp_path).startswith(str(path))


def test_a_gzip_file_cut_in_half_is_named(tmp_path, fashion):
    write_idx(tmp_path, fashion)
    path = tmp_path / f"{NAMES[0]}.gz"
    path.write_bytes(path.read_bytes()[:5000])
    assert complaint("fashion_mnist", tmp_path).startswith(str(path))


@pytest.mark.parametrize("wrong", [torch.zeros(11), torch.zeros(12, 1), torch.full((12,), 10)])
def test_labels_that_do_not_fit_are_named(tmp_path, fashion, wrong):
    write_idx(tmp_path, fashion | {NAMES[1]: wrong.byte()})
    assert str(tmp_path / NAMES[0]) in complaint("fashion_mnist", tmp_path)


# --------------------------------------------------------------------------------------------------- CIFAR, and being offline


@pytest.fixture
def offline(monkeypatch) -> None:
    def unreachable(*arguments: object, **options: object) -> None:
        raise URLError("no network in this test")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)


CIFAR = {
    "cifar10": ("cifar-10-batches-py", [f"data_batch_{n}" for n in range(1, 6)], "test_batch", "batches.meta"),
    "cifar100": ("cifar-100-python", ["train"], "test", "meta"),
}


@pytest.mark.parametrize("name", CIFAR)
def test_cifar_is_read_as_torchvision_lays_it_out(tmp_path, name, monkeypatch, offline):
    """Tiny files of the published form; only the check of the published checksums is switched off."""
    from torchvision.datasets import cifar

    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5=None: Path(path).is_file())
    folder, train, test, meta = CIFAR[name]
    (tmp_path / folder).mkdir()
    draw, images, labels = np.random.default_rng(0), {}, {}
    kind = "labels" if name == "cifar10" else "fine_labels"
    for file in [*train, test]:
        images[file], labels[file] = draw.integers(0, 256, (2, 3, 32, 32), dtype=np.uint8), draw.integers(0, 10, 2).tolist()
        content = {"data": images[file].reshape(2, -1), kind: labels[file]}
        (tmp_path / folder / file).write_bytes(pickle.dumps(content))
    classes = [f"class {n}" for n in range(10)]
    key = "label_names" if name == "cifar10" else "fine_label_names"
    (tmp_path / folder / meta).write_bytes(pickle.dumps({key: classes}))
    data = load_images(name, tmp_path)
    assert torch.equal(data.train.pixels, torch.from_numpy(np.concatenate([images[file] for file in train])))
    assert torch.equal(data.test.pixels, torch.from_numpy(images[test]))
    assert data.train.labels.tolist() == [label for file in train for label in labels[file]]
    assert data.test.labels.tolist() == labels[test]
    assert (data.channels, data.image_size, data.classes) == (3, 32, classes)


@pytest.mark.parametrize("name", ["fashion_mnist", *CIFAR])
def test_without_a_network_the_files_and_their_place_are_named(tmp_path, name, offline, capsys):
    message = complaint(name, tmp_path)
    if name in CIFAR:
        folder, train, test, meta = CIFAR[name]
        due = [f"{folder}/{file}" for file in (*train, test, meta)]
    else:
        due = [f"{file}.gz" for file in NAMES]
    assert message.startswith(f"{name} is not in {tmp_path}")
    assert message.endswith(f"put {', '.join(due)} there")


# ------------------------------------------------------------------------------------------------------------ hard cases


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_greys_of_16_bits_keep_their_shades(tmp_path, suffix):
    ramp = np.linspace(0, 65535, 16, dtype=np.uint16)[None].repeat(16, 0)
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(ramp).save(path)
    for channels in (1, 3):
        assert square(read_image(path, channels), 16)[:, 3].tolist() == [[17 * n for n in range(16)]] * channels


def test_floating_point_pixels_are_refused(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(DataError, match=r"float\.tiff .*8 or 16 bits"):
        square(read_image(tmp_path / "float.tiff", 3), 4)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_lies_on_white(tmp_path, mode):
    """A black drawing on nothing: without its transparency it would be black all over."""
    drawing = np.zeros((8, 8, 4), np.uint8)
    drawing[2:4, :, 3] = 255
    picture = Image.fromarray(drawing)
    if mode == "P":
        picture = Image.new("P", (8, 8), 0)
        picture.putpalette([0, 0, 0, 0, 0, 0])
        picture.paste(1, (0, 2, 8, 4))
        picture.save(tmp_path / "drawing.png", transparency=bytes([0, 255]))
    else:
        picture.convert(mode).save(tmp_path / "drawing.png")
    image = square(read_image(tmp_path / "drawing.png", 3), 8)
    assert (image[:, 2:4] == 0).all()
    assert (image[:, [0, 1, 4, 5, 6, 7]] == 255).all()


def test_a_strip_is_cut_before_it_is_enlarged(tmp_path, monkeypatch):
    """1 by 3,000 pixels: enlarged first, its short side would take its long one to 672,000."""
    from torchvision.transforms.v2 import functional as V

    resize, sizes = V.resize, []
    monkeypatch.setattr(V, "resize", lambda image, *a, **k: sizes.append(image.shape) or resize(image, *a, **k))
    Image.new("RGB", (3000, 1), (1, 2, 3)).save(tmp_path / "strip.png")
    assert square(read_image(tmp_path / "strip.png", 3), 224)[:, 0, 0].tolist() == [1, 2, 3]
    assert sizes == [(3, 1, 1)]


def test_moments_are_exact_on_any_number_of_threads():
    pixels = torch.randint(0, 200, (100, 3, 40, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pixels[:, 1] //= 3
    pixels[:, 2] = 77
    values, threads = pixels.double() / 255, torch.get_num_threads()
    due = values.mean((0, 2, 3)), values.std((0, 2, 3), correction=0).clamp(min=1e-3)
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            for ours, exact in zip(moments(pixels), due, strict=True):
                torch.testing.assert_close(ours, exact.float(), rtol=2e-7, atol=0)
            assert all(torch.equal(a, b) for a, b in zip(moments(pixels), moments(pixels.flip(0)), strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("size", [0, -1])
def test_an_image_size_below_one_is_refused(tmp_path, size):
    for source in ("digits", f"folder:{tmp_path}"):
        assert complaint(source, NOWHERE, image_size=size).endswith(f"got {size}")


def test_hidden_files_are_not_images(tmp_path):
    """macOS leaves ._NAME.png beside NAME.png on foreign disks."""
    write_levels(tmp_path / "train", {"ant": 1, "bee": 1})
    write_levels(tmp_path / "test", {"ant": 1, "bee": 1})
    (tmp_path / "train" / "ant" / "._00.png").write_bytes(b"\0\5\26\7")
    assert len(load_images(f"folder:{tmp_path}", NOWHERE, image_size=4).train) == 2


def test_each_class_needs_five_images_to_be_split(tmp_path):
    write_levels(tmp_path, {"ant": 4, "bee": 30})
    assert "[4, 30]" in complaint(f"folder:{tmp_path}", NOWHERE, image_size=4)


def test_a_gzip_file_with_a_flipped_bit_is_named(tmp_path, fashion):
    """In any of its bytes: what it breaks, header, code or checksum, raises errors of different kinds."""
    write_idx(tmp_path, fashion)
    path = tmp_path / f"{NAMES[1]}.gz"
    content, damaged = path.read_bytes(), 0
    for n in range(len(content)):
        path.write_bytes(content[:n] + bytes([content[n] ^ 0x14]) + content[n + 1 :])
        try:
            found = load_images("fashion_mnist", tmp_path, image_size=1).train.labels
        except DataError as error:
            assert str(error).startswith(str(path))  # noqa: PT017
            damaged += 1
        else:  # the time of packing, or the file's name
            assert torch.equal(found, fashion[NAMES[1]].long())
    assert damaged > len(content) / 2


def test_an_idx_file_that_is_missing_is_named(tmp_path, fashion, offline, capsys):
    write_idx(tmp_path, fashion)
    (tmp_path / f"{NAMES[2]}.gz").unlink()
    assert complaint("fashion_mnist", tmp_path).endswith(f"put {NAMES[2]}.gz there")


def test_a_download_that_broke_off_is_taken_up_again(tmp_path, fashion, monkeypatch):
    from torchvision import datasets

    raw = tmp_path / "FashionMNIST" / "raw"
    write_idx(raw, {name: fashion[name] for name in NAMES[:2]})
    monkeypatch.setattr(datasets, "FashionMNIST", lambda *a, **k: write_idx(raw, fashion))
    assert len(load_images("fashion_mnist", tmp_path, image_size=28).test) == 5


# -------------------------------------------------------------------------------------------------------------------- imports


def test_importing_does_not_wait_for_what_one_set_needs(launch):
    """scikit-learn, torchvision, Pillow and matplotlib come with the first set that wants them."""
    slow = ("sklearn", "torchvision", "PIL", "matplotlib")
    done = launch(launcher=("-c", f"import sys, tasks.data.images; print([m for m in {slow!r} if m in sys.modules])"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
