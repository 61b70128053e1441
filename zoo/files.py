"""Tensors in safetensors files, everything else in JSON; both appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import secrets
import stat
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from layers.weights import Stored

PART = ".part"
"""Ending of a file that is still being written."""
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, LookupError, struct.error, pickle.UnpicklingError)
"""What `torch.load` raises for files that are none of its own."""
TRAINING = "zooproof-training"
"""Value of "format" in the metadata of a training checkpoint, which holds the model's tensors under the prefix `model.`."""
BEST, MODEL, INDEX = "best.safetensors", "model.safetensors", "model.safetensors.index.json"
OLD = ("pytorch_model.bin", "pytorch_model.bin.index.json")
"""Files that a folder is asked for: the best model of a run, what `zoo.save` writes, an index of shards, and pickles."""


def weights_file(path: str | Path) -> Path:
    """The file of tensors that a path stands for: itself, or in a folder the one that its config.json names under "file", else
    the best model of a run, else `zoo.save`'s.

    Errors: `ValueError` if there is none.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path} is not there: a file of weights or a folder with one is expected")
    if not path.is_dir():
        return path
    if (named := saved_file(path)) is not None:
        if not (path / named).is_file():
            raise ValueError(f"{path / 'config.json'} names {named}, which is not there")
        return path / named
    choices = [path / name for name in (BEST, MODEL, INDEX, *OLD)]
    found = next((c for c in choices if c.exists()), None)
    if found is None:
        raise ValueError(f"{path} must hold one of {', '.join(c.name for c in choices)}")
    return found


def saved_file(folder: Path) -> str | None:
    """The file that `zoo.save` wrote last, as it notes in config.json where a folder might hold several."""
    try:
        named = read_json(folder / "config.json").get("file")
    except ValueError:
        return None
    return named if named in (BEST, MODEL) else None


def read_state(path: str | Path) -> dict[str, Stored]:
    """A model's tensors, still in their file or shards, which may be a training checkpoint.

    Errors: those of `read_tensors`.
    """
    path = weights_file(path)
    tensors = read_tensors(path, stored)
    if path.suffix != ".safetensors" or read_metadata(path).get("format") != TRAINING:
        return tensors
    return {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}


def read_tensors(path: str | Path, read: Callable[[Path], dict[str, Any]] | None = None) -> dict[str, Any]:
    """All tensors of a `.safetensors` file, of an index of shards (`*.index.json`), or of a folder that holds one of them.

    read: how to read a file or shard, such as `stored`; by default all of its tensors.
    Errors: `ValueError` that names the file if it is missing, damaged or a pickle, and for an index whose shards are missing,
            lie elsewhere, or lack a tensor.
    """
    path, read = weights_file(path), read or read_file
    return read_shards(path, read) if path.name.endswith(".index.json") else read(path)


def first_line(error: Exception) -> str:
    """What an error says, or what it is called."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def read_file(path: Path) -> dict[str, Tensor]:
    with open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def stored(path: Path) -> dict[str, Stored]:
    """The tensors of a `.safetensors` file by its header alone. Each is read where it is asked for, into memory of its own.

    A tensor that is mapped would be in memory twice once it is copied, and change or vanish with its file if it is not.
    """
    with open_tensors(path) as file:
        likes = {name: torch.empty_like(file.get_tensor(name), device="meta") for name in file.keys()}  # noqa: SIM118
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        begin = file.tell()
    return {k: Stored(like, partial(read_at, path, begin + header[k]["data_offsets"][0], like)) for k, like in likes.items()}


def read_at(path: Path, offset: int, like: Tensor) -> Tensor:
    tensor = torch.empty(like.shape, dtype=like.dtype, device="cpu")
    with path.open("rb") as file:
        file.seek(offset)
        read = file.readinto(tensor.reshape(-1).view(torch.uint8).numpy().data)
    if read != tensor.nbytes:
        raise ValueError(f"{path} has become shorter while it was read")
    return tensor


