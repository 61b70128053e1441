"""Muon: the polynomial of singular values by a decomposition, torch's own optimizer, and AdamW for the rest."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import nn

import zoo
from tasks.muon import Muon, hidden_matrices, orthogonal
from tasks.optimizers import make_optimizer
from tasks.options import EngineOptions

SHAPES = [(4, 4), (3, 7), (7, 3), (1, 5), (5, 1)]


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_singular_values(matrix):
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ s.diag() @ v


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_polynomial_is_that_of_the_singular_values(shape):
    matrix = drawn(*shape)
    torch.testing.assert_close(orthogonal(matrix, eps=0.0), by_singular_values(matrix), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_singular_values_come_near_one_whatever_the_scale(shape):
    for scale in (1e-3, 1.0, 1e6):
        values = torch.linalg.svdvals(orthogonal(drawn(*shape) * scale))
        assert ((values > 0.6) & (values < 1.25)).all()


def test_of_nothing_comes_nothing():
    assert not orthogonal(torch.zeros(3, 2)).any()
    assert orthogonal(drawn(3, 2).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_steps_are_those_of_torch(shape):
    theirs_of = pytest.importorskip("torch.optim._muon", reason="torch has Muon from 2.9 on")
    ours, theirs = (nn.Parameter(drawn(*shape, seed=1)) for _ in range(2))
    optimizer = Muon([{"params": [ours], "orthogonal": True}], lr=0.05, weight_decay=0.1)
    reference = torch.optim.Muon([theirs], lr=0.05, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    with mock.patch.object(theirs_of, "_zeropower_via_newtonschulz", lambda g, *_: orthogonal(g)):  # theirs rounds to bfloat16
        for step in range(4):
            ours.grad, theirs.grad = (drawn(*shape, seed=10 + step) for _ in range(2))
            optimizer.step()
            reference.step()
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("together", [1, 60, 10_000], ids=str)
def test_matrices_of_one_smaller_side_go_together(together, monkeypatch):
    """Whatever their other side, how they stand, and how many at once: each takes the step that it takes alone."""
    monkeypatch.setattr("tasks.muon.TOGETHER", together)
    shapes = [(3, 5), (5, 3), (3, 3), (3, 2, 2), (4, 7), (3, 5), (1, 4)]
    ours, theirs = ([nn.Parameter(drawn(*shape, seed=n)) for n, shape in enumerate(shapes)] for _ in range(2))
    whole, alone = (
        Muon([{"params": ours, "orthogonal": True}], 0.1),
        [Muon([{"params": [p], "orthogonal": True}], 0.1) for p in theirs],
    )
    for step in range(2):
        for n, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            p.grad, q.grad = (drawn(*p.shape, seed=20 + 10 * step + n) for _ in range(2))
        for optimizer in (whole, *alone):
            optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_a_kernel_is_a_matrix_of_its_first_axis():
    kernel, matrix = nn.Parameter(drawn(4, 3, 2, 2)), nn.Parameter(drawn(4, 3, 2, 2).flatten(1))
    optimizer = Muon([{"params": [kernel, matrix], "orthogonal": True}], lr=0.1)
    kernel.grad, matrix.grad = drawn(4, 3, 2, 2, seed=2), drawn(4, 3, 2, 2, seed=2).flatten(1)
    optimizer.step()
    assert torch.equal(kernel.flatten(1), matrix)


def test_all_others_are_adamws():
    """Gradients stay, and what has none does not move."""
    ours, theirs = ([nn.Parameter(drawn(4, 3, seed=n)) for n in range(4)] for _ in range(2))
    optimizer = Muon(
        [{"params": ours[:1], "orthogonal": True}, {"params": ours[1:], "orthogonal": False, "weight_decay": 0.1}],
        0.1,
        (0.9, 0.99),
    )
    reference = torch.optim.AdamW(theirs[1:], 0.1, (0.9, 0.99), weight_decay=0.1, fused=True)
    for step in range(3):
        for parameters in (ours, theirs):
            for n, p in enumerate(parameters[:3]):
                p.grad = drawn(4, 3, seed=10 + 3 * step + n)
        optimizer.step()
        reference.step()
    assert all(torch.equal(a, b) for a, b in zip(ours[1:], theirs[1:], strict=True))
    assert torch.equal(ours[3], drawn(4, 3, seed=3))
    assert not torch.equal(ours[0], theirs[0])
    assert ours[0].grad is not None
    assert len(optimizer.param_groups) == 2


def test_no_step_is_taken_where_half_precision_overflows():
    """With a scaler of gradients, which leaves that to AdamW where it is fused."""
    matrix, vector = nn.Parameter(drawn(3, 3).float()), nn.Parameter(drawn(3).float())
    optimizer = Muon([{"params": [matrix], "orthogonal": True}, {"params": [vector]}], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale((matrix * vector).sum() * float("inf")).backward()
    scaler.step(optimizer)
    assert torch.equal(matrix, drawn(3, 3).float())
    assert torch.equal(vector, drawn(3).float())


def test_a_closure_is_called_with_gradients():
    p = nn.Parameter(drawn(2, 2))

    def closure():
        loss = p.square().sum()
        loss.backward()
        return loss

    assert Muon([{"params": [p], "orthogonal": True}], lr=0.1).step(closure) == drawn(2, 2).square().sum()


@pytest.mark.parametrize(
    ("name", "some", "others"),
    [
        ("llama_small", {"decoder.0.attention.sublayer.query", "decoder.2.feedforward.sublayer.down"}, {"embedding.table"}),
        ("bert_small", {"encoder.0.attention.sublayer.value"}, {"embedding.table", "positions.table", "head.output"}),
        ("resnet20", {"stem.0.conv", "stages.2.0.body.1.conv"}, {"head.output"}),
    ],
)
def test_hidden_matrices(name, some, others):
    of = {"llama_small": {"vocab_size": 9}, "bert_small": {"vocab_size": 9, "head": "sequence", "num_classes": 2}}
    with torch.device("meta"):
        model = zoo.create(name, **of.get(name, {}))
    hidden = hidden_matrices(model)
    assert {model.get_submodule(place).weight for place in some} <= hidden
    assert not {model.get_submodule(place).weight for place in others} & hidden
    assert all(p.ndim > 1 for p in hidden)


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_groups_are_a_partition(layer_decay):
    with torch.device("meta"):
        model = zoo.create("bert_small", vocab_size=9, head="sequence", num_classes=2)
    options = EngineOptions(optimizer="muon", layer_decay=layer_decay, weight_decay=0.1)
    groups = make_optimizer(model, options).param_groups
    found = [p for group in groups for p in group["params"]]
    assert len(found) == len(set(found)) == len(list(model.parameters()))
    assert {p for group in groups if group["orthogonal"] for p in group["params"]} == hidden_matrices(model)
    assert all(group["weight_decay"] == 0.1 for group in groups if group["orthogonal"])


def test_the_engine_learns_by_it(start):
    run = start(optimizer="muon", lr=0.1, schedule="constant", warmup=0)
    losses = [run.train_step(torch.arange(8))["loss"] for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]
