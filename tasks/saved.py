"""Use a run that is there: which one, and on which device, in which precision."""

from __future__ import annotations

import difflib
import importlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.options import EngineOptions, Options, UserError, option, require_device

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from contextlib import AbstractContextManager

    from torch import nn

INTEGERS = "int8"
"""The folder of a run in which its network of integers is."""


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


def find_run(options: RunOptions, file: str) -> Path:
    """The run's folder, which has `file` in it: --name, else of the program's runs the one whose `file` is the latest.

    Errors: `UserError` if there is none, with the names most like it, or if another program made it.
    """
    found = [path for path in Path(options.runs_dir).glob(f"*/{file}") if takes(options.program, path.parent)]
    runs = sorted(found, key=lambda path: path.stat().st_mtime)
    if not options.name:
        if not runs:
            of = f" of {options.program}" if options.program else ""
            raise UserError(f"--runs_dir {options.runs_dir} has no run{of} with {file}: train one, or give --name")
        return runs[-1].parent
    folder = Path(options.runs_dir) / options.name
    require_run_of(options.program, folder, f"--name {options.name}")
    if not (folder / file).is_file():
        names = [path.parent.name for path in reversed(runs)]
        near = difflib.get_close_matches(options.name, names, n=3, cutoff=0.5) or names[:3]
        lacks = f"has no {file}" if folder.is_dir() else f"is not there: --runs_dir {options.runs_dir} has no such run"
        raise UserError(f"--name {options.name}: {folder} {lacks}" + (f"; there is {', '.join(near)}" if near else ""))
    return folder


def takes(program: str, folder: Path) -> bool:
    return not program or program_of(folder) in ("", program)


OF_CONFIG = {
    "tags": "tasks.token_classification", "threshold": "tasks.question_answering", "texts": "tasks.text_classification",
    "context": "tasks.text_generation", "generation": "tasks.image_generation",
}  # fmt: skip
"""Programs by what only their models' config.json has; the first that fits."""


def program_of(folder: Path) -> str:
    """The program that made a run: what options.json says, or other files where it is of an older version; "" if nothing does."""
    about, config = read_object(folder / "options.json").get("about"), read_object(folder / "config.json")
    if isinstance(about, dict) and isinstance(about.get("program"), str):
        return about["program"]
    if own := next((program for key, program in OF_CONFIG.items() if key in config), ""):
        return own
    if (folder / "tokenizer.json").is_file():
        return "tasks.translation"
    return "tasks.image_classification" if {"classes", "preprocess"} <= config.keys() else ""


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is none, or a damaged one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def flattened(values: Mapping[str, Any], depth: int = 3, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values, those of inner objects too: {"train": {"images": 13}} has "train images"."""
    for name, value in values.items():
        if depth and value and isinstance(value, Mapping):
            yield from flattened(value, depth - 1, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", value


def require_run_of(program: str, path: Path, given: str) -> None:
    """Errors: `UserError` if `path`, a run's folder or a file in it, is another program's, with the commands that take it."""
    folder = path.parent if path.is_file() else path
    if takes(program, folder):
        return
    made = program_of(folder)
    try:
        commands = importlib.import_module(made).COMMANDS if made.startswith("tasks.") else {}
    except (ImportError, AttributeError):
        commands = {}
    kinds = {name: command.options for name, command in commands.items()}
    names = [f"{name} --resume" if issubclass(kind, EngineOptions) else name for name, kind in kinds.items() if kind.program]
    by = f"; python -m {made} takes it: {', '.join(names)}" if names else ""
    raise UserError(f"{given}: {folder} is a run of {made}, not of {program}{by}")


def run_or_path(name: str, runs_dir: Path) -> str:
    """What --init of a training names: a path if there is one, else the run of that name, else what it says itself."""
    return str(runs_dir / name) if name and not Path(name).exists() and (runs_dir / name).is_dir() else name


def placed(model: nn.Module, options: SavedOptions) -> tuple[Any, AbstractContextManager[Any]]:
    """The model on --device, and the context that computes in --precision."""
    import torch

    name = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    half = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[options.precision]
    return model.to(name), torch.autocast(name, dtype=half, enabled=options.precision != "fp32")
