"""Pictures decoded, many at a time: into memory, or a batch at a time from disk."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from tasks.data import DataError
from tasks.data.families import FAMILIES
from tasks.data.folders import Layout, list_classes
from tasks.data.picture_files import Budget, digest_of, quiet, read_image, sums_of
from tasks.data.splitting import split_80_10_10
from tasks.data.tree import printable
from tasks.options import UserError
from zoo.pretrained.preprocess import Preprocess

LARGEST = 64
"""As many pictures must have room in half of the memory, as bytes: there are floats of some of them too."""
Files = tuple[list[str], list[int]]
"""Paths of pictures, and the number of each one's class."""


def read_pixels(path: str | Path | BinaryIO, preprocess: Preprocess, budget: Budget | None = None) -> Tensor:
    """A picture as a model takes it: uint8 (channels, image_size, image_size)."""
    return preprocess.cut(read_image(path, preprocess.channels, preprocess, budget))


def in_threads(call: Callable[[int], Any], count: int, told: str = "") -> None:
    """``call(0)`` to ``call(count - 1)``, several at a time; with `told`, and on a terminal, progress is shown."""
    from tqdm import tqdm

    live = bool(told) and sys.stderr.isatty()
    with quiet(), ThreadPoolExecutor() as pool, tqdm(total=count, desc=told, unit=" pictures", disable=not live) as bar:
        for start in range(0, count, 1024):  # all at once would be as many tasks
            for _ in pool.map(call, range(start, min(count, start + 1024))):
                bar.update()


@dataclass(frozen=True)
class OnDisk:
    """Pictures that are read when they are asked for, in the place of a tensor (n, c, y, x) of bytes."""

    paths: Sequence[str]
    preprocess: Preprocess

    @property
    def shape(self) -> torch.Size:
        size = self.preprocess.image_size
        return torch.Size((len(self.paths), self.preprocess.channels, size, size))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: Any) -> Tensor:
        """uint8 (b, c, y, x) of a tensor of indices, (c, y, x) of one. Errors: `UserError` for a file that cannot be read now."""
        if isinstance(indices, int) or (isinstance(indices, Tensor) and indices.ndim == 0):
            return self[torch.tensor([int(indices)])][0]
        wanted, budget = torch.as_tensor(indices).tolist(), Budget()
        pixels = torch.empty(len(wanted), *self.shape[1:], dtype=torch.uint8)

        def read(n: int) -> None:
            try:
                pixels[n] = self.read(wanted[n], budget)
            except DataError as error:  # found good before, in the midst of training now
                raise UserError(str(error)) from error

        in_threads(read, len(wanted))
        return pixels

    def read(self, n: int, budget: Budget) -> Tensor:
        """One picture. Errors: `DataError` if it cannot be read."""
        return read_pixels(self.paths[n], self.preprocess, budget)


class Decoded(NamedTuple):
    """Pictures that could be read: pixels, labels (n,), paths, digests of the files, and sums as `sums_of` has them."""

    pixels: Any
    labels: Tensor
    paths: list[str]
    digests: list[bytes]
    sums: Tensor


def decode(
    paths: Sequence[str],
    labels: Sequence[int],
    preprocess: Preprocess,
    skip_bad: bool,
    skipped: list[str],
    keep: bool = True,
    told: str = "",
) -> Decoded:
    """All pictures, each one read once whether or not its pixels are kept. `told` is what its progress is called, if shown.

    Errors: `DataError` that names the first unreadable one, unless `skip_bad`: then they are left out, and listed in `skipped`.
    """
    count, size, budget = len(paths), preprocess.image_size, Budget()
    pixels = torch.empty(count if keep else 0, preprocess.channels, size, size, dtype=torch.uint8)
    sums = torch.zeros(count, preprocess.channels, 2, dtype=torch.int64)
    digests, bad = [b""] * count, {}

    def read(n: int) -> None:
        try:
            picture = read_pixels(paths[n], preprocess, budget)
            digests[n], sums[n] = digest_of(paths[n]), sums_of(picture)
            if keep:
                pixels[n] = picture
        except DataError as error:
            bad[n] = str(error)

    in_threads(read, count, told)
    if bad and not skip_bad:
        more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise DataError(f"{bad[min(bad)]}{more}; --skip_bad goes on without")
    skipped += [bad[n] for n in sorted(bad)]
    good = [n for n in range(count) if n not in bad]
    for to, n in enumerate(good if bad and keep else ()):  # in place, for there may be no memory for a copy
        pixels[to] = pixels[n]
    left = [paths[n] for n in good]
    return Decoded(
        pixels[: len(good)] if keep else OnDisk(left, preprocess),
        torch.tensor([labels[n] for n in good], dtype=torch.int64),
        left,
        [digests[n] for n in good],
        sums[good],
    )


