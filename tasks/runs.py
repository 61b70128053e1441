"""A run's options and folder, and how a command ends: done, something to mend (exit code 2), or diverged (1)."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tasks.options import EngineOptions, UserError
from zoo import files

FREE = {"resume", "name", "runs_dir", "device", "checkpoint_every"}
"""Options that a resumed run may change: they leave the numbers alone."""


class Diverged(Exception):
    """The loss is no longer finite."""


def check_options(options: EngineOptions) -> None:
    """Errors: `UserError` that names the first option out of range."""
    least = {
        "epochs": 1,
        "accumulate": 1,
        "warmup": 0,
        "weight_decay": 0,
        "clip": 0,
        "average": 0,
        "patience": 0,
        "checkpoint_every": 0,
        "seed": 0,
    }
    for name, low in least.items():
        if not getattr(options, name) >= low:
            raise UserError(f"--{name} must be {low} or more, got {getattr(options, name)}")
    if not 0 < options.lr < math.inf:
        raise UserError(f"--lr must be positive, got {options.lr}")
    if not 0 <= options.ema < 1:
        raise UserError(f"--ema must be at least 0 and below 1, got {options.ema}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here")
    if options.precision == "fp16" and (options.device == "cpu" or not torch.cuda.is_available()):
        raise UserError("--precision fp16 needs a GPU; bf16 works on the CPU too")


def open_folder(kind: type, given: dict[str, Any], default_name: Callable[[Any], str]) -> tuple[Any, Path]:
    """Options (those of the run to resume, then the given ones) and the run's folder, which is not made yet.

    Errors: `UserError` if the name is taken, if there is nothing to resume, or if a given option differs from the run's own.
    """
    options = kind(**given)
    check_options(options)
    if options.resume and not options.name:
        raise UserError("--resume needs --name: which run under --runs_dir is to go on?")
    folder = Path(options.runs_dir) / (options.name or default_name(options))
    if not options.resume:
        if folder.exists() and first_process():  # which may just have made it
            raise UserError(f"--name {folder.name}: {folder} exists already; give --resume to go on with it, or another name")
        return options, folder
    if not folder.is_dir():
        raise UserError(f"--resume: there is no run {folder}; without --resume it would be begun")
    if (folder / "options.json").exists():
        saved = files.read_json(folder / "options.json")
        for name, value in given.items():
            if name not in FREE and saved.get(name) != value:
                raise UserError(f"--{name} {value} differs from the run's {saved.get(name)}: a resumed run keeps its options")
        options = kind(**{**{k: v for k, v in saved.items() if k in asdict(options)}, **given})
    return options, folder


@contextlib.contextmanager
def checking_input() -> Iterator[None]:
    """While options, data and checkpoints are read, a `ValueError` is about them, not a fault of the program."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error


def first_process() -> bool:
    """True outside torchrun, and in the process that reports and writes files."""
    return os.environ.get("RANK", "0") == "0"


def main(run: Callable[[], Any]) -> int:
    """Run a command: what the user can mend becomes one line and exit code 2, a diverged run one line and 1."""
    try:
        run()
    except (Diverged, UserError, OSError) as error:
        if first_process():
            print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 1 if isinstance(error, Diverged) else 2
    except KeyboardInterrupt:
        print("stopped; the same command with --name NAME --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0
