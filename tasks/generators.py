"""Kinds of generators of images: which network, what is drawn for a training image, the losses, how images come out of noise.

`GENERATORS` has them by the name that --model gives. A model keeps its own in its config, as "generation".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers.checks import require
from zoo import gan_losses
from zoo.autoencoder import Gaussian
from zoo.generation import diffusion, samplers
from zoo.generation.diffusion import PREDICTIONS, Schedule

Turn = tuple[str, Tensor, dict[str, Tensor]]
"""A part of the model, its loss, a sum over images, and other sums, as `tasks.task.Task.losses` has them."""
BATCH = 256
"""Images that are made at a time."""


@dataclass(frozen=True)
class Generative:
    """Abstract: a kind of generator. networks: of the zoo, for images of up to 16 pixels, and for larger ones."""

    networks: tuple[str, str] = ("", "")
    kind: ClassVar[str]
    conditional: ClassVar[bool] = True
    by_methods: ClassVar[bool] = False
    """As `Task.by_methods`."""
    beta1: ClassVar[float] = 0.9
    """Of the optimizer."""

    def require_possible(self) -> None:
        """Errors: `ValueError` for options of which there is nothing, in a file of another version."""

    def network(self, image_size: int) -> str:
        return self.networks[image_size > 16]

    def arguments(self, channels: int, image_size: int, classes: int | None) -> dict[str, Any]:
        """Of the network."""
        return {"in_channels": channels}

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, **{name: value for name, value in asdict(self).items() if name != "networks"}}

    def given(self, options: Any) -> Generative:
        """With the --sampler, --steps and --guidance that are given. Errors: `ValueError` where it has none of these."""
        wanted = {name: getattr(options, name) for name in ("sampler", "steps", "guidance")}
        wanted = {name: value for name, value in wanted.items() if value is not None}
        known = {spec.name for spec in fields(self)}
        for name, value in wanted.items():
            require(name in known, name, value, "left out, for this model makes an image in a single step")
        return replace(self, **wanted)

    def noise_shape(self, model: Any, image: tuple[int, ...]) -> tuple[int, ...]:
        """Of the noise that an image comes out of."""
        raise NotImplementedError

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        """What a training image needs beside it, for noise of this shape."""
        return (torch.randn(shape, generator=generator),)

    def parts(self, model: Any) -> dict[str, nn.Module]:
        return {"model": model}

    def losses(self, model: Any, images: Tensor, classes: Tensor | None, *drawn: Tensor) -> Iterator[Turn]:
        raise NotImplementedError

    def images(self, model: Any, noise: Tensor, classes: Tensor | None, seed: int) -> Tensor:
        """Images (b, c, y, x) in [-1, 1] out of noise; seed: of further noise, of samplers that add some."""
        raise NotImplementedError

    @torch.inference_mode()
    def pictures(self, model: Any, noise: Tensor, classes: Tensor | None, seed: int) -> Tensor:
        """The same as uint8, on the CPU."""
        device, found = next(model.parameters()).device, []
        for n, part in enumerate(noise.split(BATCH)):
            some = None if classes is None else classes[n * BATCH : (n + 1) * BATCH].to(device)
            found.append(as_bytes(self.images(model, part.to(device), some, seed + n)))
        return torch.cat(found)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "flow": diffusion.flow,
    "linear": diffusion.linear,
    "cosine": diffusion.cosine,
    "zero_terminal": lambda prediction: diffusion.zero_terminal(diffusion.cosine(), prediction),
}


TRAIN = "train with --label_dropout 0.1"


@dataclass(frozen=True)
class Diffusion(Generative):
    """A network that predicts something of noisy images.

    schedule: one of `SCHEDULES`. prediction: of `zoo.generation.diffusion.PREDICTIONS`.
    middle:   whether times are drawn rather from the middle of a flow (logit-normal).
    sampler:  of `zoo.generation.samplers.SAMPLERS`, `steps` of it, and guidance, of which 1 is none.
    hidden:   part of the labels that were hidden in training; without any, the network knows no images without a class.
    """

    kind: ClassVar[str] = "diffusion"
    schedule: str = "flow"
    prediction: str = "velocity"
    middle: bool = False
    sampler: str = "euler"
    steps: int = 10
    guidance: float = 1.0
    hidden: float = 0.1

    def require_possible(self) -> None:
        require(self.schedule in SCHEDULES, "schedule", self.schedule, f"one of {', '.join(SCHEDULES)}")
        require(self.prediction in PREDICTIONS, "prediction", self.prediction, f"one of {', '.join(PREDICTIONS)}")

    def given(self, options: Any) -> Generative:
        """Another sampler without --steps asks the network about as often."""
        found: Any = super().given(options)
        if options.sampler is None or options.steps is not None:
            return found
        return replace(found, steps=-(-self.steps * self.calls // found.calls))

    @property
    def calls(self) -> int:
        """How often a step asks the network, but for a last one."""
        return 2 if self.sampler == "heun" else 1

    @cached_property
    def path(self) -> Schedule:
        """Errors: `ValueError` for a prediction that the schedule rules out."""
        return SCHEDULES[self.schedule](prediction=self.prediction)

    def arguments(self, channels: int, image_size: int, classes: int | None) -> dict[str, Any]:
        return {"in_channels": channels, "classes": classes, "class_dropout": 0.0}

    def noise_shape(self, model: Any, image: tuple[int, ...]) -> tuple[int, ...]:
        """Errors: `ValueError` for steps, a sampler or guidance that cannot be."""
        label = None if model.no_class is None else torch.zeros(1, dtype=torch.long)
        self.stream(model, torch.zeros(1, *image), label, 0)
        return image

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Noise, and a time (1,)."""
        middle: dict[str, Any] = {"logit_normal": (0.0, 1.0)} if self.middle else {}
        noise = torch.randn(shape, generator=generator)
        return noise, self.path.draw_times(1, generator=generator, **middle)

    def losses(self, model: Any, images: Tensor, classes: Tensor | None, *drawn: Tensor) -> Iterator[Turn]:
        """The squared error of what the network predicts, in the mean over pixels and channels."""
        noise, times = drawn[0], drawn[1].flatten()
        found = model(self.path.add_noise(images, noise, times), times, classes)
        target = self.path.target(images, noise, times)
        yield "model", F.mse_loss(found.float(), target, reduction="none").flatten(1).mean(1).sum(), {}

    def stream(self, model: Any, noise: Tensor, classes: Tensor | None, seed: int) -> Iterator[samplers.Step]:
        """Every step. Errors: `ValueError`, before the network is asked, for what cannot be."""
        if classes is not None and self.guidance != 1 and not self.hidden:
            raise ValueError(f"guidance must be 1 for a network that was trained with every label, got {self.guidance}: {TRAIN}")
        options: dict[str, Any] = {"steps": self.steps, "sampler": self.sampler, "guidance": self.guidance, "clip": 1.0}
        options |= {"negative": model.no_class} if self.guidance != 1 else {}
        generator = torch.Generator(noise.device).manual_seed(seed)
        return samplers.stream(model, noise, self.path, classes=classes, generator=generator, **options)

    def images(self, model: Any, noise: Tensor, classes: Tensor | None, seed: int) -> Tensor:
        *_, last = self.stream(model, noise, classes, seed)
        return last.images


