"""What a run tells as it goes: metrics.jsonl, steps.jsonl, a line an epoch, and a tracker that accelerate knows."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from accelerate.tracking import get_available_trackers

from tasks.options import EngineOptions, UserError
from tasks.tables import json_lines
from zoo import files

if TYPE_CHECKING:
    from tasks.engine import Run


def tracker(options: EngineOptions) -> str | None:
    """The tracker's name. Errors: `UserError` for one that accelerate does not find here."""
    if options.tracker == "auto":
        return "tensorboard" if find_spec("tensorboard") else None
    if options.tracker == "none":
        return None
    here = [str(name) for name in get_available_trackers()]
    if options.tracker not in here:
        raise UserError(f"--tracker must be auto, none or one that is installed here, {', '.join(here)}, got {options.tracker}")
    return options.tracker


class Log:
    """The files and the tracker of one run. Only its main process writes."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def begin(self) -> None:
        """Trackers start in the run's folder."""
        run, accelerator = self.run, self.run.accelerator
        if not run.main or not accelerator.log_with:
            return
        accelerator.project_configuration.set_directories(str(run.folder))
        accelerator.project_configuration.logging_dir = str(run.folder)
        config = {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in asdict(run.options).items()}
        project = "tensorboard" if "tensorboard" in map(str, accelerator.log_with) else "zooproof"
        accelerator.init_trackers(project, config, {"wandb": {"name": run.folder.name, "dir": str(run.folder)}})

    def step(self, sums: dict[str, float]) -> None:
        """Every --log_every steps, the mean over these."""
        run, every = self.run, self.run.options.log_every
        if not every:
            return
        for name, value in sums.items():
            run.window[name] = run.window.get(name, 0.0) + value
        if run.step % every == 0:
            row = {"step": run.step, "epoch": run.epoch + 1, **means(run.window), "lr": run.rate(run.step - 1)}
            run.window = {}
            if run.main:
                with (run.folder / "steps.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                self.track({f"step_{name}": value for name, value in row.items() if name not in ("step", "epoch")})

    def epoch(self, row: dict[str, Any]) -> None:
        run = self.run
        if not run.main:
            return
        self.rewrite()
        self.track({name: value for name, value in row.items() if name not in ("epoch", "step")})
        left = run.seconds / run.epoch * (run.options.epochs - run.epoch)
        told = "  ".join(f"{name} {value:.4f}" for name, value in row.items() if name.startswith(("train_", "valid_")))
        speed = run.epoch * run.task.train.size / run.seconds
        print(f"epoch {row['epoch']}/{run.options.epochs}  {told}  {speed:.0f} {run.task.unit}/s  {left:.0f} s left", flush=True)

    def track(self, values: dict[str, Any]) -> None:
        self.run.accelerator.log(values, step=self.run.step)

    def rewrite(self) -> None:
        """metrics.jsonl anew, which appears whole or not at all."""
        files.write_bytes(self.run.folder / "metrics.jsonl", json_lines(self.run.history).encode())

    def go_back(self) -> None:
        """To where the run is: rows of later steps, and half a line of a killed process, are dropped."""
        self.rewrite()
        path = self.run.folder / "steps.jsonl"
        if path.exists():
            rows = (row for line in path.read_text(encoding="utf-8").splitlines() if (row := parsed(line)))
            files.write_bytes(path, json_lines(row for row in rows if row["step"] <= self.run.step).encode())

    def end(self) -> None:
        if self.run.main:
            self.run.accelerator.end_training()


def means(sums: dict[str, float]) -> dict[str, float]:
    """Of the training, per unit."""
    return {f"train_{name}": value / sums["units"] for name, value in sums.items() if name != "units"}


def parsed(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:
        return None
