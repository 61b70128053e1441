"""Samplers of diffusion models and of flows: from noise to images, step by step.

A network is called as network(images (b, ...), times (b,), classes (b,) or None) and predicts, (b, ...), what its `Schedule`
says. Times are int64 of a diffusion, of a flow float32 or the images' float64. It should be in evaluation mode.

    "ddpm":  Ho et al., 2020 (arXiv 2006.11239): ancestral, noise at each step, with the smaller of their two variances.
    "ddim":  Song et al., 2020 (arXiv 2010.02502): deterministic at eta 0, "ddpm" at eta 1.
    "dpm++": DPM-Solver++ (2M) of Lu et al., 2022 (arXiv 2211.01095), of second order at one call a step. The last step is of
             first order where it ends without noise or there are less than 15 steps, as in their code.
    "euler", "heun": of first and second order, on the ordinary differential equation of Karras et al., 2022 (arXiv 2206.00364),
             in sigma / alpha, and of a flow, in its time. "heun" calls twice a step, but once where one end is without a slope:
             the last step where it ends without noise, and a diffusion's first where no image is left.

Euler's steps and those of "ddim" at eta 0 are the same in exact arithmetic. Proven against the schedulers of diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from layers.checks import require, require_axes
from zoo.generation.diffusion import Schedule, require_one_of

SAMPLERS = ("ddpm", "ddim", "dpm++", "euler", "heun")
SPACINGS = ("leading", "trailing", "linspace")
FINALS = ("zero", "first")
FEW = 15
"""With fewer steps DPM-Solver++ ends with one of first order: Lu et al.'s code."""

Network = Callable[[Tensor, Tensor, Any], Tensor]


class Level(NamedTuple):
    """A time, and how much of the image and of the noise there is then."""

    time: float
    alpha: float
    sigma: float


class Step(NamedTuple):
    """What a step leaves: the time at which the network was asked, (b, ...) images, and what it thought they would become."""

    time: float
    images: Tensor
    predicted: Tensor


def spaced(schedule: Schedule, steps: int, spacing: str = "trailing") -> Sequence[float]:
    """The times at which a network is asked, falling. Lin et al., 2023, table 2, for n times of training, counted from 0:

    "trailing": n - 1, and on down in steps of n / steps, not to 0; "leading": up from 0 in steps of n / steps, not to n - 1;
    "linspace": from n - 1 to 0. A diffusion's are rounded, "leading" ones down. A flow's times are one more, and not rounded.
    """
    require(steps > 0, "steps", steps, "positive")
    require(steps <= schedule.steps, "steps", steps, f"at most the {schedule.steps} that were trained")
    require_one_of(SPACINGS, "spacing", spacing)
    n = schedule.steps
    if spacing == "trailing":
        times = [n - Fraction(n * k, steps) - 1 for k in range(steps)]
        whole = [round(time + 1) - 1 for time in times]  # of a half, as where times are counted from 1
    elif spacing == "leading":
        times = [Fraction(n * k, steps) for k in reversed(range(steps))]
        whole = [math.floor(time) for time in times]
    else:
        times = [n - 1 - Fraction((n - 1) * k, max(steps - 1, 1)) for k in range(steps)]
        whole = [round(time) for time in times]
    return [float(time + 1) for time in times] if schedule.flow else whole


def levels(schedule: Schedule, steps: int, spacing: str = "trailing", final: str = "zero") -> list[Level]:
    """The steps + 1 levels that a sampler goes through, noise first. `final`: that of the last, at which no network is asked.

    "zero": no noise is left; "first": the schedule's own level at the first time of training.
    """
    times = spaced(schedule, steps, spacing)
    require_one_of(FINALS, "final", final)
    exact = torch.tensor(times, dtype=torch.float64 if schedule.flow else torch.long)
    found = [Level(*values) for values in zip(times, *(level.tolist() for level in schedule.levels(exact)), strict=True)]
    first = Level(1 if schedule.flow else 0, float(schedule.alpha[0]), float(schedule.sigma[0]))
    return [*found, first if final == "first" else Level(0, 1.0, 0.0)]


