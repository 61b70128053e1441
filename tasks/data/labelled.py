"""Texts with a class each: docstrings of the standard library, files of rows, or a data set of the hub.

    docstrings           which of twelve modules a docstring comes from: `tasks.data.docstrings`
    FILE ...             .csv, .tsv or .jsonl, also .gz, with a column of texts, or two, and one of labels
    hf:NAME[:CONFIG]     a data set of the Hugging Face hub, such as hf:nyu-mll/glue:sst2

Which columns they are: what --columns says, else what their names tell, else of two columns the first and the second. Where there
are no validation or test texts, a tenth each is held out of the texts to train on, or the one set serves as both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tasks.data import DataError, fingerprint
from tasks.data.docstrings import docstrings
from tasks.data.families import by_role
from tasks.data.splitting import split_80_10_10
from tasks.data.tables import csv_rows, json_rows, tsv_rows, whole_characters
from tasks.data.text_files import hub_splits

TEXTS = (
    ("sentence1", "sentence2"), ("question1", "question2"), ("premise", "hypothesis"), ("question", "sentence"),
    ("text", "text_pair"), ("text",), ("sentence",), ("content",), ("review",),
)  # fmt: skip
"""Names of the columns of texts, or of two texts, the surest first."""
LABELS = ("label", "labels", "class", "category", "intent")
FILES = ".csv, .tsv or .jsonl files of texts and labels"


class Labelled(NamedTuple):
    """A text, or two that are read together, and its class by name."""

    texts: tuple[str, ...]
    label: str


@dataclass
class LabelledTexts:
    """Examples to train on, to choose the best model by, and to measure at the end."""

    train: list[Labelled]
    valid: list[Labelled]
    test: list[Labelled]
    notes: list[str] = field(default_factory=list)
    """What was left out, split or taken, a line each."""

    def __post_init__(self) -> None:
        """Errors: `DataError` for an empty split, a single class, or one that is not in the texts to train on."""
        self.classes = sorted({example.label for example in self.train})
        for name, split in self.splits():
            if not split:
                raise DataError(f"{name}: no texts")
            if len({len(example.texts) for example in (*self.train, *split)}) > 1:
                raise DataError(f"{name}: some examples have one text, others two")
            if unknown := sorted({example.label for example in split} - {*self.classes}):
                known = ", ".join(self.classes[:10])
                raise DataError(f"{name}: class {unknown[0]!r} is not among those of the texts to train on, {known}")
        if len(self.classes) == 1:
            raise DataError(f"all texts to train on are of the class {self.classes[0]!r}: there must be two classes or more")

    def splits(self) -> Iterator[tuple[str, list[Labelled]]]:
        yield from (("train", self.train), ("valid", self.valid), ("test", self.test))

    @property
    def pairs(self) -> bool:
        """Whether each example has two texts."""
        return len(self.train[0].texts) == 2

    def identity(self) -> dict[str, Any]:
        """What a run keeps of its data, to know it again."""
        splits = {name: {"texts": len(s), "fingerprint": fingerprint(bytes_of(s))} for name, s in self.splits()}
        return splits | {"classes": self.classes, "pairs": self.pairs}

    def told(self) -> list[str]:
        sizes = " + ".join(f"{len(split):,} {name}" for name, split in self.splits())
        return [f"{sizes} texts, {len(self.classes)} classes", *self.notes]


def bytes_of(examples: Iterable[Labelled]) -> Iterator[bytes]:
    return (part.encode() for example in examples for part in (*example.texts, example.label))


def load(data: str, train: Sequence[str], valid: Sequence[str], test: Sequence[str], columns: str) -> LabelledTexts:
    """What the options name. Errors: `DataError` for whatever is wrong with it."""
    notes: list[str] = []
    if train:
        splits = {"train": read(train, columns, notes)}
    elif data == "docstrings":
        splits = by_hash([Labelled((text,), module) for text, module in docstrings()])
    elif data.startswith("hf:"):
        splits = read_hub(data[3:], columns, notes)
    else:
        raise DataError(f"--data must be docstrings or hf:NAME, got {data!r}: files are given by --train")
    splits |= {name: read(paths, columns, notes) for name, paths in (("valid", valid), ("test", test)) if paths}
    missing = [name for name in ("valid", "test") if not splits.get(name)]
    if len(missing) == 2:
        splits = held_out(splits["train"])
        notes.append("valid and test are held out of the texts to train on, copies of a text together")
    elif missing:
        other = "test" if missing == ["valid"] else "valid"
        splits[missing[0]] = splits[other]
        notes.append(f"{missing[0]}: none given, so that {other} serves as both")
    notes += [f"{count:,} of the {name} texts are in train too" for name, count in copies(splits) if count]
    return LabelledTexts(splits["train"], splits["valid"], splits["test"], notes)


def by_hash(examples: Sequence[Labelled]) -> dict[str, list[Labelled]]:
    """A fifth for test, a twentieth for valid, by the SHA-256 of the text: what a text is for does not depend on the others."""
    found: dict[str, list[Labelled]] = {"train": [], "valid": [], "test": []}
    for example in examples:
        number = int(hashlib.sha256(example.texts[0].encode()).hexdigest(), 16) % 20
        found["test" if number < 4 else "valid" if number == 4 else "train"].append(example)
    return found


def held_out(examples: Sequence[Labelled]) -> dict[str, list[Labelled]]:
    """80 to 10 to 10 of every class."""
    classes = sorted({example.label for example in examples})
    number = {name: n for n, name in enumerate(classes)}
    contents = ["\0".join(example.texts).encode() for example in examples]
    roles = split_80_10_10(contents, [number[e.label] for e in examples], classes, "texts without a test set")
    found: dict[str, list[Labelled]] = {"train": [], "valid": [], "test": []}
    for role, example in zip(roles, examples, strict=True):
        found[role].append(example)
    return found


def copies(splits: dict[str, list[Labelled]]) -> Iterator[tuple[str, int]]:
    known = {example.texts for example in splits["train"]}
    for name in ("valid", "test"):
        yield name, sum(example.texts in known for example in splits[name])


# ------------------------------------------------------------------------------------------------------------------ files


def read(paths: Sequence[str | Path], columns: str, notes: list[str]) -> list[Labelled]:
    """Examples of files, in order. Errors: `DataError` that names file and line."""
    found: list[Labelled] = []
    for path in map(Path, paths):
        if not path.is_file():
            raise DataError(f"{path} is {'a folder' if path.is_dir() else 'not there'}: expected {FILES}")
        ending = Path(path.name.removesuffix(".gz")).suffix.lower()
        if ending not in READERS:
            raise DataError(f"{path} must end in .csv, .tsv or .jsonl")
        rows, header = READERS[ending](path)
        found += examples(path, rows, header, columns, notes)
    return found


Row = tuple[int, list[Any]]
"""Number of a line, and what stands in its columns."""


def table(rows: Iterator[Row]) -> tuple[Iterator[Row], list[str]]:
    """Rows, the first one among them, and that one: it may be a header."""
    first = next(rows, None)
    if first is None:
        return iter(()), []
    return iter([first, *rows]), [cell.strip() for cell in first[1]]


def objects(path: Path) -> tuple[Iterator[Row], list[str]]:
    """Objects of JSON lines as rows of the keys that the first one has, which come first."""
    found: list[Row] = []
    keys: list[str] = []
    for number, row in json_rows(path):
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: expected an object, got {type(row).__name__}")
        keys = keys or [*row]
        found.append((number, [row.get(key) for key in keys]))
    return iter([(0, [*keys]), *found] if keys else ()), keys


READERS: dict[str, Any] = {
    ".csv": lambda path: table(csv_rows(path)),
    ".tsv": lambda path: table(tsv_rows(path)),
    ".jsonl": objects,
}


def examples(path: Path, rows: Iterator[Row], header: Sequence[str], columns: str, notes: list[str]) -> Iterator[Labelled]:
    if not header:
        return
    places, named = places_of(header, columns, str(path))
    if named:
        next(rows)
    elif not columns:
        notes.append(f"{path}: no line of names, so that column 1 is the text and 2 the label: --columns chooses others")
    for number, row in rows:
        if not any(str(cell or "").strip() for cell in row):
            continue
        if len(row) <= max(places):
            raise DataError(f"{path}, line {number}: no column {max(places) + 1}, it has {len(row)}")
        *texts, label = (row[place] for place in places)
        for text in texts:
            if not isinstance(text, str):
                raise DataError(f"{path}, line {number}: the text must be a string, got {text!r}")
        if label is None or isinstance(label, list | dict) or not str(label).strip():
            raise DataError(f"{path}, line {number}: no label")
        place = f"{path}, line {number}"
        yield Labelled((*(whole_characters(text, place) for text in texts),), whole_characters(str(label).strip(), place))


def places_of(header: Sequence[str], columns: str, where: str) -> tuple[list[int], bool]:
    """Places of texts and label, from 0, and whether the first line is one of names."""
    wanted = [name.strip() for name in columns.split(",")] if columns else []
    if columns and (len(wanted) not in (2, 3) or not all(wanted) or "0" in wanted or len({*wanted}) < len(wanted)):
        raise DataError(f"--columns must be a text, or two, and the label, such as 1,3 or text,label, got {columns!r}")
    if wanted and all(name.isdecimal() for name in wanted):
        return [int(name) - 1 for name in wanted], False
    known = [name.lower() for name in header]
    for texts in [tuple(wanted[:-1])] if wanted else TEXTS:
        for label in wanted[-1:] or LABELS:
            names = [*texts, label]
            if all(name in header for name in names) or (not wanted and all(name in known for name in names)):
                return [(header if wanted else known).index(name) for name in names], True
    if not wanted and len(header) == 2:
        return [0, 1], False
    expected = f"columns {', '.join(wanted)}" if wanted else "columns text and label, or --columns that names them"
    raise DataError(f"{where}: expected {expected}, the first line has {', '.join(header[:20])}")


# -------------------------------------------------------------------------------------------------------------------- hub


def read_hub(name: str, columns: str, notes: list[str]) -> dict[str, list[Labelled]]:
    """The splits of a data set of the hub. One whose labels are withheld, as GLUE's tests, is left out and told."""
    path, _, config = name.partition(":")
    splits = hub_splits(name, path, config or None)
    found: dict[str, list[Labelled]] = {}
    for role, split in by_role([*splits, *matched(splits)]).items():
        rows = splits[split if split in splits else f"{split}_matched"]
        places, _ = places_of(rows.column_names, columns, f"hf:{name}")
        *texts, label = (rows.column_names[place] for place in places)
        names = getattr(rows.features[label], "names", None)
        labels = [None if n in (-1, None) else names[n] if names else str(n) for n in rows[label]]
        if None in labels:
            notes.append(f"hf:{name}: {split} has no labels, and is left out")
            continue
        columns_of_texts: list[Sequence[str]] = [rows[key] for key in texts]
        found[role] = [Labelled((*some,), str(x)) for *some, x in zip(*columns_of_texts, labels, strict=True)]
    if "train" not in found:
        raise DataError(f"hf:{name} has no labelled split to train on, only {', '.join(splits)}")
    return found


def matched(splits: Iterable[str]) -> list[str]:
    """MultiNLI's validation_matched counts as validation."""
    return [name.removesuffix("_matched") for name in splits if name.endswith("_matched")]
