"""Documents of plain text for language models: Python's own standard library, files, folders, or a data set of the hub.

    stdlib               the modules of the Python that runs, without tests and tables: 8 million characters that everybody has
    FILE FOLDER ...      text files; of a folder all files that are UTF-8; of .jsonl the key "text"
    hf:NAME              the column "text" of a data set of the Hugging Face hub

A document is a name and a text. Where no validation or test files are given, a twentieth of the documents each is held out, by
the SHA-256 of their names; of a few documents their last parts are.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import sysconfig
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tasks.data import SHARE, DataError, fingerprint, split_of
from tasks.data.families import by_role
from tasks.data.text_files import hub_splits, reading

LEFT_OUT = ("test", "tests", "idlelib", "encodings", "pydoc_data", "lib2to3", "site-packages", "dist-packages", "__pycache__")
"""Folders of the standard library that are no module, or tables."""


class Document(NamedTuple):
    name: str
    text: str


@dataclass
class Documents:
    """Texts to train on, to choose the best model by, and to measure at the end."""

    train: list[Document]
    valid: list[Document]
    test: list[Document]
    notes: list[str] = field(default_factory=list)
    """What was left out or split, a line each."""

    def identity(self) -> dict[str, Any]:
        """What a run keeps of its data, to know it again."""
        return {name: {"documents": len(split), "fingerprint": fingerprint(bytes_of(split))} for name, split in self.splits()}

    def splits(self) -> Iterator[tuple[str, list[Document]]]:
        yield from (("train", self.train), ("valid", self.valid), ("test", self.test))

    def told(self) -> list[str]:
        sizes = ((name, len(split), sum(len(d.text.encode()) for d in split)) for name, split in self.splits())
        return [f"{name}: {count:,} documents, {size:,} bytes" for name, count, size in sizes] + self.notes


def bytes_of(documents: Iterable[Document]) -> Iterator[bytes]:
    for document in documents:
        yield from (document.name.encode(), document.text.encode())


def stdlib() -> list[Document]:
    """The modules of the standard library of the Python that runs, by name, such as "asyncio/queues.py"."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = (path for path in sorted(root.rglob("*.py")) if not {*path.relative_to(root).parts[:-1]} & {*LEFT_OUT})
    found = [Document(path.relative_to(root).as_posix(), path.read_text("utf-8", errors="replace")) for path in paths]
    if not found:
        raise DataError(f"{root} holds no source of the standard library: give text files by --train")
    return [document for document in found if document.text.strip()]


def read(paths: Sequence[str | Path], notes: list[str]) -> list[Document]:
    """Documents of files and folders, in order; `notes` gets a line for what is left out. Errors: `DataError` names the file."""
    found: list[Document] = []
    for path in map(Path, paths):
        if path.is_dir():
            files = [
                p
                for p in sorted(path.rglob("*"))
                if p.is_file() and not any(x.startswith(".") for x in p.relative_to(path).parts)
            ]
            skipped = 0
            for file in files:
                try:
                    found += read_file(file, file.relative_to(path).as_posix())
                except DataError:
                    skipped += 1
            notes += [f"{path}: {skipped:,} of {len(files):,} files are no text, and left out"] if skipped else []
        elif path.is_file():
            found += read_file(path, path.name)
        else:
            raise DataError(f"{path} is not there")
    if not found:
        raise DataError(f"{', '.join(map(str, paths))}: no text in it")
    return found


