"""Parallel text from files and packages: every reader yields pairs (source, target) lazily, so that a corpus may exceed memory.

    read(["corpus.de", "corpus.en"])         two files whose lines belong together, as Moses, OPUS and Multi30k ship them
    read(["pairs.tsv"])                      source, tab, target; further columns are left alone
    read(["pairs.jsonl"])                    {"de": .., "en": ..}, {"source": .., "target": ..} or {"translation": {"de": ..}}
    read(["messages.po"])                    gettext, also .mo

Files may end in .gz as well. Only a line feed ends a line: others that Unicode has, such as U+2028, occur within sentences.
All errors are `DataError`s of one line that name the file, and the line where there is one.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib
import json
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.data import DataError

Pair = tuple[str, str]
SINGLE = {".tsv", ".jsonl", ".json", ".po", ".mo"}
ALIASES = {"train": ("train",), "valid": ("valid", "val", "validation", "dev"), "test": ("test",)}


def optional(name: str) -> Any:
    """A module of a package that only some tasks need; `DataError` tells how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        extra = "hub" if package == "datasets" else "translation"
        raise DataError(f'{package} is not installed: pip install "zooproof[{extra}]" brings it') from error


# ------------------------------------------------------------------------------------------------------------------- files


def read(paths: Sequence[str | Path], source: str = "de", target: str = "en") -> Iterator[Pair]:
    """Pairs from two line files, or from one .tsv, .jsonl, .po or .mo file; `source` and `target` are languages.

    Errors, before the first pair: a missing file, an unknown ending, line files of unequal length.
    """
    files = [Path(path) for path in paths]
    for path in files:
        if not path.is_file():
            raise DataError(f"{path} is not there, or no file")
    if len(files) == 2:
        counts = [count_lines(path) for path in files]
        if counts[0] != counts[1]:
            raise DataError(
                f"{files[0]} has {counts[0]} lines and {files[1]} has {counts[1]}: line by line they must belong together"
            )
        return zip(lines(files[0]), lines(files[1]), strict=True)
    kind = Path(files[0].name.removesuffix(".gz")).suffix if len(files) == 1 else ""
    if kind == ".tsv":
        return read_tsv(files[0])
    if kind in (".jsonl", ".json"):
        return read_jsonl(files[0], source, target)
    if kind in (".po", ".mo"):
        return read_gettext(files[0], source)
    raise DataError(f"give two files of lines or one .tsv, .jsonl, .po or .mo file, got {' '.join(map(str, files)) or 'none'}")


def open_bytes(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[Any]:
    """The file's bytes; damage to a .gz file is a `DataError`."""
    try:
        with open_bytes(path) as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is truncated or damaged, not gzip ({error})") from error


def count_lines(path: Path) -> int:
    count, last = 0, b"\n"
    with reading(path) as file:
        while block := file.read(1 << 20):
            count, last = count + block.count(b"\n"), block[-1:]
    return count + (last != b"\n")


def lines(path: Path) -> Iterator[str]:
    """Lines without their ends; a byte order mark is no part of the first."""
    with reading(path) as file:
        for number, line in enumerate(file, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise DataError(f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start + 1})") from error


def read_tsv(path: Path) -> Iterator[Pair]:
    for number, line in enumerate(lines(path), 1):
        columns = line.split("\t")
        if len(columns) < 2 and line.strip():
            raise DataError(f"{path}, line {number}: source and target must stand in two columns with a tab between")
        yield columns[0], columns[-1] if len(columns) < 2 else columns[1]


def read_jsonl(path: Path, source: str, target: str) -> Iterator[Pair]:
    for number, line in enumerate(lines(path), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}, line {number}: not JSON ({error})") from error
            yield pair_of(row, source, target, f"{path}, line {number}")


def pair_of(row: Any, source: str, target: str, where: str) -> Pair:
    """Source and target of {source: .., target: ..} by language or by these words, as they are or within "translation"."""
    inner = row.get("translation", row) if isinstance(row, dict) else row
    if isinstance(inner, dict):
        for first, second in ((source, target), ("source", "target")):
            if isinstance(inner.get(first), str) and isinstance(inner.get(second), str):
                return inner[first], inner[second]
    found = f"the keys {', '.join(map(str, inner))}" if isinstance(inner, dict) else type(inner).__name__
    raise DataError(f"{where}: expected texts {source!r} and {target!r}, or 'source' and 'target', got {found}")


def read_gettext(path: Path, source: str) -> Iterator[Pair]:
    """Translated messages, singular and plural; from id to translation, or back if the catalogue is in the source language."""
    optional("babel")
    from babel.messages.mofile import read_mo
    from babel.messages.pofile import PoFileError, read_po

    try:
        with reading(path) as file:
            catalog = read_mo(file) if ".mo" in path.suffixes else read_po(file, ignore_obsolete=True, abort_invalid=True)
    except PoFileError as error:
        raise DataError(f"{path}, line {error.lineno + 1}: no part of a catalogue of messages") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}{line_of(path, error)}: not {error.encoding} ({error.reason})") from error
    except (OSError, ValueError, LookupError, struct.error) as error:
        raise DataError(f"{path} is damaged, no catalogue of messages ({error})") from error
    back = catalog.locale is not None and catalog.locale.language == re.split("[-_]", source)[0]
    for message in catalog:
        if message.id and not message.fuzzy:
            ids, strings = ([x] if isinstance(x, str) else list(x or [""]) for x in (message.id, message.string))
            for first, second in dict.fromkeys([(ids[0], strings[0]), (ids[-1], strings[-1])]):
                yield (second, first) if back else (first, second)


