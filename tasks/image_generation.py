"""Train and use a generator of images: ``python -m tasks.image_generation`` learns to write digits."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import commands
from tasks.commands import Command
from tasks.image_generation_use import (
    PROGRAM,
    EvaluateOptions,
    InpaintOptions,
    PictureOptions,
    SampleOptions,
    SamplingOptions,
    evaluate,
    inpaint,
    sample,
)
from tasks.options import OPTIMIZERS, EngineOptions, UserError, did_you_mean, option

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from torch import nn

    from tasks.generation_task import ImageGeneration


LOOKS, LOOKS_OF_FLOW = 17_500, 20_500
"""Images of an epoch, in whole passes. A flow's two epochs of fourteen passes over the digits come as near as the former default,
three of twelve at half the learning rate with a tenth of the labels hidden and DPM-Solver++, in about three quarters of the time,
with more images of their class."""
EPOCHS = {"flow": 2, "dcgan": 8, "wgan_gp": 8, "r3gan": 8}
"""Where they are not 3."""
LR = {("flow", "muon"): 0.004, ("wgan_gp", "adamw"): 0.0005, ("dcgan", "adamw"): 0.0005}
"""Peak learning rates by model and optimizer, where it is not 0.002."""


@dataclass
class TrainOptions(EngineOptions, SamplingOptions, PictureOptions):
    title, program = "image generation", PROGRAM
    model: str = option(
        "flow", "flow and ddpm (a U-Net), dit (a Transformer), r3gan, wgan_gp and dcgan (two networks that compete), vae"
    )
    unconditional: bool = option(False, "learn and make images without classes")
    label_dropout: float = option(
        None, "part of the labels that are hidden, for --guidance (default: 0.1 where that is given, else 0)", least=0, below=1
    )
    passes: float | None = option(
        None,
        "passes over the data in an epoch, such as 0.5 (default: as many whole ones as look at 17,500 images, of flow 20,500)",
        above=0,
        most=1000,
    )
    epochs: int = option(
        None, "epochs, after each of which images are measured (default: 3, of flow 2, of networks that compete 8)", least=1
    )
    batch_size: int = option(64, "images in an optimizer step", least=1)
    optimizer: str = option(None, "(default: muon; networks that compete have adamw alone)", OPTIMIZERS)
    lr: float = option(None, "peak learning rate (default: 0.002, of flow by muon 0.004, of wgan_gp and dcgan 0.0005)", above=0)
    ema: float = option(0.998, "decay of an exponential moving average of the weights; 0 is off", least=0, below=1)
    weight_decay: float = option(0.0, "on matrices and kernels only", least=0)
    warmup: float = option(0.2, "epochs in which the learning rate rises from zero", least=0)
    clip: float = option(None, "largest gradient norm; 0 is off (default: 1, of networks that compete 0)", least=0)
    beta2: float = option(0.99, "decay of the mean of squared gradients", least=0, below=1)
    judge: str = option("", "run of tasks.image_classification to measure with (default: one is trained on the same data)")

    def __post_init__(self) -> None:
        competing = self.model in ("dcgan", "wgan_gp", "r3gan")
        if competing and self.optimizer not in (None, "adamw"):
            raise UserError(f"--optimizer of {self.model} must be adamw, with decays that suit a contest, got {self.optimizer}")
        self.optimizer = self.optimizer or ("adamw" if competing else "muon")
        self.epochs = EPOCHS.get(self.model, 3) if self.epochs is None else self.epochs
        self.lr = LR.get((self.model, self.optimizer), 0.002) if self.lr is None else self.lr
        guided = self.guidance not in (None, 1)
        self.label_dropout = (0.1 if guided else 0.0) if self.label_dropout is None else self.label_dropout
        self.clip = (0.0 if competing else 1.0) if self.clip is None else self.clip
        super().__post_init__()


def train(given: dict[str, Any]) -> None:
    from tasks import runs

    def named(o: TrainOptions) -> str:
        return f"{o.model}-{Path(o.data.removeprefix('folder:')).name or 'folder'}-{time.strftime('%Y%m%d-%H%M%S')}"

    runs.train(TrainOptions, given, named, begin)


def begin(options: TrainOptions, folder: Path) -> tuple[ImageGeneration, nn.Module]:
    """Task and model. Errors: `UserError` and `ValueError` for whatever is wrong with options, data and judge."""
    import torch

    import zoo
    from tasks.data.images import load_images
    from tasks.generation_task import ImageGeneration
    from tasks.generators import GENERATORS, Diffusion
    from tasks.image_measures import NEIGHBOURS
    from tasks.judge import require_judge

    if options.model not in GENERATORS:
        near = did_you_mean(options.model, GENERATORS)
        raise UserError(f"--model {options.model} is unknown{near}; there are {', '.join(GENERATORS)}")
    if (kind := options.data.partition(":")[0]) in ("shards", "hf"):
        raise UserError(f"--data {kind}: is for image classification: give folder:PATH")
    generator = GENERATORS[options.model].given(options)
    if isinstance(generator, Diffusion):
        generator = replace(generator, hidden=options.label_dropout)
    data = load_images(options.data, Path(options.data_root), options.size, options.skip_bad)
    if len(data.train) <= NEIGHBOURS:
        raise UserError(f"--data {options.data} must have more than {NEIGHBOURS} training images, got {len(data.train)}")
    size, conditional = data.image_size, generator.conditional and not options.unconditional
    looks = LOOKS_OF_FLOW if options.model == "flow" else LOOKS
    options.passes = options.passes or min(1000, max(1, looks // len(data.train)))
    torch.manual_seed(options.seed)
    network = generator.network(size)
    model: Any = zoo.create(network, **generator.arguments(data.channels, size, len(data.classes) if conditional else None))
    if size % (multiple := getattr(model, "multiple", getattr(model, "factor", 1))):
        near = max(1, round(size / multiple)) * multiple
        raise UserError(f"--image_size must be a multiple of {multiple} for {network}, such as {near}, got {size}")
    model.config |= {
        "generation": generator.config(),
        "classes": data.classes if conditional else [],
        "image": [data.channels, size, size],
    }
    task = ImageGeneration(data, generator, model, options)
    if options.judge or (task.judge_folder / "summary.json").is_file():
        require_judge(task.judge_folder, data)
    whole = f"{len(data.train):,} train + {len(data.valid):,} valid + {len(data.test):,} test"
    shape = (
        f"{data.channels}x{size}x{size}, {len(data.classes)} classes{'' if conditional else ', of which the model is not told'}"
    )
    task.told = [
        *data.told,
        f"{options.data}: {whole} images of {shape}",
        f"{options.epochs} epochs of {options.passes:g} passes",
    ]
    return task, model


COMMANDS = {
    "train": Command(
        TrainOptions,
        "train a generator and leave a run in RUNS_DIR/NAME",
        train,
        "--data folder:photos --image_size 32 --model flow --name photos",
        "--data folder:{}",
    ),
    "sample": Command(
        SampleOptions, "make images", sample, "--name photos --classes 0-9 --out sheet.png --film film.gif", "--name {}"
    ),
    "inpaint": Command(
        InpaintOptions, "fill in what is missing of a picture", inpaint, "--image a.png --mask b.png --out c.png", "--image {}"
    ),
    "evaluate": Command(EvaluateOptions, "measure a saved generator", evaluate, "--name photos --steps 20", "--name {}"),
}


def main(argv: Sequence[str] | None = None) -> int:
    return commands.main(PROGRAM, COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
