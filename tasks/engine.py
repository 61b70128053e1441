"""The training loop: step, evaluate, keep, resume. `tasks.task` says what a task brings to it.

What makes a killed run resume to the same bits: the order of the data is a function of (seed, epoch), augmentation of (seed,
epoch, sample), dropout of (seed, step, share), the learning rate of the step. Nothing of the past is needed but the tensors that
`tasks.checkpoints` writes.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration
from torch import Tensor, nn
from tqdm import tqdm

import zoo
from layers.normalization import synchronise_norms
from tasks import averaging, checkpoints, sharding, validation
from tasks.commands import Diverged
from tasks.data import seed_of
from tasks.loading import prepared
from tasks.logs import Log, means, tracker
from tasks.optimizers import learning_rate
from tasks.options import EngineOptions, UserError
from tasks.profiling import Profile
from tasks.recompute import blocks, recomputing
from tasks.task import Task
from zoo import files
from zoo.generation.average import ExponentialAverage

Turn = tuple[str, Any, dict[str, Any]]
"""A part, its loss and its metrics, as `Task.losses` yields them."""


class Run:
    """One training run and its folder, in which it keeps checkpoints and metrics."""

    def __init__(self, task: Task, model: nn.Module, options: EngineOptions, folder: Path) -> None:
        self.task, self.options, self.folder = task, options, folder
        precision = "no" if options.precision == "fp32" else options.precision
        self.accelerator = Accelerator(
            cpu=options.device == "cpu" or not torch.accelerator.is_available(),  # or processes do not join
            mixed_precision=precision, log_with=tracker(options),
            project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder)),
        )  # fmt: skip
        self.main = self.accelerator.is_main_process
        self.sharding = sharding.Sharding(self.accelerator, options)
        self.world, self.index = self.sharding.world, self.sharding.index
        self.whole = sharding.whole_copy(self.sharding, model)
        model = model.to(self.accelerator.device)
        model = model.to(memory_format=torch.channels_last) if task.channels_last and not self.sharding.fsdp else model
        self.model = synchronise_norms(model) if self.world > 1 else model
        self.ema = ExponentialAverage(self.model, options.ema) if options.ema else None
        self.average = self.ema.module if self.ema else None
        self.parts = task.parts(self.model)
        require_partition(self.model, self.parts)
        apart = len(self.parts) > 1 or task.by_methods  # what wrappers of the whole would not see
        if apart and (options.shard != "none" or options.tensor > 1):
            found = ", ".join(self.parts) if len(self.parts) > 1 else f"{type(model).__name__}, whose methods are called"
            raise UserError(f"--shard and --tensor are for models that are trained as one, not as {found}")
        if self.sharding.divided:
            self.sharding.divide(*filter(None, (self.model, self.average)))
        self.adds_up = apart or (self.sharding.tensor > 1 and not self.sharding.fsdp)  # gradients, in `take`
        optimizers = [task.optimizer(name, part, options) for name, part in self.parts.items()]
        self.peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        if not apart and not self.sharding.divided:
            if self.world > 1 and sharding.has_unused(self):
                self.accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)
            compiled = torch.compile(self.model) if options.compile else self.model
            self.wrapped, optimizers[0] = self.accelerator.prepare(compiled, optimizers[0])
        else:  # `take` adds up the gradients
            self.wrapped = self.model
            for part in self.parts.values() if options.compile else ():
                part.compile()
            optimizers = [self.accelerator.prepare(optimizer) for optimizer in optimizers]
        self.optimizers = dict(zip(self.parts, optimizers, strict=True))
        self.step, self.epoch, self.position = 0, 0, 0  # steps; epoch; steps of this epoch already done
        self.sums: dict[str, float] = {}  # of this epoch
        self.window: dict[str, float] = {}  # since the last line of steps.jsonl
        self.history: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.steps_per_epoch = len(task.train.batches(0))
        self.workers = task.workers if options.workers is None else options.workers
        self.log = Log(self)
        self.profile = Profile(self.model, folder, options.profile) if options.profile and self.main else None

    # ------------------------------------------------------------------------------------------------ one step

    def shares(self, indices: Tensor) -> Iterator[tuple[int, Tensor]]:
        """This process's micro-batches. Concatenated over processes, share k is micro-batch k of a run in one process."""
        for k, micro in enumerate(indices.tensor_split(self.options.accumulate)):
            if len(micro):
                yield k, micro.tensor_split(self.world)[self.index]

    def rate(self, step: int) -> float:
        return learning_rate(self.options, step, self.steps_per_epoch)

    def examples(self, indices: Tensor) -> list[tuple[int, Any]]:
        """This process's micro-batches of a step: numbers and tensors, a pure function of epoch and indices."""
        return [(k, self.task.train.batch(share, self.epoch)) for k, share in self.shares(indices)]

    def train_step(self, indices: Tensor, examples: list[tuple[int, Any]] | None = None) -> dict[str, float]:
        """One step of every optimizer on a whole batch; sums of losses, metrics and units over all processes.

        examples: what `examples(indices)` gave, where it was asked before.
        """
        rate = self.rate(self.step)
        for optimizer, peaks in zip(self.optimizers.values(), self.peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = rate * (peak / self.options.lr)
        batches = [(k, self.to_device(batch)) for k, batch in (self.examples(indices) if examples is None else examples)]
        units = self.total(torch.tensor(float(sum(self.task.units(batch) for _, batch in batches)))).item()
        self.wrapped.train()
        losses = [(k, self.task.losses(self.wrapped, batch)) for k, batch in batches]
        turns: list[Turn] = []
        while (turn := self.backward(losses, len(turns), units)) is not None:
            self.take(turn[0])
            turns.append(turn)
        self.step += 1
        if self.ema is not None:
            self.ema.updates = self.step - 1
            self.ema.update(self.model)
        return self.combined(turns) | {"units": units}

    def backward(self, losses: list[Any], turn: int, units: float) -> Turn | None:
        """Gradients of the next loss, of all micro-batches. Its part and sums over all processes, or None after the last one."""
        sums: dict[str, Tensor] = {}
        part = None
        for n, (k, following) in enumerate(losses):
            place = ("step", self.options.seed, self.step, k, self.index)
            torch.manual_seed(seed_of(*place, *([turn] if turn else [])))
            last = n == len(losses) - 1
            with sharding.synchronising(self, last):
                with self.accelerator.autocast(), self.recomputing():
                    found = next(following, (None,))
                if n and found[0] != part:
                    raise ValueError(f"losses must come in the same order for every micro-batch, got {found[0]!r} after {part!r}")
                if (part := found[0]) is None:
                    continue
                _, loss, metrics = found
                if self.adds_up:
                    self.accelerator.backward(loss / units, inputs=trainable(self.parts[part]))
                else:  # processes' gradients are averaged, so that their number brings back the sum
                    self.accelerator.backward(loss * (self.world / units))
            for name, value in {**metrics, "loss": loss}.items():
                sums[name] = sums.get(name, 0) + value.detach().double()
        if part is None:
            return None
        found = {name: self.total(value).item() for name, value in sums.items()}
        if not math.isfinite(found["loss"]):
            raise Diverged(f"the loss is {found['loss']} at step {self.step + 1} (epoch {self.epoch + 1})")
        return part, found.pop("loss"), found

    def recomputing(self) -> AbstractContextManager[None]:
        return recomputing(blocks(self.model)) if self.options.gradient_checkpointing else contextlib.nullcontext()

    def combined(self, turns: Iterable[Turn]) -> dict[str, Any]:
        """The loss, which is the sum of the parts', with several parts also each part's own, and the metrics.

        What comes in several turns, a part's loss or a metric, counts with its mean over them.
        """
        losses, metrics = defaultdict(list), defaultdict(list)
        for part, loss, found in turns:
            losses[part].append(loss)
            for name, value in found.items():
                metrics[name].append(value)
        means = {part: sum(values) / len(values) for part, values in losses.items()}
        each = {f"{part}_loss": value for part, value in means.items()} if len(self.parts) > 1 else {}
        return {"loss": sum(means.values()), **each, **{name: sum(values) / len(values) for name, values in metrics.items()}}

    def take(self, part: str) -> None:
        """The step of one part's optimizer."""
        module, optimizer = self.parts[part], self.optimizers[part]
        if self.adds_up and self.world > 1:
            for p in trainable(module):
                p.grad = None if p.grad is None else self.total(p.grad)
        if self.options.clip:
            self.accelerator.unscale_gradients(optimizer)
            self.sharding.clip(module, self.options.clip)
        optimizer.step()
        optimizer.zero_grad()

    def total(self, value: Tensor) -> Tensor:
        """Sum over all processes that have examples of their own."""
        if self.sharding.divided:
            return self.sharding.total(value)
        return self.accelerator.reduce(value.to(self.accelerator.device), reduction="sum") if self.world > 1 else value

    def to_device(self, batch: Any) -> Any:
        return tuple(x.to(self.accelerator.device, non_blocking=True) for x in batch)

    # ---------------------------------------------------------------------------------------------- evaluation

    @property
    def result(self) -> nn.Module:
        """What is evaluated and kept; of a model that is divided, a whole copy as of the last evaluation."""
        return self.whole or self.average or self.model

    def evaluate(self, model: nn.Module | None = None) -> dict[str, float]:
        """Means and metrics of the validation set, as `tasks.validation.evaluate` has them."""
        if model is not None:
            return validation.evaluate(self, model)
        sharding.refresh(self)
        with sharding.at_hand(self) as result:
            return validation.evaluate(self, result)

    def require_ready(self) -> None:
        """Errors: `ValueError`, before an epoch is spent, if the run could not be trained, measured or kept."""
        validation.require_ready(self)

    def best(self) -> dict[str, Any]:
        """The row of the epoch with the best primary metric, among equals the one with the least loss, the first of these."""
        return max(self.history, key=lambda row: self.task.primary.rank(row, "valid_"))

    # --------------------------------------------------------------------------------------------- checkpoints

    @property
    def last(self) -> Path:
        return self.folder / "last.safetensors"

    def save(self) -> None:
        """Everything a resumed run needs, in one file."""
        self.require_finite()
        checkpoints.save(self, self.last)

    def require_finite(self) -> None:
        """A step on a finite loss may still have broken the weights: no file is to hold those."""
        if not self.sharding.finite(self.model):
            raise Diverged(f"a weight is no longer finite after step {self.step}")

    def restore(self) -> None:
        """Back to the last checkpoint, or to the start if the run was stopped before its first."""
        if self.last.exists():
            checkpoints.restore(self, self.last)
        if self.main:
            files.remove_parts(self.folder)
            self.log.go_back()

    # -------------------------------------------------------------------------------------------------- the loop

    def fit(self) -> dict[str, Any]:
        """Train to the last epoch; returns the summary.

        Errors: `ValueError` if `zoo.save` would refuse the model, or if the task does not measure its `primary` metric;
                `Diverged` if a loss or a weight is no longer finite.
        """
        self.require_ready()
        if self.main:
            averaging.put_back(self)
        self.log.begin()
        begun = time.perf_counter() - self.seconds
        try:
            while not self.finished:
                self.train_epoch(begun)
        except Diverged as error:
            kept = f"the last good checkpoint is {self.last}" if self.last.exists() else "no checkpoint had been written yet"
            raise Diverged(f"{error}; {kept}. A smaller --lr or --clip 1 may help") from error
        if self.profile is not None:
            self.profile.end()
        best, last, primary = self.best(), self.history[-1], f"valid_{self.task.primary.name}"
        summary = {name: value for name, value in last.items() if name.startswith(("train_", "valid_"))} | {
            f"best_{primary}": best[primary],
            "best_epoch": best["epoch"],
            **(averaging.average_epochs(self) if self.options.average else {}),
            "epochs": self.epoch,
            "seconds": round(self.seconds, 3),
            f"{self.task.unit}_per_second": round(self.epoch * self.task.train.size / max(self.seconds, 1e-9), 1),
            "parameters": sum(p.numel() for p in self.model.parameters()),
        }
        self.log.end()
        return summary

    @property
    def finished(self) -> bool:
        """At the last epoch, or out of patience."""
        patience = self.options.patience
        tired = patience > 0 and len(self.history) > 0 and self.epoch - self.best()["epoch"] >= patience
        return tired or self.epoch >= self.options.epochs

    def train_epoch(self, begun: float) -> None:
        options, batches = self.options, self.task.train.batches(self.epoch)
        live = self.main and sys.stderr.isatty()
        bar = tqdm(
            total=self.task.train.size,
            initial=sum(map(len, batches[: self.position])),
            unit=f" {self.task.unit}",
            desc=f"epoch {self.epoch + 1}/{options.epochs}",
            disable=not live,
        )
        with bar:
            left = batches[self.position :]
            for indices, examples in zip(left, prepared(self.examples, left, self.workers), strict=True):
                with self.profile.step() if self.profile else contextlib.nullcontext():
                    sums = self.train_step(indices, examples)
                for name, value in sums.items():
                    self.sums[name] = self.sums.get(name, 0.0) + value
                self.log.step(sums)
                self.position += 1
                bar.update(len(indices))
                bar.set_postfix({n: f"{v / self.sums['units']:.4f}" for n, v in self.sums.items() if n != "units"}, refresh=False)
                if options.checkpoint_every and self.step % options.checkpoint_every == 0 and self.position < len(batches):
                    self.seconds = time.perf_counter() - begun
                    self.save()
        measured = self.evaluate()
        row: dict[str, Any] = {"epoch": self.epoch + 1, "step": self.step}
        row |= means(self.sums) | {f"valid_{name}": value for name, value in measured.items()}
        row["lr"] = self.rate(self.step - 1)
        self.history.append(row)
        self.seconds = time.perf_counter() - begun
        self.epoch, self.position, self.sums = self.epoch + 1, 0, {}
        self.require_finite()
        if self.main and self.best() is row:  # before the checkpoint that knows of it: a kill in between repeats the epoch
            zoo.save(self.result, self.folder, "best.safetensors")
        if self.main and options.average:
            zoo.save(self.result, self.folder, averaging.epoch_file(self, self.epoch).name)
        self.save()
        if self.main and options.average:
            averaging.epoch_file(self, self.epoch - options.average).unlink(missing_ok=True)
        self.log.epoch(row)


def trainable(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def require_partition(model: nn.Module, parts: dict[str, nn.Module]) -> None:
    """Errors: `ValueError` unless every trainable parameter belongs to one part: others would never move, or twice."""
    owned = Counter(id(p) for part in parts.values() for p in trainable(part))
    wrong = [name for name, p in model.named_parameters() if p.requires_grad and owned[id(p)] != 1]
    if wrong or len(owned) != len(trainable(model)):
        raise ValueError(f"parts must hold every trainable parameter of the model once, {', '.join(parts)} do not: {wrong[:5]}")
