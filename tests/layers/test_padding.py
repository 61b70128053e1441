"""Rows without their padding: every attention gives what it gives for the padded batch, forward and backward."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from layers import masks
from layers.attention import MultiHeadAttention
from layers.feedforward import FeedForward
from layers.normalization import RMSNorm
from layers.padding import RealTokens
from layers.positions import ALiBi, Rotary
from layers.testing import fill, require_equal
from layers.testing.profiles import COMMON
from layers.transformer import EncoderBlock, PostNorm, PreNorm

PARTS = {
    "plain": dict,
    "grouped": lambda: dict(kv_heads=2),
    "causal": lambda: dict(causal=True),
    "window": lambda: dict(window=2),
    "rotary": lambda: dict(positions=Rotary(4), query_norm=RMSNorm(4), key_norm=RMSNorm(4)),
    "ALiBi": lambda: dict(position_bias=ALiBi(4)),
}


def block(parts):
    attention = MultiHeadAttention(8, 4, head_dim=4, **PARTS[parts]())
    return EncoderBlock(PreNorm(attention, RMSNorm(8)), PostNorm(FeedForward(8, 12), nn.LayerNorm(8))).double()


def gradients(model, x, run):
    x = x.clone().requires_grad_()
    out = run(x)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad((out * weights).sum(), [x, *parameters])
    return out, dict(zip(["x", *names], found, strict=True))


@settings(max_examples=12, derandomize=True, database=None, **COMMON)
@given(
    parts=st.sampled_from([*PARTS]),
    seed=st.integers(0, 2**16),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 6)),
    masked=st.booleans(),
    placed=st.booleans(),
)
def test_a_block_sees_real_tokens_only(parts, seed, sizes, masked, placed):
    """With padding on the left, on the right and between, whole rows of it too, under a mask and at positions of the caller's."""
    g = torch.Generator().manual_seed(seed)
    model, (b, n) = fill(block(parts), g), sizes
    mask = torch.rand(b, n, generator=g) < torch.rand(b, 1, generator=g)
    x = torch.randn(b, n, 8, generator=g, dtype=torch.float64) * mask[..., None]  # for padding has no gradient
    real, own = RealTokens(mask), torch.rand(b, 1, n, n, generator=g) < 0.7 if masked else None
    places = {"positions": torch.randint(0, 20, (b, n), generator=g)} if placed else {}
    seen = masks.for_keys(mask) if own is None else masks.for_keys(mask) & own
    expected = gradients(model, x, lambda x: model(x, mask=seen, **places) * mask[..., None])
    found = gradients(model, x, lambda x: real.put(model(real.take(x), mask=own, real=real, **places)))
    require_equal(found[0], expected[0], 1e-13, common=1.0)
    require_equal(found[1], expected[1], 1e-12, "gradient", common=1.0)


def test_what_a_mask_hides_may_hold_nan():
    torch.manual_seed(0)
    model, real = MultiHeadAttention(8, 2), RealTokens(torch.tensor([[True, True, True], [True, False, True]]))
    x = torch.randn(2, 3, 8)
    shown = torch.tensor([True, False, True])
    expected = model(real.take(x), mask=shown[None], real=real)[:, [0, 2, 3, 4]]
    x[:, 1] = float("nan")
    found, weights = model(real.take(x), mask=shown[None], real=real, return_weights=True)
    torch.testing.assert_close(found[:, [0, 2, 3, 4]], expected)
    assert weights.shape == (2, 2, 3, 3)
    assert not weights[:, :, [0, 2], 1].any()


def test_taken_and_put_back():
    mask = torch.tensor([[False, True, True], [True, False, False], [False, False, False]])
    real, x = RealTokens(mask), torch.randn(3, 3, 2)
    assert torch.equal(real.take(x), x[mask][None])
    assert torch.equal(real.put(real.take(x)), x * mask[..., None])
    assert torch.equal(real.take(mask), torch.ones(1, 3, dtype=torch.bool))
    assert RealTokens(mask[2:]).put(RealTokens(mask[2:]).take(x[2:])).shape == (1, 3, 2)


def test_bad_input_is_named():
    real, x = RealTokens(torch.tensor([[True, False], [True, True]])), torch.zeros(1, 3, 8)
    model = MultiHeadAttention(8, 2, causal=True)
    for run, words in (
        (lambda: RealTokens(torch.ones(2, 2)), "mask must be boolean"),
        (lambda: RealTokens(torch.ones(2) > 0), "mask must have 2 axes"),
        (lambda: real.take(torch.zeros(2, 3, 1)), "x must be of the mask's batch 2 and n 2 first"),
        (lambda: real.put(torch.zeros(2, 3, 1)), "x must be of 1 and the 3 real tokens first"),
        (lambda: model(x[:, :2], real=real), "query: queries must be 3, got 2"),
        (lambda: model(torch.zeros(2, 3, 8), real=real), "query: batch must be 1, got 2"),
        (lambda: model(x, x, real=real), "real must be None with a key or a cache"),
        (lambda: model(x, mask=torch.ones(3, 3) > 0, real=real), r"mask must be broadcastable to \(2, 2\), got"),
        (lambda: model(x, positions=torch.arange(3), real=real), "positions: queries must be 2, got 3"),
    ):
        with pytest.raises(ValueError, match=words):
            run()
