"""What a folder holds, at any depth: pictures, other files, links that lead nowhere.

Names that start with a dot, and __MACOSX, are passed over; links to folders and files are followed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

KNOWN = {".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jpx",
         ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}  # fmt: skip
"""What a picture's name may end in, where Pillow has what it takes to read it."""


@cache
def suffixes() -> frozenset[str]:
    """Of files that this Pillow can read."""
    from PIL import Image, features

    Image.init()
    readable = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return frozenset(KNOWN & readable) - (frozenset() if features.check("jpg_2000") else {".j2k", ".jp2", ".jpx"})


def printable(name: str) -> str:
    """A file's name as text that can be printed: its bytes that are no UTF-8 as \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def first_few(names: Sequence[str], limit: int = 3) -> str:
    return ", ".join(printable(name) for name in names[:limit]) + (", ..." if len(names) > limit else "")


@dataclass
class Folder:
    """What a folder holds: folders by name, names of pictures, paths of other files and of links that lead nowhere."""

    path: str
    folders: dict[str, Folder] = field(default_factory=dict)
    pictures: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    dangling: list[str] = field(default_factory=list)
    total: int = 0
    """Pictures at any depth."""

    def files(self) -> Iterator[str]:
        """Paths of all pictures, in their order."""
        for name in sorted([*self.pictures, *self.folders]):
            if name in self.folders:
                yield from self.folders[name].files()
            else:
                yield os.path.join(self.path, name)

    def all_of(self, kind: str) -> Iterator[str]:
        """The `others` or the `dangling` at any depth."""
        yield from getattr(self, kind)
        for folder in self.folders.values():
            yield from folder.all_of(kind)

    def full(self) -> dict[str, Folder]:
        """The folders in it that hold pictures."""
        return {name: folder for name, folder in self.folders.items() if folder.total}


def scan(path: str, above: tuple[str, ...] = ()) -> Folder:
    """Errors: `OSError` for a folder that may not be read."""
    found, real = Folder(path), os.path.realpath(path)
    if real in above:  # a link to a folder that this one stands in
        return found
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if entry.is_dir():
                found.folders[entry.name] = scan(entry.path, (*above, real))
            elif entry.is_file() and os.path.splitext(entry.name)[1].lower() in suffixes():
                found.pictures.append(entry.name)
            else:
                (found.others if entry.is_file() else found.dangling).append(entry.path)
    found.total = len(found.pictures) + sum(folder.total for folder in found.folders.values())
    return found
