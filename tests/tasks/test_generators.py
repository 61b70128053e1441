"""What `tasks.image_generation` can learn, without its runs: losses, images out of noise, inpainting."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import zoo
from tasks import image_generation_use
from tasks.generators import GENERATORS, Diffusion, Holding
from zoo import gan_losses
from zoo.generation import samplers


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("size", [8, 28, 32])
def test_a_fresh_one_makes_images(name, size):
    """In colour, with classes where it takes some."""
    generator = GENERATORS[name]
    if isinstance(generator, Diffusion):
        generator = replace(generator, steps=2)
    classes = 3 if generator.conditional else None
    model = zoo.create(generator.network(size), **generator.arguments(3, size, classes)).eval()
    noise = torch.randn(2, *generator.noise_shape(model, (3, size, size)))
    found = generator.pictures(model, noise, None if classes is None else torch.tensor([0, 2]), 0)
    assert (found.dtype, found.shape) == (torch.uint8, (2, 3, size, size))
    assert not torch.equal(found[0], found[1])


def test_the_options_name_every_sampler():
    """Where torch is not imported yet."""
    assert image_generation_use.SAMPLERS == samplers.SAMPLERS


@pytest.mark.parametrize(
    ("name", "sampler", "steps", "expected"),
    [
        ("flow", None, None, ("heun", 5)),
        ("flow", "euler", None, ("euler", 10)),
        ("flow", "euler", 7, ("euler", 7)),
        ("flow", "heun", None, ("heun", 5)),
        ("ddpm", "heun", None, ("heun", 5)),
        ("ddpm", "ddim", None, ("ddim", 10)),
        ("ddpm", None, 3, ("dpm++", 3)),
    ],
)
def test_another_sampler_asks_the_network_as_often(name, sampler, steps, expected):
    found = GENERATORS[name].given(SimpleNamespace(sampler=sampler, steps=steps, guidance=None))
    assert (found.sampler, found.steps) == expected


def test_penalties_are_added_to_the_discriminators_loss_alone():
    """On the first images of the batch; and in evaluation not at all."""
    torch.manual_seed(0)
    model = zoo.create("r3gan_8", width=16, depth=1, latent_dim=4).double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    images, latents = torch.randn(3, 1, 8, 8, dtype=torch.float64), torch.randn(3, 2, 4, dtype=torch.float64)
    found = {}
    for weight in (0.0, 0.5):
        turns = replace(GENERATORS["r3gan"], weight=weight, share=0.5).losses(model, images, None, latents)
        found[weight] = {part: loss.detach() for part, loss, _ in turns}
    fake = model.generator(latents[:, 0]).detach()
    expected = sum(gan_losses.zero_centred_penalty(model.discriminator, x[:2]) for x in (images, fake))
    torch.testing.assert_close(found[0.5]["discriminator"] - found[0.0]["discriminator"], 0.5 * 3 * expected.detach())
    assert found[0.5]["generator"] == found[0.0]["generator"]
    with torch.no_grad():
        turns = {part: loss for part, loss, _ in GENERATORS["r3gan"].losses(model, images, None, latents)}
    torch.testing.assert_close(turns["discriminator"], found[0.0]["discriminator"])


@pytest.mark.parametrize("name", [name for name, generator in GENERATORS.items() if isinstance(generator, Diffusion)])
def test_inpainting_predicts_what_is_known(name):
    """Whatever a network says: there the image comes out, elsewhere what the network alone makes."""
    generator = replace(GENERATORS[name], steps=4)
    noise = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    image, there = torch.rand(1, 4, 4, dtype=torch.float64), torch.arange(16).view(4, 4) < 9

    def network(x, times, classes):
        return (x * 0.3).tanh() + times[0].double().sin() / 9

    found = generator.images(Holding(network, generator.path, image, there), noise, None, 0)
    alone = generator.images(network, noise, None, 0)
    torch.testing.assert_close(found[..., there], image[..., there].expand(3, 1, -1), rtol=0, atol=1e-9)
    torch.testing.assert_close(found[..., ~there], alone[..., ~there], rtol=0, atol=1e-9)


def test_the_loss_is_that_of_the_paper():
    """Lipman et al., 2022: of a flow, |v - (noise - image)|^2 at image + t (noise - image), in the mean."""
    images, noise, times = torch.randn(3, 1, 2, 2), torch.randn(3, 1, 2, 2), torch.tensor([100.0, 500.0, 1000.0])
    asked = []

    def network(x, t, classes):
        asked.append(x)
        return 0.1 * x

    ((part, found, _),) = GENERATORS["flow"].losses(network, images, None, noise, times)
    t = times.view(3, 1, 1, 1) / 1000
    torch.testing.assert_close(asked[0], images + t * (noise - images))
    torch.testing.assert_close(found, (0.1 * asked[0] - (noise - images)).square().mean((1, 2, 3)).sum())
    assert part == "model"


def test_between_two_noises():
    one, other = torch.randn(2, 1, 5, 5)
    found = image_generation_use.between(one, other, 5)
    assert torch.equal(found[0], one)
    torch.testing.assert_close(found[-1], other, rtol=0, atol=1e-6)
    torch.testing.assert_close(found[2], (one + other) / 2**0.5)
