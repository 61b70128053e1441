"""What a run keeps: its best model, the mean of its last epochs, and a checkpoint that brings back every bit."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from toys import Adversaries, Grids, Pair, Sentences, grid_network, network

import zoo
from tasks.options import UserError
from tasks.task import Metric
from zoo import files


def weights(run):
    return {name: value.clone() for name, value in run.model.state_dict().items()}


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
    averaged = network()
    averaged.load_state_dict(mean)
    tested = run.evaluate(averaged)
    assert {name: summary[f"average_valid_{name}"] for name in tested} == pytest.approx(tested, rel=1e-12)
    assert sorted(path.name for path in tmp_path.glob("epoch-*")) == [f"epoch-{n}.safetensors" for n in (1, 2, 3)[-average:]]
    best = max((row["valid_accuracy"], -row["valid_loss"]) for row in run.history)
    assert summary["average_kept"] == ((tested["accuracy"], -tested["loss"]) >= best)
    kept = files.read_tensors(tmp_path / "best.safetensors")
    one = mean if summary["average_kept"] else states[run.best()["epoch"] - 1]
    torch.testing.assert_close(kept, one)


def test_a_longer_run_goes_on_from_the_best_epoch_not_from_the_mean(start, tmp_path):
    """The mean of two epochs was kept; the third epoch is worse than the second, and so is its mean."""

    class Judged(Sentences):
        def score(self, model):
            return {"accuracy": next(course), "loss": 1.0}

    course = iter([0.5, 0.6, 0.7, 0.1, 0.2])
    run = start(Judged(), saveable(), epochs=2, average=2)
    assert run.fit()["average_kept"]
    assert not torch.equal(files.read_tensors(tmp_path / "best.safetensors")["0.weight"], run.model[0].weight)
    second = weights(run)
    back = start(Judged(), saveable(), epochs=3, average=2)
    back.restore()
    assert not back.fit()["average_kept"]
    torch.testing.assert_close(files.read_tensors(tmp_path / "best.safetensors"), second, rtol=0, atol=0)
    assert not (tmp_path / "best_epoch.safetensors").exists()


@pytest.mark.parametrize("better", [False, True])
def test_a_mean_that_is_worse_is_not_kept(start, tmp_path, better):
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

    for patience, last in ((1, 3), (2, 4), (3, 9), (0, 9)):
        run = start(Judged(), saveable(), epochs=9, patience=patience)
        summary = run.fit()
        assert (summary["epochs"], run.epoch) == (last, last), patience
        assert summary["best_valid_accuracy"] == max(course[:last])
        back = start(Judged(), saveable(), epochs=9, patience=patience)
        back.restore()
        assert back.finished
        assert back.fit()["epochs"] == last


def test_a_checkpoint_of_several_parts_brings_back_every_bit(start):
    options = {"ema": 0.9, "accumulate": 2, "clip": 1.0}
    run = start(Adversaries(), Pair(nn.Dropout(0.2)), **options)
    run.train_step(torch.arange(7))
    run.save()
    back = start(Adversaries(), Pair(nn.Dropout(0.2)), **options)
    back.restore()
    for indices in torch.arange(11).split(4):
        assert run.train_step(indices) == back.train_step(indices)
    for one, other in ((run.model, back.model), (run.average, back.average)):
        assert not [name for name, x in one.state_dict().items() if not torch.equal(x, other.state_dict()[name])]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "muon"])
def test_a_checkpoint_brings_back_every_bit(start, tmp_path, optimizer):
    """Four-dimensional weights too: they lie channels-last in memory, and so must what the optimizer keeps for them."""

    options = {"optimizer": optimizer, "ema": 0.9, "accumulate": 2}
    run = start(Grids(), grid_network(nn.Dropout(0.2)), **options)
    assert run.model[0].weight.is_contiguous(memory_format=torch.channels_last)
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


def test_a_checkpoint_of_the_first_version_goes_on(start, tmp_path):
    """It called `test_*` what it measured while training; all else is as it was."""
    run = start(model=saveable(), epochs=2, patience=1)
    run.train_epoch(0.0)
    metadata = files.read_metadata(tmp_path / "last.safetensors")
    old = metadata["progress"].replace('"valid_', '"test_')
    assert old != metadata["progress"]
    files.write_tensors(
        tmp_path / "last.safetensors", files.read_tensors(tmp_path / "last.safetensors"), {**metadata, "progress": old}
    )
    back = start(model=saveable(), epochs=2, patience=1)
    back.restore()
    assert back.history == run.history
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == run.history
    assert back.fit() | {"seconds": 0, "sentences_per_second": 0} == run.fit() | {"seconds": 0, "sentences_per_second": 0}


def test_other_data_and_other_files_are_refused(start, tmp_path):
    run = start()
    run.save()
    with pytest.raises(UserError, match=r"from \[11, 5\] training and validation examples to \[11, 6\]"):
        start(Sentences(valid_size=6)).restore()
    files.write_tensors(tmp_path / "last.safetensors", run.model.state_dict())
    with pytest.raises(UserError, match="lacks the progress of a run"):
        start().restore()


@pytest.mark.parametrize("lower", [False, True])
def test_the_best_epoch_follows_the_direction_of_the_metric(start, lower):
    """Ties go to the lower loss, then to the earlier epoch; NaN is never the best."""
    nan = float("nan")
    course = [(nan, 0.1), (0.5, 1.0), (0.2, 2.0), (0.2, 1.5), (0.9, 3.0), (0.9, 2.5), (0.2, 1.5), (0.9, 2.5), (0.9, nan)]

    class Judged(Sentences):
        primary = Metric("error", lower_is_better=lower)

        def score(self, model):
            error, loss = course[run.epoch]
            return {"error": error, "loss": loss}

    run = start(Judged(), saveable(), epochs=9)
    summary = run.fit()
    assert summary["best_epoch"] == (4 if lower else 6)
    assert summary["best_valid_error"] == (0.2 if lower else 0.9)
    back = start(Judged(), saveable(), epochs=9, patience=4)
    back.restore()
    assert back.finished


@pytest.mark.processes
def test_two_processes_equal_one_to_rounding(launch, tmp_path):
    """Batch norm, micro-batches, units that differ, clipping, EMA, a last batch of one example, and a GAN, in float64."""
    for ranks in (1, 2):
        done = launch("steps", tmp_path / str(ranks), task="toys", ranks=ranks)
        assert done.returncode == 0, done.stderr
    for toy in ("grids", "pair"):
        paths = [tmp_path / ranks / toy / "last.safetensors" for ranks in ("1", "2")]
        one, two = (json.loads(files.read_metadata(path)["progress"])["sums"] for path in paths)
        for step in one:
            assert two[step] == pytest.approx(one[step], rel=1e-9), (toy, step)
        torch.testing.assert_close(*map(files.read_tensors, paths), rtol=1e-7, atol=1e-8)
