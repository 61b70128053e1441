"""Group norms in C++: as exact as torch's, for any number of images and threads, and only where they stand for the same."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from layers.testing import fill
from layers.testing.equality import rms, unit_roundoff
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


def assert_as_exact(got, reference, exact):
    """Errors against float64 at most twice torch's own in float32, and a few ulps."""
    assert got.shape == exact.shape
    assert rms(got - exact) <= 2 * rms(reference - exact) + 4 * unit_roundoff(torch.float32) * rms(exact)


def by_torch(norm, images, silu=False):
    """In float32, and in float64."""
    with torch.no_grad():
        outputs = norm(images), copy.deepcopy(norm).double()(images.double())
    return [F.silu(x) if silu else x for x in outputs]


@pytest.mark.parametrize("silu", [False, True], ids=["plain", "silu"])
@pytest.mark.parametrize("shifted", [False, True], ids=["", "shifted"])
@pytest.mark.parametrize("size", [(1, 1, 1), (3, 5, 7), (2, 40, 31), (9, 4, 4)])
@pytest.mark.parametrize(("channels", "groups"), [(32, 8), (96, 3), (48, 12)])
def test_equal_to_the_formula(channels, groups, size, shifted, silu):
    norm, fast, generator = made(channels, groups, silu)
    images = torch.randn(size[0], channels, *size[1:], generator=generator)
    shift = torch.randn(size[0], channels, generator=generator) if shifted else None
    got = fast(images, shift)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert_as_exact(got, *by_torch(norm, images if shift is None else images + shift[..., None, None], silu))


def test_a_mean_that_is_large_costs_the_digits_of_the_images_alone():
    norm, fast, generator = made(32, 4)
    images = 1000 + torch.randn(2, 32, 64, 32, generator=generator)
    assert_as_exact(fast(images), *by_torch(norm, images))


def test_images_of_one_value_become_the_bias():
    norm, fast, _ = made(32, 4)
    assert torch.equal(fast(torch.full((2, 32, 6, 6), 3.0)), norm.bias.detach()[:, None, None].expand(2, -1, 6, 6))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_threads_is_as_exact(count):
    norm, fast, generator = made(32, 4, silu=True)
    images, before, found = torch.randn(count, 32, 9, 7, generator=generator), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            found.append(fast(images))
    finally:
        torch.set_num_threads(before)
    for got in found:
        assert_as_exact(got, *by_torch(norm, images, silu=True))


@pytest.mark.parametrize("shifted", [False, True])
def test_no_images(shifted):
    _, fast, _ = made(32, 4)
    assert fast(torch.zeros(0, 32, 5, 6), torch.zeros(0, 32) if shifted else None).shape == (0, 32, 5, 6)
    assert fast(torch.zeros(2, 32, 0, 6)).shape == (2, 32, 0, 6)


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
    exactly = copy.deepcopy(model).double()
    generator = torch.Generator().manual_seed(1)
    images, time = torch.randn(2, 32, 5, 4, generator=generator), torch.randn(2, 16, generator=generator)

    def outputs(model, images, time):
        first = model[0](images, time)
        second = model[2](model[1](first))
        return first, second, model[4](second, time), model[3](images[:, :20], time), model[5](first)

    with torch.no_grad():
        reference, exact = outputs(model, images, time), outputs(exactly, images.double(), time.double())
        for found in zip(outputs(use_fast_norms(model), images, time), reference, exact, strict=True):
            assert_as_exact(*found)
    assert [type(m) is FastTimeResidual for m in model] == [True, True, False, False, False, False]
    assert [type(model[n].norm) is FastGroupNorm for n in (2, 5)] == [True, False]


@pytest.mark.parametrize("time_dim", [None, 16])
def test_its_residual_complains_as_the_model_does(time_dim):
    residual, images = TimeResidual(32, 32, time_dim, groups=4), torch.zeros(2, 32, 4, 4)
    none, time = (None, torch.zeros(2, 16)) if time_dim else (torch.zeros(2, 16), None)
    calls = [
        (images, none),
        (images[:, :31], time),
        (images[0], time),
        (images, torch.zeros(2, 15)),
        (images, torch.zeros(1, 16)),
    ]
    for call in calls:
        found = []
        for block in (residual, FastTimeResidual(residual)):
            with pytest.raises(ValueError, match=r"time|images") as error:
                block(*call)
            found.append(str(error.value))
        assert found[0] == found[1]


OTHERS = {
    "20 channels": nn.GroupNorm(4, 20),
    "groups of one channel": nn.GroupNorm(32, 32),
    "no weights": nn.GroupNorm(4, 32, affine=False),
    "float64": nn.GroupNorm(4, 32).double(),
    "device": nn.GroupNorm(4, 32, device="meta"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_norms_that_do_not_fit_are_refused(other):
    with pytest.raises(ValueError, match="norm must be of float32 on a CPU"):
        FastGroupNorm(OTHERS[other])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_another_dtype_are_refused(dtype):
    _, fast, _ = made(32, 4)
    with pytest.raises(ValueError, match=f"weight must be of float32 on a CPU, got .{dtype}"):
        fast.to(dtype)(torch.zeros(1, 32, 4, 4, dtype=dtype))


GOOD = dict(images=torch.zeros(2, 32, 3, 4), shift=torch.zeros(2, 32), weight=torch.ones(32), bias=torch.ones(32), groups=4)
BAD = {
    "dtype of images": dict(images=GOOD["images"].half()),
    "dtype of shift": dict(shift=GOOD["shift"].double()),
    "dtype of weight": dict(weight=torch.ones(32).double()),
    "dtype of bias": dict(bias=torch.ones(32).bfloat16()),
    "axes of images": dict(images=torch.zeros(32, 3, 4)),
    "channels of images": dict(images=torch.zeros(2, 33, 3, 4)),
    "groups": dict(groups=5),
    "no groups": dict(groups=0),
    "weight": dict(weight=torch.ones(31)),
    "bias": dict(bias=torch.ones(1)),
    "batch of shift": dict(shift=torch.zeros(1, 32)),
    "channels of shift": dict(shift=torch.zeros(2, 31)),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_would_be_read_past_its_end_is_refused(bad):
    good = GOOD | dict(eps=1e-6, silu=False)
    assert normalised(**good).shape == (2, 32, 3, 4)
    with pytest.raises(ValueError, match=bad.split()[-1]):
        normalised(**good | BAD[bad])


def test_other_channels_are_refused():
    _, fast, _ = made(32, 4)
    with pytest.raises(ValueError, match="images"):
        fast(torch.zeros(1, 64, 4, 4))
