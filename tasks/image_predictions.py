"""Use a trained image classifier: classify pictures, say why, export its weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import tables
from tasks.commands import checking_input
from tasks.options import UserError, option
from tasks.saved import RunOptions, SavedOptions, find_run, placed, require_run_of

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from torch import Tensor

    from zoo import Preprocess


DRAWN = 100
"""Pictures that --explain takes at most."""


@dataclass
class UseOptions(RunOptions):
    title, program = "the run", "tasks.image_classification"
    init: str = option("", "a run's folder or .safetensors file to use instead", path=True)


@dataclass
class PredictOptions(UseOptions, SavedOptions):
    title = "pictures"
    image: list[str] = option((), "pictures to classify, and folders of them", many=True, path=True)
    batch_size: int = option(32, "pictures at a time", least=1)
    skip_bad: bool = option(False, "go on without unreadable pictures, and name them")
    top: int = option(5, "how many of the likeliest classes to tell", least=1)
    all: bool = option(False, "tell the probabilities of all classes")
    output: str = option("", f"write the answers into this {tables.FILES}", path=True)
    explain: str = option(
        "", "write each picture beside a map of what speaks for its class (Grad-CAM) into this PNG file", path=True
    )
    features: str = option(
        "", "write the first filters, and what every stage makes of the first --image, into this PNG file", path=True
    )


@dataclass
class ExportOptions(UseOptions):
    title = "weights"
    out: str = option("", "file to write, .safetensors, or .pth as torch.save writes it", path=True)
    to: str = option("torchvision", "whose names the weights get", ("torchvision", "timm"))


@checking_input()
def predict(given: dict[str, Any]) -> None:
    import torch

    from tasks.data.pictures import decode
    from tasks.data.tree import printable
    from tasks.image_scores import log_probabilities

    options = PredictOptions(**given)
    paths = picture_files(options.image)
    for name in ("explain", "features"):
        tables.require_writable(f"--{name}", getattr(options, name), [".png"])
    tables.require_table("--output", options.output)
    if options.explain and len(paths) > DRAWN:
        raise UserError(f"--explain draws {DRAWN} pictures at most, got {len(paths):,}")
    path = model_path(options)
    model, context, preprocess, classes = load_classifier(path, options)
    skipped: list[str] = []
    explained: list[dict[str, Any]] = []
    drawn: list[Tensor] = []
    top = len(classes) if options.all and not options.output else options.top
    with tables.writing(options.output) as write:
        for start in range(0, len(paths), options.batch_size):
            some = paths[start : start + options.batch_size]
            found = decode(some, [0] * len(some), preprocess, options.skip_bad, skipped)
            if not found.paths:
                continue
            probabilities = log_probabilities(model, context, preprocess.normalise(found.pixels)).exp()
            names = [printable(name) for name in found.paths]
            rows = [*answers(names, probabilities, classes, top, options.all and bool(options.output))]
            write(rows)
            explained += rows if options.explain else []
            drawn += [found.pixels] if options.explain or (options.features and not drawn) else []
            for name, *said in () if options.output else map(dict.values, rows):
                print(f"{name}: " + ", ".join(f"{c} {p:.1%}" for c, p in zip(said[::2], said[1::2], strict=True)), flush=True)
        for line in skipped:
            print(f"skipped: {line}")
        if len(skipped) == len(paths):
            raise UserError("--image: no picture could be read")
        if options.explain or options.features:
            from tasks import image_drawings as drawings

            if options.explain:
                drawings.draw_explanations(model, context, preprocess, torch.cat(drawn), explained, Path(options.explain))
            if options.features:
                drawings.draw_features(model, context, preprocess, drawn[0][0], Path(options.features))
    if options.output not in ("", "-"):
        print(f"{options.output}: {len(paths) - len(skipped):,} pictures")


@checking_input()
def export(given: dict[str, Any]) -> None:
    import io

    import torch

    import zoo
    from zoo import files

    options = ExportOptions(**given)
    out = Path(options.out)
    if not options.out:
        raise UserError("--out: give a file to write, .safetensors or .pth")
    tables.require_writable("--out", options.out, [".safetensors", ".pth"])
    model = zoo.load(model_path(options))
    tensors, classes = model.maps[options.to].export(model), model.config.get("classes")
    if out.suffix.lower() == ".safetensors":
        files.write_tensors(out, tensors, {"classes": json.dumps(classes)} if classes else {})
    else:
        torch.save(tensors, buffer := io.BytesIO())
        files.write_bytes(out, buffer.getvalue())
    print(f"{out}: {len(tensors)} tensors of {model.config['model']} under {options.to}'s names")
    if said := unlike(model, options.to):
        print(said)
    if classes:
        where = ", also in the file's metadata" if out.suffix.lower() == ".safetensors" else ""
        print(f"classes in the order of the logits{where}: {', '.join(classes)}")


def unlike(model: Any, reference: str) -> str:
    """Why the reference's model of the same name does not load the weights, or computes something else; "" if it does not."""
    from torchvision.models import list_models

    name, arguments = model.config["model"], model.config["arguments"]
    if reference == "torchvision" and name not in list_models():
        return f"torchvision has no {name}: the names are those of its ResNet, whose blocks load them"
    own = [f"a small {part}" for part in ("stem", "head") if arguments.get(part) == "small"]
    if (channels := arguments.get("in_channels", 3)) != 3:
        own.append("1 input channel" if channels == 1 else f"{channels} input channels")
    return f"ours has {' and '.join(own)}: {reference}'s {name} must be given that before it loads them" if own else ""


