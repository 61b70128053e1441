"""Pictures in tar shards as WebDataset has them, NAME.jpg beside NAME.cls, each read from where it lies when it is asked for.

A shard is not compressed: one pass over its headers tells where every picture begins, and only this table is in memory. So a
batch is a function of its indices, as of any other data, and what the engine promises of a resumed run and of several processes
holds. The order of an epoch keeps to a few shards at a time.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
import re
import tarfile
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import NamedTuple

import torch
from torch import Tensor

from tasks.data import DataError, generator_of, spread
from tasks.data.families import FAMILIES, role_of
from tasks.data.picture_files import Budget, sums_of
from tasks.data.pictures import UNSPLIT, Decoded, OnDisk, in_threads, read_pixels
from tasks.data.splitting import split_80_10_10
from tasks.data.tree import first_few, printable, suffixes
from zoo.files import first_line
from zoo.pretrained.preprocess import Preprocess

EXPECTED = "expected a folder of .tar files, or PATH/train-{000..009}.tar"
NUMBERED = re.compile(r"(.*?)(\d+)(?:-of-(\d+))?\.tar")
WINDOW = 8192
"""So many places, at most, an image moves from where its shard has it."""
MEASURED = 1024
"""Pictures that tell mean and standard deviation."""
LONGEST = 1000
"""Bytes of a class's name, at most."""


@dataclass(frozen=True)
class InShards(OnDisk):
    """Pictures that are read when they are asked for.

    paths: shard/NAME.jpg of each. where: its shard, first byte and length (n, 3).
    """

    shards: Sequence[str] = ()
    where: Tensor = torch.empty(0, 3, dtype=torch.int64)

    def read(self, n: int, budget: Budget) -> Tensor:
        shard, start, size = self.where[n].tolist()
        with open(self.shards[shard], "rb") as file:
            file.seek(start)
            content = file.read(size)
        try:
            return read_pixels(BytesIO(content), self.preprocess, budget)
        except DataError as error:
            raise DataError(str(error).replace("the picture", self.paths[n], 1)) from error

    def chosen(self, rows: Sequence[int]) -> InShards:
        return replace(self, paths=[self.paths[n] for n in rows], where=self.where[[*rows]])


class Found(NamedTuple):
    """The pictures of some shards, and each one's class by name."""

    pictures: InShards
    classes: list[str]

    def chosen(self, rows: Sequence[int]) -> Found:
        return Found(self.pictures.chosen(rows), [self.classes[n] for n in rows])


def order(shard: Tensor, seed: int, epoch: int, window: int = WINDOW) -> Tensor:
    """Each example's shard (n,), in order -> the order of an epoch (from 0), a permutation that they, seed and epoch decide.

    Whole shards come one after another in a drawn order, and then no example moves by `window` places or more, as by a buffer.
    """
    draw = generator_of("shards", seed, epoch)
    ranks = torch.randperm(int(shard.max()) + 1 if len(shard) else 0, generator=draw)
    whole = ranks[shard].argsort(stable=True)
    return whole[(torch.arange(len(shard)) + window * torch.rand(len(shard), generator=draw, dtype=torch.float64)).argsort()]


def find_shards(source: str) -> dict[str, list[str]]:
    """Files by the split that their names tell, train-000.tar or set-val-000.tar; "all" where none does.

    source: a folder, or a path in which {000..009} and {train,val} stand for several.
    Errors: `DataError` for a shard that is missing, of a pattern or of a folder's numbers, and for what are no shards.
    """
    source = os.path.expanduser(source)
    if os.path.isdir(source):
        files = sorted(glob.glob(os.path.join(glob.escape(source), "*.tar")))
        require_numbers(files)
        if not files:
            packed = first_few(sorted(os.path.basename(path) for path in glob.glob(os.path.join(glob.escape(source), "*.t*gz"))))
            hint = f"; {packed} must be unpacked to .tar" if packed else ""
            raise DataError(f"{printable(source)} has no .tar files: {EXPECTED}{hint}")
    else:
        files = [*expanded(source)]
        if missing := [path for path in files if not os.path.isfile(path)]:
            others = f", and {len(missing) - 1} more of {len(files)}" if len(missing) > 1 else ""
            raise DataError(f"shard {printable(missing[0])} is missing{others}: {EXPECTED}")
        if other := [path for path in files if not path.endswith(".tar")]:
            raise DataError(f"{printable(other[0])} is no .tar, in which pictures could be found: {EXPECTED}")
    found: dict[str, list[str]] = {}
    for path in dict.fromkeys(files):
        words = re.split("[^a-z]+", os.path.basename(path).lower())
        found.setdefault(next(filter(None, map(role_of, words)), "all"), []).append(path)
    if "all" in found and len(found) > 1:
        raise DataError(f"{printable(found['all'][0])} has no split in its name, unlike other shards: name it train, val or test")
    return found


