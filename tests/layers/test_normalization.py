from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from hypothesis import strategies as st
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from layers.normalization import RMSNorm, SyncedBatchNorm2d, synchronise_norms
from layers.testing import Contract, Twin, fill, permutation_equivariant, tensor
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


PROCESS = """
import os
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
rank = dist.get_rank()
model, images, gradients = torch.load("work.pt", weights_only=False)
x = images[rank].clone().requires_grad_()
output = model(x)
output.backward(gradients[rank])
results = output.detach(), x.grad, model[0].weight.grad, model[0].bias.grad, dict(model.state_dict())
torch.save(results, f"results{rank}.pt")
dist.barrier()
os._exit(0)  # torch 2.6 can hang while it takes down a gloo group
"""


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
    torch.save((model, images.split(shares), gradient.split(shares)), tmp_path / "work.pt")
    (tmp_path / "process.py").write_text(PROCESS)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launcher, "process.py"], cwd=tmp_path, check=True, timeout=120)
    first, second = (torch.load(tmp_path / f"results{rank}.pt") for rank in "01")
    close = dict(rtol=1e-11, atol=1e-11)  # the mean is 100 standard deviations from 0
    torch.testing.assert_close(torch.cat([first[0], second[0]]), expected.detach(), **close)
    torch.testing.assert_close(torch.cat([first[1], second[1]]), x.grad, **close)
    torch.testing.assert_close(first[2] + second[2], whole[0].weight.grad, **close)
    torch.testing.assert_close(first[3] + second[3], whole[0].bias.grad, **close)
    for state in (first[4], second[4]):
        torch.testing.assert_close(state, dict(whole.state_dict()), **close)


def llama(a):
    """Llama's norm computes in float32 whatever it is given: in float64 it is held to the formula below instead."""
    return LlamaRMSNorm(a.dim, a.eps)


class Formula(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(a.dim)), a.eps

    def forward(self, x):
        return x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt() * self.weight


rms_norm = Contract(
    RMSNorm,
    arguments=dict(dim=st.integers(2, 6), eps=st.sampled_from([1e-6, 1e-2])),
    inputs=lambda a: dict(x=tensor("batch n dim", dim=a.dim)),
    outputs=lambda a, s: ("batch", "n", a.dim),
    twins=[
        Twin("formula", build=Formula, weights=WeightMap(("", ""))),
        Twin("torch", build=lambda a: nn.RMSNorm(a.dim, a.eps), weights=WeightMap(("", ""))),
        Twin(
            "llama", build=llama, weights=WeightMap(("", "")),
            single_precision="models/llama/modeling_llama.py, LlamaRMSNorm.forward: hidden_states.to(torch.float32)",
        ),
    ],
    holds=[permutation_equivariant("x", "n", 1)],
    invalid=[(dict(dim=0), "dim"), (dict(eps=0.0), "eps")],
)  # fmt: skip
