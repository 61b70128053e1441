"""Image sets that have a name: scikit-learn's digits, Fashion-MNIST, CIFAR."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tasks.data import DataError
from tasks.data.splitting import split_80_10_10
from zoo.files import first_line


class ImageSet(NamedTuple):
    """Pixels (n, c, y, x) uint8 and labels (n,) of the splits that there are, classes, and the augmentation that suits them."""

    splits: dict[str, tuple[Tensor, Tensor]]
    classes: list[str]
    augment: str


def load_digits(data_root: Path) -> ImageSet:
    """1,797 handwritten digits of 8x8 pixels in 17 greys, as they ship inside scikit-learn, split 80 to 10 to 10."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    pixels = torch.from_numpy(found.images)[:, None].mul(255 / 16).round().byte()
    labels, classes = torch.from_numpy(found.target).long(), [str(digit) for digit in range(10)]
    roles = split_80_10_10([picture.numpy().tobytes() for picture in pixels], labels.tolist(), classes, "digits")
    chosen = {role: torch.tensor([n for n, one in enumerate(roles) if one == role]) for role in ("train", "valid", "test")}
    return ImageSet({role: (pixels[rows], labels[rows]) for role, rows in chosen.items()}, classes, "affine")


FASHION = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
FASHION_FILES = [f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


def load_fashion_mnist(data_root: Path) -> ImageSet:
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
    return ImageSet({"train": train, "test": test}, FASHION, "flip")


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


def load_cifar(name: str, folder: str, files: list[str]) -> Callable[[Path], ImageSet]:
    def load(data_root: Path) -> ImageSet:
        from torchvision import datasets

        make = getattr(datasets, name)
        expected = [f"{folder}/{file}" for file in files]
        found = [
            fetch(lambda t=t: make(str(data_root), train=t, download=True), name.lower(), data_root, expected)
            for t in (True, False)
        ]
        splits = [(torch.from_numpy(s.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(s.targets)) for s in found]
        return ImageSet({"train": splits[0], "test": splits[1]}, list(found[0].classes), "flip")

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
SETS: dict[str, Callable[[Path], ImageSet]] = {
    "digits": load_digits,
    "fashion_mnist": load_fashion_mnist,
    "cifar10": load_cifar("CIFAR10", "cifar-10-batches-py", CIFAR10_FILES),
    "cifar100": load_cifar("CIFAR100", "cifar-100-python", ["train", "test", "meta"]),
}
