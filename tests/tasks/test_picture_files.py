"""Pictures as they are read: of every mode and format, upright, reduced where they are far too large, within a budget."""

from __future__ import annotations

import re
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.data import DataError
from tasks.data.picture_files import Budget, digest_of, read_image, reduction
from tasks.data.pictures import OnDisk, decode, read_pixels
from tasks.data.tree import scan, suffixes
from zoo.pretrained.preprocess import Preprocess, square


def preset(size: int = 16, fit: str = "cut", resize: int | None = None) -> Preprocess:
    return Preprocess(size, (0.0,) * 3, (1.0,) * 3, resize, fit=fit)


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


@pytest.mark.parametrize("size", [0, 100, 2**20 + 1, 3 * 2**20])
def test_a_file_is_known_by_its_bytes(tmp_path, size):
    path, content = tmp_path / "x", bytes(size)
    path.write_bytes(content)
    known = digest_of(str(path))
    for place in {0, size // 2, size - 1} if size else ():
        path.write_bytes(content[:place] + b"x" + content[place + 1 :])
        assert digest_of(str(path)) != known, place
    path.write_bytes(content + b"\0")
    assert digest_of(str(path)) != known


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


def test_every_suffix_that_is_taken_for_a_picture_can_be_read(tmp_path):
    assert {".apng", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".png", ".pnm", ".tga", ".tiff"} <= suffixes()
    for n, suffix in enumerate(sorted(suffixes())):
        name = f"{n}{suffix.upper() if n % 2 else suffix}"
        Image.new("RGB", (8, 8), (1, 200, 3)).save(tmp_path / name, format=Image.registered_extensions()[suffix])
    found = [*scan(str(tmp_path)).files()]
    assert len(found) == len(suffixes())
    for path in found:
        assert (read_image(path, 3)[1] > 150).all(), path


@pytest.mark.parametrize("needed", [1, 7, 224])
def test_a_picture_is_reduced_to_four_times_what_is_needed_at_least(needed):
    for side in (needed, 8 * needed - 1, 8 * needed, 8 * needed + 1, 50 * needed + 3):
        for fit, resize, shape in (
            ("cut", None, (side, 3 * side)),
            ("squash", None, (3 * side, side)),
            ("cut", needed, (side, side)),
            ("pad", None, (side, max(1, side // 3))),
        ):
            factor = reduction(*shape, preset(needed, fit, resize))
            assert (factor > 1) == (side >= 8 * needed)
            assert factor == 1 or side // factor >= 4 * needed


def smooth(mode: str, size: tuple[int, int]) -> Image.Image:
    """A picture whose shape survives any reduction: a ramp to the right in red, one down in green, transparent at the top."""
    ramp = Image.linear_gradient("L").resize(size)
    whole = Image.merge(
        "RGBA", (ramp.transpose(Image.Transpose.ROTATE_90).resize(size), ramp, ramp, ramp.point(lambda x: 255 * (x > 99)))
    )
    if mode == "I;16":
        return Image.fromarray(np.asarray(ramp).astype(np.uint16) * 257)
    return (
        whole.convert("RGBA" if mode == "RGBA" else "LA").convert(mode)
        if mode in ("LA", "RGBA")
        else whole.convert("RGB").convert(mode)
    )


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_a_reduced_picture_looks_as_the_whole_one(tmp_path, mode):
    """Of every mode, in the formats that Pillow writes and reads it in: the same to a few levels, and upright."""
    exif, done = Image.Exif(), 0
    exif[0x0112] = 6
    for suffix in ("png", "jpg", "tiff", "webp"):
        path = tmp_path / f"x.{suffix}"
        try:
            smooth(mode, (256, 200)).save(path, exif=exif)
            with Image.open(path) as opened:
                opened.load()
        except OSError:
            continue
        done += 1
        for channels in (1, 3):
            reader = Preprocess(16, (0.0,) * channels, (1.0,) * channels)
            small, whole = read_image(path, channels, reader), read_image(path, channels)
            assert max(small.shape[1:]) <= max(whole.shape[1:]) / 2
            assert (small.shape[1] > small.shape[2]) == (whole.shape[1] > whole.shape[2])
            levels = (reader.cut(small).int() - reader.cut(whole).int()).abs()
            assert levels.float().mean() < 2, path
            assert levels.max() <= 16, path
    assert done > 1


def test_what_is_not_far_too_large_is_read_as_it_is(tmp_path):
    """To the bit as torchvision's presets have it, below eight times what is needed."""
    noise = np.random.default_rng(0).integers(0, 256, (127, 140, 3), dtype=np.uint8)
    for suffix in ("png", "jpg"):
        Image.fromarray(noise).save(tmp_path / f"x.{suffix}")
        with Image.open(tmp_path / f"x.{suffix}") as picture:
            assert torch.equal(read_pixels(tmp_path / f"x.{suffix}", preset(16)), preset(16).cut(picture))


def test_the_pixels_that_are_decoded_together_are_limited(tmp_path):
    """Whatever the threads draw: never more than the limit, but for one picture that is larger, which goes alone."""
    budget, lock, together, most = Budget(100), threading.Lock(), [], []

    def work(pixels: int) -> None:
        with budget.spend(pixels):
            with lock:
                together.append(pixels)
                most.append([*together])
            threading.Event().wait(0.001)
            with lock:
                together.remove(pixels)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [30, 40, 200, 99, 1, 50, 50, 101, 25, 25, 25, 25] * 4))
    assert all(sum(found) <= 100 or len(found) == 1 for found in most)
    assert max(map(len, most)) > 1, "nothing ran side by side"
    assert budget.used == 0


def test_every_picture_of_a_batch_spends_its_pixels(tmp_path, monkeypatch):
    spent, real = [], Budget.spend
    monkeypatch.setattr(Budget, "spend", lambda self, pixels: spent.append((id(self), pixels)) or real(self, pixels))
    paths = [str(tmp_path / name) for name in ("a.png", "b.jpg", "c.jpg")]
    for path, more in zip(paths, ({}, {}, {"progressive": True}), strict=True):
        Image.new("RGB", (256, 256)).save(path, **more)
    decode(paths, [0] * 3, preset(8), False, [])
    assert len({budget for budget, _ in spent}) == 1
    assert sorted(pixels for _, pixels in spent) == [32 * 32, 256 * 256, 256 * 256]  # of a JPEG only what its decoder makes


def test_warnings_of_pillow_do_not_come_without_a_file_name(tmp_path, monkeypatch):
    """Here that a picture has more pixels than some like."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        read_image(tmp_path / "a.png", 3)
        assert seen, "Pillow warns no longer of this"
        seen.clear()
        found = decode([str(tmp_path / "a.png")], [0], preset(8), False, [])
        OnDisk(found.paths, preset(8))[torch.tensor([0])]
    assert not seen