def folder_files(layout: Layout) -> tuple[list[str], dict[str, Files], list[str]]:
    """Classes, what to train, validate and test on, and what is to be said of it. Where one of valid and test is missing, the
    other serves as both; without either there is but "all", which is to be split.

    Errors: `DataError` if there is nothing to train on, or one class.
    """
    parts = layout.parts
    whole = parts.get("train") or parts.get("all")
    if whole is None:
        raise DataError(
            f"{printable(layout.root)} has {' and '.join(parts)} but no folder named {' or '.join(FAMILIES['train'])}"
        )
    classes = [*whole.classes]
    if len(classes) < 2:
        raise DataError(f"{printable(whole.path)} has one class, {classes[0]}: two or more are needed to train")
    files = {role: part.labelled(classes) for role, part in parts.items()}
    missing = [role for role in ("valid", "test") if role not in files]
    if len(missing) == 2:
        return classes, {"all": whole.labelled(classes)}, []
    if missing:
        return classes, files | {missing[0]: files["test" if missing == ["valid"] else "valid"]}, [UNSPLIT[missing[0]]]
    return classes, files, []


def decode_once(
    files: dict[str, Files],
    classes: Sequence[str],
    reader: Preprocess,
    skip_bad: bool,
    skipped: list[str],
    room: int | None = None,
) -> tuple[dict[str, Decoded], list[str]]:
    """Every role's pictures, in memory if all have `room` there, and what is to be said if not. Roles may share their files.

    room: bytes of pixels that may be kept, by default half of what the machine has.
    """
    unique = {id(part): part for part in files.values()}
    count = sum(len(paths) for paths, _ in unique.values())
    need = count * reader.channels * reader.image_size**2
    room = half_of_memory() if room is None else room
    if reader.image_size**2 * reader.channels > half_of_memory() // LARGEST:
        raise DataError(f"a picture of {reader.image_size}x{reader.image_size} pixels is too large: give a smaller --image_size")
    made: dict[int, Decoded] = {}
    for key, (paths, labels) in unique.items():
        told = f"reading {printable(os.path.commonpath(paths))}"
        made[key] = found = decode(paths, labels, reader, skip_bad, skipped, need <= room, told)
        if lost := sorted({*labels} - {*found.labels.tolist()}):
            raise DataError(f"no readable image is left of class {', '.join(classes[label] for label in lost)}")
    said = (f"{count:,} pictures of {reader.image_size}x{reader.image_size} pixels would take {need / 2**30:.1f} GiB of memory, "
            "more than half: they are read from disk, batch by batch")  # fmt: skip
    return {role: made[id(part)] for role, part in files.items()}, [] if need <= room else [said]


def load_splits(
    layout: Layout, reader: Preprocess, skip_bad: bool, skipped: list[str], room: int | None = None
) -> tuple[list[str], dict[str, Decoded], list[str]]:
    """Classes, and train, valid and test; lines that say how they came about. Errors: `DataError`."""
    classes, files, told = folder_files(layout)
    found, streaming = decode_once(files, classes, reader, skip_bad, skipped, room)
    if "all" in found:
        whole = found["all"]
        rows, told = split_rows(layout, whole.digests, whole.labels.tolist(), classes)
        found = split_up(whole, rows)
    return classes, found, [*layout.told, *told, *copies(found), *streaming]


