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


def test_a_grey_model_takes_coloured_pictures_of_pillow():
    grey = Preprocess(8, (0.5,), (0.25,), resize=10)
    assert grey(pillow(drawn(20, 30, 0))).shape == (1, 8, 8)
    assert json.loads(json.dumps(grey.config())) == grey.config()
    assert Preprocess.of(grey.config()).config() == grey.config()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (dict(image_size=0), "image_size"),
        (dict(std=(1.0,)), "std"),
        (dict(std=(1.0, 0.0, 1.0)), "std"),
        (dict(resize=7), "resize"),
        (dict(interpolation="nearest"), "interpolation"),
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
