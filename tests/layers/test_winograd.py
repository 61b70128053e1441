from __future__ import annotations

import pytest
import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import spectral_norm

from layers.testing import Contract, Twin, tensor
from layers.weights import WeightMap
from layers.winograd import WinogradConv2d, use_winograd

winograd = Contract(
    WinogradConv2d,
    arguments=dict(in_channels=st.integers(1, 4), out_channels=st.integers(1, 5), bias=st.booleans()),
    inputs=lambda a: dict(
        input=tensor("batch channels height width", channels=a.in_channels, height=st.integers(1, 7), width=st.integers(1, 7))
    ),
    outputs=lambda a, s: ("batch", a.out_channels, s.height, s.width),
    twins=[
        Twin(
            "torch",
            build=lambda a: nn.Conv2d(a.in_channels, a.out_channels, 3, padding=1, bias=a.bias),
            weights=WeightMap(("", "")),
        )
    ],
    invalid=[(dict(in_channels=0), "in_channels"), (dict(out_channels=0), "out_channels")],
)


def test_convolutions_that_fit_are_replaced_and_compute_the_same():
    torch.manual_seed(0)
    shared = nn.Conv2d(8, 8, 3, padding=1, bias=False)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),  # too few channels
        nn.Sequential(shared, spectral_norm(nn.Conv2d(8, 8, 3, padding="same")), shared, nn.Conv2d(8, 9, 3, padding=1)),
        nn.Conv2d(9, 8, 3),
        nn.Conv2d(8, 8, 3, padding=1, stride=2),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(8, 8, (3, 1), padding=(1, 0)),
    )
    model = model.double().eval()
    model[1][3].register_forward_hook(lambda module, inputs, output: -output)
    images = torch.randn(2, 3, 20, 17, dtype=torch.float64)
    expected, state = model(images), model.state_dict()
    assert use_winograd(model, least_channels=8) is model
    found = [n for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, WinogradConv2d)]
    assert found == ["1.0", "1.1", "1.2", "1.3"]
    torch.testing.assert_close(model(images), expected, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in state.items())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(7, 6), (4, 5)])
def test_outputs_lie_in_memory_as_those_of_torch(bias, size):
    images = torch.randn(2, 3, *size).contiguous(memory_format=torch.channels_last)
    block, direct = WinogradConv2d(3, 4, bias=bias), nn.Conv2d(3, 4, 3, padding=1, bias=bias)
    direct = direct.to(memory_format=torch.channels_last)
    assert block(images).stride() == direct(images).stride()
    with torch.autocast("cpu", torch.bfloat16):
        assert block(images).dtype == direct(images).dtype


PIXELS = torch.tensor([[1.0, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], dtype=torch.float64)
WEIGHTS = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)
PRODUCTS = torch.tensor([[1.0, 1, 1, 0], [0, 1, -1, -1]], dtype=torch.float64)


def both_ways(matrix, x):
    return torch.einsum("ij, ...jk, lk -> ...il", matrix, x, matrix)


def rounded_sums(images, conv, power):
    """What rounding errors of `conv` are relative to, (b, o, y, x): sums of |terms| for power 1, roots of sums of squares for 2.

    Between the transformed products of one channel, which are not independent, absolute values are added either way.
    """
    tiles = nn.functional.pad(images.double(), (1, 1, 1, 1)).unfold(2, 4, 2).unfold(3, 4, 2).abs() ** power
    weight = both_ways(WEIGHTS.abs() ** power, conv.weight.detach().double().abs() ** power)
    products = torch.einsum("bcyxij, ocij -> boyxij", both_ways(PIXELS.abs() ** power, tiles), weight) ** (1 / power)
    sums = both_ways(PRODUCTS.abs(), products).permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)
    return sums + conv.bias.detach().double().abs()[:, None, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 16, 256])
def test_rounding_stays_within_the_bound_of_its_arithmetic(channels, dtype):
    """The worst within n u of the absolute sums; the mean square within sqrt(n) u of what independent roundings add up to."""
    torch.manual_seed(0)
    block, images = WinogradConv2d(channels, channels).to(dtype), torch.randn(2, channels, 14, 12).to(dtype)
    exact = nn.Conv2d(channels, channels, 3, padding=1).double()
    exact.load_state_dict(block.state_dict())
    with torch.no_grad():
        error = (block(images) - exact(images.double())).abs()
    n, u = channels + 11, torch.finfo(dtype).eps / 2
    if n * u < 1:
        assert (error <= n * u / (1 - n * u) * rounded_sums(images, block, 1)).all()
    ratio = error.square().mean().sqrt() / (n**0.5 * u * rounded_sums(images, block, 2).square().mean().sqrt())
    assert ratio < 1
