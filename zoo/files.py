"""Tensors in safetensors files, everything else in JSON; both appear whole or not at all."""

from __future__ import annotations

import json
import os
import pickle
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

PART = ".part"
"""Ending of a file that is still being written."""
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, LookupError, struct.error, pickle.UnpicklingError)
"""What `torch.load` raises for files that are none of its own."""
TRAINING = "zooproof-training"
"""Value of "format" in the metadata of a training checkpoint, which holds the model's tensors under the prefix `model.`."""


def weights_file(path: str | Path) -> Path:
    """The file of tensors that a path stands for: itself, or in a folder the best model of a run, or `zoo.save`'s.

    Errors: `ValueError` if there is none.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path} is not there: a file of weights or a folder with one is due")
    if not path.is_dir():
        return path
    choices = [path / name for name in ("best.safetensors", "model.safetensors", "model.safetensors.index.json")]
    found = next((c for c in choices if c.exists()), None)
    if found is None:
        raise ValueError(f"{path} must hold one of {', '.join(c.name for c in choices)}")
    return found


def read_state(path: str | Path) -> dict[str, Tensor]:
    """A model's tensors, out of what `read_tensors` reads or out of a training checkpoint."""
    path = weights_file(path)
    tensors = read_tensors(path)
    if path.suffix != ".safetensors" or read_metadata(path).get("format") != TRAINING:
        return tensors
    return {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}


def read_pickle(path: Path) -> dict[str, Tensor]:
    """A state dict that `torch.save` wrote, itself or under "model" or "state_dict": tensors are read and nothing else."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise ValueError(f"{path} is damaged, or holds more than tensors ({first_line(error)})") from error
    for key in ("model", "state_dict"):
        found = found[key] if isinstance(found, dict) and isinstance(found.get(key), dict) else found
    if not isinstance(found, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()):
        raise ValueError(f"{path} must hold a state dict, names and their tensors, got {type(found).__name__}")
    return dict(found)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a `.safetensors` file, of an index of shards (`*.index.json`), or of a folder that holds one of them.

    Errors: `ValueError` that names the file if it is missing, damaged, a pickle, or if a shard is missing.
    """
    path = weights_file(path)
    if path.name.endswith(".index.json"):
        return read_shards(path)
    return read_file(path)


def first_line(error: Exception) -> str:
    """What an error says, or what it is called."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def read_file(path: Path) -> dict[str, Tensor]:
    with open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def read_shards(index: Path) -> dict[str, Tensor]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        raise ValueError(f"{index} must have an object 'weight_map' that gives the file of every tensor")
    shards = {file: index.parent / file for file in names.values()}
    if missing := sorted(file for file, path in shards.items() if not path.is_file()):
        raise ValueError(f"{index} names shards that are not there: {', '.join(missing)}")
    tensors = {file: read_file(path) for file, path in shards.items()}
    if lost := sorted(name for name, file in names.items() if name not in tensors[file]):
        raise ValueError(f"{index} names tensors that their shards do not hold: {', '.join(lost[:20])}")
    return {name: tensors[file][name] for name, file in names.items()}


def read_metadata(path: str | Path) -> dict[str, str]:
    """The strings in the header of a `.safetensors` file."""
    with open_tensors(Path(path)) as file:
        return file.metadata() or {}


def open_tensors(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"{path} is not there: a .safetensors file, or a folder with model.safetensors, is due")
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
    write_bytes(Path(path), (json.dumps(data, indent=2) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write beside `path`, flush to disk, and rename: a crash or a full disk leaves the old file as it was."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PART, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):  # such as a full disk: say which file
            raise OSError(error.errno, f"cannot be written: {error.strerror}", str(path)) from error
        raise


def remove_parts(folder: Path) -> None:
    """What processes that were killed while they wrote have left behind."""
    for part in folder.glob(f".*{PART}"):
        part.unlink()
