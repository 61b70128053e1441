"""The training loop: step, evaluate, checkpoint, resume, report. A task brings the model, the data and the loss.

What makes a killed run resume to the same bits: the order of the data is a function of (seed, epoch), augmentation of (seed,
epoch, sample), dropout of (seed, step, share), the learning rate of the step. Nothing of the past is needed but the tensors that
`Run.save` writes, in one file that appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from torch import Tensor, nn
from tqdm import tqdm

import zoo
from layers.normalization import synchronise_norms
from tasks.data import seed_of
from tasks.optimizers import learning_rate, make_optimizer, update_average
from tasks.options import EngineOptions, UserError
from tasks.runs import Diverged
from zoo import files


class Task(Protocol):
    """What a task brings to the loop."""

    unit: str
    """What the examples are called: "images"."""
    train_size: int
    test_size: int

    def batches(self, epoch: int | None) -> Sequence[Tensor]:
        """Indices of the training examples in every step of that epoch, a pure function of it; of the test set if None."""
        ...

    def batch(self, indices: Tensor, epoch: int | None) -> Any:
        """Those training examples, augmented for that epoch; of the test set if `epoch` is None."""
        ...

    def units(self, batch: Any) -> int:
        """How many images, or tokens, the loss sums over."""
        ...

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of the loss over the units, and sums of metrics over them, such as {"accuracy": number of correct ones}."""
        ...

    def score(self, model: nn.Module) -> dict[str, float]:
        """Metrics of the test set that are no sums over it, such as BLEU."""
        ...