class Predictor:
    """Asks a network for the image and the noise in (b, ...) at a level, with guidance and clipping."""

    def __init__(
        self, network: Network, schedule: Schedule, classes: Any, guidance: float, negative: Any, clip: float | None
    ) -> None:
        self.network, self.schedule, self.guidance, self.clip = network, schedule, guidance, clip
        self.classes, self.negative = classes, negative

    def __call__(self, images: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        whole = torch.promote_types(images.dtype, torch.float32) if self.schedule.flow else torch.long
        times = torch.full((len(images),), level.time, dtype=whole, device=images.device)
        prediction = self._ask(images, times, self.classes)
        if self.guidance != 1:
            other = self._ask(images, times, self.negative)
            prediction = other + self.guidance * (prediction - other)
        sample, noise = self.schedule.resolve(prediction, images, level.alpha, level.sigma)
        if self.clip is not None:
            sample = sample.clamp(-self.clip, self.clip)
            noise = (images - level.alpha * sample) / level.sigma
        return sample, noise

    def _ask(self, images: Tensor, times: Tensor, classes: Any) -> Tensor:
        prediction = self.network(images, times, classes)
        expected = f"a function that predicts {tuple(images.shape)}, one value for each of the images'"
        require(prediction.shape == images.shape, "network", tuple(prediction.shape), expected)
        return prediction


def stream(
    network: Network,
    noise: Tensor,
    schedule: Schedule,
    *,
    steps: int,
    sampler: str = "ddim",
    classes: Tensor | None = None,
    guidance: float = 1.0,
    negative: Tensor | int | None = None,
    clip: float | None = None,
    eta: float = 0.0,
    spacing: str = "trailing",
    final: str = "zero",
    generator: torch.Generator | None = None,
) -> Iterator[Step]:
    """Yields a `Step` after each step, for a film; the last one's images are the sample.

    noise:     (b, ...), of unit variance; also the images at the first of the times, where these do not begin at the last.
    steps:     how often the noise is reduced, at most as often as was trained.
    sampler:   one of `SAMPLERS`.
    classes:   (b,) integers that the network is given, or None.
    guidance:  classifier-free guidance (Ho and Salimans, 2022, arXiv 2207.12598): other + guidance * (with class - other), so
               that 1 changes nothing, not a bit, and asks once; their w is guidance - 1.
    negative:  the other's class: an integer, (b,) integers, or None, with which the network is asked without a class.
    clip:      the largest absolute value of a predicted image; the noise follows from what is left.
    eta:       of "ddim", from 0 to 1: how much of the noise of "ddpm" is added.
    spacing:   of the times, as in `spaced`. final: where the last step leads, as in `levels`.
    generator: what "ddpm", and "ddim" where eta is above 0, draw their noise from; torch's global one if None.

    Errors: `ValueError`, before the network is asked.
    """
    require_one_of(SAMPLERS, "sampler", sampler)
    path = levels(schedule, steps, spacing, final)
    predict = Predictor(network, schedule, *check(noise, classes, guidance, negative, clip))
    require(0 <= eta <= 1, "eta", eta, "from 0 to 1")
    require(eta == 0 or sampler == "ddim", "eta", eta, f'0, for only "ddim" has it and sampler is {sampler!r}')
    return walk(predict, noise, path, sampler, 1.0 if sampler == "ddpm" else eta, generator)


def check(
    noise: Tensor, classes: Tensor | None, guidance: float, negative: Tensor | int | None, clip: float | None
) -> tuple[Tensor | None, float, Tensor | None, float | None]:
    """The arguments of a `Predictor`: `ValueError` for wrong ones."""
    require(noise.ndim > 0 and noise.is_floating_point(), "noise", (noise.dtype, tuple(noise.shape)), "a batch of real numbers")
    require(math.isfinite(guidance), "guidance", guidance, "finite")
    require(guidance == 1 or classes is not None, "guidance", guidance, "1 where there are no classes")
    if classes is not None:
        require_axes(classes, "classes", "batch", batch=len(noise))
    if isinstance(negative, Tensor):
        require_axes(negative, "negative", "batch", batch=len(noise))
    elif negative is not None:
        negative = torch.full((len(noise),), negative, dtype=torch.long, device=noise.device)
    require(clip is None or 0 < clip < math.inf, "clip", clip, "positive and finite, or None")
    return classes, guidance, negative, clip


@torch.no_grad()
def walk(
    predict: Predictor, images: Tensor, path: list[Level], sampler: str, eta: float, generator: torch.Generator | None
) -> Iterator[Step]:
    """The loop of `stream`."""
    before: tuple[Level, Tensor] | None = None
    for number, (here, there) in enumerate(pairwise(path)):
        sample, noise = predict(images, here)
        if sampler in ("ddpm", "ddim"):
            images = ancestral(images, sample, noise, here, there, eta, generator)
        elif sampler == "dpm++":
            lower = there.sigma == 0 or (number + 2 == len(path) and len(path) - 1 < FEW)
            images = multistep(images, sample, here, there, None if lower else before)
            before = here, sample
        else:
            images = euler_or_heun(predict, images, sample, noise, here, there, second=sampler == "heun")
        yield Step(here.time, images, sample)


def ancestral(
    images: Tensor, sample: Tensor, noise: Tensor, here: Level, there: Level, eta: float, generator: torch.Generator | None
) -> Tensor:
    """Song et al., 2020, equations 12 and 16, for any alpha and sigma."""
    less, old = there.sigma / here.sigma, here.alpha / there.alpha * there.sigma  # old: noise here that was there already
    fresh = eta * less * math.sqrt(max(here.sigma**2 - old**2, 0.0))
    kept = less * math.hypot(math.sqrt(1 - eta**2) * here.sigma, eta * old)  # fresh^2 + kept^2 is there.sigma^2
    images = there.alpha * sample + kept * noise
    if fresh > 0:
        images = images + fresh * torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    return images


def multistep(images: Tensor, sample: Tensor, here: Level, there: Level, before: tuple[Level, Tensor] | None) -> Tensor:
    """Lu et al., 2022 (DPM-Solver++), algorithm 2; `before`: the level and the predicted image of the step before, or None."""
    if before is not None:
        ratio = (log_snr(there) - log_snr(here)) / (log_snr(here) - log_snr(before[0]))
        sample = sample + ratio / 2 * (sample - before[1])
    less = there.sigma / here.sigma
    return less * images + (there.alpha - less * here.alpha) * sample


def log_snr(level: Level) -> float:
    """Half of the logarithm of the signal-to-noise ratio: lambda, in the papers on DPM-Solver."""
    return math.log(level.alpha / level.sigma) if level.alpha > 0 else -math.inf


def euler_or_heun(
    predict: Predictor, images: Tensor, sample: Tensor, noise: Tensor, here: Level, there: Level, second: bool
) -> Tensor:
    """Karras et al., 2022, algorithm 1, or only its first half."""
    ahead = there.alpha * sample + there.sigma * noise
    flow = predict.schedule.flow
    if not second or there.sigma == 0 or (here.alpha == 0 and not flow):
        return ahead
    next_sample, next_noise = predict(ahead, there)
    noise = (noise + next_noise) / 2
    if flow:
        return images + (there.sigma - here.sigma) * (noise - (sample + next_sample) / 2)
    return there.alpha / here.alpha * images + (there.sigma - there.alpha / here.alpha * here.sigma) * noise


def sample(network: Network, noise: Tensor, schedule: Schedule, **options: Any) -> Tensor:
    """(b, ...): images out of noise (b, ...). Options: those of `stream`, of which `steps` is needed."""
    images = noise
    for step in stream(network, noise, schedule, **options):
        images = step.images
    return images


@torch.no_grad()
def invert(
    network: Network,
    images: Tensor,
    schedule: Schedule,
    *,
    steps: int,
    iterations: int = 1,
    classes: Tensor | None = None,
    spacing: str = "trailing",
    final: str = "zero",
) -> Tensor:
    """(b, ...): the noise out of which "ddim" at eta 0, with the same options, makes images (b, ...).

    A step back has to know what the network says about its result. With one iteration that is guessed from where it starts (Song
    et al., 2020, section 4.3); each more asks again about the last result, and so finds a fixed point, which is exact, where
    steps are small enough (Pan et al., 2023, arXiv 2309.04907).
    """
    require(iterations > 0, "iterations", iterations, "positive")
    path = levels(schedule, steps, spacing, final)
    predict = Predictor(network, schedule, *check(images, classes, 1.0, None, None))
    for there, here in pairwise(reversed(path)):
        turn, less = (1.0, here.sigma - there.sigma)
        if not schedule.flow:  # alpha and sigma are a cosine and a sine
            turn = there.alpha * here.alpha + there.sigma * here.sigma
            less = there.alpha * here.sigma - there.sigma * here.alpha
        require(
            turn > 0, "steps", steps, "2 or more, for one from noise without an image to an image without noise has no way back"
        )
        guess = images
        for _ in range(iterations):
            velocity = schedule.express("velocity", *predict(guess, here), here.alpha, here.sigma)
            guess = (images + less * velocity) / turn
        images = guess
    return images
