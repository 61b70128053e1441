"""Losses and metrics of image classification: auxiliary heads, class weights, mixed images, the report on the best model."""

from __future__ import annotations

import contextlib
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import zoo
from tasks.classes import Measured, by_class, match_classes, scores, table
from tasks.data.images import ImageData, Images
from tasks.image_classification import TrainOptions
from tasks.image_scores import measure
from tasks.image_task import Classification, balanced_weights

LABELS = torch.tensor([0, 1, 2, 0, 0, 1, 0, 0])


def task(classes: int = 3, labels: torch.Tensor = LABELS, **options) -> Classification:
    pixels = torch.randint(0, 256, (len(labels), 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = Images(pixels, labels, torch.full((3,), 0.5), torch.full((3,), 0.25))
    data = ImageData(images, images, images, [str(n) for n in range(classes)], "none")
    return Classification(data, TrainOptions(**{"label_smoothing": 0.0, **options}))


def linear(classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, classes))


class Says(nn.Module):
    """Always the same classes."""

    def __init__(self, classes: torch.Tensor) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, images):
        return F.one_hot(self.classes, 3).float()


def test_losses_of_auxiliary_heads_are_added():
    """0.3 times each, as GoogLeNet's paper has it, in training; evaluation knows the main head only."""
    torch.manual_seed(0)
    model = zoo.create("googlenet", num_classes=3, width=1 / 8, dropout=0.0, dropout_auxiliary=0.0)
    ours = task()
    ours.auxiliary_weight = model.auxiliary_weight
    images, labels = torch.randn(4, 3, 40, 40), torch.tensor([0, 1, 2, 0])
    main_loss, first, second = (F.cross_entropy(x, labels, reduction="sum") for x in model.train()(images))
    torch.testing.assert_close(ours.loss(model, (images, labels))[0], main_loss + 0.3 * (first + second))
    torch.testing.assert_close(
        ours.loss(model.eval(), (images, labels))[0], F.cross_entropy(model(images), labels, reduction="sum")
    )
    partners, shares = torch.tensor([1, 1, 0, 2]), torch.tensor([0.2, 1.0, 0.0, 0.7])
    targets = F.one_hot(labels, 3) * shares[:, None] + F.one_hot(partners, 3) * (1 - shares[:, None])
    main_loss, first, second = (F.cross_entropy(x, targets, reduction="sum") for x in model.train()(images))
    mixed = ours.loss(model, (images, labels, partners, shares))[0]
    torch.testing.assert_close(mixed, main_loss + 0.3 * (first + second))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", ["none", "balanced"])
@pytest.mark.parametrize("kind", ["none", "mixup", "cutmix"])
def test_the_loss_is_torchs_of_the_mixed_target(kind, weights, smoothing):
    """With class weights and label smoothing too: `F.cross_entropy` of the target of both classes, weighted and smoothed."""
    ours = task(label_smoothing=smoothing, class_weights=weights, **{} if kind == "none" else {kind: 1.0})
    epochs = [ours.train.batch(torch.arange(8), epoch) for epoch in range(5)]
    batch, model = tuple(map(torch.cat, zip(*epochs, strict=True))), linear().train()
    images, labels, *mixed = batch
    assert len(mixed) == (0 if kind == "none" else 2)
    targets = F.one_hot(labels, 3).float()
    if mixed:
        targets = targets * mixed[1][:, None] + F.one_hot(mixed[0], 3) * (1 - mixed[1][:, None])
    weight = balanced_weights(LABELS, 3) if weights == "balanced" else None
    expected = F.cross_entropy(model(images), targets, weight=weight, label_smoothing=smoothing, reduction="sum")
    loss, metrics = ours.loss(model, batch)
    torch.testing.assert_close(loss, expected)
    assert metrics["accuracy"] == (model(images).argmax(-1) == targets.argmax(-1)).sum()
    most = targets.argmax(-1)
    assert (most != labels).any() == (kind != "none"), "nothing is mixed so far that its partner counts"
    assert ours.loss(Says(most), batch)[1]["accuracy"] == 40
    assert ours.loss(Says((most + 1) % 3), batch)[1]["accuracy"] == 0
    assert ours.units(batch) == 40
    plain = ours.valid.batch(torch.arange(8), 0)
    torch.testing.assert_close(ours.loss(model.eval(), plain)[0], F.cross_entropy(model(plain[0]), plain[1], reduction="sum"))


def test_balanced_weights_are_scikit_learns_and_one_in_the_mean():
    from sklearn.utils.class_weight import compute_class_weight

    weights = balanced_weights(LABELS, 3)
    theirs = compute_class_weight("balanced", classes=LABELS.unique().numpy(), y=LABELS.numpy())
    assert weights.tolist() == pytest.approx(theirs.tolist())
    assert weights[LABELS].mean().item() == pytest.approx(1)


@pytest.mark.parametrize("classes", [3, 5, 6, 10])
def test_more_than_five_classes_have_a_top5_accuracy(classes):
    ours, model = task(classes), linear(classes).eval()
    images, labels = ours.valid.batch(torch.arange(8), 0)
    _, metrics = ours.loss(model, (images, labels))
    assert ("top5_accuracy" in metrics) == (classes > 5)
    if classes > 5:
        ranks = model(images).argsort(-1, descending=True)
        assert metrics["top5_accuracy"] == sum(int(label) in row[:5] for row, label in zip(ranks.tolist(), labels, strict=True))


