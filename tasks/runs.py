"""The life of a run, whatever the task: options, folder, resume, training, report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

import zoo
from tasks import report
from tasks.commands import checking_input, first_process
from tasks.engine import Run
from tasks.options import UserError, require_device
from tasks.task import Task
from zoo import files, saving

FREE = {"resume", "name", "runs_dir", "device", "checkpoint_every"}
"""Options that a resumed run may change: they leave the numbers alone."""


def train(
    kind: type,
    given: dict[str, Any],
    default_name: Callable[[Any], str],
    begin: Callable[[Any, Path], tuple[Task, nn.Module]],
) -> None:
    """Train from the first epoch, or from the last checkpoint, to the report in summary.json.

    kind, given:  the options' class and those that the command line gives.
    default_name: the run's name where none is given.
    begin:        ``begin(options, folder)`` checks all input and makes task and model, whose `config` goes to config.json.
    Errors: `UserError` if `zoo.save` would refuse the model.
    """
    with checking_input():
        options, folder = open_folder(kind, given, default_name)
        task, model = begin(options, folder)
        config, _ = saving.saved(model, zoo.build)
    run = Run(task, model, options, folder)
    if run.main:
        folder.mkdir(parents=True, exist_ok=True)
    if options.resume:  # before anything is written: it may be refused
        with checking_input():
            run.restore()
    if run.main:
        files.write_json(folder / "options.json", asdict(options) | {"resume": False, "name": folder.name})
        files.write_json(folder / "config.json", config)
        task.keep(folder)
        print(f"{config['model']}, {sum(p.numel() for p in model.parameters()):,} parameters", *task.told, sep="\n", flush=True)
    run.accelerator.wait_for_everyone()
    if run.finished and (folder / "summary.json").exists():
        run.accelerator.print(f"{folder} is finished: nothing left to do")
        return
    summary = run.fit()
    if run.main:
        files.write_json(folder / "summary.json", summary | task.report(run, summary))
        report.write(folder, kind)


def open_folder(kind: type, given: dict[str, Any], default_name: Callable[[Any], str]) -> tuple[Any, Path]:
    """Options (those of the run to resume, then the given ones) and the run's folder, which is not made yet.

    Errors: `UserError` if the name is taken, if there is nothing to resume, or if a given option differs from the run's own.
    """
    options = kind(**given)
    require_device(options)
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
