"""One picture: decoded, upright, reduced where it is far larger than needed; and what tells it from others."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from tasks.data import DataError
from tasks.data.tree import printable
from zoo.files import first_line
from zoo.pretrained.preprocess import Preprocess, eight_bits

PIXELS_IN_FLIGHT = 40_000_000
"""Pixels of all pictures that are being decoded at the same time; one takes 20 bytes at most. A larger picture goes alone."""


class Budget:
    """Lets threads go on while the pixels of all that have begun stay below a limit.

    strict: a picture that is larger than the limit is refused; else it goes alone.
    """

    def __init__(self, limit: int | None = None, strict: bool = False) -> None:
        self.strict = strict
        worker = get_worker_info()  # one of several processes, each of which has a budget
        self.limit = limit or PIXELS_IN_FLIGHT // (worker.num_workers if worker else 1)
        self.used, self.changed = 0, threading.Condition()

    @contextlib.contextmanager
    def spend(self, pixels: int) -> Iterator[None]:
        if self.strict and pixels > self.limit:
            raise ValueError(f"{pixels:,} pixels, at most {self.limit:,} are taken")
        with self.changed:
            self.changed.wait_for(lambda: self.used == 0 or self.used + pixels <= self.limit)
            self.used += pixels
        try:
            yield
        finally:
            with self.changed:
                self.used -= pixels
                self.changed.notify_all()


def reduction(columns: int, rows: int, preprocess: Preprocess) -> int:
    """By how much a picture may be reduced while it is decoded: 1 below eight times the pixels that a side needs, at least
    four times as many are left."""
    side = max(columns, rows) if preprocess.fit == "pad" else min(columns, rows)
    needed = preprocess.resize or preprocess.image_size
    return 1 if side < 8 * needed else side // (4 * needed)


def reduced(picture: Any, factor: int) -> Any:
    """Means of squares of pixels; of what is no whole square, half is cut off on each side, so that the middle stays there."""
    across, down = (min(factor, side) for side in picture.size)
    columns, rows = picture.width // across * across, picture.height // down * down
    left, top = (picture.width - columns) // 2, (picture.height - rows) // 2
    return picture.reduce((across, down), (left, top, left + columns, top + rows))


SENT = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")
"""Formats of pictures that come as bytes, from whoever: decoders that are much used, and start no other program."""


def read_image(
    path: str | Path | BinaryIO, channels: int, preprocess: Preprocess | None = None, budget: Budget | None = None
) -> Tensor:
    """One picture as uint8 (channels, y, x), upright.

    path:       a file; bytes that somebody sent are one of `SENT`.
    preprocess: what the picture is for. One that is far larger is reduced: a JPEG while it is decoded, others by the mean of
                squares of pixels. Without it every pixel is kept.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError
    from torchvision.transforms.v2 import functional as V

    mode = "RGB" if channels == 3 else "L"

    def factor(picture: Any) -> int:
        return reduction(picture.width, picture.height, preprocess) if preprocess else 1

    sent = not isinstance(path, str | Path)
    try:
        with Image.open(path, formats=SENT if sent else None) as picture:
            whole = picture.size
            if factor(picture) > 1:
                picture.draft(None, (-(-whole[0] // factor(picture)), -(-whole[1] // factor(picture))))
            columns, rows = whole if picture.info.get("progressive") else picture.size  # which are decoded whole
            with (budget or Budget()).spend(columns * rows):
                ImageOps.exif_transpose(picture, in_place=True)
                small: Any = picture
                if factor(picture) > 1:  # means of colours are right in these modes; transparency counts as it should
                    plain = picture.mode in ("L", "LA", "RGB", "RGBA") and "transparency" not in picture.info
                    small = reduced(picture if plain else eight_bits(picture, mode), factor(picture))
                return V.pil_to_tensor(eight_bits(small, mode))
    except Exception as error:  # whatever a decoder raises is about its file
        name = "the picture" if sent else printable(os.fspath(path))
        why = f"none of {', '.join(SENT)}" if sent and isinstance(error, UnidentifiedImageError) else first_line(error)
        raise DataError(f"{name} cannot be read as an image ({why})") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without Pillow's warnings, which do not say which file they are about."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def digest_of(path: str) -> bytes:
    """What a file is, by its content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()


def sums_of(pixels: Tensor) -> Tensor:
    """Sums of the bytes (..., c, y, x), and of their squares: whole numbers (c, 2), the same on any number of threads."""
    values = pixels.flatten(-2).movedim(-2, 0).flatten(1).long()
    return torch.stack([values.sum(1), values.square().sum(1)], 1)
