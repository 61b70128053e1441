"""The loop, on toy tasks in float64: what must be equal is equal to rounding."""

from __future__ import annotations

import json
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import zoo
from tasks.data import epoch_order
from tasks.engine import Run
from tasks.optimizers import learning_rate, make_optimizer, parameter_groups, update_average
from tasks.options import EngineOptions
from tasks.runs import Diverged
from zoo import files


class Sentences:
    """Regression whose units, like tokens, differ between examples: example i counts for its length."""

    unit = "sentences"

    def __init__(self, size: int = 11, test_size: int = 5) -> None:
        draw = torch.Generator().manual_seed(0)
        self.train_size, self.test_size = size, test_size
        self.inputs = torch.randn(size + test_size, 3, generator=draw, dtype=torch.float64)
        self.targets = torch.randn(size + test_size, 2, generator=draw, dtype=torch.float64)
        self.lengths = torch.randint(1, 9, (size + test_size,), generator=draw)

    def batches(self, epoch):
        if epoch is None:
            return torch.arange(self.test_size).split(64)
        return epoch_order(self.train_size, 0, epoch).split(4)

    def batch(self, indices, epoch):
        indices = indices if epoch is not None else indices + self.train_size
        return self.inputs[indices], self.targets[indices], self.lengths[indices]

    def units(self, batch):
        return int(batch[2].sum())

    def loss(self, model, batch):
        inputs, targets, lengths = batch
        errors = (model(inputs) - targets).square().mean(-1)
        return (errors * lengths).sum(), {"accuracy": ((errors < 1) * lengths).sum()}

    def score(self, model):
        return {}


def network(*middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), *middle, nn.Tanh(), nn.Linear(8, 2)).double()


class Grids(Sentences):
    """The same with inputs (b, c, y, x), for convolutions and their norms."""

    def batch(self, indices, epoch):
        inputs, targets, lengths = super().batch(indices, epoch)
        ramp = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(4, 4)
        return inputs[:, :, None, None] * ramp, targets, lengths


