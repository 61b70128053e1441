"""From a picture to what a model expects, as torchvision's and timm's evaluation presets do it, to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from layers.checks import require

if TYPE_CHECKING:
    from PIL.Image import Image


FITS = ("cut", "pad", "squash")


@dataclass(frozen=True)
class Preprocess:
    """Picture -> float32 (channels, image_size, image_size): resized, its middle cut out, 0..255 taken as 0..1, normalised.

    image_size: pixels of a side.
    mean, std:  of each channel, one number a channel, in 0..1.
    resize:     pixels of the shorter side before the middle is cut out; None cuts out the middle square first, then resizes it.
    interpolation: "bilinear" or "bicubic", both antialiased.
    fit:        without `resize`, how any picture becomes a square: "cut" keeps the middle, "pad" the whole on black, "squash" the
                whole with another ratio of its sides.
    Proven against torchvision's `ImageClassification` and timm's `create_transform`. Needs torchvision.
    """

    image_size: int
    mean: Sequence[float]
    std: Sequence[float]
    resize: int | None = None
    interpolation: str = "bilinear"
    fit: str = "cut"

    def __post_init__(self) -> None:
        require(self.image_size > 0, "image_size", self.image_size, "a positive number of pixels")
        require(len(self.mean) == len(self.std), "std", tuple(self.std), f"as many numbers as mean, {len(self.mean)}")
        require(min(self.std, default=0) > 0, "std", tuple(self.std), "positive, a number for each channel")
        enough = self.resize is None or self.resize >= self.image_size
        require(enough, "resize", self.resize, f"at least image_size {self.image_size}, or None")
        require(self.interpolation in ("bilinear", "bicubic"), "interpolation", self.interpolation, "bilinear or bicubic")
        require(self.fit in FITS, "fit", self.fit, "cut, pad or squash")
        require(self.resize is None or self.fit == "cut", "fit", self.fit, "cut where there is a resize")

    @property
    def channels(self) -> int:
        return len(self.mean)

    @classmethod
    def of(cls, config: Any) -> Preprocess:
        """What `config` gave. Errors: `ValueError` for anything else."""
        try:
            return cls(**config)
        except TypeError as error:
            raise ValueError(f"preprocess must be an object as Preprocess.config() gives it, got {config!r}") from error

    def config(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    def __call__(self, picture: Image | Tensor) -> Tensor:
        """picture: a PIL image, or uint8 (..., channels, y, x), of any size -> float32 (..., channels, image_size, image_size)

        Errors: `ValueError` for a PIL image of a mode that has no certain black and white; see `eight_bits`.
        """
        return self.normalise(self.cut(picture))

    def cut(self, picture: Image | Tensor) -> Tensor:
        """picture -> uint8 (..., channels, image_size, image_size)"""
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as V  # v2 resizes bytes as bytes, and rounds otherwise than the presets do

        if not isinstance(picture, Tensor):
            picture = eight_bits(picture, "RGB" if self.channels == 3 else "L")
        elif picture.dtype != torch.uint8 or picture.ndim < 3 or picture.shape[-3] != self.channels:
            raise ValueError(f"picture must be uint8 (..., {self.channels}, y, x), got {picture.dtype} {tuple(picture.shape)}")
        if self.resize is None:
            return square(picture if isinstance(picture, Tensor) else V.pil_to_tensor(picture), self.image_size, self.fit)
        small: Any = V.resize(cast(Tensor, picture), [self.resize], InterpolationMode(self.interpolation), antialias=True)
        middle: Any = V.center_crop(small, [self.image_size])
        return middle if isinstance(middle, Tensor) else V.pil_to_tensor(middle)

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 (..., channels, y, x) -> float32 of that shape"""
        mean, std = (torch.tensor(x, device=pixels.device) for x in (self.mean, self.std))
        return normalise(pixels.float() / 255, mean, std)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """images (..., channels, y, x), of mean and standard deviation (channels,) -> of mean 0 and standard deviation 1"""
    return (images - mean[:, None, None]) / std[:, None, None]


def eight_bits(picture: Image, mode: str) -> Image:
    """A picture of any mode of Pillow in `mode`, "RGB" or "L".

    Of 16 bits the upper 8 are kept, where Pillow would cut off at 255. What is transparent is laid on white.
    Errors: `ValueError` that names the mode, for "F", for "I" unless it holds 16 bits, as in a PNG file, and for what Pillow
            cannot convert.
    """
    from PIL import Image as Pillow

    require(isinstance(picture, Pillow.Image), "picture", picture, "a PIL image or a tensor")
    if picture.mode == "F":
        raise ValueError("picture of mode F: its pixels are floating-point numbers, whole numbers of 8 or 16 bits are expected")
    if picture.mode.startswith("I"):
        values = np.asarray(picture)
        low, high = values.min(initial=0), values.max(initial=0)
        dark = 0 < high < 256 and picture.format != "PNG"  # 8 bits, but a PNG file that is not read as mode L has 16
        if picture.mode == "I" and (low < 0 or dark or high > 65535):
            raise ValueError(f"picture of mode I: its values must be of 16 bits, got {low} to {high}; make it mode L or I;16")
        picture = Pillow.fromarray((values >> 8).astype(np.uint8))
    try:
        if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
            whole = picture.convert("LA").convert("RGBA") if picture.mode == "La" else picture.convert("RGBA")
            picture = Pillow.alpha_composite(Pillow.new("RGBA", picture.size, "white"), whole)
        return picture.convert("RGB").convert(mode)
    except ValueError as error:
        raise ValueError(f"picture of mode {picture.mode} cannot be made {mode}: {error}") from error


def square(pixels: Tensor, size: int, fit: str = "cut") -> Tensor:
    """The middle square, or what else `Preprocess.fit` says, at `size`: uint8 (..., c, y, x) -> uint8 (..., c, size, size)."""
    from torchvision.transforms.v2 import functional as V

    rows, columns = pixels.shape[-2:]
    shape = [size, size]
    if fit == "cut":
        pixels = V.center_crop(pixels, [min(rows, columns)])
    elif fit == "pad":
        shape = [max(1, round(side * size / max(rows, columns))) for side in (rows, columns)]
    parts = [pixels] if pixels.ndim == 3 else pixels.split(1024)  # its floats are large
    resized = [V.resize(part, shape, antialias=True) for part in parts]
    whole = resized[0] if pixels.ndim == 3 else torch.cat(resized)
    top, left = ((size - side) // 2 for side in shape)
    return F.pad(whole, (left, size - shape[1] - left, top, size - shape[0] - top)) if shape != [size, size] else whole
