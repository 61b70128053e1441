"""Train, evaluate and use an image classifier: ``python -m tasks.image_classification`` trains VGG-11 on handwritten digits."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import commands
from tasks.commands import Command
from tasks.image_predictions import (
    DataOptions,
    EvaluateOptions,
    ExportOptions,
    PredictOptions,
    evaluate,
    export,
    predict,
    predictions,
)  # fmt: skip
from tasks.options import EngineOptions, UserError, option
from tasks.task import Metric, Split, Task

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from torch import Tensor, nn

    from tasks.data.images import ImageData
    from tasks.engine import Run


@dataclass
class TrainOptions(EngineOptions, DataOptions):
    model: str = option("vgg11_bn", "a name that zoo.names() knows")
    batch_size: int = option(64, "images in one optimizer step, over all processes and micro-batches", least=1)
    dropout: float | None = option(None, "in the model's head (default: the head's own)", least=0, below=1)
    init: str = option(
        "", "start from these weights: a run, a file, torchvision:NAME or timm:NAME; other classes get a new output layer"
    )
    freeze: str = option("", "parts to leave as they are, such as stem,stage1")
    augment: str | None = option(
        None, "none, shift, flip or affine (default: what suits the data)", ("none", "shift", "flip", "affine")
    )
    label_smoothing: float = option(0.1, "part of the target that is spread over all classes", least=0, below=1)


class Classification(Task):
    """Cross entropy and accuracy. Of a model with auxiliary heads, their cross entropies are added, times `auxiliary_weight`."""

    unit = "images"
    primary = Metric("accuracy")
    channels_last = True
    auxiliary_weight = 0.0

    def __init__(self, data: ImageData, augment: str, label_smoothing: float, seed: int, batch_size: int) -> None:
        import torch

        from tasks.data import epoch_order
        from tasks.data.images import AUGMENTATIONS

        self.data, self.label_smoothing = data, label_smoothing
        train, test = data.train, data.test
        self.train = Split(
            len(train),
            lambda epoch: epoch_order(len(train), seed, epoch).split(batch_size),
            lambda indices, epoch: train.batch(indices, AUGMENTATIONS[augment], seed, epoch),
        )
        self.valid = Split(
            len(test),
            lambda epoch: torch.arange(len(test)).split(max(batch_size, 64)),
            lambda indices, epoch: test.batch(indices),
        )

    def units(self, batch: Any) -> int:
        return len(batch[1])

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        import torch
        from torch.nn import functional as F

        images, labels = batch
        outputs = model(images.contiguous(memory_format=torch.channels_last))
        logits, *auxiliary = (x.float() for x in (outputs if isinstance(outputs, tuple) else (outputs,)))
        smoothing = self.label_smoothing if model.training else 0.0
        cost = partial(F.cross_entropy, target=labels, reduction="sum", label_smoothing=smoothing)
        loss = cost(logits) + sum(self.auxiliary_weight * cost(x) for x in auxiliary)
        return loss, {"accuracy": (logits.argmax(-1) == labels).sum()}

    def report(self, run: Run, summary: dict[str, Any]) -> dict[str, Any]:
        import zoo
        from tasks import plots

        folder, test = run.folder, self.data.test
        probabilities, _ = predictions(zoo.load(folder / "best.safetensors"), test)
        epoch = "the average of epochs" if summary.get("average_kept") else f"epoch {summary['best_epoch']}"
        model = f"best.safetensors of {folder}, {epoch}, on {len(test):,} test images"
        notes = plots.curves(run.history, folder / "curves.png", self.primary)
        notes += plots.confusion(test.labels, probabilities.argmax(-1), self.data.classes, folder / "confusion.png", model)
        notes += plots.mistakes(test.pixels, test.labels, probabilities, self.data.classes, folder / "mistakes.png")
        for note in dict.fromkeys(notes):
            print(note)
        measured = {name: value for name, value in summary.items() if name.startswith("valid_")}
        tested = {f"test_{name.removeprefix('valid_')}": value for name, value in measured.items()}
        best = f"{summary['best_valid_accuracy']:.4f} after epoch {summary['best_epoch']}"
        print(f"test accuracy {tested['test_accuracy']:.4f} (best {best}), {summary['seconds']:.1f} s of training; see {folder}")
        return tested | ({"skipped_images": len(self.data.skipped)} if self.data.skipped else {})


def train(given: dict[str, Any]) -> None:
    from tasks import runs

    def named(o: TrainOptions) -> str:
        return f"{o.model}-{o.data.rpartition('/')[2].replace('folder:', '')}-{time.strftime('%Y%m%d-%H%M%S')}"

    runs.train(TrainOptions, given, named, begin)


def begin(options: TrainOptions, folder: Path) -> tuple[Classification, nn.Module]:
    """Task and model. Errors: `UserError` and `ValueError` for whatever is wrong with options, data and weights."""
    import torch

    import zoo
    from tasks.data.images import load_images

    weights = find_weights(options.model, options.init, folder)
    known = weights.about.get("preprocess") if weights else None
    size = options.image_size or (known and known["image_size"])
    data = load_images(options.data, Path(options.data_root), size, options.skip_bad)
    if known:
        data.suit(zoo.Preprocess.of(known))
    arguments: dict[str, Any] = {"num_classes": len(data.classes), "in_channels": data.channels}
    arguments |= {} if weights else sized(options.model, data.image_size)
    torch.manual_seed(options.seed)
    arguments |= {} if options.dropout is None else {"dropout": options.dropout}
    model: Any = zoo.create(options.model, weights=weights, **arguments)
    try:
        model.freeze([part.strip() for part in options.freeze.split(",") if part.strip()])
    except ValueError as error:
        raise UserError(f"--{error}") from error
    if data.image_size < (smallest := model.smallest_training_image):
        raise UserError(f"--image_size must be {smallest} or more for {options.model}, got {data.image_size}")
    model.config |= {"preprocess": data.preprocess().config(), "classes": data.classes}
    task = Classification(data, options.augment or data.augment, options.label_smoothing, options.seed, options.batch_size)
    task.auxiliary_weight = model.auxiliary_weight
    shape = f"{data.channels}x{data.image_size}x{data.image_size}"
    skipped = f", {len(data.skipped)} unreadable ones skipped" if data.skipped else ""
    task.told = [
        f"{options.data}, {len(data.train):,} + {len(data.test):,} images of {shape}, {len(data.classes)} classes{skipped}",
        "there is no validation split: valid_* are measured on the test images",
    ]
    return task, model


def find_weights(model: str, init: str, folder: Path) -> Any:
    """The weights to start from; for a run that goes on its own, so that those of --init may be gone by then."""
    from zoo.pretrained import load

    if not init:
        return None
    kept = [path for name in ("best", "last") if (path := folder / f"{name}.safetensors").exists()]
    return load.find(model, str(kept[0]) if kept else init)


def sized(model: str, image_size: int) -> dict[str, str]:
    """Which head and stem suit images of so many pixels, of those that the model gives a choice of: {"stem": "small"}."""
    import zoo

    choices = [part for part in ("head", "stem") if part in zoo.arguments(model)]
    return dict.fromkeys(choices, "imagenet" if image_size >= 128 else "small")


COMMANDS = {
    "train": Command(TrainOptions, "train a model and leave a run in RUNS_DIR/NAME", train),
    "evaluate": Command(EvaluateOptions, "measure a saved model on the test set", evaluate),
    "predict": Command(PredictOptions, "the five likeliest classes of each --image, and why", predict),
    "export": Command(ExportOptions, "write a saved model's weights for torchvision or timm", export),
}


def main(argv: Sequence[str] | None = None) -> int:
    return commands.main("tasks.image_classification", COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
