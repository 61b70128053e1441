"""Parallel text from files: every reader yields pairs (source, target) lazily, so that a corpus may exceed memory.

    read(["corpus.de", "corpus.en"])         two files whose lines belong together, as Moses, OPUS and Multi30k ship them
    read(["pairs.tsv"])                      source, tab, target; `columns` chooses others, by number or name; .csv too
    read(["pairs.jsonl"])                    {"de": .., "en": ..}, {"source": .., "target": ..} or {"translation": {"de": ..}}
    read(["memory.tmx"], "de", "en")         a translation memory
    read(["messages.po"])                    gettext, also .mo

Files may end in .gz as well. All errors are `DataError`s of one line that name the file, and the line where there is one.
"""

from __future__ import annotations

import heapq
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tasks.data import DataError, seed_of
from tasks.data.catalogues import read_gettext, read_tmx
from tasks.data.families import FAMILIES, role_of, role_of_start
from tasks.data.tables import Notes, csv_rows, read_jsonl, read_table, tsv_rows
from tasks.data.text_files import Pair, Placed, count_lines, lines

TABLES = {".tsv": tsv_rows, ".csv": csv_rows}
SINGLE = (*TABLES, ".jsonl", ".json", ".tmx", ".po", ".mo")
"""Endings of files that hold both sides."""
ENDINGS = ".tsv, .csv, .jsonl, .tmx, .po or .mo"
Item = TypeVar("Item")


def read(
    paths: Sequence[str | Path],
    source: str | None = None,
    target: str | None = None,
    columns: str = "",
    notes: Notes | None = None,
) -> Iterator[Pair]:
    """Pairs from two line files, or from one file of both sides; `source` and `target` are languages, None where unknown.

    columns, notes: as `tables.read_table` says, of .tsv and .csv; .jsonl has columns too, others have none.
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
        name, both = f"{files[0]} and {files[1]}", zip(lines(files[0]), lines(files[1]), strict=True)
        return (Placed(*texts, name, "line", number) for number, texts in enumerate(both, 1))
    kind = ending(files[0]) if len(files) == 1 else ""
    if kind in TABLES:
        return read_table(files[0], TABLES[kind](files[0]), source, target, columns, notes)
    if kind in (".jsonl", ".json"):
        return read_jsonl(files[0], source, target, columns)
    if kind == ".tmx":
        return read_tmx(files[0], source, target)
    if kind in (".po", ".mo"):
        return read_gettext(files[0], source)
    raise DataError(f"give two files of lines or one {ENDINGS} file, got {' '.join(map(str, files)) or 'none'}")


def ending(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix


def languages_of(paths: Sequence[str | Path]) -> tuple[str | None, str | None]:
    """What the endings of two files of lines tell, such as corpus.de and corpus.pt_BR; else None, twice."""
    names = [ending(Path(path)).removeprefix(".") for path in paths]
    told = len(names) == 2 and names[0] != names[1] and all(re.fullmatch("[a-z]{2}([-_][A-Za-z]{2,4})?", name) for name in names)
    return (names[0], names[1]) if told else (None, None)


def find_splits(folder: str | Path, source: str | None = None, target: str | None = None) -> dict[str, list[Path]]:
    """The files of a folder for `read`: of train, and of valid and test where there are any.

    A name starts with one that `families` has and ends in a language or an ending that `read` knows: train.de and train.en,
    val.jsonl, test_2016_flickr.de.gz. Errors: `DataError` where files are missing or there is a choice.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder")
    languages = (source, target) if source and target else ()
    stems: dict[str, dict[str, dict[str, Path]]] = {split: {} for split in FAMILIES}
    for path in sorted(folder.iterdir()):
        stem, _, last = path.name.removesuffix(".gz").rpartition(".")
        if (split := role_of_start(stem)) and (last in languages or f".{last}" in SINGLE):
            stems[split].setdefault(stem if last in languages else path.name, {})[last] = path
    found: dict[str, list[Path]] = {}
    for split, all_of in stems.items():
        exact = {stem: files for stem, files in all_of.items() if role_of(stem.partition(".")[0])} or all_of
        if len(exact) > 1:
            raise DataError(f"{folder} has several files for {split}, leave one: {', '.join(exact)}")
        for stem, files in exact.items():
            if lacking := [x for x in languages if x not in files and not {*SINGLE} & {f".{e}" for e in files}]:
                raise DataError(f"{folder} has {next(iter(files.values())).name} but no {stem}.{lacking[0]}")
            found[split] = [files[x] for x in languages] if languages and languages[0] in files else list(files.values())
    if "train" not in found:
        names = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
        wanted = f"train.{source} and train.{target}, " if source and target else ""
        hint = "" if wanted else "; --source and --target tell the endings of two files of lines"
        single = "train.tsv, train.csv, train.jsonl, train.tmx or train.po"
        raise DataError(f"{folder} must have {wanted}{single}; it has {names}{hint}")
    return found


# ----------------------------------------------------------------------------------------------------------------- cleaning


@dataclass
class Counts:
    """What became of the pairs that were read."""

    kept: int = 0
    empty: int = 0
    long: int = 0
    longest: int = field(default=0, compare=False)
    """Tokens of the longest side that was kept, `eos` included."""
    where: str = field(default="", compare=False)
    """File and line of the first pair that has it, where they are known."""

    def __str__(self) -> str:
        return f"{self.kept:,} pairs; skipped {self.empty:,} with an empty side and {self.long:,} over-long ones"


def clean(text: str, form: str = "none") -> str:
    """The text without white space around it, in a Unicode normal form: nfc, nfkc or none."""
    normal: Any = form.upper()
    return (text if form == "none" else unicodedata.normalize(normal, text)).strip()


def nonempty(pairs: Iterable[Pair], counts: Counts, form: str = "none") -> Iterator[Pair]:
    """Clean ones, without pairs of which a side is empty, which are counted."""
    for pair in pairs:
        source, target = clean(pair[0], form), clean(pair[1], form)
        if source and target:
            yield Placed(source, target, *pair.place) if isinstance(pair, Placed) else (source, target)
        else:
            counts.empty += 1


def sample(items: Iterable[Item], most: int, seed: int) -> list[Item]:
    """`most` of the items, spread over all of them, in their order: those whose numbers' hashes are the least.

    So that with the same seed a smaller sample is part of a larger one. Only the sample is in memory.
    """
    numbered = ((seed_of("sample", seed, n), n, item) for n, item in enumerate(items))
    return [item for _, _, item in sorted(heapq.nsmallest(most, numbered, key=lambda row: row[0]), key=lambda row: row[1])]
