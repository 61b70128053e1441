"""Rotary positions beyond their contracts: exact far out, of differences alone, of each row's own."""

from __future__ import annotations

import math

import pytest
import torch
from angles import angle
from einops import rearrange
from torch import nn

from layers.positions import Rotary
from layers.rotary_scaling import Llama3Scaling
from layers.testing import require_equal


def pairs(x, interleaved):
    return (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("how", ["float64", "float32", "to(bfloat16)", "half()", "autocast"])
def test_rotation_is_exact_far_out(interleaved, how):
    block = nn.ModuleList([Rotary(64, 500000.0, interleaved)])
    dtype = {"to(bfloat16)": torch.bfloat16, "half()": torch.float16, "float64": torch.float64}.get(how, torch.float32)
    block = block.half() if how == "half()" else block.to(dtype)
    positions = [0, 1, 99_999, 100_000, 1_000_003]
    x = torch.randn(2, 3, len(positions), 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        found = block[0](x, torch.tensor(positions))
    assert found.dtype == dtype
    angles = [[angle(p, i, 64, 500000.0) for i in range(32)] for p in positions]
    cos = torch.tensor([[math.cos(a) for a in row] for row in angles], dtype=torch.float64)
    sin = torch.tensor([[math.sin(a) for a in row] for row in angles], dtype=torch.float64)
    first, second = pairs(x.double(), interleaved)
    unit = torch.finfo(dtype).eps / 2
    inner = 1e-9 if dtype == torch.float64 else 1e-6  # products in float32 at least: their own few roundings
    for ours, truth in zip(pairs(found, interleaved), (first * cos - second * sin, second * cos + first * sin), strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=1.01 * unit, atol=inner)


ROTARIES = {
    "half-split": Rotary(16),
    "interleaved": Rotary(16, interleaved=True),
    "partial": Rotary(16, rotary_dim=6),
    "partial, interleaved": Rotary(16, interleaved=True, rotary_dim=6),
    "scaled": Rotary(16, base=100.0, scaling=Llama3Scaling(original_length=64)),
}


def score(block, query_position, key_position):
    q, k = torch.randn(2, 1, 3, 1, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return (block(q, torch.tensor([query_position])) * block(k, torch.tensor([key_position]))).sum(-1)


@pytest.mark.parametrize("name", ROTARIES)
def test_scores_depend_on_the_difference_of_positions_alone(name):
    expected = score(ROTARIES[name], 7, 3)
    for shift in (1, 50, 4000, 100_000):
        require_equal(score(ROTARIES[name], 7 + shift, 3 + shift), expected, 1e-10)
    for query, key in ((7, 4), (8, 3), (3, 7), (7, 7)):  # the other way round too
        assert (score(ROTARIES[name], query, key) - expected).abs().min() > 1e-4


@pytest.mark.parametrize("name", ROTARIES)
def test_norms_stay_and_position_0_turns_nothing(name):
    block, x = ROTARIES[name], torch.randn(2, 3, 5, 16, dtype=torch.float64)
    found = block(x, torch.tensor([0, 1, 20, 300, 100_000]))
    require_equal(found.norm(dim=-1), x.norm(dim=-1), 1e-14)
    assert torch.equal(found[:, :, 0], x[:, :, 0])
    assert not torch.isclose(found[:, :, 1:, : block.rotary_dim], x[:, :, 1:, : block.rotary_dim]).all(-1).any()
    assert torch.equal(found[..., block.rotary_dim :], x[..., block.rotary_dim :])


def test_interleaved_is_half_split_with_features_permuted():
    x, positions = torch.randn(2, 3, 5, 16, dtype=torch.float64), torch.tensor([3, 1, 4, 15, 926])
    permuted = rearrange(x, "... (f pair) -> ... (pair f)", pair=2)
    expected = rearrange(Rotary(16)(permuted, positions), "... (pair f) -> ... (f pair)", pair=2)
    assert torch.equal(Rotary(16, interleaved=True)(x, positions), expected)
    assert not torch.equal(Rotary(16)(x, positions), expected)


@pytest.mark.parametrize("name", ROTARIES)
def test_each_row_turns_by_its_own_positions(name):
    block, x = ROTARIES[name], torch.randn(3, 2, 5, 16, dtype=torch.float64)
    positions = torch.tensor([[0, 1, 2, 3, 4], [0, 0, 0, 1, 2], [7, 8, 9, 10, 11]])  # the second one is padded on the left
    whole = block(x, positions)
    for row, expected, at in zip(x, whole, positions, strict=True):
        assert torch.equal(block(row[None], at)[0], expected)
    for i in range(5):  # and one position at a time, as in decoding
        assert torch.equal(block(x[:, :, i : i + 1], positions[:, i : i + 1]), whole[:, :, i : i + 1])
    padded = whole[1, :, 2:]
    assert torch.equal(block(x[1:2, :, 2:], torch.arange(3))[0], padded)
    assert not torch.equal(block(x, positions[0])[1, :, 2:], padded)


@pytest.mark.parametrize(
    ("positions", "words"),
    [
        (torch.arange(4), "positions: length must be 5"),
        (torch.zeros(3, 5, dtype=torch.long), "positions: batch must be 2"),
        (torch.zeros(1, 2, 5, dtype=torch.long), "positions must have 2 axes"),
    ],
)
def test_positions_that_do_not_fit_x_are_refused(positions, words):
    with pytest.raises(ValueError, match=words):
        Rotary(6)(torch.randn(2, 3, 5, 6), positions)


@pytest.mark.parametrize(
    ("name", "value"),
    [("factor", 0.5), ("low", 0.0), ("low", 4.0), ("high", 1.0), ("original_length", 0)],
)
def test_bad_scaling_is_refused(name, value):
    with pytest.raises(ValueError, match=name):
        Llama3Scaling(**{name: value})