def line_of(path: Path, error: UnicodeDecodeError) -> str:
    """Where the bytes are that cannot be decoded; nowhere in a .mo file, which has no lines."""
    with reading(path) as file:
        found = (n for n, line in enumerate(file, 1) if ".mo" not in path.suffixes and error.object in (line, line.rstrip()))
        return next((f", line {n}" for n in found), "")


def find_splits(folder: str | Path, source: str = "de", target: str = "en") -> dict[str, list[Path]]:
    """The files of a prepared folder for `read`: of train, and of valid and test where there are any.

    A name starts with train, valid (or val, validation, dev) or test and ends in a language or an ending that `read` knows:
    train.de and train.en, val.jsonl, test_2016_flickr.de.gz. Errors: `DataError` where files are missing or there is a choice.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder")
    found: dict[str, list[Path]] = {}
    for split, aliases in ALIASES.items():
        stems: dict[str, dict[str, Path]] = {}
        for path in sorted(folder.iterdir()):
            stem, _, ending = path.name.removesuffix(".gz").rpartition(".")
            if re.match(rf"({'|'.join(aliases)})(?![a-z])", stem) and (ending in (source, target) or f".{ending}" in SINGLE):
                stems.setdefault(stem if ending in (source, target) else path.name, {})[ending] = path
        for stem, files in stems.items():
            if lacking := [x for x in (source, target) if x not in files and not SINGLE & {f".{e}" for e in files}]:
                raise DataError(f"{folder} has {next(iter(files.values())).name} but no {stem}.{lacking[0]}")
        exact = {stem: files for stem, files in stems.items() if stem.partition(".")[0] in aliases} or stems
        if len(exact) > 1:
            raise DataError(f"{folder} has several files for {split}, leave one: {', '.join(exact)}")
        for files in exact.values():
            found[split] = [files[source], files[target]] if source in files else list(files.values())
    if "train" not in found:
        names = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
        raise DataError(
            f"{folder} must have train.{source} and train.{target}, train.tsv, train.jsonl or train.po; it has {names}"
        )
    return found


# ----------------------------------------------------------------------------------------------------------------- cleaning


@dataclass
class Counts:
    """What became of the pairs that were read."""

    kept: int = 0
    empty: int = 0
    long: int = 0

    def __str__(self) -> str:
        return f"{self.kept:,} pairs; skipped {self.empty:,} with an empty side and {self.long:,} over-long ones"


def nonempty(pairs: Iterable[Pair], counts: Counts) -> Iterator[Pair]:
    """Without the white space around, and without pairs of which a side is empty, which are counted."""
    for source, target in pairs:
        source, target = source.strip(), target.strip()
        if source and target:
            yield source, target
        else:
            counts.empty += 1
