"""The mean of the last epochs' weights, which takes the place of the best epoch's if it is no worse."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import zoo
from layers.lora import merge_lora
from zoo import files

if TYPE_CHECKING:
    from tasks.engine import Run


def best_epoch(run: Run) -> Path:
    """The best epoch's weights, where the mean of epochs took their place."""
    return run.folder / "best_epoch.safetensors"


def put_back(run: Run) -> None:
    """The best epoch's weights are the best ones again, for a run that goes on for more epochs."""
    if best_epoch(run).exists():
        best_epoch(run).replace(run.folder / files.BEST)


def epoch_file(run: Run, epoch: int) -> Path:
    return run.folder / f"epoch-{epoch}.safetensors"


def average_epochs(run: Run) -> dict[str, Any]:
    """The mean of the last epochs' weights (Vaswani et al., 2017, section 6.1), kept if it is no worse than the best.

    Counters are the last epoch's.
    """
    run.accelerator.wait_for_everyone()  # until the last file is written
    paths = [epoch_file(run, epoch + 1) for epoch in range(max(0, run.epoch - run.options.average), run.epoch)]
    states = [files.read_tensors(path) for path in paths]
    mean = {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(x.dtype) if x.is_floating_point() else x
        for name, x in states[-1].items()
    }
    model = merge_lora(copy.deepcopy(run.result)).to(run.accelerator.device)  # as in the files
    model.load_state_dict(mean)
    measured, primary = run.evaluate(model), run.task.primary
    kept = primary.rank(measured) >= primary.rank(run.best(), "valid_")
    if run.main and kept:
        files.write_bytes(best_epoch(run), (run.folder / files.BEST).read_bytes())
        zoo.save(model, run.folder, files.BEST)
    return {f"average_valid_{name}": value for name, value in measured.items()} | {"average_kept": kept}
