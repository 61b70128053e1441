from __future__ import annotations

import copy
import inspect
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from hypothesis import strategies as st
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from layers.normalization import RMSNorm, SyncedBatchNorm2d, synchronise_norms
from layers.testing import Contract, Twin, fill, permutation_equivariant, tensor
from layers.weights import WeightMap

synced = Contract(
    SyncedBatchNorm2d,
    defaults=dict(eps=(1e-5, "nn.BatchNorm2d"), momentum=(0.1, "nn.BatchNorm2d")),
    arguments=dict(num_features=st.integers(1, 5), eps=st.sampled_from([1e-5, 1e-3]), momentum=st.sampled_from([0.1, 0.3, None])),
    inputs=lambda a: dict(input=tensor("batch channels height width", height=st.integers(2, 6), channels=a.num_features)),
    outputs=lambda a, s: ("batch", a.num_features, s.height, s.width),
    twins=[Twin("torch", build=lambda a: nn.BatchNorm2d(a.num_features, a.eps, a.momentum), weights=WeightMap(("", "")))],
    trains_differently=lambda a: True,
    without={
        "bad_argument": "the constructor is that of nn.BatchNorm2d",
        "bad_input": "the shape checks are those of nn.BatchNorm2d",
        "exercised": "the constructor is that of nn.BatchNorm2d",
    },
)


PROCESSES = """
import os
import torch  # once for both
import torch.distributed as dist
rank = 0 if os.fork() else 1
dist.init_process_group("gloo", f"file://{os.getcwd()}/store", rank=rank, world_size=2)
model, images, gradients = torch.load("work.pt", weights_only=False)
x = images[rank].clone().requires_grad_()
output = model(x)
output.backward(gradients[rank])
results = output.detach(), x.grad, model[0].weight.grad, model[0].bias.grad, dict(model.state_dict())
torch.save(results, f"results{rank}.pt")
dist.barrier()
os._exit(os.waitstatus_to_exitcode(os.wait()[1]) if rank == 0 else 0)  # torch 2.6 can hang while it takes down a gloo group
"""


@pytest.mark.processes
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
    subprocess.run([sys.executable, "-c", PROCESSES], cwd=tmp_path, check=True, timeout=120)
    first, second = (torch.load(tmp_path / f"results{rank}.pt") for rank in "01")
    close = dict(rtol=1e-11, atol=1e-11)  # the mean is 100 standard deviations from 0
    torch.testing.assert_close(torch.cat([first[0], second[0]]), expected.detach(), **close)
    torch.testing.assert_close(torch.cat([first[1], second[1]]), x.grad, **close)
    torch.testing.assert_close(first[2] + second[2], whole[0].weight.grad, **close)
    torch.testing.assert_close(first[3] + second[3], whole[0].bias.grad, **close)
    for state in (first[4], second[4]):
        torch.testing.assert_close(state, dict(whole.state_dict()), **close)


@pytest.fixture
def one_process(monkeypatch):
    """A group of one process, in which sums over processes are what they were."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: None)


SHAPES = {
    "images": (4, 3, 5, 2),
    "one image": (1, 3, 2, 1),
    "one value a channel": (1, 3, 1, 1),
    "no images": (0, 3, 4, 4),
    "no rows": (2, 3, 0, 4),
    "fewer channels": (2, 1, 4, 4),
    "more channels": (2, 4, 4, 4),
    "three axes": (3, 4, 4),
    "two axes": (2, 3),
}
OPTIONS = {
    "usual": {},
    "cumulative": dict(momentum=None),
    "momentum of 0": dict(momentum=0.0),
    "no affine": dict(affine=False),
    "no statistics": dict(track_running_stats=False),
    "neither": dict(affine=False, track_running_stats=False),
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("train", [True, False])
def test_degenerate_batches_are_as_in_torch(one_process, shape, options, train):
    """Outputs, gradients and statistics, or an error of the same class; after an error nothing has moved."""
    generator = torch.Generator().manual_seed(0)
    theirs = fill(nn.BatchNorm2d(3, **OPTIONS[options]).double(), generator).train(train)
    ours = copy.deepcopy(theirs)
    synchronise_norms(ours)
    assert type(ours) is SyncedBatchNorm2d
    before, results = copy.deepcopy(ours.state_dict()), []
    images = torch.randn(SHAPES[shape], generator=generator, dtype=torch.float64)
    for norm in (theirs, ours):
        x = images.clone().requires_grad_()
        try:
            y = norm(x)
        except (ValueError, RuntimeError) as error:
            results.append(error)
        else:
            (y * torch.arange(y.numel()).view_as(y)).sum().backward()
            results.append([y, x.grad, *(p.grad for p in norm.parameters()), *norm.buffers()])
    expected, found = results
    if isinstance(expected, Exception):
        assert type(found) is type(expected)
        assert all(torch.equal(v, before[k]) for k, v in ours.state_dict().items())
        return
    assert not isinstance(found, Exception), found
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-11)


def test_sums_over_processes_have_second_and_forward_derivatives(one_process):
    generator = torch.Generator().manual_seed(0)
    theirs = fill(nn.BatchNorm2d(2, track_running_stats=False).double(), generator)
    ours = synchronise_norms(copy.deepcopy(theirs))
    x, v = torch.randn(2, 3, 2, 2, 3, generator=generator, dtype=torch.float64)
    results = []
    for norm in (theirs, ours):
        twice = torch.func.grad(lambda x, norm=norm: torch.func.grad(lambda x: norm(x).pow(3).sum())(x).square().sum())(x)
        results.append((twice, torch.func.jvp(norm, (x,), (v,))[1]))
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-10)


def test_only_plain_batch_norms_are_synchronised():
    """A subclass may compute something else; on a GPU too, where torch's own conversion takes every subclass."""

    class Other(nn.BatchNorm2d):
        pass

    model = nn.Sequential(nn.BatchNorm2d(2), Other(2), nn.BatchNorm1d(2), nn.GroupNorm(1, 2))
    assert synchronise_norms(model) is model
    assert [type(m) for m in model] == [SyncedBatchNorm2d, Other, nn.BatchNorm1d, nn.GroupNorm]
    synchronise_norms(nn.ReLU())


