"""Tar shards of pictures."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from PIL import Image


def png(shade: int = 0, size: int = 8) -> bytes:
    Image.new("RGB", (size, size), (shade, shade, shade)).save(file := io.BytesIO(), "png")
    return file.getvalue()


def write(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def pack(pictures: Path, folder: Path, each: int = 4) -> Path:
    """The pictures of a folder in shards of `each`, classes taking turns."""
    for split in ("train", "test"):
        found = sorted((pictures / split).rglob("*.png"), key=lambda path: (path.name, path.parent.name))
        for n in range(0, len(found), each):
            members: dict[str, bytes] = {}
            for m, path in enumerate(found[n : n + each]):
                members |= {f"{n + m:05}.png": path.read_bytes(), f"{n + m:05}.cls": path.parent.name.encode()}
            write(folder / f"{split}-{n // each:03}.tar", members)
    return folder
