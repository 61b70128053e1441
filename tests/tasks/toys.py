"""Toy tasks and networks in float64, on which equal is equal to rounding."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import zoo
from tasks.data import epoch_order
from tasks.engine import Run
from tasks.options import EngineOptions
from tasks.task import Split, Task


class Sentences(Task):
    """Regression whose units, like tokens, differ between examples: example i counts for its length."""

    unit = "sentences"

    def __init__(self, size: int = 11, valid_size: int = 5) -> None:
        draw = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(size + valid_size, 3, generator=draw, dtype=torch.float64)
        self.targets = torch.randn(size + valid_size, 2, generator=draw, dtype=torch.float64)
        self.lengths = torch.randint(1, 9, (size + valid_size,), generator=draw)
        self.train = Split(size, lambda epoch: epoch_order(size, 0, epoch).split(4), lambda i, epoch: self.examples(i))
        self.valid = Split(valid_size, lambda epoch: torch.arange(valid_size).split(64), lambda i, epoch: self.examples(i + size))

    def examples(self, indices):
        return self.inputs[indices], self.targets[indices], self.lengths[indices]

    def units(self, batch):
        return int(batch[2].sum())

    def loss(self, model, batch):
        inputs, targets, lengths = batch
        errors = (model(inputs) - targets).square().mean(-1)
        return (errors * lengths).sum(), {"accuracy": ((errors < 1) * lengths).sum()}


def network(*middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), *middle, nn.Tanh(), nn.Linear(8, 2)).double()


class Grids(Sentences):
    """The same with inputs (b, c, y, x), for convolutions and their norms."""

    channels_last = True

    def examples(self, indices):
        inputs, targets, lengths = super().examples(indices)
        ramp = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(4, 4)
        return inputs[:, :, None, None] * ramp, targets, lengths


def grid_network(*end: nn.Module, mean: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    stem, norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
    nn.init.constant_(stem.bias, mean)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return nn.Sequential(stem, norm, nn.Conv2d(4, 2, 3), *end, nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()


class Pair(nn.Module):
    """A generator of the first two inputs' kind from the third, and what tells its points from real ones."""

    def __init__(self, *middle: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.generator = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 2)).double()
        self.discriminator = nn.Sequential(nn.Linear(2, 6), *middle, nn.Tanh(), nn.Linear(6, 1)).double()
        self.config = {"model": "toy", "arguments": {}}


class Adversaries(Sentences):
    """A GAN: the discriminator's step, then the generator's against the discriminator that has moved."""

    unit = "points"

    def units(self, batch):
        return len(batch[0])

    def parts(self, model):
        return {"discriminator": model.discriminator, "generator": model.generator}

    def optimizer(self, part, module, options):
        if part == "generator":
            return torch.optim.Adam(module.parameters(), lr=options.lr / 2, betas=(0.5, 0.999))
        return super().optimizer(part, module, options)

    def losses(self, model, batch):
        real, fake = batch[0][:, :2], model.generator(batch[0][:, 2:])
        told, guessed = model.discriminator(real), model.discriminator(fake.detach())
        yield (
            "discriminator",
            F.softplus(-told).sum() + F.softplus(guessed).sum(),
            {"accuracy": ((told > 0).sum() + (guessed < 0).sum()) / 2},
        )
        yield "generator", F.softplus(-model.discriminator(fake)).sum(), {}


def main(words: list[str]) -> int:
    """In one process or several: a few "steps" of two toys and an evaluation, or "fit" a GAN, where it was stopped if it was."""
    what, folder = words[0], Path(words[1])
    folder.mkdir(parents=True, exist_ok=True)
    if what == "fit":
        options = EngineOptions(device="cpu", accumulate=2, ema=0.9, epochs=3, checkpoint_every=2)
        zoo.MODELS["toy"] = lambda: Pair(nn.Dropout(0.2))  # `zoo.save` takes what `zoo.create` could build
        run = Run(Adversaries(), zoo.create("toy"), options, folder)
        run.restore()
        run.fit()
        return 0
    options = EngineOptions(device="cpu", accumulate=2, ema=0.9, clip=1.0, warmup=0)
    # a mean far from zero, where a mean of squares less a squared mean would lose its digits
    toys = {
        "grids": (Grids(valid_size=131), grid_network(mean=1e3), 11),
        # batches of five, for one point alone has no variance
        "pair": (Adversaries(), Pair(nn.Unflatten(1, (6, 1, 1)), nn.BatchNorm2d(6), nn.Flatten()), 10),
    }
    for name, (task, model, size) in toys.items():
        run = Run(task, model, options, folder / name)
        rows = [run.train_step(indices) for _ in range(2) for indices in torch.arange(size).split(5)]
        run.sums = {f"step {n + 1}": row for n, row in enumerate(rows)} | {"evaluation": run.evaluate()}
        if run.main:
            run.folder.mkdir()
        run.save()
    return 0
