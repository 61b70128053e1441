from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import strategies as st
from torch import nn

from layers.normalization import SyncedBatchNorm2d, synchronise_norms
from layers.testing import Contract, Twin, fill, tensor
from layers.weights import WeightMap

synced = Contract(
    SyncedBatchNorm2d,
    arguments=dict(num_features=st.integers(1, 5), eps=st.sampled_from([1e-5, 1e-3]), momentum=st.sampled_from([0.1, 0.3, None])),
    inputs=lambda a: dict(input=tensor("batch channels height width", height=st.integers(2, 6), channels=a.num_features)),
    outputs=lambda a, s: ("batch", a.num_features, s.height, s.width),
    twins=[Twin("torch", build=lambda a: nn.BatchNorm2d(a.num_features, a.eps, a.momentum), weights=WeightMap(("", "")))],
    trains_differently=lambda a: True,
    without={
        "bad_argument": "the constructor is that of nn.BatchNorm2d",
        "bad_input": "the shape checks are those of nn.BatchNorm2d",
    },
)


def process(rank, path, model, images, gradient, shares, results):
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=len(shares))
    try:
        model = copy.deepcopy(model)  # tensors come here in memory that both processes share
        x = images.split(shares)[rank].clone().requires_grad_()
        output = model(x)
        output.backward(gradient.split(shares)[rank])
        results[rank] = output.detach(), x.grad, model[0].weight.grad, model[0].bias.grad, dict(model.state_dict())
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(("shares", "momentum"), [((3, 4), 0.1), ((7, 0), None)])
def test_two_processes_compute_what_one_does(tmp_path, shares, momentum):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(7, 3, 5, 4, generator=generator, dtype=torch.float64) + 100
    gradient = torch.randn(images.shape, generator=generator, dtype=torch.float64)
    whole = fill(nn.Sequential(nn.BatchNorm2d(3, momentum=momentum)).double(), generator)
    model = synchronise_norms(copy.deepcopy(whole))
    assert isinstance(model[0], SyncedBatchNorm2d)
    x = images.clone().requires_grad_()
    expected = whole(x)
    expected.backward(gradient)
    with mp.Manager() as manager:
        results = manager.dict()
        arguments = (tmp_path / "store", model, images, gradient, shares, results)
        mp.spawn(process, args=arguments, nprocs=2)
        first, second = results[0], results[1]
    close = dict(rtol=1e-11, atol=1e-11)  # the mean is 100 standard deviations from 0
    torch.testing.assert_close(torch.cat([first[0], second[0]]), expected.detach(), **close)
    torch.testing.assert_close(torch.cat([first[1], second[1]]), x.grad, **close)
    torch.testing.assert_close(first[2] + second[2], whole[0].weight.grad, **close)
    torch.testing.assert_close(first[3] + second[3], whole[0].bias.grad, **close)
    for state in (first[4], second[4]):
        torch.testing.assert_close(state, dict(whole.state_dict()), **close)
