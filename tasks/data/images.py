"""Image data by name: in splits of bytes, in memory or on disk, with what tells them from other data."""

from __future__ import annotations

import difflib
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks.data import DataError, fingerprint, packed
from tasks.data.folders import list_classes
from tasks.data.image_sets import SETS, ImageSet
from tasks.data.picture_files import sums_of
from tasks.data.pictures import UNSPLIT, Decoded, OnDisk, decode_once, half_of_memory, load_role, load_splits
from tasks.data.tree import printable
from zoo.pretrained.preprocess import Preprocess, normalise, square


@dataclass
class Images:
    """One split: `pixels` (n, c, y, x) uint8, a tensor or `OnDisk`, and `labels` (n,) int64.

    mean, std:   of each channel (c,), by which batches are normalised.
    names:       files of the pictures, where they have some.
    fingerprint: of contents and labels, in order; the same wherever the files are.
    """

    pixels: Any
    labels: Tensor
    mean: Tensor
    std: Tensor
    names: Sequence[str] = ()
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images (b, c, y, x), float32 and normalised, and labels (b,)."""
        return normalise(self.pixels[indices].float().div_(255), self.mean, self.std), self.labels[indices]

    def suit(self, preprocess: Preprocess) -> None:
        """Normalise as weights that are there expect it, and repeat a grey channel for a model of colours."""
        if self.pixels.shape[1] == 1 and preprocess.channels > 1:
            self.pixels = self.pixels.expand(-1, preprocess.channels, -1, -1)
        if self.pixels.shape[1] == preprocess.channels:
            self.mean, self.std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)


@dataclass
class ImageData:
    """The splits, of which valid and test may be one, and what a model and a later prediction need to know of them."""

    train: Images
    valid: Images
    test: Images
    classes: list[str]
    augment: str
    fit: str = "cut"
    skipped: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    """Lines about where the data came from, to print as a run begins."""

    @property
    def channels(self) -> int:
        return self.train.pixels.shape[1]

    @property
    def image_size(self) -> int:
        return self.train.pixels.shape[-1]

    @property
    def splits(self) -> dict[str, Images]:
        return {"train": self.train, "valid": self.valid, "test": self.test}

    def preprocess(self) -> Preprocess:
        """How to make a picture into an input."""
        return Preprocess(self.image_size, self.train.mean.tolist(), self.train.std.tolist(), fit=self.fit)

    def suit(self, preprocess: Preprocess) -> None:
        for split in {id(split): split for split in self.splits.values()}.values():
            split.suit(preprocess)

    def identity(self) -> dict[str, Any]:
        """What the data is, as JSON, whatever its path."""
        known = {role: {"images": len(split), "fingerprint": split.fingerprint} for role, split in self.splits.items()}
        return {"classes": self.classes, **known}


def load_images(
    source: str,
    data_root: Path,
    image_size: int | None = None,
    skip_bad: bool = False,
    fit: str = "cut",
    room: int | None = None,
    columns: str = "",
) -> ImageData:
    """`source` is digits, fashion_mnist, cifar10, cifar100, folder:PATH, shards:PATH or hf:NAME; every image becomes a square.

    Default sizes: 32, and 224 for a folder, and for shards and the hub, which are read batch by batch. Splits are those that the
    sets come with; what has none is split 80 to 10 to 10.
    fit:  how a picture in a folder becomes a square, as `Preprocess` says.
    room: bytes of pixels that may be kept in memory, by default half of what the machine has; more stay on disk.
    columns: those of pictures and classes, "image,label", where Parquet files leave it open.
    Errors: `DataError` that names the file or folder and what is expected.
    """
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size must be a positive number of pixels, got {image_size}")
    require_columns(source, columns)
    skipped: list[str] = []
    reader = Preprocess(image_size or 224, (0.0,) * 3, (1.0,) * 3, fit=fit)
    if (folder := folder_of(source)) is not None:
        classes, found, told = load_splits(list_classes(folder), reader, skip_bad, skipped, room)
    elif packed.is_packed(source):
        classes, found, told = packed.load(source, reader, skip_bad, skipped, columns)
    else:
        return load_set(source, data_root, image_size or 32)
    mean, std = moments(found["train"].sums.sum(0), len(found["train"].sums) * reader.image_size**2)
    made = {id(part): images_of(part, mean, std) for part in found.values()}
    train, valid, test = (made[id(found[role])] for role in ("train", "valid", "test"))
    return ImageData(train, valid, test, classes, "flip", fit, skipped, told)


def load_set(source: str, data_root: Path, image_size: int) -> ImageData:
    """One of `SETS`."""
    found = find_set(source, data_root)
    told = [] if "valid" in found.splits else [UNSPLIT["valid"]]
    splits = {role: resized(split, image_size) for role, split in found.splits.items()}
    train, test = splits["train"], splits["test"]
    sums = torch.stack([sums_of(part) for part in train.pixels.split(1024)]).sum(0)
    for split in splits.values():
        split.mean, split.std = moments(sums, train.pixels[:, 0].numel())
    return ImageData(train, splits.get("valid", test), test, found.classes, found.augment, told=told)


def load_test(
    source: str,
    data_root: Path,
    preprocess: Preprocess,
    classes: Sequence[str],
    skip_bad: bool = False,
    own: bool = False,
    room: int | None = None,
    columns: str = "",
) -> tuple[Images, list[str], list[str]]:
    """What a model is measured on, with the labels that it has for `classes`, those of them that occur, and lines to print.

    That is a set's test split; of a folder the test split, else the valid one, else all of its pictures.
    own: whether the model was trained on this: then its test split is what `load_images` has, and so is its fingerprint, unless
         it has changed. Other splits are not decoded, nor looked through for copies, of which training has told.
    Errors: `DataError` as `load_images` has them, and with both lists for classes that the model does not know.
    """
    require_columns(source, columns)
    if packed.is_packed(source):
        skipped: list[str] = []
        if own:
            names, parts, told = packed.load(source, preprocess, skip_bad, skipped, columns)
            decoded = parts["test"]
        else:
            names, decoded, told = packed.load_one(source, preprocess, skip_bad, skipped, columns)
        return tested(decoded, numbers_of(names, classes, source), preprocess), names, [*told, *told_of(skipped)]
    if (folder := folder_of(source)) is None:
        found = find_set(source, data_root)
        numbers = numbers_of(found.classes, classes, source)
        images = resized(found.splits["test"], preprocess.image_size)
        images.labels = numbers[images.labels]
        images.suit(preprocess)
        if images.pixels.shape[1] != preprocess.channels:
            raise DataError(f"{source} has {images.pixels.shape[1]} channels, the model takes {preprocess.channels}")
        return images, found.classes, []
    layout = list_classes(folder)
    whole = layout.parts.get("train") if own else None
    part = whole or next(layout.parts[role] for role in ("test", "valid", "all", "train") if role in layout.parts)
    names, skipped = [*part.classes], []
    numbers = numbers_of(names, classes, source)  # before anything is decoded
    if own:
        _, decoded, told = load_role(layout, "test", preprocess, skip_bad, skipped, room)
    else:
        parts, streaming = decode_once({"test": part.labelled(names)}, names, preprocess, skip_bad, skipped, room)
        decoded = parts["test"]
        told = [*layout.told, f"{printable(part.path)}: all of its {part.size:,} pictures count", *streaming]
    return tested(decoded, numbers, preprocess), names, [*told, *told_of(skipped)]


def tested(decoded: Decoded, numbers: Tensor, preprocess: Preprocess) -> Images:
    """Pictures to measure a model on, with its numbers of their classes."""
    images = images_of(decoded, torch.tensor(preprocess.mean), torch.tensor(preprocess.std))
    images.labels = numbers[images.labels]
    return images


def told_of(skipped: Sequence[str]) -> list[str]:
    return [f"{len(skipped)} unreadable pictures skipped"] if skipped else []


def numbers_of(names: Sequence[str], known: Sequence[str], source: str) -> Tensor:
    """The number that each class has in the model, by name. Errors: `DataError` with both lists."""
    numbers = {unicodedata.normalize("NFC", name): n for n, name in enumerate(known)}
    if new := [name for name in names if name not in numbers]:
        raise DataError(f"{source} has classes that the model does not know: {', '.join(new)}; it knows {', '.join(known)}")
    return torch.tensor([numbers[name] for name in names])


def folder_of(source: str) -> Path | None:
    return Path(source[7:]) if source.startswith("folder:") and source != "folder:" else None


def require_columns(source: str, columns: str) -> None:
    if columns and not packed.is_packed(source):
        raise DataError(f"--columns {columns} is for hf:NAME and for Parquet files of shards:PATH, not for {source}")


def find_set(source: str, data_root: Path) -> ImageSet:
    if source not in SETS:
        near = [f"folder:{source}"] if source and Path(source).is_dir() else difflib.get_close_matches(source, SETS, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise DataError(f"data must be {', '.join(SETS)}, hf:NAME, shards:PATH or folder:PATH, got {source!r}{hint}")
    found = SETS[source](data_root)
    for role, (_, labels) in found.splits.items():
        if not len(labels):
            raise DataError(f"{source} has no images in its {role} split")
    return found


def resized(split: tuple[Tensor, Tensor], size: int) -> Images:
    """Not normalised yet."""
    pixels, labels = split
    parts = (part.numpy().tobytes() for whole in split for part in whole.split(1024))
    nothing = torch.zeros(pixels.shape[1])
    if (need := len(labels) * pixels.shape[1] * size**2) > half_of_memory():
        raise DataError(
            f"{len(labels):,} images of {size}x{size} pixels need {need / 2**30:,.0f} GiB of memory: give a smaller --image_size"
        )
    return Images(square(pixels, size), labels, nothing, nothing + 1, fingerprint=fingerprint(parts))


def images_of(found: Decoded, mean: Tensor, std: Tensor) -> Images:
    parts = (digest + label.to_bytes(4, "big") for digest, label in zip(found.digests, found.labels.tolist(), strict=True))
    return Images(found.pixels, found.labels, mean, std, found.paths, fingerprint(parts))


def moments(sums: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (c,) of `count` bytes a channel, taken as 0 to 1, from their `sums_of`: exact."""
    mean = [total / count / 255 for total, _ in sums.tolist()]
    std = [max(0, squares * count - total**2) ** 0.5 / count / 255 for total, squares in sums.tolist()]
    return torch.tensor(mean), torch.tensor(std).clamp(min=1e-3)


def read_pictures(paths: Sequence[str | Path], preprocess: Preprocess) -> Tensor:
    """Pictures as uint8 (n, c, y, x), cut and sized for a model."""
    return OnDisk([os.fspath(path) for path in paths], preprocess)[torch.arange(len(paths))]
