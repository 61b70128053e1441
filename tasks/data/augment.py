"""What training makes of images: moved, recoloured, erased, mixed.

What becomes of a sample is a pure function of (seed, epoch, index): it does not depend on the batch, the process or what was
drawn before, so a resumed or distributed run sees the same pixels.
"""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import pi
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.data import DataError, generator_of, seed_of
from zoo.pretrained.preprocess import normalise

if TYPE_CHECKING:
    from tasks.data.images import Images


@dataclass(frozen=True)
class Warp:
    """Ranges of the random affine map of a sample: shift as a part of the size, rotation in degrees, scale around 1."""

    shift: float = 0.0
    rotation: float = 0.0
    scale: float = 0.0
    flip: bool = False


WARPS = {
    "shift": Warp(shift=0.125),
    "flip": Warp(shift=0.125, flip=True),
    "affine": Warp(shift=0.06, rotation=10, scale=0.1),
}
MOVES = ("none", *WARPS, "crop")
"""Where the pixels go: one of these, "crop" is a random resized crop and a flip."""
POLICIES = ("randaugment", "trivialaugment")
"""What else is done to them: torchvision's, with their defaults."""


class Mix(NamedTuple):
    """Which other sample comes in, how much of the own one is left, and for CutMix the box (x1, y1, x2, y2) that it fills."""

    partner: int
    share: float
    box: tuple[int, int, int, int] | None


@dataclass(frozen=True)
class Augmented:
    """Training batches of `images`, the `batch` of a task's split.

    augment: one of `MOVES`, one of `POLICIES`, or one of each, as in "crop,randaugment".
    erasing: probability of a random rectangle of a normalised image becoming zero.
    mixup, cutmix: parameter alpha of the Beta law of the shares, 0 is off; with both, a coin decides for each sample.
    Proven against torchvision's v2 transforms under the same seeds.
    Errors: `DataError` for another augment, and for an alpha that no number of 32 bits could draw.
    """

    images: Images
    augment: str = "none"
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        split_names(self.augment)
        for name in ("mixup", "cutmix"):
            alpha = getattr(self, name)
            if alpha and not 1e-6 <= alpha <= 1e6:
                raise DataError(f"{name} must be 0, or from 0.000001 to 1000000, got {alpha}")

    def __call__(self, indices: Tensor, epoch: int) -> tuple[Tensor, ...]:
        """Images (b, c, y, x), float32 and normalised, and labels (b,); of mixed ones also the labels (b,) of their partners and
        the shares (b,) of their own."""
        labels = self.images.labels
        if not (self.mixup or self.cutmix):
            return self.augmented(indices, epoch), labels[indices]
        drawn = [self.drawn(index, epoch) for index in indices.tolist()]
        partners = torch.tensor([one.partner for one in drawn], dtype=torch.int64)
        both, inverse = torch.cat([indices, partners]).unique(return_inverse=True)
        images = self.augmented(both, epoch)[inverse]
        mixed = [mix(image, other, one) for image, other, one in zip(*images.tensor_split(2), drawn, strict=True)]
        shares = torch.tensor([one.share for one in drawn])
        whole = torch.stack(mixed) if mixed else images
        return whole, labels[indices], labels[partners], shares

    def augmented(self, indices: Tensor, epoch: int) -> Tensor:
        move, policy = split_names(self.augment)
        pixels = self.images.pixels[indices]
        if (change := recolouring(move, policy, pixels.shape[-1])) is not None:
            for n, index in enumerate(indices.tolist()):
                with seeded("augment", self.seed, epoch, index):
                    pixels[n] = change(pixels[n])
        images = pixels.float().div_(255)
        if move in WARPS:
            images = warp(images, draws(len(self.images), self.seed, epoch)[indices], WARPS[move])
        images = normalise(images, self.images.mean, self.images.std)
        if self.erasing:
            erase = eraser(self.erasing)
            for n, index in enumerate(indices.tolist()):
                with seeded("erasing", self.seed, epoch, index):
                    images[n] = erase(images[n])
        return images

    def drawn(self, index: int, epoch: int) -> Mix:
        """How a sample is mixed. Shares and boxes are drawn as torchvision does it, partners from the whole set."""
        rows, columns = self.images.pixels.shape[-2:]
        with seeded("partner", self.seed, epoch, index):
            partner = int(torch.randint(len(self.images), ()))
            cut = self.cutmix > 0 and (not self.mixup or bool(torch.rand(()) < 0.5))
        with seeded("mix", self.seed, epoch, index):
            alpha = torch.tensor([self.cutmix if cut else self.mixup])
            share = torch.distributions.Beta(alpha, alpha).sample().item()
            if not cut:
                return Mix(partner, share, None)
            x, y = int(torch.randint(columns, (1,))), int(torch.randint(rows, (1,)))
        half = 0.5 * math.sqrt(1 - share)
        right, down = int(half * columns), int(half * rows)
        box = (max(x - right, 0), max(y - down, 0), min(x + right, columns), min(y + down, rows))
        return Mix(partner, 1 - (box[2] - box[0]) * (box[3] - box[1]) / (columns * rows), box)


