"""Fashion-MNIST and CIFAR: the published files, damaged ones, and being offline."""

from __future__ import annotations

import gzip
import pickle
import struct
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.error import URLError

import command
import numpy as np
import pytest
import torch
from torch import Tensor

from tasks.data import DataError
from tasks.data.images import (
    load_images,
)

NOWHERE = Path("nowhere")
complaint = partial(command.complaint, load_images)
"""The message of the DataError that `load_images` raises."""


def idx(values: Tensor) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + bytes(values.flatten().tolist())


NAMES = [f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


@pytest.fixture
def fashion() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes, tops = [(12, 28, 28), (12,), (5, 28, 28), (5,)], [256, 10, 256, 10]
    tensors = [torch.randint(0, top, s, generator=draw, dtype=torch.uint8) for s, top in zip(shapes, tops, strict=True)]
    return dict(zip(NAMES, tensors, strict=True))


def write_idx(folder: Path, tensors: dict[str, Tensor], zipped: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in tensors.items():
        path, content = (folder / f"{name}.gz", gzip.compress(idx(values))) if zipped else (folder / name, idx(values))
        path.write_bytes(content)
    return folder


@pytest.mark.parametrize("folder", [".", "FashionMNIST/raw"])
@pytest.mark.parametrize("zipped", [True, False])
def test_fashion_mnist_is_read_in_both_layouts(tmp_path, fashion, folder, zipped, offline):
    write_idx(tmp_path / folder, fashion, zipped)
    data = load_images("fashion_mnist", tmp_path, image_size=28)
    found = [data.train.pixels[:, 0], data.train.labels, data.test.pixels[:, 0], data.test.labels]
    assert all(torch.equal(ours, theirs.to(ours.dtype)) for ours, theirs in zip(found, fashion.values(), strict=True))
    assert data.train.labels.dtype == torch.int64
    assert (data.channels, len(data.classes), data.classes[9]) == (1, 10, "Ankle boot")


@pytest.mark.parametrize("folder", [".", "FashionMNIST/raw"])
def test_fashion_mnist_is_what_torchvision_reads(tmp_path, fashion, folder, offline):
    """The published files as they are, against torchvision's own reader of a folder of its own."""
    from torchvision.datasets import FashionMNIST

    write_idx(tmp_path / "theirs" / "FashionMNIST" / "raw", fashion, zipped=False)
    write_idx(tmp_path / "ours" / folder, fashion)
    data = load_images("fashion_mnist", tmp_path / "ours", image_size=28)
    for ours, train in ((data.train, True), (data.test, False)):
        theirs = FashionMNIST(str(tmp_path / "theirs"), train=train)
        assert torch.equal(ours.pixels[:, 0], theirs.data)
        assert torch.equal(ours.labels, theirs.targets)
        assert data.classes == theirs.classes


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "header only": lambda content: content[:6],
    "nothing": lambda content: b"",
    "a byte too many": lambda content: content + b"\0",
    "no zeros first": lambda content: b"\x89PNG" + content[4:],
    "floats": lambda content: content[:2] + b"\x0d" + content[3:],
    "a larger count": lambda content: content[:4] + struct.pack(">I", 13) + content[8:],
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", [NAMES[0], NAMES[3]])
def test_a_damaged_idx_file_is_named(tmp_path, fashion, name, damage, zipped):
    write_idx(tmp_path, fashion, zipped)
    path, content = tmp_path / (f"{name}.gz" if zipped else name), DAMAGE[damage](idx(fashion[name]))
    path.write_bytes(gzip.compress(content) if zipped else content)
    assert complaint("fashion_mnist", tmp_path).startswith(str(path))


def test_a_gzip_file_cut_in_half_is_named(tmp_path, fashion):
    write_idx(tmp_path, fashion)
    path = tmp_path / f"{NAMES[0]}.gz"
    path.write_bytes(path.read_bytes()[:5000])
    assert complaint("fashion_mnist", tmp_path).startswith(str(path))


@pytest.mark.parametrize("wrong", [torch.zeros(11), torch.zeros(12, 1), torch.full((12,), 10)])
def test_labels_that_do_not_fit_are_named(tmp_path, fashion, wrong):
    write_idx(tmp_path, fashion | {NAMES[1]: wrong.byte()})
    assert str(tmp_path / NAMES[0]) in complaint("fashion_mnist", tmp_path)


@pytest.fixture
def offline(monkeypatch) -> None:
    def unreachable(*arguments: object, **options: object) -> None:
        raise URLError("no network in this test")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)


CIFAR = {
    "cifar10": ("cifar-10-batches-py", [f"data_batch_{n}" for n in range(1, 6)], "test_batch", "batches.meta"),
    "cifar100": ("cifar-100-python", ["train"], "test", "meta"),
}


@pytest.mark.parametrize("name", CIFAR)
def test_cifar_is_read_as_torchvision_lays_it_out(tmp_path, name, monkeypatch, offline):
    """Tiny files of the published form; only the check of the published checksums is switched off."""
    from torchvision.datasets import cifar

    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5=None: Path(path).is_file())
    folder, train, test, meta = CIFAR[name]
    (tmp_path / folder).mkdir()
    draw, images, labels = np.random.default_rng(0), {}, {}
    kind = "labels" if name == "cifar10" else "fine_labels"
    for file in [*train, test]:
        images[file], labels[file] = draw.integers(0, 256, (2, 3, 32, 32), dtype=np.uint8), draw.integers(0, 10, 2).tolist()
        content = {"data": images[file].reshape(2, -1), kind: labels[file]}
        (tmp_path / folder / file).write_bytes(pickle.dumps(content))
    classes = [f"class {n}" for n in range(10)]
    key = "label_names" if name == "cifar10" else "fine_label_names"
    (tmp_path / folder / meta).write_bytes(pickle.dumps({key: classes}))
    data = load_images(name, tmp_path)
    assert torch.equal(data.train.pixels, torch.from_numpy(np.concatenate([images[file] for file in train])))
    assert torch.equal(data.test.pixels, torch.from_numpy(images[test]))
    assert data.train.labels.tolist() == [label for file in train for label in labels[file]]
    assert data.test.labels.tolist() == labels[test]
    assert (data.channels, data.image_size, data.classes) == (3, 32, classes)


