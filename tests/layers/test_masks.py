from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layers import masks


@given(queries=st.integers(1, 6), more=st.integers(0, 4), size=st.integers(1, 5))
def test_positions_are_aligned_at_the_end(queries, more, size):
    """Entry by entry, from the definition."""
    keys = queries + more
    causal, window = masks.causal(queries, keys), masks.window(queries, size, keys)
    assert causal.shape == window.shape == (queries, keys)
    for i in range(queries):
        for j in range(keys):
            assert causal[i, j].item() == (j <= i + more)
            assert window[i, j].item() == (abs(i + more - j) < size)
    assert torch.equal(masks.causal(keys)[more:], causal)
    assert torch.equal(masks.window(keys, size)[more:], window)


@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4), side=st.sampled_from(["left", "right"]))
def test_padding_and_lengths(lengths, side):
    mask = masks.padding(torch.tensor(lengths), 6, side)
    assert mask.shape == (len(lengths), 1, 1, 6)
    for row, n in zip(mask[:, 0, 0].tolist(), lengths, strict=True):
        assert row == ([True] * n + [False] * (6 - n) if side == "right" else [False] * (6 - n) + [True] * n)
    assert masks.lengths_from_allowed(mask[:, 0, 0]).tolist() == lengths


def test_packed_documents_keep_to_themselves():
    documents = torch.tensor([[0, 0, 1, 1, 1], [4, 2, 2, 2, 4]])
    mask = masks.packed(documents)
    assert mask.shape == (2, 1, 5, 5)
    for b in range(2):
        for i in range(5):
            for j in range(5):
                assert mask[b, 0, i, j].item() == (documents[b, i] == documents[b, j]).item()


def test_positions_of_packed_documents_begin_anew_with_each():
    documents = torch.tensor([[0, 0, 1, 1, 1], [4, 2, 2, 2, 4], [7, 7, 7, 7, 7]])
    assert masks.packed_positions(documents).tolist() == [[0, 1, 0, 1, 2], [0, 0, 1, 2, 0], [0, 1, 2, 3, 4]]


def test_positions_of_padded_rows_count_real_tokens():
    valid = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]) == 1
    assert masks.padded_positions(valid).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2], [0, 1, 2, 3, 4]]


@given(shape=st.lists(st.sampled_from([1, 2, 3, 4, 5]), max_size=4).map(tuple))
def test_fits_what_broadcasts(shape):
    """Except that the broadcast must not be of the sizes themselves."""
    sizes = dict(batch=2, heads=3, queries=4, keys=5)
    try:
        fits = torch.broadcast_shapes(shape, tuple(sizes.values())) == (2, 3, 4, 5)
    except RuntimeError:
        fits = False
    if fits:
        masks.require_fits(torch.ones(shape), "mask", **sizes)
    else:
        with pytest.raises(ValueError, match="mask must be broadcastable to"):
            masks.require_fits(torch.ones(shape), "mask", **sizes)


@given(shape=st.sampled_from([(3,), (2, 5), (2, 1, 3, 4)]), seed=st.integers(0, 99))
def test_converters_go_there_and_back(shape, seed):
    allowed = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    forbidden = masks.forbidden_from_allowed(allowed)
    assert torch.equal(forbidden, ~allowed)
    assert torch.equal(masks.allowed_from_forbidden(forbidden), allowed)
    for dtype in (torch.float32, torch.bfloat16):
        additive = masks.additive_from_allowed(allowed, dtype)
        assert additive.dtype == dtype
        assert torch.equal(additive == 0, allowed)
        assert torch.equal(additive.isneginf(), ~allowed)
        assert torch.equal(masks.allowed_from_additive(additive), allowed)
        assert torch.equal(masks.allowed_from_additive(additive.clamp(min=torch.finfo(dtype).min)), allowed)
    ones = masks.ones_from_allowed(allowed)
    assert ones.dtype == torch.long
    assert torch.equal(ones == 1, allowed)
    assert torch.equal(masks.allowed_from_ones(ones), allowed)
    assert torch.equal(masks.allowed_from_ones(ones.float()), allowed)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: masks.window(3, 0), "size must be positive"),
        (lambda: masks.padding(torch.tensor([1]), 3, "top"), "side must be"),
        (lambda: masks.padding(torch.tensor([[1]]), 3), "lengths must have 1 axes"),
        (lambda: masks.for_keys(torch.ones(3, dtype=torch.bool)), "valid must have 2 axes"),
        (lambda: masks.packed(torch.zeros(3)), "documents must have 2 axes"),
        (lambda: masks.packed_positions(torch.zeros(3)), "documents must have 2 axes"),
        (lambda: masks.padded_positions(torch.zeros(3)), "valid must have 2 axes"),
        (lambda: masks.padded_positions(torch.zeros(3, 4)), "valid must be boolean"),
        (lambda: masks.allowed_from_forbidden(torch.ones(3)), "forbidden must be boolean"),
        (lambda: masks.forbidden_from_allowed(torch.ones(3)), "allowed must be boolean"),
        (lambda: masks.additive_from_allowed(torch.ones(3)), "allowed must be boolean"),
        (lambda: masks.ones_from_allowed(torch.ones(3)), "allowed must be boolean"),
        (lambda: masks.lengths_from_allowed(torch.ones(3)), "allowed must be boolean"),
        (lambda: masks.allowed_from_additive(torch.tensor([0.0, -1e4])), "additive must hold"),
        (lambda: masks.allowed_from_ones(torch.tensor([0, 2])), "ones must hold"),
    ],
)
def test_bad_masks_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