def grid_network(*end: nn.Module, mean: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    stem, norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
    nn.init.constant_(stem.bias, mean)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return nn.Sequential(stem, norm, nn.Conv2d(4, 2, 3), *end, nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()


@pytest.fixture
def start(tmp_path):
    """A run that has not begun; accelerate's shared state does not outlive the test."""

    def build(task=None, model=None, **options) -> Run:
        chosen = EngineOptions(device="cpu", **{"warmup": 0, **options})
        return Run(task or Sentences(), model or network(), chosen, tmp_path)

    yield build
    AcceleratorState._reset_state(reset_partial_state=True)


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
        loss, _ = task.loss(plain, batch := task.batch(indices, 0))
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


def test_every_test_example_counts_once(start):
    task = Sentences(test_size=130)
    run = start(task)
    loss, metrics = task.loss(run.model, batch := task.batch(torch.arange(130), None))
    due = {"loss": loss.item() / task.units(batch), "accuracy": metrics["accuracy"].item() / task.units(batch)}
    assert run.evaluate() == pytest.approx(due, rel=1e-12)


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
        run = SimpleNamespace(
            options=SimpleNamespace(accumulate=accumulate), world=processes, accelerator=SimpleNamespace(process_index=rank)
        )
        return [(k, share.tolist()) for k, share in Run.shares(run, torch.arange(size))]

    alone = shares(1, 0)
    assert [i for _, share in alone for i in share] == list(range(size))
    together = [shares(world, rank) for rank in range(world)]
    for n, (k, whole) in enumerate(alone):  # every process takes part in every micro-batch, or the others would wait for it
        assert [i for rank in together for i in rank[n][1]] == whole
        assert {rank[n][0] for rank in together} == {k}
    assert {len(rank) for rank in together} == {len(alone)}


# ---------------------------------------------------------------------------------------------- schedule, optimizer, EMA


@pytest.mark.parametrize("schedule", ["cosine", "step", "rsqrt", "constant"])
def test_schedule_rises_then_follows_its_law(schedule):
    options = EngineOptions(lr=2.0, epochs=10, warmup=2, schedule=schedule)
    rates = [learning_rate(options, step, 100) for step in range(1000)]
    assert all(a < b for a, b in pairwise(rates[:201]))
    assert 0 < rates[0] < 0.02
    assert max(rates) == rates[200] == 2.0
    half, late = rates[200 + 400], rates[200 + 600]
    due = {"cosine": (1.0, 2 * 0.5 * (1 - 0.5**0.5)), "step": (0.2, 0.02), "constant": (2.0, 2.0),
           "rsqrt": (2.0 * (201 / 601) ** 0.5, 2.0 * (201 / 801) ** 0.5)}[schedule]  # fmt: skip
    assert (half, late) == pytest.approx(due)
    assert rates[-1] < 1e-4 or schedule != "cosine"


def test_the_schedule_counts_steps_not_micro_batches(start):
    run = start(accumulate=4, warmup=1.0, epochs=2)
    for step, indices in enumerate(torch.arange(11).split(4)):
        run.train_step(indices)
        assert {group["lr"] for group in run.optimizer.param_groups} == {learning_rate(run.options, step, 3)}
    assert run.step == 3


@pytest.mark.parametrize("name", ["vgg11", "vgg19_bn", "transformer_small"])
def test_parameter_groups_are_a_partition_without_decay_of_norms_and_biases(name):
    with torch.device("meta"):
        model = zoo.create(name, **({"vocab_size": 9} if "former" in name else {"num_classes": 3}))
    decays = {id(p): group["weight_decay"] for group in parameter_groups(model, 0.1) for p in group["params"]}
    assert sum(len(group["params"]) for group in parameter_groups(model, 0.1)) == len(list(model.parameters()))
    for module in model.modules():
        for kind, p in module.named_parameters(recurse=False):
            decayed = isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding) and kind == "weight"
            assert decays[id(p)] == (0.1 if decayed else 0.0), (module, kind)


def test_average_of_decay_zero_is_the_model_and_of_others_the_law():
    models = [nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)) for _ in range(3)]
    for seed, model in enumerate(models):
        torch.manual_seed(seed)
        for value in model.state_dict().values():
            value.random_(0, 50)
    average, model, copied = models
    old = {name: value.clone() for name, value in average.state_dict().items()}
    update_average(copied, model, 0.0)
    update_average(average, model, 0.75)
    for name, new in model.state_dict().items():
        assert torch.equal(copied.state_dict()[name], new), name
        due = 0.75 * old[name] + 0.25 * new if new.is_floating_point() else new
        torch.testing.assert_close(average.state_dict()[name], due, msg=lambda text, name=name: f"{name}: {text}")


# ----------------------------------------------------------------------------------- the mean of the last epochs, patience


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    """`zoo.save` takes what `zoo.create` could build."""
    monkeypatch.setitem(zoo.MODELS, "toy", network)


def saveable() -> nn.Module:
    model = network()
    model.config = {"model": "toy", "arguments": {}}
    return model


@pytest.mark.parametrize("average", [1, 2, 9])
@pytest.mark.parametrize("interrupted", [False, True])
def test_the_mean_of_the_last_epochs(start, tmp_path, average, interrupted):
    options = {"epochs": 3, "average": average, "lr": 0.1, "schedule": "constant"}
    run, states = start(model=saveable(), **options), []
    for epoch in range(3):
        if interrupted and epoch == 2:
            run = start(model=saveable(), **options)
            run.restore()
        run.train_epoch(0.0)
        states.append(weights(run))
    summary = run.fit()
    last = states[-average:]
    mean = {name: torch.stack([state[name] for state in last]).mean(0) for name in states[0]}
    due = network()
    due.load_state_dict(mean)
    tested = run.evaluate(due)
    assert {name: summary[f"average_test_{name}"] for name in tested} == pytest.approx(tested, rel=1e-12)
    assert sorted(path.name for path in tmp_path.glob("epoch-*")) == [f"epoch-{n}.safetensors" for n in (1, 2, 3)[-average:]]
    best = max((row["test_accuracy"], -row["test_loss"]) for row in run.history)
    assert summary["average_kept"] == ((tested["accuracy"], -tested["loss"]) >= best)
    kept = files.read_tensors(tmp_path / "best.safetensors")
    one = mean if summary["average_kept"] else states[run.best()["epoch"] - 1]
    torch.testing.assert_close(kept, one)