class Run:
    """One training run and its folder, in which it keeps checkpoints, metrics and summary."""

    def __init__(self, task: Task, model: nn.Module, options: EngineOptions, folder: Path, primary: str = "accuracy") -> None:
        self.task, self.options, self.folder, self.primary = task, options, folder, primary
        precision = "no" if options.precision == "fp32" else options.precision
        tracker = "tensorboard" if find_spec("tensorboard") else None
        self.accelerator = Accelerator(
            cpu=options.device == "cpu", mixed_precision=precision, log_with=tracker,
            project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder)),
        )  # fmt: skip
        self.main = self.accelerator.is_main_process
        device, self.world = self.accelerator.device, self.accelerator.num_processes
        model = model.to(device).to(memory_format=torch.channels_last)
        self.model = synchronise_norms(model) if self.world > 1 else model
        self.average = copy.deepcopy(self.model).requires_grad_(False) if options.ema else None
        compiled = torch.compile(self.model) if options.compile else self.model
        self.wrapped, self.optimizer = self.accelerator.prepare(compiled, make_optimizer(self.model, options))
        self.step, self.epoch, self.position = 0, 0, 0  # optimizer steps; epoch; steps of this epoch already done
        self.sums: dict[str, float] = {}
        self.history: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.steps_per_epoch = len(task.batches(0))

    # ------------------------------------------------------------------------------------------------ one step

    def shares(self, indices: Tensor) -> Iterator[tuple[int, Tensor]]:
        """This process's micro-batches of a batch: the k-th ones of all processes make up the k-th of a single process."""
        for k, micro in enumerate(indices.tensor_split(self.options.accumulate)):
            if len(micro):
                yield k, micro.tensor_split(self.world)[self.accelerator.process_index]

    def train_step(self, indices: Tensor) -> dict[str, float]:
        """One optimizer step on a whole batch; sums of loss, metrics and units over all processes."""
        rate = learning_rate(self.options, self.step, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batches = [(k, self.to_device(self.task.batch(share, self.epoch))) for k, share in self.shares(indices)]
        units = self.total(torch.tensor(float(sum(self.task.units(batch) for _, batch in batches))))
        sums: dict[str, Tensor] = {}
        self.wrapped.train()
        for n, (k, batch) in enumerate(batches):
            torch.manual_seed(seed_of("step", self.options.seed, self.step, k, self.accelerator.process_index))
            last = n == len(batches) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                with self.accelerator.autocast():
                    loss, metrics = self.task.loss(self.wrapped, batch)
                # processes' gradients are averaged, so that their number brings back the sum
                self.accelerator.backward(loss * (self.world / units.item()))
            for name, value in {"loss": loss, **metrics}.items():
                sums[name] = sums.get(name, 0) + value.detach().double()
        result = {name: self.total(value).item() for name, value in sums.items()} | {"units": units.item()}
        if not math.isfinite(result["loss"]):
            raise Diverged(f"the loss is {result['loss']} at step {self.step + 1} (epoch {self.epoch + 1})")
        if self.options.clip:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.options.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        if self.average is not None:
            decay = min(self.options.ema, (1 + self.step) / (10 + self.step))  # a young average forgets its start quickly
            update_average(self.average, self.model, decay)
        return result

    def total(self, value: Tensor) -> Tensor:
        """Sum over all processes."""
        return self.accelerator.reduce(value.to(self.accelerator.device), reduction="sum") if self.world > 1 else value

    def to_device(self, batch: Any) -> Any:
        return tuple(x.to(self.accelerator.device, non_blocking=True) for x in batch)

    # ---------------------------------------------------------------------------------------------- evaluation

    @property
    def result(self) -> nn.Module:
        """What is evaluated and kept."""
        return self.average or self.model

    @torch.no_grad()
    def evaluate(self, model: nn.Module | None = None) -> dict[str, float]:
        """Mean loss and metrics over the test set; every example counts once, whatever the number of processes."""
        model = (model or self.result).eval()
        sums: dict[str, Tensor] = {}
        for indices in self.task.batches(None):
            share = indices.tensor_split(self.world)[self.accelerator.process_index]
            batch = self.to_device(self.task.batch(share, None))  # may be empty: all processes sum up the same names
            with self.accelerator.autocast():
                loss, metrics = self.task.loss(model, batch)
            units = torch.tensor(float(self.task.units(batch)))
            for name, value in {"loss": loss, **metrics, "units": units}.items():
                sums[name] = sums.get(name, 0) + value.double()
        everything = {name: self.total(value).item() for name, value in sums.items()}
        means = {name: value / everything["units"] for name, value in everything.items() if name != "units"}
        return means | self.task.score(model)

    # --------------------------------------------------------------------------------------------- checkpoints

    def save(self) -> None:
        """Everything a resumed run needs, in one file."""
        self.require_finite()
        if not self.main:
            return
        tensors = {f"model.{name}": x for name, x in self.model.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average.{name}": x for name, x in self.average.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": x for name, x in slots.items() if isinstance(x, Tensor)}
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler else {}
        progress = {"step": self.step, "epoch": self.epoch, "position": self.position, "sums": self.sums, "history": self.history,
                    "seconds": self.seconds, "scaler": scaler, "sizes": [self.task.train_size, self.task.test_size]}  # fmt: skip
        files.write_tensors(
            self.folder / "last.safetensors", tensors, {"format": files.TRAINING, "progress": json.dumps(progress)}
        )

    def require_finite(self) -> None:
        """A step on a finite loss may still have broken the weights: no file is to hold those."""
        if not all(x.isfinite().all() for x in self.model.state_dict().values() if x.is_floating_point()):
            raise Diverged(f"a weight is no longer finite after step {self.step}")

    def restore(self) -> None:
        """Back to the last checkpoint, or to the start if the run was stopped before its first."""
        path = self.folder / "last.safetensors"
        if self.main:
            files.remove_parts(self.folder)
        if path.exists():
            progress = json.loads(files.read_metadata(path).get("progress", "null"))
            if not isinstance(progress, dict):
                raise UserError(f"{path} is no training checkpoint: it lacks the progress of a run")
            if progress["sizes"] != [self.task.train_size, self.task.test_size]:
                raise UserError(f"{path}: the data has changed, from {progress['sizes']} training and test examples to "
                                f"{[self.task.train_size, self.task.test_size]}; a resumed run needs the same")  # fmt: skip
            zoo.load_state(self.model, path)
            tensors = files.read_tensors(path)
            if self.average is not None:
                self.average.load_state_dict({k[8:]: x for k, x in tensors.items() if k.startswith("average.")})
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            slots: dict[int, dict[str, Tensor]] = {}
            for key, x in tensors.items():
                if key.startswith("optimizer."):
                    _, index, name = key.split(".", 2)
                    like = parameters[int(index)]  # fused kernels walk memory: a slot must lie there as its parameter does
                    slot = torch.empty_like(like).copy_(x) if x.shape == like.shape else x
                    slots.setdefault(int(index), {})[name] = slot
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": slots})
            if self.accelerator.scaler:
                self.accelerator.scaler.load_state_dict(progress["scaler"])
            for name in ("step", "epoch", "position", "sums", "history", "seconds"):
                setattr(self, name, progress[name])
        if self.main:
            self.write_history()

    def write_history(self) -> None:
        files.write_bytes(self.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in self.history).encode())

    # -------------------------------------------------------------------------------------------------- the loop

    def fit(self) -> dict[str, Any]:
        """Train to the last epoch; returns the summary that it leaves in summary.json."""
        if self.main and self.accelerator.log_with:
            self.accelerator.init_trackers("tensorboard")
        begun = time.perf_counter() - self.seconds
        try:
            while not self.finished:
                self.train_epoch(begun)
        except Diverged as error:
            path = self.folder / "last.safetensors"
            kept = f"the last good checkpoint is {path}" if path.exists() else "no checkpoint had been written yet"
            raise Diverged(f"{error}; {kept}. A smaller --lr or --clip 1 may help") from error
        best, last = self.best(), self.history[-1]
        summary = {name: value for name, value in last.items() if name.startswith(("train_", "test_"))} | {
            f"best_test_{self.primary}": best[f"test_{self.primary}"],
            "best_epoch": best["epoch"],
            **(self.average_epochs() if self.options.average else {}),
            "epochs": self.epoch,
            "seconds": round(self.seconds, 3),
            f"{self.task.unit}_per_second": round(self.epoch * self.task.train_size / max(self.seconds, 1e-9), 1),
            "parameters": sum(p.numel() for p in self.model.parameters()),
        }
        if self.main:
            files.write_json(self.folder / "summary.json", summary)
            self.accelerator.end_training()
        return summary

    @property
    def finished(self) -> bool:
        """At the last epoch, or out of patience."""
        patience = self.options.patience
        tired = patience > 0 and len(self.history) > 0 and self.epoch - self.best()["epoch"] >= patience
        return tired or self.epoch >= self.options.epochs

    def epoch_file(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch}.safetensors"

    def average_epochs(self) -> dict[str, Any]:
        """The mean of the last epochs' weights (Vaswani et al., 2017, section 6.1), kept if it tests no worse than the best.

        Counters are the last epoch's.
        """
        self.accelerator.wait_for_everyone()  # until the last file is written
        paths = [self.epoch_file(epoch + 1) for epoch in range(max(0, self.epoch - self.options.average), self.epoch)]
        states = [files.read_tensors(path) for path in paths]
        mean = {
            name: torch.stack([state[name].double() for state in states]).mean(0).to(x.dtype) if x.is_floating_point() else x
            for name, x in states[-1].items()
        }
        model = copy.deepcopy(self.model)
        model.load_state_dict(mean)
        tested = self.evaluate(model)
        best = self.best()
        kept = (tested[self.primary], -tested["loss"]) >= (best[f"test_{self.primary}"], -best["test_loss"])
        if self.main and kept:
            zoo.save(model, self.folder, "best.safetensors")
        return {f"average_test_{name}": value for name, value in tested.items()} | {"average_kept": kept}

    def best(self) -> dict[str, Any]:
        """The row of the epoch with the best primary metric, among equals the one with the least loss, the first of these."""
        return max(self.history, key=lambda row: (row[f"test_{self.primary}"], -row["test_loss"]))

    def train_epoch(self, begun: float) -> None:
        options, batches = self.options, self.task.batches(self.epoch)
        live = self.main and sys.stderr.isatty()
        bar = tqdm(
            total=self.task.train_size,
            initial=sum(map(len, batches[: self.position])),
            unit=f" {self.task.unit}",
            desc=f"epoch {self.epoch + 1}/{options.epochs}",
            disable=not live,
        )
        with bar:
            for indices in batches[self.position :]:
                for name, value in self.train_step(indices).items():
                    self.sums[name] = self.sums.get(name, 0.0) + value
                self.position += 1
                bar.update(len(indices))
                bar.set_postfix({n: f"{v / self.sums['units']:.4f}" for n, v in self.sums.items() if n != "units"}, refresh=False)
                if options.checkpoint_every and self.step % options.checkpoint_every == 0 and self.position < len(batches):
                    self.seconds = time.perf_counter() - begun
                    self.save()
        tested = self.evaluate()
        row: dict[str, Any] = {"epoch": self.epoch + 1, "step": self.step}
        row |= {f"train_{name}": value / self.sums["units"] for name, value in self.sums.items() if name != "units"}
        row |= {f"test_{name}": value for name, value in tested.items()}
        row["lr"] = learning_rate(options, self.step - 1, self.steps_per_epoch)
        self.history.append(row)
        self.seconds = time.perf_counter() - begun
        self.epoch, self.position, self.sums = self.epoch + 1, 0, {}
        self.require_finite()
        if self.main and self.best() is row:  # before the checkpoint that knows of it: a kill in between repeats the epoch
            zoo.save(self.result, self.folder, "best.safetensors")
        if self.main and options.average:
            zoo.save(self.result, self.folder, self.epoch_file(self.epoch).name)
        self.save()
        if self.main:
            if options.average:
                self.epoch_file(self.epoch - options.average).unlink(missing_ok=True)
            self.write_history()
            self.accelerator.log({k: v for k, v in row.items() if k not in ("epoch", "step")}, step=self.step)
            left = self.seconds / self.epoch * (options.epochs - self.epoch)
            print(
                f"epoch {row['epoch']}/{options.epochs}  "
                + "  ".join(f"{k} {v:.4f}" for k, v in row.items() if k.startswith(("train_", "test_")))
                + f"  {self.epoch * self.task.train_size / self.seconds:.0f} {self.task.unit}/s  {left:.0f} s left",
                flush=True,
            )
