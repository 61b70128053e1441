"""Noise schedules of diffusion models and of flows: how much of an image and how much noise there is at each time.

At time t a noisy image is alpha(t) * image + sigma(t) * noise. A diffusion (Ho et al., 2020, arXiv 2006.11239) keeps the
variance, alpha^2 + sigma^2 = 1, at whole times from 0 to steps - 1. A flow (Lipman et al., 2022, arXiv 2210.02747; Liu et al.,
2022, arXiv 2209.03003) goes straight, alpha + sigma = 1, at any time above 0 and up to steps, where sigma is time / steps.

A network predicts one of three things, of which any tells the other two:
    "epsilon":  the noise.
    "sample":   the image.
    "velocity": alpha * noise - sigma * image of a diffusion (Salimans and Ho, 2022, arXiv 2202.00512), noise - image of a flow.

Proven against the schedulers of diffusers. Errors: `ValueError` that names the argument.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from layers.checks import is_traced, require, require_axes, require_integers

PREDICTIONS = ("epsilon", "sample", "velocity")


def require_one_of(names: tuple[str, ...], argument: str, value: Any) -> None:
    """Raise `ValueError` unless the value is one of the names."""
    require(value in names, argument, value, f"one of {', '.join(names)}")


@dataclass(frozen=True, eq=False, repr=False)
class Schedule:
    """What a network was trained on; made by `linear`, `cosine`, `zero_terminal` and `flow`.

    alpha:      (steps,) float64, the share of the image at each time of training, falling; of a flow, at the times 1 to steps.
    sigma:      (steps,) float64, that of the noise, above 0.
    prediction: what the network predicts: "epsilon", "sample" or "velocity". Where no image is left (alpha 0), the noise tells
                nothing about it, and "epsilon" is refused.
    flow:       whether alpha + sigma is 1, rather than the sum of their squares.
    """

    alpha: Tensor
    sigma: Tensor
    prediction: str = "epsilon"
    flow: bool = False

    def __post_init__(self) -> None:
        alpha, sigma = self.alpha, self.sigma
        require_axes(alpha, "alpha", "steps")
        require_axes(sigma, "sigma", "steps", steps=len(alpha))
        require(len(alpha) > 0, "alpha", tuple(alpha.shape), "of at least one step")
        for name, values in (("alpha", alpha), ("sigma", sigma)):
            require(values.dtype == torch.float64, name, values.dtype, "of dtype torch.float64")
        require_one_of(PREDICTIONS, "prediction", self.prediction)
        total = alpha + sigma if self.flow else alpha.square() + sigma.square()
        whole = "alpha + sigma" if self.flow else "alpha^2 + sigma^2"
        require(bool(((total - 1).abs() < 1e-12).all()), whole, total, "1 at each step")
        require(bool((alpha >= 0).all() and (alpha.diff() < 0).all()), "alpha", alpha, "zero or more, and falling")
        require(bool((sigma > 0).all()), "sigma", sigma, "above 0")
        possible = self.prediction != "epsilon" or bool((alpha > 0).all())
        require(possible, "prediction", self.prediction, 'one that tells the image where alpha is 0: "sample" or "velocity"')

    def __repr__(self) -> str:
        return f"Schedule(steps={self.steps}, prediction={self.prediction!r}, flow={self.flow})"

    @property
    def steps(self) -> int:
        """How many times it was trained at; also the largest time of a flow."""
        return len(self.alpha)

    def levels(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma, (b,) float64 each, at times (b,): integers of a diffusion, any of a flow."""
        require_axes(times, "times", "batch")
        if self.flow:
            low, high = 0, self.steps
        else:
            require_integers(times, "times")
            low, high = 0, self.steps - 1
        if not is_traced():
            require(bool(((times >= low) & (times <= high)).all()), "times", times, f"from {low} to {high}")
        if self.flow:
            sigma = times.double() / self.steps
            return 1 - sigma, sigma
        return self.alpha.to(times.device)[times], self.sigma.to(times.device)[times]

    def _levels_for(self, images: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """As `levels`, shaped to be multiplied by images (b, ...), in their dtype or float32 where theirs is shorter."""
        require(len(times) == len(images), "times", tuple(times.shape), f"of length {len(images)}, one for each image")
        dtype = torch.promote_types(images.dtype, torch.float32)
        alpha, sigma = (level.to(dtype).view(-1, *[1] * (images.ndim - 1)) for level in self.levels(times))
        return alpha, sigma

    def add_noise(self, images: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """(b, ...): images (b, ...) as they are at times (b,), with noise (b, ...) of unit variance."""
        alpha, sigma = self._levels_for(images, times)
        return (alpha * images + sigma * noise).to(images.dtype)

    def target(self, images: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """(b, ...): what the network should predict where `add_noise` was given the same."""
        return self.express(self.prediction, images, noise, *self._levels_for(images, times)).to(images.dtype)

    def split(self, prediction: Tensor, noisy: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """The image and the noise, (b, ...) each, that a prediction (b, ...) about noisy images (b, ...) amounts to."""
        sample, noise = self.resolve(prediction, noisy, *self._levels_for(noisy, times))
        return sample.to(noisy.dtype), noise.to(noisy.dtype)

    def convert(self, prediction: Tensor, noisy: Tensor, times: Tensor, to: str) -> Tensor:
        """(b, ...): a prediction (b, ...) about noisy images (b, ...) as one of another kind, `to`, of `PREDICTIONS`."""
        require_one_of(PREDICTIONS, "to", to)
        alpha, sigma = self._levels_for(noisy, times)
        return self.express(to, *self.resolve(prediction, noisy, alpha, sigma), alpha, sigma).to(noisy.dtype)

    def snr(self, times: Tensor) -> Tensor:
        """(b,) float64: the signal-to-noise ratio (alpha / sigma)^2 at times (b,)."""
        alpha, sigma = self.levels(times)
        return (alpha / sigma).square()

    def min_snr(self, times: Tensor, gamma: float = 5.0) -> Tensor:
        """(b,) float64: weights of the squared error of the network's prediction at times (b,).

        Hang et al., 2023 (arXiv 2303.09556): they weigh the error of the image by min(SNR, gamma), which for the noise makes
        min(SNR, gamma) / SNR, and for the velocity min(SNR, gamma) * sigma^2, of a diffusion also min(SNR, gamma) / (SNR + 1).
        """
        require(0 < gamma < math.inf, "gamma", gamma, "positive and finite")
        snr = self.snr(times)
        if self.prediction == "epsilon":
            return (gamma / snr).clamp(max=1)
        weights = snr.clamp(max=gamma)
        return weights if self.prediction == "sample" else weights * self.levels(times)[1].square()

    def draw_times(
        self,
        count: int,
        *,
        logit_normal: tuple[float, float] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(count,) times to train at, on the generator's device: int64 of a diffusion, float32 of a flow, uniform.

        logit_normal: mean and standard deviation of the logit of a flow's sigma, instead; (0, 1) is the best of Esser et al.,
                      2024 (arXiv 2403.03206), which prefers the middle.
        """
        device = "cpu" if generator is None else generator.device
        if logit_normal is not None:
            require(self.flow, "logit_normal", logit_normal, "None, for the times of a diffusion are whole")
            mean, deviation = logit_normal
            require(0 < deviation < math.inf, "logit_normal", logit_normal, "a mean and a positive, finite deviation")
            normal = torch.randn(count, generator=generator, device=device, dtype=torch.float32)
            return (mean + deviation * normal).sigmoid() * self.steps
        if self.flow:
            return (1 - torch.rand(count, generator=generator, device=device, dtype=torch.float32)) * self.steps
        return torch.randint(self.steps, (count,), generator=generator, device=device)

    def express(self, kind: str, sample: Any, noise: Any, alpha: Any, sigma: Any) -> Any:
        """An image and noise, at levels that are numbers or tensors to multiply them by, as a prediction of this kind."""
        if kind == "velocity":
            return noise - sample if self.flow else alpha * noise - sigma * sample
        return noise if kind == "epsilon" else sample

    def resolve(self, prediction: Any, noisy: Any, alpha: Any, sigma: Any) -> tuple[Any, Any]:
        """The image and the noise of the network's prediction; levels as in `express`."""
        if self.prediction == "epsilon":
            return (noisy - sigma * prediction) / alpha, prediction
        if self.prediction == "sample":
            return prediction, (noisy - alpha * prediction) / sigma
        if self.flow:
            return noisy - sigma * prediction, noisy + alpha * prediction
        return alpha * noisy - sigma * prediction, sigma * noisy + alpha * prediction


def from_betas(betas: Tensor, prediction: str = "epsilon") -> Schedule:
    """The diffusion whose step t adds noise of variance betas[t], (steps,): alpha^2 is the product of all 1 - beta so far."""
    require_axes(betas, "betas", "steps")
    require(bool(((betas > 0) & (betas <= 1)).all()), "betas", betas, "above 0 and at most 1")
    kept = (1 - betas.double()).cumprod(0)
    return Schedule(kept.sqrt(), (1 - kept).sqrt(), prediction)


def linear(steps: int = 1000, first: float = 1e-4, last: float = 0.02, prediction: str = "epsilon") -> Schedule:
    """Betas in equal steps from the first to the last: Ho et al., 2020 (arXiv 2006.11239)."""
    require(steps > 0, "steps", steps, "positive")
    require(0 < first <= last < 1, "first", first, f"above 0 and at most last, {last}, which is below 1")
    return from_betas(torch.linspace(first, last, steps, dtype=torch.float64), prediction)


def cosine(steps: int = 1000, offset: float = 0.008, prediction: str = "epsilon") -> Schedule:
    """alpha falls as a cosine; no beta is above 0.999: Nichol and Dhariwal, 2021 (arXiv 2102.09672)."""
    require(steps > 0, "steps", steps, "positive")
    require(offset > 0, "offset", offset, "positive")
    angles = (torch.arange(steps + 1, dtype=torch.float64) / steps + offset) / (1 + offset) * (math.pi / 2)
    kept = angles.cos().square()
    return from_betas((1 - kept[1:] / kept[:-1]).clamp(max=0.999), prediction)


def zero_terminal(schedule: Schedule, prediction: str = "velocity") -> Schedule:
    """The same diffusion, shifted and scaled so that no image is left at its last time: Lin et al., 2023 (arXiv 2305.08891)."""
    require(not schedule.flow, "schedule", "a flow", "a diffusion; at a flow's last time no image is left")
    require(schedule.steps > 1, "schedule", schedule.steps, "of two steps or more")
    first, last = schedule.alpha[0], schedule.alpha[-1]
    alpha = (schedule.alpha - last) * (first / (first - last))
    return Schedule(alpha, (1 - alpha.square()).sqrt(), prediction)


def flow(steps: int = 1000, prediction: str = "velocity") -> Schedule:
    """Straight lines from images to noise. `steps` is the time of pure noise, at which alpha is 0."""
    require(steps > 0, "steps", steps, "positive")
    sigma = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    return Schedule(1 - sigma, sigma, prediction, flow=True)