@pytest.mark.parametrize("better", [False, True])
def test_a_mean_that_tests_worse_is_not_kept(start, tmp_path, better):
    class Judged(Sentences):
        def score(self, model):
            self.asked = getattr(self, "asked", 0) + 1
            return {
                "accuracy": {1: 0.5, 2: 0.7, 3: 0.7}[self.asked],
                "loss": {1: 1.0, 2: 1.0, 3: 1.0 if better else 1.1}[self.asked],
            }

    run = start(Judged(), saveable(), epochs=2, average=2)
    assert run.fit()["average_kept"] is better
    mean = files.read_tensors(tmp_path / "best.safetensors")
    assert torch.equal(mean["0.weight"], run.model[0].weight) is not better


def test_patience_ends_a_run_that_no_longer_gets_better(start):
    course = [0.1, 0.3, 0.3, 0.2, 0.4, 0.4, 0.1, 0.4, 0.9]
    losses = [1.0, 1.0, 1.1, 1.0, 1.0, 0.9, 0.9, 0.9, 1.0]  # the sixth epoch equals the fifth, with less loss

    class Judged(Sentences):
        def score(self, model):
            return {"accuracy": course[run.epoch], "loss": losses[run.epoch]}

    for patience, due in ((1, 3), (2, 4), (3, 9), (0, 9)):
        run = start(Judged(), saveable(), epochs=9, patience=patience)
        summary = run.fit()
        assert (summary["epochs"], run.epoch) == (due, due), patience
        assert summary["best_test_accuracy"] == max(course[:due])
        back = start(Judged(), saveable(), epochs=9, patience=patience)
        back.restore()
        assert back.finished
        assert back.fit()["epochs"] == due


# ------------------------------------------------------------------------------------------------- checkpoints, two processes


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_checkpoint_brings_back_every_bit(start, tmp_path, optimizer):
    """Four-dimensional weights too: they lie channels-last in memory, and so must what the optimizer keeps for them."""

    options = {"optimizer": optimizer, "ema": 0.9, "accumulate": 2}
    run = start(Grids(), grid_network(nn.Dropout(0.2)), **options)
    for indices in torch.arange(11).split(4):
        run.train_step(indices)
    run.save()
    back = start(Grids(), grid_network(nn.Dropout(0.2)), **options)
    back.restore()
    for indices in torch.arange(11).split(4):
        assert run.train_step(indices) == back.train_step(indices)
    for one, other in ((run.model, back.model), (run.average, back.average)):
        for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
            assert torch.equal(a, b), name


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


TWO = """
import importlib.util, sys, torch
from pathlib import Path
spec = importlib.util.spec_from_file_location("toys", sys.argv[1])
toys = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toys)

options = toys.EngineOptions(device="cpu", accumulate=2, ema=0.9, clip=1.0, warmup=0)
# a mean far from zero, where a mean of squares less a squared mean would lose its digits
run = toys.Run(toys.Grids(test_size=131), toys.grid_network(mean=1e3), options, Path(sys.argv[2]))
rows = [run.train_step(indices) for _ in range(2) for indices in torch.arange(11).split(5)]
run.sums = {f"step {n + 1}": row for n, row in enumerate(rows)} | {"evaluation": run.evaluate()}
run.save()
"""


def test_two_processes_equal_one_to_rounding(launch, tmp_path):
    """Batch norm, micro-batches, units that differ, clipping, EMA, and a last batch of one example, in float64."""
    script = tmp_path / "two.py"
    script.write_text(TWO)
    states, rows = [], []
    for launcher in ((), ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")):
        done = launch(__file__, tmp_path, launcher=(*launcher, script))
        assert done.returncode == 0, done.stderr
        path = tmp_path / "last.safetensors"
        rows.append(json.loads(files.read_metadata(path)["progress"])["sums"])
        states.append(files.read_tensors(path))
    for step in rows[0]:
        assert rows[1][step] == pytest.approx(rows[0][step], rel=1e-9), step
    torch.testing.assert_close(states[1], states[0], rtol=1e-7, atol=1e-8)