PENALTIES = ("", "gradient", "zero_centred")


@dataclass(frozen=True)
class Adversarial(Generative):
    """A generator and a discriminator, each with an optimizer of its own.

    loss:    of `zoo.gan_losses.LOSSES`. penalty: of `PENALTIES`, "zero_centred" of real and of generated images (R1, R2).
    weight:  of the penalty. share: of the images of a batch on which it is measured, for its gradients take most of the time.
    turns:   of the discriminator, before each one of the generator.
    """

    kind: ClassVar[str] = "adversarial"
    beta1: ClassVar[float] = 0.5
    loss: str = "non_saturating"
    penalty: str = ""
    weight: float = 0.0
    share: float = 1.0
    turns: int = 1

    def require_possible(self) -> None:
        require(self.loss in gan_losses.LOSSES, "loss", self.loss, f"one of {', '.join(gan_losses.LOSSES)}")
        require(self.penalty in PENALTIES, "penalty", self.penalty, f"one of {', '.join(map(repr, PENALTIES))}")

    def arguments(self, channels: int, image_size: int, classes: int | None) -> dict[str, Any]:
        return {"in_channels": channels, "image_size": image_size, "num_classes": classes}

    def noise_shape(self, model: Any, image: tuple[int, ...]) -> tuple[int, ...]:
        return (model.generator.latent_dim,)

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Latents for every turn."""
        return (torch.randn(self.turns + 1, *shape, generator=generator),)

    def parts(self, model: Any) -> dict[str, nn.Module]:
        return {"discriminator": model.discriminator, "generator": model.generator}

    def losses(self, model: Any, images: Tensor, classes: Tensor | None, *drawn: Tensor) -> Iterator[Turn]:
        loss, judge, count = gan_losses.LOSSES[self.loss], model.discriminator, len(images)
        for latents in drawn[0][:, :-1].unbind(1):
            with torch.no_grad():
                made = model.generator(latents, classes)
            real, fake = judge(images, classes), judge(made, classes)
            found = loss.discriminator(wide(real), wide(fake))
            if self.penalty and torch.is_grad_enabled():
                found = found + self.weight * self.penalised(judge, images, made, classes)
            told = {"real_logits": wide(real.detach()).sum(), "fake_logits": wide(fake.detach()).sum()}
            yield "discriminator", found * count, told
        fake = judge(model.generator(drawn[0][:, -1], classes), classes)
        real = wide(judge(images, classes)) if loss.relative else None
        yield "generator", loss.generator(real, wide(fake)) * count, {}

    def penalised(self, judge: Any, images: Tensor, made: Tensor, classes: Tensor | None) -> Tensor:
        some = max(1, round(self.share * len(images)))
        images, made, classes = images[:some], made[:some], None if classes is None else classes[:some]
        if self.penalty == "gradient":
            return gan_losses.gradient_penalty(judge, images, made, classes)
        return sum(gan_losses.zero_centred_penalty(judge, x, classes) for x in (images, made))  # type: ignore[return-value]

    def images(self, model: Any, noise: Tensor, classes: Tensor | None, seed: int) -> Tensor:
        return model(noise, classes)


@dataclass(frozen=True)
class Autoencoder(Generative):
    """An encoder to latents of about unit variance, and a decoder. beta: what the latents' divergence weighs."""

    kind: ClassVar[str] = "autoencoder"
    conditional: ClassVar[bool] = False
    by_methods: ClassVar[bool] = True
    beta: float = 1.0

    def noise_shape(self, model: Any, image: tuple[int, ...]) -> tuple[int, ...]:
        return (model.latent_channels, *(size // model.factor for size in image[1:]))

    def losses(self, model: Any, images: Tensor, classes: Tensor | None, *drawn: Tensor) -> Iterator[Turn]:
        """The negative lower bound of the likelihood, but for a constant."""
        law: Gaussian = model.encode(images)
        found = model.decode(law.mean + (law.log_variance / 2).exp() * drawn[0])
        errors = F.mse_loss(found.float(), images, reduction="none").flatten(1).sum(1) / 2
        apart = law.divergence()
        yield "model", (errors + self.beta * apart).sum(), {"error": errors.sum().detach(), "divergence": apart.sum().detach()}

    def images(self, model: Any, noise: Tensor, classes: Tensor | None, seed: int) -> Tensor:
        return model.decode(noise).clamp(-1, 1)


UNET = ("unet_small", "unet_medium")
GENERATORS: dict[str, Generative] = {
    "flow": Diffusion(UNET, middle=True, sampler="heun", steps=5),
    "ddpm": Diffusion(UNET, "linear", "epsilon", sampler="dpm++"),
    "dit": Diffusion(("dit_small", "dit_small"), middle=True, sampler="dpm++"),
    "dcgan": Adversarial(("dcgan_8", "dcgan_28")),
    "wgan_gp": Adversarial(("wgan_gp_8", "wgan_gp_28"), "wasserstein", "gradient", 10.0, turns=3),
    "r3gan": Adversarial(("r3gan_8", "r3gan_28"), "relativistic", "zero_centred", 0.2, share=0.25),
    "vae": Autoencoder(("vae_small", "vae_small"), beta=0.1),
}
KINDS = {found.kind: found for found in (Diffusion, Adversarial, Autoencoder)}


def known(model: Any) -> Any:
    """What a model was trained as. Errors: `ValueError` if its config does not say, or says something unknown."""
    config = model.config.get("generation")
    require(isinstance(config, Mapping), "generation in config.json", config, "what a run of tasks.image_generation leaves")
    options = {name: value for name, value in config.items() if name != "kind"}
    require(config.get("kind") in KINDS, "kind in config.json", config.get("kind"), f"one of {', '.join(KINDS)}")
    try:
        found = KINDS[config["kind"]](**options)
    except TypeError as error:
        raise ValueError(f"generation in config.json is {dict(config)}: {error}") from error
    found.require_possible()
    return found


def wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def as_bytes(images: Tensor) -> Tensor:
    """Of values from -1 to 1, the nearest of 256; on the CPU."""
    return (images.float() * 127.5 + 127.5).round().clamp(0, 255).to("cpu", torch.uint8)


def as_values(pixels: Tensor) -> Tensor:
    """The opposite of `as_bytes`."""
    return pixels.float().div_(127.5).sub_(1)


class Holding:
    """A network, but what it predicts of an image is the given one (c, y, x) where `there` (y, x) is True: inpainting."""

    def __init__(self, network: Any, path: Schedule, image: Tensor, there: Tensor) -> None:
        self.network, self.path, self.image, self.there = network, path, image, there
        self.no_class = getattr(network, "no_class", None)

    def __call__(self, noisy: Tensor, times: Tensor, classes: Tensor | None) -> Tensor:
        found, _ = self.path.split(self.network(noisy, times, classes), noisy, times)
        found = torch.where(self.there, self.image, found)
        alpha, sigma = (level.to(noisy.dtype).view(-1, *[1] * (noisy.ndim - 1)) for level in self.path.levels(times))
        return self.path.target(found, (noisy - alpha * found) / sigma, times)
