"""Several losses, each for a part of the model with an optimizer of its own: a GAN in the engine, against the loop by hand."""

from __future__ import annotations

import signal

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import Adversaries, Pair, Sentences, network

import zoo
from tasks.optimizers import learning_rate, make_optimizer
from zoo import files

STEPS = torch.arange(11).split(4)


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    """`zoo.save` takes what `zoo.create` could build."""
    monkeypatch.setitem(zoo.MODELS, "toy", Pair)


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_it_is_the_loop_by_hand(start, accumulate, clip):
    """Discriminator, step, then the generator against it; each has its own optimizer, rate and clipped norm."""
    run = start(Adversaries(), Pair(), accumulate=accumulate, clip=clip, epochs=2, ema=0.5)
    pair, task = Pair(), Adversaries()
    optimizers = {"discriminator": make_optimizer(pair.discriminator, run.options),
                  "generator": torch.optim.Adam(pair.generator.parameters(), betas=(0.5, 0.999))}  # fmt: skip
    for n, indices in enumerate(STEPS):
        sums = run.train_step(indices)
        (inputs, _, _), rate = task.examples(indices), learning_rate(run.options, n, 3)
        real, fake = inputs[:, :2], pair.generator(inputs[:, 2:])
        first = F.softplus(-pair.discriminator(real)).sum() + F.softplus(pair.discriminator(fake.detach())).sum()
        for name, share in (("discriminator", 1), ("generator", 0.5)):
            loss = first if name == "discriminator" else F.softplus(-pair.discriminator(fake)).sum()
            assert sums[f"{name}_loss"] == pytest.approx(loss.item(), rel=1e-12)
            pair.zero_grad()
            (loss / len(indices)).backward()
            part = getattr(pair, name)
            if clip:
                nn.utils.clip_grad_norm_(part.parameters(), clip)
            for group in optimizers[name].param_groups:
                group["lr"] = rate * share
            optimizers[name].step()
        assert sums["loss"] == pytest.approx(sums["discriminator_loss"] + sums["generator_loss"], rel=1e-14)
    torch.testing.assert_close(weights(run.model), weights(pair), rtol=1e-11, atol=1e-12)
    assert not torch.equal(run.average.generator[0].weight, run.model.generator[0].weight)


@pytest.mark.parametrize("moved", ["discriminator", "generator"])
def test_a_loss_moves_its_own_part_alone(start, moved):
    """Even one that is not detached: weights, gradients and optimizer of the other part stay as they are."""

    class OneSided(Adversaries):
        def losses(self, model, batch):
            guess = model.discriminator(model.generator(batch[0][:, 2:]))
            yield moved, F.softplus(guess).sum(), {}

    run = start(OneSided(), Pair())
    before = weights(run.model)
    run.train_step(STEPS[0])
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith(moved), name
    other = "generator" if moved == "discriminator" else "discriminator"
    assert all(p.grad is None for p in run.parts[other].parameters())
    assert not run.optimizers[other].state_dict()["state"]
    assert run.optimizers[moved].state_dict()["state"]


def test_a_part_may_step_several_times(start):
    """Five of the discriminator to one of the generator, as Wasserstein GANs do: rows give means, dropout is drawn anew."""
    drawn = []

    class Five(Adversaries):
        def losses(self, model, batch):
            for _ in range(5):
                drawn.append(torch.rand(()).item())
                told = model.discriminator(batch[0][:, :2])
                found.append(F.softplus(told).sum().item())
                yield "discriminator", F.softplus(told).sum(), {"accuracy": told.isfinite().sum()}
            guess = model.discriminator(model.generator(batch[0][:, 2:])).sum()
            yield "generator", guess, {"accuracy": torch.tensor(0.0), "guess": guess}

    found = []
    run = start(Five(), Pair())
    sums = run.train_step(STEPS[0])
    assert sums["discriminator_loss"] == pytest.approx(sum(found) / 5, rel=1e-12)
    assert sums["loss"] == pytest.approx(sums["discriminator_loss"] + sums["generator_loss"], rel=1e-12)
    assert sums["accuracy"] == pytest.approx(len(STEPS[0]) * 5 / 6, rel=1e-12)  # a mean over all that have it
    assert sums["guess"] == sums["generator_loss"]
    measured = run.evaluate()
    assert measured["accuracy"] == pytest.approx(5 / 6, rel=1e-12)
    assert measured["discriminator_loss"] == pytest.approx(found[-1] / 5, rel=1e-12)
    assert len({*found[:5]}) == 5
    assert len({*found[5:]}) == 1
    drawn = drawn[:5]
    assert {int(slots["step"]) for slots in run.optimizers["discriminator"].state_dict()["state"].values()} == {5}
    assert {int(slots["step"]) for slots in run.optimizers["generator"].state_dict()["state"].values()} == {1}
    assert len(set(drawn)) == 5
    assert run.step == 1


def test_evaluation_and_rows_name_the_loss_of_each_part(start):
    run = start(Adversaries(), Pair(), epochs=1)
    summary = run.fit()
    for split in ("train", "valid"):
        total = summary[f"{split}_discriminator_loss"] + summary[f"{split}_generator_loss"]
        assert summary[f"{split}_loss"] == pytest.approx(total, rel=1e-12)
        assert 0 <= summary[f"{split}_accuracy"] <= 1


def test_parts_are_compiled_one_by_one(start, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    run = start(Adversaries(), Pair(), compile=True)
    assert compiled == [run.model.discriminator, run.model.generator]


def test_parts_that_leave_out_or_share_parameters_are_refused(start):
    class Overlapping(Adversaries):
        def parts(self, model):
            return {"all": model, "generator": model.generator}

    class Partial(Adversaries):
        def parts(self, model):
            return {"generator": model.generator}

    for task, named in ((Overlapping(), "generator.0.weight"), (Partial(), "discriminator.0.weight")):
        with pytest.raises(ValueError, match=f"parts must hold every trainable parameter.*{named}"):
            start(task, Pair())
    frozen = Pair()
    frozen.discriminator.requires_grad_(False)
    start(Partial(), frozen)


def test_losses_in_another_order_for_a_micro_batch_are_refused(start):
    class Shuffled(Adversaries):
        def losses(self, model, batch):
            yield from list(super().losses(model, batch))[:: 1 if len(batch[0]) == 3 else -1]

    with pytest.raises(ValueError, match="losses must come in the same order"):
        start(Shuffled(), Pair(), accumulate=2).train_step(torch.arange(5))


def test_a_task_of_one_loss_has_one_part(start):
    run = start(Sentences(), network())
    assert list(run.parts) == list(run.optimizers) == ["model"]
    assert "model_loss" not in run.train_step(STEPS[0])


@pytest.mark.processes
def test_a_killed_gan_resumes_to_the_same_bits(launch, tmp_path):
    """Both optimizers, the average and both parts, after SIGKILL in its fifth step; a checkpoint every two."""
    died = launch("fit", tmp_path / "killed", task="toys", blow=("step", 5))
    assert died.returncode == -signal.SIGKILL, died.stderr
    for name in ("killed", "whole"):
        done = launch("fit", tmp_path / name, task="toys")
        assert done.returncode == 0, done.stderr
    one, other = (files.read_tensors(tmp_path / name / "last.safetensors") for name in ("killed", "whole"))
    assert one.keys() == other.keys()
    assert not [key for key in one if not torch.equal(one[key], other[key])]
    assert len({key.split(".")[1] for key in one if key.startswith("optimizer.")}) == len(list(Pair().parameters()))
    rows = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("killed", "whole")]
    assert rows[0] == rows[1]
