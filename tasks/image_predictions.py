"""Use a trained image classifier: evaluate it, classify pictures and say why, export its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.commands import checking_input
from tasks.options import Options, UserError, option

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from torch import Tensor, nn

    from tasks.data.images import Images
    from zoo import Preprocess


@dataclass
class DataOptions(Options):
    data: str = option("digits", "digits, fashion_mnist, cifar10, cifar100, or folder:PATH with PATH/train/CLASS/images")
    data_root: str = option(
        "data", "folder with the files of fashion_mnist and cifar, which are fetched there if there is a network"
    )
    image_size: int | None = option(
        None, "pixels; every image becomes a square (default: 32, and 224 for folders, or what a trained model has had)", least=1
    )
    skip_bad: bool = option(False, "go on without unreadable images, and count them")


@dataclass
class SavedOptions(Options):
    name: str = option("", "run to use (default: the latest under --runs_dir)")
    runs_dir: str = option("runs", "folder of all runs")
    init: str = option("", "a run's folder or .safetensors file to use instead")


@dataclass
class EvaluateOptions(DataOptions, SavedOptions):
    data: str = option("", "as for train (default: what the run was trained on)")
    batch_size: int = option(256, "images at a time", least=1)


@dataclass
class PredictOptions(SavedOptions):
    image: list[str] = option((), "pictures to classify", many=True)
    explain: str = option("", "write each picture beside a map of what speaks for its class (Grad-CAM) into this PNG file")
    features: str = option("", "write the first filters, and what every stage makes of the first --image, into this PNG file")


@dataclass
class ExportOptions(SavedOptions):
    out: str = option("", "file to write, .safetensors, or .pth as torch.save writes it")
    to: str = option("torchvision", "whose names the weights get", ("torchvision", "timm"))


@checking_input()
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
    if len(data.classes) != (expected := len(model.config["classes"])) or data.channels != preprocess.channels:
        raise UserError(f"--data {source} has {len(data.classes)} classes and {data.channels} channels, "
                        f"{path} was trained for {expected} and {preprocess.channels}")  # fmt: skip
    from torch.nn import functional as F

    probabilities, labels = predictions(model, data.test, options.batch_size)
    loss = F.nll_loss(probabilities.clamp(min=1e-30).log(), labels)
    accuracy = (probabilities.argmax(-1) == labels).double().mean()
    print(f"{path}: test accuracy {accuracy:.4f}, loss {loss:.4f} on {len(labels):,} images of {source}")


@checking_input()
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


@checking_input()
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
    tensors = model.maps[options.to].export(model)
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
    from tasks.names import short

    maps, stage, stages = class_activation(model, images)
    large = F.interpolate(maps[:, None], size=pixels.shape[-2:], mode="bilinear")[:, 0]
    rows, columns = maps.shape[1:]
    title = f"what speaks for the class, as stage {stage + 1} of {stages} sees it ({rows}x{columns})"
    said = [f"{short(name)}, {p:.1%}" for name, p in answers]
    for note in plots.explanations(pixels, large, [Path(name).name for name in names], said, title, path):
        print(note)


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


def predictions(model: nn.Module, images: Images, batch_size: int = 256) -> tuple[Tensor, Tensor]:
    """Class probabilities (n, classes) and labels (n,) of all images."""
    import torch

    with torch.inference_mode():
        batches = [images.batch(indices) for indices in torch.arange(len(images)).split(batch_size)]
        return torch.cat([model(x).softmax(-1) for x, _ in batches]), torch.cat([y for _, y in batches])
