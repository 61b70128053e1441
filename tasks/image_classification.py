"""Train, evaluate and use an image classifier: ``python -m tasks.image_classification`` trains VGG-11 on handwritten digits."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from tasks.options import EngineOptions, UserError, option, parse

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from torch import Tensor, nn

    from tasks.data.images import ImageData


@dataclass
class TrainOptions(EngineOptions, DataOptions):
    model: str = option("vgg11_bn", "a name that zoo.names() knows")
    batch_size: int = option(64, "images in one optimizer step, over all processes and micro-batches")
    dropout: float | None = option(None, "in the model's head (default: the head's own)")
    init: str = option(
        "", "start from these weights: a run, a file, torchvision:NAME or timm:NAME; other classes get a new output layer"
    )
    freeze: str = option("", "parts to leave as they are, such as stem,stage1")
    augment: str | None = option(
        None, "none, shift, flip or affine (default: what suits the data)", ("none", "shift", "flip", "affine")
    )
    label_smoothing: float = option(0.1, "part of the target that is spread over all classes")


COMMANDS = {
    "train": (TrainOptions, "train a model and leave a run in RUNS_DIR/NAME"),
    "evaluate": (EvaluateOptions, "measure a saved model on the test set"),
    "predict": (PredictOptions, "the five likeliest classes of each --image, and why"),
    "export": (ExportOptions, "write a saved model's weights for torchvision or timm"),
}


class Classification:
    """The task for `tasks.engine`: cross entropy, and accuracy.

    Of a model with auxiliary heads, their cross entropies are added, each times `auxiliary_weight`.
    """

    unit = "images"
    auxiliary_weight = 0.0

    def __init__(self, data: ImageData, augment: str, label_smoothing: float, seed: int, batch_size: int) -> None:
        from tasks.data.images import AUGMENTATIONS

        self.data, self.seed, self.label_smoothing, self.batch_size = data, seed, label_smoothing, batch_size
        self.augmentation = AUGMENTATIONS[augment]
        self.train_size, self.test_size = len(data.train), len(data.test)

    def batches(self, epoch: int | None) -> Sequence[Tensor]:
        import torch

        from tasks.data import epoch_order

        if epoch is None:
            return torch.arange(self.test_size).split(max(self.batch_size, 64))
        return epoch_order(self.train_size, self.seed, epoch).split(self.batch_size)

    def batch(self, indices: Tensor, epoch: int | None) -> tuple[Tensor, Tensor]:
        if epoch is None:
            return self.data.test.batch(indices)
        return self.data.train.batch(indices, self.augmentation, self.seed, epoch)

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

    def score(self, model: nn.Module) -> dict[str, float]:
        return {}


def train(given: dict[str, Any]) -> None:
    import torch

    import zoo
    from tasks.data.images import load_images
    from tasks.engine import Run
    from tasks.runs import checking_input, open_folder
    from zoo import files

    def named(o: TrainOptions) -> str:
        return f"{o.model}-{o.data.rpartition('/')[2].replace('folder:', '')}-{time.strftime('%Y%m%d-%H%M%S')}"

    with checking_input():
        options, folder = open_folder(TrainOptions, given, named)
        if options.batch_size < 1:
            raise UserError(f"--batch_size must be 1 or more, got {options.batch_size}")
        if not 0 <= options.label_smoothing < 1:
            raise UserError(f"--label_smoothing must be at least 0 and below 1, got {options.label_smoothing}")
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
    run = Run(task, model, options, folder)
    if run.main:
        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(folder / "options.json", asdict(options) | {"resume": False, "name": folder.name})
        files.write_json(folder / "config.json", model.config)
        shape = f"{data.channels}x{data.image_size}x{data.image_size}"
        skipped = f", {len(data.skipped)} unreadable ones skipped" if data.skipped else ""
        print(f"{options.model}, {sum(p.numel() for p in model.parameters()):,} parameters")
        print(
            f"{options.data}, {len(data.train):,} + {len(data.test):,} images of {shape}, {len(data.classes)} classes{skipped}",
            flush=True,
        )
    run.accelerator.wait_for_everyone()
    if options.resume:
        with checking_input():
            run.restore()
    if run.finished and (folder / "mistakes.png").exists():
        run.accelerator.print(f"{folder} is finished: nothing left to do")
        return
    summary = run.fit()
    if run.main:
        best = zoo.load(folder / "best.safetensors")
        probabilities, _ = predictions(best, data.test)
        if data.skipped:
            files.write_json(folder / "summary.json", summary | {"skipped_images": len(data.skipped)})
        draw(folder, run.history, probabilities, data)
        best_accuracy, seconds = f"{summary['best_test_accuracy']:.4f} after epoch {summary['best_epoch']}", summary["seconds"]
        print(f"test accuracy {summary['test_accuracy']:.4f} (best {best_accuracy}), {seconds:.1f} s of training; see {folder}")


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


def draw(folder: Path, history: list[dict[str, Any]], probabilities: Tensor, data: ImageData) -> None:
    from tasks import plots

    plots.curves(history, folder / "curves.png")
    plots.confusion(data.test.labels, probabilities.argmax(-1), data.classes, folder / "confusion.png")
    plots.mistakes(data.test.pixels, data.test.labels, probabilities, data.classes, folder / "mistakes.png")


def main(argv: Sequence[str] | None = None) -> int:
    command, given = parse("tasks.image_classification", COMMANDS, sys.argv[1:] if argv is None else argv)
    from tasks.runs import checking_input
    from tasks.runs import main as guarded

    def run() -> None:
        if command == "train":
            return train(given)
        with checking_input():
            return {"evaluate": evaluate, "predict": predict, "export": export}[command](given)

    return guarded(run)


if __name__ == "__main__":
    sys.exit(main())
