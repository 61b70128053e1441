"""Train, evaluate and use an image classifier: ``python -m tasks.image_classification`` trains VGG-11 on handwritten digits."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.options import EngineOptions, UserError, option, parse

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from torch import Tensor, nn

    from tasks.data.images import ImageData
    from zoo import Preprocess


@dataclass
class DataOptions:
    data: str = option("digits", "digits, fashion_mnist, cifar10, cifar100, or folder:PATH with PATH/train/CLASS/images")
    data_root: str = option(
        "data", "folder with the files of fashion_mnist and cifar, which are fetched there if there is a network"
    )
    image_size: int | None = option(
        None, "pixels; every image becomes a square (default: 32, and 224 for folders, or what a trained model has had)"
    )
    skip_bad: bool = option(False, "go on without unreadable images, and count them")


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


@dataclass
class SavedOptions:
    name: str = option("", "run to use (default: the latest under --runs_dir)")
    runs_dir: str = option("runs", "folder of all runs")
    init: str = option("", "a run's folder or .safetensors file to use instead")


@dataclass
class EvaluateOptions(DataOptions, SavedOptions):
    data: str = option("", "as for train (default: what the run was trained on)")
    batch_size: int = option(256, "images at a time")


@dataclass
class PredictOptions(SavedOptions):
    image: list[str] = option((), "pictures to classify", many=True)
    explain: str = option("", "write each picture beside a map of what speaks for its class (Grad-CAM) into this PNG file")
    features: str = option("", "write the first filters, and what every stage makes of the first --image, into this PNG file")


@dataclass
class ExportOptions(SavedOptions):
    out: str = option("", "file to write, .safetensors, or .pth as torch.save writes it")
    to: str = option("torchvision", "whose names the weights get", ("torchvision", "timm"))


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
        smallest = max(model.smallest_image, getattr(model, "smallest_auxiliary", 0))
        if data.image_size < smallest:
            raise UserError(f"--image_size must be {smallest} or more for {options.model}, got {data.image_size}")
        model.config |= {"preprocess": data.preprocess().config(), "classes": data.classes}
    task = Classification(data, options.augment or data.augment, options.label_smoothing, options.seed, options.batch_size)
    task.auxiliary_weight = getattr(model, "auxiliary_weight", 0.0)
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
        probabilities, _ = predictions(best, task)
        if data.skipped:
            files.write_json(folder / "summary.json", summary | {"skipped_images": len(data.skipped)})
        draw(folder, run.history, probabilities, data)
        best_accuracy, seconds = f"{summary['best_test_accuracy']:.4f} after epoch {summary['best_epoch']}", summary["seconds"]
        print(f"test accuracy {summary['test_accuracy']:.4f} (best {best_accuracy}), {seconds:.1f} s of training; see {folder}")


def find_weights(model: str, init: str, folder: Path) -> Any:
    """The weights to start from; for a run that goes on its own, so that those of --init may be gone by then."""
    from zoo import pretrained

    if not init:
        return None
    kept = [path for name in ("best", "last") if (path := folder / f"{name}.safetensors").exists()]
    return pretrained.find(model, str(kept[0]) if kept else init)


def sized(model: str, image_size: int) -> dict[str, str]:
    """Which head and stem suit images of so many pixels, of those that the model gives a choice of: {"stem": "small"}."""
    import torch

    import zoo

    suitable = {}
    for part in ("head", "stem"):
        with contextlib.suppress(ValueError), torch.device("meta"):  # no choice: another argument, or a model that is not there
            zoo.create(model, **(choice := {part: "imagenet" if image_size >= 128 else "small"}))
            suitable |= choice
    return suitable


def predictions(model: nn.Module, task: Classification) -> tuple[Tensor, Tensor]:
    """Class probabilities (n, classes) and labels (n,) of the test set."""
    import torch

    with torch.inference_mode():
        batches = [task.batch(indices, None) for indices in task.batches(None)]
        return torch.cat([model(x).softmax(-1) for x, _ in batches]), torch.cat([y for _, y in batches])


def draw(folder: Path, history: list[dict[str, Any]], probabilities: Tensor, data: ImageData) -> None:
    from tasks import plots

    plots.curves(history, folder / "curves.png")
    plots.confusion(data.test.labels, probabilities.argmax(-1), data.classes, folder / "confusion.png")
    plots.mistakes(data.test.pixels, data.test.labels, probabilities, data.classes, folder / "mistakes.png")


def evaluate(given: dict[str, Any]) -> None:
    import zoo
    from tasks.data.images import load_images
    from zoo import files

    options = EvaluateOptions(**given)
    path = saved_path(options)
    model = zoo.load(path)
    saved = (path if path.is_dir() else path.parent) / "options.json"
    trained = files.read_json(saved) if saved.exists() else {}
    source = options.data or trained.get("data", "digits")
    root = given.get("data_root") or trained.get("data_root") or options.data_root
    preprocess = preprocess_of(model, path)
    cut = None if options.image_size else preprocess.cut
    data = load_images(source, Path(root), options.image_size or preprocess.image_size, options.skip_bad, cut)
    data.suit(preprocess)
    if len(data.classes) != (due := len(model.config["classes"])) or data.channels != preprocess.channels:
        raise UserError(f"--data {source} has {len(data.classes)} classes and {data.channels} channels, "
                        f"{path} was trained for {due} and {preprocess.channels}")  # fmt: skip
    from torch.nn import functional as F

    probabilities, labels = predictions(model, Classification(data, "none", 0.0, 0, options.batch_size))
    loss = F.nll_loss(probabilities.clamp(min=1e-30).log(), labels)
    accuracy = (probabilities.argmax(-1) == labels).double().mean()
    print(f"{path}: test accuracy {accuracy:.4f}, loss {loss:.4f} on {len(labels):,} images of {source}")


def predict(given: dict[str, Any]) -> None:
    import torch

    import zoo
    from tasks.data.images import read_pictures

    options = PredictOptions(**given)
    if not options.image:
        raise UserError("--image: give one picture or more")
    require_png("--explain", options.explain)
    require_png("--features", options.features)
    path = saved_path(options)
    model = zoo.load(path)
    preprocess = preprocess_of(model, path)
    pixels = read_pictures(options.image, preprocess)
    images = preprocess.normalise(pixels)
    classes = model.config["classes"]
    with torch.inference_mode():
        probabilities, order = model(images).softmax(-1).topk(min(5, len(classes)))
    for name, row, indices in zip(options.image, probabilities.tolist(), order.tolist(), strict=True):
        print(f"{name}: " + ", ".join(f"{classes[i]} {p:.1%}" for p, i in zip(row, indices, strict=True)))
    if options.explain:
        answers = [(classes[i], p) for i, p in zip(order[:, 0].tolist(), probabilities[:, 0].tolist(), strict=True)]
        draw_explanation(model, images, pixels, options.image, answers, Path(options.explain))
    if options.features:
        draw_features(model, images[:1], pixels[0], Path(options.features))


def export(given: dict[str, Any]) -> None:
    import io

    import torch

    import zoo
    from zoo import files

    options = ExportOptions(**given)
    out = Path(options.out)
    if out.suffix not in (".safetensors", ".pth") or out.is_dir() or not out.parent.is_dir():
        raise UserError(f"--out must be a .safetensors or .pth file in a folder that exists, got {options.out!r}")
    model = zoo.load(saved_path(options))
    tensors = getattr(model, options.to).export(model)
    if out.suffix == ".safetensors":
        files.write_tensors(out, tensors)
    else:
        torch.save(tensors, buffer := io.BytesIO())
        files.write_bytes(out, buffer.getvalue())
    print(f"{out}: {len(tensors)} tensors of {model.config['model']} under {options.to}'s names")


def draw_explanation(
    model: nn.Module, images: Tensor, pixels: Tensor, names: Sequence[str], answers: Sequence[tuple[str, float]], path: Path
) -> None:
    """A row for each picture: itself, and under the map of its likeliest class; `answers` are classes and probabilities."""
    from torch.nn import functional as F

    from tasks import plots
    from tasks.explain import class_activation

    maps, stage, stages = class_activation(model, images)
    large = F.interpolate(maps[:, None], size=pixels.shape[-2:], mode="bilinear")[:, 0]
    rows, columns = maps.shape[1:]
    title = f"what speaks for the class, as stage {stage + 1} of {stages} sees it ({rows}x{columns})"
    said = [f"{plots.short(name)}, {p:.1%}" for name, p in answers]
    plots.explanations(pixels, large, [plots.short(Path(name).name) for name in names], said, title, path)


def draw_features(model: Any, images: Tensor, pixels: Tensor, path: Path) -> None:
    import torch

    from tasks import plots
    from tasks.explain import first_filters

    with torch.inference_mode():
        stages = [stage[0] for stage in model.features(images)]
    plots.features(pixels, first_filters(model), stages, path)


def require_png(name: str, path: str) -> None:
    """Errors: `UserError` unless `path` is empty or a file ending in .png in a folder that exists."""
    if path and (Path(path).suffix.lower() != ".png" or Path(path).is_dir() or not Path(path).parent.is_dir()):
        raise UserError(f"{name} must be a .png file in a folder that exists, got {path}")


def preprocess_of(model: Any, path: Path) -> Preprocess:
    if not {"preprocess", "classes"} <= model.config.keys():
        raise UserError(f"{path}: its config.json lacks 'preprocess' and 'classes', which a run of this task leaves there")
    return model.preprocess


def saved_path(options: SavedOptions) -> Path:
    """What --init or --name gives, else the latest run that has kept a model."""
    if options.init:
        return Path(options.init)
    if options.name:
        return Path(options.runs_dir) / options.name
    runs = sorted(Path(options.runs_dir).glob("*/best.safetensors"), key=lambda p: p.stat().st_mtime)
    if not runs:
        raise UserError(f"no run with a saved model under {options.runs_dir}: train one, or give --init")
    return runs[-1].parent


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
