"""Models of `zoo.quantize` against the same ones in float32, both by `zoo.optimize`, in one run; what it costs in scores.

Networks of images in static int8 and in bf16, 224 pixels (299 for Inception) in batches of 4. A ResNet-20 is trained on the
digits of scikit-learn for the score: 1,437 to train and calibrate on, 360 to test.
BERT-base in dynamic int8 has 8 rows of 128 tokens.
"""

from __future__ import annotations

import warnings
from functools import cache

import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

import zoo

MODELS = {
    "resnet18": (224, 4), "resnet50": (224, 4), "vgg16": (224, 4), "resnext50_32x4d": (224, 4), "googlenet": (224, 4),
    "inception_v3": (299, 4), "mobilenet_v2": (224, 4), "mobilenet_v3_large": (224, 4),
}  # fmt: skip


@cache
def float32(name):
    """(model, images, its optimized copy)"""
    torch.manual_seed(0)
    size, batch = MODELS[name]
    model, images = zoo.create(name).eval(), torch.randn(batch, 3, size, size)
    return model, images, zoo.optimize(model, images)


@pytest.mark.parametrize("kind", ["static", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_images(benchmark, side_by_side, name, kind):
    model, images, reference = float32(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "static":
            fast = zoo.optimize(zoo.quantize(model, kind, calibration=images), images)
        else:
            fast = zoo.optimize(model, images, torch.bfloat16)
    expected = reference(images)
    benchmark.extra_info["noise"] = float((fast(images).float() - expected).square().mean() / expected.var()) ** 0.5
    benchmark.group = f"infer, {kind} against float32, both zoo.optimize"
    side_by_side(lambda: fast(images), lambda: reference(images), rounds=9)


@cache
def digits():
    """(trained model, images to train on, images and labels to test)"""
    torch.manual_seed(0)
    data = load_digits()
    images = F.pad(torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1, (4, 4, 4, 4), value=-1.0)
    labels, order = torch.tensor(data.target), torch.randperm(len(data.target))
    train, test = order[:1437], order[1437:]
    model = zoo.create("resnet20", in_channels=1, num_classes=10).train()
    steps = 12 * 23
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        if step % 23 == 0:
            train = train[torch.randperm(len(train))]
        batch = train[step % 23 * 64 :][:64]
        shifted = torch.roll(images[batch], tuple(torch.randint(-1, 2, (2,)).tolist()), (2, 3))
        F.cross_entropy(model(shifted), labels[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval(), images[train], images[test], labels[test]


def test_digits(benchmark, side_by_side):
    model, train, images, labels = digits()
    reference = zoo.optimize(model, images)
    fast = zoo.optimize(zoo.quantize(model, "static", calibration=train[:512]), images)
    scores = {name: float((m(images).argmax(1) == labels).float().mean()) for name, m in (("int8", fast), ("float32", reference))}
    assert scores["int8"] >= scores["float32"] - 0.005
    benchmark.extra_info.update({f"score_{name}": f"{100 * score:.1f} %" for name, score in scores.items()})
    benchmark.group = "digits, ResNet-20, static against float32, both zoo.optimize"
    side_by_side(lambda: fast(images), lambda: reference(images), rounds=9)


def test_bert(benchmark, side_by_side):
    torch.manual_seed(0)
    model, tokens = zoo.create("bert_base", vocab_size=30522).eval(), torch.randint(5, 30000, (8, 128))
    fast, reference = zoo.optimize(zoo.quantize(model, "dynamic"), tokens), zoo.optimize(model, tokens)
    expected = reference(tokens)
    benchmark.extra_info["noise"] = float((fast(tokens) - expected).square().mean() / expected.var()) ** 0.5
    benchmark.group = "BERT-base, dynamic against float32, both zoo.optimize"
    side_by_side(lambda: fast(tokens), lambda: reference(tokens), rounds=7)
