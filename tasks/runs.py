"""The life of a run, whatever the task: options, data, folder, resume, training, report. All is checked before it is written."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from torch import nn

import zoo
from tasks import report
from tasks.commands import checking_input, first_process
from tasks.engine import Run
from tasks.memory import keep_freed_memory
from tasks.optimizers import learning_rate
from tasks.options import UserError, data_of, restored
from tasks.saved import flattened, require_run_of
from tasks.task import Task
from zoo import files, saving

FREE = {"resume", "name", "runs_dir", "device", "workers", "tracker", "checkpoint_every", "profile", "shard", "tensor"}
"""Options that a resumed run may change: they leave the numbers alone, but for rounding, and for masks
of dropout where `shard` and `tensor` change who draws them."""
PLACES = {"data", "data_root", "train", "valid", "test", "dataset_path", "prepared", "tokenizer"}
"""Options that say where the data is, which may have moved: it is compared itself."""


def train(
    kind: type,
    given: dict[str, Any],
    default_name: Callable[[Any], str],
    begin: Callable[[Any, Path], tuple[Task, nn.Module]],
) -> None:
    """Train from the first epoch, or from the last checkpoint, to the report in summary.json.

    kind, given:  the options' class and those that the command line gives.
    default_name: the run's name where none is given; a number follows where that is taken.
    begin:        ``begin(options, folder)`` checks all input and makes task and model, whose `config` goes to config.json.
    Errors: `UserError`, before any file changes, for whatever is wrong with options, data and model, or is not as in the run to
            resume.
    """
    with checking_input():
        options, folder, saved = open_folder(kind, given, default_name)
        task, model = begin(options, folder)
        config, _ = saving.saved(model, zoo.build_as)
        require_same(data_of(saved), task.identity, folder)
        run = Run(task, model, options, folder)
        run.require_ready()
        if options.resume:
            run.restore()
        else:
            reserve(run)
    if run.finished and (run.folder / "summary.json").exists():
        more = "; more --epochs go on" if run.epoch >= options.epochs else ", for it got no better in --patience epochs"
        run.accelerator.print(f"{run.folder} is finished: nothing left to do{more}")
        return
    if run.main:
        write_down(run, config, saved)
        size = f"{config['model']}, {sum(p.numel() for p in model.parameters()):,} parameters"
        print(size, *task.told, *run.sharding.told, sep="\n")
        print(*longer(run, saved), sep="\n", end="", flush=True)
    run.accelerator.wait_for_everyone()
    keep_freed_memory()
    try:
        summary = run.fit()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; the same command with --name {run.folder.name} --resume goes on") from None
    if run.main:
        files.write_json(run.folder / "summary.json", summary | task.report(run, summary))
        report.write(run.folder, kind)


def open_folder(kind: type, given: dict[str, Any], default_name: Callable[[Any], str]) -> tuple[Any, Path, dict[str, Any]]:
    """Options (those of the run to resume, then the given ones), the run's folder, and what its options.json holds, if any.

    Errors: `UserError` if the name is taken, if there is nothing to resume, or if a given option differs from the run's own.
    """
    options = kind(**given)
    if options.name and begun_here(Path(options.runs_dir) / options.name):
        given = given | {"resume": True}
        options = kind(**given)
    if restarted() and not options.name:
        raise UserError("a restart needs --name: which run is to go on?")
    if options.resume and not options.name:
        raise UserError("--resume needs --name: which run under --runs_dir is to go on?")
    if options.name and (Path(options.name).name != options.name or options.name == ".."):
        raise UserError(f"--name must be a name, not a path, got {options.name!r}: --runs_dir says where runs are")
    folder = Path(options.runs_dir) / (options.name or default_name(options))
    if not options.resume:
        if options.name and folder.exists() and first_process():  # which may just have made it
            raise taken(folder)
        return options, folder, {}
    if not folder.is_dir():
        raise UserError(f"--resume: there is no run {folder}; without --resume it would be begun")
    if not (folder / "options.json").exists():  # it was stopped before its first file, unless it is none
        if any(not path.name.startswith(".") for path in folder.iterdir()):
            raise UserError(f"--resume: {folder} is no run's folder: it has no options.json")
        return options, folder, {}
    require_run_of(kind.program, folder, f"--name {options.name}")
    saved = files.read_json(folder / "options.json")
    before = asdict(restored(kind, saved | {name: value for name, value in given.items() if name in FREE}, folder))
    free = FREE | (PLACES if data_of(saved) else set())
    for name in given:
        value = getattr(options, name)
        if name == "epochs" and value < before[name]:
            raise UserError(f"--epochs {value} is less than the run's {before[name]}: a resumed run may have more")
        if name not in free | {"epochs"} and before[name] != value:
            raise UserError(f"--{name} {value} differs from the run's {before[name]}: a resumed run keeps its options")
    return kind(**{**before, **given}), folder, saved | {"epochs": before["epochs"]}


def launch() -> str:
    """What torchrun or SLURM calls what they started, again after a restart; "" where neither did."""
    named = os.environ.get("TORCHELASTIC_RUN_ID", "none")  # which torchrun calls all that have no --rdzv-id
    return named if named not in ("", "none") else os.environ.get("SLURM_JOB_ID", "")


def restarted() -> bool:
    return any(os.environ.get(name, "0") != "0" for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


def begun_here(folder: Path) -> bool:
    """Whether this is a restart, by torchrun or SLURM, of what has begun the run in the folder: it then goes on by itself."""
    if not (restarted() and folder.is_dir()):
        return False
    if not (folder / "options.json").exists():
        return all(path.name.startswith(".") for path in folder.iterdir())  # half of a file: it was killed in writing
    about = files.read_json(folder / "options.json").get("about")
    return isinstance(about, dict) and bool(launch()) and about.get("launch") == launch()


def taken(folder: Path) -> UserError:
    return UserError(f"--name {folder.name}: {folder} exists already; give --resume to go on with it, or another name")


def reserve(run: Run) -> None:
    """Make the run's folder, which no other run gets. Errors: `UserError`, in all processes, if the name is taken."""
    found = broadcast_object_list([make_folder(run.folder, not run.options.name) if run.main else None])[0]
    if found is None:
        raise taken(run.folder)
    run.folder = Path(found)


