from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from zoo import Preprocess
from zoo.pretrained.preprocess import eight_bits

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
SIZES = st.integers(20, 70)


def drawn(rows, columns, seed):
    return torch.randint(256, (3, rows, columns), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def pillow(pixels):
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))


@given(SIZES, SIZES, st.integers(8, 40), st.integers(0, 9), st.sampled_from(["bilinear", "bicubic"]), st.integers(0, 99))
def test_it_is_torchvisions_preset_to_the_bit(rows, columns, size, more, interpolation, seed):
    """Of tensors and of PIL images, which torchvision resizes in different ways."""
    theirs = ImageClassification(
        crop_size=size, resize_size=size + more, mean=MEAN, std=STD, interpolation=InterpolationMode(interpolation)
    )
    ours = Preprocess(size, MEAN, STD, resize=size + more, interpolation=interpolation)
    pixels = drawn(rows, columns, seed)
    for picture in (pixels, pixels.expand(2, -1, -1, -1), pillow(pixels)):
        assert torch.equal(ours(picture), theirs(picture))


@given(SIZES, SIZES, st.sampled_from(["bilinear", "bicubic"]), st.integers(0, 99))
def test_it_is_timms_transform_to_the_bit(rows, columns, interpolation, seed):
    theirs = create_transform((3, 28, 28), interpolation=interpolation, mean=MEAN, std=STD, crop_pct=0.875)
    ours = Preprocess(28, MEAN, STD, resize=32, interpolation=interpolation)
    picture = pillow(drawn(rows, columns, seed))
    assert (ours(picture) - theirs(picture)).abs().max() < 1e-6


def test_without_resize_the_middle_square_comes_first():
    pixels = torch.zeros(3, 4, 10, dtype=torch.uint8)
    pixels[:, :, 3:7] = 200
    assert (Preprocess(8, MEAN, STD).cut(pixels) == 200).all()
    assert (Preprocess(8, MEAN, STD).cut(pillow(pixels)) == 200).all()


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16), (1, 300), (7, 9)])
def test_pad_keeps_all_of_a_picture_on_black(shape):
    rows, columns = shape
    found = Preprocess(12, MEAN, STD, fit="pad").cut(torch.full((3, rows, columns), 200, dtype=torch.uint8))
    high, wide = (max(1, round(12 * side / max(shape))) for side in shape)
    assert found.shape == (3, 12, 12)
    inside = found[:, (12 - high) // 2 :, (12 - wide) // 2 :][:, :high, :wide]
    assert (inside == 200).all()
    assert (found == 200).sum() == 3 * high * wide
    assert (found > 0).sum() == 3 * high * wide


def test_squash_keeps_all_of_a_picture():
    pixels = torch.zeros(3, 8, 24, dtype=torch.uint8)
    pixels[:, :, :6] = 200
    found = Preprocess(8, MEAN, STD, fit="squash").cut(pixels)
    assert (found[..., :1] == 200).all()
    assert (found[..., 3:] == 0).all()
    assert torch.equal(found, Preprocess(8, MEAN, STD, fit="squash").cut(pixels.expand(2, -1, -1, -1))[1])


def test_a_grey_model_takes_coloured_pictures_of_pillow():
    grey = Preprocess(8, (0.5,), (0.25,), resize=10)
    assert grey(pillow(drawn(20, 30, 0))).shape == (1, 8, 8)
    assert json.loads(json.dumps(grey.config())) == grey.config()
    assert Preprocess.of(grey.config()).config() == grey.config()


RAMP = np.arange(256, dtype=np.uint8)[None].repeat(256, 0)
"""From black on the left to white on the right."""
MODES = {*Image.MODES, "LA", "La", "PA", "RGBX", "RGBa", "I;16", "I;16B", "I;16L"}


def in_mode(mode):
    """The ramp in a mode of Pillow, by whatever way Pillow knows."""
    grey = Image.fromarray(RAMP)
    if mode.startswith("I;16"):
        kind = {"I;16B": ">u2", "I;16": "<u2", "I;16L": "<u2"}.get(mode, "=u2")
        return Image.frombytes(mode, (256, 256), (RAMP.astype(np.uint16) * 257).astype(kind).tobytes())
    if mode in ("I", "F"):
        return Image.fromarray(RAMP.astype(np.int32) * 257 if mode == "I" else RAMP.astype(np.float32))
    for way in ([mode], ["RGB", mode], ["LA", mode], ["RGBA", mode]):
        picture = grey
        try:
            for step in way:
                picture = picture.convert(step)
        except ValueError:
            continue
        return picture
    pytest.skip(f"Pillow makes no picture of mode {mode}")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", sorted(MODES))
def test_every_mode_of_pillow_is_right_or_refused(mode, channels):
    """Black is 0, white 255, and what is between lies between: nothing is cut off."""
    preprocess = Preprocess(256, (0.0,) * channels, (1.0,) * channels, 256)
    picture = in_mode(mode)
    assert picture.mode == mode
    if mode == "F":
        with pytest.raises(ValueError, match="mode F"):
            preprocess(picture)
        return
    got = preprocess(picture).double() * 255
    assert got.shape == (channels, 256, 256)
    if mode == "1":  # dithered
        assert {*got.unique().tolist()} == {0.0, 255.0}
        assert abs(got.mean() - 127.5) < 2
    else:
        assert (got - torch.from_numpy(RAMP)).abs().max() <= {"P": 26, "PA": 26, "LAB": 2, "HSV": 2, "YCbCr": 2}.get(mode, 0.01)


@pytest.mark.parametrize(("low", "high"), [(0, 255), (-5, 300), (0, 70_000)])
def test_integers_that_are_not_of_16_bits_are_refused(low, high):
    picture = Image.fromarray(np.linspace(low, high, 64, dtype=np.int32).reshape(8, 8))
    with pytest.raises(ValueError, match=f"mode I: its values must be of 16 bits, got {low} to {high}"):
        eight_bits(picture, "RGB")
    assert not np.asarray(eight_bits(Image.new("I", (3, 3)), "L")).any()  # black is black in any


@pytest.mark.parametrize("mode", ["LA", "La", "RGBA", "RGBa", "PA", "P"])
def test_what_is_transparent_lies_on_white(mode):
    picture = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    picture.paste((0, 0, 0, 255), (0, 0, 2, 4))
    if mode == "P":
        picture = Image.fromarray(np.array([[0, 0, 1, 1]] * 4, np.uint8)).convert("P")
        picture.putpalette([0, 0, 0, 200, 0, 0])
        picture.info["transparency"] = 1
    elif mode == "PA":
        plain = Image.fromarray(np.zeros((4, 4), np.uint8)).convert("PA")
        plain.putalpha(picture.getchannel("A"))
        picture = plain
    else:
        picture = picture.convert("LA").convert(mode) if mode == "La" else picture.convert(mode)
    assert picture.mode == mode
    for kind in ("RGB", "L"):
        assert np.asarray(eight_bits(picture, kind).convert("L")).tolist() == [[0, 0, 255, 255]] * 4


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_files_of_16_bits_keep_their_shades(tmp_path, suffix):
    """Grey ones, which Pillow opens as I;16 or, an old one, as I."""
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / f"x.{suffix}")
    with Image.open(tmp_path / f"x.{suffix}") as picture:
        assert picture.mode.startswith("I")
        assert np.array_equal(np.asarray(eight_bits(picture, "L")), RAMP)