def read_shards(index: Path, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        raise ValueError(f"{index} must have an object 'weight_map' that gives the file of every tensor")
    for file in set(names.values()):
        if not (path := PurePath(file)).name or path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{index} must name files of its own folder, got {file!r}")
    shards = {file: index.parent / file for file in names.values()}
    if missing := sorted(file for file, path in shards.items() if not path.is_file()):
        raise ValueError(f"{index} names shards that are not there: {', '.join(missing)}")
    tensors = {file: read(path) for file, path in shards.items()}
    if lost := sorted(name for name, file in names.items() if name not in tensors[file]):
        raise ValueError(f"{index} names tensors that their shards do not hold: {', '.join(lost[:20])}")
    return {name: tensors[file][name] for name, file in names.items()}


def read_metadata(path: str | Path) -> dict[str, str]:
    """The strings in the header of a `.safetensors` file."""
    with open_tensors(Path(path)) as file:
        return file.metadata() or {}


def open_tensors(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"{path} is not there: a .safetensors file, or a folder with model.safetensors, is expected")
    with path.open("rb") as file:
        head = file.read(64)
    # a safetensors file starts with the length of its header, whose low bytes may look like a pickle's, and then "{"
    starts_like_pickle = head[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") and head[8:9] != b"{"
    if path.suffix in PICKLES or starts_like_pickle:
        raise ValueError(f"{path} is a pickle, which runs code when it is read: give a .safetensors file")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or damaged, not a whole safetensors file ({error})") from error


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a `.safetensors` file; tensors that share memory are written under each of their names."""
    # bytes with values; `save` refuses shared or strided memory
    owned = {name: t.detach().to("cpu", copy=True, memory_format=torch.contiguous_format) for name, t in tensors.items()}
    write_bytes(Path(path), save(owned, dict(metadata or {})))


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON object; `ValueError` names the file if it is missing or not one."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is truncated or damaged, not JSON ({error})") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(data).__name__}")
    return data


def write_json(path: str | Path, data: Mapping[str, Any]) -> None:
    write_bytes(Path(path), json_bytes(data))


def json_bytes(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, indent=2) + "\n").encode()


def write_bytes(path: Path, content: bytes) -> None:
    """A file as `writing` leaves it, of one piece."""
    with writing(path) as write:
        write(content)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Gives `write(content)`, for a content of any number of pieces: `path` holds all of them once the block has ended.

    They are written beside `path`, flushed to disk, and renamed: an error, a crash or a full disk leaves the old file as it was.
    A link stays, what it leads to is written; to a pipe or a device each piece goes as it comes. A new file has the permissions
    that the umask leaves, an old one keeps its own.
    Errors: `OSError` that names `path` if it cannot be written; what the block raises is passed on.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    temporary = target.parent / f".{target.name[:40]}.{secrets.token_hex(8)}{PART}"
    with naming(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        straight = (path.is_relative_to("/dev") and not path.is_relative_to("/dev/shm")) or (path.exists() and not path.is_file())
        made, flags = (path, os.O_TRUNC) if straight else (temporary, os.O_EXCL)
        handle = os.open(made, os.O_WRONLY | os.O_CREAT | flags, 0o666)

    def write(content: bytes) -> None:
        left = memoryview(content)
        with naming(path):
            while left:
                left = left[os.write(handle, left) :]

    try:
        with naming(path):
            if not straight and target.exists():
                os.fchmod(handle, stat.S_IMODE(target.stat().st_mode))
        yield write
        with naming(path):
            if not straight:
                os.fsync(handle)
                os.replace(temporary, target)
    except BaseException:
        if not straight:
            temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Where the system fails, such as for a full disk, or no such folder: say which file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"cannot be written: {error.strerror}", str(path)) from error


def remove_parts(folder: Path) -> None:
    """Delete what processes left that were killed while they wrote."""
    for part in folder.glob(f".*{PART}"):
        part.unlink()