def make_folder(wanted: Path, another: bool) -> str | None:
    """The folder that was made; where it was there already, NAME-2 and so on if `another` will do."""
    for n in count(1):
        folder = wanted if n == 1 else wanted.with_name(f"{wanted.name}-{n}")
        try:
            folder.mkdir(parents=True)
            return str(folder)
        except FileExistsError:
            if not another:
                return None
    raise AssertionError


def require_same(before: Mapping[str, Any] | None, now: Mapping[str, Any], folder: Path) -> None:
    """Errors: `UserError` that names what differs between the data of a run, if it is known, and the data at hand."""
    if not isinstance(before, Mapping):
        return
    one, other = dict(flattened(before)), dict(flattened(json.loads(json.dumps(now))))
    found = [difference(key, one.get(key), other.get(key)) for key in {**one, **other} if one.get(key) != other.get(key)]
    if found:
        raise UserError(f"--resume: the data is not that of {folder}: {'; '.join(found)}")


def difference(key: str, before: Any, now: Any) -> str:
    if key.endswith("fingerprint") and before and now:
        return f"{key.removesuffix('fingerprint').strip()} has other contents"
    words = [", ".join(map(str, value[:10])) if isinstance(value, list) else f"{value}" for value in (before, now)]
    return f"{key} changed from {words[0]} to {words[1]}"


def write_down(run: Run, config: dict[str, Any], saved: dict[str, Any]) -> None:
    """config.json, options.json and what the task keeps: what the run is made of, with versions and dates."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in ("zooproof", "torch", "torchvision")}}
    now = {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "versions": versions}
    known = saved["about"] if data_of(saved) else {}
    made = {"program": run.options.program, "data": run.task.identity, "told": [*run.task.told]}
    about: dict[str, Any] = {**made, **now, **known} | ({"launch": launch()} if launch() else {})
    if saved:
        about["resumed"] = [*about.get("resumed", []), {**now, "step": run.step}]
    options = asdict(run.options) | {"resume": False, "name": run.folder.name}
    (run.folder / "summary.json").unlink(missing_ok=True)  # of fewer epochs
    files.write_json(run.folder / "options.json", options | {"about": about})
    files.write_json(run.folder / "config.json", config)
    run.task.keep(run.folder)


def longer(run: Run, saved: dict[str, Any]) -> Iterator[str]:
    """What more epochs than planned do to the learning rate."""
    options, planned = run.options, saved.get("epochs", run.options.epochs)
    if planned != options.epochs and run.step:
        before = learning_rate(replace(options, epochs=planned), run.step - 1, run.steps_per_epoch)
        yield (
            f"{options.epochs} epochs in place of {planned}: the {options.schedule} schedule is now that of {options.epochs}; "
            f"the learning rate was {before:.3g} and goes on with {run.rate(run.step):.3g}\n"
        )
