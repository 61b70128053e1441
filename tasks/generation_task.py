"""What image generation is to the engine: noisy images, the loss, and how near generated images are to real ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import zoo
from tasks import commands, plots, sheets
from tasks.data import epoch_order, generator_of, spread
from tasks.data.images import ImageData
from tasks.generators import Diffusion, Generative, Turn, as_values
from tasks.image_measures import NEIGHBOURS, nearest_pictures
from tasks.judge import Judge, Seen, judge_folder, train_judge
from tasks.saved import placed
from tasks.task import Metric, Split, Task

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from tasks.engine import Run
    from tasks.image_generation import TrainOptions
    from tasks.options import EngineOptions

WATCHED, MEASURED = 512, 2000
"""Images that are made to measure, after every epoch and at the end."""
SHOWN = 10
"""Images of each class on a sheet."""


class ImageGeneration(Task):
    """The losses of a generator, and how near what it makes is to real images.

    What is drawn for an image, and which labels are hidden, is a function of (seed, epoch, image), as in `tasks.data.augment`.
    """

    unit = "images"
    primary = Metric("frechet_distance", lower_is_better=True)
    channels_last = True

    def __init__(self, data: ImageData, generator: Generative, model: Any, options: TrainOptions) -> None:
        self.data, self.generator, self.options = data, generator, options
        self.by_methods = generator.by_methods
        self.noise_shape = generator.noise_shape(model, tuple(data.train.pixels.shape[1:]))
        self.conditional = bool(model.config["classes"])
        self.hidden = options.label_dropout if isinstance(generator, Diffusion) else 0.0
        self.judge_folder = judge_folder(Path(options.runs_dir), options.judge, options.data, data.image_size)
        self.seen: tuple[Judge, Seen] | None = None
        self.most_covered = 0.0
        self.looks = max(1, round(len(data.train) * (options.passes or 1)))
        self.train = Split(self.looks, self.shuffled, lambda n, epoch: self.batch(data.train, n, "train", epoch))
        self.valid = Split(len(data.valid), self.in_order, lambda n, epoch: self.batch(data.valid, n, "valid", 0))
        self.identity = data.identity()

    def shuffled(self, epoch: int) -> Sequence[Tensor]:
        """Epochs go on where the last one stopped in a pass. Image i is i + size in the second pass that an epoch looks at."""
        size, begin = len(self.data.train), epoch * self.looks
        first, last = begin // size, (begin + self.looks - 1) // size
        orders = [epoch_order(size, self.options.seed, n) + (n - first) * size for n in range(first, last + 1)]
        return torch.cat(orders)[begin - first * size :][: self.looks].split(self.options.batch_size)

    def in_order(self, epoch: int) -> Sequence[Tensor]:
        return torch.arange(len(self.data.valid)).split(max(64, self.options.batch_size))

    def batch(self, split: Any, indices: Tensor, role: str, epoch: int) -> tuple[Tensor, ...]:
        """Images from -1 to 1, their labels, and what is drawn for each; a hidden label is the number of classes."""
        within = indices % len(split)
        images, labels, drawn = as_values(split.pixels[within]), split.labels[within].clone(), []
        for n, index in enumerate(indices.tolist()):
            g = generator_of("noise", self.options.seed, role, epoch, index)
            drawn.append(self.generator.draw(self.noise_shape, g))
            hide, flip = torch.rand(2, generator=g).tolist()
            if role == "train" and hide < self.hidden:
                labels[n] = len(self.data.classes)
            if role == "train" and self.options.flip and flip < 0.5:
                images[n] = images[n].flip(-1)
        return images, labels, *(torch.stack(parts) for parts in zip(*drawn, strict=True))

    def units(self, batch: Any) -> int:
        return len(batch[1])

    def parts(self, model: Any) -> dict[str, nn.Module]:
        return self.generator.parts(model)

    def losses(self, model: nn.Module, batch: Any) -> Iterator[Turn]:
        images, labels, *drawn = batch
        return self.generator.losses(model, images, labels if self.conditional else None, *drawn)

    def optimizer(self, part: str, module: nn.Module, options: EngineOptions) -> Optimizer:
        if self.generator.beta1 == 0.9:
            return super().optimizer(part, module, options)
        betas = self.generator.beta1, options.beta2
        return torch.optim.AdamW(module.parameters(), options.lr, betas, weight_decay=options.weight_decay, fused=True)

    # ------------------------------------------------------------------------------------------ what comes out of noise

    def keep(self, folder: Path) -> None:
        """Trains the classifier to measure with, where there is none yet."""
        if not (self.judge_folder / "summary.json").is_file() and not self.options.judge:
            train_judge(self.judge_folder, self.options, self.data)
        self.judged()

    def judged(self) -> tuple[Judge, Seen]:
        """The judge, and what it sees in real images."""
        if self.seen is None:
            judge = Judge(self.judge_folder, self.data)
            self.seen = judge, judge.look(self.data.train.pixels[spread(len(self.data.train), MEASURED)])
        return self.seen

    def drawn(self, model: Any, count: int) -> tuple[Tensor, Tensor | None]:
        """So many images, and the labels that they were made for, those of real ones; the same noise every time."""
        labels = self.data.train.labels[spread(len(self.data.train), count)]
        noise = torch.randn(len(labels), *self.noise_shape, generator=generator_of("samples", self.options.seed))
        given = labels if self.conditional else None
        return self.generator.pictures(model, noise, given, self.options.seed), given

    def score(self, model: Any) -> dict[str, float]:
        judge, real = self.judged()
        found = judge.measure(real, *self.drawn(model, WATCHED))
        self.most_covered = max(self.most_covered, found["coverage"])
        if found["coverage"] < self.most_covered / 2 and commands.first_process():
            print(f"coverage has fallen from {self.most_covered:.2f} to {found['coverage']:.2f}: the images become all alike")
        return found

    def report(self, run: Run, summary: dict[str, Any]) -> dict[str, Any]:
        """Measures of the best model beside those of the test set, sheets of its images, how near they are to real ones."""
        options: Any = self.options
        model, precision = placed(zoo.load(run.folder / "best.safetensors"), options)
        judge, real = self.judged()
        with precision:
            images, labels = self.drawn(model, MEASURED)
        found = judge.measure(real, images, labels)
        test = self.data.test
        chosen = spread(len(test), MEASURED)
        floor = judge.measure(real, test.pixels[chosen], test.labels[chosen]) if len(test) > NEIGHBOURS else {}
        rows = sheets.rows(images, labels, SHOWN)
        sheets.write(run.folder / "samples.png", rows)
        first = torch.cat(rows)
        close, apart = nearest_pictures(first, self.data.train.pixels)
        sheets.write(run.folder / "neighbours.png", sheets.beside(first, close, SHOWN))
        for note in plots.curves(run.history, run.folder / "curves.png", self.primary):
            print(note)
        copies = int((apart == 0).sum())
        print(f"test {told(found)}; {len(test):,} real test images: {told(floor) or 'too few to measure'}")
        print(f"{copies} of {len(first)} images shown are copies of training images; the others are beside their nearest ones")
        print(f"{summary['seconds']:.1f} s of training; see {run.folder}")
        measured = {f"test_{name}": value for name, value in found.items()} | {f"real_{name}": x for name, x in floor.items()}
        return measured | {"images_measured": len(images), "judge": str(self.judge_folder)}


def told(found: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in found.items())
