"""Gradient checkpointing and batches of other processes change nothing but memory and time."""

from __future__ import annotations

import os

import pytest
import torch
from toys import Sentences, network

import zoo
from tasks.data import DataError
from tasks.loading import prepared
from tasks.options import EngineOptions, UserError
from tasks.recompute import blocks, recomputing
from tasks.task import Split

SMALL = {
    "vgg11_bn": dict(width=1 / 16, head="small", dropout=0.5),
    "resnet20": dict(width=1 / 4),
    "googlenet": dict(width=1 / 8),
    "mobilenet_v2": dict(width=1 / 4),
    "transformer_small": dict(vocab_size=11, dim=8, heads=2, hidden_dim=12, layers=2, dropout=0.3),
}


def build(name):
    torch.manual_seed(0)
    known = zoo.arguments(name)
    return zoo.create(name, **{key: value for key, value in SMALL[name].items() if key in known}).double().train()


def loss_of(model):
    torch.manual_seed(1)
    if "former" in model.config["model"]:
        return model(torch.randint(1, 11, (2, 5)), torch.randint(1, 11, (2, 4))).square().mean()
    found = model(torch.rand(2, 3, 64, 64, dtype=torch.float64))
    return sum(x.square().mean() for x in (found if isinstance(found, tuple) else (found,)))


@pytest.mark.parametrize("name", SMALL)
def test_what_is_computed_again_is_the_same(name):
    """Loss, gradients, running statistics, the random state; and less is kept than without."""
    found = []
    for again in (False, True):
        model, kept = build(name), []
        calls = []
        hooks = [block.register_forward_pre_hook(lambda *_, calls=calls: calls.append(0)) for block in blocks(model)]
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def pack(x, kept=kept, weights=weights):
            kept.append(0 if x.untyped_storage().data_ptr() in weights else x.numel())
            return x

        keep = torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x)
        with keep, recomputing(blocks(model) if again else []):
            loss = loss_of(model)
        after = torch.get_rng_state()
        loss.backward()
        assert len(calls) == len(blocks(model)) > 0
        assert all("forward" not in vars(block) for block in blocks(model))
        for hook in hooks:
            hook.remove()
        found.append((loss, [p.grad for p in model.parameters()], list(model.buffers()), after, sum(kept)))
    plain, again = found
    torch.testing.assert_close(again[:3], plain[:3], rtol=1e-12, atol=1e-14)
    assert torch.equal(again[3], plain[3])
    assert again[4] < 0.6 * plain[4]


def test_the_option_is_the_same_run(start, monkeypatch):
    runs = []
    for again in (False, True):
        run = start(model=Blocks(), gradient_checkpointing=again, accumulate=2)
        for indices in torch.arange(11).split(4):
            run.train_step(indices)
        runs.append(run)
    assert runs[1].model.calls == 2 * runs[0].model.calls > 0
    torch.testing.assert_close(runs[1].model.state_dict(), runs[0].model.state_dict(), rtol=1e-12, atol=1e-14)


class Blocks(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.blocks, self.calls = network(), torch.nn.ModuleList([torch.nn.Linear(2, 2).double()]), 0
        forward = type(self.blocks[0]).forward

        def counted(module, x):
            self.calls += 1
            return forward(module, x)

        self.blocks[0].__class__ = type("Counted", (torch.nn.Linear,), {"forward": counted})

    def forward(self, x):
        return self.blocks[0](self.first(x))


def test_what_cannot_be_is_refused(start, monkeypatch):
    with pytest.raises(UserError, match="--gradient_checkpointing and --compile exclude each other"):
        EngineOptions(gradient_checkpointing=True, compile=True)
    monkeypatch.setitem(zoo.MODELS, "toy", network)
    with pytest.raises(ValueError, match="gradient_checkpointing must be False for a model without a list of blocks"):
        start(model=zoo.create("toy"), gradient_checkpointing=True).fit()


# ------------------------------------------------------------------------------------------------------------------- workers


@pytest.mark.processes
def test_workers_bring_the_same_batches_in_the_same_order(start, monkeypatch):
    monkeypatch.setitem(zoo.MODELS, "toy", network)
    runs = [start(model=zoo.create("toy"), epochs=2, accumulate=2, workers=workers) for workers in (0, 2)]
    for run in runs:
        run.fit()
    assert runs[0].history == runs[1].history
    one, other = (run.model.state_dict() for run in runs)
    assert all(torch.equal(one[name], other[name]) for name in one)
    found = list(prepared(lambda n: (n, os.getpid()), range(5), 2))
    assert [n for n, _ in found] == list(range(5))
    assert len({pid for _, pid in found} | {os.getpid()}) == 3, "not prepared elsewhere"


@pytest.mark.processes
def test_the_error_of_a_worker_is_the_error(start):
    class Broken(Sentences):
        def __init__(self):
            super().__init__()
            self.train = Split(11, self.train.batches, self.broken)

        def broken(self, indices, epoch):
            raise DataError("cat.png cannot be read")

    run = start(Broken(), workers=1)
    with pytest.raises(DataError, match=r"^cat\.png cannot be read$"):
        run.train_epoch(0.0)
