"""Other people's containers: a state within a checkpoint, and names with the prefixes of what has wrapped the model."""

from __future__ import annotations

import argparse
import collections
import pathlib
import re
import types
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from zoo import files

T = TypeVar("T")
"""A tensor, or one that is still in its file."""
STATES = ("state_dict", "model_state_dict", "model_state", "model", "network", "net", "module", "params", "weights")
AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "params_ema", "average", "teacher")
"""Keys under which checkpoints keep a model's state, and an average of it."""
INFIXES = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What `torch.compile` and others put into names wherever they wrap a module."""
COUNTERS = ("n_averaged", "initted", "step")
"""What wrappers that average keep beside the weights."""


def read_pickle(path: Path, key: str = "") -> dict[str, Tensor]:
    """A state dict that `torch.save` wrote, itself or within a checkpoint: tensors are read, and no code is run.

    key: which entry of a checkpoint to take, or which tensors, by the beginning of their names; without it, the only entry that
         holds a state.
    Errors: `ValueError` that says what was found.
    """
    try:
        with torch.serialization.safe_globals(harmless()):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except files.UNREADABLE as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        why = f"{refused[1]}, which is not read" if refused else files.first_line(error)
        raise ValueError(f"{path} is damaged, or holds more than tensors ({why})") from error
    return state_of(found, path, key)


def read_any(path: Path) -> dict[str, Any]:
    """A pickle's tensors; of a safetensors file they are still there."""
    return read_pickle(path) if path.suffix in files.PICKLES else files.stored(path)


def harmless() -> list[Any]:
    """Plain values that checkpoints hold beside tensors, options, paths and numpy's numbers, with the names that pickles know."""
    makers: list[Any] = [value.__reduce__()[0] for value in (np.float64(0), np.zeros(1))]
    dtypes = [type(np.dtype(code)) for code in ("f2", "f4", "f8", "i4", "i8", "u1", "?")]
    old_and_new = [(f, f"numpy.{core}.multiarray.{f.__name__}") for f in makers for core in ("core", "_core")]
    return [argparse.Namespace, types.SimpleNamespace, pathlib.PosixPath, np.dtype, np.ndarray, *dtypes, *old_and_new]


def state_of(found: Any, path: Path, key: str = "") -> dict[str, Tensor]:
    """The state dict in what a file held: itself, or one entry or more down under a usual key, or the only one there is.

    key: which entry to take, or if there is none of that name, the tensors whose names begin with it.
    """
    trail: list[str] = []
    while not is_state(found):
        if not isinstance(found, Mapping):
            what = f"a {type(found).__name__}" + (f" under {'.'.join(trail)}" if trail else "")
            raise ValueError(f"{path} must hold a state dict, names and their tensors, got {what}")
        inside = {k: v for k, v in found.items() if isinstance(k, str) and holds_state(v)}
        known = {k: v for k, v in inside.items() if k in STATES + AVERAGES} or inside
        if key and key in inside:
            known, key = {key: inside[key]}, ""
        if not known:
            keys = ", ".join(map(repr, list(found)[:10])) or "none"
            raise ValueError(f"{path} must hold a state dict, names and their tensors, got a dictionary with the keys {keys}")
        if len(known) > 1:
            raise ValueError(f"{path} holds several states, {', '.join(known)}: choose one, {path}#{next(iter(known))}")
        ((name, found),) = known.items()
        trail.append(name)
    if not key or key in trail:
        return dict(found)
    if chosen := beginning_with(key, found):
        return chosen
    raise ValueError(f"{path} holds no state under {key!r}" + (f", but under {'.'.join(trail)}" if trail else ""))


def beginning_with(key: str, tensors: Mapping[str, T]) -> dict[str, T]:
    """The tensors whose names begin with `key` and a dot, without that."""
    return {name.removeprefix(f"{key}."): x for name, x in tensors.items() if name.startswith(f"{key}.")}


def is_state(found: Any) -> bool:
    if not isinstance(found, Mapping) or not found:
        return False
    return all(isinstance(key, str) and isinstance(value, Tensor) for key, value in found.items())


def holds_state(found: Any) -> bool:
    """Whether it is a state, or holds one under a usual key."""
    if is_state(found) or not isinstance(found, Mapping):
        return is_state(found)
    return any(holds_state(found[key]) for key in STATES + AVERAGES if key in found)


def unwrapped(tensors: Mapping[str, T]) -> Iterator[dict[str, T]]:
    """The tensors under their names, then without each first part that all names share: "module.", "model." and the like."""
    tensors = {without_infixes(name): tensor for name, tensor in tensors.items()}
    yield tensors
    tensors = {name: tensor for name, tensor in tensors.items() if name not in COUNTERS}
    while len(first := {name.partition(".")[0] for name in tensors}) == 1 and all("." in name for name in tensors):
        prefix = f"{first.pop()}."
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        yield tensors


def without_infixes(name: str) -> str:
    for infix in INFIXES:
        name = name.replace(infix, "")
    return name


def found_names(tensors: Mapping[str, Any]) -> str:
    """For an error: what the names begin with, and the first of them."""
    first = collections.Counter(name.partition(".")[0] for name in tensors)
    beginnings = ", ".join(f"'{part}' ({count})" for part, count in first.most_common(5))
    return f"its {len(tensors)} names begin with {beginnings}, such as {', '.join(list(tensors)[:3])}"


def fitting(tensors: Mapping[str, T], names: Collection[str]) -> dict[str, T]:
    """The tensors without what others' wrappers put before or into their names, as most of `names` have it."""
    return max(unwrapped(tensors), key=lambda found: len(found.keys() & set(names)))
