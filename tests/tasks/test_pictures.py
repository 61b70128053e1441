"""Pictures in folders: how they are found, read and split, and every complaint."""

from __future__ import annotations

import json
import os
import re
from functools import partial
from pathlib import Path

import command
import numpy as np
import pytest
import torch
from PIL import Image

from tasks.data import DataError
from tasks.data.images import (
    load_images,
    read_image,
    read_pictures,
)
from zoo.pretrained.preprocess import Preprocess, square

NOWHERE = Path("nowhere")
complaint = partial(command.complaint, load_images)
"""The message of the DataError that `load_images` raises."""


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


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_greys_of_16_bits_keep_their_shades(tmp_path, suffix):
    ramp = np.linspace(0, 65535, 16, dtype=np.uint16)[None].repeat(16, 0)
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(ramp).save(path)
    for channels in (1, 3):
        assert square(read_image(path, channels), 16)[:, 3].tolist() == [[17 * n for n in range(16)]] * channels


def test_a_dark_scan_of_16_bits_is_dark(tmp_path):
    """Old Pillow reads it as 32-bit integers, none of which is above 255."""
    Image.fromarray(np.full((4, 4), 255, np.uint16)).save(tmp_path / "dark.png")
    assert not read_image(tmp_path / "dark.png", 3).any()


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


def test_hidden_files_are_not_images(tmp_path):
    """macOS leaves ._NAME.png beside NAME.png on foreign disks."""
    write_levels(tmp_path / "train", {"ant": 1, "bee": 1})
    write_levels(tmp_path / "test", {"ant": 1, "bee": 1})
    (tmp_path / "train" / "ant" / "._00.png").write_bytes(b"\0\5\26\7")
    assert len(load_images(f"folder:{tmp_path}", NOWHERE, image_size=4).train) == 2


def test_each_class_needs_five_images_to_be_split(tmp_path):
    write_levels(tmp_path, {"ant": 4, "bee": 30})
    assert "[4, 30]" in complaint(f"folder:{tmp_path}", NOWHERE, image_size=4)