def expanded(pattern: str) -> Iterator[str]:
    """The paths that braces stand for, numbers {000..009} with as many digits, and words {train,val}."""
    parts = re.split(r"\{(\d+\.\.\d+|[^{}]*,[^{}]*)\}", pattern)
    choices = []
    for n, part in enumerate(parts):
        first, _, last = part.partition("..")
        if n % 2 == 0:
            choices.append([part])
        elif "," in part:
            choices.append(part.split(","))
        elif int(first) > int(last):
            raise DataError(f"{{{part}}} counts down: {EXPECTED}")
        else:
            choices.append([f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)])
    return map("".join, itertools.product(*choices))


def require_numbers(files: Sequence[str]) -> None:
    """Errors: `DataError` if one is missing among files whose names differ in a number only."""
    series: dict[tuple[str, str | None], dict[int, str]] = {}
    for path in files:
        if match := NUMBERED.fullmatch(path):
            series.setdefault((match[1], match[3]), {})[int(match[2])] = match[2]
    for (start, of), numbers in series.items():
        wanted = range(int(of)) if of else range(min(numbers), max(numbers) + 1)
        if lost := next((n for n in wanted if n not in numbers), None) if len(wanted) > len(numbers) else None:
            name = f"{start}{lost:0{len(next(iter(numbers.values())))}}{f'-of-{of}' if of else ''}.tar"
            raise DataError(f"shard {printable(name)} is missing, there are {len(numbers):,} of {len(wanted):,}")


def read_shard(path: str) -> list[tuple[str, int, int, str]]:
    """Of each picture name, first byte, length and class. Errors: `DataError` in one line that names the shard and its member."""
    name, pictures, labels = printable(path), {}, {}
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                vars(tar)["members"].clear()  # which it would all keep
                folder, _, base = member.name.rpartition("/")
                stem, _, end = base.partition(".")
                if not member.isfile() or not stem:
                    continue
                key, is_class = f"{folder}/{stem}", end.lower() == "cls"
                if not is_class and os.path.splitext(base)[1].lower() not in suffixes():
                    continue
                if key in (labels if is_class else pictures):
                    raise DataError(f"{name}: there are two {'classes' if is_class else 'pictures'} of {member.name}")
                if is_class:
                    labels[key] = class_of(tar, member, name)
                else:
                    pictures[key] = member.name, member.offset_data, member.size
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # where it was cut between members
                raise tarfile.ReadError("its end is missing")
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{name} is no whole .tar ({first_line(error)})") from error
    for one, other, what in ((pictures, labels, "a class (.cls)"), (labels, pictures, "a picture")):
        if lacking := [key.lstrip("/") for key in one if key not in other]:
            more = f", and {len(lacking) - 1:,} more" if len(lacking) > 1 else ""
            raise DataError(f"{name}: {lacking[0]} has not {what}{more}")
    return [(*place, labels[key]) for key, place in pictures.items()]


