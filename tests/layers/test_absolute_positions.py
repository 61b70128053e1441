"""Sines and tables of positions beyond their contracts: far out, at their start, past the end."""

from __future__ import annotations

import math

import pytest
import torch
from angles import angle
from torch import nn
from transformers.models.bart.modeling_bart import BartLearnedPositionalEmbedding

from layers.positions import LearnedPositions, RelativeBias, Sinusoidal
from layers.weights import WeightMap


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_sines_are_exact_far_out(interleaved, dtype):
    block = nn.Sequential(Sinusoidal(65, interleaved)).to(torch.bfloat16)[0]
    positions = [99_999, 100_000, 1_000_003]
    found = block(torch.tensor(positions), dtype)
    sines = torch.tensor([[math.sin(angle(p, i, 65)) for i in range(33)] for p in positions], dtype=torch.float64)
    cosines = torch.tensor([[math.cos(angle(p, i, 65)) for i in range(32)] for p in positions], dtype=torch.float64)
    ours = (found[:, 0::2], found[:, 1::2]) if interleaved else (found[:, :33], found[:, 33:])
    for x, truth in zip(ours, (sines, cosines), strict=True):
        unit = torch.finfo(dtype).eps / 2  # one rounding, and an angle that Python's floats and torch's may round differently
        torch.testing.assert_close(x.double(), truth, rtol=1.01 * unit, atol=1e-9)


def test_learned_positions_equal_barts():
    ours, theirs = LearnedPositions(9, 6, offset=2), BartLearnedPositionalEmbedding(9, 6)
    WeightMap(("table", "")).load(ours, theirs.state_dict())
    assert torch.equal(ours(torch.arange(9)), theirs(torch.zeros(1, 9))[0])
    assert torch.equal(ours(torch.tensor([4])), theirs(torch.zeros(1, 1), 4)[0])


@pytest.mark.parametrize(
    "block", [LearnedPositions(500, 64), RelativeBias(64, buckets=500, max_distance=1000)], ids=lambda block: type(block).__name__
)
def test_tables_start_small(block):
    assert block.table.weight.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("offset", [0, 2])
def test_positions_past_the_table_are_refused(offset):
    block = LearnedPositions(5, 3, offset)
    assert block(torch.arange(5)).shape == (5, 3)
    assert block(torch.arange(12) % 5).shape == (12, 3)  # of several documents or rows, one after the other
    with pytest.raises(ValueError, match="from 0 to 4, got 0 to 5"):
        block(torch.arange(6))
    with pytest.raises(ValueError, match="from 0 to 4, got 3 to 5"):
        block(torch.tensor([3, 5]))
    with pytest.raises(ValueError, match="from 0 to 4, got -3 to 4"):
        block(torch.tensor([-3, 4]))
