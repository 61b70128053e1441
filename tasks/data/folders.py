"""Folders of pictures: which one is which split, what the classes are, and what is left out. Nothing is decoded here.

PATH/train/CLASS/pictures with PATH/val or PATH/test or both, whose names may be any of their families, or PATH/CLASS/pictures.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.data import DataError
from tasks.data.families import FAMILIES, role_of
from tasks.data.tree import Folder, first_few, printable, scan, suffixes

EXPECTED = "expected PATH/train/CLASS/pictures with PATH/val or PATH/test, or PATH/CLASS/pictures"


@dataclass
class Part:
    """A split, or a whole folder of classes: paths of the pictures of every class, whose names are in NFC."""

    path: str
    classes: dict[str, list[str]]

    @property
    def size(self) -> int:
        return sum(map(len, self.classes.values()))

    def labelled(self, classes: Sequence[str]) -> tuple[list[str], list[int]]:
        """Paths, and the number of each one's class in `classes`."""
        number = {name: n for n, name in enumerate(classes)}
        pairs = [(path, number[name]) for name, paths in sorted(self.classes.items()) for path in paths]
        return [path for path, _ in pairs], [label for _, label in pairs]


@dataclass
class Layout:
    """What a folder was taken for: "train", "valid" and "test" of its `parts`, or "all" where it has no splits."""

    root: str
    parts: dict[str, Part]
    told: list[str]


def list_classes(root: Path) -> Layout:
    """Errors: `DataError` in one line, for a folder that could be taken for several things, or for none."""
    root = root.expanduser()
    if not root.is_dir():
        archive = root.is_file() and re.search(r"\.(zip|rar|7z|tar|tgz|tar\.\w+)$", root.name.lower())
        raise DataError(f"{root} is {'an archive: unpack it, and give its folder' if archive else f'not a folder: {EXPECTED}'}")
    tree, told = scan(str(root)), []
    while (inner := lone(tree)) is not None:
        told.append(f"{printable(inner.path)} is taken for the data: {printable(tree.path)} holds nothing else")
        tree = inner
    if not tree.total:
        empty = next((folder for name, folder in tree.folders.items() if role_of(name) == "train"), tree)
        raise DataError(f"{printable(empty.path)} is empty: {EXPECTED}" + left_out(tree, [], "; it has "))
    splits = named_splits(tree)
    if splits:
        parts = {role: Part(folder.path, classes_of(folder, whole=role == "train")) for role, folder in splits.items()}
        require_alike(parts)
    else:
        require_classes(tree)
        parts = {"all": Part(tree.path, classes_of(tree, whole=True))}
    return Layout(tree.path, parts, [*told, "; ".join(map(described, parts, parts.values())), *notes(tree, splits, parts)])


def described(role: str, part: Part) -> str:
    size, classes = f"{part.size:,} pictures", f"{len(part.classes)} {'class' if len(part.classes) == 1 else 'classes'}"
    return f"{printable(part.path)}: {'' if role == 'all' else f'{role}, '}{size} of {classes}"


def lone(tree: Folder) -> Folder | None:
    """The only folder in another that holds pictures, if it holds folders of classes, or of splits, itself."""
    full = [*tree.full().items()]
    if len(full) != 1 or tree.pictures or full[0][1].pictures or role_of(full[0][0]):
        return None
    return full[0][1]


def named_splits(tree: Folder) -> dict[str, Folder]:
    """By role, the folders that have the name of a split and hold folders of classes: a class may be called "train"."""
    named = {name: folder for name, folder in tree.folders.items() if role_of(name) and not is_bare(folder)}
    if not any(folder.total for folder in named.values()):
        return {}
    found: dict[str, Folder] = {}
    for name, folder in named.items():
        role = role_of(name) or ""
        if role in found:
            first = os.path.basename(found[role].path)
            raise DataError(f"{printable(tree.path)} has two folders for {role}, {first} and {name}: leave one")
        found[role] = folder
    if "train" in found and not found["train"].total:
        raise DataError(f"{printable(found['train'].path)} is empty: expected one folder of pictures for each class")
    beside = [name for name in tree.full() if not role_of(name)]
    if beside:
        raise DataError(f"{printable(tree.path)} has the splits {', '.join(named)} and beside them folders of pictures, "
                        f"{first_few(beside)}: {EXPECTED}")  # fmt: skip
    bare = [name for name, folder in tree.folders.items() if role_of(name) == "train" and is_bare(folder)]
    if bare and "train" not in found:
        raise DataError(
            f"{printable(tree.path)}/{bare[0]} holds pictures without classes: expected one folder for each class in it"
        )
    return {role: folder for role, folder in sorted(found.items(), key=lambda item: [*FAMILIES].index(item[0])) if folder.total}


def is_bare(folder: Folder) -> bool:
    """Whether most of its pictures lie in no folder of a class."""
    return 2 * len(folder.pictures) >= max(1, folder.total)


