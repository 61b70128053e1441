"""Everything that a resumed run needs, in one file that appears whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import zoo
from tasks.options import UserError
from zoo import files

if TYPE_CHECKING:
    from tasks.engine import Run

PROGRESS = {"step": int, "epoch": int, "position": int, "sums": dict, "window": dict, "history": list, "seconds": float}
"""Attributes of a run that its checkpoint keeps as JSON, and their types."""


def collect(run: Run) -> dict[str, Tensor]:
    """All tensors of a run: model, average, and what the optimizers keep for each parameter, which are numbered throughout."""
    tensors = {f"model.{name}": x for name, x in run.model.state_dict().items()}
    if run.average is not None:
        tensors |= {f"average.{name}": x for name, x in run.average.state_dict().items()}
    first = 0
    for optimizer in run.optimizers.values():
        for index, slots in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{first + index}.{name}": x for name, x in slots.items() if isinstance(x, Tensor)}
        first += len(parameters_of(optimizer))
    return tensors


def spread(run: Run, tensors: dict[str, Tensor]) -> None:
    """The opposite of `collect`, but for the model's own tensors."""
    if run.average is not None:
        run.average.load_state_dict({k[8:]: x for k, x in tensors.items() if k.startswith("average.")})
    kept: dict[int, dict[str, Tensor]] = {}
    for key, x in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            kept.setdefault(int(index), {})[name] = x
    first = 0
    for optimizer in run.optimizers.values():
        parameters, state = parameters_of(optimizer), {}
        for index, like in enumerate(parameters):  # fused kernels walk memory: a slot must lie there as its parameter does
            if slots := kept.get(first + index):
                state[index] = {n: torch.empty_like(like).copy_(x) if x.shape == like.shape else x for n, x in slots.items()}
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        first += len(parameters)


def parameters_of(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def save(run: Run, path: Path) -> None:
    """Write the checkpoint of a run, on the main process."""
    progress = {name: getattr(run, name) for name in PROGRESS} | {
        "scaler": run.accelerator.scaler.state_dict() if run.accelerator.scaler else {},
        "sizes": [run.task.train.size, run.task.valid.size],
    }
    if run.main:
        files.write_tensors(path, collect(run), {"format": files.TRAINING, "progress": json.dumps(progress)})


def restore(run: Run, path: Path) -> None:
    """Bring a new run to where the checkpoint was written. Errors: `UserError` if it is none, or one of other data."""
    progress = json.loads(files.read_metadata(path).get("progress", "null"))
    if not isinstance(progress, dict):
        raise UserError(f"{path} is no training checkpoint: it lacks the progress of a run")
    try:
        put_back(run, path, progress)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged, or no checkpoint of this run: {type(error).__name__} {error}") from error


def put_back(run: Run, path: Path, progress: dict[str, Any]) -> None:
    sizes = [run.task.train.size, run.task.valid.size]
    if progress["sizes"] != sizes:
        raise UserError(f"{path}: the data has changed, from {progress['sizes']} training and validation examples to {sizes}; "
                        "a resumed run needs the same")  # fmt: skip
    zoo.load_state(run.model, path)
    spread(run, files.read_tensors(path))
    if run.accelerator.scaler:
        run.accelerator.scaler.load_state_dict(progress["scaler"])
    for name, kind in PROGRESS.items():
        value = progress.get(name, kind())  # some are younger than the run may be
        if not isinstance(value, (int, float) if kind is float else kind):
            raise TypeError(f"{name} is {value!r}")
        setattr(run, name, value)
    run.history = [{current(name): value for name, value in row.items()} for row in run.history]
    if run.history:
        run.best()


def current(name: str) -> str:
    """The first version called `test_*` what it measured while training."""
    return f"valid_{name.removeprefix('test_')}" if name.startswith("test_") else name
