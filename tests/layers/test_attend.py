"""What attention computes beyond its contracts: masks, rows without keys, memory, half precision; and what it refuses."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from attentions import attention, torch_weights
from einops import rearrange
from torch import nn

from layers import masks
from layers.attention import attend
from layers.cache import Cache, RollingCache, SharedCache
from layers.positions import ALiBi, RelativeBias


def test_causal_with_fewer_queries_than_keys_is_aligned_at_the_end():
    block, memory = attention(causal=True), torch.randn(2, 7, 12, dtype=torch.float64)
    whole = block(memory, memory)
    for new in (1, 2, 5):
        torch.testing.assert_close(block(memory[:, -new:], memory), whole[:, -new:])


@pytest.mark.parametrize("shape", [(5, 7), (1, 7), (2, 1, 5, 7), (2, 1, 1, 7), (1, 4, 5, 7), (2, 4, 5, 1), (4, 1, 7)])
def test_masks_of_every_shape_mean_what_their_expansion_means(shape):
    block = attention()
    query, memory = torch.randn(2, 5, 12, dtype=torch.float64), torch.randn(2, 7, 12, dtype=torch.float64)
    allowed = torch.rand(shape) < 0.6
    expanded = allowed.expand(2, 4, 5, 7)
    torch.testing.assert_close(block(query, memory, mask=allowed), block(query, memory, mask=expanded))
    assert not torch.equal(block(query, memory, mask=allowed), block(query, memory))
    ones = torch.ones(shape, dtype=torch.bool)
    torch.testing.assert_close(block(query, memory, mask=ones), block(query, memory))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("length", [3, 70, 600])
def test_a_row_that_may_attend_to_nothing_gives_zeros_and_finite_gradients(dtype, length):
    """For sizes beyond the blocks of fused kernels too, for both backends, with dropout and without."""
    for dropout in (0.0, 0.2):
        for explicit in (False, True):
            x = [torch.randn(2, 3, length, 8, dtype=dtype, requires_grad=True) for _ in range(3)]
            allowed = torch.rand(2, 1, length, length) < 0.5
            allowed[0, :, 0, 0], allowed[0, :, 1], allowed[1] = True, False, False
            output, weights = attend(*x, allowed, dropout=dropout, return_weights=explicit)
            assert not output[0, :, 1].any()
            assert not output[1].any()
            assert output[0].any()
            output.sum().backward()
            assert all(t.grad.isfinite().all() for t in x)
            if weights is not None:
                assert not weights[1].any()
                torch.testing.assert_close(weights[0, :, 0].sum(-1), torch.ones(3, dtype=dtype), rtol=0.02, atol=0)


@pytest.mark.parametrize("explicit", [False, True])
def test_poison_behind_a_mask_does_not_leak(explicit):
    block = attention(dropout=0.1)
    for poison in (float("nan"), float("inf")):
        for train in (False, True):
            memory = torch.randn(2, 7, 12, dtype=torch.float64)
            memory[0, 5:] = memory[1, 2:] = poison
            memory.requires_grad_()
            query = torch.randn(2, 4, 12, dtype=torch.float64)
            lengths = torch.tensor([5, 2])
            output = block.train(train)(query, memory, mask=masks.padding(lengths, 7), return_weights=explicit)
            output = output[0] if explicit else output
            assert output.isfinite().all()
            output.sum().backward()
            assert all(p.grad.isfinite().all() for p in block.parameters())
            clean = memory.detach().nan_to_num(0.0, 0.0, 0.0)
            again = block.eval()(query, clean, mask=masks.padding(lengths, 7))
            assert torch.equal(again, block(query, memory.detach(), mask=masks.padding(lengths, 7)))


def test_weights_are_those_of_torch():
    block, theirs = attention(), nn.MultiheadAttention(12, 4, batch_first=True).double().eval()
    same = SimpleNamespace(dim=12, key_dim=12, value_dim=12, bias=True)
    theirs.load_state_dict(torch_weights(same).export(block))
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    allowed = masks.causal(5)
    ours = block(x, mask=allowed, return_weights=True)[1]
    expected = theirs(x, x, x, attn_mask=~allowed, average_attn_weights=False)[1]
    torch.testing.assert_close(ours, expected)


def test_twin_with_its_fast_path():
    """nn.MultiheadAttention takes another path in eval mode without gradients; both must be equal to ours."""
    block, theirs = attention(), nn.MultiheadAttention(12, 4, batch_first=True).double().eval()
    theirs.load_state_dict(torch_weights(SimpleNamespace(dim=12, key_dim=12, value_dim=12, bias=True)).export(block))
    x, lengths = torch.randn(3, 6, 12, dtype=torch.float64), torch.tensor([6, 2, 4])
    with torch.no_grad():
        expected = theirs(x, x, x, key_padding_mask=~masks.allowed_from_lengths(lengths, 6), need_weights=False)[0]
        torch.testing.assert_close(block(x, mask=masks.padding(lengths, 6)), expected)


def test_the_fused_backend_needs_memory_for_rows_not_for_pairs():
    """Four times the length: an explicit q * k matrix takes sixteen times the memory, the fused one about four."""

    def peak(length, explicit):
        q = torch.randn(1, 2, length, 16)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            attend(q, q, q, causal=True, return_weights=explicit)
        return max(event.self_cpu_memory_usage for event in profile.events())

    assert peak(2048, False) <= 5 * peak(512, False)
    assert peak(2048, True) >= 14 * peak(512, True)


@pytest.mark.parametrize(
    ("options", "inputs", "words"),
    [
        ({}, dict(mask=torch.ones(2, 1, 1, 5)), "mask must be boolean"),
        ({}, dict(mask=torch.ones(5, dtype=torch.bool)), "mask must be"),
        ({}, dict(cache=Cache(9)), "cache must be"),
        (dict(causal=True), dict(cache=Cache(4)), "capacity of 4"),
        (dict(causal=True), dict(cache=Cache(9), mask=torch.ones(2, 1, 1, 3, dtype=torch.bool)), "mask must be 5 keys wide"),
        (dict(causal=True), dict(cache=Cache(9), key=torch.randn(2, 5, 12)), "key must be None"),
        (dict(positions=nn.Identity()), dict(key=torch.randn(2, 5, 12)), "key must be None"),
        ({}, dict(mask=torch.ones(2, 1, 1, 6, dtype=torch.bool)), "mask must be broadcastable"),
    ],
)
def test_bad_calls_are_named(options, inputs, words):
    with pytest.raises(ValueError, match=words):
        attention(**options).float()(torch.randn(2, 5, 12), **inputs)


def test_rows_of_the_batch_stay_apart_in_the_weights():
    block, x = attention(), torch.randn(2, 5, 12, dtype=torch.float64)
    output, weights = block(x, return_weights=True)
    assert weights.shape == (2, 4, 5, 5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 5, dtype=torch.float64))
    values = rearrange(block.value(x), "b n (h d) -> b h n d", h=4)
    torch.testing.assert_close(block.output(rearrange(weights @ values, "b h n d -> b n (h d)")), output)


# ------------------------------------------------------------------------------------------- sizes that must agree


def ones(*shape):
    return torch.ones(shape, dtype=torch.bool)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (dict(query=(2, 3, 5, 4, 1)), "query must have 4 axes"),
        (dict(key=(1, 3, 6, 4)), "key: batch must be 2, got 1"),
        (dict(key=(2, 1, 6, 4)), "key: heads must be 3, got 1"),
        (dict(key=(2, 3, 6, 5)), "key: head_dim must be 4, got 5"),
        (dict(value=(1, 3, 6, 4)), "value: batch must be 2, got 1"),
        (dict(value=(2, 1, 6, 4)), "value: heads must be 3, got 1"),
        (dict(value=(2, 3, 7, 4)), "value: keys must be 6, got 7"),
        (dict(value=(2, 3, 5, 4)), "value: keys must be 6, got 5"),
        (dict(mask=(3, 1, 1, 6)), "mask must be broadcastable.* batch must be 1 or 2"),
        (dict(mask=(2, 2, 1, 6)), "mask must be broadcastable.* heads must be 1 or 3"),
        (dict(mask=(4, 6)), "mask must be broadcastable.* queries must be 1 or 5"),
        (dict(mask=(7,)), "mask must be broadcastable.* keys must be 1 or 6"),
        (dict(bias=(2, 5, 6)), "bias must be broadcastable.* heads must be 1 or 3"),
        (dict(bias=(1, 1, 1, 5, 6)), "bias must be of 4 axes at most"),
    ],
)
@pytest.mark.parametrize("explicit", [False, True])
def test_attend_names_the_axis_that_does_not_agree(changed, words, explicit):
    shapes = dict(query=(2, 3, 5, 4), key=(2, 3, 6, 4), value=(2, 3, 6, 4)) | changed
    inputs = {name: ones(*shape) if name == "mask" else torch.randn(shape) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match=words):
        attend(**inputs, return_weights=explicit)


@pytest.mark.parametrize("explicit", [False, True])
def test_masks_and_biases_of_few_axes_are_for_all(explicit):
    x, options = torch.randn(2, 3, 5, 4), dict(return_weights=explicit)
    plain = attend(x, x, x, **options)[0]
    for shape in ((), (5,)):
        every, same = torch.ones(shape, dtype=torch.bool), torch.full(shape, 2.0)
        for given in ((every, same), (every, None), (None, same)):
            torch.testing.assert_close(attend(x, x, x, *given, **options)[0], plain)
    assert not attend(x, x, x, torch.tensor(False), **options)[0].any()


@pytest.mark.parametrize("explicit", [False, True])
def test_values_may_have_another_number_of_features(explicit):
    q, k, v = (torch.randn(2, 3, n, d, dtype=torch.float64, requires_grad=True) for n, d in ((5, 4), (6, 4), (6, 7)))
    found, _ = attend(q, k, v, return_weights=explicit)
    expected = (q / 2 @ k.mT).softmax(-1) @ v
    torch.testing.assert_close(found, expected)
    first, theirs = (torch.autograd.grad(x.pow(3).sum(), (q, k, v), create_graph=True) for x in (found, expected))
    second, those = (torch.autograd.grad(sum(g.square().sum() for g in x), (q, k, v)) for x in (first, theirs))
    torch.testing.assert_close((*first, *second), (*theirs, *those))


def test_a_softcap_bounds_the_scores_before_the_bias():
    q, k, v = (torch.randn(2, 3, n, 4, dtype=torch.float64) for n in (5, 6, 6))
    bias = torch.randn(3, 5, 6, dtype=torch.float64)
    expected = (1.5 * torch.tanh(q / 2 @ k.mT / 1.5) + bias).softmax(-1) @ v
    torch.testing.assert_close(attend(q, k, v, bias=bias, softcap=1.5)[0], expected)
    with pytest.raises(ValueError, match="softcap must be positive, got 0"):
        attend(q, k, v, softcap=0.0)


def test_attend_refuses_masks_and_biases_of_another_dtype():
    x = torch.randn(1, 2, 3, 4)
    with pytest.raises(ValueError, match="mask must be boolean, True where a query may attend, got torch"):
        attend(x, x, x, torch.zeros(3, 3))
    with pytest.raises(ValueError, match="bias must be floating point, got torch"):
        attend(x, x, x, bias=ones(3, 3))


def filled(cache, *shape):
    attention(causal=True, window=3)(torch.randn(*shape, 12, dtype=torch.float64), cache=cache)
    return cache


@pytest.mark.parametrize(
    ("options", "inputs", "words"),
    [
        ({}, lambda x: dict(key=x[:1]), "key: batch must be 2, got 1"),
        ({}, lambda x: dict(key=x, value=x[:1]), "value: batch must be 2, got 1"),
        ({}, lambda x: dict(key=x, value=x[:, :4]), "value: keys must be 5, got 4"),
        ({}, lambda x: dict(mask=ones(3, 1, 1, 5)), "mask .* batch must be 1 or 2"),
        ({}, lambda x: dict(mask=ones(2, 3, 1, 5)), "mask .* heads must be 1 or 4"),
        ({}, lambda x: dict(mask=ones(4, 5)), "mask .* queries must be 1 or 5"),
        (dict(causal=True), lambda x: dict(mask=ones(3, 1, 1, 5), cache=Cache(5)), "mask .* batch must be 1 or 2"),
        (dict(position_bias=ALiBi(1)), lambda x: {}, "position_bias: heads must be 4, got 1"),
        (dict(position_bias=RelativeBias(8)), lambda x: {}, "position_bias: heads must be 4, got 8"),
        ({}, lambda x: dict(positions=torch.arange(4)), "positions: queries must be 5, got 4"),
        ({}, lambda x: dict(positions=torch.zeros(3, 5, dtype=torch.long)), "positions: batch must be 2, got 3"),
        ({}, lambda x: dict(positions=torch.zeros(2, 5)), "positions must be integers"),
        ({}, lambda x: dict(key=x, positions=torch.arange(5)), "key must be None where there are positions"),
        (
            dict(causal=True, position_bias=ALiBi(4)),
            lambda x: dict(cache=Cache(5), positions=torch.arange(5)),
            "positions must be None with a cache and a position_bias",
        ),
        (dict(causal=True), lambda x: dict(cache=filled(Cache(9), 3, 1)), "cache: batch must be 2, got 3"),
        (dict(causal=True, kv_heads=2), lambda x: dict(cache=filled(SharedCache(9), 2, 1)), "cache: kv_heads must be 2, got 4"),
        (dict(causal=True, head_dim=2), lambda x: dict(cache=filled(Cache(9), 2, 1)), "cache: head_dim must be 2, got 3"),
        (dict(causal=True), lambda x: dict(cache=Cache(9, torch.tensor([0]))), "start of the cache: batch must be 2, got 1"),
        (
            dict(causal=True),
            lambda x: dict(cache=RollingCache(9)),
            "cache must be a RollingCache of .* window, None",
        ),
        (dict(causal=True, window=4), lambda x: dict(cache=RollingCache(3)), "cache must be .* window, 4, or more, got 'Rolling"),
    ],
)
def test_sizes_that_do_not_agree_are_named(options, inputs, words):
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    with pytest.raises(ValueError, match=words):
        attention(**options)(x, **inputs(x))


# ----------------------------------------------------------------------------------------------------- half precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 40.0, 90.0])
def test_scores_of_half_precision_do_not_overflow(dtype, size):
    """float16 ends at 65,504: q k^T of 64 features of 40 is 102,400, and of 90 its eighth, 64,800, still fits."""
    generator = torch.Generator().manual_seed(0)
    q = torch.full((1, 1, 3, 64), size).to(dtype)
    k, v = q.clone(), torch.randn(1, 1, 3, 64, generator=generator).to(dtype)
    k[:, :, 1] *= -1
    expected = attend(q.double(), k.double(), v.double())[0]
    for explicit in (False, True):
        found, weights = attend(q, k, v, return_weights=explicit)
        assert found.dtype == dtype
        assert weights is None or weights.dtype == dtype
        assert (found.double() - expected).abs().max() < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("given", [torch.float32, None])
def test_scores_do_not_overflow_under_autocast(dtype, given):
    """Which casts the factors of a product back: q k^T / 8 of 64 features of 1,000 is 8,000,000."""
    q = torch.full((1, 1, 3, 64), 1000.0, dtype=given or dtype)
    k, v = q * torch.tensor([[1.0], [-1.0], [1.0]], dtype=q.dtype), torch.randn_like(q)
    expected = attend(q.double(), k.double(), v.double())[0]
    with torch.autocast("cpu", dtype):
        (fused, _), (found, weights) = (attend(q, k, v, return_weights=explicit) for explicit in (False, True))
    assert found.dtype == fused.dtype == dtype
    assert weights.dtype == q.dtype
    assert (found.double() - expected).abs().max() < 8 * torch.finfo(dtype).eps
