"""Both parts of DCGAN and WGAN-GP against networks laid out as DCGAN's authors do; what all networks have in common."""

from __future__ import annotations

import pytest
import torch
from gan_parts import COMMON, INVALID, contract
from hypothesis import strategies as st
from torch import nn

import zoo
from layers.residual import Residual
from layers.testing import Twin
from layers.weights import WeightMap
from zoo.gan import GAN, grid_sizes, residual_block
from zoo.gan_losses import LOSSES, gradient_penalty, zero_centred_penalty

STRIDED = dict(name=st.sampled_from(["dcgan_8", "wgan_gp_8"])) | COMMON | dict(width=st.sampled_from([3, 7]))


class Laid(nn.Module):
    """DCGAN as its authors' code has it: all layers are convolutions, the latents an image of one pixel."""

    def __init__(self, a, layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)
        if a.num_classes is not None:
            self.classes = nn.Embedding(a.num_classes, a.class_dim)


def laid_generator(a):
    smallest, *_ = sizes = grid_sizes(a.image_size)
    dims = [a.latent_dim + (a.num_classes is not None) * a.class_dim, *(a.width * 2**n for n in reversed(range(len(sizes) - 1)))]
    layers = [nn.ConvTranspose2d(dims[0], dims[1], smallest, bias=False)]
    for n in range(1, len(sizes)):
        last = n == len(sizes) - 1
        out = a.in_channels if last else dims[n + 1]
        layers += [nn.BatchNorm2d(dims[n]), nn.ReLU(), nn.ConvTranspose2d(dims[n], out, 4, 2, 1, bias=last)]
    return Laid(a, [*layers, nn.Tanh()])


def call_laid_generator(m, i):
    z = i["latents"] if "classes" not in i else torch.cat([i["latents"], m.classes.weight[i["classes"]]], 1)
    return m.layers(z[:, :, None, None])


def generator_names(a):
    levels = len(grid_sizes(a.image_size))
    rows = [("classes", "classes"), ("body.0.weight", "layers.0.weight", "(c y x) i -> i c y x", dict(y=3, x=3))]
    size = grid_sizes(a.image_size)[0]
    rows[1] = (*rows[1][:3], dict(y=size, x=size))
    return WeightMap(*rows, *((f"body.{n + 1}", f"layers.{n}") for n in range(1, 3 * levels) if n % 3 != 2))


class LaidDiscriminator(nn.Module):
    def __init__(self, a):
        super().__init__()
        smallest, *_ = sizes = grid_sizes(a.image_size)
        plain, channels = a.name.startswith("wgan"), [a.in_channels, *(a.width * 2**n for n in range(len(sizes) - 1))]
        self.layers = nn.Sequential()
        for n in range(1, len(channels)):
            self.layers.append(nn.Conv2d(channels[n - 1], channels[n], 4, 2, 1, bias=n == 1))
            if n > 1:
                self.layers.append(nn.GroupNorm(1, channels[n]) if plain else nn.BatchNorm2d(channels[n]))
            self.layers.append(nn.LeakyReLU(0.2))
        self.last = nn.Conv2d(channels[-1], 1, smallest)
        if a.num_classes is not None:
            self.classes = nn.Embedding(a.num_classes, channels[-1] * smallest**2)


def call_laid_discriminator(m, i):
    features = m.layers(i["images"])
    logits = m.last(features)[:, 0, 0, 0]
    if "classes" in i:
        logits = logits + torch.einsum("bi,bi->b", features.flatten(1), m.classes.weight[i["classes"]])
    return logits


def discriminator_names(a):
    size = grid_sizes(a.image_size)[0]
    last = ("output.weight", "last.weight", "o (c y x) -> o c y x", dict(y=size, x=size))
    return WeightMap(("classes", "classes"), ("body.{n}", "layers.{n}"), last, ("output.bias", "last.bias"))


strided_generator = contract(
    "generator",
    STRIDED,
    Twin("all convolutions", build=laid_generator, weights=generator_names, call=call_laid_generator),
    trains_differently=lambda a: True,
    invalid=INVALID,
    name="DCGAN's generator",
)
strided_discriminator = contract(
    "discriminator",
    STRIDED,
    Twin("all convolutions", build=LaidDiscriminator, weights=discriminator_names, call=call_laid_discriminator),
    trains_differently=lambda a: a.name == "dcgan_8" and len(grid_sizes(a.image_size)) > 2,
    invalid=INVALID,
    name="DCGAN's and WGAN-GP's discriminator",
)


# --------------------------------------------------------------------------------------------------------------------------- both


