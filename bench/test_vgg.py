"""VGG-16 at 224 and VGG-11 with batch norm at 32, ours against torchvision's with the same weights."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest
import torch
import torchvision
from torch.nn import functional as F

import zoo

DEVICES = [("cpu", torch.float32)] + [("cuda", t) for t in (torch.float32, torch.bfloat16) if torch.cuda.is_available()]
MODELS = [("vgg16", 224, 4), ("vgg11_bn", 32, 64)]


@pytest.fixture(params=DEVICES, ids=lambda p: f"{p[0]}-{str(p[1])[6:]}")
def place(request):
    return request.param


@pytest.fixture(params=MODELS, ids=lambda p: f"{p[0]}-{p[1]}px-batch{p[2]}")
def models(request, place):
    """(ours, torchvision's, images, labels, autocast); dropout is off, so that both compute the same."""
    (name, size, batch), (device, dtype) = request.param, place
    ours, theirs = zoo.create(name, dropout=0.0), getattr(torchvision.models, name)(dropout=0.0, init_weights=False)
    theirs.load_state_dict(ours.torchvision.export(ours), strict=True)
    images, labels = torch.randn(batch, 3, size, size, device=device), torch.randint(1000, (batch,), device=device)

    def autocast():
        return torch.autocast(device, dtype) if dtype != torch.float32 else contextlib.nullcontext()

    return ours.to(device), theirs.to(device), images, labels, autocast


def inference(model, images, autocast):
    model.eval()

    def call():
        with torch.inference_mode(), autocast():
            return model(images)

    return call


def training(model, images, labels, autocast):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
    model.train()

    def call():
        with autocast():
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()  # last, so that the profiler sees every gradient come and go

    return call


def pairs(kind, models):
    ours, theirs, images, labels, autocast = models
    if kind == "infer":
        return inference(ours, images, autocast), inference(theirs, images, autocast)
    return training(ours, images, labels, autocast), training(theirs, images, labels, autocast)


@pytest.mark.parametrize("kind", ["infer", "train step"])
def test_eager_time(benchmark, side_by_side, models, place, kind):
    benchmark.group = f"{kind}, eager"
    side_by_side(*pairs(kind, models), rounds=25 if kind == "infer" else 9, device=place[0])


@pytest.mark.parametrize("kind", ["infer", "train step"])
def test_eager_memory(benchmark, compare_memory, models, place, kind):
    benchmark.group = f"{kind}, peak memory"
    compare_memory(*pairs(kind, models), device=place[0])


def test_optimized_time(benchmark, side_by_side, models, place):
    """`zoo.optimize` against torchvision as it is."""
    ours, theirs, images, _, autocast = models
    fast = zoo.optimize(ours.eval(), images, dtype=place[1])
    benchmark.group = "infer, zoo.optimize against eager"
    side_by_side(lambda: fast(images), inference(theirs, images, autocast), rounds=25, device=place[0])


def test_import_time(benchmark, side_by_side):
    def importing(package):
        return lambda: subprocess.run([sys.executable, "-c", f"import {package}"], check=True)

    benchmark.group = "import"
    side_by_side(importing("zoo"), importing("torchvision.models"), rounds=5)
