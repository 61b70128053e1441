"""The convolutional zoo at the image sizes of its papers, and VGG-11 with batch norm at 32, ours against torchvision's.

With the same weights, dropout off, auxiliary heads on in training. Then a whole epoch of our runner on 32x32 images, against the
loop that one writes around torchvision's model.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest
import torch
import torchvision
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2 as T

import zoo
from tasks.data.images import ImageData, Images
from tasks.engine import Run
from tasks.image_classification import TrainOptions
from tasks.image_task import Classification

DEVICES = [("cpu", torch.float32)] + [("cuda", t) for t in (torch.float32, torch.bfloat16) if torch.cuda.is_available()]
MODELS = [
    ("vgg16", 224, 4),
    ("vgg11_bn", 32, 64),
    ("resnet18", 224, 4),
    ("resnet50", 224, 4),
    ("resnext50_32x4d", 224, 4),
    ("googlenet", 224, 4),
    ("inception_v3", 299, 4),
    ("mobilenet_v2", 224, 4),
    ("mobilenet_v3_large", 224, 4),
]


@pytest.fixture(params=DEVICES, ids=lambda p: f"{p[0]}-{str(p[1])[6:]}")
def place(request):
    return request.param


@pytest.fixture(params=MODELS, ids=lambda p: f"{p[0]}-{p[1]}px-batch{p[2]}")
def models(request, place):
    """(ours, torchvision's, images, labels, autocast); dropout is off, so that both compute the same."""
    (name, size, batch), (device, dtype) = request.param, place
    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    ours, theirs = zoo.create(name), getattr(torchvision.models, name)(**options)
    for module in (*ours.modules(), *theirs.modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    theirs.load_state_dict(ours.maps["torchvision"].export(ours), strict=True)
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
            outputs = model(images)
            outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
            loss = sum(F.cross_entropy(logits, labels) for logits in outputs)
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
    side_by_side(*pairs(kind, models), rounds=21 if kind == "infer" else 7, device=place[0])


@pytest.mark.parametrize("kind", ["infer", "train step"])
def test_eager_memory(benchmark, compare_memory, models, place, kind):
    benchmark.group = f"{kind}, peak memory"
    compare_memory(*pairs(kind, models), device=place[0])


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["", "bf16"])
def test_optimized_time(benchmark, side_by_side, models, place, dtype):
    """`zoo.optimize` against torchvision as it is; in bf16 too, against float32."""
    ours, theirs, images, _, autocast = models
    fast, reference = zoo.optimize(ours.eval(), images, dtype=dtype or place[1]), inference(theirs, images, autocast)
    if dtype is None and place == ("cpu", torch.float32):
        expected = reference()
        assert (fast(images) - expected).abs().max() < 1e-4 * expected.square().mean().sqrt()
    benchmark.group = f"infer, zoo.optimize{' in bf16' if dtype else ''} against eager"
    side_by_side(lambda: fast(images), reference, rounds=21, device=place[0])


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_training_throughput(benchmark, side_by_side, name, tmp_path):
    """An epoch of 512 images of 32x32 pixels in batches of 64: shifted, flipped, normalised, forward, backward, AdamW."""
    pixels, labels = torch.randint(256, (512, 3, 32, 32), dtype=torch.uint8), torch.randint(10, (512,))
    split = Images(pixels, labels, torch.full((3,), 0.5), torch.full((3,), 0.25))
    data, options = ImageData(split, split, split, [str(n) for n in range(10)], "flip"), TrainOptions(device="cpu")
    run = Run(Classification(data, options), zoo.create(name, num_classes=10), options, tmp_path)

    def ours():
        for indices in run.task.train.batches(0):
            run.train_step(indices)

    transform = T.Compose(
        [
            T.RandomCrop(32, padding=4),
            T.RandomHorizontalFlip(),
            T.ToDtype(torch.float32, scale=True),
            T.Normalize([0.5] * 3, [0.25] * 3),
        ]
    )
    samples = [(transform, image, label) for image, label in zip(pixels, labels, strict=True)]
    loader = DataLoader(Transformed(samples), batch_size=64, shuffle=True)
    model = getattr(torchvision.models, name)(num_classes=10).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)

    def theirs():
        for images, targets in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(images), targets, label_smoothing=0.1).backward()
            optimizer.step()

    benchmark.group = "train, an epoch of 512 images of 32x32"
    side_by_side(ours, theirs, rounds=5)


class Transformed(Dataset):
    """A data set as one writes it: a picture at a time."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        transform, image, label = self.samples[index]
        return transform(image), label


def test_import_time(benchmark, side_by_side):
    def importing(package):
        return lambda: subprocess.run([sys.executable, "-c", f"import {package}"], check=True)

    benchmark.group = "import"
    side_by_side(importing("zoo"), importing("torchvision.models"), rounds=5)