def test_splits_go_into_other_processes():
    ours = task(augment="flip", mixup=1.0)
    for split in (ours.train, ours.valid):
        again = pickle.loads(pickle.dumps(split))
        assert all(torch.equal(a, b) for a, b in zip(again.batches(0), split.batches(0), strict=True))
        batches = (one.batch(torch.arange(3), 0) for one in (again, split))
        assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))


def test_a_task_says_what_its_data_is():
    assert task().identity["classes"] == ["0", "1", "2"]
    assert task().identity["train"]["images"] == 8


def test_scores_are_scikit_learns():
    from sklearn.metrics import balanced_accuracy_score, log_loss, recall_score, top_k_accuracy_score

    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(7, (60,), generator=draw)
    logs = torch.randn(60, 7, generator=draw, dtype=torch.float64).log_softmax(-1)
    found = scores(Measured(logs, labels))
    predicted = logs.argmax(-1)
    assert found["accuracy"] == pytest.approx((predicted == labels).double().mean().item())
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert found["top5_accuracy"] == pytest.approx(top_k_accuracy_score(labels, logs.numpy(), k=5, labels=range(7)))
    assert found["loss"] == pytest.approx(log_loss(labels, logs.exp().numpy(), labels=range(7)))
    assert by_class(Measured(logs, labels))[1] == pytest.approx(recall_score(labels, predicted, average=None))
    lines = [*table(Measured(logs, labels), list("abcdefg"))]
    assert len(lines) == 8
    assert lines[1].split()[::4] == ["a", str((labels == 0).sum().item())]


def test_classes_that_do_not_occur_do_not_count():
    """Two of three classes occur, the third one is said; no warning, for warnings are errors here."""
    labels, logs = torch.tensor([0, 0, 2, 2]), torch.eye(3)[[0, 1, 2, 1]].mul(9).log_softmax(-1)
    assert scores(Measured(logs, labels))["balanced_accuracy"] == 0.5
    assert [line.split()[0] for line in table(Measured(logs, labels), ["a", "b", "c"])] == ["class", "a", "c"]


def test_the_report_is_on_the_best_model_and_the_test_split(tmp_path):
    """Neither on the last model, nor on what was measured while training."""
    ours, options = task(), TrainOptions(device="cpu")
    test = Images(255 - ours.data.test.pixels, LABELS.flip(0), ours.data.test.mean, ours.data.test.std)
    ours.data = ImageData(ours.data.train, ours.data.valid, test, ours.data.classes, "none", skipped=["a", "b"])
    models = []
    for n, name in enumerate(("best", "last")):
        torch.manual_seed(n)
        models.append(zoo.create("resnet20", num_classes=3))
        nn.init.normal_(models[n].head.output.weight)
        zoo.save(models[n], tmp_path, f"{name}.safetensors")
    history = [{"epoch": 1, "train_accuracy": 0.5, "valid_accuracy": 0.5}]
    run = SimpleNamespace(folder=tmp_path, options=options, history=history)
    found = ours.report(run, {"best_epoch": 1, "best_valid_accuracy": 0.5, "seconds": 1.0})
    expected = scores(measure(models[0].eval(), contextlib.nullcontext(), test, 8))
    assert found == {**{f"test_{name}": pytest.approx(value) for name, value in expected.items()}, "skipped_images": 2}
    for model, split in ((models[1], test), (models[0], ours.data.valid)):
        assert scores(measure(model.eval(), contextlib.nullcontext(), split, 8))["loss"] != pytest.approx(expected["loss"])


@pytest.mark.parametrize("name", ["resnet20", "googlenet"])
def test_output_rows_follow_the_names_of_the_classes(name):
    """The same, the same in another order, other ones of the same number, of another number, unknown ones."""
    torch.manual_seed(0)
    known = ["ant", "bee", "cow"]

    def model():
        torch.manual_seed(1)
        made = zoo.create(name, num_classes=3, **({"width": 1 / 8} if name == "googlenet" else {}))
        for layer in made.output_layers:
            nn.init.normal_(made.get_submodule(layer).bias)
        return made

    before = model()
    for classes, order in ((known, [0, 1, 2]), (["cow", "ant", "bee"], [2, 0, 1]), (["ant", "bee", "cat"], None)):
        after = model()
        torch.manual_seed(2)
        told = match_classes(after, known, classes)
        assert len(told) == 1
        assert ("is kept, for the classes are the same" in told[0]) == (classes == known)
        for key, x in before.state_dict().items():
            new = after.state_dict()[key]
            if key.rpartition(".")[0] not in before.output_layers:
                assert torch.equal(new, x), key
            elif order is not None:
                assert torch.equal(new, x[order]), key
            else:
                assert not torch.equal(new, x), key
                assert "a new output layer" in told[0]
                assert "ant, bee, cow" in told[0]
    after = model()
    assert "do not tell" in match_classes(after, None, known)[0]
    assert all(torch.equal(a, b) for a, b in zip(after.state_dict().values(), before.state_dict().values(), strict=True))