def class_of(tar: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> str:
    content = tar.extractfile(member).read(LONGEST) if member.size < LONGEST else b""  # type: ignore
    try:
        found = unicodedata.normalize("NFC", content.decode().strip())
    except UnicodeDecodeError:
        found = ""
    if not found or "\n" in found:
        raise DataError(f"{name}: {member.name} must hold a class, a name or a number, got {content[:40]!r}")
    return found


def read_shards(files: Sequence[str], reader: Preprocess) -> Found:
    """Headers only. Errors: `DataError` as `read_shard` has them, or if there is nothing in any."""
    rows: list[list[tuple[str, int, int, str]]] = [[] for _ in files]

    def read(n: int) -> None:
        rows[n] = read_shard(files[n])

    in_threads(read, len(files), f"reading the headers of {len(files):,} shards")
    if not any(rows):
        raise DataError(f"{printable(files[0])} has no pictures with classes: expected NAME.jpg beside NAME.cls")
    where = torch.tensor([(n, start, size) for n, shard in enumerate(rows) for _, start, size, _ in shard])
    pairs = zip(map(os.path.basename, files), rows, strict=True)
    names = [f"{printable(base)}/{printable(row[0])}" for base, shard in pairs for row in shard]
    return Found(InShards(names, reader, files, where), [row[3] for shard in rows for row in shard])


def without_bad(found: Found, skipped: list[str]) -> Found:
    """Without those that cannot be read, for which each is once decoded."""
    budget, bad = Budget(), {}

    def read(n: int) -> None:
        try:
            found.pictures.read(n, budget)
        except DataError as error:
            bad[n] = str(error)

    in_threads(read, len(found.classes), "looking for unreadable pictures")
    skipped += [bad[n] for n in sorted(bad)]
    return found.chosen([n for n in range(len(found.classes)) if n not in bad]) if bad else found


def load(source: str, reader: Preprocess, skip_bad: bool, skipped: list[str]) -> tuple[list[str], dict[str, Decoded], list[str]]:
    """Classes, and train, valid and test, of which two may be one; lines that say how they came about.

    Sums are those of `MEASURED` training pictures, none of the others'. Shards without splits in their names, or of train alone,
    are split 80 to 10 to 10 by the names of their pictures.
    Errors: `DataError`, also for a class that train lacks.
    """
    files = find_shards(source)
    whole = next((role for role in ("train", "all") if role in files), None)
    if whole is None:
        wanted = " or ".join(FAMILIES["train"])
        raise DataError(f"shards of {' and '.join(files)} but none of train: their names must say {wanted}")
    parts = {role: read_shards(paths, reader) for role, paths in files.items()}
    parts = {role: without_bad(part, skipped) for role, part in parts.items()} if skip_bad else parts
    classes = classes_of(parts[whole])
    if len(classes) < 2:
        raise DataError(f"{printable(files[whole][0])} has one class, {first_few(classes)}: two or more are needed to train")
    told = [f"{len(paths):,} shards of {'all' if role == 'all' else role}" for role, paths in files.items()]
    told = [f"shards:{printable(source)}: {', '.join(told)}; mean and standard deviation are of {MEASURED:,} pictures at most"]
    numbers = {name: n for n, name in enumerate(classes)}
    for part in parts.values():
        if (n := next((n for n, name in enumerate(part.classes) if name not in numbers), None)) is not None:
            which = f"{part.pictures.paths[n]} is of class {part.classes[n]!r}"
            raise DataError(f"{which}, which train lacks: it has {first_few(classes, 10)}")
    if len(parts) == 1:
        part = parts[whole]
        keys = [path.encode(errors="surrogatepass") for path in part.pictures.paths]
        roles = split_80_10_10(keys, [numbers[name] for name in part.classes], classes, f"shards:{printable(source)}")
        parts = {role: part.chosen([n for n, one in enumerate(roles) if one == role]) for role in FAMILIES}
        told.append("they are split by the names of pictures: " + ", ".join(f"{len(p.classes):,} {r}" for r, p in parts.items()))
    for missing, other in (("valid", "test"), ("test", "valid")):
        if missing not in parts:
            parts[missing] = parts[other]
            told.append(UNSPLIT[missing])
    made = {id(part): as_decoded(part, numbers, measured=role == "train") for role, part in parts.items()}
    return classes, {role: made[id(part)] for role, part in parts.items()}, told


def load_one(source: str, reader: Preprocess, skip_bad: bool, skipped: list[str]) -> tuple[list[str], Decoded, list[str]]:
    """The test shards, else the valid ones, else all: what a model is measured on that was trained on others; its own classes."""
    files = find_shards(source)
    role = next(role for role in ("test", "valid", "all", "train") if role in files)
    part = read_shards(files[role], reader)
    part = without_bad(part, skipped) if skip_bad else part
    classes = classes_of(part)
    decoded = as_decoded(part, {name: n for n, name in enumerate(classes)})
    return classes, decoded, [f"shards:{printable(source)}: all {len(decoded.labels):,} pictures of {role} count"]


def classes_of(part: Found) -> list[str]:
    """In the order of the names, of numbers in theirs."""
    names = {*part.classes}
    return sorted(names, key=lambda name: (int(name), name)) if all(map(str.isdecimal, names)) else sorted(names)


def as_decoded(part: Found, numbers: dict[str, int], measured: bool = False) -> Decoded:
    """Digests are of names and lengths: contents are not looked at."""
    pictures, sizes = part.pictures, part.pictures.where[:, 2].tolist()
    keys = [f"{path} {size}".encode(errors="surrogatepass") for path, size in zip(pictures.paths, sizes, strict=True)]
    sums = sums_of_each(pictures, spread(len(sizes), MEASURED)) if measured else torch.zeros(0, 3, 2, dtype=torch.int64)
    labels = torch.tensor([numbers[name] for name in part.classes], dtype=torch.int64)
    return Decoded(pictures, labels, [*pictures.paths], [hashlib.blake2b(key, digest_size=16).digest() for key in keys], sums)


def sums_of_each(pictures: OnDisk, chosen: Tensor) -> Tensor:
    return torch.stack([sums_of(picture) for rows in chosen.split(64) for picture in pictures[rows]])
