from __future__ import annotations

import pytest
import torch
from hypothesis import strategies as st
from torch import nn

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
    invalid=[(dict(in_channels=0), "in_channels"), (dict(out_channels=-1), "out_channels")],
)


def test_convolutions_that_fit_are_replaced_and_compute_the_same():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),  # too few channels
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.Conv2d(8, 9, 3, padding="same")),
        nn.Conv2d(9, 8, 3),
        nn.Conv2d(8, 8, 3, padding=1, stride=2),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(8, 8, (3, 1), padding=(1, 0)),
    ).double()
    images = torch.randn(2, 3, 20, 17, dtype=torch.float64)
    expected, state = model(images), model.state_dict()
    assert use_winograd(model, least_channels=8) is model
    assert [n for n, m in model.named_modules() if isinstance(m, WinogradConv2d)] == ["1.0", "1.1"]
    torch.testing.assert_close(model(images), expected, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in state.items())


@pytest.mark.parametrize("channels", [16, 256])
def test_it_rounds_no_worse_than_the_sum_it_stands_for(channels):
    """In float32, as far from float64 as `nn.Conv2d` or nearer, at a network's sizes."""
    torch.manual_seed(0)
    block, direct = WinogradConv2d(channels, channels), nn.Conv2d(channels, channels, 3, padding=1)
    direct.load_state_dict(block.state_dict())
    images = torch.randn(2, channels, 14, 13)
    with torch.no_grad():
        ours, theirs = block(images), direct(images)
        exact = direct.double()(images.double())
    assert (ours - exact).square().mean() < 2 * (theirs - exact).square().mean()
