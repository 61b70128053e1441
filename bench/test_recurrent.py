"""Recurrent networks of 2 layers and 256 units, on 16 rows of 64 tokens, against torch's with the same weights.

Fused, which calls torch's kernels over our cells, with rows of unequal length too, and written out, which is a loop in Python.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from layers.recurrent import GRU, LSTM, NAMES_OF_TORCH

ROWS, TOKENS, DIM, LAYERS = 16, 64, 256, 2
KINDS = pytest.mark.parametrize("kind", [LSTM, GRU], ids=lambda kind: kind.__name__)
WORK = pytest.mark.parametrize("work", ["infer", "train step"])


def networks(kind, fused):
    """(ours, torch's) with the same weights."""
    torch.manual_seed(0)
    ours = kind(DIM, DIM, layers=LAYERS, fused=fused)
    theirs = getattr(nn, kind.__name__)(DIM, DIM, LAYERS, batch_first=True)
    theirs.load_state_dict(NAMES_OF_TORCH.export(ours), strict=True)
    return ours, theirs


def calls(ours, theirs, work):
    """Both as functions without arguments, after it is known that they compute the same."""

    def infer(forward):
        with torch.inference_mode():
            return forward()

    def train_step(module, forward):
        forward().square().mean().backward()
        module.zero_grad()

    torch.testing.assert_close(infer(ours[1]), infer(theirs[1]), rtol=1e-4, atol=1e-5)
    return [(lambda m=m, f=f: infer(f) if work == "infer" else train_step(m, f)) for m, f in (ours, theirs)]


@WORK
@KINDS
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "written out"])
def test_time(benchmark, side_by_side, kind, work, fused):
    ours, theirs = networks(kind, fused)
    x = torch.randn(ROWS, TOKENS, DIM)
    benchmark.group = f"{work}, {kind.__name__} {'fused' if fused else 'written out'}, torch's"
    side_by_side(*calls((ours, lambda: ours(x)[0]), (theirs, lambda: theirs(x)[0]), work), rounds=21)


@WORK
@KINDS
def test_time_of_unequal_rows(benchmark, side_by_side, kind, work):
    """Half of the tokens are real; torch's packs and unpacks them."""
    ours, theirs = networks(kind, fused=True)
    x, lengths = torch.randn(ROWS, TOKENS, DIM), torch.arange(1, ROWS + 1) * (TOKENS // ROWS)
    mask = torch.arange(TOKENS) < lengths[:, None]

    def packed():
        rows = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(theirs(rows)[0], batch_first=True, total_length=TOKENS)[0]

    benchmark.group = f"{work}, {kind.__name__} fused, unequal rows, torch's packed"
    side_by_side(*calls((ours, lambda: ours(x, mask=mask)[0]), (theirs, packed), work), rounds=21)
