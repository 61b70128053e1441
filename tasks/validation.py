"""What is measured on the validation set after an epoch, and what a run must have before its first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import zoo
from layers.checks import require
from tasks import sharding
from tasks.loading import prepared
from tasks.recompute import blocks
from tasks.task import Task
from zoo import saving

if TYPE_CHECKING:
    from tasks.engine import Run


@torch.no_grad()
def evaluate(run: Run, model: nn.Module) -> dict[str, float]:
    """Mean losses and metrics over the validation set; every example counts once, whatever the number of processes."""
    model, valid = model.eval(), run.task.valid
    found: dict[str, Tensor] = {}
    shares = [indices.tensor_split(run.world)[run.index] for indices in valid.batches(0)]
    for batch in prepared(lambda share: valid.batch(share, 0), shares, run.workers):
        for name, value in sums(run, model, batch).items():
            found[name] = found.get(name, 0) + value
    everything = {name: run.total(value).item() for name, value in found.items()}
    means = {name: value / everything["units"] for name, value in everything.items() if name != "units"}
    measured = means | run.task.score(model)
    require_primary(run, measured)
    return measured


def sums(run: Run, model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """Sums of losses and metrics in float64 over examples, of which there may be none: all processes sum up the same names."""
    batch = run.to_device(batch)
    with run.accelerator.autocast():
        turns = list(run.task.losses(model, batch))
    exact = [(part, loss.double(), {name: x.double() for name, x in found.items()}) for part, loss, found in turns]
    return run.combined(exact) | {"units": torch.tensor(float(run.task.units(batch)), dtype=torch.float64)}


@torch.no_grad()
def require_ready(run: Run) -> None:
    """Errors: `ValueError` if the model could not be kept, if there is nothing to train or to measure on, if the best epoch could
    not be told, or if an option asks for what the model has not."""
    saving.saved(run.result, zoo.build_as)
    for name, split in (("training", run.task.train), ("validation", run.task.valid)):
        require(split.size > 0, f"{name} set", f"{split.size} {run.task.unit}", "not empty")
    if run.options.gradient_checkpointing:
        require(bool(blocks(run.model)), "gradient_checkpointing", True, "False for a model without a list of blocks")
    if type(run.task).score is Task.score:  # else any metric may come from there
        first = next(iter(run.task.valid.batches(0)))[:1]
        with sharding.at_hand(run) as model:
            measured = sums(run, model.eval(), run.task.valid.batch(first, 0))
        require_primary(run, [name for name in measured if name != "units"])


def require_primary(run: Run, names: Iterable[str]) -> None:
    primary = run.task.primary.name
    require(primary in names, "primary", primary, f"one of {', '.join(names)}")
