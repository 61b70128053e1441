"""The exponential moving average of weights: torch's, its warm-up, buffers and spectral norm, and its state."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from zoo.generation.average import ExponentialAverage

SEEDS = st.integers(0, 2**32 - 1)
DECAYS = st.sampled_from([0.0, 0.3, 0.9, 0.999, 0.9999])


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), parametrizations.spectral_norm(nn.Linear(4, 2)))


def train(model, seed, steps=1):
    """Moves all weights and buffers."""
    rng = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        model.train()(torch.randn(8, 3, generator=rng))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=rng))


@given(SEEDS, DECAYS)
def test_average_is_torchs(seed, decay):
    """Bit for bit; theirs begins with a copy at its first update, ours when it is made."""
    model = network(seed)
    ours, theirs = ExponentialAverage(model, decay, warmup=False), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    theirs.update_parameters(model)
    for step in range(4):
        train(model, seed + step)
        ours.update(model)
        theirs.update_parameters(model)
        found, expected = ours.module.state_dict(), theirs.module.state_dict()
        assert found.keys() == expected.keys()
        for name, value in found.items():
            assert torch.equal(value, expected[name]), name
    moved = [not torch.equal(p, q) for p, q in zip(ours.module.parameters(), model.parameters(), strict=True)]
    assert all(moved) == (decay > 0)


@given(SEEDS, DECAYS, st.booleans(), st.integers(1, 30))
def test_average_is_the_published_sum(seed, decay, warmup, updates):
    model = nn.Linear(1, 1).double()
    average = ExponentialAverage(model, decay, warmup=warmup)
    expected, rng = model.weight.detach().clone(), torch.Generator().manual_seed(seed)
    for n in range(1, updates + 1):
        with torch.no_grad():
            model.weight.copy_(torch.randn(1, 1, generator=rng, dtype=torch.float64))
        average.update(model)
        share = min(decay, (1 + n) / (10 + n)) if warmup else decay
        assert average.decay_at(n) == share
        expected = share * expected + (1 - share) * model.weight.detach()
    torch.testing.assert_close(average.module.weight, expected, rtol=1e-12, atol=1e-12)
    assert average.updates == updates


def test_buffers_are_copied():
    """Running statistics, counts, and the vectors of spectral norm, which stay unit vectors: an average of them would not."""
    model = network()
    average = ExponentialAverage(model, 0.99)
    for step in range(3):
        train(model, step)
        average.update(model)
    buffers = dict(model.named_buffers())
    assert {name.split(".")[-1] for name in buffers} == {"running_mean", "running_var", "num_batches_tracked", "_u", "_v"}
    for name, buffer in average.module.named_buffers():
        assert torch.equal(buffer, buffers[name])
        assert buffer.data_ptr() != buffers[name].data_ptr()
        if name.endswith(("_u", "_v")):
            assert abs(float(buffer.norm()) - 1) < 1e-6


def test_the_model_is_left_alone():
    model = network().train()
    before = copy.deepcopy(model.state_dict())
    average = ExponentialAverage(model)
    average.update(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in average.module.modules())
    assert not any(parameter.requires_grad for parameter in average.module.parameters())


@given(SEEDS, st.integers(0, 5), st.integers(1, 5))
def test_a_restored_average_goes_on(seed, first, second):
    """To the same bits; its decay stays the argument's, whatever the warm-up had come to."""
    model = network(seed)
    average = ExponentialAverage(model, 0.9)
    for step in range(first):
        train(model, seed + step)
        average.update(model)
    restored = ExponentialAverage(network(seed + 1), 0.9)
    restored.load_state_dict(copy.deepcopy(average.state_dict()))
    for step in range(second):
        train(model, seed - step)
        for one in (average, restored):
            one.update(model)
    assert restored.updates == first + second
    assert restored.decay == 0.9
    for one, other in zip(average.module.state_dict().values(), restored.module.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_errors():
    average = ExponentialAverage(nn.Linear(2, 3))
    before = copy.deepcopy(average.state_dict())
    for wrong in (nn.Linear(2, 4), nn.Linear(2, 3, bias=False), nn.Sequential(nn.Linear(2, 3)), network()):
        with pytest.raises(ValueError, match="model"):
            average.update(wrong)
    assert average.updates == 0
    assert torch.equal(average.module.weight, before["module"]["weight"])
    for decay in (1.0, -0.1, 1.5):
        with pytest.raises(ValueError, match="decay"):
            ExponentialAverage(nn.Linear(2, 3), decay)
    with pytest.raises(ValueError, match="float32"):
        ExponentialAverage(nn.Linear(2, 3).bfloat16())
