"""Everything that a resumed run needs, in one file that appears whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import zoo
from tasks.options import UserError
from zoo import files
from zoo.parallel import split_axes

if TYPE_CHECKING:
    from tasks.engine import Run

PROGRESS = {"step": int, "epoch": int, "position": int, "sums": dict, "window": dict, "history": list, "seconds": float}
"""Attributes of a run that its checkpoint keeps as JSON, and their types."""


def pieces(run: Run) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a run: model, average, and what the optimizers keep for each parameter, which are numbered throughout.

    They come one after another, each whole in every process: where the model is divided, all processes have to ask.
    """
    sharding = run.sharding
    for kind, module in (("model", run.model), ("average", run.average)):
        yield from ((f"{kind}.{name}", x) for name, x in sharding.gathered(module)) if module is not None else ()
    first, axes = 0, axes_of(run)
    for optimizer in run.optimizers.values():
        parameters = parameters_of(optimizer)
        for index, slots in optimizer.state_dict()["state"].items():
            p = parameters[index]
            for name, x in slots.items():
                if isinstance(x, Tensor):
                    yield f"optimizer.{first + index}.{name}", sharding.whole(x, axes.get(id(p)) if x.shape == p.shape else None)
        first += len(parameters)


def axes_of(run: Run) -> dict[int, int]:
    """Of the parameters of which this process has a part, by their identity: along which axis."""
    axes = split_axes(run.model)
    return {id(p): axes[name] for name, p in run.model.named_parameters() if name in axes}


def spread(run: Run, tensors: dict[str, Tensor]) -> None:
    """The opposite of `pieces`, but for the model's own tensors."""
    if run.average is not None:
        average = {k[8:]: x for k, x in tensors.items() if k.startswith("average.")}
        run.sharding.fill(run.average, average) if run.sharding.divided else run.average.load_state_dict(average)
    kept: dict[int, dict[str, Tensor]] = {}
    for key, x in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            kept.setdefault(int(index), {})[name] = x
    first, axes = 0, axes_of(run)
    for optimizer in run.optimizers.values():
        parameters, state = parameters_of(optimizer), {}
        for index, like in enumerate(parameters):  # fused kernels walk memory: a slot must lie there as its parameter does
            if slots := kept.get(first + index):
                parts = {n: run.sharding.part(x, like, axes.get(id(like))) if x.ndim else x for n, x in slots.items()}
                state[index] = {n: torch.empty_like(like).copy_(x) if x.shape == like.shape else x for n, x in parts.items()}
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
    tensors = gathered(run) if run.main or run.sharding.divided else {}
    if run.main:
        files.write_tensors(path, tensors, {"format": files.TRAINING, "progress": json.dumps(progress)})


def gathered(run: Run) -> dict[str, Tensor]:
    """What the main process is to write; of a divided model in main memory, where there is room for all of it."""
    return {name: x.cpu() if run.sharding.divided else x for name, x in pieces(run) if run.main}


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
    zoo.load_state(run.model if run.whole is None else run.whole, path)
    if run.whole is not None:
        run.sharding.fill(run.model, run.whole.state_dict())
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