def require_classes(tree: Folder) -> None:
    """Errors: `DataError` if the folders in this one are no classes."""
    full = tree.full()
    if not full:
        raise DataError(f"{printable(tree.path)} holds {tree.total:,} pictures and no folders of classes: {EXPECTED}")
    if len(full) > 1 and all(map(role_of, full)):
        names = ", ".join(sorted(full))
        raise DataError(f"{printable(tree.path)} has the splits {names}, which hold pictures without classes: {EXPECTED}")
    inner = [() if folder.pictures else tuple(sorted(folder.full())) for folder in full.values()]
    if len(full) > 1 and len(inner[0]) > 1 and len({*inner}) == 1:
        raise DataError(f"{printable(tree.path)} has {first_few([*full])}, which all hold the same folders, "
                        f"{first_few(inner[0])}: which are the classes? {EXPECTED}")  # fmt: skip


def classes_of(folder: Folder, whole: bool) -> dict[str, list[str]]:
    """Paths by class, in the order of the names. Those without pictures are left out, or refused of a `whole` folder."""
    found: dict[str, Folder] = {}
    for name, inner in folder.folders.items():
        if not inner.total and not whole:
            continue
        if not inner.total:
            files = [*inner.all_of("others")]
            hint = f"it has {first_few([*map(os.path.basename, files)])}" if files else " ".join(sorted(suffixes()))
            raise DataError(f"{printable(inner.path)} is a class folder without images ({hint})")
        normal = unicodedata.normalize("NFC", printable(name))
        if normal in found:
            raise DataError(f"{printable(folder.path)} has two folders {normal}, alike but for the Unicode form of their names, "
                            f"{form(os.path.basename(found[normal].path))} and {form(name)}: make them one")  # fmt: skip
        found[normal] = inner
    return {name: [*found[name].files()] for name in sorted(found)}


def form(name: str) -> str:
    return next((kind for kind in ("NFC", "NFD") if unicodedata.is_normalized(kind, name)), "mixed")


def require_alike(parts: dict[str, Part]) -> None:
    """Errors: `DataError` if valid or test has classes that train lacks."""
    if "train" not in parts:
        return
    train = parts["train"]
    for part in parts.values():
        if new := [name for name in part.classes if name not in train.classes]:
            raise DataError(f"{printable(part.path)} has classes that {printable(train.path)} lacks: {', '.join(new)}; "
                            f"{printable(train.path)} has {', '.join(train.classes)}")  # fmt: skip


def notes(tree: Folder, splits: dict[str, Folder], parts: dict[str, Part]) -> Iterator[str]:
    """What is not as one might think, a line each."""
    train = parts.get("train")
    for part in parts.values():
        if train and (lacking := [name for name in train.classes if name not in part.classes]):
            yield f"{printable(part.path)} has no pictures of {first_few(lacking, 10)}"
    bare = [name for name, folder in tree.full().items() if role_of(name) and is_bare(folder)] if splits else []
    for name in bare:
        yield (f"{printable(tree.path)}/{name}: {tree.folders[name].total:,} pictures without classes, not used; "
               "predict --image takes such a folder")  # fmt: skip
    if said := left_out(tree, [n for n, folder in tree.folders.items() if splits and not folder.total], "left out: ", splits):
        yield said
    if not splits and (beside := splits_beside(tree.path)):
        yield (f"{printable(tree.path)} has the name of a split and is taken as a whole; to use {', '.join(beside)} beside it, "
               f"give folder:{printable(os.path.dirname(tree.path) or '.')}")  # fmt: skip


def splits_beside(path: str) -> list[str]:
    """Names of folders of other splits, where this folder has the name of one itself."""
    above, own = os.path.split(os.path.realpath(path))
    if not role_of(own):
        return []
    with os.scandir(above) as entries:
        return sorted(printable(entry.name) for entry in entries if entry.name != own and entry.is_dir() and role_of(entry.name))


def left_out(tree: Folder, empty: Sequence[str], start: str, splits: Mapping[str, Folder] | None = None) -> str:
    others, dangling = [*tree.all_of("others")], [*tree.all_of("dangling")]
    found = []
    for names, one, many in (
        ([*map(os.path.basename, others)], "file that is no picture by its name", "files that are no pictures by their names"),
        ([*map(os.path.basename, dangling)], "link that leads nowhere", "links that lead nowhere"),
        *(
            (folder.pictures, f"picture directly in {printable(folder.path)}", f"pictures directly in {printable(folder.path)}")
            for folder in (tree, *(splits or {}).values())
        ),
        (empty, "folder without pictures", "folders without pictures"),
    ):
        if names:
            found.append(f"{len(names):,} {one if len(names) == 1 else many} ({first_few(names)})")
    return start + "; ".join(found) if found else ""
