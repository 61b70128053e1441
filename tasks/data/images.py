"""Image data sets by name: decoded once into memory as bytes, augmented a batch at a time.

A sample's augmentation is a pure function of (seed, epoch, index): it does not depend on the batch, the process or what was drawn
before, so a resumed or distributed run sees the same pixels.
"""

from __future__ import annotations

import difflib
import gzip
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import pi
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.data import DataError, generator_of
from tasks.data.pictures import Cut, Split, load_folder, read_image, split_80_20
from zoo.files import first_line
from zoo.pretrained.preprocess import Preprocess, normalise, square


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random affine map of a sample: shift as a part of the size, rotation in degrees, scale around 1."""

    shift: float = 0.0
    rotation: float = 0.0
    scale: float = 0.0
    flip: bool = False


AUGMENTATIONS = {
    "none": Augmentation(),
    "shift": Augmentation(shift=0.125),
    "flip": Augmentation(shift=0.125, flip=True),
    "affine": Augmentation(shift=0.06, rotation=10, scale=0.1),
}


@dataclass
class Images:
    """One split: `pixels` (n, c, y, x) uint8 and `labels` (n,) int64."""

    pixels: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(
        self, indices: Tensor, augmentation: Augmentation | None = None, seed: int = 0, epoch: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Images (b, c, y, x), float32 and normalised, and labels (b,)."""
        images = self.pixels[indices].float().div_(255)
        if augmentation and augmentation != AUGMENTATIONS["none"]:
            drawn = torch.rand(len(self), 5, generator=generator_of("augment", seed, epoch))
            images = warp(images, drawn[indices], augmentation)
        return normalise(images, self.mean, self.std), self.labels[indices]


def warp(images: Tensor, drawn: Tensor, augmentation: Augmentation) -> Tensor:
    """Sample each image through its own affine map; `drawn` (b, 5) in [0, 1) picks shifts, angle, scale and flip."""
    a = augmentation
    down, right, turn, grow, flip = (drawn[:, i, None, None] * 2 - 1 for i in range(5))
    angle, scale = turn * (a.rotation * pi / 180), 1 + grow * a.scale
    mirror = torch.where(flip < 0, -1.0, 1.0) if a.flip else torch.ones_like(flip)
    rows, columns = images.shape[-2:]
    y = torch.linspace(-1 + 1 / rows, 1 - 1 / rows, rows)[:, None]
    x = torch.linspace(-1 + 1 / columns, 1 - 1 / columns, columns)
    # element by element, not by a matrix product, whose last bits may depend on the size of the batch
    from_y = (angle.cos() * y - angle.sin() * x) / scale + 2 * a.shift * down
    from_x = (angle.sin() * y + angle.cos() * x) / scale * mirror + 2 * a.shift * right
    return F.grid_sample(images, torch.stack([from_x, from_y], -1), align_corners=False)


@dataclass
class ImageData:
    """Both splits and what a model and a later prediction need to know of them."""

    train: Images
    test: Images
    classes: list[str]
    augment: str
    skipped: list[str] = field(default_factory=list)

    @property
    def channels(self) -> int:
        return self.train.pixels.shape[1]

    @property
    def image_size(self) -> int:
        return self.train.pixels.shape[-1]

    def preprocess(self) -> Preprocess:
        """How to make a picture into an input."""
        return Preprocess(self.image_size, self.train.mean.tolist(), self.train.std.tolist())

    def suit(self, preprocess: Preprocess) -> None:
        """Normalise as weights that are there expect it, and repeat a grey channel for a model of colours."""
        for split in (self.train, self.test):
            if split.pixels.shape[1] == 1 and preprocess.channels > 1:
                split.pixels = split.pixels.expand(-1, preprocess.channels, -1, -1)
            if split.pixels.shape[1] == preprocess.channels:
                split.mean, split.std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)


