"""Winograd's convolutions in C++: within the bound of their roundings, of any size, and only where they stand for the same."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.nn import functional as F
from torch.nn.utils import spectral_norm

import zoo
from layers.testing import fill
from layers.testing.equality import rms, unit_roundoff
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
    assert_bound_holds(channels, outputs, bias, size, upsamples)


@pytest.mark.parametrize(("channels", "outputs", "upsamples"), [(32, 8192, False), (16384, 32, True)])
def test_channels_that_overfill_a_cache(channels, outputs, upsamples):
    assert_bound_holds(channels, outputs, True, (1, 3, 4), upsamples)


def assert_bound_holds(channels, outputs, bias, size, upsamples):
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


@pytest.mark.parametrize("upsamples", [False, True])
def test_no_images(upsamples):
    conv = FastConv2d(nn.Conv2d(32, 64, 3, padding=1), upsamples=upsamples)
    assert conv(torch.zeros(0, 32, 5, 6)).shape == ((0, 64, 10, 12) if upsamples else (0, 64, 5, 6))


@pytest.mark.parametrize("upsamples", [False, True])
def test_compiled_once_for_any_size(upsamples):
    conv, calls = FastConv2d(nn.Conv2d(32, 64, 3, padding=1), upsamples=upsamples), []

    def eager(graph, inputs):
        calls.append(graph)
        return graph

    compiled = torch.compile(conv, dynamic=True, fullgraph=True, backend=aot_autograd(fw_compiler=eager))
    with torch.no_grad():
        for size in ((2, 32, 5, 6), (3, 32, 8, 7)):
            images = torch.randn(size)
            assert torch.equal(compiled(images), conv(images))
    assert len(calls) == 1


def test_weights_of_other_strides_are_read_in_order():
    conv, images = FastConv2d(nn.Conv2d(512, 512, 3, padding=1)), torch.randn(1, 512, 2, 2)
    weight, bias = conv.weight.mT.contiguous().mT, conv.bias.repeat_interleave(2)[::2]
    assert torch.equal(convolved(images, weight, bias, False), conv(images))


def test_its_weights_stay_as_they_are_where_a_model_becomes_channels_last():
    conv, images = FastConv2d(nn.Conv2d(32, 64, 3, padding=1)), torch.randn(2, 32, 5, 6)
    expected = conv(images)
    assert torch.equal(conv.to(memory_format=torch.channels_last)(images), expected)
    assert conv.weight.is_contiguous()


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
    assert_near(model, use_fast_convolutions, torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(0)))
    assert [n for n, m in model.named_modules() if isinstance(m, FastConv2d)] == ["1.0", "1.2", "2.conv"]
    assert type(use_fast_convolutions(nn.Sequential(nn.Conv2d(32, 32, 3, padding=1)))[0]) is FastConv2d
    assert type(use_fast_convolutions(nn.Sequential(nn.Conv2d(32, 32, 3, padding=1)).double())[0]) is nn.Conv2d


def assert_near(model, change, *inputs):
    """Errors against float64 at most twice those in float32 before it was changed in place, and a few ulps."""
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(inputs[0].double(), *inputs[1:])
        reference = model(*inputs)
        got = change(model)(*inputs)
    assert rms(got - exact) <= 2 * rms(reference - exact) + 4 * unit_roundoff(torch.float32) * rms(exact)


def test_a_network_of_diffusion_computes_the_same():
    model = fill(UNet((32, 64), 1, (False, True), in_channels=1, head_dim=32, groups=8), torch.Generator().manual_seed(0)).eval()
    images = torch.randn(2, 1, 10, 8, generator=torch.Generator().manual_seed(1))
    assert_near(model, use_fast_convolutions, images, torch.tensor([3, 999]))


def test_other_channels_are_refused():
    with pytest.raises(ValueError, match="images"):
        FastConv2d(nn.Conv2d(32, 32, 3, padding=1))(torch.zeros(1, 64, 4, 4))


OTHERS = {
    "3 channels": nn.Conv2d(3, 32, 3, padding=1),
    "33 outputs": nn.Conv2d(32, 33, 3, padding=1),
    "stride": nn.Conv2d(32, 32, 3, padding=1, stride=2),
    "groups": nn.Conv2d(32, 32, 3, padding=1, groups=2),
    "no padding": nn.Conv2d(32, 32, 3),
    "float64": nn.Conv2d(32, 32, 3, padding=1).double(),
    "device": nn.Conv2d(32, 32, 3, padding=1, device="meta"),
}


@pytest.mark.parametrize("upsamples", [False, True])
@pytest.mark.parametrize("other", OTHERS)
def test_convolutions_that_do_not_fit_are_refused(other, upsamples):
    with pytest.raises(ValueError, match="conv must be of float32 on a CPU, 3x3"):
        FastConv2d(OTHERS[other], upsamples=upsamples)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_another_dtype_are_refused(dtype):
    conv = FastConv2d(nn.Conv2d(32, 32, 3, padding=1)).to(dtype)
    with pytest.raises(ValueError, match=f"weight must be of float32 on a CPU, got .{dtype}"):
        conv(torch.zeros(1, 32, 4, 4, dtype=dtype))


GOOD = dict(images=torch.zeros(2, 32, 3, 4), weight=torch.zeros(0), bias=torch.zeros(64), upsamples=False)
BAD = {
    "dtype of images": dict(images=GOOD["images"].half()),
    "dtype of weight": dict(weight=torch.zeros(0).double()),
    "dtype of bias": dict(bias=GOOD["bias"].bfloat16()),
    "axes of images": dict(images=torch.zeros(32, 3, 4)),
    "channels of images": dict(images=torch.zeros(2, 33, 3, 4)),
    "shape of bias": dict(bias=torch.zeros(65)),
    "axes of bias": dict(bias=torch.zeros(64, 1)),
    "shape of weight": dict(upsamples=True),
    "channels of weight": dict(images=torch.zeros(2, 64, 3, 4)),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_would_be_read_past_its_end_is_refused(bad):
    good = GOOD | {"weight": FastConv2d(nn.Conv2d(32, 64, 3, padding=1)).weight}
    assert convolved(**good).shape == (2, 64, 3, 4)
    with pytest.raises(ValueError, match=bad.split()[-1]):
        convolved(**good | BAD[bad])


def test_there_is_code_for_no_other_device():
    """A pointer to the memory of a GPU would be read as one of this process."""
    for operator in ("zooproof::fast_convolution", "zooproof::fast_group_norm"):
        found = {k: torch._C._dispatch_has_computed_kernel_for_dispatch_key(operator, k) for k in ("CPU", "CUDA", "MPS")}
        assert found == {"CPU": True, "CUDA": False, "MPS": False}


@pytest.fixture
def no_compiler(monkeypatch):
    tried = []

    def fails(source):
        tried.append(source)
        raise OSError("\nno compiler\nand more")

    monkeypatch.setattr(fast_convolution, "library", fails)
    fast_convolution.failure.cache_clear()
    yield tried
    fast_convolution.failure.cache_clear()


def test_without_a_compiler_the_model_stays(no_compiler):
    model = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1))
    for _ in range(2):
        with pytest.warns(UserWarning, match="winograd.cpp does not compile, so that a model is slower: no compiler$") as warned:
            use_fast_convolutions(model)
        assert [w.filename for w in warned] == [__file__]  # where it was called
    assert type(model[0]) is nn.Conv2d
    assert no_compiler == ["winograd.cpp"]  # tried once


def test_an_optimized_network_warns_once_of_both_files(no_compiler, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    model = UNet((32,), 1, (False,), in_channels=1, head_dim=32, groups=8).eval()
    with pytest.warns(UserWarning, match="no compiler") as warned:
        fast = zoo.optimize(model, torch.zeros(1, 1, 4, 4))
    assert [w.filename for w in warned] == [__file__]
    assert fast(torch.zeros(1, 1, 4, 4), torch.zeros(1)).shape == (1, 1, 4, 4)
