"""Group norms in C++: as exact as torch's, for any number of images and threads, and only where they stand for the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from layers.testing import fill
from layers.unet import PixelAttention, TimeResidual
from zoo.deployment.fast_convolution import has_fast_kernels
from zoo.deployment.fast_norm import FastGroupNorm, FastTimeResidual, normalised, use_fast_norms

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def on_x86_with_avx2():
    if not has_fast_kernels("group_norm.cpp"):
        pytest.skip("there are none for this processor")


def made(channels, groups, silu=False):
    generator = torch.Generator().manual_seed(0)
    norm = fill(nn.GroupNorm(groups, channels, eps=1e-6), generator)
    return norm, FastGroupNorm(norm, silu=silu), generator


@pytest.mark.parametrize("silu", [False, True], ids=["plain", "silu"])
@pytest.mark.parametrize("shifted", [False, True], ids=["", "shifted"])
@pytest.mark.parametrize("size", [(1, 1, 1), (3, 5, 7), (2, 40, 31), (9, 4, 4)])
@pytest.mark.parametrize(("channels", "groups"), [(32, 8), (96, 3), (48, 12)])
def test_equal_to_the_formula(channels, groups, size, shifted, silu):
    norm, fast, generator = made(channels, groups, silu)
    images = torch.randn(size[0], channels, *size[1:], generator=generator)
    shift = torch.randn(size[0], channels, generator=generator) if shifted else None
    got = fast(images, shift)
    exact = norm.double()((images if shift is None else images + shift[..., None, None]).double())
    exact = (F.silu(exact) if silu else exact).detach()
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert (got - exact).abs().max() < 2e-6 * exact.abs().max()


def test_a_mean_that_is_large_costs_the_digits_of_the_images_alone():
    norm, fast, generator = made(32, 4)
    images = 1000 + torch.randn(2, 32, 64, 32, generator=generator)
    assert (fast(images) - norm.double()(images.double())).abs().max() < 1000 * torch.finfo(torch.float32).eps * 4


def test_images_of_one_value_become_the_bias():
    norm, fast, _ = made(32, 4)
    assert (fast(torch.full((2, 32, 6, 6), 3.0)) - norm.bias[:, None, None]).abs().max() < 1e-3


@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_threads_gives_nearly_the_same(count):
    _, fast, generator = made(32, 4, silu=True)
    images, before, found = torch.randn(count, 32, 9, 7, generator=generator), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            found.append(fast(images))
    finally:
        torch.set_num_threads(before)
    assert max((x - found[0]).abs().max() for x in found) < 1e-6 * found[0].abs().max()


@pytest.mark.parametrize("shifted", [False, True])
def test_compilers_are_told_the_truth(shifted):
    norm, _, generator = made(32, 4)
    images = torch.randn(2, 32, 3, 4, generator=generator)
    shift = torch.randn(2, 32, generator=generator) if shifted else None
    arguments = images, shift, norm.weight.detach(), norm.bias.detach(), 4, 1e-6, True
    torch.library.opcheck(normalised, arguments, test_utils=("test_schema", "test_faketensor"))


def test_blocks_that_fit_compute_the_same_and_no_others_are_replaced():
    model = nn.ModuleList([TimeResidual(32, 64, 16, groups=8), TimeResidual(64, 64, groups=8), PixelAttention(64, 2, groups=8)])
    model += [TimeResidual(20, 32, 16, groups=4), TimeResidual(64, 64, 16, groups=8), PixelAttention(64, 2, groups=64)]
    model = fill(model, torch.Generator().manual_seed(0)).eval()
    model[4].norm2.register_forward_hook(lambda module, inputs, output: -output)
    images, time = torch.randn(2, 32, 5, 4), torch.randn(2, 16)

    def outputs():
        first = model[0](images, time)
        second = model[2](model[1](first))
        return first, second, model[4](second, time), model[3](images[:, :20], time), model[5](first)

    with torch.no_grad():
        expected = outputs()
        use_fast_norms(model)
        for got, right in zip(outputs(), expected, strict=True):
            assert (got - right).abs().max() < 1e-5 * right.abs().max()
    assert [type(m) is FastTimeResidual for m in model] == [True, True, False, False, False, False]
    assert [type(model[n].norm) is FastGroupNorm for n in (2, 5)] == [True, False]


def test_other_channels_are_refused():
    _, fast, _ = made(32, 4)
    with pytest.raises(ValueError, match="images"):
        fast(torch.zeros(1, 64, 4, 4))
