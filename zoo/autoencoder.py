"""Variational autoencoders: Kingma and Welling, "Auto-Encoding Variational Bayes", 2014 (arXiv 1312.6114).

The encoder tells a normal law of latents for every image, the decoder an image for latents. Both are trained to reconstruct while
the law is kept near N(0, 1), so that latents drawn from there decode to new images. The convolutional network is that of Rombach
et al., "Latent Diffusion", 2021 (arXiv 2112.10752), whose latents are a smaller image. Proven against `diffusers.AutoencoderKL`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers.checks import require, require_axes
from layers.unet import Downsample, PixelAttention, TimeResidual, Upsample
from layers.weights import WeightMap
from zoo.model import Model, References

EPS = 1e-6
"""Of every group norm."""


class Gaussian:
    """Independent normal laws of latents, mean and log_variance (b, ...), as an encoder tells them.

    log_variance is clamped to -30 .. 20, so that no exponential overflows. Errors: `ValueError` for shapes that differ.
    """

    def __init__(self, mean: Tensor, log_variance: Tensor) -> None:
        shape = tuple(log_variance.shape)
        require(mean.shape == log_variance.shape, "log_variance", shape, f"of mean's shape {tuple(mean.shape)}")
        self.mean, self.log_variance = mean, log_variance.clamp(-30, 20)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """``mean + exp(log_variance / 2) * noise``, through which gradients reach both (section 2.4 of the paper).

        generator: on the device of the mean; None is torch's global one. Noise is drawn in float32, the same for every dtype.
        """
        drawn = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=torch.float32)
        return self.mean + (self.log_variance / 2).exp() * drawn.to(self.mean.dtype)

    def divergence(self) -> Tensor:
        """KL divergence (b,) from N(0, 1), in nats: ``sum(mean^2 + variance - 1 - log_variance) / 2`` (appendix B)."""
        terms = self.mean.square() + self.log_variance.exp() - 1 - self.log_variance
        return terms.flatten(1).sum(1) / 2


def block(in_channels: int, out_channels: int, groups: int) -> TimeResidual:
    return TimeResidual(in_channels, out_channels, groups=groups, eps=EPS)


def middle(channels: int, groups: int, attention: bool) -> nn.Sequential:
    between = PixelAttention(channels, groups=groups, eps=EPS) if attention else nn.Identity()
    return nn.Sequential(block(channels, channels, groups), between, block(channels, channels, groups))


def level(in_channels: int, out_channels: int, depth: int, groups: int, resample: nn.Module) -> nn.Sequential:
    widths = [in_channels] + [out_channels] * depth
    return nn.Sequential(*(block(i, o, groups) for i, o in pairwise(widths)), resample)


class Coder(nn.Module):
    """Encoder or decoder: a stem, a body, norm, SiLU, a last convolution; (b, in_channels, y, x) -> (b, out_channels, y', x')."""

    def __init__(self, in_channels: int, first: int, body: nn.Sequential, last: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(in_channels, first, 3, padding=1), body
        self.norm, self.output = nn.GroupNorm(groups, last, EPS), nn.Conv2d(last, out_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.output(F.silu(self.norm(self.body(self.stem(images)))))


class VAE(Model):
    """images (b, in_channels, y, x) -> reconstructions of the same shape, y and x multiples of `factor`.

    in_channels:     of the images. latent_channels: of the latents (b, latent_channels, y / factor, x / factor).
    widths:          channels of each level, from the images down; between two levels rows and columns halve.
    depth:           blocks of a level in the encoder; the decoder has one more.
    groups:          of every group norm, a divisor of all widths.
    attention:       one pixel attention on the lowest level, in both halves.
    Errors: `ValueError` for other channels, and for sizes that do not halve.
    """

    outputs = ("reconstructions",)

    def __init__(
        self,
        widths: Sequence[int],
        *,
        in_channels: int = 3,
        latent_channels: int = 4,
        depth: int = 2,
        groups: int = 32,
        attention: bool = True,
    ) -> None:
        super().__init__()
        numbers = dict(in_channels=in_channels, latent_channels=latent_channels, depth=depth, groups=groups)
        for name, number in numbers.items():
            require(number > 0, name, number, "positive")
        require(len(widths) > 0 and min(widths) > 0, "widths", tuple(widths), "positive, one at least")
        require(not any(width % groups for width in widths), "groups", groups, f"a divisor of all widths {tuple(widths)}")
        self.in_channels, self.latent_channels, self.factor = in_channels, latent_channels, 2 ** (len(widths) - 1)
        self.references = REFERENCES
        low = widths[-1]

        down = [
            level(i, o, depth, groups, Downsample(o, pad_end=True) if n < len(widths) - 1 else nn.Identity())
            for n, (i, o) in enumerate(pairwise([widths[0], *widths]))
        ]
        body = nn.Sequential(*down, middle(low, groups, attention))
        self.encoder = Coder(in_channels, widths[0], body, low, 2 * latent_channels, groups)
        self.to_moments = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)

        up = [
            level(i, o, depth + 1, groups, Upsample(o) if n < len(widths) - 1 else nn.Identity())
            for n, (i, o) in enumerate(pairwise([low, *reversed(widths)]))
        ]
        self.from_latents = nn.Conv2d(latent_channels, latent_channels, 1)
        body = nn.Sequential(middle(low, groups, attention), *up)
        self.decoder = Coder(latent_channels, low, body, widths[0], in_channels, groups)

    def encode(self, images: Tensor) -> Gaussian:
        require_axes(images, "images", "batch channels height width", channels=self.in_channels)
        sizes = images.shape[2:]
        fits = all(n > 0 and n % self.factor == 0 for n in sizes)
        require(fits, "images", tuple(images.shape), f"of rows and columns that are multiples of {self.factor}")
        return Gaussian(*self.to_moments(self.encoder(images)).chunk(2, 1))

    def decode(self, latents: Tensor) -> Tensor:
        """latents (b, latent_channels, y, x) -> images (b, in_channels, factor * y, factor * x)"""
        require_axes(latents, "latents", "batch channels height width", channels=self.latent_channels)
        return self.decoder(self.from_latents(latents))

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """By latents that the generator draws, or, without one, by their mean."""
        law = self.encode(images)
        return self.decode(law.mean if generator is None else law.sample(generator))

    def loss(self, images: Tensor, beta: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """What training minimises, a scalar: the mean over images of ``sum (image - reconstruction)^2 / 2 + beta * divergence``.

        The negative lower bound of the paper for pixels of unit variance, less a constant, from one sample of the latents; beta
        other than 1 is that of Higgins et al., "beta-VAE", 2017.
        """
        law = self.encode(images)
        error = (images - self.decode(law.sample(generator))).square().flatten(1).sum(1) / 2
        return (error + beta * law.divergence()).mean()


def names_of_diffusers(model: VAE) -> WeightMap:
    """Our names and those of `diffusers.AutoencoderKL`."""
    levels = len(model.encoder.body) - 1
    rows = [("to_moments", "quant_conv"), ("from_latents", "post_quant_conv")]
    for half, direction, first in (("encoder", "down", 0), ("decoder", "up", 1)):
        ends = (("stem", "conv_in"), ("norm", "conv_norm_out"), ("output", "conv_out"))
        rows += [(f"{half}.{ours}", f"{half}.{theirs}") for ours, theirs in ends]
        centre, theirs = f"{half}.body.{(levels, 0)[first]}", f"{half}.mid_block"
        rows += names_of_block(f"{centre}.0", f"{theirs}.resnets.0") + names_of_block(f"{centre}.2", f"{theirs}.resnets.1")
        rows.append((f"{centre}.1.norm", f"{theirs}.attentions.0.group_norm"))
        for ours, their in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("output", "to_out.0")):
            rows.append((f"{centre}.1.attention.{ours}", f"{theirs}.attentions.0.{their}"))
        for n in range(levels):
            stage, theirs = f"{half}.body.{n + first}", f"{half}.{direction}_blocks.{n}"
            depth = sum(isinstance(child, TimeResidual) for child in model.get_submodule(stage).children())
            for d in range(depth):
                rows += names_of_block(f"{stage}.{d}", f"{theirs}.resnets.{d}")
            rows.append((f"{stage}.{depth}.conv", f"{theirs}.{direction}samplers.0.conv"))
    return WeightMap(*rows)


def names_of_block(ours: str, theirs: str) -> list[tuple[str, str]]:
    same = [(f"{ours}.{name}", f"{theirs}.{name}") for name in ("norm1", "conv1", "norm2", "conv2")]
    return [*same, (f"{ours}.shortcut", f"{theirs}.conv_shortcut")]


REFERENCES: References = {"diffusers": names_of_diffusers}


def build(
    widths: Sequence[int],
    depth: int,
    groups: int,
    attention: bool = True,
    in_channels: int = 3,
    latent_channels: int = 4,
) -> VAE:
    """The options of all variants."""
    return VAE(widths, in_channels=in_channels, latent_channels=latent_channels, depth=depth, groups=groups, attention=attention)


VARIANTS: dict[str, Callable[..., VAE]] = {
    "vae_kl": partial(build, (128, 256, 512, 512), 2, 32),  # Stable Diffusion's: images to an eighth of their rows
    "vae_small": partial(build, (32, 64), 1, 8, in_channels=1),  # 0.7 million parameters, for images of 8 or 28 rows
}
"""Options are those of `build`."""