def model_path(options: UseOptions) -> Path:
    """What --init gives, else the folder of the run."""
    if options.init and not Path(options.init).exists():
        raise UserError(f"--init {options.init} is not there: a run's folder or one of its .safetensors files is expected")
    if not options.init:
        return find_run(options, "best.safetensors")
    require_run_of(options.program, Path(options.init), f"--init {options.init}")
    return Path(options.init)


def load_classifier(path: Path, options: SavedOptions) -> tuple[Any, Any, Preprocess, list[str]]:
    """Model and context, as `placed` has them, how to prepare pictures, and the names of the classes."""
    import zoo

    model = zoo.load(path)
    if not {"preprocess", "classes"} <= model.config.keys():
        raise UserError(f"{path}: its config.json lacks 'preprocess' and 'classes', which a run of this task leaves there")
    classes = model.config["classes"]
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise UserError(f"{path}: its config.json has no list of names as 'classes', got {classes!r}")
    preprocess: Any = model.preprocess
    return *placed(model, options), preprocess, [*model.config["classes"]]


def picture_files(images: Sequence[str]) -> list[str]:
    """Files as they are, and of folders all pictures in them."""
    from tasks.data.tree import scan

    if not images:
        raise UserError("--image: give one picture or more")
    found: list[str] = []
    for name in images:
        if not Path(name).exists():
            raise UserError(f"--image {name} is not there")
        files = [*scan(name).files()] if Path(name).is_dir() else [name]
        if not files:
            raise UserError(f"--image {name} is a folder without pictures")
        found += files
    return found


def answers(
    names: Sequence[Any], probabilities: Tensor, classes: Sequence[str], top: int, every: bool
) -> Iterator[dict[str, Any]]:
    """A row an image: file, class and probability, then those of the next ones up to `top`; `every` adds all by class."""
    found = probabilities.topk(min(top, len(classes)))
    for name, row, values, order in zip(names, probabilities, *found, strict=True):
        pairs = [(classes[i], p) for i, p in zip(order.tolist(), values.tolist(), strict=True)]
        keys = [("class", "probability"), *((f"class_{n}", f"probability_{n}") for n in range(2, len(pairs) + 1))]
        flat = {key: value for names, pair in zip(keys, pairs, strict=True) for key, value in zip(names, pair, strict=True)}
        yield {"file": name, **flat} | ({"probabilities": dict(zip(classes, row.tolist(), strict=True))} if every else {})
