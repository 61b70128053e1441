"""Measure a trained image classifier on data of the same classes, which are found by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tasks import tables
from tasks.commands import checking_input
from tasks.image_predictions import UseOptions, answers, load_classifier, model_path
from tasks.options import Options, UserError, data_of, option, restored
from tasks.saved import INTEGERS, SavedOptions


@dataclass
class ImageDataOptions(Options):
    title = "data"
    data: str = option(
        "digits",
        "digits, fashion_mnist, cifar10, cifar100, folder:PATH with PATH/train/CLASS/images, shards:PATH with .tar or .parquet "
        "files, such as shards:PATH/train-{000..009}.tar, or hf:NAME of the Hugging Face hub, of which no pictures stay on disk",
    )
    columns: str = option("", "of Parquet files and the hub, the columns of pictures and classes, such as image,label")
    data_root: str = option(
        "data", "folder with the files of fashion_mnist and cifar, which are fetched there if there is a network", path=True
    )
    image_size: int | None = option(
        None, "pixels; every image becomes a square (default: 32, and 224 for folders, or what a trained model has had)", least=1
    )
    skip_bad: bool = option(False, "go on without unreadable images, and count them")


@dataclass
class EvaluateOptions(ImageDataOptions, UseOptions, SavedOptions):
    title = "measuring"
    data: str = option("", "as for train (default: the test split of what the run was trained on)")
    batch_size: int = option(256, "images at a time", least=1)
    per_class: bool = option(False, "a line for each class too: recall, precision, F1")
    output: str = option("", f"write what was said of each image into this {tables.FILES}", path=True)
    all: bool = option(False, "into --output, the probabilities of all classes")


@checking_input()
def evaluate(given: dict[str, Any]) -> None:
    from tasks.classes import scores, table
    from tasks.data.images import load_test
    from tasks.data.tree import printable
    from tasks.image_scores import measure

    options = EvaluateOptions(**given)
    tables.require_table("--output", options.output)
    if options.all and not options.output:
        raise UserError("--all is about --output: give that too")
    path = model_path(options)
    model, context, preprocess, classes = load_classifier(path, options)
    if options.image_size:
        preprocess = replace(preprocess, image_size=options.image_size, resize=None)
    trained, kept = trained_on(path)
    source = options.data or trained.data
    root = given.get("data_root") or trained.data_root
    own = bool(kept) and same_source(source, trained.data)
    skip_bad = options.skip_bad or (own and trained.skip_bad)
    columns = options.columns or (trained.columns if own else "")
    images, found, told = load_test(source, Path(root), preprocess, classes, skip_bad, own, columns=columns)
    then = (data_of(kept) or {}).get("test", {}).get("fingerprint")
    if own and then is not None and then != images.fingerprint:
        told.append("the test images are not what they were in training: the folder has changed")
    if own and "about" not in kept and (source == "digits" or source.startswith("folder:")):
        told.append("the run is of an older version, which may have split otherwise: it may have trained on some of these")
    with tables.writing(options.output) as write:
        print(*told, sep="\n", end="\n" if told else "")
        measured = measure(model, context, images, options.batch_size)
        said = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in scores(measured).items())
        of = "" if len(found) == len(classes) else f", which have {len(found)} of the model's {len(classes)} classes"
        print(f"{path}: test {said} on {len(images):,} images of {source}{of}")
        if options.per_class:
            print(*table(measured, classes), sep="\n")
        names = [printable(name) for name in images.names] or [*range(len(images))]
        true = [classes[label] for label in images.labels.tolist()]
        rows = answers(names, measured.logs.exp(), classes, 1, options.all)
        key = "file" if images.names else "index"
        write({key: row.pop("file"), "true": t} | row for row, t in zip(rows, true, strict=True))


def trained_on(path: Path) -> tuple[ImageDataOptions, dict[str, Any]]:
    """The data options of the run that left a model, and all that its options.json holds, if it has one."""
    from zoo import files

    folder = path if path.is_dir() else path.parent
    folder = folder.parent if folder.name == INTEGERS and not (folder / "options.json").exists() else folder
    kept = files.read_json(folder / "options.json") if (folder / "options.json").exists() else {}
    return restored(ImageDataOptions, kept, folder), kept


def same_source(one: str, other: str) -> bool:
    (kind, _, place), (other_kind, _, other_place) = one.partition(":"), other.partition(":")
    both = kind == other_kind in ("folder", "shards")
    return one == other or (both and len({Path(path).expanduser().resolve() for path in (place, other_place)}) == 1)
