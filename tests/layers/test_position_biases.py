"""ALiBi and relative biases beyond their contracts: slopes, buckets, far out, of each row's own positions."""

from __future__ import annotations

import pytest
import torch
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.t5.modeling_t5 import T5Attention

from layers.positions import ALiBi, RelativeBias
from layers.testing import require_equal


@pytest.mark.parametrize("heads", range(1, 41))
def test_slopes_equal_blooms_for_every_number_of_heads(heads):
    theirs = build_alibi_tensor(torch.ones(1, 2, dtype=torch.long), heads, torch.float32)[:, 0, 1]
    ours = -ALiBi(heads)(torch.tensor([1]), torch.tensor([0]), torch.float64)[:, 0, 0]
    torch.testing.assert_close(ours, theirs.double(), rtol=2 * heads * 2**-24, atol=0)  # a rounded base to a power up to 2 heads


@pytest.mark.parametrize(
    ("heads", "exponents"),
    [
        (1, [8]),
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (16, [i / 2 for i in range(1, 17)]),
        (3, [4, 8, 2]),
        (12, [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]),
    ],
)
def test_slopes_are_those_of_the_paper(heads, exponents):
    bias = ALiBi(heads)(torch.tensor([5]), torch.tensor([4, 5, 6, 9]), torch.float64)
    slopes = torch.tensor([2.0**-e for e in exponents], dtype=torch.float64)
    torch.testing.assert_close(bias[:, 0], -slopes[:, None] * torch.tensor([1, 0, 1, 4]), rtol=1e-15, atol=0)


def test_alibi_gives_the_same_causal_weights_as_bloom():
    scores, positions = torch.randn(6, 20, 20, dtype=torch.float64), torch.arange(20)
    causal = torch.ones(20, 20).tril().log()
    ours = scores + ALiBi(6)(positions, positions, torch.float64)
    theirs = scores + build_alibi_tensor(torch.ones(1, 20, dtype=torch.long), 6, torch.float64)
    require_equal((ours + causal).softmax(-1), (theirs + causal).softmax(-1), 1e-5)
    assert not torch.allclose(ours.softmax(-1), theirs.softmax(-1))


def test_alibi_is_exact_far_out():
    for dtype in (torch.float32, torch.bfloat16):
        bias = ALiBi(16)(torch.tensor([1_000_003]), torch.tensor([1_000_000, 900_002]), dtype)
        truth = torch.tensor([[-(2 ** -(i / 2)) * distance for distance in (3, 100_001)] for i in range(1, 17)]).double()
        roundings = 2 if dtype == torch.float32 else 0.51  # of slope and product; half precision comes from float32
        torch.testing.assert_close(bias[:, 0].double(), truth, rtol=roundings * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("max_distance", [40, 100, 128, 512])
@pytest.mark.parametrize("buckets", [4, 10, 30, 32, 64])
def test_buckets_equal_t5s_for_every_distance(bidirectional, max_distance, buckets):
    offset = torch.arange(-4 * max_distance, 4 * max_distance + 1)
    ours = RelativeBias(1, buckets, max_distance, bidirectional).bucket(offset)
    assert torch.equal(ours, T5Attention._relative_position_bucket(offset, bidirectional, buckets, max_distance))
    reached = set(ours.tolist())
    assert min(reached) == 0
    assert max(reached) == buckets - 1


@pytest.mark.parametrize("block", [ALiBi(3), RelativeBias(3)], ids=["ALiBi", "RelativeBias"])
def test_differences_of_small_unsigned_positions_do_not_wrap(block):
    queries, keys = torch.tensor([9, 3, 200]), torch.tensor([2, 8, 250])
    assert torch.equal(block(queries.to(torch.uint8), keys.to(torch.uint8)), block(queries, keys))


def test_biases_depend_on_differences_alone_and_tell_the_sides_apart():
    queries, keys = torch.tensor([9, 3, 40]), torch.tensor([2, 8, 30, 41])
    for block in (ALiBi(3), RelativeBias(3), RelativeBias(3, bidirectional=False)):
        assert torch.equal(block(queries + 1000, keys + 1000), block(queries, keys))
        assert not torch.equal(block(queries + 1, keys), block(queries, keys))
    both, behind = RelativeBias(3), RelativeBias(3, bidirectional=False)
    at, earlier, later = torch.tensor([100]), torch.tensor([70, 99]), torch.tensor([101, 130])
    assert not (both(at, earlier) == both(at, later.flip(0))).any()
    assert not (behind(at, earlier) == behind(at, at)).any()
    assert torch.equal(behind(at, later), behind(at, at).expand(-1, -1, 2))


@pytest.mark.parametrize("block", [ALiBi(3), RelativeBias(3, buckets=8), RelativeBias(3, bidirectional=False)])
def test_biases_of_each_rows_own_positions(block):
    queries, keys = torch.tensor([[9, 3], [0, 40]]), torch.tensor([[2, 8, 30], [41, 0, 7]])
    found = block(queries, keys)
    assert found.shape == (2, 3, 2, 3)
    for row in range(2):
        assert torch.equal(found[row], block(queries[row], keys[row]))
    with pytest.raises(ValueError, match="key_positions: batch must be 2, got 1"):
        block(queries, keys[:1])
    with pytest.raises(ValueError, match="key_positions must have 2 axes"):
        block(queries, keys[0])


def test_relative_bias_in_bfloat16_is_its_table_to_the_bit():
    block, positions = RelativeBias(3), torch.arange(300)
    expected = block(positions, positions).bfloat16()
    assert torch.equal(block.to(torch.bfloat16)(positions, positions), expected)
