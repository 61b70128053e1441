"""Use a run that is there: which one, and on which device, in which precision."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.options import Options, UserError, option, require_device

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from contextlib import AbstractContextManager

    from torch import nn


@dataclass
class RunOptions(Options):
    """Which run to use."""

    title = "the run"
    name: str = option("", "run to use (default: the latest one under --runs_dir)")
    runs_dir: str = option("runs", "folder of all runs", path=True)


@dataclass
class SavedOptions(RunOptions):
    """Which run to compute with, and where."""

    device: str = option("auto", "auto takes a GPU if there is one", choices=("auto", "cpu", "cuda"))
    precision: str = option("fp32", "fp16 needs a GPU", choices=("fp32", "bf16", "fp16"))

    def __post_init__(self) -> None:
        super().__post_init__()
        require_device(self)


def find_run(options: RunOptions, file: str, without: str = "") -> Path:
    """The run's folder, which has `file` in it and not `without`: --name, else the one whose `file` is the latest.

    Errors: `UserError` if there is none, with the names most like it.
    """
    found = [path for path in Path(options.runs_dir).glob(f"*/{file}") if not without or not (path.parent / without).exists()]
    runs = sorted(found, key=lambda path: path.stat().st_mtime)
    if not options.name:
        if not runs:
            raise UserError(f"--runs_dir {options.runs_dir} has no run with {file}: train one, or give --name")
        return runs[-1].parent
    folder = Path(options.runs_dir) / options.name
    if without and (folder / without).exists():
        raise UserError(f"--name {options.name}: {folder} is a run of another task: it has a {without}")
    if not (folder / file).is_file():
        names = [path.parent.name for path in reversed(runs)]
        near = difflib.get_close_matches(options.name, names, n=3, cutoff=0.5) or names[:3]
        lacks = f"has no {file}" if folder.is_dir() else f"is not there: --runs_dir {options.runs_dir} has no such run"
        raise UserError(f"--name {options.name}: {folder} {lacks}" + (f"; there is {', '.join(near)}" if near else ""))
    return folder


def run_or_path(name: str, runs_dir: Path) -> str:
    """What --init of a training names: a path if there is one, else the run of that name, else what it says itself."""
    return str(runs_dir / name) if name and not Path(name).exists() and (runs_dir / name).is_dir() else name


def placed(model: nn.Module, options: SavedOptions) -> tuple[Any, AbstractContextManager[Any]]:
    """The model on --device, and the context that computes in --precision."""
    import torch

    name = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    half = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[options.precision]
    return model.to(name), torch.autocast(name, dtype=half, enabled=options.precision != "fp32")