def test_on_a_gpu_it_is_torchs_norm(monkeypatch):
    """With all that its constructor would have set; its `forward` is plain batch norm where no processes are joined."""
    model = fill(
        nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False, momentum=None)), torch.Generator().manual_seed(0)
    )
    images, expected = torch.randn(4, 3, 5, 5), copy.deepcopy(model)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "is_cuda", True)
        synchronise_norms(model)
    for norm in model:
        assert type(norm) is nn.SyncBatchNorm
        assert vars(norm).keys() == vars(nn.SyncBatchNorm(3)).keys()
    torch.testing.assert_close(model(images), expected(images))
    torch.testing.assert_close(dict(model.state_dict()), dict(expected.state_dict()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rms_norm_of_extreme_numbers(dtype):
    """Squares that overflow or vanish in half precision do not in float32, in which the mean is taken."""
    norm = RMSNorm(64).to(dtype)
    largest = torch.finfo(dtype).max / 4 if dtype == torch.float16 else 1e18
    for x in (torch.full((2, 64), largest, dtype=dtype), torch.full((2, 64), -3.0, dtype=dtype)):
        torch.testing.assert_close(norm(x), x.sign())
    assert not norm(torch.zeros(2, 64, dtype=dtype)).any()
    tiny = torch.full((2, 64), 1e-7, dtype=dtype)
    torch.testing.assert_close(norm(tiny), (tiny.double() / (tiny.double() ** 2 + 1e-6).sqrt()).to(dtype))
    with pytest.raises(ValueError, match=r"x must be of a floating-point dtype, got torch.int64"):
        norm(torch.ones(2, 64, dtype=torch.long))


def test_defaults_are_those_of_the_references():
    assert inspect.signature(RMSNorm).parameters["eps"].default == LlamaRMSNorm(4).variance_epsilon == 1e-6
    assert (SyncedBatchNorm2d(3).eps, SyncedBatchNorm2d(3).momentum) == (1e-5, 0.1)


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
    defaults=dict(eps=(LlamaRMSNorm(4).variance_epsilon, "LlamaRMSNorm"), offset=(0.0, "arXiv 1910.07467, equation 4")),
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

gemma_norm = Contract(
    RMSNorm,
    arguments=dict(dim=st.integers(2, 6), eps=st.sampled_from([1e-6, 1e-2]), offset=1.0),
    inputs=lambda a: dict(x=tensor("batch n dim", dim=a.dim)),
    outputs=lambda a, s: ("batch", "n", a.dim),
    twins=[
        Twin(
            "gemma", build=lambda a: GemmaRMSNorm(a.dim, a.eps), weights=WeightMap(("", "")),
            single_precision="models/gemma/modeling_gemma.py, GemmaRMSNorm.forward: x.float()",
        ),
    ],
    invalid=[(dict(dim=0), "dim"), (dict(eps=0.0), "eps")],
    name="GemmaNorm",
)  # fmt: skip