def test_a_dark_png_of_16_bits_is_dark(tmp_path):
    """Which old Pillow reads as I, and which has no value above 255."""
    Image.fromarray(np.full((4, 4), 255, np.uint16)).save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as picture:
        assert not np.asarray(eight_bits(picture, "L")).any()
    picture = Image.fromarray(np.full((4, 4), 255, np.int32))
    picture.format = "PNG"
    assert not np.asarray(eight_bits(picture, "L")).any()


def test_what_is_no_picture_is_refused():
    with pytest.raises(ValueError, match="picture must be a PIL image or a tensor"):
        Preprocess(8, MEAN, STD)(RAMP)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (dict(image_size=0), "image_size"),
        (dict(std=(1.0,)), "std"),
        (dict(std=(1.0, 0.0, 1.0)), "std"),
        (dict(resize=7), "resize"),
        (dict(interpolation="nearest"), "interpolation"),
        (dict(fit="stretch"), "fit"),
        (dict(fit="pad", resize=9), "fit"),
    ],
)
def test_bad_arguments_are_named(arguments, word):
    with pytest.raises(ValueError, match=f"{word} must be"):
        Preprocess(**(dict(image_size=8, mean=MEAN, std=STD) | arguments))


def test_another_config_is_refused():
    for config in ({"image_size": 3, "size": 4}, 7, {}):
        with pytest.raises(ValueError, match=r"preprocess must be an object as Preprocess\.config"):
            Preprocess.of(config)


@pytest.mark.parametrize("picture", [torch.zeros(3, 9, 9), torch.zeros(1, 9, 9, dtype=torch.uint8), torch.zeros(9, 9).byte()])
def test_other_tensors_are_refused(picture):
    with pytest.raises(ValueError, match=r"picture must be uint8 \(\.\.\., 3, y, x\)"):
        Preprocess(8, MEAN, STD)(picture)
