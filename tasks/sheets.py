"""Pictures of many images: a grid as PNG, a film as GIF or WebP."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from zoo import files

GAP, LEAST = 2, 48
"""Pixels between images, and the least that an image has on a side: smaller ones are enlarged by a whole factor."""
FILMS = (".gif", ".webp")


def rows(images: Tensor, labels: Tensor | None, count: int) -> list[Tensor]:
    """The first `count` images of each class (n, c, y, x); without classes ten such rows."""
    if labels is None:
        return list(images[: 10 * count].split(count))
    return [images[labels == label][:count] for label in labels.unique().tolist()]


def beside(images: Tensor, others: Tensor, count: int) -> list[Tensor]:
    """Rows of `count` images, below each row those that belong to it."""
    return [row for pair in zip(images.split(count), others.split(count), strict=True) for row in pair]


def grid(found: Sequence[Tensor]) -> Tensor:
    """One image (c, y, x) of rows of images, uint8 (n, c, y, x), on white."""
    factor = max(1, -(-LEAST // found[0].shape[-1]))
    large = [row.repeat_interleave(factor, 2).repeat_interleave(factor, 3) for row in found]
    most = max(len(row) for row in large)
    lines = []
    for row in large:
        framed = F.pad(row, (GAP, 0, GAP, 0), value=255)
        line = torch.cat(list(framed), 2)
        lines.append(F.pad(line, (0, (most - len(row)) * framed.shape[-1]), value=255))
    return F.pad(torch.cat(lines, 1), (0, GAP, 0, GAP), value=255)


def picture(image: Tensor) -> Image.Image:
    """image: uint8 (c, y, x) of one or three channels."""
    return Image.fromarray(image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).contiguous().numpy())


def write(path: Path, found: Sequence[Tensor]) -> None:
    """A PNG file of rows of images."""
    files.write_bytes(path, png(grid(found)))


def png(image: Tensor) -> bytes:
    """image: uint8 (c, y, x) of one or three channels."""
    picture(image).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


def film(path: Path, sheets: Sequence[Sequence[Tensor]], seconds: float = 3.0) -> None:
    """A GIF or WebP file of sheets, one after the other, which lasts so long; the last one stays for a second."""
    first, *others = [picture(grid(sheet)) for sheet in sheets]
    times = [max(20, round(1000 * seconds / len(sheets)))] * len(others) + [1000]
    kind = path.suffix[1:].upper()
    first.save(buffer := io.BytesIO(), kind, save_all=True, append_images=others, duration=times, loop=0, lossless=True)
    files.write_bytes(path, buffer.getvalue())
