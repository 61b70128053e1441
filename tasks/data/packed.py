"""Pictures of which many lie in one file, and which are read batch by batch: of tar shards, of Parquet shards, of the hub."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from tasks.data import DataError, parquet, shards
from tasks.data.families import FAMILIES
from tasks.data.picture_files import Budget, sums_of
from tasks.data.pictures import UNSPLIT, Decoded, OnDisk, in_threads
from tasks.data.shards import Found
from tasks.data.splitting import split_80_10_10
from tasks.data.tree import first_few, printable
from zoo.pretrained.preprocess import Preprocess

MEASURED = 1024
"""Pictures that tell mean and standard deviation."""


def is_packed(source: str) -> bool:
    """Whether it is shards:PATH or hf:NAME."""
    return source.startswith(("shards:", "hf:")) and not source.endswith(":")


def find(source: str, reader: Preprocess, columns: str) -> dict[str, Callable[[], Found]]:
    """What reads each split; "all" where none has a name. Errors: `DataError` for what is not there."""
    kind, _, place = source.partition(":")
    if kind == "hf":
        return parquet.find_hub(place, reader, columns)
    files = shards.find_shards(place)
    if next(iter(files.values()))[0].endswith(".parquet"):
        return {role: lambda paths=paths: parquet.read_files(paths, reader, columns) for role, paths in files.items()}
    if columns:
        raise DataError(f"--columns {columns} is for Parquet files, {printable(source)} has .tar")
    return {role: lambda paths=paths: shards.read_shards(paths, reader) for role, paths in files.items()}


def load(
    source: str, reader: Preprocess, skip_bad: bool, skipped: list[str], columns: str = ""
) -> tuple[list[str], dict[str, Decoded], list[str]]:
    """Classes, and train, valid and test, of which two may be one; lines that say how they came about.

    Sums are those of `MEASURED` training pictures, none of the others'. Data without splits in their names, or of train alone,
    are split 80 to 10 to 10 by the names of their pictures.
    Errors: `DataError`, also for a class that train lacks.
    """
    found, name = find(source, reader, columns), printable(source)
    whole = next((role for role in ("train", "all") if role in found), None)
    if whole is None:
        wanted = " or ".join(FAMILIES["train"])
        raise DataError(f"{name} has {' and '.join(found)} but none of train: names must say {wanted}")
    parts = {role: read() for role, read in found.items()}
    parts, told = labelled(parts, whole, name)
    parts = {role: without_bad(part, skipped) for role, part in parts.items()} if skip_bad else parts
    classes = classes_of(parts[whole])
    if len(classes) < 2:
        raise DataError(f"{name} has one class, {first_few(classes)}: two or more are needed to train")
    packs = [f"{part.pictures.packs} of {'all' if role == 'all' else role}" for role, part in parts.items()]
    told = [f"{name}: {', '.join(packs)}; mean and standard deviation are of {MEASURED:,} pictures at most", *told]
    told += parts[whole].pictures.told()
    numbers = {name: n for n, name in enumerate(classes)}
    for part in parts.values():
        if (n := next((n for n, one in enumerate(part.classes) if one not in numbers), None)) is not None:
            which = f"{part.pictures.paths[n]} is of class {part.classes[n]!r}"
            raise DataError(f"{which}, which train lacks: it has {first_few(classes, 10)}")
    if len(parts) == 1:
        part = parts[whole]
        keys = [path.encode(errors="surrogatepass") for path in part.pictures.paths]
        roles = split_80_10_10(keys, [numbers[one] for one in part.classes], classes, name)
        parts = {role: part.chosen([n for n, one in enumerate(roles) if one == role]) for role in FAMILIES}
        told.append("they are split by the names of pictures: " + ", ".join(f"{len(p.classes):,} {r}" for r, p in parts.items()))
    for missing, other in (("valid", "test"), ("test", "valid")):
        if missing not in parts:
            parts[missing] = parts[other]
            told.append(UNSPLIT[missing])
    made = {id(part): as_decoded(part, numbers, measured=role == "train") for role, part in parts.items()}
    return classes, {role: made[id(part)] for role, part in parts.items()}, told


def load_one(
    source: str, reader: Preprocess, skip_bad: bool, skipped: list[str], columns: str = ""
) -> tuple[list[str], Decoded, list[str]]:
    """The test split, else the valid one, else all: what a model is measured on that was trained on others; its own classes."""
    found = find(source, reader, columns)
    for role in ("test", "valid", "all", "train"):
        if role in found and any((part := found[role]()).classes):
            break
    else:
        raise DataError(f"{printable(source)} has no pictures with classes")
    labelled({role: part}, role, printable(source))
    part = without_bad(part, skipped) if skip_bad else part
    classes = classes_of(part)
    decoded = as_decoded(part, {name: n for n, name in enumerate(classes)})
    return classes, decoded, [f"{printable(source)}: all {len(decoded.labels):,} pictures of {role} count"]


def labelled(parts: dict[str, Found], whole: str, name: str) -> tuple[dict[str, Found], list[str]]:
    """Without splits whose labels are withheld, and what is to be said of them. Errors: `DataError` if some of a split are."""
    told = []
    for role, part in [*parts.items()]:
        lacking = [n for n, one in enumerate(part.classes) if not one]
        if len(lacking) == len(part.classes) and role != whole:
            told.append(f"{name}: {role} has no labels, and is left out")
            del parts[role]
        elif lacking:
            many = f", and {len(lacking) - 1:,} more" if len(lacking) > 1 else ""
            raise DataError(f"{name}: {part.pictures.paths[lacking[0]]} has no label{many}")
    return parts, told


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


def classes_of(part: Found) -> list[str]:
    """In the order of the names, of numbers in theirs."""
    names = {*part.classes}
    return sorted(names, key=lambda name: (int(name), name)) if all(map(str.isdecimal, names)) else sorted(names)


def as_decoded(part: Found, numbers: dict[str, int], measured: bool = False) -> Decoded:
    """Digests are of `Packed.marks`."""
    pictures = part.pictures
    digests = [hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=16).digest() for key in pictures.marks()]
    sums = sums_of_each(pictures, pictures.sample(MEASURED)) if measured else torch.zeros(0, 3, 2, dtype=torch.int64)
    labels = torch.tensor([numbers[name] for name in part.classes], dtype=torch.int64)
    return Decoded(pictures, labels, [*pictures.paths], digests, sums)


def sums_of_each(pictures: OnDisk, chosen: Tensor) -> Tensor:
    return torch.stack([sums_of(picture) for rows in chosen.split(64) for picture in pictures[rows]])