def split_names(augment: str) -> tuple[str, str]:
    """A move, and a policy or "". Errors: `DataError` for anything else."""
    names = [name.strip() for name in augment.split(",")]
    move = [name for name in names if name in MOVES]
    policy = [name for name in names if name in POLICIES]
    if wrong := [name for name in names if name not in (*MOVES, *POLICIES)]:
        near = difflib.get_close_matches(wrong[0], (*MOVES, *POLICIES), n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        raise DataError(
            f"augment must be one of {', '.join(MOVES)}, and after a comma {' or '.join(POLICIES)}, got {augment!r}{hint}"
        )
    if len(move) > 1 or len(policy) > 1 or (move == ["none"] and policy):
        raise DataError(f"augment takes one of {', '.join(MOVES[1:])} and one of {', '.join(POLICIES)}, or none, got {augment!r}")
    return (move or ["none"])[0], (policy or [""])[0]


def recolouring(move: str, policy: str, size: int) -> Callable[[Tensor], Tensor] | None:
    """What is done to the bytes (c, y, x) of one sample, in the order of torchvision's presets, or None."""
    if move != "crop" and not policy:
        return None
    from torchvision.transforms import v2

    crop = [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()] if move == "crop" else []
    more = {"randaugment": [v2.RandAugment], "trivialaugment": [v2.TrivialAugmentWide]}.get(policy, [])
    return v2.Compose([*crop, *(make() for make in more)])


def eraser(probability: float) -> Callable[[Tensor], Tensor]:
    from torchvision.transforms import v2

    return v2.RandomErasing(probability)


@contextlib.contextmanager
def seeded(*where: int | str) -> Iterator[None]:
    """What draws from torch's own generator on the CPU, as torchvision does, draws from the one of this place."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(*where))
        yield


@lru_cache(2)
def draws(size: int, seed: int, epoch: int) -> Tensor:
    """The five numbers of every sample's warp."""
    return torch.rand(size, 5, generator=generator_of("augment", seed, epoch))


def mix(image: Tensor, other: Tensor, drawn: Mix) -> Tensor:
    """Both (c, y, x): MixUp (Zhang et al., 2018, arXiv 1710.09412) or CutMix (Yun et al., 2019, arXiv 1905.04899)."""
    if drawn.box is None:
        return (other * (1 - drawn.share)).add_(image * drawn.share)
    left, top, right, bottom = drawn.box
    mixed = image.clone()
    mixed[:, top:bottom, left:right] = other[:, top:bottom, left:right]
    return mixed


def warp(images: Tensor, drawn: Tensor, ranges: Warp) -> Tensor:
    """Sample each image through its own affine map; `drawn` (b, 5) in [0, 1) picks shifts, angle, scale and flip."""
    a = ranges
    down, right, turn, grow, flip = (drawn[:, i, None, None] * 2 - 1 for i in range(5))
    angle, scale = turn * (a.rotation * pi / 180), 1 + grow * a.scale
    mirror = torch.where(flip < 0, -1.0, 1.0) if a.flip else torch.ones_like(flip)
    rows, columns = images.shape[-2:]
    y = torch.linspace(-1 + 1 / rows, 1 - 1 / rows, rows)[:, None]
    x = torch.linspace(-1 + 1 / columns, 1 - 1 / columns, columns)
    # element by element, not by a matrix product, whose last bits may depend on the size of the batch
    from_y = (angle.cos() * y - angle.sin() * x) / scale + 2 * a.shift * down
    from_x = (angle.sin() * y + angle.cos() * x) / scale * mirror + 2 * a.shift * right
    return F.grid_sample(images, torch.stack([from_x, from_y], -1), align_corners=False)