@pytest.mark.parametrize(("name", "size"), [(n, s) for n in zoo.gan.VARIANTS for s in (8, 28, 32)])
def test_sizes(name, size):
    model = zoo.create(name, image_size=size, in_channels=3, latent_dim=6, num_classes=4, width=16).eval()
    classes = torch.tensor([3, 0])
    drawn = model(torch.randn(2, 6, generator=torch.Generator().manual_seed(0)), classes)
    assert drawn.shape == (2, 3, size, size)
    assert drawn.abs().max() <= 1
    assert model.discriminator(drawn, classes).shape == (2,)


def test_the_parts_are_frozen_by_name():
    model = zoo.create("r3gan_8", width=16)
    assert [*model.parts()] == ["generator", "discriminator"]
    model.freeze(["discriminator"])
    assert all(p.requires_grad for p in model.generator.parameters())
    assert not any(p.requires_grad for p in model.discriminator.parameters())
    z = torch.randn(2, 64)
    assert torch.equal(model(z), model.generator(z))


@pytest.mark.parametrize(("name", "millions"), [("r3gan_8", 0.147), ("r3gan_28", 0.11), ("dcgan_28", 0.27)])
def test_sizes_of_the_networks(name, millions):
    with torch.device("meta"):
        assert sum(p.numel() for p in zoo.create(name).parameters()) / 1e6 == pytest.approx(millions, rel=0.1)


def test_classes_are_asked_for_or_refused():
    plain, conditional = zoo.create("dcgan_8"), zoo.create("dcgan_8", num_classes=3)
    z, classes = torch.randn(2, 64), torch.tensor([0, 2])
    with pytest.raises(ValueError, match=r"classes must be None: the model knows no classes, got \(2,\)"):
        plain(z, classes)
    with pytest.raises(ValueError, match=r"classes must be \(b,\) numbers below 3, got None"):
        conditional(z)
    with pytest.raises(ValueError, match="classes must be tokens from 0 to 2, got 3"):
        conditional(z, classes + 1)
    with pytest.raises(ValueError, match=r"classes must be of dtype"):
        conditional.discriminator(torch.zeros(2, 1, 8, 8), torch.ones(2))
    assert not torch.equal(conditional.eval()(z, classes), conditional(z, classes.flip(0)))


def test_initial_values():
    torch.manual_seed(0)
    model = zoo.create("dcgan_28", num_classes=10, width=64)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)) and module.weight.numel() > 10_000:
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.mean().item() == pytest.approx(1, abs=0.02)
    x = torch.randn(2, 64, 5, 5)
    fresh = residual_block(64, blocks=16)
    assert torch.equal(fresh(x), x)
    assert isinstance(fresh, Residual)
    he = (2 / (1 + 0.2**2)) ** 0.5
    assert fresh.body[0].weight.std().item() == pytest.approx(he * 64**-0.5 / 2, rel=0.05)
    assert fresh.body[2].weight.std().item() == pytest.approx(he * (9 * 16) ** -0.5 / 2, rel=0.05)


RECIPES = {"dcgan_8": "non_saturating", "wgan_gp_8": "wasserstein", "r3gan_8": "relativistic"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_step_of_each_part_lowers_its_loss(name):
    """With its penalties, in float64: by about the step times the squared norm of the gradient."""
    torch.manual_seed(0)
    model, loss = zoo.create(name, width=16, num_classes=3).double(), LOSSES[RECIPES[name]]
    with torch.no_grad():
        for p in model.parameters():  # at R3GAN's initial values nothing depends on the layers within
            p.add_(0.05 * torch.randn_like(p))
    real, z, classes = torch.randn(4, 1, 8, 8).double().tanh(), torch.randn(4, 64).double(), torch.tensor([0, 1, 2, 1])
    fake = model(z, classes).detach()

    def of_discriminator():
        total = loss.discriminator(model.discriminator(real, classes), model.discriminator(fake, classes))
        if name == "wgan_gp_8":
            places = torch.Generator().manual_seed(1)
            total = total + 10 * gradient_penalty(model.discriminator, real, fake, classes, generator=places)
        elif name == "r3gan_8":
            penalties = (zero_centred_penalty(model.discriminator, x, classes) for x in (real, fake))
            total = total + 0.1 * sum(penalties)
        return total

    def of_generator():
        return loss.generator(model.discriminator(real, classes), model.discriminator(model(z, classes), classes))

    for part, run in ((model.discriminator, of_discriminator), (model.generator, of_generator)):
        parameters = [*part.parameters()]
        before = run()
        gradients = torch.autograd.grad(before, parameters, allow_unused=True)
        square = sum(g.square().sum() for g in gradients if g is not None).item()
        step = 1e-6 / square**0.5
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p.sub_(step * (0 if g is None else g))
        assert (before - run()).item() == pytest.approx(step * square, rel=1e-2)
    assert isinstance(model, GAN)
