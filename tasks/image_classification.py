"""Train, evaluate and use an image classifier: ``python -m tasks.image_classification`` trains VGG-11 on handwritten digits."""

from __future__ import annotations

import difflib
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import commands
from tasks.commands import Command
from tasks.image_evaluation import EvaluateOptions, ImageDataOptions, evaluate
from tasks.image_predictions import ExportOptions, PredictOptions, export, predict
from tasks.options import EngineOptions, UserError, option
from tasks.saved import require_run_of, run_or_path

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from torch import nn

    from tasks.image_task import Classification


@dataclass
class TrainOptions(EngineOptions, ImageDataOptions):
    title, program = "image classification", "tasks.image_classification"
    epochs: int = option(None, "passes over the training data (default: 10, for digits 7)", least=1)
    model: str = option("vgg11_bn", "an image model that zoo.names() knows")
    batch_size: int = option(64, "images in one optimizer step, over all processes and micro-batches", least=1)
    dropout: float | None = option(None, "in the model's head (default: the head's own)", least=0, below=1)
    init: str = option(
        "", "start from these weights: a run, a file, torchvision:NAME or timm:NAME; classes are matched by name", path=True
    )
    freeze: str = option("", "parts to leave as they are, such as stem,stage1")
    fit: str | None = option(
        None,
        "how a picture becomes a square: cut takes its middle, pad all of it on black, squash all of it in another ratio "
        "(default: cut, or what --init has had)",
        ("cut", "pad", "squash"),
    )
    augment: str | None = option(
        None,
        "none, shift, flip, affine or crop (random resized crop and flip), and after a comma randaugment or trivialaugment "
        "(default: what suits the data)",
    )
    erasing: float = option(0.0, "probability with which a random rectangle of an image becomes zero", least=0, below=1)
    mixup: float = option(0.0, "mix images and labels in shares of the Beta law with this alpha; 0 is off", least=0)
    cutmix: float = option(0.0, "put a box of another image into each, the larger the alpha the more even; 0 is off", least=0)
    class_weights: str = option("none", "balanced: every class weighs the same, however many images it has", ("none", "balanced"))
    label_smoothing: float = option(0.1, "part of the target that is spread over all classes", least=0, below=1)
    quantize: str = option(
        "none",
        "static: train with weights and inputs rounded as in integers of 8 bits, and leave the network of integers in the run's "
        "int8/, which needs torchao",
        ("none", "static"),
    )

    def __post_init__(self) -> None:
        self.epochs = (7 if self.data == "digits" else 10) if self.epochs is None else self.epochs
        super().__post_init__()
        if self.quantize != "none":
            wrong = {"precision": self.precision != "fp32", "compile": self.compile, "shard": self.shard != "none",
                     "tensor": self.tensor > 1, "gradient_checkpointing": self.gradient_checkpointing}  # fmt: skip
            if found := [name for name, on in wrong.items() if on]:
                raise UserError(f"--quantize {self.quantize} and --{found[0]} exclude each other")


def train(given: dict[str, Any]) -> None:
    from tasks import runs

    def named(o: TrainOptions) -> str:
        data = Path(re.sub("^(folder|shards|hf):", "", o.data))
        return f"{o.model}-{(data.parent if '{' in data.name else data).name or 'folder'}-{time.strftime('%Y%m%d-%H%M%S')}"

    runs.train(TrainOptions, given, named, begin)