def load_role(
    layout: Layout, role: str, reader: Preprocess, skip_bad: bool, skipped: list[str], room: int | None = None
) -> tuple[list[str], Decoded, list[str]]:
    """One of the splits that `load_splits` has, where no other is needed: only its pictures are decoded.

    What has no splits is split by the digests of all files. With `skip_bad` all are decoded even so: the split leaves unreadable
    ones out.
    """
    classes, files, told = folder_files(layout)
    if "all" in files and skip_bad:
        classes, found, told = load_splits(layout, reader, skip_bad, skipped, room)
        return classes, found[role], told
    if "all" in files:
        (paths, labels), digests = files["all"], {}
        in_threads(lambda n: digests.setdefault(n, digest_of(paths[n])), len(paths))
        rows, told = split_rows(layout, [digests[n] for n in range(len(paths))], labels, classes)
        files = {role: ([paths[n] for n in rows[role]], [labels[n] for n in rows[role]])}
    found, streaming = decode_once({role: files[role]}, classes, reader, skip_bad, skipped, room)
    return classes, found[role], [*layout.told, *told, *streaming]


def split_rows(
    layout: Layout, digests: Sequence[bytes], labels: Sequence[int], classes: Sequence[str]
) -> tuple[dict[str, list[int]], list[str]]:
    """By `split_80_10_10`, which pictures of a folder without splits are in which; what is to be said of it."""
    where = next(printable(part.path) for role, part in layout.parts.items() if role in ("train", "all"))
    roles = split_80_10_10(digests, labels, classes, where)
    rows = {role: [n for n, one in enumerate(roles) if one == role] for role in FAMILIES}
    sizes = ", ".join(f"{len(part):,} {role}" for role, part in rows.items())
    return rows, [f"{where} is split by what the pictures are: {sizes}; copies stay together"]


def half_of_memory() -> int:
    """In bytes, of what this process may have: of the machine, or of its container, shared with the other ranks on it."""
    found, limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), Path("/sys/fs/cgroup/memory.max")
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
        found = min(found, int(limit.read_text()))
    return found // 2 // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def split_up(found: Decoded, rows: dict[str, list[int]]) -> dict[str, Decoded]:
    """The pictures of each split; pixels in memory are put in order where they are."""
    if isinstance(found.pixels, Tensor):
        reorder(found.pixels, [n for part in rows.values() for n in part])
    parts, start = {}, 0
    for role, chosen in rows.items():
        paths, end = [found.paths[n] for n in chosen], start + len(chosen)
        pixels = found.pixels[start:end] if isinstance(found.pixels, Tensor) else replace(found.pixels, paths=paths)
        parts[role] = Decoded(pixels, found.labels[chosen], paths, [found.digests[n] for n in chosen], found.sums[chosen])
        start = end
    return parts


def reorder(rows: Tensor, order: Sequence[int]) -> None:
    """Row n becomes what row order[n] is: in place, for there may be no memory for a copy."""
    done = bytearray(len(order))
    for start in range(len(order)):
        if done[start]:
            continue
        first, at = rows[start].clone(), start
        while (following := order[at]) != start:
            rows[at], done[at], at = rows[following], 1, following
        rows[at], done[at] = first, 1


def copies(found: dict[str, Decoded]) -> list[str]:
    """What is to be said of pictures that stand in two splits."""
    parts = {id(part): part for part in found.values()}.values()
    splits = Counter(digest for part in parts for digest in {*part.digests})
    twice = [path for part in parts for path, digest in zip(part.paths, part.digests, strict=True) if splits[digest] > 1]
    many = f"{len(twice):,} pictures stand in two splits"
    return [f"{many} as copies, such as {printable(twice[-1])}: they flatter what is measured"] if twice else []


UNSPLIT = {
    "valid": "there is no validation split: valid_* are measured on the test images, which so choose the best model",
    "test": "there is no test split: test_* are measured on the validation images",
}
"""What is to be said where one of the two serves as both."""


def load_folder(
    root: Path, size: int, skip_bad: bool, skipped: list[str]
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], list[str], str]:
    """For scripts that look into a folder without a run, which is why nothing here calls it.

    Pixels (n, 3, size, size) and labels (n,) of the train and of the test pictures, the classes, and the augmentation that suits.
    """
    classes, found, _ = load_splits(list_classes(root), Preprocess(size, (0.0,) * 3, (1.0,) * 3), skip_bad, skipped)
    train, test = ((found[role].pixels, found[role].labels) for role in ("train", "test"))
    return train, test, classes, "flip"