@pytest.mark.parametrize("name", ["fashion_mnist", *CIFAR])
def test_without_a_network_the_files_and_their_place_are_named(tmp_path, name, offline, capsys):
    message = complaint(name, tmp_path)
    if name in CIFAR:
        folder, train, test, meta = CIFAR[name]
        expected = [f"{folder}/{file}" for file in (*train, test, meta)]
    else:
        expected = [f"{file}.gz" for file in NAMES]
    assert message.startswith(f"{name} is not in {tmp_path}")
    assert message.endswith(f"put {', '.join(expected)} there")


def test_a_gzip_file_with_a_flipped_bit_is_named(tmp_path, fashion):
    """In any of its bytes: what it breaks, header, code or checksum, raises errors of different kinds."""
    write_idx(tmp_path, fashion)
    path = tmp_path / f"{NAMES[1]}.gz"
    content, damaged = path.read_bytes(), 0
    for n in range(len(content)):
        path.write_bytes(content[:n] + bytes([content[n] ^ 0x14]) + content[n + 1 :])
        try:
            found = load_images("fashion_mnist", tmp_path, image_size=1).train.labels
        except DataError as error:
            assert str(error).startswith(str(path))  # noqa: PT017
            damaged += 1
        else:  # the time of packing, or the file's name
            assert torch.equal(found, fashion[NAMES[1]].long())
    assert damaged > len(content) / 2


def test_an_idx_file_that_is_missing_is_named(tmp_path, fashion, offline, capsys):
    write_idx(tmp_path, fashion)
    (tmp_path / f"{NAMES[2]}.gz").unlink()
    assert complaint("fashion_mnist", tmp_path).endswith(f"put {NAMES[2]}.gz there")


def test_a_download_that_broke_off_is_taken_up_again(tmp_path, fashion, monkeypatch):
    from torchvision import datasets

    raw = tmp_path / "FashionMNIST" / "raw"
    write_idx(raw, {name: fashion[name] for name in NAMES[:2]})
    monkeypatch.setattr(datasets, "FashionMNIST", lambda *a, **k: write_idx(raw, fashion))
    assert len(load_images("fashion_mnist", tmp_path, image_size=28).test) == 5