def read_file(path: Path, name: str) -> list[Document]:
    with reading(path) as file:
        raw = file.read()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 ({error.reason} at byte {error.start + 1}): convert it") from error
    if "\0" in text:
        raise DataError(f"{path} is no text: it has zero bytes")
    if not path.name.removesuffix(".gz").endswith(".jsonl"):
        return [Document(name, text)] if text.strip() else []
    rows = []
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        try:
            row = json.loads(line)
            rows.append(Document(f"{name}:{number}", row["text"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f'{path}, line {number}: expected an object with "text", got {line[:60]!r}') from error
        if not isinstance(rows[-1].text, str):
            raise DataError(f'{path}, line {number}: "text" must be a string, got {rows[-1].text!r}')
    return [row for row in rows if row.text.strip()]


def read_hub(name: str) -> dict[str, list[Document]]:
    """The splits of a data set of the hub that has a column of texts."""
    path, _, config = name.partition(":")
    splits = hub_splits(name, path, config or None)
    found = {}
    for role, split in by_role(splits).items():
        rows = splits[split]
        if "text" not in rows.column_names:
            raise DataError(f"hf:{name} has no column text, only {', '.join(rows.column_names)}")
        found[role] = [Document(f"{split}:{n}", text) for n, text in enumerate(rows["text"]) if text.strip()]
    if "train" not in found:
        raise DataError(f"hf:{name} has no split train, only {', '.join(splits)}")
    return found


def load(data: str, train: Sequence[str], valid: Sequence[str], test: Sequence[str], form: str) -> Documents:
    """What the options name. form: Unicode normal form of all text, nfc, nfkc or none."""
    notes: list[str] = []
    if train:
        splits = {"train": read(train, notes)}
    elif data == "stdlib":
        splits = {"train": stdlib()}
    elif data.startswith("hf:"):
        splits = read_hub(data[3:])
    else:
        raise DataError(f"--data must be stdlib or hf:NAME, got {data!r}: files and folders are given by --train")
    splits |= {name: read(paths, notes) for name, paths in (("valid", valid), ("test", test)) if paths}
    splits = {name: normalised(split, form) for name, split in splits.items()}
    missing = [name for name in ("valid", "test") if not splits.get(name)]
    if len(missing) == 2:
        splits |= split_up(splits["train"])
        notes.append("valid and test are held out of the documents to train on")
    elif missing:
        other = "test" if missing == ["valid"] else "valid"
        splits[missing[0]] = splits[other]
        notes.append(f"{missing[0]}: none given, so that {other} serves as both")
    for name, split in splits.items():
        if not split:
            raise DataError(f"{name}: no documents")
    return Documents(splits["train"], splits["valid"], splits["test"], notes)


def normalised(documents: Sequence[Document], form: str) -> list[Document]:
    kind: Any = form.upper()
    return [Document(d.name, d.text if form == "none" else unicodedata.normalize(kind, d.text)) for d in documents]


def split_up(documents: Sequence[Document]) -> dict[str, list[Document]]:
    """A twentieth of the documents each for valid and test, by their names; like texts together. Of few, the ends of each."""
    found: dict[str, list[Document]] = {"train": [], "valid": [], "test": []}
    if len(documents) >= 2 * SHARE:
        twins = {d.text: d.name for d in reversed(documents)}  # the first of those with this text
        for document in documents:
            digest = hashlib.sha256(twins[document.text].encode()).hexdigest()
            found[split_of(int(digest, 16))].append(document)
        if all(found.values()):
            return found
        found = {"train": [], "valid": [], "test": []}
    for document in documents:
        lines = document.text.splitlines(keepends=True)
        first, second = (len(lines) * (SHARE - n) // SHARE for n in (2, 1))
        if first == 0 or first == second or second == len(lines):
            first = second = len(lines)
        for name, part in (("train", lines[:first]), ("valid", lines[first:second]), ("test", lines[second:])):
            if text := "".join(part):
                found[name].append(Document(document.name, text))
    if not all(found.values()):
        raise DataError("the documents are too few and too short to hold some out: give --valid")
    return found


def compressors(train: Sequence[Document], test: Sequence[Document]) -> dict[str, float]:
    """Bits per byte of the test texts for well-known compressors; the last has read the training texts first, all of them."""
    texts = b"".join(d.text.encode() for d in test)
    before = b"".join(d.text.encode() for d in train)
    bits = {
        name: 8 * len(pack(texts)) / len(texts) for name, pack in (("gzip", gzip.compress), ("bz2", bz2.compress), ("xz", xz))
    }
    return bits | {"xz after the training text": 8 * (len(xz(before + texts)) - len(xz(before))) / len(texts)}


def xz(data: bytes) -> bytes:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 26}]
    return lzma.compress(data, filters=filters)