def begin(options: TrainOptions, folder: Path) -> tuple[Classification, nn.Module]:
    """Task and model. Errors: `UserError` and `ValueError` for whatever is wrong with options, data and weights."""
    import torch

    import zoo
    from tasks.classes import match_classes
    from tasks.data.augment import split_names
    from tasks.data.images import load_images
    from tasks.image_task import Classification

    require_image_model(options.model)
    if options.quantize != "none":
        require_tools(options.quantize)
    split_names(options.augment or "none")
    if options.fit not in (None, "cut") and not options.data.startswith(("folder:", "shards:", "hf:")):
        raise UserError(
            f"--fit {options.fit} is for --data folder:PATH, shards:PATH and hf:NAME: the images of {options.data} are squares"
        )
    weights = find_weights(options.model, options.init, folder)
    known = weights.about.get("preprocess") if weights else None
    size = options.image_size or (known and known["image_size"])
    fit = options.fit or (known or {}).get("fit", "cut")
    data = load_images(options.data, Path(options.data_root), size, options.skip_bad, fit, columns=options.columns)
    if known:
        data.suit(zoo.Preprocess.of(known))
    arguments: dict[str, Any] = {"num_classes": len(data.classes), "in_channels": data.channels}
    arguments |= {} if weights else sized(options.model, data.image_size)
    torch.manual_seed(options.seed)
    arguments |= {} if options.dropout is None else {"dropout": options.dropout}
    model: Any = zoo.create(options.model, weights=weights, **arguments)
    told = match_classes(model, weights.about.get("classes"), data.classes) if weights else []
    try:
        model.freeze([part.strip() for part in options.freeze.split(",") if part.strip()])
    except ValueError as error:
        raise UserError(f"--{error}") from error
    if data.image_size < (smallest := model.smallest_training_image):
        raise UserError(f"--image_size must be {smallest} or more for {options.model}, got {data.image_size}")
    model.config |= {"preprocess": data.preprocess().config(), "classes": data.classes}
    task = Classification(data, options)
    task.auxiliary_weight = model.auxiliary_weight
    sizes = {id(split): f"{len(split):,} {role}" for role, split in data.splits.items()}
    shape = f"{data.channels}x{data.image_size}x{data.image_size}"
    skipped = f", {len(data.skipped)} unreadable ones skipped" if data.skipped else ""
    whole = f"{options.data}: {' + '.join(sizes.values())} images of {shape}, {len(data.classes)} classes{skipped}"
    bad = [f"skipped: {line}" for line in data.skipped[:10]] + [f"and {len(data.skipped) - 10:,} more"] * (len(data.skipped) > 10)
    frozen = [f"frozen: {', '.join(model.frozen)}"] * bool(model.frozen)
    task.told = [*data.told, whole, *bad, *told, *frozen]
    return task, model


def require_tools(kind: str) -> None:
    """Errors: `UserError`, before anything is trained, where a network could not be quantized in the end."""
    from zoo.deployment.quantized_images import tools

    try:
        tools()
    except RuntimeError as error:
        raise UserError(f"--quantize {kind}: {error}") from error


def require_image_model(name: str) -> None:
    """Errors: `UserError` for a model of another kind, or of none, with the image models and the nearest names."""
    import zoo

    names = image_models()
    if name not in names:
        near = " or ".join(difflib.get_close_matches(name, names, n=2, cutoff=0))
        kind = "no image model" if name in zoo.names() else "unknown"
        raise UserError(f"--model {name} is {kind}, did you mean {near}? There are {', '.join(names)}")


def image_models() -> list[str]:
    import zoo

    return list(zoo.names(zoo.ImageModel))


def find_weights(model: str, init: str, folder: Path) -> Any:
    """The weights to start from; for a run that goes on its own, so that those of --init may be gone by then."""
    from zoo.pretrained import load

    if not init:
        return None
    kept = [path for name in ("best", "last") if (path := folder / f"{name}.safetensors").exists()]
    place = str(kept[0]) if kept else run_or_path(init, folder.parent)
    require_run_of(TrainOptions.program, Path(place.rpartition("#")[0] or place), f"--init {init}")
    return load.find(model, place)


def sized(model: str, image_size: int) -> dict[str, str]:
    """Which head and stem suit images of so many pixels, of those that the model gives a choice of: {"stem": "small"}."""
    import zoo

    choices = [part for part in ("head", "stem") if part in zoo.arguments(model)]
    return dict.fromkeys(choices, "imagenet" if image_size >= 128 else "small")


COMMANDS = {
    "train": Command(
        TrainOptions,
        "train a model and leave a run in RUNS_DIR/NAME",
        train,
        "--data folder:photos --image_size 128 --model resnet18 --name photos",
        "--data folder:{}",
    ),
    "evaluate": Command(
        EvaluateOptions,
        "measure a saved model on a test set",
        evaluate,
        "--name photos --per_class --output said.csv",
        "--name {}",
    ),
    "predict": Command(
        PredictOptions,
        "the likeliest classes of each --image, and why",
        predict,
        "--name photos --image cat.png holiday/",
        "--image {}",
    ),
    "export": Command(
        ExportOptions,
        "write a saved model's weights for torchvision or timm",
        export,
        "--name photos --out photos.pth",
        "--name {}",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    return commands.main("tasks.image_classification", COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