def load_images(
    source: str, data_root: Path, image_size: int | None = None, skip_bad: bool = False, cut: Cut | None = None
) -> ImageData:
    """`source` is digits, fashion_mnist, cifar10, cifar100 or folder:PATH; every image becomes `image_size` squared.

    Default sizes: 32, and 224 for a folder. Splits are those that the sets come with; digits, and a folder without train and test
    folders, are split 80 to 20, stratified, always the same way. All pixels are held in memory, one byte each.
    cut: of the pictures in folders, uint8 (c, y, x) -> (c, image_size, image_size), by default `preprocess.square`.
    Errors: `DataError` that names the file or folder and what is expected.
    """
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size must be a positive number of pixels, got {image_size}")
    skipped: list[str] = []
    if source.startswith("folder:"):
        train, test, classes, augment = load_folder(Path(source[7:]), image_size or 224, skip_bad, skipped, cut)
    elif source in SETS:
        train, test, classes, augment = SETS[source](data_root)
    else:
        near = difflib.get_close_matches(source, SETS, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise DataError(f"data must be {', '.join(SETS)} or folder:PATH, got {source!r}{hint}")
    pixels = [square(split[0], image_size or 32) if source in SETS else split[0] for split in (train, test)]
    mean, std = moments(pixels[0])
    return ImageData(Images(pixels[0], train[1], mean, std), Images(pixels[1], test[1], mean, std), classes, augment, skipped)


def moments(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (c,) of bytes (n, c, y, x) taken as 0 to 1.

    From counts of the 256 levels: exact, so the same on any number of threads, and without a copy of all pixels as floats.
    """
    counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in pixels.unbind(1)])
    shares, levels = counts / counts.sum(1, keepdim=True).double(), torch.arange(256).double() / 255
    mean = (shares * levels).sum(1)
    std = (shares * (levels - mean[:, None]) ** 2).sum(1).sqrt()
    return mean.float(), std.float().clamp(min=1e-3)


def load_digits(data_root: Path) -> tuple[Split, Split, list[str], str]:
    """1,797 handwritten digits of 8x8 pixels in 17 greys, as they ship inside scikit-learn."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    pixels = torch.from_numpy(found.images)[:, None].mul(255 / 16).round().byte()
    train, test = split_80_20(pixels, torch.from_numpy(found.target).long())
    return train, test, [str(digit) for digit in range(10)], "affine"


FASHION = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
FASHION_FILES = [f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


def load_fashion_mnist(data_root: Path) -> tuple[Split, Split, list[str], str]:
    """70,000 articles of clothing, 28x28: the published IDX files, gzipped or not, or as torchvision lays them out."""
    folders = [data_root, data_root / "FashionMNIST" / "raw"]
    if not any(all(locate(folder, name) for name in FASHION_FILES) for folder in folders):
        from torchvision.datasets import FashionMNIST

        fetch(
            lambda: FashionMNIST(str(data_root), download=True),
            "fashion_mnist",
            data_root,
            [f"{f}.gz" for f in FASHION_FILES if not locate(data_root, f)],
        )
    folder = next(folder for folder in folders if all(locate(folder, name) for name in FASHION_FILES))
    tensors = [read_idx(locate(folder, name) or folder / f"{name}.gz") for name in FASHION_FILES]
    for name, images, labels in ((FASHION_FILES[0], *tensors[:2]), (FASHION_FILES[2], *tensors[2:])):
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or (len(labels) and labels.max() > 9):
            raise DataError(f"{folder / name} and its labels do not match: {tuple(images.shape)} and {tuple(labels.shape)}")
    train, test = (tensors[0][:, None], tensors[1].long()), (tensors[2][:, None], tensors[3].long())
    return train, test, FASHION, "flip"


def locate(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def read_idx(path: Path) -> Tensor:
    """An IDX file of bytes: two zeros, type 8, number of axes, big-endian sizes, then the values."""
    try:
        content = (gzip.decompress if path.suffix == ".gz" else bytes)(path.read_bytes())
        zero, kind, ndim = struct.unpack(">HBB", content[:4])
        shape = struct.unpack(f">{ndim}I", content[4 : 4 + 4 * ndim])
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise DataError(f"{path} is missing, truncated or no IDX file ({error})") from error
    values = torch.frombuffer(bytearray(content[4 + 4 * ndim :]) or bytearray(1), dtype=torch.uint8)
    if (zero, kind) != (0, 8) or len(content) - 4 - 4 * ndim != torch.Size(shape).numel():
        raise DataError(f"{path} is truncated or no IDX file of bytes: its header says {shape}")
    return values[: torch.Size(shape).numel()].reshape(shape)


def load_cifar(name: str, folder: str, files: list[str]) -> Callable[[Path], tuple[Split, Split, list[str], str]]:
    def load(data_root: Path) -> tuple[Split, Split, list[str], str]:
        from torchvision import datasets

        make = getattr(datasets, name)
        expected = [f"{folder}/{file}" for file in files]
        found = [
            fetch(lambda t=t: make(str(data_root), train=t, download=True), name.lower(), data_root, expected)
            for t in (True, False)
        ]
        splits = [(torch.from_numpy(s.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(s.targets)) for s in found]
        return splits[0], splits[1], list(found[0].classes), "flip"

    return load


def fetch(make: Callable[[], Any], name: str, data_root: Path, files: Sequence[str]) -> Any:
    """Let torchvision find or fetch a set; without a network, say which files to put where."""
    try:
        return make()
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise DataError(
            f"{name} is not in {data_root} and could not be fetched ({first_line(error)}): put {', '.join(files)} there"
        ) from error


CIFAR10_FILES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]
SETS: dict[str, Callable[[Path], tuple[Split, Split, list[str], str]]] = {
    "digits": load_digits,
    "fashion_mnist": load_fashion_mnist,
    "cifar10": load_cifar("CIFAR10", "cifar-10-batches-py", CIFAR10_FILES),
    "cifar100": load_cifar("CIFAR100", "cifar-100-python", ["train", "test", "meta"]),
}


def read_pictures(paths: Sequence[str | Path], preprocess: Preprocess) -> Tensor:
    """Pictures as uint8 (n, c, y, x), cut and sized for a model."""
    return torch.stack([preprocess.cut(read_image(Path(path), preprocess.channels)) for path in paths])
