"""Use a trained generator of images: sheets and films of what it makes, pictures filled in, measures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import tables
from tasks.commands import checking_input
from tasks.image_evaluation import ImageDataOptions
from tasks.options import Options, UserError, did_you_mean, option, restored
from tasks.saved import SavedOptions, find_run, placed

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from torch import Tensor

PROGRAM = "tasks.image_generation"
SIZES = {"digits": 8, "fashion_mnist": 28, "cifar10": 32, "cifar100": 32}
"""Pixels on a side that the sets have themselves."""
SAMPLERS = ("ddpm", "ddim", "dpm++", "euler", "heun")
MOST = 10_000
"""Images that --count asks for at most."""


@dataclass
class PictureOptions(ImageDataOptions):
    title = "data"
    image_size: int | None = option(
        None, "pixels; every image becomes a square (default: the set's own, 64 for folders)", least=1
    )
    flip: bool = option(False, "half of the images are mirrored")

    @property
    def size(self) -> int:
        return self.image_size or SIZES.get(self.data, 64)


@dataclass
class SamplingOptions(Options):
    title = "making images"
    sampler: str | None = option(None, "how an image comes out of noise (default: the model's own)", SAMPLERS)
    steps: int | None = option(
        None, "of the sampler, of which heun's ask the network twice (default: as often as the model's own)", least=1
    )
    guidance: float | None = option(None, "how much more an image is to be like its class: 1 is no more (default: the model's)")
    compile: bool = option(False, "make the network faster first, which takes a minute or so: for thousands of images")


@dataclass
class SampleOptions(SamplingOptions, SavedOptions):
    title, program = "images", PROGRAM
    classes: str = option("", "names of classes, or their numbers, such as 0-4,9 (default: all)")
    count: int = option(10, "images of each class; without classes, rows of ten", least=1, most=MOST)
    seed: int = option(0, "of the noise that they come from", least=0)
    out: str = option("samples.png", "PNG file with all of them, a row a class", path=True)
    film: str = option("", "GIF or WebP file that shows how they come out of noise", path=True)
    interpolate: bool = option(False, "each row goes from one noise to another, --count images far")
    neighbours: bool = option(False, "below each image the one most like it of those that were trained on")


@dataclass
class InpaintOptions(SamplingOptions, SavedOptions):
    title, program = "a picture", PROGRAM
    image: str = option("", "picture of which a part is missing", path=True)
    mask: str = option("", "picture that is white where it is missing", path=True)
    label: str = option("", "class of the picture, by name (default: none)")
    count: int = option(10, "ways to fill it in", least=1, most=MOST)
    seed: int = option(0, "of the noise that they come from", least=0)
    out: str = option("inpainted.png", "PNG file with the picture and all ways to fill it in", path=True)


@dataclass
class EvaluateOptions(SamplingOptions, SavedOptions):
    title, program = "measuring", PROGRAM
    judge: str = option("", "run of tasks.image_classification to measure with (default: the one of the training)")
    seed: int = option(0, "of the noise that images come from", least=0)


class Loaded:
    """A model that is there, how it was trained, and how it is to be used. Errors: `UserError` for what it cannot do."""

    def __init__(self, options: Any) -> None:
        import zoo
        from tasks.generators import known

        self.folder = find_run(options, "best.safetensors")
        model: Any = zoo.load(self.folder)
        self.generator = known(model).given(options)
        self.classes: list[str] = model.config.get("classes") or []
        self.shape: list[int] = model.config.get("image")
        self.noise_shape = self.generator.noise_shape(model, tuple(self.shape))
        self.model, self.precision = placed(model.eval(), options)
        self.device = next(self.model.parameters()).device
        if options.compile:
            self.require_diffusion("--compile")
        self.network: Any = None if options.compile else self.model

    def prepare(self, noise: Tensor) -> None:
        """For --compile: the network is optimized for so many images, or for as many as are made at a time."""
        import torch

        import zoo
        from tasks.generators import BATCH

        if self.network is None:
            with self.precision:
                half = torch.get_autocast_dtype(self.device.type) if torch.is_autocast_enabled(self.device.type) else None
            self.network = zoo.optimize(self.model, noise[:BATCH].to(self.device), half)

    def noise(self, count: int, seed: int) -> Tensor:
        import torch

        return torch.randn(count, *self.noise_shape, generator=torch.Generator().manual_seed(seed))

    def pictures(self, noise: Tensor, labels: Tensor | None, seed: int) -> Tensor:
        self.prepare(noise)
        with self.precision:
            return self.generator.pictures(self.network, noise, labels, seed)

    def require_diffusion(self, option: str) -> None:
        """Errors: `UserError` for a model that makes an image in a single step."""
        if not hasattr(self.generator, "stream"):
            raise UserError(f"{option} is for models that take noise away step by step, {self.folder} is none")


@checking_input()
def sample(given: dict[str, Any]) -> None:
    import torch

    from tasks import sheets
    from tasks.generators import as_bytes
    from tasks.image_measures import nearest_pictures

    options = SampleOptions(**given)
    tables.require_writable("--out", options.out, [".png"])
    tables.require_writable("--film", options.film, [*sheets.FILMS])
    found = Loaded(options)
    if options.film:
        found.require_diffusion("--film")
    chosen, rows, wide = layout(found.classes, options.classes, options.count)
    labels = torch.tensor(chosen).repeat_interleave(wide) if chosen else None
    noise = found.noise(rows * wide, options.seed)
    if options.interpolate:
        ends = found.noise(2 * rows, options.seed)
        noise = torch.cat([between(one, other, wide) for one, other in zip(ends[::2], ends[1::2], strict=True)])
    known = training_data(found.folder)[1].train.pixels if options.neighbours else None
    images = found.pictures(noise, labels, options.seed)
    shown = list(images.split(wide))
    if known is not None:
        close, apart = nearest_pictures(images, known)
        shown = sheets.beside(images, close, wide)
        print(f"{int((apart == 0).sum())} of {len(images)} images are copies of images that were trained on")
    sheets.write(Path(options.out), shown)
    print(f"{options.out}: {len(images)} images" + (f" of {', '.join(found.classes[n] for n in chosen)}" if chosen else ""))
    if options.film:
        with torch.inference_mode(), found.precision:
            given_labels = None if labels is None else labels.to(found.device)
            steps = found.generator.stream(found.network, noise.to(found.device), given_labels, options.seed)
            scenes = [as_bytes(noise), *(as_bytes(step.images) for step in steps)]
        sheets.film(Path(options.film), [scene.split(wide) for scene in scenes])
        print(f"{options.film}: {len(scenes)} pictures")


@checking_input()
def inpaint(given: dict[str, Any]) -> None:
    import torch

    from tasks import sheets
    from tasks.generators import Holding, as_bytes, as_values

    options = InpaintOptions(**given)
    tables.require_writable("--out", options.out, [".png"])
    found = Loaded(options)
    found.require_diffusion("inpaint")
    for name in ("image", "mask"):
        if not getattr(options, name) or not Path(getattr(options, name)).is_file():
            raise UserError(f"--{name}: give a picture, got {getattr(options, name) or 'none'!r}")
    labels = None
    if found.classes and not options.label and not found.generator.hidden:
        raise UserError(f"--label: give a class of the picture, for {found.folder} was trained with every label")
    if options.label or found.generator.guidance != 1:
        labels = torch.tensor(numbers(options.label, found.classes)).repeat(options.count)[: options.count]
    image, mask = (read(getattr(options, name), found.shape) for name in ("image", "mask"))
    missing = mask.float().mean(0) > 127.5
    if bool(missing.all()) or not bool(missing.any()):
        raise UserError(f"--mask {options.mask} must be white where the picture is missing, and black elsewhere")
    here = as_values(image).to(found.device), ~missing.to(found.device)
    noise = found.noise(options.count, options.seed).to(found.device)
    found.prepare(noise)
    network = Holding(found.network, found.generator.path, *here)
    with torch.inference_mode(), found.precision:
        labels = None if labels is None else labels.to(found.device)
        filling = as_bytes(found.generator.images(network, noise, labels, options.seed))
    filled = torch.where(missing, filling, image)
    sheets.write(Path(options.out), [torch.stack([image, torch.where(missing, 128, image).to(torch.uint8)]), *filled.split(10)])
    print(f"{options.out}: the picture, what is known of it, and {len(filled)} ways to fill it in")


@checking_input()
def evaluate(given: dict[str, Any]) -> None:
    from tasks import inception_distance
    from tasks.data import spread
    from tasks.generation_task import MEASURED, told
    from tasks.judge import Judge, judge_folder

    options = EvaluateOptions(**given)
    found = Loaded(options)
    trained, data = training_data(found.folder)
    name = options.judge or trained_on(found.folder).get("judge", "")
    judge = Judge(judge_folder(Path(options.runs_dir), name, trained.data, data.image_size), data)
    chosen = spread(len(data.train), MEASURED)
    labels = data.train.labels[chosen] if found.classes else None
    images = found.pictures(found.noise(len(chosen), options.seed), labels, options.seed)
    real = data.train.pixels[chosen]
    measured = judge.measure(judge.look(real), images, labels)
    how = f" by {found.generator.steps} steps of {found.generator.sampler}" if hasattr(found.generator, "steps") else ""
    print(f"{found.folder}, {len(images):,} images{how}: {told(measured)}; judge {judge.folder}", flush=True)
    print(inception_distance.told(real, images, found.device))


def trained_on(folder: Path) -> dict[str, Any]:
    from zoo import files

    return files.read_json(folder / "options.json")


def training_data(folder: Path) -> tuple[PictureOptions, Any]:
    """What a run was trained on, and its options. Errors: `UserError` and `DataError` where it is gone, or has changed."""
    from tasks.data.images import load_images
    from tasks.options import data_of

    kept = trained_on(folder)
    options: PictureOptions = restored(PictureOptions, kept, folder)
    data = load_images(options.data, Path(options.data_root), options.size, options.skip_bad)
    if (data_of(kept) or {}).get("train") != data.identity()["train"]:
        raise UserError(f"{options.data} is not what {folder} was trained on: it has changed")
    return options, data


def layout(classes: Sequence[str], text: str, count: int) -> tuple[list[int], int, int]:
    """Which classes a sheet shows, its rows, and how many images are in each. Errors: those of `numbers`."""
    chosen = numbers(text, classes)
    wide = count if chosen else 10
    return chosen, len(chosen) or -(-count // wide), wide


def numbers(text: str, classes: Sequence[str]) -> list[int]:
    """Which classes a text means: names, numbers from 0 and ranges of numbers; all of them where it is empty.

    Errors: `UserError` for others, and for classes of a model that knows none.
    """
    if not classes:
        if text:
            raise UserError(f"--classes {text}: the model was trained without classes")
        return []
    return (
        [*dict.fromkeys(n for part in text.split(",") for n in meant(part.strip(), classes))] if text else [*range(len(classes))]
    )


def meant(part: str, classes: Sequence[str]) -> Iterator[int]:
    if part in classes:
        yield classes.index(part)
    elif found := re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part):
        first, last = int(found[1]), int(found[2] or found[1])
        if not first <= last < len(classes):
            raise UserError(f"--classes {part}: classes are numbered from 0 to {len(classes) - 1}")
        yield from range(first, last + 1)
    else:
        raise UserError(f"--classes {part!r} is no class{did_you_mean(part, classes)}; there are {', '.join(classes)}")


def between(one: Tensor, other: Tensor, count: int) -> Tensor:
    """(count, ...): along the great circle from one noise to the other, which keeps its variance."""
    import torch

    share = torch.linspace(0, torch.pi / 2, count).view(-1, *[1] * one.ndim)
    return share.cos() * one + share.sin() * other


def read(path: str, shape: Sequence[int]) -> Tensor:
    """A picture as uint8 (c, y, x) of the model's size."""
    from tasks.data.images import read_pictures
    from zoo import Preprocess

    channels, size = shape[0], shape[1]
    return read_pictures([path], Preprocess(size, (0.0,) * channels, (1.0,) * channels))[0]
