"""Pictures in folders, one folder a class: found, decoded, cut to squares and split."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from tasks.data import DataError
from zoo.files import first_line
from zoo.pretrained.preprocess import eight_bits, square

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
Split = tuple[Tensor, Tensor]
Cut = Callable[[Tensor], Tensor]


def load_folder(
    root: Path, size: int, skip_bad: bool, skipped: list[str], cut: Cut | None = None
) -> tuple[Split, Split, list[str], str]:
    """PATH/train/CLASS/images with PATH/test or PATH/val, or PATH/CLASS/images, which is split 80 to 20."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: expected PATH/CLASS/images, or PATH/train/CLASS/images with PATH/test")
    if (root / "train").is_dir():
        other = next((root / name for name in ("test", "val", "valid") if (root / name).is_dir()), None)
        if other is None:
            raise DataError(f"{root} has a folder 'train' and none named 'test' or 'val' beside it")
        train_files, test_files = list_classes(root / "train"), list_classes(other)
        if train_files.keys() != test_files.keys():
            only = sorted(train_files.keys() ^ test_files.keys())
            raise DataError(f"{root / 'train'} and {other} must hold the same classes; only one has {', '.join(only[:10])}")
        splits = [decode(files, size, skip_bad, skipped, cut) for files in (train_files, test_files)]
    else:
        train_files = list_classes(root)
        pixels, labels = decode(train_files, size, skip_bad, skipped, cut)
        counts = labels.bincount(minlength=len(train_files))
        if counts.min() < 5:
            raise DataError(f"{root} must have five images or more of each class to be split, got {counts.tolist()}")
        splits = list(split_80_20(pixels, labels))
    return splits[0], splits[1], list(train_files), "flip"


def list_classes(root: Path) -> dict[str, list[Path]]:
    classes = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not classes:
        raise DataError(f"{root} is empty: expected one folder of images for each class")
    files = {
        c.name: sorted(p for p in c.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")) for c in classes
    }
    for name, found in files.items():
        if not found:
            raise DataError(f"{root / name} is a class folder without images ({', '.join(sorted(SUFFIXES))})")
    return files


def decode(files: dict[str, list[Path]], size: int, skip_bad: bool, skipped: list[str], cut: Cut | None) -> Split:
    """All images at `size`, RGB. An unreadable one stops the run before it starts, or with `skip_bad` is left out and listed."""
    paths = [(path, label) for label, found in enumerate(files.values()) for path in found]
    need, free = len(paths) * 3 * size * size, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need > free // 2:
        raise DataError(
            f"{len(paths)} images of {size}x{size} need {need / 2**30:.0f} GiB of memory: give a smaller --image_size"
        )

    def read(item: tuple[Path, int]) -> Tensor | DataError:
        try:
            picture = read_image(item[0], channels=3)
            return square(picture, size) if cut is None else cut(picture)
        except DataError as error:
            return error

    with ThreadPoolExecutor() as pool:
        results = list(pool.map(read, paths))
    bad = [result for result in results if isinstance(result, DataError)]
    if bad and not skip_bad:
        raise DataError(f"{bad[0]}{f', and {len(bad) - 1} more' if len(bad) > 1 else ''}; --skip_bad goes on without")
    skipped += [str(error) for error in bad]
    kept = [(image, label) for image, (_, label) in zip(results, paths, strict=True) if isinstance(image, Tensor)]
    lost = set(range(len(files))) - {label for _, label in kept}
    if lost:
        raise DataError(f"no readable image is left of class {', '.join(list(files)[label] for label in sorted(lost))}")
    return torch.stack([image for image, _ in kept]), torch.tensor([label for _, label in kept])


def read_image(path: Path, channels: int) -> Tensor:
    """One picture as uint8 (channels, y, x), upright."""
    from PIL import Image, ImageOps
    from torchvision.transforms.v2 import functional as V

    try:
        with Image.open(path) as picture:
            upright = ImageOps.exif_transpose(picture)
            upright.format = picture.format  # which tells `eight_bits` what the numbers mean
            return V.pil_to_tensor(eight_bits(upright, "RGB" if channels == 3 else "L"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image ({first_line(error)})") from error


def split_80_20(pixels: Tensor, labels: Tensor) -> tuple[Split, Split]:
    from sklearn.model_selection import train_test_split

    train, test = train_test_split(torch.arange(len(labels)).numpy(), test_size=0.2, stratify=labels.numpy(), random_state=0)
    order = [torch.from_numpy(part).sort().values for part in (train, test)]
    return (pixels[order[0]], labels[order[0]]), (pixels[order[1]], labels[order[1]])
