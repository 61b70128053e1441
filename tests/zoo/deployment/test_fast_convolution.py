"""Winograd's convolutions in C++: within the bound of their roundings, of any size, and only where they stand for the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import spectral_norm

from layers.testing import fill
from layers.unet import Upsample
from zoo.deployment import fast_convolution
from zoo.deployment.fast_convolution import FastConv2d, convolved, has_fast_kernels, use_fast_convolutions
from zoo.unet import UNet

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def on_x86_with_avx2():
    if not has_fast_kernels("winograd.cpp"):
        pytest.skip("there are none for this processor")


WEIGHTS = {
    False: [[1.0, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]],
    True: [[1.0, 0, 0], [1, 1, 1], [0, 0, 1]],
}
PIXELS = {
    False: [[1.0, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
    True: [[1.0, -1, 0], [0, 1, 0], [0, -1, 1]],
}
PRODUCTS = {False: [[1.0, 1, 1, 0], [0, 1, -1, -1]], True: [[1.0, 1, 0], [0, 1, 1]]}


def both_ways(matrix, x):
    matrix = torch.tensor(matrix, dtype=torch.float64).abs()
    return torch.einsum("ij, ...jk, lk -> ...il", matrix, x, matrix)


def absolute_sums(images, conv, upsamples):
    """Winograd's sums of absolute values, (b, o, y, x): what roundings are relative to."""
    size, step = (3, 1) if upsamples else (4, 2)
    y, x = images.shape[2:]
    tiles = F.pad(images.double().abs(), (1, 1 if upsamples else 1 + x % 2, 1, 1 if upsamples else 1 + y % 2))
    tiles = both_ways(PIXELS[upsamples], tiles.unfold(2, size, step).unfold(3, size, step))
    weight = both_ways(WEIGHTS[upsamples], conv.weight.detach().double().abs())
    sums = both_ways(PRODUCTS[upsamples], torch.einsum("bcyxij, ocij -> boyxij", tiles, weight))
    sums = sums.permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)
    sums = sums if upsamples else sums[..., :y, :x]
    return sums + (0 if conv.bias is None else conv.bias.detach().double().abs()[:, None, None])


@pytest.mark.parametrize("upsamples", [False, True], ids=["plain", "upsampled"])
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 5, 8), (3, 8, 7), (2, 33, 2), (40, 4, 4)])
@pytest.mark.parametrize(("channels", "outputs", "bias"), [(32, 32, True), (48, 64, False), (256, 96, True)])
def test_errors_are_those_of_in_channels_roundings(channels, outputs, bias, size, upsamples):
    """One rounding of a weight, 2 of a pixel, a sum for each channel, 4 on the way back and the bias: n u M at most."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size[0], channels, *size[1:], generator=generator)
    conv = fill(nn.Conv2d(channels, outputs, 3, padding=1, bias=bias), generator)
    got = FastConv2d(conv, upsamples=upsamples)(images)
    larger = F.interpolate(images, scale_factor=2.0) if upsamples else images
    exact = conv.double()(larger.double()).detach()
    assert got.shape == exact.shape
    assert got.is_contiguous(memory_format=torch.channels_last)
    roundings, unit = channels + 8, torch.finfo(torch.float32).eps / 2
    bound = roundings * unit / (1 - roundings * unit) * absolute_sums(images, conv, upsamples)
    assert ((got - exact).abs() <= bound).all()


def test_any_number_of_threads_gives_the_same():
    images, conv, before = torch.randn(5, 32, 9, 6), FastConv2d(nn.Conv2d(32, 32, 3, padding=1)), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(conv(images))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("upsamples", [False, True])
def test_compilers_are_told_the_truth(upsamples):
    conv = FastConv2d(nn.Conv2d(32, 32, 3, padding=1), upsamples=upsamples)
    kinds = "test_schema", "test_faketensor"
    for images in (torch.randn(2, 32, 3, 4), torch.randn(1, 32, 1, 1).to(memory_format=torch.channels_last)):
        torch.library.opcheck(convolved, (images, conv.weight, conv.bias, upsamples), test_utils=kinds)


def test_layers_that_fit_are_replaced_and_no_others():
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),  # three channels do not fill a vector
        nn.Sequential(nn.Conv2d(32, 64, 3, padding=1), spectral_norm(nn.Conv2d(64, 64, 3, padding=1)), Upsample(64)),
        Upsample(64),
        nn.Conv2d(64, 64, 3, padding=1, bias=False),
        nn.Conv2d(64, 64, 3, padding=1, stride=2),
        nn.Conv2d(64, 33, 3, padding="same"),
    ).eval()
    model[3].register_forward_hook(lambda module, inputs, output: -output)
    model[2].register_forward_hook(lambda module, inputs, output: -output)
    images = torch.randn(2, 3, 6, 5)
    with torch.no_grad():
        expected = model(images)
        got = use_fast_convolutions(model)(images)
    assert [n for n, m in model.named_modules() if isinstance(m, FastConv2d)] == ["1.0", "1.2", "2.conv"]
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max()
    assert not [m for m in use_fast_convolutions(nn.Conv2d(32, 32, 3).double()).modules() if isinstance(m, FastConv2d)]


def test_a_network_of_diffusion_computes_the_same():
    model = fill(UNet((32, 64), 1, (False, True), in_channels=1, head_dim=32, groups=8), torch.Generator().manual_seed(0)).eval()
    images, times = torch.randn(2, 1, 10, 8), torch.tensor([3, 999])
    with torch.no_grad():
        expected = model(images, times)
        got = use_fast_convolutions(model)(images, times)
    assert (got - expected).abs().max() < 2e-5 * expected.square().mean().sqrt()


def test_other_channels_are_refused():
    with pytest.raises(ValueError, match="images"):
        FastConv2d(nn.Conv2d(32, 32, 3, padding=1))(torch.zeros(1, 64, 4, 4))


def test_without_a_compiler_the_model_stays(monkeypatch):
    def fails(source):
        raise OSError("no compiler")

    monkeypatch.setattr(fast_convolution, "library", fails)
    model = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1))
    with pytest.warns(UserWarning, match="no compiler"):
        use_fast_convolutions(model)
    assert type(model[0]) is nn.Conv2d
