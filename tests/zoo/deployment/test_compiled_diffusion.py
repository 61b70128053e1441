"""Compiled networks of diffusion: each call equals the model's, and so do samples."""

from __future__ import annotations

import pytest
import torch

import zoo
from layers.testing import fill
from zoo.deployment.fast_convolution import has_fast_kernels
from zoo.dit import DiT
from zoo.generation import diffusion, samplers
from zoo.unet import UNet

CLASSES = 3
pytestmark = pytest.mark.slow


def unet():
    """With enough channels for the convolutions of `zoo.deployment.fast_convolution`, and one level, for each compiles longer."""
    return UNet((32,), 1, (False,), in_channels=1, head_dim=16, groups=2, classes=CLASSES, patch_size=2)


def dit():
    return DiT(8, 2, 1, in_channels=1, classes=CLASSES)


@pytest.fixture(scope="module", params=[unet, dit])
def models(request):
    """(model, its optimized copy, images as the example)"""
    model = fill(request.param(), torch.Generator().manual_seed(0))
    images = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    fast = zoo.optimize(model, images)
    assert model.training
    return model.eval(), fast, images


def assert_near(got, expected):
    assert got.shape == expected.shape
    assert not got.requires_grad
    assert (got - expected).abs().max() < 2e-5 * expected.square().mean().sqrt()


@pytest.mark.parametrize("times", [torch.tensor([3, 999]), torch.tensor([0.5, 20.25])], ids=["integers", "floats"])
@pytest.mark.parametrize("classes", [None, torch.tensor([2, CLASSES])], ids=["without", "classes"])
def test_every_call_equals_the_models(models, times, classes):
    model, fast, images = models
    with torch.profiler.profile() as profile:
        got = fast(images, times, classes)
    called = {event.key.split(":")[0] for event in profile.key_averages()}
    assert "Torch-Compiled Region" in called
    assert ("zooproof" in called) == (isinstance(model, UNet) and has_fast_kernels("winograd.cpp"))
    assert_near(got, model(images, times, classes))
    assert_near(fast(images.double(), times, classes), model(images, times, classes))


def test_samples_equal_the_models(models):
    model, fast, noise = models
    how = dict(steps=3, sampler="ddim", classes=torch.tensor([0, 2]), guidance=2.0)
    assert_near(*(samplers.sample(m, noise, diffusion.linear(), **how) for m in (fast, model)))


def test_inference_mode_compiles_nothing_more(models):
    model, fast, images = models
    times, before = torch.tensor([3, 999]), dict(torch._dynamo.utils.counters["stats"])
    with torch.inference_mode():
        got = fast(images + 0, times, times % CLASSES)
    assert dict(torch._dynamo.utils.counters["stats"]) == before
    assert_near(got, model(images, times, times % CLASSES))


def test_another_number_of_images(models):
    model, fast, _ = models
    if isinstance(model, DiT):
        pytest.skip("the same code as of a U-Net, and one more program")
    images, times = torch.randn(3, 1, 4, 4), torch.tensor([1, 2, 3])
    assert_near(fast(images, times), model(images, times))
    assert fast(images[:0], times[:0]).shape == (0, 1, 4, 4)


BAD = {
    "channels": (torch.zeros(2, 3, 4, 4), torch.zeros(2)),
    "size": (torch.zeros(2, 1, 4, 3), torch.zeros(2)),
    "one time": (torch.zeros(2, 1, 4, 4), torch.tensor(3)),
    "three times": (torch.zeros(2, 1, 4, 4), torch.zeros(3)),
    "unknown": (torch.zeros(2, 1, 4, 4), torch.zeros(2), torch.tensor([0, 4])),
    "floats": (torch.zeros(2, 1, 4, 4), torch.zeros(2), torch.zeros(2)),
    "nothing": (None, torch.zeros(2)),
}


@pytest.mark.parametrize("bad", BAD)
def test_the_optimized_copy_complains_as_the_model_does(models, bad):
    found = []
    for m in models[:2]:
        with pytest.raises((ValueError, AttributeError, TypeError)) as error:
            m(*BAD[bad])
        found.append((error.type, str(error.value)))
    assert found[0] == found[1]


def test_it_is_for_inference_and_tells_what_samplers_ask(models):
    model, fast, _ = models
    assert (fast.no_class, fast.in_channels, fast.out_channels, fast.multiple) == (CLASSES, 1, 1, 2)
    assert next(fast.parameters()).dtype == torch.float32
    assert not fast.train().training
    with pytest.raises(RuntimeError, match="an optimized model cannot load weights"):
        fast.load_state_dict(model.state_dict())


@pytest.mark.parametrize("example", [torch.zeros(2, 1, 4, 3), torch.zeros(2, 3, 4, 4), torch.zeros(4, 4)])
@pytest.mark.parametrize("network", [unet, dit])
def test_a_bad_example_is_refused_before_a_minute_is_spent(network, example):
    with pytest.raises(ValueError, match=r"example|images"):
        zoo.optimize(network(), example)
