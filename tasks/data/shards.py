"""Pictures in tar shards as WebDataset has them, NAME.jpg beside NAME.cls, each read from where it lies when it is asked for.

A shard is not compressed: one pass over its headers tells where every picture begins, and only this table is in memory. So a
batch is a function of its indices, as of any other data, and what the engine promises of a resumed run and of several processes
holds. The order of an epoch keeps to a few shards at a time.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
import tarfile
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import NamedTuple, Self

import torch
from torch import Tensor

from tasks.data import DataError, generator_of, spread
from tasks.data.families import role_of
from tasks.data.picture_files import Budget
from tasks.data.pictures import OnDisk, in_threads, read_pixels
from tasks.data.tree import first_few, printable, suffixes
from zoo.files import first_line
from zoo.pretrained.preprocess import Preprocess

EXPECTED = "expected a folder of .tar or .parquet files, or PATH/train-{000..009}.tar"
ENDS = (".tar", ".parquet")
NUMBERED = re.compile(r"(.*?)(\d+)(?:-of-(\d+))?(\.tar|\.parquet)")
WINDOW = 8192
"""So many places, at most, an image moves from where its shard has it."""
LONGEST = 1000
"""Bytes of a class's name, at most."""


@dataclass(frozen=True)
class Packed(OnDisk):
    """Pictures of which many lie in one file, read when they are asked for.

    paths: what each is called. where: its pack, and where it is in there (n, 2 or more).
    """

    where: Tensor = torch.empty(0, 2, dtype=torch.int64)

    @property
    def packs(self) -> str:
        """How many there are, and of what."""
        raise NotImplementedError

    def told(self) -> list[str]:
        """What is to be said of them."""
        return []

    def content(self, n: int) -> bytes:
        """What the file of one picture holds."""
        raise NotImplementedError

    def marks(self) -> list[str]:
        """What tells the pictures apart."""
        return [*self.paths]

    def sample(self, count: int) -> Tensor:
        """So many pictures, that stand for all."""
        return spread(len(self), count)

    def batches(self, batch_size: int, seed: int, epoch: int) -> Sequence[Tensor]:
        """Those of an epoch of training."""
        return order(self.where[:, 0], seed, epoch).split(batch_size)

    def passed(self, batch_size: int) -> Sequence[Tensor]:
        """Those of a pass that draws nothing."""
        return torch.arange(len(self)).split(batch_size)

    def read(self, n: int, budget: Budget) -> Tensor:
        content = self.content(n)
        try:
            return read_pixels(BytesIO(content), self.preprocess, budget)
        except DataError as error:
            raise DataError(str(error).replace("the picture", self.paths[n], 1)) from error

    def chosen(self, rows: Sequence[int]) -> Self:
        return replace(self, paths=[self.paths[n] for n in rows], where=self.where[[*rows]])


@dataclass(frozen=True)
class InShards(Packed):
    """where: shard, first byte and length (n, 3)."""

    shards: Sequence[str] = ()

    @property
    def packs(self) -> str:
        return f"{len(self.shards):,} shards"

    def content(self, n: int) -> bytes:
        shard, start, size = self.where[n].tolist()
        with open(self.shards[shard], "rb") as file:
            file.seek(start)
            return file.read(size)

    def marks(self) -> list[str]:
        """Of names and lengths: contents are not looked at."""
        return [f"{path} {size}" for path, size in zip(self.paths, self.where[:, 2].tolist(), strict=True)]


class Found(NamedTuple):
    """The pictures of a split, and each one's class by name."""

    pictures: Packed
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
        files = sorted(path for end in ENDS for path in glob.glob(os.path.join(glob.escape(source), f"*{end}")))
        require_numbers(files)
        if not files:
            packed = first_few(sorted(os.path.basename(path) for path in glob.glob(os.path.join(glob.escape(source), "*.t*gz"))))
            hint = f"; {packed} must be unpacked to .tar" if packed else ""
            raise DataError(f"{printable(source)} has no shards: {EXPECTED}{hint}")
    else:
        files = [*expanded(source)]
        if missing := [path for path in files if not os.path.isfile(path)]:
            others = f", and {len(missing) - 1} more of {len(files)}" if len(missing) > 1 else ""
            raise DataError(f"shard {printable(missing[0])} is missing{others}: {EXPECTED}")
        if other := [path for path in files if not path.endswith(ENDS)]:
            raise DataError(f"{printable(other[0])} is no .tar and no .parquet, in which pictures could be found: {EXPECTED}")
    if len(kinds := {os.path.splitext(path)[1] for path in files}) > 1:
        raise DataError(f"{printable(source)} has shards of {' and of '.join(sorted(kinds))}: give those of one kind")
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
    series: dict[tuple[str, str | None, str], dict[int, str]] = {}
    for path in files:
        if match := NUMBERED.fullmatch(path):
            series.setdefault((match[1], match[3], match[4]), {})[int(match[2])] = match[2]
    for (start, of, end), numbers in series.items():
        wanted = range(int(of)) if of else range(min(numbers), max(numbers) + 1)
        if lost := next((n for n in wanted if n not in numbers), None) if len(wanted) > len(numbers) else None:
            name = f"{start}{lost:0{len(next(iter(numbers.values())))}}{f'-of-{of}' if of else ''}{end}"
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
    return Found(InShards(names, reader, where, files), [row[3] for shard in rows for row in shard])
