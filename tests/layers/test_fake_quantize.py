"""Rounding in training: what 8-bit integers stand for, gradients as if nothing were rounded, and nothing else changed."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from layers.fake_quantize import FakeQuantized, rounded_inputs, rounded_rows
from zoo.deployment.quantize import rounded

SHAPES = [(3, 5), (4, 2, 3, 3), (6, 1, 5, 5)]


@given(seed=st.integers(0, 2**31), shape=st.sampled_from(SHAPES), spread=st.floats(1e-3, 1e3))
def test_rows_are_torchs_and_those_of_zoo_quantize(seed, shape, spread):
    """Where a number lies between two integers, to rounding, either may be taken."""
    weight = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * spread).requires_grad_()
    integers, scale = rounded(weight.detach().flatten(1))
    ours = rounded_rows(weight)
    theirs = torch.fake_quantize_per_channel_affine(weight, scale, torch.zeros(len(scale), dtype=torch.int32), 0, -128, 127)
    assert torch.equal(ours.detach().flatten(1), integers * scale[:, None])
    steps = ((ours - theirs).flatten(1) / scale[:, None]).abs()
    assert steps.max() < 1.01
    assert (steps > 0.01).sum() <= len(weight), "the largest of a row, which lies between two integers"
    draw = torch.randn(shape)
    found, stopped = (torch.autograd.grad((x * draw).sum(), weight)[0] for x in (ours, theirs))
    assert torch.equal(found, draw)
    assert torch.equal(found[stopped != 0], stopped[stopped != 0]), (
        "torch's stops at the largest of a row, which then never falls"
    )


@given(seed=st.integers(0, 2**31), shape=st.sampled_from(SHAPES), shift=st.floats(-3, 3))
def test_inputs_are_torchs(seed, shape, shift):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + shift
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    scale = (high - low) / 255
    theirs = torch.fake_quantize_per_tensor_affine(x, scale, min(255, max(0, round(-low / scale))), 0, 255)
    ours = rounded_inputs(x)
    assert (ours - theirs).abs().max() <= scale * 1.01
    assert ((ours - theirs).abs() > scale * 0.01).float().mean() < 0.02, "which lie between two integers"
    assert (ours - x).abs().max() <= scale * 1.01
    assert len(ours.unique()) <= 256


def test_processes_have_one_range(monkeypatch):
    """To the bit what one process gives; one may have nothing."""
    parts = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)).tensor_split((2, 2))
    ends = [torch.cat([part.flatten(), torch.zeros(1)]).aminmax() for part in parts]
    most = torch.stack([torch.stack([-low, high]) for low, high in ends]).amax(0)
    whole = rounded_inputs(torch.cat(parts))
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda x, how: x.copy_(most))
    assert torch.equal(torch.cat([rounded_inputs(part) for part in parts]), whole)


def test_zeros_and_what_is_alike_stay_exact():
    for x in (torch.zeros(2, 3), torch.empty(0, 3), torch.relu(torch.linspace(-2, 5, 30)), torch.full((3, 2), 7.0)):
        found = rounded_inputs(x)
        assert torch.equal(found[x == 0], x[x == 0])
        torch.testing.assert_close(found, x, atol=0.02, rtol=0)
    torch.testing.assert_close(rounded_inputs(torch.full((3, 2), 7.0)), torch.full((3, 2), 7.0))
    assert torch.equal(rounded_rows(torch.zeros(2, 3)), torch.zeros(2, 3))
    for call in (rounded_inputs, rounded_rows):
        with pytest.raises(ValueError, match=r"must be floats, got torch\.int64"):
            call(torch.ones(2, 3).long())


def test_networks_compute_with_rounded_numbers_and_gradients_go_through():
    """By hand in float64: outputs and gradients at rounded weights and inputs, as if the rounding had a slope of 1."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, groups=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))
    model, x = model.double(), torch.randn(6, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    before, (conv, norm, _, _, linear) = copy.deepcopy(model.state_dict()), model
    with FakeQuantized():
        outputs = model.eval()(x)
    middle = norm(F.conv2d(rounded_inputs(x), rounded_rows(conv.weight), conv.bias, stride=2)).relu().flatten(1)
    expected = F.linear(rounded_inputs(middle), rounded_rows(linear.weight), linear.bias)
    torch.testing.assert_close(outputs, expected, rtol=1e-12, atol=1e-12)
    assert 1e-3 < (outputs - model(x)).abs().max() < 0.3
    draw, wanted = torch.randn_like(outputs), [x, *model.parameters()]
    ours = torch.autograd.grad((outputs * draw).sum(), wanted)
    rows = [rounded_rows(layer.weight).detach().requires_grad_() for layer in (conv, linear)]
    first = rounded_inputs(x).detach().requires_grad_()
    middle = norm(F.conv2d(first, rows[0], conv.bias, stride=2)).relu().flatten(1)
    second = rounded_inputs(middle)
    by_hand = [first, rows[0], conv.bias, norm.weight, norm.bias, rows[1], linear.bias]
    for one, other in zip(ours, torch.autograd.grad((F.linear(second, rows[1], linear.bias) * draw).sum(), by_hand), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert model.state_dict().keys() == before.keys()
