"""The loop, on toy tasks in float64: what must be equal is equal to rounding."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from toys import Sentences, network

import zoo
from tasks import runs
from tasks.commands import Diverged
from tasks.engine import Run
from tasks.optimizers import learning_rate, make_optimizer
from tasks.options import EngineOptions, UserError
from tasks.task import Metric


def weights(run: Run) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.model.state_dict().items()}


@pytest.mark.parametrize("clip", [0.0, 0.1])
@pytest.mark.parametrize("accumulate", [2, 3, 7, 50])
def test_micro_batches_equal_one_batch(start, accumulate, clip):
    """Not a mean of means: seven examples of uneven length in uneven shares, over three steps."""
    runs = [start(clip=clip), start(accumulate=accumulate, clip=clip)]
    for indices in torch.arange(11).split(7):
        whole, parts = (run.train_step(indices) for run in runs)
        assert whole == pytest.approx(parts, rel=1e-13)
    torch.testing.assert_close(*map(weights, runs), rtol=1e-12, atol=1e-13)


def test_a_step_is_the_gradient_of_the_mean_over_the_units(start):
    run, plain, task = start(accumulate=3, optimizer="sgd", lr=0.1, schedule="constant"), network(), Sentences()
    optimizer = make_optimizer(plain, run.options)
    for indices in torch.arange(11).split(4):
        sums = run.train_step(indices)
        loss, _ = task.loss(plain, batch := task.train.batch(indices, 0))
        assert sums["loss"] == pytest.approx(loss.item(), rel=1e-13)
        assert sums["units"] == task.units(batch)
        (loss / task.units(batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(weights(run), dict(plain.state_dict()), rtol=1e-12, atol=1e-13)


def test_clipping_bounds_the_norm_of_the_whole_gradient(start):
    run = start(clip=1e-3, optimizer="sgd", lr=0.1, schedule="constant", weight_decay=0.0, accumulate=2)
    before = weights(run)
    run.train_step(torch.arange(8))
    moved = torch.stack([(value - before[name]).norm() for name, value in weights(run).items()]).norm().item()
    assert moved == pytest.approx(0.1 * 1.9 * 1e-3)  # the first step of Nesterov momentum 0.9 goes 1.9 gradients far


def test_every_validation_example_counts_once(start):
    task = Sentences(valid_size=130)
    run = start(task)
    loss, metrics = task.loss(run.model, batch := task.valid.batch(torch.arange(130), 0))
    expected = {"loss": loss.item() / task.units(batch), "accuracy": metrics["accuracy"].item() / task.units(batch)}
    assert run.evaluate() == pytest.approx(expected, rel=1e-12)


def test_evaluation_leaves_the_model_alone(start):
    run = start(model=network(nn.BatchNorm1d(8), nn.Dropout(0.5)))
    before, state = weights(run), torch.get_rng_state()
    assert run.evaluate() == run.evaluate()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in weights(run).items())


def test_dropout_is_a_function_of_the_place_not_of_the_past(start):
    runs = [start(model=network(nn.Dropout(0.5)), accumulate=2) for _ in range(2)]
    for past, run in enumerate(runs):
        torch.manual_seed(past)
        run.train_step(torch.arange(8))
    one, other = map(weights, runs)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_dropout_differs_between_steps_and_micro_batches(start):
    masks = []

    class Spy(nn.Dropout):
        def forward(self, x):
            masks.append(super().forward(torch.ones_like(x)) > 0)
            return super().forward(x)

    run = start(model=network(Spy(0.5)), accumulate=2)
    for _ in range(2):
        run.train_step(torch.arange(8))
    assert len(masks) == 4
    assert not any(torch.equal(a, b) for n, a in enumerate(masks) for b in masks[:n])


@given(size=st.integers(1, 40), accumulate=st.integers(1, 6), world=st.integers(1, 5))
def test_shares_are_a_partition_that_keeps_the_micro_batches(size, accumulate, world):
    def shares(processes: int, rank: int) -> list[tuple[int, list[int]]]:
        run = SimpleNamespace(options=SimpleNamespace(accumulate=accumulate), world=processes, index=rank)
        return [(k, share.tolist()) for k, share in Run.shares(run, torch.arange(size))]

    alone = shares(1, 0)
    assert [i for _, share in alone for i in share] == list(range(size))
    together = [shares(world, rank) for rank in range(world)]
    for n, (k, whole) in enumerate(alone):  # every process takes part in every micro-batch, or the others would wait for it
        assert [i for rank in together for i in rank[n][1]] == whole
        assert {rank[n][0] for rank in together} == {k}
    assert {len(rank) for rank in together} == {len(alone)}


def test_the_schedule_counts_steps_not_micro_batches(start):
    run = start(accumulate=4, warmup=1.0, epochs=2)
    for step, indices in enumerate(torch.arange(11).split(4)):
        run.train_step(indices)
        assert {group["lr"] for group in run.optimizers["model"].param_groups} == {learning_rate(run.options, step, 3)}
    assert run.step == 3


def test_a_loss_that_is_no_number_stops_before_it_does_harm(start):
    class Poisoned(Sentences):
        def loss(self, model, batch):
            loss, metrics = super().loss(model, batch)
            return loss * (float("nan") if self.poisoned else 1.0), metrics

    task = Poisoned()
    task.poisoned = False
    run = start(task)
    run.train_step(torch.arange(4))
    before, task.poisoned = weights(run), True
    with pytest.raises(Diverged, match="step 2"):
        run.train_step(torch.arange(4, 8))
    assert all(torch.equal(value, before[name]) for name, value in weights(run).items())


class NeverTrained(Sentences):
    def units(self, batch):
        assert not torch.is_grad_enabled(), "a step has begun"
        return super().units(batch)


def test_a_model_that_could_not_be_kept_is_refused_before_the_first_step(start, tmp_path):
    with pytest.raises(ValueError, match=r"model must come from zoo\.create"):
        start(NeverTrained()).fit()
    task = NeverTrained()
    with pytest.raises(UserError, match=r"model must come from zoo\.create"):
        runs.train(EngineOptions, {"runs_dir": str(tmp_path / "runs")}, lambda _: "a", lambda *_: (task, network()))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("metric", ["accuracy", "bleu"])
def test_a_deciding_metric_that_is_not_measured_is_named(start, monkeypatch, metric):
    """Before the first step, unless it might have come from `score`."""
    monkeypatch.setitem(zoo.MODELS, "toy", network)
    model = network()
    model.config = {"model": "toy", "arguments": {}}

    class Other(NeverTrained):
        primary = Metric(metric)

        def loss(self, model, batch):
            return super().loss(model, batch)[0], {"error": torch.tensor(1.0)}

    with pytest.raises(ValueError, match=f"primary must be one of loss, error, got '{metric}'"):
        start(Other(), model).fit()
    with pytest.raises(ValueError, match=f"primary must be one of loss, error, got '{metric}'"):
        start(Other()).evaluate()
    monkeypatch.setattr(Other, "score", lambda self, model: {"bleu": 1.0})
    assert "bleu" in start(Other()).evaluate() if metric == "bleu" else True


def test_a_run_says_the_name_of_its_model(start, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(zoo.MODELS, "toy", network)
    options = {"runs_dir": str(tmp_path / "runs"), "epochs": 1, "device": "cpu"}
    runs.train(EngineOptions, options, lambda _: "a", lambda *_: (Sentences(), zoo.create("toy")))
    assert capsys.readouterr().out.startswith("toy, 50 parameters\n")
