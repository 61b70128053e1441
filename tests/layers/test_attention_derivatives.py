"""Derivatives of derivatives through attention, and what training keeps of the fused kernel."""

from __future__ import annotations

import pytest
import torch
import torch.utils.checkpoint
from attentions import attention

from layers.attention import attend
from layers.positions import ALiBi, RelativeBias, Rotary

DIFFERENTIATED = {
    "plain": ({}, {}),
    "causal": (dict(causal=True), {}),
    "masked": ({}, dict(mask=torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 1]]).bool())),
    "grouped": (dict(kv_heads=2, causal=True, window=2), {}),
    "biased": (dict(position_bias=ALiBi(4)), {}),
    "learned bias": (dict(position_bias=RelativeBias(4, buckets=4, max_distance=6).double()), {}),
    "rotary": (dict(head_dim=2, positions=Rotary(2)), {}),
}


def square(block, inputs):
    """Of a third power: second derivatives of a sum of squares would not show its own."""
    return lambda x: block(x, **inputs).pow(3).sum()


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_second_and_forward_derivatives(name):
    """Against finite differences of the first derivative, which the kit holds against finite differences too."""
    options, inputs = DIFFERENTIATED[name]
    block = attention(**options)
    run = square(block, inputs)
    x, direction = torch.randn(2, 2, 3, 12, dtype=torch.float64)
    x.requires_grad_()

    def gradient(at):
        at = at.detach().requires_grad_()
        return torch.autograd.grad(run(at), at)[0]

    step = 1e-5
    curved = (gradient(x + step * direction) - gradient(x - step * direction)) / (2 * step)
    first = torch.autograd.grad(run(x), x, create_graph=True)[0]
    torch.testing.assert_close(first, gradient(x), rtol=1e-12, atol=1e-12)
    ways = {
        "double backward": torch.autograd.grad((first * direction).sum(), x, retain_graph=True)[0],
        "again": torch.autograd.grad((first * direction).sum(), x)[0],
        "forward over backward": torch.func.jvp(torch.func.grad(run), (x.detach(),), (direction,))[1],
        "hvp": torch.autograd.functional.hvp(run, x.detach(), direction)[1],
    }
    for way, found in ways.items():
        assert (found - curved).abs().max() < 1e-7 * curved.abs().max(), way
    with torch.no_grad():
        slope = (block(x + step * direction, **inputs) - block(x - step * direction, **inputs)) / (2 * step)
    forward = torch.func.jvp(lambda x: block(x, **inputs), (x.detach(),), (direction,))[1]
    assert (forward - slope).abs().max() < 1e-8 * slope.abs().max()
    with torch.autograd.forward_ad.dual_level():
        dual = block(torch.autograd.forward_ad.make_dual(x.detach(), direction), **inputs)
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, forward)


def test_a_gradient_penalty_trains_every_parameter():
    """A third derivative at that, for the penalty's own gradient is penalised; and one tensor as query, key and value."""
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)

    def penalty(fused):
        value = attend(x, x, x, causal=True, return_weights=not fused)[0].pow(3).sum()
        for _ in range(2):
            value = torch.autograd.grad(value, x, create_graph=True)[0].pow(2).sum()
        return torch.autograd.grad(value, x)[0]

    torch.testing.assert_close(penalty(True), penalty(False))
    block = attention(causal=True)
    y = torch.randn(2, 3, 12, dtype=torch.float64, requires_grad=True)
    torch.autograd.grad(block(y).square().sum(), y, create_graph=True)[0].square().sum().backward()
    assert all(p.grad.any() for name, p in block.named_parameters() if name != "output.bias")


def kernels(run):
    with torch.profiler.profile() as profile:
        run()
    return {event.key for event in profile.key_averages()}


def test_ordinary_training_keeps_the_fused_kernel_and_its_bits():
    """With the formula's gradient only where a backward pass is differentiated, and recomputed blocks as they were."""
    q, k, v = (torch.randn(2, 3, 5, 8, requires_grad=True) for _ in range(3))
    allowed = torch.rand(2, 1, 5, 5) < 0.7
    allowed[..., 0] = True
    for given, causal in ((None, False), (None, True), (allowed, False)):
        weight = torch.randn(2, 3, 5, 8)
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, given, is_causal=causal)
        used = kernels(lambda m=given, c=causal, w=weight: (attend(q, k, v, m, causal=c)[0] * w).sum().backward())
        assert "aten::_scaled_dot_product_flash_attention_for_cpu_backward" in used
        assert not any("softmax" in kernel for kernel in used)
        for x, g in zip((q, k, v), torch.autograd.grad((expected * weight).sum(), (q, k, v)), strict=True):
            assert torch.equal(x.grad, g)
            x.grad = None
    block, x = attention(causal=True), torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)
    recomputed = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
    assert torch.equal(*(torch.autograd.grad(y.square().sum(), x)[0] for y in (recomputed, block(x))))


def test_training_keeps_no_more_in_memory_than_the_kernel_does():
    q, k, v = (torch.randn(2, 2, 64, 16, requires_grad=True) for _ in range(3))
    allowed = torch.rand(2, 1, 64, 64) < 0.9
    allowed[..., 0] = True

    def kept(run):
        seen = {}

        def pack(x):
            seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            output = run()  # alive, so that no address is used again
        assert output.requires_grad
        return sum(seen.values())

    for given, causal in ((None, True), (allowed, False)):
        ours = kept(lambda m=given, c=causal: attend(q, k, v, m, causal=c)[0])
        torchs = kept(lambda m=given, c=causal: torch.nn.functional.scaled_dot_product_attention(q, k, v, m, is_causal=c))
        assert ours <= torchs + (0 if given is None else 2 * 64)  # the rows of the mask that hide everything
