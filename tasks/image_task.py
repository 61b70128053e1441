"""What image classification is to the engine: batches, loss, metrics, and the report on the best model."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import zoo
from layers.fake_quantize import FakeQuantized
from tasks import plots
from tasks.classes import hits, scores
from tasks.data import epoch_order, spread
from tasks.data.augment import Augmented
from tasks.data.images import ImageData, Images
from tasks.data.pictures import OnDisk
from tasks.data.shards import Packed
from tasks.image_scores import measure
from tasks.saved import INTEGERS, placed
from tasks.task import Metric, Split, Task

if TYPE_CHECKING:
    from tasks.engine import Run
    from tasks.image_classification import TrainOptions


CALIBRATION = 512
"""Training images, at most, that tell the ranges of what is between layers."""


class Classification(Task):
    """Cross entropy and accuracy. Of a model with auxiliary heads, their cross entropies are added, times `auxiliary_weight`.

    In training an image counts by the weight of its class. A mixed image costs its own label's cross entropy times its share, and
    its partner's times the rest, each with its own class's weight and with label smoothing: that of a target of both classes.
    With `quantize` losses and metrics are those of rounded weights and inputs, and a network of integers is left and tested.
    """

    unit = "images"
    primary = Metric("accuracy")
    channels_last = True
    auxiliary_weight = 0.0

    def __init__(self, data: ImageData, options: TrainOptions) -> None:
        self.data, self.label_smoothing, self.batch_size = data, options.label_smoothing, options.batch_size
        self.quantize = options.quantize != "none"
        balanced = options.class_weights == "balanced"
        self.class_weights = balanced_weights(data.train.labels, len(data.classes)) if balanced else None
        augment = options.augment or data.augment
        draws = Augmented(data.train, augment, options.erasing, options.mixup, options.cutmix, options.seed)
        size = len(data.train)
        ordered = partial(shuffled, size, options.seed, options.batch_size)
        if isinstance(data.train.pixels, Packed):
            ordered = partial(data.train.pixels.batches, options.batch_size, options.seed)
        self.train = Split(size, ordered, draws)
        size = len(data.valid)
        passed = partial(in_order, data.valid.pixels, size, max(options.batch_size, 64))
        self.valid = Split(size, passed, partial(unaugmented, data.valid))
        self.identity = data.identity()
        if isinstance(data.train.pixels, OnDisk):
            self.workers = min(8, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))

    def units(self, batch: Any) -> int:
        return len(batch[1])

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels, *mixed = batch
        with FakeQuantized() if self.quantize else contextlib.nullcontext():
            outputs = model(images.contiguous(memory_format=torch.channels_last))
        logits, *auxiliary = (x.float() for x in (outputs if isinstance(outputs, tuple) else (outputs,)))
        smoothing, weights = (self.label_smoothing, self.class_weights) if model.training else (0.0, None)
        weights = None if weights is None else weights.to(logits.device)
        entropy = partial(F.cross_entropy, weight=weights, label_smoothing=smoothing)

        def cost(x: Tensor) -> Tensor:
            if not mixed:
                return entropy(x, labels, reduction="sum")
            partners, shares = mixed
            return (shares * entropy(x, labels, reduction="none") + (1 - shares) * entropy(x, partners, reduction="none")).sum()

        loss = cost(logits) + sum(self.auxiliary_weight * cost(x) for x in auxiliary)
        most = torch.where(mixed[1] >= 0.5, labels, mixed[0]) if mixed else labels
        found = hits(logits, most)
        if smoothing and not mixed:
            found["plain_loss"] = F.cross_entropy(logits.detach(), labels, weight=weights, reduction="sum")
        return loss, found

    def report(self, run: Run, summary: dict[str, Any]) -> dict[str, Any]:
        folder, test = run.folder, self.data.test
        options: Any = run.options
        model, context = placed(zoo.load(folder / "best.safetensors"), options)
        measured = measure(model, context, test, max(self.batch_size, 64))
        told, more = "", {}
        if self.quantize:
            accuracy = scores(measured)["accuracy"]
            more = {"test_float32_accuracy": accuracy}
            measured = measure(self.integers(folder), contextlib.nullcontext(), test, max(self.batch_size, 64))
            told = f" in the integers of {folder / INTEGERS}, {accuracy:.4f} in float32,"
        tested = {f"test_{name}": value for name, value in scores(measured).items()}
        tested |= more
        probabilities, classes = measured.logs.exp(), self.data.classes
        which, valid = f"epoch {summary['best_epoch']}", summary["best_valid_accuracy"]
        if summary.get("average_kept"):
            which, valid = f"the mean of {options.average} epochs", summary["average_valid_accuracy"]
        model_name = f"best.safetensors of {folder}, {which}, on {len(test):,} test images"
        names = [Path(name).name for name in test.names] or None
        notes = plots.curves(run.history, folder / "curves.png", self.primary)
        notes += plots.confusion(test.labels, probabilities.argmax(-1), classes, folder / "confusion.png", model_name)
        notes += plots.mistakes(test.pixels, test.labels, probabilities, classes, folder / "mistakes.png", names=names)
        print(*dict.fromkeys(notes), sep="\n", end="\n" if notes else "")
        best = f"the best model, of {which} with valid accuracy {valid:.4f}"
        print(
            f"test accuracy {tested['test_accuracy']:.4f}{told} of {best}; {summary['seconds']:.1f} s of training; see {folder}"
        )
        return tested | ({"skipped_images": len(self.data.skipped)} if self.data.skipped else {})

    def integers(self, folder: Path) -> nn.Module:
        """The best model in integers, which is left in the run's folder; training images, as they are, tell its ranges."""
        chosen = spread(len(self.data.train), CALIBRATION)
        model = zoo.quantize(zoo.load(folder / "best.safetensors"), "static", calibration=self.data.train.batch(chosen)[0])
        zoo.save(model, folder / INTEGERS)
        return model


def balanced_weights(labels: Tensor, classes: int) -> Tensor:
    """(classes,): n / (classes n_c), so that every class weighs the same, and an example of the set 1 in the mean."""
    return len(labels) / (classes * labels.bincount(minlength=classes).clamp(min=1).float())


def shuffled(size: int, seed: int, batch_size: int, epoch: int) -> Sequence[Tensor]:
    return epoch_order(size, seed, epoch).split(batch_size)


def in_order(pixels: Any, size: int, batch_size: int, epoch: int) -> Sequence[Tensor]:
    return pixels.passed(batch_size) if isinstance(pixels, Packed) else torch.arange(size).split(batch_size)


def unaugmented(images: Images, indices: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
    return images.batch(indices)
